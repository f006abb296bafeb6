"""The velocities with which a flow can leave a point on kinks, and one of them.

Near given multipliers -∂ℒ is linear in them. All patterns of the first concave kinks
are tried, with the box's element of least norm for the convex ones (see `_resolve.py`).
"""

import itertools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ._box import box_min_norm
from ._frozen import Frozen
from ._inclusion import least_of, unit_rows, with_shares
from ._patterns import box_is_exact
from ._types import BoolScalar, Params, Scalar


_CONCAVE = 3  # concave kinks of which all 2^3 patterns are tried
_ROUNDS = 8  # of changing branches where there are more
_DISTINCT = 1e-6  # relative difference, in any entry, of velocities that are two


class Model(eqx.Module):
    # -∂ℒ near given multipliers: base + Σ λ_k J_k, exact unless kinks are in series.
    base: Float[Array, " P"]
    jumps: Float[Array, "K P"]
    units: Float[Array, "K P"]  # normals, of length one
    log_slope: Scalar
    alive: Bool[Array, " K"]  # kinks that change the gradient
    weight: Float[Array, " K"]  # w of u = w n: positive at convex kinks
    broken: BoolScalar
    # Of each jump, relative to it. Slopes in the outputs are known to their last digits
    # where the loss has an exponential tail. Others are differences, and where the data
    # are fitted their signs are the solver's errors; neurons that are small next to
    # others would follow every change of them.
    doubts: Float[Array, " K"]

    def velocity(self, shares: Float[Array, " K"]) -> Float[Array, " P"]:
        return self.base + shares @ self.jumps

    def terms(self, shares: Float[Array, " K"]) -> Float[Array, " P"]:
        """What the velocity's entries are sums of, in size."""
        return jnp.abs(self.base) + shares @ jnp.abs(self.jumps)

    def tiny(self, shares: Float[Array, " K"]) -> Float[Array, " K"]:
        """Speeds of z that are rounding."""
        return least_of(shares) * (jnp.abs(self.units) @ self.terms(shares))


