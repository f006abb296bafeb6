"""Does a model have kinks?"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ._problem import Problem
from ._types import Params
from .losses import Custom


# Primitives whose derivative jumps, and comparisons, which pick a branch. (A smooth
# function in two pieces, such as elu, is taken for a kink as well: its energy balance
# will tell.)
_KINKED = {
    "abs",
    "argmax",
    "argmin",
    "clamp",
    "cummax",
    "cummin",
    "ge",
    "gt",
    "le",
    "lt",
    "max",
    "min",
    "reduce_max",
    "reduce_min",
    "reduce_window_max",
    "reduce_window_min",
    "select_and_scatter_add",
    "select_and_gather_add",
    "sign",
    "sort",
    "top_k",
}

# Functions with a smooth derivative of their own that are written with a maximum.
_SMOOTH = {"logaddexp"}


def has_kinks(problem: Problem, params: Params) -> bool:
    """Whether the model, or the user's loss, uses a primitive with a kink.

    A square of relu, which is smooth enough, is counted as well: the trace shows the
    maximum, not what is done with it.
    """

    def outputs(p):
        f = problem.outputs(p)
        # The library's losses are smooth; a user's need not be.
        if isinstance(problem.loss, Custom):
            return jax.vmap(problem.loss.function)(f, problem.y)
        return f

    closed = eqx.filter_make_jaxpr(outputs)(params)[0]
    return bool(_primitives(closed.jaxpr) & _KINKED)


def _primitives(jaxpr: Any) -> set[str]:
    # Backwards from the outputs, so that what no derivative flows through (the maximum
    # that softmax subtracts) is not seen.
    found: set[str] = set()
    live = {v for v in jaxpr.outvars if not hasattr(v, "val")}
    for equation in reversed(jaxpr.eqns):
        name = equation.primitive.name
        if name == "stop_gradient" or not live & set(equation.outvars):
            continue
        live |= {v for v in equation.invars if not hasattr(v, "val")}
        if _called(equation) in _SMOOTH:
            continue
        if any(jnp.issubdtype(v.aval.dtype, jnp.floating) for v in equation.invars):
            found.add(name)  # not comparisons of indices
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                found |= _primitives(inner)
    return found


def _called(equation: Any) -> str | None:
    # The name of the function with a derivative rule that this equation calls.
    called = equation.params.get("call_jaxpr")
    info = getattr(getattr(called, "jaxpr", None), "debug_info", None)
    return getattr(info, "func_name", None)
