"""The Lagrange multiplier flow."""

from typing import Any

from ._abstract import AbstractMotion
from ._constrained import Rho, begin, check_choice, motion_of, weights_of
from ._norm_spheres import sphere
from ._spheres import check_flag, check_nonzero, check_rho


class LagrangeMultiplier(AbstractMotion):
    r"""Gradient flow in (ρ, V) with multipliers that keep $\|V_k\|_p = 1$.

    The flow of $\mathcal L(\rho V) + \sum_k\lambda_k(\|V_k\|_p^p - 1)$ in all ρ_k and
    V_k, $W_k = \rho_kV_k$:

    $$\dot\rho_k = -V_k^\top\nabla_{W_k}\mathcal L,\qquad
      \dot V_k = -\rho_k\nabla_{W_k}\mathcal L
        - \lambda_k\,p\,|V_k|^{p-1}\operatorname{sign}V_k,$$

    with the λ_k(t) for which ‖V_k‖_p = 1 at every t. (The source leaves λ_k to be
    chosen so; for p = 2 and a network linear in W_k, $2\lambda_k =
    -\rho_kV_k^\top\nabla_{W_k}\mathcal L$.) V̇_k is then the tangent gradient, and for
    p = 2 the flow is that of [`gflow.flows.WeightNorm`][]; what is different from
    [`gflow.flows.TangentGradient`][] is that the norms move.

    The state is $(\rho, V)$, a [`gflow.flows.OnSpheres`][].

    **Arguments:**

    - `norm`, `per_layer`, `width`: as for [`gflow.flows.TangentGradient`][].
    - `rho`: "free" (default), the equation above; or "fixed" or a function of t, as
        there.

    **Raises:**

    `ValueError`, as [`gflow.flows.TangentGradient`][].

    Examples:
        >>> import gflow, jax, jax.numpy as jnp
        >>> model = gflow.nn.Linear(2, "scalar", key=jax.random.key(0))
        >>> data = jnp.array([[1.0, 2.0], [2.0, 1.0]]), jnp.array([1.0, -1.0])
        >>> sol = gflow.integrate(
        ...     model, data, gflow.losses.Exponential(), (0.0, 5.0),
        ...     flow=gflow.flows.LagrangeMultiplier("l1"),
        ... )
        >>> bool(sol.log_loss[-1] < sol.log_loss[0])
        True

    ??? cite "Reference"

        Banburski et al. (2019), "Theory III: Dynamics and Generalization in Deep
        Networks", eqs. (16)-(17) and (45)-(47).
    """

    norm: Any = "l2"
    per_layer: bool = True
    rho: Rho = "free"
    width: float = 1e-5

    def __check_init__(self):
        check_flag("per_layer", self.per_layer)
        sphere(self.norm, self.width)
        check_choice(self.rho, ("free", "fixed"))

    def check(self, problem, params, t0, t1):
        check_nonzero(params, self.per_layer, "LagrangeMultiplier")
        if callable(self.rho):
            check_rho(self.rho, params, self.per_layer, t0, t1)

    def start(self, params, t):
        on = sphere(self.norm, self.width)
        return begin(on, self.rho, self.per_layer, params)

    def weights(self, state, t):
        on = sphere(self.norm, self.width)
        return weights_of(on, self.rho, self.per_layer, state, t)

    def motion(self, problem, state, t):
        on = sphere(self.norm, self.width)
        return motion_of(on, self.rho, self.per_layer, problem, state, t)
