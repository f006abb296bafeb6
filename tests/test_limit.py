"""The limit at t = ∞ against convex solvers, closed forms and the flow itself."""

import functools

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import gflow
from gflow._limit import CERTIFICATE, SECOND_ORDER, Limit, limit
from gflow.limits import deep_linear_certificate, squared_relu_certificate
from gflow.limits._game import solve_game
from gflow.limits._neurons import best_neuron, covering_radius
from gflow.limits._nnls import least_norm, nnls

from .helpers import rng


LOSS = gflow.losses.Exponential()


def flow(model, data, log_t, loss=LOSS):
    times = gflow.exp(jnp.geomspace(1.0, log_t, 30))
    return gflow.integrate(
        model,
        data,
        loss,
        (0.0, gflow.exp(log_t)),
        save_at=times,
        solver=dfx.Tsit5(),
        clock=gflow.clocks.LogTime(),
    )


@functools.cache
def iris_flow(sizes):
    model = gflow.nn.DeepLinear(sizes, key=jax.random.key(0))
    return flow(model, iris(), 100.0)


@functools.cache
def linear_flow():
    x, y = separable(1)
    model = gflow.nn.Linear(4, "scalar", key=jax.random.key(0))
    return flow(model, (x, y), 300.0)


def svm(rows):
    """(u, λ): the least u with rows @ u ≥ 1, by SciPy's NNLS on the dual."""
    stacked = np.vstack([rows.T, np.ones(len(rows))])
    target = np.zeros(len(stacked))
    target[-1] = 1.0
    dual, _ = scipy.optimize.nnls(stacked, target)
    rest = 1.0 - np.sum(dual)
    return rows.T @ dual / rest, dual / rest


def iris():
    x, y = gflow.data.two_classes(*gflow.data.iris(), 0, 1)
    x = gflow.nn.append_one(gflow.data.standardise(x))
    return np.asarray(x, np.float64), np.asarray(y, np.float64)


def separable(seed, n=12, d=4):
    random = rng(seed)
    x = random.normal(size=(n, d))
    y = np.where(x @ random.normal(size=d) > 0, 1.0, -1.0)
    return x, y


def linear(x, y, key=0, dtype=None):
    # A model that separates: a few steps towards the solution are enough.
    u, _ = svm(np.asarray(y)[:, None] * np.asarray(x))
    model = gflow.nn.Linear(x.shape[1], "scalar", key=jax.random.key(key), dtype=dtype)
    weight = jnp.asarray(u[None] * (1.0 + 0.1 * rng(key).normal(size=u.shape)))
    return eqx.tree_at(lambda m: m.weight, model, weight.astype(model.weight.dtype))


@pytest.mark.parametrize("method", ["dense", "krylov"])
def test_linear_is_the_support_vector_machine(method):
    x, y = separable(0)
    u, dual = svm(y[:, None] * x)
    found = limit(linear(x, y), (x, y), LOSS, method=method)
    assert isinstance(found, Limit)
    norm = np.linalg.norm(u)
    np.testing.assert_allclose(found.direction.weight[0], u / norm, atol=1e-9)
    np.testing.assert_allclose(found.margin, 1 / norm, rtol=1e-9)
    np.testing.assert_allclose(found.multipliers, dual / dual.sum(), atol=1e-9)
    np.testing.assert_array_equal(found.support, dual > 0)
    p = y * (x @ u)
    np.testing.assert_allclose(found.slack, np.min(p[dual == 0]) - 1, rtol=1e-8)
    assert found.kkt_residual < 1e-10 and found.degree == 1
    assert bool(found.certified) and bool(found.is_local_max)
    assert found.second_order == SECOND_ORDER.strict
    assert np.isnan(found.evidence.rate) and np.isnan(found.evidence.distance).all()


def test_linear_flow_is_one_over_log_t():
    x, y = separable(1)
    sol = linear_flow()
    found = limit(sol, (x, y), LOSS)
    u, _ = svm(y[:, None] * x)
    np.testing.assert_allclose(
        found.direction.weight[0], u / np.linalg.norm(u), atol=1e-9
    )
    assert bool(found.certified)
    np.testing.assert_allclose(found.evidence.predicted_rate, 1.0, rtol=1e-9)
    np.testing.assert_allclose(found.evidence.rate, 1.0, atol=0.1)
    # The distance itself, from the saved models.
    weights = np.asarray(sol.models.weight)[:, 0]
    theta = weights / np.linalg.norm(weights, axis=1, keepdims=True)
    expected = np.linalg.norm(theta - u / np.linalg.norm(u), axis=1)
    late = np.asarray(sol.log_t) > 0
    np.testing.assert_allclose(found.evidence.distance, expected[late], rtol=1e-6)


