"""Which kinks the limit lies on: from the flow's, by an active-set search."""

from collections import Counter
from typing import Any

import jax.numpy as jnp
import numpy as np

from .._flat import unflattener
from .._frozen import Frozen
from .._problem import dtype_of
from .._settle import settle
from ._judge import Judge
from ._newton import Point
from ._pinned import Pattern, Pinned, pattern_of
from ._search import search


# Changes of the pattern, one kink at a time.
_CHANGES = 60
# Times that a pattern is searched before the changes are taken to go round in a circle:
# a kink may be met again from elsewhere.
_VISITS = 3
# |z| of a kink that may be pinned, of its size, at most.
_NEAR = 1e-4
# Kinks that may be at zero in a model of which no pins are known.
_CAPACITY = 64


def pattern_at(frozen: Frozen, like: Any, w: np.ndarray, pins: Any) -> Pattern:
    """The pattern of a flow at w, which is on these kinks.

    `pins`: None for those that the inclusion chooses where it leaves the point.
    """
    params = unflattener(like)(jnp.asarray(w, dtype_of(like)))
    if pins is None:
        capacity = min(_CAPACITY, frozen.total)
        at, _ = settle(frozen, params, None, capacity=capacity, branch="steepest")
        pins = np.asarray(at.pins)
        return pattern_of(np.asarray(at.branches), pins[pins < frozen.total])
    z = np.asarray(frozen.pre_activations(params, None), np.float64)
    sizes = np.asarray(frozen.sizes(params), np.float64)
    pins = np.asarray(pins)
    pins = pins[(pins >= 0) & (pins < frozen.total)]
    near = np.abs(z).reshape(-1)[pins] <= _NEAR * sizes.reshape(-1)[pins]
    return pattern_of(z > 0, pins[near])


def search_patterns(
    flat: Pinned, w: np.ndarray, *, tolerance: float, floor: float, dense: bool
) -> tuple[Judge, Point]:
    """The KKT point on the first pattern that fits it, and its judge.

    Where none does, the point of the smallest residual that was seen on its own
    branches; w is one.

    Each search is that of the smooth case. On the way to its point the first kink that
    would be crossed is pinned; where none is, a pin whose share is outside of [0, 1] is
    released: as margins join and leave the support in an active-set method.
    """
    start, first, best, least = w, flat, None, np.inf
    visits: Counter[bytes] = Counter()
    for _ in range(_CHANGES):
        here = _name(flat.pattern)
        if visits[here] == _VISITS:
            break
        visits[here] += 1
        judge = Judge(flat, start, tolerance, dense)
        point, _ = search(
            flat, w, tolerance=tolerance, floor=floor, dense=dense, accept=judge.accept
        )
        verdict = judge.judge(point)
        kinks = verdict.kinks
        assert kinks is not None
        if kinks.fit and verdict.kkt.residual <= tolerance:
            return judge, point
        if len(kinks.wrong) == 0 and verdict.kkt.residual < least:
            best, least = (judge, point), verdict.kkt.residual
        if kinks.fit or point.residual > max(1e3 * tolerance, 1e-6):
            break
        target = point.w / np.linalg.norm(point.w)
        if len(kinks.wrong):
            kink, fraction = _first_crossed(flat, w, target, kinks.wrong)
            w = w + fraction * (target - w)
            w = w / np.linalg.norm(w)
            pins = np.append(flat.pattern.pins, kink)
            pattern = pattern_of(flat.pattern.branches, pins)
        else:
            assert kinks.released is not None
            w, pattern = target, kinks.released
        other = flat.on(pattern, w)
        if not np.min(other.margins(w)) > 0:
            break
        flat = other
    index = np.append(np.argmin(first.margins(start)), first.pins)
    point = Point(start, np.zeros(len(index)), index, np.inf)
    judge = Judge(first, start, tolerance, dense)
    if best is None or judge.judge(point).kkt.residual < least:
        return judge, point
    return best


def _name(pattern: Pattern) -> bytes:
    return pattern.pins.tobytes() + pattern.branches.tobytes()


def _first_crossed(flat: Pinned, w, target, wrong: np.ndarray) -> tuple[int, float]:
    """Of these kinks, the first on the straight way, and how far it is."""
    side = np.where(flat.pattern.branches, 1.0, -1.0).reshape(-1)[wrong]
    here, there = (side * flat.values(v).reshape(-1)[wrong] for v in (w, target))
    fractions = np.maximum(here, 0.0) / (np.maximum(here, 0.0) - there)
    first = int(np.argmin(fractions))
    return int(wrong[first]), float(fractions[first])
