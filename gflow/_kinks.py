"""Does a model have kinks?"""

from typing import Any

import equinox as eqx
import jax

from ._problem import Problem
from ._types import Params
from .losses import Custom


# Primitives whose derivative jumps. Comparisons are not listed: they matter only
# through `select_n`, which is also how every smooth `where` is written, so a kink that
# is spelt jnp.where(z > 0, z, 0) is not seen here.
_KINKED = {
    "abs",
    "clamp",
    "cummax",
    "cummin",
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
}


def has_kinks(problem: Problem, params: Params) -> bool:
    """Whether the model, or the user's loss, uses a primitive that is not differentiable everywhere.

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
    found = set()
    for equation in jaxpr.eqns:
        found.add(equation.primitive.name)
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                found |= _primitives(inner)
    return found
