"""An explicit Runge-Kutta method that follows the inclusion from kink to kink."""

import functools
from typing import Any, ClassVar

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Bool, Float, Int

from .._flow import FlowState, Work
from .._frozen import Frozen
from .._inclusion import InclusionField, Pattern, least_of, margin, onto_pins
from .._lanes import anywhere
from .._resolve import Resolution, settle
from .._types import BoolScalar, IntScalar, Params, Scalar


_NODES = (0.25, 0.5, 0.75, 1.0)  # of a step, where the signs are looked at
_LOCATE = 60  # iterations at most
_STALLS = 50  # events in a row with hardly any time between them:
_STALLED = 1e4  # roundings of the reading
_FORWARD = 1 / 3  # of a gradient
_SETTLE = 4.0  # gradients, about: sizes, branches, rows
LOGGED = 512  # events that are kept

CROWDED, DISCONTINUOUS, STALLED = 1, 2, 3


class Track(eqx.Module):
    """Where the solve is, and the events on the way."""

    pattern: Pattern
    jumped: BoolScalar  # whether the pattern has just changed
    stalls: IntScalar
    failure: IntScalar  # 0, or one of the above
    num_events: IntScalar
    num_ambiguous: IntScalar
    num_unsure: IntScalar
    num_in_series: IntScalar
    # Of the first events: when, which kink, how many pins after it, whether ambiguous.
    readings: Float[Array, " events"]
    log_times: Float[Array, " events"]
    kinks: Int[Array, " events"]
    pins: Int[Array, " events"]
    ambiguous: Bool[Array, " events"]


