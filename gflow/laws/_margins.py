"""Laws of the margins and the norm of a homogeneous network."""

import math

import jax
import numpy as np

from ..losses import AbstractTailedLoss
from ._law import Found, law, need, need_degree, need_separation, shown
from ._run import Run


# Of rtol, which bounds the error of log‖W‖ in a step; α has L times that.
_NORM = 5.0


@law("Euler's theorem", "JT Lemma C.1: ⟨W, ∇p_i⟩ = L p_i")
def euler(run: Run) -> Found:
    """⟨W, ∇f(x_i)⟩ = L f(x_i) at every saved model, over the largest output there."""
    degree = need_degree(run)
    axes = tuple(range(1, run.outputs.ndim))
    size = np.max(np.abs(degree * run.outputs), axis=axes)
    # Outputs that underflow have no digits to compare.
    seen = size > 1e-200
    need(np.any(seen), "the outputs are zero")
    error = np.max(np.abs(run.radial - degree * run.outputs), axis=axes)
    worst = float(np.max(error[seen] / size[seen]))
    # Where outputs cancel, what is left has lost digits: half of them are kept.
    return Found(f"L = {degree:g}", f"off by {shown(worst)}", worst, run.eps**0.5)


@law("α ≤ β", "JT Lemma C.5: 0 < α ≤ β ≤ α + 2 ln n + 1")
def alpha_beta(run: Run) -> Found:
    r"""α of the reported losses, β = ⟨W,∇α⟩/L of the saved models, over 1 + α.

    With k classes the bound is $\alpha+2\ln(n(k-1))+1$: β takes all $p_{ij}$, of which
    the k - 1 of an example have the entropy of their softmax at most, $\ln(k-1)$, above
    the soft margin for which the lemma holds.
    """
    need_degree(run)
    first = need_separation(run)
    loss, n = run.problem.loss, run.problem.num_examples
    assert isinstance(loss, AbstractTailedLoss)
    reported = jax.vmap(lambda one: loss.alpha(one, n))(run.solution.log_loss)
    alpha = np.asarray(reported, np.float64)[run.reached]
    rows = (alpha > 0) & (np.arange(len(run)) >= first)
    need(np.any(rows), "ℒ < ℓ(0) at no saved time")
    alpha, beta = alpha[rows], run.beta[rows]
    wrong = run.outputs.shape[1] - 1 if run.outputs.ndim > 1 else 1
    room = 2 * math.log(n * max(wrong, 1)) + 1
    over = np.maximum(alpha - beta, beta - alpha - room) / (1 + alpha)
    gap = beta - alpha
    return Found(
        f"0 ≤ β - α ≤ {shown(room)}",
        f"from {shown(np.min(gap))} to {shown(np.max(gap))}",
        max(float(np.max(over)), 0.0),
        run.eps**0.5,
    )


@law("smoothed margin rises", "Lyu & Li (2019); JT Section 3.1")
def smoothed_margin_rises(run: Run) -> Found:
    """α̃ = α/‖W‖^L does not fall below an earlier value, over (1 + α)/‖W‖^L."""
    degree = need_degree(run)
    first = need_separation(run)
    alpha, size = run.alpha[first:], run.log_norm[first:]
    # Logarithms of α̃; α > 0 at the first, and if it is not later that is a fall.
    log = np.log(np.maximum(alpha, 1e-300)) - degree * size
    highest = np.maximum.accumulate(log)
    fall = (np.exp(np.minimum(highest + degree * size, 700)) - alpha) / (1 + alpha)
    fall = np.where(alpha > 0, np.maximum(fall, 0), 1 + np.abs(alpha))
    fall = np.where(log >= highest, 0, fall)
    worst = int(np.argmax(fall))
    ends = np.exp(log[[0, -1]])
    return Found(
        "no fall",
        f"{shown(ends[0])} to {shown(ends[1])}"
        + (f", falls at point {worst + first}" if fall[worst] > 0 else ""),
        fall[worst],
        run.tolerance(_NORM * max(degree, 1)),
    )


@law("norm rises", "JT Lemmas C.2, C.5: ½d‖W‖²/dt = -ℓ'(α)Lβ > 0")
def norm_rises(run: Run) -> Found:
    """log ‖W‖ does not fall below an earlier value once the data are separated."""
    need_degree(run)
    first = need_separation(run)
    size = run.log_norm[first:]
    fall = np.maximum.accumulate(size) - size
    worst = int(np.argmax(fall))
    return Found(
        "no fall",
        f"log‖W‖: {shown(size[0])} to {shown(size[-1])}"
        + (f", falls at point {worst + first}" if fall[worst] > 0 else ""),
        fall[worst],
        run.tolerance(_NORM),
    )


LAWS = (euler, alpha_beta, smoothed_margin_rises, norm_rises)
