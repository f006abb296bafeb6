r"""All laws on one flow; and each of them on something that is not that flow.

    python examples/all_laws.py [--output FOLDER] [--quick]

Three linear layers on iris, from random weights to t = ∞, and once more with a smaller
tolerance: `gflow.laws.check` confronts the flow with what must be true of it, from the
first times (energy, conserved balances) to the last ones (alignment, path length, rates
of growth and of the direction). The whole table goes to all_laws.html.

A test that cannot fail says nothing. So the same laws then judge what is nearly that
flow: gradient descent, a loose solve, weights that were changed a little, another
clock, a model that is not homogeneous; and the Mexican hat of mexican_hat.py, along
which the direction turns for ever. Every law fails somewhere, and where it should.
"""

import argparse
import functools
import math
import pathlib
import time
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import mexican_hat
import numpy as np
from matplotlib.colors import ListedColormap

import gflow
from gflow.plot import GREY, PALETTE, style


jax.config.update("jax_enable_x64", True)

LOSS = gflow.losses.Exponential()
RTOL = 1e-6
LOG_T = np.concatenate([np.linspace(-6.0, 1.0, 29), np.geomspace(1.2, 1e8, 80)])


# --- The flow -------------------------------------------------------------------------


def data():
    """Setosa (-1) against versicolor (+1), standardised, of norm one at most."""
    x, y = gflow.data.two_classes(*gflow.data.iris(), 0, 1)
    x = np.asarray(gflow.data.standardise(x))
    return x / np.linalg.norm(x, axis=1).max(), y


def model():
    """x ↦ W_3 W_2 W_1 x."""
    return gflow.nn.DeepLinear((4, 6, 5, "scalar"), key=jax.random.key(0))


def solve(t1, rtol):
    """From t = 0, with the same saved times for all."""
    return gflow.integrate(
        model(),
        data(),
        LOSS,
        (0.0, t1),
        save_at=gflow.exp(LOG_T),
        observe="path_length",
        rtol=rtol,
    )


@functools.cache
def flow():
    """To t = ∞, with its limit."""
    return solve(gflow.INFINITY, RTOL)


@functools.cache
def other():
    """The same curve, with errors a hundred times smaller."""
    return solve(gflow.exp(LOG_T[-1]), RTOL / 100)


def check(solution, **options):
    """The table of laws; of the flow's own problem if not told otherwise."""
    known = {"data": data(), "loss": LOSS}
    return gflow.laws.check(solution, **(known | options))


# --- What is not the flow -------------------------------------------------------------

BREAKING = {
    "descent": "gradient descent, 300 steps of 1/20",
    "loose": "a solve with rtol = 0.1, judged by 1e-6",
    "changed": "weights changed by 1 % after the solve",
    "backwards": "the saved models in the opposite order",
    "lopsided": "layers scaled against each other, the same outputs",
    "astray": "a direction that keeps 3° away from the limit",
    "late": "times that are twice as large",
    "biased": "x ↦ ⟨w, x⟩ + b², taken to be homogeneous",
    "spiral": "the Mexican hat",
}


def with_models(solution, change):
    """The solution with other weights, of arrays with a leading axis of times."""
    arrays, rest = eqx.partition(solution.models, eqx.is_inexact_array)
    leaves, structure = jax.tree.flatten(arrays)
    arrays = jax.tree.unflatten(structure, change(leaves))
    return eqx.tree_at(lambda s: s.models, solution, eqx.combine(arrays, rest))


def changed(leaves):
    rng = np.random.default_rng(0)
    return [w * (1 + 0.01 * jnp.asarray(rng.normal(size=w.shape))) for w in leaves]


def backwards(leaves):
    return [w[::-1] for w in leaves]


def lopsided(leaves):
    first, *rest, last = leaves
    factor = jnp.linspace(1.0, 1.5, len(first))[:, None, None]
    return [first * factor, *rest, last / factor]


def astray(leaves):
    """W + ‖W‖ tan 3° e, the same e of norm one at all times, across the last W."""
    rng = np.random.default_rng(1)
    flat = np.concatenate([np.asarray(w).reshape(len(w), -1) for w in leaves], axis=1)
    e = rng.normal(size=flat.shape[1])
    e -= (e @ flat[-1]) / (flat[-1] @ flat[-1]) * flat[-1]
    e *= math.tan(math.radians(3)) / np.linalg.norm(e)
    flat = flat + np.linalg.norm(flat, axis=1, keepdims=True) * e
    ends = np.cumsum([w[0].size for w in leaves])[:-1]
    parts = np.split(flat, ends, axis=1)
    return [jnp.asarray(p.reshape(w.shape)) for p, w in zip(parts, leaves, strict=True)]


class Biased(eqx.Module):
    """x ↦ ⟨w, x⟩ + b²."""

    w: jax.Array
    b: jax.Array

    def __call__(self, x):
        return self.w @ x + self.b**2


