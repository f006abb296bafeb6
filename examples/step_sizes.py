"""How small must the step of gradient descent be to follow the gradient flow?

    python examples/step_sizes.py [--output FOLDER]

A two-layer tanh network on the breast cancer data: the gradient flow, and gradient
descent with twelve step sizes in one call, from far below to beyond the edge of
stability 2/λ, with λ the sharpness (largest eigenvalue of the Hessian).
"""

import argparse
import pathlib
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import NullLocator

import gflow


jax.config.update("jax_enable_x64", True)

END = 64.0
STEPS = 2.0 ** np.arange(-7, 5)
# Every step size divides every time that is a multiple of its own, so all the states
# that a step size has are at times of the flow (those below 1/4 have more).
TIMES = np.arange(0.0, END + 0.25, 0.25)
NUM_STEPS = int(END / STEPS[0])
TOLERANCE = 0.01
# Relative distances above this have nothing to do with the flow any more.
LOST = 10.0

BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"


def problem():
    """Model, data and loss; the mean over examples makes step sizes of order one."""
    x, y = gflow.data.two_classes(*gflow.data.breast_cancer(), 0, 1)
    x, y = gflow.data.subset(x, y, 100, seed=0, balanced=True)
    x = gflow.data.standardise(x) / np.sqrt(x.shape[1])
    model = gflow.nn.TwoLayer(x.shape[1], 20, jnp.tanh, key=jax.random.key(0))
    return model, (x, y), gflow.losses.Square(reduction="mean")


def flow_of(model, data, loss):
    """The gradient flow."""
    return gflow.integrate(
        model,
        data,
        loss,
        (0.0, END),
        save_at=TIMES,
        observe=[sharpness, "accuracy"],
        rtol=1e-9,
    )


def sharpness(state):
    """An observer: λ_max of the Hessian, by power iteration."""

    def slope(params):
        at = state.problem.gradient(params)
        return jax.tree.map(lambda d: -jnp.exp(at.log_slope) * d, at.direction)

    def iterate(_, carry):
        direction, _ = carry
        _, image = jax.jvp(slope, (state.params,), (direction,))
        size = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(image)))
        return jax.tree.map(lambda leaf: leaf / size, image), size

    start = slope(state.params), jnp.zeros_like(state.log_loss)
    return jax.lax.fori_loop(0, 40, iterate, start)[1]


@eqx.filter_jit
@eqx.filter_vmap(in_axes=(None, 0))
def descents(problem, step):
    """Gradient descent; vmapped over the step size, twelve."""
    return gflow.descend(*problem, step, NUM_STEPS, save_at=TIMES, throw=False)


def table(comparison, descent):
    """Distances, their ratios, and what became of each descent."""
    steps, ratios = np.asarray(comparison.step_sizes), np.asarray(comparison.ratios())
    relative = np.nanmax(comparison.relative_distance, axis=1)
    function = np.nanmax(comparison.function_distance, axis=1)
    diverged = np.asarray(descent.result == gflow.RESULTS.diverged)
    print(
        f"{'step size':>10} {'parameters':>11} {'function':>10} {'ratio':>7}  diverged"
    )
    for i in reversed(range(len(steps))):
        lost = relative[i] > LOST
        ratio = f"{ratios[i - 1]:7.3f}" if i and not lost else f"{'-':>7}"
        fate = "no, but far from the flow" if lost else "no"
        if diverged[i]:
            fate = f"after {int(descent.stats['num_steps'][i])} steps"
        print(
            f"{steps[i]:>10.5f} {relative[i]:>11.2e} {function[i]:>10.2e} {ratio}  "
            f"{fate}"
        )
    print(
        "parameters: largest ‖W_flow - W_gd‖/‖W_flow‖; function: largest RMS "
        "difference of the outputs;\nratio: distance in parameters over that of half "
        "the step size, at the times of both."
    )


def losses(ax, flow, descent, shown):
    """Training loss against time."""
    styles = {4.0: (VERMILION, "s"), 2.0: (PURPLE, "^"), 1.0: (GREEN, "o")}
    for step in shown:
        colour, marker = styles[step]
        lane = int(np.flatnonzero(step == STEPS)[0])
        t, loss = np.exp(descent.log_t[lane]), np.exp(descent.log_loss[lane])
        _, first = np.unique(np.round(t / step), return_index=True)
        ax.plot(
            t[first],
            loss[first],
            color=colour,
            marker=marker,
            ms=3.5,
            lw=1,
            label=rf"descent, $\eta={step:g}$",
        )
    ax.plot(flow.t, flow.loss, color="black", lw=2, label="flow", zorder=1)
    ax.set(
        xlabel=r"time $t$ (step size $\times$ steps)",
        ylabel="training loss",
        yscale="log",
        xlim=(0, END),
        ylim=(0.85 * float(flow.loss[-1]), 10),
        title="Training loss",
    )
    # Linear up to t = 1, so that the start is there.
    ax.set_xscale("symlog", linthresh=1.0)
    ax.set_xticks((0, 1, 2, 4, 8, 16, 32, 64), (0, 1, 2, 4, 8, 16, 32, 64))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_yticks((0.1, 1, 10), ("0.1", "1", "10"))
    ax.legend(frameon=False)


