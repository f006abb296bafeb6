"""integrate(): choose, cast, call Diffrax, observe."""

import warnings
from typing import Any, Literal

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np

from . import _solve as solve
from ._check import (
    check_tolerances,
    checked_problem,
    checked_span,
    checked_times,
    degree_for,
)
from ._controller import relative_to_arrays
from ._events import checked_events, event
from ._flow import FlowField, log_unit, loss_in_units
from ._kinks import has_kinks
from ._norms import array_norm, log_norm
from ._problem import Problem, dtype_of
from ._progress import LogTimeMeter
from ._solution import RESULTS, Resume, Solution
from ._times import Exp, is_concrete, log_elapsed, log_of, log_time_after
from ._types import Params
from .clocks import (
    AbstractClock,
    AbstractTimeClock,
    Alpha,
    EFolds,
    LogTime,
    Physical,
)
from .fields import GradientField
from .observe import KNOWN, Observer, named, observe_at


# About 200 points are kept by default: between half of this and all of it.
_CAPACITY = 256
_POINTS_PER_STEP = 4
_MAX_STEPS = 1_000_000
_MAX_STEPS_KEPT = 4096
# Arrays of this norm and more do not rest; below, T is looked at (see `_rests`). The
# steps of an escape that are to be resolved are e^-14 ~ 1e-6 of its duration.
_SMALL = 0.1
_DIGITS = 14.0
# An energy defect this many times the tolerance cannot be the accumulated error of an
# accurate solve; chattering across kinks gives 1e4 to 1e8 times.
_DEFECT = 1e3


class _Plan(eqx.Module):
    # What is fixed when the solve is compiled.
    clock: AbstractClock
    solver: dfx.AbstractSolver
    observers: dict[str, Observer]
    events: tuple[Any, ...] = eqx.field(static=True)
    save: Literal["given", "adaptive", "steps"] = eqx.field(static=True)
    degree: float | None = eqx.field(static=True)
    max_steps: int = eqx.field(static=True)
    progress: bool = eqx.field(static=True)
    kinks: str = eqx.field(static=True)


class _Times(eqx.Module):
    # Times in the parameters' dtype. `start` is a number or an Exp.
    start: Any
    end_reading: Any
    end_log_elapsed: Any
    save_readings: Any
    save_log_elapsed: Any
    save_log_t: Any