def other_than_the_flow(name):
    """One of them, and what the laws are to know of it."""
    if name == "biased":
        start, span = Biased(jnp.zeros(4), jnp.ones(())), (0.0, gflow.exp(5.0))
        return gflow.integrate(start, data(), LOSS, span), {"degree": 1}
    if name == "descent":
        steps = 0.05 * np.arange(301)
        return gflow.descend(model(), data(), LOSS, 0.05, 300, save_at=steps), {}
    if name == "loose":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # it says so itself
            loose = solve(gflow.exp(LOG_T[-1]), 0.1)
        return loose, {"other": other(), "rtol": RTOL}
    if name == "late":
        times = flow().log_t + math.log(2.0)
        return eqx.tree_at(lambda s: s.log_t, flow(), times), {}
    change = {"changed": changed, "backwards": backwards, "lopsided": lopsided}
    solution = with_models(flow(), change.get(name, astray))
    options = {"other": other()}
    if name == "astray":
        options["limit"] = gflow.limit(solution, data(), LOSS)
    return solution, options


def table_of(name):
    """What the laws say of it."""
    if name == "spiral":
        return mexican_hat.laws(mexican_hat.flow(1e7)[0])
    solution, options = other_than_the_flow(name)
    return check(solution, **options)


# --- Results --------------------------------------------------------------------------


def page(table, broken, path):
    """The tables, as a page."""
    parts = [
        "<!DOCTYPE html><html lang='en'><head><meta charset='utf-8'>"
        "<title>All laws on one flow</title><style>"
        "body{font:14px/1.4 sans-serif;max-width:100em;margin:2em auto;padding:0 1em}"
        "table{border-collapse:collapse;font-size:13px}"
        "th,td{text-align:left;padding:.25em .7em;border-bottom:1px solid #ddd;"
        "vertical-align:top}caption{caption-side:bottom;text-align:left;padding:.6em}"
        "</style></head><body><h1>All laws on one flow</h1>"
        "<p>Three linear layers on iris, the exponential loss, from random weights to "
        f"log t = {float(flow().log_t[-1]):.0e} at rtol = {RTOL:.0e}.</p>",
        table._repr_html_(),
        "<h1>What is not the flow</h1>",
    ]
    for name, one in broken.items():
        parts.append(f"<h2>{BREAKING[name]}</h2>{one._repr_html_()}")
    path.write_text("".join([*parts, "</body></html>"]), encoding="utf-8")


def picture(table, broken, path):
    """The flow's violations over their tolerances; what fails beside it."""
    with style(None):
        figure, (left, right) = plt.subplots(
            1, 2, figsize=(12.0, 6.4), layout="constrained", width_ratios=(1.25, 1)
        )
        table.plot(left)
        left.set_title("All laws on one flow: three linear layers on iris", pad=22)
        verdicts = ("not applicable", "pass", "fail")
        codes = np.array(
            [[verdicts.index(row.verdict) for row in one] for one in broken.values()]
        ).T
        colours = ListedColormap(["#f2f2f2", "#b9e2d5", PALETTE[1]])
        right.pcolormesh(
            codes, cmap=colours, vmin=0, vmax=2, edgecolors="white", linewidth=2
        )
        for j, one in enumerate(broken.values()):
            for i, row in enumerate(one):
                text, colour = "–", GREY
                if row.applies:
                    text = shown(row.violation / row.tolerance)
                    colour = "white" if row.verdict == "fail" else "#00664b"
                where = (j + 0.5, i + 0.5)
                right.text(*where, text, color=colour, ha="center", va="center", size=8)
        right.set_ylim(len(table) + 0.1, -0.1)
        where = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"}
        right.set_xticks(np.arange(len(broken)) + 0.5, list(broken), **where)
        right.set_yticks([])
        right.tick_params(length=0)
        right.spines[["left", "bottom"]].set_visible(False)
        right.set_title("What is not that flow fails (violation / tolerance)", pad=22)
        figure.savefig(path, dpi=160)
        plt.close(figure)


def shown(ratio):
    """A ratio in few characters."""
    if ratio == 0:
        return "0"
    if not math.isfinite(ratio):
        return "∞"
    if 0.01 <= ratio < 1000:
        return f"{ratio:.2g}" if ratio < 100 else f"{ratio:.0f}"
    return f"{ratio:.0e}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = pathlib.Path(__file__).parent / "output"
    parser.add_argument("--output", type=pathlib.Path, default=default)
    parser.add_argument("--quick", action="store_true", help="the same, for tests")
    output = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    table = check(flow(), other=other())
    print(table)
    broken = {name: table_of(name) for name in BREAKING}
    for name, one in broken.items():
        failures = ", ".join(row.law for row in one.failures)
        print(f"\n{BREAKING[name]}\n    fails: {failures}")
    failing = {row.law for one in broken.values() for row in one.failures}
    never = [row.law for row in table if row.law not in failing]
    paths = [output / "all_laws.html", output / "all_laws.png"]
    page(table, broken, paths[0])
    picture(table, broken, paths[1])
    passed = sum(row.verdict == "pass" for row in table)
    told = sum(not one.passed for one in broken.values())
    print(f"\nTables: {paths[0]}\nPlot: {paths[1]}")
    print(
        f"\nShown: {passed} of {len(table)} laws hold along one flow to t = ∞; of "
        f"{len(broken)} things that are not it {told} are told apart, and "
        + ("every law fails on one" if not never else f"never fails: {never}")
        + f" ({time.perf_counter() - start:.0f} s)."
    )


if __name__ == "__main__":
    main()
