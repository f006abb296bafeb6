"""Short solves with dense output, strung together.

A solve whose saved states are chosen as it goes cannot tell Diffrax beforehand where
to save. It runs in stretches of a few steps that keep dense output, so that memory does
not grow with the number of steps, and states are read off each stretch.
"""

from collections.abc import Callable
from typing import Any, cast

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import optimistix as optx
from jaxtyping import Array, Float

from ._bisect import bisect
from ._engine import (
    Counts,
    Engine,
    Position,
    Solved,
    counts_of,
    interpolates_well,
    position_at,
)
from ._flow import FlowState
from ._packed import PackedDense
from ._types import BoolScalar, IntScalar, Scalar


_STRETCH = 32  # steps a stretch, if P is small
_STRETCH_SIZE = 1_500_000  # parameters × steps a stretch, if P is large


# How near to its last value u must be, in units of its rounding, to have arrived: the
# end is found by bisection on dense output.
ARRIVED = 1e3


class Stretch(eqx.Module):
    """A few steps of the solver, with dense output over them."""

    dense: dfx.DenseInterpolation | PackedDense
    step_ends: Float[Array, " steps"]  # padded with inf
    position: Position
    counts: Counts
    result: dfx.RESULTS


def measured(reading: Scalar, state: FlowState) -> Scalar:
    """u = log(1 + t - t0) where the state carries it, else the clock's reading."""
    return reading if state.log_time is None else state.log_time


def _reached(stretch: Stretch) -> Scalar:
    return measured(stretch.position.reading, stretch.position.state)


def stretch_length(params: Any, max_steps: int) -> int:
    """Steps a stretch: its dense output holds about 9 P numbers a step."""
    size = sum(leaf.size for leaf in jtu.tree_leaves(params))
    return max(1, min(_STRETCH, max(4, _STRETCH_SIZE // size), max_steps))


def run_stretch(engine: Engine, start: Position, end: Scalar, steps: int) -> Stretch:
    saveat = dfx.SaveAt(
        subs={
            "ends": dfx.SubSaveAt(steps=True, fn=lambda t, y, args: None),
            "end": dfx.SubSaveAt(t1=True),
        },
        dense=True,
        solver_state=True,
        controller_state=True,
    )
    solution = engine.run(
        start, end, saveat, max_steps=steps, adjoint=dfx.ForwardMode()
    )
    return Stretch(
        dense=cast(Any, solution.interpolation),
        step_ends=cast(Any, solution.ts)["ends"],
        position=position_at(solution, "end"),
        counts=counts_of(solution),
        result=solution.result,
    )


def unfinished(
    result: dfx.RESULTS, counts: Counts, steps: int, limit: IntScalar | int
) -> BoolScalar:
    """Whether to run one more stretch: the last one only used up its steps."""
    return (result == dfx.RESULTS.max_steps_reached) & (
        counts.num_steps + steps <= limit
    )


def add(a: Counts, b: Counts) -> Counts:
    """The steps of both."""
    return jtu.tree_map(jnp.add, a, b)


def no_counts() -> Counts:
    """No steps."""
    return Counts(jnp.asarray(0), jnp.asarray(0))


def at_times_between(
    engine: Engine,
    start: Position,
    end: Scalar,
    times: Float[Array, " times"],
    *,
    max_steps: int,
    limit: IntScalar | int,
) -> Solved:
    """Keeps the states at given readings of a clock that tells the time or, if it does
    not, where u = log(1 + t - t0), part of the state, has given values.

    Without dense output that is as accurate as the steps, it steps to the times; the
    clock must tell them. `limit`: of the steps, at most `max_steps`; it need not
    be known before it runs.
    """
    fine = interpolates_well(engine.solver)
    tells_time = start.state.log_time is None
    steps = stretch_length(start.state.params, max_steps)
    # One that has yet to be run, so that the solver is compiled once.
    first = _blank(engine, start, end, steps)

    def up_to(carry, target):
        def body(inner):
            stretch, counts = inner
            stop = end if fine else jnp.minimum(target, end)
            following = run_stretch(engine, stretch.position, stop, steps)
            return following, add(counts, following.counts)

        def goes_on(inner):
            stretch, counts = inner
            return (_reached(stretch) < target) & unfinished(
                stretch.result, counts, steps, limit
            )

        stretch, counts = jax.lax.while_loop(goes_on, body, carry)
        if not fine:
            # Arrived at a time to be saved is not at the end.
            on = (stretch.result == dfx.RESULTS.successful) & (target < end)
            result = dfx.RESULTS.where(
                on, dfx.RESULTS.max_steps_reached, stretch.result
            )
            stretch = eqx.tree_at(lambda s: s.result, stretch, result)
        # The solve ends where u is its last target to rounding.
        slack = 1 + ARRIVED * jnp.finfo(target.dtype).eps
        reached = target <= _reached(stretch) * slack
        if tells_time:
            reading = jnp.minimum(target, stretch.position.reading)
        else:
            reading = _invert(
                lambda c: stretch.dense.evaluate(c).log_time, stretch, target
            )
        state = stretch.dense.evaluate(reading) if fine else stretch.position.state
        at_start = target <= 0
        state = jtu.tree_map(lambda a, b: jnp.where(at_start, a, b), start.state, state)
        reading = jnp.where(at_start, start.reading, reading)
        return (stretch, counts), (reading, state, reached)

    # The last target is out of reach: on to the end of the solve.
    targets = jnp.append(times, jnp.inf)
    carry, kept = jax.lax.scan(up_to, (first, first.counts), targets)
    stretch, counts = carry
    readings, states, reached = jtu.tree_map(lambda x: x[:-1], kept)
    return Solved(
        readings=readings,
        states=states,
        num_kept=jnp.sum(reached),
        end=stretch.position,
        counts=counts,
        result=stretch.result,
    )


def _blank(engine: Engine, start: Position, end: Scalar, steps: int) -> Stretch:
    shapes = eqx.filter_eval_shape(run_stretch, engine, start, end, steps)
    blank = jtu.tree_map(
        lambda s: jnp.zeros(s.shape, s.dtype),
        shapes,
        is_leaf=lambda s: isinstance(s, jax.ShapeDtypeStruct),
    )
    return eqx.tree_at(
        lambda s: (s.position, s.result),
        blank,
        (start, dfx.RESULTS.max_steps_reached),
    )


def _invert(function: Callable, stretch: Stretch, target: Scalar) -> Scalar:
    """The reading within a stretch at which an increasing function has a value."""
    low, high = stretch.dense.t0, stretch.position.reading
    found = optx.root_find(
        lambda c, _: function(jnp.clip(c, low, high)) - target,
        bisect(target.dtype, increasing=True),
        y0=high,
        options={"lower": low, "upper": high},
        max_steps=128,
        throw=False,
    )
    return jnp.clip(found.value, low, high)
