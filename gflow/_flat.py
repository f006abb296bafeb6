"""Parameters as one vector, for solvers that do linear algebra on them."""

from collections.abc import Callable

import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Float

from ._problem import dtype_of
from ._types import Params


def flatten(params: Params) -> Float[Array, " P"]:
    """All parameters as one vector, in the order of the leaves."""
    dtype = dtype_of(params)
    leaves = [leaf.reshape(-1).astype(dtype) for leaf in jtu.tree_leaves(params)]
    return jnp.concatenate(leaves)


def unflattener(like: Params) -> Callable[[Float[Array, " P"]], Params]:
    """The inverse of `flatten`, for parameters of these shapes and dtypes."""
    leaves, structure = jtu.tree_flatten(like)
    ends = np.cumsum([leaf.size for leaf in leaves])

    def unflatten(vector: Float[Array, " P"]) -> Params:
        parts = jnp.split(vector, ends[:-1])
        return jtu.tree_unflatten(
            structure,
            [
                part.reshape(leaf.shape).astype(leaf.dtype)
                for part, leaf in zip(parts, leaves, strict=True)
            ],
        )

    return unflatten


def flatten_rows(rows: Params) -> Float[Array, "rows P"]:
    """Parameters stacked along a leading axis, as the rows of a matrix."""
    leaves = jtu.tree_leaves(rows)
    dtype = dtype_of(rows)
    return jnp.concatenate(
        [leaf.reshape(leaf.shape[0], -1).astype(dtype) for leaf in leaves], axis=1
    )
