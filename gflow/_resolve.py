r"""The velocity with which the inclusion leaves a point.

With $\varphi = \mathcal L'(W; \cdot)$ it minimises $\varphi(v) + \tfrac12\|v\|^2$, and

$$\min_v \varphi(v) + \tfrac12\|v\|^2 = -\tfrac12 \max_{s \in \{0,1\}^{A_-}}
  \min_{\lambda \in [0,1]^{A_+}} \bigl\|b_s + \textstyle\sum_k \lambda_k u_k\bigr\|^2,$$

$A_+$ and $A_-$ the kinks at zero across which ℒ is convex and concave. A minimiser
satisfies $-v \in \partial\varphi(v)$: it goes where it is the velocity. The element of
least norm of ∂ℒ at the point need not.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Bool, Float, Int

from ._continuations import Choice, Model, chosen, model_at
from ._downstream import decided
from ._flat import flatten
from ._frozen import Frozen
from ._inclusion import (
    Pattern,
    by_number,
    least_of,
    mark,
    split,
    unit_rows,
    with_shares,
)
from ._types import BoolScalar, Params, Scalar


# Kinks at zero for which there is a program of its own, which takes a quarter of the
# time, if there may be twice as many. (A third program, for numbers between, would take
# longer to compile than it saves.)
_USUAL = 12
_PASSES = 8  # of linearising the gradient in the multipliers of kinks in series
_SETTLED = 1e-9  # relative change of the velocity at which they end
_DEPENDENT = 100  # roundings of the sine between a normal and those of the pins
_ROUNDINGS = 10  # of each entry, as estimated once


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
    unchanged: BoolScalar  # whether it is the velocity on the branches and pins before
    # Kinks in series at zero that stay there for as long as the pins do.
    follows: Bool[Array, "groups kinks"]


def resolve(
    frozen: Frozen,
    params: Params,
    branches: Bool[Array, "groups kinks"],
    at_zero: Bool[Array, "groups kinks"],
    came: Pattern | None = None,
    precision: Any = 0.0,
    *,
    capacity: int,
    branch: str,
    thrifty: bool = True,
) -> Resolution:
    """The velocity at W, which lies on the kinks `at_zero`.

    `came`: the pattern on which the flow came, if it did; the branches are its own.
    `precision`: to which part of the largest output the outputs are known.

    `branch` is "steepest", for the fastest one, or "stay", for the slowest of those
    that go where they are the velocity. `thrifty`: whether to do no more than the
    number of kinks asks for, at the price of a program twice as long.
    """
    number = jnp.sum(at_zero)

    def with_room(few: int):
        return lambda: _padded(
            _resolve(frozen, params, branches, at_zero, came, precision, few, branch),
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


def _resolve(
    frozen: Frozen,
    params: Params,
    branches: Bool[Array, "groups kinks"],
    at_zero: Bool[Array, "groups kinks"],
    came: Pattern | None,
    precision: Any,
    capacity: int,
    branch: str,
) -> Resolution:
    total = frozen.total
    # The multipliers before, from which those of kinks in series are found.
    shares = branches.reshape(-1).astype(flatten(params).dtype)
    if came is not None:
        shares = shares.at[came.pins].set(came.shares, mode="drop")
    (index,) = jnp.nonzero(at_zero.reshape(-1), size=capacity, fill_value=total)
    resting = index
    if frozen.in_series:
        branches, known, beyond = decided(frozen, params, branches, at_zero, index)
        free = (at_zero & ~known).reshape(-1)
        (index,) = jnp.nonzero(free, size=capacity, fill_value=total)
    before = jnp.take(branches.reshape(-1), index, mode="fill", fill_value=False)
    first = jnp.take(shares, index, mode="fill", fill_value=0)
    if not frozen.in_series:
        model = model_at(frozen, params, branches, index, first, precision)
        choice = chosen(model, before, first, branch, None)
        consistent = choice.consistent
    else:
        later = jnp.take(beyond.reshape(-1), index, mode="fill", fill_value=False)

        def once(shares, held):
            model = model_at(frozen, params, branches, index, shares, precision)
            return model, chosen(model, before, shares, branch, held)

        model, choice, consistent = _in_passes(once, first, later)
    # Kinks without effect follow the velocity.
    alive, pinned = model.alive, choice.pinned
    upper = jnp.where(alive, choice.shares > 0.5, before)
    drift, tiny = model.units @ choice.velocity, model.tiny(choice.shares)
    upper = jnp.where(~alive & (drift > tiny), True, upper)
    upper = jnp.where(~alive & (drift < -tiny), False, upper)
    flat = branches.reshape(-1).at[index].set(upper & ~pinned, mode="drop")
    order = jnp.argsort(~pinned, stable=True)
    follows = jnp.zeros_like(branches)
    if frozen.in_series:
        at = with_shares(frozen, flat.reshape(branches.shape), index, choice.shares)
        units = unit_rows(frozen.normals(params, at, resting)[1])
        pins = mark(jnp.where(pinned, index, total), branches.shape).reshape(-1)
        pins = jnp.take(pins, resting, mode="fill", fill_value=False)
        found = jnp.where(_dependent(units, pins), resting, total)
        follows = mark(found, branches.shape)
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
        unchanged=_unchanged(frozen, params, came, index, model, choice),
        follows=follows,
    )


def _dependent(
    units: Float[Array, "K P"], pinned: Bool[Array, " K"]
) -> Bool[Array, " K"]:
    """The rows that are not pinned and depend on those that are."""
    pins = jnp.where(pinned[:, None], units, 0)
    _, rest = jax.vmap(lambda row: split(pins, row))(units)
    size, rest = (jnp.linalg.norm(rows, axis=1) for rows in (units, rest))
    return ~pinned & (size > 0) & (rest <= _DEPENDENT * least_of(units))


def _in_passes(
    once: Any, first: Float[Array, " K"], later: Bool[Array, " K"]
) -> tuple[Model, Choice, BoolScalar]:
    """The model and the choice of kinks in series, and whether that is consistent.

    The jumps depend on each other's multipliers: as Newton's method does, and that may
    get nowhere. Then anew, with the kinks that are `later`, at zero because others are,
    held on branches that change with the velocity alone.
    """
    shapes = eqx.filter_eval_shape(once, first, later)
    blank = jtu.tree_map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    blank = eqx.tree_at(lambda b: b[1].shares, blank, first)
    whole, false = jnp.asarray(0), jnp.asarray(False)

    def again(carry):
        number, narrow, (_, choice), _ = carry
        model, found = once(choice.shares, later & narrow)
        size = jnp.linalg.norm(found.velocity)
        moved = jnp.linalg.norm(found.velocity - choice.velocity)
        # Which rows are independent depends on the multipliers as well.
        same = jnp.all(found.pinned == choice.pinned) & (moved <= _SETTLED * size)
        settled = same & found.consistent
        number = jnp.where(same, _PASSES, number + 1)
        restarts = (number >= _PASSES) & ~settled & ~narrow & jnp.any(later)
        shares = jnp.where(restarts, first, found.shares)
        found = eqx.tree_at(lambda f: f.shares, found, shares)
        number = jnp.where(restarts, 0, number)
        return number, narrow | restarts, (model, found), settled

    carry = (whole, false, blank, false)
    _, _, (model, choice), settled = jax.lax.while_loop(
        lambda c: c[0] < _PASSES, again, carry
    )
    return model, choice, settled


def _unchanged(
    frozen: Frozen,
    params: Params,
    came: Pattern | None,
    index: Int[Array, " K"],
    model: Model,
    choice: Choice,
) -> BoolScalar:
    """Whether the velocity is also that on the pattern on which the flow came.

    Of several kinks at zero in series, which depend on each other, many patterns say
    the same.
    """
    if came is None or not frozen.in_series:
        return jnp.asarray(False)
    at = with_shares(frozen, came.branches, came.pins, came.shares)
    pins = jnp.take(came.pinned.reshape(-1), index, mode="fill", fill_value=False)
    units = jnp.where(pins[:, None], model.units, 0)
    least = least_of(units)

    def velocity(params):
        _, direction, _ = frozen.flat_gradient(params, at)
        return split(units, direction)[1]

    # What rounding may make of each entry, which may itself be rounding where kinks
    # are at zero but for that, is seen from the next W.
    both = jtu.tree_map(
        lambda a, b: jnp.stack([a, b]), params, frozen.next_to(params, least)
    )
    here, near = jax.vmap(velocity)(both)
    apart, rounding = jnp.abs(here - choice.velocity), jnp.abs(near - here)
    terms = model.terms(choice.shares)
    return jnp.all(apart <= _ROUNDINGS * rounding + least * terms)
