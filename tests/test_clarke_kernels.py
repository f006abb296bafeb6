"""Points of least norm, and cells, against enumeration and SciPy."""

import itertools
from fractions import Fraction
from math import comb

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linprog, lsq_linear

from gflow._box import box_min_norm, gap
from gflow._hull import hull_min_norm
from gflow._patterns import box_is_exact, feasible_patterns

from .helpers import rng, tolerance


# Few shapes, for compiling takes longer than everything else here.
one_box, boxes = jax.jit(box_min_norm), jax.jit(jax.vmap(box_min_norm))
one_hull, hulls = jax.jit(hull_min_norm), jax.jit(jax.vmap(hull_min_norm))
gaps = jax.jit(jax.vmap(gap))


def _gram(u, b):
    return u @ np.swapaxes(u, -1, -2), np.einsum("...kp,...p->...k", u, b)


def _dependent(random, kinks, parameters):
    rank = min(2, kinks)
    return random.normal(size=(kinks, rank)) @ random.normal(size=(rank, parameters))


def _repeated(random, kinks, parameters):
    """Parallel, antipodal and equal rows."""
    rows = random.normal(size=(max(kinks // 2, 1), parameters))
    which = random.integers(0, len(rows), kinks)
    return rows[which] * random.choice([1.0, -1.0, 2.0, 0.1], size=(kinks, 1))


KINDS = {
    "independent": lambda random, k, p: random.normal(size=(k, p)),
    "dependent": _dependent,
    "repeated": _repeated,
    "lattice": lambda random, k, p: random.integers(-1, 2, (k, p)).astype(float),
    "scaled": lambda random, k, p: (
        random.normal(size=(k, p)) * 10 ** random.uniform(-6, 6, (k, 1))
    ),
    "aligned": lambda random, k, p: random.normal(size=(k, p)) + 3,
    "zero": lambda random, k, p: (
        random.normal(size=(k, p)) * random.integers(0, 2, (k, 1))
    ),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def _problems(kind, kinks, number, parameters=6):
    """Rows U and offsets b; the true point is often zero, or on many bounds."""
    random = rng(100 * kinks + list(KINDS).index(kind))
    u = np.stack([KINDS[kind](random, kinks, parameters) for _ in range(number)])
    b = random.normal(size=(number, parameters))
    slopes = random.choice([0.0, 0.3, 0.5, 1.0, 1.5], size=(number, kinks))
    centred = -np.einsum("nkp,nk->np", u, slopes)
    return u, np.where(rng(0).integers(0, 2, (number, 1)) == 1, b, centred)


def _points(u, b, multipliers):
    return b + np.einsum("nkp,nk->np", u, multipliers)


def _scale(u, b):
    """What the entries of a point are sums of, at most."""
    return np.linalg.norm(b) + np.sum(np.linalg.norm(u, axis=1))


def _best_by_enumeration(u, b):
    """The shortest b + Uᵀλ over all 3^K choices of λ_k: 0, 1 or free."""
    best = None
    for choice in itertools.product([0.0, 1.0, None], repeat=len(u)):
        free = [k for k, value in enumerate(choice) if value is None]
        multipliers = np.array([0.0 if value is None else value for value in choice])
        base = b + u.T @ multipliers
        if free:
            size = np.linalg.norm(u[free], axis=1)
            size = np.where(size == 0, 1, size)
            found = np.linalg.lstsq((u[free] / size[:, None]).T, -base, rcond=1e-13)[0]
            found = found / size
            if np.any(found < -1e-11) or np.any(found > 1 + 1e-11):
                continue
            base = base + u[free].T @ np.clip(found, 0, 1)
        if best is None or base @ base < best @ best:
            best = base
    return best


def _assert_valid(u, box):
    """Bounds are exact, and the free rows independent."""
    multipliers, free = np.asarray(box.multipliers), np.asarray(box.free)
    assert np.all(np.asarray(box.converged))
    assert np.all(np.isin(multipliers[~free], [0.0, 1.0]))
    assert np.all((multipliers[free] > 0) & (multipliers[free] < 1))
    for rows, inside in zip(u, free, strict=True):
        if np.any(inside):
            unit = rows[inside] / np.linalg.norm(rows[inside], axis=1, keepdims=True)
            assert np.linalg.svd(unit, compute_uv=False)[-1] > 5e-8
            assert np.sum(inside) <= u.shape[-1]


# Box


@each_kind
@pytest.mark.parametrize("kinks", [1, 2, 5])
def test_box_is_the_best_of_all_faces(kind, kinks):
    u, b = _problems(kind, kinks, 8)
    box = boxes(*_gram(u, b))
    _assert_valid(u, box)
    points = _points(u, b, box.multipliers)
    for rows, offset, point in zip(u, b, points, strict=True):
        expected = _best_by_enumeration(rows, offset)
        error = np.linalg.norm(point - expected)
        assert error <= 1e-13 * _scale(rows, offset)


@each_kind
@pytest.mark.parametrize("kinks", [8, 32])
def test_box_is_optimal(kind, kinks):
    u, b = _problems(kind, kinks, 24)
    box = boxes(*_gram(u, b))
    _assert_valid(u, box)
    multipliers = np.asarray(box.multipliers)
    slopes = np.einsum("nkp,np->nk", u, _points(u, b, multipliers))
    length = np.linalg.norm(u, axis=2)
    slopes = slopes / np.where(length == 0, 1, length)
    wrong = np.where(
        multipliers == 0, -slopes, np.where(multipliers == 1, slopes, np.abs(slopes))
    )
    scale = np.array([_scale(*one) for one in zip(u, b, strict=True)])
    assert np.all(np.max(wrong, axis=1) <= 1e-14 * scale)
    # Far from the number of moves that stops it.
    assert np.max(np.asarray(box.num_iterations)) <= 4 * kinks


@pytest.mark.parametrize("kinks", [8, 32])
def test_box_against_scipy(kinks):
    u, b = _problems("independent", kinks, 24, parameters=50)
    points = _points(u, b, boxes(*_gram(u, b)).multipliers)
    for rows, offset, point in zip(u, b, points, strict=True):
        other = lsq_linear(rows.T, -offset, (0, 1), method="bvls", tol=1e-15)
        expected = offset + rows.T @ other.x
        np.testing.assert_allclose(point, expected, **tolerance(float, 10))


@pytest.mark.parametrize("shift", [0.0, 0.3])
@pytest.mark.parametrize("excess, released", [(1e-11, True), (-1e-11, False)])
def test_box_decides_at_the_bound(shift, excess, released):
    # The unconstrained multiplier of the first row is 1 ± 1e-11.
    u = np.eye(5) + shift
    goal = np.array([1 + excess, 0.4, 0.4, 0.4, 0.4])
    box = one_box(*_gram(u, -u.T @ goal))
    assert bool(box.free[0]) != released
    assert (float(box.multipliers[0]) == 1) == released
    np.testing.assert_allclose(box.multipliers[1:], 0.4, rtol=1e-10)


def test_box_rows_that_do_not_count():
    random = rng(3)
    u, b = random.normal(size=(5, 6)), random.normal(size=6)
    u[3] = 0
    alive = np.array([True, False, True, True, True])
    box = one_box(*_gram(u, b), alive)
    assert float(box.multipliers[1]) == float(box.multipliers[3]) == 0
    assert not bool(box.free[1]) and not bool(box.free[3])
    u[1] = 0
    without = one_box(*_gram(u, b))
    np.testing.assert_allclose(box.multipliers, without.multipliers, **tolerance(float))
    nothing = box_min_norm(jnp.zeros((0, 0)), jnp.zeros(0))
    assert nothing.multipliers.shape == (0,) and bool(nothing.converged)


@pytest.mark.parametrize("parameters", [1, 4, 10])
def test_box_extreme_scales(parameters):
    random = rng(parameters)
    size = 10.0 ** random.uniform(-150, 100, (200, 8, 1))
    u = random.normal(size=(200, 8, parameters)) * size
    b = random.normal(size=(200, parameters)) * 10.0 ** random.uniform(
        -100, 100, (200, 1)
    )
    gram, linear = _gram(u, b)
    box = boxes(gram, linear)
    _assert_valid(u, box)
    for value in (
        box.multipliers,
        gaps(gram, linear, np.sum(b**2, 1), box.multipliers),
    ):
        assert np.all(np.isfinite(value))


def test_box_where_scales_do_not_meet():
    # Orthogonal rows, so that each has its own closed form.
    size = np.array([1e-150, 1e-20, 1.0, 1e50, 1e100])
    goal = np.array([0.25, 2.0, 0.5, -3.0, 1e-60])
    box = one_box(np.diag(size**2), -goal * size**2)
    np.testing.assert_allclose(box.multipliers, np.clip(goal, 0, 1), rtol=1e-14)
    np.testing.assert_array_equal(box.free, [True, False, True, False, True])


@pytest.mark.parametrize("angle", [1e-5, 1e-6, 2e-7, 1e-7, 1e-8, 1e-10])
def test_box_terminates_where_rounding_decides_dependence(angle):
    random = rng(7)
    u = random.normal(size=(200, 8, 3)) @ random.normal(size=(200, 3, 12))
    u = u + angle * random.normal(size=u.shape)
    b = -np.einsum("nkp,nk->np", u, random.uniform(0, 1.5, (200, 8)))
    b = b + angle * random.normal(size=b.shape)
    gram, linear = _gram(u, b)
    box = boxes(gram, linear)
    _assert_valid(u, box)
    slopes = np.einsum("nkp,np->nk", u, _points(u, b, box.multipliers))
    excess = np.maximum(slopes * box.multipliers, slopes * (box.multipliers - 1))
    scale = np.array([_scale(*one) for one in zip(u, b, strict=True)])
    assert np.all(np.sum(excess, axis=1) <= 1e-13 * scale**2)


@each_kind
def test_box_vmap_is_the_loop(kind):
    gram, linear = _gram(*_problems(kind, 5, 256))
    together = boxes(gram, linear)
    for i in range(256):
        one = one_box(gram[i], linear[i])
        np.testing.assert_allclose(
            one.multipliers, together.multipliers[i], rtol=0, atol=1e-13
        )
        np.testing.assert_array_equal(one.free, together.free[i])


@each_kind
def test_box_in_float32(kind):
    u, b = _problems(kind, 32, 24)
    u, b = u.astype(np.float32), b.astype(np.float32)
    box = boxes(*_gram(u, b))
    assert box.multipliers.dtype == np.float32
    assert np.all(np.asarray(box.converged))
    u, b = u.astype(float), b.astype(float)
    points = _points(u, b, np.asarray(box.multipliers).astype(float))
    exact = _points(u, b, boxes(*_gram(u, b)).multipliers)
    scale = np.array([_scale(*one) for one in zip(u, b, strict=True)])
    error = np.linalg.norm(points - exact, axis=1)
    # A Gram matrix holds angles to √eps only; ten roundings where rows are apart.
    loose = kind in ("scaled", "dependent", "independent", "aligned", "zero")
    assert np.all(error <= (1e-5 if loose else 2e-6) * scale)


@each_kind
def test_certificate_bounds_the_distance(kind):
    u, b = _problems(kind, 8, 24)
    gram, linear = _gram(u, b)
    square = np.sum(b**2, axis=1)
    best = np.asarray(boxes(gram, linear).multipliers)
    true = _points(u, b, best)
    scale = np.array([_scale(*one) for one in zip(u, b, strict=True)])
    assert np.all(gaps(gram, linear, square, best) <= 1e-13 * scale**2)
    other = rng(1).uniform(size=best.shape)
    for weight in (1e-6, 1e-2, 1.0):
        multipliers = (1 - weight) * best + weight * other
        point = _points(u, b, multipliers)
        bound = np.asarray(gaps(gram, linear, square, multipliers))
        distance = np.sum((point - true) ** 2, axis=1)
        assert np.all(distance <= bound)
        # And it is the gap, but for rounding.
        slopes = np.einsum("nkp,np->nk", u, point)
        vertex = np.where(slopes > 0, 0.0, 1.0)
        exact = np.sum(point * (point - _points(u, b, vertex)), axis=1)
        np.testing.assert_allclose(bound / scale**2, exact / scale**2, atol=1e-13)


def test_certificate_counts_rounding():
    # In exact arithmetic: slopes that come out as zero are not.
    random = rng(2)
    u, b = random.normal(size=(24, 1, 3)), random.normal(size=(24, 3))
    along = np.sum(u[:, 0] * b, 1) / np.sum(u[:, 0] ** 2, 1)
    b = b - (0.5 + along)[:, None] * u[:, 0]
    gram, linear = _gram(u, b)
    multipliers = boxes(gram, linear).multipliers
    bounds = gaps(gram, linear, np.sum(b**2, axis=1), multipliers)
    for i in range(24):
        row, offset = map(Fraction, u[i, 0]), map(Fraction, b[i])
        row, offset = list(row), list(offset)
        square = sum(x * x for x in row)
        best = -sum(x * y for x, y in zip(row, offset, strict=True)) / square
        best = min(max(best, Fraction(0)), Fraction(1))
        distance = (Fraction(float(multipliers[i, 0])) - best) ** 2 * square
        assert distance <= Fraction(float(bounds[i]))


# Hull


def _hull_by_enumeration(vertices):
    best = None
    for size in range(1, min(len(vertices), vertices.shape[1] + 1) + 1):
        for chosen in itertools.combinations(vertices, size):
            first, *others = chosen
            weights = np.ones(1)
            if others:
                edges = (np.array(others) - first).T
                rest = np.linalg.lstsq(edges, -first, rcond=None)[0]
                weights = np.r_[1 - np.sum(rest), rest]
            if np.all(weights >= -1e-12):
                point = weights @ np.array(chosen)
                if best is None or point @ point < best @ best:
                    best = point
    return best


@pytest.mark.parametrize("shape", [(5, 3), (7, 20)])
@each_kind
def test_hull_is_the_best_of_all_faces(kind, shape):
    random = rng(5)
    vertices = np.stack([KINDS[kind](random, *shape) for _ in range(8)])
    vertices = vertices + (
        random.normal(size=(8, 1, shape[1])) if kind != "zero" else 0
    )
    mask = random.uniform(size=(8, shape[0])) < 0.8
    mask[:, 0] = True
    hull = hulls(vertices, mask)
    assert np.all(np.asarray(hull.converged))
    weights = np.asarray(hull.weights)
    assert np.all(weights >= 0) and np.all(weights[~mask] == 0)
    np.testing.assert_allclose(np.sum(weights, axis=1), 1, rtol=1e-14)
    for i in range(8):
        expected = _hull_by_enumeration(vertices[i][mask[i]])
        scale = np.max(np.abs(vertices[i]))
        assert np.linalg.norm(hull.point[i] - expected) <= 1e-12 * scale
        np.testing.assert_allclose(
            hull.point[i], weights[i] @ vertices[i], rtol=0, atol=1e-14 * scale
        )
        assert 0 <= hull.gap[i] <= 1e-12 * scale**2


def test_hull_of_many_points_is_optimal():
    random = rng(8)
    vertices = random.normal(size=(100, 300)) + 0.2
    hull = hull_min_norm(jnp.asarray(vertices), jnp.ones(100, bool))
    point = np.asarray(hull.point)
    assert bool(hull.converged)
    assert point @ point - np.min(vertices @ point) <= 1e-12 * (point @ point)
    # A box as the hull of its corners, of dimension 5.
    u, b = random.normal(size=(5, 300)), random.normal(size=300)
    b = b - u.T @ random.uniform(-1, 2, 5)
    corners = b + np.array(list(itertools.product([0.0, 1.0], repeat=5))) @ u
    corner_hull = hull_min_norm(jnp.asarray(corners), jnp.ones(32, bool), dimension=5)
    box = one_box(*_gram(u, b))
    expected = b + u.T @ np.asarray(box.multipliers)
    np.testing.assert_allclose(corner_hull.point, expected, **tolerance(float, 10))


def test_hull_keeps_small_differences():
    # All vertices are within 1e-6 of a point of norm 1.
    random = rng(9)
    offset, vertices = random.normal(size=3), random.normal(size=(5, 3))
    offset = offset / np.linalg.norm(offset)
    hull = one_hull(offset + 1e-6 * vertices, np.ones(5, bool))
    expected = _hull_by_enumeration(offset + 1e-6 * vertices)
    np.testing.assert_allclose(hull.point, expected, rtol=0, atol=1e-14)


def test_hull_degenerate():
    everything = np.ones(5, bool)
    zero = one_hull(np.zeros((5, 3)), everything)
    assert bool(zero.converged) and not np.any(zero.point) and float(zero.gap) == 0
    empty = one_hull(np.full((5, 3), np.nan), ~everything)
    assert not bool(empty.converged) and not np.any(empty.point)
    assert float(empty.gap) == np.inf
    for random in map(rng, range(50)):
        size = 10.0 ** random.uniform(-150, 100, (5, 1))
        hull = one_hull(random.normal(size=(5, 3)) * size, everything)
        assert bool(hull.converged) and np.all(np.isfinite(hull.point))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_hull_of_a_maximum(dtype):
    # max(2 w₁, w₂) at zero.
    slopes = np.zeros((5, 3), dtype)
    slopes[0, 0], slopes[1, 1] = 2, 1
    hull = one_hull(slopes, np.arange(5) < 2)
    assert hull.point.dtype == dtype
    np.testing.assert_allclose(hull.point, [0.4, 0.8, 0], **tolerance(dtype))


def test_hull_vmap_is_the_loop():
    vertices = rng(4).normal(size=(256, 5, 3)) + 0.5
    together = hulls(vertices, np.ones((256, 5), bool))
    points = [one_hull(one, np.ones(5, bool)).point for one in vertices]
    np.testing.assert_allclose(points, together.point, rtol=0, atol=1e-14)


# Patterns

_patterns = np.array(list(itertools.product([False, True], repeat=8)))
_feasible = jax.jit(lambda normals, alive: feasible_patterns(normals, alive)[1])


def _cells(normals):
    """The feasible patterns, padded with normals that do not count."""
    kinks, dimension = normals.shape
    padded = rng(0).normal(size=(8, 5))
    padded[:kinks] = np.pad(normals, ((0, 0), (0, 5 - dimension)))
    found = _patterns[np.asarray(_feasible(padded, np.arange(8) < kinks))]
    assert not np.any(found[:, kinks:])
    return {tuple(pattern) for pattern in found[:, :kinks].tolist()}


def _all(number):
    return jnp.ones(number, bool)


@pytest.mark.parametrize("dimension", [1, 2, 3, 5])
def test_cells_in_general_position(dimension):
    for kinks in (1, 2, 4, 6, 8):
        cells = _cells(rng(kinks).normal(size=(kinks, dimension)))
        assert len(cells) == 2 * sum(comb(kinks - 1, i) for i in range(dimension))


@each_kind
def test_cells_against_sampling_and_linear_programs(kind):
    normals = KINDS[kind](rng(11), 6, 3)
    normals = normals[np.any(normals != 0, axis=1)]
    cells = _cells(normals)
    for v in rng(12).normal(size=(2000, 3)):
        assert tuple((normals @ v > 0).tolist()) in cells
    unit = normals / np.linalg.norm(normals, axis=1, keepdims=True)
    for pattern in itertools.product([False, True], repeat=len(normals)):
        # The largest t with σ_k ⟨n_k, v⟩ ≥ t for a v in the cube.
        signed = unit * (2.0 * np.array(pattern) - 1)[:, None]
        program = linprog(
            [0, 0, 0, -1],
            np.column_stack([-signed, np.ones(len(signed))]),
            np.zeros(len(signed)),
            bounds=[(-1, 1)] * 3 + [(None, 1)],
        )
        assert (pattern in cells) == (-program.fun > 1e-8)


def test_patterns_are_a_constant():
    seen = []
    jax.eval_shape(lambda n: seen.append(feasible_patterns(n, _all(2))[0]), jnp.eye(2))
    assert isinstance(seen[0], np.ndarray)
    assert seen[0].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert bool(feasible_patterns(jnp.zeros((0, 2)), _all(0))[1][0])
    nothing = _feasible(rng(1).normal(size=(8, 5)), np.zeros(8, bool))
    np.testing.assert_array_equal(nothing, np.arange(256) == 0)


def test_parallel_and_antipodal_normals():
    n = rng(14).normal(size=5)
    cells = _cells(np.stack([n, 3e20 * n, -0.1 * n]))
    assert cells == {(False, False, True), (True, True, False)}
    # A cell of opening 1e-9 is one.
    assert len(_cells(np.stack([n, n + 1e-9 * rng(15).normal(size=5)]))) == 4


@jax.jit
def _box_against_patterns(normals, signs, b):
    """Points of least norm of the box, and of the hull of the feasible patterns."""
    everywhere = jnp.ones(len(signs), bool)
    u = signs[:, None] * normals
    box = box_min_norm(u @ u.T, u @ b)
    patterns, feasible = feasible_patterns(normals, everywhere)
    hull = hull_min_norm(b[None, :] + jnp.asarray(patterns, u.dtype) @ u, feasible)
    exact = box_is_exact(normals, signs, everywhere)
    return b + u.T @ box.multipliers, hull.point, feasible, exact


def test_box_too_large():
    normals = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    signs = np.array([1.0, 1.0, -1.0])
    b = np.array([-1.0, -1.0])
    box, hull, feasible, exact = _box_against_patterns(normals, signs, b)
    assert int(jnp.sum(feasible)) == 6
    np.testing.assert_allclose(box, 0, atol=1e-15)
    np.testing.assert_allclose(hull, -0.5, **tolerance(float))
    assert not bool(exact)


def test_rank_test_says_where_the_box_is_exact():
    random, exact_ones, wrong_ones = rng(16), 0, 0
    for _ in range(150):
        normals = random.integers(-1, 2, size=(3, 2)).astype(float)
        normals[~np.any(normals, axis=1), 0] = 1
        signs = random.choice([-1.0, 1.0], size=3)
        slopes = random.choice([0.0, 0.5, 1.0], size=3)
        b = -(signs * slopes) @ normals
        box, hull, _, exact = _box_against_patterns(normals, signs, b)
        plus, minus = normals[signs > 0], normals[signs < 0]
        ranks = [np.linalg.matrix_rank(n) if len(n) else 0 for n in (plus, minus)]
        assert bool(exact) == (np.linalg.matrix_rank(normals) == sum(ranks))
        equal = np.linalg.norm(box - hull) < 1e-12
        assert equal or not exact
        exact_ones, wrong_ones = exact_ones + int(exact), wrong_ones + (not equal)
    assert exact_ones > 30 and wrong_ones > 10


def test_rank_test_degenerate():
    random, is_exact = rng(17), jax.jit(box_is_exact)
    size = 10.0 ** random.uniform(-150, 100, (5, 1))
    independent = random.normal(size=(5, 40)) * size
    signs = jnp.array([1.0, -1.0, 1.0, -1.0, 1.0])
    assert bool(is_exact(independent, signs, _all(5)))
    dependent = independent.copy()
    dependent[4] = dependent[0] / size[0] - dependent[1] / size[1]
    assert not bool(is_exact(dependent, signs, _all(5)))
    # Not with one of them gone, by `alive` or by its sign.
    alive = jnp.array([False, True, True, True, True])
    assert bool(is_exact(dependent, signs, alive))
    assert bool(is_exact(dependent, signs.at[1].set(0), _all(5)))
    # Antipodal: exact if both kinks are of one kind.
    pair = jnp.array([[1.0, 2.0], [-3.0, -6.0]])
    assert bool(box_is_exact(pair, jnp.ones(2), _all(2)))
    assert not bool(box_is_exact(pair, jnp.array([1.0, -1.0]), _all(2)))
    single = box_is_exact(pair.astype(jnp.float32), -jnp.ones(2, jnp.float32), _all(2))
    assert bool(single)
