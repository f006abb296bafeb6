"""Where in a step a pattern first ceases to fit."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu

from .._types import BoolScalar, IntScalar, Scalar


_LOCATE = 100  # evaluations at most


class Crossing(eqx.Module):
    """The place, as a fraction of the step, and what the function says there."""

    fraction: Scalar
    found: BoolScalar
    about: Any
    cost: Any
    count: IntScalar  # of evaluations


class _Search(eqx.Module):
    # A place beyond `low` and not beyond `high` where the function has fallen, if
    # `found`; else `low` is how far it was looked at.
    low: Scalar
    high: Scalar
    low_value: Scalar
    high_value: Scalar
    # One more place where the value is known, if it is finite.
    other: Scalar
    other_value: Scalar
    about: Any
    cost: Any
    found: BoolScalar
    ended: BoolScalar  # at the last node, without a fall
    close: BoolScalar  # whether `high` is
    count: IntScalar


def first_crossing(
    function: Callable[[Scalar], tuple[Scalar, BoolScalar, Any, Any]],
    nodes: tuple[float, ...],
    slack: float,
    dtype: Any,
    start: Any = None,
    *,
    after: Any = 0.0,
    until: Any = 1.0,
) -> Crossing:
    """Where a function first falls below zero in (after, until], if at any of the nodes
    there or at the end.

    Between the nodes by inverse quadratic interpolation and bisection (Chandrupatla
    1997, "A new hybrid quadratic/bisection algorithm for finding the zero of a
    nonlinear function without using derivatives", Advances in Engineering Software 28,
    145-149); on the far side, where the function says that it is close enough. At the
    end if there is no such place. Values below `slack` are as good as zero; that at the
    beginning may be known (`start`). The function returns its value, whether that is
    close enough to zero, what is to be known about the place, and what looking there
    cost.
    """
    places = jnp.asarray(nodes, dtype)
    after, until = jnp.asarray(after, dtype), jnp.asarray(until, dtype)
    tiny = 4 * float(jnp.finfo(dtype).eps)

    def goes_on(s: _Search) -> BoolScalar:
        close = (s.high - s.low <= tiny * s.high) | s.close
        looking = ~s.found & ~s.ended
        return looking | (s.found & ~close & (s.count < _LOCATE))

    def body(s: _Search) -> _Search:
        ahead = jnp.where(places > s.low * (1 + tiny), places, until)
        node = jnp.minimum(jnp.min(ahead), until)
        # Where the least of several margins is flat until another one falls,
        # interpolation gets nowhere.
        flat = (s.low == after) & (s.low_value <= 4 * slack)
        inside = jnp.where(flat, 0.5 * (s.low + s.high), _guess(s, 0.5 * slack))
        x = jnp.where(s.found, inside, node)
        value, close, about, cost = function(x)
        # (A state that is not a number is not an event, but a step to be rejected.)
        fell = jnp.where(s.found, ~(value >= 0), value < 0)
        value = jnp.where(jnp.isnan(value), -1.0, value)
        last = ~s.found & (node >= until)
        # The end that is replaced is remembered; at first, the node before the bracket.
        fake = (s.low == after) & (s.low_value <= 4 * slack)
        low_value = jnp.where(fake, jnp.nan, s.low_value)
        lost = jnp.where(fell, s.high, s.low)
        lost_value = jnp.where(fell, s.high_value, low_value)
        keeps = ~s.found & fell
        return _Search(
            low=jnp.where(fell, s.low, x),
            high=jnp.where(fell, x, s.high),
            low_value=jnp.where(fell, s.low_value, value),
            high_value=jnp.where(fell, value, s.high_value),
            other=jnp.where(keeps, s.other, lost),
            other_value=jnp.where(keeps, s.other_value, lost_value),
            about=jtu.tree_map(
                lambda a, b: jnp.where(fell | last, a, b), about, s.about
            ),
            cost=jtu.tree_map(jnp.add, s.cost, cost),
            found=s.found | fell,
            ended=last & ~fell,
            close=jnp.where(fell, close, s.close),
            count=s.count + 1,
        )

    whole, false = jnp.asarray(0), jnp.asarray(False)
    _, _, about, cost = jtu.tree_map(
        lambda s: jnp.zeros(s.shape, s.dtype), eqx.filter_eval_shape(function, until)
    )
    first = _Search(
        low=after,
        high=until,
        low_value=jnp.asarray(slack if start is None else start, dtype),
        high_value=-jnp.ones((), dtype),
        other=after,
        other_value=jnp.asarray(jnp.nan, dtype),
        about=about,
        cost=cost,
        found=false,
        ended=false,
        close=false,
        count=whole,
    )
    last = jax.lax.while_loop(goes_on, body, first)
    return Crossing(last.high, last.found, last.about, last.cost, last.count)


def _guess(s: _Search, beyond: float) -> Scalar:
    """The place inside the bracket to be looked at next."""
    # In Chandrupatla's names: c is on the side of the end a, outside of the bracket;
    # b is the other end. A little beyond the zero, so that it ends there.
    low, high = s.low_value + beyond, s.high_value + beyond
    below = s.other < s.low
    a, fa = jnp.where(below, s.low, s.high), jnp.where(below, low, high)
    b, fb = jnp.where(below, s.high, s.low), jnp.where(below, high, low)
    c, fc = s.other, s.other_value + beyond
    known = jnp.isfinite(fc)
    usable = known & (fa != fb) & (fc != fb) & (fa != fc) & (c != b)
    xi = (a - b) / jnp.where(usable, c - b, 1)
    phi = (fa - fb) / jnp.where(usable, fc - fb, 1)
    good = usable & (phi**2 < xi) & ((1 - phi) ** 2 < 1 - xi)
    ba, ca, bc = (jnp.where(good, x, 1) for x in (fb - fa, fc - fa, fb - fc))
    curved = fa / ba * (fc / bc) - (c - a) / (b - a) * (fa / ca) * (fb / bc)
    straight = -fa / jnp.where(fa == fb, 1, fb - fa)
    part = jnp.where(good, curved, jnp.where(known, 0.5, straight))
    x = a + part * (b - a)
    inside = (x > s.low) & (x < s.high)
    return jnp.where(inside, x, 0.5 * (s.low + s.high))
