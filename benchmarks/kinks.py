"""What it costs to follow the kinks of ReLU networks.

    python benchmarks/kinks.py [--quick] [--parts NAME ...]

Accepted steps, full-data gradients, wall time and energy defect of the inclusion; of
Tsit5 on what automatic differentiation returns, which chatters; and of the same network
with tanh. First small networks, followed from event to event; then networks of the size
that people train, by steps across all kinks at once; an ensemble under vmap, random
networks at rtol 1e-8, networks that are deeper, and the late phase. Float64; physical
time but for the last; wall times are second calls. A step may go across several events:
gradients are what that costs.
"""

import argparse
import time
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from _machine import print_machine
from sklearn.datasets import load_digits

import gflow
from gflow.losses import CrossEntropy, Exponential, Logistic, Square


MOST_STEPS = 200_000  # of automatic differentiation
MOST_LATE = 500  # to log t = 10⁶; not of use where an example stays dead
MOST_EXPLICIT = 10_000  # of Tsit5 next to the late phase


class TwoLayer(eqx.Module):
    """x ↦ Σ_j a_j φ(⟨w_j, x⟩)."""

    w: jax.Array
    a: jax.Array
    activation: object = eqx.field(static=True)

    def __call__(self, x):
        return self.a @ self.activation(self.w @ x)


class Deep(eqx.Module):
    """Three layers or more, without biases."""

    layers: list
    activation: object = eqx.field(static=True)

    def __call__(self, x):
        for w in self.layers[:-1]:
            x = self.activation(w @ x)
        return self.layers[-1] @ x


def arrays(seed, n, d, m):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d))
    x *= 1.5 / np.linalg.norm(x, axis=1, keepdims=True)
    y = rng.choice([-1.0, 1.0], size=n)
    w = rng.normal(size=(m, d))
    return w, rng.choice([-1.0, 1.0], size=m) * (0.5 + rng.random(m)), x, y


def network(seed, n, d, m, activation):
    w, a, x, y = arrays(seed, n, d, m)
    return TwoLayer(jnp.asarray(w), jnp.asarray(a), activation), (x, y)


def deep(seed, n, sizes, activation):
    rng = np.random.default_rng(seed)
    shapes = [(b, a) for a, b in zip(sizes, sizes[1:], strict=False)]
    layers = [1.2 * rng.normal(size=s) / np.sqrt(s[1]) for s in shapes]
    layers.append(rng.normal(size=sizes[-1]) / np.sqrt(sizes[-1]))
    x, y = rng.normal(size=(n, sizes[0])), rng.choice([-1.0, 1.0], size=n)
    return Deep([jnp.asarray(w) for w in layers], activation), (x, y)


def solve(model, data, loss, end, **options):
    def once():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sol = gflow.integrate(
                model,
                data,
                loss,
                (0.0, end),
                clock=gflow.clocks.Physical(),
                save_at=[end],
                throw=False,
                **options,
            )
        return jax.block_until_ready(sol)

    once()
    start = time.perf_counter()
    sol = once()
    return sol, time.perf_counter() - start


def row(name, sol, seconds):
    events = "" if sol.inclusion is None else int(sol.inclusion.num_events)
    defect = np.max(np.abs(sol.energy_defect))
    print(
        f"{name:44} {int(sol.stats['num_accepted_steps']):8} "
        f"{int(sol.stats['num_gradients']):9}"
        f" {events!s:>7} {1e3 * seconds:10.1f} {defect:9.1e}",
        flush=True,
    )


HEAD = f"{'':44} {'steps':>8} {'gradients':>9} {'events':>7} {'ms':>10} {'defect':>9}"


