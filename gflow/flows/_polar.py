"""The gradient flow itself, in norms and directions of layers."""

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


class Polar(AbstractMotion):
    r"""The gradient flow in the coordinates $W_k = \rho_k V_k$, $\|V_k\|_2 = 1$.

    $$\dot\rho_k = V_k^\top\dot W_k,\qquad
      \dot V_k = \frac{I - V_kV_k^\top}{\rho_k}\,\dot W_k,\qquad
      \dot W_k = -\nabla_{W_k}\mathcal L.$$

    The curve W(t) is that of the gradient flow (Observation 1 of the source), which
    makes it a check of either; the state is (ρ, V), a [`gflow.flows.OnSpheres`][].

    **Arguments:**

    - `per_layer`: one ρ_k for each parameter array (default); False for one ρ = ‖W‖.

    **Raises:**

    `ValueError` (in `integrate`) for a layer that starts at zero.

    Examples:
        >>> import gflow, jax, jax.numpy as jnp
        >>> model = gflow.nn.DeepLinear((2, 3, "scalar"), key=jax.random.key(0))
        >>> data = jnp.array([[1.0, 2.0], [2.0, 1.0]]), jnp.array([1.0, -1.0])
        >>> loss = gflow.losses.Exponential()
        >>> a = gflow.integrate(model, data, loss, (0.0, 5.0))
        >>> b = gflow.integrate(model, data, loss, (0.0, 5.0), flow=gflow.flows.Polar())
        >>> bool(abs(a.log_loss[-1] - b.log_loss[-1]) < 1e-4)
        True

    ??? cite "Reference"

        Banburski et al. (2019), "Theory III: Dynamics and Generalization in Deep
        Networks", eqs. (8)-(11) and (13)-(14).
    """

    per_layer: bool = True

    def __check_init__(self):
        check_flag("per_layer", self.per_layer)

    def check(self, problem, params, t0, t1):
        check_nonzero(params, self.per_layer, "Polar")

    def start(self, params, t):
        rho, rows = on_spheres(params, self.per_layer)
        return OnSpheres(rho, as_tree(rows, params))

    def weights(self, state, t):
        _, rows = on_spheres(state.v, self.per_layer)
        return as_tree(scaled(state.rho, rows), state.v)

    def motion(self, problem, state, t):
        weights = self.weights(state, t)
        at = problem.gradient(weights)
        _, rows = on_spheres(state.v, self.per_layer)
        growth, turning = [], []
        for k, (v, d) in enumerate(
            zip(rows, vectors(at.direction, self.per_layer), strict=True)
        ):
            radial = jnp.sum(v * d)
            size = array_norm(vectors(state.v, self.per_layer)[k])
            growth.append(radial.astype(state.rho.dtype))
            turning.append((d - radial * v) / state.rho[k].astype(v.dtype) * size)
        return Motion(
            log_speed=at.log_slope,
            direction=OnSpheres(jnp.stack(growth), as_tree(turning, state.v)),
            weights=weights,
            velocity=Velocity(at.log_slope, at.direction, at.log_loss, at.loss),
            log_slope=at.log_slope,
            descent=at.direction,
        )
