"""Norms, angles and lengths in parameter space."""

import jax.numpy as jnp
import jax.tree_util as jtu

from .._norms import angle, array_norm
from .._norms import log_norm as _log_norm
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


@observer(needs_path=True)
def path_length(state: State):
    r"""Length of the curve of directions, a scalar in radians.

    $\zeta_t = \int_{t_0}^t \|\tfrac{d}{ds}\tfrac{W_s}{\|W_s\|}\|\,ds$, integrated
    along with the flow, not summed over saved points. NaN for a single model, for
    gradient descent, and for a flow that starts at W = 0, which has no direction.
    (Ji & Telgarsky 2020, Theorem 3.1.)
    """
    return state.path_length