def next_to_smooth(problems):
    print("\nNext to automatic differentiation and to tanh\n\n" + HEAD)
    ratios = []
    for n, d, m, loss, end in problems:
        name = f"{n} points, d {d}, m {m}, {type(loss).__name__}, T {end:g}"
        print(name)
        model, data = network(0, n, d, m, jax.nn.relu)
        steps = {}
        for rtol in (1e-4, 1e-6, 1e-8):
            sol, seconds = solve(model, data, loss, end, rtol=rtol)
            row(f"  relu, rtol {rtol:g}", sol, seconds)
            smooth, data = network(0, n, d, m, jnp.tanh)
            plain, took = solve(smooth, data, loss, end, rtol=rtol)
            row(f"  tanh, rtol {rtol:g}", plain, took)
            steps[rtol] = int(sol.stats["num_steps"]) / int(plain.stats["num_steps"])
        sol, seconds = solve(
            model, data, loss, end, rtol=1e-5, kinks="autodiff", max_steps=MOST_STEPS
        )
        row("  relu, autodiff, rtol 1e-5", sol, seconds)
        ratios.append(steps[1e-6])
        jax.clear_caches()
    print("\nSteps of relu over those of tanh at rtol 1e-6:", *np.round(ratios, 2))


def digits(activation):
    """Two hundred 3s and 5s, a hundred neurons: 20,000 kinks."""
    x, y = load_digits(return_X_y=True)
    some = (y == 3) | (y == 5)
    x, y = x[some][:200], np.where(y[some][:200] == 3, -1.0, 1.0)
    x = (x - x.mean()) / x.std() / 8
    keys = jax.random.split(jax.random.key(0))
    w = jax.random.normal(keys[0], (100, 64)) / 8
    a = jax.random.normal(keys[1], (1, 100))[0] / 10
    return TwoLayer(w, a, activation), (jnp.asarray(x), jnp.asarray(y))


def handwritten(activation):
    """A thousand digits of MNIST and 784-100-100-10: 200,000 kinks, two in series."""
    x, labels = gflow.data.mnist5k(flatten=True)
    some = np.random.default_rng(0).permutation(len(labels))[:1000]
    x, labels = np.asarray(x)[some], np.asarray(labels)[some]
    x = (x - x.mean()) / x.std() / 28
    keys = jax.random.split(jax.random.key(0), 3)
    layers = [
        jax.random.normal(keys[0], (100, 784)),
        jax.random.normal(keys[1], (100, 100)) * np.sqrt(2 / 100),
        jax.random.normal(keys[2], (10, 100)) * np.sqrt(2 / 100),
    ]
    return Deep(layers, activation), (jnp.asarray(x), jnp.asarray(labels))


def at_size(quick):
    two, three = ("n 200, m 100", digits), ("n 1,000, 784-100-100-10", handwritten)
    logistic, square = Logistic(reduction="mean"), Square(reduction="mean")
    cross = CrossEntropy(reduction="mean")
    problems = [
        (two, logistic, 5.0, 1e-5),
        (two, logistic, 500.0, 1e-6),
        (two, logistic, 20_000.0, 1e-4),
        (two, square, 1000.0, 1e-5),
        (three, cross, 20.0, 1e-4),
        (three, cross, 200.0, 1e-4),
    ]
    print("\nReal digits\n\n" + HEAD)
    for (name, make), loss, end, rtol in problems[: 2 if quick else None]:
        print(f"{name}, {type(loss).__name__}, T {end:g}, rtol {rtol:g}")
        sol, seconds = solve(*make(jax.nn.relu), loss, end, rtol=rtol)
        row("  relu", sol, seconds)
        path = sol.inclusion
        print(
            f"    log loss {float(sol.log_loss[-1]):.6f}, {int(path.num_crossings)} "
            f"crossings, pinned {int(path.num_pinned)} times, at once at most "
            f"{int(np.max(path.num_pins))}"
        )
        options = {"kinks": "autodiff", "max_steps": MOST_STEPS}
        plain = solve(*make(jax.nn.relu), loss, end, rtol=rtol, **options)
        row("  relu, autodiff", *plain)
        row("  tanh", *solve(*make(jnp.tanh), loss, end, rtol=rtol))
        jax.clear_caches()


