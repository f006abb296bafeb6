"""A solver that follows the inclusion from kink to kink."""

from typing import Any, ClassVar

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float

from .._flow import FlowState, Work
from .._frozen import Frozen
from .._inclusion import InclusionField, Pattern, least_of, multipliers, room
from .._lanes import anywhere, where_due
from .._resolve import Resolution
from .._settle import settle
from .._types import BoolScalar, IntScalar, Params, Scalar
from ._crossing import first_crossing
from ._primal_dual import Holding, PrimalDual, weighted
from ._stability import crowding, reach_of
from ._tolerance import Tolerance
from ._track import Track, Turn, in_series, log_time_of, logged, started
from ._walk import cut_interpolation, each_look, each_stage, select, walk


_FORWARD = 1 / 3  # of a gradient
_SETTLE = 4.0  # gradients, about: sizes, branches, rows
# How far on the other side a repeated implicit step may end: z, of its size, and
# multipliers, which Newton's method leaves less accurate.
_NEAR, _NEAR_SHARE = 1e-9, 1e-5
# Steps of the reading with which kinks are left that no multiplier watches (see
# `_leaving.py`) where there is no dense output to find the place on.
_LEAVING = 1e-7
# Errors of the model's outputs, in units of rtol.
_OUTPUTS = 10.0


class _Trial(eqx.Module):
    # An implicit step, or the part of it up to where its pattern ceases to fit.
    state: FlowState
    error: FlowState
    dense: Any
    inner: Any  # the solver's state
    end: Scalar
    event: BoolScalar
    kink: IntScalar
    looks: IntScalar


