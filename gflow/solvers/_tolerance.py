"""Errors in units of what the step-size controller tolerates."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
import optimistix as optx
from jaxtyping import Array, Float

from .._controller import measures
from .._flat import Form, flatten
from .._flow import FlowState
from .._norms import norms, norms_over
from .._types import Scalar


class Tolerance(eqx.Module):
    """`rtol` and `atol`: of a flow's state array by array, or row by row, as
    `gflow.integrate` does; of anything else entry by entry, in the root mean square, as
    Diffrax does.
    """

    rtol: Any
    atol: Any
    by_rows: Any

    def measure(self, y0: Any, y1: Any) -> "Measure":
        """Of the errors of a step from y0 to y1."""
        if not isinstance(y0, FlowState):
            size = jnp.maximum(jnp.abs(flatten(y0)), jnp.abs(flatten(y1)))
            return Measure(self.allowed(size), None, self.by_rows)
        before, after = (norms(y.params, self.by_rows) for y in (y0, y1))
        size = jtu.tree_map(jnp.maximum, before, after)
        allowed = jtu.tree_map(self.allowed, size)
        return Measure(allowed, Form(y0.params), self.by_rows)

    def measured(self, y0: Any, y1: Any, error: Any) -> Scalar:
        """The error of a step, with that of the bookkeeping, as the step-size
        controller sees it; the step is accepted below one.
        """
        if not isinstance(y0, FlowState):
            return self.measure(y0, y1).size(flatten(error))
        of_all = measures(y0, y1, error, self.by_rows)
        each = [
            jnp.max(e / self.allowed(jnp.maximum(a, b)))
            for a, b, e in zip(*map(jtu.tree_leaves, of_all), strict=True)
        ]
        return jnp.max(jnp.stack(each))

    def allowed(self, size: Array) -> Array:
        """Of what is so large."""
        return (
            jnp.asarray(self.atol, size.dtype)
            + jnp.asarray(self.rtol, size.dtype) * size
        )


class Measure(eqx.Module):
    """The size of an error of the coupled entries, as a vector; those below one are
    tolerated.
    """

    # Of each row of a flow's parameters, or of each entry.
    allowed: Any
    form: Form | None
    by_rows: Any

    def size(self, x: Float[Array, " P"]) -> Scalar:
        """In the norm of the step-size controller."""
        if self.form is None:
            return optx.rms_norm(x / self.allowed)
        each = norms_over(self.form.unflatten(x), self.allowed, self.by_rows)
        return jnp.max(jnp.stack([jnp.max(leaf) for leaf in jtu.tree_leaves(each)]))

    def known(self) -> "Measure":
        """With one for what was zero and stays so, of which nothing is known."""
        allowed = jtu.tree_map(lambda a: jnp.where(a > 0, a, 1), self.allowed)
        return Measure(allowed, self.form, self.by_rows)

    def scale(self) -> Float[Array, " P"]:
        """What is allowed of each entry."""
        if self.form is None:
            return self.allowed
        return flatten(self.form.spread(self.allowed))

    def unit(self) -> Scalar:
        """The largest, which makes errors of order one of what matters most."""
        leaves = [jnp.max(leaf) for leaf in jtu.tree_leaves(self.allowed)]
        return jnp.max(jnp.stack(leaves))
