"""Errors before tracing: what was wrong, and what to do about it."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np

from ._captured import digest, lifted
from ._check_data import checked_data
from ._check_model import split, unsupported_layer
from ._homogeneity import homogeneity
from ._problem import Problem, cast_data, dtype_of, predict
from ._times import Exp, as_time, is_concrete, log_elapsed, log_of
from ._types import Params
from .losses import AbstractLoss, Custom, as_loss
from .nn import Batched


def checked_problem(
    model: Any, data: Any, loss: Any, filter_spec: Any = None
) -> tuple[Problem, Params]:
    """The problem and its parameters W, or a ValueError that says what is wrong."""
    if not callable(model):
        raise ValueError(
            f"model={model!r} cannot be called; pass a callable PyTree such as an "
            "Equinox module, taking one example."
        )
    loss = as_loss(loss)
    params, static = split(model, filter_spec)
    x, y = checked_data(data)
    x, y = cast_data(x, y, loss, dtype_of(params))
    code = [model, loss]
    if isinstance(loss, Custom):
        loss = dataclasses.replace(loss, function=lifted(loss.function))
        code = [model]
    problem = Problem(static, x, y, loss, digest(*code))
    outputs = _outputs_shape(problem, params)
    loss.check(outputs.shape, y)
    _check_loss(loss, outputs, y)
    return problem, params


def _outputs_shape(problem: Problem, params: Params) -> Any:
    model = problem.model(params)
    batched = isinstance(model, Batched)
    given = problem.x.shape if batched else problem.x.shape[1:]
    what = "the batch" if batched else "one example"
    try:
        outputs = eqx.filter_eval_shape(_predicted, params, problem)
    except Exception as error:
        advice = unsupported_layer(model) or (
            " A model takes one example without the batch axis; wrap one that takes "
            "the whole batch in gflow.nn.Batched."
        )
        raise ValueError(
            f"the model cannot be applied to {what} of shape {given}: "
            f"{str(error).rstrip('.')}.{advice}"
        ) from error
    if not isinstance(outputs, jax.ShapeDtypeStruct) or not jnp.issubdtype(
        outputs.dtype, jnp.floating
    ):
        raise ValueError(
            f"the model returns {outputs}; it must return one real floating point "
            f"array per example.{unsupported_layer(model)}"
        )
    if outputs.shape[:1] != problem.x.shape[:1]:
        raise ValueError(
            f"the batched model returns shape {outputs.shape} for "
            f"{problem.x.shape[0]} examples; its leading axis must be the examples'."
        )
    return outputs


# Compiled functions remember what they have traced: a second solve of problems of the
# same shape does not trace them again.


@eqx.filter_jit
def _predicted(params: Params, problem: Problem) -> Any:
    return predict(problem.model(params), problem.x)


@eqx.filter_jit
def _linearised(loss: AbstractLoss, outputs: Any, y: Any) -> Any:
    return loss.linearise(outputs, y)


def _check_loss(loss: AbstractLoss, outputs: Any, y: Any) -> None:
    try:
        eqx.filter_eval_shape(_linearised, loss, outputs, y)
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(
            f"the loss cannot be applied to predictions of shape {outputs.shape[1:]} "
            f"and labels of shape {y.shape[1:]} (one example each): {error}"
        ) from error


class Degree:
    """The degree of homogeneity L, measured once, where it is first needed."""

    def __init__(self, problem: Problem, params: Params):
        self._problem, self._params = problem, params

    @functools.cached_property
    def _measured(self) -> float:
        spec = jtu.tree_map(
            lambda leaf: leaf is not None,
            self._params,
            is_leaf=lambda leaf: leaf is None,
        )
        model = self._problem.model(self._params)
        return homogeneity(model, self._problem.x, filter_spec=spec)

    def needed_by(self, who: str) -> float:
        """L; ValueError, saying who needs it, if the model has none."""
        try:
            return self._measured
        except ValueError as error:
            raise ValueError(
                f"{who} needs a positively homogeneous model: {error}"
            ) from error

    def needed_for(self, observers: Mapping[str, Any]) -> float | None:
        """L if an observer divides by ‖W‖^L; ValueError if the model has none."""
        asking = [name for name, one in observers.items() if one.needs_degree]
        if not asking:
            return None
        return self.needed_by(f"observer {asking[0]!r} divides by ‖W‖^L, so it")


def check_tolerances(rtol: Any, atol: Any, dtype: Any) -> None:
    """ValueError for tolerances that no solve in this dtype can meet."""
    least = 8 * float(jnp.finfo(dtype).eps)
    if is_concrete(rtol):
        value = float(np.max(np.asarray(rtol)))
        small = float(np.min(np.asarray(rtol)))
        if not (math.isfinite(value) and small > 0):
            raise ValueError(
                f"rtol={small} is not a positive number; use, say, rtol=1e-6."
            )
        if small < least:
            raise ValueError(
                f"rtol={small:.1e} is below what {jnp.dtype(dtype).name} resolves "
                f"({least:.1e}); use a larger rtol"
                + (
                    ", or float64 parameters (jax.config.update('jax_enable_x64', "
                    "True))."
                    if jnp.dtype(dtype) != np.dtype("float64")
                    else "."
                )
            )
    if is_concrete(atol) and not float(np.min(np.asarray(atol))) >= 0:
        raise ValueError(f"atol={atol} is negative or NaN; use 0 or a positive number.")


def checked_span(t_span: Any) -> tuple[Any, Any]:
    """(t0, t1) as times, or a ValueError if they are not in order."""
    try:
        t0, t1 = t_span
    except (TypeError, ValueError):
        raise ValueError(
            f"t_span={t_span!r} is not a pair (t0, t1) of floats or gflow.exp(...)."
        ) from None
    t0, t1 = _time("t0", t0), _time("t1", t1)
    if is_concrete((t0, t1)):
        for name, t in (("t0", t0), ("t1", t1)):
            value = np.asarray(t.log if isinstance(t, Exp) else t)
            if value.shape != () or not np.isfinite(value):
                shown = show_time(t) if value.shape == () else t
                raise ValueError(
                    f"{name}={shown} is not one finite time; write gflow.exp(v) for "
                    "t = e^v beyond the largest float."
                )
        if not _before(t0, t1):
            raise ValueError(
                f"t_span runs from t0={show_time(t0)} to t1={show_time(t1)}; the end "
                "must come after the start."
            )
    return t0, t1


def _time(name: str, t: Any) -> Any:
    try:
        return as_time(t)
    except (TypeError, ValueError):
        raise ValueError(
            f"{name}={t!r} is not a time; pass a float or gflow.exp(v) for t = e^v."
        ) from None


def _before(a: Any, b: Any) -> bool:
    # Whether a < b, both concrete.
    if isinstance(a, Exp) == isinstance(b, Exp):
        a, b = (a.log, b.log) if isinstance(a, Exp) else (a, b)
        return bool(np.all(a < b))
    return bool(np.all(log_of(a) < log_of(b))) or (
        not isinstance(a, Exp) and bool(np.all(a <= 0))
    )


def show_time(t: Any) -> str:
    """A time as a message shows it."""
    return f"e^{float(t.log):g}" if isinstance(t, Exp) else f"{float(t):g}"


def checked_times(save_at: Any, t0: Any, t1: Any, dtype: Any) -> Any:
    """Save times, or a ValueError if they are not inside the span and in order."""
    times = _time("save_at", save_at)
    values = times.log if isinstance(times, Exp) else times
    if np.ndim(values) != 1 or np.shape(values)[0] == 0:
        raise ValueError(
            f"save_at has shape {np.shape(values)}; pass a one-dimensional array of "
            "at least one time, gflow.exp(array), 'steps' or None."
        )
    if not is_concrete((times, t0, t1)):
        return times
    # log t of a time before zero is NaN; those must be given as numbers.
    values = np.asarray(values)
    if np.any(np.isnan(values)):
        raise ValueError("save_at contains NaN; remove such times.")
    if np.any(values[1:] < values[:-1]):
        raise ValueError("save_at is not sorted; pass np.sort(save_at).")
    with np.errstate(all="ignore"):
        elapsed = np.asarray(log_elapsed(times, t0))
        span = np.asarray(log_elapsed(t1, t0))
    # Times that were rounded to the dtype may lie a rounding outside of the span.
    slack = 8 * float(jnp.finfo(dtype).eps)
    first, last = values[0], values[-1]
    late = elapsed[-1] > span + slack * max(1.0, abs(float(span)))
    early = np.isnan(elapsed[0])
    if early or late:
        which = first if early else last
        shown = show_time(Exp(which) if isinstance(times, Exp) else which)
        raise ValueError(
            f"save_at contains t={shown}, outside of t_span = ({show_time(t0)}, "
            f"{show_time(t1)}); leave it out or widen the span."
        )
    return times
