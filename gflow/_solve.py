"""Stepping through the flow with Diffrax, and keeping the states that were asked for.

Three ways to keep states, because JAX wants to know their number beforehand:

- `at_times`: given times, in a clock that tells the time. One Diffrax solve.
- `at_steps`: the solver's own points, as many as fit, evenly thinned out.
- `at_times_of_state`: given times, in a clock that does not tell the time; they are
  found on the solver's dense output.

The last two string together short Diffrax solves ("stretches") that keep dense output
for a few steps only, so that memory does not grow with the number of steps.
"""

from collections.abc import Callable
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import optimistix as optx
from jaxtyping import Array, Float, Int

from ._bisect import bisect
from ._controller import ControllerState, RelativeToArrays
from ._flow import FlowField, FlowState
from ._types import IntScalar, Scalar


class Position(eqx.Module):
    """Where a solve stands; enough to continue it bit for bit."""

    reading: Scalar
    state: FlowState
    solver_state: Any
    controller_state: ControllerState


class Counts(eqx.Module):
    num_steps: IntScalar
    num_accepted_steps: IntScalar


class Solved(eqx.Module):
    """States kept by a solve. Entries from `num_kept` on are padding."""

    readings: Float[Array, " times"]
    states: FlowState  # with a leading axis of times
    num_kept: IntScalar
    end: Position
    counts: Counts
    result: dfx.RESULTS


class Engine(eqx.Module):
    """Everything that a Diffrax solve needs but the start and the end."""

    field: FlowField
    solver: dfx.AbstractSolver
    controller: RelativeToArrays
    event: dfx.Event | None
    progress: dfx.AbstractProgressMeter

    @property
    def term(self) -> dfx.ODETerm:
        return dfx.ODETerm(self.field)

    def start(self, reading: Scalar, end: Scalar, state: FlowState) -> Position:
        """The position at t0, with the first step chosen."""
        solver, term = self.solver, self.term
        _, controller_state = self.controller.init(
            term, reading, end, state, None, None, solver.func, solver.error_order(term)
        )
        solver_state = solver.init(
            term, reading, controller_state.next_end, state, None
        )
        return Position(reading, state, solver_state, controller_state)

    def run(
        self, position: Position, end: Scalar, saveat: dfx.SaveAt, **options
    ) -> dfx.Solution:
        """One Diffrax solve from a position on."""
        controller = eqx.tree_at(
            lambda c: c.resume,
            self.controller,
            position.controller_state,
            is_leaf=lambda x: x is None,
        )
        if saveat.subs is not None and any(
            s.ts is not None for s in saveat.subs.values()
        ):
            if not interpolates_well(self.solver):
                controller = dfx.ClipStepSizeController(
                    controller, step_ts=saveat.subs["kept"].ts
                )
        return dfx.diffeqsolve(
            self.term,
            self.solver,
            position.reading,
            end,
            None,
            position.state,
            saveat=saveat,
            stepsize_controller=controller,
            event=self.event,
            throw=False,
            solver_state=position.solver_state,
            **options,
        )


def interpolates_well(solver: dfx.AbstractSolver) -> bool:
    """Whether the solver's dense output is as accurate as its error control.

    True of Diffrax's explicit Runge-Kutta methods, whose interpolants have a local
    order at least that of their error estimate. The implicit ones interpolate by
    cubic Hermite polynomials, below their order and through stiff derivatives: there
    the solver steps to the save times instead.
    """
    return isinstance(solver, dfx.AbstractERK)


def gradients_per_step(solver: dfx.AbstractSolver) -> int | None:
    """Gradients that one step costs, or None if the solver does not tell."""
    if isinstance(solver, dfx.AbstractERK):
        tableau = solver.tableau
        return tableau.num_stages - (1 if tableau.fsal else 0)
    return None


def _position(solution: dfx.Solution, end: str) -> Position:
    controller_state = solution.controller_state
    if not isinstance(controller_state, ControllerState):
        controller_state = controller_state.inner_state
    return Position(
        reading=solution.ts[end][0],
        state=jtu.tree_map(lambda x: x[0], solution.ys[end]),
        solver_state=solution.solver_state,
        controller_state=controller_state,
    )


def _counts(solution: dfx.Solution) -> Counts:
    stats = solution.stats
    return Counts(
        jnp.asarray(stats["num_steps"]), jnp.asarray(stats["num_accepted_steps"])
    )


def at_times(
    engine: Engine,
    start: Position,
    end: Scalar,
    readings: Float[Array, " times"],
    *,
    max_steps: int,
) -> Solved:
    """Keeps the states at the given readings of a clock that tells the time."""
    saveat = dfx.SaveAt(
        subs={"kept": dfx.SubSaveAt(ts=readings), "end": dfx.SubSaveAt(t1=True)},
        solver_state=True,
        controller_state=True,
    )
    solution = engine.run(
        start,
        end,
        saveat,
        max_steps=max_steps,
        progress_meter=engine.progress,
    )
    kept = jnp.isfinite(solution.ts["kept"])
    return Solved(
        readings=readings,
        states=solution.ys["kept"],
        num_kept=jnp.sum(kept),
        end=_position(solution, "end"),
        counts=_counts(solution),
        result=solution.result,
    )


