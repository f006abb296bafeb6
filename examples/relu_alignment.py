r"""ReLU networks, kinks and all: early alignment, branching and sliding.

    python examples/relu_alignment.py [--output FOLDER] [--quick]

The flow of a ReLU network is a differential inclusion, dW/dt ∈ -∂ℒ(W). Three pictures
of what that means, after Kumar & Haupt (2024), "Directional Convergence Near Small
Initializations and Saddles in Two-Homogeneous Neural Networks" (KH):

*Alignment* (KH Theorems 5.1 and 5.5): twelve neurons on two points in the plane, from
‖W_0‖ = 1e-6 to 1e-40. Directions converge to KKT points of the neural correlation
function while the norm is still tiny; then the loss falls in two steps, at multiples of
log(1/‖W_0‖) that are predicted. Both kinds of limits appear: inside of an activation
cell, and on a kink, along which the neuron then slides.

*Branching* (KH Figure 2, Lemmas E.1 and E.2): a start from which the flow may stay or
leave, and starts from which it is unique.

*Sliding*: the kinks along which an ordinary network slides, and what automatic
differentiation makes of them.
"""

import argparse
import math
import pathlib
import time
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import gflow
from gflow.plot import GREY, PALETTE, style


jax.config.update("jax_enable_x64", True)


# --- Early alignment ------------------------------------------------------------------

NORMS = (1e-6, 1e-12, 1e-24, 1e-40)
NEURONS = 12
POINTS = np.array([[1.0, 0.0], [0.5, math.sqrt(0.75)]])  # 60 degrees apart
LABELS = np.array([1.0, -0.6])
LAST = 2.3  # in units of log(1/‖W_0‖)


def attractors(sign, residual):
    r"""The directions that neurons of one sign converge to, and their growth rates.

    Near zero, with residuals r_i = y_i, a balanced neuron a_j = s‖w_j‖ of direction θ
    has, for the D(θ) = s Σ_i λ_i r_i x_i that the inclusion chooses (λ_i = 1 where
    ⟨θ, x_i⟩ > 0, 0 where < 0),

        d log‖w_j‖/dt = ⟨D, θ⟩,     dθ/dt = D - ⟨D, θ⟩θ,

    which knows nothing of the norm. A limit θ ∥ D is a KKT point of the constrained
    neural correlation function max Σ_i r_i a relu(⟨w, x_i⟩), ‖w‖² + a² = 1 (KH eq. 11),
    with the value N = ‖D‖/2, so that the neuron grows like e^{2Nt}. It is either D of
    one activation cell, if that lies in it, or on a kink ⟨θ, x_i⟩ = 0 with s r_i < 0,
    where λ_i ∈ [0, 1] makes D parallel to θ.
    """
    found = []
    pull = sign * residual[:, None] * POINTS
    for active in ([0], [1], [0, 1]):
        d = pull[active].sum(axis=0)
        on = POINTS @ d > 0
        if np.linalg.norm(d) > 0 and all(on[i] == (i in active) for i in range(2)):
            found.append((np.degrees(np.arctan2(d[1], d[0])), np.linalg.norm(d)))
    for i, k in ((0, 1), (1, 0)):
        if sign * residual[i] >= 0:
            continue
        for theta in ([-POINTS[i, 1], POINTS[i, 0]], [POINTS[i, 1], -POINTS[i, 0]]):
            base = pull[k] * (POINTS[k] @ theta > 0)
            share = -(base @ POINTS[i]) / (pull[i] @ POINTS[i])
            if 0 < share < 1 and base @ theta > 0:
                found.append((np.degrees(np.arctan2(*theta[::-1])), base @ theta))
    return found


