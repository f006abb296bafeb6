"""What must hold of every flow: symmetries, conservation laws, the same curve.

One tanh network with logistic loss is used throughout, so that most solves share one
compiled program; SciPy says what its flow is.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special

import gflow
from gflow.clocks import Alpha, EFolds, LogTime, Physical
from gflow.losses import Exponential, Logistic, Square


RTOL = 1e-9
# Two solves of the same flow by different steps.
SAME = 1e-7
# The same steps, read off at other times or compiled in another way: rounding, times
# what the flow makes of it.
SAME_STEPS = 1e-11

TIMES = np.array([0.0, 0.01, 0.3, 1.0, 4.0, 10.0, 20.0])
END = TIMES[-1]


class Tanh(eqx.Module):
    """x ↦ ⟨v, tanh(U x)⟩."""

    u: jax.Array
    v: jax.Array

    def __call__(self, x):
        return jnp.sum(self.v * jnp.tanh(self.u @ x))


class Dot(eqx.Module):
    """x ↦ ⟨w, x⟩."""

    w: jax.Array

    def __call__(self, x):
        return jnp.sum(self.w * x)


class DeepLinear(eqx.Module):
    """x ↦ W₃ W₂ W₁ x."""

    layers: list[jax.Array]

    def __call__(self, x):
        for w in self.layers:
            x = w @ x
        return x


class TwoLayer(eqx.Module):
    """x ↦ Σ_j a_j φ(⟨w_j, x⟩)."""

    w: jax.Array
    a: jax.Array
    act: str = eqx.field(static=True)

    def __call__(self, x):
        z = self.w @ x
        if self.act == "squared relu":
            z = jnp.square(jax.nn.relu(z))
        return jnp.sum(self.a * z)


def tanh_net(seed, dtype=np.float64):
    rng = np.random.default_rng(seed)
    u, v = rng.normal(size=(4, 2)), rng.normal(size=4)
    return Tanh(jnp.asarray(u, dtype), jnp.asarray(v, dtype))


def labelled(seed, n=6):
    rng = np.random.default_rng(100 + seed)
    return rng.normal(size=(n, 2)), np.where(rng.normal(size=n) > 0, 1.0, -1.0)


MODEL, DATA = tanh_net(0), labelled(0)


def flow(model=MODEL, data=DATA, loss=None, t_span=(0.0, END), **options):
    loss = Logistic() if loss is None else loss
    options = {"save_at": TIMES, "rtol": RTOL, "clock": LogTime()} | options
    return gflow.integrate(model, data, loss, t_span, **options)


def flat(models):
    """(T, P) parameters of the saved states, or (P,) of one."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(models)]
    one = leaves[-1].ndim == 1  # the last array is a vector in all of these models
    return np.concatenate(
        [x.ravel() if one else x.reshape(len(x), -1) for x in leaves], axis=-1
    )


def assert_same(found, exact, rtol=SAME):
    found, exact = np.asarray(found), np.asarray(exact)
    assert found.shape == exact.shape
    size = np.linalg.norm(exact, axis=-1)
    error = np.linalg.norm(found - exact, axis=-1) / size
    assert np.max(error) < rtol, error


@pytest.fixture(scope="module")
def reference():
    return flow()


@pytest.fixture(scope="module")
def adaptive():
    return flow(save_at=None)


# The curve ----------


@pytest.mark.parametrize("clock", [Physical(), Alpha(), EFolds()], ids=repr)
def test_same_curve_under_every_clock(reference, clock):
    sol = flow(clock=clock)
    assert sol.clock == type(clock).__name__
    assert_same(flat(sol.models), flat(reference.models))
    np.testing.assert_allclose(sol.log_loss, reference.log_loss, rtol=SAME, atol=SAME)
    np.testing.assert_array_equal(sol.log_t, reference.log_t)
    assert_same(flat(sol.final), flat(reference.models)[-1])
    np.testing.assert_allclose(sol.log_t_final, np.log(END), rtol=1e-12)


def scipy_flow(loss):
    """W at TIMES from DOP853 at rtol 1e-13; the gradient is written out by hand."""
    x, y = DATA

    def velocity(t, w):
        u, v = w[:8].reshape(4, 2), w[8:]
        h = np.tanh(x @ u.T)
        f = h @ v
        pull = y - f if loss == "square" else y * scipy.special.expit(-y * f)
        back = pull[:, None] * v * (1 - h**2)
        return np.concatenate([(back.T @ x).ravel(), h.T @ pull])

    return scipy.integrate.solve_ivp(
        velocity,
        (0.0, END),
        flat(MODEL),
        method="DOP853",
        t_eval=TIMES,
        rtol=1e-13,
        atol=1e-14,
    ).y.T


