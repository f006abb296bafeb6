r"""The velocity with which the inclusion leaves a point.

With $\varphi = \mathcal L'(W; \cdot)$ it minimises $\varphi(v) + \tfrac12\|v\|^2$, and

$$\min_v \varphi(v) + \tfrac12\|v\|^2 = -\tfrac12 \max_{s \in \{0,1\}^{A_-}}
  \min_{\lambda \in [0,1]^{A_+}} \bigl\|b_s + \textstyle\sum_k \lambda_k u_k\bigr\|^2,$$

$A_+$ and $A_-$ the kinks at zero across which ℒ is convex and concave. A minimiser
satisfies $-v \in \partial\varphi(v)$: it goes where it is the velocity. The element of
least norm of ∂ℒ at the point need not.
"""

import itertools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ._box import box_min_norm
from ._downstream import decided
from ._flat import flatten
from ._frozen import Frozen
from ._inclusion import Pattern, by_number, least_of, mark, unit_rows, with_shares
from ._lanes import where_due
from ._patterns import box_is_exact
from ._types import BoolScalar, IntScalar, Params, Scalar


# Kinks at zero for which there is a program of its own, which takes a quarter of the
# time, if there may be twice as many. (A third program, for numbers between, would take
# longer to compile than it saves.)
_USUAL = 12
_CONCAVE = 3  # concave kinks of which all 2^3 patterns are tried
_ROUNDS = 8  # of changing branches where there are more
_PASSES = 8  # of linearising the gradient in the multipliers of kinks in series
_SETTLED = 1e-9  # relative change of the velocity at which they end
_NEAR = 1e-4  # |z| of a kink at zero, of its size, at most
_DISTINCT = 1e-6  # relative difference, in any entry, of velocities that are two


class Resolution(eqx.Module):
    """A velocity, the branches and pins it is on, and how it was come by."""

    direction: Float[Array, " P"]  # in the gradient's scale
    log_slope: Scalar
    branches: Bool[Array, "groups kinks"]
    pins: Int[Array, " K"]
    shares: Float[Array, " K"]  # λ of the pins
    index: Int[Array, " K"]  # the kinks at zero
    multipliers: Float[Array, " K"]  # λ of these
    ambiguous: BoolScalar  # whether the inclusion has several continuations
    consistent: BoolScalar  # whether the velocity goes where it is one
    crowded: BoolScalar  # whether more kinks are at zero than there is room for
    jumps: BoolScalar  # whether ℒ itself does


def resolve(
    frozen: Frozen,
    params: Params,
    branches: Bool[Array, "groups kinks"],
    at_zero: Bool[Array, "groups kinks"],
    shares: Float[Array, "groups kinks"] | None = None,
    *,
    capacity: int,
    branch: str,
    thrifty: bool = True,
) -> Resolution:
    """The velocity at W, which lies on the kinks `at_zero`.

    `shares`: their multipliers before, if there were any, from which those of kinks in
    series are found.

    `branch` is "steepest", for the fastest one, or "stay", for the slowest of those
    that go where they are the velocity. `thrifty`: whether to do no more than the
    number of kinks asks for, at the price of a program twice as long.
    """
    number = jnp.sum(at_zero)
    if shares is None:
        shares = branches.astype(flatten(params).dtype)

    def with_room(few: int):
        return lambda: _padded(
            _resolve(frozen, params, branches, at_zero, shares, few, branch),
            capacity,
            frozen.total,
        )

    few = _USUAL if thrifty and capacity > 2 * _USUAL else capacity
    found = by_number(number, capacity, with_room, least=few, few=few)()
    return eqx.tree_at(lambda r: r.crowded, found, number > capacity)


def _padded(found: Resolution, capacity: int, total: int) -> Resolution:
    def pad(x: Array, fill: Any) -> Array:
        return jnp.concatenate([x, jnp.full(capacity - x.shape[0], fill, x.dtype)])

    return eqx.tree_at(
        lambda r: (r.pins, r.shares, r.index, r.multipliers),
        found,
        (
            pad(found.pins, total),
            pad(found.shares, 0.5),
            pad(found.index, total),
            pad(found.multipliers, 0),
        ),
    )


