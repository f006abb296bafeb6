"""The examples run, and what they print is what they claim."""

import pathlib
import re
import subprocess
import sys

import pytest


ROOT = pathlib.Path(__file__).parent.parent
# Alone in its file, so that the parallel runner can spread these out; each example runs
# in a process of its own, with JAX as a reader has it.
EXAMPLES = {
    "quickstart": ["quickstart.png"],
    "initialisations": ["initialisations.png"],
    "step_sizes": ["step_sizes.png"],
}


SLOW = {"step_sizes"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else [])
        for name in EXAMPLES
    ],
)
def test_example(name, tmp_path):
    script = ROOT / "examples" / f"{name}.py"
    run = subprocess.run(
        [sys.executable, str(script), "--output", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.strip().splitlines()[-1].startswith("Shown:")
    for picture in EXAMPLES[name]:
        # A PNG with something on it, not an empty canvas.
        assert (tmp_path / picture).stat().st_size > 20_000
    if name == "quickstart":
        defects = re.findall(r"holds to (\S+) of", run.stdout)
        assert len(defects) == 3 and all(float(d) < 1e-5 for d in defects)
        linear, deep = map(float, re.findall(r"(\d+\.\d+)%", run.stdout)[-2:])
        # No direction has a larger margin than the SVM's (JT Proposition 4.4).
        assert 99.9 < linear <= 100.0001 and 97 < deep < 100


def test_every_example_is_tested():
    found = {path.stem for path in (ROOT / "examples").glob("*.py")}
    # Their tests are in test_examples_late.py, _kinks, _flows, _small and _plane.py.
    elsewhere = {"growth_rates", "limit_margin", "normalised_flows", "relu_alignment"}
    elsewhere |= {"mexican_hat", "random_network_margins", "small_initialisation"}
    elsewhere |= {"all_laws"}
    assert found == set(EXAMPLES) | elsewhere