def integrate(
    model: Any,
    data: Any,
    loss: Any,
    t_span: Any,
    *,
    save_at: Any = None,
    observe: Any = (),
    clock: AbstractClock | None = None,
    solver: dfx.AbstractSolver | None = None,
    rtol: Any = 1e-6,
    atol: Any = 0.0,
    max_steps: int | None = None,
    events: Any = None,
    progress: bool = False,
    throw: bool = True,
    kinks: Literal["auto", "autodiff"] = "auto",
    branch: Literal["steepest", "stay"] = "steepest",
    filter_spec: Any = None,
    resume: Solution | Resume | None = None,
) -> Solution:
    r"""Integrates the gradient flow of a network's loss.

    $$\frac{dW}{dt} = -\nabla\mathcal L(W),\qquad
      \mathcal L(W) = \sum_i \ell(\Phi(x_i; W), y_i)$$

    from $W(t_0)$ = the model's parameters. The unit of time is that of this equation:
    no learning rate, and the loss a *sum* over the examples (`reduction="mean"` in the
    loss divides by n, which makes the flow n times slower). Loss, gradient and time
    are carried as logarithms.

    **Arguments:**

    - `model`: any callable PyTree (such as an Equinox module) taking **one** example;
        its floating point array leaves are the parameters W. A model of the whole batch
        is wrapped in [`gflow.nn.Batched`][].
    - `data`: `(x, y)`, x with leading axis n; labels -1 and +1 for `Exponential` and
        `Logistic`, integer classes for `CrossEntropy` and `MulticlassExponential`,
        targets shaped like the outputs for `Square`.
    - `loss`: one of [`gflow.losses`][], or any function `loss(prediction, y) -> scalar`
        of one example.
    - `t_span`: `(t0, t1)`, floats or `gflow.exp(v)` for t = e^v.
    - `save_at`: None for about 200 of the solver's own points, dense where the solution
        moves; an array of times or `gflow.exp(array)`; or `"steps"` for every step.
    - `observe`: observers from [`gflow.observe`][] or their names, any function of the
        observed state, a sequence of these or a dict from names to these.
    - `clock`: one of [`gflow.clocks`][]. None takes `LogTime` for losses with an
        exponential tail and wherever a time is given as `gflow.exp`, else `Physical`;
        and `EFolds` from weights so small that the time they rest hides the time
        they need to escape (if their values are known, not traced).
    - `solver`: any Diffrax solver with an error estimate; None takes Tsit5.
    - `rtol`, `atol`: the local error $e_k$ of each parameter array $W_k$ is held to
        $\|e_k\| \le$ atol + rtol $\|W_k\|$.
    - `max_steps`: None for 1,000,000 (4,096 with `save_at="steps"`, which keeps all).
    - `events`: functions of the observed state; the solve stops where one changes sign
        (a number) or after the step on which it becomes true (a boolean). Each step
        then costs one gradient more.
    - `progress`: print how much of log(1 + t - t0) is done.
    - `throw`: raise if the solve fails; else the solution's `result` says so, and it
        keeps what was computed.
    - `kinks`: "auto" or "autodiff": at present networks with kinks are differentiated
        automatically under both. The solution's `energy_defect` measures what that
        costs, and a warning is given where it is far above the tolerance.
    - `branch`: which continuation to take where the inclusion has several; without
        effect while kinks are differentiated automatically.
    - `filter_spec`: which leaves are trained, as in `equinox.partition`; None trains
        every floating point array outside of [`gflow.nn.Fixed`][].
    - `resume`: an earlier solution of the same problem, solver and clock that stopped
        before `t1` (or its `.resume`); the solve goes on from there, bit for bit.

    **Returns:**

    A [`gflow.Solution`][].

    **Raises:**

    `ValueError`, before anything is compiled, for arguments that cannot be right;
    `RuntimeError` (an Equinox runtime error) if the solve fails and `throw`.

    !!! Example

        >>> import gflow, jax.numpy as jnp
        >>> model = gflow.nn.Linear(2, "scalar", key=jax.random.key(0))
        >>> x, y = jnp.array([[1.0, 2.0], [2.0, 1.0]]), jnp.array([1.0, -1.0])
        >>> loss = gflow.losses.Exponential()
        >>> sol = gflow.integrate(model, (x, y), loss, (0.0, gflow.exp(100.0)))
        >>> bool(sol.log_loss[-1] < -90)
        True

    ??? cite "Reference"

        Ji & Telgarsky (2020), "Directional convergence and alignment in deep
        learning", eq. (2.1).
    """
    problem, params = checked_problem(model, data, loss, filter_spec)
    dtype = dtype_of(params)
    t0, t1 = checked_span(t_span)
    check_tolerances(rtol, atol, dtype)
    if kinks not in ("auto", "autodiff"):
        raise ValueError(f"kinks={kinks!r} is not known; use 'auto' or 'autodiff'.")
    if branch not in ("steepest", "stay"):
        raise ValueError(f"branch={branch!r} is not known; use 'steepest' or 'stay'.")
    observers = named(observe, KNOWN)
    clock = _checked_clock(clock, problem, params, t0, t1, dtype)
    solver = _checked_solver(solver)
    save = _save_mode(save_at)
    if save == "given" and not isinstance(clock, AbstractTimeClock):
        if not solve.interpolates_well(solver):
            raise ValueError(
                f"{type(clock).__name__} does not tell the time, so given save times "
                "are found on the solver's dense output, and that of "
                f"{type(solver).__name__} is less accurate than its steps; use an "
                "explicit solver such as diffrax.Tsit5(), another clock, or "
                "save_at=None."
            )
    plan = _Plan(
        clock=clock,
        solver=solver,
        observers=observers,
        events=checked_events(events),
        save=save,
        degree=degree_for(observers, problem, params),
        max_steps=_checked_max_steps(max_steps, save),
        progress=bool(progress),
        kinks="autodiff" if has_kinks(problem, params) else "none",
    )
    times = _times(save_at, t0, t1, clock, save, dtype)
    solution = _solve(
        problem,
        params,
        plan,
        times,
        jnp.asarray(rtol, dtype),
        jnp.asarray(atol, dtype),
        _checked_resume(resume),
    )
    solution, num_kept = solution
    solution = _finished(solution, num_kept, save)
    return _thrown(solution) if throw else solution


