"""Errors in units of what the step-size controller tolerates."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
import optimistix as optx
from jaxtyping import Array, Float

from .._controller import measures
from .._flat import flatten, unflattener
from .._flow import FlowState, sizes
from .._types import Scalar


class Tolerance(eqx.Module):
    """`rtol` and `atol`: of a flow's state array by array, or row by row, as
    `gflow.integrate` does; of anything else entry by entry, in the root mean square, as
    Diffrax does.
    """

    rtol: Any
    atol: Any
    by_rows: Any

    def measured(self, y0: Any, y1: Any, error: Any) -> Scalar:
        """The error of a step from y0 to y1; it is accepted below one."""
        if isinstance(y0, FlowState):
            sizes0, sizes1, errors = map(
                jtu.tree_leaves, measures(y0, y1, error, self.by_rows)
            )
            each = [
                jnp.max(e / self._allowed(jnp.maximum(a, b)))
                for a, b, e in zip(sizes0, sizes1, errors, strict=True)
            ]
            return jnp.max(jnp.stack(each))
        y0, y1, error = flatten(y0), flatten(y1), flatten(error)
        size = jnp.maximum(jnp.abs(y0), jnp.abs(y1))
        return optx.rms_norm(error / self._allowed(size))

    def scale(self, y0: Any, y1: Any, coupled: int) -> Float[Array, " P"]:
        """What each coupled entry of an error is divided by for `size`."""
        if isinstance(y0, FlowState):
            before, after = (sizes(y, self.by_rows).params for y in (y0, y1))
            size = flatten(
                jtu.tree_map(
                    lambda a, b, like: _spread(jnp.maximum(a, b), like),
                    before,
                    after,
                    y0.params,
                )
            )
        else:
            size = jnp.maximum(jnp.abs(flatten(y0)), jnp.abs(flatten(y1)))[:coupled]
        allowed = self._allowed(size)
        # Nothing is known of what was zero and stays so.
        return jnp.where(allowed > 0, allowed, 1)

    def size(self, like: Any, scaled: Float[Array, " P"]) -> Scalar:
        """Of an error so divided."""
        if not isinstance(like, FlowState):
            return optx.rms_norm(scaled)
        parts = sizes(
            eqx.tree_at(lambda s: s.params, like, unflattener(like.params)(scaled)),
            self.by_rows,
        ).params
        return jnp.max(jnp.stack([jnp.max(x) for x in jtu.tree_leaves(parts)]))

    def _allowed(self, size: Array) -> Array:
        return (
            jnp.asarray(self.atol, size.dtype)
            + jnp.asarray(self.rtol, size.dtype) * size
        )


def _spread(of_rows: Array, like: Array) -> Array:
    """A number for each row, for each entry."""
    shape = (-1, *[1] * (like.ndim - 1)) if like.ndim else ()
    return jnp.broadcast_to(of_rows.reshape(shape), like.shape)
