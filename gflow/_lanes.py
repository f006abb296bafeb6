"""What holds in any lane of `vmap`: with one predicate for all, `cond` stays one."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from ._types import BoolScalar, IntScalar


@jax.custom_batching.custom_vmap
def largest(number: Int[Array, "..."]) -> IntScalar:
    """The largest entry, over all lanes as well."""
    return jnp.max(number)


@largest.def_vmap
def _(axis_size, in_batched, number):
    return largest(number), False


def anywhere(condition: Bool[Array, "..."]) -> BoolScalar:
    """Whether any entry is True, in any lane."""
    return largest(condition.astype(jnp.int32)) > 0
