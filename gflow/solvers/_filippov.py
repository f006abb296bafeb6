"""A solver that follows the inclusion from kink to kink."""

import functools
from typing import Any, ClassVar

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float

from .._flow import FlowState, Work
from .._frozen import Frozen
from .._inclusion import (
    InclusionField,
    Pattern,
    least_of,
    margin,
    multipliers,
    onto_pins,
    room,
)
from .._lanes import anywhere
from .._resolve import Resolution, settle
from .._types import BoolScalar, IntScalar, Params, Scalar
from ._crossing import first_crossing
from ._primal_dual import Holding, PrimalDual, weighted
from ._track import Track, in_series, log_time_of, logged, started


_NODES = (0.25, 0.5, 0.75, 1.0)  # of a step, where the signs are looked at
_FORWARD = 1 / 3  # of a gradient
_SETTLE = 4.0  # gradients, about: sizes, branches, rows
# How far on the other side a repeated implicit step may end: z, of its size, and
# multipliers, which Newton's method leaves less accurate.
_NEAR, _NEAR_SHARE = 1e-9, 1e-5


class _Trial(eqx.Module):
    # A step, or the part of it up to where its pattern ceases to fit.
    state: FlowState
    error: FlowState
    dense: Any
    inner: Any  # the solver's state
    trial: Scalar  # where the dense output ends
    end: Scalar
    event: BoolScalar
    kink: IntScalar
    looks: IntScalar
    result: Any


