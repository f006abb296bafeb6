"""Time per gradient evaluation inside `integrate` over the bare jitted gradient.

    python benchmarks/overhead.py

Two-layer tanh networks with P = 1e3, 1e5 and 1e6 parameters on n random examples,
square loss, Tsit5 in physical time. Both sides evaluate the same full-data gradient;
the ratio of their times per gradient is the price of the flow: log domain, Runge-Kutta
combinations, error norms, energy balance, dense output. Compiled first, the median of
several interleaved repeats.

Then gflow's own solvers, and what memory a compiled solve needs beside its arguments
and results, in units of the parameters.
"""

import statistics
import time
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from _machine import print_machine

import gflow


TSIT5 = diffrax.Tsit5()
SOLVERS = {
    "Tsit5": TSIT5,
    "RKC2": gflow.solvers.RKC2(),
    "RKC3": gflow.solvers.RKC3(),
    "BDF": gflow.solvers.BDF(),
    "default": None,
}


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


def integrated(model, x, y, t1, solver, **options):
    return gflow.integrate(
        model,
        (x, y),
        gflow.losses.Square(),
        (0.0, t1),
        solver=solver,
        clock=gflow.clocks.Physical(),
        rtol=1e-6,
        **options,
    )


def flow(model, x, y, t1, solver=TSIT5, **options):
    """One solve; time per gradient that it reports."""

    def solve():
        return jax.block_until_ready(integrated(model, x, y, t1, solver, **options))

    solution = solve()

    def run():
        start = time.perf_counter()
        solve()
        elapsed = time.perf_counter() - start
        return elapsed / int(solution.stats["num_gradients"])

    return run, int(solution.stats["num_gradients"])


def medians(runs, repeats=5):
    """Microseconds of each, interleaved."""
    times = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            times[name].append(run())
    return {name: 1e6 * statistics.median(values) for name, values in times.items()}


def temporaries(model, x, y, t1, solver):
    """Of a solve that keeps its ends, in parameters; and of one gradient."""
    params, static = eqx.partition(model, eqx.is_inexact_array)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))

    def solve(params):
        given = eqx.combine(params, static)
        ends = jnp.array([0.0, t1])
        return integrated(given, x, y, t1, solver, save_at=ends, throw=False).final

    def gradient(params):
        return jax.grad(
            lambda p: jnp.sum((jax.vmap(eqx.combine(p, static))(x) - y) ** 2)
        )(params)

    def of(function):
        compiled: Any = jax.jit(function).lower(params).compile()
        number = compiled.memory_analysis().temp_size_in_bytes
        return number / (size * x.dtype.itemsize)

    return of(solve), of(gradient)


def others():
    """gflow's own solvers, and the one it chooses, next to Tsit5."""
    print("\nSolvers by themselves, 2 saved; temporaries in parameters\n")
    header = (
        f"{'P':>9} {'n':>5} {'solver':>8} {'gradients':>9} | {'Euler loop':>10} "
        f"{'flow':>9}  (µs per gradient) | {'/Euler':>6} | {'temporaries':>11} "
        f"{'of a gradient':>13}"
    )
    print(header + "\n" + "-" * len(header))
    for width, d, n, t1 in ((48, 20, 100, 4.0), (980, 101, 200, 0.05)):
        model, x, y = problem(width, d, n)
        size = sum(leaf.size for leaf in jax.tree.leaves(model))
        ends = jnp.array([0.0, t1])
        for name, solver in SOLVERS.items():
            run, count = flow(model, x, y, t1, solver, save_at=ends)
            us = medians({"euler": euler(model, x, y, max(count, 200)), "flow": run})
            whole, one = temporaries(model, x, y, t1, solver)
            print(
                f"{size:>9} {n:>5} {name:>8} {count:>9} | {us['euler']:>10.1f} "
                f"{us['flow']:>9.1f}  {'':>17} | {us['flow'] / us['euler']:>6.2f} | "
                f"{whole:>11.1f} {one:>13.1f}",
                flush=True,
            )


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
        (4950, 201, 1000, 0.001),
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
        us = medians(runs)
        print(
            f"{size:>9} {n:>5} {count:>9} | {us['bare']:>9.1f} {us['euler']:>10.1f} "
            f"{us['lean']:>13.1f} {us['default']:>9.1f}  {'':>17} | "
            f"{us['lean'] / us['bare']:>6.2f} {us['lean'] / us['euler']:>6.2f} "
            f"{us['default'] / us['bare']:>12.2f}",
            flush=True,
        )
        jax.clear_caches()
    others()


if __name__ == "__main__":
    main()
