"""Stopping a solve at a condition on the observed state."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp

from ._bisect import bisect
from ._captured import keyed
from ._flow import FlowField, FlowState
from ._frozen import Frozen
from ._pairs import tailed
from ._problem import Problem
from ._times import log_time_after
from ._types import BoolScalar, Params, Scalar
from .observe import State, observe_at


class _Condition(eqx.Module):
    # Positive until the first of the events happens: the smallest of the events'
    # values, each with the sign that makes it positive at the start. One function,
    # because Diffrax resolves two events in one step by their order, not their time.
    problem: Problem
    functions: tuple[Callable[[State], Any], ...] = eqx.field(static=True)
    degree: float | None = eqx.field(static=True)
    signs: tuple[Scalar, ...]
    horizon: Scalar | None
    # The weights, the time and the fall of ℒ are read from the state by the field.
    field: FlowField
    # The problem whose kinks are followed, if it has kinks.
    frozen: Frozen | None
    separation: bool = eqx.field(static=True, default=False)

    def __call__(self, t, y: FlowState, args, **kwargs):
        del args, kwargs
        values = []
        if self.functions:
            state = _state(self, t, y)
            raw = (_value(f, state) for f in self.functions)
            values = [s * v for s, v in zip(self.signs, raw, strict=True)]
        if self.horizon is not None:
            assert y.log_time is not None
            values.append(self.horizon - y.log_time)
        if self.separation:
            values.append(-separation(self.problem, y.params))
        return jnp.min(jnp.stack(values))


class _Separated(eqx.Module):
    # Looked at after each step; the time need not be known any better.
    problem: Problem
    watching: BoolScalar

    def __call__(self, t, y: FlowState, args, **kwargs):
        del t, args, kwargs
        return jax.lax.cond(
            self.watching,
            lambda: separation(self.problem, y.params) > 0,
            lambda: jnp.asarray(False),
        )


def watched(event: dfx.Event | None, whether: BoolScalar) -> dfx.Event | None:
    """The event, with separation, if that is all it is about, watched for or not."""
    if event is None or not isinstance(event.cond_fn, _Separated):
        return event
    return eqx.tree_at(lambda e: e.cond_fn.watching, event, whether)


def separation(problem: Problem, params: Params) -> Scalar:
    """α, positive once ℒ < ℓ(0), when every example is classified; a forward pass."""
    return tailed(problem).alpha(problem.log_loss(params), problem.num_examples)


def _state(condition: _Condition, t: Any, y: FlowState) -> State:
    field = condition.field
    log_elapsed = field.log_elapsed(t, y)
    fall = None if field.flow is not None else jnp.log(y.dissipated) + field.log_unit
    return observe_at(
        condition.problem,
        field.weights(t, y),
        log_t=log_time_after(field.start_time, log_elapsed),
        path_length=y.path_length,
        degree=condition.degree,
        frozen=condition.frozen,
        pins=y.pins,
        log_elapsed=log_elapsed,
        log_fall=fall,
    )


def _value(function: Callable[[State], Any], state: State) -> Scalar:
    value = jnp.asarray(function(state))
    if value.shape != ():
        raise ValueError(
            f"an event returns one number or boolean, but {function} returns shape "
            f"{value.shape}; use, say, its minimum."
        )
    one = jnp.ones_like(state.log_loss)
    return jnp.where(value, -one, one) if value.dtype == bool else value * one


def _is_boolean(function: Callable[[State], Any], state: State) -> bool:
    return jnp.asarray(function(state)).dtype == bool


def checked_events(events: Any) -> tuple[Callable[[State], Any], ...]:
    """The events as a tuple of functions of the observed state."""
    if events is None:
        return ()
    if callable(events):
        return (keyed(events),)
    if isinstance(events, Mapping):
        events = tuple(events.values())
    if isinstance(events, Sequence) and all(callable(e) for e in events):
        return tuple(keyed(e) for e in events)
    raise ValueError(
        f"events={events!r}: pass a function of the observed state, or a sequence or "
        "dict of them, returning a number (the solve stops where it changes sign) or "
        "a boolean (it stops where it becomes true)."
    )


def event(
    problem: Problem,
    functions: tuple[Callable[[State], Any], ...],
    degree: float | None,
    start: FlowState,
    horizon: Scalar | None,
    *,
    field: FlowField,
    frozen: Frozen | None = None,
    separation: bool = False,
    reading: Any = 0.0,
) -> dfx.Event | None:
    """Diffrax's event for the conditions, for reaching u = horizon and separation.

    `frozen`: the problem whose kinks are followed, if it has kinks; `reading`: the
    clock's reading at `start`.
    """
    if not functions and horizon is None:
        apart = _Separated(problem, jnp.asarray(True))
        return dfx.Event(apart) if separation else None
    signs: tuple[Scalar, ...] = ()
    blank = _Condition(problem, functions, degree, (), horizon, field, frozen)
    if functions:
        state = _state(blank, reading, start)
        values = [_value(f, state) for f in functions]
        signs = tuple(jnp.where(v < 0, -1.0, 1.0).astype(v.dtype) for v in values)
        signs = tuple(
            eqx.error_if(
                s,
                (v < 0) & _is_boolean(f, state),
                "a boolean event is true where the solve starts, so it cannot become "
                "true; leave it out, or start earlier.",
            )
            for f, v, s in zip(functions, values, signs, strict=True)
        )
    condition = _Condition(
        problem, functions, degree, signs, horizon, field, frozen, separation
    )
    root_finder = bisect(start.dissipated.dtype, increasing=False)
    return dfx.Event(condition, root_finder)
