"""Norms that neither underflow nor overflow.

Weights of norm 1e-60 have gradients of norm 1e-180 in a four-layer network, whose
squares are zero in float64. Every norm here divides by the largest entry first.
"""

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float, PyTree

from ._types import Scalar


def _largest(x: Float[Array, "..."]) -> Scalar:
    return jnp.max(jnp.abs(x), initial=0)


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
    return scale * jnp.sqrt(jnp.sum((x / safe) ** 2))


def row_norms(x: Float[Array, "..."]) -> Float[Array, " rows"]:
    """‖x_i‖₂ of each x_i along the first axis: |x_i| of a vector, |x| of a number."""
    rows = x.reshape(x.shape[0], -1) if x.ndim else x.reshape(1, 1)
    return jax.vmap(array_norm)(rows)


def log_norm(tree: PyTree[Float[Array, "..."]]) -> Scalar:
    """log ‖x‖₂ of all the arrays of a PyTree together; -inf if all are zero."""
    leaves = _same_dtype(tree)
    scale = jax.lax.stop_gradient(
        jnp.max(jnp.stack([_largest(leaf) for leaf in leaves]))
    )
    safe = jnp.where(scale == 0, 1, scale)
    total = sum((jnp.sum((leaf / safe) ** 2) for leaf in leaves), jnp.zeros_like(scale))
    return _log_root_sum(scale, total)


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
