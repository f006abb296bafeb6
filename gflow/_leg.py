"""One route's part of a solve."""

from typing import Any

import diffrax as dfx
import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float

from ._controller import Tolerances, relative_to_arrays
from ._derivatives import with_loops
from ._engine import (
    Engine,
    Position,
    Solved,
    at_times,
    gradients_per_step,
    interpolates_well,
    keeps_account,
)
from ._events import event, watched
from ._flow import FlowField, FlowState
from ._plan import Plan, Route, Schedule, Times
from ._points import at_steps
from ._problem import Problem
from ._progress import LogTimeMeter
from ._solution import RESULTS
from ._stretch import ARRIVED, at_times_between
from ._times import time_after
from ._types import BoolScalar, IntScalar, Params, Scalar
from .clocks import AbstractTimeClock, Physical
from .fields import GradientField
from .flows import AbstractMotion
from .solvers import BDF, Automatic, PrimalDual
from .solvers._filippov import Filippov
from .solvers._inner import inner_solver
from .solvers._switching import Switching
from .solvers._track import CROWDED, DISCONTINUOUS, STALLED


# About 200 points are kept by default: between half of this and all of it.
_CAPACITY = 300
_RELAY_CAPACITY = 150  # on each of its three legs
_POINTS_PER_STEP = 4
# Steps after which the first leg of a relay is looked at even if the data are not
# separated: it may be stability that limits them.
PATIENCE = 500


# Why a solve that follows kinks could not go on.
FAILURES: dict[int, Any] = {
    CROWDED: RESULTS.crowded,
    DISCONTINUOUS: RESULTS.discontinuous,
    STALLED: RESULTS.stalled,
}


class Leg(eqx.Module):
    """What one route did. Entries from `num_kept` on are padding."""

    log_elapsed: Float[Array, " times"]
    states: FlowState  # with a leading axis of times
    num_kept: IntScalar
    end: Position
    end_log_elapsed: Scalar
    stats: dict[str, Any]
    result: RESULTS


