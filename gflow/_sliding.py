r"""The smooth flow between kinks, and along those that hold it.

Every kink k has a slope $s_k$, the share of its upper branch: 0 or 1 where the flow
is on one side of the kink, and between them where the flow slides along it. Sliding
kinks are called pinned. With $b = -\nabla\mathcal L(W; s)$ and the normals
$n_k = \nabla z_k$ of the pinned kinks as the rows of N, the velocity is

$$v = b - N^\top\lambda,\qquad N N^\top\lambda = N b,$$

which is minus the element of least norm of the Clarke subdifferential (Ji & Telgarsky
2020, Lemma B.9) for as long as the slopes that make $b = v$ are in [0, 1].
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Bool, Float, Int

from ._flat import flatten, unflattener
from ._frozen import Branched, Frozen
from ._gram import conjugate_gradients, inverse, product
from ._inclusion import by_number, least_of, mark
from ._lanes import anywhere
from ._pivoting import pivoted
from ._types import BoolScalar, IntScalar, Params, Scalar
from .fields import Velocity


# Room for pinned kinks comes in multiples of the first number. Products with their
# normals take at most the second number of kinks at a time (measured with 60 kinks of
# a 784-100-100-10 network: 1.2 ms by one product with 96 normals, 6.3 ms by six with
# 16). Where a Gram matrix is needed there is one program for a few kinks and one for
# all that there is room for.
_CHUNK = 16
_AT_A_TIME = 96
_FEW = 32
# Entries of constant normals that are kept.
_KEPT = 20_000
# Examples up to which all of them are evaluated for the pinned kinks of a few.
_WHOLE = 32


class Sides(eqx.Module):
    """Where a flow is in relation to every kink."""

    slopes: Float[Array, "groups kinks"]
    pins: Int[Array, " K"]  # the numbers of the pinned kinks, then `total`
    # 1/‖n_k‖ of the pinned kinks when they were last changed, and then the inverse of
    # the Gram matrix of their unit normals.
    scales: Float[Array, " K"]
    inverse: Float[Array, "K K"]
    # The unit normals, where they are constant and have few entries.
    rows: Float[Array, "K P"] | None = None
    # The part of the velocity across pinned kinks that may be left in a step.
    precision: float | Scalar = 0.0

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
        """These sides with other slopes at the pinned kinks."""
        slopes = _put(self.slopes, self.pins, shares)
        return eqx.tree_at(lambda s: s.slopes, self, slopes)


def no_pins(
    frozen: Frozen, params: Params, slopes: Float[Array, "groups kinks"], capacity: int
) -> Sides:
    """With these slopes and no kink pinned, but room for so many."""
    size = sum(leaf.size for leaf in jtu.tree_leaves(params))
    rows = None
    if frozen.is_affine and size * capacity <= _KEPT:
        rows = jnp.zeros((capacity, size), slopes.dtype)
    return Sides(
        slopes,
        jnp.full((capacity,), slopes.size),
        jnp.zeros(capacity, slopes.dtype),
        jnp.eye(capacity, dtype=slopes.dtype),
        rows,
    )


def room_for(most: int, frozen: Frozen) -> int:
    """Room for the pinned kinks of a problem, in whole chunks, if there are several."""
    whole = -(-min(most, frozen.total) // _CHUNK) * _CHUNK
    return min(whole, frozen.total) if frozen.total <= _CHUNK else whole


def _at(values: Array, index: Int[Array, " K"], fill: Any) -> Array:
    return values.reshape(-1).at[index].get(mode="fill", fill_value=fill)


def _put(values: Array, index: Int[Array, " K"], new: Array) -> Array:
    flat = values.reshape(-1).at[index].set(new.astype(values.dtype), mode="drop")
    return flat.reshape(values.shape)


def numbers_of(which: Bool[Array, "groups kinks"], most: int) -> Int[Array, " K"]:
    """The numbers of the marked kinks, the first `most` of them, then `total`."""
    (found,) = jnp.nonzero(which.reshape(-1), size=most, fill_value=which.size)
    return found


def is_on_kink(frozen: Frozen, params: Params) -> BoolScalar:
    """Whether z = 0 at a kink, to rounding; not where it is zero for all parameters."""
    z = jnp.abs(frozen.pre_activations(params, None))
    slack = least_of(z)
    near = jnp.any(z <= 10 * slack * jnp.max(z))

    def closely() -> BoolScalar:
        sizes = frozen.sizes(params)
        return near & jnp.any((z <= 1e3 * slack * sizes) & (sizes > 0))

    return jax.lax.cond(anywhere(near), closely, lambda: jnp.zeros_like(near))


on_kink = eqx.filter_jit(is_on_kink)


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


class _Normals(eqx.Module):
    """The unit normals of the pinned kinks, as products with them.

    Some are formed at a time, and only as many as there are pinned kinks.
    """

    frozen: Frozen
    params: Params
    sides: Sides

    def _by_chunks(self, one: Callable[..., Any], *rows: Array) -> Any:
        """`one(index, *rows)` of each chunk of kinks, stacked; zero where none is."""
        sides, count = self.sides, self.sides.pins.shape[0]
        groups = self.frozen.num_groups
        size = count
        while groups > _WHOLE and size > _AT_A_TIME and size % 2 == 0:
            size //= 2
        chunks = [x.reshape(-1, size, *x.shape[1:]) for x in (sides.pins, *rows)]
        shape = eqx.filter_eval_shape(one, *(x[0] for x in chunks))

        def step(_: None, parts: Any) -> tuple[None, Any]:
            # The pinned kinks come first.
            some = anywhere(parts[0][0] < self.frozen.total)
            return None, jax.lax.cond(some, one, lambda *parts: _zeros(shape), *parts)

        if len(chunks[0]) == 1:
            return jtu.tree_map(
                lambda x: x[None], step(None, [x[0] for x in chunks])[1]
            )
        return jax.lax.scan(step, None, chunks)[1]

    def z(self) -> Float[Array, " K"]:
        """z of the pinned kinks in units of the length of their normals."""

        def one(index: Array) -> Array:
            return self.frozen.at(self.params, self.sides.slopes, index)

        return self.sides.scales * self._by_chunks(one).reshape(-1)

    def across(self, direction: Params) -> Float[Array, " K"]:
        """N v."""
        rows = self.sides.rows
        if rows is not None:
            return product(rows, flatten(direction))

        def one(index: Array) -> Array:
            return jax.jvp(
                lambda p: self.frozen.at(p, self.sides.slopes, index),
                (self.params,),
                (direction,),
            )[1]

        return self.sides.scales * self._by_chunks(one).reshape(-1)

    def along(self, x: Float[Array, " K"]) -> Params:
        """Nᵀ x."""
        rows = self.sides.rows
        if rows is not None:
            return unflattener(self.params)(product(x, rows))

        def one(index: Array, x: Array) -> Params:
            _, pull = jax.vjp(
                lambda p: self.frozen.at(p, self.sides.slopes, index), self.params
            )
            return pull(x)[0]

        parts = self._by_chunks(one, self.sides.scales * x)
        return jtu.tree_map(lambda part: jnp.sum(part, axis=0), parts)

    def kicks(self, pull: Array) -> Float[Array, " K"]:
        """κ_k, with which -∇ℒ changes by κ_k n_k from the lower branch to the upper."""

        def one(index: Array) -> Array:
            return kicks(self.frozen, self.params, self.sides.slopes, pull, index)

        return self._by_chunks(one).reshape(-1)

    def solve(
        self, right: Float[Array, " K"], precision: float | Scalar = 0.0
    ) -> Float[Array, " K"]:
        """λ with N Nᵀ λ = `right`, by conjugate gradients, to this part of `right`."""

        def product(x: Array) -> Array:
            return jnp.where(self.sides.is_real, self.across(self.along(x)), x)

        def solver(product: Any, right: Array) -> Array:
            return conjugate_gradients(product, right, self.sides.inverse, precision)

        return jax.lax.custom_linear_solve(product, right, solver, symmetric=True)


def _zeros(shape: Any) -> Any:
    return jtu.tree_map(lambda s: jnp.zeros(s.shape, s.dtype), shape)


def along_pins(
    frozen: Frozen, params: Params, sides: Sides, direction: Params
) -> Params:
    """The part of a direction that keeps z = 0 at the pinned kinks."""

    def project(direction: Params) -> Params:
        normals = _Normals(frozen, params, sides)
        across = normals.solve(normals.across(direction), sides.precision)
        less = normals.along(across)
        return jtu.tree_map(jnp.subtract, direction, less)

    some = anywhere(sides.num_pins > 0)
    return jax.lax.cond(some, project, lambda d: d, direction)


def onto_pins(frozen: Frozen, params: Params, sides: Sides) -> Params:
    """The nearest parameters, to first order, with z = 0 at the pinned kinks."""

    def project() -> Params:
        normals = _Normals(frozen, params, sides)
        less = normals.along(normals.solve(normals.z()))
        return jtu.tree_map(jnp.subtract, params, less)

    return jax.lax.cond(anywhere(sides.num_pins > 0), project, lambda: params)


def kicks(
    frozen: Frozen, params: Params, slopes: Any, pull: Any, index: Int[Array, " K"]
) -> Float[Array, " K"]:
    """κ_k, with which -∇ℒ changes by κ_k n_k from the lower branch to the upper one.

    Along any direction, as the ratio of what ∂⟨pull, f⟩/∂s_k and z_k change by.
    """
    direction = frozen.next_to(params, 1.0)
    direction = jtu.tree_map(jnp.subtract, direction, params)

    def both(p: Params) -> tuple[Array, Array]:
        return frozen.at(p, slopes, index), frozen.pull_in_slopes(
            p, slopes, pull, index
        )

    _, (z, q) = jax.jvp(both, (params,), (direction,))
    return jnp.where(z == 0, 0, q / jnp.where(z == 0, 1, z))


def slopes_along(frozen: Frozen, params: Params, sides: Sides) -> Float[Array, " K"]:
    r"""The slopes of the pinned kinks with which -∇ℒ is the velocity along them.

    Where one is outside of [0, 1] the flow leaves that kink. Slopes in unused entries
    are 1/2. To first order where kinks are in series.
    """

    def find() -> Float[Array, " K"]:
        gradient, pull = frozen.gradient(params, sides.slopes)
        return velocity_along(frozen, params, sides, gradient.direction, pull)[0]

    return jax.lax.cond(anywhere(sides.num_pins > 0), find, lambda: sides.at_pins())


def velocity_along(
    frozen: Frozen, params: Params, sides: Sides, direction: Params, pull: Array
) -> tuple[Float[Array, " K"], Params]:
    """The slopes of `slopes_along` and the velocity, from -∇ℒ and ∂ℒ/∂f there."""
    normals = _Normals(frozen, params, sides)
    along = normals.solve(normals.across(direction))
    kick = normals.kicks(pull)
    more = -along * sides.scales / jnp.where(kick == 0, 1, kick)
    more = jnp.where((kick == 0) & (along != 0), jnp.inf, more)
    shares = sides.at_pins() + jnp.where(sides.is_real, more, 0)
    return shares, jtu.tree_map(jnp.subtract, direction, normals.along(along))


def _gram(
    frozen: Frozen, params: Params, slopes: Any, index: Int[Array, " K"], vector: Any
) -> tuple[Array, Array, Array, Array]:
    """The unit normals of some kinks: 1/‖n_k‖, their Gram matrix, their products with a
    vector, and the normals themselves.
    """
    count = index.shape[0]
    normals = jtu.tree_leaves(frozen.normals_of(params, slopes, index)[1])
    rows = [leaf.reshape(count, -1) for leaf in normals if leaf.size]
    most = jnp.max(jnp.stack([jnp.max(jnp.abs(part), axis=1) for part in rows]), axis=0)
    unit = 1 / jnp.where(most > 0, most, 1)
    # By parts: the normals of all parameters in one array would be a copy of them.
    rows = [part * unit[:, None] for part in rows]
    gram = sum(product(part, part.T) for part in rows)
    size = jnp.sqrt(jnp.diag(gram))
    each = jnp.where(size > 0, 1 / jnp.where(size > 0, size, 1), 0)
    gram = gram * each[:, None] * each[None, :]
    together = jnp.concatenate(rows, axis=1) * each[:, None]
    towards = sum(
        product(part, leaf.reshape(-1))
        for part, leaf in zip(rows, jtu.tree_leaves(vector), strict=True)
    )
    return each * unit, gram, towards * each, together


def _by_size(index: Int[Array, " K"], total: int, with_first: Any) -> Any:
    """`with_first(count)()` with room for the kinks, which come first in `index`."""
    capacity = index.shape[0]
    few = min(_FEW, capacity)
    number = jnp.sum(index < total)
    return by_number(number, capacity, with_first, least=few, few=few)()


def measured(frozen: Frozen, params: Params, sides: Sides) -> Sides:
    """The sides, with the normals of the pinned kinks measured."""
    blank = no_pins(frozen, params, sides.slopes, sides.pins.shape[0])

    def with_first(count: int):
        def measure() -> Sides:
            index = sides.pins[:count]
            vector = jtu.tree_map(jnp.zeros_like, params)
            scales, gram, _, rows = _gram(frozen, params, sides.slopes, index, vector)
            return Sides(
                sides.slopes,
                sides.pins,
                blank.scales.at[:count].set(scales),
                blank.inverse.at[:count, :count].set(inverse(gram, sides.num_pins)),
                None if blank.rows is None else blank.rows.at[:count].set(rows),
                sides.precision,
            )

        return measure

    return _by_size(sides.pins, frozen.total, with_first)


class Balance(eqx.Module):
    """Which of some kinks hold the flow, and its velocity."""

    sides: Sides
    velocity: Velocity


def balanced(
    frozen: Frozen,
    params: Params,
    slopes: Float[Array, "groups kinks"],
    candidates: Int[Array, " K"],
    known: Sides | None = None,
) -> Balance:
    r"""Which of some kinks at z = 0 hold the flow, and the velocity along these.

    $$\min_{s\in[0,1]^K}\|b + \textstyle\sum_k s_k \kappa_k n_k\|$$

    over the slopes of the candidates, $\kappa_k n_k$ the change of -∇ℒ across kink k.
    The minimiser is the velocity v. Kinks with $\langle n_k, v\rangle = 0$ are pinned;
    the others are left, to the side that their slope says. Concave kinks, κ > 0, push
    away on both sides and are left to the side on which they are.

    `known`: pinned kinks with slopes. Where these are the candidates, and all of them
    go on holding the flow, that is found without their Gram matrix.
    """
    gradient, pull = frozen.gradient(params, slopes)
    params, slopes, pull = jax.lax.stop_gradient((params, slopes, pull))
    none = no_pins(frozen, params, slopes, candidates.shape[0])
    if known is not None:
        none = eqx.tree_at(lambda s: s.precision, none, known.precision)

    vector = jax.lax.stop_gradient(gradient.direction)

    def with_first(count: int):
        def solve() -> tuple[Sides, Array, Array]:
            index = candidates[:count]
            real = index < frozen.total
            scales, gram, towards, rows = _gram(frozen, params, slopes, index, vector)
            kick = kicks(frozen, params, slopes, pull, index)
            force = jnp.where(scales > 0, kick / jnp.where(scales > 0, scales, 1), 0)
            force = jnp.where(real & (force < 0), -force, 0)
            convex = force > 0
            before = _at(slopes, index, 0.0)
            # In units in which the largest is one.
            unit = jnp.max(force)
            unit = jnp.where(unit > 0, unit, 1)
            bound = force / unit
            linear = towards / unit + gram @ (before * bound)
            near = jnp.clip(before, 0, 1) * bound
            given = jax.lax.stop_gradient((gram, linear, bound, near))
            found = jax.lax.stop_gradient(pivoted(*given))
            shares = jnp.where(convex, found.x / jnp.where(convex, bound, 1), before)
            shares = jnp.where(convex, shares, jnp.round(before))
            move = jnp.where(convex, unit * bound * (before - shares), 0)
            held = convex & (found.free | found.still)
            order = jnp.argsort(~held, stable=True)
            inverted = inverse(gram[order][:, order], jnp.sum(held))
            held = held[order]
            rows = jnp.where(held[:, None], rows[order], 0)
            sides = Sides(
                _put(slopes, index, shares),
                none.pins.at[:count].set(jnp.where(held, index[order], frozen.total)),
                none.scales.at[:count].set(jnp.where(held, scales[order], 0)),
                none.inverse.at[:count, :count].set(inverted),
                None if none.rows is None else none.rows.at[:count].set(rows),
                none.precision,
            )
            all_moves = jnp.zeros_like(none.scales).at[:count].set(move)
            all_scales = none.scales.at[:count].set(scales)
            return sides, all_moves, all_scales

        return solve

    def solve() -> tuple[Sides, Params]:
        sides, move, scales = _by_size(candidates, frozen.total, with_first)
        on = Sides(slopes, candidates, scales, none.inverse)
        more = _Normals(frozen, params, on).along(move)
        return sides, jtu.tree_map(jnp.add, gradient.direction, more)

    def keep() -> tuple[BoolScalar, tuple[Sides, Params]]:
        assert known is not None
        on = eqx.tree_at(lambda s: s.slopes, known, slopes)
        on = on.with_slopes(known.at_pins())
        shares, v = velocity_along(frozen, params, on, gradient.direction, pull)
        inside = (shares >= 0) & (shares <= 1)
        return jnp.all(inside | ~on.is_real), (on.with_slopes(shares), v)

    # Which kinks are pinned has no derivative.
    some = jnp.any(candidates < frozen.total)
    free = (none, gradient.direction)
    kept, easy = jnp.asarray(False), free
    if known is not None:
        same = jnp.all(mark(candidates, slopes.shape) == known.pinned) & some
        kept, easy = jax.lax.cond(anywhere(same), keep, lambda: (kept, free))
        kept = kept & same
    found = jax.lax.cond(anywhere(some & ~kept), solve, lambda: free)
    sides, v = jtu.tree_map(lambda a, b: jnp.where(kept, a, b), easy, found)
    at = Velocity(gradient.log_slope, v, gradient.log_loss, gradient.loss)
    return Balance(sides, at)


def crossing_speed(
    frozen: Frozen, params: Params, slopes: Any, direction: Params
) -> tuple[Array, Array]:
    """z of every kink, and its rate of change along a direction."""
    return jax.jvp(lambda p: frozen.pre_activations(p, slopes), (params,), (direction,))
