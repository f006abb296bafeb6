"""integrate among the transformations of JAX; failures, events, resuming, progress."""

import time

import equinox as eqx
import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest

import gflow
from gflow.clocks import Alpha, LogTime, Physical
from gflow.losses import Exponential, Logistic, Square
from gflow.observe import KNOWN


RTOL = 1e-9
TIMES = np.array([0.5, 2.0, 5.0, 20.0])
calls = 0  # executions of a model's Python code


class Dot(eqx.Module):
    """x ↦ ⟨w, x⟩."""

    w: jax.Array

    def __call__(self, x):
        return jnp.sum(self.w * x)


class Counting(eqx.Module):
    """x ↦ ⟨a, tanh(W x)⟩, counting how often Python comes by."""

    w: jax.Array
    a: jax.Array

    def __call__(self, x):
        global calls
        calls += 1
        return jnp.sum(self.a * jnp.tanh(self.w @ x))


class Linear2(eqx.Module):
    """x ↦ ⟨a, W x⟩, homogeneous of degree 2."""

    w: jax.Array
    a: jax.Array

    def __call__(self, x):
        return jnp.sum(self.a * (self.w @ x))


class Semicircle(eqx.Module):
    """x ↦ x √(1 - w²), NaN beyond w = 1."""

    w: jax.Array

    def __call__(self, x):
        return x * jnp.sqrt(1 - jnp.square(self.w))


def network(kind, seed, dtype=np.float64):
    rng = np.random.default_rng(seed)
    w, a = rng.normal(size=(3, 2)), rng.normal(size=3)
    return kind(jnp.asarray(w, dtype), jnp.asarray(a, dtype))


def labelled(seed, n=5):
    rng = np.random.default_rng(50 + seed)
    return rng.normal(size=(n, 2)), np.where(rng.normal(size=n) > 0, 1.0, -1.0)


# p = w from 0, ℒ = e^-w: w = log(1 + t), ℒ = 1/(1 + t).
ONE = (np.ones((1, 1)), np.ones(1))


def solve_one(**options):
    options = {"rtol": RTOL, "clock": LogTime()} | options
    t_span = options.pop("t_span", (0.0, 100.0))
    return gflow.integrate(Dot(jnp.zeros(1)), ONE, Exponential(), t_span, **options)


def assert_close(a, b, **tolerance):
    a, b = (jax.tree.leaves(eqx.filter(x, eqx.is_array)) for x in (a, b))
    for one, two in zip(a, b, strict=True):
        np.testing.assert_allclose(one, two, **tolerance)


def assert_identical(a, b):
    a, b = (jax.tree.leaves(eqx.filter(x, eqx.is_array)) for x in (a, b))
    for one, two in zip(a, b, strict=True):
        np.testing.assert_array_equal(one, two)


# Compiling ----------


@pytest.fixture
def compilations():
    """Names of what JAX compiles, and how often, during the test."""
    seen = []

    def listen(event, duration, **kwargs):
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(kwargs.get("fun_name", "?"))

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize("save", ["given", None])
def test_second_call_compiles_nothing(compilations, save):
    global calls

    def run(seed, t0, t1, rtol):
        return gflow.integrate(
            network(Counting, seed),
            labelled(seed),
            Logistic(),
            (t0, t1),
            save_at=None if save is None else t0 + (t1 - t0) * TIMES / 20,
            observe=["margins", "grad_norm"],
            rtol=rtol,
            atol=1e-3 * rtol,
        )

    calls = 0
    one = run(0, 0.0, 20.0, 1e-6)
    first, calls = calls, 0
    assert compilations  # the listener hears something
    run(1, 0.5, 30.0, 1e-7)
    second, calls = calls, 0
    compilations.clear()
    three = run(2, 1.0, 7.0, 1e-5)
    third = calls
    # The shapes of the outputs are checked and kinks looked for at each call: no more.
    assert second == third <= 2 < first
    assert not compilations
    assert np.max(np.abs(three.models.w[-1] - one.models.w[-1])) > 0.1


def test_second_call_within_jit_traces_nothing():
    global calls

    @eqx.filter_jit
    def run(model, data, t1, rtol):
        return gflow.integrate(
            model, data, Logistic(), (0.0, t1), save_at=t1 * TIMES / 20, rtol=rtol
        ).log_loss

    one = run(network(Counting, 0), labelled(0), jnp.asarray(20.0), jnp.asarray(1e-6))
    calls = 0
    two = run(network(Counting, 1), labelled(1), jnp.asarray(30.0), jnp.asarray(1e-7))
    assert calls == 0
    assert np.all(np.isfinite(one)) and np.all(np.isfinite(two))


