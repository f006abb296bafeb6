"""Automatic: when it changes its method, and that the path does not show it."""

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gflow
from gflow.solvers import Automatic
from gflow.solvers._monitor import LOGGED, started

from .test_bdf import LAMBDA, forced
from .test_stabilised import SPAN, flat, regression  # noqa: F401


SQUARE = gflow.losses.Square()


# What is watched


@jax.jit
def watched(monitor, radius, curvature, h, gradients, growing):
    end = jnp.asarray(1.0)
    return monitor.watched(radius, curvature, h, gradients, growing, end, end)


def step(monitor, *, radius=0.0, curvature=0.0, h=1.0, gradients=2, growing=False):
    numbers = [jnp.asarray(float(x)) for x in (radius, curvature, h)]
    return watched(monitor, *numbers, jnp.asarray(gradients), jnp.asarray(growing))


def test_steps_as_long_as_decay_make_it_implicit():
    monitor = started(False, jnp.ones(()))
    for radius in (0.3, 3.0, 0.1, 3.0, 3.0, 0.3, 0.3):
        monitor = step(monitor, radius=radius, gradients=6)
        assert not monitor.is_implicit
    monitor = step(monitor, radius=0.3, gradients=6)
    assert monitor.is_implicit and monitor.to_implicit[0]
    assert list(monitor.num_steps) == [8, 0]
    assert list(monitor.num_gradients) == [48, 0]


def test_short_steps_make_it_explicit_and_each_change_takes_longer():
    monitor = started(True, jnp.ones(()))
    # Steps of 1/ρ are worth it; longer and longer ones may be.
    for _ in range(100):
        monitor = step(monitor, curvature=1.0)
        monitor = step(monitor, curvature=1e-3, growing=True)
    assert monitor.is_implicit and monitor.num_changes == 0
    # Steps so short that a hundred times the known curvature would still allow
    # explicit ones: back and forth, but ever more rarely.
    lengths, last = [], 0
    for number in range(1, 2_100):
        before = bool(monitor.is_implicit)
        monitor = step(monitor, curvature=1e-4, radius=4.0)
        if before != bool(monitor.is_implicit):
            lengths.append(number - last)
            last = number
    assert lengths == [384, 12, 1_536, 48]
    assert list(monitor.to_implicit[:4]) == [False, True, False, True]


def test_curvature_that_is_hidden_from_it_counts():
    monitor = started(False, jnp.ones(()))
    while not monitor.is_implicit:
        monitor = step(monitor, radius=4.0, gradients=6)
    # Two gradients for a step of one are cheap if ρ is four, though only 0.04 of it is
    # known.
    for _ in range(200):
        monitor = step(monitor, curvature=0.04)
    assert monitor.is_implicit
    assert monitor.hidden == pytest.approx(100)


def test_changes_beyond_the_log_are_counted():
    monitor = eqx.tree_at(
        lambda m: (m.num_changes, m.streak),
        started(False, jnp.ones(())),
        (jnp.asarray(LOGGED), jnp.asarray(5)),
    )
    monitor = step(monitor, radius=4.0, gradients=6)
    assert monitor.num_changes == LOGGED + 1
    assert np.all(np.isnan(monitor.readings))


# Any differential equation


def test_a_stiff_linear_problem_in_diffrax():
    times = jnp.linspace(0.1, 3.0, 7)
    rtol, atol = 1e-7, 1e-10
    solution = dfx.diffeqsolve(
        dfx.ODETerm(forced),
        Automatic(rtol=rtol, atol=atol, by_rows=False),
        0.0,
        3.0,
        None,
        jnp.zeros(3),
        stepsize_controller=dfx.PIDController(rtol=rtol, atol=atol),
        saveat=dfx.SaveAt(ts=times, solver_state=True),
    )
    t, rate = np.asarray(times)[:, None], np.asarray(LAMBDA)
    exact = rate**2 * (np.cos(t) - np.exp(-rate * t)) + rate * np.sin(t)
    np.testing.assert_allclose(solution.ys, exact / (1 + rate**2), atol=2e-7)
    monitor = solution.solver_state.monitor
    assert monitor.is_implicit and monitor.num_changes == 1
    # Stability alone takes an explicit method a thousand steps.
    assert int(solution.stats["num_steps"]) < 700


# In integrate


