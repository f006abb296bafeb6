"""Choosing the clock and the solver, and checking the user's own choices."""

from typing import Any, Literal

import diffrax as dfx
import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np

from ._check import Degree
from ._controller import Tolerances
from ._frozen import Frozen
from ._norms import array_norm, log_norm
from ._plan import Route
from ._problem import Problem, dtype_of
from ._relay import Baton, may_pay
from ._sliding import on_kink, room_for
from ._solution import Resume, Solution
from ._stiffness import Stiffness, affords_curvature, stiffness
from ._times import Exp, is_concrete, log_elapsed
from ._types import Params
from .clocks import (
    AbstractClock,
    AbstractTimeClock,
    Alpha,
    EFolds,
    LogLogTime,
    LogTime,
    Physical,
)
from .fields import GradientField
from .solvers import BDF, RKC3, Automatic, PrimalDual
from .solvers._filippov import Filippov
from .solvers._inner import inner_solver
from .solvers._rkc import AbstractRKC
from .solvers._switching import Switching
from .solvers._tolerance import Tolerance
from .solvers._tsit5 import Tsit5


# Kinks that a flow may be on at once; a quarter of it where each costs a long row.
_PINS = 64
_FEW_PARAMETERS = 20_000
# Kinks that a step by events may go across; they take room for four states each.
_EVENTS = 8
# Kinks, of all examples and of each, up to which they are followed from event to event;
# and of all where the start is on a kink, or its values are not known: a neuron at zero
# may leave at any time, which only events tell.
_FEW_KINKS, _FEW_EACH, _FEW_AT_START = 200, 32, 1000
# Kinks that may be pinned at once by a solver that steps across kinks, and the numbers
# that their normals may take.
_MOST_PINS, _NUMBERS = 256, 8_000_000
_MAX_STEPS = 1_000_000
_MAX_STEPS_KEPT = 4096
# Arrays of this norm and more do not rest; below, T is looked at (see `_rests`). The
# steps of an escape that are to be resolved are e^-14 ~ 1e-6 of its duration.
_SMALL = 0.1
_DIGITS = 14.0
# Newton's last correction in a stage, in units of rtol. Corrections converge
# quadratically, so what is left after it is far smaller.
_NEWTON = 0.1


def check_clock(clock: Any, problem: Problem) -> None:
    """ValueError unless it is a clock, and one for this loss."""
    if not isinstance(clock, AbstractClock):
        raise ValueError(
            f"clock={clock!r} is not a clock; use an instance from gflow.clocks, such "
            "as gflow.clocks.LogTime()."
        )
    if isinstance(clock, Alpha) and not problem.is_tailed:
        raise ValueError(
            f"the Alpha clock needs a loss with an exponential tail, and "
            f"{type(problem.loss).__name__} has none; use gflow.clocks.Physical() or "
            "gflow.clocks.LogTime()."
        )


def can_locate(dtype: Any) -> bool:
    """Whether Diffrax can find the time of an event in this dtype.

    Its search wants JAX's default floating dtype: with 64 bits enabled it fails to
    trace for float32 (Diffrax 0.7.2, `lambda: 0.0` as a branch in `_call_real`).
    """
    return jnp.dtype(dtype) == jnp.result_type(float)


def check_events(events: tuple[Any, ...], route: Route, dtype: Any) -> None:
    """ValueError where events, or the end of the solve, could not be located."""
    clock = route.clock
    if events and isinstance(inner_solver(route.solver), PrimalDual):
        raise ValueError(
            "events are located on the solver's dense output, which is far from "
            "accurate over the long steps of PrimalDual; leave solver out, or use "
            "clock=gflow.clocks.LogTime() instead."
        )
    if can_locate(dtype) or not (events or not isinstance(clock, AbstractTimeClock)):
        return
    what = "events" if events else f"the clock {type(clock).__name__}"
    raise ValueError(
        f"{what} cannot be used with {jnp.dtype(dtype).name} parameters while JAX's "
        f"default is {jnp.result_type(float).name}; use parameters of that dtype, or "
        "disable jax_enable_x64."
    )


