r"""What kinks change about the rest of a step.

A step that was made on one pattern of branches has the dense output y(t). Where the
pattern changes, at c, the path goes on as y(t) + d(t), with

$$\dot d = f(y + d) - \dot y,\qquad d(c) = 0,$$

f the velocity on the next pattern. d is as small as the jump of the velocity that the
kink makes, one kink of many, and so takes a method of lower order than y does: the
classical one of order four. Its error is estimated with the velocity at the end (the
third-order formula with weights 1/6, 1/3, 1/3, 1/15, 1/10).
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float

from .._flow import FlowState
from .._types import IntScalar, Scalar


STAGES = 5
_TIMES = (0.0, 0.5, 0.5, 1.0, 1.0)
_WEIGHTS = (1 / 6, 1 / 3, 1 / 3, 1 / 6, 0.0)
_ERROR = 1 / 10

_EXACT = jax.lax.Precision.HIGHEST


class Bend(eqx.Module):
    """d(t) from a place on: a cubic in between, to the order of d's own error."""

    jump: FlowState  # of the state itself, at the place
    first: FlowState  # d' at the place and at the end, times the length
    last: FlowState
    change: FlowState  # d at the end


class Bends(eqx.Module):
    """Those of a step, in its first `number` slots."""

    places: Float[Array, " most"]  # fractions of the step
    number: IntScalar
    each: Bend

    def at(self, fraction: Any) -> FlowState:
        """What they change about the state there."""
        on = jnp.arange(self.places.shape[0]) < self.number
        on = on & (fraction >= self.places)
        length = jnp.where(on, 1 - self.places, 1)
        x = jnp.where(on, fraction - self.places, 0) / length
        hat, step, dip = x * (1 - x) ** 2, x**2 * (3 - 2 * x), x**2 * (x - 1)

        def one(jump: Array, first: Array, change: Array, last: Array) -> Array:
            def total(weights: Array, rows: Array) -> Array:
                weights = weights.astype(rows.dtype)
                return jnp.tensordot(weights, rows, 1, precision=_EXACT)

            slopes = total(hat, first) + total(dip, last)
            return total(on, jump) + total(step, change) + slopes

        e = self.each
        return jtu.tree_map(one, e.jump, e.first, e.change, e.last)

    def appended(self, place: Scalar, bend: Bend) -> "Bends":
        """With one more; there must be room."""
        slot = self.number
        each = jtu.tree_map(lambda a, x: a.at[slot].set(x), self.each, bend)
        return Bends(self.places.at[slot].set(place), slot + 1, each)


def no_bends(most: int, like: FlowState) -> Bends:
    """Room for as many as `most`."""
    blank = jtu.tree_map(lambda x: jnp.zeros((most, *x.shape), x.dtype), like)
    places = jnp.ones(most, like.dissipated.dtype)
    return Bends(places, jnp.asarray(0), Bend(blank, blank, blank, blank))


def bent(
    velocity: Callable[[Any, FlowState], FlowState],
    path: Callable[[Any], FlowState],
    begin: Scalar,
    end: Scalar,
    jump: FlowState,
) -> tuple[Bend, FlowState]:
    """The bend of a path that ends at `end`, and the error of it.

    `velocity` is that from `begin` on, where the state jumps.
    """
    length = end - begin
    dtype = begin.dtype
    times, weights = jnp.asarray(_TIMES, dtype), jnp.asarray(_WEIGHTS, dtype)
    one = jnp.ones((), dtype)

    def scaled(a: Any, x: FlowState) -> FlowState:
        return jtu.tree_map(lambda leaf: jnp.asarray(a, leaf.dtype) * leaf, x)

    def stage(number: IntScalar, carry: Any) -> Any:
        kept, last, change = carry
        fraction = times[number]
        time = jnp.where(fraction == 1, end, begin + fraction * length)
        y, slope = jax.jvp(path, (time,), (one,))
        moved = jtu.tree_map(
            lambda d, k: jnp.where(
                number == STAGES - 1, d, jnp.asarray(fraction, k.dtype) * k
            ),
            change,
            last,
        )
        at = jtu.tree_map(lambda *x: sum(x[1:], x[0]), y, jump, moved)
        rate = jtu.tree_map(jnp.subtract, velocity(time, at), slope)
        rate = scaled(length, rate)
        change = jtu.tree_map(jnp.add, change, scaled(weights[number], rate))
        kept = jtu.tree_map(lambda a, x: a.at[number].set(x), kept, rate)
        return kept, rate, change

    blank = jtu.tree_map(jnp.zeros_like, jump)
    kept = jtu.tree_map(lambda x: jnp.zeros((STAGES, *x.shape), x.dtype), jump)
    kept, _, change = jax.lax.fori_loop(0, STAGES, stage, (kept, blank, blank))
    first = jtu.tree_map(lambda a: a[0], kept)
    last = jtu.tree_map(lambda a: a[STAGES - 1], kept)
    error = jtu.tree_map(lambda a: _ERROR * (a[STAGES - 2] - a[STAGES - 1]), kept)
    return Bend(jump, first, last, change), error
