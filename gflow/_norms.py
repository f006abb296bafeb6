"""Norms that neither underflow nor overflow.

Weights of norm 1e-60 have gradients of norm 1e-180 in a four-layer network, whose
squares are zero in float64. Every norm here divides by the largest entry first, at
least where it has to.
"""

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Float, PyTree

from ._lanes import anywhere
from ._types import BoolScalar, Scalar


def _rows(x: Float[Array, "..."]) -> Float[Array, "rows entries"]:
    return x.reshape(x.shape[0], -1) if x.ndim else x.reshape(1, 1)


# Along the last axis first: on a CPU that takes a third of the time.
def _largest(x: Float[Array, "..."]) -> Scalar:
    return jnp.max(jnp.max(jnp.abs(_rows(x)), axis=1, initial=0), initial=0)


def _sum_of_squares(x: Float[Array, "..."]) -> Scalar:
    rows = _rows(x)
    return jnp.sum(jnp.sum(rows * rows, axis=1))


def _same_dtype(tree: PyTree[Float[Array, "..."]]) -> list[Array]:
    # Parameters may mix dtypes, which JAX does not stack.
    leaves = jtu.tree_leaves(tree)
    dtype = jnp.result_type(*leaves)
    return [leaf.astype(dtype) for leaf in leaves]


def _log_root_sum(scale: Scalar, total: Scalar) -> Scalar:
    # log(scale sqrt(total)), -inf at zero, with a zero (not NaN) derivative there.
    empty = scale == 0
    safe_scale = jnp.where(empty, 1, scale)
    safe_total = jnp.where(empty, 1, total)
    log = jnp.log(safe_scale) + 0.5 * jnp.log(safe_total)
    return jnp.where(empty, -jnp.inf, log)


def array_norm(x: Float[Array, "..."]) -> Scalar:
    """‖x‖₂ of one array, of any shape; NaN or inf if an entry is."""
    scale = _largest(x)
    safe = jnp.where(scale == 0, 1, scale)
    return scale * jnp.sqrt(_sum_of_squares(x / safe))


def row_norms(x: Float[Array, "..."]) -> Float[Array, " rows"]:
    """‖x_i‖₂ of each x_i along the first axis: |x_i| of a vector, |x| of a number."""
    return jax.vmap(array_norm)(_rows(x))


def norms(
    tree: PyTree[Float[Array, "..."]], by_rows: BoolScalar
) -> Float[Array, " rows"]:
    """For each row of each array its norm, or that of all the array."""
    leaves = _same_dtype(tree)
    # One pass over the entries where squares are numbers, a second one for the largest
    # entries where they are not.
    rows = [_rows(leaf) for leaf in leaves]
    squares = _of_all([jnp.sum(x * x, axis=1) for x in rows], by_rows)
    number = np.repeat([leaf.size for leaf in leaves], [len(x) for x in rows])
    good = _representable(squares, jnp.asarray(number, squares.dtype))
    direct = jnp.sqrt(squares)

    def careful() -> Array:
        # Lane by lane: what another one of `vmap` needs must not change this one.
        each = [jnp.where(by_rows, row_norms(x), array_norm(x)) for x in leaves]
        return jnp.where(good, direct, jnp.concatenate(each))

    return jax.lax.cond(anywhere(~jnp.all(good)), careful, lambda: direct)


def norms_over(
    tree: PyTree[Float[Array, "..."]],
    sizes: Float[Array, " rows"],
    by_rows: BoolScalar,
) -> Float[Array, " rows"]:
    """The same, divided by sizes."""
    # Scaled before they are squared, so that what underflows is nothing to the sizes.
    # (Where these are zero, what is not is too large.)
    scales = jnp.minimum(1 / sizes, jnp.finfo(sizes.dtype).max)
    rows = [_rows(leaf) for leaf in _same_dtype(tree)]
    ends = np.cumsum([len(x) for x in rows])
    scaled = [
        x * scale[:, None]
        for x, scale in zip(rows, jnp.split(scales, ends[:-1]), strict=True)
    ]
    return jnp.sqrt(_of_all([jnp.sum(x * x, axis=1) for x in scaled], by_rows))


