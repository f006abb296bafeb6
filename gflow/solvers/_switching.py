r"""A solver that steps across kinks, and along them, under error control.

Each step is made with the slopes of all kinks held fixed, where the flow is smooth. At
its end the signs of all pre-activations tell which kinks were crossed, and slopes
outside of [0, 1] which pinned kinks hold the flow no longer. The end is corrected for
all of them at once, by

$$d = h\,\bigl(v(W_1; \bar s) - v(W_1; s)\bigr),\qquad
  \bar s_k = s_k + (1-\theta_k)(s_k^{new} - s_k),$$

θ_k the fraction of the step at which kink k is crossed. What this leaves is of second
order in h. It is estimated, corrected for, and held to the tolerance: steps across
kinks are as long as that allows. This is event-capturing time stepping, as for
nonsmooth mechanical systems (Acary & Brogliato 2008, "Numerical methods for nonsmooth
dynamical systems").
"""

from typing import Any, ClassVar

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Bool, Float

from .._flow import FlowField, FlowState, SwitchingError, Work
from .._frozen import Frozen
from .._inclusion import mark
from .._lanes import anywhere, where_due
from .._norms import norms, norms_over
from .._settle import settle
from .._sliding import (
    Sides,
    SlidingField,
    crossing_speed,
    is_on_kink,
    measured,
    no_pins,
    onto_pins,
    slopes_along,
)
from .._types import BoolScalar, Params, Scalar
from ..clocks import AbstractTimeClock
from ..fields import GradientField
from ._crossings import Crossings, Cubics, crossings, cubics
from ._sides_after import TANGENT, sides_after
from ._stability import crowding, reach_of
from ._switch_log import SwitchLog, log_time_of
from ._switched import (
    Step,
    bare,
    booked,
    dressed,
    error_of,
    jump_size,
    minus,
    nothing_like,
    path_class,
    positive,
    share,
    stopped,
)
from ._tolerance import Tolerance


# Kinks at a start on kinks for whom the way on is looked for among all there are.
_AT_START = 64
# A slope may be so far outside of [0, 1] before its kink is let go.
_SLACK = 1e-9
# A correction of this size, of what is tolerated, needs no error estimate: what it
# leaves is smaller by h times a Jacobian, which explicit steps hold below 3.4.
_SLIGHT = 0.1
# The part of the velocity across pinned kinks that may be left, in units of rtol.
_PRECISION = 1e-2
# Steps shorter than this many roundings of the clock are not made shorter for kinks.
_SHORTEST = 1e4
# Memory of kinks crossed lately, of which this much is left after a step, and what it
# is where a kink was crossed more than once.
_LATELY, _OFTEN = 0.8, 1.3


class SwitchingState(eqx.Module):
    """What is carried from step to step."""

    inner: Any  # the state of the solver that steps
    sides: Sides
    z: Float[Array, "groups kinks"]
    rate: Float[Array, "groups kinks"]  # dz/dc
    lately: Float[Array, "groups kinks"]  # how often it was crossed, fading
    jumped: BoolScalar  # whether the velocity has just changed
    log: SwitchLog


