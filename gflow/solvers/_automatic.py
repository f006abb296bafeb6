"""Explicit where that is cheaper, implicit where the flow is stiff, in one solve."""

from collections.abc import Callable
from typing import Any, ClassVar

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu

from .._flat import Form, flatten
from .._flow import FlowState
from .._lanes import anywhere, either
from .._types import BoolScalar, IntScalar, Scalar
from . import _past as past
from ._bdf import BDF, BDFState, _field, _integrated, _num_coupled
from ._bill import billed
from ._monitor import Monitor, started
from ._order import SAFETY
from ._stability import crowding
from ._tolerance import Tolerance
from ._track import log_time_of
from ._tsit5 import Tsit5


# What an explicit step may be wrong by, of what is tolerated: BDF's errors are smaller
# than its estimates allow, and a path is as wrong as the worse part of it (squared ReLU
# in the α-clock, error 1e-6: 1,900 gradients, 2,500 with all that is tolerated).
_STRICTER = 0.1
# Of the step-size controller: that of Tsit5's error estimate.
_ORDER = 5
# Exponents of the errors of this step and the last one (PI control; as for the other
# explicit solvers), and by how much a step may change.
_NOW, _BEFORE = 0.7, 0.3
_LEAST, _MOST = 0.2, 10.0
_GROWING = 1.2
# Where an explicit step's dense output, a polynomial of degree four, is read off.
_FRACTIONS = (1.0, 0.75, 0.5, 0.25, 0.0)


class AutomaticState(eqx.Module):
    """What is carried from step to step."""

    # Whether Tsit5's first stage is yet to be evaluated, and that stage.
    explicit: tuple[BoolScalar, Any]
    implicit: BDFState
    monitor: Monitor
    last_size: Scalar  # of the last explicit step's error


class _Trial(eqx.Module):
    """A step of either method."""

    y1: Any
    error: Any  # as the controller is to see it
    dense: dict[str, Any]
    explicit: Any
    implicit: BDFState
    gradients: IntScalar
    growing: BoolScalar  # much longer than the last one
    size: Scalar
    radius: Scalar


