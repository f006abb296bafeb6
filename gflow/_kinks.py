"""Which equations of a jaxpr have kinks."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


# Primitives whose derivative jumps, and comparisons, which pick a branch. (A smooth
# function in two pieces, such as elu, is taken for a kink as well. Rounding jumps.)
_KINKED = {
    "abs",
    "argmax",
    "argmin",
    "ceil",
    "clamp",
    "cummax",
    "cummin",
    "floor",
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
    "round",
    "sign",
    "sort",
    "top_k",
}

# Functions with a smooth derivative of their own that are written with a maximum.
_SMOOTH = {"logaddexp"}


def live_equations(jaxpr: Any) -> list[bool]:
    """Which equations have a kink (or call some that do) that a derivative meets.

    Backwards from the outputs, so that what no derivative flows through (the maximum
    that softmax subtracts) is not seen. The square of relu or of an absolute value is
    not counted: its derivative is continuous, and that is enough for the flow to be
    unique.
    """
    uses = _uses(jaxpr)
    live = {v for v in jaxpr.outvars if not hasattr(v, "val")}
    found: list[bool] = []
    for equation in reversed(jaxpr.eqns):
        name = equation.primitive.name
        if name == "stop_gradient" or not live & set(equation.outvars):
            found.append(False)
            continue
        live |= {v for v in equation.invars if not hasattr(v, "val")}
        smooth = _called(equation) in _SMOOTH or (
            _vanishes_at_kink(equation) and _is_squared(equation, uses)
        )
        # Not comparisons of indices.
        floats = any(jnp.issubdtype(v.aval.dtype, jnp.inexact) for v in equation.invars)
        kinked = (name in _KINKED and floats) or any(
            any(live_equations(inner)) for inner in _inner(equation)
        )
        found.append(kinked and not smooth)
    return found[::-1]


def _inner(equation: Any) -> list[Any]:
    """The jaxprs that an equation calls."""
    leaves = jax.tree.leaves(
        list(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns")
    )
    inner = [getattr(value, "jaxpr", value) for value in leaves]
    return [one for one in inner if hasattr(one, "eqns")]


def _uses(jaxpr: Any) -> dict[Any, list[Any]]:
    # The equations that take each variable; None for the outputs of the whole.
    uses: dict[Any, list[Any]] = {}
    for equation in jaxpr.eqns:
        for v in equation.invars:
            if not hasattr(v, "val"):
                uses.setdefault(v, []).append(equation)
    for v in jaxpr.outvars:
        if not hasattr(v, "val"):
            uses.setdefault(v, []).append(None)
    return uses


def _vanishes_at_kink(equation: Any) -> bool:
    # max(z, 0) or |z|, also inside of calls that do nothing else (as jax.nn.relu).
    name = equation.primitive.name
    if name == "max":
        return any(
            hasattr(v, "val") and np.all(np.asarray(v.val) == 0)
            for v in equation.invars
        )
    if name == "abs":
        return True
    for value in equation.params.values():
        inner = getattr(value, "jaxpr", value)
        if hasattr(inner, "eqns"):
            return len(inner.eqns) == 1 and _vanishes_at_kink(inner.eqns[0])
    return False


def _is_squared(equation: Any, uses: dict[Any, list[Any]]) -> bool:
    (output,) = equation.outvars[:1]
    return all(
        use is not None
        and (
            use.primitive.name == "square"
            or (use.primitive.name == "integer_pow" and use.params["y"] >= 2)
            or (use.primitive.name == "mul" and use.invars[0] is use.invars[1])
        )
        for use in uses.get(output, [None])
    )


def _called(equation: Any) -> str | None:
    # The name of the function with a derivative rule that this equation calls.
    called = equation.params.get("call_jaxpr")
    info = getattr(getattr(called, "jaxpr", None), "debug_info", None)
    return getattr(info, "func_name", None)
