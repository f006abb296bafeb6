"""Limits on kinks: closed forms, a convex solver, and flows that slide to them."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gflow
from gflow._check import checked_problem
from gflow._frozen import frozen
from gflow.limits import CERTIFICATE, SECOND_ORDER
from gflow.limits._judge import Judge
from gflow.limits._kinks import kinks_at
from gflow.limits._kkt import kkt
from gflow.limits._patterns import search_patterns
from gflow.limits._pinned import Pinned, pattern_of
from gflow.limits._search import search

from .helpers import rng
from .test_limit import separable, svm, two_neurons


LOSS = gflow.losses.Exponential()


class Net(eqx.Module):
    """a · σ(Wx), σ leaky ReLU of this slope; a is trained or not."""

    w: jax.Array
    a: jax.Array | np.ndarray
    slope: float = eqx.field(static=True, default=0.0)

    def __call__(self, x):
        z = self.w @ x
        return jnp.asarray(self.a) @ jnp.maximum(z, self.slope * z)


# Each neuron is driven to where the other example switches it on, and stays there.
DATA = np.array([[1.0, 0.0], [0.5, 1.0]]), np.array([1.0, -1.0])
START = [[1.0, -0.5001], [1e-4, 1.0]]
PINS = [1, 2]  # neuron 1 at example 0, neuron 0 at example 1


def two(start=START, slope=0.0, trained=False):
    a = np.array([1.0, -1.0])
    return Net(jnp.asarray(start, float), jnp.asarray(a) if trained else a, slope)


def residual(found, x, y, *, slope=0.0, trained=False):
    """‖θ - Σ q ∇p(θ; s)/(Lγ)‖ of two layers once more, in NumPy."""
    net = found.direction
    w, a = np.asarray(net.w), np.asarray(net.a)
    z = w @ x.T
    share = (z > 0).astype(float)
    for k, s in zip(found.kinks, found.kink_multipliers, strict=True):
        example, neuron = divmod(int(k), len(a))
        assert abs(z[neuron, example]) < 1e-14
        share[neuron, example] = 0.0 if np.isnan(s) else s
    assert np.all((share >= 0) & (share <= 1))
    slope = slope + (1 - slope) * share
    q = np.asarray(found.multipliers)
    gw = (a[:, None] * slope * (q * y)) @ x / (found.degree * found.margin)
    ga = (slope * z) @ (q * y) / (found.degree * found.margin)
    p = y * (a @ (slope * z))
    assert np.min(q) >= 0 and abs(np.sum(q) - 1) < 1e-12
    np.testing.assert_allclose(np.min(p), found.margin, rtol=1e-12)
    assert np.all(q[p > found.margin * (1 + 1e-6)] == 0)
    return float(np.linalg.norm(gw - w) + trained * np.linalg.norm(ga - a))


def test_closed_form():
    # w_1 ⊥ x_2, w_2 ⊥ x_1: margins ‖w_1‖ 2/√5 and ‖w_2‖, equal at γ = 2/3, and
    # w_1 = λ_1 x_1 - λ_2 s_1 x_2, w_2 = λ_2 x_2 - λ_1 s_2 x_1.
    found = gflow.limit(two(), DATA, LOSS)
    assert bool(found.certified), found.reason
    assert found.second_order == SECOND_ORDER.strict and bool(found.kinks_exact)
    np.testing.assert_allclose(found.margin, 2 / 3, rtol=1e-13)
    np.testing.assert_allclose(
        found.direction.w, [[2 / 3, -1 / 3], [0, 2 / 3]], atol=1e-14
    )
    np.testing.assert_array_equal(found.kinks, PINS)
    np.testing.assert_allclose(found.kink_multipliers, [2 / 5, 1 / 2], atol=1e-13)
    np.testing.assert_allclose(found.multipliers, [5 / 9, 4 / 9], atol=1e-13)
    np.testing.assert_allclose(found.kink_slack, 2 / 5, atol=1e-13)
    assert found.kkt_residual < 1e-14 and int(found.vanishing_kinks) == 0
    assert residual(found, *DATA) < 1e-14


@pytest.mark.parametrize("slope", [0.0, 0.2])
def test_against_a_convex_solver(slope):
    # The margins are concave across these kinks: minima over the branches.
    x, _ = DATA
    rows = []
    for branch in (slope, 1.0):
        rows.append(np.concatenate([x[0], -branch * x[0]]))
        rows.append(np.concatenate([-branch * x[1], x[1]]))
    u, _ = svm(np.array(rows))
    found = gflow.limit(two(slope=slope), DATA, LOSS)
    assert bool(found.certified), found.reason
    np.testing.assert_allclose(
        found.direction.w.reshape(-1), u / np.linalg.norm(u), atol=1e-9
    )
    np.testing.assert_allclose(found.margin, 1 / np.linalg.norm(u), rtol=1e-9)
    assert len(found.kinks) == 2 and 0 < float(found.kink_slack) < 1
    assert residual(found, *DATA, slope=slope) < 1e-12


def test_trained_outer_weights():
    found = gflow.limit(two(trained=True), DATA, LOSS)
    assert bool(found.certified), found.reason
    assert residual(found, *DATA, trained=True) < 1e-12
    np.testing.assert_array_equal(found.kinks, PINS)
    norms = np.linalg.norm(found.direction.w, axis=1)
    np.testing.assert_allclose(np.abs(found.direction.a), norms, rtol=1e-12)


def test_pins_are_found():
    # Neither kink at zero to begin with: the search pins both.
    found = gflow.limit(two([[1.0, -0.6], [-0.1, 1.0]]), DATA, LOSS)
    np.testing.assert_array_equal(found.kinks, PINS)
    assert bool(found.certified), found.reason


def test_without_a_fit_the_start_comes_back(monkeypatch):
    monkeypatch.setattr("gflow.limits._patterns._CHANGES", 1)
    model = two([[1.0, -0.6], [-0.1, 1.0]])
    found = gflow.limit(model, DATA, LOSS)
    assert found.reason == CERTIFICATE.not_kkt and not bool(found.is_local_max)
    assert found.kkt_residual > 0.01 and found.kinks.size == 0
    start = np.asarray(model.w) / np.linalg.norm(model.w)
    np.testing.assert_allclose(found.direction.w, start, rtol=1e-14)
    x, y = DATA
    margins = y * np.asarray(jax.vmap(found.direction)(jnp.asarray(x)))
    np.testing.assert_allclose(found.margin, np.min(margins), rtol=1e-14)


def on_pattern(branches, pins):
    """The KKT point on a pattern that is not changed, and the judge's verdict."""
    problem, params = checked_problem(two(), DATA, LOSS, None)
    w = np.array(START).reshape(-1)
    w /= np.linalg.norm(w)
    kinked = frozen(problem, params)
    flat = Pinned(kinked, params, 1.0, 0.5, pattern_of(np.array(branches), pins), w)
    options = {"tolerance": 1e-10, "dense": True}
    judge = Judge(flat, w, 1e-10, True)
    point, _ = search(flat, w, floor=0.0, accept=judge.accept, **options)
    return flat, point, judge.judge(point)


