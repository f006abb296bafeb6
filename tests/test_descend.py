"""Gradient descent: steps by hand, Optax, times, divergence, lanes, errors."""

import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from scipy.integrate import solve_ivp

import gflow

from .helpers import is_through_jax, rng, tolerance


LOGISTIC = gflow.losses.Logistic()
# One entry for each time that Python runs the model.
CALLS = []


class Tanh(eqx.Module):
    """A small smooth network."""

    weight: jax.Array
    outer: jax.Array

    def __init__(self, seed=0, dtype=jnp.float64, width=4, size=3):
        random = rng(seed)
        self.weight = jnp.asarray(random.normal(size=(width, size)) / 2, dtype)
        self.outer = jnp.asarray(random.normal(size=width) / 2, dtype)

    def __call__(self, x):
        CALLS.append(1)
        return self.outer @ jnp.tanh(self.weight @ x)


class Slope(eqx.Module):
    """f(x) = w x: one parameter."""

    w: jax.Array

    def __call__(self, x):
        return self.w * x


def some_data(dtype=np.float64, n=10):
    x = rng(1).normal(size=(n, 3)).astype(dtype)
    return x, np.sign(x[:, 0] + 0.3 * x[:, 1])


def by_hand(model, data, step, num_steps):
    """GD on the logistic loss of `Tanh` in float64 NumPy."""
    w, a = np.asarray(model.weight, float), np.asarray(model.outer, float)
    x, y = np.asarray(data[0], float), data[1]
    path = [(w, a)]
    for _ in range(num_steps):
        hidden = np.tanh(x @ w.T)
        pull = y / (1 + np.exp(y * (hidden @ a)))
        slope_w = (pull[:, None] * (1 - hidden**2) * a).T @ x
        w, a = w + step * slope_w, a + step * hidden.T @ pull
        path.append((w, a))
    return [np.stack(each) for each in zip(*path, strict=True)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_steps_by_hand(dtype):
    model, data = Tanh(dtype=dtype), some_data(dtype)
    gd = gflow.descend(model, data, LOGISTIC, 0.1, 12)
    weights, outer = by_hand(model, data, 0.1, 12)
    assert gd.models.weight.dtype == gd.log_t.dtype == dtype
    np.testing.assert_allclose(gd.models.weight, weights, **tolerance(dtype))
    np.testing.assert_allclose(gd.models.outer, outer, **tolerance(dtype))
    np.testing.assert_allclose(gd.final.weight, weights[-1], **tolerance(dtype))
    np.testing.assert_allclose(gd.t, 0.1 * np.arange(13), **tolerance(dtype))
    f = np.sum(np.tanh(data[0] @ weights[-1].T) * outer[-1], axis=1)
    np.testing.assert_allclose(gd.predictions[-1], f, **tolerance(dtype))
    loss = np.sum(np.log1p(np.exp(-data[1] * f)))
    np.testing.assert_allclose(gd.loss[-1], loss, **tolerance(dtype))
    size = 0.5 * np.log(np.sum(weights[3] ** 2) + np.sum(outer[3] ** 2))
    np.testing.assert_allclose(gd.log_norm[3], size, **tolerance(dtype))


def test_what_a_solution_holds():
    observe = ["accuracy", "path_length", lambda s: s.log_t]
    gd = gflow.descend(Tanh(), some_data(), LOGISTIC, 0.1, 7, observe=observe)
    counts = {name: float(value) for name, value in gd.stats.items()}
    assert counts == {
        "num_steps": 7,
        "num_accepted_steps": 7,
        "num_rejected_steps": 0,
        "num_gradients": 8,
        "step_size": pytest.approx(0.1),
    }
    assert gd.result == gflow.RESULTS.successful
    assert (gd.clock, gd.solver, gd.kinks) == ("steps", "GradientDescent", "none")
    assert gd.resume is None and gd.limit is None
    assert np.all(np.isnan(gd.energy_defect)) and np.isnan(gd.rtol)
    assert np.all(np.isnan(gd.observed["path_length"]))
    np.testing.assert_array_equal(gd.observed["<lambda>"], gd.log_t)
    assert gd.observed["accuracy"].shape == (8,)
    assert gd.log_t[0] == -np.inf
    np.testing.assert_allclose(gd.log_t_final, np.log(0.7), **tolerance(np.float64))


def test_fixed_leaves_stay():
    def spec(model):
        return eqx.tree_at(
            lambda m: m.outer, jax.tree.map(lambda _: True, model), False
        )

    model = Tanh()
    gd = gflow.descend(
        model, some_data(), LOGISTIC, 0.1, 5, filter_spec=spec(model), save_at=[2, 5]
    )
    assert gd.models.outer.shape == (4,) and gd.models.weight.shape == (2, 4, 3)
    np.testing.assert_array_equal(gd.final.outer, model.outer)


# Optax


def test_sgd_is_a_float():
    gd = gflow.descend(Tanh(), some_data(), LOGISTIC, 0.1, 20)
    sgd = gflow.descend(
        Tanh(), some_data(), LOGISTIC, optax.sgd(0.1), 20, step_size=0.1
    )
    assert sgd.solver == "optax"
    np.testing.assert_allclose(
        sgd.models.weight, gd.models.weight, **tolerance(np.float64)
    )
    np.testing.assert_array_equal(sgd.log_t, gd.log_t)
    unknown = gflow.descend(Tanh(), some_data(), LOGISTIC, optax.sgd(0.1), 20)
    assert np.all(np.isnan(unknown.log_t)) and np.isnan(unknown.log_t_final)
    assert np.isnan(unknown.stats["step_size"])
    np.testing.assert_array_equal(unknown.log_loss, sgd.log_loss)


@pytest.mark.parametrize(
    "optimizer, dtype",
    [
        (optax.adam(1e-2), np.float32),
        (optax.adam(1e-2), np.float64),
        (optax.sgd(0.05, momentum=0.9), np.float64),
        (optax.polyak_sgd(1.0), np.float64),
    ],
)
def test_optax_by_hand(optimizer, dtype):
    model, (x, y) = Tanh(dtype=dtype), some_data(dtype)
    gd = gflow.descend(model, (x, y), LOGISTIC, optimizer, 30)

    @jax.jit
    @jax.value_and_grad
    def loss(model):
        margins = jnp.asarray(y, dtype) * jax.vmap(model)(jnp.asarray(x))
        return jnp.sum(jax.nn.softplus(-margins))

    rule = optax.with_extra_args_support(optimizer)
    with jax.numpy_dtype_promotion("standard"):
        state = rule.init(eqx.filter(model, eqx.is_array))
        for _ in range(30):
            value, slope = loss(model)
            moves, state = rule.update(slope, state, model, value=value)
            model = optax.apply_updates(model, moves)
    scale = tolerance(
        dtype, scale=10
    )  # thirty steps of rounding, divided by |gradient|
    np.testing.assert_allclose(gd.final.weight, model.weight, **scale)
    np.testing.assert_allclose(gd.final.outer, model.outer, **scale)


# Saved steps and times


def test_saved_steps():
    every = gflow.descend(Tanh(), some_data(), LOGISTIC, 0.1, 40, save_at=range(41))
    some = gflow.descend(
        Tanh(), some_data(), LOGISTIC, 0.1, 40, save_at=[0, 3, 3, 17], observe="margins"
    )
    steps = np.array([0, 3, 3, 17])
    np.testing.assert_array_equal(some.models.weight, every.models.weight[steps])
    np.testing.assert_array_equal(some.log_loss, every.log_loss[steps])
    np.testing.assert_array_equal(some.log_t, every.log_t[steps])
    np.testing.assert_array_equal(some.final.weight, every.final.weight)
    assert some.stats["num_steps"] == 40
    assert some.observed["margins"].shape == (4, 10)


def test_saved_times_are_those_of_the_nearest_step():
    times = np.array([0.0, 0.31, 0.98, 2.0])
    gd = gflow.descend(Tanh(), some_data(), LOGISTIC, 0.1, 20, save_at=times)
    np.testing.assert_allclose(gd.t, [0.0, 0.3, 1.0, 2.0], **tolerance(np.float64))
    same = gflow.descend(Tanh(), some_data(), LOGISTIC, 0.1, 20, save_at=[0, 3, 10, 20])
    np.testing.assert_array_equal(gd.models.weight, same.models.weight)
    with np.errstate(divide="ignore"):
        logs = gflow.exp(np.log(times))
    for step in (0.1, gflow.exp(np.log(0.1))):
        again = gflow.descend(Tanh(), some_data(), LOGISTIC, step, 20, save_at=logs)
        np.testing.assert_allclose(
            again.models.weight, gd.models.weight, **tolerance(np.float64)
        )
    adam = gflow.descend(
        Tanh(), some_data(), LOGISTIC, optax.adam(0.1), 20, step_size=0.1, save_at=times
    )
    np.testing.assert_array_equal(adam.log_t, gd.log_t)


def test_default_steps():
    for num_steps in (1, 7):
        gd = gflow.descend(
            Slope(jnp.array(1.0)), [[1.0], [1.0]], LOGISTIC, 1.0, num_steps
        )
        np.testing.assert_allclose(gd.t, np.arange(num_steps + 1), rtol=1e-12)
    gd = gflow.descend(Slope(jnp.array(1.0)), [[1.0], [1.0]], LOGISTIC, 1.0, 10**5)
    steps = np.round(np.asarray(gd.t)).astype(int)
    assert 150 <= len(gd) <= 201
    assert np.all(np.diff(steps) > 0) and steps[0] == 0 and steps[-1] == 10**5
    assert {1, 2, 3}.issubset(steps) and np.max(np.diff(steps)) <= 1000


# Lanes


def test_lanes_are_a_loop(getkey):
    steps = jnp.array([0.02, 0.1, 0.7])
    times = np.array([0.0, 1.0, 5.0, 14.0])
    counts = jnp.array([700, 140, 20])
    keys = jr.split(getkey(), 3)

    def noisy(key):
        model = Tanh()
        return eqx.tree_at(lambda m: m.outer, model, jr.normal(key, (4,)))

    @eqx.filter_vmap
    def run(step, count, key):
        return gflow.descend(
            noisy(key), some_data(), LOGISTIC, step, count, save_at=times
        )

    lanes = run(steps, counts, keys)
    assert lanes.log_t.shape == (3, 4) and lanes.final.weight.shape == (3, 4, 3)
    np.testing.assert_array_equal(lanes.stats["num_steps"], counts)
    for i in range(3):
        one = gflow.descend(
            noisy(keys[i]),
            some_data(),
            LOGISTIC,
            float(steps[i]),
            int(counts[i]),
            save_at=times,
        )
        for name in ("log_t", "log_loss", "log_norm", "predictions", "log_t_final"):
            np.testing.assert_allclose(
                getattr(lanes, name)[i],
                getattr(one, name),
                err_msg=name,
                **tolerance(np.float64, scale=10),
            )


def test_lanes_of_optax():
    @eqx.filter_vmap
    def run(step):
        return gflow.descend(
            Tanh(), some_data(), LOGISTIC, optax.sgd(step), 6, save_at=[0, 6]
        )

    lanes = run(jnp.array([0.1, 0.2]))
    for i, step in enumerate((0.1, 0.2)):
        weights, _ = by_hand(Tanh(), some_data(), step, 6)
        np.testing.assert_allclose(
            lanes.models.weight[i], weights[[0, 6]], **tolerance(np.float64)
        )


def test_traced_number_of_steps():
    @eqx.filter_jit
    def run(num_steps, save_at):
        return gflow.descend(
            Tanh(), some_data(), LOGISTIC, 0.1, num_steps, save_at=save_at
        )

    spread = run(jnp.array(5), None)
    assert np.all(np.isfinite(spread.log_loss)) and spread.stats["num_steps"] == 5
    np.testing.assert_allclose(np.unique(np.round(spread.t * 10)), np.arange(6))
    partial = run(jnp.array(5), jnp.array([0, 5, 6]))
    np.testing.assert_array_equal(np.isnan(partial.log_loss), [False, False, True])
    assert np.all(np.isnan(partial.models.weight[2]))
    assert partial.result == gflow.RESULTS.successful
    early = run(jnp.array(5), jnp.array([0.0, 0.5, 0.6]))
    np.testing.assert_array_equal(np.isnan(early.log_t), [False, False, True])


def test_second_call_does_not_trace():
    model, looked = Tanh(), []

    def look(state):
        looked.append(1)
        return state.log_loss

    def run(step, num_steps=9, save_at=(0, 4, 9)):
        before = len(looked), len(CALLS)
        gflow.descend(
            model, some_data(), LOGISTIC, step, num_steps, save_at=save_at, observe=look
        )
        return len(looked) - before[0], len(CALLS) - before[1]

    first, second, third = run(0.1), run(0.2), run(jnp.array(0.3), 8, (1, 2, 8))
    # What remains are the checks of the arguments.
    assert first[0] == 1 and second[0] == 0 and second[1] < first[1]
    assert third == second


# Divergence


def test_divergence_per_lane():
    # f = w x with the square loss: w_k = 1 + (1 - η)^k exactly, unstable for η > 2.
    data = (np.ones(1), np.ones(1))
    steps = jnp.array([0.5, 1e10, 3.0])
    saved = [0, 10, 40, 5000]

    def run(step, throw=False):
        return gflow.descend(
            Slope(jnp.array(2.0)),
            data,
            gflow.losses.Square(),
            step,
            5000,
            save_at=saved,
            throw=throw,
        )

    lanes = eqx.filter_vmap(run)(steps)
    diverged = lanes.result == gflow.RESULTS.diverged
    np.testing.assert_array_equal(diverged, [False, True, True])
    taken = np.asarray(lanes.stats["num_steps"])
    # The last step whose w is finite: the loss is carried as its logarithm.
    largest = np.log(np.finfo(float).max)
    expected = [5000, largest // np.log(1e10), largest // np.log(2)]
    np.testing.assert_allclose(taken, expected, atol=1)
    np.testing.assert_array_equal(
        lanes.stats["num_gradients"], taken + np.array([1, 2, 2])
    )
    assert np.all(np.isfinite(lanes.final.w))
    size = taken[1:] * np.log(np.asarray(steps)[1:] - 1)
    np.testing.assert_allclose(np.log(np.abs(lanes.final.w[1:])), size, rtol=1e-6)
    np.testing.assert_allclose(
        np.exp(lanes.log_t_final), taken * np.asarray(steps), rtol=1e-12
    )
    reached = np.asarray(saved)[None] <= taken[:, None]
    for values in (
        lanes.log_t,
        lanes.models.w,
        lanes.log_loss,
        lanes.predictions[..., 0],
    ):
        np.testing.assert_array_equal(np.isnan(values), ~reached)
    step = (
        f"Gradient descent diverged at step {taken[2] + 1} of 5000: .*step {taken[2]}.$"
    )
    with warnings.catch_warnings(), pytest.raises(RuntimeError, match=step) as caught:
        warnings.simplefilter("error")
        run(3.0, throw=True)
    assert caught.traceback[1].path.samefile(__file__) and not is_through_jax(caught)
    with pytest.raises(RuntimeError, match="Gradient descent diverged"):
        jax.block_until_ready(eqx.filter_vmap(lambda s: run(s, True))(steps).log_t)
    one = run(3.0)
    assert one.result == gflow.RESULTS.diverged
    assert one.stats["num_steps"] == taken[2]
    np.testing.assert_array_equal(one.final.w, lanes.final.w[2])


def test_divergence_of_the_loss_alone():
    def loss(prediction, y):
        return jnp.where(prediction > 1.45, jnp.nan, -prediction)

    gd = gflow.descend(
        Slope(jnp.array(1.0)), (np.ones(1), np.ones(1)), loss, 0.1, 9, throw=False
    )
    assert gd.result == gflow.RESULTS.diverged and gd.stats["num_steps"] == 4
    np.testing.assert_allclose(gd.final.w, 1.4)
    np.testing.assert_array_equal(np.isnan(gd.models.w), np.arange(10) > 4)


def test_a_start_that_is_not_finite():
    def loss(prediction, y):
        return prediction * jnp.inf

    gd = gflow.descend(
        Slope(jnp.array(1.0)), (np.ones(1), np.ones(1)), loss, 0.1, 9, throw=False
    )
    assert gd.result == gflow.RESULTS.diverged and gd.stats["num_steps"] == 0
    assert np.all(np.isnan(gd.log_t)) and gd.log_t_final == -np.inf
    assert gd.final.w == 1.0
    with pytest.raises(
        RuntimeError, match="diverged at the start, where the parameters"
    ):
        gflow.descend(Slope(jnp.array(1.0)), (np.ones(1), np.ones(1)), loss, 0.1, 9)


def test_zero_and_negative_losses_are_finite():
    square = gflow.losses.Square()
    gd = gflow.descend(Slope(jnp.array(2.0)), (np.ones(1), np.ones(1)), square, 1.0, 5)
    assert gd.final.w == 1.0 and gd.log_loss[-1] == -np.inf
    gd = gflow.descend(
        Slope(jnp.array(1.0)), (np.ones(1), np.ones(1)), lambda f, y: -f, 0.5, 4
    )
    np.testing.assert_allclose(gd.final.w, 3.0, rtol=1e-14)


# The log domain


@pytest.mark.parametrize(
    "loss", [gflow.losses.Exponential(), gflow.losses.Logistic()], ids=["exp", "log"]
)
def test_losses_below_the_smallest_float(loss):
    # dw/dk = η e^-w: with η = e^900 and w_0 = 900 the loss goes on like e^-900/k.
    data = (np.ones(1), np.ones(1))
    start = Slope(jnp.array(900.0))
    gd = gflow.descend(start, data, loss, gflow.exp(900.0), 1000)
    assert gd.result == gflow.RESULTS.successful
    w = 900.0 + np.zeros(1001)
    for k in range(1000):
        w[k + 1] = w[k] + np.exp(900.0 - w[k])
    steps = np.round(np.exp(np.asarray(gd.log_t) - 900.0)).astype(int)
    np.testing.assert_allclose(gd.models.w, w[steps], **tolerance(np.float64))
    np.testing.assert_allclose(gd.log_loss, -w[steps], **tolerance(np.float64))
    assert gd.stats["step_size"] == np.inf
    # As plain numbers the gradient is zero: nothing moves, and nothing is NaN.
    still = gflow.descend(start, data, loss, optax.adam(0.1), 10)
    np.testing.assert_array_equal(still.models.w, np.full(11, 900.0))
    assert still.result == gflow.RESULTS.successful


# Order


def test_distance_to_the_flow_halves_with_the_step():
    model, (x, y) = Tanh(), some_data()

    def velocity(_, state):
        w, a = state[:12].reshape(4, 3), state[12:]
        hidden = np.tanh(x @ w.T)
        pull = y / (1 + np.exp(y * (hidden @ a)))
        slope = (pull[:, None] * (1 - hidden**2) * a).T @ x
        return np.concatenate([slope.ravel(), hidden.T @ pull])

    def flat(model):
        return np.concatenate([np.ravel(model.weight), np.ravel(model.outer)])

    span = (0.0, 2.0)
    flow = solve_ivp(velocity, span, flat(model), "DOP853", rtol=1e-12, atol=1e-13)
    distances = []
    for step in 0.5 / 2.0 ** np.arange(8, 12):
        gd = gflow.descend(
            model, (x, y), LOGISTIC, step, round(2 / step), save_at=[0, 1]
        )
        distances.append(np.linalg.norm(flat(gd.final) - flow.y[:, -1]))
    distances = np.array(distances)
    np.testing.assert_allclose(distances[:-1] / distances[1:], 2.0, atol=0.02)


# Errors


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_steps": 0}, "num_steps=0 is not between 1 and"),
        ({"num_steps": -3}, "num_steps=-3 is not between 1 and"),
        ({"num_steps": 2**31}, "not between 1 and 2147483647"),
        ({"num_steps": 2.0}, "num_steps=2.0 is not one positive integer"),
        ({"num_steps": True}, "num_steps=True is not one positive integer"),
        ({"num_steps": np.array([3])}, "is not one positive integer"),
        ({"optimizer": 0.0}, "step size optimizer=0.0 is not positive and finite"),
        ({"optimizer": -1}, "not positive and finite"),
        ({"optimizer": np.inf}, "not positive and finite"),
        ({"optimizer": np.nan}, "not positive and finite"),
        ({"optimizer": gflow.exp(-np.inf)}, "not positive and finite"),
        ({"optimizer": np.array([0.1, 0.2])}, "equinox.filter_vmap"),
        ({"optimizer": "sgd"}, "'sgd' is not a step size; .* optax.adam"),
        ({"optimizer": optax.sgd}, "is not a step size"),
        ({"optimizer": True}, "optimizer=True is not a step size"),
        ({"optimizer": 1j}, "is not a step size"),
        ({"step_size": 0.1}, "leave it out, it is for Optax"),
        (
            {"optimizer": optax.sgd(0.1), "step_size": -0.1},
            "step_size=-0.1 is not positive",
        ),
        (
            {"optimizer": optax.sgd(0.1), "step_size": "x"},
            "step_size='x' is not a step size; pass a positive",
        ),
        ({"optimizer": optax.lbfgs()}, "transformation cannot be applied .*value_fn"),
        ({"save_at": [0, 11]}, "step 11, outside of 0 to num_steps=10"),
        ({"save_at": [-1, 3]}, "step -1, outside"),
        ({"save_at": [3, 1]}, "not sorted"),
        ({"save_at": [0.0, 1.1]}, "t=1.1, outside of the 10 steps of size 0.1"),
        ({"save_at": [-0.1, 1.0]}, "t=-0.1, outside"),
        ({"save_at": [1.0, 0.5]}, "not sorted"),
        ({"save_at": [0.0, np.nan]}, "contains NaN"),
        ({"save_at": gflow.exp(np.array([0.0, 3.0]))}, r"t=e\^3, outside of the 10"),
        ({"save_at": []}, "neither step numbers nor times"),
        ({"save_at": 3}, "neither step numbers nor times"),
        ({"save_at": "steps"}, "neither step numbers nor times"),
        ({"save_at": [[0], [1, 2]]}, "neither step numbers nor times"),
        ({"save_at": [True, False]}, "neither step numbers nor times"),
        (
            {"save_at": [0.0, 0.5], "optimizer": optax.sgd(0.1)},
            "pass it as step_size=, or save at step numbers",
        ),
        ({"observe": "margin"}, "Did you mean 'margins'"),
        ({"observe": "min_margin"}, "needs a positively homogeneous model"),
        ({"data": (np.ones((2, 3)), np.ones(3))}, "2 examples but y has shape"),
        ({"loss": gflow.losses.Logistic}, "pass an instance"),
        ({"model": 3}, "cannot be called"),
    ],
)
def test_errors(change, message):
    arguments = {
        "model": Tanh(),
        "data": some_data(),
        "loss": LOGISTIC,
        "optimizer": 0.1,
        "num_steps": 10,
    }
    with pytest.raises(ValueError, match=message):
        gflow.descend(**(arguments | change))


def test_traced_step_sizes_are_checked_when_they_run():
    @eqx.filter_vmap
    def run(step, throw):
        return gflow.descend(
            Tanh(), some_data(), LOGISTIC, step, 3, save_at=[0, 3], throw=throw
        )

    steps = jnp.array([0.1, -0.1])
    with pytest.raises(RuntimeError, match="step size is not a positive number"):
        jax.block_until_ready(run(steps, True).log_t)
    lanes = run(steps, False)
    np.testing.assert_array_equal(lanes.result == gflow.RESULTS.diverged, [False, True])


def test_no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gflow.descend(Tanh(), some_data(), LOGISTIC, 0.1, 3, save_at=[0.0, 0.3])
