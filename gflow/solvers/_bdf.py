"""Backward differentiation formulas for gradient flows, as a Diffrax solver."""

from collections.abc import Callable
from typing import Any, ClassVar

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float

from .._controller import integrated
from .._flat import Form, flatten
from .._flow import FlowField, FlowState
from .._lanes import anywhere
from .._types import BoolScalar, IntScalar, Scalar
from . import _past as past
from ._bill import billed
from ._chord import Found, solve
from ._curvature import Curvature, cost, gauss_newton, is_large, no_curvature
from ._order import SAFETY, choose
from ._tolerance import Tolerance


# What a step may be wrong by, of what is tolerated. Errors of these formulas are what
# their estimate says, and add up from step to step; those of explicit Runge-Kutta
# methods are smaller than the estimate, which is their lower order's. With a hundredth
# the error of a path is, at the same tolerance, no more than that of Tsit5 (deep
# linear, rtol 1e-8: 6e-9 with Tsit5, 9e-8 without this factor).
_STRICTER = 0.01
# But not less than so many roundings.
_ROUNDINGS = 10.0
# Left of the equation of a step, in units of what the step may be wrong by: where the
# curvature is known in few directions, or not at all, what is left is magnified by the
# differences of the next steps (MNIST, P = 1e5, rtol 1e-3: 148 gradients with 0.2, 108
# with 0.1), elsewhere not (diagonal network, rtol 1e-8: 10,080 with 0.2, 19,557).
_ENOUGH, _ENOUGH_OF_FEW = 0.2, 0.1
# More than what is accepted.
_REJECTED = 1.5
# Iterations from which on the curvature is renewed before the next step.
_MANY = 3
# The rate of convergence from which on it is, too. A single iteration may then do for
# the error of this step, but what it leaves is in the differences of the next ones,
# which magnify it: on a tanh network at rtol 1e-8 a third of the steps was rejected and
# none got longer.
_SLOW = 0.2
# Of large models it is known in a few directions, and where these are too few no newer
# one is better: there log(1/rate) has to have fallen to this part of what it was when
# the curvature was new.
_WORSE = 0.7


class BDFState(eqx.Module):
    """What is carried from step to step."""

    # Of the last points, the latest (zero, and the state itself) first.
    gaps: Float[Array, " past"]  # t_j - t
    points: Float[Array, "past N"]
    # The bookkeeping's derivatives there.
    rates: Float[Array, "past books"]
    num_points: IntScalar
    order: IntScalar
    curvature: Curvature
    stale: BoolScalar
    rate: Scalar  # of convergence, on the last step
    plain_rate: Scalar  # that of iterations by themselves, as last measured
    renewed_rate: Scalar  # when the curvature was new, or 0
    # Vector fields evaluated so far, on steps that were kept, with the Jacobians.
    num_gradients: IntScalar
    num_jacobians: IntScalar