def heavy(number):
    print("\nHeavy sliding: 40 points in d 64, Logistic, T 5, rtol 1e-6\n\n" + HEAD)
    for seed in range(number):
        m = 7 + seed % 6
        rng = np.random.default_rng(seed)
        x = jnp.asarray(rng.normal(size=(40, 64)) / 8)
        y = jnp.asarray(rng.choice([-1.0, 1.0], size=40))
        w, a = rng.normal(size=(m, 64)) / 8, rng.normal(size=m) / np.sqrt(m)
        model = TwoLayer(jnp.asarray(w), jnp.asarray(a), jax.nn.relu)
        sol, seconds = solve(model, (x, y), Logistic(), 5.0, rtol=1e-6)
        pins = int(np.max(sol.inclusion.num_pins))
        row(f"m {m}, {pins} kinks slid along at once", sol, seconds)
        if seed == 0:
            options = {"kinks": "autodiff", "max_steps": MOST_STEPS}
            row(
                "  autodiff",
                *solve(model, (x, y), Logistic(), 5.0, rtol=1e-6, **options),
            )
            smooth = TwoLayer(model.w, model.a, jnp.tanh)
            row("  tanh", *solve(smooth, (x, y), Logistic(), 5.0, rtol=1e-6))


def two_points(number):
    print("\nTwo points, 60 neurons with bias, rtol 1e-6\n\n" + HEAD)
    x = jnp.asarray([[-0.5, 1.0], [2.0, 1.0]])
    y = jnp.asarray([-1.0, 1.0])
    loss = Square(reduction="mean")
    for scale, end in ((1e-6, 30.0), (1e-12, 60.0), (1e-40, 190.0)):
        for seed in range(number):
            rng = np.random.default_rng(seed)
            v, signs = rng.normal(size=(60, 2)), rng.choice([-1.0, 1.0], size=60)
            outer = scale * np.linalg.norm(v, axis=1) * signs
            model = TwoLayer(jnp.asarray(scale * v), jnp.asarray(outer), jax.nn.relu)
            sol, seconds = solve(model, (x, y), loss, end, rtol=1e-6)
            square = float(jnp.sum(sol.final.w**2) + jnp.sum(sol.final.a**2))
            row(f"from {scale:g}, seed {seed}, ‖θ‖² {square:.5f}", sol, seconds)


def lanes(seeds, n, d, m, loss, end, rtol, activation):
    def one(w, a, x, y):
        return gflow.integrate(
            TwoLayer(w, a, activation),
            (x, y),
            loss,
            (0.0, end),
            clock=gflow.clocks.Physical(),
            save_at=[end],
            rtol=rtol,
            throw=False,
        )

    parts = [arrays(seed, n, d, m) for seed in seeds]
    parts = [jnp.asarray(np.stack(p)) for p in zip(*parts, strict=True)]
    run = eqx.filter_jit(jax.vmap(one))
    jax.block_until_ready(run(*parts))
    start = time.perf_counter()
    sol = jax.block_until_ready(run(*parts))
    return sol, time.perf_counter() - start


def ensemble(number):
    print(f"\n{number} initialisations under vmap (12 points, d 3, m 5, rtol 1e-6)\n")
    steps = {}
    for name, activation in (("relu", jax.nn.relu), ("tanh", jnp.tanh)):
        sol, seconds = lanes(range(number), 12, 3, 5, Logistic(), 2.0, 1e-6, activation)
        steps[name] = np.asarray(sol.stats["num_steps"])
        print(
            f"  {name}: {1e3 * seconds / number:6.2f} ms each, steps "
            f"{np.median(steps[name]):g} (largest {np.max(steps[name])}), defect at "
            f"most {np.max(np.abs(sol.energy_defect)):.1e}"
        )
    ratio = steps["relu"] / steps["tanh"]
    print(
        f"  steps over those of tanh: median {np.median(ratio):.2f}, 90 % below "
        f"{np.quantile(ratio, 0.9):.2f}, largest {np.max(ratio):.2f}",
        flush=True,
    )