# Transformations ----------


def test_all_observers_inside_jit_and_vmap():
    models = [network(Linear2, seed) for seed in range(2)]
    stacked = jax.tree.map(lambda *w: jnp.stack(w), *models)
    data = labelled(0)

    def run(model):
        return gflow.integrate(
            model,
            data,
            Logistic(),
            (0.0, 20.0),
            save_at=TIMES,
            observe=list(KNOWN),
            rtol=RTOL,
        )

    sols = eqx.filter_jit(eqx.filter_vmap(run))(stacked)
    assert set(sols.observed) == set(KNOWN)
    for lane, model in enumerate(models):
        alone = run(model)
        for name, value in alone.observed.items():
            together = jax.tree.leaves(sols.observed[name])
            for several, one in zip(together, jax.tree.leaves(value), strict=True):
                assert one.shape[0] == len(TIMES)
                np.testing.assert_allclose(
                    several[lane], one, rtol=1e-9, atol=1e-9, err_msg=name
                )


def final_log_loss(w, **options):
    model = Linear2(w[:6].reshape(3, 2), w[6:])
    data = labelled(0)
    options = {"save_at": TIMES} | options
    sol = gflow.integrate(model, data, Logistic(), (0.0, 20.0), rtol=1e-11, **options)
    return sol.log_loss[-1]


@pytest.fixture(scope="module")
def start():
    model = network(Linear2, 4)
    return jnp.concatenate([model.w.ravel(), model.a])


@pytest.fixture(scope="module")
def finite_differences(start):
    """d(final log-loss)/dW(0) by central differences of order four."""
    h = 1e-3
    each = []
    for k in range(start.size):
        f = [final_log_loss(start.at[k].add(j * h)) for j in (-2, -1, 1, 2)]
        each.append(float(f[0] - 8 * f[1] + 8 * f[2] - f[3]) / (12 * h))
    return np.array(each)


def test_reverse_mode(start, finite_differences):
    gradient = jax.grad(final_log_loss)(start)
    assert np.max(np.abs(finite_differences)) > 0.05
    np.testing.assert_allclose(gradient, finite_differences, rtol=1e-6, atol=1e-7)


def test_forward_mode(start, finite_differences):
    direction = jnp.linspace(-1.0, 2.0, start.size)
    value, slope = jax.jvp(
        lambda w: final_log_loss(w, save_at=None), (start,), (direction,)
    )
    np.testing.assert_allclose(value, final_log_loss(start), rtol=1e-9)
    np.testing.assert_allclose(
        slope, finite_differences @ np.asarray(direction), rtol=1e-6, atol=1e-7
    )


# Failures ----------


def test_too_few_steps_raise():
    with pytest.raises(RuntimeError, match="maximum number of (solver )?steps"):
        solve_one(max_steps=5, save_at=TIMES)


FAR = np.geomspace(1e-3, 1e40, 20)


@pytest.mark.parametrize("clock", [LogTime(), Alpha()], ids=repr)
def test_too_few_steps_given_times(clock):
    sol = solve_one(
        t_span=(0.0, 1e40), save_at=FAR, max_steps=64, throw=False, clock=clock
    )
    assert sol.result == gflow.RESULTS.max_steps_reached
    assert int(sol.stats["num_steps"]) <= 64
    reached = float(np.exp(sol.log_t_final))
    np.testing.assert_allclose(sol.final.w[0], np.log1p(reached), rtol=1e-6)
    # States up to the time that was reached are right, those beyond are NaN.
    done = FAR <= reached
    assert 0 < np.sum(done) < 20
    exact = np.where(done, np.log1p(FAR), np.nan)
    np.testing.assert_allclose(sol.models.w[:, 0], exact, rtol=1e-6)
    for value in (sol.log_t, sol.log_loss, sol.log_norm, sol.energy_defect):
        np.testing.assert_array_equal(np.isfinite(value), done)


def test_too_few_steps_default_points():
    sol = solve_one(t_span=(0.0, 1e40), max_steps=64, throw=False)
    assert sol.result == gflow.RESULTS.max_steps_reached
    reached = float(np.exp(sol.log_t_final))
    assert 1e-3 < reached < 1e40
    np.testing.assert_allclose(sol.t[-1], reached, rtol=1e-12)
    np.testing.assert_allclose(sol.models.w[:, 0], np.log1p(sol.t), rtol=1e-6)


