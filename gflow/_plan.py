"""What a solve is: fixed when it is compiled (Plan), or not (Times)."""

from typing import Any, Literal

import diffrax as dfx
import equinox as eqx
import jax.numpy as jnp

from ._check import checked_times
from ._derivatives import Derivatives
from ._flow import FlowState
from ._times import Exp, library, log_elapsed, log_of
from .clocks import AbstractClock, AbstractTimeClock, LogTime
from .observe import Observer
from .solvers._inner import inner_solver


# Relative error of the examples' weights, of about eps log t, at which a late solve
# stops. (In float32 at log t = 3e4, where it is 4e-3, margins still agree with float64
# to 1e-6.)
_BLUR = 1e-2


class Route(eqx.Module):
    """A solver and the clock it steps in."""

    clock: AbstractClock
    solver: dfx.AbstractSolver

    @property
    def tells_time(self) -> bool:
        """Whether the clock's reading is a function of the time."""
        return isinstance(self.clock, AbstractTimeClock)

    def log_elapsed(self, readings: Any, states: FlowState) -> Any:
        """log(t - t0), from the clock or, if it does not tell the time, the state."""
        return self.log_elapsed_at(readings, states.log_time)

    def log_elapsed_at(self, readings: Any, log_times: Any) -> Any:
        """The same from u = log(1 + t - t0), if the clock does not tell the time."""
        if isinstance(self.clock, AbstractTimeClock):
            return self.clock.log_elapsed(readings)
        return LogTime().log_elapsed(log_times)

    @property
    def names(self) -> tuple[str, str]:
        return type(self.clock).__name__, type(inner_solver(self.solver)).__name__


class Plan(eqx.Module):
    """What is fixed when the solve is compiled."""

    # One, or three: until the data are separated, the late phase, and what goes on from
    # there if the late phase does not pay or fails.
    routes: tuple[Route, ...]
    observers: dict[str, Observer]
    events: tuple[Any, ...] = eqx.field(static=True)
    save: Literal["given", "adaptive", "steps"] = eqx.field(static=True)
    degree: float | None = eqx.field(static=True)
    max_steps: int = eqx.field(static=True)
    progress: bool = eqx.field(static=True)
    kinks: str = eqx.field(static=True)
    derivatives: Derivatives = eqx.field(static=True)

    @property
    def is_relay(self) -> bool:
        return len(self.routes) > 1


class Times(eqx.Module):
    """Times on the clock of one route, in the parameters' dtype."""

    end_reading: Any
    horizon: Any  # u = log(1 + t1 - t0), if the clock does not tell the time
    save_targets: Any  # readings or, if the clock does not tell the time, values of u


class Schedule(eqx.Module):
    """When the solve starts, ends and saves; `start` is a number or an `Exp`."""

    start: Any
    times: tuple[Times, ...]  # one for each route
    save_log_t: Any
    save_log_elapsed: Any
    in_reach: Any  # which save times come before the end that is solved to
    span: Any  # u = log(1 + t1 - t0), of the end that is solved to
    precise: Any  # whether that is t1, not where rounding makes the solve stop


def resolved(dtype: Any) -> float:
    """log t up to which rounding leaves the examples' weights q_i alone.

    α grows like log t, so that q_i = e^(α - p_i) is known to about eps log t.
    """
    return _BLUR / float(jnp.finfo(dtype).eps)


def scheduled(
    save_at: Any, t0: Any, t1: Any, plan: Plan, tailed: bool, dtype: Any
) -> Schedule:
    """The schedule, formed in float64 where times are known and cast last."""

    def cast(x):
        return jnp.asarray(x, dtype)

    end = log_elapsed(t1, t0)
    precise = jnp.asarray(True)
    if tailed:
        latest = resolved(dtype)
        precise = jnp.asarray(end <= latest)
        end = library(end).minimum(end, latest)
    elapsed = log_t = in_reach = None
    if plan.save == "given":
        saved = checked_times(save_at, t0, t1, dtype)
        log_t = cast(log_of(saved))
        elapsed = log_elapsed(saved, t0)
        # All that were asked for, unless rounding stops the solve.
        in_reach = precise | (cast(elapsed) <= cast(end))

    def on(route: Route) -> Times:
        clock = route.clock
        teller = clock if isinstance(clock, AbstractTimeClock) else LogTime()
        last = cast(teller.reading(end))
        targets = None
        if elapsed is not None:
            targets = jnp.minimum(cast(teller.reading(elapsed)), last)
        return Times(
            # Without a reading to stop at, the solve stops at an event.
            end_reading=last if route.tells_time else cast(jnp.finfo(dtype).max / 8),
            horizon=None if route.tells_time else last,
            save_targets=targets,
        )

    return Schedule(
        start=Exp(cast(t0.log)) if isinstance(t0, Exp) else cast(t0),
        times=tuple(on(route) for route in plan.routes),
        save_log_t=log_t,
        save_log_elapsed=None if elapsed is None else cast(elapsed),
        in_reach=in_reach,
        span=cast(LogTime().reading(end)),
        precise=precise,
    )
