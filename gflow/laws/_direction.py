"""Laws of the direction: it converges, along a curve of finite length, and aligns."""

import numpy as np

from ._late import at, remaining, stretches
from ._law import Found, law, need, need_degree, need_separation, shown
from ._run import Run


# ζ' ~ (log log t)^-p is taken to have a finite integral for p above 3/2, not 1: p is
# measured over a finite time. Powers of log t come to p > 2 by log t = 1e4, logarithmic
# spirals to p < 1 at any time.
_LENGTH = 2 / 3
# The angle must fall over a stretch; on the Mexican hat it does by 7 %.
_FALLS = 0.98
# A flow is late if its margin grows by less than a tenth over a stretch, and by less
# than over the one before, or by less than one percent.
_GROWS, _SLOWER, _LITTLE = 0.1, 0.7, 0.01
# Of rtol: error of a direction.
_NOISE = 200.0
# The fitted rate must be this part of the predicted one, as `gflow.limit` asks.
_RATE = 0.5


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
    logarithmic spiral $p\le1$. If ζ_∞ - ζ is a power of log t these two are terms of a
    geometric series, whose rest is what is reported as left. ζ is the solve's if it
    observed `path_length`, else the length of the polygon through the saved directions.
    """
    ends = late_stretches(run)
    zeta = run.observed("path_length")
    integrated = zeta is not None and np.all(np.isfinite(zeta))
    zeta = zeta if integrated else np.cumsum(run.turned)
    assert zeta is not None
    before, last = np.diff(at(run.log_t, zeta, ends[1:]))
    polygon = "" if integrated else " (of a polygon)"
    if last <= run.tolerance(_NOISE):
        return Found("p > 1", f"ζ = {shown(zeta[-1])}{polygon}, at rest", 0.0, _LENGTH)
    y = np.log(ends[1:])
    middle = (y[1:] + y[:-1]) / 2
    # From rest into motion: no fall at all.
    fall = np.log(before / last) if before > 0 else -np.inf
    p = float(fall / np.log(middle[1] / middle[0]))
    left = remaining(before, last)
    return Found(
        "p > 1",
        f"p = {shown(p)}; ζ = {shown(zeta[-1])}{polygon}, {shown(left)} left",
        1 / p if p > 0 else np.inf,
        _LENGTH,
    )


@law("gradient aligns", "JT Theorem 4.1: ∠(W, -∇ℒ) → 0")
def alignment(run: Run) -> Found:
    """The angle's maximum falls from one stretch to the next, of a smooth network."""
    need(run.is_smooth, "the model has kinks, and the theorem asks for smooth margins")
    ends = late_stretches(run)
    angle = run.alignment
    last = np.max(angle[run.log_t > ends[2]])
    before = np.max(
        np.append(
            angle[(run.log_t > ends[1]) & (run.log_t <= ends[2])],
            at(run.log_t, angle, ends[1:3]),
        )
    )
    noise = run.tolerance(_NOISE)
    return Found(
        "→ 0",
        f"{shown(at(run.log_t, angle, ends[1:2])[0])} to {shown(angle[-1])} rad",
        0.0 if last <= noise else last / before,
        _FALLS,
    )


@law("direction's rate", "JT, T3: ‖θ - θ̄‖ ~ (log t)^-r")
def direction_rate(run: Run) -> Found:
    r"""The direction approaches its limit like $(\log t)^{-r}$, or faster.

    r = min(1, (1 - h)/L), as in [`gflow.limits.Evidence`][]: 1/log t unless the
    curvature at the limit makes it slower.
    """
    need_degree(run)
    need(
        run.limit is not None,
        "the limit is not known: integrate to gflow.INFINITY, or pass limit=",
    )
    evidence = run.limit.evidence
    rate, predicted = float(evidence.rate), float(evidence.predicted_rate)
    need(np.isfinite(rate), "too few late times are saved to fit a rate")
    need(
        np.isfinite(predicted) and predicted > 0,
        "the curvature at the limit predicts no rate",
    )
    return Found(
        f"r = {shown(predicted)}",
        f"r = {shown(rate)}",
        max(0.0, 1 - rate / predicted),
        _RATE,
    )


LAWS = (path_length, alignment, direction_rate)