class Filippov(dfx.AbstractAdaptiveSolver):
    r"""Integrates the smooth problem of one pattern of branches and pins at a time.

    Where in a step a pre-activation changes sign, or a pinned kink's multiplier leaves
    [0, 1], the inclusion goes on on another pattern (Filippov 1988, Chapter 2).

    Where the solver is explicit the place is found on its dense output, and what the
    kink changes about the rest of the step is added to that (`_bends.py`), for as many
    kinks as the error allows. There the step is cut short, and the step-size controller
    is told where (`FlowState.cut`). The dense output of `PrimalDual` is not accurate
    over its long steps, which are repeated up to the first kink instead.
    """

    solver: dfx.AbstractERK | PrimalDual
    frozen: Frozen
    branch: str = eqx.field(static=True)
    capacity: int = eqx.field(static=True)
    # What the step-size controller tolerates; explicit solvers ask.
    tolerance: Tolerance | None = None
    most: int = eqx.field(static=True, default=1)  # kinks in the course of one step
    term_structure: ClassVar = dfx.AbstractTerm

    @property
    def interpolation_cls(self) -> Any:  # pyright: ignore
        return cut_interpolation(self.solver.interpolation_cls)

    def order(self, terms):
        return self.solver.order(terms)

    def error_order(self, terms):
        return self.solver.error_order(terms)

    def func(self, terms, t0, y0, args):
        return terms.vf(t0, y0, None)

    def _settle(
        self,
        frozen: Frozen,
        params: Params,
        before: Pattern | None,
        due: BoolScalar | bool = True,
    ) -> tuple[Pattern, Resolution]:
        held = self.tolerance
        return settle(
            frozen,
            params,
            before,
            capacity=self.capacity,
            branch=self.branch,
            precision=0.0 if held is None else _OUTPUTS * held.rtol,
            due=due,
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

    @eqx.filter_jit
    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        inner, track = solver_state
        rejected = track.failure != 0
        if isinstance(self.solver, PrimalDual):
            state, error, info, after, late = self._late_step(
                t0, t1, y0, args, inner, track
            )
            rejected, result = rejected | late, dfx.RESULTS.successful
        else:
            state, error, info, after, result = self._explicit_step(
                terms, t0, t1, y0, args, inner, track, made_jump
            )
        error = eqx.tree_at(
            lambda e: e.params,
            error,
            jtu.tree_map(lambda e: jnp.where(rejected, jnp.inf, e), error.params),
        )
        return state, error, info, after, result

    def _explicit_step(self, terms, t0, t1, y0, args, inner, track, made_jump):
        """A step, with the kinks met on its dense output."""
        solver: Any = self.solver
        told = self._told(track.pattern, args)
        jumped = made_jump | track.jumped
        y1, error, dense, inner, result = solver.step(
            terms, t0, t1, y0, told, inner, jumped
        )
        if y0.crowding is not None:
            near = crowding(reach_of(solver, dense["k"].params, y1.params))
            error = eqx.tree_at(lambda e: e.crowding, error, near)

        def turned(state, pattern, event, asked) -> Turn:
            return self._turned(self.frozen, state.params, pattern, event, asked)

        def velocity(pattern: Pattern) -> Any:
            return lambda t, y: terms.vf(t, y, self._told(pattern, args))

        assert self.tolerance is not None
        way = walk(
            solver,
            turned,
            self._noted,
            velocity,
            self.frozen,
            dense,
            t0,
            t1,
            y0,
            y1,
            error,
            track,
            tolerance=self.tolerance,
            most=self.most,
        )
        dtype = way.spent.dtype
        stages = solver.tableau.num_stages - solver.tableau.fsal
        stages = jnp.where(jumped, stages + 1, stages).astype(dtype)
        stages = stages * each_stage(self.frozen, track.pattern)
        spent = Work(jnp.zeros((), dtype), jnp.asarray(way.spent + stages, dtype))
        end = jnp.where(way.begin == 1, t1, t0 + way.begin * (t1 - t0))
        state = self._kept(y0, way.state, way.state.params, way.track, end, spent)
        error = eqx.tree_at(lambda e: e.work, way.error, spent)
        info = {
            "inner": dense,
            "begin": t0,
            "trial": t1,
            "end": end,
            "bends": way.bends,
        }
        # The last stage was on the first pattern.
        turned = way.track.num_events != track.num_events
        after = eqx.tree_at(lambda t: t.jumped, way.track, turned)
        return state, error, info, (inner, after), result

    def _late_step(self, t0, t1, y0, args, inner, track):
        """An implicit step, up to the first kink; and whether it has gone too far."""
        solver: Any = self.solver
        told = self._told(track.pattern, args)
        tried = self._repeated(solver, t0, t1, y0, told, inner)
        # Late, the multipliers are what was solved for, and so is z = 0.
        frozen = weighted(self.frozen, tried.inner.log_weights)
        params = tried.state.params
        turn = self._turned(frozen, params, track.pattern, tried.event)
        end = tried.end
        after = self._noted(tried.state, track, turn, tried.kink, t0, end, end - t0)
        due = turn.due
        spent = self._spent(track, tried, due)
        inner = self._restarted(tried, params, after.pattern, told, due)
        state = self._kept(y0, tried.state, params, after, tried.end, spent)
        error = eqx.tree_at(lambda e: e.work, tried.error, spent)
        info = {
            "inner": tried.dense,
            "begin": t0,
            "trial": tried.end,
            "end": tried.end,
        }
        short = jnp.maximum(_LEAVING, 64 * jnp.finfo(end.dtype).eps * jnp.abs(end))
        late = turn.lingered & turn.turned & ~turn.event & (end - t0 > short)
        return state, error, info, (inner, after), late

    def _turned(
        self,
        frozen: Frozen,
        params: Params,
        pattern: Pattern,
        event: BoolScalar,
        asked: BoolScalar | bool = True,
    ) -> Turn:
        """The pattern on which the flow goes on from a point; found where it ceases to
        fit there, an event, or may have.
        """
        # Kinks in the span of the pinned ones stay at zero unwatched. (A neuron whose
        # weights are zero has more of them than dimensions.) It may have become
        # possible to leave, which no multiplier tells.
        lingers = self._lingers(params, pattern)
        due = asked & (event | lingers)
        after, found = self._settle(frozen, params, pattern, due)
        other = jnp.any(after.branches != pattern.branches)
        other = (other | jnp.any(after.pins != pattern.pins)) & ~found.unchanged
        # A pattern that fits is not left for one that may not.
        other = other & found.consistent
        after = select(event | other, after, pattern)
        return Turn(after, found, event, due, lingers, event | other)

    def _noted(
        self,
        state: FlowState,
        track: Track,
        turn: Turn,
        kink: IntScalar,
        start: Scalar,
        end: Scalar,
        length: Scalar,
    ) -> Track:
        """The track after a step, or the part of it up to a turn."""
        before, after = track.pattern.pins, turn.after.pins
        # Without an event, it is about a pin that was left.
        gone = (before < self.frozen.total) & ~jnp.isin(before, after)
        left = jnp.where(jnp.any(gone), before[jnp.argmax(gone)], after[0])
        kink = jnp.where(turn.event, kink, left)
        series = in_series(self.frozen, turn.after)
        # Where events follow each other closely, the place was not looked for.
        late = turn.lingered & ~turn.event & (track.stalls > 0)
        doubtful = turn.due & ~turn.turned & ~turn.found.consistent
        log_time = log_time_of(state)
        return logged(
            track,
            turn.after,
            turn.found,
            turn.turned,
            kink,
            series,
            late,
            doubtful,
            start,
            end,
            length,
            log_time,
        )

    def _kept(
        self,
        y0: FlowState,
        state: FlowState,
        params: Params,
        track: Track,
        end: Scalar,
        spent: Work,
    ) -> FlowState:
        """The state at the end of a step."""
        before = y0.work
        assert before is not None
        return eqx.tree_at(
            lambda s: (s.params, s.pins, s.cut, s.work),
            state,
            (params, track.pattern.pins.astype(end.dtype), end, before + spent),
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
            end=end,
            event=found.found,
            kink=kink,
            looks=found.count,
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

        return where_due(due, again, lambda blank: tried.inner)

    def _lingers(self, params: Params, pattern: Pattern) -> BoolScalar:
        """Whether kinks are at zero that are not pinned, since the last event."""
        free = pattern.at_zero & ~pattern.pinned

        def look() -> BoolScalar:
            z = self.frozen.pre_activations(params, pattern.branches)
            slack = least_of(z)
            return jnp.any(free & (jnp.abs(z) <= 10 * slack * pattern.sizes))

        return jax.lax.cond(anywhere(free), look, lambda: jnp.asarray(False))

    def _spent(self, track: Track, tried: _Trial, event: BoolScalar) -> Work:
        dtype = track.readings.dtype
        pinned = track.pattern.num_pins
        check = _FORWARD + jnp.where(
            pinned > 0, each_look(self.frozen, track.pattern), 0.0
        )
        # Signs are looked at in the stages too.
        total = tried.looks * (check + 3 * _FORWARD) + jnp.where(event, _SETTLE, 0.0)
        work: Any = tried.error.work
        return work + Work(jnp.zeros((), dtype), jnp.asarray(total, dtype))
