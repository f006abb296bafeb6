"""How stiff a flow is at its start: what the default solver is chosen by."""

import enum
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array

from ._norms import array_norm, log_norm, unit
from ._problem import Problem
from ._types import Params, Scalar
from .fields import GradientField
from .nn import Batched


# Power iterations: the estimate is rarely a third too low.
_ITERATIONS = 8
# Explicit methods take about λT/3 steps, stabilised and implicit ones at least forty.
_STIFF = 200.0
# Below this the sharpness would have to grow tenfold before it mattered.
_MILD = 30.0
# Examples times parameters of which tens of thousands of gradients take less time than
# it takes to compile a second method, where it is not known that it will be used.
_LEAST_WORK = 20_000
# Arrays of smaller norm are leaving a saddle.
_SMALL = 1e-2
# Log of the longest span in which stiffness at the start tells about the whole.
_LONG = 30.0
# The numbers that the Jacobian of the outputs may have, and the outputs: a dense matrix
# of their square is decomposed.
_MOST_NUMBERS = 100_000_000
_MOST_OUTPUTS = 2_000


@eqx.filter_jit
def log_curvature(problem: Problem, params: Params) -> Scalar:
    r"""$\log\lambda_{\max}(J^\top D J)$, by power iteration.

    The part of the Hessian that is positive: J is the Jacobian of the outputs, D that
    of the loss's slope in them. The rest of it makes no flow stiff: near a saddle it
    has eigenvalues of both signs, and the flow grows as fast as it decays.
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


class Stiffness(enum.Enum):
    """What is known of a flow at its start."""

    NONE = "an explicit solver will do"
    UNKNOWN = "the flow may be, or become, stiff"
    STIFF = "stability would limit an explicit solver's steps"


def stiffness(problem: Problem, params: Params, log_span: Any) -> Stiffness:
    """By λT: how many times over the fastest direction decays."""
    leaves = jtu.tree_leaves(params)
    work = problem.num_examples * sum(leaf.size for leaf in leaves)
    cheap = work < _LEAST_WORK
    # Under a tailed loss the curvature fades with the loss, so λT at the start is far
    # too much.
    if cheap and problem.is_tailed:
        return Stiffness.NONE
    found = np.inf
    if log_span <= _LONG:
        found = float(log_curvature(problem, params)) + float(log_span)
        if found > np.log(_STIFF):
            return Stiffness.STIFF
    # Near a saddle the start tells nothing of what comes after it.
    if any(0 < float(array_norm(leaf)) < _SMALL for leaf in leaves):
        return Stiffness.UNKNOWN
    matters = not cheap and found > np.log(_MILD)
    return Stiffness.UNKNOWN if matters else Stiffness.NONE


def affords_curvature(problem: Problem, params: Params) -> bool:
    """Whether the curvature in function space fits into memory."""
    if isinstance(problem.static, Batched):
        return False  # one reverse pass over all the data for each output
    outputs = int(np.prod(eqx.filter_eval_shape(problem.outputs, params).shape))
    size = sum(leaf.size for leaf in jtu.tree_leaves(params))
    return outputs <= _MOST_OUTPUTS and outputs * size <= _MOST_NUMBERS