class _Model(eqx.Module):
    # -∂ℒ near given multipliers: base + Σ λ_k J_k, exact unless kinks are in series.
    base: Float[Array, " P"]
    jumps: Float[Array, "K P"]
    units: Float[Array, "K P"]  # normals, of length one
    log_slope: Scalar
    alive: Bool[Array, " K"]  # kinks that change the gradient
    weight: Float[Array, " K"]  # w of u = w n: positive at convex kinks
    terms: Float[Array, " P"]  # what the velocity's entries are sums of, in size
    tiny: Float[Array, " K"]  # speeds of z that are rounding
    broken: BoolScalar
    # Whether slopes in the outputs are known to their last digits, however small: of
    # losses with an exponential tail. Others are differences, and where the data are
    # fitted their signs are the solver's errors; neurons that are small next to others
    # would follow every change of them.
    sharp: bool = eqx.field(static=True)

    def velocity(self, shares: Float[Array, " K"]) -> Float[Array, " P"]:
        return self.base + shares @ self.jumps


def _model(
    frozen: Frozen, params: Params, branches: Any, index: Any, shares: Any
) -> _Model:
    at = with_shares(frozen, branches, index, shares)
    gradient, base, pull = frozen.flat_gradient(params, at)
    rows = frozen.rows(params, at, pull, index)
    jumps = rows.jumps
    if frozen.in_series:
        base = base - shares @ jumps
    units = unit_rows(rows.normals)
    # J = -w n: w > 0 is a convex kink.
    weight = -jnp.sum(jumps * units, axis=1)
    slack = least_of(base)
    # What is rounding is told kink by kink, from the parameters it depends on: neurons
    # may differ in size by any factor. (What is felt, from the slope in the output.)
    terms = jnp.sum(jnp.abs(weight)[:, None] * jnp.abs(units), axis=0)
    terms = jnp.abs(base) + terms
    tiny = slack * (jnp.abs(units) @ terms)
    pulls = jnp.linalg.norm(pull.reshape(frozen.num_groups, -1), axis=1)
    sharp = frozen.problem.is_tailed
    felt = pulls > (0 if sharp else slack * jnp.max(pulls))
    group = jnp.minimum(index // frozen.num_kinks, frozen.num_groups - 1)
    real = index < frozen.total
    alive = real & felt[group] & (jnp.abs(weight) > tiny)
    off = jnp.linalg.norm(jumps + weight[:, None] * units, axis=1)
    scale = jnp.linalg.norm(base) + jnp.max(jnp.abs(weight))
    broken = jnp.any(real & (off > 1e-2 * jnp.abs(weight) + slack**0.5 * scale))
    # Without the rounding of larger neurons' parts.
    jumps = -weight[:, None] * units
    slope = gradient.log_slope
    return _Model(base, jumps, units, slope, alive, weight, terms, tiny, broken, sharp)


class _Choice(eqx.Module):
    velocity: Float[Array, " P"]
    shares: Float[Array, " K"]
    pinned: Bool[Array, " K"]
    ambiguous: BoolScalar
    consistent: BoolScalar


def _choice(
    model: _Model,
    before: Bool[Array, " K"],
    near: Float[Array, " K"],
    branch: str,
) -> _Choice:
    """The velocity of the model; `before`: the branches on which the flow came, and
    `near`: its multipliers.
    """
    alive, units, tiny = model.alive, model.units, model.tiny
    convex = alive & (model.weight > 0)
    concave = alive & ~convex
    gram, linear = model.jumps @ model.jumps.T, model.jumps @ model.base
    count = min(_CONCAVE, alive.shape[0])
    (first,) = jnp.nonzero(concave, size=count, fill_value=alive.shape[0])
    # All patterns of the first concave kinks; and the element of least norm, which
    # stays on concave kinks too.
    table = np.array(list(itertools.product((False, True), repeat=count)))
    table = np.concatenate([table, table[:1]])
    still = np.arange(len(table)) == len(table) - 1
    rounds = jnp.where(jnp.sum(concave) > count, _ROUNDS, 1)

    def candidate(row, still):
        boxed = jnp.where(still, alive, convex)
        given = concave & ~boxed
        upper = (before & given).at[first].set(row, mode="drop") & given

        def one(carry):
            number, upper, _, _ = carry
            fixed = upper.astype(gram.dtype)
            box = box_min_norm(gram, linear + gram @ fixed, boxed, near)
            shares = fixed + box.multipliers
            # Concave branches that the velocity leaves go to the other side.
            moving = units @ model.velocity(shares)
            again = jnp.where(moving > tiny, True, upper)
            again = jnp.where(moving < -tiny, False, again) & given
            return number + 1, again, shares, box.free

        blank = (jnp.zeros_like(linear), jnp.zeros_like(alive))
        carry = (jnp.asarray(0), upper, *blank)
        _, _, shares, free = jax.lax.while_loop(lambda c: c[0] < rounds, one, carry)
        return shares, free

    shares, free = jax.vmap(candidate)(jnp.asarray(table), jnp.asarray(still))
    velocities = jax.vmap(model.velocity)(shares)
    moving = velocities @ units.T
    wrong = jnp.where(shares > 0.5, moving < -tiny[None], moving > tiny[None])
    consistent = ~jnp.any(wrong & alive[None] & ~free, axis=1)
    # A velocity along a kink may be one of the box alone, not of the inclusion.
    along = jnp.where(
        free, concave[None], alive[None] & (jnp.abs(moving) <= tiny[None])
    )
    along = jnp.any(along, axis=1)
    # The rank test after the boxes, and of something only where it is asked for: under
    # vmap JAX 0.10's CPU kernels share out a batch of factorisations to the threads on
    # which they run, and as many at once as there are threads wait for ever.
    asked = jnp.any(consistent & along)
    tested = jnp.where(asked, units, 0)
    sure = consistent & (box_is_exact(tested, model.weight, alive & asked) | ~along)
    faster = _faster(model, shares, velocities)
    slowest = jnp.where(sure, -faster, -jnp.inf)
    # What is faster only by rounding comes first.
    number = jnp.arange(faster.shape[0], dtype=faster.dtype)
    faster = faster - 1e-12 * number * jnp.abs(faster)
    steepest = jnp.where(consistent, faster, -jnp.inf)
    steepest = jnp.where(jnp.any(consistent), steepest, faster)
    order = steepest
    if branch == "stay":
        order = jnp.where(jnp.any(sure), slowest, steepest)
    best = jnp.argmax(order)
    several = sure & _distinct(model, shares, velocities, best)
    return _Choice(
        velocity=velocities[best],
        shares=shares[best],
        pinned=free[best],
        ambiguous=jnp.any(several),
        consistent=consistent[best],
    )


def _faster(
    model: _Model, shares: Float[Array, "rows K"], velocities: Float[Array, "rows P"]
) -> Float[Array, " rows"]:
    """What grows with the velocities' norms.

    If slopes are sharp, by how much their squares exceed the first one's, or zero if
    that is rounding: in norms what a small neuron does is lost next to a large one, but
    ‖a‖² - ‖b‖² = ⟨a - b, a + b⟩, and a - b is zero where the shares agree.
    """
    if not model.sharp:
        return jnp.linalg.norm(velocities, axis=1)
    apart = (shares - shares[:1]) @ model.jumps
    gain = jnp.sum(apart * (velocities + velocities[:1]), axis=1)
    same = jnp.all(jnp.abs(apart) <= least_of(apart) * model.terms[None], axis=1)
    return jnp.where(same, 0, gain)


def _distinct(
    model: _Model,
    shares: Float[Array, "rows K"],
    velocities: Float[Array, "rows P"],
    best: IntScalar,
) -> Bool[Array, " rows"]:
    """Which velocities are not the best one; if slopes are sharp, in any entry."""
    least = max(_DISTINCT, least_of(velocities))
    if model.sharp:
        apart = jnp.abs((shares - shares[best][None]) @ model.jumps)
        return jnp.any(apart > least * model.terms[None], axis=1)
    speed = jnp.linalg.norm(velocities, axis=1)
    apart = jnp.linalg.norm(velocities - velocities[best][None], axis=1)
    return apart > least * jnp.maximum(speed, speed[best])


def _resolve(
    frozen: Frozen,
    params: Params,
    branches: Bool[Array, "groups kinks"],
    at_zero: Bool[Array, "groups kinks"],
    shares: Float[Array, "groups kinks"],
    capacity: int,
    branch: str,
) -> Resolution:
    total = frozen.total
    (index,) = jnp.nonzero(at_zero.reshape(-1), size=capacity, fill_value=total)
    if frozen.in_series:
        branches, known = decided(frozen, params, branches, at_zero, index)
        free = (at_zero & ~known).reshape(-1)
        (index,) = jnp.nonzero(free, size=capacity, fill_value=total)
    before = jnp.take(branches.reshape(-1), index, mode="fill", fill_value=False)
    first = jnp.take(shares.reshape(-1), index, mode="fill", fill_value=0)

    def once(shares):
        model = _model(frozen, params, branches, index, shares)
        return model, _choice(model, before, first, branch)

    if frozen.in_series:
        # The jumps depend on each other's multipliers: as Newton's method does.
        shapes = eqx.filter_eval_shape(once, first)
        blank = jtu.tree_map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        blank = eqx.tree_at(lambda b: b[1].shares, blank, first)

        def again(carry):
            number, (_, choice), _, _ = carry
            found = once(choice.shares)
            size = jnp.linalg.norm(found[1].velocity)
            moved = jnp.linalg.norm(found[1].velocity - choice.velocity)
            # Which rows are independent depends on the multipliers as well.
            same = jnp.all(found[1].pinned == choice.pinned)
            return number + 1, found, moved <= _SETTLED * size, same

        false = jnp.asarray(False)
        _, (model, choice), settled, _ = jax.lax.while_loop(
            lambda c: (c[0] < _PASSES) & ~(c[2] & c[3]),
            again,
            (jnp.asarray(0), blank, false, false),
        )
        consistent = choice.consistent & settled
    else:
        model, choice = once(first)
        consistent = choice.consistent
    # Kinks without effect follow the velocity.
    alive, pinned = model.alive, choice.pinned
    upper = jnp.where(alive, choice.shares > 0.5, before)
    drift = model.units @ choice.velocity
    upper = jnp.where(~alive & (drift > model.tiny), True, upper)
    upper = jnp.where(~alive & (drift < -model.tiny), False, upper)
    flat = branches.reshape(-1).at[index].set(upper & ~pinned, mode="drop")
    order = jnp.argsort(~pinned, stable=True)
    return Resolution(
        direction=choice.velocity,
        log_slope=model.log_slope,
        branches=flat.reshape(branches.shape),
        pins=jnp.where(pinned, index, total)[order],
        shares=jnp.where(pinned, choice.shares, 0.5)[order],
        index=index,
        multipliers=jnp.where(index < total, choice.shares, 0),
        ambiguous=choice.ambiguous,
        consistent=consistent,
        crowded=jnp.asarray(False),
        jumps=model.broken,
    )


@eqx.filter_jit
def settle(
    frozen: Frozen,
    params: Params,
    before: Pattern | None,
    *,
    capacity: int,
    branch: str,
    due: BoolScalar | bool = True,
) -> tuple[Pattern, Resolution]:
    """The pattern on which the flow leaves W, having come on the one before.

    `due`: whether it is asked for; if not, it is the one before.
    """

    def find() -> tuple[Pattern, Resolution]:
        return _settled(frozen, params, before, capacity, branch)

    def keep(blank: tuple[Pattern, Resolution]) -> tuple[Pattern, Resolution]:
        pattern, found = blank
        return (pattern if before is None else before), found

    return where_due(due, find, keep)


def _settled(
    frozen: Frozen,
    params: Params,
    before: Pattern | None,
    capacity: int,
    branch: str,
) -> tuple[Pattern, Resolution]:
    slack = least_of(flatten(params))
    near = min(1e3 * slack, max(10 * slack, _NEAR))
    sizes = frozen.sizes(params)
    if before is None:
        z = frozen.pre_activations(params, None)
        branches = z > 0
        at_zero = jnp.abs(z) <= near * sizes
        at_zero = at_zero & (sizes > 0)
        shares = None
    else:
        branches = before.branches
        z = frozen.pre_activations(params, branches)
        # What z is compared with may vanish along with it, as when a neuron dies.
        at_zero = jnp.abs(z) <= jnp.maximum(near * sizes, 10 * slack * before.sizes)
        # Nor may a pattern go on with a kink on the wrong side.
        at_zero = at_zero | (jnp.where(branches, z, -z) < -slack * sizes)
        sizes = jnp.where(at_zero, jnp.maximum(sizes, before.sizes), sizes)
        at_zero = (at_zero & (sizes > 0)) | before.pinned
        shares = branches.astype(z.dtype).reshape(-1)
        shares = shares.at[before.pins].set(before.shares, mode="drop")
        shares = shares.reshape(z.shape)
    found = resolve(
        frozen,
        params,
        branches,
        at_zero,
        shares,
        capacity=capacity,
        branch=branch,
        thrifty=before is not None,  # at the start, once
    )
    side = jnp.where(found.branches, 1, -1).astype(z.dtype)
    offsets = slack * sizes + jnp.maximum(0, -2 * side * z)
    offsets = jnp.where(mark(found.pins, z.shape), 0, offsets)
    pattern = Pattern(found.branches, found.pins, found.shares, offsets, sizes, at_zero)
    return pattern, found
