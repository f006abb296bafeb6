"""The flow against gradient descent: distances, order, tracking, lanes."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gflow

from .helpers import rng, tolerance


LOGISTIC = gflow.losses.Logistic()
TIMES = np.linspace(0.0, 2.0, 5)


class Tanh(eqx.Module):
    """A small smooth network; `shift` is not trained and has an axis of its own."""

    weight: jax.Array
    outer: jax.Array
    shift: gflow.nn.Fixed

    def __init__(self, dtype=jnp.float64):
        random = rng(0)
        self.weight = jnp.asarray(random.normal(size=(4, 3)) / 2, dtype)
        self.outer = jnp.asarray(random.normal(size=4) / 2, dtype)
        self.shift = gflow.nn.Fixed(jnp.asarray(random.normal(size=4), dtype))

    def __call__(self, x):
        return self.outer @ jnp.tanh(self.weight @ x + self.shift.value)


def some_data(n=10):
    x = rng(1).normal(size=(n, 3))
    return x, np.sign(x[:, 0] + 0.3 * x[:, 1])


def flow_at(times, model=None, **options):
    return gflow.integrate(
        Tanh() if model is None else model,
        some_data(),
        LOGISTIC,
        (0.0, 2.0),
        save_at=times,
        **({"rtol": 1e-10} | options),
    )


def lanes_at(steps, times=TIMES, **options):
    steps = jnp.asarray(steps)
    counts = jnp.round(2.0 / steps).astype(int)

    @eqx.filter_vmap
    def run(step, count):
        return gflow.descend(
            Tanh(), some_data(), LOGISTIC, step, count, save_at=times, **options
        )

    return run(steps, counts)


@pytest.fixture(scope="module")
def flow():
    return flow_at(TIMES)


def test_distances_by_hand(flow):
    gd = gflow.descend(Tanh(), some_data(), LOGISTIC, 0.1, 20)
    comparison = gflow.compare(flow, gd)
    steps = np.array([0, 5, 10, 15, 20])
    np.testing.assert_array_equal(comparison.log_t, flow.log_t)
    apart = [
        np.asarray(getattr(flow.models, name) - getattr(gd.models, name)[steps])
        for name in ("weight", "outer")
    ]
    distance = np.sqrt(sum(np.sum(a.reshape(5, -1) ** 2, axis=1) for a in apart))
    near = tolerance(np.float64)
    np.testing.assert_allclose(comparison.distance, distance, **near)
    size = np.exp(flow.log_norm)
    np.testing.assert_allclose(comparison.relative_distance, distance / size, **near)
    function = np.asarray(flow.predictions - gd.predictions[steps])
    function = np.sqrt(np.mean(function**2, axis=1))
    np.testing.assert_allclose(comparison.function_distance, function, **near)
    assert comparison.distance[0] == 0 and np.all(comparison.distance[1:] > 1e-5)
    # One lane: no order, nothing to divide.
    np.testing.assert_allclose(comparison.step_sizes, 0.1, **near)
    assert comparison.diverged.shape == () and not comparison.diverged
    assert np.isnan(comparison.order()) and comparison.ratios().shape == (0,)
    np.testing.assert_allclose(comparison.largest_step(0.5), 0.1, **near)
    assert np.isnan(comparison.largest_step(1e-6))


def test_lanes(flow):
    # In no order; Euler's method is of order one.
    steps = np.array([1 / 64, 1 / 512, 1 / 256, 1 / 128])
    lanes = lanes_at(steps)
    comparison = gflow.compare(flow, lanes)
    assert comparison.log_t.shape == comparison.distance.shape == (4, 5)
    np.testing.assert_allclose(comparison.step_sizes, steps, **tolerance(np.float64))
    one = gflow.compare(
        flow,
        gflow.descend(Tanh(), some_data(), LOGISTIC, steps[2], 512, save_at=TIMES),
    )
    for name in ("log_t", "distance", "relative_distance", "function_distance"):
        np.testing.assert_allclose(
            getattr(comparison, name)[2],
            getattr(one, name),
            err_msg=name,
            **tolerance(np.float64),
        )
    for of in ("parameters", "function"):
        np.testing.assert_allclose(comparison.order(of=of), 1.0, atol=0.02)
        ratios = np.asarray(comparison.ratios(of=of))
        np.testing.assert_allclose(ratios, [2.0, 2.0, 2.0], atol=0.03)
    largest = np.max(comparison.relative_distance, axis=1)
    between = float(np.sqrt(largest[2] * largest[3]))
    np.testing.assert_allclose(comparison.largest_step(between), 1 / 256)
    np.testing.assert_allclose(comparison.largest_step(1.0), 1 / 64)
    assert np.isnan(comparison.largest_step(1e-9))
    # The two smallest of them are 1/512 and 1/256.
    slope = np.log(np.max(comparison.distance[2]) / np.max(comparison.distance[1]))
    np.testing.assert_allclose(comparison.order(lanes=2), slope / np.log(2), rtol=1e-10)


def test_lanes_of_both(flow):
    other = eqx.tree_at(lambda m: m.weight, Tanh(), Tanh().weight / 2)
    flows = [flow, flow_at(TIMES, other)]
    descents = [
        gflow.descend(model, some_data(), LOGISTIC, 0.1, 20)
        for model in (Tanh(), other)
    ]

    def stacked(pair):
        return jax.tree.map(
            lambda a, b: jnp.stack([a, b]) if eqx.is_array(a) else a, *pair
        )

    both = gflow.compare(stacked(flows), stacked(descents))
    assert both.distance.shape == (2, 5) and both.step_sizes.shape == (2,)
    for i in range(2):
        alone = gflow.compare(flows[i], descents[i])
        np.testing.assert_allclose(both.distance[i], alone.distance, rtol=1e-12)


def test_under_jit(flow):
    lanes = lanes_at([0.5, 0.25, 0.125, 0.0625])
    eager = gflow.compare(flow, lanes)

    @eqx.filter_jit
    def both(flow, lanes):
        comparison = gflow.compare(flow, lanes)
        return comparison, comparison.order()

    jitted, order = both(flow, lanes)
    np.testing.assert_allclose(jitted.distance, eager.distance, rtol=1e-12)
    np.testing.assert_allclose(order, eager.order(), rtol=1e-12)


# Times


def test_only_common_times():
    flow = flow_at(np.array([0.0, 0.15, 0.5, 1.0, 1.7]))
    gd = gflow.descend(
        Tanh(), some_data(), LOGISTIC, 0.1, 20, save_at=[0, 1, 5, 5, 10, 20]
    )
    comparison = gflow.compare(flow, gd)
    np.testing.assert_allclose(np.exp(comparison.log_t), [0.0, 0.5, 1.0])
    assert np.all(np.isfinite(comparison.distance))


def test_each_lane_has_its_own_times(flow):
    lanes = lanes_at([2.0, 1.0, 0.25, 0.125])
    comparison = gflow.compare(flow, lanes)
    known = np.isfinite(comparison.distance)
    at = np.ones((4, 5), bool)
    at[0, 1:4] = at[1, [1, 3]] = False
    np.testing.assert_array_equal(known, at)
    # Ratios over the times that both have: t = 1 and 2, then t = 2.
    d = np.asarray(comparison.distance)
    expected = [np.max(d[1, [2, 4]]) / np.max(d[2, [2, 4]]), d[0, 4] / d[1, 4]]
    np.testing.assert_allclose(comparison.ratios()[1:], expected, rtol=1e-12)


def test_the_flow_at_the_times_of_a_descent():
    model = Tanh(np.float32)
    gd = gflow.descend(model, some_data(), LOGISTIC, 1e-4, 20_000)
    flow = flow_at(gflow.exp(gd.log_t), model, rtol=1e-5)
    comparison = gflow.compare(flow, gd)
    # Times that differ by a thousandth are told apart by their logarithms.
    assert comparison.distance.shape == gd.log_t.shape
    assert comparison.distance.dtype == np.float32
    assert np.all(np.isfinite(comparison.distance))
    assert np.max(comparison.distance) < 1e-3


def test_optax_with_a_step_size(flow):
    sgd = gflow.descend(
        Tanh(), some_data(), LOGISTIC, optax.sgd(0.1), 20, step_size=0.1
    )
    gd = gflow.descend(Tanh(), some_data(), LOGISTIC, 0.1, 20)
    np.testing.assert_allclose(
        gflow.compare(flow, sgd).distance, gflow.compare(flow, gd).distance, rtol=1e-9
    )


def test_tiny_weights():
    # dw/dt = -w, with norms of 1e-200, whose squares are zero.
    data = (np.ones((1, 1)), np.zeros(1))
    model = gflow.nn.Linear(1, "scalar", key=jax.random.key(0))
    model = eqx.tree_at(lambda m: m.weight, model, jnp.full((1, 1), 1e-200))
    square = gflow.losses.Square()
    times = np.array([0.0, 0.5, 1.0])
    flow = gflow.integrate(model, data, square, (0.0, 1.0), save_at=times)
    gd = gflow.descend(model, data, square, 0.5, 2)
    comparison = gflow.compare(flow, gd)
    expected = 1 - 0.5 ** np.arange(3) / np.exp(-times)
    np.testing.assert_allclose(comparison.relative_distance, expected, atol=1e-5)


# Divergence


def test_diverged_lanes():
    # dw/dt = 1 - w: GD multiplies 1 - w by 1 - η, and η > 2 diverges.
    data = (np.ones((1, 1)), np.ones(1))
    model = gflow.nn.Linear(1, "scalar", key=jax.random.key(0))
    square = gflow.losses.Square()
    times = np.array([0.0, 1000.0, 4000.0])
    steps = jnp.array([4.0, 1.0, 8.0, 0.5])

    @eqx.filter_vmap
    def run(step):
        return gflow.descend(
            model, data, square, step, 8000, save_at=times, throw=False
        )

    flow = gflow.integrate(model, data, square, (0.0, 4000.0), save_at=times)
    lanes = run(steps)
    comparison = gflow.compare(flow, lanes)
    np.testing.assert_array_equal(comparison.diverged, [True, False, True, False])
    known = np.isfinite(comparison.distance)
    np.testing.assert_array_equal(known.sum(axis=1), [2, 3, 2, 3])
    assert np.all(np.isnan(comparison.ratios()[1:]))
    assert comparison.largest_step(1e9) == 1.0
    # Diverged, but only after the last of the times.
    short = gflow.integrate(model, data, square, (0.0, 1000.0), save_at=times / 4)
    late = gflow.compare(short, lanes)
    assert not np.any(late.diverged) and np.all(np.isfinite(late.distance))


def test_order_without_enough_lanes():
    def comparison(distance, steps, diverged):
        distance = jnp.asarray(distance)[:, None]
        return gflow.Comparison(
            log_t=jnp.zeros_like(distance),
            distance=distance,
            relative_distance=distance,
            function_distance=distance**2,
            step_sizes=jnp.asarray(steps),
            diverged=jnp.asarray(diverged),
        )

    steps = [1e-3, 2e-3, 4e-3, 1.0]
    exact = comparison([1e-4, 2e-4, 4e-4, 7.0], steps, [False] * 4)
    np.testing.assert_allclose(exact.order(), 1.0, rtol=1e-10)
    np.testing.assert_allclose(exact.order(of="function"), 2.0, rtol=1e-10)
    assert exact.order(lanes=4) > 1.01
    one = comparison([1e-4, 2e-4, 4e-4, 7.0], steps, [False, True, True, True])
    assert np.isnan(one.order()) and np.all(np.isnan(one.ratios()))
    assert one.largest_step(1.0) == 1e-3
    gap = comparison([1e-4, np.nan, 4e-4, 7.0], steps, [False, True, False, False])
    np.testing.assert_allclose(gap.order(lanes=2), 1.0, rtol=1e-10)
    # All the smaller ones must track as well.
    assert gap.largest_step(1.0) == 1e-3
    first = comparison([1e-4, 2e-4], steps[:2], [True, False])
    assert np.isnan(first.largest_step(1.0))
    same = comparison([1e-4, 1e-4], [1e-3, 1e-3], [False, False])
    assert np.isnan(same.order())
    zero = comparison([0.0, 0.0], steps[:2], [False, False])
    assert np.isnan(zero.order())


# Errors


def test_errors(flow):
    gd = gflow.descend(Tanh(), some_data(), LOGISTIC, 0.1, 20)
    with pytest.raises(ValueError, match="descent is not a solution of gflow.descend"):
        gflow.compare(gd, flow)
    with pytest.raises(ValueError, match="flow is a int, not a gflow.Solution"):
        gflow.compare(3, gd)
    adam = gflow.descend(Tanh(), some_data(), LOGISTIC, optax.adam(0.1), 3)
    with pytest.raises(ValueError, match="pass step_size= to gflow.descend"):
        gflow.compare(flow, adam)
    odd = gflow.descend(Tanh(), some_data(), LOGISTIC, 0.3, 4)
    with pytest.raises(ValueError, match=r"save_at=gflow.exp\(descent.log_t\)"):
        gflow.compare(flow, odd)
    with pytest.raises(ValueError, match=r"numpy.unique\(descent.log_t"):
        gflow.compare(flow, lanes_at([0.37, 0.7, 0.37, 0.7]))
    other = gflow.descend(Tanh(), some_data(8), LOGISTIC, 0.1, 20)
    with pytest.raises(ValueError, match="not of the same model and data"):
        gflow.compare(flow, other)
    nested = jax.tree.map(lambda x: x[None, None] if eqx.is_array(x) else x, gd)
    with pytest.raises(ValueError, match="leading axes"):
        gflow.compare(flow, nested)
    comparison = gflow.compare(flow, gd)
    with pytest.raises(ValueError, match="tolerance=-1 is not a positive number"):
        comparison.largest_step(-1)
    with pytest.raises(ValueError, match="of='weights' is not known"):
        comparison.order(of="weights")
