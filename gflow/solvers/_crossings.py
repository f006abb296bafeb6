"""When kinks are crossed within a step, all at once."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .._types import Scalar


_HALVINGS = 12  # of the step; a step of Newton's method does the rest


class Crossings(eqx.Module):
    """What free kinks do in the course of a step, as fractions of the step."""

    crossed: Bool[Array, "groups kinks"]  # those on the other side at the end
    # The part of the step that each kink spends on the other side.
    beyond: Float[Array, "groups kinks"]
    first: Scalar  # when the first kink changes sides; one if none does


def crossings(
    side: Float[Array, "groups kinks"],
    free: Bool[Array, "groups kinks"],
    z0: Float[Array, "groups kinks"],
    rate0: Float[Array, "groups kinks"],
    z1: Float[Array, "groups kinks"],
    rate1: Float[Array, "groups kinks"],
) -> Crossings:
    """Of the cubics through z with its rates of change (per step) at both ends.

    `side` is the sign that z has on the side that the slope is of. A kink that is on
    the other side in the middle of the step only, as the cubic tells, is back at the
    end: it counts for that part of the step, and is not crossed.
    """
    # a + b x + c x² + d x³, positive on this side.
    a, b, end, slope = (side * v for v in (z0, rate0, z1, rate1))
    c = 3 * (end - a) - 2 * b - slope
    d = 2 * (a - end) + b + slope

    def value(x: Array) -> Array:
        return a + x * (b + x * (c + x * d))

    crossed = free & (end < 0)

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = 0.5 * (low + high)
        inside = value(middle) >= 0
        return jnp.where(inside, middle, low), jnp.where(inside, high, middle)

    bounds = (jnp.zeros_like(a), jnp.ones_like(a))
    stopped = jax.lax.stop_gradient
    low, high = jax.lax.fori_loop(0, _HALVINGS, halve, stopped(bounds))
    near = stopped(0.5 * (low + high))
    steep = b + near * (2 * c + 3 * near * d)
    safe = jnp.where(steep < 0, steep, -1)
    better = jnp.clip(near - jnp.where(steep < 0, value(near) / safe, 0), low, high)
    when = jnp.where(stopped(a) < 0, jnp.where(low > 0, better, 0), better)

    # The minimum in the middle, if there is one below zero.
    square = c * c - 3 * b * d
    root = c + jnp.sqrt(jnp.where(square > 0, square, 1))
    there = (b < 0) & (slope > 0) & (square > 0) & (root > 0)
    x = jnp.where(there, -b / jnp.where(root > 0, root, 1), 0.5)
    bottom, bend = value(x), 2 * (c + 3 * x * d)
    dips = free & ~crossed & there & (x < 1) & (bottom < 0) & (bend > 0) & (a >= 0)
    half = jnp.sqrt(jnp.where(dips, -2 * bottom / jnp.where(dips, bend, 1), 1))
    half = jnp.where(dips, jnp.minimum(half, jnp.minimum(x, 1 - x)), 0)

    starts = jnp.where(crossed, when, jnp.where(dips, x - half, 1))
    beyond = jnp.where(crossed, 1 - when, 2 * half)
    return Crossings(crossed, beyond, jnp.min(starts, initial=1.0))
