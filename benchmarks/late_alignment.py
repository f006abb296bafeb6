"""Alignment, the direction's rate and the path's limit, to log t = 1e8.

    cd benchmarks; python late_alignment.py > late_alignment.txt

Ji & Telgarsky (2020), Theorems 3.1 and 4.1, on smooth networks from random weights, by
the default solve (`PrimalDual` after separation). Along each flow: the angle of W and
-∇ℒ, the distance of the direction from its certified limit, and the path length ζ. Near
the limit dζ = tan∠(W, -∇ℒ) d log‖W‖ and ‖W‖ ~ (log t)^{1/L}, so that a direction that
converges like (log t)^-r on a straight line has an angle of L r times its distance.

ζ_∞ is extrapolated from what is known at each time (ζ_∞ - ζ a power of log t), and
bounded from above (dζ/d log log t a power of log log t, whose exponent is measured):
`path length is finite` of gflow.laws. The truth is ζ at log t = 1e8 with the chord that
is left to the limit, which bounds what is left from below. The figure goes to
late_alignment.png. Float64, rtol 1e-8.
"""

import pathlib
import sys
import time

import jax
import jax.tree_util as jtu
import matplotlib.pyplot as plt
import numpy as np
from _machine import print_machine
from late_phase import Cubic

import gflow
from gflow.laws import path_limit
from gflow.plot import PALETTE, style


sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "examples"))

import limit_margin


jax.config.update("jax_enable_x64", True)

LOSS = gflow.losses.Exponential()
RTOL = 1e-8
LOG_T = np.concatenate([np.linspace(-6.0, 1.0, 29), np.geomspace(1.2, 1e8, 120)])
SHOWN = (1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8)
EXTRAPOLATED = (1e3, 1e4, 1e5, 1e6)


# --- The networks ---------------------------------------------------------------------


def iris():
    """Setosa against versicolor, standardised."""
    x, y = gflow.data.two_classes(*gflow.data.iris(), 0, 1)
    x = np.asarray(gflow.data.standardise(x))
    return x / np.linalg.norm(x, axis=1).max(), y


def cubic():
    """a · W₂ (W₁ x)³ with Gaussian weights."""
    keys = jax.random.split(jax.random.key(3), 3)
    shapes = ((6, 4), (5, 6), (5,))
    return Cubic(
        *(
            jax.random.normal(key, shape) / np.sqrt(shape[-1])
            for key, shape in zip(keys, shapes, strict=True)
        )
    )


def problems():
    """The networks, each with its data."""
    flowers = limit_margin.FLOWERS
    return {
        "deep linear, four features": (
            limit_margin.deep_network(),
            limit_margin.flowers(*flowers["four features"]),
        ),
        "squared ReLU, the plane": (
            limit_margin.planar_network(60),
            limit_margin.planar_points(),
        ),
        "cubic, three layers": (cubic(), iris()),
    }


# --- Measuring ------------------------------------------------------------------------


def measured(model, data):
    """The flow, its limit, and what is measured along it."""
    start = time.perf_counter()
    solution = gflow.integrate(
        model,
        data,
        LOSS,
        (0.0, gflow.exp(LOG_T[-1])),
        save_at=gflow.exp(LOG_T),
        observe=("path_length", "alignment"),
        rtol=RTOL,
    )
    limit = gflow.limit(solution, data, LOSS)
    seconds = time.perf_counter() - start
    zeta = np.asarray(solution.observed["path_length"])
    distance = distances(solution.models, limit.direction)
    # A chord is shorter than its arc.
    low = zeta[-1] + distance[-1]
    separated = int(np.argmax(np.asarray(solution.log_loss) < 0.0))
    known = []
    for until in EXTRAPOLATED:
        end = int(np.argmin(np.abs(LOG_T - until))) + 1
        known.append((until, path_limit(LOG_T[:end], zeta[:end], since=separated)))
    table = gflow.laws.check(solution, data=data, loss=LOSS, limit=limit)
    return {
        "solution": solution,
        "limit": limit,
        "seconds": seconds,
        "alignment": np.asarray(solution.observed["alignment"]),
        "distance": distance,
        "size": len(flat(solution.models, limit.direction)[1]),
        "zeta": zeta,
        "zeta_inf": low,
        "known": known,
        "table": table,
    }


def flat(models, limit):
    """Saved parameters as rows, and those of the limit; frozen ones are left out."""
    pairs = zip(*map(jtu.tree_leaves, (models, limit)), strict=True)
    moving = [(np.asarray(w), np.ravel(one)) for w, one in pairs if w.ndim > one.ndim]
    rows = np.concatenate([w.reshape(len(w), -1) for w, _ in moving], axis=1)
    return rows, np.concatenate([one for _, one in moving])


def distances(models, limit):
    """‖θ - θ̄‖ of all saved directions."""
    rows, end = flat(models, limit)
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return np.linalg.norm(rows - end / np.linalg.norm(end), axis=1)