@pytest.mark.parametrize("sizes", [(5, 4, "scalar"), (5, 4, 3, "scalar")])
def test_deep_linear(sizes):
    x, y = iris()
    found = limit(iris_flow(sizes), (x, y), LOSS)
    assert bool(found.certified), found.reason
    assert found.kkt_residual < 1e-10
    assert found.second_order == SECOND_ORDER.flat and int(found.zero_modes) > 0
    # Null directions of the data decay like 1/‖W‖: JT's 1/log t is for depth one.
    depth = len(sizes) - 1
    np.testing.assert_allclose(found.evidence.predicted_rate, 1 / depth, rtol=1e-6)
    u, _ = svm(y[:, None] * x)
    product = np.eye(5)
    for layer in found.direction.layers:
        w = np.asarray(layer.weight)
        singular = np.linalg.svd(w, compute_uv=False)
        assert singular[1:].max(initial=0) < 1e-9 * singular[0]
        np.testing.assert_allclose(np.linalg.norm(w), depth**-0.5, atol=1e-9)
        product = w @ product
    np.testing.assert_allclose(
        product[0] / np.linalg.norm(product), u / np.linalg.norm(u), atol=1e-9
    )


def test_several_classes():
    # A linear model over pairs (i, j) is the SVM in the features (e_y - e_j) ⊗ x.
    x, y = gflow.data.iris()
    x = np.asarray(gflow.nn.append_one(gflow.data.standardise(x)), np.float64)
    y = np.asarray(y, np.int32)
    keep = np.concatenate([np.flatnonzero(y == c)[:8] for c in range(3)])
    x, y = x[keep], y[keep]
    rows = []
    for i in range(len(x)):
        for j in range(3):
            if j != y[i]:
                row = np.zeros((3, x.shape[1]))
                row[y[i]] += x[i]
                row[j] -= x[i]
                rows.append(row.reshape(-1))
    u, dual = svm(np.array(rows))
    loss = gflow.losses.CrossEntropy()
    model = gflow.nn.Linear(x.shape[1], 3, key=jax.random.key(0))
    rough = u * (1 + 0.1 * rng(0).normal(size=u.shape))
    model = eqx.tree_at(lambda m: m.weight, model, jnp.asarray(rough.reshape(3, -1)))
    found = limit(model, (x, y), loss)
    assert bool(found.certified), found.reason
    assert found.support.shape == (48,)
    np.testing.assert_array_equal(found.support, dual > 0)
    np.testing.assert_allclose(
        np.asarray(found.direction.weight).reshape(-1),
        u / np.linalg.norm(u),
        atol=1e-9,
    )


def test_duplicated_example():
    x, y = separable(0)
    alone = limit(linear(x, y), (x, y), LOSS)
    m = int(np.argmax(alone.multipliers))
    twice = np.concatenate([x, x[m : m + 1]]), np.append(y, y[m])
    found = limit(linear(x, y), twice, LOSS)
    assert bool(found.certified)
    np.testing.assert_allclose(
        found.direction.weight, alone.direction.weight, atol=1e-12
    )
    assert int(found.support.sum()) == int(alone.support.sum()) + 1
    assert int(found.rank) == int(alone.rank)
    total = found.multipliers[m] + found.multipliers[-1]
    np.testing.assert_allclose(total, alone.multipliers[m], rtol=1e-9)


SPLIT = np.array([[1.0, 0.0], [-0.5, 0.75**0.5]]), np.ones(2)


def two_neurons(weight, signs=(1.0, 1.0)):
    model = gflow.nn.TwoLayer(
        2,
        len(weight),
        gflow.nn.squared_relu,
        outer="fixed",
        outer_values=np.array(signs),
        key=jax.random.key(0),
    )
    return eqx.tree_at(lambda m: m.weight, model, jnp.asarray(weight, float))