def test_lanes_fail_on_their_own():
    """Two tolerances, so few steps that only the coarse lane arrives."""

    def run(rtol):
        return solve_one(rtol=rtol, max_steps=40, save_at=TIMES, throw=False)

    sol = eqx.filter_vmap(run)(jnp.array([1e-3, 1e-10]))
    successful = [
        jax.tree.map(lambda x, i=i: x[i], sol.result) == gflow.RESULTS.successful
        for i in range(2)
    ]
    assert bool(successful[0]) and not bool(successful[1])
    np.testing.assert_allclose(sol.models.w[0, :, 0], np.log1p(TIMES), rtol=1e-2)
    done = TIMES <= np.exp(sol.log_t_final[1])
    assert not np.all(done)
    np.testing.assert_array_equal(np.isfinite(sol.log_loss[1]), done)


@pytest.mark.parametrize("save", ["given", None])
def test_the_field_stops_being_a_number(save):
    """ℒ = ½(1 - w²): w = w(0) e^t up to w = 1, where the model ends."""
    times = np.array([0.5, 1.0, 2.0, 2.5, 5.0])
    began = time.monotonic()
    sol = gflow.integrate(
        Semicircle(jnp.array(0.1)),
        (np.ones(1), np.zeros(1)),
        Square(),
        (0.0, 10.0),
        save_at=times if save == "given" else None,
        rtol=1e-6,
        throw=False,
    )
    jax.block_until_ready(sol.log_t)
    assert time.monotonic() - began < 60
    assert sol.result != gflow.RESULTS.successful
    assert int(sol.stats["num_steps"]) < 1000
    end = np.log(10.0)
    reached = float(np.exp(sol.log_t_final))
    assert 2.0 < reached <= end * (1 + 1e-6)
    assert np.isfinite(sol.final.w) and sol.final.w <= 1
    np.testing.assert_allclose(sol.final.w, 0.1 * np.exp(reached), rtol=1e-4)
    if save == "given":
        done = times <= reached
        exact = np.where(done, 0.1 * np.exp(times), np.nan)
        np.testing.assert_allclose(sol.models.w, exact, rtol=1e-4)
    else:
        np.testing.assert_allclose(sol.models.w, 0.1 * np.exp(sol.t), rtol=1e-4)
        assert np.all(np.isfinite(sol.log_loss))


# Events ----------


def small_loss(state):
    return state.log_loss - np.log(0.1)


def is_small(state):
    return state.log_loss < np.log(0.1)


def is_heavy(state):
    return jnp.sum(state.params.w) > 3.0  # w = log(1 + t): from t = e³ - 1 on


@pytest.mark.parametrize("clock", [LogTime(), Alpha(), Physical()], ids=repr)
def test_event_where_a_number_changes_sign(clock):
    """1/(1 + t) = 0.1 at t = 9."""
    times = np.array([1.0, 5.0, 8.9, 9.1, 50.0])
    sol = solve_one(events=small_loss, save_at=times, clock=clock)
    assert sol.result == gflow.RESULTS.event_occurred
    np.testing.assert_allclose(sol.log_t_final, np.log(9.0), rtol=1e-6)
    np.testing.assert_allclose(sol.final.w[0], np.log(10.0), rtol=1e-6)
    exact = np.where(times < 9, np.log1p(times), np.nan)
    np.testing.assert_allclose(sol.models.w[:, 0], exact, rtol=1e-6)


def test_first_of_two_events():
    """w = 1 at t = e - 1, whatever the order the events are given in."""
    sol = solve_one(events=(small_loss, lambda s: 1.0 - s.params.w[0]))
    assert sol.result == gflow.RESULTS.event_occurred
    np.testing.assert_allclose(sol.log_t_final, np.log(np.e - 1), rtol=1e-6)
    np.testing.assert_allclose(sol.t[-1], np.e - 1, rtol=1e-6)
    np.testing.assert_allclose(sol.models.w[:, 0], np.log1p(sol.t), rtol=1e-6)


def test_event_that_is_true_or_false():
    sol = solve_one(events={"small": is_small, "heavy": is_heavy}, save_at="steps")
    assert sol.result == gflow.RESULTS.event_occurred
    np.testing.assert_allclose(sol.log_t_final, np.log(9.0), rtol=1e-6)
    np.testing.assert_allclose(sol.t[-1], 9.0, rtol=1e-6)


def test_event_that_never_happens():
    sol = solve_one(events=lambda state: state.log_loss + 100)
    assert sol.result == gflow.RESULTS.successful
    np.testing.assert_allclose(sol.t[-1], 100.0, rtol=1e-12)


# Resuming ----------


