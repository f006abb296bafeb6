"""Step-size control relative to the norm of each parameter array."""

from collections.abc import Callable
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import optimistix as optx
from jaxtyping import Array, Float

from ._flat import Form
from ._flow import FlowState, SwitchingError, Work
from ._norms import array_norm, norms, norms_over
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
    # Of the state's rows, or of the arrays that they are in.
    sizes: Float[Array, " rows"] | None = None
    by_rows: BoolScalar | None = None
    # The step that a smooth flow would have taken, where kinks made it shorter; else 0.
    meant: Scalar | None = None


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
    # Of states that Diffrax is given as one vector.
    form: Form | None = None
    # Whether of a step cut short by a kink the error is that of the part.
    error_to_cut: bool = eqx.field(static=True, default=False)

    def wrap(self, direction):
        return self

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order):
        if self.resume is not None:
            return self.resume.next_end, self.resume
        now = norms(y0.params, self.by_rows)
        if dt0 is None:
            dt0 = self._first_step(terms, t0, t1, y0, args, func, error_order)
            # On kinks the velocity of one side says nothing; the error decides.
            dt0 = jnp.maximum(dt0, jnp.minimum(_FEW * _resolution(t0), t1 - t0))
        # (It never looks at more than a size in units of what is tolerated.)
        blank = jnp.zeros((), now.dtype)
        end, inner = self.pid.init(terms, t0, t1, blank, dt0, args, func, error_order)
        meant = None if y0.switching is None else jnp.zeros_like(end)
        return end, ControllerState(inner, end, y0.work, now, self.by_rows, meant)

    def adapted(self, earlier: ControllerState, y0: FlowState) -> ControllerState:
        """The state of an earlier solve, which may have measured otherwise."""
        assert earlier.sizes is not None
        same = jnp.asarray(earlier.by_rows) == self.by_rows
        now = jnp.where(same, earlier.sizes, norms(y0.params, self.by_rows))
        meant = None if y0.switching is None else jnp.zeros_like(earlier.next_end)
        if meant is not None and earlier.meant is not None:
            meant = earlier.meant
        return ControllerState(
            earlier.inner, earlier.next_end, earlier.spent, now, self.by_rows, meant
        )

    def adapt_step_size(
        self, t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state
    ):
        begin, end, event = t0, t1, self._state(y1_candidate).cut
        # The flow does not depend on the lengths of steps: they have no derivatives.
        times, states = (t0, t1), (y0, y1_candidate, y_error)
        (t0, t1), states = jax.lax.stop_gradient((times, states))
        y0, y1_candidate, y_error = map(self._state, states)
        before, after = controller_state.sizes, norms(y1_candidate.params, self.by_rows)
        held = Tolerances(self.rtol, self.atol, self.by_rows)
        size = error_size(before, after, y0, y1_candidate, y_error, held)
        none = jnp.zeros_like(size)
        keep, next_start, next_end, jump, inner, result = self.pid.adapt_step_size(
            t0, t1, none, none, args, size, error_order, controller_state.inner
        )
        meant = controller_state.meant
        if meant is not None:
            smooth = keep, next_start, next_end, inner
            keep, next_start, next_end, inner, meant = _across_kinks(
                t0, t1, smooth, y_error.switching, controller_state
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
            end = jnp.where(cut < t1, event, end)
        next_start = jnp.where(keep, end, begin)
        # Steps shorter than the resolution of the clock would be rejected for ever
        # (a field that is NaN from here on does this).
        stuck = next_end <= next_start + 4 * _resolution(next_start)
        result = dfx.RESULTS.where(stuck, dfx.RESULTS.dt_min_reached, result)
        spent, trial = controller_state.spent, _work_of(y_error)
        if spent is not None and trial is not None:
            spent = spent + trial
        now = jnp.where(keep, after, before)
        state = ControllerState(inner, next_end, spent, now, self.by_rows, meant)
        return keep, next_start, next_end, jump, state, result

    def _state(self, given: Any) -> Any:
        return given if self.form is None else self.form.unflatten(given)

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


def _across_kinks(
    t0: Any, t1: Any, smooth: Any, error: SwitchingError, before: ControllerState
) -> tuple[Any, ...]:
    """What becomes of a step across kinks that the smooth part would keep, or not.

    A step that is too long for the kinks alone is tried again, shorter, and the step
    that the smooth part asks for is remembered, to be taken right after.
    """
    keep, next_start, next_end, inner = smooth
    last: Any = before.meant
    length, next_length = t1 - t0, next_end - next_start
    again = keep & (error.size > 1)
    growth = jnp.where(error.growth > 0, error.growth, jnp.inf)
    longer = jnp.minimum(jnp.maximum(next_length, last), length * growth)
    next_length = jnp.where(keep, longer, next_length)
    next_length = jnp.where(again, length * error.shorter, next_length)
    meant = jnp.maximum(last, next_end - next_start)
    meant = jnp.where(again, meant, jnp.zeros_like(meant))
    start = jnp.where(again, t0, next_start)
    inner = jtu.tree_map(
        lambda old, new: jnp.where(again, old, new), before.inner, inner
    )
    return keep & ~again, start, start + next_length, inner, meant


# How the bookkeeping is held: to an absolute error that is relative above one; so that
# it is the time's relative error; or not, as what is a check, or chooses the points to
# keep, but has to be a number.
_BOOKS = {
    "dissipated": "relative",
    "path_length": "relative",
    "log_time": "absolute",
    "fallen": "nothing",
    "motion": "nothing",
}


def error_size(
    before: Float[Array, " rows"],
    after: Float[Array, " rows"],
    y0: FlowState,
    y1: FlowState,
    error: FlowState,
    held: Tolerances,
) -> Scalar:
    """The error of a step in units of what is tolerated; inf where it is not known.

    `before`, `after`: the norms of what the parameters are at its ends.
    """
    rtol, atol = (x.astype(before.dtype) for x in (held.rtol, held.atol))
    size = jnp.maximum(before, after)
    scale = jnp.where(size > 0, size, 1)
    wrong = scale * norms_over(error.params, scale, held.by_rows)
    # What is exactly zero, and stays so, has no scale and no error.
    nothing = (size == 0) & (wrong == 0)
    share = jnp.where(nothing, 0, wrong / (atol + rtol * size))
    # A trial step outside the field's domain is a failed step. (A maximum may overlook
    # what is not a number.)
    known = jnp.isfinite(after) & jnp.isfinite(wrong)
    shares = [jnp.max(jnp.where(known, share, jnp.inf))]
    for of, held_to in _BOOKS.items():
        a, b, e = (getattr(y, of) for y in (y0, y1, error))
        if a is None:
            continue
        unit = jnp.maximum(1, jnp.maximum(jnp.abs(a), jnp.abs(b)))
        unit = unit if held_to == "relative" else jnp.ones_like(unit)
        share = jnp.abs(e) / (atol + rtol * unit)
        share = jnp.zeros_like(share) if held_to == "nothing" else share
        known = jnp.isfinite(b) & jnp.isfinite(e)
        shares.append(jnp.where(known, share, jnp.inf))
    if error.crowding is not None:
        shares.append(error.crowding)
    return jnp.max(jnp.stack(shares))


def _work_of(state: Any) -> Work | None:
    return state.work


def integrated(state: FlowState) -> FlowState:
    """Without what only travels with the state."""
    return eqx.tree_at(
        lambda s: (s.work, s.pins, s.cut, s.switching, s.crowding),
        state,
        (None, None, None, None, None),
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
        rtol=0.0, atol=1.0, pcoeff=p, icoeff=i, dcoeff=0.0, norm=jnp.abs
    )
    return RelativeToArrays(
        pid=pid,
        rtol=held.rtol,
        atol=held.atol,
        by_rows=held.by_rows,
        error_to_cut=error_to_cut,
    )


def _largest_ratio(sizes, scales) -> Scalar:
    def ratio(size, scale):
        safe = jnp.where(scale == 0, 1, scale)
        return jnp.where(scale == 0, 0, size / safe)

    ratios = jtu.tree_leaves(jtu.tree_map(ratio, sizes, scales))
    return jnp.max(jnp.stack(ratios))


def _resolution(t: Any) -> Scalar:
    info = jnp.finfo(t.dtype)
    return jnp.maximum(info.eps * jnp.abs(t), info.tiny)
