"""Which steps of a gradient descent are kept."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np

from ._check import show_time
from ._times import Exp, as_time, is_concrete, library, log_of


# By default this many steps are kept: half evenly spaced, half in their logarithm.
_POINTS = 200


def is_real(value: Any) -> bool:
    """Whether a value is a real number, or an array of these."""
    if isinstance(value, (int, float)):
        return True
    if not isinstance(value, (jax.Array, np.ndarray, np.generic)):
        return False
    return jnp.issubdtype(value.dtype, jnp.floating) or is_integer(value)


def is_integer(value: Any) -> bool:
    """Whether an array holds integers."""
    return jnp.issubdtype(value.dtype, jnp.integer)


def checked_targets(save_at: Any, num_steps: Any, step: Any) -> tuple[Any, Any]:
    """The steps to keep and which of them are taken; ValueError if that cannot be.

    All of them are taken where numbers are known. `step` is η as a time, None if it is
    not known.
    """
    if save_at is None:
        targets = _spread(num_steps)
        return targets, np.ones(targets.shape, bool)
    is_time = isinstance(save_at, Exp)
    values = save_at.log if is_time else save_at
    try:
        values = values if isinstance(values, jax.Array) else np.asarray(values)
        numeric = values.dtype != bool and is_real(values)
    except ValueError:
        numeric = False
    if not numeric or values.ndim != 1 or values.shape[0] == 0:
        raise ValueError(
            f"save_at={save_at!r} is neither step numbers nor times; pass a "
            "one-dimensional array of integers (steps), of floats or gflow.exp(array) "
            "(times), or None."
        )
    if is_concrete(values):
        # Values may be known under a transformation that traces the rest.
        _check_sorted(np.asarray(values))
    if not is_time and is_integer(values):
        return _checked_steps(values, num_steps)
    if step is None:
        raise ValueError(
            "save_at gives times, but the step size of an Optax transformation is not "
            "known; pass it as step_size=, or save at step numbers (integers)."
        )
    times = as_time(Exp(values) if is_time else values)
    targets = _steps_at(times, step)
    if is_concrete((targets, num_steps)):
        outside = ~((targets >= 0) & (targets <= num_steps))
        if np.any(outside):
            i = int(np.argmax(outside))
            time = Exp(times.log[i]) if is_time else times[i]
            raise ValueError(
                f"save_at contains t={show_time(time)}, outside of the {num_steps} "
                f"steps of size {show_time(step)}; leave it out or take more steps."
            )
        return targets.astype(np.int64), np.ones(targets.shape, bool)
    end = jnp.asarray(num_steps, targets.dtype)
    in_range = (targets >= 0) & (targets <= end)
    return jnp.where(in_range, targets, end), in_range


def _check_sorted(values: np.ndarray) -> None:
    if np.any(np.isnan(values)):
        raise ValueError("save_at contains NaN.")
    if np.any(values[1:] < values[:-1]):
        raise ValueError("save_at is not sorted; pass np.sort(save_at).")


def _checked_steps(steps: Any, num_steps: Any) -> tuple[Any, Any]:
    if is_concrete((steps, num_steps)):
        steps = np.asarray(steps)
        if steps[0] < 0 or steps[-1] > num_steps:
            bad = steps[0] if steps[0] < 0 else steps[-1]
            raise ValueError(
                f"save_at contains step {bad}, outside of 0 to num_steps={num_steps}; "
                "integers are steps: pass floats for times."
            )
        return steps, np.ones(steps.shape, bool)
    steps = jnp.asarray(steps, jnp.int32)
    end = jnp.asarray(num_steps, jnp.int32)
    in_range = (steps >= 0) & (steps <= end)
    return jnp.where(in_range, steps, end), in_range


def _steps_at(times: Any, step: Any) -> Any:
    # round(t/η) as floats, by a quotient where both are numbers: the difference of
    # logarithms loses the digits of log t.
    if not is_concrete((times, step)):
        dtype = jnp.result_type(float)
        times, step = jtu.tree_map(lambda x: jnp.asarray(x, dtype), (times, step))
    if not isinstance(times, Exp) and not isinstance(step, Exp):
        return library(times, step).round(times / step)
    log_times, log_step = log_of(times), log_of(step)
    xp = library(log_times, log_step)
    with np.errstate(over="ignore"):
        return xp.round(xp.exp(log_times - log_step))


def _spread(num_steps: Any) -> Any:
    half = _POINTS // 2
    even, logarithmic = np.linspace(0, 1, half + 1), np.linspace(0, 1, half)
    if not is_concrete(num_steps):
        # Their number is fixed when traced, so short descents keep steps repeatedly.
        end = jnp.asarray(num_steps, jnp.result_type(float))
        both = (end * even.astype(end.dtype), end ** logarithmic.astype(end.dtype))
        return jnp.sort(jnp.minimum(jnp.round(jnp.concatenate(both)), end))
    if num_steps <= _POINTS:
        return np.arange(num_steps + 1)
    both = (num_steps * even, float(num_steps) ** logarithmic)
    return np.unique(np.round(np.concatenate(both)).astype(np.int64))
