"""An explicit step from kink to kink."""

import functools
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array

from .._flat import flatten, unflattener
from .._flow import FlowState
from .._frozen import Frozen
from .._inclusion import (
    Pattern,
    least_of,
    multipliers,
    onto_pins,
    room,
)
from .._lanes import where_due
from .._types import BoolScalar, IntScalar, Scalar
from ._bends import Bends, bent, flat_output, no_bends
from ._crossing import first_crossing
from ._leaving import first_leaving
from ._tolerance import Tolerance
from ._track import Track


_NODES = (0.25, 0.5, 0.75, 1.0)  # of a step, where signs and multipliers are looked at
_FORWARD = 1 / 3  # of a gradient
_SETTLE = 4.0  # gradients, about: sizes, branches, rows
# Of a step: where less than this is left of it after a kink, it ends there.
_SHORT = 1e-3


class Walk(eqx.Module):
    """A step, or the part of it up to where it is cut short."""

    state: FlowState
    error: FlowState
    track: Track
    bends: Bends
    begin: Scalar  # fraction of the step where the last pattern begins
    done: BoolScalar
    spent: Scalar  # gradients


def walk(
    solver: dfx.AbstractERK,
    turned: Any,
    noted: Any,
    velocity: Any,
    frozen: Frozen,
    dense: Any,
    t0: Scalar,
    t1: Scalar,
    y0: FlowState,
    y1: FlowState,
    error: FlowState,
    track: Track,
    *,
    tolerance: Tolerance,
    most: int,
) -> Walk:
    """The way from y0, on a step's dense output, which holds up to the first kink.

    `turned` finds the next pattern (`Turn`): it takes a state, the pattern, whether it
    ceases to fit there, and whether to look at all. `noted` makes of a turn the next
    track: it takes the state, the track, the turn, which kink it is about, and the
    readings before, there, and of a whole step. `velocity` is that on a pattern. At
    most `most` kinks are met in one step.
    """
    flat = flat_output(dense)
    path: Any = solver.interpolation_cls(t0=t0, t1=t1, **flat)
    unflatten = unflattener(y0)
    dtype, slack = y0.dissipated.dtype, least_of(y0.dissipated)

    def reading(fraction: Any) -> Scalar:
        return jnp.where(fraction == 1, t1, t0 + fraction * (t1 - t0))

    def looked(at: Any, track: Track, begin: Scalar) -> tuple[Any, ...]:
        # Signs are cheaper to look at than multipliers.
        pattern = track.pattern

        def signs(fraction: Any) -> tuple[Scalar, BoolScalar, IntScalar, Scalar]:
            value, kink = room(frozen, at(fraction).params, pattern)
            return value, value >= -slack, kink, jnp.asarray(_FORWARD, dtype)

        def shares(fraction: Any) -> tuple[Scalar, BoolScalar, IntScalar, Scalar]:
            value, kink = multipliers(frozen, at(fraction).params, pattern, slack)
            cost = jnp.where(jnp.isinf(value), 0, each_look(frozen, pattern))
            return value, value >= -slack, kink, cost.astype(dtype)

        crossed = first_crossing(signs, _NODES, slack, dtype, after=begin)
        pins = pattern.pins < frozen.total
        # The multipliers are known where they were chosen.
        inside = jnp.minimum(pattern.shares, 1 - pattern.shares) + slack
        start = jnp.min(jnp.where(pins, inside, jnp.inf))
        start = jnp.where(begin > 0, start, slack)
        until = crossed.fraction
        left = first_crossing(
            shares, _NODES, slack, dtype, start, after=begin, until=until
        )
        event = crossed.found | left.found
        kink = jnp.where(left.found, left.about, crossed.about)
        return left.fraction, event, kink, crossed.cost + left.cost

    def body(at_last: Walk) -> Walk:
        begin, track, bends = at_last.begin, at_last.track, at_last.bends
        pattern = track.pattern

        def along(time: Scalar) -> Array:
            return path.evaluate(time) + bends.at(time)

        def at(fraction: Any) -> FlowState:
            return unflatten(along(reading(fraction)))

        until, crossed, kink, spent = looked(at, track, begin)

        def look(fraction: Scalar, asked: BoolScalar) -> Any:
            y = at(fraction)
            params = onto_pins(frozen, y.params, pattern)
            y = eqx.tree_at(lambda s: s.params, y, params)
            event = crossed & (fraction == until)
            turn = turned(y, pattern, event, asked)
            cost = jnp.where(turn.due, _SETTLE, 0.0).astype(dtype)
            # What has just turned and would at once again is left to the step's end.
            watched = turn.lingered & (track.stalls == 0) & (track.failure == 0)
            return turn.turned, watched, (y, turn), cost

        place, (arrived, turn), cost = first_leaving(look, begin, until)
        here, spent = reading(place), spent + cost
        after = noted(arrived, track, turn, kink, reading(begin), here, t1 - t0)
        pins = after.pattern.pins.astype(dtype)
        arrived = eqx.tree_at(lambda s: s.pins, arrived, pins)

        def bend() -> Any:
            velocity_on = velocity(after.pattern)

            def flat_velocity(time: Scalar, y: Array) -> Array:
                return flatten(velocity_on(time, unflatten(y)))

            jump = flatten(arrived) - along(here)
            return bent(solver, flat_velocity, along, here, t1, jump)

        tries = turn.turned & (1 - place > _SHORT) & (bends.number < most)
        tries = tries & (after.failure == 0)
        change, more, output = where_due(tries, bend, lambda blank: blank)
        total = jtu.tree_map(
            lambda a, b: jnp.abs(a) + jnp.abs(b), at_last.error, unflatten(more)
        )
        y_end = jtu.tree_map(jnp.add, y1, unflatten(change))
        goes_on = tries & (tolerance.measured(y0, y_end, total) < 1)
        tableau: Any = solver.tableau
        stages = tableau.num_stages * each_stage(frozen, after.pattern)
        spent = spent + jnp.where(tries, stages, 0.0)
        return Walk(
            state=arrived,
            error=select(goes_on, total, at_last.error),
            track=after,
            bends=select(goes_on, bends.appended(here, output), bends),
            begin=place,
            done=~goes_on,
            spent=at_last.spent + spent,
        )

    # A step that is rejected anyway is not looked at.
    size = tolerance.measured(y0, y1, error)
    rejected = ~(size < 1)
    error = jtu.tree_map(lambda e: jnp.where(rejected, 1.01 * e, e), error)
    start = Walk(
        state=y1,
        error=error,
        track=track,
        bends=no_bends(solver, most, path, flat),
        begin=jnp.where(rejected, jnp.ones((), dtype), 0),
        done=rejected,
        spent=jnp.zeros((), dtype),
    )
    return jax.lax.while_loop(lambda s: ~s.done, body, start)


