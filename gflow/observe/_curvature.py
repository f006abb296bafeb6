r"""Extreme eigenvalues of the Hessian, and of the flow of normalised layers.

Late in training the Hessian is as small as the loss, so it is formed as a logarithm
times an operator: $\nabla^2\mathcal L=e^{u}A$, A of moderate size.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float

from .._flat import flatten, unflattener
from .._lanczos import Extremes, extremes
from .._norms import inner, unit
from .._norms import log_norm as _log_norm
from .._problem import Problem, dtype_of
from .._types import BoolScalar, Params, Scalar
from ..losses import AbstractTailedLoss
from ._observer import observer
from ._state import State


# Products at most. Networks of a thousand parameters took 16 to 24 for the largest
# eigenvalue, and 56 to 96 for the three largest and the three smallest.
_STEPS, _MORE_STEPS = 100, 200
_TOLERANCE = 1e-6
_ROUNDINGS = 64  # of the dtype, below which no residual falls


class _Operator(eqx.Module):
    # H = e^(log_slope + 2 shrink) · product. Apart: log_slope may be -1e180.
    log_slope: Scalar
    shrink: Scalar
    product: Callable[[Params], Params]

    @property
    def log_unit(self) -> Scalar:
        return self.log_slope + 2 * self.shrink


def _hessian(state: State, log_scale: Any = None) -> _Operator:
    """∇²ℒ, or with the parameters in units of e^log_scale (one for each array)."""
    problem = state.problem
    params = jax.lax.stop_gradient(state.params)
    if log_scale is None:
        log_scale = jtu.tree_map(lambda w: jnp.zeros_like(state.log_slope), params)

    def times(tree: Params, log: Any) -> Params:
        return jtu.tree_map(lambda a, s: jnp.exp(s).astype(a.dtype) * a, tree, log)

    if isinstance(problem.loss, AbstractTailedLoss):
        log_slope = jax.lax.stop_gradient(state.log_slope)

        def descent(w):
            at = problem.gradient(w)
            ratio = jnp.exp(at.log_slope - log_slope)
            return jtu.tree_map(lambda d: ratio.astype(d.dtype) * d, at.direction)

        # A is about ∇α∇αᵀ, which may be too large for a float.
        slope = _log_norm(times(jax.lax.stop_gradient(state.direction), log_scale))
        shrink = jnp.maximum(slope, 0)
    else:
        log_slope = shrink = jnp.zeros_like(state.log_slope)

        def total(w):
            return -problem.loss.linearise(problem.outputs(w), problem.y).loss

        descent = jax.grad(total)

    _, change = jax.linearize(descent, params)
    each = jtu.tree_map(lambda s: s - shrink, log_scale)

    def product(v: Params) -> Params:
        return jtu.tree_map(jnp.negative, times(change(times(v, each)), each))

    return _Operator(log_slope, shrink, product)


def _on_kink(state: State) -> BoolScalar:
    """Whether ∇ℒ jumps here, so that it has no derivative."""
    if state.at_kinks is None:
        return jnp.asarray(False)
    return jnp.any(state.at_kinks.effective)


def _check(
    problem: Problem,
    params: Params,
    degree: float | None,
    *,
    k: Any = 1,
    steps: Any = 1,
    tol: Any = None,
    flow: Any = "lagrange",
) -> None:
    for name, value in (("k", k), ("steps", steps)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"has {name}={value!r}, which is no positive integer.")
    if tol is not None and not 0 < tol < 1:
        raise ValueError(f"has tol={tol!r}, which is not between 0 and 1.")
    if flow not in ("lagrange", "standard"):
        raise ValueError(f"has flow={flow!r}; use 'lagrange' or 'standard'.")


def _tolerance(tol: float | None, dtype: Any) -> float:
    return max(tol or _TOLERANCE, _ROUNDINGS * float(jnp.finfo(dtype).eps))


def _spectrum(
    state: State, high: int, low: int, steps: int, tol: float | None
) -> tuple[Scalar, Extremes]:
    """log of the unit, and eigenvalues in it."""
    operator = _hessian(state)
    unflatten = unflattener(state.params)
    found = extremes(
        lambda v: flatten(operator.product(unflatten(v))),
        flatten(state.params),
        high=high,
        low=low,
        steps=steps,
        tol=_tolerance(tol, dtype_of(state.params)),
    )
    return operator.log_unit, found


def _kept(
    values: Float[Array, " k"],
    errors: Float[Array, " k"],
    found: Extremes,
    tol: float | None,
    undefined: BoolScalar,
) -> Float[Array, " k"]:
    """The eigenvalues over the largest, NaN where they are not known to `tol`."""
    known = errors <= _tolerance(tol, values.dtype) * found.scale
    scale = jnp.where(found.scale == 0, 1, found.scale)
    return jnp.where(known & ~undefined & (found.scale > 0), values / scale, jnp.nan)


def _log_sharpness(
    state: State, steps: int, tol: float | None
) -> tuple[Scalar, Scalar]:
    """log |λ_max|, and its sign."""
    log_unit, found = state.once(_spectrum, 1, 0, steps, tol)
    (value,) = _kept(found.largest, found.largest_error, found, tol, _on_kink(state))
    size = jnp.where(value == 0, 1, jnp.abs(value))
    log = jnp.where(value == 0, -jnp.inf, jnp.log(size))
    zero = (found.scale == 0) & ~_on_kink(state)
    log = jnp.where(zero, -jnp.inf, log + jnp.log(found.scale) + log_unit)
    return log, jnp.where(zero, 0, jnp.sign(value))


@observer(check=_check)
def sharpness(state: State, *, steps: int = _STEPS, tol: float | None = None):
    r"""The largest eigenvalue of the Hessian, $\lambda_{\max}(\nabla^2\mathcal L)$.

    A scalar, of the loss with its reduction: gradient descent is stable below
    2/sharpness. It underflows with the loss; `log_sharpness` does not. By the Lanczos
    iteration, to `tol` of the largest |λ| (default 1e-6, 8e-6 in float32; the error is
    usually the square of that), in at most `steps` products (default 100); NaN if it
    takes more, and on kinks, where ∇ℒ jumps. Costs two gradients for each product, and
    the memory of as many gradients as there are steps. No derivatives go through.
    (Cohen et al. 2021, Section 2.)
    """
    log, sign = _log_sharpness(state, steps, tol)
    return sign * jnp.exp(log)


@observer(check=_check)
def log_sharpness(state: State, *, steps: int = _STEPS, tol: float | None = None):
    r"""$\log\lambda_{\max}(\nabla^2\mathcal L)$, a scalar; NaN where λ_max is negative.

    Options and cost are those of `sharpness`; with the same options it costs nothing
    beside it.
    """
    log, sign = _log_sharpness(state, steps, tol)
    return jnp.where(sign < 0, jnp.nan, log)


@observer(check=_check)
def hessian_spectrum(
    state: State, *, k: int = 3, steps: int = _MORE_STEPS, tol: float | None = None
) -> dict[str, Array]:
    r"""The k largest and the k smallest eigenvalues of $\nabla^2\mathcal L$, a dict:

    - `largest` (k,), `smallest` (k,): from the outside in, divided by the largest |λ|.
    - `log_scale`: log of that |λ|, so that losses of any size have a spectrum.

    Options as of `sharpness` (`steps`: default 200), and `k` (default 3). Those not
    found to `tol`, or of which there are none, are NaN; so is all on kinks, and where
    the Hessian is zero. An eigenvalue of higher multiplicity may be found once. Costs
    two gradients for each product. (Lanczos 1950; Sagun, Bottou & LeCun 2016.)
    """
    log_unit, found = state.once(_spectrum, k, k, steps, tol)
    return _as_dict(log_unit, found, tol, _on_kink(state))


def _as_dict(
    log_unit: Scalar, found: Extremes, tol: float | None, undefined: BoolScalar
) -> dict[str, Array]:
    high = (found.largest, found.largest_error)
    low = (found.smallest, found.smallest_error)
    return {
        "largest": _kept(*high, found, tol, undefined),
        "smallest": _kept(*low, found, tol, undefined),
        "log_scale": jnp.where(undefined, jnp.nan, jnp.log(found.scale) + log_unit),
    }


@observer(check=_check)
def normalized_jacobian(
    state: State,
    *,
    flow: str = "lagrange",
    k: int = 3,
    steps: int = _MORE_STEPS,
    tol: float | None = None,
) -> dict[str, Array]:
    r"""Eigenvalues of the linearised flow of the layers' directions V_k, a dict:

    - `largest` (k,), `smallest` (k,), `log_scale`: as of `hessian_spectrum`.
    - `log_speed`: $\log\|\dot V\|$, which is to be small for the flow to be near a
        critical point, where these eigenvalues decide about its stability.

    With $W_k=\rho_kV_k$, ‖V_k‖ = 1, one for each parameter array, and ρ held fixed, in
    the tangent space of the spheres. The option `flow` is "lagrange" (default): $\dot
    V_k=-S_k\nabla_{V_k}\mathcal L$, $S_k=I-V_kV_k^\top$, whose Jacobian is T3's Hessian
    H; or "standard": $\dot V_k=-\rho_k^{-2}S_k\nabla_{V_k}\mathcal L$, the V_k of the
    gradient flow itself, whose Jacobian is their J. The eigenvalues are real. All
    negative: a hyperbolic minimum of ℒ under the norm constraints. Other options, cost
    and NaN are those of `hessian_spectrum`; NaN also where a ρ_k is zero.
    (Banburski et al. 2019, Sections 11.2 and 11.3, eqs. (69)-(71), (76)-(81).)
    """
    params, direction = state.params, state.direction
    log_rho = jtu.tree_map(lambda w: _log_norm(w).astype(state.log_slope.dtype), params)
    absent = jnp.any(jnp.isinf(jnp.stack(jtu.tree_leaves(log_rho))))
    v = jtu.tree_map(unit, params)

    def across(tree: Params) -> Params:
        return jtu.tree_map(lambda a, b: a - inner(a, b) * b, tree, v)

    # The Jacobian is -D Hess with D = 1 or ρ⁻², similar to -D^½ Hess D^½.
    log_scale = jtu.tree_map(lambda s: s if flow == "lagrange" else 0 * s, log_rho)
    operator = _hessian(state, log_scale)
    # Of the spheres' own curvature: -⟨∇_{V_k}ℒ, V_k⟩, T3's 2λ_k.
    shift = state.log_slope - operator.log_slope - 2 * operator.shrink
    bend = jtu.tree_map(
        lambda d, b, s, rho: inner(d, b) * jnp.exp(shift + 2 * s - rho).astype(b.dtype),
        direction,
        v,
        log_scale,
        log_rho,
    )
    unflatten = unflattener(params)

    def product(x: Float[Array, " P"]) -> Float[Array, " P"]:
        tangent = unflatten(x)
        image = operator.product(tangent)
        return -flatten(jtu.tree_map(lambda a, b, c: a + b * c, image, bend, tangent))

    moved = jtu.tree_map(
        lambda d, s, rho: jnp.exp(2 * s - rho).astype(d.dtype) * d,
        across(direction),
        log_scale,
        log_rho,
    )
    flat = flatten(params)
    dimension = flat.size - len(jtu.tree_leaves(params))
    undefined = absent | _on_kink(state)
    log_speed = jnp.where(absent, jnp.nan, state.log_slope + _log_norm(moved))
    if dimension == 0:
        nan = jnp.full((k,), jnp.nan, flat.dtype)
        found = {"largest": nan, "smallest": nan, "log_scale": nan[0]}
        return found | {"log_speed": log_speed}
    found = extremes(
        product,
        flat,
        high=k,
        low=k,
        steps=steps,
        tol=_tolerance(tol, flat.dtype),
        dimension=dimension,
        project=lambda x: flatten(across(unflatten(x))),
    )
    return _as_dict(operator.log_unit, found, tol, undefined) | {"log_speed": log_speed}
