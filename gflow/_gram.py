"""Gram matrices of the normals of pinned kinks, which may depend on each other."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._lanes import largest
from ._types import BoolScalar, IntScalar


# On the diagonal of a Gram matrix of unit rows, as a power of the unit of rounding:
# normals depend on each other where more kinks hold a neuron at zero than it has
# weights.
_RIDGE = 0.5
_ITERATIONS = 40  # of conjugate gradients, at most
# What is left of the velocity across pinned kinks, in units of rounding.
_LEFT = 1e3


def product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def conjugate_gradients(
    product: Callable[[Array], Array],
    right: Array,
    inverse: Array,
    precision: Any = 0.0,
) -> Array:
    """x with product(x) = right, to this part of `right`, rounding, or as near as it
    comes.
    """
    left = jnp.maximum(precision, _LEFT * float(jnp.finfo(right.dtype).eps))
    enough = left.astype(right.dtype) ** 2 * jnp.vdot(right, right)

    def scaled(r: Array) -> Array:
        return jnp.matmul(inverse, r, precision=jax.lax.Precision.HIGHEST)

    def goes_on(carry: Any) -> BoolScalar:
        _, r, _, _, count = carry
        return (jnp.vdot(r, r) > enough) & (count < _ITERATIONS)

    def body(carry: Any) -> Any:
        x, r, q, size, count = carry
        moved = product(q)
        bend = jnp.vdot(q, moved)
        step = jnp.where(bend > 0, size / jnp.where(bend > 0, bend, 1), 0)
        less = r - step * moved
        # Where normals depend on each other rounding ends it: there it ends.
        better = (bend > 0) & (jnp.vdot(less, less) < jnp.vdot(r, r))
        s = scaled(less)
        new = jnp.vdot(less, s)
        x, r = jnp.where(better, x + step * q, x), jnp.where(better, less, r)
        q = s + jnp.where(size > 0, new / jnp.where(size > 0, size, 1), 0) * q
        return x, r, q, new, jnp.where(better, count + 1, _ITERATIONS)

    s = scaled(right)
    start = (jnp.zeros_like(right), right, s, jnp.vdot(right, s), jnp.asarray(0))
    return jax.lax.while_loop(goes_on, body, start)[0]


def inverse(gram: Float[Array, "K K"], number: IntScalar) -> Float[Array, "K K"]:
    """The inverse of the first rows and columns, the identity elsewhere.

    Sweeping one after the other (Gauss and Jordan) costs as much as there are rows. A
    few roundings on the diagonal keep it positive definite.
    """
    gram = jax.lax.stop_gradient(gram)
    count = gram.shape[0]
    each = jnp.arange(count)
    real = (each < number) & (jnp.diag(gram) > 0)
    ridge = float(jnp.finfo(gram.dtype).eps) ** _RIDGE
    both = real[:, None] & real[None, :]
    start = jnp.where(both, gram, 0) + jnp.diag(jnp.where(real, ridge, 1))

    def sweep(k: Any, a: Array) -> Array:
        row, column = a[k], a[:, k]
        pivot = row[k]
        new = a - jnp.outer(column, row) / pivot
        new = new.at[k].set(row / pivot).at[:, k].set(column / pivot)
        return new.at[k, k].set(-1 / pivot)

    most = jnp.minimum(largest(number), count)
    swept = jax.lax.fori_loop(0, most, sweep, start.astype(gram.dtype))
    done = each < most
    return jnp.where(done[:, None] & done[None, :], -swept, start)
