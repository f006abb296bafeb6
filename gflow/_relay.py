"""Three legs: an explicit solver, the late phase's, and what is left if that fails."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu

from ._engine import Position
from ._events import separation
from ._flow import FlowState
from ._leg import PATIENCE, Leg, Runner
from ._solution import RESULTS
from ._types import BoolScalar, IntScalar, Scalar
from .clocks import LogTime


# Gradients that the late phase costs: for each decade of log t, and to start with. 10
# to 20 steps a decade at 150 to 250 gradients each were measured on networks of 20 to
# 10^5 parameters. Those of an explicit step are Tsit5's.
_LATE_GRADIENTS = 2000.0
_EXPLICIT_GRADIENTS = 6.0
# The largest steps in log t that explicit solvers take late: the stability limit of the
# least stiff problems.
_LARGEST_STEP = 0.5
# log t up to which the late phase is not looked at: compiling it would cost more than
# it saves.
_SHORT = 300.0


class Baton(eqx.Module):
    """Where a relay stands: enough to go on from, bit for bit."""

    positions: tuple[Position, Position, Position]  # the end of each leg
    leg: IntScalar  # the last that ran
    failed: BoolScalar  # whether the late phase did

    @property
    def state(self) -> FlowState:
        """A state, for what the three have in common."""
        return self.positions[0].state


def may_pay(log_span: Any) -> bool:
    """Whether a span of e^log_span is worth the late phase's compilation."""
    return bool(log_span > _SHORT)


def _pays(log_time: Scalar, end: Scalar, step: Scalar) -> BoolScalar:
    """Whether the late phase from u to the end costs less than explicit steps would."""
    explicit = _EXPLICIT_GRADIENTS * (end - log_time) / jnp.minimum(step, _LARGEST_STEP)
    decades = jnp.log10((1 + end) / (1 + log_time))
    return explicit > _LATE_GRADIENTS * (1 + decades)


def relay(
    runners: tuple[Runner, Runner, Runner],
    resumed: Position | Baton | None,
    end: Scalar,
) -> tuple[tuple[Leg, Leg, Leg], Baton, RESULTS]:
    """Runs the legs one after the other; `end` is u = log(1 + t1 - t0).

    The second and the third begin where the one before has stopped, at the same W and
    the same time. Legs that are not needed are run over no time at all: which ones they
    are is only known when the program runs, and differs between lanes under vmap.
    """
    first, late, last = runners
    problem: Any = first.engine.field.field.problem
    same = isinstance(first.route.clock, LogTime)  # the first leg's and the last's

    baton = resumed if isinstance(resumed, Baton) else None
    on_first = jnp.asarray(True)
    failed = jnp.asarray(False)
    if baton is not None:
        # What went on explicitly because the late phase would not have paid is looked
        # at again: now the end is later.
        again = (baton.leg == 2) & ~baton.failed & same
        on_first, failed = (baton.leg == 0) | again, baton.failed
        begin = baton.positions[0]
        if same:
            begin = _select(again, baton.positions[2], begin)
        begin = first.adapted(begin)
    elif resumed is not None:
        assert isinstance(resumed, Position)
        begin = first.adapted(resumed)
    else:
        begin = first.begin()
    apart = separation(problem, begin.state.params) > 0

    def on_to_late(one: Leg, whether: BoolScalar | bool) -> _Handover:
        """The late phase, if it pays, and where to go on from, if that is needed."""
        apart = separation(problem, one.end.state.params) > 0
        slow = one.result == RESULTS.max_steps_reached
        if first.plan.max_steps <= PATIENCE:
            slow = jnp.asarray(False)
        log_time = jnp.asarray(LogTime().reading(one.end_log_elapsed))
        slack = 8 * jnp.finfo(end.dtype).eps
        stopped = on_first & (apart | slow) & (log_time < end * (1 - slack))
        step = one.end.controller_state.next_end - one.end.reading
        step = step if same else jnp.full_like(step, _LARGEST_STEP)
        chosen = stopped & ~failed & _pays(log_time, end, step)
        there = late.taken_over(one.end_log_elapsed, one.end.state)
        on_late = chosen
        if baton is not None:
            there = _select(baton.leg == 1, late.adapted(baton.positions[1]), there)
            on_late = on_late | (baton.leg == 1)
        two = late.run(there, on_late & whether, fresh=chosen)

        # And on, if it is not or has failed.
        broken = on_late & (two.result == RESULTS.unresolved)
        rest = (stopped & ~chosen) | broken
        there = last.taken_over(
            jnp.where(on_late, two.end_log_elapsed, one.end_log_elapsed),
            _select(on_late, last.booked(two.end.state), last.booked(one.end.state)),
        )
        fresh = rest
        if same:
            there = _select(stopped & ~chosen, last.adapted(one.end), there)
            fresh = broken
        if baton is not None:
            resumes = (baton.leg == 2) & ~on_first
            there = _select(resumes, last.adapted(baton.positions[2]), there)
            rest = rest | resumes
        return _Handover(two, there, rest, fresh, on_late, broken)

    active, fresh = on_first & ~apart, jnp.asarray(resumed is None)
    # (Not where every step is kept: the first leg's are few, and would have room for
    # all that the last may take.)
    if same and first.plan.save != "steps":
        one, over, three = _twice(first, begin, active, fresh, on_to_late)
    else:
        one = first.run(begin, active, fresh=fresh)
        over = on_to_late(one, True)
        three = last.run(over.there, over.rest, fresh=over.fresh)
    two, rest, on_late = over.two, over.rest, over.on_late

    end_of = Baton(
        (one.end, two.end, three.end),
        leg=jnp.where(rest, 2, jnp.where(on_late, 1, 0)),
        failed=failed | over.broken,
    )
    result = RESULTS.where(
        rest, three.result, RESULTS.where(on_late, two.result, one.result)
    )
    return (one, two, three), end_of, result


