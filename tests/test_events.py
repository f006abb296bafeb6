"""Events of the field: each stops where its quantity has its value."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq

import gflow
from gflow import events
from gflow._check import checked_problem as make_problem
from gflow.clocks import LogTime, Physical
from gflow.observe import observe_at

from .helpers import rng


@pytest.fixture
def problem():
    generator = rng(3)
    x = generator.normal(size=(12, 3))
    y = np.where(x[:, 0] + 0.3 * x[:, 1] > 0, 1.0, -1.0)
    model = gflow.nn.MLP(3, 6, 2, "scalar", jnp.tanh, key=jax.random.key(1))
    return model, (x, y), gflow.losses.Logistic(reduction="mean")


def margins(model, data):
    x, y = data
    return np.asarray(y * jax.vmap(model)(x))


def log_gradient(model, data):
    x, y = data

    def value(model):
        return jnp.mean(jnp.logaddexp(0.0, -y * jax.vmap(model)(x)))

    gradient = jax.grad(value)(model)
    leaves = [np.ravel(a) for a in jax.tree.leaves(gradient)]
    weights = [np.ravel(a) for a in jax.tree.leaves(model)]
    return np.concatenate(leaves), np.concatenate(weights), float(value(model))


# What the event says of the final model, and the value.
CASES = {
    "separated": (
        events.Separated(),
        lambda g, w, loss, p: 12 * loss,
        np.log(2.0),
    ),
    "classified": (events.Classified(), lambda g, w, loss, p: p.min(), 0.0),
    "margin": (events.MarginReaches(2.0), lambda g, w, loss, p: p.min(), 2.0),
    "margin, as a logarithm": (
        events.MarginReaches(gflow.exp(-1e4)),
        lambda g, w, loss, p: (
            np.log(np.maximum(p.min(), 1e-300)) if p.min() > 0 else -np.inf
        ),
        -1e4,
    ),
    "loss": (
        events.LossReaches(1e-3),
        lambda g, w, loss, p: np.log(loss),
        np.log(1e-3),
    ),
    "loss, as a logarithm": (
        events.LossReaches(gflow.exp(-5.0)),
        lambda g, w, loss, p: np.log(loss),
        -5.0,
    ),
    "gradient": (
        events.GradientNormReaches(1e-8),
        lambda g, w, loss, p: np.log(np.linalg.norm(g)),
        np.log(1e-8),
    ),
    "gradient, as a logarithm": (
        events.GradientNormReaches(gflow.exp(-2000)),
        lambda g, w, loss, p: np.log(np.linalg.norm(g)),
        -2000.0,
    ),
    "angle": (
        events.AngleReaches(0.9),
        lambda g, w, loss, p: np.arccos(-g @ w / np.linalg.norm(g) / np.linalg.norm(w)),
        0.9,
    ),
    "angle, as a logarithm": (
        events.AngleReaches(gflow.exp(-3.0)),
        lambda g, w, loss, p: np.log(
            np.arccos(-g @ w / np.linalg.norm(g) / np.linalg.norm(w))
        ),
        -3.0,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_value_of_an_event(problem, name):
    """What is measured with NumPy, over or under the value."""
    model, data, loss = problem
    event, measured, value = CASES[name]
    whole, params = make_problem(model, data, loss)
    state = observe_at(whole, params, path_length=None, degree=None)
    expected = measured(*log_gradient(model, data), margins(model, data)) - value
    if name == "separated":
        # α = ℓ⁻¹(n ℒ), zero where that is ℓ(0).
        total = expected + value
        expected = -np.log(np.expm1(total))
    np.testing.assert_allclose(event(state), expected, rtol=1e-9, atol=1e-12)


def test_it_stops_where_the_value_is_reached(problem):
    model, data, loss = problem
    both = (events.Separated(), events.LossReaches(gflow.exp(-50.0)))
    sol = gflow.integrate(model, data, loss, (0.0, 1e4), events=both, rtol=1e-8)
    assert sol.result == gflow.RESULTS.event_occurred
    total = 12 * np.exp(float(sol.log_loss[-1]))
    assert total == pytest.approx(np.log(2.0), rel=1e-6)


def test_they_compare_by_value():
    assert events.MarginReaches(2.0) == events.MarginReaches(2.0)
    assert hash(events.LossReaches(1.0)) == hash(events.LossReaches(np.float32(1.0)))
    assert events.MarginReaches(2.0) != events.MarginReaches(1.0)
    late = events.GradientNormReaches(gflow.exp(-20))
    assert late == events.GradientNormReaches(gflow.exp(jnp.array(-20.0)))
    assert hash(late) == hash(events.GradientNormReaches(gflow.exp(-20.0)))
    assert late != events.GradientNormReaches(20.0)


def test_separated_needs_a_tail(problem):
    model, data, _ = problem
    with pytest.raises(ValueError, match=r"Square has none; use gflow\.events"):
        gflow.integrate(
            model, data, gflow.losses.Square(), (0.0, 1.0), events=events.Separated()
        )


SQUARE = gflow.losses.Square()


class Slope(eqx.Module):
    """x ↦ w x."""

    w: jax.Array

    def __call__(self, x):
        return self.w * x


# ℒ = w² + 1, so w = e^{-2t} w(0), ‖∇ℒ‖ = 2 w and ℒ - 1 falls from 1 at the rate 4.
LINE = Slope(jnp.array(1.0)), (np.ones(2), np.array([1.0, -1.0])), SQUARE


def test_a_number_is_the_norm_of_the_gradient_itself():
    """‖∇ℒ‖ = 2 e^{-2t} is e^v at t = (log 2 - v) / 2."""
    for value, log in ((1e-6, np.log(1e-6)), (gflow.exp(-10), -10.0)):
        event = events.GradientNormReaches(value)
        sol = gflow.integrate(*LINE, (0.0, 1e3), events=event, rtol=1e-9)
        assert sol.result == gflow.RESULTS.event_occurred
        np.testing.assert_allclose(sol.t[-1], (np.log(2) - log) / 2, rtol=1e-6)


def test_a_negative_loss_reaches_a_number():
    """A loss -w x has w = t: it is -3 at t = 3 and never reaches a positive number."""
    model = Slope(jnp.array(0.0))
    data = np.ones(1), np.ones(1)
    for value, time in ((-3.0, 3.0), (1.0, 5.0)):
        sol = gflow.integrate(
            model,
            data,
            lambda f, y: -f * y,
            (0.0, 5.0),
            events=events.LossReaches(value),
        )
        np.testing.assert_allclose(sol.t[-1], time, rtol=1e-6)


@pytest.mark.parametrize("clock", [None, LogTime(), Physical()], ids=repr)
def test_convergence_of_a_square_loss(clock):
    """With s = 4 t the condition is s / (e^s - 1) = ε."""
    s = brentq(lambda s: s / np.expm1(s) - 1e-6, 1.0, 100.0)
    event = events.Converged(1e-6)
    sol = gflow.integrate(*LINE, (5.0, 1e6), events=event, rtol=1e-9, clock=clock)
    assert sol.result == gflow.RESULTS.event_occurred
    np.testing.assert_allclose(sol.t[-1] - 5.0, s / 4, rtol=1e-6)
    np.testing.assert_allclose(sol.log_loss[-1], np.log1p(np.exp(-s)), rtol=1e-6)


def test_convergence_is_not_the_rest_at_a_saddle():
    """From weights of 1e-6 the flow rests, falls, and stops where it has converged."""
    x = rng(5).normal(size=(8, 2))
    y = x @ np.array([1.0, -0.5])
    model = gflow.nn.DeepLinear((2, 3, "scalar"), key=jax.random.key(2))
    small = jax.tree.map(lambda a: 1e-6 * a, model)
    sol = gflow.integrate(small, (x, y), SQUARE, (0.0, 1e9), events=events.Converged())
    assert sol.result == gflow.RESULTS.event_occurred
    assert float(sol.log_loss[-1]) < np.log(1e-6) + float(sol.log_loss[0])


def test_the_gradient_along_a_kink():
    """ℒ = |a| + (b - 1)² from (0.5, 0): a is zero from t = 0.5 on, b = 1 - e^{-2t}.

    The element of least norm of ∂ℒ is then (0, 2 b - 2).
    """

    def loss(f, y):
        return jnp.abs(f[0]) + (f[1] - y) ** 2

    model, data = Slope(jnp.array([0.5, 0.0])), (np.ones(1), np.ones(1))
    event = events.GradientNormReaches(1e-3)
    sol = gflow.integrate(model, data, loss, (0.0, 1e3), events=event, rtol=1e-8)
    assert sol.result == gflow.RESULTS.event_occurred and sol.kinks == "inclusion"
    np.testing.assert_allclose(sol.t[-1], np.log(2e3) / 2, rtol=1e-6)


@pytest.mark.parametrize(
    "made, words",
    [
        (lambda: events.GradientNormReaches(-4.0), r"never happens.*gflow\.exp\(-4\)"),
        (lambda: events.AngleReaches(0.0), r"AngleReaches\(0\.0\) never happens"),
        (lambda: events.MarginReaches(np.nan), "not one finite number.*float"),
        (lambda: events.LossReaches("small"), r"LossReaches\('small'\): .*gflow\.exp"),
        (lambda: events.LossReaches(np.ones(2)), "not one finite number"),
        (lambda: jax.jit(events.MarginReaches)(1.0), "whose value is known"),
        (lambda: events.Converged(1.0), "fraction is not below 1; pass, say, 1e-6"),
    ],
)
def test_values_that_cannot_be(made, words):
    with pytest.raises(ValueError, match=words):
        made()


def test_logarithms_of_losses_are_no_longer_numbers(problem):
    with pytest.raises(ValueError, match=r"LossReaches\(-5\.0\) never.*exp\(-5\)"):
        gflow.integrate(*problem, (0.0, 1.0), events=events.LossReaches(-5.0))


def test_convergence_is_of_the_gradient_flow(problem):
    with pytest.raises(ValueError, match=r"flow=None.*GradientNormReaches"):
        gflow.integrate(
            *problem, (0.0, 1.0), events=events.Converged(), flow=gflow.flows.Polar()
        )
