"""When kinks are crossed within a step, all at once."""

from typing import Any

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


class Cubics(eqx.Module):
    """a + b x + c x² + d x³, which is z in the course of a step where it is positive on
    the side that the slope is of.
    """

    a: Float[Array, "groups kinks"]
    b: Float[Array, "groups kinks"]
    c: Float[Array, "groups kinks"]
    d: Float[Array, "groups kinks"]
    crossed: Bool[Array, "groups kinks"]
    dips: Bool[Array, "groups kinks"]
    low: Float[Array, "groups kinks"]  # where its minimum in the middle is

    def __call__(self, x: Array) -> Array:
        return self.a + x * (self.b + x * (self.c + x * self.d))


def cubics(
    side: Float[Array, "groups kinks"],
    free: Bool[Array, "groups kinks"],
    z0: Float[Array, "groups kinks"],
    rate0: Float[Array, "groups kinks"],
    z1: Float[Array, "groups kinks"],
    rate1: Float[Array, "groups kinks"],
) -> Cubics:
    """Through z with its rates of change (per step) at both ends; and which kinks are
    crossed.

    A kink that is on the other side in the middle of the step only, as the cubic tells,
    dips: it is back at the end.
    """
    a, b, end, slope = (side * v for v in (z0, rate0, z1, rate1))
    c = 3 * (end - a) - 2 * b - slope
    d = 2 * (a - end) + b + slope
    crossed = free & (end < 0)
    square = c * c - 3 * b * d
    root = c + jnp.sqrt(jnp.where(square > 0, square, 1))
    there = (b < 0) & (slope > 0) & (square > 0) & (root > 0) & (a >= 0)
    x = jnp.where(there, -b / jnp.where(root > 0, root, 1), 0.5)
    bottom = a + x * (b + x * (c + x * d))
    dips = free & ~crossed & there & (x < 1) & (bottom < 0)
    return Cubics(a, b, c, d, crossed, dips, x)


def crossings(path: Cubics) -> Crossings:
    """When kinks are crossed; a kink that dips counts for the time that this takes."""
    a, b, c, d, crossed, dips, x = (
        getattr(path, name) for name in ("a", "b", "c", "d", "crossed", "dips", "low")
    )

    def halve(_: Any, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = 0.5 * (low + high)
        inside = path(middle) >= 0
        return jnp.where(inside, middle, low), jnp.where(inside, high, middle)

    bounds = (jnp.zeros_like(a), jnp.ones_like(a))
    stopped = jax.lax.stop_gradient
    low, high = jax.lax.fori_loop(
        0, _HALVINGS, lambda i, x: stopped(halve(i, x)), bounds
    )
    near = 0.5 * (low + high)
    steep = b + near * (2 * c + 3 * near * d)
    safe = jnp.where(steep < 0, steep, -1)
    better = jnp.clip(near - jnp.where(steep < 0, path(near) / safe, 0), low, high)
    when = jnp.where((a < 0) & (low == 0), 0, better)
    bend = 2 * (c + 3 * x * d)
    half = jnp.sqrt(jnp.where(dips, -2 * path(x) / jnp.where(dips, bend, 1), 1))
    half = jnp.where(dips, jnp.minimum(half, jnp.minimum(x, 1 - x)), 0)
    starts = jnp.where(crossed, when, jnp.where(dips, x - half, 1))
    beyond = jnp.where(crossed, 1 - when, 2 * half)
    return Crossings(crossed, beyond, jnp.min(starts, initial=1.0))