def test_wrong_patterns_are_rejected():
    right = [[True, False], [False, True]]
    _, _, verdict = on_pattern(right, PINS)
    assert verdict.kkt.residual < 1e-14 and verdict.kinks.fit

    # A pin left out: the point crosses its kink.
    for pins in ([1], [2], []):
        _, point, verdict = on_pattern(right, pins)
        assert point.residual < 1e-13 and verdict.kkt.residual > 0.1
        assert set(verdict.kinks.wrong.tolist()) == set(PINS) - set(pins)

    # An upper branch where the pin belongs: too short, and on the wrong side.
    _, _, verdict = on_pattern([[True, False], [True, True]], [1])
    assert not verdict.kinks.fit and verdict.kkt.residual > 0.1


def test_a_pin_too_many_is_released():
    x = np.array([[1.0, 0.0, 0.0], [0.5, 1.0, 0.0], [0.0, -0.5, 1.0]])
    data = x, np.array([1.0, -1.0, 1.0])
    model = two([[0.6, -0.3, 0.6], [1e-4, 0.6, -0.1]])
    found = gflow.limit(model, data, LOSS)
    assert bool(found.certified), found.reason
    assert 5 not in found.kinks  # neuron 1 is off at example 2

    problem, params = checked_problem(model, data, LOSS, None)
    w = np.array([[0.6, -0.3, 0.6], [0.0, 0.6, 0.3]]).reshape(-1)
    w /= np.linalg.norm(w)
    branches = np.array([[True, False], [False, True], [True, False]])
    pattern = pattern_of(branches, [*PINS, 5])
    flat = Pinned(frozen(problem, params), params, 1.0, 0.5, pattern, w)
    options = {"tolerance": 1e-10, "floor": 0.0, "dense": True}
    first = Judge(flat, w, 1e-10, True)
    point, _ = search(flat, w, accept=first.accept, **options)
    kinks = first.judge(point).kinks
    assert np.min(kinks.shares) < -0.01 and kinks.residual > 1e-3
    assert 5 not in kinks.released.pins and not kinks.released.branches[2, 1]
    judge, point = search_patterns(flat, w, **options)
    assert judge.judge(point).kinks.fit
    np.testing.assert_allclose(
        judge.judge(point).kkt.theta, found.direction.w.reshape(-1), atol=1e-12
    )


