"""Solvers in JAX: through `gflow.integrate`, and implicit ones of Diffrax alone."""

import time
import warnings

import diffrax
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
from _outside import DENSE, MOST_DENSE, TOO_MANY, Run, floor
from _problems import Flow

import gflow


def integrated(solver):
    """A solver through `gflow.integrate`, which counts the gradients itself.

    The weights at the given times are what `save_at` returns. The first solve of a flow
    compiles and is repeated; tolerances are traced, so later ones need not be.
    """
    compiled = set()

    def run(flow: Flow, rtol: float, most: int) -> Run:
        def solve(rtol):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the energy balance
                solution = gflow.integrate(
                    flow.model,
                    flow.data,
                    flow.loss,
                    (0.0, flow.end),
                    clock=gflow.clocks.Physical(),
                    solver=solver,
                    rtol=rtol,
                    save_at=jnp.asarray(flow.times),
                    max_steps=most // fewest_gradients(solver),
                    kinks="autodiff",
                    throw=False,
                )
            return jax.block_until_ready(solution)

        if flow.name not in compiled:
            solve(1e-2)
            compiled.add(flow.name)
        start = time.perf_counter()
        solution = solve(rtol)
        seconds = time.perf_counter() - start
        gradients = int(solution.stats["num_gradients"])
        if solution.result != gflow.RESULTS.successful:
            note = gflow.RESULTS[solution.result]
            tired = gradients > most / 2
            return Run(gradients, seconds, None, TOO_MANY if tired else note)
        path = jax.vmap(lambda m: jax.flatten_util.ravel_pytree(m)[0])(solution.models)
        return Run(gradients, seconds, np.asarray(path))

    return run


def fewest_gradients(solver) -> int:
    """That a step of it costs: two or more, of stabilised methods."""
    if isinstance(solver, diffrax.AbstractERK):
        return solver.tableau.num_stages - (1 if solver.tableau.fsal else 0)
    return 2


def explicit(solver):
    """As `integrated`, but where stability alone costs too much it does not begin."""
    whole = integrated(solver)

    def run(flow: Flow, rtol: float, most: int) -> Run:
        about = stability_gradients(flow)
        if about > most:
            return Run(0, 0.0, None, f"left out: stability asks for about {about:.0e}")
        return whole(flow, rtol, most)

    return run


def stability_gradients(flow: Flow) -> float:
    """Roughly, of an explicit method: 2.75 per unit of time × sharpness at the start.

    Measured: 2.7 to 3.0 of Dopri8, 1.8 of Tsit5.
    """
    velocity, start = flow.velocity(), flow.start
    product = jax.jit(lambda v: jax.jvp(velocity, (start,), (v,))[1])
    v = np.random.default_rng(0).normal(size=flow.size)
    for _ in range(20):
        v = np.asarray(product(v / np.linalg.norm(v)))
    return 2.75 * float(np.linalg.norm(v)) * flow.end


def implicit(solver):
    """One of Diffrax's implicit solvers, by `diffrax.diffeqsolve`.

    Its Jacobians are dense and exact, P Jacobian-vector products: 2 P gradients. One a
    step is counted; Diffrax 0.7.2 evaluates a second one, for a first stage that is
    explicit and does not need it. It steps to the given times, because it interpolates
    less accurately than it steps.
    """

    def run(flow: Flow, rtol: float, most: int) -> Run:
        if flow.size > MOST_DENSE:
            return Run(0, 0.0, None, DENSE)
        calls = {"fields": 0, "jacobians": 0}
        field = counting(flow.velocity(), calls)
        begin, atol = jnp.asarray(flow.start), floor(flow, rtol)
        # A step costs 2 P gradients and a few.
        max_steps = max(most // (2 * flow.size), 1)

        @jax.jit
        def solve():
            return diffrax.diffeqsolve(
                diffrax.ODETerm(lambda t, w, args: field(w)),
                solver,
                0.0,
                flow.end,
                None,
                begin,
                saveat=diffrax.SaveAt(ts=jnp.asarray(flow.times)),
                stepsize_controller=diffrax.ClipStepSizeController(
                    diffrax.PIDController(rtol=rtol, atol=atol),
                    step_ts=jnp.asarray(flow.times),
                ),
                max_steps=max_steps,
                throw=False,
            )

        compiled = solve.lower().compile()
        start = time.perf_counter()
        solution = jax.block_until_ready(compiled())
        seconds = time.perf_counter() - start
        jax.effects_barrier()
        gradients = calls["fields"] + 2 * flow.size * (calls["jacobians"] // 2)
        if solution.result == diffrax.RESULTS.max_steps_reached:
            return Run(gradients, seconds, None, TOO_MANY)
        if solution.result != diffrax.RESULTS.successful:
            return Run(gradients, seconds, None, diffrax.RESULTS[solution.result])
        assert solution.ys is not None
        return Run(gradients, seconds, np.asarray(solution.ys))

    return run


def counting(field, calls):
    """The field, with an account of its values and of its linearisations."""

    def add(name):
        calls[name] += 1

    @jax.custom_jvp
    def counted(w):
        jax.debug.callback(lambda: add("fields"))
        return field(w)

    @counted.defjvp
    def _(primals, tangents):
        jax.debug.callback(lambda: add("jacobians"))
        return jax.jvp(field, primals, tangents)

    return counted