# --- Stretches ---------------------------------------------------------------------

_STRETCH = 32  # steps a stretch, if P is small
_STRETCH_SIZE = 1_500_000  # parameters × steps a stretch, if P is large


class Stretch(eqx.Module):
    """A few steps of the solver, with dense output over them."""

    dense: dfx.DenseInterpolation
    step_ends: Float[Array, " steps"]  # padded with inf
    position: Position
    counts: Counts
    result: dfx.RESULTS


def stretch_length(params: Any, max_steps: int) -> int:
    """Steps a stretch: its dense output holds about 9 P numbers a step."""
    size = sum(leaf.size for leaf in jtu.tree_leaves(params))
    return max(1, min(_STRETCH, max(4, _STRETCH_SIZE // size), max_steps))


def _stretch(engine: Engine, start: Position, end: Scalar, steps: int) -> Stretch:
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
        dense=solution.interpolation,
        step_ends=solution.ts["ends"],
        position=_position(solution, "end"),
        counts=_counts(solution),
        result=solution.result,
    )


def _unfinished(result: dfx.RESULTS, counts: Counts, steps: int, max_steps: int):
    # A stretch that used up its steps is to be continued; all else is an end.
    return (result == dfx.RESULTS.max_steps_reached) & (
        counts.num_steps + steps <= max_steps
    )


def _add(a: Counts, b: Counts) -> Counts:
    return jtu.tree_map(jnp.add, a, b)


def _no_counts() -> Counts:
    return Counts(jnp.asarray(0), jnp.asarray(0))


class _Kept(eqx.Module):
    # States kept so far, every `stride`-th of the solver's points, in any order. A slot
    # whose reading is inf is free. (Thinning frees slots and moves no state: the states
    # may be gigabytes.)
    readings: Float[Array, " capacity"]
    indices: Int[Array, " capacity"]  # which of the solver's points
    states: FlowState
    stride: IntScalar
    seen: IntScalar  # points of the solver's so far

    def thinned(self, num_new: IntScalar, capacity: int) -> "_Kept":
        """With every other state dropped, if the new ones would not fit."""
        last = self.seen + num_new
        full = last // self.stride > capacity
        stride = jnp.where(full, 2 * self.stride, self.stride)
        dropped = self.indices % stride != 0
        readings = jnp.where(dropped, jnp.inf, self.readings)
        return _Kept(readings, self.indices, self.states, stride, self.seen)

    def put(self, wanted, index, reading, state: FlowState) -> "_Kept":
        """With one more state, if it is wanted."""
        free = jnp.argmax(jnp.isinf(self.readings))
        slot = jnp.where(wanted, free, self.readings.shape[0])

        def write(buffer, x):
            return buffer.at[slot].set(x, mode="drop")

        return _Kept(
            write(self.readings, reading),
            write(self.indices, index),
            jtu.tree_map(write, self.states, state),
            self.stride,
            self.seen,
        )


def at_steps(
    engine: Engine,
    start: Position,
    end: Scalar,
    *,
    capacity: int,
    points_per_step: int,
    max_steps: int,
    horizon: Scalar | None = None,
) -> Solved:
    """Keeps the solver's points, dense where the solution moves.

    Each accepted step offers `points_per_step` points of its dense output. Up to
    `capacity` are kept; when there are more, every other one is dropped and only every
    second, fourth, ... taken from then on, so that what is kept is spread evenly over
    the steps taken. `horizon` is the value of u = log(1 + t - t0) at the end, for a
    clock that does not tell the time (the progress meter wants it).
    """
    steps = stretch_length(start.state.params, max_steps)
    # One stretch must fit into the half of the slots that thinning frees.
    steps = max(1, min(steps, capacity // (2 * points_per_step)))
    offered = jnp.arange(1, steps * points_per_step + 1)

    def keep(kept: _Kept, previous: Scalar, stretch: Stretch) -> _Kept:
        num_offered = stretch.counts.num_accepted_steps * points_per_step
        kept = kept.thinned(num_offered, capacity)
        ends = jnp.concatenate([previous[None], stretch.step_ends])
        last = stretch.position.reading

        def offer(kept: _Kept, j):
            step, part = (j - 1) // points_per_step, (j - 1) % points_per_step + 1
            left, right = ends[step], ends[step + 1]
            fraction = part.astype(left.dtype) / points_per_step
            reading = jnp.where(
                part == points_per_step, right, left + fraction * (right - left)
            )
            is_end = j == num_offered
            wanted = (j <= num_offered) & ((kept.seen + j) % kept.stride == 0)
            inside = jnp.clip(reading, previous, last)
            # The end of the stretch is the solver's own state; inside, the end of a
            # step is read off the dense output, which is the same to rounding.
            state = jax.lax.cond(
                wanted & ~is_end,
                lambda: stretch.dense.evaluate(inside),
                lambda: stretch.position.state,
            )
            reading = jnp.where(is_end, last, reading)
            return kept.put(wanted, kept.seen + j, reading, state), None

        kept, _ = jax.lax.scan(offer, kept, offered)
        return eqx.tree_at(lambda k: k.seen, kept, kept.seen + num_offered)

    meter_state = engine.progress.init()
    whole = end if horizon is None else horizon

    def body(carry):
        position, kept, counts, _, meter_state = carry
        stretch = _stretch(engine, position, end, steps)
        kept = keep(kept, position.reading, stretch)
        now = stretch.position
        done = now.reading if now.state.log_time is None else now.state.log_time
        meter_state = engine.progress.step(meter_state, done / whole)
        counts = _add(counts, stretch.counts)
        return stretch.position, kept, counts, stretch.result, meter_state

    def unfinished(carry):
        _, _, counts, result, _ = carry
        return _unfinished(result, counts, steps, max_steps)

    empty = _Kept(
        readings=jnp.full((capacity,), jnp.inf, end.dtype),
        indices=jnp.zeros((capacity,), int),
        states=jtu.tree_map(
            lambda x: jnp.zeros((capacity, *x.shape), x.dtype), start.state
        ),
        stride=jnp.asarray(1),
        seen=jnp.asarray(0),
    )
    first = (
        start,
        empty,
        _no_counts(),
        dfx.RESULTS.max_steps_reached,
        meter_state,
    )
    position, kept, counts, result, meter_state = jax.lax.while_loop(
        unfinished, body, first
    )
    engine.progress.close(meter_state)
    return _with_ends(start, position, kept, counts, result)


def _with_ends(start, position, kept: _Kept, counts, result) -> Solved:
    # start, the kept points in order, end, then the end again as padding.
    order = jnp.argsort(kept.readings)
    readings = kept.readings[order]
    count = jnp.sum(readings < position.reading)
    slot = jnp.arange(readings.shape[0] + 1)
    past = slot >= count

    def arrange(first, buffer, final):
        inner = buffer[order[jnp.minimum(slot, order.shape[0] - 1)]]
        past_end = past.reshape((-1,) + (1,) * final.ndim)
        return jnp.concatenate([first[None], jnp.where(past_end, final, inner)])

    return Solved(
        readings=arrange(start.reading, kept.readings, position.reading),
        states=jtu.tree_map(arrange, start.state, kept.states, position.state),
        num_kept=count + 2,
        end=position,
        counts=counts,
        result=result,
    )


def at_times_of_state(
    engine: Engine,
    start: Position,
    end: Scalar,
    log_times: Float[Array, " times"],
    *,
    max_steps: int,
) -> Solved:
    """Keeps the states where u = log(1 + t - t0), a part of the state, has given values.

    Needs dense output that is as accurate as the steps.
    """
    steps = stretch_length(start.state.params, max_steps)
    first = _stretch(engine, start, end, steps)

    def up_to(carry, target):
        def body(inner):
            stretch, counts = inner
            following = _stretch(engine, stretch.position, end, steps)
            return following, _add(counts, following.counts)

        def unfinished(inner):
            stretch, counts = inner
            return (stretch.position.state.log_time < target) & _unfinished(
                stretch.result, counts, steps, max_steps
            )

        stretch, counts = jax.lax.while_loop(unfinished, body, carry)
        # The solve ends where u is its last target to rounding.
        slack = 1 + 64 * jnp.finfo(target.dtype).eps
        reached = target <= stretch.position.state.log_time * slack
        reading = _invert(lambda c: stretch.dense.evaluate(c).log_time, stretch, target)
        state = stretch.dense.evaluate(reading)
        at_start = target <= start.state.log_time
        state = jtu.tree_map(
            lambda a, b: jnp.where(at_start, a, b), start.state, state
        )
        reading = jnp.where(at_start, start.reading, reading)
        return (stretch, counts), (reading, state, reached)

    carry = (first, first.counts)
    carry, (readings, states, reached) = jax.lax.scan(up_to, carry, log_times)
    (stretch, counts) = carry

    # On to the end, whatever the last time to keep.
    def body(inner):
        stretch, counts = inner
        following = _stretch(engine, stretch.position, end, steps)
        return following, _add(counts, following.counts)

    def unfinished(inner):
        stretch, counts = inner
        return _unfinished(stretch.result, counts, steps, max_steps)

    stretch, counts = jax.lax.while_loop(unfinished, body, (stretch, counts))
    return Solved(
        readings=readings,
        states=states,
        num_kept=jnp.sum(reached),
        end=stretch.position,
        counts=counts,
        result=stretch.result,
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