def model_at(
    frozen: Frozen,
    params: Params,
    branches: Any,
    index: Any,
    shares: Any,
    precision: Any,
) -> Model:
    """The model near these multipliers; `precision` as for `resolve`."""
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
    off = jnp.linalg.norm(jumps + weight[:, None] * units, axis=1)
    scale = jnp.linalg.norm(base) + jnp.max(jnp.abs(weight))
    pulls = jnp.linalg.norm(pull.reshape(frozen.num_groups, -1), axis=1)
    felt = pulls > (0 if frozen.problem.is_tailed else slack * jnp.max(pulls))
    doubts = frozen.doubts(params, gradient.outputs, precision)
    group = jnp.minimum(index // frozen.num_kinks, frozen.num_groups - 1)
    real = index < frozen.total
    broken = jnp.any(real & (off > 1e-2 * jnp.abs(weight) + slack**0.5 * scale))
    # Without the rounding of larger neurons' parts.
    jumps = -weight[:, None] * units
    model = Model(
        base=base,
        jumps=jumps,
        units=units,
        log_slope=gradient.log_slope,
        alive=real & felt[group],
        weight=weight,
        broken=broken,
        doubts=jnp.where(real, doubts[group], 0),
    )
    # What is rounding is told kink by kink, from the parameters it depends on: neurons
    # may differ in size by any factor. (What is felt, from the slope in the output.)
    alive = model.alive & (jnp.abs(weight) > model.tiny(shares))
    return eqx.tree_at(lambda m: m.alive, model, alive)


class Choice(eqx.Module):
    velocity: Float[Array, " P"]
    shares: Float[Array, " K"]
    pinned: Bool[Array, " K"]
    ambiguous: BoolScalar
    consistent: BoolScalar


def chosen(
    model: Model,
    before: Bool[Array, " K"],
    near: Float[Array, " K"],
    branch: str,
    held: Bool[Array, " K"] | None,
) -> Choice:
    """The velocity of the model; `before`: the branches on which the flow came, and
    `near`: its multipliers, which those of kinks that are `held` stay at.
    """
    alive, units = model.alive, model.units
    given, tried = jnp.zeros_like(near), alive
    if held is not None:
        # What has no effect may have one on that of others.
        tried = alive & ~held
        given = jnp.where(tried, 0, near)
    convex = tried & (model.weight > 0)
    concave = tried & ~convex
    gram = model.jumps @ model.jumps.T
    linear = model.jumps @ model.velocity(given)
    count = min(_CONCAVE, alive.shape[0])
    (first,) = jnp.nonzero(concave, size=count, fill_value=alive.shape[0])
    # All patterns of the first concave kinks; and the element of least norm, which
    # stays on concave kinks too.
    table = np.array(list(itertools.product((False, True), repeat=count)))
    table = np.concatenate([table, table[:1]])
    still = np.arange(len(table)) == len(table) - 1
    rounds = jnp.where(jnp.sum(concave) > count, _ROUNDS, 1)

    def candidate(row, still):
        boxed = jnp.where(still, tried, convex)
        rest = concave & ~boxed
        upper = (before & rest).at[first].set(row, mode="drop") & rest

        def one(carry):
            number, upper, _, near, _ = carry
            fixed = upper.astype(gram.dtype)
            box = box_min_norm(gram, linear + gram @ fixed, boxed, near)
            # Concave branches that the velocity leaves go to the other side.
            shares = given + fixed + box.multipliers
            moving, tiny = units @ model.velocity(shares), model.tiny(shares)
            again = jnp.where(moving > tiny, True, upper)
            again = jnp.where(moving < -tiny, False, again) & rest
            number = jnp.where(jnp.all(again == upper), rounds, number + 1)
            return number, again, upper, box.multipliers, box.free

        carry = (jnp.asarray(0), upper, upper, near, jnp.zeros_like(alive))
        _, _, upper, shares, free = jax.lax.while_loop(
            lambda c: c[0] < rounds, one, carry
        )
        return given + upper.astype(gram.dtype) + shares, free

    shares, free = jax.vmap(candidate)(jnp.asarray(table), jnp.asarray(still))
    velocities = jax.vmap(model.velocity)(shares)
    moving, tiny = velocities @ units.T, jax.vmap(model.tiny)(shares)
    wrong = jnp.where(shares > 0.5, moving < -tiny, moving > tiny)
    consistent = ~jnp.any(wrong & alive[None] & ~free, axis=1)
    # A velocity along a kink may be one of the box alone, not of the inclusion.
    along = jnp.where(free, concave[None], alive[None] & (jnp.abs(moving) <= tiny))
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
    least = max(_DISTINCT, least_of(shares))
    _, same = _apart(model, shares, shares[best], least)
    several = sure & ~same
    shares = shares[best]
    if held is not None:
        other = jnp.where(moving[best] > 0, 1, 0)
        shares = jnp.where(held & wrong[best], other, shares)
    return Choice(
        velocity=velocities[best],
        shares=shares,
        pinned=free[best],
        ambiguous=jnp.any(several),
        consistent=consistent[best],
    )


def _faster(
    model: Model, shares: Float[Array, "rows K"], velocities: Float[Array, "rows P"]
) -> Float[Array, " rows"]:
    """By how much the velocities' squares exceed the first one's; zero if that cannot
    be told.

    In norms what a small neuron does is lost next to a large one, but
    ‖a‖² - ‖b‖² = ⟨a - b, a + b⟩, and a - b is zero where the shares agree.
    """
    least = least_of(shares)
    apart, same = _apart(model, shares, shares[0], least)
    gain = jnp.sum(apart * (velocities + velocities[:1]), axis=1)
    return jnp.where(same, 0, gain)


def _apart(
    model: Model, shares: Float[Array, "rows K"], others: Float[Array, " K"], least
) -> tuple[Float[Array, "rows P"], Bool[Array, " rows"]]:
    """How velocities differ from another one, and whether they are the same: in every
    entry, to `least` of what it is the sum of and to what is known of it.
    """
    change = shares - others[None]
    apart = change @ model.jumps
    terms = jax.vmap(model.terms)(shares) + model.terms(others)[None]
    unknown = (jnp.abs(change) * model.doubts[None]) @ jnp.abs(model.jumps)
    same = jnp.abs(apart) <= least * terms + unknown
    return apart, jnp.all(same, axis=1)