class Runner(eqx.Module):
    """A route, ready to run."""

    plan: Plan
    route: Route
    times: Times
    engine: Engine
    blank: FlowState
    watching: bool = eqx.field(static=True)

    def begin(self) -> Position:
        """The position at t0."""
        zero = jnp.zeros_like(self.times.end_reading)
        return self.engine.start(zero, self.times.end_reading, self.blank)

    def adapted(self, position: Position) -> Position:
        """An earlier solve's position, with the bookkeeping that this one asks for."""
        wanted = self._with_books(position.state, position.state.log_time)
        if wanted.work is not None and position.state.work is not None:
            # It goes on counting, as it would have without a stop.
            wanted = eqx.tree_at(lambda s: s.work, wanted, position.state.work)
        solver_state = self.engine.solver.init(
            self.engine.term,
            position.reading,
            position.controller_state.next_end,
            wanted,
            self.engine.args,
        )
        if _shape(solver_state) == _shape(position.solver_state):
            solver_state = position.solver_state
        controller_state = self.engine.controller.adapted(
            position.controller_state, wanted
        )
        return Position(position.reading, wanted, solver_state, controller_state)

    def taken_over(self, log_elapsed: Scalar, state: FlowState) -> Position:
        """The position where another route arrived; this one's clock tells the time."""
        clock = self.route.clock
        assert isinstance(clock, AbstractTimeClock)
        return self.engine.start(
            clock.reading(log_elapsed),
            self.times.end_reading,
            self.booked(state),
        )

    def booked(self, state: FlowState) -> FlowState:
        """The state with this route's bookkeeping, in a clock that tells the time."""
        return self._with_books(state, None)

    def _with_books(self, state: FlowState, log_time: Scalar | None) -> FlowState:
        def book(mine, theirs):
            return theirs if mine is None or theirs is None else mine

        return FlowState(
            params=state.params,
            dissipated=state.dissipated,
            fallen=state.fallen,
            path_length=book(state.path_length, self.blank.path_length),
            motion=book(state.motion, self.blank.motion),
            log_time=log_time,
            work=self.blank.work,
            pins=self._pins(state),
            cut=self.blank.cut,
            switching=self.blank.switching,
            crowding=self.blank.crowding,
        )

    def _pins(self, state: FlowState) -> Any:
        """The pinned kinks, if this route has as much room for them."""
        mine, blank = state.pins, self.blank.pins
        same = mine is not None and blank is not None and mine.shape == blank.shape
        return mine if same else blank

    def run(
        self,
        start: Position,
        active: BoolScalar | None = None,
        *,
        fresh: BoolScalar | bool,
        watching: BoolScalar | bool = True,
    ) -> Leg:
        """From a position to the end or, if not `active`, nowhere.

        `fresh`: whether this route's step and stage were prepared there anew.
        `watching`: whether it stops for the late phase, if it is the leg that may.
        """
        times = self.times
        end = times.end_reading
        if active is not None:
            # Rounding between clocks must not make it run backwards.
            further = active & (end > start.reading)
            end = jnp.where(further, end, start.reading)
        watching = jnp.asarray(watching) & self.watching
        solved = self._kept(start, end, watching)
        stats = _stats(self.plan, self.route, solved, start, watching, fresh)
        num_kept = solved.num_kept
        if active is not None:
            idle = 0 if self.plan.save == "given" else 1
            num_kept = jnp.where(active, num_kept, idle)
            stats = jtu.tree_map(lambda s: jnp.where(active, s, 0), stats)
        return Leg(
            log_elapsed=self.route.log_elapsed(solved.readings, solved.states),
            states=solved.states,
            num_kept=num_kept,
            end=solved.end,
            end_log_elapsed=self.route.log_elapsed(
                solved.end.reading, solved.end.state
            ),
            stats=stats,
            result=_result(solved, times, self.route.solver),
        )

    def _kept(self, start: Position, end: Scalar, watching: BoolScalar) -> Solved:
        plan, times, engine = self.plan, self.times, self.engine
        most = plan.max_steps
        limit: Any = most
        if self.watching:
            engine = eqx.tree_at(
                lambda e: e.event, engine, watched(engine.event, watching)
            )
            limit = jnp.where(watching, min(most, PATIENCE), most)
        # Diffrax saves up to where a step would have gone that a kink cut short.
        at_once = self.route.tells_time and not isinstance(engine.solver, Filippov)
        if plan.save == "given" and at_once and not self.watching:
            targets = jnp.clip(times.save_targets, start.reading, end)
            return at_times(engine, start, end, targets, max_steps=most)
        if plan.save == "given":
            targets = times.save_targets
            return at_times_between(
                engine, start, end, targets, max_steps=most, limit=limit
            )
        thin = plan.save == "adaptive"
        fine = thin and interpolates_well(self.route.solver)
        capacity = _RELAY_CAPACITY if plan.is_relay else _CAPACITY
        return at_steps(
            engine,
            start,
            end,
            capacity=capacity if thin else most,
            points_per_step=_POINTS_PER_STEP if fine else 1,
            max_steps=most,
            limit=limit,
            horizon=times.horizon,
        )


