"""Time per gradient evaluation inside `integrate` over the bare jitted gradient.

    python benchmarks/overhead.py

Two-layer tanh networks with P = 1e3, 1e5 and 1e6 parameters on n random examples,
square loss, Tsit5 in physical time. Both sides evaluate the same full-data gradient;
the ratio of their times per gradient is the price of the flow: log domain, Runge-Kutta
combinations, error norms, energy balance, dense output. Compiled first, the median of
several interleaved repeats.
"""

import statistics
import time

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from _machine import print_machine

import gflow


class Net(eqx.Module):
    weight: jax.Array
    outer: jax.Array

    def __call__(self, x):
        return self.outer @ jnp.tanh(self.weight @ x)


def problem(width, d, n):
    keys = jax.random.split(jax.random.key(0), 4)
    model = Net(
        jax.random.normal(keys[0], (width, d)) / d**0.5,
        jax.random.normal(keys[1], (width,)) / width**0.5,
    )
    x = jax.random.normal(keys[2], (n, d))
    y = jnp.sign(jax.random.normal(keys[3], (n,)))
    return model, x, y


def bare(model, x, y, count):
    """`count` jitted value_and_grad evaluations, called one by one from Python."""
    gradient = eqx.filter_jit(
        eqx.filter_value_and_grad(lambda m: 0.5 * jnp.sum((jax.vmap(m)(x) - y) ** 2))
    )
    jax.block_until_ready(gradient(model))

    def run():
        start = time.perf_counter()
        for _ in range(count):
            out = gradient(model)
        jax.block_until_ready(out)
        return (time.perf_counter() - start) / count

    return run


def euler(model, x, y, count):
    """`count` gradient steps in one compiled loop: no call overhead at all."""

    @eqx.filter_jit
    def loop(model, step):
        def body(_, m):
            g = eqx.filter_grad(lambda m: 0.5 * jnp.sum((jax.vmap(m)(x) - y) ** 2))(m)
            return jax.tree.map(lambda w, d: w - step * d, m, g)

        return jax.lax.fori_loop(0, count, body, model)

    step = jnp.asarray(1e-6, x.dtype)
    jax.block_until_ready(loop(model, step))

    def run():
        start = time.perf_counter()
        jax.block_until_ready(loop(model, step))
        return (time.perf_counter() - start) / count

    return run


def flow(model, x, y, t1, **options):
    """One solve; time per gradient that it reports."""

    def solve():
        sol = gflow.integrate(
            model,
            (x, y),
            gflow.losses.Square(),
            (0.0, t1),
            solver=diffrax.Tsit5(),
            clock=gflow.clocks.Physical(),
            rtol=1e-6,
            **options,
        )
        return jax.block_until_ready(sol)

    solution = solve()

    def run():
        start = time.perf_counter()
        solve()
        elapsed = time.perf_counter() - start
        return elapsed / int(solution.stats["num_gradients"])

    return run, int(solution.stats["num_gradients"])


def main():
    jax.config.update("jax_enable_x64", True)
    print_machine()
    print("float64, median of 5 interleaved repeats\n")
    header = (
        f"{'P':>9} {'n':>5} {'gradients':>9} | {'bare':>9} {'Euler loop':>10} "
        f"{'flow, 2 saved':>13} {'default':>9}  (µs per gradient) | "
        f"{'/bare':>6} {'/Euler':>6} {'default/bare':>12}"
    )
    print(header)
    print("-" * len(header))
    for width, d, n, t1 in (
        (48, 20, 100, 4.0),
        (980, 101, 200, 0.05),
        (980, 101, 1000, 0.01),
        (4950, 201, 100, 0.03),
    ):
        model, x, y = problem(width, d, n)
        size = sum(leaf.size for leaf in jax.tree.leaves(model))
        ends = jnp.array([0.0, t1])
        lean, count = flow(model, x, y, t1, save_at=ends)
        default, _ = flow(model, x, y, t1)
        runs = {
            "bare": bare(model, x, y, count),
            "euler": euler(model, x, y, count),
            "lean": lean,
            "default": default,
        }
        times = {name: [] for name in runs}
        for _ in range(5):
            for name, run in runs.items():
                times[name].append(run())
        us = {name: 1e6 * statistics.median(values) for name, values in times.items()}
        print(
            f"{size:>9} {n:>5} {count:>9} | {us['bare']:>9.1f} {us['euler']:>10.1f} "
            f"{us['lean']:>13.1f} {us['default']:>9.1f}  {'':>17} | "
            f"{us['lean'] / us['bare']:>6.2f} {us['lean'] / us['euler']:>6.2f} "
            f"{us['default'] / us['bare']:>12.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
