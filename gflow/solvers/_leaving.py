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

from .._types import BoolScalar, IntScalar, Scalar


_LOOKS = 33  # at most: to 2^-31 of the way
# What is left of it at the second look: where a kink that is met at the end is told
# from one that is at zero.
_JUST = 2.0**-20


class _Search(eqx.Module):
    low: Scalar
    high: Scalar
    goes_on: BoolScalar
    about: Any  # what is known at `high`
    cost: Scalar
    count: IntScalar


def first_leaving(
    look: Callable[[Scalar, BoolScalar], tuple[BoolScalar, BoolScalar, Any, Scalar]],
    begin: Scalar,
    end: Scalar,
) -> tuple[Scalar, Any, Scalar]:
    """The first place in (begin, end] where the pattern turns, if it does at the end.

    `look` takes a place and whether it is asked for at all, and says whether the
    pattern turns there, whether that may have been due before, what is to be known
    about the place, and what it cost. By bisection, as a pattern is no number, unless
    the pattern still fits just before the end.

    Returns the place, which is the end if there is none before, what is known about it,
    and the cost of all looks.
    """

    def body(s: _Search) -> _Search:
        just_before = end - _JUST * (end - begin)
        x = jnp.where(s.count == 1, just_before, 0.5 * (s.low + s.high))
        x = jnp.where(s.count == 0, end, x)
        turned, lingering, about, cost = look(x, s.goes_on)
        # At the end whatever there is; then, only if it turns just before, on.
        new = turned | (s.count == 0)
        goes_on = turned & jnp.where(s.count == 0, lingering, True)
        goes_on = jnp.where(s.count <= 1, goes_on, s.count + 1 < _LOOKS)
        return _Search(
            low=jnp.where(new, s.low, x),
            high=jnp.where(new, x, s.high),
            goes_on=goes_on,
            about=jtu.tree_map(lambda a, b: jnp.where(new, a, b), about, s.about),
            cost=s.cost + cost,
            count=s.count + 1,
        )

    true = jnp.asarray(True)
    _, _, about, cost = jtu.tree_map(
        lambda s: jnp.zeros(s.shape, s.dtype), eqx.filter_eval_shape(look, end, true)
    )
    start = _Search(begin, end, true, about, cost, jnp.asarray(0))
    found = jax.lax.while_loop(lambda s: s.goes_on, body, start)
    return found.high, found.about, found.cost
