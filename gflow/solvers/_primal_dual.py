"""The implicit solver of the late phase."""

from collections.abc import Callable
from typing import Any, ClassVar, cast

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Float

from .._flat import flatten, unflattener
from .._flow import FlowField, FlowState, no_work
from .._frozen import Frozen
from .._inclusion import Pattern, sliding
from .._types import Params, Scalar
from ..clocks import LogLogTime
from ._stage import Held, Point, Stage, solve_stage


# Kvaerno (2004), "Singly diagonally implicit Runge-Kutta methods with an explicit first
# stage", ESDIRK 5(4): stiffly accurate, stage order two. The entries are Diffrax's.
_GIVEN = dfx.Kvaerno5.tableau
_B_SOL, _B_ERROR = np.asarray(_GIVEN.b_sol), np.asarray(_GIVEN.b_error)
_NUM_STAGES = len(_B_SOL)
_C = np.concatenate([[0.0], _GIVEN.c])
_DIAGONAL = np.asarray(_GIVEN.a_diagonal)
_LOWER = np.zeros((_NUM_STAGES, _NUM_STAGES))
for _i, _row in enumerate(_GIVEN.a_lower):
    _LOWER[_i + 1, : len(_row)] = _row
_INNER = np.flatnonzero((_C > 0) & (_C < 1))  # stages within the step
# A stage is first guessed from these earlier ones (by their numbers, 0 the start of the
# step): polynomial interpolation, only once they enclose it.
_GUESSED_FROM = ((0,), (1,), (0, 1, 2), (0, 1, 3), (1, 2, 3, 4), (5,))


def _guesses() -> np.ndarray:
    weights = np.zeros((_NUM_STAGES - 1, _NUM_STAGES))
    for i, nodes in enumerate(_GUESSED_FROM):
        for j in nodes:
            others = [_C[k] for k in nodes if k != j]
            weights[i, j] = np.prod([(_C[i + 1] - c) / (_C[j] - c) for c in others])
    return weights


class PrimalDualState(eqx.Module):
    """What is carried from step to step: the multipliers, and dθ/dc."""

    log_weights: Float[Array, " pairs"]
    slope: Float[Array, " P"]
    shares: Float[Array, " K"] | None  # of kinks that are pinned


class Holding(eqx.Module):
    """What a step is told where kinks are followed: the pattern that it is on."""

    field: FlowField
    frozen: Frozen
    pattern: Pattern