def random_networks(each):
    print("\nRandom networks, both layers trained, rtol 1e-8\n")
    print(
        f"{'':40} {'runs':>5} {'failed':>6} {'unsure':>6} {'ambiguous':>9} "
        f"{'largest defect':>14} {'steps':>12} {'most pins':>9}"
    )
    total, worst = 0, 0.0
    for n, d, m, loss, end in (
        (5, 2, 3, Square(), 3.0),
        (12, 3, 5, Logistic(), 2.0),
        (12, 3, 5, Square(), 1.0),
        (20, 4, 6, Exponential(), 1.0),
        (20, 2, 12, Logistic(), 1.0),
        (30, 5, 8, Square(), 0.5),
        (40, 2, 10, Square(), 0.5),
        (40, 5, 20, Logistic(), 1.0),
    ):
        sol, _ = lanes(range(each), n, d, m, loss, end, 1e-8, jax.nn.relu)
        bad = np.asarray(sol.result != gflow.RESULTS.successful)
        defect = np.max(np.abs(np.asarray(sol.energy_defect)), axis=1)
        steps = np.asarray(sol.stats["num_steps"])
        path = sol.inclusion
        total, worst = total + each, max(worst, np.max(defect))
        print(
            f"n {n:2}, d {d}, m {m:2}, {type(loss).__name__:12} T {end:3g}"
            f"{'':8} {each:5} {bad.sum():6} "
            f"{np.sum(np.asarray(path.num_unsure) > 0):6} "
            f"{np.sum(np.asarray(path.num_ambiguous) > 0):9} {np.max(defect):14.1e} "
            f"{np.median(steps):5g}/{np.max(steps):5} {np.max(path.num_pins):9}",
            flush=True,
        )
    print(f"\n{total} networks, largest energy defect {worst:.1e}")


def deeper():
    print("\nDeeper, with pooling, and with a kink in the loss; rtol 1e-8\n\n" + HEAD)

    def leaky(z):
        return jax.nn.leaky_relu(z, 0.2)

    def distance(f, y):
        return jnp.abs(f - y)

    key = jax.random.key(0)
    images = jax.random.normal(key, (6, 1, 6, 6))
    pooled = eqx.nn.Sequential(
        [
            eqx.nn.Conv2d(1, 2, 3, key=key),
            eqx.nn.Lambda(jax.nn.relu),
            eqx.nn.MaxPool2d(2, 2),
            eqx.nn.Lambda(jnp.ravel),
            eqx.nn.Linear(8, "scalar", key=key),
        ]
    )
    for name, (model, data), loss, end in (
        ("3 layers, relu", deep(3, 10, (3, 6, 5), jax.nn.relu), Square(), 2.0),
        ("4 layers, leaky relu", deep(3, 10, (3, 5, 5, 4), leaky), Logistic(), 3.0),
        ("2 layers, |z|", deep(3, 10, (3, 6), jnp.abs), Square(), 2.0),
        ("2 layers, relu, |f - y|", deep(3, 10, (3, 6), jax.nn.relu), distance, 2.0),
        (
            "convolution, relu, max-pool",
            (pooled, (images, jnp.sign(images[:, 0, 0, 0]))),
            Logistic(),
            10.0,
        ),
    ):
        sol, seconds = solve(model, data, loss, end, rtol=1e-8)
        row(name, sol, seconds)
        path = sol.inclusion
        print(
            f"  pins at most {int(np.max(path.num_pins))}, events with pins in series "
            f"{int(path.num_in_series)}, unsure {int(path.num_unsure)}, ambiguous "
            f"{int(path.num_ambiguous)}"
        )


