"""The example of the Mexican hat shows what it says, to a stated accuracy."""

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