class PrimalDual(dfx.AbstractAdaptiveSolver):
    r"""Implicit solver for the late phase, in the clock [`gflow.clocks.LogLogTime`][].

    $$\frac{d\theta}{dc} = -\frac\theta L + \sum_m \lambda_m\nabla_\theta p_m,\qquad
      \log\lambda_m = \log\Bigl(-\frac{\partial\mathcal L}{\partial p_m}\Bigr)
      + \omega(c),\qquad W = e^{c/L}\theta$$

    Once the data are separated the weights λ of the examples change by factors of
    e^{log t · δθ}: explicit solvers need steps in proportion to log t, and Newton's
    method on θ diverges. Here θ and log λ are solved for together, stage by stage of an
    ESDIRK method of order five, with errors controlled as anywhere in gflow. No P × P
    matrix is formed: all but the curvature is eliminated to a matrix of the size of the
    support, and curvature enters by Hessian-vector products in GMRES. Where kinks are
    followed, z_k = 0 holds at every stage on those that the flow slides along, with
    their multipliers as further unknowns.

    **Arguments:**

    - `degree`: L, the degree of homogeneity; None to have it measured. It only sets
        the scale $e^{c/L}$ at which steps are taken, so a wrong one costs steps, not
        accuracy; `inf` leaves the weights as they are.
    - `support`: the most pairs (examples, or example and wrong class) for which
        Newton's matrix is exact: memory is `support` × P. Others are treated as not
        moving, which costs iterations if they matter.
    - `tolerance`: of the last Newton correction, relative to ‖θ‖. `gflow.integrate`
        gives it a tenth of its `rtol` if it is None.

    Runs on gflow's own term, in `gflow.integrate(..., solver=)`.

    ??? cite "Reference"

        Wright (1997), "Primal-Dual Interior-Point Methods", for the idea of solving
        for multipliers; Kvaerno (2004), BIT 44, for the ESDIRK method.
    """

    term_structure: ClassVar = dfx.AbstractTerm
    interpolation_cls: ClassVar[Callable[..., Any]] = (
        dfx.ThirdOrderHermitePolynomialInterpolation
    )

    degree: float | None = eqx.field(static=True, default=None)
    support: int = eqx.field(static=True, default=256)
    tolerance: Any = None

    def order(self, terms: Any) -> int:
        return 5

    def func(self, terms, t0, y0, args):
        return terms.vf(t0, y0, args)

    def init(self, terms, t0, t1, y0, args) -> PrimalDualState:
        theta = flatten(y0.params) / self._scale(t0)
        zero = jnp.zeros((), theta.dtype)
        stage = self._stage(args, y0.params, t0, theta, zero)
        shares = args.pattern.shares if isinstance(args, Holding) else None
        pairs, pull_back = jax.vjp(lambda x: stage.margins(x, shares), theta)
        log_weights = stage.targets(pairs)
        if isinstance(args, Holding):
            return self.restarted(t0, y0.params, args, log_weights)
        (gradient,) = pull_back(jnp.exp(log_weights))
        slope = gradient - stage.decay * theta
        return PrimalDualState(log_weights, slope, None)

    def restarted(
        self, reading: Any, params: Params, at: Holding, log_weights: Array
    ) -> PrimalDualState:
        """On another pattern, where the last one had these multipliers."""
        scale = self._scale(reading)
        given = weighted(at.frozen, log_weights)
        velocity = sliding(given, params, at.pattern, closely=True, thrifty=False)
        gradient = scale * jnp.exp(velocity.gradient.log_slope) * velocity.direction
        slope = gradient - self._decay * flatten(params) / scale
        return PrimalDualState(log_weights, slope, velocity.multipliers)

    @eqx.filter_jit
    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        del terms, made_jump
        y1, error, dense, state, _ = self.advance(t0, t1, y0, args, solver_state)
        return y1, error, dense, state, dfx.RESULTS.successful

    def advance(self, t0, t1, y0, args, solver_state: PrimalDualState):
        """A step, with the parameters at its inner stages along a leading axis."""
        h = t1 - t0
        dtype = solver_state.slope.dtype
        times = t0 + h * jnp.asarray(_C, dtype)
        theta0 = flatten(y0.params) / self._scale(t0)
        assert self.tolerance is not None, "integrate() derives it from its rtol"
        tolerance = jnp.asarray(self.tolerance, dtype)

        def implicit(carry, row):
            slopes, points, good, work = carry
            i, lower, gamma, time, guess = row
            guessed = _guessed(points, guess)
            base = theta0 + h * (lower @ slopes)
            stage = self._stage(args, y0.params, time, base, gamma * h)
            point, found, spent = jax.lax.cond(
                good,
                lambda: solve_stage(stage, guessed, tolerance),
                lambda: (guessed, jnp.asarray(False), no_work(dtype)),
            )
            slopes = slopes.at[i].set((point.theta - base) / (gamma * h))
            points = jtu.tree_map(lambda a, b: a.at[i].set(b), points, point)
            return (slopes, points, good & found, work + spent), None

        number = _NUM_STAGES
        slopes = jnp.zeros((number, theta0.shape[0]), dtype)
        slopes = slopes.at[0].set(solver_state.slope)
        start = Point(theta0, solver_state.log_weights, solver_state.shares)
        points = jtu.tree_map(lambda a: jnp.stack([a] * number), start)
        stages = (
            jnp.arange(1, number),
            jnp.asarray(_LOWER[1:], dtype),
            jnp.asarray(_DIAGONAL[1:], dtype),
            times[1:],
            jnp.asarray(_guesses(), dtype),
        )
        carry = (slopes, points, jnp.asarray(True), no_work(dtype))
        (slopes, points, good, work), _ = jax.lax.scan(implicit, carry, stages)
        point = jtu.tree_map(lambda a: a[-1], points)
        rates = jax.vmap(
            lambda c, point, slope: self._rate(args, y0.params, c, point, slope)
        )(times, points, slopes)
        unflatten, scale = unflattener(y0.params), self._scale(t1)
        b_sol, b_error = jnp.asarray(_B_SOL, dtype), jnp.asarray(_B_ERROR, dtype)
        y1 = _after(y0, unflatten(scale * point.theta), rates, h * b_sol)
        if y0.fallen is not None:
            fallen = _integral_of_growth(y0.fallen, rates.fallen, times, h)
            y1 = eqx.tree_at(lambda y: y.fallen, y1, fallen)
        error = _after(
            jtu.tree_map(jnp.zeros_like, y0),
            unflatten(scale * h * (b_error @ slopes)),
            rates,
            h * b_error,
        )
        # A stage that was not found: y_error = inf asks for a shorter step.
        y1 = jtu.tree_map(lambda a, b: jnp.where(good, a, b), y1, y0)
        error = jtu.tree_map(lambda e: jnp.where(good, e, jnp.inf), error)
        if y0.work is not None:
            y1 = eqx.tree_at(lambda y: y.work, y1, y0.work + work)
            error = eqx.tree_at(lambda y: y.work, error, work)

        def ends(i):
            return _kept(y0, jtu.tree_map(lambda r: h * r[i], rates))

        dense = {"y0": y0, "y1": y1, "k0": ends(0), "k1": ends(-1)}
        state = PrimalDualState(point.log_weights, slopes[-1], point.shares)
        inner = jnp.asarray(_INNER)
        stages = jax.vmap(lambda c, x: unflatten(self._scale(c) * x))(
            times[inner], points.theta[inner]
        )
        return y1, error, dense, state, stages

    @property
    def _decay(self) -> float:
        assert self.degree is not None, "integrate() measures it"
        return 1 / self.degree

    def _scale(self, reading: Any) -> Scalar:
        return jnp.exp(self._decay * reading)

    def _stage(
        self, args: Any, like: Params, reading: Any, base: Any, step: Any
    ) -> Stage:
        scale = self._scale(reading)
        problem: Any = _field(args).field.problem
        return Stage(
            smooth=problem,
            held=_held(args),
            like=like,
            base=base,
            step=step,
            scale=scale,
            log_factor=_log_rate(reading) - 2 * jnp.log(scale),
            decay=self._decay,
            support=self.support,
        )

    def _rate(self, args, like, reading, point: Point, slope) -> FlowState:
        # dW/dc = σ (θ/L + dθ/dc).
        unflatten, scale = unflattener(like), self._scale(reading)
        params = unflatten(scale * point.theta)
        moved = unflatten(scale * (slope + self._decay * point.theta))
        held = _held(args)
        # Stages may lie beyond the step, where another branch is the model's.
        problem = None if held is None else held.on(point.shares)
        return _field(args).derivative(params, moved, _log_rate(reading), problem)


