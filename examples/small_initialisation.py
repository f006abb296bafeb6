r"""From small weights and from a saddle: directions converge first.

    python examples/small_initialisation.py [--output FOLDER] [--quick]

After the experiments of Kumar & Haupt (2024), "Directional Convergence Near Small
Initializations and Saddles in Two-Homogeneous Neural Networks" (KH): a network of 20
squared ReLU neurons, Φ(x; W) = Σ_j max(0, ⟨w_j, x⟩)², on 50 points of the unit circle,
under the square loss.

*Small initialisation* (KH Figures 1 and 3, Corollary 5.4.1): W_0 = δ w_0 with
‖W_0‖ = δ from 1e-6 to 1e-30. Each neuron's direction converges to a KKT point of the
neural correlation function (NCF) 𝒩(θ) = Σ_i z_i max(0, ⟨θ, x_i⟩)², z = y, at a rate
that the NCF predicts, on the same curve from every δ.

*Saddle* (KH Figure 4, Theorem 5.5): ten neurons fit the labels of one half plane and
ten are zero; from 1e-6 and 1e-30 beside it. The small ones converge to KKT points of
the NCF of the residual, z = y - Φ; one of them sees no residual, and stays.

The labels are ours, y_i = 3 max(0, ⟨u, x_i⟩)² + 4 max(0, ⟨-u, x_i⟩)² with ‖u‖ = 1, and
so are the number of neurons, the seeds and the norms.
"""

import argparse
import math
import pathlib
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import gflow
from gflow.plot import GREY, PALETTE, style


jax.config.update("jax_enable_x64", True)

NORMS = (1e-6, 1e-12, 1e-20, 1e-30)
POINTS, NEURONS = 50, 20
AHEAD, BEHIND = 3.0, 4.0  # the labels' factors on either side
BLUE, ORANGE, GREEN = PALETTE[:3]


# --- The data and the network ---------------------------------------------------------


def data():
    """50 unit vectors, and labels of either sign of ⟨u, x⟩."""
    angle = np.random.default_rng(0).uniform(-np.pi, np.pi, POINTS)
    x = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    u = np.array([math.sqrt(0.5), math.sqrt(0.5)])
    y = AHEAD * np.maximum(x @ u, 0) ** 2 + BEHIND * np.maximum(-x @ u, 0) ** 2
    return x, y, u


class Parts(eqx.Module):
    """A two-layer network whose neurons are in several arrays.

    Those in one array grow at one rate, or are the small ones beside the saddle. The
    error is relative to each array, however small it has become beside the others.
    """

    parts: tuple[gflow.nn.TwoLayer, ...]

    def __call__(self, x):
        return sum(part(x) for part in self.parts)


def network(*weights):
    """Squared ReLU neurons with outer weights +1, an array for each of the parts."""

    def part(weight):
        weight = jnp.asarray(weight)
        m, d = weight.shape
        made = gflow.nn.TwoLayer(
            d,
            m,
            gflow.nn.squared_relu,
            outer="fixed",
            outer_values=np.ones(m),
            key=jax.random.key(0),
        )
        return eqx.tree_at(lambda model: model.weight, made, weight)

    return Parts(tuple(part(weight) for weight in weights))


def every_neuron(model):
    """For the observers: the rows of all arrays."""
    return jnp.concatenate([part.weight for part in model.parts])


def last_part(model):
    """For the observers: the neurons that are small beside a saddle."""
    return model.parts[-1].weight