def predicted_jumps():
    r"""When the loss falls, in units of log(1/‖W_0‖), as ‖W_0‖ → 0.

    The fastest neurons reach a norm of order one at t_1 = log(1/‖W_0‖)/(2N) and fit the
    points that they see. The others, which have grown at their own rate g, turn towards
    the KKT point for the residual that is left (KH Theorem 5.5), of value N', and get
    there at t_2 = t_1 + (log(1/‖W_0‖) - g t_1)/(2N').
    """
    (first,), (second,) = attractors(1, LABELS), attractors(-1, LABELS)
    theta = np.radians(first[0])
    seen = POINTS @ [np.cos(theta), np.sin(theta)] > 1e-12
    residual = np.where(seen, 0.0, LABELS)
    (third,) = attractors(-1, residual)
    one = 1 / first[1]
    two = one + (1 - second[1] * one) / third[1]
    losses = [0.5 * np.sum(r**2) for r in (LABELS, residual)]
    return {
        "first": first,
        "second": second,
        "third": third,
        "times": (one, two),
        "losses": (*losses, 0.0),
    }


class BothSigns(eqx.Module):
    """A two-layer network whose neurons of either sign have arrays of their own.

    The error is controlled relative to each array. After the first jump neurons of one
    sign are of order one and those of the other still tiny: in one array with them they
    would be computed to the accuracy of the large ones.
    """

    positive: gflow.nn.TwoLayer
    negative: gflow.nn.TwoLayer

    def __call__(self, x):
        return self.positive(x) + self.negative(x)

    @property
    def weight(self):
        return jnp.concatenate([self.positive.weight, self.negative.weight], axis=-2)


def neurons():
    """Six directions around the circle for either sign, balanced, ‖W‖ = 1."""
    half = NEURONS // 2
    angle = 2 * np.pi * (np.arange(half) + 0.37) / half
    size = 1 / math.sqrt(2 * NEURONS)
    weight = size * jnp.asarray(np.stack([np.cos(angle), np.sin(angle)], axis=1))

    def network(sign):
        outer = jnp.full(half, sign * size)
        model = gflow.nn.TwoLayer(2, half, key=jax.random.key(0))
        return eqx.tree_at(lambda m: (m.weight, m.outer), model, (weight, outer))

    return BothSigns(network(1.0), network(-1.0))


def aligning(norms, points):
    """The flows from all norms, in one call."""
    start, theory = neurons(), predicted_jumps()
    # Directions move at times of order one, the loss at multiples of log(1/‖W_0‖) and
    # then within times of order one.
    early = jnp.geomspace(0.02, 10.0, points)
    jump = jnp.linspace(-4.0, 6.0, points)

    @eqx.filter_jit
    @eqx.filter_vmap
    def solve(log_scale):
        model = gflow.nn.init.scale(start, jnp.exp(-log_scale))
        late = jnp.linspace(0.0, LAST, points) * log_scale
        around = [time * log_scale + jump for time in theory["times"]]
        times = jnp.sort(jnp.concatenate([early, late, *around]))
        return gflow.integrate(
            model,
            (POINTS, LABELS),
            gflow.losses.Square(),
            (0.0, LAST * log_scale),
            save_at=times,
            rtol=1e-7,
        )

    return solve(-jnp.log(jnp.asarray(norms)))


