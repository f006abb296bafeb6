"""How steps are made: stages, dense output, the iterations of implicit ones."""

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import gflow
from gflow.solvers import _pack
from gflow.solvers._chord import solve
from gflow.solvers._hermite import Hermite
from gflow.solvers._stability import crowding, reach_of
from gflow.solvers._tolerance import Measure
from gflow.solvers._tsit5 import Tsit5

from .helpers import rng, tolerance


# Stages of Tsit5


def field(t, y, args):
    """Of time too, on a tree of arrays."""
    x, z = y
    return {"a": z}["a"] * jnp.cos(t), -jnp.sum(x) * jnp.sin(z) - args * z


def run(solver, rate, times):
    return dfx.diffeqsolve(
        dfx.ODETerm(field),
        solver,
        0.0,
        5.0,
        None,
        (jnp.array([0.3, -1.0]), jnp.asarray(0.7)),
        rate,
        saveat=dfx.SaveAt(ts=times, dense=True),
        stepsize_controller=dfx.PIDController(rtol=1e-7, atol=1e-9),
    )


def test_written_out_it_is_diffrax_tsit5():
    times, rate = jnp.linspace(0.0, 5.0, 23), jnp.asarray(0.4)
    ours, theirs = (run(s, rate, times) for s in (Tsit5(), dfx.Tsit5()))
    assert ours.stats["num_steps"] == theirs.stats["num_steps"] > 20
    assert ours.stats["num_rejected_steps"] == theirs.stats["num_rejected_steps"]
    for a, b in zip(ours.ys, theirs.ys, strict=True):
        np.testing.assert_allclose(a, b, **tolerance(np.float64))
    for t in (0.1, 2.3, 4.9):
        for a, b in zip(ours.evaluate(t), theirs.evaluate(t), strict=True):
            np.testing.assert_allclose(a, b, **tolerance(np.float64))
    # Lane by lane, and differentiated.
    rates = jnp.array([0.4, 30.0])
    lanes = jax.vmap(lambda r: run(Tsit5(), r, times).ys[1])(rates)
    np.testing.assert_allclose(lanes[0], ours.ys[1], **tolerance(np.float64))

    def end(solver):
        return jax.grad(lambda r: run(solver, r, times).ys[1][-1])(rate)

    np.testing.assert_allclose(end(Tsit5()), end(dfx.Tsit5()), rtol=1e-9)


def test_float32_and_arrays_of_two_dtypes():
    start = (jnp.ones(2, np.float32), jnp.ones((), np.float64))
    for y0 in (start[0], start):
        # (Diffrax's controller promotes.)
        with jax.numpy_dtype_promotion("standard"):
            sol = dfx.diffeqsolve(
                dfx.ODETerm(lambda t, y, args: jax.tree.map(jnp.negative, y)),
                Tsit5(),
                np.float32(0),
                np.float32(1),
                None,
                y0,
                stepsize_controller=dfx.PIDController(rtol=1e-5, atol=1e-7),
            )
        for leaf, first in zip(*map(jax.tree.leaves, (sol.ys, y0)), strict=True):
            assert leaf.dtype == first.dtype
            np.testing.assert_allclose(leaf, np.exp(-1), rtol=1e-4)


# Explicit steps that stay inside of the region of stability


def test_reach_is_the_step_times_the_spectral_radius():
    rates = jnp.array([1.0, 7.0, 40.0])
    term = dfx.ODETerm(lambda t, y, args: -rates * y)
    solver, t0, h = Tsit5(), jnp.asarray(0.0), jnp.asarray(0.05)
    y = jnp.array([1e-6, 1e-6, 1.0])
    slope = solver.init(term, t0, h, y, None)
    *_, reached = solver.advance(term, t0, h, y, None, slope, False)
    np.testing.assert_allclose(reached, 0.05 * 40, rtol=1e-4)
    # At rest nothing is known.
    *_, reached = solver.advance(term, t0, h, 0 * y, None, 0 * y, False)
    assert reached == 0
    # It is what limits the step: |R(-3.5)| = 1.
    assert crowding(jnp.asarray(3.39)) < 1 < crowding(jnp.asarray(3.41))


def test_reach_from_what_diffrax_keeps_of_a_step():
    matrix = jnp.asarray(rng(3).normal(size=(4, 4)))
    term = dfx.ODETerm(lambda t, y, args: -matrix @ matrix.T @ y)
    t0, h, y = jnp.asarray(0.0), jnp.asarray(0.1), jnp.asarray(rng(4).normal(size=4))
    ours, theirs = Tsit5(), dfx.Tsit5()
    slope = ours.init(term, t0, h, y, None)
    *_, reached = ours.advance(term, t0, h, y, None, slope, False)
    state = theirs.init(term, t0, h, y, None)
    _, _, dense, _, _ = theirs.step(term, t0, h, y, None, state, False)
    np.testing.assert_allclose(reach_of(theirs, dense["k"], y), reached, rtol=1e-9)


def test_where_stability_limits_the_steps_there_is_no_noise():
    g = rng(5)
    model = gflow.nn.TwoLayer(3, 8, jnp.tanh, key=jax.random.key(1))
    data = 3 * g.normal(size=(20, 3)), g.normal(size=20)

    def solve(rtol):
        return gflow.integrate(
            model,
            data,
            gflow.losses.Square(),
            (0.0, 10.0),
            solver=dfx.Tsit5(),
            clock=gflow.clocks.Physical(),
            save_at=[1.0, 10.0],
            rtol=rtol,
        )

    rough, fine = solve(1e-4), solve(1e-7)
    # (Which it does: a thousandth of the error asks for no more steps.)
    assert rough.stats["num_steps"] > 300
    assert int(fine.stats["num_steps"]) < 1.3 * int(rough.stats["num_steps"])
    # With steps at the edge of stability it is 1.5e-2.
    assert np.max(np.abs(rough.energy_defect)) < 1e-4
    np.testing.assert_allclose(rough.final.weight, fine.final.weight, atol=2e-5)


