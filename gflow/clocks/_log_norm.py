"""The logarithm of the norm."""

import jax.numpy as jnp

from .._norms import inner, log_norm, unit
from ._abstract import AbstractClock


class LogNorm(AbstractClock):
    r"""The clock $x = \log(\|W\|/\|W(t_0)\|)$, in which the direction is the solution.

    $$\frac{d\theta}{dx} = \frac{g - \langle g, \theta\rangle\theta}
      {\langle g, \theta\rangle},\qquad \theta = \frac W{\|W\|},\quad
      g = \sum_i q_i \nabla p_i(\theta)$$

    Needs a norm that grows, $\langle g, \theta\rangle > 0$: true of homogeneous
    networks once ℒ < ℓ(0) (Ji & Telgarsky 2020, Lemma C.5). Where it does not the
    solve stops there. Time is recovered from $u = \log(1 + t - t_0)$ as one more
    unknown.
    """

    def log_rate(self, reading, params, log_time, velocity):
        radial = inner(unit(params), unit(velocity.direction))
        # NaN where the norm does not grow: the step is rejected.
        log_radial = jnp.log(jnp.where(radial > 0, radial, jnp.nan))
        speed = velocity.log_speed + log_norm(velocity.direction)
        return log_norm(params) - speed - log_radial
