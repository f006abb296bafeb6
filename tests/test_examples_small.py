"""The example of small initialisations shows what it says, to a stated accuracy."""

import pytest

from .test_examples_late import numbers, printed_by


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    with pytest.MonkeyPatch.context() as patch:
        # Compiling takes most of the time.
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        pictures = ["small_initialisation.png", "small_saddle.png"]
        return printed_by("small_initialisation", pictures, folder)


def test_directions_converge_at_the_rates_of_the_ncf(printed):
    rates = numbers(r"n'' = (\S+), measured (\S+)", printed)
    assert len(rates) == 2
    for predicted, measured in rates:
        # KH eq. 10 on the circle; rtol is 1e-9.
        assert measured == pytest.approx(predicted, rel=1e-4)
    # KH Theorem 5.1: one curve of directions, up to terms of ‖W‖² = 1e-6.
    ((apart,),) = numbers(r"from all norms differ by (\S+) rad", printed)
    assert apart < 1e-5


def test_the_norm_is_small_when_directions_have_converged(printed):
    text = printed[: printed.index("Saddle")]
    # Norm, steps, gradients, defect, (fall of the loss,) KKT residuals.
    row = r"(?m)^ +(1e-\d+) +(\d+) +(\d+) +(\S+) +(?:< )?(\S+) +(\S+) +(\S+)$"
    large, small = numbers(row, text)
    assert (large[0], small[0]) == (1e-6, 1e-30)
    for _, steps, gradients, defect, fallen, _, _ in (large, small):
        assert steps < 3000 and gradients < 7 * steps
        assert defect < 1e-7 and fallen < 1e-6
    # Smaller starts have more time: residuals of δ^{0.41} and δ^{0.24}.
    assert large[5] > 1e-2 and small[5] < 1e-9
    assert large[6] > 1e-2 and small[6] < 1e-6


def test_small_neurons_beside_a_saddle(printed):
    text = printed[printed.index("Saddle") :]
    row = r"(?m)^ +(1e-\d+) +\d+ +\d+ +(\S+) +(?:< )?(\S+) +(?:< )?(\S+) +(\S+)$"
    for size, defect, fallen, moved, residual in numbers(row, text):
        assert defect < 1e-7 and fallen < 1e-5 and moved < 1e-5
        assert size > 1e-10 or residual < 1e-4
    ((towards, there, flat, turned),) = numbers(
        r"(\d+) neurons to the KKT point at (\S+)°; (\d+) in the flat part, .* turns "
        r"by (\S+) rad",
        text,
    )
    assert (towards, flat) == (9, 1) and turned < 1e-5
    # The labels' direction is -135°; 25 points on that side have their own.
    assert there == pytest.approx(-151.5, abs=0.1)