class BDF(dfx.AbstractAdaptiveSolver):
    r"""Variable-step backward differentiation formulas of orders one to five, for
    gradient flows.

    $$\sum_{j=0}^{k} a_j W_{n+1-j} = -\nabla\mathcal L(W_{n+1})$$

    with the left-hand side the derivative at t_{n+1} of the polynomial through the last
    k + 1 points, wherever they lie. Order and step are chosen together by the errors of
    the orders next to the current one. The equation is solved by chord iterations
    $W \leftarrow W - (I + \gamma J^\top D J)^{-1} r(W)$, one gradient each, in which
    the Gauss-Newton part of the Hessian is kept factored in function space (J the
    Jacobian of the n outputs, D of the loss's slope in them): n × n in place of P × P.
    It costs as many gradients as an example has outputs and is renewed only where
    convergence slows; what it leaves out, the curvature of the outputs themselves, is
    learned from the iterations (Anderson acceleration). About two gradients a step, and
    steps as long as accuracy allows, whatever the sharpness.

    Memory is (20 + 2r) P numbers, r the number of outputs of all examples, or of the
    largest eigenvalues of $J^\top D J$ that are kept if P is large (8e5/P, at least
    eight, in single precision); while these are computed, n P more.

    **Arguments:**

    - `rtol`, `atol`: the tolerances of the step-size controller.
        `gflow.integrate` gives it its own if they are None.

    Usable in `gflow.integrate(..., solver=)` with any clock but `LogLogTime`; and in
    `diffrax.diffeqsolve` with any `ODETerm`, without the Gauss-Newton part, then with
    `diffrax.PIDController(rtol, atol)` of the same tolerances. Smooth models only.
    Differentiable in forward mode only.

    ??? cite "Reference"

        Brayton, Gustavson & Hachtel (1972), "A new efficient algorithm for solving
        differential-algebraic systems using implicit backward differentiation
        formulas", Proc. IEEE 60, for variable coefficients; Hindmarsh et al. (2005),
        "SUNDIALS", ACM TOMS 31, for the tests of convergence; Anderson (1965), J. ACM
        12. The function-space factor is gflow's own.
    """

    term_structure: ClassVar = dfx.AbstractTerm
    interpolation_cls: ClassVar[Callable[..., Any]] = past.Interpolation

    rtol: Any = None
    atol: Any = None
    # Whether the controller measures rows. (Of gflow's own.)
    by_rows: Any = None

    def order(self, terms: Any) -> int:
        return past.MOST

    def error_order(self, terms: Any) -> int:
        # That of the first steps; later the error returned is such that controllers
        # choose the step that is meant.
        return 2

    def func(self, terms, t0, y0, args):
        return terms.vf(t0, y0, args)

    def init(self, terms, t0, t1, y0, args) -> BDFState:
        if self.rtol is None or self.atol is None:
            raise ValueError(
                "outside of gflow.integrate BDF needs the tolerances of the step-size "
                "controller; use gflow.solvers.BDF(rtol=1e-6, atol=1e-9) with "
                "diffrax.PIDController(rtol=1e-6, atol=1e-9)."
            )
        now = flatten(_integrated(y0))
        slope = flatten(terms.vf(t0, _integrated(y0), args))
        dtype = now.dtype
        h = jnp.asarray(t1 - t0, dtype)
        points = jnp.zeros((past.NUM_PAST, now.shape[0]), dtype)
        field = _field(args)
        num_coupled = _num_coupled(y0)
        params = y0.params if isinstance(y0, FlowState) else y0
        blank = no_curvature(field, params, now[:num_coupled])
        whole = jnp.asarray(0)
        return BDFState(
            # A point before the start, on the tangent.
            gaps=jnp.zeros((past.NUM_PAST,), dtype).at[1].set(-h),
            points=points.at[0].set(now).at[1].set(now - h * slope),
            rates=points[:, num_coupled:].at[0].set(slope[num_coupled:]),
            num_points=whole + 1,
            order=whole + 1,
            curvature=blank,
            stale=jnp.asarray(field is not None),
            rate=jnp.ones((), dtype),
            plain_rate=jnp.ones((), dtype),
            renewed_rate=jnp.zeros((), dtype),
            num_gradients=whole + 1,
            num_jacobians=whole,
        )

    @eqx.filter_jit
    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        del made_jump
        state: BDFState = solver_state
        form = Form(_integrated(y0))
        unflatten = form.unflatten
        points = state.points
        dtype = points.dtype
        h = jnp.asarray(t1 - t0, dtype)
        # The new point comes first.
        nodes = jnp.concatenate([h[None], state.gaps])
        k = state.order

        # Σ a_j y_j = f(y_0) is y_0 = base + γ f(y_0).
        slopes = past.slope_at_first(nodes, past.first(k + 1, len(nodes)))
        gamma = 1 / slopes[0]
        ahead = past.at(state.gaps, past.first(k + 1, past.NUM_PAST), h)
        base, guess = past.combined(jnp.stack([-gamma * slopes[1:], ahead]), points)
        strict = _strictness(self.rtol, dtype)
        tolerance = Tolerance(self.rtol * strict, self.atol * strict, self.by_rows)
        # By what a change of the new point changes the estimated error.
        share = gamma / (h - state.gaps[k])
        num_coupled = _num_coupled(y0)
        measure = tolerance.measure(y0, unflatten(guess)).known()
        unit = measure.unit()

        def equation(curvature: Curvature, x: Array) -> tuple[Array, Array]:
            whole = jnp.concatenate([x, guess[num_coupled:]])
            slope = flatten(terms.vf(t1, unflatten(whole), args))
            r = x - base[:num_coupled] - gamma * slope[:num_coupled]
            return curvature.solve(gamma, r, unit), slope[num_coupled:]

        field = _field(args)
        known = field is not None and not is_large(field, y0.params)

        def attempt(curvature: Curvature) -> Found:
            return solve(
                lambda x: equation(curvature, x),
                guess[:num_coupled],
                jnp.zeros_like(guess[num_coupled:]),
                measure,
                share,
                _ENOUGH if known else _ENOUGH_OF_FEW,
                state.rate,
                state.plain_rate,
            )

        tried = _tried(attempt, lambda: _curvature_at(t0, y0, args), state)
        found = tried.found
        # Bookkeeping is quadrature, which is Adams' and more accurate.
        rates = jnp.concatenate([found.extra[None], state.rates])
        used = past.first(jnp.minimum(k + 2, state.num_points + 1), len(nodes))
        books = past.combined(past.integral(nodes, used, h), rates)
        new = jnp.concatenate([found.x, points[0, num_coupled:] + books])
        y1 = unflatten(new)

        weights = past.error_weights(nodes, k)
        errors = past.combined_with(weights, new, points)
        measure = tolerance.measure(y0, y1)
        sizes = jax.vmap(measure.size)(errors[:, :num_coupled])
        if isinstance(y0, FlowState) and y0.log_time is not None:
            # Not so large that it needs a norm.
            times = jax.vmap(lambda e: unflatten(e).log_time)(errors)
            allowed = tolerance.allowed(jnp.ones((), dtype))
            sizes = jnp.maximum(sizes, jnp.abs(times) / allowed)
        told = found.converged | found.hopeless
        sizes = jnp.where(jnp.isfinite(sizes) & told, sizes, jnp.inf)
        sizes = jnp.where(found.hopeless, jnp.maximum(sizes, _REJECTED), sizes)
        choice = choose(sizes, k, state.num_points)
        # Controllers go by the square root of the error.
        meant = (SAFETY / choice.factor) ** 2
        meant = jnp.where(sizes[1] > 0, meant / (strict * sizes[1]), 0)
        error = jtu.tree_map(
            lambda e: jnp.where(jnp.isfinite(sizes[1]), e * meant, jnp.inf),
            _coupled_part(unflatten(errors[1])),
        )

        slow = (found.iterations >= _MANY) | (found.rate > _SLOW)
        before = jnp.where(tried.fresh, 0, state.renewed_rate)
        measured = (before == 0) & (found.iterations > 1)
        if field is not None and is_large(field, y0.params):
            slow = slow & (found.rate > before**_WORSE)
        each = 0 if field is None else cost(field, y0.params)
        gradients = tried.iterations + each * tried.renewed
        first = state.num_points == 1
        behind = jnp.where(first, past.straightened(state.gaps, points, h, new), points)
        after = BDFState(
            gaps=jnp.concatenate([jnp.zeros((1,), dtype), state.gaps[:-1] - h]),
            points=jnp.concatenate([new[None], behind[:-1]]),
            rates=rates[:-1],
            num_points=jnp.minimum(state.num_points + 1, past.NUM_PAST),
            order=choice.order,
            curvature=tried.curvature,
            stale=slow & ~tried.fresh,
            rate=found.rate,
            plain_rate=found.plain,
            renewed_rate=jnp.where(measured, found.rate, before),
            num_gradients=state.num_gradients + gradients,
            num_jacobians=state.num_jacobians + tried.renewed,
        )
        y1, error = billed(y0, y1, error, gradients)
        dense = {
            "gaps": nodes - h,
            "new": new,
            "points": behind,
            # The first step's has the slope at the start. (A float, because Diffrax
            # fills blanks with NaN.)
            "order": jnp.where(first, 2, k).astype(dtype),
            "form": form,
            "travelling": past.travelling(y1) if isinstance(y1, FlowState) else None,
        }
        return y1, error, dense, after, dfx.RESULTS.successful


