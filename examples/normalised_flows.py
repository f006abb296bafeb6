r"""Weight normalisation is not the gradient flow: Theory III, Figure 1, and its norms.

    python examples/normalised_flows.py [--output FOLDER] [--quick]

After Banburski et al. (2019), "Theory III: Dynamics and Generalization in Deep
Networks" (T3): a linear network with two parameters, two examples, the exponential
loss. (T3 does not tell the examples nor the start of its Figure 1; they are chosen here
so that the margin is largest in another direction for each norm.)

*Figure 1*: the gradient flow of W is that of (ρ, V) with W = ρV (T3 Observation 1, eqs.
(13)-(14)), on the same curve at the same times. Weight normalisation (eq. (12)), whose
V̇ is larger by ρ², takes another curve.

*Norms* (T3 Theorems 5 and 7): on the spheres ‖V‖_p = 1 of l1, l2 and l∞, at a norm ρ(t)
that is prescribed to grow slowly, the tangent gradient leads to the direction of the
largest margin in that norm: entries come to rest at zero (l1) or at the bound (l∞).
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
from matplotlib.lines import Line2D
from scipy.optimize import minimize_scalar

import gflow
from gflow.plot import GREY, PALETTE, style


jax.config.update("jax_enable_x64", True)

LOSS = gflow.losses.Exponential()
X, Y = np.array([[1.0, 0.5], [1.6, 0.3]]), np.ones(2)
START = np.array([-0.35, 0.75])
BLUE, ORANGE, GREEN, RED = "#1f77b4", "#ff7f0e", "#2ca02c", "#d62728"  # T3's


def network(weights):
    """f(x) = ⟨w, x⟩."""
    model = gflow.nn.Linear(2, "scalar", key=jax.random.key(0))
    return eqx.tree_at(lambda m: m.weight, model, jnp.asarray(weights)[None])


def curve(solution):
    return np.asarray(solution.models.weight).reshape(-1, 2)


# --- Figure 1 -------------------------------------------------------------------------


def flow_of(kind, times):
    """One of the three flows."""
    return gflow.integrate(
        network(START),
        (X, Y),
        LOSS,
        (0.0, times[-1]),
        save_at=times,
        clock=gflow.clocks.LogTime(),
        rtol=1e-11,
        flow=kind,
    )


def figure_one(times):
    """The three flows at the same times."""
    flows = {
        "standard": None,
        "(ρ, V)": gflow.flows.Polar(),
        "weight norm": gflow.flows.WeightNorm(),
    }
    found = {}
    for name, flow in flows.items():
        solution = flow_of(flow, times)
        w = curve(solution)
        found[name] = {
            "t": times,
            "w": w,
            "norm": np.linalg.norm(w, axis=1),
            "angle": np.degrees(np.arctan2(w[:, 1], w[:, 0])),
            "loss": np.asarray(solution.loss),
            "steps": int(solution.stats["num_steps"]),
            "defect": np.abs(solution.energy_defect).max(),
        }
    for one in found.values():
        gap = np.linalg.norm(one["w"] - found["standard"]["w"], axis=1)
        one["gap"] = (gap / found["standard"]["norm"]).max()
    return found


def table_one(found):
    print("Two parameters, two examples, exponential loss (T3 Figure 1)")
    print(
        f"{'flow':>12} {'steps':>6} {'loss':>9} {'ρ':>8} {'angle of V':>11} "
        f"{'from standard':>14} {'energy defect':>14}"
    )
    for name, one in found.items():
        print(
            f"{name:>12} {one['steps']:>6} {one['loss'][-1]:>9.2e} "
            f"{one['norm'][-1]:>8.4f} {one['angle'][-1]:>10.3f}° {one['gap']:>14.1e} "
            f"{one['defect']:>14.1e}"
        )


# --- Norms ----------------------------------------------------------------------------

NORMS = {"l1": 1, "l2": 2, "linf": np.inf}


def best(score):
    """The angle in degrees at which a function of the direction is largest."""
    grid = np.radians(np.linspace(-90, 90, 1801))
    first = grid[np.argmax([score(a) for a in grid])]
    step = grid[1] - grid[0]
    found = minimize_scalar(
        lambda a: -score(a),
        bounds=(first - step, first + step),
        method="bounded",
        options={"xatol": 1e-12},
    )
    return math.degrees(found.x)


def on_sphere(angle, p):
    w = np.array([math.cos(angle), math.sin(angle)])
    return w / np.linalg.norm(w, p)


def loss_at(w):
    """log ℒ."""
    return np.logaddexp.reduce(-X @ w)


def spheres(last):
    """Tangent gradient flows at ρ(t) = 1 + log(1 + t)/2 to log t = last."""
    found = {}
    for name, p in NORMS.items():
        solution = gflow.integrate(
            network(START),
            (X, Y),
            LOSS,
            (0.0, gflow.exp(last)),
            clock=gflow.clocks.LogTime(),
            # Late, V relaxes much faster than ρ moves.
            solver=gflow.solvers.RKC3() if p == 2 else None,
            rtol=1e-7,
            flow=gflow.flows.TangentGradient(
                name, rho=lambda t: 1 + 0.5 * jnp.log1p(t)
            ),
        )
        w = curve(solution)
        v = w / np.linalg.norm(w, p, axis=1, keepdims=True)
        found[name] = {
            "v": v,
            "steps": int(solution.stats["num_steps"]),
            "norm": np.linalg.norm(w[-1], p) / (1 + last / 2),
            "angle": math.degrees(math.atan2(w[-1, 1], w[-1, 0])),
            "margin": (X @ v[-1]).min(),
            # By direct search over directions, for the margin and for ℒ at the norm ρ.
            "best": best(lambda a, p=p: (X @ on_sphere(a, p)).min()),
            "least": best(lambda a, p=p: -loss_at((1 + last / 2) * on_sphere(a, p))),
        }
    return found


def table_two(found, last):
    print(f"\nTangent gradient at ρ(t) = 1 + log(1 + t)/2, to log t = {last:g}")
    print(
        f"{'norm':>5} {'steps':>6} {'‖W‖/ρ':>7} {'angle of V':>11} "
        f"{'least loss at ρ':>16} {'largest margin':>15} {'margin':>8}"
    )
    for name, one in found.items():
        print(
            f"{name:>5} {one['steps']:>6} {one['norm']:>7.5f} {one['angle']:>10.4f}° "
            f"{one['least']:>15.4f}° {one['best']:>14.4f}° {one['margin']:>8.4f}"
        )


# --- Picture --------------------------------------------------------------------------


def picture(one, two, path):
    with style(None):
        figure, axes = plt.subplots(
            1,
            3,
            figsize=(11.5, 3.8),
            width_ratios=(4.2, 3.6, 3.8),
            layout="constrained",
        )
        time_panel(axes[0], one)
        plane_panel(axes[1], one)
        sphere_panel(axes[2], two)
        figure.savefig(path, dpi=160)
        plt.close(figure)


def time_panel(ax, found):
    t = found["standard"]["t"]
    for name, colours in (("(ρ, V)", (BLUE, ORANGE)), ("weight norm", (GREEN, RED))):
        for j, colour in enumerate(colours):
            ax.plot(t, found[name]["w"][:, j], color=colour, lw=2.2)
    for j in range(2):
        ax.plot(t, found["standard"]["w"][:, j], color="black", lw=1.1, ls=(0, (4, 3)))
    w = found["weight norm"]["w"][-1], found["(ρ, V)"]["w"][-1]
    labels = ((w[0][0], "w_1", GREEN), (w[1][0], "w_1", BLUE))
    labels += ((w[0][1], "w_2", RED), (w[1][1], "w_2", ORANGE))
    for height, name, colour in labels:
        ax.annotate(
            f"${name}$",
            (t[-1], height),
            xytext=(4, 0),
            textcoords="offset points",
            color=colour,
            va="center",
        )

    def line(colour, **kwargs):
        return Line2D([], [], color=colour, **kwargs)

    ax.legend(
        [
            line("black", lw=1.1, ls=(0, (4, 3))),
            (line(BLUE, lw=2.2), line(ORANGE, lw=2.2)),
            (line(GREEN, lw=2.2), line(RED, lw=2.2)),
        ],
        [
            r"$\dot W=-\nabla\mathcal{L}$",
            r"$\rho V$, T3 (13)–(14)",
            "weight norm, T3 (12)",
        ],
        handler_map={tuple: Pair()},
        frameon=False,
        loc="upper left",
        fontsize=8.5,
    )
    ax.set(
        xlim=(0, t[-1]),
        ylim=(-0.6, 1.25 * max(w[0].max(), w[1].max())),
        xlabel="$t$",
        ylabel="weights",
        title="The same flow in $(\\rho, V)$, another by weight norm",
    )


class Pair:
    """Two lines, one above the other, as one entry of a legend."""

    def legend_artist(self, legend, handle, fontsize, box):
        artists = []
        for k, line in enumerate(handle):
            y = box.height * (0.75 - 0.5 * k)
            artist = Line2D([0, box.width], [y, y], color=line.get_color(), lw=2.0)
            artist.set_transform(box.get_transform())
            box.add_artist(artist)
            artists.append(artist)
        return artists


def plane_panel(ax, found):
    reach = max(np.abs(one["w"]).max() for one in found.values())
    high = max(one["w"][:, 1].max() for one in found.values())
    a, b = np.linspace(-0.6, 1.1 * reach, 200), np.linspace(0.35, 1.12 * high, 200)
    margins = a[None, :, None] * X[:, 0] + b[:, None, None] * X[:, 1]
    log_loss = np.log(np.exp(-margins).sum(axis=-1))
    ax.contour(a, b, log_loss, 16, colors="0.85", linewidths=0.7, linestyles="-")
    marks = (0.3, 1.0, 3.0, 10.0)
    for name, colour, style_ in (
        ("(ρ, V)", BLUE, "-"),
        ("weight norm", GREEN, "-"),
        ("standard", "black", (0, (4, 3))),
    ):
        one = found[name]
        width = 1.1 if name == "standard" else 2.2
        ax.plot(*one["w"].T, color=colour, lw=width, ls=style_)
        if name == "standard":
            continue
        at = [int(np.argmin(np.abs(one["t"] - m))) for m in marks if m <= one["t"][-1]]
        ax.plot(*one["w"][at].T, "o", color=colour, mec="white", mew=0.7, ms=5.5)
        if name == "weight norm":
            for k, m in zip(at, marks, strict=False):
                ax.annotate(
                    f"$t={m:g}$",
                    one["w"][k],
                    xytext=(1, -13),
                    textcoords="offset points",
                    fontsize=7.5,
                    color=colour,
                )
    ax.plot(*START, "o", color="black", ms=5)
    ax.annotate(
        "start", START, xytext=(-4, -13), textcoords="offset points", fontsize=8.5
    )
    ax.set(
        xlim=(a[0], a[-1]),
        ylim=(b[0], b[-1]),
        xlabel="$w_1$",
        ylabel="$w_2$",
        title="Their curves, on the levels of $\\log\\,\\mathcal{L}$",
    )


def sphere_panel(ax, found):
    round_ = np.linspace(0, 2 * np.pi, 721)
    names = {"l1": r"$\ell_1$", "l2": r"$\ell_2$", "linf": r"$\ell_\infty$"}
    for (name, one), colour in zip(found.items(), PALETTE, strict=False):
        outline = np.array([on_sphere(a, NORMS[name]) for a in round_])
        ax.plot(*outline.T, color="0.8", lw=0.8, zorder=0)
        ax.plot(*one["v"].T, color=colour, lw=2.4, label=names[name])
        ax.plot(*one["v"][0], "o", color=colour, ms=4)
        towards = on_sphere(math.radians(one["best"]), np.inf)
        ax.plot(
            *np.array([0 * towards, 1.42 * towards]).T, color=colour, lw=0.9, ls=":"
        )
        ax.plot(*one["v"][-1], "*", color=colour, mec="white", mew=0.6, ms=13, zorder=3)
    ax.plot(0, 0, ".", color=GREY, ms=4)
    ax.set(
        xlim=(-0.75, 1.5),
        ylim=(-0.5, 1.5),
        aspect="equal",
        xlabel="$v_1$",
        ylabel="$v_2$",
        title="Each norm to its own largest margin",
    )
    ax.legend(frameon=False, loc="lower left", ncols=3, handlelength=1.2)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = pathlib.Path(__file__).parent / "output"
    parser.add_argument("--output", type=pathlib.Path, default=default)
    parser.add_argument("--quick", action="store_true", help="a shorter last part")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    one = figure_one(np.linspace(0.0, 12.0, 481))
    table_one(one)
    last = 10.0 if arguments.quick else 20.0
    two = spheres(last)
    table_two(two, last)
    path = arguments.output / "normalised_flows.png"
    picture(one, two, path)
    print(f"\nPlot: {path}")
    off = max(abs(s["angle"] - s["least"]) for s in two.values())
    print(
        f"\nShown: the (ρ, V) form follows the gradient flow to "
        f"{one['(ρ, V)']['gap']:.0e}, weight normalisation departs from it by "
        f"{one['weight norm']['gap']:.0%}; tangent gradients at growing norms lead to "
        f"margins of {', '.join(format(s['margin'], '.3f') for s in two.values())} in "
        f"l1, l2, l∞, within {off:.0e}° of the least loss at their norm "
        f"({time.perf_counter() - start:.0f} s)."
    )


if __name__ == "__main__":
    main()
