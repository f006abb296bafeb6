"""Extreme eigenvalues of a symmetric operator that is known by its products."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
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


class _Basis(eqx.Module):
    # Rows from `count` on are zero.
    vectors: Float[Array, "steps P"]
    diagonal: Float[Array, " steps"]
    # beside[j] couples vectors j and j + 1.
    beside: Float[Array, " steps"]
    count: IntScalar


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
    below `tol` times the largest of all, or after `steps` products, or `dimension`, the
    dimension of the space that `project` maps to. Past an invariant subspace it goes on
    with another vector. An eigenvalue of higher multiplicity is found once, unless the
    iteration takes as many steps as there are dimensions. Nothing is compared with
    fixed numbers: operators of any size will do.

    No derivatives go through.
    """
    whole = like.size if dimension is None else dimension
    m = min(steps, whole)
    eps = float(jnp.finfo(like.dtype).eps)

    def orthogonal(v: Vector, vectors: Float[Array, "steps P"]) -> Vector:
        return project(v - (vectors @ v) @ vectors)

    def wave(number: Any) -> Vector:
        # As good as random, and quick to compile.
        number = jnp.asarray(number, like.dtype)
        angle = jnp.arange(like.size, dtype=like.dtype) * jnp.sqrt(2 + 3 * number)
        return jnp.sin(angle + 1 + number)

    def step(_: Any, basis: _Basis) -> _Basis:
        j, vectors = basis.count, basis.vectors
        v = vectors[jnp.minimum(j, m - 1)]
        image = project(product(v))
        size = array_norm(image)
        # Inner products of entries of 1e-200 are zero, so these are of order one.
        image = image / jnp.where(size == 0, 1, size)
        rest = orthogonal(orthogonal(image, vectors), vectors)
        left = array_norm(rest)
        ended = left <= 10 * m**0.5 * eps
        following = jnp.where(ended, wave(j + 1), rest / jnp.where(ended, 1, left))
        # Twice: to rounding, even if little of it is left.
        for _ in range(2):
            following = unit(orthogonal(following, vectors))
        return _Basis(
            vectors.at[j + 1].set(following, mode="drop"),
            basis.diagonal.at[j].set(size * (v @ image), mode="drop"),
            basis.beside.at[j].set(jnp.where(ended, 0, size * left), mode="drop"),
            jnp.minimum(j + 1, m),
        )

    def block(carry: tuple[_Basis, Extremes]) -> tuple[_Basis, Extremes]:
        basis = jax.lax.fori_loop(0, min(_BLOCK, m), step, carry[0])
        return basis, _ritz(basis, high, low, whole)

    def goes_on(carry: tuple[_Basis, Extremes]) -> BoolScalar:
        basis, found = carry
        errors = jnp.concatenate([found.largest_error, found.smallest_error])
        # (NaN where there are not yet as many.)
        return (basis.count < m) & ~jnp.all(errors <= tol * found.scale)

    empty = jnp.zeros((m, like.size), like.dtype)
    zeros = jnp.zeros((m,), like.dtype)
    start = _Basis(
        empty.at[0].set(unit(project(wave(0)))),
        zeros,
        zeros,
        jnp.asarray(0),
    )
    unknown = jtu.tree_map(
        lambda x: jnp.full(x.shape, jnp.nan, x.dtype),
        jax.eval_shape(lambda b: _ritz(b, high, low, whole), start),
    )
    return jax.lax.while_loop(goes_on, block, (start, unknown))[1]


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
    )
