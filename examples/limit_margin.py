r"""To the limit: which margin a flow ends with, and how fast it gets there.

    python examples/limit_margin.py [--output FOLDER] [--quick]

After Ji & Telgarsky (2020), "Directional convergence and alignment in deep learning"
(JT), section 4.2. Flows with the exponential loss to log t = 10^8, and from there to
t = ∞ with a certificate:

*JT Proposition 4.4*: a deep linear network on iris (setosa against the rest). Its
layers become rank one and equal in norm, their product the hard-margin SVM. How fast
depends on the data: like 1/log t if the support vectors span the space; if they do
not, like (log t)^{-1/L}, because late in training A_1 does not change off their span
and its norm grows like (log t)^{1/L}.

*JT Proposition 4.6*: a squared ReLU network, Φ(x) = Σ_j ±max(0, ⟨w_j, x⟩)², on points
in the plane. Its neurons gather in a few directions; the limiting margin is the best
for these directions (a linear programme certifies it), and is compared with the best
of all networks of any width.
"""

import argparse
import pathlib
import time

import jax
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LinearSegmentedColormap

import gflow
from gflow.limits import CERTIFICATE, deep_linear_certificate, solve_game
from gflow.plot import GREY, PALETTE, style


jax.config.update("jax_enable_x64", True)

LOSS = gflow.losses.Exponential()
LOG_T = np.concatenate([np.linspace(-6.0, 1.0, 29), np.geomspace(1.2, 1e8, 80)])
DEPTH = 3


def flow(model, data):
    """The flow to log t = 10^8."""
    return gflow.integrate(
        model,
        data,
        LOSS,
        (0.0, gflow.exp(LOG_T[-1])),
        save_at=gflow.exp(LOG_T),
        observe=("min_margin", "layer_norms"),
    )


def run_of(solution):
    """What ran where, in words."""
    parts = [p for p in solution.parts if int(p.stats["num_steps"]) > 0]
    return ", then ".join(
        f"{int(p.stats['num_steps'])} steps of {p.solver} in {p.clock} to log t = "
        f"{float(p.log_t_final):.3g}"
        for p in parts
    )


def slope(log_t, values, decades=2.0):
    """d log(values)/d log log t over the last decades of log t."""
    late = log_t >= log_t[-1] * 10.0**-decades
    return np.polyfit(np.log(log_t[late]), np.log(values[late]), 1)[0]


# --- Proposition 4.4: deep linear networks --------------------------------------------


def flowers(columns, constant):
    """Setosa (+1) against the rest (-1): some features, with a constant or without."""
    x, y = gflow.data.iris()
    x = np.asarray(gflow.data.standardise(x))[:, columns]
    x = np.asarray(gflow.nn.append_one(x)) if constant else x
    x = x / np.linalg.norm(x, axis=1).max()
    return x, np.where(np.asarray(y) == 0, 1.0, -1.0)


# The same shapes, so that one compiled program serves both.
FLOWERS = {
    "four features": ([0, 1, 2, 3], False),
    "three and a constant": ([0, 1, 2], True),
}


def deep_network():
    """Three linear layers."""
    sizes = (4, *[4] * (DEPTH - 1), "scalar")
    return gflow.nn.DeepLinear(sizes, key=jax.random.key(0))


def deep_linear():
    """Both flows with their limits, and the layers along them."""
    found = {}
    for name, (columns, constant) in FLOWERS.items():
        data = flowers(columns, constant)
        solution = flow(deep_network(), data)
        end = gflow.limit(solution, data, LOSS)
        certificate = deep_linear_certificate(end, data)
        svm = np.asarray(certificate.svm_direction)
        weights = [np.asarray(layer.weight) for layer in solution.models.layers]
        product = weights[0]
        for w in weights[1:]:
            product = w @ product
        product = product[:, 0] / np.linalg.norm(product[:, 0], axis=1, keepdims=True)
        across = np.linalg.norm(product - (product @ svm)[:, None] * svm, axis=1)
        values = [np.linalg.svd(w, compute_uv=False) for w in weights[:-1]]
        norms = np.asarray(solution.observed["layer_norms"])
        x, y = data
        support = np.asarray(end.support)
        found[name] = {
            "solution": solution,
            "limit": end,
            "certificate": certificate,
            "support": int(support.sum()),
            "rank": np.linalg.matrix_rank(x[support]),
            "angle": np.arctan2(across, product @ svm),
            "residual": np.stack(
                [np.sqrt((s[:, 1:] ** 2).sum(1) / (s**2).sum(1)) for s in values], 1
            ),
            "share": norms / np.linalg.norm(norms, axis=1, keepdims=True),
        }
        found[name]["slope"] = slope(LOG_T, found[name]["angle"])
    return found