def checked_clock(
    clock: Any,
    solver: Any,
    problem: Problem,
    params: Params,
    t0: Any,
    t1: Any,
    dtype: Any,
) -> AbstractClock:
    """The user's clock if it will do, or the one chosen for the problem."""
    if clock is None and isinstance(solver, PrimalDual):
        clock = LogLogTime()
    if clock is None and can_locate(dtype) and _rests(problem, params, dtype):
        clock = EFolds()
    if clock is None:
        clock = usual_clock(problem, t0, t1)
    check_clock(clock, problem)
    if isinstance(clock, Physical) and is_concrete((t0, t1)):
        largest = float(np.log(float(jnp.finfo(dtype).max)))
        span = float(np.asarray(log_elapsed(t1, t0)))
        if span > largest:
            raise ValueError(
                f"t1 - t0 = e^{span:g} is beyond the largest "
                f"{jnp.dtype(dtype).name} (e^{largest:.0f}), which the Physical clock "
                "steps in; use gflow.clocks.LogTime()."
            )
    return clock


def usual_clock(problem: Problem, t0: Any, t1: Any) -> AbstractClock:
    """The clock of a flow that does not rest."""
    logarithmic = isinstance(t0, Exp) or isinstance(t1, Exp)
    return LogTime() if problem.is_tailed or logarithmic else Physical()


def _rests(problem: Problem, params: Params, dtype) -> bool:
    """Whether the start is so small that its escape is unresolved in time.

    In a time T = ‖W‖/‖dW/dt‖ the weights first change by their own size; if they then
    go on within a time of order 1, that is a relative precision of 1/T in time.
    """
    if not is_concrete((problem, params)):
        return False
    sizes = [float(array_norm(leaf)) for leaf in jtu.tree_leaves(params)]
    if not 0 < min(sizes) < _SMALL:
        return False
    resolved = -float(jnp.log(jnp.finfo(dtype).eps)) - _DIGITS
    return float(_log_rest(problem, params)) > resolved


@eqx.filter_jit
def _log_rest(problem: Problem, params: Params):
    # log(‖W‖/‖dW/dt‖).
    velocity = GradientField(problem)(params)
    speed = velocity.log_speed + log_norm(velocity.direction)
    return log_norm(params) - speed


def chosen_routes(
    clock: Any,
    solver: Any,
    problem: Problem,
    params: Params,
    degree: Degree,
    t0: Any,
    t1: Any,
    tolerances: Tolerances,
    *,
    free: bool,
    resumed: Resume | None,
    smooth: bool,
    frozen: Frozen | None,
    branch: str,
    events: bool,
    in_reverse: bool,
) -> tuple[Route, ...]:
    """The user's clock and solver, or those for the problem.

    Where neither was asked for and the span is long: an explicit solver to separation,
    the late phase's, and an explicit one if that should fail. `resumed`: the solve to
    go on with. `frozen`: the problem whose kinks are to be followed. `events`: whether
    one may end the solve. `in_reverse`: whether the solve is differentiated in reverse
    mode, for which only explicit methods that step to the end at once will do.
    """
    relayed = resumed is not None and isinstance(resumed.position, Baton)
    dtype = dtype_of(params)
    free = free and clock is None and solver is None
    clock = checked_clock(clock, solver, problem, params, t0, t1, dtype)
    if isinstance(solver, PrimalDual):
        _check_primal_dual(problem, clock)
    span = log_elapsed(t1, t0)
    relays = free and problem.is_tailed and not in_reverse
    relays = relays and _may_relay(degree, span, relayed)
    if solver is None and not relays and smooth and not in_reverse:
        solver = _suited(problem, params, clock, span, resumed, events)
    chosen = checked_solver(solver, degree, dtype, tolerances)
    if frozen is not None:
        chosen = _following(chosen, frozen, params, branch, tolerances, in_reverse)
    elif type(chosen) is dfx.Tsit5:
        chosen = Tsit5()
    first = Route(clock, chosen)
    if not relays:
        return (first,)
    late: Any = _completed(PrimalDual(), degree, dtype, tolerances.rtol)
    if frozen is not None:
        late = _following(late, frozen, params, branch, tolerances, in_reverse)
    return (first, Route(LogLogTime(), late), Route(LogTime(), first.solver))


