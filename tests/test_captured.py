"""Values that a user's functions read from outside are never those of an earlier call.

One linear model and one shape of data throughout: about 30 s, most of it compilation.
"""

import itertools

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gflow
from gflow.losses import Square


DATA = (jnp.ones((1, 1)), jnp.ones(1))
FACTOR = 1.0
SETTINGS = {"factor": 1.0}


class Linear(eqx.Module):
    w: jax.Array

    def __call__(self, x):
        return jnp.dot(self.w, x)


class Scaled(Linear):
    def __call__(self, x):
        return FACTOR * jnp.dot(self.w, x)


def half(rate, f, y):
    return rate * 0.5 * (f - y) ** 2


def by_settings(f, y):
    return half(FACTOR * SETTINGS["factor"], f, y)


def by_helper(f, y):
    return by_settings(f, y)


def reached(loss, model=Linear):
    """w(1) of dw/dt = rate (1 - w), which is 1 - e^-rate."""
    start = model(jnp.zeros(1))
    options = dict(save_at=[1.0], solver=dfx.Tsit5(), clock=gflow.clocks.Physical())
    sol = gflow.integrate(start, DATA, loss, (0.0, 1.0), **options)
    return sol.final.w[0]


def expected(rate):
    return 1 - np.exp(-rate)


def test_a_loss_follows_what_its_helpers_read(monkeypatch):
    assert np.isclose(reached(by_helper), expected(1.0), rtol=1e-5)
    monkeypatch.setitem(globals(), "FACTOR", 3.0)
    monkeypatch.setitem(SETTINGS, "factor", 2.0)
    assert np.isclose(reached(by_helper), expected(6.0), rtol=1e-5)


def test_a_loss_follows_its_closure():
    rate = 1.0

    def loss(f, y):
        return half(rate, f, y)

    assert np.isclose(reached(loss), expected(1.0), rtol=1e-5)
    rate = 3.0
    assert np.isclose(reached(loss), expected(3.0), rtol=1e-5)


def test_a_model_follows_the_globals_of_its_methods(monkeypatch):
    assert np.isclose(reached(Square(), Scaled), expected(1.0), rtol=1e-5)
    monkeypatch.setitem(globals(), "FACTOR", 2.0)
    # dw/dt = 2 (1 - 2 w)
    assert np.isclose(reached(Square(), Scaled), expected(4.0) / 2, rtol=1e-5)


def test_observers_and_events_follow_what_they_read():
    target = 0.5

    def above(state):
        return state.outputs[0] - target

    def solve():
        model = Linear(jnp.zeros(1))
        span = (0.0, 5.0)
        options = dict(save_at=[0.0, 5.0], observe={"above": above}, events=above)
        return gflow.integrate(model, DATA, Square(), span, **options)

    for target in (0.5, 0.25):  # noqa: B007
        sol = solve()
        assert np.isclose(float(sol.observed["above"][0]), -target)
        assert np.isclose(float(sol.final.w[0]), target, rtol=1e-5)


def test_captured_arrays_may_be_traced():
    def final(rate):
        return reached(lambda f, y: half(rate, f, y))

    rates = jnp.array([1.0, 3.0])
    assert np.allclose(jax.vmap(final)(rates), expected(np.array(rates)), rtol=1e-5)
    assert np.isclose(jax.grad(final)(1.0), np.exp(-1), rtol=1e-4)


def test_new_captured_arrays_compile_nothing():
    traced = itertools.count()

    def loss(f, y):
        next(traced)
        return half(rate, f, y)

    counts = []
    for value in (1.0, 3.0, 2.0):
        rate = jnp.asarray(value)
        assert np.isclose(reached(loss), expected(value), rtol=1e-5)
        counts.append(next(traced))
    # The shapes are looked at before each call; nothing is compiled.
    assert counts[2] - counts[1] <= 3 < counts[0]


@jax.jit
def jitted(f, y):
    return half(FACTOR, f, y)


def test_a_jitted_loss_is_not_kept_by_jax_itself(monkeypatch):
    assert np.isclose(reached(jitted), expected(1.0), rtol=1e-5)
    monkeypatch.setitem(globals(), "FACTOR", 3.0)
    assert np.isclose(reached(jitted), expected(3.0), rtol=1e-5)


def test_a_traced_value_in_a_model_is_refused():
    def final(rate):
        class Local(Linear):
            def __call__(self, x):
                return rate * jnp.dot(self.w, x)

        return reached(Square(), Local)

    with pytest.raises(ValueError, match="array field of the model"):
        jax.vmap(final)(jnp.array([1.0, 3.0]))


LOG = []


def test_a_log_that_a_function_appends_to_is_not_a_value_that_it_reads():
    log = []

    def logged(f, y):
        jax.debug.callback(lambda: LOG.append(1))
        log.append(1)
        return 0.5 * (f - y) ** 2

    np.testing.assert_allclose(reached(logged), expected(1.0), rtol=1e-4)
    calls, traces = len(LOG), len(log)
    np.testing.assert_allclose(reached(logged), expected(1.0), rtol=1e-4)
    assert len(LOG) > calls > 0 and len(log) == traces


def test_a_list_that_a_function_reads_is_a_value_of_it():
    rates = [1.0]

    def summed(f, y):
        return sum(rates) * 0.5 * (f - y) ** 2

    np.testing.assert_allclose(reached(summed), expected(1.0), rtol=1e-4)
    rates.append(2.0)
    np.testing.assert_allclose(reached(summed), expected(3.0), rtol=1e-4)
