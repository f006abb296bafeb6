"""The pattern on which a flow goes on from a point."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp

from ._flat import flatten
from ._frozen import Frozen
from ._inclusion import Pattern, least_of, mark
from ._lanes import where_due
from ._resolve import Resolution, resolve
from ._types import BoolScalar, Params


_NEAR = 1e-4  # |z| of a kink at zero, of its size, at most


@eqx.filter_jit
def settle(
    frozen: Frozen,
    params: Params,
    before: Pattern | None,
    *,
    capacity: int,
    branch: str,
    precision: Any = 0.0,
    due: BoolScalar | bool = True,
) -> tuple[Pattern, Resolution]:
    """The pattern on which the flow leaves W, having come on the one before.

    `due`: whether it is asked for; if not, it is the one before.
    """

    def find() -> tuple[Pattern, Resolution]:
        return _settled(frozen, params, before, precision, capacity, branch)

    def keep(blank: tuple[Pattern, Resolution]) -> tuple[Pattern, Resolution]:
        pattern, found = blank
        return (pattern if before is None else before), found

    return where_due(due, find, keep)


def _settled(
    frozen: Frozen,
    params: Params,
    before: Pattern | None,
    precision: Any,
    capacity: int,
    branch: str,
) -> tuple[Pattern, Resolution]:
    slack = least_of(flatten(params))
    near = min(1e3 * slack, max(10 * slack, _NEAR))
    sizes = frozen.sizes(params)
    if before is None:
        z = frozen.pre_activations(params, None)
        branches = z > 0
        at_zero = jnp.abs(z) <= near * sizes
        at_zero = at_zero & (sizes > 0)
    else:
        branches = before.branches
        z = frozen.pre_activations(params, branches)
        # What z is compared with may vanish along with it, as when a neuron dies.
        at_zero = jnp.abs(z) <= jnp.maximum(near * sizes, 10 * slack * before.sizes)
        # Nor may a pattern go on with a kink on the wrong side.
        at_zero = at_zero | (jnp.where(branches, z, -z) < -slack * sizes)
        sizes = jnp.where(at_zero, jnp.maximum(sizes, before.sizes), sizes)
        at_zero = (at_zero & (sizes > 0)) | before.pinned
    found = resolve(
        frozen,
        params,
        branches,
        at_zero,
        before,
        precision,
        capacity=capacity,
        branch=branch,
        thrifty=before is not None,  # at the start, once
    )
    side = jnp.where(found.branches, 1, -1).astype(z.dtype)
    offsets = slack * sizes + jnp.maximum(0, -2 * side * z)
    offsets = jnp.where(mark(found.pins, z.shape), 0, offsets)
    pattern = Pattern(
        found.branches,
        found.pins,
        found.shares,
        offsets,
        sizes,
        at_zero,
        found.follows,
    )
    return pattern, found
