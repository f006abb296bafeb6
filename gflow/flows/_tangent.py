"""The tangent gradient flow."""

from typing import Any

from ._abstract import AbstractMotion
from ._constrained import Rho, begin, check_choice, motion_of, weights_of
from ._norm_spheres import sphere
from ._spheres import check_flag, check_nonzero, check_rho


class TangentGradient(AbstractMotion):
    r"""Descent of the loss along spheres $\|V_k\|_p = 1$, at given norms ρ_k.

    $$W_k = \rho_k V_k,\qquad \dot V_k = S_k\,g_k,\qquad
      g_k = -\frac{\partial\mathcal L}{\partial V_k} = -\rho_k\nabla_{W_k}\mathcal L,
      \qquad S_k = I - \frac{n_kn_k^\top}{\|n_k\|_2^2},\quad
      n_k = \frac{\partial\|V_k\|_p}{\partial V_k}.$$

    Where the norm is not differentiable (an entry at zero for l1; several largest ones
    for l∞) S_k g_k stands for the projection of g_k onto the tangent cone, so that
    entries stay at zero, or at the bound, as long as the descent holds them there. For
    l2 and continuous time this is also the true gradient method, the gradient for the
    sphere's own metric, and the Lagrange multiplier method.

    The state is $(\rho, V)$, a [`gflow.flows.OnSpheres`][].

    **Arguments:**

    - `norm`: "l2" (default), "l1", "linf", or a number p > 1.
    - `per_layer`: one V_k for each parameter array (default); False for one of all.
    - `rho`: "fixed" at ρ_k = ‖W_k(t0)‖_p (default), or a function of the time t (a
        scalar array) that returns the ρ_k, one number for all of them or one for each.
        The flow then starts at ρ(t0)V(t0).
    - `width`: for l1, entries of V within this of zero count as zero; some tens of
        `rtol`. Where an entry passes zero it is late by about as much.

    **Raises:**

    `ValueError` for arguments that cannot be right and (in `integrate`) for a layer
    that starts at zero, a `rho` that does not fit, and with one for times beyond the
    largest float.

    Examples:
        >>> import gflow, jax, jax.numpy as jnp
        >>> model = gflow.nn.Linear(2, "scalar", key=jax.random.key(0))
        >>> data = jnp.array([[1.0, 2.0], [2.0, 1.0]]), jnp.array([1.0, -1.0])
        >>> sol = gflow.integrate(
        ...     model, data, gflow.losses.Exponential(), (0.0, 5.0),
        ...     flow=gflow.flows.TangentGradient(rho=lambda t: 1 + t),
        ... )
        >>> bool(abs(jnp.exp(sol.log_norm[-1]) - 6) < 1e-5)
        True

    ??? cite "Reference"

        Banburski et al. (2019), "Theory III: Dynamics and Generalization in Deep
        Networks", Theorem 7 with eq. (53), eq. (58), and remark 1 of section 11.2 for
        ρ(t); Douglas, Amari & Kung (2000), "On gradient adaptation with unit-norm
        constraints", doi:10.1109/78.845952.
    """

    norm: Any = "l2"
    per_layer: bool = True
    rho: Rho = "fixed"
    width: float = 1e-5

    def __check_init__(self):
        check_flag("per_layer", self.per_layer)
        sphere(self.norm, self.width)
        check_choice(self.rho, ("fixed",))

    def check(self, problem, params, t0, t1):
        check_nonzero(params, self.per_layer, "TangentGradient")
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