def distances(ax, comparison, edge, largest):
    """Distance in parameters against step size."""
    steps = np.asarray(comparison.step_sizes)
    relative = np.nanmax(comparison.relative_distance, axis=1)
    ax.axvspan(edge, steps[-1] * 2, color="0.92", lw=0)
    ax.axvline(edge, color="0.4", lw=1, ls="--")
    ax.loglog(
        steps,
        relative[0] * steps / steps[0],
        color="black",
        lw=1,
        ls=":",
        label="slope 1",
    )
    lost = relative > LOST
    kept = np.append(steps[~lost], steps[lost][0]), np.append(relative[~lost], LOST)
    ax.loglog(*kept, color=BLUE, lw=1.2)
    ax.loglog(steps[~lost], relative[~lost], "o", color=BLUE, ms=5, label="measured")
    # On the upper edge of the axes, which would cut them.
    ax.loglog(
        steps[lost],
        np.full(lost.sum(), LOST),
        "x",
        color=VERMILION,
        ms=7,
        mew=2,
        clip_on=False,
        label=r"off scale ($>10^4$)",
    )
    ax.axhline(TOLERANCE, color=GREEN, lw=1)
    ax.annotate(
        rf"1 % up to $\eta = {largest:g}$",
        (steps[0], TOLERANCE),
        xytext=(0, 4),
        textcoords="offset points",
        color=GREEN,
    )
    ax.text(
        edge * 1.12,
        0.04,
        "beyond\n" + r"$2/\lambda_{\max}$",
        transform=ax.get_xaxis_transform(),
        color="0.3",
        va="bottom",
    )
    ax.set(
        xlabel=r"step size $\eta$",
        ylabel=r"$\max_t\,\|W_{\rm flow}-W_{\rm gd}\|\,/\,\|W_{\rm flow}\|$",
        xlim=(steps[0] / 1.5, steps[-1] * 1.5),
        ylim=(relative[0] / 2, LOST),
        title="Distance from the flow",
    )
    ax.legend(frameon=False, loc="upper left")


def picture(flow, descent, comparison, edge, largest, path):
    """Both panels, to a file."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.8, 3.7), layout="constrained")
    losses(left, flow, descent, (4.0, 2.0, 1.0))
    distances(right, comparison, edge, largest)
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=160)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = pathlib.Path(__file__).parent / "output"
    parser.add_argument("--output", type=pathlib.Path, default=default)
    output = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    model, data, loss = problem()
    flow = flow_of(model, data, loss)
    first, last = (float(flow.observed["sharpness"][i]) for i in (0, -1))
    edge = 2 / float(jnp.max(flow.observed["sharpness"]))
    print(
        f"flow to t = {END:g}: loss {flow.loss[0]:.3f} to {flow.loss[-1]:.4f}, "
        f"sharpness λ {first:.2f} to {last:.2f}, so 2/λ falls to {edge:.2f}\n"
    )
    descent = descents((model, data, loss), jnp.asarray(STEPS))
    comparison = gflow.compare(flow, descent)
    table(comparison, descent)
    order = float(comparison.order())
    largest = float(comparison.largest_step(TOLERANCE))
    print(f"\nmeasured order in the step size: {order:.3f}")
    print(f"largest step size within {TOLERANCE:.0%} of the flow: {largest:g}")
    path = output / "step_sizes.png"
    picture(flow, descent, comparison, edge, largest, path)
    near = np.nanmax(comparison.relative_distance, axis=1) <= LOST
    print(f"\nPlot: {path}")
    print(
        "\nShown: gradient descent approaches the flow in proportion to its step size "
        f"(order {order:.2f}), follows it to {TOLERANCE:.0%} up to η = {largest:g}, "
        f"and beyond the edge of stability 2/λ = {edge:.2f} first overshoots "
        f"(η = {STEPS[near].max():g}) and then loses it altogether "
        f"(from η = {STEPS[~near].min():g} on); twelve descents in one call, "
        f"{time.perf_counter() - start:.0f} s."
    )


if __name__ == "__main__":
    main()