def test_logistic_agrees_with_scipy():
    sol = flow(rtol=1e-10)
    assert_same(flat(sol.models), scipy_flow("logistic"), rtol=1e-8)


def test_square_agrees_with_scipy():
    sol = flow(loss=Square(), clock=None, rtol=1e-10)
    assert sol.clock == "Physical"
    assert_same(flat(sol.models), scipy_flow("square"), rtol=1e-8)


def test_what_a_solution_says_of_its_states(reference):
    """log_norm, predictions and log_loss, from the saved models by NumPy."""
    (x, y), w = DATA, flat(reference.models)
    np.testing.assert_allclose(
        reference.log_norm, np.log(np.linalg.norm(w, axis=1)), rtol=1e-13
    )
    hidden = np.tanh(np.einsum("tjd,nd->tnj", np.asarray(reference.models.u), x))
    outputs = np.einsum("tnj,tj->tn", hidden, np.asarray(reference.models.v))
    np.testing.assert_allclose(reference.predictions, outputs, rtol=1e-12)
    loss = np.sum(np.log1p(np.exp(-y * outputs)), axis=1)
    np.testing.assert_allclose(reference.log_loss, np.log(loss), rtol=1e-12)
    np.testing.assert_allclose(reference.loss, loss, rtol=1e-12)
    np.testing.assert_allclose(reference.t, TIMES, rtol=1e-14)


# Saving ----------


def test_given_times_as_floats_or_logarithms(reference):
    with np.errstate(divide="ignore"):
        sol = flow(save_at=gflow.exp(np.log(TIMES)))
    assert_same(flat(sol.models), flat(reference.models), SAME_STEPS)
    sol = flow(save_at=list(TIMES), t_span=(0, gflow.exp(np.log(END))))
    assert_same(flat(sol.models), flat(reference.models), SAME_STEPS)


@pytest.mark.parametrize("count", [1, 400])
def test_states_do_not_depend_on_the_number_of_save_times(reference, count):
    times = TIMES[4:5] if count == 1 else np.union1d(TIMES, np.linspace(0, END, 395))
    if count == 400:
        times = times[: np.searchsorted(times, END) + 1]
        extra = np.linspace(0.001, 0.009, 400 - len(times))
        times = np.union1d(times, extra)
    assert len(times) == count
    sol = flow(save_at=times)
    found = flat(sol.models)[np.isin(times, TIMES)]
    exact = flat(reference.models)[np.isin(TIMES, times)]
    assert_same(found, exact, SAME_STEPS)
    assert int(sol.stats["num_steps"]) == int(reference.stats["num_steps"])


def test_default_points(adaptive, reference):
    """About 200 points, ends included, and the states are those at their times."""
    assert 100 <= len(adaptive) <= 310
    log_t = np.asarray(adaptive.log_t)
    assert np.isneginf(log_t[0]) and log_t[-1] == pytest.approx(np.log(END), rel=1e-14)
    assert np.all(np.diff(log_t) > 0)
    w = flat(adaptive.models)
    assert_same(w[0], flat(MODEL), 1e-15)
    assert_same(w[-1], flat(reference.models)[-1], SAME_STEPS)
    assert_same(w[-1], flat(adaptive.final), 1e-15)
    at = np.linspace(0, len(log_t) - 1, len(TIMES)).astype(int)
    given = flow(save_at=gflow.exp(log_t[at]))
    assert_same(w[at], flat(given.models), SAME_STEPS)
    # Dense where the solution moves: no jump of more than a few percent of the path.
    jumps = np.linalg.norm(np.diff(w, axis=0), axis=1)
    assert np.max(jumps) < 0.1 * np.sum(jumps)


def test_every_step(reference):
    sol = flow(save_at="steps", max_steps=2000)
    assert len(sol) == int(sol.stats["num_accepted_steps"]) + 1
    assert int(sol.stats["num_steps"]) == int(reference.stats["num_steps"])
    w, log_t = flat(sol.models), np.asarray(sol.log_t)
    assert np.all(np.diff(log_t) > 0)
    at = np.linspace(0, len(log_t) - 1, len(TIMES)).astype(int)
    given = flow(save_at=gflow.exp(log_t[at]))
    assert_same(w[at], flat(given.models), SAME_STEPS)


# Time ----------


