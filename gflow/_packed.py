"""Small states as one vector, for all that Diffrax does array by array.

On a step of a small network the arithmetic is nothing to the number of kernels; many
that do not wait for each other are worse, because XLA then shares them out between
threads. With one vector in place of each array and number a step takes a fifth less
time at P = 1e3.
"""

from collections.abc import Callable
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.tree_util as jtu

from ._flat import Form, flatten
from ._flow import FlowState
from ._types import Scalar
from .solvers._pack import small


class _Field(eqx.Module):
    field: Callable[..., FlowState]
    form: Form

    def __call__(self, reading: Any, state: Any, args: Any) -> Any:
        return flatten(self.field(reading, self.form.unflatten(state), args))


class _Condition(eqx.Module):
    condition: Callable[..., Any]
    form: Form

    # (Diffrax passes them by name.)
    def __call__(self, t: Any, y: Any, args: Any, **kwargs: Any) -> Any:
        return self.condition(t, self.form.unflatten(y), args, **kwargs)


class PackedDense(eqx.Module):
    """Dense output of a packed solve, in states."""

    dense: dfx.DenseInterpolation
    form: Form

    @property
    def t0(self) -> Any:
        return self.dense.t0

    def evaluate(self, reading: Scalar) -> FlowState:
        return self.form.unflatten(self.dense.evaluate(reading))


class Packing(eqx.Module):
    """To and from what Diffrax is given."""

    form: Form

    def term(self, field: Callable[..., FlowState]) -> dfx.ODETerm:
        return dfx.ODETerm(_Field(field, self.form))

    def event(self, event: dfx.Event | None) -> dfx.Event | None:
        if event is None:
            return None
        return eqx.tree_at(
            lambda e: e.cond_fn, event, _Condition(event.cond_fn, self.form)
        )

    def packed(self, tree: Any) -> Any:
        """With a vector for each state in it."""
        return jtu.tree_map(
            lambda x: flatten(x) if _is_state(x) else x, tree, is_leaf=_is_state
        )

    def unpacked(self, solution: dfx.Solution, solver_state: Any) -> dfx.Solution:
        """Diffrax's result, with states in it; `solver_state`: one from before."""
        after = solution.solver_state
        if after is not None:
            after = jtu.tree_map(
                lambda like, x: self.form.unflatten(x) if _is_state(like) else x,
                solver_state,
                after,
                is_leaf=_is_state,
            )
        ys = jtu.tree_map(jax.vmap(self.form.unflatten), solution.ys)
        dense: Any = solution.interpolation
        dense = None if dense is None else PackedDense(dense, self.form)
        return eqx.tree_at(
            lambda s: (s.ys, s.solver_state, s.interpolation),
            solution,
            (ys, after, dense),
            is_leaf=lambda x: x is None,
        )


def packing_for(solver: dfx.AbstractSolver, state: FlowState) -> Packing | None:
    """None where a state is large, or the solver has to know what is in it."""
    if isinstance(solver, dfx.AbstractERK) and small(state):
        return Packing(Form(state))
    return None


def _is_state(x: Any) -> bool:
    return isinstance(x, FlowState)
