"""Where a solve that follows kinks is, and the events on its way."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .._flow import FlowState
from .._frozen import Frozen
from .._inclusion import Pattern
from .._resolve import Resolution
from .._types import BoolScalar, IntScalar, Scalar


_STALLS = 50  # events in a row with hardly any time between them:
_STALLED = 1e4  # roundings of the reading, or this part of the step
_STALLED_PART = 2.0**-29
LOGGED = 512  # events that are kept

CROWDED, DISCONTINUOUS, STALLED = 1, 2, 3


class Track(eqx.Module):
    """Where the solve is, and the events on the way."""

    pattern: Pattern
    jumped: BoolScalar  # whether the pattern has just changed
    stalls: IntScalar
    doubtful: BoolScalar  # whether it may have left kinks since the last event
    failure: IntScalar  # 0, or one of the above
    num_events: IntScalar
    num_ambiguous: IntScalar
    num_unsure: IntScalar
    num_in_series: IntScalar
    # Of the first events: when, which kink, how many pins after it, whether ambiguous.
    readings: Float[Array, " events"]
    log_times: Float[Array, " events"]
    kinks: Int[Array, " events"]
    pins: Int[Array, " events"]
    ambiguous: Bool[Array, " events"]


class Turn(eqx.Module):
    """The pattern on which a flow goes on from a point."""

    after: Pattern
    found: Resolution
    event: BoolScalar  # whether the one before had ceased to fit
    due: BoolScalar  # whether it was looked for
    lingered: BoolScalar  # whether that was due before
    turned: BoolScalar  # whether it is another one


def in_series(frozen: Frozen, pattern: Pattern) -> BoolScalar:
    """Whether two kinks of one example are pinned that may depend on each other."""
    if not frozen.in_series:
        return jnp.asarray(False)
    return jnp.any(jnp.sum(pattern.pinned, axis=1) > 1)


def failure_of(found: Resolution) -> IntScalar:
    """Why the solve cannot go on with it; 0 if it can."""
    crowded = jnp.where(found.crowded, CROWDED, 0)
    return jnp.where(found.jumps & ~found.crowded, DISCONTINUOUS, crowded)


def log_time_of(state: FlowState) -> Scalar:
    """u where the state carries it, else NaN."""
    blank = jnp.full_like(state.dissipated, jnp.nan)
    return blank if state.log_time is None else state.log_time


def started(
    frozen: Frozen, pattern: Pattern, found: Resolution, reading: Any, state: FlowState
) -> Track:
    """The track at the start of a solve."""
    dtype = jnp.result_type(state.dissipated)
    whole = jnp.asarray(0)
    ambiguous = found.ambiguous
    return Track(
        pattern=pattern,
        jumped=jnp.asarray(True),
        stalls=whole,
        doubtful=jnp.asarray(False),
        failure=failure_of(found),
        num_events=ambiguous.astype(whole.dtype),
        num_ambiguous=ambiguous.astype(whole.dtype),
        num_unsure=(~found.consistent).astype(whole.dtype),
        num_in_series=in_series(frozen, pattern).astype(whole.dtype),
        readings=jnp.full(LOGGED, jnp.nan, dtype).at[0].set(reading),
        log_times=jnp.full(LOGGED, jnp.nan, dtype).at[0].set(log_time_of(state)),
        kinks=jnp.full(LOGGED, -1, whole.dtype).at[0].set(found.index[0]),
        pins=jnp.zeros(LOGGED, whole.dtype).at[0].set(pattern.num_pins),
        ambiguous=jnp.zeros(LOGGED, bool).at[0].set(ambiguous),
    )


def logged(
    track: Track,
    pattern: Pattern,
    found: Resolution,
    event: BoolScalar,
    kink: IntScalar,
    series: BoolScalar,
    late: BoolScalar,
    doubtful: BoolScalar,
    start: Any,
    end: Any,
    length: Any,
    log_time: Scalar,
) -> Track:
    """The track after a step, or a part of it; with the event, if it ended in one.

    `late`: whether the flow may have left kinks any time since the start of it.
    `doubtful`: whether it may leave kinks at the end of it, which could not be told.
    `length`: of the whole step, as the reading.
    """
    eps = jnp.finfo(end.dtype).eps
    hardly = jnp.maximum(_STALLED * eps * jnp.abs(end), _STALLED_PART * length)
    still = event & (end - start <= hardly)
    stalls = jnp.where(still, track.stalls + 1, 0)
    failure = jnp.where(stalls > _STALLS, STALLED, failure_of(found))
    failure = jnp.where(event, failure, 0)
    slot = jnp.where(event, track.num_events, LOGGED)

    def write(buffer: Array, x: Any) -> Array:
        return buffer.at[slot].set(jnp.asarray(x, buffer.dtype), mode="drop")

    def counted(count: IntScalar, condition: BoolScalar) -> IntScalar:
        return count + (event & condition).astype(count.dtype)

    # Once, until the next event.
    unsure = counted(track.num_unsure, ~found.consistent | (late & ~still))
    unsure = unsure + (doubtful & ~track.doubtful).astype(unsure.dtype)

    return Track(
        pattern=pattern,
        jumped=event,
        stalls=stalls,
        doubtful=~event & (doubtful | track.doubtful),
        failure=jnp.where(track.failure != 0, track.failure, failure),
        num_events=counted(track.num_events, jnp.asarray(True)),
        num_ambiguous=counted(track.num_ambiguous, found.ambiguous),
        num_unsure=unsure,
        num_in_series=counted(track.num_in_series, series),
        readings=write(track.readings, end),
        log_times=write(track.log_times, log_time),
        kinks=write(track.kinks, kink),
        pins=write(track.pins, pattern.num_pins),
        ambiguous=write(track.ambiguous, found.ambiguous),
    )
