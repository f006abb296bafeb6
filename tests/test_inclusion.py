"""The flow along and across kinks: closed forms, energy, other integrators."""

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.nn import leaky_relu, relu
from scipy.integrate import solve_ivp

import gflow
from gflow._inclusion import split
from gflow.losses import Logistic, Square

from .test_save import assert_same


RTOL = 1e-8


class Weights(eqx.Module):
    """ℒ(W) = f(W), whatever the data."""

    w: object
    function: object = eqx.field(static=True)

    def __call__(self, x):
        return self.function(self.w)


def prediction(f, y):
    return f


NOTHING = (np.zeros((1, 1)), np.zeros(1))


def solve(function, start, end, times=4, **options):
    return gflow.integrate(
        Weights(start, function),
        NOTHING,
        prediction,
        (0.0, end),
        save_at=np.linspace(0, end, times + 1)[1:],
        rtol=RTOL,
        **options,
    )


def sag(z):
    return leaky_relu(z, 0.1)


def slide_and_leave(w):
    return jnp.abs(w[0]) - w[0] * w[1] - w[1]


def leaving(t, p=0.3, q=-0.5):
    """The flow of |w₁| - w₁w₂ - w₂ from (p, q): it slides until w₂ = 1."""
    a, b = (p + q) / 2, (p - q + 2) / 2  # w₁ = a e^t + b e^-t - 1
    roots = np.roots([a, -1, b])
    roots = roots[np.isreal(roots)].real
    meets = min(np.log(r) for r in roots if r > 1)
    w2 = 1 + a * np.exp(meets) - b * np.exp(-meets)
    leaves = meets + 1 - w2
    if t < meets:
        return [a * np.exp(t) + b * np.exp(-t) - 1, 1 + a * np.exp(t) - b * np.exp(-t)]
    if t < leaves:
        return [0, w2 + t - meets]
    return [np.cosh(t - leaves) - 1, 1 + np.sinh(t - leaves)]


# Losses of separate weights, each with its start and its flow in closed form.
EXACT = {
    "a valley": (
        lambda w: jnp.abs(w[0]) + w[1] ** 2 / 2,
        [1.0, 1.0],
        lambda t: [max(1 - t, 0), np.exp(-t)],
    ),
    "two parallel kinks": (
        lambda w: 2 * sag(w[0]) - sag(w[0] + w[1]),
        [1.0, 1.0],
        lambda t: [max(1 - t, 0), 1 + t],
    ),
    "onto a kink and off it": (slide_and_leave, [0.3, -0.5], leaving),
    "a box that is too large": (
        lambda w: 0.5 * (relu(w[0]) + 1) ** 2 + 0.5 * (relu(-w[0]) - 1) ** 2,
        [0.0],
        lambda t: [np.exp(-t) - 1],
    ),
    "a maximum": (
        lambda w: jnp.maximum(2 * w[0], w[1]),
        [0.0, 0.0],
        lambda t: [-0.4 * t, -0.8 * t],
    ),
    "antiparallel kinks": (
        lambda w: sag(w[0]) - sag(-w[0]),
        [0.0],
        lambda t: [-1.1 * t],
    ),
    "slopes 1 and 2": (
        lambda w: -jnp.where(w[0] > 0, 2 * w[0], w[0]),
        [-0.5],
        lambda t: [t - 0.5 if t < 0.5 else 2 * t - 1],
    ),
}


def test_closed_forms():
    """All at once: of a sum over separate weights each goes its own way."""

    def total(w):
        return sum(EXACT[name][0](w[name]) for name in EXACT)

    start = {name: jnp.asarray(EXACT[name][1]) for name in EXACT}
    sol = solve(total, start, 3.0, times=12)
    assert sol.kinks == "inclusion"
    for name, (_, _, exact) in EXACT.items():
        want = np.array([exact(t) for t in np.asarray(sol.t)])
        got = sol.models.w[name]
        np.testing.assert_allclose(got, want, rtol=0, atol=2e-8, err_msg=name)
    assert np.max(np.abs(sol.energy_defect)) < 1e-7
    assert sol.stats["num_steps"] < 100
    assert int(sol.inclusion.num_ambiguous) == 0