def alignment(norms, points):
    """What the directions, the norms and the losses do along them."""
    theory = predicted_jumps()
    log_scale = -np.log(np.asarray(norms))
    solution = aligning(norms, points)
    weight = np.asarray(solution.models.weight)
    angle = np.degrees(np.arctan2(weight[..., 1], weight[..., 0]))
    t, loss = np.asarray(solution.t), np.asarray(solution.loss)
    levels = np.convolve(theory["losses"], [0.5, 0.5], mode="valid")
    jumps = np.array(
        [[falls(t[i], loss[i], v) for v in levels] for i in range(len(norms))]
    )
    # Neurons that come to see no point stay as they are.
    sign = np.repeat([1.0, -1.0], NEURONS // 2)
    target = np.where(sign > 0, theory["first"][0], theory["second"][0])
    growing = np.abs(angle[0, t[0] <= 0.5 * jumps[0, 0]][-1] - target) < 1.0
    off = np.abs(angle - target)[:, :, growing].max(axis=2)
    aligned = [np.argmax(one < 0.1) for one in off]
    log_norm = np.asarray(solution.log_norm)
    halfway = [np.argmin(abs(t[i] - jumps[i].mean())) for i in range(len(norms))]
    late = np.abs(angle - theory["third"][0])[:, :, growing & (sign < 0)].max(axis=2)
    slope = np.diff(jumps[-2:], axis=0)[0] / np.diff(log_scale[-2:])
    return {
        "norms": np.asarray(norms),
        "log_scale": log_scale,
        "t": t,
        "angle": angle,
        "log_size": np.log(np.linalg.norm(weight, axis=-1)),
        "growing": growing,
        "sign": sign,
        "loss": loss,
        "jumps": jumps,
        "slope": slope,
        "theory": theory,
        "aligned": np.array([t[i, k] for i, k in enumerate(aligned)]),
        "norm then": np.exp([log_norm[i, k] for i, k in enumerate(aligned)]),
        "late angle": np.array([late[i, k] for i, k in enumerate(halfway)]),
        "final": loss[:, -1],
        "steps": np.asarray(solution.stats["num_steps"]),
        "events": np.asarray(solution.inclusion.num_events),
        "defect": np.abs(np.asarray(solution.energy_defect)).max(axis=1),
    }


def falls(t, loss, level):
    """When the loss falls to a level, between the saved times."""
    k = int(np.argmax(loss < level))
    x = np.log(loss[k - 1 : k + 1] / level)
    return t[k - 1] + (t[k] - t[k - 1]) * x[0] / (x[0] - x[1])


def alignment_table(found):
    print("\nEarly alignment: two points, twelve ReLU neurons, both layers trained")
    print(
        f"{'‖W_0‖':>7} {'steps':>6} {'events':>7} {'defect':>8} {'aligned at':>11} "
        f"{'‖W‖ then':>9} {'t1/log':>8} {'t2/log':>8} {'final loss':>11}"
    )
    for i, norm in enumerate(found["norms"]):
        one, two = found["jumps"][i] / found["log_scale"][i]
        print(
            f"{norm:>7.0e} {found['steps'][i]:>6} {found['events'][i]:>7} "
            f"{found['defect'][i]:>8.1e} {found['aligned'][i]:>11.3f} "
            f"{found['norm then'][i]:>9.1e} {one:>8.4f} {two:>8.4f} "
            f"{found['final'][i]:>11.1e}"
        )
    theory = found["theory"]
    for name in ("first", "second", "third"):
        angle, rate = theory[name]
        print(
            f"{name} KKT direction {angle:.1f}°, NCF value N = {rate / 2:.4f}: "
            f"growth like e^(2Nt)"
        )
    for i in range(2):
        print(
            f"jump {i + 1}: dt/dlog(1/‖W_0‖) predicted {theory['times'][i]:.8f}, "
            f"measured {found['slope'][i]:.8f}"
        )


def alignment_picture(found, path):
    """Directions, norms and the loss."""
    theory = found["theory"]
    blue, orange, green = PALETTE[:3]
    one, two = theory["times"]
    shades = plt.get_cmap("viridis_r")(np.linspace(0.12, 1.0, len(found["norms"])))
    with style(None):
        figure, axes = plt.subplots(1, 3, figsize=(11.5, 3.8), layout="constrained")
        last = len(found["norms"]) - 1
        t = found["t"][last]
        order = np.argsort(found["growing"])
        for j in order:
            colour = blue if found["sign"][j] > 0 else orange
            line = {"color": colour, "lw": 1.5}
            if not found["growing"][j]:
                line = {"color": GREY, "lw": 0.8, "alpha": 0.8}
            axes[0].plot(t[1:], found["angle"][last, 1:, j], **line)
        notes = {
            "first": (5, 4, "on the kink of $x_2$"),
            "second": (5, 4, "on the kink of $x_1$"),
            "third": (3.3, -13, "in the cell of both"),
        }
        for name, (place, above, note) in notes.items():
            angle = theory[name][0]
            axes[0].axhline(angle, color="0.3", lw=0.8, ls=(0, (2, 3)), zorder=0)
            axes[0].text(place, angle + above, note, fontsize=8, color="0.3")
        for k, v in enumerate(found["jumps"][last]):
            axes[0].axvline(v, color="0.3", lw=0.8, ls=":", zorder=0)
            axes[0].text(
                v * (0.96, 1.05)[k], -170, f"$t_{k + 1}$", ha=("right", "left")[k]
            )
        axes[0].plot([], [], color=blue, lw=1.5, label="$a_j>0$")
        axes[0].plot([], [], color=orange, lw=1.5, label="$a_j<0$")
        axes[0].plot([], [], color=GREY, lw=0.8, label="sees no point, in the end")
        # Between two neurons that never see a point.
        axes[0].legend(
            frameon=False,
            fontsize=8,
            loc="center left",
            bbox_to_anchor=(0.0, (180 - 127.5) / 360),
            labelspacing=0.25,
        )
        axes[0].set(
            xscale="log",
            xlim=(0.02, 1.3 * t[-1]),
            ylim=(-180, 180),
            yticks=(-180, -90, 0, 90, 180),
            xlabel="$t$",
            ylabel=r"direction of $w_j$ (degrees)",
            title=r"Directions converge early ($\Vert W_0\Vert=10^{-40}$)",
        )
        first = int(np.argmax(found["growing"] & (found["sign"] > 0)))
        other = int(np.argmax(found["growing"] & (found["sign"] < 0)))
        for i, scale in enumerate(found["log_scale"]):
            x = found["t"][i] / scale
            power = f"$10^{{{round(math.log10(found['norms'][i]))}}}$"
            for j, dash in ((first, "-"), (other, (0, (4, 1.5)))):
                y = found["log_size"][i, :, j] / scale
                axes[1].plot(x, y, color=shades[i], lw=1.3, ls=dash)
            axes[2].plot(x, found["loss"][i], color=shades[i], lw=1.5, label=power)
        limit = {"color": "0.25", "lw": 1, "ls": (0, (1, 1.5)), "zorder": 5}
        rates = [theory[name][1] for name in ("first", "second", "third")]
        axes[1].plot([0, one, LAST], [-1, 0, 0], **limit)
        axes[1].plot([0, one, two, LAST], [-1, -1 + rates[1] * one, 0, 0], **limit)
        at = 0.45
        axes[1].text(at - 0.05, -1 + rates[0] * at + 0.05, "$a_j>0$", ha="right")
        axes[1].text(at + 0.65, -1 + rates[1] * at, "$a_j<0$", ha="left")
        axes[1].set(
            xlim=(0, LAST),
            ylim=(-1.15, 0.1),
            xlabel=r"$t/\log(1/\Vert W_0\Vert)$",
            ylabel=r"$\log\Vert w_j\Vert\,/\,\log(1/\Vert W_0\Vert)$",
            title="Norms grow like $e^{2Nt}$ meanwhile",
        )
        steps = np.repeat(theory["losses"], 2)
        axes[2].plot([0, one, one, two, two, LAST], steps, label="limit", **limit)
        axes[2].set(
            xlim=(0, LAST),
            ylim=(-0.02, None),
            xlabel=r"$t/\log(1/\Vert W_0\Vert)$",
            ylabel=r"$\mathcal{L}$",
            title="The loss falls in predicted steps",
        )
        axes[2].legend(frameon=False, title=r"$\Vert W_0\Vert$", loc="upper right")
        figure.savefig(path, dpi=160)
        plt.close(figure)


# --- Branching ------------------------------------------------------------------------


class Product(eqx.Module):
    r"""x ↦ -w_1 relu(w_2) x: one neuron with outer weight w_1, on one point.

    KH Figure 2 has its negative, of which KH take the ascending flow.
    """

    w: jax.Array

    def __call__(self, x):
        return -self.w[0] * jax.nn.relu(self.w[1]) * x


def output_itself(f, y):
    """A loss that is linear in the output."""
    del y
    return f


def exact_flow(w, t, *, leave):
    """The flow of -w_1 relu(w_2), from w, as (T, 2).

    Where w_2 > 0, dw/dt = (w_2, w_1), so that w_1 ± w_2 go like e^{±t}, to where w_2
    vanishes, if it does; where w_2 ≤ 0 nothing moves, except that from w_2 = 0 < w_1
    the flow may leave.
    """
    plus, minus = (w[0] + w[1]) / 2, (w[0] - w[1]) / 2
    stays = w[1] < 0 or (w[1] == 0 and (w[0] <= 0 or not leave))
    until = 0.0 if stays else np.inf
    if not stays and plus < 0:
        until = 0.5 * math.log(minus / plus)
    up, down = (
        plus * np.exp(np.minimum(t, until)),
        minus * np.exp(-np.minimum(t, until)),
    )
    return np.stack([up + down, up - down], axis=1)


def starts_of_product():
    """One branching start, and others."""
    radii = (0.7, 1.4)
    angles = np.radians(np.arange(15.0, 360.0, 30.0))
    around = [(r * np.cos(a), r * np.sin(a)) for r in radii for a in angles]
    return np.array([(1.0, 0.0), (1.0, 1e-3), (1.0, -1e-3), (-1.3, 0.0), *around])


ONE_POINT = (np.ones(1), np.ones(1))


def branches(branch, t):
    """The flows from all starts, in one call."""

    @eqx.filter_jit
    @eqx.filter_vmap
    def solve(w):
        return gflow.integrate(
            Product(w),
            ONE_POINT,
            output_itself,
            (0.0, t[-1]),
            save_at=t,
            rtol=1e-8,
            branch=branch,
        )

    return solve(jnp.asarray(starts_of_product()))


def branching(t):
    """From one branching start, and from others, both ways of going on."""
    starts = starts_of_product()
    found = {}
    for branch in ("steepest", "stay"):
        solution = branches(branch, t)
        w = np.asarray(solution.models.w)
        leave = branch == "steepest"
        exact = np.stack([exact_flow(one, t, leave=leave) for one in starts])
        found[branch] = {
            "w": w,
            "error": np.abs(w - exact).max(axis=(1, 2)),
            "ambiguous": np.asarray(solution.inclusion.num_ambiguous),
        }
    gap = np.abs(found["steepest"]["w"] - found["stay"]["w"]).max(axis=(1, 2))
    return {"t": t, "starts": starts, "gap": gap, **found}


def branching_table(found):
    print("\nBranching: -w_1 relu(w_2) (KH Figure 2)")
    for branch in ("steepest", "stay"):
        end = found[branch]["w"][0, -1]
        print(
            f"from (1, 0), branch={branch!r}: to ({end[0]:.6f}, {end[1]:.6f}) at t = "
            f"{found['t'][-1]:g}, ambiguous points {found[branch]['ambiguous'][0]}; "
            f"deviation from the closed form {found[branch]['error'].max():.1e}"
        )
    others = found["stay"]["ambiguous"][1:].sum()
    print(
        f"from {len(found['starts']) - 1} other starts: ambiguous points {others}, "
        f"distance between the two {found['gap'][1:].max():.1e}"
    )


def branching_picture(found, path):
    """The plane, and the second weight over time."""
    blue, orange, green = PALETTE[:3]
    t = found["t"]
    with style(None):
        figure, axes = plt.subplots(
            1, 2, figsize=(9.0, 4.0), layout="constrained", width_ratios=(1.15, 1)
        )
        ax = axes[0]
        ax.axhspan(-2, 0, color="0.95", zorder=0)
        ax.text(-1.9, -1.86, "nothing moves: the neuron is off", color="0.4", size=8)
        for k in range(3, len(found["starts"])):
            w = found["stay"]["w"][k]
            ax.plot(*w.T, color=GREY, lw=1)
            ax.plot(*w[0], "o", ms=3, color=GREY, mec="white", mew=0.4)
            arrow_along(ax, w, GREY)
        ax.plot([0, 2], [0, 0], color=orange, lw=1.2, ls=(0, (4, 2)), zorder=3)
        ax.text(1.96, -0.22, "branching starts", color=orange, ha="right", size=8.5)
        ax.plot([-2, 0], [0, 0], color="0.5", lw=0.8, zorder=1)
        leaves = found["steepest"]["w"][0]
        ax.plot(*leaves.T, color=blue, lw=2, zorder=4)
        arrow_along(ax, leaves[leaves[:, 0] < 2], blue)
        ax.plot(1, 0, "o", ms=7, color=orange, mec="white", zorder=5)
        ax.set(
            xlim=(-2, 2),
            ylim=(-2, 2),
            aspect="equal",
            xlabel="$w_1$",
            ylabel="$w_2$",
            title=r"The flow of $-w_1\,\mathrm{relu}(w_2)$",
            xticks=range(-2, 3),
            yticks=range(-2, 3),
        )
        ax = axes[1]
        for k, wait in enumerate((0.5, 1.0, 1.5, 2.0)):
            label = "leave after any time (KH Lemma E.1)" if k == 0 else None
            ax.plot(
                t, np.sinh(np.maximum(t - wait, 0)), color=GREY, lw=0.9, label=label
            )
        dots = {"ls": "none", "marker": "o", "ms": 4.5, "mec": "white", "mew": 0.5}
        every = slice(None, None, max(len(t) // 20, 1))
        curves = {
            "steepest": (blue, np.sinh(t), 'branch="steepest": $\\sinh t$'),
            "stay": (orange, 0 * t, 'branch="stay"'),
        }
        for branch, (colour, exact, label) in curves.items():
            ax.plot(t, exact, color=colour, lw=1.2)
            w = found[branch]["w"][0]
            ax.plot(t[every], w[every, 1], color=colour, label=label, **dots)
        near = {"color": "0.2", "lw": 1, "ls": (0, (1, 1.5)), "zorder": 4}
        ax.plot(t, found["stay"]["w"][1, :, 1], label="from $(1,\\pm 10^{-3})$", **near)
        ax.plot(t, found["stay"]["w"][2, :, 1], **near)
        ax.set(
            xlim=(0, t[-1]),
            ylim=(-0.15, 4),
            xlabel="$t$",
            ylabel="$w_2$",
            title="All solutions from $(1, 0)$",
        )
        ax.legend(frameon=False, fontsize=8, loc="upper left")
        figure.savefig(path, dpi=160)
        plt.close(figure)


def arrow_along(ax, w, colour):
    """An arrow halfway along a curve, if it is long enough."""
    length = np.cumsum(np.linalg.norm(np.diff(w, axis=0), axis=1))
    inside = np.abs(w[1:]).max(axis=1) < 2
    if not inside.any() or length[inside][-1] < 0.15:
        return
    k = int(np.argmax(length > 0.55 * length[inside][-1]))
    step = w[k + 1] - w[k]
    tip = w[k] + 1e-3 * step / np.linalg.norm(step)
    arrow = {"arrowstyle": "-|>", "color": colour, "lw": 0, "mutation_scale": 9}
    ax.annotate("", tip, w[k], arrowprops=arrow | {"shrinkA": 0, "shrinkB": 0})


# --- Sliding --------------------------------------------------------------------------


def random_problem():
    """Twelve random points in space, five neurons."""
    rng = np.random.default_rng(1)
    weight, outer = rng.normal(size=(5, 3)), rng.normal(size=5)
    model = gflow.nn.TwoLayer(3, 5, key=jax.random.key(0))
    model = eqx.tree_at(
        lambda m: (m.weight, m.outer), model, (jnp.asarray(weight), jnp.asarray(outer))
    )
    rng = np.random.default_rng(6)
    x = rng.normal(size=(12, 3))
    return model, (x, np.where(rng.normal(size=12) > 0, 1.0, -1.0))


def slide(times, rtol, kinks):
    """The flow to the last of some times."""
    with warnings.catch_warnings():
        if kinks == "autodiff":
            warnings.simplefilter("ignore")  # that this is not the flow, which we show
        return gflow.integrate(
            *random_problem(),
            gflow.losses.Logistic(),
            (0.0, times[-1]),
            save_at=times,
            rtol=rtol,
            kinks=kinks,
        )


def sliding(last, points):
    """The flow by the inclusion, and what automatic differentiation returns."""
    _, data = random_problem()

    def flow(times, rtol, kinks):
        solution = slide(times, rtol, kinks)
        weight = np.asarray(solution.models.weight)
        z = np.einsum("tjd,nd->tnj", weight, data[0]).reshape(len(times), -1)
        return solution, z

    def pinned_in(solution):
        pins = np.asarray(solution.inclusion.pins)
        return np.stack([(pins == k).any(axis=1) for k in range(z.shape[1])], axis=1)

    solution, z = flow(np.linspace(0.0, last, 2 * points), 1e-8, "auto")
    # A closer look at a kink that is come to from afar, and kept for long.
    kept = pinned_in(solution).mean(axis=0) >= 0.4
    kink = int(np.argmax(np.where(kept, np.abs(z[0]), -1)))
    event = np.argmax(np.asarray(solution.inclusion.kink) == kink)
    begin = float(jnp.exp(solution.inclusion.log_t[event]))
    window = begin + np.linspace(-0.0005, 0.012, points)
    t = np.sort(np.concatenate([np.linspace(0.0, last, points), window]))
    solution, z = flow(t, 1e-8, "auto")
    pinned, inclusion = pinned_in(solution), solution.inclusion
    chattering, z_auto = flow(t, 1e-5, "autodiff")
    each = np.gradient(t)
    return {
        "t": t,
        "z": z,
        "pinned": pinned,
        "events": int(inclusion.num_events),
        "most": int(pinned.sum(axis=1).max()),
        "share": float(each[pinned.any(axis=1)].sum() / each.sum()),
        "steps": int(solution.stats["num_steps"]),
        "defect": np.asarray(solution.energy_defect),
        "kink": kink,
        "neurons": inclusion.kinks_per_example,
        "autodiff z": z_auto,
        "autodiff steps": int(chattering.stats["num_steps"]),
        "autodiff defect": np.asarray(chattering.energy_defect),
        "window": (window[0], window[-1]),
    }


def sliding_table(found):
    print("\nSliding: twelve points in space, five neurons, logistic loss")
    print(
        f"inclusion: {found['steps']} steps, {found['events']} events, energy defect "
        f"{np.abs(found['defect']).max():.1e} of the initial loss; slides for "
        f"{found['share']:.0%} of the time, along up to {found['most']} kinks"
    )
    print(
        f"autodiff: {found['autodiff steps']} steps, energy defect "
        f"{np.abs(found['autodiff defect']).max():.1e}"
    )


def sliding_picture(found, path):
    """Pre-activations and pins; chatter; the energy balance."""
    t, z, pinned = found["t"], found["z"], found["pinned"]
    blue, orange = PALETTE[:2]
    with style(None):
        figure = plt.figure(figsize=(11.5, 4.2), layout="constrained")
        grid = figure.add_gridspec(2, 3, height_ratios=(2.3, 1), width_ratios=(5, 4, 4))
        top = figure.add_subplot(grid[0, 0])
        below = figure.add_subplot(grid[1, 0], sharex=top)
        zoom, energy = (figure.add_subplot(grid[:, k]) for k in (1, 2))
        ever = np.flatnonzero(pinned.any(axis=0))
        for k in range(z.shape[1]):
            if k not in ever:
                top.plot(t, z[:, k], color="0.85", lw=0.7, zorder=0)
        ever = ever[np.argsort(np.argmax(pinned[:, ever], axis=0))]
        for row, k in enumerate(ever):
            colour = PALETTE[k % found["neurons"]]
            top.plot(t, z[:, k], color=colour, lw=1.1)
            held = np.where(pinned[:, k], 0.0, np.nan)
            top.plot(t, held, color=colour, lw=3, solid_capstyle="butt")
            below.plot(t, held - row, color=colour, lw=3, solid_capstyle="butt")
        top.axhline(0, color="0.3", lw=0.6, zorder=0)
        span = min(1.2 * np.abs(z[:, ever]).max(), 2.5)
        top.set(
            ylim=(-span, span),
            ylabel=r"$z_{ij}=\langle w_j, x_i\rangle$",
            title="Pre-activations, and where they are held at zero",
        )
        top.tick_params(labelbottom=False)
        below.set(
            xlim=(0, t[-1]),
            ylim=(-len(ever) + 0.3, 0.7),
            xlabel="$t$",
            ylabel="held",
        )
        names = [divmod(int(k), found["neurons"]) for k in ever]
        below.set_yticks(
            -np.arange(len(ever)),
            [f"$z_{{{i + 1},{j + 1}}}$" for i, j in names],
            fontsize=7,
        )
        for j in range(found["neurons"]):
            if any(k % found["neurons"] == j for k in ever):
                top.plot([], [], color=PALETTE[j], lw=1.5, label=f"neuron {j + 1}")
        top.legend(frameon=False, fontsize=7.5, ncols=3, loc="upper right")
        (low, high), k = found["window"], found["kink"]
        i, j = divmod(k, found["neurons"])
        inside = (t >= low) & (t <= high)
        reach = 1.2e3 * -found["autodiff z"][inside, k].min()
        zoom.plot(
            t[inside],
            1e3 * found["autodiff z"][inside, k],
            color=orange,
            lw=0.8,
            label=f"autodiff: {found['autodiff steps']:,} steps",
        )
        zoom.plot(
            t[inside],
            1e3 * z[inside, k],
            color=blue,
            lw=1.6,
            label=f"inclusion: {found['steps']} steps",
        )
        zoom.set(
            xlim=(low, high),
            ylim=(-reach, 1.5 * reach),
            xlabel="$t$",
            ylabel=rf"$10^3\,z_{{{i + 1},{j + 1}}}$",
            title="At a kink autodiff chatters …",
        )
        zoom.locator_params(axis="x", nbins=4)
        zoom.legend(frameon=False, fontsize=8, loc="upper right")
        for name, colour, label in (
            ("autodiff defect", orange, "autodiff, rtol $10^{-5}$"),
            ("defect", blue, "inclusion, rtol $10^{-8}$"),
        ):
            size = np.maximum.accumulate(np.abs(found[name]))
            energy.plot(t[1:], np.maximum(size[1:], 1e-17), color=colour, label=label)
        energy.set(
            yscale="log",
            xlim=(0, t[-1]),
            xlabel="$t$",
            ylabel=r"energy defect / $\mathcal{L}(0)$",
            title="… and dissipates what is not there",
        )
        energy.legend(frameon=False, fontsize=8)
        figure.savefig(path, dpi=160)
        plt.close(figure)


# --- All of it ------------------------------------------------------------------------


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = pathlib.Path(__file__).parent / "output"
    parser.add_argument("--output", type=pathlib.Path, default=default)
    parser.add_argument("--quick", action="store_true", help="fewer points, less time")
    arguments = parser.parse_args()
    output, quick = arguments.output, arguments.quick
    output.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    pictures = [output / f"relu_{n}.png" for n in ("alignment", "branching", "sliding")]
    aligned = alignment(NORMS, 150)
    alignment_table(aligned)
    alignment_picture(aligned, pictures[0])
    branched = branching(np.linspace(0.0, 2.5, 101))
    branching_table(branched)
    branching_picture(branched, pictures[1])
    slid = sliding(1.0 if quick else 2.0, 301)
    sliding_table(slid)
    sliding_picture(slid, pictures[2])
    worst = np.abs(aligned["slope"] / aligned["theory"]["times"] - 1).max()
    print(f"\nPlots: {', '.join(str(path) for path in pictures)}")
    print(
        f"\nShown: from norms down to {min(NORMS):.0e} directions converge before "
        f"anything else moves, and the loss then falls within {worst:.0e} of the "
        "predicted times; from a branching start both continuations, and only there; "
        f"sliding along {slid['most']} kinks at once in {slid['steps']} steps, where "
        f"autodiff takes {slid['autodiff steps']} "
        f"({time.perf_counter() - start:.0f} s)."
    )


if __name__ == "__main__":
    main()
