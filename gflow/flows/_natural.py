"""The natural gradient flow."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float

from .._flat import flatten, flatten_rows, unflattener
from .._problem import Problem
from .._times import is_concrete
from .._types import Params, Scalar
from ..fields import Velocity
from ..losses import AbstractTailedLoss, Custom, Square
from ._abstract import AbstractMotion, Motion
from ._spheres import (
    OnSpheres,
    as_tree,
    check_flag,
    check_nonzero,
    on_spheres,
    scaled,
    vectors,
)


# Entries of the Jacobian that is formed, and its decomposition.
_LARGEST = 50_000_000


class Natural(AbstractMotion):
    r"""Steepest descent for the Fisher-Rao metric, the natural gradient flow.

    $$\dot W = -(F + \delta I)^{+}\,\nabla\mathcal L(W),\qquad
      F = \sum_i J_i^\top H_i J_i,\quad J_i = \frac{\partial f_i}{\partial W},\quad
      H_i = \frac{\partial^2\ell_i}{\partial f_i^2}.$$

    F is the Fisher information of the square loss (Gaussian labels), the logistic loss
    and the cross-entropy; for other losses it is the Gauss-Newton matrix, and
    directions in which a custom loss is concave count as flat. With δ = 0 and
    independent J_i the outputs follow $H_i\dot f_i = -\partial\ell_i/\partial f_i$
    alone: residuals of the square loss fall like e^-t, and margins of the exponential
    loss grow like t.

    With `constrained`, the metric is that of the spheres ‖V_k‖₂ = 1 at fixed ρ_k =
    ‖W_k(t0)‖, and the flow descends on them. (Where outputs can no longer move freely,
    as where the loss is least on the sphere of a network of several layers, F becomes
    singular and the flow with δ = 0 runs into that in finite time: give a δ.) With the
    Euclidean metric instead, which δ → ∞ leads to (in units of time of δ), that is
    [`gflow.flows.TangentGradient`][], with which the true gradient method coincides in
    continuous time.

    The Jacobian (n outputs by P) is formed and decomposed at each evaluation.

    **Arguments:**

    - `damping`: δ ≥ 0, in units of F. Default 0; directions with singular values of
        the weighted Jacobian that are zero to rounding do not move.
    - `constrained`: whether to stay on the spheres. Default False.
    - `per_layer`: with `constrained`, one sphere for each parameter array (default);
        False for one of all.

    **Raises:**

    `ValueError` for a negative damping, (in `integrate`) for a Jacobian of more than
    5e7 entries, and with `constrained` for a layer that starts at zero.

    Examples:
        >>> import gflow, jax, jax.numpy as jnp
        >>> model = gflow.nn.TwoLayer(2, 3, jnp.tanh, key=jax.random.key(0))
        >>> data = jnp.array([[1.0, 2.0], [2.0, 1.0]]), jnp.array([1.0, -1.0])
        >>> sol = gflow.integrate(
        ...     model, data, gflow.losses.Square(), (0.0, 1.0),
        ...     flow=gflow.flows.Natural(),
        ... )
        >>> bool(abs(sol.log_loss[-1] - sol.log_loss[0] + 2) < 1e-4)
        True

    ??? cite "Reference"

        Amari (1998), "Natural gradient works efficiently in learning",
        doi:10.1162/089976698300017746; Banburski et al. (2019), "Theory III: Dynamics
        and Generalization in Deep Networks", section 9, method 4 and remarks.
    """

    damping: Any = 0.0
    constrained: bool = False
    per_layer: bool = True

    def __check_init__(self):
        check_flag("constrained", self.constrained)
        check_flag("per_layer", self.per_layer)
        if not isinstance(self.damping, (int, float, jax.Array)):
            raise ValueError(f"damping={self.damping!r} is not a number.")
        if is_concrete(self.damping):
            number = float(self.damping)
            if not (math.isfinite(number) and number >= 0):
                raise ValueError(
                    f"damping={number:g} is not a number; use 0 or a positive one."
                )

    def check(self, problem, params, t0, t1):
        outputs = jax.eval_shape(problem.outputs, params).size
        size = sum(leaf.size for leaf in jtu.tree_leaves(params))
        if outputs * size > _LARGEST:
            raise ValueError(
                f"Natural forms the Jacobian of {outputs} outputs by {size} parameters "
                f"at each step, more than {_LARGEST:g} entries; use fewer examples."
            )
        if self.constrained:
            check_nonzero(params, self.per_layer, "Natural(constrained=True)")

    def start(self, params, t):
        if not self.constrained:
            return params
        rho, rows = on_spheres(params, self.per_layer)
        return OnSpheres(rho, as_tree(rows, params))

    def weights(self, state, t):
        if not self.constrained:
            return state
        _, rows = on_spheres(state.v, self.per_layer)
        return as_tree(scaled(state.rho, rows), state.v)

    def motion(self, problem, state, t):
        weights = self.weights(state, t)
        at = problem.gradient(weights)
        moved = self._velocity(problem, weights, at.outputs)
        direction = moved
        if self.constrained:
            rows = [
                w / rho.astype(w.dtype)
                for rho, w in zip(
                    state.rho, vectors(moved, self.per_layer), strict=True
                )
            ]
            direction = OnSpheres(jnp.zeros_like(state.rho), as_tree(rows, state.v))
        zero = jnp.zeros_like(at.log_slope)
        return Motion(
            log_speed=zero,
            direction=direction,
            weights=weights,
            velocity=Velocity(zero, moved, at.log_loss, at.loss),
            log_slope=at.log_slope,
            descent=at.direction,
        )

    def _velocity(
        self, problem: Problem, weights: Params, outputs: Float[Array, "n ..."]
    ) -> Params:
        n = outputs.shape[0]
        flat = outputs.reshape(n, -1)
        jacobian = _rows(problem, weights).reshape(n, flat.shape[1], -1)
        log_unit, root, target = _whitened(problem, outputs)
        # A = H^{1/2} J and b = H^{-1/2}(-∂ℓ/∂f), in units e^(log_unit/2).
        matrix = jnp.einsum("iab,ibp->iap", root, jacobian).reshape(flat.size, -1)
        if self.constrained:
            matrix = self._across(matrix, weights)
        left, values, right = jnp.linalg.svd(matrix, full_matrices=False)
        dtype = values.dtype
        delta = jnp.asarray(self.damping, dtype) * jnp.exp(-log_unit)
        cutoff = max(matrix.shape) * float(jnp.finfo(dtype).eps) * jnp.max(values)
        kept = values > cutoff
        safe = jnp.where(kept, values, 1)
        gain = jnp.where(kept, safe / (safe**2 + delta), 0)
        vector = (gain * (target.reshape(-1) @ left)) @ right
        return unflattener(weights)(vector)

    def _across(self, matrix: Float[Array, "m P"], weights: Params) -> Any:
        """Rows projected on the tangent space of the spheres."""
        if self.per_layer:
            _, parts = on_spheres(weights, True)
        else:
            parts = [flatten(weights)]
            parts = [parts[0] / jnp.linalg.norm(parts[0])]
        pieces, start = [], 0
        for v in parts:
            block = matrix[:, start : start + v.size]
            v = v.astype(block.dtype)
            pieces.append(block - jnp.outer(block @ v, v))
            start += v.size
        return jnp.concatenate(pieces, axis=1)


def _rows(problem: Problem, weights: Params) -> Float[Array, "outputs P"]:
    def flat(w: Params) -> Float[Array, " outputs"]:
        return problem.outputs(w).reshape(-1)

    return flatten_rows(jax.jacrev(flat)(weights))


def _whitened(
    problem: Problem, outputs: Float[Array, "n ..."]
) -> tuple[Scalar, Float[Array, "n k k"], Float[Array, "n k"]]:
    r"""log of a unit e^m, and of each example $(H/e^m)^{1/2}$ and $(H e^m)^{-1/2} r$.

    r = -∂ℓ/∂f. The unit is the largest example's, so that late ones do not underflow
    together.
    """
    loss, y = problem.loss, problem.y
    n = outputs.shape[0]
    shape = outputs.shape[1:]
    flat = outputs.reshape(n, -1)
    shift = jnp.asarray(loss.log_reduction(n), outputs.dtype)
    if isinstance(loss, Square):
        size = flat.shape[1]
        root = jnp.broadcast_to(jnp.eye(size, dtype=flat.dtype), (n, size, size))
        return shift, root, y.reshape(flat.shape) - flat
    if isinstance(loss, AbstractTailedLoss):

        def scaled_slope(f, label):
            at = loss.linearise(f.reshape(1, *shape), label[None])
            # A mean over one example is a sum.
            return at.log_slope, at.pull.reshape(-1)

        def parts(f, label):
            log_slope, pull = scaled_slope(f, label)
            by_slope, by_pull = jax.jacfwd(scaled_slope)(f, label)
            return log_slope, pull, -(jnp.outer(pull, by_slope) + by_pull)

        log_slope, pull, curvature = jax.vmap(parts)(flat, y)
    else:
        assert isinstance(loss, Custom)

        def value(f, label):
            return loss.function(f.reshape(shape), label)

        pull = -jax.vmap(jax.grad(value))(flat, y)
        curvature = jax.vmap(jax.hessian(value))(flat, y)
        log_slope = jnp.zeros((n,), flat.dtype)
    unit = jnp.max(log_slope)
    half = jnp.exp((log_slope - unit) / 2)
    values, vectors_ = jnp.linalg.eigh(curvature)
    least = float(jnp.finfo(values.dtype).eps) * flat.shape[1]
    largest = jnp.max(jnp.abs(values), axis=1, keepdims=True)
    # With one output there is nothing to compare with.
    kept = values > (0 if flat.shape[1] == 1 else least) * largest
    roots = jnp.sqrt(jnp.where(kept, values, 1))
    root = jnp.where(kept, roots, 0)
    inverse = jnp.where(kept, 1 / roots, 0)
    matrix = jnp.einsum("iab,ib,icb->iac", vectors_, root, vectors_)
    target = jnp.einsum("iab,ib,icb,ic->ia", vectors_, inverse, vectors_, pull)
    return shift + unit, half[:, None, None] * matrix, half[:, None] * target
