"""Homogeneous layers and networks, and their initialisations."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.signal

from gflow import nn
from gflow.nn import init

from .helpers import rng, tolerance


DTYPES = (jnp.float32, jnp.float64)
both_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)


def arrays(model):
    return jax.tree.leaves(eqx.filter(model, nn.trainable(model)))


def drawn(key, shape, dtype):
    """Like `he`, in NumPy: JAX compiles the random numbers of each shape for 0.3 s."""
    generator = np.random.default_rng(np.asarray(jr.key_data(key)))
    inputs = np.prod(shape[1:]) if len(shape) > 1 else shape[0]
    return ((2 / inputs) ** 0.5 * generator.standard_normal(shape)).astype(dtype)


def normal(*shape, dtype=np.float64):
    return jnp.asarray(rng(0).standard_normal(shape).astype(dtype))


def total_norm(model):
    # In extended precision, and of scaled entries: an oracle for any magnitude.
    entries = np.concatenate([np.ravel(w) for w in arrays(model)]).astype(np.longdouble)
    largest = np.max(np.abs(entries))
    return float(largest * np.sqrt(np.sum((entries / largest) ** 2)))


# Fixed and trainable


def test_fixed_is_not_trainable(getkey):
    model = nn.TwoLayer(3, 4, outer="fixed", key=getkey(), init=drawn)
    spec = nn.trainable(model)
    assert spec.weight is True
    assert spec.outer.value is False
    assert [w.shape for w in arrays(model)] == [(4, 3)]
    trained = nn.trainable(nn.TwoLayer(3, 4, key=getkey(), init=drawn))
    assert trained.weight is True and trained.outer is True


def test_trainable_of_any_pytree():
    def function(x):
        return x

    tree = {
        "float": jnp.ones(2),
        "int": jnp.ones(2, int),
        "numpy": np.ones(2),
        "python": 1.0,
        "none": None,
        "function": function,
        "fixed": [nn.Fixed(jnp.ones(2)), jnp.ones(())],
    }
    spec = nn.trainable(tree)
    assert spec["fixed"][0].value is False and spec["fixed"][1] is True
    assert spec["float"] is True
    assert not any(spec[name] for name in ("int", "numpy", "python", "function"))
    assert spec["none"] is None
    assert nn.trainable(function) is False
    # It is a filter specification: both parts combine to the whole.
    assert eqx.tree_equal(eqx.combine(*eqx.partition(tree, spec)), tree)


# Layers


@both_dtypes
def test_linear(dtype, getkey):
    x = normal(3, dtype=dtype)
    layer = nn.Linear(3, 2, key=getkey(), init=drawn, dtype=dtype)
    assert layer.weight.shape == (2, 3) and layer.weight.dtype == dtype
    expected = np.asarray(layer.weight) @ np.asarray(x)
    np.testing.assert_allclose(layer(x), expected, **tolerance(dtype))
    half = nn.Linear(3, 2, key=getkey(), init=drawn, scale=0.5)
    half = eqx.tree_at(lambda m: m.weight, half, layer.weight)
    np.testing.assert_allclose(half(x), 0.5 * expected, **tolerance(dtype))
    scalar = nn.Linear(3, "scalar", key=getkey(), init=drawn, dtype=dtype)
    assert scalar.weight.shape == (1, 3)
    assert scalar(x).shape == () and scalar(x).dtype == dtype


@both_dtypes
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(3, 1, 0), ((2, 3), (2, 1), (0, 1)), (3, 2, 1)]
)
def test_conv(kernel, stride, padding, dtype, getkey):
    x = normal(2, 7, 6, dtype=dtype)
    layer = nn.Conv2d(
        2, 4, kernel, stride, padding, key=getkey(), init=drawn, dtype=dtype
    )
    out = layer(x)
    assert out.dtype == dtype
    (p, q), (s, t) = layer.padding, layer.stride
    image = np.pad(np.asarray(x), ((0, 0), (p, p), (q, q)))
    expected = [
        sum(
            scipy.signal.correlate2d(image[c], np.asarray(layer.weight)[o, c], "valid")
            for c in range(2)
        )[::s, ::t]
        for o in range(4)
    ]
    np.testing.assert_allclose(out, np.stack(expected), **tolerance(dtype))


@both_dtypes
def test_pools(dtype):
    x = rng(0).normal(size=(2, 5, 6)).astype(dtype)
    blocks = x[:, :4, :].reshape(2, 2, 2, 3, 2)
    top, mean = nn.MaxPool2d(2)(jnp.asarray(x)), nn.AvgPool2d(2)(jnp.asarray(x))
    np.testing.assert_array_equal(top, blocks.max(axis=(2, 4)))
    np.testing.assert_allclose(mean, blocks.mean(axis=(2, 4)), **tolerance(dtype))
    assert top.dtype == dtype and mean.dtype == dtype
    # Overlapping windows with padding: padding never wins the maximum.
    padded = nn.MaxPool2d(3, stride=2, padding=1)(jnp.asarray(-np.abs(x)))
    assert padded.shape == (2, 3, 3)
    np.testing.assert_array_equal(padded[:, 0, 0], -np.abs(x[:, :2, :2]).min((1, 2)))
    counted = nn.AvgPool2d(3, stride=2, padding=1)(jnp.ones((1, 5, 5), dtype))
    np.testing.assert_allclose(counted[0, 0, 0], 4 / 9, **tolerance(dtype))
    # The derivative goes to the largest entry.
    grad = jax.grad(lambda x: jnp.sum(nn.MaxPool2d(2)(x)))(jnp.asarray(x))
    assert np.count_nonzero(grad) == top.size


def test_activations():
    z = jnp.array([-2.0, 0.0, 3.0])
    np.testing.assert_array_equal(nn.identity(z), z)
    np.testing.assert_array_equal(nn.relu(z), [0, 0, 3])
    np.testing.assert_array_equal(nn.squared_relu(z), [0, 0, 9])
    np.testing.assert_array_equal(nn.leaky_relu(z), [-0.02, 0, 3])
    np.testing.assert_array_equal(nn.leaky_relu(z, slope=0.5), [-1, 0, 3])


# Networks


@both_dtypes
def test_mlp(dtype, getkey):
    x = normal(3, dtype=dtype)
    model = nn.MLP(3, 5, 3, 2, nn.squared_relu, key=getkey(), init=drawn, dtype=dtype)
    shapes = [layer.weight.shape for layer in model.layers]
    assert shapes == [(5, 3), (5, 5), (2, 5)]
    hidden = np.asarray(x, np.float64)
    for layer in model.layers[:-1]:
        hidden = np.maximum(np.asarray(layer.weight, np.float64) @ hidden, 0) ** 2
    expected = np.asarray(model.layers[-1].weight, np.float64) @ hidden
    out = model(x)
    assert out.dtype == dtype
    np.testing.assert_allclose(
        out, expected, **tolerance(dtype, np.max(np.abs(expected)))
    )
    assert nn.MLP(3, 5, 1, key=getkey(), init=drawn, dtype=dtype)(x).shape == ()
    assert nn.MLP(3, 5, 2, 1, key=getkey(), init=drawn, dtype=dtype)(x).shape == (1,)


@both_dtypes
def test_deep_linear(dtype, getkey):
    x = normal(3, dtype=dtype)
    model = nn.DeepLinear((3, 6, 4, "scalar"), key=getkey(), init=drawn, dtype=dtype)
    product = np.eye(3)
    for layer in model.layers:
        product = np.asarray(layer.weight, np.float64) @ product
    out = model(x)
    assert out.shape == () and out.dtype == dtype
    np.testing.assert_allclose(out, (product @ np.asarray(x))[0], **tolerance(dtype))


@both_dtypes
@pytest.mark.parametrize("outer", ["trained", "fixed"])
def test_two_layer(outer, dtype, getkey):
    x = normal(3, dtype=dtype)
    values = np.array([1.0, -2.0, 0.5, 3.0])
    model = nn.TwoLayer(
        *(3, 4, nn.relu, outer, values),
        key=getkey(),
        init=drawn,
        dtype=dtype,
        output_scale=0.5,
    )
    hidden = np.maximum(np.asarray(model.weight, np.float64) @ np.asarray(x), 0)
    out = model(x)
    assert out.shape == () and out.dtype == dtype
    np.testing.assert_allclose(out, 0.5 * np.sum(values * hidden), **tolerance(dtype))
    assert isinstance(model.outer, nn.Fixed) == (outer == "fixed")


def test_default_outer_weights(getkey):
    signs = nn.TwoLayer(3, 5, outer="fixed", key=getkey(), init=drawn).outer
    assert signs.value.tolist() == [1, -1, 1, -1, 1]
    trained = nn.TwoLayer(3, 5, key=getkey(), init=drawn).outer
    assert len(set(np.abs(trained).tolist())) == 5


def test_batched_and_append_one():
    x = jnp.arange(6.0).reshape(3, 2)
    assert nn.Batched(lambda x: x[::-1])(x).tolist() == x[::-1].tolist()
    one = nn.append_one(x.astype(jnp.float32))
    assert one.dtype == jnp.float32
    assert one.tolist() == [[0, 1, 1], [2, 3, 1], [4, 5, 1]]
    assert nn.append_one([[1, 2]]).tolist() == [[1, 2, 1]]


def test_default_dtype_follows_jax(getkey):
    assert nn.Linear(2, 2, key=getkey(), init=drawn).weight.dtype == jnp.float64
    with jax.enable_x64(False):
        assert nn.Linear(2, 2, key=getkey(), init=drawn).weight.dtype == jnp.float32
        with pytest.raises(ValueError, match="disabled"):
            nn.Linear(2, 2, key=getkey(), init=drawn, dtype=jnp.float64)


# As PyTrees


def test_models_are_pytrees_of_arrays(getkey):
    model = nn.Sequential(
        nn.Conv2d(1, 2, 2, key=getkey(), init=drawn),
        functools.partial(nn.leaky_relu, slope=0.2),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.MLP(2, 3, 2, key=getkey(), init=drawn),
        jnp.exp,
    )
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(model))
    x = normal(1, 3, 3)
    # jax.jit, not Equinox's: no leaf is a function.
    jitted = jax.jit(lambda m, x: m(x))(model, x)
    np.testing.assert_allclose(jitted, model(x), **tolerance(jnp.float64))


def test_equal_activations_make_equal_structures(getkey):
    def make(slope):
        activation = functools.partial(nn.leaky_relu, slope=slope)
        return jax.tree.structure(
            nn.TwoLayer(2, 3, activation, key=getkey(), init=drawn)
        )

    assert make(0.2) == make(0.2)
    assert make(0.2) != make(0.3)


def test_activation_with_parameters(getkey):
    prelu = eqx.nn.PReLU(0.5)
    model = nn.MLP(2, 3, 2, activation=prelu, key=getkey(), init=drawn)
    assert len(arrays(model)) == 3
    # A partial with positional arguments calls as it always does.
    shifted = functools.partial(jnp.subtract, jnp.float64(1.0))
    assert nn.Sequential(shifted)(jnp.zeros(2)).tolist() == [1.0, 1.0]


def test_vmap_over_keys_is_a_loop(getkey):
    keys = jr.split(getkey(), 3)

    def make(key):
        return init.to_norm(nn.Linear(3, "scalar", key=key), 0.1)

    ensemble = eqx.filter_vmap(make)(keys)
    for i, key in enumerate(keys):
        for got, one in zip(arrays(ensemble), arrays(make(key)), strict=True):
            np.testing.assert_allclose(got[i], one, **tolerance(jnp.float64))


# Initial arrays


@pytest.mark.parametrize(
    ("family", "std"),
    [
        (init.gaussian(0.3), 0.3),
        (init.he(), (2 / 18) ** 0.5),
        (init.he(3.0), 3 / 18**0.5),
        (init.small(1e-3), 1e-3 / 18**0.5),
        (init.ntk(), 1.0),
        (init.mean_field(2.0), 2.0),
    ],
)
def test_standard_deviations(family, std, getkey):
    shape = (1000, 2, 3, 3)  # fan-in 18
    entries = np.asarray(family(getkey(), shape, jnp.float64))
    # 18,000 entries: the standard deviation has a relative error of 0.5 %.
    np.testing.assert_allclose(np.std(entries), std, rtol=0.03)
    np.testing.assert_allclose(np.mean(entries) / std, 0, atol=0.04)


def test_default_initialisation(getkey):
    weights = nn.Linear(200, 100, key=getkey()).weight
    np.testing.assert_allclose(np.std(weights), 0.1, rtol=0.03)
    layers = nn.DeepLinear((200, 100), key=getkey()).layers
    np.testing.assert_allclose(np.std(layers[0].weight), 0.005**0.5, rtol=0.03)


def test_small_does_not_underflow(getkey):
    key = getkey()
    tiny = init.small(1e-60)(key, (50, 40), jnp.float64)
    unit = init.small(1.0)(key, (50, 40), jnp.float64)
    assert np.all(np.asarray(tiny) != 0)
    np.testing.assert_allclose(np.asarray(tiny) * 1e60, unit, **tolerance(jnp.float64))
    with pytest.raises(ValueError, match="float32 represents"):
        init.small(1e-60)(key, (50, 40), jnp.float32)


def test_traced_scale(getkey):
    key = getkey()
    weights = jax.vmap(lambda c: init.small(c)(key, (2, 3), jnp.float64))(
        jnp.array([1.0, 1e-60])
    )
    np.testing.assert_allclose(weights[0], 1e60 * weights[1], **tolerance(jnp.float64))


def test_parametrisations(getkey):
    m = 16
    x = normal(m)
    for family, factor in ((init.ntk(), m**-0.5), (init.mean_field(), 1 / m)):
        model = nn.TwoLayer(m, m, init=family, key=getkey())
        hidden = np.maximum(np.asarray(model.weight) @ np.asarray(x), 0)
        expected = factor * np.sum(np.asarray(model.outer) * hidden)
        np.testing.assert_allclose(model(x), expected, **tolerance(jnp.float64))
        assert len(jax.tree.leaves(model)) == 2  # the factor is not trained
    tangent = nn.MLP(m, m, 3, init=init.ntk(), key=getkey())
    assert [layer.scale for layer in tangent.layers] == [0.25, 0.25, 0.25]
    field = nn.MLP(m, m, 3, init=init.mean_field(), key=getkey())
    assert [layer.scale for layer in field.layers] == [1, 1 / m, 1 / m]
    given = nn.MLP(m, m, 2, init=init.ntk(), scale=(2.0, 3.0), key=getkey())
    assert [layer.scale for layer in given.layers] == [2, 3]
    assert nn.Conv2d(4, 2, 2, init=init.ntk(), key=getkey()).scale == 0.25
    plain = nn.MLP(m, m, 2, key=getkey(), init=drawn)
    assert [layer.scale for layer in plain.layers] == [1, 1]


def test_function_as_init(getkey):
    def ones(key, shape, dtype):
        return np.ones(shape, dtype)

    assert nn.Linear(3, 2, init=ones, key=getkey()).weight.tolist() == [[1, 1, 1]] * 2
    with pytest.raises(ValueError, match="init returned"):
        nn.Linear(3, 2, init=lambda *_: jnp.ones(3), key=getkey())


# Whole models


def test_scale(getkey):
    model = nn.TwoLayer(3, 4, outer="fixed", key=getkey(), init=drawn)
    scaled = init.scale(model, 1e-60)
    np.testing.assert_array_equal(scaled.weight, 1e-60 * model.weight)
    np.testing.assert_array_equal(scaled.outer.value, model.outer.value)
    spec = eqx.tree_at(lambda m: m.weight, nn.trainable(model), False)
    with pytest.raises(ValueError, match="no trainable parameter"):
        init.scale(model, 2.0, filter_spec=spec)
    single = init.scale(
        nn.Linear(3, 2, key=getkey(), init=drawn, dtype=jnp.float32), 2.0
    )
    assert single.weight.dtype == jnp.float32
    with pytest.raises(ValueError, match="float32 represents"):
        init.scale(single, 1e-60)


@pytest.mark.parametrize("start", [1e-200, 1e-60, 1.0, 1e60, 1e200])
@pytest.mark.parametrize("norm", [1e-200, 1e-60, 1.0, 1e60, 1e200])
def test_to_norm(start, norm, getkey):
    model = init.scale(nn.MLP(3, 4, 3, key=getkey(), init=drawn), start)
    moved = init.to_norm(model, norm)
    np.testing.assert_allclose(total_norm(moved), norm, rtol=1e-14)
    # All entries by the same factor, here in units that keep it of order one.
    ratios = np.concatenate(
        [
            np.ravel((a / norm) / (b / start))
            for a, b in zip(arrays(moved), arrays(model), strict=True)
        ]
    )
    np.testing.assert_allclose(ratios, ratios[0], rtol=1e-13)


def test_to_norm_of_tiny_and_large_arrays_together():
    model = [jnp.array([3e-200]), jnp.array([4e-200]), nn.Fixed(jnp.array([7.0]))]
    a, b, fixed = init.to_norm(model, 10.0)
    np.testing.assert_allclose([a[0], b[0]], [6.0, 8.0], rtol=1e-15)
    assert fixed.value[0] == 7.0
    mixed = [jnp.array([3.0], jnp.float32), jnp.array([4.0], jnp.float64)]
    a, b = init.to_norm(mixed, 10.0)
    assert (a.dtype, b.dtype) == (jnp.float32, jnp.float64)
    np.testing.assert_allclose([a[0], b[0]], [6.0, 8.0], rtol=1e-6)


def test_to_norm_errors(getkey):
    model = nn.Linear(3, 2, key=getkey(), init=drawn)
    zero = init.scale(model, 0.0)
    with pytest.raises(ValueError, match="no direction"):
        init.to_norm(zero, 1.0)
    with pytest.raises(RuntimeError, match="no direction"):
        eqx.filter_jit(init.to_norm)(zero, 1.0).weight.block_until_ready()
    for norm in (0.0, -1.0, np.inf, np.nan):
        with pytest.raises(ValueError, match="positive finite"):
            init.to_norm(model, norm)
    single = nn.Linear(3, 2, key=getkey(), init=drawn, dtype=jnp.float32)
    with pytest.raises(ValueError, match="float32 represents"):
        init.to_norm(single, 1e-60)


@pytest.mark.parametrize("size", [1e-60, 1.0, 1e60])
@pytest.mark.parametrize(
    "sizes", [(3, 6, 5, 2), (3, 2, 5, 4), (4, 4), (4, 7, 7, 7, 7, 7, "scalar")]
)
def test_balanced_deep_linear(sizes, size, getkey):
    model = init.scale(nn.DeepLinear(sizes, key=getkey(), init=drawn), size)
    even = init.balanced(model)
    weights = [np.asarray(layer.weight) / size for layer in even.layers]
    assert [w.shape for w in weights] == [layer.weight.shape for layer in model.layers]
    for first, second in zip(weights, weights[1:], strict=False):
        gap = second.T @ second - first @ first.T
        assert np.linalg.norm(gap) <= 1e-12 * np.linalg.norm(first) ** 2
    # The same function: products of the weights in units of `size`.
    old = [np.asarray(layer.weight) / size for layer in model.layers]
    product = functools.reduce(lambda a, b: b @ a, old)
    np.testing.assert_allclose(
        functools.reduce(lambda a, b: b @ a, weights),
        product,
        rtol=0,
        atol=1e-13 * np.linalg.norm(product),
    )
    again = init.balanced(even)
    for one, two in zip(arrays(even), arrays(again), strict=True):
        np.testing.assert_allclose(one / size, two / size, atol=1e-12)


def test_unbalanced_before(getkey):
    # The test above could fail: its models are not balanced to begin with.
    one, two, _ = nn.DeepLinear((3, 6, 5, 2), key=getkey(), init=drawn).layers
    gap = two.weight.T @ two.weight - one.weight @ one.weight.T
    assert jnp.linalg.norm(gap) > 0.1


@pytest.mark.parametrize("size", [1e-200, 1e-60, 1.0, 1e60])
@pytest.mark.parametrize(
    ("activation", "degree"),
    [
        (nn.relu, 1),
        (functools.partial(nn.leaky_relu, slope=0.3), 1),
        (nn.squared_relu, 2),
        (nn.identity, 1),
    ],
)
def test_balanced_two_layer(activation, degree, size, getkey):
    model = init.scale(nn.TwoLayer(3, 6, activation, key=getkey(), init=drawn), size)
    even = init.balanced(model)
    norms = np.linalg.norm(np.asarray(even.weight) / size, axis=1)
    outer = np.asarray(even.outer) / size
    np.testing.assert_allclose(norms, degree**0.5 * np.abs(outer), rtol=1e-12)
    np.testing.assert_array_equal(np.sign(even.outer), np.sign(model.outer))
    assert np.max(np.abs(norms / np.linalg.norm(model.weight / size, axis=1) - 1)) > 0.1
    # The same function, in units where its weights are of order one.
    x = normal(3)
    np.testing.assert_allclose(
        init.scale(even, 1 / size)(x), init.scale(model, 1 / size)(x), rtol=1e-11
    )


def test_balance_of_neurons_is_conserved(getkey):
    # d/dt (‖w_j‖² - p a_j²) = 0 for the flow of any function of the outputs.
    x = normal(5, 3)
    for activation, degree in ((nn.relu, 1), (nn.squared_relu, 2)):
        model = nn.TwoLayer(3, 6, activation, key=getkey(), init=drawn)
        grad = eqx.filter_grad(lambda m: jnp.sum(jnp.sin(jax.vmap(m)(x))))(model)
        drift = jnp.sum(grad.weight * model.weight, axis=1)
        drift = drift - degree * grad.outer * model.outer
        np.testing.assert_allclose(drift, 0, atol=1e-12)


def test_balanced_dead_neuron(getkey):
    model = nn.TwoLayer(2, 3, outer_values=[1.0, 0.0, 2.0], key=getkey(), init=drawn)
    model = eqx.tree_at(lambda m: m.weight, model, model.weight.at[2].set(0.0))
    even = init.balanced(model)
    assert even.outer[0] != 0
    assert not np.any(even.outer[1:]) and not np.any(even.weight[1:])


def test_balanced_under_jit_and_float32(getkey):
    deep = nn.DeepLinear((3, 4, 2), key=getkey(), init=drawn, dtype=jnp.float32)
    one, two = eqx.filter_jit(init.balanced)(deep).layers
    assert one.weight.dtype == jnp.float32
    gap = two.weight.T @ two.weight - one.weight @ one.weight.T
    np.testing.assert_allclose(gap, 0, **tolerance(jnp.float32))
    pair = eqx.filter_jit(init.balanced)(
        nn.TwoLayer(3, 4, key=getkey(), init=drawn, dtype=jnp.float32)
    )
    np.testing.assert_allclose(
        jnp.linalg.norm(pair.weight, axis=1),
        jnp.abs(pair.outer),
        **tolerance(jnp.float32),
    )


# Errors


@pytest.mark.parametrize("bad", [0, -1])
def test_bad_sizes(bad, getkey):
    key = getkey()
    makers = [
        lambda: nn.Linear(bad, 2, key=key, init=drawn),
        lambda: nn.Linear(2, bad, key=key, init=drawn),
        lambda: nn.MLP(bad, 3, 2, key=key, init=drawn),
        lambda: nn.MLP(3, bad, 2, key=key, init=drawn),
        lambda: nn.MLP(3, bad, 1, key=key, init=drawn),
        lambda: nn.MLP(3, 3, bad, key=key, init=drawn),
        lambda: nn.MLP(3, 3, 2, bad, key=key, init=drawn),
        lambda: nn.DeepLinear((3, bad, 2), key=key, init=drawn),
        lambda: nn.TwoLayer(bad, 3, key=key, init=drawn),
        lambda: nn.TwoLayer(3, bad, key=key, init=drawn),
        lambda: nn.Conv2d(bad, 1, 1, key=key, init=drawn),
        lambda: nn.Conv2d(1, bad, 1, key=key, init=drawn),
        lambda: nn.Conv2d(1, 1, bad, key=key, init=drawn),
        lambda: nn.Conv2d(1, 1, 1, stride=bad, key=key, init=drawn),
        lambda: nn.Conv2d(1, 1, 1, padding=-1, key=key, init=drawn),
        lambda: nn.MaxPool2d(bad),
        lambda: nn.AvgPool2d(2, stride=bad),
    ]
    for maker in makers:
        with pytest.raises(ValueError, match="is not a size"):
            maker()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda key: nn.DeepLinear((3,), key=key, init=drawn), "at least an input"),
        (
            lambda key: nn.DeepLinear((3, "scalar", 2), key=key, init=drawn),
            "is not a size",
        ),
        (lambda key: nn.MLP(3, 3, 2, scale=(1.0,), key=key), "2 layers"),
        (
            lambda key: nn.Linear(3, 3, scale=0.0, key=key, init=drawn),
            "positive finite",
        ),
        (
            lambda key: nn.Linear(3, 3, dtype=int, key=key, init=drawn),
            "not a real floating",
        ),
        (lambda key: nn.TwoLayer(3, 4, outer="frozen", key=key, init=drawn), "must be"),
        (
            lambda key: nn.TwoLayer(3, 4, outer_values=[1.0], key=key, init=drawn),
            "4 neurons",
        ),
        (lambda key: nn.Conv2d(1, 1, (1, 2, 3), key=key, init=drawn), "or two"),
        (lambda key: nn.Sequential(), "at least one layer"),
        (lambda key: nn.Sequential(nn.Flatten), "is a class"),
        (lambda key: nn.Sequential(3.0), "cannot be called"),
        (lambda key: nn.MaxPool2d(2, padding=2), "less padding"),
        (lambda key: nn.append_one(jnp.ones(3)), "reshape"),
        (lambda key: init.gaussian(0.0), "positive finite"),
        (lambda key: init.balanced(nn.MLP(3, 3, 2, key=key, init=drawn)), "not a MLP"),
        (
            lambda key: init.balanced(
                nn.TwoLayer(3, 3, outer="fixed", key=key, init=drawn)
            ),
            "nothing to balance",
        ),
        (
            lambda key: init.balanced(nn.TwoLayer(3, 3, jnp.tanh, key=key, init=drawn)),
            "not positively homogeneous",
        ),
    ],
)
def test_errors(make, message, getkey):
    with pytest.raises(ValueError, match=message):
        make(getkey())


def test_image_smaller_than_window(getkey):
    x = jnp.ones((1, 2, 2))
    for layer in (
        nn.Conv2d(1, 1, 3, key=getkey(), init=drawn),
        nn.MaxPool2d(3),
        nn.AvgPool2d(3),
    ):
        with pytest.raises(ValueError, match="smaller than the window"):
            layer(x)