def _may_relay(degree: Degree, span: Any, relayed: bool) -> bool:
    """Whether the late phase has a solver of its own, and may come."""
    if not relayed and is_concrete(span) and not may_pay(span):
        return False
    try:
        return degree.needed_by("the late phase") > 0
    except ValueError:
        return False


def _suited(
    problem: Problem,
    params: Params,
    clock: AbstractClock,
    span: Any,
    resumed: Any,
    events: bool,
) -> dfx.AbstractSolver:
    """The solver for a flow without kinks: by its stiffness, if that can be known."""
    if resumed is not None:
        known = (BDF(), RKC3(), Automatic())
        return {type(s).__name__: s for s in known}.get(resumed.solver, dfx.Tsit5())
    # (Where they are traced, the solve may be differentiated in reverse, which the
    # others cannot be; and compiling two methods has to pay.)
    if (
        not isinstance(clock, AbstractTimeClock)
        or not is_concrete((problem, params, span))
        or np.ndim(span)
    ):
        return dfx.Tsit5()
    found = stiffness(problem, params, span)
    if found is Stiffness.NONE:
        return dfx.Tsit5()
    if affords_curvature(problem, params):
        # (An event may come so early that λT of the whole span never matters.)
        implicit = found is Stiffness.STIFF and not events
        return Automatic(begins_implicit=jnp.asarray(implicit))
    return RKC3() if found is Stiffness.STIFF else dfx.Tsit5()