def deep_linear_table(found):
    print(f"Deep linear networks, L = {DEPTH}, iris (JT Proposition 4.4)")
    for name, one in found.items():
        end, certificate = one["limit"], one["certificate"]
        best = float(certificate.svm_margin) * DEPTH ** (-DEPTH / 2)
        print(
            f"\n  {name}: {one['support']} support vectors of rank {one['rank']} in R^4"
            f"\n    {run_of(one['solution'])}"
            f"\n    {'log t':>9} {'angle to SVM':>13} {'rank-one residuals':>21} "
            f"{'shares of the layers':>29}"
        )
        for target in (1e0, 1e2, 1e4, 1e6, 1e8):
            i = int(np.argmin(np.abs(LOG_T - target)))
            print(
                f"    {LOG_T[i]:>9.3g} {one['angle'][i]:>13.3e} "
                + " ".join(f"{v:>10.2e}" for v in one["residual"][i])
                + "  "
                + " ".join(f"{v:>9.6f}" for v in one["share"][i])
            )
        print(
            f"    slope of the angle in log t: {one['slope']:.3f}\n"
            f"    limit: margin {float(end.margin):.12f}, SVM's · L^(-L/2) {best:.12f};"
            f" KKT residual {float(end.kkt_residual):.0e};\n"
            f"    largest deviation from the proposition "
            f"{float(certificate.largest_deviation):.0e}; the flow's directions "
            f"approach it like (log t)^-{float(end.evidence.rate):.3f},\n"
            f"    predicted {float(end.evidence.predicted_rate):.3f}. {reason_of(end)}"
        )


def deep_linear_picture(found, path):
    with style(None):
        figure, axes = plt.subplots(1, 3, figsize=(11.5, 3.7), layout="constrained")
        guides = {"four features": -1.0, "three and a constant": -1 / DEPTH}
        for i, (name, one) in enumerate(found.items()):
            late = LOG_T > 0
            label = f"{one['support']} support vectors"
            axes[0].plot(LOG_T[late], one["angle"][late], color=PALETTE[i], label=label)
            guide = LOG_T[LOG_T > 1e3]
            height = one["angle"][-1] * 2.2
            power = guides[name]
            text = r"$\propto 1/\log t$" if i == 0 else r"$\propto(\log t)^{-1/3}$"
            axes[0].plot(
                guide,
                height * (guide / guide[-1]) ** power,
                "--" if i == 0 else ":",
                color="0.25",
                lw=1.2,
                label=text,
            )
        one = found["four features"]
        for k in range(DEPTH):
            late = LOG_T > 0
            if k < DEPTH - 1:
                axes[1].plot(
                    LOG_T[late],
                    one["residual"][late, k],
                    color=PALETTE[k],
                    label=f"$k={k + 1}$",
                )
            axes[2].plot(
                LOG_T[late],
                one["share"][late, k],
                color=PALETTE[k],
                label=f"$k={k + 1}$",
            )
        guide = LOG_T[LOG_T > 1e3]
        height = 2.0 * one["residual"][-1, 0]
        axes[1].plot(
            guide,
            height * (guide / guide[-1]) ** (-1 / DEPTH),
            ":",
            color="0.25",
            lw=1.2,
            label=r"$\propto(\log t)^{-1/3}$",
        )
        axes[2].axhline(DEPTH**-0.5, color="0.25", lw=1, ls="--", label=r"$L^{-1/2}$")
        axes[0].set(
            yscale="log",
            ylabel=r"$\angle(A_3A_2A_1,\,\bar u)$  (rad)",
            title="The product becomes the SVM …",
        )
        axes[1].set(
            yscale="log",
            ylabel=r"$\Vert A_k-\sigma_1u_1v_1^\top\Vert\,/\,\Vert A_k\Vert$",
            title="… of layers of rank one …",
        )
        axes[2].set(
            ylabel=r"$\Vert A_k\Vert\,/\,\Vert W\Vert$",
            title="… and of equal norm",
        )
        for ax in axes:
            ax.set(xscale="log", xlabel=r"$\log t$", xlim=(1, LOG_T[-1]))
            ax.legend(frameon=False)
        figure.savefig(path, dpi=160)
        plt.close(figure)