@pytest.mark.parametrize("start", [3.0, -5.0, -100.0, 1e3])
def test_flow_is_autonomous(reference, start):
    sol = flow(t_span=(start, start + END), save_at=start + TIMES)
    assert_same(flat(sol.models), flat(reference.models), SAME_STEPS * max(1, start))
    with np.errstate(divide="ignore", invalid="ignore"):
        np.testing.assert_allclose(sol.log_t, np.log(start + TIMES), rtol=1e-12)


def test_start_given_as_a_logarithm(reference):
    start = np.exp(2.5)
    sol = flow(
        t_span=(gflow.exp(2.5), gflow.exp(np.log(start + END))),
        save_at=gflow.exp(np.log(start + TIMES)),
    )
    assert_same(flat(sol.models), flat(reference.models), 1e-9)
    np.testing.assert_allclose(sol.log_t, np.log(start + TIMES), rtol=1e-14)


def test_start_beyond_floats():
    """From t₀ = e^1000 on: w(t) = log(1 + t - t₀) for x = 1, exponential loss."""
    log_t = np.array([1000.001, 1000.5, 1002.0, 1500.0])
    elapsed = log_t + np.log(-np.expm1(1000.0 - log_t))
    sol = gflow.integrate(
        Dot(jnp.zeros(1)),
        (np.ones((1, 1)), np.ones(1)),
        Exponential(),
        (gflow.exp(1000.0), gflow.exp(1500.0)),
        save_at=gflow.exp(log_t),
        rtol=RTOL,
    )
    np.testing.assert_allclose(sol.models.w[:, 0], elapsed, rtol=SAME)
    np.testing.assert_array_equal(sol.log_t, log_t)


# Data ----------


def test_order_of_the_examples_does_not_matter(reference):
    order = np.array([3, 0, 5, 1, 4, 2])
    sol = flow(data=(DATA[0][order], DATA[1][order]))
    assert_same(flat(sol.models), flat(reference.models), SAME_STEPS)
    np.testing.assert_allclose(
        sol.predictions, reference.predictions[:, order], rtol=1e-9, atol=1e-9
    )


def test_repeated_examples(reference):
    """ℒ twice: time twice as fast. Their mean: the same flow."""
    x, y = DATA
    twice = (np.concatenate([x, x]), np.concatenate([y, y]))
    fast = flow(data=twice, t_span=(0.0, END / 2), save_at=TIMES / 2)
    assert_same(flat(fast.models), flat(reference.models))
    np.testing.assert_allclose(
        fast.log_loss, reference.log_loss + np.log(2), rtol=SAME, atol=SAME
    )
    mean = flow(loss=Logistic(reduction="mean"))
    mean_twice = flow(data=twice, loss=Logistic(reduction="mean"))
    assert_same(flat(mean_twice.models), flat(mean.models), SAME_STEPS)
    np.testing.assert_allclose(mean_twice.log_loss, mean.log_loss, rtol=1e-11)
    # The mean of six is a sixth of the sum.
    slow = flow(t_span=(0.0, END / 6), save_at=TIMES / 6)
    assert_same(flat(slow.models), flat(mean.models))


# Energy and conservation ----------


def test_energy_identity(reference, adaptive):
    for sol in (reference, adaptive):
        assert sol.kinks == "none"
        assert np.max(np.abs(sol.energy_defect)) < 100 * RTOL
        assert sol.energy_defect[0] == 0
    coarse = flow(rtol=1e-4)
    assert 1e-8 < np.max(np.abs(coarse.energy_defect)) < 1e-2


def test_loss_never_increases(adaptive):
    assert np.all(np.diff(adaptive.log_loss) < 0)


def test_deep_linear_layers_stay_balanced():
    """W_{k+1}ᵀ W_{k+1} - W_k W_kᵀ is conserved."""
    rng = np.random.default_rng(5)
    shapes = [(3, 2), (4, 3), (2, 4)]
    model = DeepLinear([jnp.asarray(rng.normal(size=s)) / 2 for s in shapes])
    x, y = rng.normal(size=(5, 2)), rng.normal(size=(5, 2))
    sol = gflow.integrate(
        model, (x, y), Square(), (0.0, 20.0), save_at=TIMES, rtol=RTOL
    )
    w = [np.asarray(layer) for layer in sol.models.layers]
    moved = max(np.max(np.abs(layer[-1] - layer[0])) for layer in w)
    assert moved > 0.3
    for one, two in zip(w[:-1], w[1:], strict=True):
        gap = np.swapaxes(two, 1, 2) @ two - one @ np.swapaxes(one, 1, 2)
        np.testing.assert_allclose(gap, np.broadcast_to(gap[0], gap.shape), atol=SAME)


