"""The Gauss-Newton part of a flow's Jacobian, factored in function space."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Float

from .._flat import flatten_rows
from .._flow import FlowField, FlowState
from .._problem import AbstractProblem
from .._types import Params, Scalar
from ..clocks import AbstractTimeClock
from ..fields import Velocity
from ..nn import Batched


# In all, and eigenvalues whatever P.
_NUMBERS_KEPT = 4_000_000
_LEAST_KEPT = 16


class Curvature(eqx.Module):
    r"""$A^\top A$, in place of minus the Jacobian: $AA^\top$ is diagonal."""

    rows: Float[Array, "m P"]
    squares: Float[Array, " m"]  # of the rows' norms: the eigenvalues

    def solve(self, step: Scalar, v: Float[Array, " P"]) -> Float[Array, " P"]:
        r"""$(I + \gamma A^\top A)^{-1} v$."""
        weights = step / (1 + step * self.squares)
        return v - (weights * (self.rows @ v)) @ self.rows


def no_curvature(like: Float[Array, " P"], number: int) -> Curvature:
    """Zero, with room for so many rows."""
    shape = (number, like.shape[0])
    return Curvature(jnp.zeros(shape, like.dtype), jnp.zeros((number,), like.dtype))


def gauss_newton(field: FlowField, reading: Scalar, state: FlowState) -> Curvature:
    r"""$J^\top D J$ with J the Jacobian of the outputs and D that of the slope in them.

    The flow is $\dot W = J^\top g(f)$, and $D = -\partial g/\partial f$ (its positive
    part): for $\ell''$ of each example in physical time. What is left out,
    $\sum_i g_i \nabla^2 f_i$, vanishes as the data are fitted.
    """
    problem, params = field.field.problem, state.params
    outputs = problem.outputs(params)
    velocity = None
    if not isinstance(field.clock, AbstractTimeClock):
        velocity = field.field(params)

    def slope(flat: Array) -> Array:
        at = problem.loss.linearise(flat.reshape(outputs.shape), problem.y)
        given: Any = Velocity(
            at.log_slope,
            None if velocity is None else velocity.direction,
            at.log_loss,
            at.loss,
        )
        log_rate = field.clock.log_rate(reading, params, state.log_time, given)
        return (jnp.exp(at.log_slope + log_rate) * at.pull).reshape(-1)

    slopes = -jax.jacfwd(slope)(outputs.reshape(-1))
    # What overflows or has no derivative is no help.
    slopes = jnp.where(jnp.isfinite(slopes), slopes, 0)
    values, vectors = jnp.linalg.eigh((slopes + slopes.T) / 2)
    root = jnp.sqrt(jnp.maximum(values, 0))[:, None] * vectors.T
    jacobian = _jacobian(problem, params)
    squares, turn = jnp.linalg.eigh(root @ (jacobian @ jacobian.T) @ root.T)
    kept = num_rows(field, params)
    rows = (turn[:, -kept:].T @ root) @ jacobian
    return Curvature(rows, jnp.maximum(squares[-kept:], 0))


def _jacobian(problem: AbstractProblem, params: Params) -> Float[Array, "m P"]:
    # Of all outputs: one reverse pass over the data for each that an example has.
    if isinstance(problem.static, Batched):
        whole = jax.jacrev(problem.outputs)(params)
    else:
        one = jax.jacrev(problem.output_of)
        whole = jax.vmap(lambda i: one(params, i))(jnp.arange(problem.num_examples))
    sizes = [leaf.shape for leaf in jtu.tree_leaves(params)]
    rows = [
        leaf.reshape(-1, *size)
        for leaf, size in zip(jtu.tree_leaves(whole), sizes, strict=True)
    ]
    return flatten_rows(jtu.tree_unflatten(jtu.tree_structure(params), rows))


def num_rows(field: FlowField, params: Params) -> int:
    """How many eigenvalues are kept: all, or the largest if P is large."""
    number = int(np.prod(_shape_of_outputs(field.field.problem, params)))
    size = sum(leaf.size for leaf in jtu.tree_leaves(params))
    return min(number, max(_LEAST_KEPT, _NUMBERS_KEPT // size))


def _shape_of_outputs(problem: AbstractProblem, params: Params) -> tuple[int, ...]:
    """(n, ...), without evaluating anything."""
    return eqx.filter_eval_shape(problem.outputs, params).shape


def cost(field: FlowField, params: Params) -> int:
    """Of `gauss_newton`, in gradients."""
    problem = field.field.problem
    shape = _shape_of_outputs(problem, params)
    each = int(np.prod(shape if isinstance(problem.static, Batched) else shape[1:]))
    return each + (0 if isinstance(field.clock, AbstractTimeClock) else 1)