class Filippov(dfx.AbstractAdaptiveSolver):
    r"""Integrates the smooth problem of one pattern of branches and pins at a time.

    A step in whose course a pre-activation changes sign, or a pinned kink's multiplier
    leaves [0, 1], is cut short there, and the next one begins on the pattern on which
    the inclusion goes on (Filippov 1988, Chapter 2). Diffrax's loop is the only one:
    the step-size controller is told where the step was cut (`FlowState.cut`).

    Where the solver is explicit the place is found on its dense output. That of
    `PrimalDual` is not accurate over its long steps, which are repeated instead.
    """

    solver: dfx.AbstractERK | PrimalDual
    frozen: Frozen
    branch: str = eqx.field(static=True)
    capacity: int = eqx.field(static=True)
    term_structure: ClassVar = dfx.AbstractTerm

    @property
    def interpolation_cls(self) -> Any:  # pyright: ignore
        return _cut_interpolation(self.solver.interpolation_cls)

    def order(self, terms):
        return self.solver.order(terms)

    def error_order(self, terms):
        return self.solver.error_order(terms)

    def func(self, terms, t0, y0, args):
        return terms.vf(t0, y0, None)

    def _settle(
        self, frozen: Frozen, params: Params, before: Pattern | None
    ) -> tuple[Pattern, Resolution]:
        return settle(
            frozen, params, before, capacity=self.capacity, branch=self.branch
        )

    def _told(self, pattern: Pattern, args: Any) -> Any:
        """What the inner solver is told of the pattern."""
        if isinstance(self.solver, PrimalDual):
            return Holding(args, self.frozen, pattern)
        return InclusionField(self.frozen, pattern)

    def init(self, terms, t0, t1, y0, args):
        pattern, found = self._settle(self.frozen, y0.params, None)
        told = self._told(pattern, args)
        inner = self.solver.init(terms, t0, t1, y0, told)
        return inner, started(self.frozen, pattern, found, t0, y0)

    def pins(self, solver_state: Any, like: Scalar) -> Float[Array, " K"]:
        """The pinned kinks, as the state carries them."""
        return solver_state[1].pattern.pins.astype(like.dtype)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        inner, track = solver_state
        pattern = track.pattern
        told = self._told(pattern, args)
        if isinstance(self.solver, PrimalDual):
            tried = self._repeated(self.solver, t0, t1, y0, told, inner)
            # Late, the multipliers are what was solved for, and so is z = 0.
            frozen = weighted(self.frozen, tried.inner.log_weights)
            params = tried.state.params
        else:
            jumped = made_jump | track.jumped
            tried = self._along(terms, t0, t1, y0, told, inner, pattern, jumped)
            frozen = self.frozen
            params = onto_pins(frozen, tried.state.params, pattern)
        event = tried.event

        def change() -> tuple[Pattern, Resolution]:
            return self._settle(frozen, params, pattern)

        def keep() -> tuple[Pattern, Resolution]:
            _, found = eqx.filter_eval_shape(change)
            return pattern, jtu.tree_map(lambda s: jnp.zeros(s.shape, s.dtype), found)

        # Kinks in the span of the pinned ones stay at zero unwatched. (A neuron whose
        # weights are zero has more of them than dimensions.) It may have become
        # possible to leave, which no multiplier tells.
        due = event | self._lingers(params, pattern)
        # Under vmap, of a lane without an event nothing is kept of `change`.
        after, found = jax.lax.cond(
            anywhere(due), lambda: _select(due, change(), keep()), keep
        )
        turned = jnp.any(after.branches != pattern.branches)
        turned = turned | jnp.any(after.pins != pattern.pins)
        kink = jnp.where(event, tried.kink, after.pins[0])
        met = event | (due & turned)
        spent, inner = self._spent(track, tried, due), tried.inner
        if isinstance(self.solver, PrimalDual):
            inner = self._restarted(tried, params, after, told, due)
        before = y0.work
        assert before is not None
        state = eqx.tree_at(
            lambda s: (s.params, s.pins, s.cut, s.work),
            tried.state,
            (params, after.pins.astype(tried.end.dtype), tried.end, before + spent),
        )
        lost = track.failure != 0
        error = jtu.tree_map(lambda e: jnp.where(lost, jnp.inf, e), tried.error)
        error = eqx.tree_at(lambda e: e.work, error, spent)
        series = in_series(self.frozen, after)
        log_time = log_time_of(state)
        new = logged(track, after, found, met, kink, series, t0, tried.end, log_time)
        info = {
            "inner": tried.dense,
            "begin": t0,
            "trial": tried.trial,
            "end": tried.end,
        }
        return state, error, info, (inner, new), tried.result

    def _along(
        self, terms, t0, t1, y0, told, inner, pattern: Pattern, jumped: BoolScalar
    ) -> _Trial:
        """An explicit step, cut on its dense output."""
        y1, error, dense, inner, result = self.solver.step(
            terms, t0, t1, y0, told, inner, jumped
        )
        path = self.solver.interpolation_cls(t0=t0, t1=t1, **dense)

        def at(fraction: Any) -> FlowState:
            return path.evaluate(t0 + fraction * (t1 - t0))

        slack = least_of(y0.dissipated)

        def left(fraction: Any) -> tuple[Scalar, BoolScalar, IntScalar, None]:
            value, kink = margin(self.frozen, at(fraction).params, pattern, slack)
            return value, value >= -slack, kink, None

        found = first_crossing(left, _NODES, slack, y0.dissipated.dtype)
        event = found.found
        return _Trial(
            state=_select(event, at(found.fraction), y1),
            error=error,
            dense=dense,
            inner=inner,
            trial=t1,
            end=jnp.where(event, t0 + found.fraction * (t1 - t0), t1),
            event=event,
            kink=found.about,
            looks=found.count,
            result=result,
        )

    def _repeated(self, solver: PrimalDual, t0, t1, y0, told: Holding, inner) -> _Trial:
        """An implicit step, repeated up to where its pattern ceases to fit."""
        slack = least_of(y0.dissipated)
        pattern = told.pattern

        def step(fraction: Any) -> tuple[Scalar, BoolScalar, Any, Any]:
            end = jnp.where(fraction >= 1, t1, t0 + fraction * (t1 - t0))
            y1, error, dense, after, stages = solver.advance(t0, end, y0, told, inner)
            inside, near = jax.vmap(lambda p: room(self.frozen, p, pattern))(stages)
            first = jnp.argmin(inside)
            left, kink = room(self.frozen, y1.params, pattern)
            kink = jnp.where(inside[first] < left, near[first], kink)
            left = jnp.minimum(inside[first], left)
            given = weighted(self.frozen, after.log_weights)
            within, pin = multipliers(given, y1.params, pattern, slack, thrifty=False)
            kink = jnp.where(within < left, pin, kink)
            value = jnp.minimum(within, left)
            value = jnp.where(jnp.isfinite(error.dissipated), value, jnp.nan)
            close = (left >= -_NEAR) & (within >= -_NEAR_SHARE)
            return value, close, (y1, error, dense, after, end, kink), error.work

        start, _ = room(self.frozen, y0.params, pattern)
        inside = jnp.minimum(inner.shares, 1 - inner.shares) + slack
        start = jnp.minimum(start, jnp.min(inside))
        found = first_crossing(step, (1.0,), slack, y0.dissipated.dtype, start)
        y1, error, dense, after, end, kink = found.about
        error = eqx.tree_at(lambda e: e.work, error, found.cost)
        return _Trial(
            state=y1,
            error=error,
            dense=dense,
            inner=after,
            trial=end,
            end=end,
            event=found.found,
            kink=kink,
            looks=found.count,
            result=dfx.RESULTS.successful,
        )

    def _restarted(
        self,
        tried: _Trial,
        params: Params,
        after: Pattern,
        told: Holding,
        due: BoolScalar,
    ) -> Any:
        """The implicit solver's state on the next pattern."""
        solver: Any = self.solver
        at = eqx.tree_at(lambda h: h.pattern, told, after)

        def again() -> Any:
            return solver.restarted(tried.end, params, at, tried.inner.log_weights)

        return jax.lax.cond(
            anywhere(due),
            lambda: _select(due, again(), tried.inner),
            lambda: tried.inner,
        )

    def _lingers(self, params: Params, pattern: Pattern) -> BoolScalar:
        """Whether kinks are at zero that are not pinned, since the last event."""
        free = pattern.at_zero & ~pattern.pinned

        def look() -> BoolScalar:
            z = self.frozen.pre_activations(params, pattern.branches)
            slack = least_of(z)
            return jnp.any(free & (jnp.abs(z) <= 10 * slack * pattern.sizes))

        return jax.lax.cond(anywhere(free), look, lambda: jnp.asarray(False))

    def _spent(self, track: Track, tried: _Trial, event: BoolScalar) -> Work:
        # In gradients, with the rows of pinned kinks at three of one example each.
        dtype = track.readings.dtype
        looks = tried.looks.astype(dtype)
        pinned = track.pattern.num_pins.astype(dtype)
        each = 1 + 3 * pinned / self.frozen.num_groups
        check = jnp.where(pinned > 0, _FORWARD + each, _FORWARD)
        total = looks * check + jnp.where(event, _SETTLE, 0)
        if isinstance(self.solver, PrimalDual):
            work: Any = tried.error.work
            total = total + 3 * _FORWARD * looks  # at the stages
            return work + Work(jnp.zeros((), dtype), jnp.asarray(total, dtype))
        tableau: Any = self.solver.tableau
        stages = tableau.num_stages - tableau.fsal + track.jumped.astype(dtype)
        total = total + stages * each
        return Work(jnp.zeros((), dtype), jnp.asarray(total, dtype))


def inner_solver(solver: dfx.AbstractSolver) -> dfx.AbstractSolver:
    """What steps: the solver, or the one that is made to follow kinks."""
    return solver.solver if isinstance(solver, Filippov) else solver


def _select(condition: BoolScalar, a: Any, b: Any) -> Any:
    return jtu.tree_map(lambda x, y: jnp.where(condition, x, y), a, b)


@functools.cache
def _cut_interpolation(inner_cls: Any) -> Any:
    """Dense output of a step that was cut short: one class for each method."""

    class Cut(dfx.AbstractLocalInterpolation):
        t0: Any
        t1: Any
        inner: Any
        end: Any

        def __init__(self, *, t0, t1, inner, begin, trial, end):
            self.t0, self.t1, self.end = t0, t1, end
            self.inner = inner_cls(t0=begin, t1=trial, **inner)

        def evaluate(self, t0, t1=None, left=True):
            del left
            if t1 is not None:
                return jtu.tree_map(jnp.subtract, self.evaluate(t1), self.evaluate(t0))
            # Beyond the cut the branches are others.
            return self.inner.evaluate(jnp.minimum(t0, self.end))

    return Cut
