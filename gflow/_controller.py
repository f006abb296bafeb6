"""Step-size control relative to the norm of each parameter array."""

from collections.abc import Callable
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import optimistix as optx

from ._flow import FlowState, Work, sizes
from ._norms import array_norm, norms_over
from ._problem import dtype_of
from ._types import BoolScalar, Params, Scalar


# Arrays of smaller norm are leaving a saddle, each part of them at its own pace.
_TINY = 1e-3
_FEW = 64  # resolutions of the clock: the shortest first step


class Tolerances(eqx.Module):
    """What the local error of a step is held to."""

    rtol: Scalar
    atol: Scalar
    by_rows: BoolScalar


def tolerances(rtol: Any, atol: Any, rows: str | None, params: Params) -> Tolerances:
    """As asked for or, where `rows` is None, as suits the start."""
    dtype = dtype_of(params)
    by_rows = _some_tiny(params) if rows is None else jnp.asarray(rows == "rows")
    return Tolerances(jnp.asarray(rtol, dtype), jnp.asarray(atol, dtype), by_rows)


@jax.jit
def _some_tiny(params: Params) -> BoolScalar:
    dtype = dtype_of(params)
    norms = [array_norm(leaf).astype(dtype) for leaf in jtu.tree_leaves(params)]
    return jnp.any(jnp.stack([(norm > 0) & (norm < _TINY) for norm in norms]))


class ControllerState(eqx.Module):
    """Diffrax's controller state, and the end of the step to come.

    Diffrax does not save the latter; with it a resumed solve repeats an uninterrupted
    one bit for bit.
    """

    inner: Any
    next_end: Any
    # By an implicit solver, on rejected steps too (Diffrax forgets the solver's state
    # when it rejects a step).
    spent: Work | None = None


class RelativeToArrays(dfx.AbstractAdaptiveStepSizeController):
    r"""Accepts a step if $\|e_k\| \le$ atol + rtol · max(‖W_k(t₀)‖, ‖W_k(t₁)‖), all k.

    Diffrax's own norm averages over all entries and its relative scale is entry by
    entry; here each parameter array k is measured by its norm, so that a small layer
    near a saddle keeps its direction, and `atol=0` works at ‖W‖ = 1e-60. With `by_rows`
    k numbers the rows of the arrays: what is tiny within an array grows as it should.
    The
    bookkeeping (dissipation, path length, log-time) is held to an absolute error of
    rtol, in its own units (the first two relative to their values above one). `pid`
    then decides from these scalars.
    """

    pid: dfx.PIDController
    rtol: Scalar  # Diffrax asks for these two
    atol: Scalar
    by_rows: BoolScalar
    # Diffrax hands this to the root finders of implicit solvers.
    norm: Callable[[Any], Scalar] = optx.rms_norm
    resume: ControllerState | None = None
    # Whether of a step cut short by a kink the error is that of the part.
    error_to_cut: bool = eqx.field(static=True, default=False)

    def wrap(self, direction):
        return self

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order):
        if self.resume is not None:
            return self.resume.next_end, self.resume
        if dt0 is None:
            dt0 = self._first_step(terms, t0, t1, y0, args, func, error_order)
            # On kinks the velocity of one side says nothing; the error decides.
            dt0 = jnp.maximum(dt0, jnp.minimum(_FEW * _resolution(t0), t1 - t0))
        scales, _, _ = measures(y0, y0, y0, self.by_rows)
        end, inner = self.pid.init(terms, t0, t1, scales, dt0, args, func, error_order)
        return end, ControllerState(inner, end, y0.work)

    def adapt_step_size(
        self, t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state
    ):
        size0, size1, error = measures(y0, y1_candidate, y_error, self.by_rows)
        keep, next_start, next_end, jump, inner, result = self.pid.adapt_step_size(
            t0, t1, size0, size1, args, error, error_order, controller_state.inner
        )
        cut = y1_candidate.cut
        if cut is not None:
            # A step that met a kink ends there, and the next one is as long as it would
            # have been.
            length = next_end - next_start
            if self.error_to_cut:
                length = jnp.where(keep & (cut < t1), t1 - t0, length)
                length = jnp.where(keep, length, length * (cut - t0) / (t1 - t0))
            next_start = jnp.where(keep & (cut < t1), cut, next_start)
            next_end = jnp.where(cut < t1, next_start + length, next_end)
        # Steps shorter than the resolution of the clock would be rejected for ever
        # (a field that is NaN from here on does this).
        stuck = next_end <= next_start + 4 * _resolution(next_start)
        result = dfx.RESULTS.where(stuck, dfx.RESULTS.dt_min_reached, result)
        spent, trial = controller_state.spent, _work_of(y_error)
        if spent is not None and trial is not None:
            spent = spent + trial
        state = ControllerState(inner, next_end, spent)
        return keep, next_start, next_end, jump, state, result

    def _first_step(self, terms, t0, t1, y0, args, func, error_order):
        """Hairer, Nørsett & Wanner (1993), II.4, with units that are consistent.

        Their h₁ = (0.01/max(d₁, d₂))^{1/(p+1)} mixes first and second derivatives;
        1/max(d₁, √d₂) is a time whatever the unit of time.
        """
        f0 = func(terms, t0, y0, args)
        size = jtu.tree_map(array_norm, y0.params)
        speed = jtu.tree_map(array_norm, f0.params)
        span = t1 - t0
        d1 = _largest_ratio(speed, size)
        # Arrays that start at zero have no scale of their own, only that of their
        # first movement; if all do, a thousandth of the clock's unit is tried first.
        h0 = jnp.where(d1 > 0, 0.01 / jnp.where(d1 > 0, d1, 1), 1e-3)
        h0 = jnp.minimum(h0, span)
        moved = jtu.tree_map(lambda y, f: y + h0 * f, y0, f0)
        f1 = func(terms, t0 + h0, moved, args)
        change = jtu.tree_map(jnp.subtract, f1.params, f0.params)
        reach = jtu.tree_map(lambda a, b: jnp.maximum(a, h0 * b), size, speed)
        d2 = _largest_ratio(jtu.tree_map(array_norm, change), reach) / h0
        rate = jnp.maximum(d1, jnp.sqrt(d2))
        tolerance = jnp.maximum(self.rtol, jnp.finfo(h0.dtype).eps)
        h1 = (0.01 * tolerance) ** (1 / error_order) / jnp.where(rate > 0, rate, 1)
        h1 = jnp.where((rate > 0) & jnp.isfinite(h1), h1, h0)
        return jax.lax.stop_gradient(jnp.minimum(100 * h0, h1))


