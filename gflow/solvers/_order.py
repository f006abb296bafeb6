"""Which order and step to take next."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import IntScalar, Scalar
from ._past import MOST


# Of the longest step that would do.
SAFETY = 0.9
# How much longer, and shorter, a step may be than the last one.
_GROWTH = 2.0
_FIRST_GROWTH = 10.0
_SHRINKING = 0.2
# A change of order has to pay.
_RELUCTANCE = 0.95


class Choice(eqx.Module):
    """The order of the next step, and its length in units of the last one's."""

    order: IntScalar
    factor: Scalar


def choose(
    sizes: Float[Array, " 3"], order: IntScalar, num_points: IntScalar
) -> Choice:
    """From the errors of orders k - 1, k and k + 1, which is accepted below one.

    `num_points`: on which the step just taken was built.
    """
    orders = order + jnp.arange(-1, 2)
    current = jnp.arange(3) == 1
    known = current | (num_points >= orders + 1)
    known = known & (orders >= 1) & (orders <= MOST)
    safe = jnp.maximum(sizes, 1e-10)
    factors = SAFETY * safe ** (-1 / (jnp.maximum(orders, 0) + 1).astype(safe.dtype))
    worth = jnp.where(known, factors, 0) * jnp.where(current, 1, _RELUCTANCE)
    best = jnp.argmax(worth)
    first = num_points == 1
    accepted = sizes[1] <= 1
    factor = jnp.clip(
        jnp.where(first, factors[1], factors[best]),
        SAFETY * (1 + 1e-6),
        jnp.where(first, _FIRST_GROWTH, _GROWTH),
    )
    shorter = jnp.clip(factors[1], _SHRINKING, SAFETY * (1 - 1e-6))
    return Choice(
        # The second step has points enough for order two.
        order=jnp.where(first, order + 1, orders[best]),
        factor=jnp.where(accepted, factor, shorter),
    )
