"""What it costs to reach log t = 1e2 ... 1e8.

    python benchmarks/late_phase.py [--quick]

Steps, Newton iterations, full-data gradients (a Hessian-vector product counts two) and
wall time of the default solve, which goes over to `PrimalDual` at separation, next to
Tsit5 and to Kvaerno3 and Kvaerno5 with Diffrax's Newton iteration in logarithmic time.
Then 100 random instances, each against Tsit5 at rtol 1e-9. Float64; rtol 1e-6; times
are second calls.
"""

import argparse
import time

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from _machine import print_machine

import gflow


RTOL = 1e-6
# An ordinary solver that takes more than this is stopped, and the table says where.
MOST_STEPS = {"Tsit5": 100_000, "Kvaerno3": 1_000, "Kvaerno5": 1_000}
# The late phase is looked at from log t = 300 on.
SHORT = 301.0
ALL = (SHORT, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8)
LARGE = (SHORT, 1e4, 1e8)


class SquaredReLU(eqx.Module):
    """Σ_j ± max(⟨w_j, x⟩, 0)², of degree 2."""

    w: jax.Array

    def __call__(self, x):
        signs = jnp.tile(jnp.array([1.0, -1.0]), self.w.shape[0] // 2)
        return jnp.sum(signs * jnp.maximum(self.w @ x, 0) ** 2)


class Cubic(eqx.Module):
    """a · W₂ (W₁ x)³: smooth, three layers, of degree 5."""

    first: jax.Array
    second: jax.Array
    outer: jax.Array

    def __call__(self, x):
        return self.outer @ (self.second @ (self.first @ x) ** 3)


def random_points(seed, n, d):
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(n, d))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    y = np.sign(draw.normal(size=n))
    return draw, (jnp.asarray(x), jnp.asarray(y))


def squared_relu(seed, n, d, m):
    draw, data = random_points(seed, n, d)
    return SquaredReLU(jnp.asarray(0.5 * draw.normal(size=(m, d)))), data


def cubic():
    draw, (x, _) = random_points(0, 40, 6)
    y = jnp.sign(x @ draw.normal(size=6))
    shapes = (12, 6), (8, 12), (8,)
    return Cubic(*(jnp.asarray(0.7 * draw.normal(size=s)) for s in shapes)), (x, y)


def iris(depth):
    data = gflow.data.two_classes(*gflow.data.iris(), 0, 1)
    x = gflow.data.standardise(data.x)
    model = gflow.nn.DeepLinear(
        [x.shape[1]] + [8] * (depth - 1) + ["scalar"], key=jax.random.key(depth)
    )
    return model, (jnp.asarray(x), jnp.asarray(data.y, float))


def digits(classes, n, width):
    x, y = gflow.data.digits()
    x = x.reshape(len(x), -1)
    keep = np.flatnonzero(y < classes)[:n]
    x, y = x[keep] / np.linalg.norm(x[keep], axis=1, keepdims=True), y[keep]
    size = "scalar" if classes == 2 else classes
    model = gflow.nn.MLP(
        64, width, 2, size, gflow.nn.squared_relu, key=jax.random.key(0)
    )
    y = jnp.asarray(2.0 * y - 1.0) if classes == 2 else jnp.asarray(y)
    return model, (jnp.asarray(x), y)


def problems(quick):
    exponential, logistic = gflow.losses.Exponential(), gflow.losses.Logistic()
    yield "squared ReLU, n 20, d 5, m 20", *squared_relu(0, 20, 5, 20), exponential
    if quick:
        return
    yield "squared ReLU, n 200, d 20, m 500", *squared_relu(0, 200, 20, 500), logistic
    yield "deep linear, 3 layers, iris", *iris(3), exponential
    yield "deep linear, 5 layers, iris", *iris(5), exponential
    yield "cubic, 3 layers, degree 5", *cubic(), exponential
    yield "digits 0/1, logistic, n 200", *digits(2, 200, 16), logistic
    yield "digits, 10 classes, n 100", *digits(10, 100, 24), gflow.losses.CrossEntropy()


def size(model):
    return sum(a.size for a in jtu.tree_leaves(eqx.filter(model, eqx.is_array)))


def solver_of(model, data, loss, **options):
    """A function of log t: the solution and its time, compiled beforehand."""

    def solve(log_t):
        sol = gflow.integrate(
            model,
            data,
            loss,
            (0.0, gflow.exp(log_t)),
            rtol=RTOL,
            throw=False,
            save_at=gflow.exp(jnp.array([log_t])),
            **options,
        )
        return jax.block_until_ready(sol)

    def timed(log_t):
        start = time.perf_counter()
        sol = solve(log_t)
        return sol, time.perf_counter() - start

    solve(50.0 if options else SHORT)
    return timed