def measures(y0: Any, y1: Any, error: Any, by_rows: BoolScalar) -> tuple[Any, Any, Any]:
    """Sizes before and after a step, and of its error.

    Of each parameter array as many numbers as it has rows: all the norm of the array
    or, if `by_rows`, each its row's.
    """
    y0, y1, error = integrated(y0), integrated(y1), integrated(error)
    size0, size1 = (sizes(y, by_rows) for y in (y0, y1))
    scales = jtu.tree_map(
        lambda a, b: jnp.where(jnp.maximum(a, b) > 0, jnp.maximum(a, b), 1),
        size0.params,
        size1.params,
    )
    err = jtu.tree_map(jnp.abs, eqx.tree_at(lambda e: e.params, error, None))
    err = eqx.tree_at(
        lambda e: e.params,
        err,
        jtu.tree_map(jnp.multiply, norms_over(error.params, scales, by_rows), scales),
        is_leaf=lambda x: x is None,
    )
    bad = jnp.any(
        jnp.stack([jnp.any(~jnp.isfinite(x)) for x in jtu.tree_leaves((size1, err))])
    )
    # A trial step outside the field's domain is a failed step.
    size1 = jtu.tree_map(lambda a, b: jnp.where(bad, a, b), size0, size1)
    err = jtu.tree_map(lambda e: jnp.where(bad, jnp.inf, e), err)
    # An array that is exactly zero, and stays so, has no scale and no error.
    zero = jtu.tree_map(
        lambda a, b, e: (jnp.maximum(a, b) == 0) & (e == 0), size0, size1, err
    )
    size0 = jtu.tree_map(lambda a, z: jnp.where(z, 1, a), size0, zero)
    # Only a check, and only used to choose which points to keep.
    err = eqx.tree_at(
        lambda e: (e.fallen, e.motion),
        err,
        jtu.tree_map(jnp.zeros_like, (err.fallen, err.motion)),
        is_leaf=lambda x: x is None,
    )
    return _unit_books(size0), _unit_books(size1), err


def _work_of(state: Any) -> Work | None:
    return state.work


def integrated(state: FlowState) -> FlowState:
    """Without what only travels with the state."""
    return eqx.tree_at(
        lambda s: (s.work, s.pins, s.cut),
        state,
        (None, None, None),
        is_leaf=lambda x: x is None,
    )


def relative_to_arrays(
    held: Tolerances,
    *,
    error_to_cut: bool = False,
    own_steps: bool = False,
) -> RelativeToArrays:
    """The controller, PI-controlled: smoother than I where stability sets the step.

    `own_steps`: whether the solver chooses its steps, and returns errors to match.
    """
    p, i = (0.0, 1.0) if own_steps else (0.3, 0.4)
    pid = dfx.PIDController(
        rtol=held.rtol, atol=held.atol, pcoeff=p, icoeff=i, dcoeff=0.0, norm=_largest
    )
    return RelativeToArrays(
        pid=pid,
        rtol=held.rtol,
        atol=held.atol,
        by_rows=held.by_rows,
        error_to_cut=error_to_cut,
    )


def _largest(sizes) -> Scalar:
    return jnp.max(jnp.stack([jnp.max(jnp.abs(x)) for x in jtu.tree_leaves(sizes)]))


def _largest_ratio(sizes, scales) -> Scalar:
    def ratio(size, scale):
        safe = jnp.where(scale == 0, 1, scale)
        return jnp.where(scale == 0, 0, size / safe)

    return _largest(jtu.tree_map(ratio, sizes, scales))


def _unit_books(size: FlowState) -> FlowState:
    # For all but the parameters: absolute error control, relative above one. Log-time
    # stays absolute, so that it is the time's relative error.
    def book(x: Any) -> Any:
        return None if x is None else jnp.maximum(x, 1)

    return FlowState(
        params=size.params,
        dissipated=book(size.dissipated),
        fallen=book(size.fallen),
        path_length=book(size.path_length),
        motion=book(size.motion),
        log_time=None if size.log_time is None else jnp.ones_like(size.log_time),
    )


def _resolution(t: Any) -> Scalar:
    info = jnp.finfo(t.dtype)
    return jnp.maximum(info.eps * jnp.abs(t), info.tiny)
