r"""Labels of a random network: the kernel's predictor, and those of training.

    python examples/random_network_margins.py [--width M] [--output FOLDER] [--quick]

After Figure 1 of Ji & Telgarsky (2020), "Directional convergence and alignment in deep
learning" (JT): points in the plane, labelled by a random network with biases, without
those of low margin, and with a 1 appended; a wide network with squared ReLU and fixed
signs, x ↦ Σ_j s_j max(0, ⟨w_j, x⟩)². Three prediction surfaces:

a) the maximum margin predictor of the tangent kernel (NTK) at the start, which freezes
   the activations: x ↦ Σ_j s_j ⟨v_j, x⟩ max(0, ⟨w_j, x⟩), with only v trained;
b) the network when it first classifies all points;
c) the network late, at log t = 1000, where its direction has converged.

As many neurons as JT have, 10,000, take three minutes of one core; --width 1000 takes
half a minute. Points, teacher and seeds are ours.
"""

import argparse
import math
import pathlib
import time

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import scipy

import gflow
from gflow.plot import style


jax.config.update("jax_enable_x64", True)

POINTS, SEED = 80, 1066
LOSS = gflow.losses.Logistic()


def plane(points):
    """With a 1 appended, a bias by data."""
    return np.concatenate([points, np.ones((len(points), 1))], axis=1)


def data(seed=SEED):
    """The half of the points that has the larger margins, and their labels."""
    rng = np.random.default_rng(seed)
    weight, sign = rng.normal(size=(6, 3)), rng.choice([-1.0, 1.0], 6)
    weight[:, :2] *= 6.0  # kinks all over the square
    points = rng.uniform(-1, 1, size=(2 * POINTS, 2))
    values = np.maximum(plane(points) @ weight.T, 0) @ sign
    values -= np.median(values)
    kept = np.argsort(-np.abs(values))[:POINTS]
    return plane(points[kept]), np.sign(values[kept])


def network(width):
    """Gaussian weights, outputs of order one."""
    weight = np.random.default_rng(0).normal(size=(width, 3)) / math.sqrt(width)
    model = gflow.nn.TwoLayer(
        3, width, gflow.nn.squared_relu, outer="fixed", key=jax.random.key(0)
    )
    return eqx.tree_at(lambda m: m.weight, model, jnp.asarray(weight))


# --- The three predictors -------------------------------------------------------------


def kernel_predictor(model, x, y):
    """The hard-margin SVM of the kernel, as a function, with its margin.

    K(x, x') = ⟨x, x'⟩ Σ_j max(0, ⟨w_j, x⟩) max(0, ⟨w_j, x'⟩). Its dual problem,
    min ½αᵀMα - 1ᵀα over α ≥ 0 with M = yyᵀ∘K = RᵀR, is the nonnegative least squares
    problem min ‖Rα - R⁻ᵀ1‖.
    """
    weight = np.asarray(model.weight)

    def kernel(one, other):
        hidden = (np.maximum(rows @ weight.T, 0) for rows in (one, other))
        a, b = hidden
        return (one @ other.T) * (a @ b.T)

    gram = y[:, None] * kernel(x, x) * y
    root = np.linalg.cholesky(gram).T
    target = scipy.linalg.solve_triangular(root, np.ones(len(y)), trans="T")
    alpha, _ = scipy.optimize.nnls(root, target, maxiter=100 * len(y))
    # Scaled to norm one: ‖v‖² = αᵀMα = 1ᵀα where margins are one.
    norm = math.sqrt(alpha @ gram @ alpha)
    margins = gram @ alpha / norm
    return lambda rows: kernel(rows, x) @ (alpha * y) / norm, margins


def separates(state):
    """The smallest margin: positive once all points are classified."""
    return jnp.min(state.problem.y * state.outputs)


def train(model, x, y, log_t):
    """The flow to the first separation, and to a late time."""
    # The event comes long before stability matters, which it would by t = 1e6.
    first = gflow.integrate(
        model,
        (x, y),
        LOSS,
        (0.0, 1e6),
        events=separates,
        solver=diffrax.Tsit5(),
        rtol=1e-6,
    )
    times = [-math.inf, 0.1 * log_t, log_t]
    late = gflow.integrate(
        model,
        (x, y),
        LOSS,
        (0.0, gflow.exp(log_t)),
        save_at=gflow.exp(np.array(times)),
        observe=("min_margin", "neurons"),
        rtol=1e-6,
    )
    return first, late


def surface(model, rows):
    """Predictions of the direction W/‖W‖."""
    size = jnp.sum(model.weight**2)
    return np.asarray(jax.vmap(model)(jnp.asarray(rows)) / size)


# --- Results --------------------------------------------------------------------------


def root(values):
    """√|f| with the sign of f: f grows like |x|², and this in proportion to |x|."""
    return np.sign(values) * np.sqrt(np.abs(values))


