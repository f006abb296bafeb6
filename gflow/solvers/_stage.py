r"""One implicit stage of the late phase, by a primal-dual Newton method.

In scaled variables W = σθ a stage solves for θ and the multipliers λ

    θ = b + hγ (-κθ + Σ_m λ_m ∇_θ p_m),    log λ_m = log(-∂ℒ/∂p_m) + ω,

with the margins p_m at σθ. Late, p is of the order of log t, so that λ changes by
factors of e^{p δθ}: Newton's method on θ alone sees a cliff. With log λ as unknowns of
their own, as interior-point methods have them, both equations are nearly linear where
the solution is.

On kinks that the flow slides along, z_k(θ) = 0 is one equation more and the share s_k
of the upper branch, of which p_m is a function too, one more unknown.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsl
from jaxtyping import Array, Bool, Float, Int

from .._flat import flatten_rows, unflattener
from .._flow import Work, no_work
from .._frozen import Branched, Frozen
from .._inclusion import unit_rows
from .._pairs import log_pair_slopes, pair_margins, rows, tailed
from .._problem import AbstractProblem, Problem
from .._types import BoolScalar, IntScalar, Params, Scalar
from ._gmres import gmres


_MAX_ITERATIONS = 12
_MAX_PRODUCTS = 40
# Of the residual of a Newton correction that is left to the next one.
_FORCING = 1e-3
# log λ of what matters is known to this when a stage counts as solved.
_DUAL_TOLERANCE = 1e-3


class Held(eqx.Module):
    """The branches that a step is on, and the kinks that it is pinned to."""

    frozen: Frozen
    branches: Bool[Array, "groups kinks"]
    pins: Int[Array, " K"]

    def on(self, shares: Any) -> Branched:
        """The problem there, with these shares of the pinned kinks' upper branches."""
        flat = self.branches.reshape(-1).astype(shares.dtype)
        flat = flat.at[self.pins].set(shares, mode="drop")
        return self.frozen.on(flat.reshape(self.branches.shape))


class Stage(eqx.Module):
    """The equations of a stage: see the head of this file."""

    smooth: Problem  # where nothing is held
    held: Held | None
    like: Params  # the parameters' shapes
    base: Float[Array, " P"]  # b
    step: Scalar  # hγ
    scale: Scalar  # σ
    log_factor: Scalar  # ω
    decay: float = eqx.field(static=True)  # κ
    support: int = eqx.field(static=True)  # examples that Newton's matrix is exact for

    def params(self, theta: Float[Array, " P"]) -> Params:
        """W = σθ."""
        return unflattener(self.like)(self.scale * theta)

    def problem(self, shares: Any) -> AbstractProblem:
        """The problem with these shares."""
        return self.smooth if self.held is None else self.held.on(shares)

    def margins(self, theta: Float[Array, " P"], shares: Any) -> Float[Array, " pairs"]:
        return pair_margins(self.problem(shares), self.params(theta))

    def targets(self, pairs: Float[Array, " pairs"]) -> Float[Array, " pairs"]:
        """log λ as it is at these margins."""
        return log_pair_slopes(self.smooth, pairs) + self.log_factor


class Point(eqx.Module):
    """A candidate (θ, log λ, s)."""

    theta: Float[Array, " P"]
    log_weights: Float[Array, " pairs"]
    shares: Float[Array, " K"] | None


class _Newton(eqx.Module):
    point: Point
    iteration: IntScalar
    solved: BoolScalar
    failed: BoolScalar
    work: Work


def solve_stage(
    stage: Stage, start: Point, tolerance: Scalar
) -> tuple[Point, BoolScalar, Work]:
    """The solution near `start`, whether it was found, and the cost.

    `tolerance` is for the last correction of θ, relative to ‖θ‖.
    """

    def goes_on(state: _Newton) -> Bool[Array, ""]:
        return ~state.solved & ~state.failed

    def body(state: _Newton) -> _Newton:
        point, moved, dual, gradients = _correct(stage, state.point)
        finite = jnp.isfinite(moved) & jnp.isfinite(dual)
        iteration = state.iteration + 1
        solved = finite & (moved < tolerance) & (dual < _DUAL_TOLERANCE)
        return _Newton(
            point=point,
            iteration=iteration,
            solved=solved,
            failed=~finite | (~solved & (iteration >= _MAX_ITERATIONS)),
            work=state.work + Work(jnp.ones_like(gradients), gradients),
        )

    false = jnp.asarray(False)
    first = _Newton(start, jnp.asarray(0), false, false, no_work(start.theta.dtype))
    last = jax.lax.while_loop(goes_on, body, first)
    return last.point, last.solved, last.work


