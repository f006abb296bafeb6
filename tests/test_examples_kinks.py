"""The example of ReLU networks shows what it says, to a stated accuracy."""

import math

import pytest

from .test_examples_late import numbers, printed_by


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    pictures = [f"relu_{name}.png" for name in ("alignment", "branching", "sliding")]
    folder = tmp_path_factory.mktemp("relu")
    with pytest.MonkeyPatch.context() as patch:
        # Compiling takes all the time, and a third less of it so.
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        return printed_by("relu_alignment", pictures, folder)


def test_directions_converge_at_any_scale(printed):
    # Norm, steps, events, defect, time and norm when aligned, jumps, final loss.
    rows = numbers(r"(?m)^ +(1e-\d+)" + r" +(\S+)" * 8 + "$", printed)
    assert [row[0] for row in rows] == [1e-6, 1e-12, 1e-24, 1e-40]
    first = rows[0]
    for norm, steps, events, defect, aligned, then, _, _, final in rows:
        assert steps < 100 * (2 - math.log10(norm)) and 9 <= events < 100
        # rtol is 1e-7 a step.
        assert defect < 1e-6
        # KH Theorem 5.1: no later for a smaller start, at which the norm is still tiny.
        assert aligned == pytest.approx(first[4], rel=1e-6) and then < 20 * norm
        assert final < 1e-4


def test_the_loss_falls_when_predicted(printed):
    jumps = numbers(r"predicted (\S+), measured (\S+)", printed)
    assert len(jumps) == 2
    for predicted, measured in jumps:
        assert measured == pytest.approx(predicted, rel=1e-5)
    # In closed form: KKT values √3/4 and 0.3√3/2, then 0.3.
    one = 2 / math.sqrt(3)
    two = one + (1 - 0.3 * math.sqrt(3) * one) / 0.6
    assert [jump[0] for jump in jumps] == pytest.approx([one, two], abs=1e-7)
    values = [value for (value,) in numbers(r"NCF value N = (\S+):", printed)]
    assert values == pytest.approx(
        [math.sqrt(3) / 4, 0.15 * math.sqrt(3), 0.3], abs=1e-4
    )
    # At finite norms a constant later, within its part of log(1/‖W_0‖).
    rows = numbers(r"(?m)^ +(1e-\d+)(?: +\S+){5} +(\S+) +(\S+) +\S+$", printed)
    for norm, *times in rows:
        for time, limit in zip(times, (one, two), strict=True):
            assert 0 < (time - limit) * math.log(1 / norm) < 2


def test_branching_start_and_others(printed):
    # KH Figure 2, Lemmas E.1 and E.2.
    (leaves,) = numbers(
        r"'steepest': to \((\S+), (\S+)\) at t = (\S+), ambiguous points (\d+); "
        r"deviation from the closed form (\S+)",
        printed,
    )
    t = leaves[2]
    assert leaves[:2] == pytest.approx([math.cosh(t), math.sinh(t)], abs=1e-5)
    assert leaves[3] == 1 and leaves[4] < 1e-7
    (stays,) = numbers(
        r"'stay': to \((\S+), (\S+)\) at t = \S+, ambiguous points (\d+); "
        r"deviation from the closed form (\S+)",
        printed,
    )
    assert stays[:3] == [1, 0, 1] and stays[3] < 1e-7
    (others,) = numbers(
        r"from (\d+) other starts: ambiguous points (\d+), distance between the two "
        r"(\S+)",
        printed,
    )
    assert others[0] > 20 and others[1] == 0 and others[2] < 1e-9


def test_sliding_in_few_steps(printed):
    ((steps, events, defect, share, most),) = numbers(
        r"inclusion: (\d+) steps, (\d+) events, energy defect (\S+) of the initial "
        r"loss; slides for (\d+)% of the time, along up to (\d+) kinks",
        printed,
    )
    assert steps < 100 and 4 <= events < 20 and defect < 1e-7
    assert share > 80 and most >= 3
    ((chattering, wrong),) = numbers(
        r"autodiff: (\d+) steps, energy defect (\S+)", printed
    )
    assert chattering > 20 * steps and wrong > 0.01