class Automatic(dfx.AbstractAdaptiveSolver):
    r"""Tsit5 at first and while its steps are short, [`gflow.solvers.BDF`][] where the
    flow is stiff.

    Of each explicit step the last two stages tell
    $\rho \approx \|f(g_7)-f(g_6)\|/\|g_7-g_6\|$, at no cost. Where hρ stays above
    0.25 (stability ends at 3.5, but implicit steps cost a sixth), the implicit method
    takes over, from the dense output of the last step. It gives way again where it
    costs far more gradients than explicit steps of stability would. Each change takes
    twice as many steps of evidence as the last one.

    `gflow.integrate` takes it for smooth models whose flow is stiff at the start, or
    begins at a saddle, or may become stiff if the model is large; the solution's
    `switches` say what ran where. Under `jit` and `vmap`, where values are not known,
    it is to be asked for: lanes of `vmap` change at their own times, and while both
    methods are in use each step costs both.

    **Arguments:**

    - `rtol`, `atol`: the tolerances of the step-size controller.
        `gflow.integrate` gives it its own if they are None.
    - `begins_implicit`: which method begins.

    For `gflow.integrate(..., solver=)`, with any clock but `LogLogTime`. Smooth models
    only. Differentiable in forward mode only.

    ??? cite "Reference"

        Petzold (1983), "Automatic selection of methods for solving stiff and nonstiff
        systems of ordinary differential equations", SIAM J. Sci. Stat. Comput. 4, for
        the idea; Hairer & Wanner (1996), "Solving Ordinary Differential Equations II",
        IV.2, for ρ.
    """

    term_structure: ClassVar = dfx.AbstractTerm
    interpolation_cls: ClassVar[Callable[..., Any]] = past.Interpolation

    rtol: Any = None
    atol: Any = None
    by_rows: Any = None
    begins_implicit: Any = False  # traced, or not

    @property
    def explicit(self) -> Tsit5:
        return Tsit5()

    @property
    def implicit(self) -> BDF:
        return BDF(self.rtol, self.atol, self.by_rows)

    def order(self, terms: Any) -> int:
        return past.MOST

    def error_order(self, terms: Any) -> int:
        return _ORDER

    def func(self, terms, t0, y0, args):
        return terms.vf(t0, y0, args)

    def init(self, terms, t0, t1, y0, args) -> AutomaticState:
        implicit = self.implicit.init(terms, t0, t1, y0, args)
        return AutomaticState(
            explicit=(jnp.asarray(False), self.explicit.init(terms, t0, t1, y0, args)),
            implicit=implicit,
            monitor=started(self.begins_implicit, implicit.rate),
            last_size=jnp.ones_like(implicit.rate),
        )

    @eqx.filter_jit
    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        state: AutomaticState = solver_state
        monitor = state.monitor
        tolerance = Tolerance(self.rtol, self.atol, self.by_rows)
        given = (terms, t0, t1, y0, args, made_jump)
        trial = either(
            monitor.is_implicit,
            lambda: _implicit_step(self.implicit, tolerance, *given, state),
            lambda: _explicit_step(self.explicit, tolerance, *given, state),
        )
        dtype = trial.size.dtype
        h = jnp.asarray(t1 - t0, dtype)
        watched = monitor.watched(
            trial.radius,
            jnp.max(trial.implicit.curvature.squares, initial=0),
            h,
            trial.gradients,
            trial.growing,
            jnp.asarray(t1, dtype),
            _log_time(trial.y1, dtype),
        )
        # The other method goes on from here.
        to_implicit = watched.is_implicit & ~monitor.is_implicit
        implicit = jax.lax.cond(
            anywhere(to_implicit),
            lambda: jtu.tree_map(
                lambda a, b: jnp.where(to_implicit, a, b),
                _history(trial, h, y0),
                trial.implicit,
            ),
            lambda: trial.implicit,
        )
        to_explicit = monitor.is_implicit & ~watched.is_implicit
        first, slope = trial.explicit
        after = AutomaticState(
            explicit=(first | to_explicit, slope),
            implicit=implicit,
            monitor=watched,
            last_size=jnp.where(to_explicit, 1, trial.size),
        )
        return trial.y1, trial.error, trial.dense, after, dfx.RESULTS.successful


def _explicit_step(
    solver, tolerance, terms, t0, t1, y0, args, made_jump, state
) -> _Trial:
    first, slope = state.explicit
    y1, error, dense, after, reach = solver.advance(
        terms, t0, t1, y0, args, slope, first | made_jump
    )
    seen = tolerance.measured(y0, y1, error)
    size = seen / _STRICTER
    if _field(args) is not None:
        size = jnp.maximum(size, crowding(reach))
    size = jnp.where(jnp.isfinite(seen), size, jnp.inf)
    safe = jnp.clip(size, 1e-10, 1e10)
    factor = SAFETY * safe ** (-_NOW / _ORDER) * state.last_size ** (_BEFORE / _ORDER)
    longer = jnp.clip(factor, SAFETY * (1 + 1e-6), _MOST)
    shorter = jnp.clip(factor, _LEAST, SAFETY * (1 - 1e-6))
    meant = (SAFETY / jnp.where(size <= 1, longer, shorter)) ** _ORDER
    error = _scaled(error, jnp.where(seen > 0, meant / jnp.where(seen > 0, seen, 1), 0))
    # The first stage is new where there is none from the last step.
    gradients = 6 + first.astype(int)
    y1, error = billed(y0, y1, error, jnp.asarray(gradients))
    return _Trial(
        y1=y1,
        error=error,
        dense=_as_polynomial(solver, dense, t0, t1, y0, y1),
        explicit=(jnp.zeros_like(first), after),
        implicit=state.implicit,
        gradients=jnp.asarray(gradients),
        growing=jnp.asarray(False),
        size=safe,
        radius=reach / jnp.asarray(t1 - t0, size.dtype),
    )