# --- Proposition 4.6: squared ReLU in the plane ---------------------------------------


def planar_points(count=20, seed=0):
    """Points near the unit circle, within it, of two classes in four sectors."""
    rng = np.random.default_rng(seed)
    angle = 2 * np.pi * (np.arange(count) + rng.uniform(0.1, 0.9, count)) / count
    radius = rng.uniform(0.75, 1.0, count)
    x = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return x, np.where(np.sin(2 * angle + 0.4) > 0, 1.0, -1.0)


def cover(theta, signs):
    """The covering radius of the circle by the neurons of either sign, the larger."""
    worst = 0.0
    for sign in (1.0, -1.0):
        at = np.sort(np.arctan2(*theta[signs == sign].T[::-1]))
        gap = np.append(np.diff(at), at[0] + 2 * np.pi - at[-1]).max()
        worst = max(worst, 2 * np.sin(gap / 4))
    return worst


def features(theta, signs, data):
    """φ_ij = y_i (±1)_j max(0, ⟨θ_j, x_i⟩)²."""
    x, y = data
    return y[:, None] * signs * np.maximum(x @ theta.T, 0) ** 2


def game(phi):
    """max_s min_i (φs)_i over the simplex: bounds by its s and by the dual's q.

    Both are attained, by s and q alone: their difference is the duality gap.
    """
    _, shares, q, _ = solve_game(phi)
    return (phi @ shares).min(), (q @ phi).max(), q


def best_of_any_width(data, count=1440):
    """max_ν min_i y_i∫max(0, ⟨x_i, θ⟩)²dν, |ν| = 1, by a grid of directions.

    The value on the grid is attained; the dual's bound is evaluated on a finer grid.
    """

    def both_signs(count):
        at = np.arange(count) * 2 * np.pi / count
        theta = np.tile(np.stack([np.cos(at), np.sin(at)], axis=1), (2, 1))
        return features(theta, np.repeat([1.0, -1.0], count), data)

    value, _, q = game(both_signs(count))
    return value, (q @ both_signs(100 * count)).max()


def planar_network(width):
    """Squared ReLU, with fixed signs."""
    return gflow.nn.TwoLayer(
        2, width, gflow.nn.squared_relu, outer="fixed", key=jax.random.key(0)
    )


def planar(width):
    """The flow of a squared ReLU network in the plane, and its limit."""
    data = planar_points()
    model = planar_network(width)
    solution = flow(model, data)
    end = gflow.limit(solution, data, LOSS)
    signs = np.asarray(model.outer.value)
    last = np.asarray(end.direction.weight)
    share = np.sum(last**2, axis=1)
    alive = share > 1e-14  # θ̄_j = 0 for the others, as in the proposition
    last = np.where(alive[:, None], last / np.linalg.norm(last, axis=1)[:, None], 0.0)
    w = np.asarray(solution.models.weight)
    theta = w / np.linalg.norm(w, axis=2, keepdims=True)
    late = np.asarray(solution.observed["min_margin"])
    return {
        "data": data,
        "signs": signs,
        "solution": solution,
        "limit": end,
        "share": share,
        "groups": gathered(last, share, signs),
        "local": game(features(last, signs, data))[:2],
        "global": best_of_any_width(data),
        "theta": theta,
        "drift": np.linalg.norm(theta - last, axis=2).max(axis=1),
        "cover": np.array([cover(one, signs) for one in theta]),
        "gap": 1 - late / float(end.margin),
        "gap slope": slope(LOG_T, 1 - late / float(end.margin)),
    }


def gathered(directions, shares, signs):
    """(sign, direction, share, number of neurons) where neurons have met."""
    groups = []
    for j in np.argsort(-shares):
        if shares[j] <= 1e-14:
            continue
        for group in groups:
            near = np.linalg.norm(group[1] - directions[j]) < 1e-6
            if group[0] == signs[j] and near:
                group[2] += shares[j]
                group[3] += 1
                break
        else:
            groups.append([signs[j], directions[j], shares[j], 1])
    return sorted(groups, key=lambda group: -group[2])