def _of_all(squares: list[Array], by_rows: BoolScalar) -> Float[Array, " rows"]:
    # Of rows, or in place of each the sum over its array.
    return jnp.concatenate([jnp.where(by_rows, s, jnp.sum(s)) for s in squares])


def _representable(square: Array, size: Array) -> Array:
    # A sum of squares of which neither overflow nor underflow has taken a digit.
    info = jnp.finfo(square.dtype)
    return (square > size * info.tiny / info.eps) & (square < info.max)


def log_norm(tree: PyTree[Float[Array, "..."]]) -> Scalar:
    """log ‖x‖₂ of all the arrays of a PyTree together; -inf if all are zero."""
    leaves = _same_dtype(tree)
    scale = jax.lax.stop_gradient(
        jnp.max(jnp.stack([_largest(leaf) for leaf in leaves]))
    )
    safe = jnp.where(scale == 0, 1, scale)
    squares = [_sum_of_squares(leaf / safe) for leaf in leaves]
    total = sum(squares, jnp.zeros_like(scale))
    return _log_root_sum(scale, total)


def log_norm_at_once(tree: PyTree[Float[Array, "..."]]) -> Scalar:
    """The same in one pass, and others only where squares are not numbers."""
    square = square_norm(tree, jnp.ones((), jnp.result_type(*jtu.tree_leaves(tree))))
    size = sum(leaf.size for leaf in jtu.tree_leaves(tree))
    good = _representable(square, jnp.asarray(size, square.dtype))
    log = 0.5 * jnp.log(jnp.where(good, square, 1))
    return jax.lax.cond(
        anywhere(~good), lambda: jnp.where(good, log, log_norm(tree)), lambda: log
    )


def square_norm(tree: PyTree[Float[Array, "..."]], scale: Scalar) -> Scalar:
    """‖scale · x‖₂² of all the arrays of a PyTree together."""
    total = jnp.zeros_like(scale)
    for leaf in _same_dtype(tree):
        scaled = scale.astype(leaf.dtype) * leaf.reshape(-1)
        square = jnp.dot(scaled, scaled, precision=jax.lax.Precision.HIGHEST)
        total = total + square.astype(scale.dtype)
    return total


def unit(tree: PyTree[Float[Array, "..."]]) -> PyTree[Float[Array, "..."]]:
    """x/‖x‖₂ of all the arrays together (zero stays zero)."""
    scale = jnp.max(jnp.stack([_largest(leaf) for leaf in _same_dtype(tree)]))
    safe = jnp.where(scale == 0, 1, scale)
    scaled = jtu.tree_map(lambda leaf: leaf / safe.astype(leaf.dtype), tree)
    size = jnp.exp(log_norm(scaled))
    size = jnp.where(size == 0, 1, size)
    return jtu.tree_map(lambda leaf: leaf / size.astype(leaf.dtype), scaled)


def inner(a: PyTree[Float[Array, "..."]], b: PyTree[Float[Array, "..."]]) -> Scalar:
    """⟨a, b⟩ over all the arrays of two PyTrees of the same structure."""
    products = jtu.tree_map(lambda x, y: jnp.sum(x * y), a, b)
    return jnp.sum(jnp.stack(_same_dtype(products)))


def angle(a: PyTree[Float[Array, "..."]], b: PyTree[Float[Array, "..."]]) -> Scalar:
    """Angle between two PyTrees, in radians; NaN if either is zero.

    Computed as 2 atan2(‖â - b̂‖, ‖â + b̂‖), accurate to rounding for small angles too,
    where arccos ⟨â, b̂⟩ would lose half of the digits.
    """
    ua, ub = unit(a), unit(b)
    minus = jnp.exp(log_norm(jtu.tree_map(jnp.subtract, ua, ub)))
    plus = jnp.exp(log_norm(jtu.tree_map(jnp.add, ua, ub)))
    undefined = jnp.isinf(log_norm(a)) | jnp.isinf(log_norm(b))
    return jnp.where(undefined, jnp.nan, 2 * jnp.arctan2(minus, plus))
