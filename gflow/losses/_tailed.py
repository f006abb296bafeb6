r"""Losses with an exponential tail, in the log domain.

Both families reduce to one scalar function ℓ of one margin p_i per example: with
two classes p_i = y_i f(x_i); with k classes the sum over the wrong classes is carried
by the soft margin p_i = -log Σ_{j≠y} e^{f_j - f_y}, because

    CrossEntropy          log(1 + Σ_{j≠y} e^{f_j - f_y}) = log(1 + e^{-p_i}),
    MulticlassExponential        Σ_{j≠y} e^{f_j - f_y}   = e^{-p_i}.

With α = ℓ⁻¹(ℒ) and q_i = ℓ'(p_i)/ℓ'(α) (Ji & Telgarsky 2020, Lemma C.2),

    -∇ℒ = -ℓ'(α) Σ_i q_i ∇p_i = -ℓ'(α) ∇α:

a moderate vector times a scalar that is kept as its logarithm.
"""

import abc

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import Scalar
from ._abstract import AbstractLoss, Linearised


# Below this log-loss the logistic loss is its own tail: the series used there are
# accurate to rounding in float64 (the first term left out is x³ ~ 1e-24).
_TAIL = -18.0


class AbstractTailedLoss(AbstractLoss):
    r"""A loss $\mathcal L = \sum_i \ell(p_i)$ whose ℓ decays exponentially."""

    @abc.abstractmethod
    def log_value(self, p: Float[Array, "..."]) -> Float[Array, "..."]:
        """log ℓ(p)."""

    @abc.abstractmethod
    def log_slope(self, p: Float[Array, "..."]) -> Float[Array, "..."]:
        """log(-ℓ'(p))."""

    @abc.abstractmethod
    def inverse(self, log_value: Float[Array, "..."]) -> Float[Array, "..."]:
        """ℓ⁻¹(e^log_value)."""

    @abc.abstractmethod
    def soft_margins(
        self, outputs: Float[Array, "examples ..."], y: Array
    ) -> Float[Array, " examples"]:
        """The p_i that ℓ is applied to."""

    @abc.abstractmethod
    def pairs(
        self, outputs: Float[Array, "examples ..."], y: Array
    ) -> Float[Array, "examples wrong"]:
        """Every margin p_ij, linear in the outputs: one a wrong class j."""

    @abc.abstractmethod
    def log_pair_slopes(
        self, pairs: Float[Array, "examples wrong"]
    ) -> Float[Array, "examples wrong"]:
        r"""$\log(-\partial\sum_i\ell_i/\partial p_{ij})$ at the p_ij."""

    def alpha(self, log_loss: Scalar, n: int) -> Scalar:
        r"""$\alpha = \ell^{-1}(\sum_i \ell(p_i))$ from the reported log-loss.

        With `reduction="mean"` the sum is restored first, so that α does not depend
        on the reduction.
        """
        return self.inverse(log_loss - self.log_reduction(n))

    def weights(
        self, outputs: Float[Array, "examples ..."], y: Array
    ) -> Float[Array, " examples"]:
        r"""$q_i = \ell'(p_i)/\ell'(\alpha) = \partial\alpha/\partial p_i$."""
        p = self.soft_margins(outputs, y)
        alpha = self.inverse(jax.nn.logsumexp(self.log_value(p)))
        return jnp.exp(self.log_slope(p) - self.log_slope(alpha))

    def linearise(self, outputs: Float[Array, "examples ..."], y: Array) -> Linearised:
        p, pull_back = jax.vjp(lambda f: self.soft_margins(f, y), outputs)
        log_sum = jax.nn.logsumexp(self.log_value(p))
        log_scale = self.log_slope(self.inverse(log_sum))
        (pull,) = pull_back(jnp.exp(self.log_slope(p) - log_scale))
        shift = self.log_reduction(p.shape[0])
        log_loss = log_sum + shift
        return Linearised(log_loss, log_scale + shift, pull, jnp.exp(log_loss))


def exponential_log_value(p: Float[Array, "..."]) -> Float[Array, "..."]:
    return -p


def exponential_inverse(log_value: Float[Array, "..."]) -> Float[Array, "..."]:
    return -log_value


def logistic_log_value(p: Float[Array, "..."]) -> Float[Array, "..."]:
    """log log(1 + e^-p)."""
    tail = p > -_TAIL
    x = jnp.exp(-jnp.where(tail, p, -_TAIL))
    series = -p - x / 2 + 5 * x**2 / 24
    body = jnp.log(jax.nn.softplus(-jnp.where(tail, -_TAIL, p)))
    return jnp.where(tail, series, body)


def logistic_log_slope(p: Float[Array, "..."]) -> Float[Array, "..."]:
    """log(1/(1 + e^p))."""
    return -jax.nn.softplus(p)


def logistic_inverse(log_value: Float[Array, "..."]) -> Float[Array, "..."]:
    """-log(e^ℒ - 1)."""
    tail = log_value < _TAIL
    x = jnp.exp(jnp.where(tail, log_value, _TAIL))
    series = -(log_value + x / 2 + x**2 / 24)
    total = jnp.exp(jnp.where(tail, _TAIL, log_value))
    body = -(total + jnp.log(-jnp.expm1(-total)))
    return jnp.where(tail, series, body)