def _correct(stage: Stage, point: Point) -> tuple[Point, Scalar, Scalar, Scalar]:
    """One Newton correction: the new point, its size in θ and in λ, and its cost."""
    theta, shares = point.theta, point.shares
    pairs, pull_back = jax.vjp(lambda x: stage.margins(x, shares), theta)
    targets = stage.targets(pairs)
    index = _support(stage, point.log_weights, targets)
    params = stage.params(theta)
    jacobian = stage.scale * flatten_rows(rows(stage.problem(shares), params, index))
    kernel = jacobian @ jacobian.T
    slopes = _slope_matrix(stage, pairs, index)  # C = -∂log λ/∂p

    diagonal = 1 + stage.step * stage.decay  # of θ's own equation
    ratio = stage.step / diagonal
    strength = ratio * jnp.diagonal(slopes) * jnp.diagonal(kernel)
    # Those that do not matter follow their margins.
    before = targets.at[index].set(
        _woken(point.log_weights[index], targets[index], strength)
    )
    late_change = jnp.abs(targets - point.log_weights).at[index].set(0)
    weights = jnp.exp(before)
    log_some, weights_some = before[index], weights[index]

    (gradient,) = pull_back(weights)
    r_theta = diagonal * theta - stage.base - stage.step * gradient
    r_dual = log_some - targets[index]

    # Without curvature θ is eliminated: an m × m system in y = √λ δlog λ.
    root = jnp.sqrt(weights_some)
    matrix = jnp.eye(index.shape[0], dtype=theta.dtype) + ratio * (
        root[:, None] * (slopes @ kernel) * root[None, :]
    )
    factors = jsl.lu_factor(matrix)

    def without_curvature(r_theta, r_dual):
        rhs = -r_dual + slopes @ (jacobian @ r_theta) / diagonal
        scaled = root * jsl.lu_solve(factors, root * rhs)
        dual = rhs - ratio * (slopes @ (kernel @ scaled))
        return (stage.step * (scaled @ jacobian) - r_theta) / diagonal, dual

    nothing = jnp.zeros_like(r_dual)
    if stage.held is None:
        onto = None
    else:
        pins = _pins(stage, stage.held, point, weights)
        # What a unit of each jump does; the shares are those by which z vanishes.
        reach, reach_dual = jax.vmap(lambda j: without_curvature(-ratio * j, nothing))(
            pins.jumps
        )
        schur = pins.normals @ reach.T
        # Normals may come to depend on each other: a few roundings on the diagonal.
        own = jnp.diagonal(schur)
        few = 4 * own.shape[0] * float(jnp.finfo(own.dtype).eps)
        onto = jsl.lu_factor(schur + jnp.diag(jnp.where(own == 0, ratio, few * own)))

    def solved(r_theta, r_dual, z):
        """The correction without curvature: of θ, of log λ, and along the jumps."""
        change, dual = without_curvature(r_theta, r_dual)
        if onto is None:
            return change, dual, None
        along = jsl.lu_solve(onto, -z - pins.normals @ change)
        return change + along @ reach, dual + along @ reach_dual, along

    # Curvature, and all that the pairs do which the matrix leaves out.
    def gradient_with_some_held(theta):
        pairs, pull_back = jax.vjp(lambda x: stage.margins(x, shares), theta)
        weights = jnp.exp(stage.targets(pairs)).at[index].set(weights_some)
        return pull_back(weights)[0]

    _, bend = jax.linearize(gradient_with_some_held, theta)

    def curved(v):
        return stage.step * bend(v)

    z = None if onto is None else pins.distances
    still = None if onto is None else jnp.zeros_like(pins.distances)
    first, _, _ = solved(r_theta, r_dual, z)
    change, products = gmres(
        lambda v: v - solved(-curved(v), nothing, still)[0],
        first,
        rtol=_FORCING,
        max_products=_MAX_PRODUCTS,
    )
    change, dual, along = solved(r_theta - curved(change), r_dual, z)
    if along is not None and shares is not None:
        safe = jnp.where(pins.sizes == 0, 1, diagonal * pins.sizes)
        shares = shares + jnp.where(pins.sizes == 0, 0, along / safe)

    # λ decays exponentially and grows linearly: it stays positive without a search.
    up = jnp.log1p(jnp.maximum(dual, 0))
    after = before.at[index].add(jnp.where(dual < 0, dual, up))
    changes = late_change.at[index].set(jnp.abs(dual))
    total = jnp.sum(weights)
    dual_size = jnp.sum(weights * jnp.expm1(jnp.minimum(changes, 50.0))) / total
    moved = jnp.sqrt(jnp.sum(change**2) / jnp.sum(theta**2))
    # Margins and gradient, rows, the linearisation; then two a product.
    gradients = 3.0 + 2.0 * (products + 1).astype(theta.dtype)
    if stage.held is not None:
        # Rows of pinned kinks: three gradients of one example each.
        frozen = stage.held.frozen
        number = jnp.sum(stage.held.pins < frozen.total).astype(theta.dtype)
        gradients = gradients + 3 * number / frozen.num_groups
    return Point(theta + change, after, shares), moved, dual_size, gradients