@pytest.mark.parametrize(
    "clock, save",
    [
        (LogTime(), None),
        (Physical(), "given"),
        pytest.param(Alpha(), "given", marks=pytest.mark.slow),
    ],
    ids=repr,
)
def test_resumed_solve_repeats_the_uninterrupted_one(clock, save):
    model, data = network(Linear2, 0), labelled(1)

    def run(**options):
        return gflow.integrate(
            model,
            data,
            Logistic(),
            (0.0, 50.0),
            save_at=save if save is None else [50.0],
            clock=clock,
            rtol=1e-7,
            **options,
        )

    whole = run()
    steps = int(whole.stats["num_steps"])
    assert steps > 40
    part = run(max_steps=32, throw=False)
    assert part.result == gflow.RESULTS.max_steps_reached
    rest = run(resume=part)
    assert_identical(rest.final, whole.final)
    assert_identical(rest.log_t_final, whole.log_t_final)
    assert_identical(rest.log_loss[-1], whole.log_loss[-1])
    assert_identical(rest.energy_defect[-1], whole.energy_defect[-1])
    assert int(rest.stats["num_steps"]) == steps - int(part.stats["num_steps"])
    counted = (part.stats["num_gradients"], rest.stats["num_gradients"])
    assert int(sum(counted)) == int(whole.stats["num_gradients"])
    # Also from the state alone.
    assert_identical(run(resume=part.resume).final, whole.final)


def test_resumed_solve_with_the_same_save_times():
    """Times before the stop were saved by the first solve: NaN in the second."""
    times = np.array([0.01, 0.1, 1.0, 10.0, 50.0, 100.0])
    whole = solve_one(save_at=times)
    part = solve_one(save_at=times, max_steps=32, throw=False)
    done = np.isfinite(part.log_loss)
    assert 0 < np.sum(done) < len(times)
    rest = solve_one(save_at=times[~done], resume=part)
    np.testing.assert_array_equal(
        np.concatenate([part.models.w[done], rest.models.w]), whole.models.w
    )
    np.testing.assert_array_equal(
        np.concatenate([part.log_loss[done], rest.log_loss]), whole.log_loss
    )


# Progress ----------


@pytest.mark.parametrize(
    "clock, save", [(LogTime(), "given"), (Physical(), None)], ids=repr
)
def test_progress_is_printed(capfd, clock, save):
    sol = gflow.integrate(
        network(Linear2, 0),
        labelled(1),
        Logistic(),
        (0.0, 200.0),
        save_at=TIMES if save == "given" else None,
        clock=clock,
        rtol=1e-10,
        progress=True,
    )
    jax.block_until_ready(sol.log_t)
    jax.effects_barrier()
    printed = capfd.readouterr()
    words = (printed.out + printed.err).replace("\r", "\n").split()
    shares = [float(word.rstrip("%")) for word in words if word.endswith("%")]
    assert len(shares) >= 3
    assert shares == sorted(shares)
    assert shares[0] < 50 and shares[-1] == 100


def test_no_progress_is_printed(capfd):
    jax.block_until_ready(solve_one(save_at=TIMES).log_t)
    printed = capfd.readouterr()
    assert printed.out == "" and printed.err == ""


class Deep(eqx.Module):
    """x ↦ x₁ Π_k w_k."""

    w: list[jax.Array]

    def __call__(self, x):
        out = x[0]
        for w in self.w:
            out = out * w
        return out


@pytest.mark.parametrize(
    "layers, size, dtype, lost",
    [
        (7, 1e-60, np.float64, True),  # the gradient, 1e-360, is zero
        # A gradient of 1e-300 is a number.
        pytest.param(6, 1e-60, np.float64, False, marks=pytest.mark.slow),
        (4, 1e-15, np.float32, True),
        pytest.param(3, 1e-15, np.float32, False, marks=pytest.mark.slow),
        (2, 0.0, np.float64, False),  # at rest, truly
    ],
)
def test_underflow_at_the_start_is_reported(layers, size, dtype, lost):
    weights = [jnp.asarray(size * (1 + 0.1 * k), dtype) for k in range(layers)]
    data = np.ones((1, 1), dtype), np.ones(1, dtype)
    loss = Exponential()

    def solve(model):
        return gflow.integrate(
            model, data, loss, (0.0, 1.0), save_at=np.array([1.0]), throw=False
        ).result

    for result in (solve(Deep(weights)), eqx.filter_jit(solve)(Deep(weights))):
        assert bool(result == gflow.RESULTS.underflow) is lost
        assert lost or result == gflow.RESULTS.successful


def test_boolean_event_that_is_true_at_the_start(getkey):
    def right_from_the_start(state):
        return state.log_loss < 100.0

    model = Dot(jax.random.normal(getkey(), (2,)))
    data = np.eye(2), np.ones(2)
    with pytest.raises(RuntimeError, match="true where the solve starts.*leave it out"):
        gflow.integrate(
            model, data, Logistic(), (0.0, 1.0), events=right_from_the_start
        )