def _integral_of_growth(start: Scalar, rates, times, h: Any) -> Scalar:
    """∫ r dc from `start` on, by the same method, where r grows like e^c.

    It is F in F' = r. With F = e^c f, f' = e^-c r - f is nearly constant, so that the
    steps in which log t grows tenfold do not spoil it.
    """
    lower, diagonal = (jnp.asarray(a, rates.dtype) for a in (_LOWER, _DIAGONAL))
    scaled = rates * jnp.exp(-times)
    first = start * jnp.exp(-times[0])
    slopes = jnp.zeros_like(rates).at[0].set(scaled[0] - first)

    def stage(i, slopes):
        base = first + h * (lower[i] @ slopes)
        step = h * diagonal[i]
        value = (base + step * scaled[i]) / (1 + step)
        return slopes.at[i].set(scaled[i] - value)

    slopes = jax.lax.fori_loop(1, _NUM_STAGES, stage, slopes)
    f = first + h * (jnp.asarray(_B_SOL, rates.dtype) @ slopes)
    return f * jnp.exp(times[-1])


def _guessed(points: Point, guess: Float[Array, " stages"]) -> Point:
    """A stage as a combination of earlier ones; log λ within their range.

    An example that has just woken jumps by orders of log λ: polynomials overshoot.
    """
    used = (guess != 0)[:, None]
    logs = points.log_weights
    low = jnp.min(jnp.where(used, logs, jnp.inf), axis=0)
    high = jnp.max(jnp.where(used, logs, -jnp.inf), axis=0)
    shares = None if points.shares is None else guess @ points.shares
    return Point(guess @ points.theta, jnp.clip(guess @ logs, low, high), shares)


def weighted(frozen: Frozen, log_weights: Any) -> Frozen:
    """With these log λ, up to a factor, in place of the loss's slopes."""
    return eqx.tree_at(
        lambda f: f.log_weights, frozen, log_weights, is_leaf=lambda x: x is None
    )


def _log_rate(reading: Any) -> Scalar:
    return LogLogTime().log_rate(reading, None, None, cast(Any, None))


def _held(args: Any) -> Held | None:
    if not isinstance(args, Holding):
        return None
    return Held(args.frozen, args.pattern.branches, args.pattern.pins)


def _field(args: Any) -> FlowField:
    # Diffrax hides the term that it is given from its solvers.
    args = args.field if isinstance(args, Holding) else args
    if not isinstance(args, FlowField) or not isinstance(args.clock, LogLogTime):
        raise ValueError(
            "PrimalDual runs in gflow.integrate, in the clock "
            "gflow.clocks.LogLogTime()."
        )
    return args


def _kept(like: FlowState, state: FlowState) -> FlowState:
    """Only with the bookkeeping that `like` has."""

    def book(mine: Any, theirs: Any) -> Any:
        return None if mine is None else theirs

    return FlowState(
        params=state.params,
        dissipated=state.dissipated,
        fallen=book(like.fallen, state.fallen),
        path_length=book(like.path_length, state.path_length),
        motion=book(like.motion, state.motion),
        log_time=None,
        work=None if like.work is None else jtu.tree_map(jnp.zeros_like, like.work),
        pins=None if like.pins is None else jnp.zeros_like(like.pins),
        cut=None if like.cut is None else jnp.zeros_like(like.cut),
    )


def _after(y0: FlowState, params: Params, rates: FlowState, weights) -> FlowState:
    """The state with these parameters, and bookkeeping by quadrature."""

    def add(start: Any, rate: Any) -> Any:
        return None if start is None else start + weights @ rate

    return FlowState(
        params=params,
        dissipated=add(y0.dissipated, rates.dissipated),
        fallen=add(y0.fallen, rates.fallen),
        path_length=add(y0.path_length, rates.path_length),
        motion=add(y0.motion, rates.motion),
        log_time=None,
        work=y0.work,
        pins=y0.pins,
        cut=y0.cut,
    )
