r"""The smooth flow between kinks, and along those that hold it.

Every kink k has a slope $s_k$, the share of its upper branch: 0 or 1 where the flow
is on one side of the kink, and between them where the flow slides along it. Sliding
kinks are called pinned. With $b = -\nabla\mathcal L(W; s)$ and the normals
$n_k = \nabla z_k$ of the pinned kinks as the rows of N, the velocity is

$$v = b - N^\top\lambda,\qquad N N^\top\lambda = N b,$$

which is minus the element of least norm of the Clarke subdifferential (Ji & Telgarsky
2020, Lemma B.9) for as long as the slopes that make $b = v$ are in [0, 1].
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ._box import box_min_norm
from ._flat import flatten, unflattener
from ._frozen import Branched, Frozen
from ._inclusion import by_number, least_of, mark, split, unit_rows
from ._lanes import anywhere
from ._types import BoolScalar, IntScalar, Params, Scalar
from .fields import Velocity


# Numbers of pinned kinks for which the projection is compiled.
_FEW, _MORE = 8, (32, 128)
# A velocity across a kink that is rounding, as a part of the whole velocity.
_STILL = 1e-9


class Sides(eqx.Module):
    """Where a flow is in relation to every kink."""

    slopes: Float[Array, "groups kinks"]
    pins: Int[Array, " K"]  # the numbers of the pinned kinks, then `total`

    @property
    def pinned(self) -> Bool[Array, "groups kinks"]:
        """Which kinks are pinned."""
        return mark(self.pins, self.slopes.shape)

    @property
    def is_real(self) -> Bool[Array, " K"]:
        """Which entries of `pins` are kinks."""
        return self.pins < self.slopes.size

    @property
    def num_pins(self) -> IntScalar:
        """How many kinks are pinned."""
        return jnp.sum(self.is_real)

    def at_pins(self) -> Float[Array, " K"]:
        """The slopes of the pinned kinks; 1/2 in unused entries."""
        return _at(self.slopes, self.pins, 0.5)

    def with_slopes(self, shares: Float[Array, " K"]) -> "Sides":
        """The same with these slopes at the pinned kinks."""
        return Sides(_put(self.slopes, self.pins, shares), self.pins)


def _at(values: Array, index: Int[Array, " K"], fill: Any) -> Array:
    flat = values.reshape(-1)
    return flat.at[index].get(mode="fill", fill_value=fill)


def _put(values: Array, index: Int[Array, " K"], new: Array) -> Array:
    flat = values.reshape(-1).at[index].set(new.astype(values.dtype), mode="drop")
    return flat.reshape(values.shape)


def numbers_of(which: Bool[Array, "groups kinks"], most: int) -> Int[Array, " K"]:
    """The numbers of the marked kinks, the first `most` of them, then `total`."""
    (found,) = jnp.nonzero(which.reshape(-1), size=most, fill_value=which.size)
    return found


@eqx.filter_jit
def _near_zero(frozen: Frozen, params: Params) -> BoolScalar:
    z = jnp.abs(frozen.pre_activations(params, None))
    return jnp.any(z <= 10 * least_of(z) * jnp.max(z))


@eqx.filter_jit
def _at_zero(frozen: Frozen, params: Params) -> BoolScalar:
    z, sizes = frozen.pre_activations(params, None), frozen.sizes(params)
    return jnp.any((jnp.abs(z) <= 1e3 * least_of(z) * sizes) & (sizes > 0))


def on_kink(frozen: Frozen, params: Params) -> bool:
    """Whether the parameters, whose values are known, are on a kink."""
    return bool(_near_zero(frozen, params)) and bool(_at_zero(frozen, params))


class SlidingField(eqx.Module):
    """The velocity with given slopes, along the pinned kinks."""

    frozen: Frozen
    sides: Sides

    @property
    def problem(self) -> Branched:
        """The smooth problem with these slopes."""
        return self.frozen.on(self.sides.slopes)

    def __call__(self, params: Params) -> Velocity:
        at = self.problem.gradient(params)
        direction = along_pins(self.frozen, params, self.sides, at.direction)
        return Velocity(at.log_slope, direction, at.log_loss, at.loss)


def _where_pinned(sides: Sides, with_first: Any, otherwise: Any, *args: Any) -> Any:
    """`with_first(count)(*args)` with room for the pinned kinks, or `otherwise`."""
    number = sides.num_pins
    capacity = sides.pins.shape[0]
    return jax.lax.cond(
        anywhere(number > 0),
        lambda *a: by_number(
            number, capacity, with_first, least=min(_FEW, capacity), more=_MORE
        )(*a),
        otherwise,
        *args,
    )


def along_pins(
    frozen: Frozen, params: Params, sides: Sides, direction: Params
) -> Params:
    """The part of a direction that keeps z = 0 at the pinned kinks."""
    unflatten = unflattener(params)

    def with_first(count: int):
        def project(direction: Params) -> Params:
            index = sides.pins[:count]
            _, normals = frozen.normals(params, sides.slopes, index)
            _, rest = split(unit_rows(normals), flatten(direction))
            return unflatten(rest)

        return project

    return _where_pinned(sides, with_first, lambda d: d, direction)


def onto_pins(frozen: Frozen, params: Params, sides: Sides) -> Params:
    """The nearest parameters, to first order, with z = 0 at the pinned kinks."""
    unflatten = unflattener(params)

    def with_first(count: int):
        def project(params: Params) -> Params:
            index = sides.pins[:count]
            z, normals = frozen.normals(params, sides.slopes, index)
            units = unit_rows(normals)
            size = jnp.sum(normals * units, axis=1)
            target = jnp.where(size == 0, 0, z / jnp.where(size == 0, 1, size))
            move = least_move(units, target)
            return unflatten(flatten(params) - move)

        return project

    return _where_pinned(sides, with_first, lambda p: p, params)


def least_move(units: Float[Array, "K P"], target: Float[Array, " K"]) -> Array:
    """The least vector whose products with the rows are these."""
    gram = units @ units.T
    few = 4 * gram.shape[0] * float(jnp.finfo(gram.dtype).eps)
    more = jnp.where(jnp.diag(gram) == 0, 1, few).astype(gram.dtype)
    factor = jax.scipy.linalg.cho_factor(gram + jnp.diag(more))
    x = jax.scipy.linalg.cho_solve(factor, target)
    x = x + jax.scipy.linalg.cho_solve(factor, target - gram @ x)
    return x @ units


def slopes_along(
    frozen: Frozen, params: Params, sides: Sides
) -> Float[Array, " K"]:
    r"""The slopes of the pinned kinks with which -∇ℒ is the velocity along them.

    Where one is outside of [0, 1] the flow leaves that kink. Slopes in unused entries
    are 1/2. To first order where kinks are in series.
    """
    known = sides.at_pins()

    def with_first(count: int):
        def find() -> Float[Array, " K"]:
            index = sides.pins[:count]
            gradient, pull = frozen.gradient(params, sides.slopes)
            rows = frozen.rows(params, sides.slopes, pull, index)
            units = unit_rows(rows.normals)
            along, _ = split(units, flatten(gradient.direction))
            # -∇ℒ changes by this much times the unit normal from branch to branch.
            change = jnp.sum(rows.jumps * units, axis=1)
            more = -along / jnp.where(change == 0, 1, change)
            more = jnp.where((change == 0) & (along != 0), jnp.inf, more)
            real = index < frozen.total
            return known.at[:count].set(
                jnp.where(real, known[:count] + more, known[:count])
            )

        return find

    return _where_pinned(sides, with_first, lambda: known)


class Balance(eqx.Module):
    """Which of some kinks hold the flow, and its velocity."""

    sides: Sides
    velocity: Velocity


def balanced(
    frozen: Frozen,
    params: Params,
    slopes: Float[Array, "groups kinks"],
    candidates: Int[Array, " K"],
) -> Balance:
    r"""Which of some kinks at z = 0 hold the flow, and the velocity along these.

    $$\min_{s\in[0,1]^K}\|b + \textstyle\sum_k s_k J_k\|$$

    over the slopes of the candidates, $J_k$ the change of -∇ℒ across kink k. The
    minimiser is the velocity v. Kinks with $\langle n_k, v\rangle = 0$ are pinned; the
    others are left, to the side that their slope says. Concave kinks push away on both
    sides and are left to the side on which they are.
    """
    gradient, pull = frozen.gradient(params, slopes)
    vector = flatten(gradient.direction)
    unflatten = unflattener(params)
    capacity = candidates.shape[0]

    def with_first(count: int):
        def solve() -> tuple[Array, Array, Array]:
            index = candidates[:count]
            real = index < frozen.total
            rows = frozen.rows(params, slopes, pull, index)
            units = unit_rows(rows.normals)
            before = _at(slopes, index, 0.0)
            change = jnp.sum(rows.jumps * units, axis=1)
            convex = real & (change < 0)
            base = vector - jnp.where(convex, before, 0) @ rows.jumps
            scale = jnp.max(jnp.abs(rows.jumps), initial=0)
            jumps = rows.jumps / jnp.where(scale > 0, scale, 1)
            exact = jax.lax.Precision.HIGHEST
            found = box_min_norm(
                jnp.matmul(jumps, jumps.T, precision=exact),
                jnp.matmul(jumps, base / jnp.where(scale > 0, scale, 1), precision=exact),
                convex,
                jnp.where(convex, jnp.clip(before, 0, 1), 0),
            )
            shares = jnp.where(convex, found.multipliers, jnp.round(before))
            inner = jnp.where(convex, shares, 0)
            v = base + inner @ rows.jumps
            # A speed across a kink that is rounding of what it is the sum of.
            along, parts = units @ base, units @ rows.jumps.T
            terms = jnp.abs(along) + jnp.abs(parts) @ inner
            still = jnp.abs(along + parts @ inner) <= _STILL * terms
            held = convex & (((shares > 0) & (shares < 1)) | still)
            pins = jnp.sort(jnp.where(held, index, frozen.total))
            pad = jnp.full((capacity - count,), frozen.total, pins.dtype)
            return _put(slopes, index, shares), jnp.concatenate([pins, pad]), v

        return solve

    number = jnp.sum(candidates < frozen.total)
    slopes, pins, v = jax.lax.cond(
        anywhere(number > 0),
        by_number(number, capacity, with_first, least=min(_FEW, capacity), more=_MORE),
        lambda: (slopes, jnp.full_like(candidates, frozen.total), vector),
    )
    at = Velocity(
        gradient.log_slope, unflatten(v), gradient.log_loss, gradient.loss
    )
    return Balance(Sides(slopes, pins), at)


def crossing_speed(
    frozen: Frozen, params: Params, slopes: Any, direction: Params
) -> tuple[Array, Array]:
    """z of every kink, and its rate of change along a direction."""
    return jax.jvp(
        lambda p: frozen.pre_activations(p, slopes), (params,), (direction,)
    )