def runner(
    problem: Problem,
    params: Params,
    plan: Plan,
    schedule: Schedule,
    number: int,
    tolerances: Tolerances,
    log_unit: Scalar,
    resumed: Any,
    flow: AbstractMotion | None = None,
) -> Runner:
    """The runner of one of the plan's routes.

    The first of several stops where the data are separated. `resumed`: the position to
    go on from, if any.
    """
    route, times = plan.routes[number], schedule.times[number]
    watching = plan.is_relay and number == 0
    t0 = schedule.start
    field = FlowField(GradientField(problem), route.clock, log_unit, flow, t0)
    state = params
    if flow is not None:
        state = flow.start(params, time_after(t0, jnp.full_like(log_unit, -jnp.inf)))
    blank = field.start(
        state,
        path_length=any(one.needs_path for one in plan.observers.values()),
        motion=plan.save == "adaptive",
        work=keeps_account(route.solver),
        pins=_room_for_pins(route.solver),
        cut=isinstance(route.solver, Filippov),
        switching=isinstance(route.solver, Switching),
        # Of other flows the Jacobian's norm need not be its spectral radius.
        crowding=flow is None and isinstance(inner_solver(route.solver), dfx.Tsit5),
    )
    zero = jnp.zeros_like(times.end_reading)
    meter: dfx.AbstractProgressMeter = dfx.NoProgressMeter()
    if plan.progress:
        span = times.end_reading if isinstance(route.clock, Physical) else None
        meter = LogTimeMeter(dfx.TextProgressMeter(), span)
    engine = Engine(
        field=field,
        solver=with_loops(route.solver, plan.derivatives),
        controller=relative_to_arrays(
            tolerances,
            own_steps=isinstance(inner_solver(route.solver), (BDF, Automatic)),
            error_to_cut=isinstance(inner_solver(route.solver), PrimalDual),
        ),
        event=event(
            problem,
            plan.events,
            plan.degree,
            blank if resumed is None else resumed.state,
            times.horizon,
            separation=watching,
            field=field,
            frozen=getattr(route.solver, "frozen", None),
            reading=resumed.reading if isinstance(resumed, Position) else zero,
        ),
        progress=meter,
        derivatives=plan.derivatives,
    )
    return Runner(plan, route, times, engine, blank, watching)


def _room_for_pins(solver: Any) -> int | None:
    return solver.capacity if isinstance(solver, (Filippov, Switching)) else None


def _shape(tree: Any) -> Any:
    leaves, structure = jtu.tree_flatten(tree)
    return structure, [(jnp.shape(x), jnp.result_type(x)) for x in leaves]


def _result(solved: Solved, times: Times, solver: Any) -> RESULTS:
    result, log_time = solved.result, solved.end.state.log_time
    if times.horizon is not None and log_time is not None:
        slack = ARRIVED * jnp.finfo(log_time.dtype).eps
        arrived = log_time >= times.horizon * (1 - slack)
        arrived = arrived & (result == dfx.RESULTS.event_occurred)
        result = dfx.RESULTS.where(arrived, dfx.RESULTS.successful, result)
    stuck = result == dfx.RESULTS.dt_min_reached
    ours: Any = RESULTS.where(stuck, RESULTS.unresolved, RESULTS.promote(result))
    if isinstance(solver, Filippov):
        failure = solved.end.solver_state[1].failure
        for number, why in FAILURES.items():
            ours = RESULTS.where(stuck & (failure == number), why, ours)
    return ours


def _stats(
    plan: Plan,
    route: Route,
    solved: Solved,
    start: Position,
    watching: BoolScalar,
    fresh: BoolScalar | bool,
) -> dict[str, Any]:
    counts = solved.counts
    each = gradients_per_step(route.solver)
    spent, before = solved.end.controller_state.spent, start.controller_state.spent
    stats = {
        "num_steps": counts.num_steps,
        "num_accepted_steps": counts.num_accepted_steps,
        "num_rejected_steps": counts.num_steps - counts.num_accepted_steps,
    }
    whole = counts.num_steps.dtype
    # The first stage; and the choice of the first step, unless it is given.
    late = isinstance(inner_solver(route.solver), PrimalDual)
    first = 1 if late else 3
    first = jnp.where(fresh, jnp.asarray(first, whole), 0)
    # Events look at every step, with a gradient; separation with a third of one,
    # rounded up.
    looked = watching | bool(plan.events)
    looks = counts.num_steps * looked.astype(whole)
    if spent is not None:
        spent = jtu.tree_map(lambda a, b: (a - b).astype(whole), spent, before)
        gradients = spent.gradients + looks + first
        if late:
            stats["num_newton"] = spent.newton
        return stats | {"num_gradients": gradients}
    if each is None:
        return stats | {"num_gradients": jnp.full_like(counts.num_steps, -1)}
    return stats | {"num_gradients": counts.num_steps * each + looks + first}
