r"""The differential inclusion between and at kinks.

Where W lies on some kinks and the flow keeps it there (they are *pinned*), its velocity
is that of the smooth problem projected on their tangent space,

$$\dot W = -b - \textstyle\sum_k \lambda_k u_k \perp n_k,\qquad \lambda_k \in [0, 1],$$

b the gradient on the lower branch of every pinned kink, $n_k = \nabla z_k$ and
$u_k \parallel n_k$ the change of the gradient across kink k. It is minus the element of
least norm of the Clarke subdifferential (Ji & Telgarsky 2020, Lemma B.9).
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ._flat import flatten, unflattener
from ._frozen import Frozen
from ._lanes import anywhere, largest
from ._problem import Gradient
from ._types import Params
from .fields import Velocity


_ROUNDS = 4  # of Newton's method for multipliers of kinks in series
FEW = 8  # kinks whose rows are formed, if there are no more


class Pattern(eqx.Module):
    """On which side of every kink a flow is, and on which kinks it is pinned."""

    branches: Bool[Array, "groups kinks"]  # lower for pinned ones
    pins: Int[Array, " K"]  # numbers of the pinned kinks, then `total`
    shares: Float[Array, " K"]  # their multipliers when the pattern was chosen
    # What z may be on the wrong side before that is an event.
    offsets: Float[Array, "groups kinks"]
    sizes: Float[Array, "groups kinks"]  # what |z| is compared with
    at_zero: Bool[Array, "groups kinks"]  # zero when the pattern was chosen
    follows: Bool[Array, "groups kinks"]  # zero for as long as the pinned ones are

    @property
    def num_pins(self) -> Int[Array, ""]:
        """How many kinks are pinned."""
        return jnp.sum(self.pins < self.branches.size)

    @property
    def pinned(self) -> Bool[Array, "groups kinks"]:
        """Which kinks are."""
        return mark(self.pins, self.branches.shape)


def mark(index: Int[Array, " K"], shape: tuple[int, ...]) -> Bool[Array, "..."]:
    """True at these numbers."""
    flat = jnp.zeros(shape[0] * shape[1], bool).at[index].set(True, mode="drop")
    return flat.reshape(shape)


class Sliding(eqx.Module):
    """The velocity with some kinks pinned."""

    gradient: Gradient  # on the branches; its direction is not the velocity
    direction: Float[Array, " P"]  # in the gradient's scale
    multipliers: Float[Array, " K"]  # λ; 1/2 where there is no pin
    # What λ is to be compared with near zero: one, or less where what it balances is
    # smaller than what crossing the kink would change.
    scales: Float[Array, " K"]


def with_shares(
    frozen: Frozen, branches: Any, index: Int[Array, " K"], shares: Float[Array, " K"]
) -> Any:
    """The branches, at some kinks a share of the upper one.

    That matters where one kink depends on another. Else lower branches will do, and are
    cheaper.
    """
    if not frozen.in_series:
        return branches & ~mark(index, branches.shape)
    flat = branches.reshape(-1).astype(shares.dtype)
    return flat.at[index].set(shares, mode="drop").reshape(branches.shape)


@eqx.filter_jit
def sliding(
    frozen: Frozen,
    params: Params,
    pattern: Pattern,
    *,
    closely: bool,
    thrifty: bool = True,
    shared: bool = True,
) -> Any:
    """The velocity on a pattern.

    The velocity is the same whatever the pinned kinks' multipliers, since the normals
    of pinned kinks span the same space. `closely`: whether the multipliers are to be
    exact for kinks in series, whose jumps depend on each other's multipliers.
    `thrifty`: whether to do no more than the number of pins asks for, at the price of
    a longer program. `shared`: whether the multipliers are asked for; without them the
    jumps are not, which are two thirds of the cost of pins.
    """
    pins, shares = pattern.pins, pattern.shares
    rounds = _ROUNDS if closely and frozen.in_series else 1

    def once(shares):
        at = with_shares(frozen, pattern.branches, pins, shares)
        gradient, direction, pull = frozen.flat_gradient(params, at)
        known = shares if frozen.in_series else jnp.zeros_like(shares)

        def with_first(count: int):
            def project(direction, pull):
                used = pins[:count]
                half, one = jnp.full_like(shares, 0.5), jnp.ones_like(shares)
                if count == 0:
                    return direction, half, one
                if not shared:
                    _, normals = frozen.normals(params, at, used)
                    _, rest = split(unit_rows(normals), direction)
                    return rest, half, one
                rows = frozen.rows(params, at, pull, used)
                units = unit_rows(rows.normals)
                along, rest = split(units, direction)
                # -∇ℒ changes by J_k = -u_k across kink k; Σ λ_k J_k removes `along`.
                change = jnp.sum(rows.jumps * units, axis=1)
                safe = jnp.where(change == 0, 1, change)
                more = jnp.where(change == 0, jnp.inf, -along / safe)
                share = jnp.where(used < frozen.total, known[:count] + more, 0.5)
                part = jnp.linalg.norm(direction) / jnp.abs(safe)
                part = jnp.clip(part, jnp.finfo(part.dtype).tiny, 1)
                return rest, half.at[:count].set(share), one.at[:count].set(part)

            return project

        if thrifty:
            project = _by_number(pins, frozen.total, with_first)
        else:
            project = with_first(pins.shape[0])
        return gradient, *project(direction, pull)

    if rounds == 1:
        return Sliding(*once(shares))
    blank = jax.tree.map(
        lambda s: jnp.zeros(s.shape, s.dtype), eqx.filter_eval_shape(once, shares)
    )

    def again(number, at):
        *new, found, scales = once(at[2])
        # The first velocity: multipliers that diverge later do not spoil it.
        keep = lambda a, b: jnp.where(number == 0, a, b)  # noqa: E731
        return *jax.tree.map(keep, tuple(new), at[:2]), found, scales

    start = (*blank[:2], shares, blank[3])
    return Sliding(*jax.lax.fori_loop(0, rounds, again, start))


def _by_number(pins: Any, total: int, with_first: Any) -> Any:
    return by_number(jnp.sum(pins < total), pins.shape[0], with_first, more=(3 * FEW,))


def by_number(
    number: Any,
    capacity: int,
    with_first: Any,
    *,
    least: int = 0,
    few: int = FEW,
    more: tuple[int, ...] = (),
) -> Any:
    """The cheapest of the functions that has room for a number of kinks."""
    counts = sorted({least, *(min(c, capacity) for c in (few, *more)), capacity})
    if len(counts) == 1:
        return with_first(capacity)
    which = jnp.sum(largest(number) > jnp.asarray(counts))
    which = jnp.minimum(which, len(counts) - 1)
    functions = [with_first(count) for count in counts]
    return lambda *args: jax.lax.switch(which, functions, *args)


def unit_rows(rows: Float[Array, "K P"]) -> Float[Array, "K P"]:
    """Rows of norm one; zero rows stay zero."""
    scale = jnp.max(jnp.abs(rows), axis=1, keepdims=True)
    rows = rows / jnp.where(scale == 0, 1, scale)
    size = jnp.linalg.norm(rows, axis=1, keepdims=True)
    return rows / jnp.where(size == 0, 1, size)


def split(units: Float[Array, "K P"], vector: Float[Array, " P"]):
    """Coefficients of a vector's part in the span of the rows, and what is left."""
    along = _solve(units, units @ vector)
    rest = vector - along @ units
    more = _solve(units, units @ rest)  # what rounding has left
    return along + more, rest - more @ units


