"""integrate(): choose, cast, call Diffrax, observe."""

import warnings
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np

from ._check import Degree, check_tolerances, checked_problem, checked_span
from ._choose import (
    as_resume,
    check_events,
    check_resume,
    checked_max_steps,
    chosen_routes,
    save_mode,
)
from ._controller import tolerances
from ._derivatives import check_derivatives, derivatives_of
from ._engine import interpolates_well
from ._events import checked_events
from ._failure import failed_flow, short_errors, thrown
from ._frozen import frozen, has_kinks
from ._limit import limit
from ._motion import (
    GRADIENT_FLOWS,
    checked_choices,
    state_of,
    with_flow,
)
from ._norms import array_norm
from ._plan import Plan, Schedule, resolved, scheduled
from ._problem import Problem, dtype_of
from ._run import run
from ._saved import has_time_axis
from ._solution import Resume, Solution
from ._times import Exp, is_concrete, is_infinity
from ._types import Params
from .clocks import LogTime
from .observe import KNOWN, check_observers, named
from .solvers import PrimalDual


# Smooth networks come to about one time the tolerance; sliding along kinks gives 1e-4
# to 1 of ℒ(t0), whatever the tolerance. In units of eps: float32's own rounding.
_DEFECT = 50.0
_ROUNDING = 100.0
# Along the spheres of l1 and l∞ velocities jump, which costs some tens of the tolerance
# each time.
_OTHER_DEFECT = 500.0
# PrimalDual comes to a few times the tolerance.
_LATE_DEFECT = 1000.0
# log t for t = ∞, from where Newton's method finds the limit. Other solvers take steps
# in proportion to it, so where the late phase's may not be used it is earlier.
_ORDER = 3  # below which the tolerance says less
_LATEST, _LATEST_OTHERWISE = 1e8, 1e3


