"""When a flow leaves kinks that no multiplier watches.

Of the kinks at zero only as many are pinned as are independent: of a neuron whose
weights are zero, as many as it has inputs. Their multipliers do not tell when the flow
leaves the others, so that it may, at any time, be another pattern that fits.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu

from .._types import BoolScalar, Scalar


_EXACTLY = 2.0**-30  # of the way that is looked at


class _Search(eqx.Module):
    low: Scalar
    high: Scalar
    turns: BoolScalar  # at the end
    about: Any  # what is known at `high`
    cost: Scalar
    first: BoolScalar


def first_leaving(
    look: Callable[[Scalar, BoolScalar], tuple[BoolScalar, BoolScalar, Any, Scalar]],
    begin: Scalar,
    end: Scalar,
) -> tuple[Scalar, Any, Scalar]:
    """The first place in (begin, end] where the pattern turns, if it does at the end.

    `look` takes a place and whether it is asked for at all, and says whether the
    pattern turns there, whether that may have been due before, what is to be known
    about the place, and what it cost. By bisection, as a pattern is no number; the
    first look is just before the end, where most of them still fit.

    Returns the place, which is the end if there is none before, what is known about it,
    and the cost of all looks.
    """
    apart = 1.01 * _EXACTLY * (end - begin)

    def goes_on(s: _Search) -> BoolScalar:
        return s.first | (s.turns & (s.high - s.low > apart))

    def body(s: _Search) -> _Search:
        just_before = s.high - _EXACTLY * (s.high - s.low)
        fresh = (s.high == end) & (s.low == begin)
        x = jnp.where(fresh, just_before, 0.5 * (s.low + s.high))
        x = jnp.where(s.first, end, x)
        turned, lingering, about, cost = look(x, goes_on(s))
        new = s.first | turned
        return _Search(
            low=jnp.where(new, s.low, x),
            high=jnp.where(new, x, s.high),
            turns=jnp.where(s.first, turned & lingering, s.turns),
            about=jtu.tree_map(lambda a, b: jnp.where(new, a, b), about, s.about),
            cost=s.cost + cost,
            first=jnp.zeros_like(s.first),
        )

    true = jnp.asarray(True)
    _, _, about, cost = jtu.tree_map(
        lambda s: jnp.zeros(s.shape, s.dtype), eqx.filter_eval_shape(look, end, true)
    )
    start = _Search(begin, end, ~true, about, cost, true)
    found = jax.lax.while_loop(goes_on, body, start)
    return found.high, found.about, found.cost
