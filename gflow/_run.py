"""The compiled part of integrate(): solve, then observe at the saved states."""

from typing import Any, Literal

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np

from ._check import checked_times
from ._controller import relative_to_arrays
from ._engine import (
    Engine,
    Position,
    Solved,
    at_times,
    gradients_per_step,
    interpolates_well,
)
from ._events import event
from ._flow import FlowField, FlowState, log_unit, loss_in_units
from ._norms import log_norm, unit
from ._points import at_steps
from ._problem import Problem, dtype_of
from ._progress import LogTimeMeter
from ._saved import masked, seen_at
from ._solution import RESULTS, Resume, Solution
from ._stretch import ARRIVED, at_times_of_state
from ._times import Exp, log_elapsed, log_of, log_time_after
from ._types import IntScalar, Params, Scalar
from .clocks import AbstractClock, AbstractTimeClock, LogTime, Physical
from .fields import GradientField
from .observe import Observer
from .solvers import PrimalDual


# About 200 points are kept by default: between half of this and all of it.
_CAPACITY = 300
_POINTS_PER_STEP = 4


class Plan(eqx.Module):
    """What is fixed when the solve is compiled."""

    clock: AbstractClock
    solver: dfx.AbstractSolver
    observers: dict[str, Observer]
    events: tuple[Any, ...] = eqx.field(static=True)
    save: Literal["given", "adaptive", "steps"] = eqx.field(static=True)
    degree: float | None = eqx.field(static=True)
    max_steps: int = eqx.field(static=True)
    progress: bool = eqx.field(static=True)
    kinks: str = eqx.field(static=True)

    @property
    def tells_time(self) -> bool:
        """Whether the clock's reading is a function of the time."""
        return isinstance(self.clock, AbstractTimeClock)

    def log_elapsed(self, readings: Any, states: FlowState) -> Any:
        """log(t - t0), from the clock or, if it does not tell the time, the state."""
        if isinstance(self.clock, AbstractTimeClock):
            return self.clock.log_elapsed(readings)
        assert states.log_time is not None
        return LogTime().log_elapsed(states.log_time)


class Times(eqx.Module):
    """Times in the parameters' dtype; `start` is a number or an `Exp`."""

    start: Any
    end_reading: Any
    horizon: Any  # u = log(1 + t1 - t0), if the clock does not tell the time
    save_targets: Any  # readings or, if the clock does not tell the time, values of u
    save_log_t: Any


def cast_times(save_at: Any, t0: Any, t1: Any, clock: Any, save: str, dtype: Any):
    """The times, formed in float64 where they are known and cast last."""

    def cast(x):
        return jnp.asarray(x, dtype)

    tells_time = isinstance(clock, AbstractTimeClock)
    teller = clock if tells_time else LogTime()
    end = cast(teller.reading(log_elapsed(t1, t0)))
    targets = log_t = None
    if save == "given":
        times = checked_times(save_at, t0, t1, dtype)
        log_t = cast(log_of(times))
        targets = jnp.minimum(cast(teller.reading(log_elapsed(times, t0))), end)
    return Times(
        start=Exp(cast(t0.log)) if isinstance(t0, Exp) else cast(t0),
        # Without a reading to stop at, the solve stops at an event.
        end_reading=end if tells_time else cast(jnp.finfo(dtype).max / 8),
        horizon=None if tells_time else end,
        save_targets=targets,
        save_log_t=log_t,
    )


@eqx.filter_jit
def run(
    problem: Problem,
    params: Params,
    plan: Plan,
    times: Times,
    rtol: Scalar,
    atol: Scalar,
    resume: Resume | None,
) -> tuple[Solution, IntScalar]:
    """The solution, with padding, and the number of its entries that are not."""
    flow = GradientField(problem)
    if resume is None:
        velocity = flow(params)
        log_energy = log_unit(velocity)
        loss_start = loss_in_units(velocity.log_loss, velocity.loss, log_energy)
    else:
        log_energy, loss_start = resume.log_unit, resume.loss_start
    engine, blank = _engine(
        problem, params, plan, times, rtol, atol, log_energy, resume
    )
    if resume is None:
        start = engine.start(
            jnp.zeros_like(times.end_reading), times.end_reading, blank
        )
    else:
        start = _adapted(resume.position, blank, engine)
    solved = _kept(engine, start, times, plan)
    states = solved.states
    if plan.save == "given":
        log_t = times.save_log_t
        reached = jnp.arange(log_t.shape[0]) < solved.num_kept
    else:
        log_elapsed = plan.log_elapsed(solved.readings, states)
        log_t = log_time_after(times.start, log_elapsed)
        reached = jnp.ones(log_t.shape, bool)
    path = states.path_length
    if path is not None:
        path = jnp.where(_has_direction(params, resume), path, jnp.nan)
    seen = seen_at(
        problem,
        states.params,
        plan.observers,
        log_t=log_t,
        path_length=path,
        degree=plan.degree,
    )
    loss_now = loss_in_units(seen.log_loss, seen.loss, log_energy)
    defect = loss_start - loss_now - states.dissipated
    kept = (log_t, states.params, seen, defect)
    log_t, saved_params, seen, defect = masked(kept, reached)
    end = solved.end
    end_log_elapsed = plan.log_elapsed(end.reading, end.state)
    solution = Solution(
        log_t=log_t,
        models=problem.model(saved_params),
        final=problem.model(end.state.params),
        log_loss=seen.log_loss,
        log_norm=seen.log_norm,
        predictions=seen.outputs,
        observed=seen.observed,
        energy_defect=defect,
        log_t_final=log_time_after(times.start, end_log_elapsed),
        stats=_stats(plan, solved, fresh=resume is None),
        result=RESULTS.where(
            _underflows(flow, params), RESULTS.underflow, _result(solved, times)
        ),
        resume=Resume(
            end,
            log_energy,
            loss_start,
            type(plan.clock).__name__,
            type(plan.solver).__name__,
        ),
        rtol=rtol,
        kinks=plan.kinks,
        clock=type(plan.clock).__name__,
        solver=type(plan.solver).__name__,
    )
    return solution, solved.num_kept


