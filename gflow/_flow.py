"""The differential equation that Diffrax solves: field × clock, and bookkeeping."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float

from ._inclusion import InclusionField
from ._norms import inner, log_norm, log_norm_at_once, square_norm, unit
from ._problem import AbstractProblem
from ._sliding import SlidingField
from ._times import time_after
from ._types import Params, Scalar
from .clocks import AbstractClock, AbstractTimeClock, LogTime
from .fields import GradientField, Velocity
from .flows import AbstractMotion


class Work(eqx.Module):
    """What solving has cost, as floats: they travel with the state."""

    newton: Scalar
    gradients: Scalar

    def __add__(self, other: "Work") -> "Work":
        return jtu.tree_map(jnp.add, self, other)


def no_work(dtype: Any) -> Work:
    """Nothing spent."""
    zero = jnp.zeros((), dtype)
    return Work(zero, zero)


class SwitchingError(eqx.Module):
    """What a step-size controller must know of a step across kinks."""

    size: Scalar  # of the error that this adds, in units of what is tolerated
    shorter: Scalar  # the part of the step to try next if that is above one
    growth: Scalar  # the most by which the next step may be longer; 0 for any


class FlowState(eqx.Module):
    """What is integrated."""

    # W; of flows other than the gradient flow, their state.
    params: Params
    # -∫⟨∇ℒ, dW/dt⟩ dt, ∫‖dW/dt‖² dt of the gradient flow, in units of e^log_unit (see
    # FlowField).
    dissipated: Scalar
    # The same over ℒ, by which log ℒ falls, if the loss has an exponential tail.
    fallen: Scalar | None
    # ζ = ∫‖d(W/‖W‖)‖, if observed.
    path_length: Scalar | None
    # ∫‖dW‖/‖W‖, if points are kept where the solution moves.
    motion: Scalar | None
    # u = log(1 + t - t0), if the clock does not tell the time.
    log_time: Scalar | None
    # What a solver that counts for itself spent so far on the steps it kept.
    work: Work | None = None
    # The numbers of the kinks that the flow slides along, if there are any, as floats:
    # they travel with the state.
    pins: Float[Array, " K"] | None = None
    # Where the last step was cut short by a kink, or its end.
    cut: Scalar | None = None
    # Zero; in the error of a step across kinks, what came of that.
    switching: "SwitchingError | None" = None
    # Zero; in the error of an explicit step, how near that comes to the limit of
    # stability (see `solvers/_stability.py`). The last of all.
    crowding: Scalar | None = None


class FlowField(eqx.Module):
    """d(state)/dc in a clock c.

    `log_unit` is the logarithm of the unit in which energy is counted, |ℒ(W(t0))|: a
    flow that starts at a loss of e^-5000 still has a measurable energy balance.
    """

    field: GradientField | SlidingField
    clock: AbstractClock
    log_unit: Scalar
    # None for the gradient flow, and t0, which other flows may ask for.
    flow: AbstractMotion | None = None
    start_time: Any = 0.0

    def __call__(self, reading: Scalar, state: FlowState, args: Any) -> FlowState:
        if self.flow is not None:
            return self._other(self.flow, reading, state)
        # A solver that follows kinks holds the slopes on their sides fixed.
        field: Any = args.field if isinstance(args, FlowField) else self.field
        if isinstance(args, InclusionField):
            field = args
        return self.moved(reading, state, field(state.params))[0]

    def moved(
        self,
        reading: Scalar,
        state: FlowState,
        velocity: Velocity,
        log_rate: Scalar | None = None,
    ) -> tuple[FlowState, Scalar]:
        """d(state)/dc with this velocity, and log(dt/dc), which may be given."""
        if log_rate is None:
            log_rate = self.clock.log_rate(
                reading, state.params, state.log_time, velocity
            )
        speed = jnp.exp(velocity.log_speed + log_rate)

        def power(log_energy: Scalar) -> Scalar:
            # ‖dW/dt‖² dt/dc in these units. Scaled before it is squared, so that it is
            # a number wherever the result is one.
            log_scale = velocity.log_speed + (log_rate - log_energy) / 2
            return square_norm(velocity.direction, jnp.exp(log_scale))

        log_energy = self.log_unit if state.fallen is None else velocity.log_loss
        spent = power(log_energy)
        dissipated, fallen = spent, None
        if state.fallen is not None:
            fallen = spent
            dissipated = fallen * jnp.exp(velocity.log_loss - self.log_unit)
        moved = self._booked(
            state,
            jtu.tree_map(lambda d: speed * d, velocity.direction),
            state.params,
            velocity,
            log_rate,
            dissipated,
            fallen,
            # ‖dW/dc‖.
            lambda: 0.5 * (_log(spent) + log_energy + log_rate),
        )
        return moved, log_rate

    def _other(
        self, flow: AbstractMotion, reading: Scalar, state: FlowState
    ) -> FlowState:
        problem: Any = self.field.problem
        time = self.time(reading, state)
        at = flow.motion(problem, state.params, time)
        velocity = at.velocity
        log_rate = self.clock.log_rate(reading, at.weights, state.log_time, velocity)
        speed = jnp.exp(at.log_speed + log_rate)
        # dℒ/dt, which may have either sign.
        cosine = inner(unit(at.descent), unit(velocity.direction))
        sizes = log_norm(at.descent) + log_norm(velocity.direction)
        log_power = at.log_slope + velocity.log_speed + sizes + log_rate
        fallen = None
        if state.fallen is not None:
            fallen = cosine * jnp.exp(log_power - velocity.log_loss)
        return self._booked(
            state,
            jtu.tree_map(lambda d: speed * d, at.direction),
            at.weights,
            velocity,
            log_rate,
            cosine * jnp.exp(log_power - self.log_unit),
            fallen,
            lambda: velocity.log_speed + log_rate + log_norm(velocity.direction),
        )

    def log_elapsed(self, reading: Scalar, state: FlowState) -> Scalar:
        """log(t - t0)."""
        if isinstance(self.clock, AbstractTimeClock):
            dtype = self.log_unit.dtype
            return self.clock.log_elapsed(jnp.asarray(reading, dtype))
        assert state.log_time is not None
        return LogTime().log_elapsed(state.log_time)

    def time(self, reading: Scalar, state: FlowState) -> Scalar:
        """t, as a number."""
        return time_after(self.start_time, self.log_elapsed(reading, state))

    def weights(self, reading: Scalar, state: FlowState) -> Params:
        """W."""
        if self.flow is None:
            return state.params
        return self.flow.weights(state.params, self.time(reading, state))

    def _booked(
        self,
        state: FlowState,
        moved: Params,
        weights: Params,
        velocity: Velocity,
        log_rate: Scalar,
        dissipated: Scalar,
        fallen: Scalar | None,
        log_moved: Callable[[], Scalar],
    ) -> FlowState:
        """With the bookkeeping of -dℒ/dc, in its two units, and of `velocity`."""
        path, motion, log_time = None, None, None
        if state.motion is not None:
            # At W = 0 any motion is infinite; counting starts after it.
            log_w = log_norm_at_once(weights)
            log_w = jnp.where(jnp.isneginf(log_w), jnp.inf, log_w)
            motion = jnp.exp(log_moved() - log_w)
        if state.path_length is not None:
            turning = log_turning(weights, velocity.direction)
            path = jnp.exp(velocity.log_speed + log_rate + turning)
        if state.log_time is not None:
            log_time = jnp.exp(log_rate - state.log_time)
        return FlowState(
            params=moved,
            dissipated=dissipated,
            fallen=fallen,
            path_length=path,
            motion=motion,
            log_time=log_time,
            work=jtu.tree_map(jnp.zeros_like, state.work),
            pins=jtu.tree_map(jnp.zeros_like, state.pins),
            cut=jtu.tree_map(jnp.zeros_like, state.cut),
            switching=jtu.tree_map(jnp.zeros_like, state.switching),
            crowding=jtu.tree_map(jnp.zeros_like, state.crowding),
        )

    def derivative(
        self,
        params: Params,
        moved: Params,
        log_rate: Scalar,
        problem: AbstractProblem | None = None,
    ) -> FlowState:
        """d(state)/dc where dW/dc = `moved` is known, in a clock that tells the time.

        Takes a forward pass, of the problem given if it is another. All of the
        bookkeeping is in it, kept or not.
        """
        given = self.field.problem if problem is None else problem
        log_loss = given.log_loss(params)
        log_size = log_norm(moved)
        return FlowState(
            params=moved,
            dissipated=jnp.exp(2 * log_size - log_rate - self.log_unit),
            fallen=jnp.exp(2 * log_size - log_rate - log_loss),
            path_length=jnp.exp(log_turning(params, moved)),
            motion=jnp.exp(log_size - log_norm(params)),
            log_time=None,
        )

    def start(
        self,
        params: Params,
        *,
        path_length: bool,
        motion: bool,
        work: bool = False,
        pins: int | None = None,
        cut: bool = False,
        switching: bool = False,
        crowding: bool = False,
    ) -> FlowState:
        """The state at t0; with room for so many pinned kinks, if it has any."""
        zero = jnp.zeros_like(self.log_unit)
        return FlowState(
            params=params,
            dissipated=zero,
            fallen=zero if self.field.problem.is_tailed else None,
            path_length=zero if path_length else None,
            motion=zero if motion else None,
            log_time=None if isinstance(self.clock, AbstractTimeClock) else zero,
            work=no_work(zero.dtype) if work else None,
            pins=None if pins is None else jnp.zeros((pins,), zero.dtype),
            cut=zero if cut else None,
            switching=SwitchingError(zero, zero, zero) if switching else None,
            crowding=zero if crowding else None,
        )


def _log(x: Scalar) -> Scalar:
    # -inf at zero, with a zero (not NaN) derivative there.
    return jnp.where(x > 0, jnp.log(jnp.where(x > 0, x, 1)), -jnp.inf)


def log_turning(params: Params, direction: Params) -> Scalar:
    r"""$\log(\|v_\perp\|/\|W\|)$, the log of the speed of W/‖W‖ when dW/dt = v.

    $v_\perp = v - \langle v, \hat W\rangle\hat W$ (Ji & Telgarsky 2020, Section 3).
    -inf at W = 0, which has no direction.
    """
    w, v = unit(params), unit(direction)
    radial = inner(v, w)
    across = log_norm(jtu.tree_map(lambda a, b: a - radial * b, v, w))
    size = log_norm(params)
    turning = across + log_norm(direction) - size
    return jnp.where(jnp.isneginf(size), -jnp.inf, turning)


def log_unit(velocity: Velocity) -> Scalar:
    """log |ℒ|, or 0 where ℒ is zero or has no logarithm."""
    log = jnp.where(
        jnp.isnan(velocity.log_loss),
        jnp.log(jnp.abs(velocity.loss)),
        velocity.log_loss,
    )
    return jax.lax.stop_gradient(jnp.where(jnp.isfinite(log), log, 0))


def loss_in_units(
    log_loss: Float[Array, "*times"], loss: Float[Array, "*times"], log_unit: Scalar
) -> Float[Array, "*times"]:
    """ℒ/e^log_unit, without leaving the log domain unless ℒ is negative."""
    return jnp.where(
        jnp.isnan(log_loss), loss * jnp.exp(-log_unit), jnp.exp(log_loss - log_unit)
    )