def planar_table(one):
    x, _ = one["data"]
    end, evidence = one["limit"], one["limit"].evidence
    margin, (low, high) = float(end.margin), one["local"]
    best, bound = one["global"]
    epsilon = np.maximum(one["drift"], one["cover"])
    print(
        f"\nSquared ReLU, {len(one['signs'])} neurons, {len(x)} points in the plane "
        f"(JT Proposition 4.6)\n    {run_of(one['solution'])}\n"
        f"    {'log t':>9} {'‖θ - θ̄‖':>10} {'1 - margin/a':>13} {'max drift':>10} "
        f"{'cover':>7}"
    )
    log_t, distance = np.asarray(evidence.log_t), np.asarray(evidence.distance)
    for target in (1e0, 1e2, 1e4, 1e6, 1e8):
        i = int(np.argmin(np.abs(LOG_T - target)))
        near = distance[np.argmin(np.abs(log_t - LOG_T[i]))]
        print(
            f"    {LOG_T[i]:>9.3g} {near:>10.2e} {one['gap'][i]:>13.2e} "
            f"{one['drift'][i]:>10.2e} {one['cover'][i]:>7.3f}"
        )
    print(
        f"    slope of 1 - margin/a in log t: {one['gap slope']:.3f}; of ‖θ - θ̄‖ "
        f"{-float(evidence.rate):.3f}, predicted {-float(evidence.predicted_rate):.3f}"
        f"\n    limit: margin a = {margin:.12f}, {int(end.support.sum())} support "
        f"vectors, KKT residual {float(end.kkt_residual):.0e}. {reason_of(end)}\n"
        f"    {'sign':>8} {'arg θ̄_j':>9} {'share':>9} {'neurons':>8}"
    )
    for sign, direction, share, count in one["groups"]:
        angle = np.degrees(np.arctan2(direction[1], direction[0]))
        print(f"    {sign:>+8.0f} {angle:>8.2f}° {share:>9.6f} {count:>8}")
    print(
        f"    local: best margin for these directions {low:.12f}, a below it by "
        f"{(low - margin) / margin:.0e} (duality gap {(high - low) / margin:.0e})\n"
        f"    global: best of any width {best:.6f} to {bound:.6f}; a reaches "
        f"{margin / best:.2%} of it\n"
        f"    covering: the smallest ε is {epsilon.min():.3f}, so the guarantee a ≥ "
        f"{best:.3f} - 4ε = {best - 4 * epsilon.min():.2f} "
        + ("holds" if best > 4 * epsilon.min() else "says nothing here")
    )


def reason_of(end):
    """Why it is certified, or why it is not."""
    return CERTIFICATE[end.reason]


