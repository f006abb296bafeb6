"""Ascent of the neural correlation function."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Float

from .._norms import inner, unit
from .._problem import Problem
from .._types import Scalar
from ..fields import Velocity
from ..losses import Custom
from ._abstract import AbstractMotion, Motion
from ._spheres import check_flag, check_nonzero


def _negative(f: Float[Array, "..."], z: Float[Array, "..."]) -> Scalar:
    return -jnp.sum(f * z)


class CorrelationAscent(AbstractMotion):
    r"""Ascent of the neural correlation function $\mathcal N(u) = z^\top\Phi(X; u)$.

    $$\dot u = \nabla\mathcal N(u),\qquad z = -\frac{\partial}{\partial f}
      \sum_i\ell(f_i, y_i)\Big|_{f=0},$$

    which small weights of a two-homogeneous network follow. By default on the sphere,

    $$\dot\theta = (I - \theta\theta^\top)\,\nabla\mathcal N(\theta),\qquad
      \theta(t_0) = \frac{W}{\|W\|},$$

    which is the direction θ = u/‖u‖ of the former at the same times if Φ is
    two-homogeneous. 𝒩 does not decrease, and where θ rests it is a KKT point of
    $\max_{\|\theta\|=1}\mathcal N(\theta)$: see the observers `ncf` and `ncf_kkt`. The
    models are those with weights θ (or u), and the loss is theirs.

    On kinks this is what automatic differentiation returns. The inclusion
    $\dot u \in \partial\mathcal N(u)$ is followed across kinks as the gradient flow of
    the loss `lambda f, z: -z * f` on the data `(x, z)`; θ is its direction.

    **Arguments:**

    - `z`: what to correlate with, like the model's outputs on all the data; None for
        the labels' direction above: y for the square loss, y/2 for the logistic one.
    - `sphere`: whether to stay on the unit sphere (default).

    **Raises:**

    `ValueError` (in `integrate`) for a z of another shape than the outputs, and on the
    sphere for weights that are all zero.

    Examples:
        >>> import gflow, jax, jax.numpy as jnp
        >>> model = gflow.nn.TwoLayer(
        ...     2, 3, gflow.nn.squared_relu, outer="fixed", key=jax.random.key(0)
        ... )
        >>> data = jnp.array([[1.0, 2.0], [2.0, 1.0]]), jnp.array([1.0, -1.0])
        >>> sol = gflow.integrate(
        ...     model, data, gflow.losses.Square(), (0.0, 2.0),
        ...     flow=gflow.flows.CorrelationAscent(), observe="ncf",
        ... )
        >>> bool(jnp.all(jnp.diff(sol.observed["ncf"]) > -1e-6))
        True

    ??? cite "Reference"

        Kumar & Haupt (2024), "Directional Convergence Near Small Initializations and
        Saddles in Two-Homogeneous Neural Networks", eqs. (9)-(11) and Lemma 5.3.
    """

    z: Any = None
    sphere: bool = True

    def __check_init__(self):
        check_flag("sphere", self.sphere)

    def check(self, problem, params, t0, t1):
        shape = jax.eval_shape(problem.outputs, params).shape
        if self.z is not None and np.shape(self.z) != shape:
            raise ValueError(
                f"CorrelationAscent was given z of shape {np.shape(self.z)}, but the "
                f"outputs have shape {shape}; give one number for each of them."
            )
        if self.sphere:
            check_nonzero(params, False, "CorrelationAscent on the sphere")

    def start(self, params, t):
        return unit(params) if self.sphere else params

    def weights(self, state, t):
        return unit(state) if self.sphere else state

    def motion(self, problem, state, t):
        weights = self.weights(state, t)
        at = problem.gradient(weights)
        if self.z is None:
            first = problem.loss.linearise(jnp.zeros_like(at.outputs), problem.y)
            shift = problem.loss.log_reduction(problem.num_examples)
            log_scale, z = first.log_slope - shift, first.pull
        else:
            z = jnp.asarray(self.z, at.outputs.dtype)
            log_scale = jnp.zeros_like(at.log_slope)
        loss = Custom(function=_negative)
        correlation = Problem(problem.static, problem.x, z, loss, problem.reads)
        up = correlation.gradient(weights)
        log_speed, direction = log_scale + up.log_slope, up.direction
        if self.sphere:
            along = inner(direction, weights)
            direction = jtu.tree_map(
                lambda d, w: d - along.astype(d.dtype) * w, direction, weights
            )
        return Motion(
            log_speed=log_speed,
            direction=direction,
            weights=weights,
            velocity=Velocity(log_speed, direction, at.log_loss, at.loss),
            log_slope=at.log_slope,
            descent=at.direction,
        )
