"""The measured degree of homogeneity against what algebra gives."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import gflow
from gflow import homogeneity, nn

from .helpers import rng


DTYPES = (jnp.float32, jnp.float64)
SLOPE = functools.partial(nn.leaky_relu, slope=0.3)


def ones(key, shape, dtype):
    """The weights do not matter: the degree is measured at others."""
    return np.ones(shape, dtype)


def normal(*shape, dtype=np.float64):
    return jnp.asarray(rng(0).standard_normal(shape).astype(dtype or np.float64))


def power(exponent):
    return lambda z: jnp.abs(z) ** exponent


def conv_net(key, dtype):
    # Three weight layers.
    one, two, three = jr.split(key, 3)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, key=one, init=ones, dtype=dtype),
        nn.relu,
        nn.MaxPool2d(2),
        nn.Conv2d(4, 3, 3, key=two, init=ones, dtype=dtype),
        SLOPE,
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(3, 5, key=three, init=ones, dtype=dtype),
    )


# name: (a function of key and dtype that makes the model, its input shape, the degree)
CASES = {
    "linear": (lambda k, d: nn.Linear(3, 2, key=k, init=ones, dtype=d), (3,), 1),
    "conv": (lambda k, d: nn.Conv2d(2, 3, 3, key=k, init=ones, dtype=d), (2, 5, 5), 1),
    "mlp3": (lambda k, d: nn.MLP(3, 8, 3, key=k, init=ones, dtype=d), (3,), 3),
    "mlp3-squared": (
        lambda k, d: nn.MLP(
            3, 8, 3, "scalar", nn.squared_relu, key=k, init=ones, dtype=d
        ),
        (3,),
        7,
    ),
    "mlp12": (
        lambda k, d: nn.MLP(3, 8, 12, key=k, init=ones, dtype=d, scale=0.3),
        (3,),
        12,
    ),
    "deep-linear": (
        lambda k, d: nn.DeepLinear((3, 4, 4, 2), key=k, init=ones, dtype=d),
        (3,),
        3,
    ),
    "two-layer": (lambda k, d: nn.TwoLayer(3, 8, key=k, init=ones, dtype=d), (3,), 2),
    "two-layer-fixed": (
        lambda k, d: nn.TwoLayer(3, 8, outer="fixed", key=k, init=ones, dtype=d),
        (3,),
        1,
    ),
    "squared": (
        lambda k, d: nn.TwoLayer(3, 8, nn.squared_relu, key=k, init=ones, dtype=d),
        (3,),
        3,
    ),
    "squared-fixed": (
        lambda k, d: nn.TwoLayer(
            3, 8, nn.squared_relu, "fixed", key=k, init=ones, dtype=d
        ),
        (3,),
        2,
    ),
    "power": (
        lambda k, d: nn.TwoLayer(3, 8, power(1.5), key=k, init=ones, dtype=d),
        (3,),
        2.5,
    ),
    "irrational": (
        lambda k, d: nn.TwoLayer(
            3, 8, power(np.pi), "fixed", key=k, init=ones, dtype=d
        ),
        (3,),
        np.pi,
    ),
    "conv-net": (conv_net, (2, 8, 8), 3),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
@pytest.mark.parametrize("name", CASES)
def test_degree(name, dtype, getkey):
    make, shape, expected = CASES[name]
    x = normal(5, *shape, dtype=dtype)
    degree = homogeneity(make(getkey(), dtype), x)
    assert isinstance(degree, float)
    if name == "irrational":
        assert abs(degree - expected) < 50 * jnp.finfo(dtype).eps ** 0.5
        assert degree != round(degree, 2)
    else:
        assert degree == expected


@pytest.mark.parametrize("seed", range(5))
def test_wide_float32_network_is_no_false_alarm(seed):
    # Outputs of wide networks are sums that cancel.
    model = nn.MLP(20, 512, 5, key=jr.key(seed), init=ones, dtype=jnp.float32)
    assert homogeneity(model, rng(seed).normal(size=(200, 20))) == 5.0


def test_weights_that_underflow(getkey):
    model = nn.init.to_norm(nn.MLP(3, 8, 6, key=getkey(), init=ones), 1e-60)
    x = normal(4, 3)
    assert model(x[0]) == 0  # 1e-360
    assert homogeneity(model, x) == 6.0


def test_data_of_another_dtype(getkey):
    model = nn.MLP(3, 8, 2, key=getkey(), init=ones, dtype=jnp.float32)
    x = rng(0).normal(size=(4, 3))
    assert x.dtype == np.float64
    assert homogeneity(model, x) == 2.0
    assert homogeneity(model, x.tolist()) == 2.0


def test_frozen_parameters_do_not_count(getkey):
    model = nn.MLP(3, 8, 3, key=getkey(), init=ones)
    spec = eqx.tree_at(
        lambda m: m.layers[0].weight, jax.tree.map(eqx.is_array, model), False
    )
    x = normal(4, 3)
    assert homogeneity(model, x, filter_spec=spec) == 2.0


def test_frozen_values_are_kept(getkey):
    # Homogeneous with these fixed values only: a bias of zero.
    class Biased(eqx.Module):
        linear: nn.Linear
        bias: nn.Fixed

        def __call__(self, x):
            return self.linear(x) + self.bias.value

    x = normal(4, 3)
    linear = nn.Linear(3, 2, key=getkey(), init=ones)
    assert homogeneity(Biased(linear, nn.Fixed(jnp.zeros(2))), x) == 1.0
    with pytest.raises(ValueError, match="not positively homogeneous"):
        homogeneity(Biased(linear, nn.Fixed(jnp.ones(2))), x)


def test_scale_invariant_model_has_degree_zero(getkey):
    class Cosine(eqx.Module):
        w: jax.Array

        def __call__(self, x):
            return self.w @ x / jnp.linalg.norm(self.w)

    assert homogeneity(Cosine(jnp.ones(3)), normal(4, 3)) == 0.0


def test_numpy_leaves_are_kept(getkey):
    class Chosen(eqx.Module):
        linear: nn.Linear
        index: np.ndarray

        def __call__(self, x):
            return self.linear(x[self.index])

    model = Chosen(nn.Linear(2, 2, key=getkey(), init=ones), np.array([0, 2]))
    assert homogeneity(model, normal(4, 3)) == 1.0


def test_batched(getkey):
    linear = nn.Linear(3, 2, key=getkey(), init=ones)

    class Centred(eqx.Module):
        linear: nn.Linear

        def __call__(self, x):
            out = jax.vmap(self.linear)(x)
            assert out.shape == (20, 2)  # the whole batch
            return out - jnp.mean(out, axis=0, keepdims=True)

    x = normal(20, 3)
    assert homogeneity(nn.Batched(Centred(linear)), x) == 1.0


# Not homogeneous


class OuterBias(eqx.Module):
    # W₂ relu(W₁ x) + b: degrees 2 and 1.
    net: nn.MLP
    bias: jax.Array

    def __call__(self, x):
        return self.net(x) + self.bias


def with_biases(dtype):
    shapes = eqx.filter_eval_shape(eqx.nn.MLP, 3, 1, 8, 2, key=jr.key(0), dtype=dtype)
    return jax.tree.map(
        lambda leaf: (
            jnp.ones(leaf.shape, leaf.dtype)
            if isinstance(leaf, jax.ShapeDtypeStruct)
            else leaf
        ),
        shapes,
    )


class LogPeriodic(eqx.Module):
    # Repeats itself at every doubling of w.
    w: jax.Array

    def __call__(self, x):
        size = jnp.linalg.norm(self.w)
        return self.w @ x * (2 + jnp.sin(2 * jnp.pi * jnp.log2(size)))


class TwoDegrees(eqx.Module):
    # Positively homogeneous for each example, of degrees 1 and 2.
    w: jax.Array

    def __call__(self, x):
        return jnp.where(x[0] > 0, self.w @ x, (self.w @ x) ** 2)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
@pytest.mark.parametrize("name", ["eqx-mlp", "outer-bias", "tanh", "log", "degrees"])
def test_not_homogeneous(name, dtype, getkey):
    model = {
        "eqx-mlp": lambda: with_biases(dtype),
        "outer-bias": lambda: OuterBias(
            nn.MLP(3, 8, 2, key=getkey(), init=ones, dtype=dtype),
            jnp.asarray(0.1, dtype),
        ),
        "tanh": lambda: nn.MLP(
            3, 8, 2, 1, jnp.tanh, key=getkey(), init=ones, dtype=dtype
        ),
        "log": lambda: LogPeriodic(jnp.ones(3, dtype)),
        "degrees": lambda: TwoDegrees(jnp.ones(3, dtype)),
    }[name]()
    x = np.array([[1.0, 2.0, 3.0], [-1.0, 0.5, 1.0], [0.3, -2.0, 1.0]])
    with pytest.raises(ValueError, match=r"gives L = .* at c = 0.5.*append_one"):
        homogeneity(model, x)


def test_the_remedy_helps(getkey):
    x = normal(4, 3)
    assert (
        homogeneity(nn.MLP(4, 8, 3, key=getkey(), init=ones), nn.append_one(x)) == 3.0
    )


def test_rtol(getkey):
    class Nearly(eqx.Module):
        w: jax.Array

        def __call__(self, x):
            return self.w @ x + 1e-4 * jnp.sum(self.w) ** 2

    model, x = Nearly(jnp.ones(3)), jnp.ones((1, 3))
    with pytest.raises(ValueError, match="not positively homogeneous"):
        homogeneity(model, x)
    assert abs(homogeneity(model, x, rtol=1e-2) - 1) < 1e-2


# Inside transformations


def models(getkey, dtype=None):
    def make(key):
        return nn.TwoLayer(
            3, 8, nn.squared_relu, outer="fixed", key=key, init=ones, dtype=dtype
        )

    return make, jr.split(getkey(), 4), normal(5, 3, dtype=dtype)


def as_array(model, x):
    degree = homogeneity(model, x)
    assert type(degree) is float
    return jnp.asarray(degree)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
def test_inside_jit(dtype, getkey):
    make, keys, x = models(getkey, dtype)
    model = make(keys[0])
    assert eqx.filter_jit(as_array)(model, x) == 2.0  # both traced
    assert jax.jit(as_array)(model, x) == 2.0
    assert jax.jit(lambda m: as_array(m, x))(model) == 2.0  # data known
    assert jax.jit(lambda x: as_array(model, x))(x) == 2.0  # model known


def test_inside_vmap(getkey):
    make, keys, x = models(getkey)
    ensemble = eqx.filter_vmap(make)(keys)
    mapped = eqx.filter_vmap(as_array, in_axes=(eqx.if_array(0), None))
    np.testing.assert_array_equal(mapped(ensemble, x), np.full(4, 2.0))
    np.testing.assert_array_equal(eqx.filter_jit(mapped)(ensemble, x), np.full(4, 2.0))
    over_data = eqx.filter_vmap(as_array, in_axes=(None, 0))
    np.testing.assert_array_equal(over_data(make(keys[0]), x[:, None]), np.full(5, 2.0))


def test_inside_grad(getkey):
    make, keys, x = models(getkey)
    value, _ = eqx.filter_value_and_grad(lambda m: as_array(m, x) * jnp.sum(m(x[0])))(
        make(keys[0])
    )
    assert value == 2 * make(keys[0])(x[0])


def test_non_homogeneous_raises_inside_jit(getkey):
    model = OuterBias(nn.MLP(3, 8, 2, key=getkey(), init=ones), jnp.asarray(0.1))
    with pytest.raises(ValueError, match="not positively homogeneous"):
        eqx.filter_jit(as_array)(model, normal(4, 3))


def test_second_call_traces_nothing(getkey):
    traces = []

    def activation(z):
        traces.append(None)
        return jax.nn.relu(z)

    x = normal(4, 3)
    homogeneity(nn.TwoLayer(3, 4, activation, key=getkey(), init=ones), x)
    assert traces
    traces.clear()
    homogeneity(nn.TwoLayer(3, 4, activation, key=getkey(), init=ones), 2 * x)
    assert not traces


# Errors


def test_closed_over_tracers_are_named(getkey):
    linear = nn.Linear(3, 2, key=getkey(), init=ones)

    @jax.jit
    def inside(shift):
        return as_array(nn.Sequential(linear, lambda z: z * shift), jnp.ones((1, 3)))

    with pytest.raises(ValueError, match="closes over traced arrays"):
        inside(jnp.asarray(2.0))


def test_zero_outputs(getkey):
    with pytest.raises(ValueError, match="all zero"):
        homogeneity(nn.MLP(3, 8, 2, key=getkey(), init=ones), jnp.zeros((4, 3)))


def test_dead_surrogates_are_drawn_again():
    # One ReLU neuron and one example: each weight gives zero on one of these.
    model = nn.TwoLayer(1, 1, outer="fixed", key=jr.key(0), init=ones)
    assert homogeneity(model, jnp.array([[1.0]])) == 1.0
    assert homogeneity(model, jnp.array([[-1.0]])) == 1.0


def test_outputs_that_are_not_finite(getkey):
    model = nn.MLP(3, 8, 2, key=getkey(), init=ones, dtype=jnp.float32)
    with pytest.raises(ValueError, match="not finite"):
        homogeneity(model, np.full((1, 3), 3e38))


def test_no_parameter():
    with pytest.raises(ValueError, match="no trainable parameter"):
        homogeneity(nn.Sequential(nn.relu), jnp.ones((1, 3)))


@pytest.mark.parametrize("shape", [(), (0, 3)])
def test_no_example(shape, getkey):
    with pytest.raises(ValueError, match="at least one example"):
        homogeneity(nn.Linear(3, 2, key=getkey(), init=ones), np.zeros(shape))


def test_public():
    assert gflow.homogeneity is homogeneity