def test_saddle():
    # Both neurons on the bisector of two examples 120° apart: margin cos²60° = 1/4.
    # One neuron on each example would have 1/2. Equal neurons stay equal.
    found = limit(two_neurons([[0.6, 0.7], [0.6, 0.7]]), SPLIT, LOSS)
    bisector = np.array([0.5, 0.75**0.5]) / 2**0.5
    np.testing.assert_allclose(found.direction.weight, [bisector, bisector], atol=1e-9)
    np.testing.assert_allclose(found.margin, 0.25, rtol=1e-12)
    assert found.kkt_residual < 1e-10
    assert found.second_order == SECOND_ORDER.saddle
    assert int(found.growing_modes) == 1 and float(found.curvature) > 0.1
    assert not bool(found.is_local_max) and not bool(found.certified)
    assert found.reason == CERTIFICATE.saddle

    # A little apart, the flow leaves it, and so does the search.
    apart = limit(two_neurons([[0.61, 0.7], [0.6, 0.7]]), SPLIT, LOSS)
    np.testing.assert_allclose(apart.margin, 0.5, rtol=1e-12)
    np.testing.assert_allclose(apart.direction.weight, SPLIT[0] / 2**0.5, atol=1e-9)


def relu_neurons(weight, outer):
    model = gflow.nn.TwoLayer(
        2,
        len(weight),
        outer="fixed",
        outer_values=np.array(outer),
        key=jax.random.key(0),
    )
    return eqx.tree_at(lambda m: m.weight, model, jnp.asarray(weight, float))


def test_relu():
    # Both examples on the active side: there the model is linear.
    x = np.array([[1.0, 0.2], [0.3, 1.0]])
    found = limit(relu_neurons([[0.5, 0.7]], [1.0]), (x, np.ones(2)), LOSS)
    u, _ = svm(x)
    assert bool(found.certified), found.reason
    np.testing.assert_allclose(
        found.direction.weight[0], u / np.linalg.norm(u), atol=1e-9
    )

    assert found.kinks.shape == (0,) and bool(found.kinks_exact)


def squared_relu(seed, n=10, d=4, width=8):
    random = rng(seed)
    x = random.normal(size=(n, d))
    y = np.where(random.normal(size=n) > 0, 1.0, -1.0)
    model = gflow.nn.TwoLayer(
        d, width, gflow.nn.squared_relu, outer="fixed", key=jax.random.key(seed)
    )
    return model, (x, y)


@pytest.mark.parametrize("seed, slow", [(4, False), (1, True)])
def test_wide_squared_relu(seed, slow):
    model, data = squared_relu(seed)
    sol = flow(model, data, 1e3)
    found = limit(sol, data, LOSS)
    x, y = data
    assert found.kkt_residual < 1e-10
    # The conditions once more, in NumPy.
    w, q = np.asarray(found.direction.weight), np.asarray(found.multipliers)
    a = np.asarray(found.direction.outer.value)
    active = np.maximum(w @ x.T, 0)
    p = y * (a @ active**2)
    np.testing.assert_allclose(np.min(p), found.margin, rtol=1e-12)
    gradient = 2 * np.einsum("i,j,ji,ik->jk", q * y, a, active, x)
    np.testing.assert_allclose(gradient / (2 * found.margin), w, atol=1e-10)
    np.testing.assert_allclose(np.linalg.norm(w), 1.0, rtol=1e-12)
    assert q.min() >= 0 and np.all(q[p > found.margin * (1 + 1e-6)] == 0)
    # The margins of the flow go up to it.
    assert float(found.evidence.smoothed_margin) < float(found.margin)
    np.testing.assert_allclose(found.evidence.smoothed_margin, found.margin, rtol=0.05)
    # Wide networks have manifolds of limits, which the flow approaches like a power of
    # log t, slower than 1/log t: at the rate of the curvature, or too slowly to tell.
    assert int(found.zero_modes) > 0
    evidence = found.evidence
    assert np.all(np.diff(np.asarray(evidence.distance)[-15:]) < 0)
    if slow:
        assert float(evidence.predicted_rate) < 0.05
        assert not bool(found.certified)
    else:
        assert bool(found.certified), found.reason
        assert 0.05 < float(evidence.predicted_rate) < 0.5
        np.testing.assert_allclose(
            evidence.rate, evidence.predicted_rate, atol=0.1, rtol=0
        )
    certificate = squared_relu_certificate(found, data)
    np.testing.assert_allclose(certificate.local_gap, 0, atol=1e-9)
    np.testing.assert_allclose(certificate.dual_gap, 0, atol=1e-9)
    assert float(certificate.global_upper) >= float(found.margin) * (1 - 1e-9)


