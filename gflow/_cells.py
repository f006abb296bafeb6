r"""The smooth pieces that meet at a point, and the hull of their gradients.

Near W, which lies on the kinks A, the gradient is one of

$$g_s = b + \textstyle\sum_{k\in A} s_k u_k,\qquad s \in \{0, 1\}^A,$$

s the sign pattern of a cell of the arrangement of the hyperplanes
$\langle\nabla z_k, v\rangle = 0$. Where the pre-activations are affine in W, as those
of a two-layer network are, ∂ℒ(W) is the hull of these.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ._flat import flatten
from ._frozen import Frozen
from ._hull import hull_min_norm
from ._inclusion import unit_rows
from ._lanes import anywhere
from ._least_norm import LeastNorm
from ._patterns import feasible_patterns
from ._problem import Gradient
from ._types import BoolScalar, Params, Scalar


MOST = 8  # kinks of which all patterns are looked at under jit


class Cells(eqx.Module):
    """The patterns of some kinks at zero, and what their gradients are made of."""

    gradient: Gradient  # on the lower branches
    base: Float[Array, " P"]  # its direction: -b in the gradient's scale
    pull: Float[Array, "examples ..."]
    normals: Float[Array, "K P"]
    jumps: Float[Array, "K P"]  # -u_k in the gradient's scale
    patterns: Bool[np.ndarray, "patterns K"]
    feasible: Bool[Array, " patterns"]


def cells_at(
    frozen: Frozen,
    params: Params,
    below: Bool[Array, "groups kinks"],
    index: Int[Array, " K"],
    all_patterns: BoolScalar,
) -> Cells:
    """The cells around W, which lies on the kinks with these numbers.

    `all_patterns`: kinks are in series, so that the arrangement does not say which
    patterns there are, and all of them are taken.
    """
    gradient, base, pull = frozen.flat_gradient(params, below)
    rows = frozen.rows(params, below, pull, index)
    real = index < frozen.total
    # A pattern is one of the normals' span: in its own coordinates they are short.
    short = jnp.linalg.qr(unit_rows(rows.normals).T, mode="r").T
    has_sides = real & jnp.any(rows.normals != 0, axis=1)
    patterns, feasible = feasible_patterns(short, has_sides)
    possible = ~jnp.any(jnp.asarray(patterns) & ~real[None, :], axis=1)
    feasible = jnp.where(all_patterns, possible, feasible)
    return Cells(gradient, base, pull, rows.normals, rows.jumps, patterns, feasible)


def directions(
    frozen: Frozen,
    params: Params,
    below: Bool[Array, "groups kinks"],
    index: Int[Array, " K"],
    cells: Cells,
) -> Float[Array, "patterns P"]:
    """-g_s of every pattern that occurs, in the gradient's scale; of others, zero.

    One gradient evaluation each: right for kinks in series too.
    """

    def one(item):
        pattern, wanted = item
        flat = below.reshape(-1).at[index].set(pattern, mode="drop")
        at, direction, _ = frozen.flat_gradient(params, flat.reshape(below.shape))
        change = at.log_slope - cells.gradient.log_slope
        # Both are -inf where the loss has no slope at all.
        change = jnp.where(jnp.isnan(change), 0, change)
        return jnp.where(wanted, jnp.exp(change) * direction, 0)

    def if_wanted(item):
        blank = jnp.zeros_like(cells.base)
        return jax.lax.cond(anywhere(item[1]), one, lambda _: blank, item)

    return jax.lax.map(if_wanted, (jnp.asarray(cells.patterns), cells.feasible))


class Hulled(eqx.Module):
    """The element of least norm of the hull."""

    direction: Float[Array, " P"]  # minus it, in the gradient's scale
    multipliers: Float[Array, " K"]  # the mean of s
    log_gap: Scalar
    affine: BoolScalar  # whether the hull is the Clarke subdifferential


def can_hull(found: LeastNorm) -> BoolScalar:
    """Whether the hull says more than the box, and is small enough to be formed."""
    few = jnp.sum(_counted(found)) <= MOST
    return ~found.exact & found.complete & found.continuous & few


def _counted(found: LeastNorm) -> Bool[Array, " K"]:
    # In series, a kink without effect on the lower branch of another may have some on
    # the upper one.
    return jnp.where(found.in_series, found.index < found.below.size, found.effective)


def hulled(frozen: Frozen, params: Params, found: LeastNorm) -> Hulled:
    """Over the hull of the cells' gradients; `can_hull` must hold."""
    capacity = found.index.shape[0]
    most = min(MOST, capacity)
    counted = _counted(found)
    place = jnp.argsort(~counted, stable=True)[:most]
    index = jnp.where(counted, found.index, frozen.total)[place]
    cells = cells_at(frozen, params, found.below, index, found.in_series)
    patterns = jnp.asarray(cells.patterns, cells.base.dtype)
    if frozen.in_series:
        points = directions(frozen, params, found.below, index, cells)
        hull = hull_min_norm(points, cells.feasible)
        point, scale = hull.point, jnp.ones_like(hull.gap)
    else:
        # In the span of the jumps: what b has besides is the same for all points. It
        # may be so much larger that not even the points' squares should see it.
        largest = jnp.max(jnp.abs(cells.jumps))
        scale = jnp.where(largest == 0, 1, largest)
        # (After that of the normals, as in `_resolve.py`: some pattern is feasible.)
        jumps = jnp.where(jnp.any(cells.feasible), cells.jumps / scale, 0)
        frame, short = jnp.linalg.qr(jumps.T)
        points = (cells.base / scale @ frame)[None] + patterns @ short.T
        hull = hull_min_norm(points, cells.feasible, dimension=most)
        point = cells.base + (hull.weights @ patterns) @ cells.jumps
    share = jnp.zeros(capacity, point.dtype).at[place].set(hull.weights @ patterns)
    affine = _are_constant(frozen, params, found.below, index, cells)
    return Hulled(
        direction=point,
        multipliers=jnp.where(counted, share, 0),
        log_gap=jnp.log(hull.gap) + 2 * jnp.log(scale),
        affine=affine & ~found.in_series,
    )


def _are_constant(
    frozen: Frozen, params: Params, below: Any, index: Any, cells: Cells
) -> BoolScalar:
    """Whether the normals are the same at another W, so that z is affine in W."""
    other = frozen.rows(_elsewhere(params), below, cells.pull, index).normals
    far = jnp.max(jnp.abs(other - cells.normals), axis=1)
    slack = jnp.finfo(far.dtype).eps ** 0.5
    return jnp.all(far <= slack * jnp.max(jnp.abs(cells.normals), axis=1))


def _elsewhere(params: Params) -> Params:
    # In no special place, at about the same distance from zero.
    largest = jnp.max(jnp.abs(flatten(params)))
    size = jnp.where(largest == 0, 1, largest)

    def moved(leaf: Array) -> Array:
        own = jnp.max(jnp.abs(leaf))
        own = jnp.where(own == 0, size.astype(leaf.dtype), own)
        wave = jnp.sin(1.0 + jnp.sqrt(2.0) * jnp.arange(leaf.size, dtype=leaf.dtype))
        return leaf + own * wave.reshape(leaf.shape)

    return jtu.tree_map(moved, params)
