"""descend(): gradient descent, seen as the flow is."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from ._check import Degree, checked_problem
from ._failure import failed_descent, short_errors, thrown
from ._frozen import has_kinks
from ._least_norm import frozen_if_possible
from ._problem import Gradient, Problem, dtype_of
from ._save_steps import checked_targets, is_integer, is_real
from ._saved import masked, seen_at
from ._solution import RESULTS, Solution
from ._times import Exp, as_time, is_concrete, log_of
from ._types import BoolScalar, IntScalar, Params, Scalar
from .observe import KNOWN, Observer, check_observers, named


# Steps are counted in 32-bit integers, which JAX has with and without x64.
_MAX_STEPS = int(np.iinfo(np.int32).max)


class _Plan(eqx.Module):
    # Fixed when the loop is compiled: observers and the transformation are functions.
    observers: dict[str, Observer]
    transformation: optax.GradientTransformation | None
    degree: float | None = eqx.field(static=True)
    kinks: str = eqx.field(static=True)


class _State(eqx.Module):
    # W_k and the gradient there, so that W_{k+1} is kept only if its loss is finite.
    params: Params
    log_slope: Scalar
    direction: Params
    loss: Scalar
    # What the optax transformation remembers.
    memory: Any
    # Steps tried and steps that ended at a finite state.
    step: IntScalar
    taken: IntScalar
    alive: BoolScalar


def descend(
    model: Any,
    data: Any,
    loss: Any,
    optimizer: Any,
    num_steps: Any,
    *,
    save_at: Any = None,
    observe: Any = (),
    step_size: Any = None,
    throw: bool = True,
    filter_spec: Any = None,
) -> Solution:
    r"""Trains a network by full-batch gradient descent, or any Optax optimizer.

    $$W_{k+1} = W_k - \eta\,\nabla\mathcal L(W_k),\qquad t_k = \eta k$$

    which is Euler's method for the flow of [`gflow.integrate`][], with the same
    [`gflow.Solution`][] so that the two can be compared ([`gflow.compare`][]). The loss
    is a *sum* over the examples (`reduction="mean"` in the loss divides by n, for which
    η must be n times larger). The step is formed from the logarithms of η and of the
    slope, so that losses far below the smallest float still descend.

    **Arguments:**

    - `model`, `data`, `loss`, `observe`, `filter_spec`: as for [`gflow.integrate`][].
    - `optimizer`: the step size η, a number or `gflow.exp(v)` for η = e^v, concrete or
        traced; or any `optax.GradientTransformation`. Optax sees $\nabla\mathcal L$ as
        numbers, which are zero below the smallest float. A new transformation is
        compiled anew, a new step size is not.
    - `num_steps`: how many steps; a positive integer, which may be traced.
    - `save_at`: None for about 200 steps, half of them spread evenly and half in their
        logarithm; *integers* for these steps; *floats* or `gflow.exp(array)` for these
        times, where the state at step k = round(t/η) is kept and `log_t` tells the time
        kη that it has. Sorted.
    - `step_size`: the η that makes a time of the steps of an Optax transformation. None
        if it has none: `log_t` is then NaN.
    - `throw`: raise if the descent diverges; else the solution's `result` says so.

    **Returns:**

    A [`gflow.Solution`][] with `clock="steps"` and η in `stats["step_size"]`. If the
    parameters or the loss become infinite or NaN, the descent stops at its last finite
    state (`final`, at `log_t_final`, after `stats["num_steps"]` steps). Saved slots
    after it are NaN, and so are those of traced times beyond `num_steps`.

    Reverse-mode differentiation does not go through the descent, whose loops have as
    many steps as `num_steps` says at run time.

    **Raises:**

    `ValueError`, before anything is compiled, for arguments that cannot be right;
    `RuntimeError` if it diverges and `throw`, with the step at which it did (under
    `jit` an Equinox runtime error, which is one, without that step).

    Examples:
        >>> import equinox as eqx, gflow, jax, jax.numpy as jnp
        >>> model = gflow.nn.Linear(2, "scalar", key=jax.random.key(0))
        >>> data = jnp.array([[1.0, 2.0], [2.0, 1.0]]), jnp.array([1.0, -1.0])
        >>> loss = gflow.losses.Logistic()
        >>> gd = gflow.descend(model, data, loss, 0.1, 100, save_at=[0, 10, 100])
        >>> gd.t.round(3).tolist()
        [0.0, 1.0, 10.0]

        Many step sizes at once:

        >>> @eqx.filter_vmap
        ... def run(step):
        ...     return gflow.descend(model, data, loss, step, 100, throw=False)
        >>> run(jnp.array([0.1, 0.2, 0.4])).log_loss.shape
        (3, 101)
    """
    problem, params = checked_problem(model, data, loss, filter_spec)
    dtype = dtype_of(params)
    observers = named(observe, KNOWN)
    transformation, step = _checked_optimizer(optimizer, step_size, params)
    num_steps = _checked_num_steps(num_steps)
    targets, in_range = checked_targets(save_at, num_steps, step)
    degree = Degree(problem, params).needed_for(observers)
    check_observers(observers, problem, params, degree)
    plan = _Plan(
        observers=observers,
        transformation=transformation,
        degree=degree,
        kinks="autodiff" if has_kinks(problem, params) else "none",
    )
    log_step = jnp.asarray(np.nan if step is None else log_of(step), dtype)
    if throw and step is not None and not is_concrete(step):
        log_step = eqx.error_if(
            log_step, ~jnp.isfinite(log_step), "the step size is not a positive number."
        )
    with short_errors():
        solution = _descend(
            problem,
            params,
            plan,
            log_step,
            jnp.asarray(num_steps, jnp.int32),
            jnp.asarray(targets, jnp.int32),
            jnp.asarray(in_range),
        )
    if not throw:
        return solution
    return thrown(solution, lambda failed: failed_descent(failed, num_steps))


def _checked_optimizer(optimizer, step_size, params):
    # The Optax transformation (None for plain descent) and η as a time (None: unknown).
    if isinstance(optimizer, optax.GradientTransformation):
        _check_transformation(optimizer, params)
        if step_size is None:
            return optimizer, None
        return optimizer, _checked_step("step_size", step_size)
    if step_size is not None:
        raise ValueError(
            f"step_size={step_size!r} is given besides the step size "
            f"optimizer={optimizer!r}; leave it out, it is for Optax transformations."
        )
    return None, _checked_step("optimizer", optimizer)


def _check_transformation(transformation, params) -> None:
    def once(params):
        memory = _memory(transformation, params)
        value = jnp.zeros((), dtype_of(params))
        return _transformed(transformation, params, memory, params, value)

    try:
        eqx.filter_eval_shape(once, params)
    except Exception as error:
        raise ValueError(
            "the Optax transformation cannot be applied to the parameters, with only "
            f"the gradient and the loss at hand: {error}"
        ) from error


def _checked_step(name: str, step: Any) -> Any:
    shown = f"{name}={step!r}"
    advice = (
        "pass a positive number, gflow.exp(v) for e^v, or an "
        "optax.GradientTransformation such as optax.adam(1e-3)."
        if name == "optimizer"
        else "pass a positive number, or gflow.exp(v) for e^v."
    )
    value = step.log if isinstance(step, Exp) else step
    if isinstance(value, bool) or not is_real(value):
        raise ValueError(f"{shown} is not a step size; {advice}")
    if np.ndim(value) != 0:
        raise ValueError(
            f"{name} has shape {np.shape(value)}, but a descent has one step size; run "
            "several with equinox.filter_vmap over them."
        )
    step = as_time(step)
    if is_concrete(step):
        # Not log_of: the logarithm of a negative number would warn.
        good = np.isfinite(step.log) if isinstance(step, Exp) else 0 < step < np.inf
        if not good:
            raise ValueError(f"the step size {shown} is not positive and finite.")
    return step


def _checked_num_steps(num_steps: Any) -> Any:
    is_array = isinstance(num_steps, (jax.Array, np.ndarray, np.generic))
    whole = (
        np.ndim(num_steps) == 0 and is_integer(num_steps)
        if is_array
        else isinstance(num_steps, int) and not isinstance(num_steps, bool)
    )
    if not whole:
        raise ValueError(f"num_steps={num_steps!r} is not one positive integer.")
    if not is_concrete(num_steps):
        return num_steps
    if not 0 < int(num_steps) <= _MAX_STEPS:
        raise ValueError(
            f"num_steps={int(num_steps)} is not between 1 and {_MAX_STEPS}."
        )
    return int(num_steps)


@eqx.filter_jit
def _descend(
    problem: Problem,
    params: Params,
    plan: _Plan,
    log_step: Scalar,
    num_steps: IntScalar,
    targets: Int[Array, " times"],
    in_range: Bool[Array, " times"],
) -> Solution:
    """The compiled part: descend, then observe at the saved states."""
    start = _start(problem, params, plan)
    kept, reached, end = _kept(
        problem, plan, log_step, start, targets, in_range, num_steps
    )

    def log_time(steps: Int[Array, "..."]) -> Float[Array, "..."]:
        return log_step + jnp.log(steps.astype(log_step.dtype))

    log_t = log_time(targets)
    seen = seen_at(
        problem,
        kept,
        plan.observers,
        log_t=log_t,
        degree=plan.degree,
        frozen=frozen_if_possible(problem, params) if plan.observers else None,
        start=params,
    )
    log_t, seen = masked((log_t, seen), reached)
    # The step on which it diverged took a gradient too.
    failed = (start.alive & ~end.alive).astype(jnp.int32)
    return Solution(
        log_t=log_t,
        models=problem.model(kept),
        final=problem.model(end.params),
        log_loss=seen.log_loss,
        log_norm=seen.log_norm,
        predictions=seen.outputs,
        observed=seen.observed,
        energy_defect=jnp.full_like(log_t, jnp.nan),
        log_t_final=log_time(end.taken),
        stats={
            "num_steps": end.taken,
            "num_accepted_steps": end.taken,
            "num_rejected_steps": jnp.zeros_like(end.taken),
            "num_gradients": 1 + end.taken + failed,
            "step_size": jnp.exp(log_step),
        },
        result=_result(end.alive),
        resume=None,
        rtol=jnp.full_like(log_step, jnp.nan),
        kinks=plan.kinks,
        clock="steps",
        solver="GradientDescent" if plan.transformation is None else "optax",
    )


def _result(alive: BoolScalar) -> Any:
    fine: Any = RESULTS.successful
    return RESULTS.where(alive, fine, RESULTS.diverged)


def _start(problem: Problem, params: Params, plan: _Plan) -> _State:
    at = problem.gradient(params)
    rule = plan.transformation
    zero = jnp.zeros((), jnp.int32)
    return _State(
        params=params,
        log_slope=at.log_slope,
        direction=at.direction,
        loss=at.loss,
        memory=None if rule is None else _memory(rule, params),
        step=zero,
        taken=zero,
        alive=_is_finite(at, params),
    )


def _kept(problem, plan, log_step, start, targets, in_range, num_steps):
    """The parameters at the target steps, which were reached, and the last state.

    The last stretch, from the last target to the end, runs in the same loop and keeps
    nothing: its slot is past the end of the buffer.
    """

    def run(state, target):
        return jax.lax.while_loop(
            lambda s: s.step < target,
            lambda s: _next(problem, plan, log_step, s),
            state,
        )

    def stretch(carry, item):
        state, kept = carry
        slot, target, wanted = item
        # `cond`, not a clause of the loop's condition: under vmap that one would be
        # there for each lane, and the loop would select all of its state at each step.
        state = jax.lax.cond(state.alive, run, lambda s, _: s, state, target)
        reached = state.alive & wanted

        def put(room, w):
            return room.at[slot].set(jnp.where(reached, w, jnp.nan), mode="drop")

        return (state, jtu.tree_map(put, kept, state.params)), reached

    slots = jnp.arange(targets.shape[0] + 1)
    ends = jnp.concatenate([targets, num_steps[None]])
    wanted = jnp.concatenate([in_range, jnp.array([True])])
    room = jtu.tree_map(
        lambda w: jnp.zeros((targets.shape[0], *w.shape), w.dtype), start.params
    )
    (end, kept), reached = jax.lax.scan(stretch, (start, room), (slots, ends, wanted))
    return kept, reached[:-1], end


def _next(problem: Problem, plan: _Plan, log_step: Scalar, state: _State) -> _State:
    """One step, taken back if it does not end at a finite state."""
    if plan.transformation is None:
        moved, memory = _plain(log_step, state), None
    else:
        moved, memory = _transformed(
            plan.transformation, _slope(state), state.memory, state.params, state.loss
        )
    at = problem.gradient(moved)
    alive = state.alive & _is_finite(at, moved)
    return _State(
        params=jtu.tree_map(lambda w, v: jnp.where(alive, w, v), moved, state.params),
        log_slope=at.log_slope,
        direction=at.direction,
        loss=at.loss,
        memory=memory,
        step=state.step + 1,
        taken=state.taken + alive.astype(state.taken.dtype),
        alive=alive,
    )


def _plain(log_step: Scalar, state: _State) -> Params:
    rate = jnp.exp(log_step + state.log_slope)
    return jtu.tree_map(
        lambda w, d: w + rate.astype(w.dtype) * d, state.params, state.direction
    )


def _slope(state: _State) -> Params:
    # ∇ℒ as numbers.
    slope = -jnp.exp(state.log_slope)
    return jtu.tree_map(lambda d: slope.astype(d.dtype) * d, state.direction)


def _memory(transformation, params: Params) -> Any:
    # Optax mixes dtypes (Adam raises a float to an integer count), which JAX forbids
    # its users who chose strict promotion.
    with jax.numpy_dtype_promotion("standard"):
        return transformation.init(params)


def _transformed(transformation, gradient, memory, params, value):
    # Some transformations ask for the loss as well (Polyak's step, say).
    transformation = optax.with_extra_args_support(transformation)
    with jax.numpy_dtype_promotion("standard"):
        updates, memory = transformation.update(
            gradient, memory, params, value=value, grad=gradient
        )
        return optax.apply_updates(params, updates), memory


def _is_finite(at: Gradient, params: Params) -> BoolScalar:
    # A loss of e^1000 is finite, one of zero too (its logarithm is not), and so is a
    # negative one, which only `loss` tells.
    loss = jnp.isfinite(at.loss) | (at.log_loss < jnp.inf)
    return jnp.stack(
        [loss, *(jnp.all(jnp.isfinite(w)) for w in jtu.tree_leaves(params))]
    ).all()
