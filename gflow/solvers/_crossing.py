"""Where in a step a pattern first ceases to fit."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu

from .._types import BoolScalar, IntScalar, Scalar


_LOCATE = 60  # evaluations at most


class Crossing(eqx.Module):
    """The place, as a fraction of the step, and what the function says there."""

    fraction: Scalar
    found: BoolScalar
    about: Any
    cost: Any
    count: IntScalar  # of evaluations


def first_crossing(
    function: Callable[[Scalar], tuple[Scalar, BoolScalar, Any, Any]],
    nodes: tuple[float, ...],
    slack: float,
    dtype: Any,
    start: Scalar | None = None,
) -> Crossing:
    """Where a function first falls below zero in (0, 1], if at any of the nodes.

    Between the nodes by regula falsi in the Illinois variant, with every third step a
    bisection; on the far side, where the function says that it is close enough. At the
    last node if there is no such place. Values below `slack` are as good as zero; that
    at the `start` may be known. The function returns its value, whether that is close
    enough to zero, what is to be known about the place, and what looking there cost.
    """
    places = jnp.asarray(nodes, dtype)
    tiny = 4 * float(jnp.finfo(dtype).eps)

    class Search(eqx.Module):
        low: Any
        high: Any
        close: Any  # whether `high` is
        low_weight: Any
        high_weight: Any
        width: Any  # of the bracket, three evaluations ago at the latest
        about: Any
        cost: Any
        found: Any
        fell: Any  # whether the last evaluation was on the far side
        node: Any
        count: Any

    def goes_on(s: Search):
        close = (s.high - s.low <= tiny * s.high) | s.close
        looking = ~s.found & (s.node < len(nodes))
        return looking | (s.found & ~close & (s.count < _LOCATE))

    def body(s: Search):
        span = s.low_weight - s.high_weight
        # A little beyond the zero, so that it ends there.
        part = (s.low_weight + 0.5 * slack) / jnp.where(span > 0, span, 1)
        x = s.low + (s.high - s.low) * part
        # Where the least of several margins is flat until another one falls, secants
        # get nowhere.
        due = s.count % 3 == 2
        slow = due & (s.high - s.low > 0.25 * s.width)
        flat = (s.low == 0) & (s.low_weight <= 4 * slack)
        inside = (x > s.low) & (x < s.high) & ~flat & ~slow
        x = jnp.where(inside, x, 0.5 * (s.low + s.high))
        x = jnp.where(s.found, x, places[jnp.minimum(s.node, len(nodes) - 1)])
        value, close, about, cost = function(x)
        # (A state that is not a number is not an event, but a step to be rejected.)
        fell = jnp.where(s.found, ~(value >= 0), value < 0)
        value = jnp.where(jnp.isnan(value), -1.0, value)
        # A side that is kept twice counts half.
        again = s.found & (fell == s.fell)
        low_weight = jnp.where(again, 0.5 * s.low_weight, s.low_weight)
        high_weight = jnp.where(again, 0.5 * s.high_weight, s.high_weight)
        last = ~s.found & (s.node == len(nodes) - 1)
        return Search(
            low=jnp.where(fell, s.low, x),
            high=jnp.where(fell, x, s.high),
            close=jnp.where(fell, close, s.close),
            low_weight=jnp.where(fell, low_weight, value),
            high_weight=jnp.where(fell, value, high_weight),
            width=jnp.where(due | ~s.found, s.high - s.low, s.width),
            about=jtu.tree_map(
                lambda a, b: jnp.where(fell | last, a, b), about, s.about
            ),
            cost=jtu.tree_map(jnp.add, s.cost, cost),
            found=s.found | fell,
            fell=fell,
            node=s.node + 1,
            count=s.count + 1,
        )

    zero, one = jnp.zeros((), dtype), jnp.ones((), dtype)
    whole = jnp.asarray(0)
    _, _, about, cost = jtu.tree_map(
        lambda s: jnp.zeros(s.shape, s.dtype), eqx.filter_eval_shape(function, one)
    )
    first = Search(
        low=zero,
        high=one,
        close=jnp.asarray(False),
        low_weight=jnp.asarray(slack if start is None else start, dtype),
        high_weight=-one,
        width=one,
        about=about,
        cost=cost,
        found=jnp.asarray(False),
        fell=jnp.asarray(False),
        node=whole,
        count=whole,
    )
    last = jax.lax.while_loop(goes_on, body, first)
    return Crossing(last.high, last.found, last.about, last.cost, last.count)
