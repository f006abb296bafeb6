"""How fast the margins grow."""

import math

import numpy as np

from ._law import Found, law, need, need_degree, need_separation, shown
from ._run import Run


# The terms left out are this many times (ln n + 1) (2 - 2/L + 1)/α, by measurement.
_LEFT_OUT = 4.0
_EARLY = 0.5
# Of rtol: the error of log t.
_CLOCK = 20.0


@law("growth rate", "T3 Section 11.1.2, from eq. (64)")
def growth(run: Run) -> Found:
    r"""α = log t + (2 - 2/L) log α + log(L² α̃^{2/L}) + O(1/α).

    By alignment $\|\nabla\alpha\|\to L\tilde\alpha\|W\|^{L-1}$ (what is left of the
    angle is in the tolerance), so that R = e^α has
    $\dot R=\|\nabla\alpha\|^2=L^2\tilde\alpha^{2/L}(\log R)^{2-2/L}$: for L = 1,
    ρ ~ log t; for L = 2, R = li⁻¹(4α̃ t). With equal layer norms ρ and
    $\tilde f=\alpha/\rho^L$ the factor is $L\tilde f^{2/L}$, which is what T3's
    equation (64) gives; their (66) and (68) have L times that.
    """
    degree = need_degree(run)
    need_separation(run)
    log_t = run.log_t[-1] + run.problem.loss.log_reduction(run.problem.num_examples)
    need(np.isfinite(log_t), "the times are not known")
    alpha, size = run.alpha[-1], run.log_norm[-1]
    need(alpha > 1, "ℒ is not small at the end")
    power = 2 - 2 / degree
    n = run.problem.num_examples
    left_out = _LEFT_OUT * (math.log(n) + 1) * (power + 1) / alpha
    # ⟨W,∇α⟩ = ‖W‖‖∇α‖ cos(angle).
    left_out += -2 * math.log(max(math.cos(run.alignment[-1]), 1e-300))
    need(
        left_out < _EARLY,
        f"α = {shown(alpha)} at the end, and terms of order (ln n)/α are left out, "
        f"as is an angle of {shown(run.alignment[-1])} to the gradient",
    )
    log_margin = math.log(alpha) - degree * size
    constant = 2 * math.log(degree) + 2 * log_margin / degree
    # The next term of ∫ dR/(log R)^power is known too.
    found = alpha - power * math.log(alpha) + power / alpha - log_t
    return Found(
        f"α - log t - {power:g} log α = {shown(constant)}",
        shown(found),
        abs(found - constant),
        left_out + run.tolerance(_CLOCK),
    )


LAWS = (growth,)