def test_resuming_while_it_slides(tmp_path):
    """From a file, on a kink: bit for bit what the whole solve does."""

    def flow(**options):
        start = jnp.array([0.3, -0.5])
        return solve(slide_and_leave, start, 3.0, throw=False, **options)

    whole, part = flow(), flow(max_steps=8)
    assert int(part.inclusion.num_events) == 1 and int(whole.inclusion.num_events) == 2
    assert float(part.resume.position.state.pins[0]) == 0  # the kink's number
    part.save(tmp_path / "part")
    loaded = gflow.load(tmp_path / "part", part.final)
    assert_same(part, loaded)
    rest = flow(resume=loaded)
    for name in ("models", "final", "log_loss", "energy_defect", "inclusion"):
        assert_same(getattr(whole, name), getattr(rest, name))

    # But for what it cost, which is counted from where each solve began.
    ends = (sol.resume.position.state for sol in (whole, rest))
    assert_same(*(eqx.tree_at(lambda end: end.work, end, None) for end in ends))


def test_a_branching_start():
    """-w₁ relu(w₂) from (1, 0): it may stay, or leave as (cosh t, sinh t)."""

    def loss(w):
        return -w[0] * relu(w[1])

    start = jnp.array([1.0, 0.0])
    gone = solve(loss, start, 1.0)
    stays = solve(loss, start, 1.0, branch="stay")
    exact = [1.5430806348152437, 1.1752011936438014]
    np.testing.assert_allclose(gone.models.w[-1], exact, atol=1e-8)
    np.testing.assert_array_equal(stays.models.w[-1], [1.0, 0.0])
    for sol, branch in ((gone, "steepest"), (stays, "stay")):
        assert sol.inclusion.num_ambiguous == 1
        assert sol.inclusion.branch == branch
        assert np.max(np.abs(sol.energy_defect)) < 1e-8


class TwoLayer(eqx.Module):
    """x ↦ Σ_j a_j φ(⟨w_j, x⟩)."""

    w: jax.Array
    a: jax.Array
    activation: object = eqx.field(static=True)

    def __call__(self, x):
        return self.a @ self.activation(self.w @ x)


def instance(seed, n, d, m):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d))
    x *= 1.5 / np.linalg.norm(x, axis=1, keepdims=True)
    y = rng.choice([-1.0, 1.0], size=n)
    w = rng.normal(size=(m, d))
    return w, rng.choice([-1.0, 1.0], size=m) * (0.5 + rng.random(m)), x, y


def ensemble(seeds, n, d, m, loss, end):
    parts = [
        np.stack(p) for p in zip(*(instance(s, n, d, m) for s in seeds), strict=True)
    ]

    def one(w, a, x, y):
        return gflow.integrate(
            TwoLayer(w, a, relu),
            (x, y),
            loss,
            (0.0, end),
            clock=gflow.clocks.Physical(),
            save_at=[end],
            rtol=RTOL,
            throw=False,
        )

    return eqx.filter_jit(jax.vmap(one))(*map(jnp.asarray, parts))


def smoothed(w, a, x, y, loss, end, width=1e-8):
    """The flow of the network whose kinks are rounded off, by SciPy's Radau."""

    def velocity(t, v):
        w_now, a_now = v[: w.size].reshape(w.shape), v[w.size :]
        z = x @ w_now.T
        slope = 0.5 * (1 + np.clip(z / width, -1, 1))
        hidden = np.where(slope < 1, slope**2 * width, z)
        f = hidden @ a_now
        pull = f - y if isinstance(loss, Square) else -y / (1 + np.exp(y * f))
        to_w = (pull[:, None] * a_now[None] * slope).T @ x
        return -np.concatenate([to_w.ravel(), hidden.T @ pull])

    start = np.concatenate([w.ravel(), a])
    found = solve_ivp(velocity, (0, end), start, "Radau", rtol=1e-10, atol=1e-12)
    last = found.y[:, -1]
    return last[: w.size].reshape(w.shape), last[w.size :]