def _following(
    solver: dfx.AbstractSolver,
    frozen: Frozen,
    params: Params,
    branch: str,
    held: Tolerances,
    in_reverse: bool,
) -> Filippov | Switching:
    """The solver, made to follow the kinks."""
    if not isinstance(solver, (dfx.AbstractERK, AbstractRKC, PrimalDual)):
        raise ValueError(
            "kinks='auto' follows the model's kinks with explicit Runge-Kutta methods, "
            "stabilised ones, and gflow.solvers.PrimalDual, not with "
            f"{type(solver).__name__}; leave solver out, or pass kinks='autodiff', "
            "which is the gradient flow only away from kinks."
        )
    size = sum(leaf.size for leaf in jtu.tree_leaves(params))
    if isinstance(solver, PrimalDual):
        few = _PINS if size <= _FEW_PARAMETERS else _PINS // 4
        return Filippov(solver, frozen, branch, min(frozen.total, few))
    # (No more than there are parameters can be independent.)
    room = room_for(min(_MOST_PINS, size, max(16, _NUMBERS // max(size, 1))), frozen)
    tolerance = Tolerance(held.rtol, held.atol, held.by_rows)
    resolves = not is_concrete((frozen, params)) or bool(on_kink(frozen, params))
    few = frozen.total <= _FEW_KINKS and frozen.num_kinks <= _FEW_EACH
    few = few or (resolves and frozen.total <= _FEW_AT_START)
    if few and not in_reverse and isinstance(solver, dfx.AbstractERK):
        room = min(frozen.total, _PINS if size <= _FEW_PARAMETERS else _PINS // 4)
        most = _EVENTS if size <= _FEW_PARAMETERS else 1
        return Filippov(solver, frozen, branch, room, tolerance, most)
    return Switching(solver, frozen, tolerance, branch, room, resolves)


def _check_primal_dual(problem: Problem, clock: AbstractClock) -> None:
    if not problem.is_tailed:
        raise ValueError(
            f"the solver PrimalDual needs a loss with an exponential tail, and "
            f"{type(problem.loss).__name__} has none; use another solver."
        )
    if not isinstance(clock, LogLogTime):
        raise ValueError(
            f"the solver PrimalDual runs in gflow.clocks.LogLogTime(), not in "
            f"{type(clock).__name__}; leave clock out."
        )


def checked_solver(
    solver: Any, degree: Degree, dtype: Any, tolerances: Tolerances
) -> dfx.AbstractSolver:
    """The user's solver, completed, or the default."""
    if solver is None:
        return dfx.Tsit5()
    if isinstance(solver, type) and issubclass(solver, dfx.AbstractSolver):
        raise ValueError(
            f"solver={solver.__name__} is a class; pass an instance, "
            f"{solver.__name__}()."
        )
    if not isinstance(solver, dfx.AbstractAdaptiveSolver):
        raise ValueError(
            f"solver={solver!r} is not a Diffrax solver with an error estimate, "
            "so its error cannot be controlled; use, say, diffrax.Tsit5(). For "
            "gradient descent, which is Euler's method, use gflow.descend; for fixed "
            "steps drive Diffrax yourself with gflow.vector_field."
        )
    if isinstance(solver, PrimalDual):
        return _completed(solver, degree, dtype, tolerances.rtol)
    if isinstance(solver, BDF):
        return BDF(tolerances.rtol, tolerances.atol, tolerances.by_rows)
    if isinstance(solver, Automatic):
        return Automatic(
            tolerances.rtol,
            tolerances.atol,
            tolerances.by_rows,
            solver.begins_implicit,
        )
    return solver


def _completed(
    solver: PrimalDual, measured: Degree, dtype: Any, rtol: Any
) -> PrimalDual:
    degree, tolerance = solver.degree, solver.tolerance
    if degree is None:
        degree = measured.needed_by("the solver PrimalDual")
    if tolerance is None:
        tolerance = jnp.maximum(
            _NEWTON * jnp.asarray(rtol, dtype), 16 * jnp.finfo(dtype).eps
        )
    return PrimalDual(degree, solver.support, tolerance)


def save_mode(save_at) -> Literal["given", "adaptive", "steps"]:
    if save_at is None:
        return "adaptive"
    if isinstance(save_at, str):
        if save_at != "steps":
            raise ValueError(
                f"save_at={save_at!r} is not known; use 'steps', an array of times, "
                "gflow.exp(array) or None."
            )
        return "steps"
    return "given"


def checked_max_steps(max_steps, save) -> int:
    if max_steps is None:
        return _MAX_STEPS_KEPT if save == "steps" else _MAX_STEPS
    if isinstance(max_steps, bool) or not isinstance(max_steps, (int, np.integer)):
        raise ValueError(
            f"max_steps={max_steps!r} is not an integer; give a positive one, or None."
        )
    if max_steps < 1:
        raise ValueError(
            f"max_steps={max_steps} is not positive; give at least 1, or None."
        )
    return int(max_steps)


def as_resume(resume: Any) -> Resume | None:
    """What to resume from, if anything; ValueError if it is no such thing."""
    if isinstance(resume, Solution):
        resume = resume.resume
        if resume is None:
            raise ValueError(
                "resume: that solution does not hold a state to resume; only those of "
                "gflow.integrate do."
            )
    if resume is None or isinstance(resume, Resume):
        return resume
    raise ValueError(
        f"resume={resume!r} is not a gflow.Solution nor a solution's .resume."
    )


def check_resume(
    resume: Resume | None, state: Any, routes: tuple[Route, ...], flow: str
) -> None:
    """ValueError unless a solve by these routes can go on from it.

    `state`: what is integrated, the parameters or another flow's state.
    """
    if resume is None:
        return
    if resume.flow != flow:
        raise ValueError(
            f"resume: that solve was of the flow {resume.flow} and this one would be "
            f"of {flow}; pass the same flow."
        )
    clock, solver = routes[0].names
    for what, where, theirs, mine in (
        ("clock", "gflow.clocks.", resume.clock, clock),
        ("solver", "", resume.solver, solver),
    ):
        if theirs != mine:
            raise ValueError(
                f"resume: that solve ran with {what} {theirs} and this one would with "
                f"{mine}; pass {what}={where}{theirs}()."
            )
    if isinstance(resume.position, Baton) and len(routes) == 1:
        raise ValueError(
            "resume: that solve chose its clock and solver as it went; leave clock, "
            "solver and events out, so that this one can go on with them."
        )
    theirs, mine = _shapes(resume.position.state.params), _shapes(state)
    if theirs != mine:
        raise ValueError(
            f"resume: the parameters of that solve have shapes {theirs} and the "
            f"model's have {mine}; use the model that the solve started from."
        )


def _shapes(state: Any) -> list[tuple[tuple[int, ...], str]]:
    return [(leaf.shape, str(leaf.dtype)) for leaf in jtu.tree_leaves(state)]