def _checked_clock(clock, problem: Problem, params, t0, t1, dtype) -> AbstractClock:
    if clock is None and _rests(problem, params, dtype):
        clock = EFolds()
    if clock is None:
        logarithmic = isinstance(t0, Exp) or isinstance(t1, Exp)
        clock = LogTime() if problem.is_tailed or logarithmic else Physical()
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


def _checked_solver(solver) -> dfx.AbstractSolver:
    if solver is None:
        return dfx.Tsit5()
    if isinstance(solver, type) and issubclass(solver, dfx.AbstractSolver):
        raise ValueError(
            f"solver={solver.__name__} is a class; pass an instance, "
            f"{solver.__name__}()."
        )
    if not isinstance(solver, dfx.AbstractAdaptiveSolver):
        raise ValueError(
            f"solver={solver!r} is not a Diffrax solver with an error estimate, so its "
            "error cannot be controlled; use, say, diffrax.Tsit5(). For gradient "
            "descent, which is Euler's method, use gflow.descend; for fixed steps drive "
            "Diffrax yourself with gflow.vector_field."
        )
    return solver


def _save_mode(save_at) -> Literal["given", "adaptive", "steps"]:
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


def _checked_max_steps(max_steps, save) -> int:
    if max_steps is None:
        return _MAX_STEPS_KEPT if save == "steps" else _MAX_STEPS
    if isinstance(max_steps, bool) or not isinstance(max_steps, (int, np.integer)):
        raise ValueError(f"max_steps={max_steps!r} is not an integer.")
    if max_steps < 1:
        raise ValueError(f"max_steps={max_steps} is not positive.")
    return int(max_steps)


def _checked_resume(resume) -> Resume | None:
    if isinstance(resume, Solution):
        resume = resume.resume
        if resume is None:
            raise ValueError("resume: that solution does not hold a state to resume.")
    if not (resume is None or isinstance(resume, Resume)):
        raise ValueError(
            f"resume={resume!r} is not a gflow.Solution nor a solution's .resume."
        )
    return resume


def _times(save_at, t0, t1, clock, save, dtype) -> _Times:
    def cast(x):
        return jnp.asarray(x, dtype)

    end = log_elapsed(t1, t0)
    tells_time = isinstance(clock, AbstractTimeClock)
    readings = elapsed = log_t = None
    if save == "given":
        times = checked_times(save_at, t0, t1, dtype)
        log_t, elapsed = cast(log_of(times)), log_elapsed(times, t0)
        if tells_time:
            readings = jnp.minimum(cast(clock.reading(elapsed)), cast(clock.reading(end)))
        else:
            elapsed = jnp.minimum(cast(elapsed), cast(end))
    if tells_time:
        # Late in a solve the clock must still resolve its own start.
        end_reading = cast(clock.reading(end))
    else:
        end_reading = jnp.finfo(dtype).max / 8
    return _Times(
        start=Exp(cast(t0.log)) if isinstance(t0, Exp) else cast(t0),
        end_reading=cast(end_reading),
        end_log_elapsed=cast(end),
        save_readings=readings,
        save_log_elapsed=None if elapsed is None else cast(elapsed),
        save_log_t=log_t,
    )