def _engine(
    problem: Problem,
    params: Params,
    plan: Plan,
    times: Times,
    rtol: Scalar,
    atol: Scalar,
    log_energy: Scalar,
    resume: Resume | None,
) -> tuple[Engine, FlowState]:
    field = FlowField(GradientField(problem), plan.clock, log_energy)
    blank = field.start(
        params,
        path_length=any(one.needs_path for one in plan.observers.values()),
        motion=plan.save == "adaptive",
        work=isinstance(plan.solver, PrimalDual),
    )
    start = blank if resume is None else resume.position.state
    meter: dfx.AbstractProgressMeter = dfx.NoProgressMeter()
    if plan.progress:
        span = times.end_reading if isinstance(plan.clock, Physical) else None
        meter = LogTimeMeter(dfx.TextProgressMeter(), span)
    engine = Engine(
        field=field,
        solver=plan.solver,
        controller=relative_to_arrays(rtol, atol),
        event=event(problem, plan.events, plan.degree, start, times.horizon),
        progress=meter,
    )
    return engine, blank


def _adapted(position: Position, blank: FlowState, engine: Engine) -> Position:
    """An earlier solve's position, with the bookkeeping that this one asks for."""
    state = position.state

    def book(mine, theirs):
        return theirs if mine is None or theirs is None else mine

    wanted = FlowState(
        params=state.params,
        dissipated=state.dissipated,
        path_length=book(state.path_length, blank.path_length),
        motion=book(state.motion, blank.motion),
        log_time=state.log_time,
        work=blank.work,
    )
    solver_state = engine.solver.init(
        engine.term, position.reading, position.controller_state.next_end, wanted, engine.args
    )
    if _shape(solver_state) == _shape(position.solver_state):
        solver_state = position.solver_state
    return Position(position.reading, wanted, solver_state, position.controller_state)


def _shape(tree: Any) -> Any:
    leaves, structure = jtu.tree_flatten(tree)
    return structure, [(jnp.shape(x), jnp.result_type(x)) for x in leaves]


def _has_direction(params: Params, resume: Resume | None) -> Any:
    # ζ is not defined from W = 0, which has no direction, nor from a point where an
    # earlier solve, that did not count it, stopped.
    if resume is not None and resume.position.state.path_length is None:
        return False
    return jnp.isfinite(log_norm(params))


def _kept(engine: Engine, start: Position, times: Times, plan: Plan) -> Solved:
    end, max_steps = times.end_reading, plan.max_steps
    if plan.save == "given" and plan.tells_time:
        return at_times(engine, start, end, times.save_targets, max_steps=max_steps)
    if plan.save == "given":
        return at_times_of_state(
            engine, start, end, times.save_targets, max_steps=max_steps
        )
    thin = plan.save == "adaptive"
    fine = thin and interpolates_well(plan.solver)
    return at_steps(
        engine,
        start,
        end,
        capacity=_CAPACITY if thin else max_steps,
        points_per_step=_POINTS_PER_STEP if fine else 1,
        max_steps=max_steps,
        horizon=times.horizon,
    )


def _underflows(flow: GradientField, params: Params) -> Any:
    """Whether ∇ℒ is lost to underflow at the start, where it stands still for ever.

    Then it is (almost) zero there, but not with every array scaled to norm one. A true
    critical point, such as a network of dead neurons, is one at both.
    """
    # Room for the entries that are e^-8 of the norm.
    least = float(np.log(float(jnp.finfo(dtype_of(params)).tiny))) + 8.0

    def lost() -> Any:
        scaled = jtu.tree_map(unit, params)
        return jnp.isfinite(log_norm(flow(scaled).direction))

    at_start = log_norm(flow(params).direction)
    return jax.lax.cond(at_start < least, lost, lambda: jnp.asarray(False))


def _result(solved: Solved, times: Times) -> RESULTS:
    result, log_time = solved.result, solved.end.state.log_time
    if times.horizon is not None and log_time is not None:
        slack = ARRIVED * jnp.finfo(log_time.dtype).eps
        arrived = log_time >= times.horizon * (1 - slack)
        arrived = arrived & (result == dfx.RESULTS.event_occurred)
        result = dfx.RESULTS.where(arrived, dfx.RESULTS.successful, result)
    return RESULTS.where(
        result == dfx.RESULTS.dt_min_reached,
        RESULTS.unresolved,
        RESULTS.promote(result),
    )


def _stats(plan: Plan, solved: Solved, *, fresh: bool) -> dict[str, Any]:
    counts = solved.counts
    each = gradients_per_step(plan.solver)
    spent = solved.end.controller_state.spent
    if spent is not None:
        num_gradients = spent.gradients.astype(counts.num_steps.dtype)
    elif each is None:
        num_gradients = jnp.full_like(counts.num_steps, -1)
    else:
        # One for the unit of energy, two to choose the first step, one for the first
        # stage; each event looks at every step.
        first = 4 if fresh else 0
        each = each + (1 if plan.events else 0)
        num_gradients = first + counts.num_steps * each
    newton = {} if spent is None else {"num_newton": spent.newton.astype(counts.num_steps.dtype)}
    return newton | {
        "num_steps": counts.num_steps,
        "num_accepted_steps": counts.num_accepted_steps,
        "num_rejected_steps": counts.num_steps - counts.num_accepted_steps,
        "num_gradients": num_gradients,
    }