class Circle:
    r"""The NCF of one neuron on the circle, n(φ) = 𝒩(cos φ, sin φ), and its KKT points.

    ẇ = ∇𝒩(w) reads φ̇ = n'(φ) and d log‖w‖/dt = 2n(φ) in polar coordinates (KH eq. 10).
    A direction converges to a local maximum, at last like e^{n''t}.
    """

    def __init__(self, x, z):
        def value(phi):
            along = x @ jnp.array([jnp.cos(phi), jnp.sin(phi)])
            return jnp.sum(z * gflow.nn.squared_relu(along))

        self.n, self.slope, self.curvature = (
            jax.jit(jax.vmap(f))
            for f in (value, jax.grad(value), jax.grad(jax.grad(value)))
        )
        grid = np.linspace(-np.pi, np.pi, 4001)
        sign = np.sign(self.slope(grid))
        self.maxima = self._roots(grid, (sign[:-1] > 0) & (sign[1:] < 0))
        self.minima = self._roots(grid, (sign[:-1] < 0) & (sign[1:] > 0))
        # Where no point with z ≠ 0 is seen.
        self.flat = grid[sign == 0]
        order = np.argsort(-np.asarray(self.n(self.maxima)))
        self.maxima = self.maxima[order]

    def _roots(self, grid, where):
        low, high = grid[:-1][where], grid[1:][where]
        side = np.sign(self.slope(low))
        for _ in range(60):
            middle = 0.5 * (low + high)
            left = np.sign(self.slope(middle)) == side
            low, high = np.where(left, middle, low), np.where(left, high, middle)
        return 0.5 * (low + high)

    def basin(self, phi):
        """The maximum, by number, that the ascent from φ comes to."""
        phi = np.atleast_1d(phi)
        step = 0.2 / np.abs(self.curvature(np.linspace(-np.pi, np.pi, 500))).max()
        for _ in range(1000):
            phi = phi + step * np.asarray(self.slope(phi))
        away = np.abs(np.angle(np.exp(1j * (phi[:, None] - self.maxima))))
        return np.where(away.min(axis=1) < 0.1, np.argmin(away, axis=1), -1)


# --- From small weights ---------------------------------------------------------------


def early_flows(norms, points):
    """The flows from all norms in one call, through the alignment and the escape.

    With which maximum of the NCF each neuron converges to, and the times that all save.
    """
    x, y, _ = data()
    circle = Circle(x, y)
    w = np.random.default_rng(1).normal(size=(NEURONS, 2))
    w /= np.linalg.norm(w)
    basin = circle.basin(np.arctan2(w[:, 1], w[:, 0]))
    start = network(*(w[basin == k] for k in range(len(circle.maxima))))
    rate = 2 * np.asarray(circle.n(circle.maxima))[0]
    # On one clock for all norms, and up to the escape of each.
    log_size = np.log(1 / np.asarray(norms))
    shared = jnp.linspace(0, 0.5 * log_size.min() / rate, points)
    last = 1.3 / rate

    @eqx.filter_jit
    @eqx.filter_vmap
    def solve(log_size):
        times = jnp.linspace(0, last * log_size, 2 * points)
        times = jnp.sort(jnp.concatenate([shared, times[1:]]))
        return gflow.integrate(
            gflow.nn.init.scale(start, jnp.exp(-log_size)),
            (x, y),
            gflow.losses.Square(),
            (0.0, last * log_size),
            save_at=times,
            observe={
                "neurons": gflow.observe.neurons.using(groups=every_neuron),
                "each": gflow.observe.neuron_ncf.using(groups=every_neuron),
                "ncf": gflow.observe.ncf,
                "kkt": gflow.observe.ncf_kkt,
            },
            rtol=1e-9,
        )

    return solve(jnp.asarray(log_size)), basin, shared


def early(norms, points):
    """What directions, norms and losses do along them."""
    x, y, _ = data()
    circle = Circle(x, y)
    rates = 2 * np.asarray(circle.n(circle.maxima))
    solution, basin, shared = early_flows(norms, points)
    found = read(solution, np.log(1 / np.asarray(norms)))
    # The parts are in the order of the maxima.
    target = np.sort(basin)
    near = [np.abs(t[:, None] - np.asarray(shared)).argmin(axis=0) for t in found["t"]]
    angles = np.stack([found["angle"][i, near[i]] for i in range(len(norms))])
    apart = np.angle(np.exp(1j * (angles[1:] - angles[:1])))
    moved = -np.expm1(found["log_loss"] - found["log_loss"][:, :1])
    whole = np.asarray(solution.observed["kkt"]["residual"])
    return found | {
        "x": x,
        "y": y,
        "circle": circle,
        "target": target,
        "norms": np.asarray(norms),
        "rates": rates,
        "curvature": np.asarray(circle.curvature(circle.maxima)),
        "fitted": fitted_slopes(found, target),
        "aligned": at_half(found, found["residual"]),
        "whole residual": whole,
        "whole": at_half(found, whole),
        "apart": np.abs(apart).max(),
        "moved": moved,
        "moved then": at_half(found, moved),
    }


