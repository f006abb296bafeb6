"""Laws of the direction: it converges, along a curve of finite length, and aligns."""

import numpy as np

from ._late import at, remaining, stretches
from ._law import Found, law, need, need_degree, need_separation, shown
from ._run import Run


# What is left of the path must be what was expected to be, one stretch earlier, up to
# this factor: logarithms of log t spoil powers of it.
_LENGTH = 1.5
# The angle must fall by a tenth over a stretch: of a factor of 10 in log t, that is
# (log t)^-0.05.
_FALLS = 0.9
# A flow whose margin still grows by more over a stretch is not late.
_LATE = 0.1
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
        "must grow eightfold beyond 5",
    )
    rows = run.log_t >= ends[2]
    log = np.log(run.alpha[rows]) - degree * run.log_norm[rows]
    growth = float(np.ptp(log))
    need(
        growth < _LATE,
        f"the margin still grows by {100 * np.expm1(growth):.0f} % at the end: the "
        "late phase has not begun",
    )
    return ends


@law("path length is finite", "JT Theorem 3.1: ζ_∞ < ∞")
def path_length(run: Run) -> Found:
    r"""ζ converges: what is left of it shrinks as a convergent power of log t must.

    Over three stretches of equal length in log log t the curve of directions grows by
    Δ₁, Δ₂, Δ₃. If ζ_∞ - ζ is a power of log t these are geometric, and after the second
    what is left is $R_2=\Delta_2\rho/(1-\rho)$, ρ = Δ₂/Δ₁. The third must agree:
    Δ₃ + R₃ ≤ 1.5 R₂. A spiral, of infinite length, exceeds every such bound. ζ is the
    solve's if it observed `path_length`, else the length of the polygon through the
    saved directions.
    """
    ends = late_stretches(run)
    zeta = run.observed("path_length")
    integrated = zeta is not None and np.all(np.isfinite(zeta))
    zeta = zeta if integrated else np.cumsum(run.turned)
    assert zeta is not None
    d1, d2, d3 = np.diff(at(run.log_t, zeta, ends))
    expected, left = remaining(d1, d2), remaining(d2, d3)
    noise = run.tolerance(_NOISE)
    still = d3 + left <= noise
    violation = 0.0 if still else (d3 + left) / expected if expected > 0 else np.inf
    if np.isnan(violation):  # ∞/∞
        violation = np.inf
    rate = np.log(d2 / d3) / np.log(ends[-1] / ends[-2]) if d2 > 0 < d3 else np.inf
    return Found(
        f"left after log t = {shown(ends[2])}: {shown(max(expected, 0))}",
        f"{shown(d3 + left)}, ζ_∞ = {shown(zeta[-1] + left)} ± {shown(left)}, "
        f"rate {shown(rate)}" + ("" if integrated else " (polygon)"),
        violation,
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
