"""The place where a flow can first leave kinks that no multiplier watches."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gflow
from gflow._inclusion import Pattern
from gflow._resolve import Resolution
from gflow.solvers._leaving import first_leaving
from gflow.solvers._track import Track, logged


def search(leaves, begin, end, lingering=True):
    looks = []

    def look(x, asked):
        jax.debug.callback(lambda a: looks.append(None) if a else None, asked)
        return x >= leaves, jnp.asarray(lingering), {"at": x}, jnp.asarray(2.0)

    place, about, cost = jax.jit(lambda a, b: first_leaving(look, a, b))(begin, end)
    jax.effects_barrier()
    assert float(cost) == 2 * len(looks)
    assert float(about["at"]) == float(place)
    return float(place), len(looks)


@pytest.mark.parametrize("leaves", [0.3001, 0.5, 0.77, 0.999999])
def test_it_is_found(leaves):
    place, looks = search(leaves, 0.3, 1.0)
    assert leaves <= place <= leaves + 1e-9
    assert looks == 33


def test_few_looks_where_there_is_nothing_to_be_found():
    assert search(2.0, 0.3, 1.0) == (1.0, 1)  # the pattern fits
    assert search(1.0, 0.3, 1.0) == (1.0, 2)  # an event at the end
    assert search(0.0, 0.3, 1.0, lingering=False) == (1.0, 1)  # nothing unwatched


@pytest.mark.parametrize("ulps", [0, 1, 2, 3])
def test_it_ends_on_the_shortest_ways(ulps):
    begin = 0.25
    end = begin + ulps * np.spacing(begin)
    place, looks = search(0.0, begin, end)
    assert begin <= place <= end and looks <= 33


def test_lanes():
    leaves = jnp.array([0.4, 2.0, 0.9])

    def one(leaves):
        def look(x, asked):
            cost = jnp.where(asked, 1.0, 0.0)
            return x >= leaves, jnp.asarray(True), x, cost

        return first_leaving(look, jnp.asarray(0.0), jnp.asarray(1.0))

    place, about, cost = jax.vmap(one)(leaves)
    np.testing.assert_allclose(place, [0.4, 1.0, 0.9], atol=1e-9)
    np.testing.assert_array_equal(about, place)
    np.testing.assert_array_equal(cost, [33, 1, 33])


def track_and_resolution():
    zero, false, pins = jnp.asarray(0), jnp.asarray(False), jnp.array([2])
    one = jnp.ones((1, 2))
    pattern = Pattern(one > 0, pins, jnp.array([0.5]), one, one, one > 2, one > 2)
    found = Resolution(
        direction=jnp.ones(3),
        log_slope=jnp.asarray(0.0),
        branches=one > 0,
        pins=pins,
        shares=jnp.array([0.5]),
        index=pins,
        multipliers=jnp.array([0.5]),
        ambiguous=false,
        consistent=~false,
        crowded=false,
        jumps=false,
        unchanged=false,
        follows=one > 2,
    )
    track = Track(
        pattern=pattern,
        jumped=false,
        stalls=zero,
        doubtful=false,
        failure=zero,
        num_events=zero,
        num_ambiguous=zero,
        num_unsure=zero,
        num_in_series=zero,
        readings=jnp.zeros(4),
        log_times=jnp.zeros(4),
        kinks=jnp.zeros(4, int),
        pins=jnp.zeros(4, int),
        ambiguous=jnp.zeros(4, bool),
    )
    return track, found


@pytest.mark.parametrize(
    "late, event, end, unsure",
    [
        (True, True, 2.0, 1),
        (True, True, 1.0 + 1e-13, 0),  # by no more than a few roundings
        (False, True, 2.0, 0),
        (True, False, 2.0, 0),  # it goes on as it was
    ],
)
def test_kinks_that_may_have_been_left_sooner_are_counted(late, event, end, unsure):
    track, found = track_and_resolution()
    after = logged(
        track,
        track.pattern,
        found,
        jnp.asarray(event),
        jnp.asarray(1),
        jnp.asarray(False),
        jnp.asarray(late),
        jnp.asarray(False),
        jnp.asarray(1.0),
        jnp.asarray(end),
        jnp.asarray(1.0),
        jnp.asarray(0.0),
    )
    assert int(after.num_unsure) == unsure
    assert int(after.num_events) == int(event)


def test_looks_that_tell_nothing_are_counted_once_until_the_next_event():
    track, found = track_and_resolution()
    counts = []
    for event, doubtful in [(0, 1), (0, 1), (0, 0), (0, 1), (1, 0), (0, 1)]:
        one, false = jnp.asarray(1.0), jnp.asarray(False)
        event, doubtful = jnp.asarray(event == 1), jnp.asarray(doubtful == 1)
        how = (event, jnp.asarray(1), false, false, doubtful)
        track = logged(track, track.pattern, found, *how, one, 2 * one, one, 0 * one)
        counts.append(int(track.num_unsure))
    assert counts == [1, 1, 1, 1, 1, 2]


class Idle(eqx.Module):
    """x ↦ w x₁ - relu(v x₂)."""

    w: jax.Array
    v: jax.Array

    def __call__(self, x):
        return self.w * x[0] - jax.nn.relu(self.v * x[1])


WIDE = (6.0, 20.0, 40.0)
PRIMAL_DUAL = gflow.solvers.PrimalDual()


@pytest.mark.parametrize(
    "solver, clock, end, gates, dtype, rtol, within",
    [
        (diffrax.Tsit5(), gflow.clocks.LogTime(), 45.0, WIDE, float, 1e-8, 1e-6),
        (PRIMAL_DUAL, gflow.clocks.LogLogTime(), 1e4, WIDE, float, 1e-8, 1e-5),
        pytest.param(
            diffrax.Tsit5(),
            gflow.clocks.LogTime(),
            13.0,
            (6.0, 8.0, 10.0),
            jnp.float32,
            1e-5,
            1e-4,
            marks=pytest.mark.slow,
        ),
    ],
    ids=["explicit", "late", "float32"],
)
def test_a_neuron_at_zero_leaves_when_it_pays(
    solver, clock, end, gates, dtype, rtol, within
):
    """By how little it pays next to the rest: the margins are 2w - relu(v) and
    w + relu(e^-K v), so that v leaves zero at w = K, and drives e^-K as fast as w.
    """
    gates = np.array(gates)
    y, start = jnp.array([1.0, -1.0], dtype), 1.0

    @jax.vmap
    def run(gate):
        x = jnp.array([[2.0, 1.0], [-1.0, 0.0]], dtype).at[1, 1].set(jnp.exp(-gate))
        return gflow.integrate(
            Idle(jnp.asarray(start, dtype), jnp.asarray(0.0, dtype)),
            (x, y),
            gflow.losses.Exponential(),
            (0.0, gflow.exp(end)),
            save_at=gflow.exp(np.array([5.0, end])),
            clock=clock,
            solver=solver,
            rtol=rtol,
        )

    sol = run(jnp.asarray(gates, dtype))

    def log_time(w):  # ∫ dw / (e^-w + 2 e^-2w), up to a constant
        return np.exp(w) - 2 * np.log(2 + np.exp(w))

    exact = np.log(log_time(gates) - log_time(start))
    path = sol.inclusion
    assert path is not None
    assert np.all(np.asarray(path.num_events) == 1)
    assert np.all(np.asarray(path.num_unsure) == 0)
    np.testing.assert_allclose(path.log_t[:, 0], exact, atol=within)
    assert np.all(np.asarray(sol.models.v[:, 0]) == 0)
    assert np.all(np.asarray(sol.models.v[:, 1]) > 0)


@pytest.mark.parametrize(
    "loss",
    [
        gflow.losses.Square(),
        pytest.param(lambda f, y: (f - y) ** 2 / 2, marks=pytest.mark.slow),
    ],
    ids=["square", "own"],
)
def test_a_small_neuron_leaves_zero_when_residuals_change_sign(loss):
    """f₁ = w - relu(s v) is to be 1 and f₂ = w is to be 4, from zero: v leaves when w
    comes to 1, however small s is, and v/s is then ∫(w - 1)dt up to s².
    """
    sizes = np.array([1e-5, 1e-9, 1e-20])
    times = np.array([0.2, 1.0, 2.0])

    @jax.vmap
    def run(s):
        x = jnp.ones((2, 2)).at[:, 1].set(jnp.array([s, 0.0]))
        return gflow.integrate(
            Idle(jnp.asarray(0.0), jnp.asarray(0.0)),
            (x, jnp.array([1.0, 4.0])),
            loss,
            (0.0, times[-1]),
            save_at=times,
            rtol=1e-8,
        )

    sol = run(jnp.asarray(sizes))
    leaves = np.log(5 / 3) / 2  # 5 - 2w = 5 e^-2t

    def drive(t):
        return 1.5 * t + 1.25 * np.exp(-2 * t)

    path = sol.inclusion
    assert path is not None
    assert np.all(np.asarray(path.num_events) == 1)
    assert np.all(np.asarray(path.num_unsure) == 0)
    np.testing.assert_allclose(np.exp(path.log_t[:, 0]), leaves, rtol=3e-7)
    exact = np.where(times < leaves, 0, drive(times) - drive(leaves))
    v = np.asarray(sol.models.v) / sizes[:, None]
    np.testing.assert_allclose(v, np.broadcast_to(exact, v.shape), atol=1e-6)
