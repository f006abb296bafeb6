"""Margins: how far on the right side the outputs are."""

import jax.numpy as jnp

from .._norms import log_norm
from ..losses import AbstractTailedLoss
from ._observer import observer
from ._state import State


def _per_norm(value, state: State):
    # value/‖W‖^L, through logarithms: ‖W‖^L itself may over- or underflow.
    assert state.degree is not None
    log_scale = state.degree * log_norm(state.params)
    log_size = jnp.log(jnp.where(value == 0, 1, jnp.abs(value)))
    return jnp.where(value == 0, 0, jnp.sign(value) * jnp.exp(log_size - log_scale))


@observer()
def margins(state: State):
    r"""Margins (n,): $p_i = y_i f(x_i)$, or $f_y - \max_{j\ne y} f_j$ with k classes.

    Not divided by the norm. NaN where the labels are not classes.
    (Ji & Telgarsky 2020, Section 2.)
    """
    return state.problem.loss.margins(state.outputs, state.y)


@observer(needs_degree=True)
def normalized_margins(state: State):
    r"""Normalised margins (n,): $p_i/\|W\|^L$, L the degree of homogeneity.

    (Ji & Telgarsky 2020, Section 2.)
    """
    return _per_norm(margins(state), state)


@observer(needs_degree=True)
def min_margin(state: State):
    r"""The normalised margin, a scalar: $\min_i p_i/\|W\|^L$.

    (Lyu & Li 2019, eq. (1); Ji & Telgarsky 2020, Section 2.)
    """
    return _per_norm(jnp.min(margins(state)), state)


@observer(needs_degree=True)
def smoothed_margin(state: State):
    r"""The smoothed margin, a scalar: $\tilde\alpha = \alpha/\|W\|^L$, α = ℓ⁻¹(ℒ).

    α is formed from the sum over the examples, whatever the loss's reduction.
    Non-decreasing along the flow once ℒ < ℓ(0). NaN for losses without an
    exponential tail. (Ji & Telgarsky 2020, Section 3.1; Lyu & Li 2019.)
    """
    loss = state.problem.loss
    if not isinstance(loss, AbstractTailedLoss):
        return jnp.full_like(state.log_loss, jnp.nan)
    alpha = loss.alpha(state.log_loss, state.problem.num_examples)
    return _per_norm(alpha, state)


@observer()
def accuracy(state: State):
    """Fraction of examples with a positive margin, a scalar in [0, 1].

    An example on the boundary (margin zero) counts as wrong. NaN where the labels are
    not classes.
    """
    p = margins(state)
    right = jnp.mean((p > 0).astype(p.dtype))
    return jnp.where(jnp.any(jnp.isnan(p)), jnp.nan, right)
