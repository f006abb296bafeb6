"""Keeping the solver's own points, dense where the solution moves."""

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Bool, Float

from ._engine import Engine, Position, Solved
from ._flow import FlowState
from ._stretch import Stretch, add, no_counts, run_stretch, stretch_length, unfinished
from ._types import BoolScalar, IntScalar, Scalar
from .clocks import AbstractTimeClock, LogTime


# Weight of log log t in the measure of motion: plateaus are drawn too.
_TIME_WEIGHT = 0.3


class _Kept(eqx.Module):
    # States kept so far, in any order. A slot whose reading is inf is free. (Thinning
    # frees slots and moves no state: the states may be gigabytes.)
    readings: Float[Array, " capacity"]
    motions: Float[Array, " capacity"]
    states: FlowState
    spacing: Scalar  # in motion; at most one state per interval of it
    last_motion: Scalar  # of the last point offered

    def wanted(self, motions: Float[Array, " offered"]) -> Bool[Array, " offered"]:
        """Which of the points, in order, are the first of their interval."""
        before = jnp.concatenate([self.last_motion[None], motions[:-1]])
        spacing = jnp.where(self.spacing == 0, 1, self.spacing)
        first = jnp.floor(motions / spacing) > jnp.floor(before / spacing)
        return first | (self.spacing == 0)

    def thinned(self, full: BoolScalar, last_motion: Scalar) -> "_Kept":
        """If full, with the spacing that halves the number of states."""
        capacity = self.readings.shape[0]
        spacing = jnp.maximum(2 * self.spacing, 2 * last_motion / capacity)
        order = jnp.argsort(self.readings)
        interval = jnp.floor(self.motions[order] / jnp.where(full, spacing, 1))
        repeated = jnp.concatenate(
            [jnp.zeros((1,), bool), interval[1:] == interval[:-1]]
        )
        dropped = jnp.zeros((capacity,), bool).at[order].set(repeated) & full
        return _Kept(
            jnp.where(dropped, jnp.inf, self.readings),
            self.motions,
            self.states,
            jnp.where(full, spacing, self.spacing),
            self.last_motion,
        )

    def put(self, wanted, reading, motion, state: FlowState) -> "_Kept":
        """With one more state, if it is wanted."""
        free = jnp.argmax(jnp.isinf(self.readings))
        slot = jnp.where(wanted, free, self.readings.shape[0])

        def write(buffer, x):
            return buffer.at[slot].set(x, mode="drop")

        return _Kept(
            write(self.readings, reading),
            write(self.motions, motion),
            jtu.tree_map(write, self.states, state),
            self.spacing,
            self.last_motion,
        )


def at_steps(
    engine: Engine,
    start: Position,
    end: Scalar,
    *,
    capacity: int,
    points_per_step: int,
    max_steps: int,
    limit: IntScalar | int,
    horizon: Scalar | None = None,
) -> Solved:
    """Keeps the solver's points, dense where the solution moves.

    Each accepted step offers `points_per_step` points of its dense output. All are
    kept while they fit into `capacity`; when they do not, only the first in each
    interval of μ = ∫‖dW‖/‖W‖ + 0.3 log(1 + u), u = log(1 + t - t0), and the intervals
    grow so that half of the capacity is free again. `horizon` is the value of u at the
    end, for a clock that does not tell the time (the progress meter wants it); `limit`
    of the steps, at most `max_steps`, need not be known before it runs.
    """
    steps = stretch_length(start.state.params, max_steps)
    # One stretch must fit into the half of the slots that thinning frees.
    steps = max(1, min(steps, (capacity - 2) // (2 * points_per_step)))
    number = jnp.arange(1, steps * points_per_step + 1)
    clock = engine.field.clock

    def motion_at(reading: Scalar, state: FlowState) -> Scalar:
        if state.motion is None:  # every step is kept
            return jnp.zeros_like(reading)
        if isinstance(clock, AbstractTimeClock):
            log_time = LogTime().reading(clock.log_elapsed(reading))
        else:
            assert state.log_time is not None
            log_time = state.log_time
        return state.motion + _TIME_WEIGHT * jnp.log1p(log_time)

    def keep(kept: _Kept, previous: Scalar, stretch: Stretch) -> _Kept:
        num_offered = stretch.counts.num_accepted_steps * points_per_step
        last = stretch.position.reading
        ends = jnp.concatenate([previous[None], stretch.step_ends])
        step, part = (number - 1) // points_per_step, (number - 1) % points_per_step + 1
        left, right = ends[step], ends[step + 1]
        fraction = part.astype(left.dtype) / points_per_step
        readings = jnp.where(
            part == points_per_step, right, left + fraction * (right - left)
        )
        offered = number <= num_offered
        readings = jnp.where(offered, jnp.clip(readings, previous, last), last)
        motions = jax.vmap(lambda c: motion_at(c, stretch.dense.evaluate(c)))(readings)
        last_motion = motion_at(last, stretch.position.state)
        motions = jnp.where(offered, motions, last_motion)
        count = jnp.sum(jnp.isfinite(kept.readings))
        full = count + jnp.sum(kept.wanted(motions) & offered) > capacity
        kept = kept.thinned(full, last_motion)
        wanted = kept.wanted(motions) & offered

        def offer(kept: _Kept, item):
            j, wanted, reading, motion = item
            # The end of the stretch is the solver's own state; inside, the end of a
            # step is read off the dense output, which is the same to rounding.
            state = jax.lax.cond(
                wanted & (j != num_offered),
                lambda: stretch.dense.evaluate(reading),
                lambda: stretch.position.state,
            )
            return kept.put(wanted, reading, motion, state), None

        kept, _ = jax.lax.scan(offer, kept, (number, wanted, readings, motions))
        return eqx.tree_at(lambda k: k.last_motion, kept, last_motion)

    meter_state = engine.progress.init()
    whole = end if horizon is None else horizon

    def body(carry):
        position, kept, counts, _, meter_state = carry
        stretch = run_stretch(engine, position, end, steps)
        kept = keep(kept, position.reading, stretch)
        now = stretch.position
        done = now.reading if now.state.log_time is None else now.state.log_time
        meter_state = engine.progress.step(meter_state, done / whole)
        counts = add(counts, stretch.counts)
        return stretch.position, kept, counts, stretch.result, meter_state

    def goes_on(carry):
        _, _, counts, result, _ = carry
        return unfinished(result, counts, steps, limit)

    empty = _Kept(
        readings=jnp.full((capacity,), jnp.inf, end.dtype),
        motions=jnp.zeros((capacity,), end.dtype),
        states=jtu.tree_map(
            lambda x: jnp.zeros((capacity, *x.shape), x.dtype), start.state
        ),
        spacing=jnp.zeros_like(end),
        last_motion=motion_at(start.reading, start.state),
    )
    first = (
        start,
        empty,
        no_counts(),
        dfx.RESULTS.max_steps_reached,
        meter_state,
    )
    position, kept, counts, result, meter_state = jax.lax.while_loop(
        goes_on, body, first
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
