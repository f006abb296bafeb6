"""Parameters as one vector, for solvers that do linear algebra on them."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
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


class Form(eqx.Module):
    """The shapes and dtypes of parameters, apart from their values."""

    structure: Any = eqx.field(static=True)
    shapes: tuple[tuple[int, ...], ...] = eqx.field(static=True)
    dtypes: tuple[Any, ...] = eqx.field(static=True)

    def __init__(self, like: Params):
        leaves, self.structure = jtu.tree_flatten(like)
        self.shapes = tuple(jnp.shape(leaf) for leaf in leaves)
        self.dtypes = tuple(jnp.result_type(leaf) for leaf in leaves)

    def unflatten(self, vector: Float[Array, " P"]) -> Params:
        """The inverse of `flatten`."""
        ends = np.cumsum([int(np.prod(shape)) for shape in self.shapes])
        leaves = [
            part.reshape(shape).astype(dtype)
            for part, shape, dtype in zip(
                jnp.split(vector, ends[:-1]), self.shapes, self.dtypes, strict=True
            )
        ]
        return jtu.tree_unflatten(self.structure, leaves)

    def spread(self, of_rows: Float[Array, " rows"]) -> Float[Array, " P"]:
        """A number for each row of each array, for each entry."""
        rows = [shape[0] if shape else 1 for shape in self.shapes]
        each = [
            int(np.prod(shape)) // max(number, 1)
            for shape, number in zip(self.shapes, rows, strict=True)
        ]
        parts = [
            jnp.broadcast_to(part[:, None], (len(part), times)).reshape(-1)
            for part, times in zip(
                jnp.split(of_rows, np.cumsum(rows)[:-1]), each, strict=True
            )
        ]
        return jnp.concatenate(parts)


def unflattener(like: Params) -> Callable[[Float[Array, " P"]], Params]:
    """The inverse of `flatten`, for parameters of these shapes and dtypes."""
    return Form(like).unflatten


def flatten_rows(rows: Params) -> Float[Array, "rows P"]:
    """Parameters stacked along a leading axis, as the rows of a matrix."""
    leaves = jtu.tree_leaves(rows)
    dtype = dtype_of(rows)
    return jnp.concatenate(
        [leaf.reshape(leaf.shape[0], -1).astype(dtype) for leaf in leaves], axis=1
    )
