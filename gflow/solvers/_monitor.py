"""When an explicit solver should give way to an implicit one, and when to go back."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .._types import BoolScalar, IntScalar, Scalar


# h ρ of Tsit5's longest stable steps on the negative real axis is 3.5. Long before that
# BDF, whose steps cost a sixth, is the cheaper one: where accuracy limits both its
# steps are about a sixth as long, and what decays does not limit it (diagonal network,
# rtol 1e-7: 8,600 gradients, 12,200 with 1).
_LIMITED = 0.25
# Gradients that an explicit step of stability costs for 1/ρ of time: six for 3.5/ρ.
_EXPLICIT_COST = 6 / 3.5
# What the implicit method may cost more than that. Where accuracy limits both, explicit
# steps are shorter than those of stability too, and neither is the cheaper one: on
# two-layer and deep linear networks going back early took up to twice the gradients.
_RELUCTANCE = 20.0
# Steps (less those of which the contrary is true) after which the method is changed,
# the first time; each time after that, twice as many: two methods that do as well as
# each other must not take turns.
_PATIENCE = 6
# And so many times more where the implicit one, whose first steps are short, is left:
# it passes through hundreds of them, where accuracy limits both, at less cost than
# explicit ones (deep linear, rtol 1e-8: 1,230 gradients with 64, 2,040 with 32).
_IMPLICIT = 64
# A multiple of the known curvature beyond this is not believed.
_MOST_HIDDEN = 100.0
LOGGED = 16  # changes that are kept


class Monitor(eqx.Module):
    """What is watched from step to step, and what came of it."""

    is_implicit: BoolScalar
    streak: IntScalar
    patience: IntScalar
    # ρ when the explicit method gave way, until the curvature is known; then zero.
    radius: Scalar
    # By how much ρ exceeded that curvature's largest eigenvalue: at least one.
    hidden: Scalar
    num_changes: IntScalar
    # Of the first changes: the clock's reading, u if the state carries it, and to what.
    readings: Float[Array, " changes"]
    log_times: Float[Array, " changes"]
    to_implicit: Bool[Array, " changes"]
    # Accepted steps and their gradients: explicit, implicit.
    num_steps: Int[Array, " 2"]
    num_gradients: Int[Array, " 2"]

    def watched(
        self,
        radius: Scalar,
        curvature: Scalar,
        h: Scalar,
        gradients: IntScalar,
        growing: BoolScalar,
        end: Scalar,
        log_time: Scalar,
    ) -> "Monitor":
        """After a step of length h that is kept.

        `growing`: whether it was longer than the one before, as first steps are;
        `radius`: ρ as the explicit method saw it; `curvature`: the largest eigenvalue
        that the implicit one knows of; `gradients`: what the step cost.
        """
        found = self.is_implicit & (self.radius > 0) & (curvature > 0)
        ratio = self.radius / jnp.where(found, curvature, 1)
        hidden = jnp.where(found, jnp.clip(ratio, 1, _MOST_HIDDEN), self.hidden)
        unknown = (self.radius > 0) & (curvature == 0)
        rate = jnp.where(unknown, self.radius, hidden * curvature)
        cost = gradients.astype(h.dtype) / h
        slow = cost > _RELUCTANCE * _EXPLICIT_COST * rate
        limited = h * radius > _LIMITED
        against = jnp.where(self.is_implicit, slow, limited)
        change = jnp.where(against, jnp.where(growing, 0, 1), -1)
        streak = jnp.maximum(self.streak + change, 0)
        changes = streak >= self.patience * jnp.where(self.is_implicit, _IMPLICIT, 1)
        to_implicit = changes & ~self.is_implicit
        slot = jnp.where(changes, self.num_changes, LOGGED)
        one = jnp.where(jnp.arange(2) == self.is_implicit.astype(int), 1, 0)
        return Monitor(
            is_implicit=self.is_implicit ^ changes,
            streak=jnp.where(changes, 0, streak).astype(self.streak.dtype),
            patience=jnp.where(changes, 2 * self.patience, self.patience),
            radius=jnp.where(to_implicit, radius, jnp.where(found, 0, self.radius)),
            hidden=jnp.where(to_implicit, 1, hidden),
            num_changes=self.num_changes + changes.astype(self.num_changes.dtype),
            readings=self.readings.at[slot].set(end, mode="drop"),
            log_times=self.log_times.at[slot].set(log_time, mode="drop"),
            to_implicit=self.to_implicit.at[slot].set(to_implicit, mode="drop"),
            num_steps=self.num_steps + one.astype(self.num_steps.dtype),
            num_gradients=self.num_gradients
            + (one * gradients).astype(self.num_gradients.dtype),
        )


def started(is_implicit: Any, like: Scalar) -> Monitor:
    """At the start of a solve."""
    whole = jnp.asarray(0)
    blank = jnp.full((LOGGED,), jnp.nan, like.dtype)
    return Monitor(
        is_implicit=jnp.asarray(is_implicit),
        streak=whole,
        patience=whole + _PATIENCE,
        radius=jnp.zeros_like(like),
        hidden=jnp.ones_like(like),
        num_changes=whole,
        readings=blank,
        log_times=blank,
        to_implicit=jnp.zeros((LOGGED,), bool),
        num_steps=jnp.zeros((2,), whole.dtype),
        num_gradients=jnp.zeros((2,), whole.dtype),
    )