class _Tried(eqx.Module):
    curvature: Curvature
    found: Found
    iterations: IntScalar  # of all attempts
    renewed: IntScalar  # how many times the curvature was
    fresh: BoolScalar


def _tried(
    attempt: Callable[[Curvature], Found],
    renewed: Callable[[], Curvature | None],
    state: BDFState,
) -> _Tried:
    """One attempt or, where it fails on curvature of an earlier step, two."""
    can = jax.eval_shape(renewed) is not None

    def body(carry: tuple[_Tried, BoolScalar]) -> tuple[_Tried, BoolScalar]:
        before, renew = carry
        curvature = before.curvature
        if can:
            # (Where no lane of `vmap` needs it, nothing is copied.)
            curvature = jax.lax.cond(
                anywhere(renew),
                lambda: jtu.tree_map(
                    lambda a, b: jnp.where(renew, a, b), renewed(), before.curvature
                ),
                lambda: before.curvature,
            )
        found = attempt(curvature)
        fresh = before.fresh | renew
        tried = _Tried(
            curvature,
            found,
            before.iterations + found.iterations,
            before.renewed + renew.astype(before.renewed.dtype),
            fresh,
        )
        return tried, ~(found.converged | found.hopeless | fresh)

    def goes_on(carry: tuple[_Tried, BoolScalar]) -> BoolScalar:
        tried, again = carry
        return (tried.found.iterations == 0) | again

    shape = jax.eval_shape(attempt, state.curvature)
    blank = jtu.tree_map(lambda s: jnp.zeros(s.shape, s.dtype), shape)
    none = jnp.asarray(0)
    start = _Tried(state.curvature, blank, none, none, jnp.asarray(not can))
    end, _ = jax.lax.while_loop(goes_on, body, (start, state.stale))
    return end


