"""Errors in units of what the step-size controller tolerates."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, Float

from .._controller import Tolerances, error_size
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
        allowed = self.allowed(jnp.maximum(before, after))
        return Measure(allowed, Form(y0.params), self.by_rows)

    def measured(self, y0: Any, y1: Any, error: Any) -> Scalar:
        """The error of a step, with that of the bookkeeping, as the step-size
        controller sees it; the step is accepted below one.
        """
        if not isinstance(y0, FlowState):
            return self.measure(y0, y1).size(flatten(error))
        before, after = (norms(y.params, self.by_rows) for y in (y0, y1))
        rtol, atol = (jnp.asarray(x, before.dtype) for x in (self.rtol, self.atol))
        held = Tolerances(rtol, atol, self.by_rows)
        return error_size(before, after, y0, y1, error, held)

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
    allowed: Float[Array, " rows"]
    form: Form | None
    by_rows: Any

    def size(self, x: Float[Array, " P"]) -> Scalar:
        """In the norm of the step-size controller."""
        if self.form is None:
            return optx.rms_norm(x / self.allowed)
        return jnp.max(norms_over(self.form.unflatten(x), self.allowed, self.by_rows))

    def known(self) -> "Measure":
        """With one for what was zero and stays so, of which nothing is known."""
        allowed = jnp.where(self.allowed > 0, self.allowed, 1)
        return Measure(allowed, self.form, self.by_rows)

    def scale(self) -> Float[Array, " P"]:
        """What is allowed of each entry."""
        if self.form is None:
            return self.allowed
        return self.form.spread(self.allowed)

    def unit(self) -> Scalar:
        """The largest, which makes errors of order one of what matters most."""
        return jnp.max(self.allowed)