def test_neurons_of_degree_two_stay_balanced():
    """For φ(cz) = c^k φ(z): ‖w_j‖² - k a_j² is conserved, neuron by neuron."""
    rng = np.random.default_rng(6)
    model = TwoLayer(
        jnp.asarray(rng.normal(size=(4, 2))),
        jnp.asarray(rng.normal(size=4)),
        "squared relu",
    )
    sol = flow(model=model)
    w, a = np.asarray(sol.models.w), np.asarray(sol.models.a)
    assert np.max(np.abs(a[-1] - a[0])) > 0.1
    gap = np.sum(w**2, axis=2) - 2 * a**2
    np.testing.assert_allclose(gap, np.broadcast_to(gap[0], gap.shape), atol=SAME)


# vmap and jit ----------


@pytest.fixture(scope="module")
def loop():
    """Final parameters and losses, one solve after the other."""

    def run(cases):
        sols = [flow(**case) for case in cases]
        return np.stack([flat(s.models) for s in sols]), np.stack(
            [s.log_loss for s in sols]
        )

    return run


def lanes_flat(models):
    return np.stack([flat(jax.tree.map(lambda w, i=i: w[i], models)) for i in range(3)])


def assert_lanes(sol, expected, rtol=SAME_STEPS):
    weights, log_loss = expected
    assert_same(lanes_flat(sol.models), weights, rtol)
    np.testing.assert_allclose(sol.log_loss, log_loss, rtol=1e-9, atol=1e-9)