def read(solution, log_size):
    """What both experiments look at, as NumPy arrays."""
    direction = np.asarray(solution.observed["neurons"]["direction"])
    return {
        "t": np.asarray(solution.t),
        "log_size": log_size,
        "log_norm": np.asarray(solution.log_norm),
        "log_loss": np.asarray(solution.log_loss),
        "angle": np.arctan2(direction[..., 1], direction[..., 0]),
        "sizes": np.asarray(solution.observed["neurons"]["log_norm"]),
        "residual": np.asarray(solution.observed["each"]["residual"]),
        "steps": np.asarray(solution.stats["num_steps"]),
        "gradients": np.asarray(solution.stats["num_gradients"]),
        "defect": np.abs(np.asarray(solution.energy_defect)).max(axis=1),
    }


def at_half(found, values):
    """Values where the small norm has grown from δ to δ^{1/2}.

    Half of the way to one, in logarithms; interpolated between saved times.
    """
    rows = []
    for i, size in enumerate(found["log_size"]):
        log_norm = found["log_norm"][i]
        k = int(np.argmax(log_norm > -0.5 * size))
        s = (-0.5 * size - log_norm[k - 1]) / (log_norm[k] - log_norm[k - 1])
        tiny = np.finfo(float).tiny
        low, high = (np.maximum(values[i, j], tiny) for j in (k - 1, k))
        rows.append(low ** (1 - s) * high**s)
    return np.array(rows)


def measured(change):
    """A change of something of order one, which rounding may hide."""
    return f"{change:.1e}" if change > 1e-15 else "< 1e-15"


def fitted_slopes(found, target):
    """d log(residual)/dt of the neurons of each maximum, from the smallest start.

    From residuals of 1e-2 down to 1e-10, well above rounding.
    """
    t, residual = found["t"][-1], found["residual"][-1]
    slopes = []
    for k in range(target.max() + 1):
        group = residual[:, target == k].max(axis=1)
        last = int(np.argmax(group < 1e-10))
        first = last - int(np.argmax(group[:last][::-1] > 1e-2))
        inside = slice(first, last)
        slopes.append(np.polyfit(t[inside], np.log(group[inside]), 1)[0])
    return np.array(slopes)


def early_table(found):
    circle = found["circle"]
    print(f"Small initialisation: {NEURONS} squared ReLU neurons, {POINTS} points")
    print("Fall of the loss and largest KKT residuals where ‖W‖ = ‖W_0‖^(1/2):")
    print(
        f"{'‖W_0‖':>7} {'steps':>6} {'gradients':>10} {'defect':>8} {'loss by':>8} "
        f"{'first KKT':>10} {'second':>8}"
    )
    for i, norm in enumerate(found["norms"]):
        worst = [found["aligned"][i, found["target"] == k].max() for k in (0, 1)]
        print(
            f"{norm:>7.0e} {found['steps'][i]:>6} {found['gradients'][i]:>10} "
            f"{found['defect'][i]:>8.1e} {measured(found['moved then'][i]):>8} "
            f"{worst[0]:>10.1e} {worst[1]:>8.1e}"
        )
    for k, phi in enumerate(circle.maxima):
        count = np.sum(found["target"] == k)
        print(
            f"{count} neurons to the KKT point at {np.degrees(phi):.2f}°: norms grow "
            f"like e^({found['rates'][k]:.2f} t), residuals fall like "
            f"e^(n''t): n'' = {found['curvature'][k]:.4f}, measured "
            f"{found['fitted'][k]:.4f}"
        )
    print(
        f"directions from all norms differ by {found['apart']:.1e} rad until the "
        f"largest has ‖W‖ = ‖W_0‖^(1/2)"
    )


# --- From a saddle --------------------------------------------------------------------

BESIDE = (1e-6, 1e-30)


def saddle_point():
    """The large neurons there, their fit of the data, and the residual."""
    x, y, u = data()
    half = NEURONS // 2
    large = np.tile(u * math.sqrt(AHEAD / half), (half, 1))
    fit = np.sum(np.maximum(x @ large.T, 0) ** 2, axis=1)
    left = y - fit
    left[np.abs(left) < 1e-12] = 0.0
    return large, fit, left


