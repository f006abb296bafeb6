r"""The Mexican hat: the gradient aligns with the weights, and both turn for ever.

    python examples/mexican_hat.py [--output FOLDER] [--quick]

Ji & Telgarsky (2020), "Directional convergence and alignment in deep learning" (JT),
prove that the direction W/‖W‖ converges along a curve of finite length ζ_∞ (Theorem
3.1) for networks definable in an o-minimal structure. Without that it need not,
as Lyu & Li (2019, Appendix J) show with a homogeneous function made of a Mexican hat.
Here is one of degree 2, with one example and the exponential loss:

    Φ(W) = ‖W‖² (1 - f(u)),   u = k W_{1,2}/‖W‖,   W ∈ ℝ³,
    f(u) = ½ q⁻⁴ (1 - 0.7 sin(φ - cq)),   q = 1/(1 - |u|²),   u = |u| (cos φ, sin φ).

The flow descends f, whose valley φ = cq + const winds around the circle |u| = 1 without
end. With y = log log t = 2 log‖W‖ + o(1) the descent is du/dy = -k²∇f/4 + ..., which
gives dφ/dy ∝ q⁻⁵ in the valley, so q ∝ y^{1/6}, φ = cq ∝ y^{1/6} → ∞, and the angle
between W and -∇ℒ falls like y^{-5/6}: alignment, and no limit to align with.
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
from gflow.plot import PALETTE, style


jax.config.update("jax_enable_x64", True)

K, C = 1000.0, 8.0
RTOL = 1e-9
LOSS = gflow.losses.Exponential()
DATA = (np.ones(1), np.ones(1))


def hat(u):
    """f, inside of the unit circle."""
    q = 1 / (1 - jnp.sum(u**2))
    return 0.5 * q**-4 * (1 - 0.7 * jnp.sin(jnp.arctan2(u[1], u[0]) - C * q))


class MexicanHat(eqx.Module):
    """Φ, of degree 2; x is 1."""

    w: jax.Array

    def __call__(self, x):
        square = jnp.sum(self.w**2)
        return x * square * (1 - hat(K * self.w[:2] / jnp.sqrt(square)))


def flow(log_t):
    """The flow to a log t, from |u| = 0.6 in the valley."""
    radius = 0.6
    phi = C / (1 - radius**2) + math.pi / 2
    u = radius / K * np.array([math.cos(phi), math.sin(phi)])
    start = MexicanHat(jnp.array([*u, math.sqrt(1 - u @ u)]))
    late = np.exp(np.linspace(math.log(0.5), math.log(log_t), 500))
    times = np.concatenate([[-np.inf], np.linspace(-16.0, 0.4, 150), late])
    with warnings.catch_warnings():
        # What balances to 1e-6 is reported as more than rtol; see `laws`.
        warnings.simplefilter("ignore", UserWarning)
        solution = gflow.integrate(
            MexicanHat(start.w),
            DATA,
            LOSS,
            (0.0, gflow.exp(log_t)),
            save_at=gflow.exp(times),
            observe=("path_length", "alignment"),
            rtol=RTOL,
        )
    w = np.asarray(solution.models.w)
    u = K * w[:, :2] / np.linalg.norm(w, axis=1, keepdims=True)
    return solution, {
        "log_t": np.asarray(solution.log_t),
        "u": u,
        "q": 1 / (1 - np.sum(u**2, axis=1)),
        "phi": np.unwrap(np.arctan2(u[:, 1], u[:, 0])),
        "zeta": np.asarray(solution.observed["path_length"]),
        "angle": np.asarray(solution.observed["alignment"]),
    }


def laws(solution):
    """The laws of the flow.

    W_{1,2} is 1/K of ‖W‖, to which the error is held: to u, rtol is K times as much.
    """
    return gflow.laws.check(solution, data=DATA, loss=LOSS, rtol=K * RTOL)


def exponent(y, values):
    """The slope of log(values) in log(y) over the last third of log log t."""
    late = y > y[-1] / 1.5
    return float(np.polyfit(np.log(y[late]), np.log(values[late]), 1)[0])


def measure(found):
    """Turns, and the exponents in y = log log t."""
    late = found["log_t"] > math.e
    y = np.log(found["log_t"][late])
    growth = np.gradient(found["zeta"][late], y)
    # q^6 grows by as much in every unit of y: from where it would be zero.
    sixth = np.polyfit(y[y > y[-1] / 2], found["q"][late][y > y[-1] / 2] ** 6, 1)
    return {
        "y": y,
        "late": late,
        "growth": growth,
        "sixth": sixth,
        "origin": -sixth[1] / sixth[0],
        "turns": (found["phi"][-1] - found["phi"][0]) / (2 * math.pi),
        "angle exponent": exponent(y, found["angle"][late]),
        "length exponent": exponent(y, growth),
    }


def picture(found, facts, path):
    """The spiral in the plane; turns; angle and speed against log log t."""
    blue, orange, green = PALETTE[:3]
    u, y, late = found["u"], facts["y"], facts["late"]
    with style(None):
        figure, axes = plt.subplots(
            1, 3, figsize=(12.0, 4.2), layout="constrained", width_ratios=(1.1, 1, 1)
        )
        plane, turns, falls = axes
        # At the distance q = 1/(1 - |u|²) the windings are evenly apart.
        top = 1.1 * found["q"].max()
        q = np.linspace(1.0, top, 400)[:, None]
        phi = np.linspace(-np.pi, np.pi, 721)
        plane.pcolormesh(
            q * np.cos(phi),
            q * np.sin(phi),
            1 - 0.7 * np.sin(phi - C * q),
            cmap="Greys",
            vmin=-0.3,
            vmax=3.2,
            shading="gouraud",
            rasterized=True,
        )
        fine, along = np.linspace(0, 1, 6000), np.linspace(0, 1, len(u))
        phi = np.interp(fine, along, found["phi"])
        distance = np.interp(fine, along, found["q"])
        plane.plot(distance * np.cos(phi), distance * np.sin(phi), color=blue, lw=1.5)
        for k, marker, colour, name in (
            (0, "o", blue, "start"),
            (-1, "s", orange, "end"),
        ):
            q, phi = found["q"][k], found["phi"][k]
            name = f"{name}, $|u|={np.linalg.norm(u[k]):.3f}$"
            place = (q * math.cos(phi), q * math.sin(phi))
            plane.plot(*place, marker, color=colour, ms=6, label=name, zorder=3)
        plane.legend(
            frameon=False, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=2
        )
        plane.set(
            aspect="equal",
            xlim=(-top, top),
            ylim=(-top, top),
            title=r"$u=kW_{1,2}/\Vert W\Vert$, drawn at the distance $1/(1-|u|^2)$",
        )
        plane.axis("off")

        around = (found["phi"] - found["phi"][0]) / (2 * math.pi)
        turns.plot(
            y, around[late], color=blue, lw=1.6, label=r"$\varphi/2\pi$, from the start"
        )
        law = (facts["sixth"][0] * np.maximum(y - facts["origin"], 0)) ** (1 / 6)
        predicted = (
            C * (law - found["q"][-1]) + found["phi"][-1] - found["phi"][0]
        ) / (2 * math.pi)
        name = r"$c\,(A(y-y_0))^{1/6}/2\pi$ + const"
        turns.plot(y, predicted, color="0.2", lw=1.2, ls=(0, (2, 2)), label=name)
        turns.plot(
            y,
            K * found["zeta"][late] / (2 * math.pi),
            color=green,
            lw=1.6,
            label=r"path length $k\zeta/2\pi$",
        )
        turns.legend(frameon=False, loc="lower right", fontsize=8)
        turns.set(
            xlim=(y[0], y[-1]),
            ylim=(0, None),
            xlabel=r"$y=\log\log t$",
            ylabel="turns",
            title="It turns for ever, ever more slowly",
        )

        falls.loglog(y, found["angle"][late], color=orange, lw=1.6)
        falls.loglog(y, facts["growth"], color=green, lw=1.6)
        level = np.interp(4.0, y, found["angle"][late])
        slope = level * 1.25 * (y / 4.0) ** (-5 / 6)
        falls.loglog(y, slope, color="0.2", lw=1.2, ls=(0, (2, 2)))
        falls.legend(
            [r"$\angle(W,-\nabla\mathcal{L})$", r"$d\zeta/dy$", "$y^{-5/6}$"],
            frameon=False,
            loc="upper right",
        )
        ticks = [1, 2, 5, 10, 20]
        falls.set_xticks(ticks, [str(v) for v in ticks])
        falls.set_xticks([], minor=True)
        falls.set(
            xlim=(y[0], y[-1]),
            xlabel=r"$y=\log\log t$",
            ylabel="radians",
            title="The angle tends to 0, the length diverges",
        )
        figure.savefig(path, dpi=160)
        plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = pathlib.Path(__file__).parent / "output"
    parser.add_argument("--output", type=pathlib.Path, default=default)
    parser.add_argument("--quick", action="store_true", help="to an earlier time")
    arguments = parser.parse_args()
    output = arguments.output
    output.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    log_t = 1e7 if arguments.quick else 1e9
    solution, found = flow(log_t)
    facts = measure(found)
    steps, gradients = (int(solution.stats[f"num_{n}"]) for n in ("steps", "gradients"))
    print(f"to log t = {log_t:.0e} in {steps} steps, {gradients} gradients")
    print(
        f"{facts['turns']:.2f} turns; |u| from {np.linalg.norm(found['u'][0]):.3f} to "
        f"{np.linalg.norm(found['u'][-1]):.5f}; cq - φ within "
        f"{np.ptp((C * found['q'] - found['phi'])[facts['late']]):.3f} of a constant"
    )
    print(
        f"exponents in log log t: angle {facts['angle exponent']:.3f}, dζ/dy "
        f"{facts['length exponent']:.3f} (for y → ∞: -5/6)"
    )
    print(
        f"angle of W and -∇ℒ at the end: {found['angle'][-1]:.2e} rad, path "
        f"{K * found['zeta'][-1]:.2f}/k"
    )
    table = laws(solution)
    print(f"\n{table}")
    path = output / "mexican_hat.png"
    picture(found, facts, path)
    failures = ", ".join(row.law for row in table.failures)
    print(f"\nPlot: {path}")
    print(
        f"\nShown: the gradient aligns to {found['angle'][-1]:.0e} rad with a "
        f"direction that has made {facts['turns']:.1f} turns and makes more; of the "
        f"laws fails: {failures} ({time.perf_counter() - start:.0f} s)."
    )


if __name__ == "__main__":
    main()