class Filippov(dfx.AbstractAdaptiveSolver):
    r"""Integrates the smooth problem of one pattern of branches and pins at a time.

    A step in whose course a pre-activation changes sign, or a pinned kink's multiplier
    leaves [0, 1], is cut short there, and the next one begins on the pattern on which
    the inclusion goes on (Filippov 1988, Chapter 2). Diffrax's loop is the only one:
    the step-size controller is told where the step was cut (`FlowState.cut`).
    """

    solver: dfx.AbstractERK
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
        self, params: Params, before: Pattern | None
    ) -> tuple[Pattern, Resolution]:
        return settle(
            self.frozen, params, before, capacity=self.capacity, branch=self.branch
        )

    def init(self, terms, t0, t1, y0, args):
        pattern, found = self._settle(y0.params, None)
        field = InclusionField(self.frozen, pattern)
        inner = self.solver.init(terms, t0, t1, y0, field)
        dtype = jnp.result_type(y0.dissipated)
        whole = jnp.asarray(0)
        ambiguous = found.ambiguous
        track = Track(
            pattern=pattern,
            jumped=jnp.asarray(True),
            stalls=whole,
            failure=_failure(found),
            num_events=ambiguous.astype(whole.dtype),
            num_ambiguous=ambiguous.astype(whole.dtype),
            num_unsure=(~found.consistent).astype(whole.dtype),
            num_in_series=_in_series(self.frozen, pattern).astype(whole.dtype),
            readings=jnp.full(LOGGED, jnp.nan, dtype).at[0].set(t0),
            log_times=jnp.full(LOGGED, jnp.nan, dtype).at[0].set(_log_time(y0)),
            kinks=jnp.full(LOGGED, -1, whole.dtype).at[0].set(found.index[0]),
            pins=jnp.zeros(LOGGED, whole.dtype).at[0].set(pattern.num_pins),
            ambiguous=jnp.zeros(LOGGED, bool).at[0].set(ambiguous),
        )
        return inner, track

    def pins(self, solver_state: Any, like: Scalar) -> Float[Array, " K"]:
        """The pinned kinks, as the state carries them."""
        return solver_state[1].pattern.pins.astype(like.dtype)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        inner, track = solver_state
        field = InclusionField(self.frozen, track.pattern)
        y1, error, dense, inner, result = self.solver.step(
            terms, t0, t1, y0, field, inner, made_jump | track.jumped
        )
        path = self.solver.interpolation_cls(t0=t0, t1=t1, **dense)
        pattern = track.pattern

        def at(fraction: Any) -> FlowState:
            return path.evaluate(t0 + fraction * (t1 - t0))

        slack = least_of(y0.dissipated)

        def room(fraction: Any) -> tuple[Scalar, IntScalar]:
            return margin(self.frozen, at(fraction).params, pattern, slack)

        fraction, event, kink, looks = _first_crossing(room, slack, y0.dissipated.dtype)
        state = _select(event, at(fraction), y1)
        params = onto_pins(self.frozen, state.params, pattern)
        state = eqx.tree_at(lambda s: s.params, state, params)

        def change() -> tuple[Pattern, Resolution]:
            return self._settle(params, pattern)

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
        kink = jnp.where(event, kink, after.pins[0])
        met = event | (due & turned)
        end = jnp.where(event, t0 + fraction * (t1 - t0), t1)
        spent = self._spent(track, looks, due)
        before = y0.work
        assert before is not None
        state = eqx.tree_at(
            lambda s: (s.pins, s.cut, s.work),
            state,
            (after.pins.astype(end.dtype), end, before + spent),
        )
        lost = track.failure != 0
        error = jtu.tree_map(lambda e: jnp.where(lost, jnp.inf, e), error)
        error = eqx.tree_at(lambda e: e.work, error, spent)
        series = _in_series(self.frozen, after)
        new = _logged(track, after, found, met, kink, series, t0, end, _log_time(state))
        info = {"inner": dense, "begin": t0, "trial": t1, "end": end}
        return state, error, info, (inner, new), result

    def _lingers(self, params: Params, pattern: Pattern) -> BoolScalar:
        """Whether kinks are at zero that are not pinned, since the last event."""
        free = pattern.at_zero & ~pattern.pinned

        def look() -> BoolScalar:
            z = self.frozen.pre_activations(params, pattern.branches)
            slack = least_of(z)
            return jnp.any(free & (jnp.abs(z) <= 10 * slack * pattern.sizes))

        return jax.lax.cond(anywhere(free), look, lambda: jnp.asarray(False))

    def _spent(self, track: Track, looks: IntScalar, event: BoolScalar) -> Work:
        # In gradients, with the rows of pinned kinks at three of one example each.
        dtype = track.readings.dtype
        tableau: Any = self.solver.tableau
        stages = tableau.num_stages - tableau.fsal + track.jumped.astype(dtype)
        pinned = track.pattern.num_pins.astype(dtype)
        each = 1 + 3 * pinned / self.frozen.num_groups
        check = jnp.where(pinned > 0, _FORWARD + each, _FORWARD)
        total = (
            stages * each + looks.astype(dtype) * check + jnp.where(event, _SETTLE, 0)
        )
        return Work(jnp.zeros((), dtype), jnp.asarray(total, dtype))


def _in_series(frozen: Frozen, pattern: Pattern) -> BoolScalar:
    """Whether two kinks of one example are pinned that may depend on each other."""
    if not frozen.in_series:
        return jnp.asarray(False)
    return jnp.any(jnp.sum(pattern.pinned, axis=1) > 1)


def _failure(found: Resolution) -> IntScalar:
    crowded = jnp.where(found.crowded, CROWDED, 0)
    return jnp.where(found.jumps & ~found.crowded, DISCONTINUOUS, crowded)


def _log_time(state: FlowState) -> Scalar:
    blank = jnp.full_like(state.dissipated, jnp.nan)
    return blank if state.log_time is None else state.log_time


