"""Kinks that another kink at zero decides: whole layers that see zero at once."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

import gflow
from gflow._check import checked_problem
from gflow._downstream import decided
from gflow._frozen import frozen
from gflow.losses import Logistic


class Deep(eqx.Module):
    layers: list

    def __call__(self, x):
        for weight in self.layers[:-1]:
            x = jax.nn.relu(weight @ x)
        return self.layers[-1] @ x


def test_what_a_layer_sees_when_one_neuron_is_at_zero():
    first = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    second = jnp.array([[2.0, 1.0], [-3.0, 1.0], [0.0, 1.0]])
    model = Deep([first, second, jnp.ones(3)])
    # Of the first example one neuron is at zero and the other below, of the second one
    # is above. (Kinks 0 and 1 of each are the first layer's.)
    x, y = jnp.array([[0.0, -1.0], [0.0, 1.0]]), jnp.array([1.0, -1.0])
    problem, params = checked_problem(model, (x, y), Logistic(), None)
    kinks = frozen(problem, params)
    z = kinks.pre_activations(params, None)
    np.testing.assert_array_equal(z[0], [0, -1, 0, 0, 0])
    at_zero = z == 0
    (index,) = jnp.nonzero(at_zero.reshape(-1), size=8, fill_value=kinks.total)
    branches, known, beyond = decided(kinks, params, z > 0, at_zero, index)
    # Beyond the first neuron's kink, 2 z and -3 z; of the last, nothing.
    np.testing.assert_array_equal(branches[0], [False, False, True, False, False])
    np.testing.assert_array_equal(known[0], [False, False, True, True, False])
    # Where the layer sees another neuron too, every kink is one of its own.
    assert not np.any(known[1])
    np.testing.assert_array_equal(beyond, known)
    np.testing.assert_array_equal(branches[1], z[1] > 0)


def network(seed, n=12, sizes=(4, 8, 8)):
    rng = np.random.default_rng(seed)
    shapes = [(b, a) for a, b in zip(sizes, sizes[1:], strict=False)]
    layers = [1.2 * rng.normal(size=s) / np.sqrt(s[1]) for s in shapes]
    layers.append(rng.normal(size=sizes[-1]) / np.sqrt(sizes[-1]))
    x, y = rng.normal(size=(n, sizes[0])), rng.choice([-1.0, 1.0], size=n)
    return Deep([jnp.asarray(w) for w in layers]), (jnp.asarray(x), jnp.asarray(y))


@pytest.mark.slow
def test_an_example_goes_dead_in_a_deep_network():
    """The last neuron that it reaches is pinned, and all that it reaches from there."""
    model, data = network(5)
    sol = gflow.integrate(
        model, data, Logistic(), (0.0, 1.3), save_at=[1.2, 1.3], throw=False
    )
    assert sol.result == gflow.RESULTS.successful
    assert np.max(np.abs(sol.energy_defect)) < 1e-6
    path = sol.inclusion
    assert int(path.num_unsure) == 0 and int(path.num_ambiguous) == 0
    kinks, each = np.asarray(path.pins)[-1], path.kinks_per_example
    seen = [k for k in kinks[kinks >= 0] if k % each < 8]  # the first layer's
    z = data[0] @ sol.final.layers[0].T
    alone = [k for k in seen if np.all(np.delete(z[k // each], k % each) < 0)]
    assert len(alone) > 0


@pytest.mark.parametrize("margin", [5.0, 40.0])
def test_several_neurons_at_zero_keep_an_example_dead(margin):
    """The second example draws both neurons, e^-margin as fast as the first pushes them
    back, so that they stay at zero, and multipliers are of that size.
    """
    first = np.array([[1.0, -1.0], [2.0, -2.0]])
    second = np.array([[1.0, 0.5], [-0.5, 1.0]])
    x, y = np.array([[1.0, 1.0], [1.0, 0.0]]), np.array([-1.0, 1.0])
    seen = np.maximum(second @ (first @ x[1]), 0)
    start = [first, second, np.full(2, margin / np.sum(seen))]
    log_t = np.array([0.5, 0.9]) * margin
    sol = gflow.integrate(
        Deep([jnp.asarray(w) for w in start]),
        (jnp.asarray(x), jnp.asarray(y)),
        Logistic(),
        (0.0, gflow.exp(log_t[-1])),
        save_at=gflow.exp(log_t),
        clock=gflow.clocks.LogTime(),
        rtol=1e-8,
    )
    path = sol.inclusion
    assert path is not None
    assert int(path.num_unsure) == 0 and int(path.num_ambiguous) == 0
    assert np.all(np.sum(np.asarray(path.pins) >= 0, axis=1) == 2)

    # The first layer's rows along (1, -1), which the first example does not see.
    def rate(u, w):
        along, second, out = w[:2], w[2:6].reshape(2, 2), w[6:]
        hidden = along * np.sqrt(0.5)
        seen = np.maximum(second @ hidden, 0)
        back = out * (seen > 0)
        slope = np.exp(u) / (1 + np.exp(out @ seen))
        ways = (second.T @ back * np.sqrt(0.5), np.outer(back, hidden).ravel(), seen)
        return slope * np.concatenate(ways)

    w0 = np.concatenate([first[:, 0] * np.sqrt(2), second.ravel(), start[2]])
    u = np.logaddexp(0, log_t)
    exact = solve_ivp(rate, (0, u[-1]), w0, "DOP853", u, rtol=1e-12, atol=1e-13).y.T
    first, second, out = (np.asarray(w) for w in sol.models.layers)
    along = first @ np.array([1, -1]) * np.sqrt(0.5)
    found = np.concatenate([along, second.reshape(2, 4), out], axis=1)
    np.testing.assert_allclose(found, exact, rtol=1e-6)
    assert np.max(np.abs(first @ x[0])) < 1e-9
