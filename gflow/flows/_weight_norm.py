"""Weight normalisation."""

import math

import jax.numpy as jnp

from .._norms import array_norm
from ..fields import Velocity
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


class WeightNorm(AbstractMotion):
    r"""The gradient flow of (g, v) with $W_k = g_k\,v_k/\|v_k\|_2$.

    $$\dot g_k = \frac{v_k^\top}{\|v_k\|}\dot w_k,\qquad
      \dot v_k = \frac{g_k}{\|v_k\|}\Bigl(I - \frac{v_kv_k^\top}{\|v_k\|^2}\Bigr)
      \dot w_k,\qquad \dot w_k = -\nabla_{W_k}\mathcal L,$$

    which is $\dot\rho = v^\top\dot w$, $\dot v = \rho S\dot w$ at ‖v‖ = 1: compared
    with the gradient flow, directions turn faster by g²/‖v‖². ‖v_k‖ is constant. The
    state is (g, v), a [`gflow.flows.OnSpheres`][].

    **Arguments:**

    - `per_layer`: one g_k for each parameter array (default); False for one of all.
    - `size`: ‖v_k‖ at the start, and so for ever. Default 1.

    **Raises:**

    `ValueError` for a `size` that is not positive and finite, and (in `integrate`) for
    a layer that starts at zero.

    Examples:
        >>> import gflow, jax, jax.numpy as jnp
        >>> model = gflow.nn.DeepLinear((2, 3, "scalar"), key=jax.random.key(0))
        >>> data = jnp.array([[1.0, 2.0], [2.0, 1.0]]), jnp.array([1.0, -1.0])
        >>> sol = gflow.integrate(
        ...     model, data, gflow.losses.Exponential(), (0.0, 5.0),
        ...     flow=gflow.flows.WeightNorm(),
        ... )
        >>> sol.flow
        'WeightNorm'

    ??? cite "Reference"

        Banburski et al. (2019), "Theory III: Dynamics and Generalization in Deep
        Networks", eqs. (12) and (55)-(58); Salimans & Kingma (2016), "Weight
        normalization".
    """

    per_layer: bool = True
    size: float = 1.0

    def __check_init__(self):
        check_flag("per_layer", self.per_layer)
        if isinstance(self.size, (int, float)):
            if not (math.isfinite(self.size) and self.size > 0):
                raise ValueError(
                    f"size={self.size!r} is not a positive number; it is ‖v‖, "
                    "usually 1."
                )

    def check(self, problem, params, t0, t1):
        check_nonzero(params, self.per_layer, "WeightNorm")

    def start(self, params, t):
        rho, rows = on_spheres(params, self.per_layer)
        rows = [jnp.asarray(self.size, v.dtype) * v for v in rows]
        return OnSpheres(rho, as_tree(rows, params))

    def weights(self, state, t):
        _, rows = on_spheres(state.v, self.per_layer)
        return as_tree(scaled(state.rho, rows), state.v)

    def motion(self, problem, state, t):
        weights = self.weights(state, t)
        at = problem.gradient(weights)
        sizes = [array_norm(v) for v in vectors(state.v, self.per_layer)]
        _, rows = on_spheres(state.v, self.per_layer)
        growth, turning, moved = [], [], []
        for k, (v, d) in enumerate(
            zip(rows, vectors(at.direction, self.per_layer), strict=True)
        ):
            radial = jnp.sum(v * d)
            share = state.rho[k].astype(v.dtype) / sizes[k]
            across = d - radial * v
            growth.append(radial.astype(state.rho.dtype))
            turning.append(share * across)
            moved.append(radial * v + share**2 * across)
        velocity = as_tree(moved, state.v)
        return Motion(
            log_speed=at.log_slope,
            direction=OnSpheres(jnp.stack(growth), as_tree(turning, state.v)),
            weights=weights,
            velocity=Velocity(at.log_slope, velocity, at.log_loss, at.loss),
            log_slope=at.log_slope,
            descent=at.direction,
        )
