"""The examples of late training show what they say, to a stated accuracy."""

import contextlib
import os
import pathlib
import re
import subprocess
import sys

import pytest


ROOT = pathlib.Path(__file__).parent.parent


@contextlib.contextmanager
def on_one_core():
    """One core for a process that starts meanwhile, where the system can do that.

    Where other processes share the cores XLA's threads wait for each other: the flow of
    a small network that takes 1 s on one core took 4 to 60 s on two.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    cores = sorted(os.sched_getaffinity(0))
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    os.sched_setaffinity(0, {cores[worker % len(cores)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def printed_by(name, pictures, folder):
    """What an example prints, run small in a process of its own, as a reader does."""
    script = ROOT / "examples" / f"{name}.py"
    with on_one_core():
        run = subprocess.run(
            [sys.executable, str(script), "--quick", "--output", str(folder)],
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.strip().splitlines()[-1].startswith("Shown:")
    for picture in pictures:
        # A PNG with something on it, not an empty canvas.
        assert (folder / picture).stat().st_size > 20_000
    return run.stdout


def numbers(pattern, text):
    """The groups of the only match, or of all, as numbers."""
    found = re.findall(pattern, text)
    assert found, f"{pattern} is not in\n{text}"
    return [
        [float(one) for one in (match if isinstance(match, tuple) else (match,))]
        for match in found
    ]


@pytest.mark.slow
def test_growth_rates(tmp_path):
    text = printed_by("growth_rates", ["growth.png", "rates.png"], tmp_path)
    # K, steps, log t, product, layer norm, deviation, deviation with K² for K.
    rows = numbers(r"(?m)^ +(\d+) +\d+ +30\.0 +(\S+) +(\S+) +(\S+) +(\S+)$", text)
    assert [row[0] for row in rows] == [1, 2, 3]
    products = [row[1] for row in rows]
    layers = [row[2] for row in rows]
    # T3 Figure 2: deeper products grow faster, their layers more slowly.
    assert products == sorted(products) and layers == sorted(layers, reverse=True)
    for depth, _, _, deviation, with_square in rows:
        # rtol is 1e-8 a step, over some 100 steps of an attracting flow.
        assert deviation < 1e-7
        assert depth == 1 or with_square > 0.1
    # T3 Figure 3: both closed forms, the second to angles of 1e-11 at rtol 1e-12.
    standard, normalised = numbers(r"from closed form (\S+)", text)
    assert standard[0] < 1e-9 and normalised[0] < 1e-3
    one, two = numbers(r"slope (-\d\.\d+) in log t", text)
    # -1 at t = ∞; at log t of 100, and of 12 with --quick, not quite.
    assert abs(one[0] + 1) < 0.05 and abs(two[0] + 1) < 0.15
    ((tracking,),) = numbers(r", (\S+) from the minimiser", text)
    assert tracking < 1e-2


@pytest.fixture(scope="module")
def limits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("limits")
    return printed_by("limit_margin", ["deep_linear.png", "planar.png"], folder)


def test_deep_linear_networks_come_to_the_svm(limits):
    # JT Proposition 4.4. The rates: 1 where the support vectors span R^4, 1/3 else.
    spanning, other = numbers(r"slope of the angle in log t: (\S+)", limits)
    assert abs(spanning[0] + 1) < 0.02 and abs(other[0] + 1 / 3) < 0.01
    for margin, svm in numbers(r"margin (\S+), SVM's · L\^\(-L/2\) (\S+);", limits):
        assert margin == pytest.approx(svm, rel=1e-9)
    deviations = numbers(r"deviation from the proposition (\S+);", limits)
    assert len(deviations) == 2 and max(deviations)[0] < 1e-9
    assert limits.count("Certified.") == 3
    # Equal shares 3^{-1/2} of the layers, at log t = 1e8.
    ends = numbers(r"(?m)^ +1e\+08(?: +\S+){3} +(0\.\d+) +(0\.\d+) +(0\.\d+)$", limits)
    assert len(ends) == 2
    for shares in ends:
        assert shares == pytest.approx([3**-0.5] * 3, abs=1e-5)


def test_squared_relu_network_has_the_best_margin_of_its_directions(limits):
    # JT Proposition 4.6.
    ((below, gap),) = numbers(r"a below it by (\S+) \(duality gap (\S+)\)", limits)
    assert abs(below) < 1e-9 and abs(gap) < 1e-9
    ((margin,),) = numbers(r"margin a = (0\.\d+)", limits)
    ((lower, upper),) = numbers(r"any width (0\.\d+) to (0\.\d+);", limits)
    assert margin <= upper + 1e-6 and lower <= upper < 1.001 * lower
    # The margin comes like 1/log t; the direction as the curvature there predicts.
    ((slope, rate, predicted),) = numbers(
        r"margin/a in log t: (\S+); of ‖θ - θ̄‖ (\S+), predicted (\S+)", limits
    )
    assert abs(slope + 1) < 0.05 and abs(rate - predicted) < 0.1
    groups = numbers(r"(?m)^ +[+-]1 +\S+° +(\S+) +(\d+)$", limits)
    assert sum(share for share, _ in groups) == pytest.approx(1, abs=1e-4)