# Small states as one vector


def problem():
    """A network of two arrays and six examples."""
    g = rng(1)
    model = gflow.nn.TwoLayer(3, 4, gflow.nn.squared_relu, key=jax.random.key(0))
    return model, (g.normal(size=(6, 3)), np.where(g.normal(size=6) > 0, 1.0, -1.0))


def test_as_one_vector_or_not_it_is_the_same_solve(monkeypatch):
    model, data = problem()

    def seen(state):
        return state.log_loss + 3.0

    def solve(max_steps, **options):
        return gflow.integrate(
            model,
            data,
            gflow.losses.Logistic(),
            (0.0, 50.0),
            rtol=1e-7,
            solver=dfx.Tsit5(),
            observe=["path_length"],
            max_steps=max_steps,
            **options,
        )

    for options in ({"save_at": "steps"}, {"save_at": [1.0, 20.0], "events": seen}):
        monkeypatch.setattr(_pack, "_MOST", 30_000)
        packed = solve(4000, **options)
        monkeypatch.setattr(_pack, "_MOST", 0)
        # (Another number, for another program.)
        plain = solve(4001, **options)
        assert packed.result == plain.result
        assert packed.stats == plain.stats
        assert packed.log_t.shape == plain.log_t.shape
        for a, b in zip(
            jax.tree.leaves((packed.models, packed.observed, packed.resume.position)),
            jax.tree.leaves((plain.models, plain.observed, plain.resume.position)),
            strict=True,
        ):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_resumed_with_the_error_measured_otherwise():
    """It holds each row to what it asks for, as if it had done so from the start."""
    model, data = problem()

    def solve(**options):
        return gflow.integrate(
            model, data, gflow.losses.Logistic(), (0.0, 50.0), rtol=1e-7, **options
        )

    part = solve(max_steps=32, throw=False, error_by="arrays")
    rest = solve(resume=part, error_by="rows")
    again = solve(max_steps=32, throw=False, error_by="rows")
    sizes = rest.resume.position.controller_state.sizes
    assert sizes.shape == again.resume.position.controller_state.sizes.shape
    weights = (rest.final.weight, rest.final.outer[:, None])
    rows = [np.linalg.norm(w, axis=1) for w in weights]
    np.testing.assert_allclose(sizes, np.concatenate(rows), rtol=1e-12)
    assert np.max(np.abs(rest.energy_defect)) < 1e-6


# Dense output of stabilised methods


def test_cubics_are_exact_for_cubics():
    a = rng(0).normal(size=(4, 3))

    def value(t):
        return jnp.asarray(a[0] + t * (a[1] + t * (a[2] + t * a[3])))

    t0, t1 = jnp.asarray(0.3), jnp.asarray(1.7)
    slope = jax.jacfwd(value)
    path = Hermite(t0, t1, value(t0), value(t1), slope(t0), slope(t1))
    for t in (0.3, 0.9, 1.7):
        np.testing.assert_allclose(path.evaluate(t), value(t), rtol=1e-13)
    change = path.evaluate(jnp.asarray(0.5), jnp.asarray(1.1))
    np.testing.assert_allclose(change, value(1.1) - value(0.5), rtol=1e-12)


# Iterations of implicit steps


def iterated(*, rate, far, plain, enough=0.2):
    """Of r(x) = x - x* but for a part `rate` of it; x* is `far` from the guess."""
    target = far * jnp.ones(1)

    def residual(x):
        return (1 - rate) * (x - target), jnp.zeros(0)

    whole = Measure(jnp.ones(1), None, jnp.asarray(False))
    one = jnp.ones(())
    return eqx.filter_jit(solve)(
        residual, jnp.zeros(1), jnp.zeros(0), whole, one, enough, plain, plain
    )


def test_one_iteration_does_where_the_last_ones_converged_fast():
    found = iterated(rate=0.05, far=0.9, plain=jnp.asarray(0.05))
    assert found.converged and found.iterations == 1 and not found.hopeless
    assert abs(found.x[0] - 0.9) < 0.2
    # The rate is believed less and less, until a second one measures it again.
    assert 0.05 < found.plain < 0.07
    again = iterated(rate=0.05, far=0.9, plain=jnp.asarray(0.14))
    assert again.converged and again.iterations == 2
    np.testing.assert_allclose(again.plain, 0.05, rtol=1e-6)
    # It was fast, and is not any more: the second one says so.
    slower = iterated(rate=0.6, far=2.0, plain=jnp.asarray(0.14))
    assert slower.iterations >= 2 and slower.plain > 0.5


def test_a_step_that_is_too_long_is_given_up_at_once():
    found = iterated(rate=0.05, far=5.0, plain=jnp.asarray(0.05))
    assert found.hopeless and not found.converged and found.iterations == 1
    # Not where nothing is known about the first correction, nor near what is accepted.
    for far, plain in ((5.0, 1.0), (1.5, 0.05)):
        found = iterated(rate=0.05, far=far, plain=jnp.asarray(plain))
        assert not found.hopeless and found.converged
        assert abs(found.x[0] - far) < 0.2
