"""Events of the field: each stops where its quantity has its value."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gflow
from gflow import events
from gflow._check import checked_problem as make_problem
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
    "loss": (events.LogLossReaches(-5.0), lambda g, w, loss, p: np.log(loss), -5.0),
    "gradient": (
        events.GradientNormReaches(-4.0),
        lambda g, w, loss, p: np.log(np.linalg.norm(g)),
        -4.0,
    ),
    "angle": (
        events.AngleReaches(0.9),
        lambda g, w, loss, p: np.arccos(-g @ w / np.linalg.norm(g) / np.linalg.norm(w)),
        0.9,
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
    both = (events.Separated(), events.LogLossReaches(-50.0))
    sol = gflow.integrate(model, data, loss, (0.0, 1e4), events=both, rtol=1e-8)
    assert sol.result == gflow.RESULTS.event_occurred
    total = 12 * np.exp(float(sol.log_loss[-1]))
    assert total == pytest.approx(np.log(2.0), rel=1e-6)


def test_they_compare_by_value():
    assert events.MarginReaches(2.0) == events.MarginReaches(2.0)
    assert hash(events.LogLossReaches(1.0)) == hash(events.LogLossReaches(1.0))
    assert events.MarginReaches(2.0) != events.MarginReaches(1.0)


def test_separated_needs_a_tail(problem):
    model, data, _ = problem
    with pytest.raises(ValueError, match=r"Square has none; use gflow\.events"):
        gflow.integrate(
            model, data, gflow.losses.Square(), (0.0, 1.0), events=events.Separated()
        )
