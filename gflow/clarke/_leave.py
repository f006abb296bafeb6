"""resolve(): how the flow leaves a point on kinks."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._flat import unflattener
from .._least_norm import capacity_for, kinks_at_zero
from .._norms import log_norm
from .._resolve import resolve as _resolve
from .._types import BoolScalar, Params, Scalar
from ._point import Point, numbers, point, scaled


_BRANCHES = ("steepest", "stay")


class Leaving(eqx.Module):
    r"""The velocity with which the flow leaves a point.

    Returned by [`gflow.clarke.resolve`][]. K is the number of kinks there is room for:
    all there are, 64 at most.

    **Attributes:**

    - `velocity`: $\dot W(t_0^+)$, a PyTree like the parameters, as numbers.
    - `speed`, `log_speed`: its norm, and the logarithm of that, which does not
        underflow.
    - `pins`: (K,) the numbers of the kinks that the flow slides along, then -1.
    - `kinks`: (K,) the numbers of the kinks at zero, then -1; as in
        [`gflow.clarke.Subgradient`][].
    - `multipliers`: (K,) the slope taken at each of these, from that of its lower
        branch, 0, to that of its upper one, 1; between them for pins.
    - `ambiguous`: whether several continuations were found, so that `branch` decides.
    - `consistent`: whether the velocity goes where it is the velocity. False where no
        candidate does, as may happen with many concave kinks or kinks in series.
    - `crowded`: whether more kinks are at zero than there is room for; the others stay
        on the branches they have.
    - `jumps`: whether ∇ℒ changes across a kink by more than a multiple of ∇z, so that ℒ
        itself jumps and there is no flow.
    """

    velocity: Params
    speed: Scalar
    log_speed: Scalar
    pins: Int[Array, " K"]
    kinks: Int[Array, " K"]
    multipliers: Float[Array, " K"]
    ambiguous: BoolScalar
    consistent: BoolScalar
    crowded: BoolScalar
    jumps: BoolScalar


def resolve(
    model: Any,
    data: Any,
    loss: Any,
    *,
    branch: str = "steepest",
    tol: Any = None,
    filter_spec: Any = None,
) -> Leaving:
    r"""The velocity with which the gradient flow leaves a model on kinks.

    $$\dot W=\arg\min_v\ \mathcal L'(W;v)+\tfrac12\|v\|^2$$

    among directions from W, which lies on the kinks at zero. It is not minus the
    element of least norm of ∂ℒ(W): on a ridge that is zero, and yet the flow may leave.
    After leaving, minus the velocity is of least norm.

    **Arguments:**

    - `model`, `data`, `loss`, `filter_spec`: as for [`gflow.integrate`][].
    - `branch`: where the flow may continue in several ways, `"steepest"` (default) is
        the fastest one, `"stay"` the slowest.
    - `tol`: as for [`gflow.clarke.min_norm_subgradient`][].

    **Returns:**

    A [`gflow.clarke.Leaving`][]. Of a smooth model, minus its gradient.

    **Raises:**

    `ValueError` as [`gflow.clarke.min_norm_subgradient`][] does, and for an unknown
    branch.

    Examples:
        ℒ = -w₁ relu(w₂) at (1, 0): the flow may stay there, but need not.

        >>> import equinox as eqx, gflow, jax, jax.numpy as jnp
        >>> model = gflow.nn.TwoLayer(1, 1, key=jax.random.key(0))
        >>> model = eqx.tree_at(
        ...     lambda m: (m.outer, m.weight), model, (jnp.ones(1), jnp.zeros((1, 1)))
        ... )
        >>> data = (jnp.ones((1, 1)), jnp.ones(1))
        >>> def product(f, y):
        ...     return -f * y
        >>> leaving = gflow.clarke.resolve(model, data, product)
        >>> leaving.velocity.weight.tolist(), bool(leaving.ambiguous)
        ([[1.0]], True)
        >>> staying = gflow.clarke.resolve(model, data, product, branch="stay")
        >>> float(staying.speed)
        0.0

    ??? cite "Reference"

        Kumar and Haupt (2024), "Directional convergence near small initializations and
        saddles in two-homogeneous neural networks", arXiv:2402.09226, on branching.
    """
    if branch not in _BRANCHES:
        raise ValueError(f"branch={branch!r} is not known; use 'steepest' or 'stay'.")
    return _leave(point(model, data, loss, tol, filter_spec), branch)


@eqx.filter_jit
def _leave(at: Point, branch: str) -> Leaving:
    if at.frozen is None:
        return _smooth(at)
    frozen, params = at.frozen, at.params
    branches, at_zero = kinks_at_zero(frozen, params, at.tolerance)
    capacity = capacity_for(frozen)
    found = _resolve(
        frozen, params, branches, at_zero, capacity=capacity, branch=branch
    )
    direction = unflattener(params)(found.direction)
    log_speed = found.log_slope + log_norm(direction)
    return Leaving(
        velocity=scaled(direction, found.log_slope),
        speed=jnp.exp(log_speed),
        log_speed=log_speed,
        pins=numbers(found.pins, frozen.total),
        kinks=numbers(found.index, frozen.total),
        multipliers=found.multipliers,
        ambiguous=found.ambiguous,
        consistent=found.consistent,
        crowded=found.crowded,
        jumps=found.jumps,
    )


def _smooth(at: Point) -> Leaving:
    gradient = at.problem.gradient(at.params)
    log_speed = gradient.log_slope + log_norm(gradient.direction)
    none, no = jnp.zeros(0, int), jnp.asarray(False)
    return Leaving(
        velocity=scaled(gradient.direction, gradient.log_slope),
        speed=jnp.exp(log_speed),
        log_speed=log_speed,
        pins=none,
        kinks=none,
        multipliers=jnp.zeros(0, log_speed.dtype),
        ambiguous=no,
        consistent=jnp.asarray(True),
        crowded=no,
        jumps=no,
    )