def _solve(units: Float[Array, "K P"], target: Float[Array, " K"]):
    """Coefficients of the least vector with these products with the rows."""
    gram = units @ units.T
    # Normals may come to depend on each other (in series, where all that a layer sees
    # is pinned): a few roundings on the diagonal, which a second solution corrects.
    few = 4 * gram.shape[0] * float(jnp.finfo(gram.dtype).eps)
    more = jnp.where(jnp.diag(gram) == 0, 1, few).astype(gram.dtype)
    factor = jax.scipy.linalg.cho_factor(gram + jnp.diag(more))
    return jax.scipy.linalg.cho_solve(factor, target)


@eqx.filter_jit
def onto_pins(frozen: Frozen, params: Params, pattern: Pattern) -> Params:
    """The nearest W, to first order, on which the pinned kinks' z vanish."""
    unflatten = unflattener(params)

    def with_first(count: int):
        def project(vector):
            if count == 0:
                return vector
            used = pattern.pins[:count]
            z, normals = frozen.normals(unflatten(vector), pattern.branches, used)
            units = unit_rows(normals)
            size = jnp.sum(normals * units, axis=1)
            target = jnp.where(size == 0, 0, z / jnp.where(size == 0, 1, size))
            return vector - _solve(units, target) @ units

        return project

    moved = _by_number(pattern.pins, frozen.total, with_first)(flatten(params))
    return unflatten(moved)


class InclusionField(eqx.Module):
    """The velocity of the inclusion on a pattern that is held fixed."""

    frozen: Frozen
    pattern: Pattern

    def __call__(self, params: Params) -> Velocity:
        at = sliding(self.frozen, params, self.pattern, closely=False, shared=False)
        direction = unflattener(params)(at.direction)
        gradient = at.gradient
        return Velocity(gradient.log_slope, direction, gradient.log_loss, gradient.loss)


@eqx.filter_jit
def room(frozen: Frozen, params: Params, pattern: Pattern):
    """How far a kink that is not pinned is from being on the other side of zero, and
    which one is nearest to that.
    """
    z = frozen.pre_activations(params, pattern.branches)
    side = jnp.where(pattern.branches, 1, -1).astype(z.dtype)
    sizes = pattern.sizes
    watched = (sizes > 0) & ~pattern.pinned & ~pattern.follows
    left = (side * z + pattern.offsets) / jnp.where(sizes > 0, sizes, 1)
    left = jnp.where(watched, left, jnp.inf).reshape(-1)
    nearest = jnp.argmin(left)
    return left[nearest], nearest


@eqx.filter_jit
def multipliers(
    frozen: Frozen,
    params: Params,
    pattern: Pattern,
    slack: float,
    *,
    thrifty: bool = True,
):
    """How far the multiplier of a pinned kink is from leaving [0, 1], and whose is the
    nearest to that.
    """

    def with_pins():
        at = sliding(frozen, params, pattern, closely=True, thrifty=thrifty)
        share = at.multipliers
        inside = jnp.minimum(share / at.scales, 1 - share) + slack
        inside = jnp.where(jnp.isnan(inside), -1.0, inside)
        inside = jnp.where(pattern.pins < frozen.total, inside, jnp.inf)
        return jnp.min(inside), pattern.pins[jnp.argmin(inside)]

    dtype = pattern.shares.dtype
    none = (jnp.asarray(jnp.inf, dtype), jnp.asarray(0, pattern.pins.dtype))
    return jax.lax.cond(anywhere(pattern.num_pins > 0), with_pins, lambda: none)


def least_of(like: Array) -> float:
    """The slack of signs and of multipliers: 10⁻¹¹ in float64."""
    return float(jnp.finfo(like.dtype).eps) ** 0.7
