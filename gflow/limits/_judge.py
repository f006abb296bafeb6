"""First- and second-order conditions together: what kind of point was found?"""

from typing import Any, NamedTuple

import numpy as np

from ._flat import Flat
from ._kinks import Kinks, kinks_at
from ._kkt import Kkt, kkt
from ._newton import Point
from ._pinned import Pinned
from ._result import CERTIFICATE, SECOND_ORDER
from ._second_order import (
    curvature_on,
    is_manifold,
    jumps,
    one_sided_growth,
    zero_tolerance,
)


class Verdict(NamedTuple):
    """What is known of a point."""

    kkt: Kkt
    second_order: Any
    top: float
    slowest: float
    zero_modes: int
    growing_modes: int
    growing: np.ndarray
    kink: bool
    # The conditions on kinks, where these are known.
    kinks: Kinks | None = None

    def reason(self, flat: Flat, tolerance: float, floor: float) -> Any:
        """The first condition that fails, of those that need no flow."""
        if not self.kkt.residual <= tolerance:
            return CERTIFICATE.not_kkt
        if self.kink:
            return CERTIFICATE.kink
        if self.kinks is not None and not self.kinks.exact:
            return CERTIFICATE.inexact
        if not self.kkt.margin >= floor:
            return CERTIFICATE.below_flow
        failed = (
            (SECOND_ORDER.saddle, CERTIFICATE.saddle),
            (SECOND_ORDER.undecided, CERTIFICATE.undecided),
            (SECOND_ORDER.not_smooth, CERTIFICATE.not_smooth),
        )
        for kind, reason in failed:
            if self.second_order is kind:
                vanishing = self.kinks is not None and self.kinks.num_vanishing > 0
                if kind is SECOND_ORDER.not_smooth and vanishing:
                    return CERTIFICATE.vanishing
                return reason
        return CERTIFICATE.certified


class Judge:
    """Judges the points of one search, which started from the unit vector `start`."""

    def __init__(self, flat: Flat, start: np.ndarray, tolerance: float, dense: bool):
        self.flat = flat
        self.start = start
        self.tolerance = tolerance
        self.dense = dense
        # KKT points have margins on the support that differ by rounding; the square
        # root leaves room for support vectors that rounding makes look different.
        self.support_tolerance = max(flat.eps**0.5, tolerance)
        self._last: tuple[Point, Verdict] | None = None

    def accept(self, point: Point) -> bool:
        """Whether the search can end here.

        At a saddle only if the flow cannot leave it: if the start has no component
        along the growing directions, because of a symmetry.
        """
        verdict = self.judge(point)
        if verdict.kinks is not None and not verdict.kinks.fit:
            return True  # the search goes on elsewhere
        if not verdict.kkt.residual <= self.tolerance:
            return False
        if verdict.second_order is not SECOND_ORDER.saddle:
            return True
        away = self.start - verdict.kkt.theta
        distance = np.linalg.norm(away)
        if verdict.growing.shape[1] == 0:
            return False
        along = np.linalg.norm(verdict.growing.T @ away)
        return bool(along <= max(1e-6 * distance, 1e3 * self.flat.eps))

    def judge(self, point: Point) -> Verdict:
        """The conditions at a point."""
        if self._last is not None and self._last[0] is point:
            return self._last[1]
        verdict = self._judge(point)
        self._last = point, verdict
        return verdict

    def _judge(self, point: Point) -> Verdict:
        flat, tol = self.flat, zero_tolerance(self.flat.eps)
        # Where Newton's method failed, what is nearly on the support is shown too.
        loose = min(10 * point.residual, 1e-2) if point.residual > self.tolerance else 0
        at = kkt(flat, point.w, max(self.support_tolerance, loose))
        none = np.zeros((flat.size, 0))
        kinks = None
        if isinstance(flat, Pinned):
            kinks = kinks_at(flat, at)
            at = at._replace(residual=max(at.residual, kinks.residual))
        if not at.residual <= max(1e3 * self.tolerance, 1e-6):
            return Verdict(
                at, SECOND_ORDER.undecided, np.nan, np.nan, -1, -1, none, False, kinks
            )
        support = np.flatnonzero(at.support)
        q = at.multipliers[support]
        strict = support[q > 1e-8 * np.max(q)]
        # In the scale p = 1, where w = Σλ∇p.
        w = at.theta / at.margin ** (1 / flat.degree)
        weights = at.multipliers[strict] * (w @ w) / flat.degree
        strict, support = (np.append(some, flat.pins) for some in (strict, support))
        weights = np.append(weights, _forces(flat, w, weights, strict))
        point = Point(w, weights, strict, at.residual)
        on_strict = curvature_on(flat, point, strict, dense=self.dense)
        kink, jump = jumps(flat, point)
        top, kind = on_strict.top(), SECOND_ORDER.strict
        zero = on_strict.zero(tol)
        growing = on_strict.growing(tol)
        if top > tol:
            # Constraints with a zero multiplier may forbid that direction.
            on_all = curvature_on(flat, point, support, dense=self.dense)
            growing = on_all.growing(tol)
            saddle = on_all.top() > tol
            kind = SECOND_ORDER.saddle if saddle else SECOND_ORDER.undecided
        elif jump:
            growth = one_sided_growth(flat, point, support)
            top = max(top, growth)
            kind = SECOND_ORDER.saddle if growth > tol else SECOND_ORDER.not_smooth
        elif zero.shape[1] > 0:
            same = is_manifold(flat, point, zero, dense=self.dense)
            kind = SECOND_ORDER.flat if same else SECOND_ORDER.undecided
        kind = _with_kinks(kind, kinks, tol)
        if kind is SECOND_ORDER.strict and on_strict.error > max(tol, -top / 2):
            kind = SECOND_ORDER.undecided
        return Verdict(
            at,
            kind,
            top,
            on_strict.slowest(tol),
            zero.shape[1] if on_strict.complete else -1,
            growing.shape[1],
            growing,
            kink,
            kinks,
        )


def _forces(flat: Flat, w, weights, index) -> np.ndarray:
    """The multipliers of the pins, by least squares, where w = Σλ∇p + Σν∇z."""
    if len(flat.pins) == 0:
        return np.zeros(0)
    rows = flat.rows(w, index)
    margins, pins = rows[: len(weights)], rows[len(weights) :]
    return np.linalg.lstsq(pins.T, w - margins.T @ weights, rcond=None)[0]


def _with_kinks(kind: Any, kinks: Kinks | None, tolerance: float) -> Any:
    """What the second-order condition on the pinned kinks' surface says off it."""
    if kinks is None or kind in (SECOND_ORDER.saddle, SECOND_ORDER.undecided):
        return kind
    if not kinks.stable:
        return SECOND_ORDER.saddle
    # As a multiplier of zero, a share of 0 or 1 leaves it open, and so does another
    # kink at zero.
    if kinks.slack <= tolerance or kinks.room <= tolerance:
        return SECOND_ORDER.undecided
    return SECOND_ORDER.not_smooth if kinks.num_vanishing > 0 else kind