def _strictness(rtol: Any, dtype: Any) -> Scalar:
    least = _ROUNDINGS * jnp.finfo(dtype).eps
    rtol = jnp.maximum(jnp.asarray(rtol, dtype), jnp.finfo(dtype).tiny)
    return jnp.clip(least / rtol, _STRICTER, 1)


def _field(args: Any) -> FlowField | None:
    # Diffrax hides the term that it is given from its solvers.
    return args if isinstance(args, FlowField) else None


def _curvature_at(reading: Any, state: Any, args: Any) -> Curvature | None:
    field = _field(args)
    return None if field is None else gauss_newton(field, reading, state)


def _integrated(state: Any) -> Any:
    """Without what only travels with a flow's state."""
    return integrated(state) if isinstance(state, FlowState) else state


def _num_coupled(state: Any) -> int:
    # A flow's parameters come first; nothing depends on its bookkeeping.
    if isinstance(state, FlowState):
        state = state.params
    return sum(jnp.size(leaf) for leaf in jtu.tree_leaves(state))


def _coupled_part(error: Any) -> Any:
    """Without errors of what is integrated more accurately, and nothing depends on."""
    if not isinstance(error, FlowState):
        return error
    books = (error.dissipated, error.fallen, error.path_length, error.motion)
    return eqx.tree_at(
        lambda e: (e.dissipated, e.fallen, e.path_length, e.motion),
        error,
        jtu.tree_map(jnp.zeros_like, books),
        is_leaf=lambda x: x is None,
    )
