r"""Least norm over a box by block principal pivoting, for many kinks at once.

$$\min_{0\le x\le u} \tfrac12 x^\top G x - c^\top x,$$

G the Gram matrix of unit vectors. A guess of which variables are free is solved for,
all free variables that are outside of the box go to their bound, all variables at a
bound whose slope has the wrong sign become free, and so on (Júdice & Pires 1994, "A
block principal pivoting algorithm for large-scale strictly monotone linear
complementarity problems", Computers & Operations Research 21, 587-596). A few rounds
are enough from a good guess, whatever the number of variables. Where rounds gain
nothing, variables are exchanged one at a time. (`_box.py` is exact where rows depend on
each other, at the price of one factorisation for each change.)
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ._types import BoolScalar, IntScalar


# A slope that is rounding, as a part of the terms that it is the sum of.
_STILL = 1e-9
_PATIENCE = 4  # rounds without a gain after which one variable at a time changes
_ROUNDS = 60
_ENOUGH = 1e-14  # of the right-hand side is left by conjugate gradients


class Pivoted(eqx.Module):
    """The minimiser."""

    x: Float[Array, " K"]
    free: Bool[Array, " K"]
    slope: Float[Array, " K"]  # c - G x
    still: Bool[Array, " K"]  # where that is zero, or rounding
    converged: BoolScalar


class _State(eqx.Module):
    free: Bool[Array, " K"]
    upper: Bool[Array, " K"]
    x: Float[Array, " K"]
    slope: Float[Array, " K"]
    still: Bool[Array, " K"]
    least: IntScalar  # wrong variables, in the best round
    left: IntScalar  # rounds until one variable at a time changes
    wrong: IntScalar
    count: IntScalar


def _product(gram: Array, x: Array) -> Array:
    return jnp.matmul(gram, x, precision=jax.lax.Precision.HIGHEST)


def _solve(gram: Array, members: Array, right: Array) -> Array:
    """The solution on the members, by conjugate gradients; zero elsewhere."""
    right = jnp.where(members, right, 0)
    enough = _ENOUGH**2 * jnp.vdot(right, right)
    most = 3 * gram.shape[0] + 10

    def advance(carry):
        x, r, q, size, count = carry
        moved = jnp.where(members, _product(gram, q), 0)
        bend = jnp.vdot(q, moved)
        step = jnp.where(bend > 0, size / jnp.where(bend > 0, bend, 1), 0)
        x, r = x + step * q, r - step * moved
        new = jnp.vdot(r, r)
        q = r + jnp.where(size > 0, new / jnp.where(size > 0, size, 1), 0) * q
        return x, r, q, new, jnp.where(bend > 0, count + 1, most)

    start = (jnp.zeros_like(right), right, right, jnp.vdot(right, right), 0)
    return jax.lax.while_loop(
        lambda c: (c[3] > enough) & (c[4] < most), advance, start
    )[0]


def pivoted(
    gram: Float[Array, "K K"],
    linear: Float[Array, " K"],
    bound: Float[Array, " K"],
    near: Float[Array, " K"],
) -> Pivoted:
    """The minimiser, from a guess `near`; variables whose bound is zero stay there."""
    alive = bound > 0

    def solved(free: Array, upper: Array) -> tuple[Array, Array, Array]:
        fixed = jnp.where(upper & ~free, bound, 0)
        x = fixed + _solve(gram, free, linear - _product(gram, fixed))
        slope = linear - _product(gram, x)
        terms = jnp.abs(linear) + _product(jnp.abs(gram), jnp.abs(x))
        return x, slope, jnp.abs(slope) <= _STILL * terms

    def wrong(state: _State) -> tuple[Array, Array]:
        below, above = state.free & (state.x < 0), state.free & (state.x > bound)
        rises = ~state.free & ~state.upper & (state.slope > 0) & ~state.still
        falls = ~state.free & state.upper & (state.slope < 0) & ~state.still
        return alive & (below | above | rises | falls), above

    def round_(state: _State) -> _State:
        change, above = wrong(state)
        number = jnp.sum(change)
        gained = number < state.least
        left = jnp.where(gained, _PATIENCE, state.left - 1)
        # The last one alone, where rounds gain nothing (Murty's rule).
        last = jnp.arange(change.shape[0]) == jnp.argmax(
            jnp.where(change, jnp.arange(change.shape[0]), -1)
        )
        change = jnp.where(left > 0, change, change & last)
        upper = jnp.where(change & state.free, above, state.upper)
        free = state.free ^ change
        x, slope, still = solved(free, upper)
        new = _State(
            free=free,
            upper=upper,
            x=x,
            slope=slope,
            still=still,
            least=jnp.minimum(number, state.least),
            left=left,
            wrong=number,
            count=state.count + 1,
        )
        return eqx.tree_at(lambda s: s.wrong, new, jnp.sum(wrong(new)[0]))

    free = alive & (near > 0) & (near < bound)
    upper = alive & (near >= bound)
    x, slope, still = solved(free, upper)
    whole = jnp.asarray(0)
    start = _State(
        free, upper, x, slope, still, whole + bound.shape[0] + 1, whole, whole, whole
    )
    start = eqx.tree_at(lambda s: s.wrong, start, jnp.sum(wrong(start)[0]))
    end = jax.lax.while_loop(
        lambda s: (s.wrong > 0) & (s.count < _ROUNDS), round_, start
    )
    x = jnp.clip(end.x, 0, bound)
    return Pivoted(x, end.free & alive, end.slope, end.still, end.wrong == 0)
