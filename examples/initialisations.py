"""A hundred initialisations at once: do they all find the same margin?

    python examples/initialisations.py [--output FOLDER]

One `vmap` over the gradient flows of a two-layer squared-ReLU network from 100 random
initialisations, on real digits (3 against 5), to log t = 200: the distribution of the
normalised margins along the flows and at their ends.
"""

import argparse
import pathlib
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import gflow


jax.config.update("jax_enable_x64", True)

COUNT = 100
LOSS = gflow.losses.Logistic()
LOG_T = np.array([-np.inf, 0.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0])


def data():
    """40 images of each of the digits 3 (-1) and 5 (+1), of norm one."""
    x, y = gflow.data.two_classes(*gflow.data.digits(flatten=True), 3, 5)
    x, y = gflow.data.subset(x, y, 80, seed=0, balanced=True)
    return gflow.data.unit_norm(x), y


@eqx.filter_jit
@eqx.filter_vmap
def flow(key):
    """One flow; vmapped over the key, a hundred."""
    model = gflow.nn.TwoLayer(64, 10, gflow.nn.squared_relu, key=key)
    return gflow.integrate(
        model,
        data(),
        LOSS,
        (0.0, gflow.exp(LOG_T[-1])),
        save_at=gflow.exp(LOG_T),
        observe=("min_margin", "accuracy"),
        rtol=1e-5,
        throw=False,
    )


def picture(solution, path):
    """Margins of all runs against time, and their distribution at the end."""
    margins = np.asarray(solution.observed["min_margin"])
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(8.8, 3.6), layout="constrained", width_ratios=(3, 2)
    )
    place = np.arange(LOG_T.size)
    left.plot(place, margins.T, color="#0072B2", alpha=0.15, lw=0.8)
    left.plot(place, np.median(margins, axis=0), color="#D55E00", lw=2, label="median")
    labels = ["t = 0"] + [f"{v:g}" for v in LOG_T[1:]]
    left.set_xticks(place, labels)
    left.axhline(0, color="0.7", lw=0.8, zorder=0)
    left.set(
        xlabel=r"$\log t$",
        ylabel=r"normalised margin $\min_i p_i/\|W\|^3$",
        title=f"{COUNT} initialisations",
    )
    left.legend(frameon=False, loc="lower right")
    right.hist(margins[:, -1], bins=20, color="#0072B2", edgecolor="white")
    right.axvline(np.median(margins[:, -1]), color="#D55E00", lw=2)
    right.set(
        xlabel="normalised margin",
        ylabel="number of runs",
        title=rf"at $\log t = {LOG_T[-1]:g}$",
    )
    figure.savefig(path, dpi=160)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = pathlib.Path(__file__).parent / "output"
    parser.add_argument("--output", type=pathlib.Path, default=default)
    output = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    solution = flow(jax.random.split(jax.random.key(0), COUNT))
    margins = np.asarray(solution.observed["min_margin"])
    successful = int(jnp.sum(solution.result == gflow.RESULTS.successful))
    print(
        f"{'log t':>8} {'lowest':>10} {'median':>10} {'highest':>10} {'separated':>10}"
    )
    for i, log_t in enumerate(LOG_T):
        column = margins[:, i]
        separated = int(np.sum(column > 0))
        print(
            f"{log_t:>8.1f} {column.min():>10.6f} {np.median(column):>10.6f} "
            f"{column.max():>10.6f} {separated:>10d}"
        )
    steps = np.asarray(solution.stats["num_steps"])
    print(f"steps per run: {steps.min()} to {steps.max()}")
    picture(solution, output / "initialisations.png")
    last = margins[:, -1]
    print(f"\nPlot: {output / 'initialisations.png'}")
    print(
        f"\nShown: {successful} of {COUNT} flows, integrated in one call "
        f"({time.perf_counter() - start:.0f} s), separate the digits and go on to "
        f"margins from {last.min():.5f} to {last.max():.5f}: the direction the flow "
        "ends in depends on where it starts."
    )


if __name__ == "__main__":
    main()
