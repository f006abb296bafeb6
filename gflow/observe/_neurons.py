r"""Neurons: their directions, shares of the norm, and alignment.

A neuron's weights w_j are the row of the first layer with, if it is trained, what the
second layer has on it. Other models say which weights belong together by the option
`groups`, a function of the model that returns arrays with the neurons along the leading
axis: `gflow.observe.neurons.using(groups=lambda model: (model.w, model.a))`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._norms import angle, unit
from .._norms import log_norm as _log_norm
from ._blocks import Groups, check_neurons, neuron_rows
from ._observer import observer
from ._state import State


@observer(check=check_neurons)
def neurons(state: State, *, groups: Groups | None = None) -> dict[str, Array]:
    r"""Directions and shares of the neurons' weights w_j, a dict:

    - `direction` (m, ...): $\theta_j=w_j/\|w_j\|$; NaN for a neuron at zero.
    - `share` (m,): $s_j=\|w_j\|^2/\|W\|^2$; NaN at W = 0.
    - `log_norm` (m,): $\log\|w_j\|$.

    The neurons are those of a network of one or two layers, w_j with what the second
    layer has on it, or what the option `groups` picks from the model. No gradient.
    (Ji & Telgarsky 2020, Proposition 4.6.)
    """
    rows = neuron_rows(state.problem, state.params, groups)
    sizes = jax.vmap(_log_norm)(rows)
    direction = jnp.where(jnp.isinf(sizes)[:, None], jnp.nan, jax.vmap(unit)(rows))
    share = jnp.exp(2 * (sizes - _log_norm(state.params)))
    return {"direction": direction, "share": share, "log_norm": sizes}


@observer(check=check_neurons)
def neuron_alignment(state: State, *, groups: Groups | None = None):
    r"""Angle between each neuron's w_j and $-\nabla_{w_j}\mathcal L$ (m,), in radians.

    NaN where either is zero. Tends to 0 for neurons whose share of the norm does not.
    Neurons and the option `groups` as in `neurons`. No gradient beyond the shared one.
    (Ji & Telgarsky 2020, Lemma E.1.)
    """
    w, d = (
        neuron_rows(state.problem, tree, groups)
        for tree in (state.params, state.direction)
    )
    return jax.vmap(angle)(w, d)
