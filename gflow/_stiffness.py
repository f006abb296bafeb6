"""How stiff a flow is at its start: what the default solver is chosen by."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array

from ._norms import log_norm, unit
from ._problem import Problem
from ._types import Params, Scalar
from .fields import GradientField
from .nn import Batched


# Power iterations: the estimate is rarely a third too low.
_ITERATIONS = 8
# Explicit methods take about λT/3 steps, stabilised and implicit ones at least forty.
_STIFF = 200.0
# The numbers that the Jacobian of the outputs may have, and the outputs: a dense matrix
# of their square is decomposed.
_MOST_NUMBERS = 100_000_000
_MOST_OUTPUTS = 2_000


@eqx.filter_jit
def log_curvature(problem: Problem, params: Params) -> Scalar:
    r"""$\log\lambda_{\max}(J^\top D J)$, by power iteration.

    The part of the Hessian that is positive: J is the Jacobian of the outputs, D that of
    the loss's slope in them. The rest of it makes no flow stiff: near a saddle it has
    eigenvalues of both signs, and the flow grows as fast as it decays.
    """
    outputs, along = jax.linearize(problem.outputs, params)
    across = jax.linear_transpose(along, params)
    at = problem.loss.linearise(outputs, problem.y).log_slope

    def slope(outputs: Array) -> Array:
        found = problem.loss.linearise(outputs, problem.y)
        return -jnp.exp(found.log_slope - at) * found.pull

    def product(v: Params) -> Params:
        bent = jax.jvp(slope, (outputs,), (along(v),))[1]
        return across(bent)[0]

    def iteration(_, carry):
        v, _ = carry
        moved = product(v)
        return unit(moved), log_norm(moved)

    # From the gradient, and something that is orthogonal to nothing.
    start = jtu.tree_map(
        lambda d, p: d + jnp.cos(jnp.arange(p.size, dtype=p.dtype)).reshape(p.shape),
        unit(GradientField(problem)(params).direction),
        params,
    )
    zero = jnp.zeros_like(at)
    _, log_size = jax.lax.fori_loop(0, _ITERATIONS, iteration, (unit(start), zero))
    return log_size + at


def is_stiff(problem: Problem, params: Params, log_span: Any) -> bool:
    """Whether λT says that an explicit solver's steps are those of stability."""
    found = float(log_curvature(problem, params)) + float(log_span)
    return bool(found > np.log(_STIFF))


def affords_curvature(problem: Problem, params: Params) -> bool:
    """Whether the curvature in function space fits into memory."""
    if isinstance(problem.static, Batched):
        return False  # one reverse pass over all the data for each output
    outputs = int(np.prod(eqx.filter_eval_shape(problem.outputs, params).shape))
    size = sum(leaf.size for leaf in jtu.tree_leaves(params))
    return outputs <= _MOST_OUTPUTS and outputs * size <= _MOST_NUMBERS
