"""The Gauss-Newton part of a flow's Jacobian, factored in function space."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Float

from .._flow import FlowField, FlowState
from .._lanes import anywhere
from .._problem import AbstractProblem, dtype_of
from .._types import Params, Scalar
from ..clocks import AbstractTimeClock
from ..fields import Velocity
from ..nn import Batched


# In all, and eigenvalues whatever P. Each is two passes over P numbers in every
# iteration, so of large P only those that matter most pay, in single precision.
_NUMBERS_KEPT = 800_000
_LEAST_KEPT = 8


class Curvature(eqx.Module):
    r"""$U^\top \Lambda U$ with orthonormal rows, in place of minus the Jacobian."""

    directions: Float[Array, "m P"]
    squares: Float[Array, " m"]  # the eigenvalues

    @property
    def rows(self) -> Float[Array, "m P"]:
        """A, with $A^\top A$ this and $AA^\top$ diagonal."""
        return jnp.sqrt(self.squares)[:, None] * self.directions

    def solve(
        self, step: Scalar, v: Float[Array, " P"], unit: Scalar | None = None
    ) -> Float[Array, " P"]:
        r"""$(I + \gamma A^\top A)^{-1} v$, for a v of entries about so large."""
        rows = self.directions
        short = rows.dtype != v.dtype
        scaled = v if unit is None or not short else v / unit
        along = _product(rows, scaled.astype(rows.dtype))
        share = step * self.squares / (1 + step * self.squares)
        less = _product(share.astype(rows.dtype) * along, rows).astype(v.dtype)
        return v - (less if unit is None or not short else unit * less)


def no_curvature(field: FlowField | None, params: Params, like: Array) -> Curvature:
    """Zero, with room for what `gauss_newton` returns."""
    number = 0 if field is None else num_rows(field, params)
    short = field is not None and is_large(field, params)
    dtype = jnp.float32 if short else like.dtype
    shape = (number, like.shape[0])
    return Curvature(jnp.zeros(shape, dtype), jnp.zeros((number,), like.dtype))


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
    root = _root((slopes + slopes.T) / 2)
    jacobian = _jacobian(problem, params)
    if is_large(field, params):
        # Single precision will do to precondition, at half the cost.
        jacobian = [leaf.astype(jnp.float32) for leaf in jacobian]
    gram = sum(_product(leaf, leaf.T) for leaf in jacobian)
    gram = jnp.where(jnp.isfinite(gram), gram, 0).astype(root.dtype)
    squares, turn = jnp.linalg.eigh(root @ gram @ root.T)
    kept = num_rows(field, params)
    squares = jnp.maximum(squares[-kept:], 0)
    sizes = jnp.sqrt(squares)[:, None]
    # Of unit norm, or zero where nothing is known.
    known = sizes > float(jnp.finfo(jacobian[0].dtype).eps) ** 0.5 * sizes[-1:]
    turn = jnp.where(known, turn[:, -kept:].T @ root / jnp.where(known, sizes, 1), 0)
    rows = [_product(turn.astype(leaf.dtype), leaf) for leaf in jacobian]
    return Curvature(jnp.concatenate(rows, axis=1), squares)


def _root(slopes: Float[Array, "m m"]) -> Float[Array, "m m"]:
    """R with RᵀR = D, or its positive part."""
    diagonal = jnp.diag(slopes)
    rest = jnp.max(jnp.abs(slopes - jnp.diag(diagonal)))

    def full() -> Array:
        values, vectors = jnp.linalg.eigh(slopes)
        return jnp.sqrt(jnp.maximum(values, 0))[:, None] * vectors.T

    # As where examples have one output each and time does not depend on them.
    alone = rest <= 1e-9 * jnp.max(jnp.abs(diagonal))
    return jax.lax.cond(
        anywhere(~alone), full, lambda: jnp.diag(jnp.sqrt(jnp.maximum(diagonal, 0)))
    )


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _jacobian(
    problem: AbstractProblem, params: Params
) -> list[Float[Array, "outputs ..."]]:
    """Of all outputs, array by array: one reverse pass over the data for each output
    that an example has.
    """
    if isinstance(problem.static, Batched):
        whole = jax.jacrev(problem.outputs)(params)
    else:
        one = jax.jacrev(problem.output_of)
        whole = jax.vmap(lambda i: one(params, i))(jnp.arange(problem.num_examples))
    dtype = dtype_of(params)
    return [
        rows.reshape(-1, leaf.size).astype(dtype)
        for rows, leaf in zip(
            jtu.tree_leaves(whole), jtu.tree_leaves(params), strict=True
        )
    ]


def num_rows(field: FlowField, params: Params) -> int:
    """How many eigenvalues are kept: all, or the largest if P is large."""
    number = int(np.prod(_shape_of_outputs(field.field.problem, params)))
    return min(number, max(_LEAST_KEPT, _NUMBERS_KEPT // _size(params)))


def is_large(field: FlowField, params: Params) -> bool:
    """Whether not all eigenvalues are kept."""
    number = int(np.prod(_shape_of_outputs(field.field.problem, params)))
    return num_rows(field, params) < number


def _size(params: Params) -> int:
    return sum(leaf.size for leaf in jtu.tree_leaves(params))


def _shape_of_outputs(problem: AbstractProblem, params: Params) -> tuple[int, ...]:
    """(n, ...), without evaluating anything."""
    return eqx.filter_eval_shape(problem.outputs, params).shape


def cost(field: FlowField, params: Params) -> int:
    """Of `gauss_newton`, in gradients."""
    problem = field.field.problem
    shape = _shape_of_outputs(problem, params)
    each = int(np.prod(shape if isinstance(problem.static, Batched) else shape[1:]))
    return each + (0 if isinstance(field.clock, AbstractTimeClock) else 1)
