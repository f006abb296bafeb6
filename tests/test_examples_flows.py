"""The example of normalised flows shows what it says, to a stated accuracy."""

import pytest

from .test_examples_late import numbers, printed_by


@pytest.mark.slow
def test_normalised_flows(tmp_path, monkeypatch):
    # Compiling takes all the time.
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    text = printed_by("normalised_flows", ["normalised_flows.png"], tmp_path)
    # Figure 1: distance from the standard flow, and energy defect.
    polar, normalised = numbers(
        r"(?:V\)|norm) +\d+ .* (\S+) +(\S+)$".replace("$", r"(?m:$)"), text
    )
    assert polar[0] < 1e-9 and polar[1] < 1e-9
    assert normalised[0] > 0.2 and normalised[1] < 1e-9
    # Each norm: ‖W‖/ρ, the angle, that of the least loss, of the largest margin.
    rows = numbers(r"l\S+ +\d+ +(\S+) +(\S+)° +(\S+)° +(\S+)° +(\S+)(?m:$)", text)
    for norm, angle, least, _, _ in rows:
        assert norm == pytest.approx(1.0, abs=1e-5)
        # V follows a minimum that moves with ρ.
        assert angle == pytest.approx(least, abs=5e-3)
    assert [row[3] for row in rows] == pytest.approx([0.0, 26.5651, 45.0], abs=1e-3)
    assert [row[4] for row in rows] == pytest.approx([1.0, 1.25**0.5, 1.5], abs=1e-3)