LATE = {
    "2 layers, n 20, d 5, m 20": lambda s: deep(s, 20, (5, 20), jax.nn.relu),
    "3 layers, n 12, d 4, m 8": lambda s: deep(s, 12, (4, 8, 8), jax.nn.relu),
}


def late(name, number):
    """To log t = 10⁶, next to Tsit5 where it comes to log t = 30."""
    make = LATE[name]
    print("\nThe late phase: separable data to log t = 1e6, rtol 1e-6\n")
    print(
        f"{'':24} {'steps':>6} {'Newton':>7} {'gradients':>9} {'events':>6} {'pins':>5}"
        f" {'seconds':>8} {'log-loss defect':>15} {'direction, log t = 30':>22}"
    )
    times = np.array([30.0, 1e3, 1e6])

    @eqx.filter_jit
    def run(model, data):
        return gflow.integrate(
            model,
            data,
            Logistic(),
            (0.0, gflow.exp(times[-1])),
            save_at=gflow.exp(times),
            max_steps=MOST_LATE,
            throw=False,
        )

    @eqx.filter_jit
    def explicit(model, data):
        return gflow.integrate(
            model,
            data,
            Logistic(),
            (0.0, gflow.exp(times[0])),
            save_at=gflow.exp(times[:1]),
            clock=gflow.clocks.LogTime(),
            rtol=1e-8,
            max_steps=MOST_EXPLICIT,
            throw=False,
        )

    def direction(sol):
        leaves = [np.asarray(leaf)[0].ravel() for leaf in jax.tree.leaves(sol.models)]
        w = np.concatenate(leaves)
        return w / np.linalg.norm(w)

    for seed in range(number):
        model, data = make(seed)
        if seed == 0:
            jax.block_until_ready(run(model, data))
        start = time.perf_counter()
        sol = jax.block_until_ready(run(model, data))
        seconds = time.perf_counter() - start
        slow = explicit(model, data)
        apart = np.nan
        if slow.result == gflow.RESULTS.successful:
            apart = np.linalg.norm(direction(sol) - direction(slow))
        pins = np.sum(np.asarray(sol.inclusion.pins)[-1] >= 0)
        print(
            f"{name if seed == 0 else '':24} {int(sol.stats['num_steps']):6} "
            f"{int(sol.stats['num_newton']):7} {int(sol.stats['num_gradients']):9} "
            f"{int(sol.inclusion.num_events):6} {pins:5} {seconds:8.2f} "
            f"{np.max(np.abs(sol.log_loss_defect)):15.1e} {apart:22.1e}"
            + ("" if sol.result == gflow.RESULTS.successful else "  stopped"),
            flush=True,
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = ("smooth", "size", "heavy", "two-points", "ensemble", "random", "deeper")
    names = (*names, "late", "late-3")
    parser.add_argument("--quick", action="store_true", help="less of everything")
    parser.add_argument("--parts", nargs="+", choices=names, default=names)
    given = parser.parse_args()
    quick = given.quick
    jax.config.update("jax_enable_x64", True)
    print_machine()
    problems = [
        (12, 3, 5, Logistic(), 2.0),
        (12, 3, 5, Square(), 1.0),
        (20, 4, 6, Logistic(), 2.0),
        (40, 5, 20, Logistic(), 1.0),
    ]
    two, three = LATE
    parts = {
        "smooth": lambda: next_to_smooth(problems[:1] if quick else problems),
        "size": lambda: at_size(quick),
        "heavy": lambda: heavy(2 if quick else 20),
        "two-points": lambda: two_points(1 if quick else 10),
        "ensemble": lambda: ensemble(8 if quick else 128),
        "random": lambda: random_networks(4 if quick else 25),
        "deeper": deeper,
        "late": lambda: late(two, 1 if quick else 6),
        "late-3": lambda: late(three, 1 if quick else 6),
    }
    for name in given.parts:
        parts[name]()
        jax.clear_caches()  # compiled programs fill the process's memory maps


if __name__ == "__main__":
    main()