def test_unseparated_data_are_refused():
    x, y = separable(0)
    with pytest.raises(ValueError, match="does not separate the data"):
        limit(linear(x, y), (x, -y), LOSS)


def test_other_arguments_are_refused():
    x, y = separable(0)
    model = linear(x, y)
    with pytest.raises(ValueError, match="no exponential tail"):
        limit(model, (x, y), gflow.losses.Square())
    with pytest.raises(ValueError, match="method='svd'"):
        limit(model, (x, y), LOSS, method="svd")
    with pytest.raises(ValueError, match="tol=0"):
        limit(model, (x, y), LOSS, tol=0)
    with pytest.raises(ValueError, match="positively homogeneous"):
        limit(eqx.nn.MLP(4, "scalar", 3, 1, key=jax.random.key(0)), (x, y), LOSS)
    lanes = jax.tree.map(lambda leaf: leaf[None], linear_flow())
    with pytest.raises(ValueError, match="1 leading axes"):
        limit(lanes, (x, y), LOSS)
    with pytest.raises(ValueError, match="traced"):
        eqx.filter_jit(lambda m: limit(m, (x, y), LOSS))(model)


def test_float32():
    x, y = separable(0)
    u, _ = svm(y[:, None] * x)
    found = limit(linear(x, y, dtype=jnp.float32), (x, y), LOSS)
    assert found.direction.weight.dtype == jnp.float32
    assert found.margin.dtype == jnp.float32
    assert bool(found.certified)
    np.testing.assert_allclose(
        found.direction.weight[0], u / np.linalg.norm(u), atol=1e-5
    )


def test_krylov_is_dense():
    x, y = iris()
    sol = iris_flow((5, 4, "scalar"))
    dense, krylov = (limit(sol, (x, y), LOSS, method=m) for m in ("dense", "krylov"))
    for name in ("margin", "slack", "multipliers"):
        np.testing.assert_allclose(
            getattr(dense, name), getattr(krylov, name), rtol=1e-8, atol=1e-10
        )
    for a, b in zip(
        jax.tree.leaves(dense.direction), jax.tree.leaves(krylov.direction), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-3)
    assert bool(krylov.certified)


def test_another_flows_limit_is_not_certified():
    # The limit that belongs to other final weights: a KKT point, but not of this flow.
    data = SPLIT[0], np.array([1.0, 1.0])
    sol = flow(two_neurons([[0.9, 0.1], [0.0, 0.8]]), data, 1e3)
    own = limit(sol, data, LOSS)
    assert bool(own.certified), own.reason
    other = eqx.tree_at(
        lambda s: s.final.weight, sol, jnp.asarray([[-0.4, 0.8], [0.9, 0.1]])
    )
    found = limit(other, data, LOSS)
    assert found.kkt_residual < 1e-10 and bool(found.is_local_max)
    assert found.reason == CERTIFICATE.not_approached
    assert float(found.evidence.rate) < 0.1


def test_too_few_saved_times():
    x, y = separable(1)
    sol = linear_flow()
    late = [-2, -1]
    few = eqx.tree_at(
        lambda s: (s.log_t, s.models),
        sol,
        jax.tree.map(lambda leaf: leaf[jnp.array(late)], (sol.log_t, sol.models)),
    )
    assert limit(few, (x, y), LOSS).reason == CERTIFICATE.no_evidence


def test_saved_with_a_solution(tmp_path):
    x, y = separable(1)
    sol = linear_flow()
    found = limit(sol, (x, y), LOSS)
    sol = eqx.tree_at(lambda s: s.limit, sol, found, is_leaf=lambda x: x is None)
    gflow.save(sol, tmp_path / "flow.npz")
    again = gflow.load(tmp_path / "flow.npz", sol.final).limit
    assert again.reason == CERTIFICATE.certified
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)


# --- Deep linear networks ------------------------------------------------------------