def planar_picture(one, path):
    blue, orange = PALETTE[0], PALETTE[1]
    (x, y), signs, theta = one["data"], one["signs"], one["theta"]
    late = LOG_T > 0
    with style(None):
        figure, axes = plt.subplots(2, 2, figsize=(9.6, 8.2), layout="constrained")
        side = np.linspace(-1.35, 1.35, 301)
        grid = np.stack(np.meshgrid(side, side), axis=-1)
        w = np.asarray(one["limit"].direction.weight)
        value = np.maximum(grid @ w.T, 0) ** 2 @ signs
        ax, top = (
            axes[0, 0],
            1.1 * np.abs(value[np.linalg.norm(grid, axis=2) < 1]).max(),
        )
        levels = np.linspace(-top, top, 15)
        colours = LinearSegmentedColormap.from_list("", [blue, "white", orange])
        ax.contourf(
            *grid.T.swapaxes(1, 2),
            value,
            levels=levels,
            cmap=colours,
            alpha=0.45,
            extend="both",
        )
        ax.contour(
            *grid.T.swapaxes(1, 2), value, levels=[0], colors="0.25", linewidths=1
        )
        around = np.linspace(0, 2 * np.pi, 200)
        ax.plot(np.cos(around), np.sin(around), color=GREY, lw=0.8)
        support = np.asarray(one["limit"].support)
        for sign, shade in ((1.0, orange), (-1.0, blue)):
            dots = {"s": 26, "color": shade, "edgecolor": "white", "lw": 0.6}
            ax.scatter(*x[y == sign].T, label=f"$y={sign:+.0f}$", **dots)
        ring = {"s": 80, "facecolor": "none", "edgecolor": "0.1", "lw": 1}
        ax.scatter(*x[support].T, label="support vectors", **ring)
        for sign, direction, share, _ in one["groups"]:
            shade = orange if sign > 0 else blue
            ax.annotate(
                "",
                direction,
                (0, 0),
                arrowprops={"arrowstyle": "-|>", "color": shade, "lw": 12 * share},
            )
            ax.text(*(1.17 * direction), f"{share:.3f}", ha="center", va="center")
        ax.legend(loc="lower left", fontsize=8, framealpha=0.8, edgecolor="none")
        ax.set(
            aspect="equal",
            xlabel="$x_1$",
            ylabel="$x_2$",
            title=r"The limit: $\Phi(x;\,\bar\theta)$, $\bar\theta_j$ and their shares",
        )
        ax = axes[0, 1]
        angle = np.degrees(np.unwrap(np.arctan2(theta[..., 1], theta[..., 0]), axis=0))
        angle -= 360 * np.round(angle[-1] / 360)
        for j in np.argsort(one["share"]):
            shade = orange if signs[j] > 0 else blue
            ax.plot(LOG_T[late], angle[late, j], color=shade, lw=0.7, alpha=0.5)
        for shade, name in ((orange, "+1"), (blue, "−1")):
            ax.plot([], [], color=shade, label=f"outer weight {name}")
        ax.set(
            xscale="log",
            ylabel=r"$\arg\,w_j$  (degrees)",
            title="Neurons gather",
        )
        ax = axes[1, 0]
        evidence = one["limit"].evidence
        ax.plot(
            evidence.log_t,
            evidence.distance,
            color=PALETTE[2],
            label=r"$\Vert\theta-\bar\theta\Vert$",
        )
        ax.plot(
            LOG_T[late],
            one["gap"][late],
            color=PALETTE[3],
            label=r"$1-\min_i p_i/(a\,\Vert W\Vert^2)$",
        )
        guide, rate = np.array([1e3, 1e8]), float(evidence.predicted_rate)
        predicted = rf"$\propto(\log t)^{{-{rate:.3f}}}$, predicted"
        for power, end, ls, label in (
            (-1.0, 3 * one["gap"][-1], "--", r"$\propto 1/\log t$"),
            (-rate, 2.2 * float(evidence.distance[-1]), ":", predicted),
        ):
            line = end * (guide / guide[-1]) ** power
            ax.plot(guide, line, ls, color="0.25", lw=1.2, label=label)
        ax.set(
            xscale="log",
            yscale="log",
            ylabel="distance to the limit",
            title="How fast",
        )
        ax = axes[1, 1]
        ax.plot(
            LOG_T,
            one["drift"],
            color=PALETTE[4],
            label=r"$\max_j\Vert\theta_j(t_0)-\bar\theta_j\Vert$",
        )
        ax.plot(
            LOG_T,
            one["cover"],
            color=PALETTE[5],
            label="covering radius of the neurons",
        )
        ax.axhline(
            one["global"][0] / 4,
            color="0.25",
            ls="--",
            lw=1,
            label="needed for a bound above zero",
        )
        ax.set(
            xscale="log",
            yscale="log",
            xlim=(1, LOG_T[-1]),
            xlabel=r"$\log t_0$",
            title=r"$\varepsilon$ of the global guarantee: the larger curve",
            ylabel="distance on the unit circle",
        )
        for ax in (axes[0, 1], axes[1, 0]):
            ax.set(xlabel=r"$\log t$", xlim=(1, LOG_T[-1]))
        for ax in (axes[0, 1], axes[1, 0], axes[1, 1]):
            ax.legend(frameon=False)
        figure.savefig(path, dpi=160)
        plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = pathlib.Path(__file__).parent / "output"
    parser.add_argument("--output", type=pathlib.Path, default=default)
    parser.add_argument("--quick", action="store_true", help="fewer neurons")
    arguments = parser.parse_args()
    output = arguments.output
    output.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    linear = deep_linear()
    deep_linear_table(linear)
    deep_linear_picture(linear, output / "deep_linear.png")
    plane = planar(40 if arguments.quick else 200)
    planar_table(plane)
    planar_picture(plane, output / "planar.png")
    print(f"\nPlots: {output / 'deep_linear.png'}, {output / 'planar.png'}")
    slopes = " and ".join(f"{one['slope']:.3f}" for one in linear.values())
    ends = [one["limit"] for one in linear.values()] + [plane["limit"]]
    print(
        f"\nShown: {len(ends)} flows to log t = {LOG_T[-1]:.0e}, "
        f"{sum(bool(end.certified) for end in ends)} of their limits certified; deep "
        f"linear networks come to the SVM with slopes {slopes} in log t; the squared "
        f"ReLU network's margin is the best for its directions, and "
        f"{float(plane['limit'].margin) / plane['global'][0]:.2%} of the best of any "
        f"width ({time.perf_counter() - start:.0f} s)."
    )


if __name__ == "__main__":
    main()