@eqx.filter_jit
def _solve(problem, params, plan: _Plan, times: _Times, rtol, atol, resume):
    """The compiled part: solve, then observe at the saved states."""
    flow = GradientField(problem)
    clock = plan.clock
    tells_time = isinstance(clock, AbstractTimeClock)
    if resume is None:
        velocity = flow(params)
        unit = log_unit(velocity)
        loss_start = loss_in_units(velocity.log_loss, velocity.loss, unit)
    else:
        unit, loss_start = resume.log_unit, resume.loss_start
    field = FlowField(flow, clock, unit)
    needs_path = any(one.needs_path for one in plan.observers.values())
    state = field.start(params, path_length=needs_path)
    # A flow that starts at W = 0 has no direction there: its ζ is not defined.
    has_direction = jnp.isfinite(log_norm(params))
    horizon = None if tells_time else LogTime().reading(times.end_log_elapsed)
    meter = dfx.NoProgressMeter()
    if plan.progress:
        span = times.end_reading if isinstance(clock, Physical) else None
        meter = LogTimeMeter(dfx.TextProgressMeter(), span)
    engine = solve.Engine(
        field=field,
        solver=plan.solver,
        controller=relative_to_arrays(rtol, atol),
        event=event(problem, plan.events, plan.degree, state, horizon),
        progress=meter,
    )
    zero = jnp.zeros_like(times.end_reading)
    start = (
        engine.start(zero, times.end_reading, state)
        if resume is None
        else resume.position
    )
    solved = _kept(engine, start, times, plan, horizon)
    result = solved.result
    if not tells_time:
        reached = solved.end.state.log_time >= horizon * (1 - 1e3 * _eps(horizon))
        arrived = (result == dfx.RESULTS.event_occurred) & reached
        result = dfx.RESULTS.where(arrived, dfx.RESULTS.successful, result)

    def log_t_at(readings, states):
        if tells_time:
            elapsed = clock.log_elapsed(readings)
        else:
            elapsed = LogTime().log_elapsed(states.log_time)
        return log_time_after(times.start, elapsed)

    if plan.save == "given":
        log_t = times.save_log_t
        reached = jnp.arange(log_t.shape[0]) < solved.num_kept
    else:
        log_t = log_t_at(solved.readings, solved.states)
        reached = jnp.ones(log_t.shape, bool)

    def look(item):
        log_t, state = item
        path = state.path_length
        if path is not None:
            path = jnp.where(has_direction, path, jnp.nan)
        seen = observe_at(
            problem,
            state.params,
            log_t=log_t,
            path_length=path,
            degree=plan.degree,
        )
        loss_now = loss_in_units(seen.log_loss, seen.loss, unit)
        defect = loss_start - loss_now - state.dissipated
        observed = {name: one(seen) for name, one in plan.observers.items()}
        return seen.log_loss, log_norm(state.params), seen.outputs, defect, observed

    log_loss, size, outputs, defect, observed = jax.lax.map(
        look, (log_t, solved.states)
    )
    models_params = solved.states.params
    log_t, models_params, log_loss, size, outputs, defect, observed = jtu.tree_map(
        lambda x: _masked(x, reached),
        (log_t, models_params, log_loss, size, outputs, defect, observed),
    )
    end = solved.end
    counts = solved.counts
    solution = Solution(
        log_t=log_t,
        models=problem.model(models_params),
        final=problem.model(end.state.params),
        log_loss=log_loss,
        log_norm=size,
        predictions=outputs,
        observed=observed,
        energy_defect=defect,
        log_t_final=log_t_at(end.reading, end.state),
        stats={
            "num_steps": counts.num_steps,
            "num_accepted_steps": counts.num_accepted_steps,
            "num_rejected_steps": counts.num_steps - counts.num_accepted_steps,
            "num_gradients": _num_gradients(plan, counts.num_steps, resume is None),
        },
        result=RESULTS.where(
            result == dfx.RESULTS.dt_min_reached,
            RESULTS.unresolved,
            RESULTS.promote(result),
        ),
        resume=Resume(end, unit, loss_start),
        rtol=rtol,
        kinks=plan.kinks,
        clock=type(clock).__name__,
        solver=type(plan.solver).__name__,
    )
    return solution, solved.num_kept