def test_deep_linear_certificate():
    x, y = iris()
    sol = iris_flow((5, 4, 3, "scalar"))
    found = deep_linear_certificate(limit(sol, (x, y), LOSS), (x, y))
    u, _ = svm(y[:, None] * x)
    np.testing.assert_allclose(found.svm_direction, u / np.linalg.norm(u), atol=1e-9)
    np.testing.assert_allclose(found.svm_margin, 1 / np.linalg.norm(u), rtol=1e-9)
    np.testing.assert_allclose(found.svm_gap, 0, atol=1e-12)
    np.testing.assert_allclose(found.margin, found.svm_margin, rtol=1e-9)
    np.testing.assert_allclose(found.shares, 3**-0.5, rtol=1e-9)
    np.testing.assert_allclose(found.stable_ranks, 1, rtol=1e-9)
    np.testing.assert_allclose(found.alignments, [1, 1], rtol=1e-9)
    assert float(found.largest_deviation) < 1e-9

    # On the way there, none of that; at a matrix of rank two, known numbers.
    early = deep_linear_certificate(jax.tree.map(lambda w: w[0], sol.models), (x, y))
    assert float(early.angle) > 0.1 and float(early.margin) < float(early.svm_margin)
    model = gflow.nn.DeepLinear((5, 2, "scalar"), key=jax.random.key(0))
    first, last = jnp.eye(2, 5) * jnp.array([[3.0], [4.0]]), jnp.array([[0.0, 5.0]])
    model = eqx.tree_at(
        lambda m: (m.layers[0].weight, m.layers[1].weight), model, (first, last)
    )
    known = deep_linear_certificate(model, (x, y))
    np.testing.assert_allclose(known.shares, 2**-0.5, rtol=1e-12)
    np.testing.assert_allclose(known.stable_ranks, [25 / 16, 1], rtol=1e-12)
    np.testing.assert_allclose(known.rank_one_residuals, [0.6, 0], atol=1e-12)
    np.testing.assert_allclose(known.alignments, [1.0], rtol=1e-12)


def test_deep_linear_certificate_refuses():
    x, y = iris()
    linear_model = gflow.nn.Linear(5, "scalar", key=jax.random.key(0))
    with pytest.raises(ValueError, match="no linear predictor separates"):
        deep_linear_certificate(
            linear_model, (np.concatenate([x, x]), np.append(y, -y))
        )
    with pytest.raises(ValueError, match="3 outputs"):
        model = gflow.nn.Linear(5, 3, key=jax.random.key(0))
        deep_linear_certificate(model, (x, y))
    with pytest.raises(ValueError, match="got TwoLayer"):
        deep_linear_certificate(two_neurons([[1.0, 0.0], [0.0, 1.0]]), SPLIT)


def test_non_negative_least_squares():
    random = rng(3)
    for shape in ((30, 8), (6, 15), (20, 20)):
        a, b = random.normal(size=shape), random.normal(size=shape[0])
        expected, residual = scipy.optimize.nnls(a, b)
        found = nnls(a, b)
        assert np.min(found) >= 0
        np.testing.assert_allclose(np.linalg.norm(a @ found - b), residual, atol=1e-12)
        if shape[0] >= shape[1]:
            np.testing.assert_allclose(found, expected, atol=1e-11)
    assert least_norm(np.array([[1.0, 0.0], [-1.0, 0.0]]), np.ones(2)) is None


# --- Squared ReLU --------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 4), (20, 10), (12, 40)])
def test_game_against_scipy(shape):
    n, m = shape
    a = rng(n).normal(size=shape)
    a[:, -1] = a[:, 0]  # columns that are the same
    value, s, q, gap = solve_game(a)
    solved = scipy.optimize.linprog(
        np.append(np.zeros(m), -1.0),
        A_ub=np.hstack([-a, np.ones((n, 1))]),
        b_ub=np.zeros(n),
        A_eq=np.append(np.ones(m), 0.0)[None],
        b_eq=[1.0],
        bounds=[(0, None)] * m + [(None, None)],
    )
    np.testing.assert_allclose(value, -solved.fun, atol=1e-10)
    np.testing.assert_allclose(gap, 0, atol=1e-12)
    np.testing.assert_allclose([s.sum(), q.sum()], 1, rtol=1e-12)
    np.testing.assert_allclose(np.min(a @ s), value, atol=1e-12)


@pytest.mark.parametrize("d", [2, 3])
def test_best_neuron(d):
    random = rng(d)
    x, c = random.normal(size=(9, d)), random.normal(size=9)
    theta, value = best_neuron(x, c, np.zeros((0, d)))
    grid = random.normal(size=(100_000, d))
    grid /= np.linalg.norm(grid, axis=1, keepdims=True)
    values = np.maximum(grid @ x.T, 0) ** 2 @ c
    assert values.max() <= value + 1e-12 < values.max() + 1e-2
    np.testing.assert_allclose(np.maximum(x @ theta, 0) ** 2 @ c, value, rtol=1e-12)


