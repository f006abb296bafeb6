"""The compiled part of integrate(): solve, then observe at the saved states."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array

from ._controller import Tolerances
from ._engine import Position
from ._flow import log_unit, loss_in_units
from ._leg import Leg, runner
from ._norms import log_norm, unit
from ._plan import Plan, Schedule
from ._problem import Problem, dtype_of
from ._relay import joined, relay
from ._saved import masked, seen_at
from ._solution import RESULTS, Inclusion, Part, Resume, Solution, Switches
from ._times import log_time_after, time_after
from ._types import IntScalar, Params
from .fields import GradientField
from .flows import AbstractMotion
from .solvers import Automatic
from .solvers._filippov import Filippov
from .solvers._switch_log import SwitchLog
from .solvers._switching import Switching, SwitchingState


@eqx.filter_jit
def run(
    problem: Problem,
    params: Params,
    plan: Plan,
    schedule: Schedule,
    tolerances: Tolerances,
    resume: Resume | None,
    flow: AbstractMotion | None = None,
    flow_name: str = "gradient",
) -> tuple[Solution, IntScalar]:
    """The solution, with padding, and the number of its entries that are not."""
    gradient = GradientField(problem)
    if resume is None:
        # The weights at t0 are the model's, or what the flow makes of them.
        velocity = gradient(_first(flow, params, schedule))
        log_energy = log_unit(velocity)
        loss_start = loss_in_units(velocity.log_loss, velocity.loss, log_energy)
    else:
        log_energy, loss_start = resume.log_unit, resume.loss_start
    resumed = None if resume is None else resume.position

    def ready(number: int):
        return runner(
            problem,
            params,
            plan,
            schedule,
            number,
            tolerances,
            log_energy,
            resumed,
            flow,
        )

    if plan.is_relay:
        runners = (ready(0), ready(1), ready(2))
        legs, position, result = relay(runners, resumed, schedule.span)
    else:
        assert resumed is None or isinstance(resumed, Position)
        alone = ready(0)
        begin = alone.begin() if resumed is None else alone.adapted(resumed)
        legs = (alone.run(begin, fresh=resumed is None),)
        position, result = legs[0].end, legs[0].result
    track = joined(legs, given=plan.save == "given")
    states, weights, final = track.states, track.states.params, track.end_state.params
    if flow is not None:
        weights = jax.vmap(flow.weights)(
            weights, time_after(schedule.start, track.log_elapsed)
        )
        final = flow.weights(final, time_after(schedule.start, track.end_log_elapsed))
    if plan.save == "given":
        log_t = schedule.save_log_t
        reached = jnp.arange(log_t.shape[0]) < track.num_kept
        reached = reached & schedule.in_reach
    else:
        log_t = log_time_after(schedule.start, track.log_elapsed)
        reached = jnp.ones(log_t.shape, bool)
    path, solver = states.path_length, plan.routes[0].solver
    if path is not None:
        path = jnp.where(_has_direction(params, resume), path, jnp.nan)
    seen = seen_at(
        problem,
        weights,
        plan.observers,
        log_t=log_t,
        path_length=path,
        degree=plan.degree,
        frozen=getattr(solver, "frozen", None),
        pins=states.pins,
        start=_first(flow, params, schedule),
    )
    loss_now = loss_in_units(seen.log_loss, seen.loss, log_energy)
    defect = loss_start - loss_now - states.dissipated
    falling = None
    if states.fallen is not None:
        # The unit of energy is ℒ(t0), so its logarithm is where log ℒ began.
        fall = log_energy - seen.log_loss
        falling = (fall - states.fallen) / (1 + jnp.abs(fall))
    kept = (log_t, weights, seen, defect, falling)
    log_t, saved_params, seen, defect, falling = masked(kept, reached)
    blurred = ~schedule.precise & (result == RESULTS.successful)
    result = RESULTS.where(blurred, RESULTS.precision, result)
    result = RESULTS.where(_underflows(gradient, params), RESULTS.underflow, result)
    clock, solver_name = plan.routes[0].names
    solution = Solution(
        log_t=log_t,
        models=problem.model(saved_params),
        final=problem.model(final),
        log_loss=seen.log_loss,
        log_norm=seen.log_norm,
        predictions=seen.outputs,
        observed=seen.observed,
        energy_defect=defect,
        log_loss_defect=falling,
        log_t_final=log_time_after(schedule.start, track.end_log_elapsed),
        stats=_stats(legs, fresh=resume is None),
        result=result,
        resume=Resume(
            position,
            log_energy,
            loss_start,
            track.end_log_elapsed,
            clock,
            solver_name,
            flow_name,
        ),
        rtol=tolerances.rtol,
        parts=_parts(plan, schedule, legs),
        switches=_switches(schedule, plan, legs),
        inclusion=_inclusion(schedule, plan, legs, states.pins, reached),
        kinks=plan.kinks,
        clock=clock,
        solver=solver_name,
        flow=flow_name,
    )
    return solution, track.num_kept


def _first(flow: AbstractMotion | None, params: Params, schedule: Schedule) -> Params:
    """W(t0)."""
    if flow is None:
        return params
    before = jnp.full((), -jnp.inf, dtype_of(params))
    time = time_after(schedule.start, before)
    return flow.weights(flow.start(params, time), time)


def _switches(schedule: Schedule, plan: Plan, legs: tuple[Leg, ...]) -> Switches | None:
    """How a solve by `Automatic` changed its method."""
    route = plan.routes[0]
    if not isinstance(route.solver, Automatic):
        return None
    monitor = legs[0].end.solver_state.monitor
    elapsed = route.log_elapsed_at(monitor.readings, monitor.log_times)
    return Switches(
        log_t=log_time_after(schedule.start, elapsed),
        to_implicit=monitor.to_implicit,
        num_changes=monitor.num_changes,
        is_implicit=monitor.is_implicit,
        num_steps=monitor.num_steps,
        num_gradients=monitor.num_gradients,
    )


def _inclusion(
    schedule: Schedule, plan: Plan, legs: tuple[Leg, ...], pins: Any, reached: Any
) -> Inclusion | None:
    """What a solve that follows kinks has met."""
    solver = plan.routes[0].solver
    if not isinstance(solver, (Filippov, Switching)) or pins is None:
        return None
    logs = [_log_of(leg.end.solver_state) for leg in legs]
    # What a leg has met that did not run is only its start.
    ran = [jnp.asarray(True)] + [leg.stats["num_steps"] > 0 for leg in legs[1:]]
    whole = logs[0].kinks.dtype
    pins = jnp.round(pins).astype(whole)
    known = reached[:, None] & (pins < solver.frozen.total)

    def total(name: str) -> IntScalar:
        return sum(
            jnp.where(r, getattr(log, name), 0)
            for r, log in zip(ran, logs, strict=True)
        )  # pyright: ignore

    log_times = [
        jnp.where(
            r & (log.kinks >= 0),
            log_time_after(
                schedule.start, route.log_elapsed_at(log.readings, log.log_times)
            ),
            jnp.nan,
        )
        for r, route, log in zip(ran, plan.routes, logs, strict=True)
    ]
    log_t = jnp.concatenate(log_times)
    order = jnp.argsort(log_t)  # unused slots, whose time is NaN, come last
    unused = jnp.isnan(log_t)[order]

    def along(name: str, blank: Any) -> Array:
        every = jnp.concatenate([getattr(log, name) for log in logs])[order]
        return jnp.where(unused, blank, every)

    return Inclusion(
        pins=jnp.where(known, pins, -1),
        log_t=log_t[order],
        kink=along("kinks", -1),
        num_crossed=along("crossed", 0),
        num_pins=along("pins", 0),
        jump=along("jumps", jnp.nan),
        num_events=total("num_events"),
        num_crossings=total("num_crossings"),
        num_pinned=total("num_pinned"),
        num_released=total("num_released"),
        num_ambiguous=total("num_ambiguous"),
        num_unsure=total("num_unsure"),
        num_in_series=total("num_in_series"),
        branch=solver.branch,
        kinks_per_example=solver.frozen.num_kinks,
        kinks=solver.frozen.names,
    )


def _log_of(solver_state: Any) -> SwitchLog:
    """The log of a solver that follows kinks."""
    if isinstance(solver_state, SwitchingState):
        return solver_state.log
    track = solver_state[1]
    met = track.kinks >= 0
    return SwitchLog(
        num_events=track.num_events,
        num_crossings=track.num_events,
        num_pinned=jnp.zeros_like(track.num_events),
        num_released=jnp.zeros_like(track.num_events),
        num_ambiguous=track.num_ambiguous,
        num_unsure=track.num_unsure,
        num_in_series=track.num_in_series,
        readings=track.readings,
        log_times=track.log_times,
        kinks=track.kinks,
        pins=track.pins,
        crossed=met.astype(track.pins.dtype),
        jumps=jnp.full_like(track.readings, jnp.nan),
    )


def _has_direction(params: Params, resume: Resume | None) -> Any:
    # ζ is not defined from W = 0, which has no direction, nor from a point where an
    # earlier solve, that did not count it, stopped.
    if resume is not None and resume.position.state.path_length is None:
        return False
    return jnp.isfinite(log_norm(params))


def _underflows(gradient: GradientField, params: Params) -> Any:
    """Whether ∇ℒ is lost to underflow at the start, where it stands still for ever.

    Then it is (almost) zero there, but not with every array scaled to norm one. A true
    critical point, such as a network of dead neurons, is one at both.
    """
    # Room for the entries that are e^-8 of the norm.
    least = float(np.log(float(jnp.finfo(dtype_of(params)).tiny))) + 8.0

    def lost() -> Any:
        scaled = jtu.tree_map(unit, params)
        return jnp.isfinite(log_norm(gradient(scaled).direction))

    at_start = log_norm(gradient(params).direction)
    return jax.lax.cond(at_start < least, lost, lambda: jnp.asarray(False))


def _stats(legs: tuple[Leg, ...], *, fresh: bool) -> dict[str, Any]:
    """The sum over the legs."""
    stats: dict[str, Any] = {}
    for leg in legs:
        for name, count in leg.stats.items():
            stats[name] = stats[name] + count if name in stats else count
    # And one gradient for the unit of energy.
    total = stats["num_gradients"]
    unit = jnp.asarray(1 if fresh else 0, total.dtype)
    return stats | {"num_gradients": jnp.where(total >= 0, total + unit, -1)}


def _parts(plan: Plan, schedule: Schedule, legs: tuple[Leg, ...]) -> tuple[Part, ...]:
    def why(number: int, leg: Leg) -> Any:
        result: Any = leg.result
        if plan.is_relay and number == 0:
            # The only event there is.
            stopped = result == RESULTS.event_occurred
            result = RESULTS.where(stopped, RESULTS.separated, result)
        ran = leg.stats["num_steps"] > 0
        return RESULTS.where(ran, result, RESULTS.not_needed)

    return tuple(
        Part(
            *route.names,
            log_t_final=log_time_after(schedule.start, leg.end_log_elapsed),
            stats=leg.stats,
            result=why(number, leg),
        )
        for number, (route, leg) in enumerate(zip(plan.routes, legs, strict=True))
    )
