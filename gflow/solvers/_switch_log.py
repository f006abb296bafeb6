"""What a solve that steps across kinks has met."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._flow import FlowState
from .._sliding import Sides
from .._types import BoolScalar, IntScalar, Scalar


LOGGED = 128  # steps across kinks that are kept: those with the largest jumps


def log_time_of(state: FlowState) -> Scalar:
    """u = log(1 + t - t0) where the state carries it, else NaN."""
    blank = jnp.full_like(state.dissipated, jnp.nan)
    return blank if state.log_time is None else state.log_time


class SwitchLog(eqx.Module):
    """Counts, and the steps with the largest jumps of the velocity."""

    num_events: IntScalar  # steps in which a kink was crossed, pinned or left
    num_crossings: IntScalar
    num_pinned: IntScalar
    num_released: IntScalar
    num_ambiguous: IntScalar
    num_unsure: IntScalar
    num_in_series: IntScalar
    readings: Float[Array, " events"]
    log_times: Float[Array, " events"]
    kinks: Int[Array, " events"]
    pins: Int[Array, " events"]
    crossed: Int[Array, " events"]
    jumps: Float[Array, " events"]

    @staticmethod
    def started(
        dtype: Any, sides: Sides, ambiguous: BoolScalar, unsure: BoolScalar
    ) -> "SwitchLog":
        """Nothing met but the kinks at the start."""
        whole = jnp.asarray(0)
        blank = jnp.full((LOGGED,), jnp.nan, dtype)
        none = jnp.zeros((LOGGED,), whole.dtype)
        return SwitchLog(
            num_events=whole,
            num_crossings=whole,
            num_pinned=sides.num_pins.astype(whole.dtype),
            num_released=whole,
            num_ambiguous=ambiguous.astype(whole.dtype),
            num_unsure=unsure.astype(whole.dtype),
            num_in_series=whole,
            readings=blank,
            log_times=blank,
            kinks=none - 1,
            pins=none,
            crossed=none,
            jumps=jnp.zeros((LOGGED,), dtype),
        )

    def after(
        self,
        reading: Any,
        log_time: Scalar,
        crossed: IntScalar,
        pinned: IntScalar,
        released: IntScalar,
        kink: IntScalar,
        sides: Sides,
        jump: Scalar,
        in_series: bool,
    ) -> "SwitchLog":
        """The log after a step."""
        event = (crossed + pinned + released) > 0
        whole = self.num_events.dtype
        # In the first free slot or, where there is none, that of the smallest jump.
        free = self.num_events < LOGGED
        least = jnp.argmin(self.jumps)
        slot = jnp.where(free, self.num_events, least)
        kept = event & (free | (jump > self.jumps[least]))
        slot = jnp.where(kept, slot, LOGGED)

        def put(buffer: Array, x: Any) -> Array:
            return buffer.at[slot].set(jnp.asarray(x, buffer.dtype), mode="drop")

        series = jnp.zeros((), bool)
        if in_series:
            series = jnp.any(jnp.sum(sides.pinned, axis=1) > 1)
        return SwitchLog(
            num_events=self.num_events + event.astype(whole),
            num_crossings=self.num_crossings + crossed.astype(whole),
            num_pinned=self.num_pinned + pinned.astype(whole),
            num_released=self.num_released + released.astype(whole),
            num_ambiguous=self.num_ambiguous,
            num_unsure=self.num_unsure,
            num_in_series=self.num_in_series + (event & series).astype(whole),
            readings=put(self.readings, reading),
            log_times=put(self.log_times, log_time),
            kinks=put(self.kinks, kink),
            pins=put(self.pins, sides.num_pins),
            crossed=put(self.crossed, crossed),
            jumps=put(self.jumps, jump),
        )
