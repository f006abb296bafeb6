"""On which sides of its kinks a flow goes on after a step."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Bool

from .._frozen import Frozen
from .._lanes import anywhere
from .._sliding import Sides, balanced, crossing_speed, numbers_of
from .._types import Params, Scalar
from ..fields import Velocity
from ._crossings import Crossings


TANGENT = 2 / 3  # of a gradient: z and its rate of change
_ROUNDS = 4  # in which crossed kinks are found to hold the flow


def sides_after(
    frozen: Frozen,
    capacity: int,
    params: Params,
    sides: Sides,
    found: Crossings,
    candidates: Bool[Array, "groups kinks"],
) -> tuple[Sides, Velocity, Array, Array, Scalar]:
    """On which sides the flow goes on, with z, its rate along, and the cost.

    A crossed kink across which the velocity on the new side leads back is one that
    may hold the flow.
    """
    slopes = jnp.where(found.crossed, 1 - jnp.round(sides.slopes), sides.slopes)
    side = jnp.where(slopes > 0.5, 1, -1).astype(slopes.dtype)

    def once(candidates: Array) -> tuple[Any, Array]:
        index = numbers_of(candidates, capacity)
        at = balanced(frozen, params, slopes, index, sides)
        z, rate = crossing_speed(frozen, params, at.sides.slopes, at.velocity.direction)
        back = found.crossed & ~candidates & (side * rate < 0)
        return (at.sides, at.velocity, z, rate), back

    def again(carry: Any, number: Any) -> Any:
        candidates, at, done, cost = carry

        def look() -> Any:
            at, back = once(candidates)
            rows = jnp.sum(candidates).astype(cost.dtype) / frozen.num_groups
            return (
                candidates | back,
                at,
                ~jnp.any(back),
                cost + 1 + TANGENT + 3 * rows,
            )

        new = jax.lax.cond(anywhere(~done), look, lambda: carry)
        return jtu.tree_map(lambda a, b: jnp.where(done, a, b), carry, new), None

    shape = eqx.filter_eval_shape(once, candidates)[0]
    blank = jtu.tree_map(lambda x: jnp.zeros(x.shape, x.dtype), shape)
    start = (candidates, blank, jnp.asarray(False), jnp.zeros((), slopes.dtype))
    (_, at, _, cost), _ = jax.lax.scan(again, start, jnp.arange(_ROUNDS))
    return *at, cost
