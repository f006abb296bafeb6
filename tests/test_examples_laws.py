"""The example of all laws shows what it says: all hold, and each fails somewhere."""

import re

import pytest

from .test_examples_late import numbers, printed_by


@pytest.mark.slow
def test_all_laws_on_one_flow(tmp_path, monkeypatch):
    # Compiling takes all the time.
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    text = printed_by("all_laws", ["all_laws.png"], tmp_path)
    assert "18 pass, 0 fail, 0 not applicable" in text
    ((held, of, others, told),) = numbers(
        r"(\d+) of (\d+) laws hold .*; of (\d+) things .* not it (\d+) are told", text
    )
    assert held == of == 18 and others == told == 9
    assert "every law fails on one" in text
    # JT Theorem 3.1: what is extrapolated is within the bound.
    ((length, end, most),) = numbers(
        r"ζ = (\S+), ζ_∞ = (\S+) as \(log t\)\S+, at most (\S+) .* pass", text
    )
    assert 0.99 * end < length < end < most < 1.01 * end
    failures = dict(re.findall(r"(?m)^(.+)\n    fails: (.+)$", text))
    assert failures["the Mexican hat"] == "path length is finite"
    assert failures["times that are twice as large"] == "growth rate"
    page = (tmp_path / "all_laws.html").read_text(encoding="utf-8")
    assert page.count("<table>") == 10 and "JT Theorem 4.1" in page
