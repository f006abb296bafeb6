"""Small PyTrees as one vector: in a loop each array costs a kernel of its own."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import jax.tree_util as jtu

from .._flat import flatten, unflattener


# Numbers in all. Above it copies cost more than kernels do.
_MOST = 30_000


def small(like: Any) -> bool:
    """Whether there are several arrays, all of one dtype, with few numbers in all."""
    leaves = jtu.tree_leaves(like)
    same = len({jnp.result_type(leaf) for leaf in leaves}) == 1
    return len(leaves) > 1 and same and sum(jnp.size(leaf) for leaf in leaves) <= _MOST


def packing(like: Any) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """Two functions, to and from one vector, or both the identity.

    That is for large trees, and for those of several dtypes.
    """
    return (flatten, unflattener(like)) if small(like) else (_identity, _identity)


def _identity(tree: Any) -> Any:
    return tree