def picture(surfaces, x, y, side, path):
    """The contours, the boundary in black; the points, in rings at the margin."""
    titles = (
        "a) Maximum margin of the kernel (NTK)",
        "b) Network, first perfect classification",
        r"c) Network, late: $\log t = {:g}$",
    )
    with style(None):
        figure, axes = plt.subplots(
            1, 3, figsize=(12.0, 4.1), layout="constrained", sharey=True
        )
        for axis, (values, margins, note), title in zip(
            axes, surfaces, titles, strict=True
        ):
            shown = root(values / np.quantile(np.abs(values), 0.98))
            shown = shown.reshape(len(side), len(side))
            levels = np.linspace(-1, 1, 17)
            filled = axis.contourf(
                side,
                side,
                shown,
                levels=levels,
                cmap="RdBu_r",
                extend="both",
                alpha=0.8,
            )
            axis.contour(side, side, shown, levels=[0], colors="k", linewidths=1.5)
            for sign, marker, colour in ((-1, "_", "#053061"), (1, "+", "#67001f")):
                points = x[y == sign]
                axis.scatter(*points[:, :2].T, marker=marker, c=colour, s=45, lw=1.6)
            # Of the network after finite time, margins near the smallest.
            near = margins <= margins.min() + 0.02 * margins.max()
            ring = {"s": 120, "facecolor": "none", "edgecolor": "k", "lw": 0.9}
            axis.scatter(*x[near, :2].T, **ring)
            axis.set(
                aspect="equal",
                xlabel="$x_1$",
                title=title.format(note),
                xlim=(side[0], side[-1]),
                ylim=(side[0], side[-1]),
            )
        axes[0].set_ylabel("$x_2$")
        bar = figure.colorbar(filled, ax=axes, shrink=0.85, ticks=[-1, -0.5, 0, 0.5, 1])
        bar.set_label(r"$\pm\sqrt{|\mathrm{prediction}|}$, scaled")
        figure.savefig(path, dpi=160)
        plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = pathlib.Path(__file__).parent / "output"
    parser.add_argument("--output", type=pathlib.Path, default=default)
    parser.add_argument("--width", type=int, default=10_000, help="neurons")
    parser.add_argument("--quick", action="store_true", help="100 neurons")
    arguments = parser.parse_args()
    output = arguments.output
    width = 100 if arguments.quick else arguments.width
    output.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    x, y = data()
    model = network(width)
    predict, kernel_margins = kernel_predictor(model, x, y)
    print(
        f"{POINTS} points, {np.sum(y > 0)} of them positive; {width} neurons\n"
        f"a) kernel: margin {kernel_margins.min():.5f}, "
        f"{np.sum(kernel_margins < 1.0001 * kernel_margins.min())} support vectors"
    )
    log_t = 1000.0
    first, late = train(model, x, y, log_t)
    at_first = first.final
    margin = float(np.min(y * surface(at_first, x)))
    print(
        f"b) first perfect classification: t = {float(first.t[-1]):.4f}, "
        f"{int(first.stats['num_steps'])} steps, smallest margin {margin:.1e}"
    )
    margins = np.asarray(late.observed["min_margin"])
    shares = np.sort(np.asarray(late.observed["neurons"]["share"])[-1])[::-1]
    most = int(np.searchsorted(np.cumsum(shares), 0.99)) + 1
    print(
        f"c) log t = {log_t:g}: {int(late.stats['num_steps'])} steps, log ℒ = "
        f"{float(late.log_loss[-1]):.1f}, normalised margin {margins[-1]:.5f}, after "
        f"{margins[1]:.5f} at log t = {0.1 * log_t:g}; {most} neurons have 99 % of ‖W‖²"
    )

    side = np.linspace(-1.15, 1.15, 161)
    grid = plane(np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2))
    a, b, c = predict(grid), surface(at_first, grid), surface(late.final, grid)
    earlier = jax.tree.map(
        lambda w: w[1] if eqx.is_inexact_array(w) else w, late.models
    )
    earlier = eqx.tree_at(lambda m: m.outer, earlier, model.outer)
    change = np.abs(surface(earlier, grid) - c).max() / np.abs(c).max()
    agree = [np.mean(np.sign(one) == np.sign(c)) for one in (a, b)]
    print(
        f"surface: changes by {100 * change:.2f} % of its largest from log t = "
        f"{0.1 * log_t:g} on; its sign is that of a) on {100 * agree[0]:.1f} % of the "
        f"square, of b) on {100 * agree[1]:.1f} %"
    )
    path = output / "random_network_margins.png"
    found = [y * surface(one, x) for one in (at_first, late.final)]
    shown = [(a, kernel_margins, 0), (b, found[0], 0), (c, found[1], log_t)]
    picture(shown, x, y, side, path)
    print(f"\nPlot: {path}")
    print(
        f"\nShown: the prediction surface converges (JT Theorem 3.1); the kernel's has "
        f"another sign on {100 - 100 * agree[0]:.0f} % of the square, the "
        f"first to classify on {100 - 100 * agree[1]:.0f} % "
        f"({time.perf_counter() - start:.0f} s)."
    )


if __name__ == "__main__":
    main()