class _Pins(eqx.Module):
    normals: Float[Array, "K P"]  # ∇z_k, of length one
    distances: Float[Array, " K"]  # of θ from z_k = 0
    jumps: Float[Array, "K P"]  # of Σ λ_m ∇_θ p_m, of length one
    sizes: Float[Array, " K"]  # of the jumps


def _pins(stage: Stage, held: Held, point: Point, weights: Array) -> _Pins:
    problem, params = held.on(point.shares), stage.params(point.theta)
    outputs = problem.outputs(params)
    _, pull_back = jax.vjp(lambda f: tailed(problem).pairs(f, problem.y), outputs)
    wrong = weights.reshape(problem.num_examples, -1)
    (pull,) = pull_back(wrong.astype(outputs.dtype))
    rows = held.frozen.rows(params, problem.branches, pull, held.pins)
    normals, jumps = unit_rows(rows.normals), unit_rows(rows.jumps)
    slope = stage.scale * jnp.sum(normals * rows.normals, axis=1)
    distances = jnp.where(slope == 0, 0, rows.values / jnp.where(slope == 0, 1, slope))
    sizes = stage.scale * jnp.sum(jumps * rows.jumps, axis=1)
    return _Pins(normals, distances, jumps, sizes)


def _support(stage: Stage, log_weights, targets) -> Int[Array, " some"]:
    """The pairs that matter, now or where the margins are."""
    number = targets.shape[0]
    if stage.support >= number:
        return jnp.arange(number)
    return jax.lax.top_k(jnp.maximum(log_weights, targets), stage.support)[1]


def _slope_matrix(stage: Stage, pairs, index) -> Float[Array, "some some"]:
    """-∂log λ_m/∂p_m'. Not diagonal for cross-entropy, whose ℓ_i couples classes."""
    n = stage.smooth.num_examples
    loss = tailed(stage.smooth)
    each = jax.vmap(jax.jacfwd(lambda p: loss.log_pair_slopes(p[None])[0]))(
        pairs.reshape(n, -1)
    )
    wrong = each.shape[1]
    example, j = index // wrong, index % wrong
    same = example[:, None] == example[None, :]
    matrix = each[example[:, None], j[:, None], j[None, :]]
    return jnp.where(same, -matrix, 0)


def _woken(log_weights, targets, strength) -> Float[Array, " some"]:
    r"""log λ, with those started that are about to matter but are too small to be felt.

    Newton's method multiplies λ, so that from e^-300 it would need dozens of
    iterations. An example alone solves $\ell + s (e^\ell - \lambda) = $ target, s being
    how strongly its own weight raises its own margin.
    """
    weights = jnp.exp(log_weights)
    asleep = (targets - log_weights > 1) & (strength * weights < 1)
    safe = jnp.where(strength > 0, strength, 1)
    # In y = ℓ + log s: y + e^y = r.
    r = targets + strength * weights + jnp.log(safe)
    y = jnp.where(r > 1, jnp.log(jnp.maximum(r, 1)), r)
    for _ in range(5):
        e = jnp.exp(jnp.minimum(y, 30.0))
        y = y - (y + e - r) / (1 + e)
    return jnp.where(asleep & (strength > 0), y - jnp.log(safe), log_weights)
