"""The examples of a spiral and of prediction surfaces show what they say."""

import pytest

from .test_examples_late import numbers, printed_by


def test_the_gradient_aligns_and_the_direction_turns_for_ever(tmp_path):
    text = printed_by("mexican_hat", ["mexican_hat.png"], tmp_path)
    ((turns, first, last, off),) = numbers(
        r"(\S+) turns; \|u\| from (\S+) to (\S+); cq - φ within (\S+) of a constant",
        text,
    )
    # In the valley of f: a turn for each 2π/c by which q = 1/(1 - |u|²) grows.
    q = [1 / (1 - radius**2) for radius in (first, last)]
    assert turns > 7 and off < 0.05
    assert 2 * 3.14159265 * turns == pytest.approx(8 * (q[1] - q[0]), abs=0.1)
    # -5/6 as t → ∞, and less before: y^{-5/6} began at some y > 0.
    ((angle, length),) = numbers(r"angle (-\S+), dζ/dy (-\S+) \(", text)
    assert -5 / 6 < angle < -0.75 and -5 / 6 < length < -0.75
    failures = [line for line in text.splitlines() if line.endswith(" fail")]
    assert len(failures) == 1 and failures[0].startswith("path length is finite")
    # JT Theorem 3.1 does not hold; p would be more than one.
    ((p,),) = numbers(r"p = (\S+);", failures[0])
    assert p == pytest.approx(-length, abs=0.05)
    assert [line for line in text.splitlines() if line.startswith("gradient aligns")][
        0
    ].endswith("pass")


def test_surfaces_of_the_kernel_and_of_the_network(tmp_path):
    text = printed_by(
        "random_network_margins", ["random_network_margins.png"], tmp_path
    )
    ((kernel, support),) = numbers(r"kernel: margin (\S+), (\d+) support vectors", text)
    # No more than the rank of the points' features asks for, and two at least.
    assert kernel > 0 and 2 <= support <= 20
    ((time, steps, margin),) = numbers(
        r"classification: t = (\S+), (\d+) steps, smallest margin (\S+)", text
    )
    # The event is found, not a step near it.
    assert 0 < time < 10 and steps < 100 and abs(margin) < 1e-9
    ((steps, log_loss, late, before),) = numbers(
        r"log t = 1000: (\d+) steps, log ℒ = (\S+), normalised margin (\S+), after "
        r"(\S+) at",
        text,
    )
    # T3 eq. (64): log ℒ = -log t - log log t + O(1) for degree 2.
    assert steps < 300 and -1012 < log_loss < -1000
    assert 0 < before < late < 1.1 * before
    ((change, as_kernel, as_first),) = numbers(
        r"by (\S+) % of its largest .* a\) on (\S+) % of the square, of b\) on (\S+) %",
        text.replace("its sign", "").replace("\n", " "),
    )
    assert change < 20 and 60 < as_kernel < 100 and 60 < as_first < 99.5