@eqx.filter_jit
def solved(model, data, end, rtol):
    times = jnp.geomspace(1e-2, 1.0, 5) * end
    return gflow.integrate(
        model, data, SQUARE, (0.0, end), save_at=times, solver=Automatic(), rtol=rtol
    )


def test_a_stiff_flow(regression):  # noqa: F811
    model, data, end = regression
    span = jnp.asarray(SPAN)
    for rtol, most in ((1e-5, 900), (1e-8, 4_000)):
        sol = solved(model, data, span, jnp.asarray(rtol))
        np.testing.assert_allclose(flat(sol.final), end, rtol=0, atol=10 * rtol)
        assert np.max(np.abs(sol.energy_defect)) < 10 * rtol
        # Tsit5 takes 47,000.
        assert int(sol.stats["num_gradients"]) < most
        switches = sol.switches
        assert bool(switches.is_implicit) and bool(switches.to_implicit[0])
        steps, gradients = (
            int(jnp.sum(n)) for n in (switches.num_steps, switches.num_gradients)
        )
        assert steps == int(sol.stats["num_accepted_steps"])
        assert gradients <= int(sol.stats["num_gradients"])
    assert "near the time of the fastest decay" in str(sol.switches)
    assert "Tsit5 from the start" in str(sol.switches)


@pytest.mark.slow
def test_lanes_of_vmap_are_single_solves(regression):  # noqa: F811
    model, data, _ = regression
    ends, rtols = jnp.array([0.1, SPAN]), jnp.array([1e-4, 1e-5])
    lanes = eqx.filter_vmap(solved, in_axes=(None, None, 0, 0))(
        model, data, ends, rtols
    )
    assert list(lanes.switches.is_implicit) == [False, True]
    for i in range(2):
        one = solved(model, data, ends[i], rtols[i])
        for name in ("num_gradients", "num_steps"):
            assert int(lanes.stats[name][i]) == int(one.stats[name]), name
        found = jax.tree.map(lambda w: w[i], lanes.final)  # noqa: B023
        np.testing.assert_allclose(flat(found), flat(one.final), rtol=1e-8, atol=1e-10)


def test_the_default_by_what_is_known(regression, tmp_path):  # noqa: F811
    model, data, end = regression
    options = {"save_at": [SPAN], "rtol": 1e-5}
    whole = gflow.integrate(model, data, SQUARE, (0.0, SPAN), **options)
    assert whole.solver == "Automatic"
    assert str(whole.switches).startswith("BDF from the start")
    np.testing.assert_allclose(flat(whole.final), end, rtol=0, atol=1e-4)
    # It goes on from where it stopped, bit for bit; and to a file.
    part = gflow.integrate(
        model, data, SQUARE, (0.0, SPAN), max_steps=30, throw=False, **options
    )
    gflow.save(part, tmp_path / "part")
    part = gflow.load(tmp_path / "part", model)
    rest = gflow.integrate(model, data, SQUARE, (0.0, SPAN), resume=part, **options)
    assert np.array_equal(flat(rest.final), flat(whole.final))
    assert int(rest.switches.num_steps.sum()) == int(whole.switches.num_steps.sum())
    short = gflow.integrate(model, data, SQUARE, (0.0, 1e-2), save_at=[1e-2])
    assert short.solver == "Tsit5" and short.switches is None


def test_with_events_it_begins_explicitly(regression):  # noqa: F811
    model, data, _ = regression
    start = gflow.integrate(model, data, SQUARE, (0.0, 1e-2), save_at=[0.0])
    value = float(start.log_loss[0]) - 0.5
    event = gflow.events.LossReaches(gflow.exp(value))
    sol = gflow.integrate(model, data, SQUARE, (0.0, SPAN), events=[event], rtol=1e-5)
    assert sol.solver == "Automatic" and sol.result == gflow.RESULTS.event_occurred
    assert str(sol.switches).startswith("Tsit5 from the start")
    assert float(sol.log_loss[-1]) == pytest.approx(value, abs=1e-6)


def test_in_float32(regression):  # noqa: F811
    model, data, end = regression
    model, data = jax.tree.map(lambda a: a.astype(jnp.float32), (model, data))
    sol = gflow.integrate(model, data, SQUARE, (0.0, SPAN), save_at=[SPAN], rtol=1e-4)
    assert sol.solver == "Automatic"
    assert flat(sol.final).dtype == np.float32
    np.testing.assert_allclose(flat(sol.final), end, rtol=0, atol=1e-3)
    assert int(sol.stats["num_gradients"]) < 900