@pytest.mark.parametrize(
    ("n", "d", "m", "loss", "end"),
    [
        (5, 2, 3, Square(), 3.0),
        pytest.param(20, 4, 6, Logistic(), 2.0, marks=pytest.mark.slow),
    ],
)
def test_random_networks(n, d, m, loss, end):
    """The energy balances, and it is the limit of smooth flows."""
    sol = ensemble(range(8), n, d, m, loss, end)
    assert np.all(np.asarray(sol.result == gflow.RESULTS.successful))
    assert np.max(np.abs(sol.energy_defect)) < 1e-6
    assert np.max(sol.stats["num_steps"]) < 500
    assert np.all(np.asarray(sol.inclusion.num_unsure) == 0)
    assert np.sum(np.asarray(sol.inclusion.pins) >= 0) > 0  # they do slide
    unique = np.flatnonzero(np.asarray(sol.inclusion.num_ambiguous) == 0)
    assert len(unique) >= 6
    for seed in unique:
        w, a = smoothed(*instance(seed, n, d, m), loss, end)
        np.testing.assert_allclose(sol.final.w[seed], w, atol=1e-6, err_msg=str(seed))
        np.testing.assert_allclose(sol.final.a[seed], a, atol=1e-6, err_msg=str(seed))


def test_pins_whose_normals_depend_on_each_other():
    # In series: where all that a layer sees is pinned, so is all that it gives.
    rng = np.random.default_rng(0)
    two = rng.normal(size=(2, 30))
    rows = np.concatenate([two, rng.normal(size=(3, 2)) @ two, np.zeros((2, 30))])
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    units = jnp.asarray(rows / np.where(norms == 0, 1, norms))
    vector = jnp.asarray(rng.normal(size=30))
    along, rest = split(units, vector)
    assert np.max(np.abs(units @ rest)) < 1e-13
    np.testing.assert_allclose(along @ units + rest, vector, atol=1e-13)
    projected = vector - np.linalg.pinv(two) @ (two @ np.asarray(vector))
    np.testing.assert_allclose(rest, projected, atol=1e-13)


@pytest.mark.slow
def test_noise_does_not_make_pins_leave():
    # Multipliers come within 1e-3 of 1 while stability limits the steps: with steps at
    # its very edge that is thousands of events, and an energy balance off by 1e-3.
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (20, 3))
    y = jnp.sign(jax.random.normal(keys[1], (20,)))
    model = gflow.nn.TwoLayer(3, 8, relu, key=keys[2])

    def solve(rtol):
        return gflow.integrate(
            model,
            (x, y),
            Square(),
            (0.0, 30.0),
            save_at=[10.0, 30.0],
            solver=dfx.Tsit5(),
            clock=gflow.clocks.Physical(),
            rtol=rtol,
        )

    rough, fine = solve(1e-5), solve(1e-7)
    assert int(fine.stats["num_steps"]) < 1.3 * int(rough.stats["num_steps"])
    assert rough.inclusion.num_events == fine.inclusion.num_events < 100
    for sol, rtol in ((rough, 1e-5), (fine, 1e-7)):
        assert np.max(np.abs(sol.energy_defect)) < 3 * rtol
    np.testing.assert_allclose(rough.log_loss, fine.log_loss, rtol=0, atol=1e-7)


def test_nor_in_single_precision():
    # (With steps at the edge of stability kinks are met over and over, and it stops.)
    g = np.random.default_rng(0)
    model = gflow.nn.TwoLayer(3, 8, relu, key=jax.random.key(1), dtype=jnp.float32)
    x = jnp.asarray(g.normal(size=(20, 3)), jnp.float32)
    y = jnp.asarray(np.where(g.normal(size=20) > 0, 1.0, -1.0), jnp.float32)
    sol = gflow.integrate(
        model, (x, y), Square(), (0.0, 30.0), save_at=[30.0], rtol=1e-3, throw=False
    )
    assert sol.result == gflow.RESULTS.successful
    assert sol.energy_defect.dtype == jnp.float32
    assert np.max(np.abs(sol.energy_defect)) < 1e-3
