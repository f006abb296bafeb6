"""Margins: how far on the right side the outputs are."""

import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float

from .._norms import log_norm
from .._problem import Problem
from .._types import Params, Scalar
from ..losses import AbstractTailedLoss
from ._observer import observer
from ._state import State


def _per_norm(value, state: State):
    # value/‖W‖^L
    assert state.degree is not None
    return _over(value, state.degree * log_norm(state.params))


def _over(value: Float[Array, "..."], log_scale: Scalar) -> Float[Array, "..."]:
    # value/e^log_scale, through logarithms: e^log_scale itself may over- or underflow.
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


def _check_layers(
    problem: Problem, params: Params, degree: float | None, **options
) -> None:
    number = len(jtu.tree_leaves(params))
    if degree is not None and abs(degree - number) > 1e-6:
        raise ValueError(
            "needs outputs of degree one in each parameter array, but the degree is "
            f"{degree:g} in {number} arrays; use normalized_margins."
        )


@observer(needs_degree=True, check=_check_layers)
def layer_margins(state: State):
    r"""Margins over the product of the layers' norms (n,): $p_i/\prod_k\|W_k\|$.

    The layers are the parameter arrays; defined where the outputs are of degree one in
    each. NaN where one is zero. (Banburski et al. 2019, Section 2.)
    """
    sizes = [log_norm(w) for w in jtu.tree_leaves(state.params)]
    total = sum(sizes, jnp.zeros_like(log_norm(state.params)))
    return jnp.where(jnp.isinf(total), jnp.nan, _over(margins(state), total))


@observer()
def median_margins(state: State):
    r"""Margins over their median (n,): $p_i/\mathrm{median}\{p_j : p_j\ge0\}$.

    The normalisation for networks that are not homogeneous. NaN where no margin is
    positive, or that median is 0. (Ji & Telgarsky 2020, Appendix A.)
    """
    p = margins(state)
    median = jnp.nanmedian(jnp.where(p >= 0, p, jnp.nan))
    defined = median > 0
    return jnp.where(defined, p / jnp.where(defined, median, 1), jnp.nan)


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
    return _per_norm(alpha(state), state)


def alpha(state: State) -> Scalar:
    """α = ℓ⁻¹(ℒ), of the sum over the examples; NaN for losses without a tail."""
    loss = state.problem.loss
    if not isinstance(loss, AbstractTailedLoss):
        return jnp.full_like(state.log_loss, jnp.nan)
    return loss.alpha(state.log_loss, state.problem.num_examples)


@observer(needs_degree=True)
def beta(state: State):
    r"""$\beta=\langle W,\nabla\alpha\rangle/L=\sum_iq_ip_i$, a scalar.

    $0<\alpha\le\beta\le\alpha+2\ln n+1$ once ℒ < ℓ(0) (their Lemma C.5). Like α not
    divided by the norm, and of the sum over the examples. NaN for losses without an
    exponential tail. (Ji & Telgarsky 2020, Lemma C.2.)
    """
    loss = state.problem.loss
    if not isinstance(loss, AbstractTailedLoss):
        return jnp.full_like(state.log_loss, jnp.nan)
    # By Euler's theorem, and for every element of ∂α.
    pairs, log_weights = state.once(pairs_and_log_weights)
    return jnp.sum(jnp.exp(log_weights) * pairs)


@observer()
def dual(state: State):
    r"""Weights of the examples: $q_i=\partial\alpha/\partial p_i=
    \ell'(p_i)/\ell'(\alpha)$.

    (n,) with two classes. (n, k - 1) with k, one for each pair $p_{ij}=f_y-f_j$ in the
    order of the classes j ≠ y. They add up to 1 for the exponential loss, and tend to
    for the logistic one. A number: 0 where it is below the smallest float. NaN for
    losses without an exponential tail. (Ji & Telgarsky 2020, Lemmas C.2 and E.3.)
    """
    n = state.problem.num_examples
    if not isinstance(state.problem.loss, AbstractTailedLoss):
        return jnp.full((n,), jnp.nan, state.log_loss.dtype)
    _, log_weights = state.once(pairs_and_log_weights)
    q = jnp.exp(log_weights)
    return q[:, 0] if q.shape[1] == 1 else q


def pairs_and_log_weights(
    state: State,
) -> tuple[Float[Array, "examples wrong"], Float[Array, "examples wrong"]]:
    """Every p_ij, and log ∂α/∂p_ij, of a loss with an exponential tail."""
    loss = state.problem.loss
    assert isinstance(loss, AbstractTailedLoss)
    pairs = loss.pairs(state.outputs, state.y)
    shift = loss.log_reduction(state.problem.num_examples) - state.log_slope
    return pairs, loss.log_pair_slopes(pairs) + shift


@observer()
def accuracy(state: State):
    """Fraction of examples with a positive margin, a scalar in [0, 1].

    An example on the boundary (margin zero) counts as wrong. NaN where the labels are
    not classes.
    """
    p = margins(state)
    right = jnp.mean((p > 0).astype(p.dtype))
    return jnp.where(jnp.any(jnp.isnan(p)), jnp.nan, right)