def test_vmap_over_models(loop):
    models = [tanh_net(seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *w: jnp.stack(w), *models)
    sol = eqx.filter_vmap(lambda m: flow(model=m))(stacked)
    assert_lanes(sol, loop([{"model": m} for m in models]))
    assert sol.log_t.shape == (3, len(TIMES))


def test_vmap_over_data(loop):
    sets = [labelled(seed) for seed in range(3)]
    x, y = (jnp.stack([jnp.asarray(s[k]) for s in sets]) for k in (0, 1))
    sol = eqx.filter_vmap(lambda x, y: flow(data=(x, y)))(x, y)
    assert_lanes(sol, loop([{"data": s} for s in sets]))


def test_vmap_over_spans(loop):
    ends = np.array([5.0, 10.0, 20.0])
    share = TIMES / END
    cases = [{"t_span": (1.0, 1 + e), "save_at": 1 + e * share} for e in ends]
    expected = loop(cases)

    def run(end):
        return flow(t_span=(1.0, 1 + end), save_at=1 + end * share)

    assert_lanes(eqx.filter_vmap(run)(jnp.asarray(ends)), expected)

    def run_log(log_end):
        late = jnp.log1p(jnp.exp(log_end) * share)
        return flow(t_span=(1.0, gflow.exp(late[-1])), save_at=gflow.exp(late))

    assert_lanes(eqx.filter_vmap(run_log)(jnp.log(jnp.asarray(ends))), expected)


def test_vmap_over_tolerances(loop):
    rtols = np.array([1e-4, 1e-6, 1e-9])
    sol = eqx.filter_vmap(lambda r: flow(rtol=r))(jnp.asarray(rtols))
    assert_lanes(sol, loop([{"rtol": r} for r in rtols]))
    steps = np.asarray(sol.stats["num_steps"])
    assert steps[0] < steps[1] < steps[2]


def test_jit_changes_nothing(reference):
    sol = eqx.filter_jit(flow)()
    assert_same(flat(sol.models), flat(reference.models), SAME_STEPS)
    np.testing.assert_allclose(sol.log_loss, reference.log_loss, rtol=1e-11)
    assert sol.result == gflow.RESULTS.successful


# Precision and scale ----------


def test_single_precision(reference):
    sol = flow(model=tanh_net(0, np.float32), rtol=1e-6)
    for leaf in jax.tree.leaves(eqx.filter(sol, eqx.is_inexact_array)):
        assert leaf.dtype == np.float32
    assert_same(flat(sol.models), flat(reference.models), 1e-4)
    np.testing.assert_allclose(sol.log_loss, reference.log_loss, rtol=1e-4, atol=1e-4)


def linear_net(w, a):
    return TwoLayer(jnp.asarray(w), jnp.asarray(a), "none")


def linearised(w0, a0, z, times):
    """The flow of dw_j/dt = a_j z, da_j/dt = ⟨w_j, z⟩, solved exactly."""
    size = np.linalg.norm(z)
    along = w0 @ z / size
    t = np.asarray(times)[:, None]
    grow, shrink = np.cosh(size * t), np.sinh(size * t)
    a = a0 * grow + along * shrink
    new_along = along * grow + a0 * shrink
    w = w0 + (new_along - along)[:, :, None] * (z / size)
    return w, a


HALF_PLANE = (
    np.array([[1.0, 0.2], [0.7, -0.4], [-0.9, -0.1], [0.3, 0.6]]),
    np.array([1.0, 1.0, -1.0, 1.0]),
)  # y_i x_i all point to the right


def test_start_at_1e_60():
    """Far below the scale of the data the flow is linear: z = ½ Σ y_i x_i."""
    rng = np.random.default_rng(8)
    w0, a0 = 1e-60 * rng.normal(size=(4, 2)), 1e-60 * rng.normal(size=4)
    x, y = HALF_PLANE
    z = 0.5 * y @ x
    times = np.array([0.0, 0.1, 1.0, 5.0, 20.0, 40.0, 50.0])
    sol = flow(
        linear_net(w0, a0),
        HALF_PLANE,
        t_span=(0.0, 200.0),
        save_at=np.append(times[:-1], 200.0),
    )
    w, a = linearised(w0, a0, z, times[:-1])
    assert np.max(np.abs(w)) < 1e-20  # still linear, to 1e-40
    assert_same(sol.models.a[:-1], a)
    assert_same(sol.models.w[:-1].reshape(6, -1), w.reshape(6, -1))
    for leaf in (sol.models.w, sol.models.a, sol.log_loss, sol.log_norm):
        assert np.all(np.isfinite(leaf))
    # It escapes, along the direction that the linear flow chose.
    assert sol.log_norm[-1] > 0
    direction = np.asarray(sol.models.a[-1])
    early = a[-1] / np.linalg.norm(a[-1])
    np.testing.assert_allclose(direction / np.linalg.norm(direction), early, atol=1e-6)


def test_three_layers_from_1e_20():
    """dp/dt = 3 p^{4/3}/(1 + e^p) from p = 1e-60, at rest until t = 2e20.

    ∫ (1 + e^u)/(3 u^{4/3}) du = 2 p₀^{-1/3} - 2 p^{-1/3} while p is small. What follows
    takes a few units of time, which no float of this size resolves: a clock that tells
    the time is stuck there.
    """
    model = DeepLinear([jnp.full((1, 1), 1e-20) for _ in range(3)])

    def loss(f, y):
        return jax.nn.softplus(-f[0])

    sol = gflow.integrate(
        model,
        (np.ones((1, 1)), np.ones(1)),
        loss,
        (0.0, 1e22),
        save_at=None,
        clock=EFolds(),
        rtol=RTOL,
    )
    p = np.asarray(sol.predictions)[:, 0, 0]
    assert p[0] == pytest.approx(1e-60, rel=1e-13) and p[-1] > 10
    assert np.all(np.diff(np.log(p)) > -RTOL)
    rest = p < 1e-6
    exact = 2 * (1e20 - np.cbrt(p[rest]) ** -1.0)
    late = exact > 0.01 * 2e20
    assert np.sum(late) > 10
    np.testing.assert_allclose(sol.t[rest][late], exact[late], rtol=SAME)


def test_start_at_1e26():
    """All examples far on the wrong side: the flow is linear, z = Σ y_i x_i."""
    x, y = HALF_PLANE
    z = y @ x
    unit = z / np.linalg.norm(z)
    w0 = 2e26 * np.array([[1.0], [0.5], [0.3], [1.0]]) * unit
    a0 = -1e26 * np.array([1.0, 0.7, 0.5, 1.0])
    times = np.array([0.0, 0.01, 0.02, 0.05, 0.08, 0.1, 0.12])
    sol = flow(linear_net(w0, a0), HALF_PLANE, t_span=(0.0, times[-1]), save_at=times)
    w, a = linearised(w0, a0, z, times)
    p = np.einsum("tj,tjd,nd->tn", a, w, y[:, None] * x)
    assert np.max(p) < -1e50
    assert_same(sol.models.a, a)
    assert_same(sol.models.w.reshape(7, -1), w.reshape(7, -1))
    np.testing.assert_allclose(sol.log_loss, np.log(np.sum(-p, axis=1)), rtol=SAME)

    # On the right side there is nothing left to do, for a time of e^(1e52).
    sol = flow(linear_net(w0, -a0), HALF_PLANE, t_span=(0.0, gflow.exp(1000.0)))
    np.testing.assert_array_equal(sol.models.w, np.broadcast_to(w0, (7, 4, 2)))
    np.testing.assert_allclose(sol.log_loss, np.full(7, np.max(p[0])), rtol=1e-13)