def _logged(
    track: Track,
    pattern: Pattern,
    found: Resolution,
    event: BoolScalar,
    kink: IntScalar,
    series: BoolScalar,
    start: Any,
    end: Any,
    log_time: Scalar,
) -> Track:
    eps = jnp.finfo(end.dtype).eps
    still = event & (end - start <= _STALLED * eps * jnp.abs(end))
    stalls = jnp.where(still, track.stalls + 1, 0)
    failure = jnp.where(stalls > _STALLS, STALLED, _failure(found))
    failure = jnp.where(event, failure, 0)
    slot = jnp.where(event, track.num_events, LOGGED)

    def write(buffer: Array, x: Any) -> Array:
        return buffer.at[slot].set(jnp.asarray(x, buffer.dtype), mode="drop")

    def counted(count: IntScalar, condition: BoolScalar) -> IntScalar:
        return count + (event & condition).astype(count.dtype)

    return Track(
        pattern=pattern,
        jumped=event,
        stalls=stalls,
        failure=jnp.where(track.failure != 0, track.failure, failure),
        num_events=counted(track.num_events, jnp.asarray(True)),
        num_ambiguous=counted(track.num_ambiguous, found.ambiguous),
        num_unsure=counted(track.num_unsure, ~found.consistent),
        num_in_series=counted(track.num_in_series, series),
        readings=write(track.readings, end),
        log_times=write(track.log_times, log_time),
        kinks=write(track.kinks, kink),
        pins=write(track.pins, pattern.num_pins),
        ambiguous=write(track.ambiguous, found.ambiguous),
    )


def _first_crossing(function, slack, dtype):
    """Where a function first falls below zero in (0, 1], if at any of the nodes.

    Between the nodes by regula falsi in the Illinois variant, with every third step a
    bisection; on the far side, at a value above -slack if it is continuous. Returns the
    place, whether there is one, what the function says is nearest there, and the number
    of evaluations.
    """
    nodes = jnp.asarray(_NODES, dtype)
    tiny = 4 * float(jnp.finfo(dtype).eps)

    class Search(eqx.Module):
        low: Any
        high: Any
        value: Any  # at `high`
        low_weight: Any
        high_weight: Any
        nearest: Any
        found: Any
        node: Any
        count: Any

    def goes_on(s: Search):
        near = (s.high - s.low <= tiny * s.high) | (s.value >= -slack)
        looking = ~s.found & (s.node < len(_NODES))
        return looking | (s.found & ~near & (s.count < _LOCATE))

    def body(s: Search):
        span = s.low_weight - s.high_weight
        x = s.low + (s.high - s.low) * s.low_weight / jnp.where(span > 0, span, 1)
        inside = (x > s.low) & (x < s.high) & (s.count % 3 != 2)
        # Where the least of several margins is flat until another one falls, secants
        # get nowhere.
        inside = inside & (s.low_weight > 4 * slack)
        x = jnp.where(inside, x, 0.5 * (s.low + s.high))
        x = jnp.where(s.found, x, nodes[jnp.minimum(s.node, len(_NODES) - 1)])
        value, nearest = function(x)
        # (A state that is not a number is not an event, but a step to be rejected.)
        fell = value < 0
        # A side that is kept counts half.
        low_weight = jnp.where(s.found, 0.5 * s.low_weight, s.low_weight)
        return Search(
            low=jnp.where(fell, s.low, x),
            high=jnp.where(fell, x, s.high),
            value=jnp.where(fell, value, s.value),
            low_weight=jnp.where(fell, low_weight, value),
            high_weight=jnp.where(fell, value, 0.5 * s.high_weight),
            nearest=jnp.where(fell, nearest, s.nearest),
            found=s.found | fell,
            node=s.node + 1,
            count=s.count + 1,
        )

    zero, one = jnp.zeros((), dtype), jnp.ones((), dtype)
    whole = jnp.asarray(0)
    first = Search(
        low=zero,
        high=one,
        value=-one,
        low_weight=jnp.asarray(slack, dtype),
        high_weight=-one,
        nearest=whole,
        found=jnp.asarray(False),
        node=whole,
        count=whole,
    )
    last = jax.lax.while_loop(goes_on, body, first)
    return last.high, last.found, last.nearest, last.count


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