class Switching(dfx.AbstractAdaptiveSolver):
    """Steps with a solver for smooth flows, across and along all kinks of a model."""

    solver: Any
    frozen: Frozen
    tolerance: Tolerance
    branch: str = eqx.field(static=True)
    capacity: int = eqx.field(static=True)  # kinks that may be pinned at once
    # Whether the flow may start on a kink.
    resolves: bool = eqx.field(static=True)
    term_structure: ClassVar = dfx.AbstractTerm

    @property
    def interpolation_cls(self) -> Any:  # pyright: ignore
        return path_class(self.solver.interpolation_cls)

    def order(self, terms):
        return self.solver.order(terms)

    def error_order(self, terms):
        return self.solver.error_order(terms)

    def func(self, terms, t0, y0, args):
        return terms.vf(t0, y0, None)

    def _told(self, flow: FlowField, sides: Sides) -> FlowField:
        """The flow with the kinks on these sides."""
        return eqx.tree_at(lambda f: f.field, flow, SlidingField(self.frozen, sides))

    def init(self, terms, t0, t1, y0, args) -> SwitchingState:
        frozen, params = self.frozen, y0.params
        dtype = y0.dissipated.dtype
        slopes = (frozen.pre_activations(params, None) > 0).astype(dtype)
        sides = no_pins(frozen, params, slopes, self.capacity)
        enough = (_PRECISION * self.tolerance.rtol).astype(dtype)
        sides = eqx.tree_at(lambda s: s.precision, sides, enough)
        no = jnp.asarray(False)
        ambiguous, unsure = no, no
        if self.resolves:
            # (Which way the flow leaves kinks has no derivative.)
            still, at, near = stopped((self, params, sides))
            sides, ambiguous, unsure = where_due(
                is_on_kink(still.frozen, at),
                lambda: still._resolved(at, near),
                lambda blank: (near, no, no),
            )
        told, inside = self._told(args, sides), bare(y0)
        if not self.resolves:
            # (No kink is pinned, which the compiler need not find out.)
            field = GradientField(frozen.on(slopes))
            told = eqx.tree_at(lambda f: f.field, args, field)
        inner = self.solver.init(terms, t0, t1, inside, told)
        moved = told(jnp.asarray(t0), inside, told)
        z, rate = crossing_speed(frozen, params, sides.slopes, moved.params)
        log = SwitchLog.started(dtype, sides, ambiguous, unsure)
        return SwitchingState(
            inner=inner,
            sides=sides,
            z=z,
            rate=rate,
            lately=jnp.zeros_like(z),
            jumped=jnp.asarray(True),
            log=log,
        )

    def _resolved(self, params: Params, sides: Sides) -> Any:
        """The sides on which the flow leaves a start on kinks, and whether there are
        several such, or it is not sure.
        """
        few = min(self.capacity, _AT_START)
        pattern, found = settle(
            self.frozen, params, None, capacity=few, branch=self.branch
        )

        def padded(x: Array, fill: Any) -> Array:
            return jnp.pad(x, (0, self.capacity - few), constant_values=fill)

        slopes = pattern.branches.astype(sides.slopes.dtype)
        pins = padded(pattern.pins, self.frozen.total)
        on = eqx.tree_at(
            lambda s: (s.slopes, s.pins),
            sides,
            (slopes, pins.astype(sides.pins.dtype)),
        )
        on = on.with_slopes(padded(pattern.shares, 0.5))
        return measured(self.frozen, params, on), found.ambiguous, ~found.consistent

    def pins(self, solver_state: SwitchingState, like: Scalar) -> Float[Array, " K"]:
        """The pinned kinks, as the state carries them."""
        return solver_state.sides.pins.astype(like.dtype)

    @eqx.filter_jit
    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        before: SwitchingState = solver_state
        flow: FlowField = args
        told, inside = self._told(flow, before.sides), bare(y0)
        y1, error, dense, inner, result = self.solver.step(
            terms, t0, t1, inside, told, before.inner, made_jump | before.jumped
        )
        if y0.crowding is not None and isinstance(self.solver, dfx.AbstractERK):
            near = crowding(reach_of(self.solver, dense["k"].params, y1.params))
            error = eqx.tree_at(lambda e: e.crowding, error, near)
        good = self.tolerance.measured(inside, y1, error) < 1
        slope, exact = self._slope(told, t0, t1, dense, y1)
        step = self._across(flow, t0, t1, inside, y1, slope, exact, before, good)

        dtype = step.spent.dtype
        stages = self._stages(before, made_jump, dtype)
        spent = Work(jnp.zeros((), dtype), stages + step.spent)
        if error.work is not None and not isinstance(self.solver, dfx.AbstractERK):
            spent = error.work + spent
        assert y0.work is not None
        state = dressed(
            step.state, (y0.work + spent, step.sides.pins.astype(dtype), y0.switching)
        )
        zero = jtu.tree_map(jnp.zeros_like, state.pins)
        error = dressed(error, (spent, zero, step.error))
        info = {
            "inner": dense,
            "first": step.first,
            "linear": step.linear,
            "square": step.square,
            "travelling": (state.work, state.pins, state.switching),
        }
        reading = t0 + step.first * (t1 - t0)
        log = before.log.after(
            reading,
            log_time_of(step.state),
            step.crossed,
            step.pinned,
            step.released,
            step.kink,
            step.sides,
            step.jump,
            self.frozen.in_series,
        )
        after = SwitchingState(
            inner=inner,
            sides=step.sides,
            z=step.z,
            rate=step.rate,
            lately=step.lately,
            jumped=step.jumped,
            log=log,
        )
        return state, error, info, after, result

    def _stages(self, before: SwitchingState, made_jump: Any, dtype: Any) -> Scalar:
        """Gradients of the stages, if the solver does not count for itself."""
        solver = self.solver
        rows = before.sides.num_pins.astype(dtype) / self.frozen.num_groups
        if not isinstance(solver, dfx.AbstractERK):
            return jnp.zeros((), dtype)
        tableau: Any = solver.tableau
        stages = tableau.num_stages - (1 if tableau.fsal else 0)
        stages = jnp.where(before.jumped | made_jump, stages + 1, stages)
        return stages.astype(dtype) * (1 + rows)

    def _slope(
        self, told: FlowField, t0: Any, t1: Any, dense: Any, y1: FlowState
    ) -> tuple[FlowState, bool]:
        """d(state)/dc at the end of the step, and whether it is more than near."""
        solver = self.solver
        tableau: Any = getattr(solver, "tableau", None)
        if isinstance(solver, dfx.AbstractERK) and tableau.fsal:
            h = positive(t1 - t0)
            return jtu.tree_map(lambda k: k[-1] / h.astype(k.dtype), dense["k"]), True
        path = solver.interpolation_cls(t0=t0, t1=t1, **dense)
        t1 = jnp.asarray(t1)
        _, slope = jax.jvp(path.evaluate, (t1,), (jnp.ones_like(t1),))
        return slope, False

    def _across(
        self,
        flow: FlowField,
        t0: Any,
        t1: Any,
        y0: FlowState,
        y1: FlowState,
        slope: FlowState,
        exact: bool,
        before: SwitchingState,
        good: BoolScalar,
    ) -> Step:
        """The step with what kinks changed about it, if they did."""
        frozen, sides = self.frozen, before.sides
        z, rate = crossing_speed(frozen, y1.params, sides.slopes, slope.params)
        h = jnp.asarray(t1 - t0).astype(z.dtype)
        side = jnp.where(sides.slopes > 0.5, 1, -1).astype(z.dtype)
        free = ~sides.pinned
        path = cubics(side, free, before.z, h * before.rate, z, h * rate)
        shares = slopes_along(frozen, y1.params, sides)
        loose = sides.is_real & ~((shares >= -_SLACK) & (shares <= 1 + _SLACK))
        due = good & (jnp.any(path.crossed | path.dips) | jnp.any(loose))
        rows = sides.num_pins.astype(z.dtype) / frozen.num_groups
        looked = jnp.where(sides.num_pins > 0, 1 + 3 * rows, 0) + TANGENT
        kept = sides.with_slopes(jnp.clip(shares, 0, 1))
        nothing = jtu.tree_map(jnp.zeros_like, y1)
        zero, whole = jnp.zeros_like(h), jnp.asarray(0)
        smooth = Step(
            state=y1,
            sides=kept,
            z=z,
            rate=rate,
            lately=_LATELY * before.lately,
            error=SwitchingError(zero, zero, zero),
            first=jnp.ones_like(h),
            linear=nothing,
            square=nothing,
            jumped=jnp.asarray(False),
            spent=looked,
            crossed=whole,
            pinned=whole,
            released=whole,
            kink=whole - 1,
            jump=zero,
        )

        def switched() -> Step:
            step = self._switched(
                flow, t0, t1, y0, y1, slope, exact, before, path, shares, loose
            )
            step = eqx.tree_at(lambda s: s.spent, step, step.spent + looked)
            return jtu.tree_map(lambda a, b: jnp.where(due, a, b), step, smooth)

        return jax.lax.cond(anywhere(due), switched, lambda: smooth)

    def _switched(
        self,
        flow: FlowField,
        t0: Any,
        t1: Any,
        y0: FlowState,
        y1: FlowState,
        slope: FlowState,
        exact: bool,
        before: SwitchingState,
        path: Cubics,
        shares: Float[Array, " K"],
        loose: Bool[Array, " K"],
    ) -> Step:
        frozen, sides, found = self.frozen, before.sides, crossings(path)
        s, pins = sides.slopes, sides.pins
        h = jnp.asarray(t1 - t0).astype(s.dtype)
        known = jnp.where(jnp.isfinite(shares), shares, jnp.round(sides.at_pins()))
        inside = jnp.clip(known, 0, 1)
        # Slopes of pinned kinks move in proportion to the time: this part of the step
        # they should have been at their bound.
        way = known - sides.at_pins()
        over = jnp.where(way == 0, 1, (known - inside) / jnp.where(way == 0, 1, way))
        over = jnp.where(loose, jnp.clip(over, 0, 1), 0)
        first = jnp.minimum(found.first, jnp.min(1 - over, initial=1.0))
        rest = 1 - first
        change = found.beyond * (1 - 2 * jnp.round(s))
        less = 0.5 * over * (inside - known)

        def mean(base: Sides, by: Any) -> Array:
            moved = eqx.tree_at(lambda s: s.slopes, base, base.slopes + change)
            return moved.with_slopes(base.at_pins() + by).slopes

        at_end = sides.with_slopes(known)

        def velocity(time: Any, y: FlowState, slopes: Any, log_rate: Any) -> Any:
            field = GradientField(frozen.on(slopes))
            return flow.moved(time, y, field(y.params), log_rate)

        # The clock runs on as before the first kink, so that W is linear in the
        # slopes.
        if exact and not frozen.in_series and self._tells_time(flow):
            clock: Any = flow.clock
            nothing: Any = None  # of a clock that tells the time
            f_base, log_rate = slope, clock.log_rate(t1, y1.params, None, nothing)
        else:
            f_base, log_rate = velocity(t1, y1, at_end.slopes, None)
        f_mean, _ = velocity(t1, y1, mean(at_end, less), log_rate)
        d = minus(f_mean, f_base, h)
        size = self._size(y0, y1, d)
        big = size > _SLIGHT

        def jump_at_start() -> FlowState:
            base, rate = velocity(t0, y0, sides.slopes, None)
            ended, _ = velocity(t0, y0, mean(sides, less), rate)
            return minus(ended, base, h)

        d_start = jax.lax.cond(anywhere(big), jump_at_start, lambda: d)
        d_start = jtu.tree_map(lambda a, b: jnp.where(big, a, b), d_start, d)

        moved = jtu.tree_map(jnp.add, y1.params, d.params)
        candidates = self._lately_crossed(before, found, h) | sides.pinned
        end, v, z, rate, spent = sides_after(
            frozen, self.capacity, moved, at_end, found, candidates
        )
        y2 = eqx.tree_at(lambda y: y.params, y1, moved)
        f_end, _ = flow.moved(t1, y2, v, log_rate)
        rate = jnp.exp(v.log_speed + log_rate) * rate

        # Where a pinned kink is left because of those that are crossed, or a kink is
        # not crossed after all: then anew with these slopes.
        loosened = jnp.where(loose, pins, s.size)
        left = sides.pinned & ~mark(loosened, s.shape)
        guess = jnp.where(found.crossed, 1 - jnp.round(s), end.slopes)
        others = jnp.any(~end.pinned & (left | (guess != end.slopes)))

        def anew() -> tuple[FlowState, Params, FlowState]:
            part = jnp.where(found.crossed, found.beyond, 0)
            part = jnp.where(sides.pinned, rest, part)
            slopes = at_end.slopes + part * (end.slopes - at_end.slopes)
            slopes = slopes + jnp.where(found.crossed, 0, change)
            slow = sides.with_slopes(known + less).slopes
            slopes = jnp.where(mark(loosened, s.shape), slow, slopes)
            again, _ = velocity(t1, y1, slopes, log_rate)
            d = minus(again, f_base, h)
            moved = jtu.tree_map(jnp.add, y1.params, d.params)
            y2 = eqx.tree_at(lambda y: y.params, y1, onto_pins(frozen, moved, end))
            field = self._told(flow, end).field
            f_end, _ = flow.moved(t1, y2, field(y2.params), log_rate)
            return d, moved, f_end

        d, moved, f_end = jtu.tree_map(
            lambda a, b: jnp.where(others, a, b),
            jax.lax.cond(anywhere(others), anew, lambda: (d, moved, f_end)),
            (d, moved, f_end),
        )

        # The path leaves that of the old slopes like a parabola that starts at `first`
        # with this share of its final slope.
        e = minus(f_end, slope, h * rest)
        gone = jtu.tree_map(jnp.subtract, moved, y1.params)
        weight = jnp.clip(2 / 3 - share(gone, e.params) / 6, 0.2, 0.5)

        def bend() -> FlowState:
            field = self._told(flow, end).field
            on_old, _ = flow.moved(t1, y1, field(y1.params), log_rate)
            return minus(f_end, on_old, h * rest)

        curved = jax.lax.cond(anywhere(big), bend, lambda: nothing_like(f_end))
        curved = jtu.tree_map(lambda a: jnp.where(big, a, 0), curved)
        growing = minus(d, d_start, rest)
        more = jtu.tree_map(
            lambda a, b: weight.astype(a.dtype) * (a - b), curved, growing
        )
        error = 0.5 * (self._size(y0, y1, curved) + self._size(y0, y1, growing))
        resolution = _SHORTEST * jnp.finfo(h.dtype).eps * jnp.abs(t1)
        error = jnp.where(h <= resolution, 0, error)
        crossed = jnp.sum(found.beyond > 0)
        params = jtu.tree_map(jnp.add, moved, more.params)
        params = onto_pins(frozen, params, end)
        gone = jtu.tree_map(jnp.subtract, params, y1.params)
        state = booked(y1, slope, gone, e, params, h * rest)
        total = jtu.tree_map(jnp.subtract, state, y1)
        square = jtu.tree_map(jnp.subtract, e, total)
        linear = jtu.tree_map(jnp.subtract, total, square)
        rows = end.num_pins.astype(h.dtype) / frozen.num_groups
        spent = spent + 1 + rows + jnp.where(big, 2 + rows, 0)
        spent = spent + jnp.where(others, 2 + 2 * rows, 0)
        spent = spent + jnp.where(jnp.asarray(f_base is slope), 0, 1)
        was, now = sides.pinned, end.pinned
        number = found.beyond.reshape(-1)
        kink = jnp.where(jnp.any(number > 0), jnp.argmax(number), pins[0])
        # Memory of crossings fades from step to step.
        lately = _LATELY * before.lately + found.crossed.astype(h.dtype)
        # Where normals depend on each other only slopes may change: v is what it was.
        same = jnp.all(was == now) & (crossed == 0)
        error = jnp.where(same, 0, error)
        state = jtu.tree_map(lambda a, b: jnp.where(same, a, b), y1, state)
        linear, square = jtu.tree_map(lambda a: jnp.where(same, 0, a), (linear, square))
        return Step(
            state=state,
            sides=end,
            z=z,
            rate=rate,
            lately=jnp.where(now, 0, lately),
            error=error_of(error, first, crossed),
            first=first,
            linear=linear,
            square=square,
            jumped=~same,
            spent=spent,
            crossed=jnp.sum(found.crossed & ~now),
            pinned=jnp.sum(now & ~was),
            released=jnp.sum(was & ~now),
            kink=kink,
            jump=jump_size(e, slope, h * rest),
        )

    @staticmethod
    def _tells_time(flow: FlowField) -> bool:
        return isinstance(flow.clock, AbstractTimeClock)

    def _lately_crossed(
        self, before: SwitchingState, found: Crossings, h: Scalar
    ) -> Bool[Array, "groups kinks"]:
        """Kinks that were crossed back and forth, and may hold the flow together."""
        often = before.lately > _OFTEN
        again = jnp.any(often & found.crossed)
        near = jnp.abs(before.z) <= 2 * h * jnp.abs(before.rate)
        return often & again & near & ~before.sides.pinned

    def _size(self, y0: FlowState, y1: FlowState, error: FlowState) -> Scalar:
        """The size of an error of W and of the time in units of what is tolerated."""
        y0, y1, error = jax.lax.stop_gradient((y0, y1, error))
        by_rows = self.tolerance.by_rows
        size = jnp.maximum(norms(y0.params, by_rows), norms(y1.params, by_rows))
        allowed = self.tolerance.allowed(size)
        found = jnp.max(norms_over(error.params, allowed, by_rows))
        return found.astype(y1.dissipated.dtype)
