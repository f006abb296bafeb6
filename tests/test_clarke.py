"""The Clarke subdifferential at points, against closed forms and enumeration."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import lsq_linear

import gflow
from gflow.clarke import min_norm_subgradient, resolve, subdifferential

from .helpers import rng, tolerance


# Points of the plane with closed forms.


class Pieces(eqx.Module):
    """w ↦ the four numbers lo_k z_k + (hi_k - lo_k) relu(z_k), z_k = <n_k, w>."""

    w: jax.Array

    def __call__(self, x):
        z = x[:, :2] @ self.w
        return x[:, 2] * z + (x[:, 3] - x[:, 2]) * jax.nn.relu(z)


def terms(f, y):
    """Σ_k ½ q_k f_k² + l_k f_k."""
    return jnp.sum(y[:, 0] * jnp.square(f) / 2 + y[:, 1] * f)


# W, then n, lo, hi, q, l of each term; ∂̄ℒ, the velocity; the kinks with two slopes.
CASES = {
    "|w1| + w2^2/2": (
        (0.0, 0.5),
        [(1, 0, -1, 1, 0, 1), (0, 1, 1, 1, 1, 0)],
        (0.0, 0.5),
        (0.0, -0.5),
    ),
    "2 leaky(w1) - leaky(w1 + w2)": (
        (0.0, 2.0),
        [(1, 0, 0.1, 1, 0, 2), (1, 1, 0.1, 1, 0, -1)],
        (0.0, -1.0),
        (0.0, 1.0),
    ),
    "(relu(w) + 1)^2/2 + (relu(-w) - 1)^2/2": (
        (0.0, 0.0),
        [(1, 0, 0, 1, 1, 1), (-1, 0, 0, 1, 1, -1)],
        (1.0, 0.0),
        (-1.0, 0.0),
    ),
    "six of eight patterns": (
        (0.0, 0.0),
        [(1, 0, 0, 1, 0, 1), (0, 1, 0, 1, 0, 1), (1, 1, 0, 1, 0, -1)]
        + [(1, 1, 1, 1, 0, -1)],
        (-0.5, -0.5),
        (1.0, 1.0),
    ),
    "max(2 w1, w2)": (
        (0.0, 0.0),
        [(2, -1, 0, 1, 0, 1), (0, 1, 1, 1, 0, 1)],
        (0.4, 0.8),
        (-0.4, -0.8),
    ),
    "leaky(w) - leaky(-w)": (
        (0.0, 0.0),
        [(1, 0, 0.1, 1, 0, 1), (-1, 0, 0.1, 1, 0, -1)],
        (1.1, 0.0),
        (-1.1, 0.0),
    ),
}
HULLED = {
    "(relu(w) + 1)^2/2 + (relu(-w) - 1)^2/2",
    "six of eight patterns",
    "leaky(w) - leaky(-w)",
}
each_case = pytest.mark.parametrize("name", CASES)


def case(name, dtype=float):
    w, rows, *expected = CASES[name]
    table = np.zeros((4, 6))
    table[: len(rows)] = rows
    data = (table[None, :, :4].astype(dtype), table[None, :, 4:].astype(dtype))
    return Pieces(jnp.asarray(w, dtype)), data, *expected


def stacked(dtype):
    cases = [case(name, dtype) for name in CASES]
    models = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(c[0] for c in cases))
    data = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(c[1] for c in cases))
    return models, data, [c[2] for c in cases], [c[3] for c in cases]


@each_case
def test_least_norm_of_closed_forms(name):
    model, data, expected, _ = case(name)
    found = min_norm_subgradient(model, data, terms)
    np.testing.assert_allclose(found.value.w, expected, **tolerance(float))
    size = np.linalg.norm(expected)
    np.testing.assert_allclose(found.norm, size, **tolerance(float))
    np.testing.assert_allclose(np.exp(found.log_norm), size, **tolerance(float))
    assert bool(found.exact)
    assert bool(found.hull) == (name in HULLED)
    # The certificate: nearly zero, and no less than the squared error.
    error = np.linalg.norm(np.asarray(found.value.w) - expected)
    assert 1e-12 > found.gap >= max(error**2 - 1e-30, 0)
    np.testing.assert_allclose(
        found.value.w, -np.exp(found.log_scale) * found.direction.w
    )


def test_multipliers_and_kinks():
    model, data, *_ = case("2 leaky(w1) - leaky(w1 + w2)")
    found = min_norm_subgradient(model, data, terms)
    # The terms that are zero for every W have no kinks.
    assert int(found.num_at_zero) == 1
    assert found.kinks.tolist() == [0, -1, -1, -1]
    np.testing.assert_allclose(found.multipliers, [4 / 9, 0, 0, 0], **tolerance(float))
    # At (2, -2) it would be the second one. `tol` says how near is near enough.
    near = Pieces(jnp.array([2.0, -2.0 + 1e-6]))
    assert int(min_norm_subgradient(near, data, terms).num_at_zero) == 0
    coarse = min_norm_subgradient(near, data, terms, tol=1e-5)
    assert coarse.kinks.tolist() == [1, -1, -1, -1]


def test_float32_under_jit_and_vmap():
    models, data, expected, _ = stacked(np.float32)

    @eqx.filter_jit
    @eqx.filter_vmap
    def least(model, data):
        return min_norm_subgradient(model, data, terms)

    found = least(models, data)
    assert found.value.w.dtype == found.log_norm.dtype == np.float32
    np.testing.assert_allclose(found.value.w, expected, **tolerance(np.float32, 4))
    assert np.all(np.asarray(found.exact))
    assert found.hull.tolist() == [name in HULLED for name in CASES]


def test_resolve_closed_forms():
    models, data, _, velocities = stacked(float)

    @eqx.filter_jit
    @eqx.filter_vmap
    def leave(model, data):
        return resolve(model, data, terms)

    found = leave(models, data)
    np.testing.assert_allclose(found.velocity.w, velocities, **tolerance(float, 10))
    speed = np.linalg.norm(velocities, axis=1)
    np.testing.assert_allclose(found.speed, speed, **tolerance(float, 10))
    assert np.all(np.asarray(found.consistent))
    assert not np.any(np.asarray(found.crowded | found.jumps))
    pinned = [[k for k in pins if k >= 0] for pins in found.pins.tolist()]
    assert pinned == [[0], [0], [], [], [0], []]


def test_cells_of_closed_forms():
    model, data, least, _ = case("six of eight patterns")
    found = subdifferential(model, data, terms)
    assert found.patterns.shape == (6, 4) and not found.in_series
    # The last kink has one slope, and is the third one.
    assert np.all(found.patterns[:, 2] == found.patterns[:, 3])
    together = found.patterns[:, :3].astype(int).tolist()
    assert sorted(together) == sorted(
        s for s in map(list, itertools.product([0, 1], repeat=3)) if s not in _NEVER
    )
    np.testing.assert_allclose(found.base, [-1, -1])
    generators = [[1, 0], [0, 1], [-1, -1], [0, 0]]
    np.testing.assert_allclose(found.generators, generators)
    np.testing.assert_allclose(found.normals, [[1, 0], [0, 1], [1, 1], [1, 1]])
    slopes = np.asarray(found.patterns, float)
    sums = found.base[None] + slopes @ np.asarray(found.generators)
    np.testing.assert_allclose(found.vertices, sums)
    # The element of least norm is the nearest point of the hull.
    assert np.min(found.vertices @ np.array(least)) >= np.sum(np.square(least)) - 1e-14
    model, data, *_ = case("|w1| + w2^2/2")
    found = subdifferential(model, data, terms)
    assert found.kinks.tolist() == [0]
    np.testing.assert_allclose(found.vertices, [[-1, 0.5], [1, 0.5]])


_NEVER = ([0, 0, 1], [1, 1, 0])


def test_the_box_may_say_stationary_falsely():
    # It contains zero; ∂ℒ does not, and the flow leaves.
    model, data, *_ = case("six of eight patterns")
    found = subdifferential(model, data, terms)
    np.testing.assert_allclose(found.base + found.generators[:2].sum(0), 0)
    assert [True, True, False, False] not in found.patterns.tolist()
    assert min_norm_subgradient(model, data, terms).norm > 0.7


# Two-layer networks with kinks made active on purpose.


class Net(eqx.Module):
    """(x, e) ↦ Σ_j a_j φ(<w_j, x>) + <c, e>, φ with slopes lo and hi."""

    w: jax.Array
    a: jax.Array
    c: jax.Array
    slopes: gflow.nn.Fixed

    def __call__(self, x):
        z = self.w @ x[:3]
        low, high = self.slopes.value
        h = low * z + (high - low) * jax.nn.relu(z)
        return jnp.sum(self.a * h) + jnp.sum(self.c * x[3:])


NEURONS, EXAMPLES, ACTIVE = 3, 6, 4
SLOPES = [(0.0, 1.0), (0.1, 1.0), (-1.0, 1.0), (1.0, 0.2)]
KINDS = ["independent", "dependent", "parallel", "antipodal"]


def _active_inputs(kind, random):
    """Inputs in the plane orthogonal to the first neuron."""
    if kind == "independent":
        return random.normal(size=(2, 2))
    rows = random.normal(size=(ACTIVE, 2))
    if kind == "parallel":
        rows[1], rows[3] = 2 * rows[0], 0.5 * rows[2]
    if kind == "antipodal":
        rows[1], rows[3] = -rows[0], -3 * rows[2]
    return rows


def network(kind, slopes, seed, margin):
    """A network and data, whose first neuron is at the kink of the first examples."""
    random = rng(seed)
    plane = _active_inputs(kind, random)
    x = random.normal(size=(EXAMPLES, 3))
    x[: len(plane)] = np.column_stack([plane, np.zeros(len(plane))])
    w, a = random.normal(size=(NEURONS, 3)), random.normal(size=NEURONS)
    w[0, :2] = 0
    # Each example has an offset of its own, for the margin that is wanted.
    y = random.choice([-1.0, 1.0], size=EXAMPLES)
    f = _hidden(x @ w.T, slopes) @ a
    c = y * (margin + random.normal(size=EXAMPLES)) - f
    x = np.concatenate([x, np.eye(EXAMPLES)], axis=1)
    fixed = gflow.nn.Fixed(jnp.asarray(slopes))
    model = Net(jnp.asarray(w), jnp.asarray(a), jnp.asarray(c), fixed)
    return model, (x, y), len(plane)


def _hidden(z, slopes):
    return slopes[0] * z + (slopes[1] - slopes[0]) * np.maximum(z, 0)


def _cells(plane):
    """The sign patterns of the arrangement of the lines orthogonal to the rows."""
    across = np.arctan2(plane[:, 1], plane[:, 0])
    edges = np.sort(np.concatenate([across + np.pi / 2, across - np.pi / 2]) % np.pi)
    edges = np.concatenate([edges, edges + np.pi])
    edges = edges[np.append(np.diff(edges) > 1e-9, True)]
    middle = (edges + np.append(edges[1:], edges[0] + 2 * np.pi)) / 2
    sides = plane @ np.stack([np.cos(middle), np.sin(middle)])
    return np.unique((sides > 0).T, axis=0)


def _nearest(vertices):
    """The point of least norm of the hull of points of the plane."""
    angles = np.sort(np.arctan2(vertices[:, 1], vertices[:, 0]))
    gaps = np.diff(np.append(angles, angles[0] + 2 * np.pi))
    if np.max(gaps) < np.pi:
        return np.zeros(2)
    best = min(vertices, key=np.linalg.norm)
    for one, other in itertools.combinations(vertices, 2):
        way = other - one
        share = np.clip(-(one @ way) / max(way @ way, 1e-300), 0, 1)
        best = min([best, one + share * way], key=np.linalg.norm)
    return best


def by_hand(model, data, active):
    """∂̄ℒ over e^log_scale, from the formulas; and both norms at the first neuron."""
    w, a, c = np.asarray(model.w), np.asarray(model.a), np.asarray(model.c)
    x, y = data[0][:, :3], data[1]
    low, high = np.asarray(model.slopes.value)
    z = x @ w.T
    h = _hidden(z, (low, high))
    p = y * (h @ a + c)
    log_scale = -np.min(p)
    r = -y * np.exp(-p - log_scale)
    slope = np.where(z > 0, high, low)
    by_w = np.einsum("i,j,ij,id->jd", r, a, slope, x)
    u = a[0] * (high - low) * r[:active, None] * x[:active]
    box = lsq_linear(u.T, -by_w[0], (0, 1), method="bvls", tol=1e-14).x
    boxed = np.linalg.norm(by_w[0] + box @ u)
    cells = _cells(x[:active, :2]).astype(float)
    by_w[0, :2] = _nearest(by_w[0, :2] + cells @ u[:, :2])
    return (by_w, r @ h, r), log_scale, (boxed, np.linalg.norm(by_w[0]))


@eqx.filter_jit
@eqx.filter_vmap
def least_norms(model, data):
    return min_norm_subgradient(model, data, gflow.losses.Exponential())


SPECS = list(itertools.product(KINDS, SLOPES, range(3)))


def many_networks(margin):
    nets = [network(k, s, 7 * i, margin) for i, (k, s, _) in enumerate(SPECS)]
    models = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(n[0] for n in nets))
    data = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(n[1] for n in nets))
    return nets, least_norms(models, data)


@pytest.mark.parametrize("margin", [0.0, 800.0])
def test_least_norm_of_two_layer_networks(margin):
    nets, found = many_networks(margin)
    # Margins of 800 are known to 1e-13, and so are the weights e^-p.
    error = 1e-12 if margin == 0 else 1e-11
    too_short = 0
    for i, (model, points, active) in enumerate(nets):
        expected, log_scale, (box, here) = by_hand(model, points, active)
        ours = jax.tree.map(lambda leaf, i=i: leaf[i], found)
        factor, direction = -np.exp(ours.log_scale - log_scale), ours.direction
        for name, other in zip("wac", expected, strict=True):
            np.testing.assert_allclose(
                factor * getattr(direction, name), other, rtol=error, atol=error
            )
        log_norm = np.log(np.sqrt(sum(np.sum(leaf**2) for leaf in expected)))
        np.testing.assert_allclose(ours.log_norm, log_scale + log_norm, atol=error)
        assert bool(ours.exact), SPECS[i]
        assert int(ours.num_at_zero) == active
        # The box is not asked where it is larger than the hull.
        assert box <= here + 1e-9
        assert bool(ours.hull) or abs(box - here) < 1e-9
        too_short += box < 0.9 * here
    assert too_short >= 5
    if margin > 0:
        assert np.all(np.asarray(found.norm) == 0)
        assert np.all(np.asarray(found.value.w) == 0)


def test_jit_and_vmap_are_eager():
    nets, lanes = many_networks(0.0)
    # One of the hull, one of the box.
    for i in (SPECS.index(("dependent", SLOPES[0], 0)), 0):
        model, points, _ = nets[i]
        assert bool(lanes.hull[i]) == (i > 0)
        lane = jax.tree.map(lambda leaf, i=i: leaf[i], lanes)
        alone = min_norm_subgradient(model, points, gflow.losses.Exponential())
        # Their certificates are rounding, as are the differences.
        same = eqx.tree_at(
            lambda s: (s.gap, s.log_gap), lane, (alone.gap, alone.log_gap)
        )
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13),
            same,
            alone,
        )


# Kinks in series: an outer bound.


class Series(eqx.Module):
    """max(w) and relu(v relu(u))."""

    w: jax.Array
    u: jax.Array
    v: jax.Array

    def __call__(self, x):
        deep = jax.nn.relu(self.v * jax.nn.relu(self.u))
        return x * jnp.stack([jnp.max(self.w), deep, self.u])


def weighted(f, y):
    return jnp.sum(f * y)


def _series(w, u, weights):
    model = Series(jnp.asarray(w), jnp.asarray(u), jnp.asarray(1.0))
    data = (jnp.ones(1), jnp.asarray([weights]))
    return min_norm_subgradient(model, data, weighted)


def test_max_of_three_is_a_hull():
    found = _series([1.0, 1.0, 1.0], 1.0, [3.0, 0.0, 0.0])
    np.testing.assert_allclose(found.value.w, [1.0, 1.0, 1.0], **tolerance(float))
    assert bool(found.hull) and not bool(found.exact)
    two = _series([1.0, 1.0, 0.0], 1.0, [3.0, 0.0, 0.0])
    np.testing.assert_allclose(two.value.w, [1.5, 1.5, 0.0], **tolerance(float))


def test_deep_kinks_in_series():
    # ∂ is the segment from -1/2 to 1 + 1/2: the box has no kink that does anything.
    found = _series([2.0, 1.0, 0.0], 0.0, [0.0, 2.0, -0.5])
    np.testing.assert_allclose(found.value.u, 0, **tolerance(float))
    assert bool(found.hull) and not bool(found.exact)
    assert int(found.num_at_zero) == 2
    # Both on one side: from +1/2 on.
    away = _series([2.0, 1.0, 0.0], 0.0, [0.0, 2.0, 0.5])
    np.testing.assert_allclose(away.value.u, 0.5, **tolerance(float))
    # Of one kink alone nothing is in doubt.
    alone = _series([2.0, 1.0, 0.0], 1.0, [0.0, 2.0, 0.5])
    assert bool(alone.exact) and not bool(alone.hull)
    np.testing.assert_allclose(alone.value.u, 2.5, **tolerance(float))


# Losses with kinks.


def absolute_and_hinge(f, y):
    return y[1] * jnp.abs(f - y[0]) + y[2] * jnp.maximum(0, 1 - y[0] * f)


def test_losses_with_kinks():
    model = gflow.nn.Linear(1, "scalar", key=jax.random.key(0))
    model = eqx.tree_at(lambda m: m.weight, model, jnp.full((1, 1), 2.0))
    x = jnp.ones((3, 1))
    # The median: slopes -1, 1 and what it takes.
    y = jnp.array([[1.0, 1.0, 0.0], [2.0, 1.0, 0.0], [5.0, 1.0, 0.0]])
    median = min_norm_subgradient(model, (x, y), absolute_and_hinge)
    assert float(median.norm) < 1e-15 and bool(median.exact)
    assert 0.5 in median.multipliers.tolist()
    # 2 max(0, 1 - y f) at f = 2: the second one is at its kink.
    y = jnp.array([[0.1, 0.0, 2.0], [0.5, 0.0, 2.0], [1.0, 0.0, 2.0]])
    hinge = min_norm_subgradient(model, (x, y), absolute_and_hinge)
    np.testing.assert_allclose(hinge.value.weight, [[-0.2]], **tolerance(float))


# What is left out, smooth models, errors.


def _many():
    model = gflow.nn.TwoLayer(2, 1, key=jax.random.key(0))
    model = eqx.tree_at(lambda m: m.weight, model, jnp.zeros((1, 2)))
    x = rng(0).normal(size=(70, 2))
    return model, (x, rng(1).choice([-1.0, 1.0], size=70)), gflow.losses.Logistic()


def test_more_kinks_than_there_is_room_for():
    found = min_norm_subgradient(*_many())
    assert int(found.num_at_zero) == 70 and found.kinks.shape == (64,)
    assert not bool(found.exact) and not bool(found.hull)
    with pytest.raises(ValueError, match=r"70 kinks.*at most 10.*min_norm"):
        subdifferential(*_many())


def test_smooth_models_pay_nothing():
    model = gflow.nn.TwoLayer(2, 3, jnp.tanh, key=jax.random.key(0))
    data, loss = (rng(0).normal(size=(4, 2)), np.ones(4)), gflow.losses.Logistic()

    def value(model):
        return jnp.sum(jax.nn.softplus(-jax.vmap(model)(jnp.asarray(data[0]))))

    expected = eqx.filter_grad(value)(model)
    found = min_norm_subgradient(model, data, loss)
    leaving = resolve(model, data, loss)
    for got, sign in ((found.value, 1), (leaving.velocity, -1)):
        for one, other in zip(
            jax.tree.leaves(got), jax.tree.leaves(expected), strict=True
        ):
            np.testing.assert_allclose(one, sign * other, **tolerance(float))
    assert bool(found.exact) and found.kinks.shape == found.multipliers.shape == (0,)
    assert leaving.pins.shape == (0,) and bool(leaving.consistent)
    vertices = subdifferential(model, data, loss).vertices
    flat, _ = jax.flatten_util.ravel_pytree(eqx.filter(expected, eqx.is_array))
    np.testing.assert_allclose(vertices, flat[None], **tolerance(float))
    for function in (min_norm_subgradient, resolve):
        jaxpr = str(eqx.filter_make_jaxpr(function)(model, data, loss)[0])
        assert "while" not in jaxpr and "cond" not in jaxpr


class Sorted(eqx.Module):
    w: jax.Array

    def __call__(self, x):
        return jnp.sort(self.w * x)[0]


def test_errors():
    model, data, *_ = case("max(2 w1, w2)")
    for tol in (-1.0, 1.0, np.nan):
        with pytest.raises(ValueError, match=r"tol=.*not in \[0, 1\)"):
            min_norm_subgradient(model, data, terms, tol=tol)
    with pytest.raises(ValueError, match=r"tol has shape \(2,\)"):
        resolve(model, data, terms, tol=np.ones(2))
    with pytest.raises(ValueError, match=r"branch='left'.*'steepest' or 'stay'"):
        resolve(model, data, terms, branch="left")
    with pytest.raises(ValueError, match=r"traced.*min_norm_subgradient"):
        eqx.filter_jit(subdifferential)(model, data, terms)
    with pytest.raises(ValueError, match="'sort'"):
        min_norm_subgradient(
            Sorted(jnp.arange(2.0)),
            (np.ones((1, 2)), np.ones(1)),
            gflow.losses.Square(),
        )
    with pytest.raises(ValueError, match="the data are empty"):
        min_norm_subgradient(model, (np.ones((0, 2)), np.ones(0)), terms)
