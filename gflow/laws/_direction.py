"""Laws of the direction: it converges, along a curve of finite length, and aligns."""

import itertools

import numpy as np

from .._flat import flatten
from .._problem import like_params
from ..limits._evidence import distances, fit_rate, saved_directions
from ._late import at, path_limit, stretches
from ._law import Found, law, need, need_degree, need_separation, shown
from ._run import Run


# dζ/dy ~ y^-p is taken to have a finite integral for p above 1.1, not 1: p is measured
# over a finite time. Logarithmic spirals have p < 1 at any time. A direction that
# converges like (log t)^-r has p = r y, so that the two can be told apart if r y is
# clearly above that; three linear layers, r = 1/3, have p = 1.4 at log t = 1e3.
_LENGTH, _CLEAR = 1 / 1.1, 1.25
# The angle must fall like y^-p with p above 1/4. On the Mexican hat p tends to 5/6, and
# is 0.82 at log t = 1e7; networks have more than 1.2; of an angle that stays p goes to
# zero, and is 6e-4 in examples/all_laws.py.
_ALIGNS = 4.0
# A flow is late if its margin grows by less than a tenth over a stretch, and by less
# than over the one before, or by less than one percent.
_GROWS, _SLOWER, _LITTLE = 0.1, 0.7, 0.01
# Of rtol: error of a direction.
_NOISE = 20.0
# The fitted rate must be this part of the predicted one, as `gflow.limit` asks.
_RATE = 0.2


def late_stretches(run: Run) -> np.ndarray:
    """The ends of three stretches in the late phase."""
    degree = need_degree(run)
    first = need_separation(run)
    need(np.any(np.isfinite(run.log_t)), "the times are not known")
    ends = stretches(run.log_t, first)
    need(
        len(ends),
        f"the solve ends at log t = {run.log_t[-1]:.3g}, and after separation log t "
        "must grow by a factor of 64 beyond 5",
    )
    margin = np.log(np.maximum(run.alpha, 1e-300)) - degree * run.log_norm
    before, last = np.diff(at(run.log_t, margin, ends[1:]))
    need(
        last < _GROWS and (last < _SLOWER * before or last < _LITTLE),
        f"the margin grows by {100 * np.expm1(last):.1f} % over the last factor of "
        f"{ends[-1] / ends[-2]:.2g} in log t, after {100 * np.expm1(before):.1f} % "
        "over the one before: the direction is not near its limit yet",
    )
    return ends


@law("path length is finite", "JT Theorem 3.1: ζ_∞ < ∞")
def path_length(run: Run) -> Found:
    r"""ζ converges, by the integral test in y = log log t.

    ∫ dζ is finite if dζ/dy falls like $y^{-p}$ with p > 1. p is measured from what ζ
    grows by over the last two stretches of equal length in y, and the violation is 1/p.
    Along a flow whose direction converges like $(\log t)^{-r}$, p = r y; along a
    logarithmic spiral $p\le1$. What is reported of ζ_∞ is that of
    [`gflow.laws.path_limit`][]. ζ is the solve's if it observed `path_length`, else the
    length of the polygon through the saved directions; also where that is longer, as it
    cannot be along the flow.
    """
    y = np.log(late_stretches(run)[1:])
    rate = _slowest_rate(run)
    need(
        rate * y[1] * _LENGTH > _CLEAR,
        f"log t = {run.log_t[-1]:.3g} is too early to tell a spiral from a direction "
        f"that converges like (log t)^-{shown(rate)}",
    )
    zeta = run.observed("path_length")
    polygon = np.cumsum(run.turned)
    integrated = zeta is not None and np.all(np.isfinite(zeta))
    if zeta is None or not integrated or _longer(polygon, zeta, run):
        integrated, zeta = False, polygon
    known = path_limit(run.log_t, zeta, since=need_separation(run))
    measured = f"ζ = {known.path_length:.6g}" + (
        "" if integrated else " (of a polygon)"
    )
    if known.last <= run.tolerance(_NOISE):
        return Found("p > 1", f"{measured}, at rest", 0.0, _LENGTH)
    p, end = known.exponent, known.path_length + known.left
    return Found(
        "p > 1",
        f"p = {shown(p)}; {measured}, ζ_∞ = {end:.6g} as (log t)^-{shown(known.rate)}, "
        f"at most {known.path_length + known.bound:.6g}",
        1 / p if p > 0 else np.inf,
        _LENGTH,
    )


