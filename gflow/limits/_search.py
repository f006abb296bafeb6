r"""From a late model to a KKT point of the margin.

Two steps take turns. *Ascent*: minimise ½‖v‖² subject to the margins linearised at w
being at least 1, a hard-margin support vector machine in the features ∇p_m(w); towards
its solution the margin of w/‖w‖ grows, as it does along the flow. *Newton* on the
support of that solution, which ends the search if it lands on a KKT point that the flow
can still reach: margins beside the support larger, multipliers not negative, and not
less margin than the flow has already.
"""

from collections.abc import Callable

import numpy as np

from ._flat import Flat
from ._newton import Point, newton
from ._nnls import least_norm


# Pairs in one linearised problem: those of the smallest margins, up to this multiple of
# the smallest.
_NEAR, _MOST = 3.0, 400
_ROUNDS = 12
_CHANGES = 8


def search(
    flat: Flat,
    w: np.ndarray,
    *,
    tolerance: float,
    floor: float,
    dense: bool,
    accept: Callable[[Point], bool],
) -> tuple[Point, bool]:
    """The first KKT point that `accept` agrees to, and whether there was one.

    `w` has all margins positive; `floor` is the least that the margin of w/‖w‖ can be
    at the limit. Without success, the point of the smallest residual.
    """
    w = to_unit_margin(flat, w)
    best: Point | None = None
    for attempt in range(_ROUNDS):
        linear = _linearised(flat, w)
        if linear is None:
            break
        target, weights, index = linear
        point = _newton_on_supports(flat, w, weights, index, tolerance, dense)
        if point is not None and _margin(flat, point.w) >= floor:
            better = best is None or point.residual < best.residual
            best = point if better else best
            if _is_kkt(flat, point, tolerance) and accept(point):
                return point, True
        for _ in range(min(2**attempt, 32)):
            moved = _ascend(flat, w, target)
            if moved is None:
                break
            w = moved
            linear = _linearised(flat, w)
            if linear is None:
                break
            target, weights, index = linear
        else:
            continue
        # The margin grows no further to first order: one last try from here.
        if linear is not None:
            point = _newton_on_supports(flat, w, *linear[1:], tolerance, dense)
            if point is not None and _margin(flat, point.w) >= floor:
                best = point if best is None else best
                if _is_kkt(flat, point, tolerance) and accept(point):
                    return point, True
        break
    if best is None:
        index = np.array([int(np.argmin(flat.margins(w)))])
        weights = np.append((w @ w) / flat.degree, np.zeros(len(flat.pins)))
        best = Point(w, weights, np.append(index, flat.pins), np.inf)
    return best, False


def to_unit_margin(flat: Flat, w: np.ndarray) -> np.ndarray:
    """cw with the smallest margin 1."""
    return w / np.min(flat.margins(w)) ** (1 / flat.degree)


def _margin(flat: Flat, w: np.ndarray) -> float:
    # That of w/‖w‖, in the unit of `flat`.
    return float(np.min(flat.margins(w)) / np.linalg.norm(w) ** flat.degree)


def _linearised(flat: Flat, w: np.ndarray):
    p = flat.margins(w)
    near = np.argsort(p, kind="stable")[:_MOST]
    near = near[p[near] <= _NEAR]
    rows = flat.rows(w, near)
    # p(v) ≈ p + J(v - w) with Jw = Lp (Euler).
    bound = 1.0 + (flat.degree - 1.0) * p[near]
    pins = flat.pins
    if len(pins):
        # Equations: inequalities both ways.
        normals = flat.rows(w, pins)
        level = normals @ w + 1.0 - flat.constraints(w)[pins]
        rows = np.concatenate([rows, normals, -normals])
        bound = np.concatenate([bound, level, -level])
    solution = least_norm(rows, bound)
    if solution is None:
        return None
    target, weights = solution
    forces = weights[len(near) : len(near) + len(pins)]
    forces = forces - weights[len(near) + len(pins) :]
    weights = weights[: len(near)]
    used = weights > 0
    return target, np.append(weights[used], forces), np.append(near[used], pins)


def _ascend(flat: Flat, w: np.ndarray, target: np.ndarray) -> np.ndarray | None:
    # A step towards the target that lets the margin grow, back at margin 1.
    before = _margin(flat, w)
    if np.linalg.norm(target - w) <= 1e-12 * np.linalg.norm(w):
        return None
    fraction = 1.0
    while fraction > 1e-6:
        trial = w + fraction * (target - w)
        p = flat.margins(trial)
        if np.min(p) > 0:
            trial = trial / np.min(p) ** (1 / flat.degree)
            if _margin(flat, trial) > before * (1 + 4 * flat.eps):
                return trial
        fraction /= 2
    return None


def _newton_on_supports(flat, w, weights, index, tolerance, dense):
    # Newton's method, with pairs dropped whose multiplier comes out negative, and added
    # whose margin comes out below 1.
    tried = set()
    point = None
    for _ in range(_CHANGES):
        if len(index) == len(flat.pins) or tuple(sorted(index.tolist())) in tried:
            break
        tried.add(tuple(sorted(index.tolist())))
        point = newton(flat, w, weights, index, dense=dense)
        if point.residual > max(1e3 * tolerance, 1e-6):
            return point
        p = flat.margins(point.w)
        # The multipliers of pins have either sign.
        weights = np.where(point.index < len(p), point.weights, 0)
        negative = weights < -tolerance * np.max(np.abs(weights))
        p[point.index[point.index < len(p)]] = np.inf
        violated = int(np.argmin(p))
        if not np.any(negative) and p[violated] >= 1 - 10 * tolerance:
            return point
        if np.any(negative):
            kept = point.index != point.index[int(np.argmin(weights))]
            index = point.index[kept]
            weights = np.where(index < len(p), np.maximum(weights[kept], 0), 0)
            weights = np.where(index < len(p), weights, point.weights[kept])
        else:
            index = np.append(point.index, violated)
            weights = np.append(point.weights, 0.0)
    return point


def _is_kkt(flat: Flat, point: Point, tolerance: float) -> bool:
    if not point.residual <= tolerance:
        return False
    # Least-squares multipliers of dependent rows may have any sign: the caller solves
    # for non-negative ones.
    return float(np.min(flat.margins(point.w))) >= 1 - 10 * tolerance
