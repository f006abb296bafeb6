"""Kinks that another kink at zero decides: whole layers that see zero at once."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

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