def _as_polynomial(solver, dense, t0, t1, y0, y1) -> dict[str, Any]:
    """The dense output as BDF's: it is a polynomial too, known from five points."""
    read = solver.interpolation_cls(t0=t0, t1=t1, **dense)
    h = t1 - t0
    inner = [read.evaluate(t0 + f * h) for f in _FRACTIONS[1:-1]]
    rows = [flatten(_integrated(y)) for y in (y1, *inner, y0)]
    blanks = past.NUM_PAST + 1 - len(rows)
    gaps = jnp.array([f - 1.0 for f in _FRACTIONS] + [-1.5 - j for j in range(blanks)])
    dtype = jnp.result_type(h)
    return {
        "gaps": h * gaps.astype(dtype),
        "new": rows[0],
        "points": jnp.stack(rows[1:] + blanks * [jnp.zeros_like(rows[0])]),
        "order": jnp.full((), len(_FRACTIONS) - 1, dtype),
        "form": Form(_integrated(y1)),
        "travelling": past.travelling(y1) if isinstance(y1, FlowState) else None,
    }


def _implicit_step(
    solver, tolerance, terms, t0, t1, y0, args, made_jump, state
) -> _Trial:
    y1, error, dense, after, _ = solver.step(
        terms, t0, t1, y0, args, state.implicit, made_jump
    )
    # BDF means the controller to choose the step by the square root of the error.
    size = tolerance.measured(y0, y1, error)
    power = _ORDER / solver.error_order(terms)
    safe = jnp.clip(size, 1e-10, 1e10)
    error = _scaled(error, jnp.where(size > 0, safe ** (power - 1), 0))
    zero = jnp.zeros_like(state.last_size)
    return _Trial(
        y1=y1,
        error=error,
        dense=dense,
        explicit=state.explicit,
        implicit=after,
        gradients=after.num_gradients - state.implicit.num_gradients,
        growing=jnp.asarray(t1 - t0, zero.dtype) > -_GROWING * state.implicit.gaps[1],
        size=jnp.ones_like(zero),
        radius=zero,
    )


def _history(trial: _Trial, h: Scalar, y0: Any) -> BDFState:
    """What BDF goes on from after an explicit step: its end, middle and start."""
    number = _num_coupled(y0)
    gaps, used = trial.dense["gaps"], past.first(len(_FRACTIONS), past.NUM_PAST + 1)
    rows = jnp.concatenate([trial.dense["new"][None], trial.dense["points"]])
    kept = [0, 2, 4]
    slope_at = jax.vmap(jax.jacfwd(lambda x: past.at(gaps, used, x)))
    rates = past.combined(slope_at(gaps[jnp.array(kept)]), rows[:, number:])
    blank = jax.tree.map(jnp.zeros_like, trial.implicit)
    state = trial.implicit
    return BDFState(
        gaps=blank.gaps.at[:3].set(gaps[jnp.array(kept)]),
        points=blank.points.at[:3].set(rows[jnp.array(kept)]),
        rates=blank.rates.at[:3].set(rates),
        num_points=blank.num_points + 3,
        order=blank.order + 2,
        curvature=state.curvature,
        stale=jnp.ones_like(state.stale),
        rate=jnp.ones_like(state.rate),
        plain_rate=jnp.ones_like(state.rate),
        renewed_rate=jnp.zeros_like(state.rate),
        num_gradients=state.num_gradients,
        num_jacobians=state.num_jacobians,
    )


def _scaled(error: Any, factor: Scalar) -> Any:
    """The error times a number, without what only travels with it; inf stays inf."""

    def scale(e: Any) -> Any:
        return jnp.where(jnp.isfinite(e), factor.astype(e.dtype) * e, jnp.inf)

    scaled = jtu.tree_map(scale, error)
    if not isinstance(error, FlowState):
        return scaled
    return eqx.tree_at(
        lambda s: (s.work, s.pins, s.cut),
        scaled,
        (error.work, error.pins, error.cut),
        is_leaf=lambda x: x is None,
    )


def _log_time(y: Any, dtype: Any) -> Scalar:
    if isinstance(y, FlowState):
        return log_time_of(y).astype(dtype)
    return jnp.full((), jnp.nan, dtype)
