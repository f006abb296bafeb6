r"""The element of least norm over a box of slopes.

$$\bar\partial\mathcal L(W) = \arg\min\bigl\{\|g\| : g = b + \textstyle\sum_k
  \lambda_k u_k,\ \lambda \in [0, 1]^A\bigr\},$$

A the kinks at zero. The box is the Clarke subdifferential where the rank test says so,
else a larger set.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ._box import box_min_norm, gap
from ._branches import UnsupportedKink
from ._flat import unflattener
from ._frozen import Frozen, frozen
from ._inclusion import by_number, least_of, mark, unit_rows
from ._patterns import box_is_exact
from ._problem import Gradient, Problem, dtype_of
from ._types import BoolScalar, IntScalar, Params, Scalar


_CAPACITY = 64  # kinks that may be at zero at once
# Of the size of z. In float32 the flow's own slack would be 1.4e-2: of the kinks of any
# point, one in a hundred.
_MOST_TOLERANCE = 1e-4
# A jump across a kink whose part along ∇z is less than this is one of ℒ itself.
_ALONG = 1e-2


class LeastNorm(eqx.Module):
    """∂̄ℒ(W), and what it is made of."""

    gradient: Gradient  # its direction is minus the element of least norm
    below: Bool[Array, "groups kinks"]  # the branches, lower for the kinks at zero
    index: Int[Array, " K"]  # the kinks at zero, then `total`
    multipliers: Float[Array, " K"]
    # Which of them have two different gradients on their sides.
    effective: Bool[Array, " K"]
    # Bounds the squared distance to the element, in the gradient's scale.
    log_gap: Scalar
    num_at_zero: IntScalar
    exact: BoolScalar  # whether the box is the subdifferential
    complete: BoolScalar  # whether there was room for all kinks at zero
    continuous: BoolScalar  # whether ℒ is
    in_series: BoolScalar  # whether one kink at zero may depend on another


def frozen_if_possible(problem: Problem, params: Params) -> Frozen | None:
    """The problem with its kinks taken out; None without any, or if they cannot be."""
    try:
        return frozen(problem, params)
    except UnsupportedKink:
        return None


def capacity_for(frozen: Frozen) -> int:
    """Room for the kinks at zero."""
    return min(frozen.total, _CAPACITY)


def default_tolerance(params: Params) -> float:
    """The |z| that counts as zero, of its size: 1.1e-8 in float64, 1e-4 in float32."""
    one = jnp.zeros((), dtype_of(params))
    return min(1e3 * least_of(one), _MOST_TOLERANCE)


def kinks_at_zero(
    frozen: Frozen, params: Params, tolerance: Any = None
) -> tuple[Bool[Array, "groups kinks"], Bool[Array, "groups kinks"]]:
    """The branches at W, and the kinks where |z| is at most `tolerance` of its size."""
    z = frozen.pre_activations(params, None)
    if tolerance is None:
        tolerance = default_tolerance(params)
    sizes = frozen.sizes(params)
    return z > 0, (jnp.abs(z) <= tolerance * sizes) & (sizes > 0)


@eqx.filter_jit
def least_norm(
    frozen: Frozen,
    params: Params,
    pins: Float[Array, " K"] | None = None,
    tolerance: Any = None,
) -> LeastNorm:
    """∂̄ℒ at W, on the kinks within the tolerance and those with the numbers `pins`."""
    branches, at_zero = kinks_at_zero(frozen, params, tolerance)
    if pins is not None:
        at_zero = at_zero | mark(jnp.round(pins).astype(int), at_zero.shape)
    number, capacity = jnp.sum(at_zero), capacity_for(frozen)
    below = branches & ~at_zero
    gradient, base, pull = frozen.flat_gradient(params, below)

    def with_room(few: int) -> Callable[[], _Found]:
        return lambda: _padded(
            _among(frozen, params, below, at_zero, base, pull, few),
            capacity,
            frozen.total,
        )

    found = by_number(number, capacity, with_room)()
    direction = unflattener(params)(found.direction)
    in_series = jnp.asarray(frozen.in_series) & _several(at_zero)
    complete = number <= capacity
    return LeastNorm(
        gradient=eqx.tree_at(lambda g: g.direction, gradient, direction),
        below=below,
        index=found.index,
        multipliers=found.multipliers,
        effective=found.effective,
        log_gap=found.log_gap,
        num_at_zero=number,
        exact=found.exact & found.continuous & complete & ~in_series,
        complete=complete,
        continuous=found.continuous,
        in_series=in_series,
    )


class _Found(eqx.Module):
    direction: Float[Array, " P"]
    index: Int[Array, " K"]
    multipliers: Float[Array, " K"]
    effective: Bool[Array, " K"]
    log_gap: Scalar
    exact: BoolScalar
    continuous: BoolScalar


def _among(
    frozen: Frozen,
    params: Params,
    below: Bool[Array, "groups kinks"],
    at_zero: Bool[Array, "groups kinks"],
    base: Float[Array, " P"],
    pull: Float[Array, "examples ..."],
    room: int,
) -> _Found:
    """On at most so many kinks."""
    (index,) = jnp.nonzero(at_zero.reshape(-1), size=room, fill_value=frozen.total)
    if room == 0:
        nothing, none = jnp.zeros(0, base.dtype), jnp.zeros(0, bool)
        zero, true = jnp.asarray(-jnp.inf, base.dtype), jnp.asarray(True)
        return _Found(base, index, nothing, none, zero, true, true)
    rows = frozen.rows(params, below, pull, index)
    # Gradients of 1e-180 have squares too.
    largest = jnp.maximum(jnp.max(jnp.abs(base)), jnp.max(jnp.abs(rows.jumps)))
    scale = jnp.where(largest == 0, 1, largest)
    offset, jumps = base / scale, rows.jumps / scale
    units = unit_rows(rows.normals)
    along = jnp.sum(jumps * units, axis=1)
    size = jnp.linalg.norm(jumps, axis=1)
    all_of_it = jnp.linalg.norm(offset) + jnp.max(size)
    effective = size > 8 * jnp.finfo(base.dtype).eps * all_of_it
    # What is not along ∇z is of order z, which may be 1e-8 rather than zero.
    slack = _ALONG * jnp.abs(along) + least_of(base) ** 0.5 * all_of_it
    off = jnp.linalg.norm(jumps - along[:, None] * units, axis=1)
    gram, linear = jumps @ jumps.T, jumps @ offset
    box = box_min_norm(gram, linear)
    share = box.multipliers
    distance = gap(gram, linear, offset @ offset, share)
    return _Found(
        direction=scale * (offset + share @ jumps),
        index=index,
        multipliers=share,
        effective=effective,
        log_gap=jnp.log(distance) + 2 * jnp.log(scale),
        # After the box, as in `_resolve.py`: not two factorisations at once.
        exact=box_is_exact(
            jnp.where(box.num_iterations > 0, rows.normals, 0), -along, effective
        ),
        continuous=jnp.all(off <= slack),
    )


def _padded(found: _Found, capacity: int, total: int) -> _Found:
    missing = capacity - found.index.shape[0]

    def pad(x: Array, fill: Any) -> Array:
        return jnp.concatenate([x, jnp.full(missing, fill, x.dtype)])

    return eqx.tree_at(
        lambda f: (f.index, f.multipliers, f.effective),
        found,
        (
            pad(found.index, total),
            pad(found.multipliers, 0),
            pad(found.effective, False),
        ),
    )


def _several(at_zero: Bool[Array, "groups kinks"]) -> BoolScalar:
    # Two kinks of one example, one of which may depend on the other.
    return jnp.any(jnp.sum(at_zero, axis=1) > 1)
