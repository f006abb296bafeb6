"""subdifferential(): what ∂ℒ(W) is made of."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._cells import cells_at, directions
from .._flat import flatten
from .._frozen import Frozen
from .._least_norm import kinks_at_zero
from .._times import is_concrete
from .._types import Params, Scalar
from ._point import Point, point


_MOST = 10  # kinks at zero: 2^10 patterns
_FEW = 4  # programs are compiled for so many, and for the most


class Subdifferential(eqx.Module):
    r"""The gradients around a point, and what they are made of.

    Returned by [`gflow.clarke.subdifferential`][]. Vectors of all P parameters have the
    order of `jax.tree.leaves`; `jax.flatten_util.ravel_pytree` has it too. All are
    numbers, zero where the loss has underflowed.

    **Attributes:**

    - `base`: (P,) b, the gradient on the lower branches of all kinks at zero.
    - `generators`: (k, P) u_k, the change of the gradient from the lower branch of each
        to its upper one, the others being on their lower ones.
    - `normals`: (k, P) ∇z_k.
    - `kinks`: (k,) the numbers of the kinks; as in [`gflow.clarke.Subgradient`][].
    - `patterns`: (number of cells, k) which kinks are on their upper branches.
    - `vertices`: (number of cells, P) the gradient on each of these patterns. Of kinks
        that are not in series, $b+\sum_k s_k u_k$.
    - `in_series`: whether one of these kinks may depend on another; `patterns` are then
        all there could be, some of which may not occur.
    """

    base: Float[Array, " P"]
    generators: Float[Array, "k P"]
    normals: Float[Array, "k P"]
    kinks: Int[Array, " k"]
    patterns: Bool[Array, "cells k"]
    vertices: Float[Array, "cells P"]
    in_series: bool


def subdifferential(
    model: Any,
    data: Any,
    loss: Any,
    *,
    tol: Any = None,
    filter_spec: Any = None,
) -> Subdifferential:
    r"""The gradients around a model: ∂ℒ(W) is their convex hull.

    $$\partial\mathcal L(W)=\operatorname{conv}\{b+\textstyle\sum_k s_k u_k:s\in S\},$$

    S the sign patterns of the cells $\{v:\operatorname{sign}\langle\nabla z_k,v\rangle
    =2s_k-1\}$ around W. That is so where the pre-activations are affine in W, as in
    two-layer networks, and where the normals ∇z_k are independent; else the hull may be
    too small. For kinks in series all patterns are taken, so it may be too large.

    **Arguments:**

    - `model`, `data`, `loss`, `filter_spec`: as for [`gflow.integrate`][].
    - `tol`: as for [`gflow.clarke.min_norm_subgradient`][].

    **Returns:**

    A [`gflow.clarke.Subdifferential`][]. Of a smooth model, and away from kinks, one
    vertex, the gradient.

    **Raises:**

    `ValueError` as [`gflow.clarke.min_norm_subgradient`][] does; if more than 10 kinks
    are at zero; and for arrays that are being traced (how many kinks are at zero
    decides the shapes).

    Examples:
        The four gradients of |f₁| + |f₂|, f = w x, around w = 0:

        >>> import gflow, jax, jax.numpy as jnp
        >>> model = gflow.nn.Linear(1, 2, key=jax.random.key(0))
        >>> model = jax.tree.map(jnp.zeros_like, model)
        >>> def size(f, y):
        ...     return jnp.sum(jnp.abs(f))
        >>> data = (jnp.ones((1, 1)), jnp.zeros(1))
        >>> found = gflow.clarke.subdifferential(model, data, size)
        >>> found.vertices.tolist()
        [[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]]

    ??? cite "Reference"

        Clarke (1975), "Generalized gradients and applications", Transactions of the
        American Mathematical Society 205, Definition 1.1 and Proposition 1.4.
    """
    if not is_concrete((model, data)):
        raise ValueError(
            "subdifferential() was called on arrays that are being traced by jit, vmap "
            "or grad; the number of kinks at zero decides its shapes. Call it outside, "
            "or use min_norm_subgradient, which can be traced."
        )
    at = point(model, data, loss, tol, filter_spec)
    if at.frozen is None:
        return _smooth(at)
    frozen = at.frozen
    branches, at_zero = _kinks(frozen, at.params, at.tolerance)
    (index,) = np.nonzero(np.asarray(at_zero).reshape(-1))
    if len(index) > _MOST:
        raise ValueError(
            f"{len(index)} kinks are at zero, and subdifferential() lists all patterns "
            f"of at most {_MOST}. Use min_norm_subgradient, or a smaller tol."
        )
    groups = index // frozen.num_kinks
    in_series = frozen.in_series and len(set(groups.tolist())) < len(groups)
    number = len(index)
    room = np.full(_FEW if number <= _FEW else _MOST, frozen.total)
    room[:number] = index
    found = _around(
        frozen, at.params, branches & ~at_zero, jnp.asarray(room), in_series
    )
    feasible = np.asarray(found.feasible)
    return Subdifferential(
        base=found.base,
        generators=found.generators[:number],
        normals=found.normals[:number],
        kinks=jnp.asarray(index),
        patterns=found.patterns[feasible, :number],
        vertices=found.vertices[feasible],
        in_series=in_series,
    )


def _smooth(at: Point) -> Subdifferential:
    gradient = _gradient(at)
    none = jnp.zeros((0, gradient.shape[0]), gradient.dtype)
    return Subdifferential(
        base=gradient,
        generators=none,
        normals=none,
        kinks=jnp.zeros(0, int),
        patterns=jnp.zeros((1, 0), bool),
        vertices=gradient[None],
        in_series=False,
    )


@eqx.filter_jit
def _gradient(at: Point) -> Float[Array, " P"]:
    gradient = at.problem.gradient(at.params)
    return -jnp.exp(gradient.log_slope) * flatten(gradient.direction)


@eqx.filter_jit
def _kinks(frozen: Frozen, params: Params, tolerance: Scalar | None) -> Any:
    return kinks_at_zero(frozen, params, tolerance)


class _Around(eqx.Module):
    base: Array
    generators: Array
    normals: Array
    patterns: Array
    feasible: Array
    vertices: Array


@eqx.filter_jit
def _around(
    frozen: Frozen, params: Params, below: Any, index: Any, in_series: bool
) -> _Around:
    cells = cells_at(frozen, params, below, index, jnp.asarray(in_series))
    if in_series:
        points = directions(frozen, params, below, index, cells)
    else:
        slopes = jnp.asarray(cells.patterns, cells.base.dtype)
        points = cells.base[None] + slopes @ cells.jumps
    scale = -jnp.exp(cells.gradient.log_slope)
    return _Around(
        base=scale * cells.base,
        generators=scale * cells.jumps,
        normals=cells.normals,
        patterns=jnp.asarray(cells.patterns),
        feasible=cells.feasible,
        vertices=scale * points,
    )