class _Handover(eqx.Module):
    # The second leg, and what the third is to begin with.
    two: Leg
    there: Position
    rest: BoolScalar
    fresh: BoolScalar
    on_late: BoolScalar
    broken: BoolScalar


def _twice(
    explicit: Runner,
    begin: Position,
    active: BoolScalar,
    fresh: BoolScalar,
    on_to_late: Callable[[Leg, BoolScalar], _Handover],
) -> tuple[Leg, _Handover, Leg]:
    """The three legs as two rounds of one loop, as the first and the last are by one
    solver: compiling it twice is what would take longest.
    """

    def round_(carry: Any, is_first: BoolScalar) -> Any:
        begin, active, fresh = carry
        leg = explicit.run(begin, active, fresh=fresh, watching=is_first)
        # (In the second round over no time at all.)
        over = on_to_late(leg, is_first)
        return (over.there, over.rest, over.fresh), (leg, over)

    rounds = jnp.asarray([True, False])
    _, (legs, overs) = jax.lax.scan(round_, (begin, active, fresh), rounds)
    one, over = jtu.tree_map(lambda x: x[0], (legs, overs))
    return one, over, jtu.tree_map(lambda x: x[1], legs)


def _select(condition: BoolScalar, a: Any, b: Any) -> Any:
    return jtu.tree_map(lambda x, y: jnp.where(condition, x, y), a, b)


class Joined(eqx.Module):
    """What the legs kept, in one."""

    log_elapsed: Any
    states: FlowState
    num_kept: IntScalar
    end_state: FlowState
    end_log_elapsed: Scalar


def joined(legs: tuple[Leg, ...], *, given: bool) -> Joined:
    """The kept states of all legs, each where it ran; with the end of the last one."""
    tracks = _with_equal_room([_track(leg) for leg in legs])
    whole = tracks[0]
    put = _merged if given else _appended
    for leg, track in zip(legs[1:], tracks[1:], strict=True):
        whole = put(whole, track, leg.stats["num_steps"] > 0)
    return whole


def _with_equal_room(tracks: list["Joined"]) -> list["Joined"]:
    """The tracks with as much room for pinned kinks each; none is pinned in the new."""
    if tracks[0].states.pins is None:
        return tracks
    ends: list[Any] = [track.end_state.pins for track in tracks]
    most = max(pins.shape[0] for pins in ends)

    def padded(state: FlowState) -> FlowState:
        pins: Any = state.pins
        more = [(0, 0)] * (pins.ndim - 1) + [(0, most - pins.shape[-1])]
        blank = float(jnp.finfo(pins.dtype).max)
        pins = jnp.pad(pins, more, constant_values=blank)
        return eqx.tree_at(lambda s: s.pins, state, pins)

    return [
        eqx.tree_at(
            lambda t: (t.states, t.end_state),
            track,
            (padded(track.states), padded(track.end_state)),
        )
        for track in tracks
    ]


def _track(leg: Leg) -> Joined:
    # Without what only one of the legs keeps.
    def plain(state: FlowState) -> FlowState:
        return eqx.tree_at(
            lambda s: (s.log_time, s.work, s.cut, s.switching, s.crowding),
            state,
            (None, None, None, None, None),
            is_leaf=lambda x: x is None,
        )

    return Joined(
        leg.log_elapsed,
        plain(leg.states),
        leg.num_kept,
        plain(leg.end.state),
        leg.end_log_elapsed,
    )


def _merged(a: Joined, b: Joined, ran: BoolScalar) -> Joined:
    """Of the same times, those that `a` has not met from `b`."""
    met = jnp.arange(a.log_elapsed.shape[0]) < a.num_kept
    count = jnp.where(ran, jnp.maximum(a.num_kept, b.num_kept), a.num_kept)

    def pick(x, y):
        return jnp.where(met.reshape((-1,) + (1,) * (x.ndim - 1)), x, y)

    return Joined(
        pick(a.log_elapsed, b.log_elapsed),
        jtu.tree_map(pick, a.states, b.states),
        count,
        _select(ran, b.end_state, a.end_state),
        jnp.where(ran, b.end_log_elapsed, a.end_log_elapsed),
    )


def _appended(a: Joined, b: Joined, ran: BoolScalar) -> Joined:
    """`a`, then `b` without its start, which is the end of `a`; padded with the end."""
    most_a, most_b = a.log_elapsed.shape[0], b.log_elapsed.shape[0]
    slot = jnp.arange(most_a + most_b - 1)
    from_a = ~ran | (slot < a.num_kept)
    in_a = jnp.minimum(slot, most_a - 1)
    in_b = jnp.clip(slot - a.num_kept + 1, 0, most_b - 1)

    def append(x, y):
        mask = from_a.reshape((-1,) + (1,) * (x.ndim - 1))
        return jnp.where(mask, x[in_a], y[in_b])

    return Joined(
        append(a.log_elapsed, b.log_elapsed),
        jtu.tree_map(append, a.states, b.states),
        a.num_kept + jnp.where(ran, b.num_kept - 1, 0),
        _select(ran, b.end_state, a.end_state),
        jnp.where(ran, b.end_log_elapsed, a.end_log_elapsed),
    )