def _slowest_rate(run: Run) -> float:
    # At least (log t)^-r, as the curvature at the limit has it, or like 1/‖W‖.
    if run.limit is not None:
        predicted = float(run.limit.evidence.predicted_rate)
        if np.isfinite(predicted) and predicted > 0:
            return predicted
    return 1 / max(need_degree(run), 1)


def _longer(polygon: np.ndarray, zeta: np.ndarray, run: Run) -> bool:
    # Chords are shorter than their arcs, if the models are those of the solve.
    return bool(polygon[-1] > zeta[-1] - zeta[0] + run.tolerance(_NOISE))


@law("gradient aligns", "JT Theorem 4.1: ∠(W, -∇ℒ) → 0")
def alignment(run: Run) -> Found:
    r"""The angle falls like $y^{-p}$, y = log log t, along flows of smooth networks.

    p is measured from the largest angles of the last two stretches, which are at their
    starts unless the angle oscillates. As dζ = tan∠ d log‖W‖, the path is of finite
    length if p > 1; alignment only asks for p > 0. Where the direction converges like
    $(\log t)^{-r}$, p = r y.
    """
    need(run.is_smooth, "the model has kinks, and the theorem asks for smooth margins")
    ends = late_stretches(run)
    angle = run.alignment

    def largest(low: float, high: float) -> float:
        within = angle[(run.log_t > low) & (run.log_t <= high)]
        return float(np.max(np.append(within, at(run.log_t, angle, ends[ends == low]))))

    before, last = (largest(*pair) for pair in itertools.pairwise(ends[1:]))
    y = np.log(ends)
    p = float(np.log(before / last) / np.log(y[2] / y[1])) if last > 0 else np.inf
    measured = f"{shown(at(run.log_t, angle, ends[1:2])[0])} to {shown(angle[-1])} rad"
    if last <= run.tolerance(_NOISE):
        return Found("→ 0", measured, 0.0, _ALIGNS)
    return Found(
        "→ 0", f"{measured}, p = {shown(p)}", 1 / p if p > 0 else np.inf, _ALIGNS
    )


@law("direction's rate", "JT, T3: ‖θ - θ̄‖ ~ (log t)^-r")
def direction_rate(run: Run) -> Found:
    r"""The direction approaches its limit like $(\log t)^{-r}$, or faster.

    r = min(1, (1 - h)/L), as in [`gflow.limits.Evidence`][]: 1/log t unless the
    curvature at the limit makes it slower. It is fitted to the saved directions, as far
    as these are away from the limit by more than their error.
    """
    need_degree(run)
    need(
        run.limit is not None,
        "the limit is not known: integrate to gflow.INFINITY, or pass limit=",
    )
    predicted = float(run.limit.evidence.predicted_rate)
    need(
        np.isfinite(predicted) and predicted > 0,
        "the curvature at the limit predicts no rate",
    )
    late = np.isfinite(run.log_t) & (run.log_t > 0)
    theta = flatten(like_params(run.limit.direction, run.problem))
    rate = fit_rate(
        run.log_t[late],
        distances(saved_directions(run.params)[late], np.asarray(theta, np.float64)),
        rounding=run.tolerance(_NOISE),
        # The point of a manifold of limits was chosen by the last direction.
        before_end=1.0 if run.limit.zero_modes == 0 else 2.0,
    )
    need(
        np.isfinite(rate),
        "too few late times are saved at which the direction is away from its limit",
    )
    return Found(
        f"r = {shown(predicted)}",
        f"r = {shown(rate)}",
        max(0.0, 1 - rate / predicted),
        _RATE,
    )


LAWS = (path_length, alignment, direction_rate)