# Perturbations of the large neurons, and the small ones.
BESIDE_NOISE = np.random.default_rng(17).normal(size=(2, NEURONS // 2, 2))


def saddle_flows(norms, points):
    """The flows from beside the saddle, from all distances in one call."""
    x, y, _ = data()
    large, _, left = saddle_point()
    circle = Circle(x, left)
    rate = 2 * float(circle.n(circle.maxima)[0])
    last = 1.25 / rate
    noise = BESIDE_NOISE

    @eqx.filter_jit
    @eqx.filter_vmap
    def solve(log_size):
        size = jnp.exp(-log_size)
        start = network(large + size * noise[0], size * noise[1])
        return gflow.integrate(
            start,
            (x, y),
            gflow.losses.Square(),
            (0.0, last * log_size),
            save_at=jnp.linspace(0, last * log_size, 2 * points),
            observe={
                "neurons": gflow.observe.neurons.using(groups=last_part),
                "each": gflow.observe.neuron_ncf.using(groups=last_part, z=left),
            },
            rtol=1e-9,
        )

    return solve(-jnp.log(jnp.asarray(norms)))


def saddle(norms, points):
    """What the small and the large neurons do along them."""
    x, y, _ = data()
    large, fit, left = saddle_point()
    circle = Circle(x, left)
    rate = 2 * float(circle.n(circle.maxima)[0])
    noise = BESIDE_NOISE
    solution = saddle_flows(norms, points)
    found = read(solution, -np.log(np.asarray(norms)))
    small = np.logaddexp.reduce(2 * found["sizes"], axis=-1) / 2
    found["log_norm"] = small
    moved = np.linalg.norm(
        np.asarray(solution.models.parts[0].weight) - large, axis=(-2, -1)
    )
    began = np.arctan2(noise[1, :, 1], noise[1, :, 0])
    stays = np.abs(circle.slope(began)) == 0
    loss = found["log_loss"]
    fallen = -np.expm1(loss - loss[:, :1])
    return found | {
        "x": x,
        "y": y,
        "fit": fit,
        "circle": circle,
        "norms": np.asarray(norms),
        "rate": rate,
        "began": began,
        "stays": stays,
        "distance": moved,
        "moved": fallen,
        "moved then": at_half(found, fallen),
        "distance then": at_half(found, moved),
        "aligned": at_half(found, found["residual"]),
        "value": np.asarray(solution.observed["each"]["value"]),
    }


def saddle_table(found):
    circle = found["circle"]
    moves = ~found["stays"]
    print(
        f"\nSaddle: {NEURONS // 2} neurons fit one half plane, {NEURONS // 2} are zero"
    )
    print("The same where the small ones have the norm δ^(1/2):")
    print(
        f"{'δ':>7} {'steps':>6} {'gradients':>10} {'defect':>8} {'loss by':>8} "
        f"{'large by':>9} {'KKT':>8}"
    )
    for i, norm in enumerate(found["norms"]):
        print(
            f"{norm:>7.0e} {found['steps'][i]:>6} {found['gradients'][i]:>10} "
            f"{found['defect'][i]:>8.1e} {measured(found['moved then'][i]):>8} "
            f"{measured(found['distance then'][i]):>9} "
            f"{found['aligned'][i, moves].max():>8.1e}"
        )
    low, high = np.degrees(circle.flat[[0, -1]])
    turned = np.angle(np.exp(1j * (found["angle"] - found["angle"][:, :1])))
    early = found["log_norm"] < -0.5 * found["log_size"][:, None]
    turned = np.abs(turned[:, :, found["stays"]])[early].max()
    print(
        f"{moves.sum()} neurons to the KKT point at "
        f"{np.degrees(circle.maxima[0]):.2f}°; {found['stays'].sum()} in the flat "
        f"part, {low:.1f}° to {high:.1f}°, turns by {turned:.1e} rad meanwhile"
    )


# --- Pictures -------------------------------------------------------------------------


def powers(norms, name):
    """Legend entries."""
    return [f"${name}=10^{{{round(math.log10(norm))}}}$" for norm in norms]


def circle_panel(axes, x, z, curves, title):
    """The points, the circle, and functions of the angle as heights over it."""
    grid = np.linspace(-np.pi, np.pi, 721)
    around = np.stack([np.cos(grid), np.sin(grid)])
    axes.plot(*around, color="0.7", lw=0.8, zorder=0)
    points = axes.scatter(*x.T, c=z, s=22, cmap="viridis", zorder=3, edgecolor="none")
    for values, colour, label in curves:
        axes.plot(*(around * (1 + values)), color=colour, lw=1.5, label=label)
    axes.set(aspect="equal", title=title, xticks=[], yticks=[])
    for side in axes.spines.values():
        side.set_visible(False)
    return points


def directions_panels(top, below, circle, t, angle, colours, name):
    """The NCF over the angle and, time downwards, the directions (KH Figure 3)."""
    grid = np.linspace(-np.pi, np.pi, 1441)
    top.plot(np.degrees(grid), circle.n(grid), color="0.2", lw=1.5)
    for phi in circle.maxima:
        top.plot(np.degrees(phi), circle.n(np.array([phi]))[0], "o", color="0.2", ms=5)
        for axes in (top, below):
            axes.axvline(np.degrees(phi), color="0.4", lw=0.8, ls=(0, (2, 3)), zorder=0)
    for one, colour in zip(angle.T, colours, strict=True):
        path = np.degrees(np.unwrap(one))
        for turn in (-360, 0, 360):
            below.plot(path + turn, t, color=colour, lw=1.2)
            below.plot(path[0] + turn, t[0], "o", color=colour, ms=3, clip_on=False)
    top.tick_params(labelbottom=False)
    top.set(ylabel=f"$\\mathcal{{N}}_{{{name}}}(\\theta)$", ylim=(0, None))
    below.set(
        xlim=(-180, 180),
        ylim=(t[-1], 0),
        xticks=(-180, -90, 0, 90, 180),
        xlabel="direction (degrees)",
        ylabel="$t$",
    )


def clip_markers(axes):
    """Starting points of the copies a turn away are not drawn outside."""
    for line in axes.lines:
        x = np.asarray(line.get_xdata(), float)
        if line.get_marker() == "o" and not (-180 <= x[0] <= 180):
            line.set_visible(False)


def early_picture(found, path):
    """The circle; norms and loss; NCF and directions; residuals, and their scaling."""
    circle, t = found["circle"], found["t"]
    shades = plt.get_cmap("viridis_r")(np.linspace(0.15, 1.0, len(found["norms"])))
    hues = np.array([BLUE, ORANGE])[found["target"]]
    labels = powers(found["norms"], r"\Vert W_0\Vert")
    with style(None):
        figure = plt.figure(figsize=(12.0, 6.6), layout="constrained")
        grid = figure.add_gridspec(2, 3)
        ring, sizes = (figure.add_subplot(grid[i, 0]) for i in (0, 1))
        top = figure.add_subplot(grid[0, 1])
        below = figure.add_subplot(grid[1, 1], sharex=top)
        fall, law = (figure.add_subplot(grid[i, 2]) for i in (0, 1))

        phi = np.linspace(-np.pi, np.pi, 721)
        height = np.asarray(circle.n(phi))
        curve = (0.6 * height / height.max(), "0.2", r"NCF $\mathcal{N}(\theta)$")
        points = circle_panel(ring, found["x"], found["y"], [curve], "Data and NCF")
        figure.colorbar(points, ax=ring, label="$y_i$", shrink=0.75)
        for k, maximum in enumerate(circle.maxima):
            ray = np.array([np.cos(maximum), np.sin(maximum)])
            colour = (BLUE, ORANGE)[k]
            length = 1 + 0.6 * float(circle.n(maximum[None])[0]) / height.max()
            ring.annotate(
                "",
                ray * length,
                (0, 0),
                arrowprops={"arrowstyle": "->", "color": colour},
            )
        ring.text(0.12, -0.42, "KKT\npoints", fontsize=9, color="0.3")
        ring.legend(frameon=False, loc="upper left", bbox_to_anchor=(-0.05, 1.02))

        for i, label in enumerate(labels):
            size = found["log_norm"][i] / math.log(10)
            sizes.plot(t[i], size, color=shades[i], lw=1.5, label=label)
            moved = np.where(found["moved"][i] > 1e-14, found["moved"][i], np.nan)
            moved[0] = np.nan
            sizes.plot(t[i], np.log10(moved), color=shades[i], lw=1.2, ls=(0, (3, 1.5)))
        sizes.plot([], [], color="0.3", lw=1.5, label=r"$\Vert W\Vert$")
        loss = r"$1-\mathcal{L}/\mathcal{L}(0)$"
        sizes.plot([], [], color="0.3", lw=1.2, ls=(0, (3, 1.5)), label=loss)
        sizes.legend(frameon=False, fontsize=8, loc="lower right", ncols=1)
        sizes.set(
            xlim=(0, 1.02 * t.max()),
            ylim=(-31, 2),
            xlabel="$t$",
            ylabel=r"$\log_{10}$",
            title="The norm is small, the loss rests",
        )

        last = int(np.argmax(t[-1] > 0.21))
        angle = found["angle"][-1, : last + 1]
        directions_panels(top, below, circle, t[-1, : last + 1], angle, hues, "")
        top.set(title="Directions ascend the NCF")
        # The largest start on top of the smallest.
        stop = found["log_norm"][0] < 0.5 * -found["log_size"][0]
        some = np.flatnonzero(stop)[4::8]
        for j in range(NEURONS):
            path_of = np.degrees(found["angle"][0, some, j])
            below.plot(path_of, t[0, some], ".", color="0.1", ms=2.5, zorder=4)
        below.plot([], [], "-", color=GREY, lw=1.5, label=labels[-1])
        below.plot([], [], ".", color="0.1", ms=4, label=labels[0])
        below.legend(frameon=True, framealpha=0.9, fontsize=8, loc="lower right")
        clip_markers(below)

        # The larger on top, and thinner.
        for i in range(len(labels))[::-1]:
            width = 1.2 + 0.8 * i
            early = found["log_norm"][i] < math.log(0.02)
            for k, dash in ((0, "-"), (1, (0, (4, 1.5)))):
                group = found["residual"][i][:, found["target"] == k].max(axis=1)
                fall.plot(t[i][early], group[early], color=shades[i], lw=width, ls=dash)
        span = np.array([0.12, 0.6])
        for k in (0, 1):
            rate = found["curvature"][k]
            at = found["residual"][-1][:, found["target"] == k].max(axis=1)
            level = np.interp(0.25, t[-1], np.log(at))
            line = np.exp(level + rate * (span - 0.25)) * 6
            fall.plot(span, line, color=(BLUE, ORANGE)[k], lw=1, ls=":")
            fall.plot(
                [], [], color=(BLUE, ORANGE)[k], ls=":", label=f"$e^{{{rate:.1f}t}}$"
            )
        fall.plot(
            [], [], color="0.3", lw=1.4, label=f"to {np.degrees(circle.maxima[0]):.0f}°"
        )
        second = f"to {np.degrees(circle.maxima[1]):.0f}°"
        fall.plot([], [], color="0.3", lw=1.4, ls=(0, (4, 1.5)), label=second)
        fall.legend(frameon=False, fontsize=8, loc="upper right", ncols=2)
        fall.set(
            yscale="log",
            xlim=(0, t[-1][found["log_norm"][-1] < 0].max()),
            ylim=(1e-16, 1e2),
            yticks=10.0 ** np.arange(-16, 2, 4),
            xlabel="$t$",
            ylabel="KKT residual (largest)",
            title="One curve from all norms, until the escape",
        )

        for k, marker in ((0, "o"), (1, "s")):
            y = found["aligned"][:, found["target"] == k].max(axis=1)
            colour = (BLUE, ORANGE)[k]
            power = -found["curvature"][k] / (2 * found["rates"][0])
            line = y[-1] * (found["norms"] / found["norms"][-1]) ** power
            law.plot(found["norms"], y, marker, color=colour, ms=6)
            name = rf"$\Vert W_0\Vert^{{{power:.3f}}}$"
            law.plot(found["norms"], line, ":", color=colour, label=name)
        law.set(
            xscale="log",
            yscale="log",
            xlabel=r"$\Vert W_0\Vert$",
            ylabel="KKT residual (largest)",
            title=r"Where $\Vert W\Vert=\Vert W_0\Vert^{1/2}$",
        )
        law.legend(frameon=False, title=r"predicted by $n''$", loc="upper left")
        figure.savefig(path, dpi=160)
        plt.close(figure)


def saddle_picture(found, path):
    """What the saddle fits; NCF of the residual and directions; what moves."""
    circle, t = found["circle"], found["t"]
    shades = plt.get_cmap("viridis_r")([0.25, 1.0])
    labels = powers(found["norms"], r"\delta")
    with style(None):
        figure = plt.figure(figsize=(12.0, 4.6), layout="constrained")
        grid = figure.add_gridspec(2, 3)
        fit = figure.add_subplot(grid[:, 0])
        top = figure.add_subplot(grid[0, 1])
        below = figure.add_subplot(grid[1, 1], sharex=top)
        moves, falls = (figure.add_subplot(grid[i, 2]) for i in (0, 1))

        angle = np.degrees(np.arctan2(found["x"][:, 1], found["x"][:, 0]))
        order = np.argsort(angle)
        fit.vlines(angle, found["fit"], found["y"], color=ORANGE, lw=1, alpha=0.7)
        fit.plot(angle, found["y"], "o", color="0.2", ms=4, label="$y_i$")
        fit.plot(
            angle[order],
            found["fit"][order],
            color=BLUE,
            label=r"$\Phi(x_i)$ at the saddle",
        )
        fit.plot([], [], color=ORANGE, label="residual $z_i$")
        fit.legend(frameon=False, loc="upper left")
        fit.set(
            xlim=(-180, 180),
            ylim=(-0.1, 5.2),
            xticks=(-180, -90, 0, 90, 180),
            xlabel="angle of $x_i$ (degrees)",
            title="Ten neurons fit one half plane",
        )

        last = int(np.argmax(t[-1] > 0.3))
        hues = np.where(found["stays"], GREEN, BLUE)
        paths = found["angle"][-1, : last + 1]
        directions_panels(top, below, circle, t[-1, : last + 1], paths, hues, "z")
        clip_markers(below)
        low, high = np.degrees(circle.flat[[0, -1]])
        for axes in (top, below):
            axes.axvspan(low, high, color=GREEN, alpha=0.15, lw=0)
        top.text(
            0.5 * (low + high), 8, "flat: sees no\nresidual", fontsize=8, ha="center"
        )
        top.set(title="The other ten ascend the NCF of the residual")

        for i, label in enumerate(labels):
            size = found["log_norm"][i] / math.log(10)
            moves.plot(t[i], size, color=shades[i], lw=1.5, label=label)
            falls.plot(t[i], 1 - found["moved"][i], color=shades[i], lw=1.5)
        far = np.log10(found["distance"][0])
        moves.plot(t[0], far, color=shades[0], lw=1.2, ls=(0, (3, 1.5)))
        moves.plot([], [], color="0.3", lw=1.5, label="the ten small neurons")
        moves.plot(
            [], [], color="0.3", lw=1.2, ls=(0, (3, 1.5)), label="the large ones"
        )
        moves.set(
            xlim=(0, t.max()),
            ylim=(-31, 3),
            ylabel=r"$\log_{10}$ distance",
            title="Distance from the saddle, and the loss",
        )
        moves.tick_params(labelbottom=False)
        moves.legend(frameon=False, fontsize=8, loc="lower right")
        falls.set(
            xlim=(0, t.max()),
            ylim=(-0.03, 1.08),
            xlabel="$t$",
            ylabel=r"$\mathcal{L}/\mathcal{L}(0)$",
        )
        figure.savefig(path, dpi=160)
        plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = pathlib.Path(__file__).parent / "output"
    parser.add_argument("--output", type=pathlib.Path, default=default)
    parser.add_argument("--quick", action="store_true", help="fewer norms and times")
    arguments = parser.parse_args()
    output, quick = arguments.output, arguments.quick
    output.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    pictures = [output / f"small_{name}.png" for name in ("initialisation", "saddle")]
    points = 60 if quick else 150
    from_zero = early(NORMS[:: len(NORMS) - 1] if quick else NORMS, points)
    early_table(from_zero)
    early_picture(from_zero, pictures[0])
    beside = saddle(BESIDE, points)
    saddle_table(beside)
    saddle_picture(beside, pictures[1])
    print(f"\nPlots: {', '.join(str(path) for path in pictures)}")
    print(
        f"\nShown: from {min(NORMS):.0e} as from {max(NORMS):.0e}, and beside a "
        f"saddle, directions come to KKT points of the NCF (residual "
        f"{from_zero['aligned'][-1].max():.0e}) while the norm is "
        f"{math.sqrt(min(NORMS)):.0e}, at the rates that the NCF predicts "
        f"({time.perf_counter() - start:.0f} s)."
    )


if __name__ == "__main__":
    main()
