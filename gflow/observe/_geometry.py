"""Norms, angles and lengths in parameter space."""

import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array

from .._flat import flatten
from .._norms import angle, array_norm, inner, unit
from .._norms import log_norm as _log_norm
from ..losses import AbstractTailedLoss
from ._observer import observer
from ._state import State


@observer()
def log_loss(state: State):
    r"""Natural logarithm of the loss, a scalar: $\log\mathcal L$."""
    return state.log_loss


@observer()
def log_norm(state: State):
    r"""Natural logarithm of the norm of all parameters, a scalar: $\log\|W\|$."""
    return _log_norm(state.params)


@observer()
def layer_norms(state: State):
    r"""Norm of each parameter array (number of arrays,): $\|W_k\|$, in tree order."""
    return jnp.stack([array_norm(w) for w in jtu.tree_leaves(state.params)])


@observer()
def grad_norm(state: State):
    r"""Natural logarithm of the gradient's norm, a scalar: $\log\|\nabla\mathcal L\|$.

    -inf where the gradient is zero.
    """
    return state.log_slope + _log_norm(state.direction)


@observer()
def alignment(state: State):
    r"""Angle between W and $-\nabla\mathcal L(W)$, a scalar in radians.

    Tends to 0 along the flow of a smooth homogeneous network that separates its data.
    NaN where either is zero. (Ji & Telgarsky 2020, Theorem 4.1.)
    """
    return angle(state.params, state.direction)


@observer(needs_degree=True)
def J_potential(state: State):
    r"""$\mathcal J=\|\nabla\alpha\|^2/\|W\|^{2L-2}$, a scalar.

    Tends to L² times the squared limit of the margin as W and ∇α align. NaN at W = 0
    and for losses without an exponential tail.
    (Ji & Telgarsky 2020, Section 4.1 and Lemma D.1.)
    """
    size = _log_norm(state.params)
    if not isinstance(state.problem.loss, AbstractTailedLoss):
        return jnp.full_like(size, jnp.nan)
    assert state.degree is not None
    log = 2 * (_log_norm(state.direction) - (state.degree - 1) * size)
    return jnp.where(jnp.isinf(size), jnp.nan, jnp.exp(log))


@observer()
def velocity(state: State) -> dict[str, Array]:
    r"""The velocity $\dot W=-\bar\partial\mathcal L(W)$, a dict:

    - `direction` (P,): $\dot W/\|\dot W\|$, all parameters in tree order; NaN where it
        is zero.
    - `log_speed`: $\log\|\dot W\|$, the `grad_norm`.
    - `log_growth`: log of $|d\log\|W\|/dt|$, the radial part of $\dot W$ over ‖W‖.
    - `log_turning`: log of $\|\tfrac{d}{dt}\tfrac{W}{\|W\|}\|$, in radians per unit of
        time: what `path_length` integrates.

    The last two are NaN at W = 0. No gradient beyond the shared one.
    (Ji & Telgarsky 2020, eq. (2.1) and Section 3.)
    """
    size, speed = _log_norm(state.params), _log_norm(state.direction)
    w, v = unit(state.params), unit(state.direction)
    radial = inner(w, v)
    across = jtu.tree_map(lambda a, b: b - radial.astype(b.dtype) * a, w, v)
    rate = jnp.where(jnp.isinf(size), jnp.nan, state.log_slope + speed - size)
    absent = jnp.isneginf(speed)
    return {
        "direction": jnp.where(absent, jnp.nan, flatten(v)),
        "log_speed": state.log_slope + speed,
        "log_growth": rate + jnp.log(jnp.abs(radial)),
        "log_turning": rate + _log_norm(across),
    }


@observer(needs_path=True)
def path_length(state: State):
    r"""Length of the curve of directions, a scalar in radians.

    $\zeta_t = \int_{t_0}^t \|\tfrac{d}{ds}\tfrac{W_s}{\|W_s\|}\|\,ds$, integrated
    along with the flow, not summed over saved points. NaN for a single model, for
    gradient descent, and for a flow that starts at W = 0, which has no direction.
    (Ji & Telgarsky 2020, Theorem 3.1.)
    """
    return state.path_length
