"""Extreme eigenvalues of a symmetric operator that is known by its products."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._norms import array_norm, unit
from ._types import BoolScalar, IntScalar, Scalar


Vector = Float[Array, " P"]
# Steps between two looks at the eigenvalues.
_BLOCK = 8


class Extremes(eqx.Module):
    """The largest and the smallest eigenvalues; NaN beyond the number there are."""

    largest: Float[Array, " high"]  # descending
    smallest: Float[Array, " low"]  # ascending
    # An eigenvalue is no further from each value than this.
    largest_error: Float[Array, " high"]
    smallest_error: Float[Array, " low"]
    scale: Scalar  # the largest absolute value of all that were found
    num_products: IntScalar


class _Basis(eqx.Module):
    # Rows from `count` on are zero.
    vectors: Float[Array, "steps P"]
    diagonal: Float[Array, " steps"]
    # beside[j] couples vectors j and j + 1.
    beside: Float[Array, " steps"]
    count: IntScalar
    converged: BoolScalar


def extremes(
    product: Callable[[Vector], Vector],
    like: Vector,
    *,
    high: int,
    low: int,
    steps: int,
    tol: float,
    dimension: int | None = None,
    project: Callable[[Vector], Vector] = lambda v: v,
) -> Extremes:
    r"""By the Lanczos iteration with full reorthogonalisation.

    It ends when the `high` largest and the `low` smallest Ritz values have residuals
    below `tol` times the largest of all, or after `steps` products, or `dimension` of them: those of
    the space that `project` maps to. Past an invariant subspace it goes on with another
    vector. An eigenvalue of higher multiplicity is found once, unless the iteration
    takes as many steps as there are dimensions. Neither products nor their squares are
    compared with fixed numbers: operators of any size will do.

    No derivatives go through.
    """
    whole = like.size if dimension is None else dimension
    m = min(steps, whole)
    eps = float(jnp.finfo(like.dtype).eps)

    def orthogonal(v: Vector, vectors: Float[Array, "steps P"]) -> Vector:
        for _ in range(2):
            v = v - (vectors @ v) @ vectors
        return project(v)

    def fresh(number: Any, vectors: Float[Array, "steps P"]) -> Vector:
        # As good as random, and orthogonal to rounding even if little of it is left.
        number = jnp.asarray(number, like.dtype)
        angle = jnp.arange(like.size, dtype=like.dtype) * jnp.sqrt(2 + 3 * number)
        v = unit(project(jnp.sin(angle + 1 + number)))
        return unit(orthogonal(unit(orthogonal(v, vectors)), vectors))

    def step(_: Any, basis: _Basis) -> _Basis:
        j, vectors = basis.count, basis.vectors
        v = vectors[jnp.minimum(j, m - 1)]
        image = project(product(v))
        size = array_norm(image)
        # Inner products of entries of 1e-200 are zero, so these are of order one.
        image = image / jnp.where(size == 0, 1, size)
        rest = orthogonal(image, vectors)
        left = array_norm(rest)
        ended = left <= 10 * eps * jnp.sqrt(1.0 * m).astype(left.dtype)
        following = jax.lax.cond(
            ended,
            lambda: fresh(j + 1, vectors),
            lambda: unit(orthogonal(rest / jnp.where(left == 0, 1, left), vectors)),
        )
        return _Basis(
            vectors.at[j + 1].set(following, mode="drop"),
            basis.diagonal.at[j].set(size * (v @ image), mode="drop"),
            basis.beside.at[j].set(jnp.where(ended, 0, size * left), mode="drop"),
            jnp.minimum(j + 1, m),
            basis.converged,
        )

    def block(basis: _Basis) -> _Basis:
        basis = jax.lax.fori_loop(0, min(_BLOCK, m), step, basis)
        found = _ritz(basis, high, low, whole)
        errors = jnp.concatenate([found.largest_error, found.smallest_error])
        # (NaN where there are not yet as many.)
        converged = jnp.all(errors <= tol * found.scale)
        return eqx.tree_at(lambda b: b.converged, basis, converged)

    empty = jnp.zeros((m, like.size), like.dtype)
    zeros = jnp.zeros((m,), like.dtype)
    start = _Basis(
        empty.at[0].set(fresh(0, empty)),
        zeros,
        zeros,
        jnp.asarray(0),
        jnp.asarray(False),
    )
    basis = jax.lax.while_loop(lambda b: (b.count < m) & ~b.converged, block, start)
    return _ritz(basis, high, low, whole)


def _ritz(basis: _Basis, high: int, low: int, dimension: int) -> Extremes:
    m = basis.diagonal.shape[0]
    slot = jnp.arange(m)
    taken = slot < basis.count
    scale = jnp.max(jnp.abs(basis.diagonal)) + jnp.max(jnp.abs(basis.beside))
    scale = jnp.where(scale == 0, 1, scale)
    # Rows not filled have eigenvalues beyond all others, and couple to nothing.
    diagonal = jnp.where(taken, basis.diagonal / scale, 4.0)
    inside = slot[:-1] + 1 < basis.count
    beside = jnp.where(inside, basis.beside[:-1] / scale, 0)
    values, vectors = jnp.linalg.eigh(
        jnp.diag(diagonal) + jnp.diag(beside, 1) + jnp.diag(beside, -1)
    )
    # What couples to the next vector, which is not there in the whole space.
    last = jnp.maximum(basis.count - 1, 0)
    coupling = jnp.where(basis.count < dimension, basis.beside[last], 0)
    errors = jnp.abs(coupling * vectors[last])

    def at(x, number, index):
        there = number < basis.count
        return jnp.where(there, x[jnp.clip(index, 0, m - 1)], jnp.nan)

    up, down = jnp.arange(high), jnp.arange(low)
    return Extremes(
        largest=scale * at(values, up, basis.count - 1 - up),
        smallest=scale * at(values, down, down),
        largest_error=at(errors, up, basis.count - 1 - up),
        smallest_error=at(errors, down, down),
        scale=scale * jnp.max(jnp.where(taken, jnp.abs(values), 0)),
        num_products=basis.count,
    )