def each_stage(frozen: Frozen, pattern: Pattern) -> Scalar:
    """Gradients of one velocity: normals are gradients of one example each."""
    return 1 + _each(frozen, pattern)


def each_look(frozen: Frozen, pattern: Pattern) -> Scalar:
    """Gradients of one look at the multipliers: jumps take two more."""
    return 1 + 3 * _each(frozen, pattern)


def _each(frozen: Frozen, pattern: Pattern) -> Scalar:
    return pattern.num_pins.astype(pattern.shares.dtype) / frozen.num_groups


def select(condition: BoolScalar, a: Any, b: Any) -> Any:
    """One of two PyTrees."""
    return jtu.tree_map(lambda x, y: jnp.where(condition, x, y), a, b)


@functools.cache
def cut_interpolation(inner_cls: Any) -> Any:
    """Dense output of a step with bends, which may be cut short: one class for each
    method.
    """

    class Cut(dfx.AbstractLocalInterpolation):
        t0: Any
        t1: Any
        inner: Any
        end: Any
        bends: Bends | None

        def __init__(self, *, t0, t1, inner, begin, trial, end, bends=None):
            self.t0, self.t1, self.end = t0, t1, end
            self.inner = inner_cls(t0=begin, t1=trial, **inner)
            self.bends = bends

        def evaluate(self, t0, t1=None, left=True):
            del left
            if t1 is not None:
                return jtu.tree_map(jnp.subtract, self.evaluate(t1), self.evaluate(t0))
            # Beyond the cut the branches are others.
            time = jnp.minimum(t0, self.end)
            y = self.inner.evaluate(time)
            if self.bends is None:
                return y
            change = unflattener(y)(self.bends.at(time))
            return jtu.tree_map(jnp.add, y, change)

    return Cut
