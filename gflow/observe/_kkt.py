"""How far the direction is from a KKT point of the margin problem."""

import jax.numpy as jnp
from jaxtyping import Array

from .._norms import angle
from .._norms import log_norm as _log_norm
from ..losses import AbstractTailedLoss
from ._margins import pairs_and_log_weights
from ._observer import observer
from ._state import State


@observer(needs_degree=True)
def kkt(state: State) -> dict[str, Array]:
    r"""LL's approximate KKT conditions of $\min\tfrac12\|W\|^2$, $p_m(W)\ge1$, a dict:

    - `epsilon`: $\varepsilon=\|\hat W-\sum_m\lambda_m\nabla p_m(\hat W)\|$, at $\hat W=
        W/p_{\min}^{1/L}$, where the smallest margin is 1.
    - `delta`: $\delta=\max_m\lambda_m(p_m(\hat W)-1)$.

    The multipliers are those of the flow, $\lambda_m=p_{\min}^{1-2/L}\|W\|\,q_m/
    \|\bar\partial\alpha\|\ge0$. With them $\varepsilon=\|\hat W\|\cdot2\sin(\theta/2)$,
    θ the angle of W and $-\bar\partial\mathcal L$, so that kinks are no exception. One
    constraint for each example, and with k classes for each wrong one. ε = δ = 0 at a
    KKT point. NaN unless all margins are positive, and for losses without an
    exponential tail. No gradient beyond the shared one.
    (Lyu & Li 2019, Section 4.3 and Appendix C.)
    """
    if not isinstance(state.problem.loss, AbstractTailedLoss):
        nan = jnp.full_like(state.log_loss, jnp.nan)
        return {"epsilon": nan, "delta": nan}
    assert state.degree is not None
    pairs, log_weights = state.once(pairs_and_log_weights)
    least = jnp.min(pairs)
    separated = least > 0
    log_least = jnp.log(jnp.where(separated, least, 1))
    size, slope = _log_norm(state.params), _log_norm(state.direction)
    turn = 2 * jnp.sin(angle(state.params, state.direction) / 2)
    epsilon = jnp.exp(size - log_least / state.degree) * turn
    log_scale = (1 - 2 / state.degree) * log_least + size - slope
    excess = (pairs - least) / jnp.where(separated, least, 1)
    delta = jnp.max(jnp.exp(log_scale + log_weights) * excess)
    return {
        "epsilon": jnp.where(separated, epsilon, jnp.nan),
        "delta": jnp.where(separated, delta, jnp.nan),
    }