def row(name, log_t, sol, seconds, steps, newton=None):
    reached = (
        ""
        if float(sol.log_t_final) > 0.999 * log_t
        else (f"  stopped at {float(sol.log_t_final):.3g}")
    )
    gradients = int(sol.stats["num_gradients"])
    print(
        f"  {name:<26} {log_t:>7.1e} {steps:>8} "
        f"{'' if newton is None else newton:>8} "
        f"{gradients if gradients >= 0 else '':>10} {seconds:>9.3f}{reached}",
        flush=True,
    )


def table(name, model, data, loss, quick):
    print(f"\n{name}: P = {size(model)}, {type(loss).__name__}")
    print(
        f"  {'':<26} {'log t':>7} {'steps':>8} {'Newton':>8} {'gradients':>10} {'s':>9}"
    )
    solve = solver_of(model, data, loss)
    for log_t in LARGE if size(model) > 5000 else ALL:
        sol, seconds = solve(log_t)
        early, late, rest = sol.parts
        if log_t == ALL[0]:
            print(
                f"  separation or 500 steps: log t = {float(early.log_t_final):.3g}, "
                f"{int(early.stats['num_steps'])} steps of Tsit5"
            )
        steps = int(late.stats["num_steps"])
        row("from there", log_t, sol, seconds, steps, int(late.stats["num_newton"]))
        if int(rest.stats["num_steps"]):
            print(f"    went back to Tsit5: {int(rest.stats['num_steps'])} steps")
    print(f"    largest |log-loss defect| {np.max(np.abs(sol.log_loss_defect)):.1e}")
    clock = gflow.clocks.LogTime()
    solvers = [diffrax.Tsit5()]
    if size(model) <= 500:
        solvers += [diffrax.Kvaerno3(), diffrax.Kvaerno5()]
    for solver in solvers:
        most = MOST_STEPS[type(solver).__name__]
        solve = solver_of(model, data, loss, solver=solver, clock=clock, max_steps=most)
        for log_t in (1e2,) if quick or size(model) > 5000 else (1e2, 1e3):
            sol, seconds = solve(log_t)
            label = f"{type(solver).__name__}, log time"
            row(label, log_t, sol, seconds, int(sol.stats["num_steps"]))
    if size(model) > 500:
        print("  Kvaerno3, Kvaerno5: not run, their linear algebra is dense in P")


def instances(count):
    """Random instances: failures, steps, and distance to Tsit5 at log t = 1e3."""
    steps, seconds, distance, margins, defects, failed = [], [], [], [], [], 0
    fine_distance = []
    loss = gflow.losses.Exponential()
    at = gflow.exp(jnp.array([1e3]))
    for seed in range(count):
        model, data = squared_relu(seed, 20, 5, 20)
        start = time.perf_counter()
        sol = gflow.integrate(
            model, data, loss, (0.0, gflow.exp(1e8)), rtol=RTOL, save_at=at, throw=False
        )
        jax.block_until_ready(sol)
        seconds.append(time.perf_counter() - start)
        ok = sol.result == gflow.RESULTS.successful
        failed += int(not ok or int(sol.parts[2].stats["num_steps"]) > 0)
        reference = gflow.integrate(
            model,
            data,
            loss,
            (0.0, gflow.exp(1e3)),
            rtol=1e-9,
            save_at=at,
            clock=gflow.clocks.LogTime(),
            throw=False,
        )
        fine = gflow.integrate(
            model,
            data,
            loss,
            (0.0, gflow.exp(1e3)),
            rtol=1e-8,
            save_at=at,
            throw=False,
        )
        a, b, c = (np.ravel(s.models.w[0]) for s in (sol, reference, fine))
        a2, b2, c2 = (np.linalg.norm(x) for x in (a, b, c))
        distance.append(np.linalg.norm(a / a2 - b / b2))
        fine_distance.append(np.linalg.norm(c / c2 - b / b2))
        margins.append(
            abs(
                float(sol.log_loss[0]) / a2**2 / float(reference.log_loss[0]) * b2**2
                - 1
            )
        )
        steps.append(int(sol.parts[1].stats["num_steps"]))
        defects.append(float(np.abs(sol.log_loss_defect[0])))
    print(f"\n{count} random instances (n 20, d 5, m 20, exponential) to log t = 1e8")
    print(f"  failed or gone back: {failed}")
    for name, values in (
        ("steps from separation", steps),
        ("seconds", seconds[1:]),
        ("direction, against Tsit5 at rtol 1e-9, log t = 1e3", distance),
        ("direction of a solve at rtol 1e-8, the same", fine_distance),
        ("smoothed margin, the same, relative", margins),
        ("log-loss defect", defects),
    ):
        low, mid, high = np.min(values), np.median(values), np.max(values)
        print(f"  {name}: least {low:.3g}, median {mid:.3g}, largest {high:.3g}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one problem, 5 instances")
    arguments = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    print_machine()
    for name, model, data, loss in problems(arguments.quick):
        table(name, model, data, loss, arguments.quick)
    instances(5 if arguments.quick else 100)


if __name__ == "__main__":
    main()
