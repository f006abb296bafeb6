"""Flows other than the gradient flow, as `integrate` takes them."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp

from ._check import checked_span
from ._choose import usual_clock
from ._problem import Problem, dtype_of
from ._times import is_infinity
from ._types import Params
from .clocks import AbstractClock, Alpha
from .flows import AbstractFlow, AbstractMotion, Linearised
from .solvers import PrimalDual


# What a solution's `flow` is where the laws of the gradient flow hold.
GRADIENT_FLOWS = ("gradient", "Linearised")


def with_flow(
    flow: Any, problem: Problem, params: Params, t_span: Any
) -> tuple[Problem, Params, AbstractMotion | None]:
    """The problem and its parameters, and the flow unless it is their gradient flow."""
    if flow is None:
        return problem, params, None
    if isinstance(flow, type) and issubclass(flow, AbstractFlow):
        raise ValueError(
            f"flow={flow.__name__} is a class; pass an instance, {flow.__name__}()."
        )
    if not isinstance(flow, AbstractFlow):
        raise ValueError(
            f"flow={flow!r} is not a flow; use an instance from gflow.flows, such as "
            "gflow.flows.WeightNorm(), or None for the gradient flow."
        )
    if isinstance(flow, Linearised):
        flow.check(problem, params, None, None)
        problem, params = flow.applied(problem, params)
        return problem, params, None
    if not isinstance(flow, AbstractMotion):
        raise ValueError(
            f"{type(flow).__name__} says nothing about its motion; make it a subclass "
            "of gflow.flows.AbstractMotion."
        )
    try:
        infinite = is_infinity(t_span[1])
    except (TypeError, IndexError):
        infinite = False  # and an error, in `checked_span`
    if infinite:
        raise ValueError(
            "t1 = gflow.INFINITY is the limit of the gradient flow; with another flow "
            "integrate to a late time."
        )
    flow.check(problem, params, *checked_span(t_span))
    return problem, params, flow


def checked_choices(
    flow: AbstractMotion,
    clock: Any,
    solver: Any,
    kinks: str,
    smooth: bool,
    problem: Problem,
    t_span: Any,
) -> AbstractClock:
    """The clock; ValueError for what only the gradient flow has."""
    name = type(flow).__name__
    if kinks == "auto" and not smooth:
        raise ValueError(
            f"the model or the loss has kinks, and the flow {name} does not follow "
            "them: pass kinks='autodiff' to take what automatic differentiation "
            "returns there, or use a smooth activation such as gflow.nn.squared_relu. "
            "(The gradient flow follows kinks, and Linearised has none.)"
        )
    if isinstance(solver, PrimalDual):
        raise ValueError(
            f"the solver PrimalDual is made for the gradient flow, not for {name}; "
            "leave solver out, or use a Diffrax solver."
        )
    if isinstance(clock, Alpha):
        raise ValueError(
            f"the Alpha clock is made for the gradient flow, not for {name}; use "
            "gflow.clocks.LogTime()."
        )
    return usual_clock(problem, *checked_span(t_span)) if clock is None else clock


def state_of(flow: AbstractMotion | None, params: Params) -> Any:
    """What is integrated, as far as its shapes go."""
    if flow is None:
        return params
    zero = jnp.zeros((), dtype_of(params))
    return eqx.filter_eval_shape(flow.start, params, zero)