def test_covering_radius():
    angles = np.array([0.1, 1.0, 2.5, 4.0])
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    radius, exact = covering_radius(points)
    gap = 0.1 + 2 * np.pi - 4.0
    assert exact
    np.testing.assert_allclose(radius, 2 * np.sin(gap / 4), rtol=1e-12)
    radius, exact = covering_radius(np.concatenate([np.eye(3), -np.eye(3)]))
    # The farthest are (1, 1, 1)/√3 and its like.
    assert not exact
    np.testing.assert_allclose(radius, (2 - 2 / 3**0.5) ** 0.5, rtol=1e-2)
    assert covering_radius(np.zeros((0, 2)))[0] == np.inf


def test_squared_relu_certificate():
    best = limit(two_neurons([[0.9, 0.1], [0.0, 0.8]]), SPLIT, LOSS)
    found = squared_relu_certificate(best, SPLIT)
    np.testing.assert_allclose(found.shares, [0.5, 0.5], atol=1e-9)
    np.testing.assert_allclose(found.margin, 0.5, rtol=1e-12)
    np.testing.assert_allclose(found.local_gap, 0, atol=1e-10)
    np.testing.assert_allclose(found.dual_gap, 0, atol=1e-10)
    assert bool(found.local_holds) and bool(found.global_is_exact)
    # The global value by a grid of neurons of both signs.
    angles = np.linspace(0, 2 * np.pi, 721)[:-1]
    grid = np.stack([np.cos(angles), np.sin(angles)])
    active = np.maximum(SPLIT[0] @ grid, 0) ** 2
    value, _, _, _ = solve_game(np.concatenate([active, -active], axis=1))
    np.testing.assert_allclose(found.global_value, value, rtol=1e-4)
    np.testing.assert_allclose(found.global_upper, found.global_value, rtol=1e-8)
    # No neuron has a negative sign: nothing covers that half.
    assert float(found.cover) == np.inf and not bool(found.is_informative)

    # The saddle meets the local guarantee, and is not the global maximum.
    saddle = limit(two_neurons([[0.6, 0.7], [0.6, 0.7]]), SPLIT, LOSS)
    at_saddle = squared_relu_certificate(saddle, SPLIT)
    assert bool(at_saddle.local_holds)
    assert float(at_saddle.margin) < 0.51 * float(at_saddle.global_value)
    # Shares that are no solution of the linear programme do not meet it.
    uneven = squared_relu_certificate(two_neurons([[1.0, 0.0], [-1.0, 1.7]]), SPLIT)
    assert not bool(uneven.local_holds) and float(uneven.local_gap) > 0.1


def test_informative_global_bound():
    # Sixty neurons of either sign around the circle, moved a little since t_0.
    angles = 2 * np.pi * np.arange(60) / 60
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    weight = np.repeat(circle, 2, axis=0)
    model = two_neurons(weight, signs=np.tile([1.0, -1.0], 60))
    turn = np.array([[np.cos(0.01), -np.sin(0.01)], [np.sin(0.01), np.cos(0.01)]])
    start = two_neurons(weight @ turn, signs=np.tile([1.0, -1.0], 60))
    found = squared_relu_certificate(model, SPLIT, start=start)
    np.testing.assert_allclose(found.drift, 2 * np.sin(0.005), rtol=1e-9)
    np.testing.assert_allclose(found.cover, 2 * np.sin(np.pi / 120), rtol=1e-9)
    np.testing.assert_allclose(found.epsilon, found.cover)
    np.testing.assert_allclose(
        found.global_bound, found.global_value - 4 * found.epsilon, rtol=1e-12
    )
    assert bool(found.is_informative)
    # Equal shares of both signs cancel: far from a limit, and the bound tells.
    assert float(found.margin) < 1e-9 and not bool(found.global_holds)


def test_squared_relu_certificate_refuses():
    weight = [[1.0, 0.0], [0.0, 1.0]]
    with pytest.raises(ValueError, match="differ in absolute value"):
        squared_relu_certificate(two_neurons(weight, signs=(1.0, 2.0)), SPLIT)
    relu = gflow.nn.TwoLayer(2, 2, outer="fixed", key=jax.random.key(0))
    with pytest.raises(ValueError, match="not squared ReLU"):
        squared_relu_certificate(relu, SPLIT)
    trained = gflow.nn.TwoLayer(2, 2, gflow.nn.squared_relu, key=jax.random.key(0))
    with pytest.raises(ValueError, match="trained outer weights"):
        squared_relu_certificate(trained, SPLIT)
