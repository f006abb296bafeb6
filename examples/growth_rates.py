r"""How fast weights grow and directions converge: two figures of Theory III, exactly.

    python examples/growth_rates.py [--output FOLDER] [--quick]

After Banburski et al. (2019), "Theory III: Dynamics and Generalization in Deep
Networks" (T3), with the exponential loss and real data (iris).

*Growth* (T3 Figure 2 and section 11.1.2): the product of the layer norms of deep linear
networks of K = 1, 2, ... layers trained on one example grows like log t for K = 1 and
faster for K > 1, while each layer grows more slowly. Every flow is compared with its
closed form: an exponential for K = 1, the logarithmic integral for K = 2, an incomplete
gamma function for other K, and T3's limit K → ∞.

*Rates* (T3 Figure 3 and section 12): the direction of a linear network trained on one
example converges like 1/log t, and like t^{-(log t)/2} with weight normalisation. Both
are exact here as well. On all the data, which have several support vectors, weight
normalisation falls back to 1/log t.
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
from jaxtyping import Array, Float
from scipy.optimize import brentq
from scipy.special import expi, hyp1f1

import gflow
from gflow.plot import GREY, PALETTE, style


jax.config.update("jax_enable_x64", True)

LOSS = gflow.losses.Exponential()
LOG_TIME = gflow.clocks.LogTime()


# --- Data -----------------------------------------------------------------------------


def flowers(*rows):
    """Some irises, standardised, with a constant feature; setosa +1, the others -1."""
    x, y = gflow.data.iris()
    x = np.asarray(gflow.nn.append_one(gflow.data.standardise(x)))
    x, y = x[list(rows)], np.where(np.asarray(y)[list(rows)] == 0, 1.0, -1.0)
    return x / np.linalg.norm(x, axis=1).max(), y


ONE, TWO = (0,), (45, 82)  # a setosa; another and a versicolor
START_OF_TWO = np.array([0.5, 0.5, -0.2, 0.3, 0.2])


# --- Figure 2: growth -----------------------------------------------------------------


def balanced_network(depth, x):
    """K layers of norm one, balanced and aligned with the example: f(x) = Πρ_k = 1."""
    sizes = (x.shape[1], *[3] * (depth - 1), "scalar")
    model = gflow.nn.DeepLinear(sizes, key=jax.random.key(depth))
    first = model.layers[0].weight
    model = eqx.tree_at(lambda m: m.layers[0].weight, model, first @ x.T @ x)
    # W_{k+1}ᵀW_{k+1} = W_k W_kᵀ: rank-one layers of equal norms, here ρ_k = 1.
    model = gflow.nn.init.to_norm(gflow.nn.init.balanced(model), math.sqrt(depth))
    if model(jnp.asarray(x[0])) < 0:
        last = model.layers[-1].weight
        model = eqx.tree_at(lambda m: m.layers[-1].weight, model, -last)
    return model


def primitive(u, depth):
    r"""∫ e^u u^{-(2-2/K)} du, with u = log R = ρ^K f̃: the time that growth takes.

    Balanced layers have norms ρ with ρρ̇ = f̃ρ^K e^{-f̃ρ^K} (T3 eq. 64), so

        Ṙ = f̃^{2/K} K (log R)^{2-2/K},     R = e^{f̃ρ^K}.

    This is T3 eq. (68) but for K in place of its K²: the factor K of T3 eq. (66) is
    the gradient by one ρ that all layers share, and is not in eq. (64). It is a unit
    of time, and changes none of T3's conclusions.
    """
    if depth == 1:
        return np.exp(u)
    if depth == 2:
        return expi(u)  # li(R), li(z) = Ei(log z)
    if depth == math.inf:
        return expi(u) - np.exp(u) / u  # T3's 𝓛(R) = li(R) - R/log R
    power = 2 / depth - 1
    return u**power / power * hyp1f1(power, power + 1, u)


def closed_form(log_time, depth):
    """u = ρ^K f̃ at the times K f̃^{2/K} t = e^log_time, from u = 1 at 0."""
    start = primitive(1.0, depth)

    def one(v):
        def gap(u):
            return math.log(max(primitive(u, depth) - start, 1e-300)) - v

        return brentq(gap, 1.0, v + 2 * math.log(2 + abs(v)) + 5, xtol=1e-13)

    return np.array([one(v) for v in log_time])


def growth_flow(depth, data, log_t):
    """The flow of K layers."""
    return gflow.integrate(
        balanced_network(depth, data[0]),
        data,
        LOSS,
        (0.0, gflow.exp(log_t[-1])),
        save_at=gflow.exp(log_t),
        observe="layer_norms",
        clock=LOG_TIME,
        rtol=1e-8,
    )


def growth(depths, log_t):
    """Flows of K layers on one example, each with its closed form."""
    data = flowers(*ONE)
    found = {}
    for depth in depths:
        solution = growth_flow(depth, data, log_t)
        norms = np.asarray(solution.observed["layer_norms"])
        product = norms.prod(axis=1)
        expected = closed_form(log_t + math.log(depth), depth)
        squared = closed_form(log_t + 2 * math.log(depth), depth)  # as T3 eq. (68)
        found[depth] = {
            "log_time": log_t + math.log(depth),
            "norms": norms,
            "product": product,
            "deviation": np.abs(product / expected - 1).max(),
            "deviation K²": np.abs(product / squared - 1).max(),
            "spread": np.ptp(norms, axis=1).max(),
            "steps": int(solution.stats["num_steps"]),
        }
    return found


def growth_table(found):
    print("\nGrowth of Πρ_k = ρ^K, one example (T3 section 11.1.2)")
    print(
        f"{'K':>4} {'steps':>6} {'log t':>7} {'Πρ_k':>10} {'ρ_k':>9} "
        f"{'from closed form':>17} {'with K² for K':>14}"
    )
    for depth, one in found.items():
        log_t = one["log_time"][-1] - math.log(depth)
        print(
            f"{depth:>4} {one['steps']:>6} {log_t:>7.1f} {one['product'][-1]:>10.4f} "
            f"{one['norms'][-1, 0]:>9.4f} {one['deviation']:>17.1e} "
            f"{one['deviation K²']:>14.1e}"
        )


def growth_picture(found, path):
    """T3 Figure 2, and the growth beyond the logarithm."""
    with style(None):
        figure, axes = plt.subplots(1, 3, figsize=(11.5, 3.7), layout="constrained")
        last = max(one["log_time"][-1] for one in found.values())
        fine = np.geomspace(1.0, last + 2.0, 150) - 2.0
        for i, depth in enumerate([*found, math.inf]):
            colour = GREY if depth == math.inf else PALETTE[i]
            name = r"$K\to\infty$" if depth == math.inf else f"$K={depth}$"
            line = {"color": colour, "lw": 1.5}
            line["ls"] = "--" if depth == math.inf else "-"
            u = closed_form(fine, depth)
            late = fine >= 1.9
            axes[0].plot(fine, u, label=name, **line)
            layer = np.ones_like(u) if depth == math.inf else u ** (1 / depth)
            axes[1].plot(fine, layer, **line)
            axes[2].plot(fine[late], (u - fine)[late], **line)
            if depth == math.inf:
                continue
            one = found[depth]
            keep = np.arange(i % 3, len(one["product"]), 3)
            at, dots = one["log_time"][keep], {"color": colour, "ms": 4, "marker": "o"}
            dots |= {"ls": "none", "mec": "white", "mew": 0.5}
            axes[0].plot(at, one["product"][keep], **dots)
            axes[1].plot(at, one["norms"][keep, 0], **dots)
            late = keep[one["log_time"][keep] >= 2]
            excess = (one["product"] - one["log_time"])[late]
            axes[2].plot(one["log_time"][late], excess, **dots)
        for ax in axes:
            ax.set_xlabel(r"$\log(K t)$")
        top = min(last, 20.0)
        axes[0].set(
            xlim=(-1, top),
            ylim=(0, closed_form([top], math.inf)[0]),
            ylabel=r"product of layer norms  $\rho_1\cdots\rho_K$",
            title="Deeper networks grow faster …",
        )
        axes[1].set(
            yscale="log",
            xlim=(-1, last),
            ylabel=r"norm of each layer  $\rho_k$",
            title="… each of their layers more slowly",
        )
        axes[2].set(
            xscale="log",
            xlim=(2, last),
            ylabel=r"$\rho_1\cdots\rho_K-\log(K t)$",
            title=r"Beyond the logarithm: $(2-2/K)\,\log\log t$",
        )
        ticks = [v for v in (2, 5, 10, 20, 50, 100) if v <= last]
        axes[2].set_xticks(ticks, [f"{v}" for v in ticks])
        axes[2].minorticks_off()
        axes[0].plot([], [], "o", color="0.3", ms=4, label="gflow")
        axes[0].plot([], [], "-", color="0.3", label="closed form")
        axes[0].legend(frameon=False, loc="upper left")
        figure.savefig(path, dpi=160)
        plt.close(figure)


# --- Figure 3: rates ------------------------------------------------------------------


class WeightNormalised(eqx.Module):
    r"""f(x) = ρ ⟨v/‖v‖, x⟩, whose gradient flow is T3's weight normalisation.

    With ẇ the velocity that w = ρv/‖v‖ would have by itself, Σ y_n x_n e^{-y_n f(x_n)},
    and S = I - vvᵀ/‖v‖², the chain rule gives

        ρ̇ = ⟨v/‖v‖, ẇ⟩,     v̇ = (ρ/‖v‖) S ẇ,

    T3 eqs. (55) and (56). Since vᵀS = 0 the norm ‖v‖ is conserved, and from ‖v‖ = 1
    this is T3 eq. (12), ρ̇ = vᵀẇ and v̇ = Sρẇ. The standard flow of w in the same
    variables has v̇ = Sẇ/ρ, a factor ρ² less.
    """

    rho: Float[Array, ""]
    v: Float[Array, " in"]

    def __call__(self, x):
        return self.rho * (self.v @ x) / jnp.linalg.norm(self.v)


def angles_to(directions, target):
    """Angles of rows with a unit vector, small ones without cancellation."""
    along = directions @ target
    across = directions - along[:, None] * target
    return np.arctan2(np.linalg.norm(across, axis=1), along)


def both_flows(w, data, log_t, log_t_normalised, rtol):
    """The standard and the weight-normalised flow of a linear model, from w."""
    standard = gflow.nn.Linear(w.size, "scalar", key=jax.random.key(0))
    standard = eqx.tree_at(lambda m: m.weight, standard, jnp.asarray(w)[None])
    norm = np.linalg.norm(w)
    normalised = WeightNormalised(jnp.asarray(norm), jnp.asarray(w / norm))
    return [
        gflow.integrate(
            model,
            data,
            LOSS,
            (0.0, gflow.exp(times[-1])),
            save_at=gflow.exp(times),
            clock=LOG_TIME,
            rtol=rtol,
        )
        for model, times in ((standard, log_t), (normalised, log_t_normalised))
    ]


def one_example_rates(log_t, log_t_normalised):
    r"""One example z = yx of norm one: both directions have closed forms.

    Standard: w moves along z only; its part u along z has u̇ = e^{-u}, so
    e^u = e^{u_0} + t, and the part across stays. Hence tan φ = w_⊥/u ~ w_⊥/log t.

    Weight-normalised: ρ̇ = e^{-ρ cos φ} cos φ and φ̇ = -ρ e^{-ρ cos φ} sin φ, so
    dφ/dρ = -ρ tan φ and sin φ = sin φ_0 e^{-(ρ²-ρ_0²)/2}; with ρ ~ log t this is
    T3's t^{-(log t)/2}.
    """
    x, y = flowers(*ONE)
    z = (y[:, None] * x)[0]
    across = np.eye(z.size)[1] - z[1] * z
    w = 0.6 * z + across / np.linalg.norm(across)
    standard, normalised = both_flows(w, (x, y), log_t, log_t_normalised, 1e-12)
    rho = np.asarray(normalised.models.rho)
    rho_0 = np.linalg.norm(w)
    # w_⊥ = 1, u_0 = 0.6 and sin φ_0 = w_⊥/ρ_0.
    exact = (
        np.arctan(1 / np.log(math.exp(0.6) + np.exp(log_t))),
        np.arcsin(np.exp(-(rho**2 - rho_0**2) / 2) / rho_0),
    )
    angle = (
        angles_to(np.asarray(standard.models.weight)[:, 0], z),
        angles_to(np.asarray(normalised.models.v), z),
    )
    return {
        "log_t": (log_t, log_t_normalised),
        "angle": angle,
        "exact": exact,
        "deviation": [
            np.abs(a / b - 1).max() for a, b in zip(angle, exact, strict=True)
        ],
    }


def two_example_rates(log_t, log_t_normalised):
    r"""Two support vectors of different lengths: weight normalisation is 1/log t too.

    The limit v̄ ∝ q_1z_1 + q_2z_2 has equal margins. Weight normalisation moves v so
    fast that v follows the minimiser of ℒ at norm ρ, where Σ e^{-ρ⟨v, z_n⟩}Sz_n = 0.
    As q_n ∝ e^{-ρ⟨v, z_n⟩}, the margins there differ by |log(q_1/q_2)|/ρ, and so
    φ ≈ |log(q_1/q_2)|/(ρ‖z_1 - z_2‖) ~ 1/log t.
    """
    x, y = flowers(*TWO)
    z = y[:, None] * x
    # The shortest w with margins one, which has q ≥ 0: the hard-margin SVM.
    q = np.linalg.solve(z @ z.T, np.ones(2))
    if q.min() <= 0:
        raise RuntimeError("the two examples are not both support vectors")
    target = z.T @ q / np.linalg.norm(z.T @ q)
    standard, normalised = both_flows(
        START_OF_TWO, (x, y), log_t, log_t_normalised, 1e-8
    )
    angle = (
        angles_to(np.asarray(standard.models.weight)[:, 0], target),
        angles_to(np.asarray(normalised.models.v), target),
    )
    rho = np.asarray(normalised.models.rho)
    minimiser = np.array([angle_of_minimiser(one, z, target) for one in rho])
    return {
        "log_t": (log_t, log_t_normalised),
        "angle": angle,
        "minimiser": minimiser,
        "deviation": abs(angle[1][-1] / minimiser[-1] - 1),
        "slope": [
            slope(a, b) for a, b in zip((log_t, log_t_normalised), angle, strict=True)
        ],
    }


def angle_of_minimiser(rho, z, target):
    """The angle with v̄ of the minimiser of Σ e^{-⟨w, z_n⟩} over ‖w‖ = ρ."""
    along = z[0] - z[1]  # orthogonal to v̄, which has equal margins
    along = along / np.linalg.norm(along)

    def derivative(angle):
        v = math.cos(angle) * target + math.sin(angle) * along
        margins = z @ v
        tangent = math.cos(angle) * along - math.sin(angle) * target
        return np.exp(-rho * (margins - margins.min())) @ (z @ tangent)

    return abs(brentq(derivative, -1.5, 1.5, xtol=1e-14))


def slope(log_t, angle):
    """d log(angle)/d log log t, over the last factor of 3 in log t."""
    late = log_t >= log_t[-1] / 3
    return np.polyfit(np.log(log_t[late]), np.log(angle[late]), 1)[0]


NAMES = ("standard flow", "weight normalisation")


def rates_table(one, two):
    print("\nAngle of a linear network's direction with its limit (T3 section 12)")
    print(f"{'examples':>8} {'flow':>21} {'log t':>7} {'angle':>9}  measured")
    for i, name in enumerate(NAMES):
        print(
            f"{1:>8} {name:>21} {one['log_t'][i][-1]:>7.1f} {one['angle'][i][-1]:>9.2e}"
            f"  from closed form {one['deviation'][i]:.1e}"
        )
    for i, name in enumerate(NAMES):
        print(
            f"{2:>8} {name:>21} {two['log_t'][i][-1]:>7.1f} {two['angle'][i][-1]:>9.2e}"
            f"  slope {two['slope'][i]:.3f} in log t"
            + (f", {two['deviation']:.0e} from the minimiser" if i else "")
        )


def rates_picture(one, two, path):
    """T3 Figure 3, and what becomes of it with two support vectors."""
    blue, orange = PALETTE[:2]
    dots = {"ls": "none", "marker": "o", "ms": 4, "mec": "white", "mew": 0.5}
    dashed = {"color": "0.25", "ls": "--", "lw": 1}
    with style(None):
        figure, axes = plt.subplots(1, 3, figsize=(11.5, 3.7), layout="constrained")
        colours = (blue, orange)
        for i in range(2):
            log_t, keep = one["log_t"][i], slice(None, None, 2)
            axes[i].plot(
                log_t, one["exact"][i], color=colours[i], lw=1.5, label="closed form"
            )
            axes[i].plot(
                log_t[keep],
                one["angle"][i][keep],
                color=colours[i],
                label="gflow",
                **dots,
            )
        late = one["log_t"][0][one["log_t"][0] >= 3]
        axes[0].plot(late, 1.35 / late, label=r"$\propto 1/\log t$", **dashed)
        axes[0].set(
            xscale="log",
            yscale="log",
            xlim=(one["log_t"][0][0], one["log_t"][0][-1]),
            title="One example: standard flow",
        )
        late = one["log_t"][1][one["log_t"][1] >= 2]
        axes[1].plot(
            late,
            4 * np.exp(-(late**2) / 2),
            label=r"$\propto t^{-\frac{1}{2}\log t}$",
            **dashed,
        )
        axes[1].set(
            yscale="log",
            xlim=(one["log_t"][1][0], one["log_t"][1][-1]),
            title="One example: weight normalisation",
        )
        for i, name in enumerate(NAMES):
            axes[2].plot(
                two["log_t"][i], two["angle"][i], color=colours[i], lw=1.5, label=name
            )
        late = two["log_t"][1] >= 2.0
        label = r"minimiser of $\mathcal{L}$ at norm $\rho$"
        axes[2].plot(
            two["log_t"][1][late], two["minimiser"][late], label=label, **dashed
        )
        axes[2].set(
            xscale="log",
            yscale="log",
            xlim=(two["log_t"][0][0], two["log_t"][0][-1]),
            title=r"Two support vectors: both like $1/\log t$",
        )
        for ax in axes:
            ax.set(xlabel=r"$\log t$", ylabel=r"$\angle(v,\,\bar v)$  (rad)")
            ax.legend(frameon=False, loc="lower left")
        for ax in (axes[0], axes[2]):
            plain_ticks(ax, (0.5, 1, 2, 5, 10, 20, 50, 100))
        figure.savefig(path, dpi=160)
        plt.close(figure)


def plain_ticks(ax, values):
    """Numbers rather than powers of ten below a logarithmic axis of few decades."""
    low, high = ax.get_xlim()
    shown = [v for v in values if low <= v <= high * 1.001]
    ax.set_xticks(shown, [f"{v:g}" for v in shown])
    ax.minorticks_off()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = pathlib.Path(__file__).parent / "output"
    parser.add_argument("--output", type=pathlib.Path, default=default)
    parser.add_argument("--quick", action="store_true", help="fewer depths, less time")
    arguments = parser.parse_args()
    output, quick = arguments.output, arguments.quick
    output.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    depths = (1, 2, 3) if quick else (1, 2, 3, 5, 10)
    found = growth(depths, np.geomspace(1.0, 33.0 if quick else 103.0, 61) - 3.0)
    growth_table(found)
    growth_picture(found, output / "growth.png")
    one = one_example_rates(np.geomspace(0.5, 100, 60), np.linspace(0.0, 7.0, 60))
    two = two_example_rates(
        np.geomspace(0.5, 100, 60), np.geomspace(0.5, 12.0 if quick else 30.0, 60)
    )
    rates_table(one, two)
    rates_picture(one, two, output / "rates.png")
    worst = max(f["deviation"] for f in found.values())
    print(f"\nPlots: {output / 'growth.png'}, {output / 'rates.png'}")
    print(
        f"\nShown: products of layer norms of {len(found)} depths to log t = "
        f"{found[1]['log_time'][-1]:g}, within {worst:.0e} of their closed forms; with "
        "one example directions converge like 1/log t, and like t^(-log(t)/2) with "
        "weight normalisation, whose angle with two support vectors falls like (log t)^"
        f"{two['slope'][1]:.2f} ({time.perf_counter() - start:.0f} s)."
    )


if __name__ == "__main__":
    main()