def _kept(engine, start, times: _Times, plan: _Plan, horizon) -> solve.Solved:
    end = times.end_reading
    if plan.save == "given" and horizon is None:
        return solve.at_times(
            engine, start, end, times.save_readings, max_steps=plan.max_steps
        )
    if plan.save == "given":
        targets = LogTime().reading(times.save_log_elapsed)
        return solve.at_times_of_state(
            engine, start, end, targets, max_steps=plan.max_steps
        )
    thin = plan.save == "adaptive"
    fine = thin and solve.interpolates_well(plan.solver)
    return solve.at_steps(
        engine,
        start,
        end,
        capacity=_CAPACITY if thin else plan.max_steps,
        points_per_step=_POINTS_PER_STEP if fine else 1,
        max_steps=plan.max_steps,
        horizon=horizon,
    )


def _masked(x, reached):
    # NaN where a given time was not reached.
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x
    return jnp.where(reached.reshape((-1,) + (1,) * (x.ndim - 1)), x, jnp.nan)


def _num_gradients(plan: _Plan, num_steps, fresh: bool):
    each = solve.gradients_per_step(plan.solver)
    if each is None:
        return jnp.full_like(num_steps, -1)
    # One for the unit of energy, two to choose the first step, one for the first stage.
    first = 4 if fresh else 0
    return first + num_steps * (each + (1 if plan.events else 0))


def _eps(x):
    return jnp.finfo(x.dtype).eps


def _finished(solution: Solution, num_kept, save) -> Solution:
    """Cuts arrays to length and warns, where values are known."""
    if not is_concrete((solution, num_kept)) or solution.log_t.ndim != 1:
        return solution
    if save != "given":
        count = int(num_kept)
        solution = _cut(solution, count)
    defect = float(jnp.max(jnp.abs(jnp.nan_to_num(solution.energy_defect))))
    bound = _DEFECT * float(solution.rtol)
    if solution.kinks != "none" and defect > bound:
        warnings.warn(
            f"the energy balance ℒ(t0) - ℒ(t) = ∫‖dW/dt‖² is off by {defect:.1e} of "
            f"ℒ(t0), far above the tolerance (rtol={float(solution.rtol):.1e}): the "
            "model has kinks, the solver chatters across them, and this is not the "
            "gradient flow there. Smaller tolerances do not help; a smooth activation "
            "does.",
            stacklevel=3,
        )
    return solution


def _cut(solution: Solution, count: int) -> Solution:
    final_leaves = jtu.tree_leaves(solution.final)
    leaves, treedef = jtu.tree_flatten(solution.models)
    leaves = [
        leaf[:count]
        if eqx.is_array(leaf) and leaf.ndim == getattr(last, "ndim", 0) + 1
        else leaf
        for leaf, last in zip(leaves, final_leaves, strict=True)
    ]
    models = jtu.tree_unflatten(treedef, leaves)

    def names(s: Solution):
        return (
            s.log_t,
            s.log_loss,
            s.log_norm,
            s.predictions,
            s.energy_defect,
            s.observed,
        )

    cut = eqx.tree_at(names, solution, jtu.tree_map(lambda x: x[:count], names(solution)))
    return eqx.tree_at(lambda s: s.models, cut, models)


def _thrown(solution: Solution) -> Solution:
    bad = (solution.result != RESULTS.successful) & (
        solution.result != RESULTS.event_occurred
    )
    leaf = solution.result.error_if(solution.log_t_final, bad)
    return eqx.tree_at(lambda s: s.log_t_final, solution, leaf)