def integrate(
    model: Any,
    data: Any,
    loss: Any,
    t_span: Any,
    *,
    save_at: Any = None,
    observe: Any = (),
    clock: Any = None,
    solver: Any = None,
    rtol: Any = 1e-6,
    atol: Any = 0.0,
    error_by: Any = None,
    max_steps: Any = None,
    events: Any = None,
    progress: bool = False,
    throw: bool = True,
    kinks: Any = "auto",
    branch: Any = "steepest",
    filter_spec: Any = None,
    resume: Any = None,
    flow: Any = None,
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
    - `t_span`: `(t0, t1)`, floats or `gflow.exp(v)` for t = e^v. With t1 =
        `gflow.INFINITY` the solve goes to log t = 10^8 (10^3 with `kinks="autodiff"`
        at kinks, with events, or with a clock or solver of your own but `PrimalDual`,
        and no further than the dtype resolves) and the solution's `limit` is what
        [`gflow.limit`][] finds from there.
    - `save_at`: None for about 200 of the solver's own points, dense where the solution
        moves; an array of times or `gflow.exp(array)`; or `"steps"` for every step.
    - `observe`: observers from [`gflow.observe`][] or their names, any function of the
        observed state, a sequence of these or a dict from names to these.
    - `clock`: one of [`gflow.clocks`][]. None takes `LogTime` for losses with an
        exponential tail and wherever a time is given as `gflow.exp`, else `Physical`;
        and `EFolds` from weights so small that the time they rest hides the time
        they need to escape (if their values are known, not traced).
    - `solver`: any Diffrax solver with an error estimate, or one of
        [`gflow.solvers`][]. None takes Tsit5 or, for a smooth model whose flow is stiff
        at the start (sharpness times t1 - t0 above 200), begins at a saddle, or may
        become stiff, if values are known, not traced, and the problem is not a small
        one with an exponential tail, [`gflow.solvers.Automatic`][], which changes
        between Tsit5 and BDF (with events it begins with Tsit5: they may come before
        stiffness matters); and [`gflow.solvers.RKC3`][] where that would need too
        much memory: see the solution's `solver` and `switches`. With
        neither clock nor solver given, a loss with an exponential tail, a homogeneous
        model, no events and log t1 > 300, the solve goes over to
        [`gflow.solvers.PrimalDual`][] once the data are separated (or 500 steps were
        taken) if that is cheaper, and back if it fails there: see the solution's
        `parts`.
    - `rtol`, `atol`: the local error $e_k$ of each parameter array $W_k$ is held to
        $\|e_k\| \le$ atol + rtol $\|W_k\|$.
    - `error_by`: what $W_k$ is in that: "arrays" or "rows", the slices of the arrays
        along their first axis (a neuron's weights; an entry of a vector), so that those
        at 1e-60 leave a saddle when they should though others are of order one. None
        takes "rows" if an array's norm is below 1e-3 at the start, else "arrays".
    - `max_steps`: of each part of the solve; None for 1,000,000 (4,096 with
        `save_at="steps"`, which keeps all).
    - `events`: of [`gflow.events`][], or functions of the observed state; the solve
        stops where one changes sign (a number) or becomes true (a boolean, false at the
        start). Each step then costs one gradient more. Not with `PrimalDual`.
        [`gflow.events.Converged`][] stops where the loss has all but stopped falling.
    - `progress`: print how much of log(1 + t - t0) is done.
    - `throw`: raise if the solve fails; else the solution's `result` says so, and it
        keeps what was computed.
    - `kinks`: "auto" follows the differential inclusion $\dot W \in
        -\partial\mathcal L(W)$ across, along and off the kinks of the model and of a
        custom loss (relu, leaky relu, abs, max, clip, comparisons, max-pooling): see
        the solution's `inclusion`. "autodiff" takes what automatic differentiation
        returns, for comparison; near kinks that is not the flow, which
        `energy_defect` measures.
    - `branch`: which continuation to take where the inclusion has several: "steepest",
        on which ℒ falls fastest, or "stay", on which it falls slowest.
    - `filter_spec`: which leaves are trained, as in `equinox.partition`; None trains
        every floating point array outside of [`gflow.nn.Fixed`][].
    - `resume`: an earlier solution of the same problem, solver and clock that stopped
        before `t1` (or its `.resume`); the solve goes on from there, bit for bit.
    - `flow`: None for the gradient flow above, or another from [`gflow.flows`][], whose
        equation takes its place. Saved models are then that flow's; kinks are followed
        by the gradient flow alone, and the late phase and t1 = `gflow.INFINITY` are its
        own too.

    The solve can be differentiated in the model's parameters, the data, the times and
    whatever arrays the loss holds. Forward mode (`jax.jvp`, `jax.jacfwd`) goes through
    every solver and across kinks, for about twice the time of the solve. Reverse mode
    (`jax.grad`, `jax.vjp`; about four times) needs given save times, an explicit
    solver or one of Diffrax's implicit ones, and `Physical` or `LogTime`. Second
    derivatives are those of smooth models. Derivatives are taken inside of `jax.jit`:
    `jax.jit(jax.jvp(f, …))`; of a function under `jax.jit` only reverse mode is known.

    **Returns:**

    A [`gflow.Solution`][].

    **Raises:**

    `ValueError`, before anything is compiled, for arguments that cannot be right;
    `RuntimeError` if the solve fails and `throw` (under `jit` an Equinox runtime error,
    which is one).

    Examples:
        >>> import gflow, jax, jax.numpy as jnp
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
    problem, params, motion = with_flow(flow, problem, params, t_span)
    flow_name = "gradient" if flow is None else type(flow).__name__
    dtype = dtype_of(params)
    if kinks not in ("auto", "autodiff"):
        raise ValueError(f"kinks={kinks!r} is not known; use 'auto' or 'autodiff'.")
    if branch not in ("steepest", "stay"):
        raise ValueError(f"branch={branch!r} is not known; use 'steepest' or 'stay'.")
    found = frozen(problem, params) if kinks == "auto" and motion is None else None
    known = kinks == "auto" and motion is None
    smooth = found is None if known else not has_kinks(problem, params)
    if motion is not None:
        clock = checked_choices(motion, clock, solver, kinks, smooth, problem, t_span)
    events = checked_events(events)
    # Events are located on the dense output, for which late steps are too long.
    free = (smooth or found is not None) and not events and motion is None
    unasked = clock is None and solver is None
    late = free and (unasked or isinstance(solver, PrimalDual))
    degree = Degree(problem, params)
    t_span, to_limit = _finite_span(t_span, problem, params, degree, late=late)
    t0, t1 = checked_span(t_span)
    check_tolerances(rtol, atol, dtype)
    if error_by not in (None, "arrays", "rows"):
        raise ValueError(
            f"error_by={error_by!r} is not known; use 'arrays', 'rows' or None."
        )
    held = tolerances(rtol, atol, error_by, params)
    observers = named(observe, KNOWN)
    observed_degree = degree.needed_for(observers)
    check_observers(observers, problem, params, observed_degree)
    resume = as_resume(resume)
    derivatives = derivatives_of(problem, params, t_span, save_at, held, resume, motion)
    in_reverse = derivatives in ("reverse", "nested")
    routes = chosen_routes(
        clock,
        solver,
        problem,
        params,
        degree,
        t0,
        t1,
        held,
        free=free,
        resumed=resume,
        smooth=smooth and motion is None,
        frozen=found,
        branch=branch,
        events=bool(events),
        in_reverse=in_reverse,
    )
    first = routes[0]
    save = save_mode(save_at)
    if save == "given" and not first.tells_time:
        if not interpolates_well(first.solver):
            raise ValueError(
                f"{first.names[0]} does not tell the time, so given save times "
                "are found on the solver's dense output, and that of "
                f"{first.names[1]} is less accurate than its steps; use an "
                "explicit solver such as diffrax.Tsit5(), another clock, or "
                "save_at=None."
            )
    check_events(events, first, dtype)
    check_resume(resume, state_of(motion, params), routes, flow_name)
    plan = Plan(
        routes=routes,
        observers=observers,
        events=events,
        save=save,
        degree=observed_degree,
        max_steps=checked_max_steps(max_steps, save),
        progress=bool(progress),
        kinks="none" if smooth else "autodiff" if found is None else "inclusion",
        derivatives=derivatives,
    )
    check_derivatives(derivatives, save, first.clock, first.solver, plan.kinks)
    schedule = scheduled(save_at, t0, t1, plan, problem.is_tailed, dtype)
    _check_resumed(resume, schedule)
    with short_errors():
        solution, num_kept = run(
            problem, params, plan, schedule, held, resume, motion, flow_name
        )
    solution = _finished(solution, num_kept, save)
    imbalance = _imbalance(solution, params, atol, _order(first.solver))
    if imbalance:
        warnings.warn(imbalance, stacklevel=2)
    doubt = _doubt(solution)
    if doubt:
        warnings.warn(doubt, stacklevel=2)
    if to_limit:
        solution = _with_limit(solution, data, loss, filter_spec)
    if not throw:
        return solution
    return thrown(solution, lambda failed: failed_flow(failed, plan.max_steps, t1))


def _finite_span(
    t_span: Any, problem: Problem, params: Params, degree: Degree, *, late: bool
) -> tuple[Any, bool]:
    """The span to solve over, and whether its end stands for t = ∞.

    `late`: whether the late phase's solver may be used.
    """
    try:
        t0, t1 = t_span
    except (TypeError, ValueError):
        return t_span, False  # and an error, later
    if not is_infinity(t1):
        return t_span, False
    if not is_concrete((problem, params, t0)):
        raise ValueError(
            "t1 = gflow.INFINITY cannot be traced: the limit's support is decided "
            "outside of jit and vmap. Integrate to gflow.exp(1e8), and call "
            "gflow.limit on each solution."
        )
    if not problem.is_tailed:
        raise ValueError(
            f"t1 = gflow.INFINITY needs a loss with an exponential tail, and "
            f"{type(problem.loss).__name__} has none; integrate to a late time."
        )
    degree.needed_by("t1 = gflow.INFINITY")
    latest = _LATEST if late else _LATEST_OTHERWISE
    return (t0, Exp(min(latest, resolved(dtype_of(params))))), True


def _with_limit(solution: Solution, data, loss, filter_spec) -> Solution:
    try:
        found = limit(solution, data, loss, filter_spec=filter_spec)
    except ValueError as error:
        warnings.warn(f"no limit was found: {error}", stacklevel=3)
        return solution
    return eqx.tree_at(
        lambda s: s.limit, solution, found, is_leaf=lambda leaf: leaf is None
    )


def _check_resumed(resume: Resume | None, schedule: Schedule) -> None:
    """ValueError for times before the point to resume from."""
    if resume is None or not is_concrete((resume, schedule)):
        return
    at = float(LogTime().reading(resume.log_elapsed))
    if float(schedule.span) <= at:
        raise ValueError(
            "resume: that solve has already reached t1; ask for a later one in t_span "
            "(and keep t0, from which the flow's time is counted)."
        )
    if schedule.save_log_elapsed is None:
        return
    slack = 8 * float(jnp.finfo(schedule.span.dtype).eps)
    if float(LogTime().reading(schedule.save_log_elapsed[0])) < at * (1 - slack):
        raise ValueError(
            "save_at begins before the time that was reached by the solve to resume; "
            "leave out the times that it saved."
        )


def _finished(solution: Solution, num_kept, save) -> Solution:
    """Cuts arrays to length, where it is known."""
    known = is_concrete((solution, num_kept)) and solution.log_t.ndim == 1
    return _cut(solution, int(num_kept)) if known and save != "given" else solution


def _imbalance(solution: Solution, params: Params, atol: Any, order: Any) -> str | None:
    """What to warn of where the energy balance is known not to hold."""
    if not is_concrete((solution, params, atol)) or solution.log_t.ndim != 1:
        return None
    defect = _largest(solution.energy_defect)
    tolerance = float(solution.rtol)
    if order < _ORDER:
        # The local error is held to the tolerance; what is left of it in the end is of
        # a lower power.
        tolerance **= order / (order + 1)
    if float(atol) > 0:
        smallest = min(float(array_norm(leaf)) for leaf in jtu.tree_leaves(params))
        tolerance += float(atol) / max(smallest, 1e-300)
    eps = float(jnp.finfo(solution.rtol.dtype).eps)
    late = _late_imbalance(solution, _LATE_DEFECT * max(tolerance, _ROUNDING * eps))
    if late:
        return late
    other = solution.flow not in GRADIENT_FLOWS
    most = _OTHER_DEFECT if other else _DEFECT
    if defect <= most * max(tolerance, _ROUNDING * eps):
        return None
    reason = {
        "autodiff": "the model or the loss has kinks and the solver chatters across "
        "them, and this is not the flow there",
        "inclusion": "a kink may have been missed, and this is not the flow there",
        "none": "the steps are less accurate than was asked for, in the weights or, "
        "where the flow is stiff, in the energy alone. Compare a tenth of this rtol or "
        "another solver; a kink that is not recognised as one does this too",
    }[solution.kinks]
    balance = "∫‖dW/dt‖²"
    if other:
        balance = "-∫⟨∇ℒ, dW/dt⟩"
    return (
        f"the energy balance ℒ(t0) - ℒ(t) = {balance} is off by {defect:.1e} of ℒ(t0), "
        f"far above the tolerance ({tolerance:.1e}): {reason}."
    )


def _order(solver: Any) -> Any:
    # Methods for ordinary equations do not look at the term.
    return solver.order(None)


def _doubt(solution: Solution) -> str | None:
    """What to warn of where the way across kinks was not found for certain."""
    path = solution.inclusion
    if path is None or not is_concrete(path) or path.num_unsure.ndim != 0:
        return None
    if int(path.num_unsure) == 0:
        return None
    return (
        f"{int(path.num_unsure)} times, on a way with {int(path.num_events)} events at "
        "kinks, no velocity was found that goes where it is the flow's own, and the "
        "fastest or the present one was taken, or the flow may have left other kinks "
        "sooner: see energy_defect, and compare with a solve at a smaller rtol, for "
        "whether this is the gradient flow."
    )


def _late_imbalance(solution: Solution, allowed: float) -> str | None:
    """The same for log ℒ, where the implicit solver of the late phase has the say."""
    ran = [p.solver for p in solution.parts if int(p.stats["num_steps"]) > 0]
    if ran[-1:] != ["PrimalDual"] or solution.log_loss_defect is None:
        return None
    defect = _largest(solution.log_loss_defect)
    if defect <= allowed:
        return None
    return (
        f"the balance of log ℒ, log ℒ(t0) - log ℒ(t) = ∫‖dW/dt‖²/ℒ, is off by "
        f"{defect:.1e} of itself: the late phase may have left the flow. Integrate "
        "with a smaller rtol, or with clock=gflow.clocks.LogTime()."
    )


def _largest(defect: Any) -> float:
    """The largest absolute value, but for NaN, where nothing was reached."""
    return float(np.max(np.abs(np.nan_to_num(np.asarray(defect)))))


def _cut(solution: Solution, count: int) -> Solution:
    """Without the padding."""
    trained = has_time_axis(solution.models, solution.final)
    leaves, treedef = jtu.tree_flatten(solution.models)
    leaves = [
        _first(leaf, count) if has else leaf
        for leaf, has in zip(leaves, trained, strict=True)
    ]

    def over_time(s: Solution):
        return (
            s.log_t,
            s.log_loss,
            s.log_norm,
            s.predictions,
            s.energy_defect,
            s.log_loss_defect,
            s.observed,
        )

    cut = jtu.tree_map(lambda x: _first(x, count), over_time(solution))
    solution = eqx.tree_at(over_time, solution, cut, is_leaf=lambda x: x is None)
    models = jtu.tree_unflatten(treedef, leaves)
    return eqx.tree_at(lambda s: s.models, solution, models)


def _first(x: Any, count: int) -> Any:
    # NumPy cuts, and `device_put` moves, without compiling a program for each length.
    return x if count == x.shape[0] else jax.device_put(np.asarray(x)[:count])