def test_another_share_is_no_kkt_point():
    flat, point, verdict = on_pattern([[True, False], [False, True]], PINS)
    at = kkt(flat, point.w, 1e-8)
    assert kinks_at(flat, at).residual < 1e-14
    other = at._replace(multipliers=np.array([0.5, 0.5]))
    assert kinks_at(flat, other).residual > 1e-2


def test_convex_kink_is_a_saddle():
    # One example on the kink of a neuron that would help it: shares in [0, 1] exist,
    # but the margin grows on either side.
    x, y = np.array([[1.0, 0.0], [0.0, 1.0]]), np.ones(2)
    model = Net(jnp.asarray([[1.0, 1.0], [0.5, 0.0]]), np.ones(2))
    problem, params = checked_problem(model, (x, y), LOSS, None)
    w = np.array([0.6, 0.7, 0.4, 0.0])
    pattern = pattern_of(np.array([[True, True], [True, False]]), [3])
    flat = Pinned(frozen(problem, params), params, 1.0, 0.5, pattern, w)
    judge = Judge(flat, w, 1e-10, True)
    point, _ = search(
        flat, w, tolerance=1e-10, floor=0.0, dense=True, accept=judge.accept
    )
    verdict = judge.judge(point)
    assert not verdict.kinks.stable
    assert not verdict.kinks.fit or verdict.second_order is SECOND_ORDER.saddle


def test_series_are_not_exact():
    model = gflow.nn.MLP(2, 3, 3, key=jax.random.key(0))
    x = rng(0).normal(size=(2, 2))
    problem, params = checked_problem(model, (x, np.ones(2)), LOSS, None)
    kinked = frozen(problem, params)
    w = rng(1).normal(size=sum(leaf.size for leaf in jax.tree.leaves(params)))
    w /= np.linalg.norm(w)
    for pins, exact in (([0, 3], False), ([0], True), ([0, 6], True)):
        pattern = pattern_of(np.ones((2, 6), bool), pins)
        flat = Pinned(kinked, params, 3.0, 1.0, pattern, w)
        found = kinks_at(flat, kkt(flat, w, 10.0))
        assert found.exact == exact


def test_t1_infinity(tmp_path):
    """From where neither kink is at zero, in one call, to the closed form."""
    model = two([[1.0, -0.6], [-0.6, 1.0]])
    solver = gflow.solvers.PrimalDual()
    sol = gflow.integrate(model, DATA, LOSS, (0.0, gflow.INFINITY), solver=solver)
    found = sol.limit
    assert bool(found.certified), found.reason
    assert found.kkt_residual < 1e-14 and residual(found, *DATA) < 1e-14
    np.testing.assert_allclose(found.kink_multipliers, [2 / 5, 1 / 2], atol=1e-13)
    pins = np.asarray(sol.inclusion.pins[-1])
    np.testing.assert_array_equal(found.kinks, np.sort(pins[pins >= 0]))
    # The flow comes to it like 1/log t, from below.
    np.testing.assert_allclose(found.evidence.rate, 1.0, atol=0.01)
    assert float(found.evidence.distance[-1]) < 1e-8
    assert float(found.evidence.smoothed_margin) < float(found.margin)

    # The frozen outer weights came out as a JAX array, and are no parameters for it.
    assert isinstance(sol.final.a, jax.Array)
    again = gflow.limit(sol, DATA, LOSS)
    np.testing.assert_array_equal(again.kink_multipliers, found.kink_multipliers)

    gflow.save(sol, tmp_path / "flow.npz")
    loaded = gflow.load(tmp_path / "flow.npz", model)
    assert jax.tree.structure(loaded) == jax.tree.structure(sol)
    for part in ("limit", "inclusion"):
        mine, theirs = (jax.tree.leaves(getattr(s, part)) for s in (sol, loaded))
        for a, b in zip(mine, theirs, strict=True):
            np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="without its model"):
        gflow.limit(gflow.load(tmp_path / "flow.npz"), DATA, LOSS)


def test_smooth_networks_have_no_kinks():
    x, _ = separable(0)
    data = np.array([[1.0, 0.0], [-0.5, 0.75**0.5]]), np.ones(2)
    found = gflow.limit(two_neurons([[0.9, 0.1], [0.0, 0.8]]), data, LOSS)
    np.testing.assert_allclose(found.margin, 0.5, rtol=1e-12)
    assert found.kinks.shape == (0,) and found.kink_multipliers.shape == (0,)
    assert np.isinf(found.kink_slack) and np.isinf(found.kink_room)
    assert int(found.vanishing_kinks) == 0 and bool(found.kinks_exact)
    assert found.reason in (CERTIFICATE.certified, CERTIFICATE.not_smooth)