def slope(values, low, high):
    """-d log(values)/d log log t between two log t."""
    use = (LOG_T >= low) & (LOG_T <= high)
    return -np.polyfit(np.log(LOG_T[use]), np.log(values[use]), 1)[0]


# --- Showing --------------------------------------------------------------------------


def show(name, one):
    solution, limit = one["solution"], one["limit"]
    stats, degree = solution.stats, float(limit.degree)
    rate, size = float(limit.evidence.predicted_rate), one["size"]
    print(
        f"\n{name}: L = {degree:g}, P = {size}, "
        f"{int(stats['num_steps'])} steps, {int(stats['num_gradients'])} gradients"
    )
    print(
        f"    limit {'certified' if bool(limit.certified) else 'not certified'}, "
        f"predicted rate {rate:.4f}; measured from log t = 1e4 to 1e6: direction "
        f"{slope(one['distance'], 1e4, 1e6):.4f}, angle "
        f"{slope(one['alignment'], 1e4, 1e6):.4f}"
    )
    print(
        f"    {'log t':>8} {'angle':>10} {'‖θ - θ̄‖':>10} {'angle/(L‖θ-θ̄‖)':>16} "
        f"{'ζ':>11}"
    )
    for target in SHOWN:
        i = int(np.argmin(np.abs(LOG_T - target)))
        angle, distance = one["alignment"][i], one["distance"][i]
        print(
            f"    {LOG_T[i]:>8.1e} {angle:>10.3e} {distance:>10.3e} "
            f"{angle / distance / degree:>16.3f} {one['zeta'][i]:>11.7f}"
        )
    print(
        f"    ζ_∞ = {one['zeta_inf']:.7f} (ζ at the end and the chord that is left)\n"
        f"    {'known to':>8} {'left, extrapolated':>19} {'at most':>10} "
        f"{'chord':>10} {'truly left':>11} {'p':>6}"
    )
    for until, known in one["known"]:
        i = int(np.argmin(np.abs(LOG_T - until)))
        left = one["zeta_inf"] - one["zeta"][i]
        print(
            f"    {until:>8.0e} {known.left:>19.3e} {known.bound:>10.3e} "
            f"{one['distance'][i]:>10.3e} {left:>11.3e} {known.exponent:>6.2f}"
            + ("" if one["distance"][i] <= left <= known.bound else "  NOT WITHIN")
        )
    for law in ("path length is finite", "gradient aligns", "direction's rate"):
        print(f"    {one['table'][law]}")


def picture(found, path):
    """Angles, distances with their rates, and what is left of the path."""
    late = LOG_T > 1
    with style(None):
        figure, axes = plt.subplots(1, 3, figsize=(12.0, 4.0), layout="constrained")
        for colour, (name, one) in zip(PALETTE, found.items(), strict=False):
            line = {"color": colour, "lw": 1.7}
            axes[0].plot(LOG_T[late], one["alignment"][late], label=name, **line)
            axes[1].plot(LOG_T[late], one["distance"][late], **line)
            rate = float(one["limit"].evidence.predicted_rate)
            guide = np.array([3e2, 1e8])
            level = one["distance"][np.argmin(np.abs(LOG_T - 1e6))]
            height = 0.45 * level * (guide / 1e6) ** -rate
            label = rf"$(\log t)^{{-{rate:.2f}}}$"
            axes[1].plot(guide, height, ":", color=colour, lw=1.2, label=label)
            left = one["zeta_inf"] - one["zeta"]
            shown = late & (left > 2 * one["distance"][-1])
            axes[2].plot(LOG_T[shown], left[shown], **line)
            for until, known in one["known"]:
                axes[2].plot(until, known.left, "o", color=colour, ms=4.5, zorder=3)
                axes[2].plot(until, known.bound, "_", color=colour, ms=9, mew=1.6)
                axes[2].plot(
                    [until, until], [known.left, known.bound], color=colour, lw=0.8
                )
        axes[2].plot([], [], "-", color="0.3", label=r"$\zeta_\infty-\zeta$")
        axes[2].plot([], [], "o", color="0.3", ms=4.5, label="extrapolated from there")
        axes[2].plot([], [], "_", color="0.3", ms=9, mew=1.6, label="bound")
        titles = (
            r"$\angle(W,-\nabla\mathcal{L})\to0$  (JT Theorem 4.1)",
            r"$\Vert\theta-\bar\theta\Vert$, and the predicted rates",
            "What is left of the path (JT Theorem 3.1)",
        )
        for ax, title in zip(axes, titles, strict=True):
            ax.set(
                xscale="log",
                yscale="log",
                xlim=(1, 1e8),
                xlabel=r"$\log t$",
                title=title,
            )
            ax.legend(frameon=False, fontsize=8, loc="lower left")
        axes[0].set_ylabel("radians")
        figure.savefig(path, dpi=160)
        plt.close(figure)


def main():
    print_machine()
    found = {}
    for name, (model, data) in problems().items():
        found[name] = measured(model, data)
        show(name, found[name])
    picture(found, pathlib.Path(__file__).parent / "late_alignment.png")


if __name__ == "__main__":
    main()
