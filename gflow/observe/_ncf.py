r"""The neural correlation function $\mathcal N(u)=z^\top\Phi(X;u)$.

Near the origin the flow of a two-homogeneous network moves like ascent on it, and its
direction converges to a KKT point of $\max_{\|u\|=1}\mathcal N(u)$.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._least_norm import frozen_if_possible, least_norm
from .._norms import inner, unit
from .._norms import log_norm as _log_norm
from .._problem import Problem
from .._types import Params, Scalar
from ..losses import Custom
from ._blocks import Groups, check_neurons, neuron_rows
from ._kernel import labels_direction
from ._observer import observer
from ._state import State


class _Correlation(eqx.Module):
    """𝒩 and ∂̄𝒩 at u = W/‖W‖."""

    at: Params  # u
    value: Scalar
    gradient: Params
    undefined: Any  # whether W = 0


def _check_z(
    problem: Problem, params: Params, degree: float | None, *, z: Any = None
) -> None:
    shape = jax.eval_shape(problem.outputs, params).shape
    if z is not None and np.shape(z) != shape:
        raise ValueError(
            f"was given z of shape {np.shape(z)}, but the outputs have shape {shape}."
        )


def _check_z_and_neurons(
    problem: Problem,
    params: Params,
    degree: float | None,
    *,
    z: Any = None,
    groups: Groups | None = None,
) -> None:
    _check_z(problem, params, degree, z=z)
    check_neurons(problem, params, degree, groups=groups)


def _negative(f: Float[Array, "..."], z: Float[Array, "..."]) -> Scalar:
    return -jnp.sum(f * z)


def _correlation(state: State, z: Any = None) -> _Correlation:
    """At the direction of W, whatever its norm."""
    if z is None:
        log_scale, z = labels_direction(state)
        z = jnp.exp(log_scale) * z
    z = jnp.asarray(z, state.outputs.dtype)
    # Ascent on 𝒩 is the flow of the loss -𝒩, kinks and all.
    of = state.problem
    problem = Problem(of.static, of.x, z, Custom(function=_negative), of.reads)
    u = unit(state.params)
    frozen = frozen_if_possible(problem, u)
    if frozen is None:
        at = problem.gradient(u)
    else:
        at = least_norm(frozen, u).gradient
    scale = jnp.exp(at.log_slope)
    gradient = jax.tree.map(lambda d: scale.astype(d.dtype) * d, at.direction)
    undefined = jnp.isinf(_log_norm(state.params))
    return _Correlation(u, -at.loss, gradient, undefined)


def _at(state: State, z: Any) -> _Correlation:
    return state.once(_correlation) if z is None else _correlation(state, z)


@observer(needs_degree=True, check=_check_z)
def ncf(state: State, *, z: Any = None):
    r"""The neural correlation function $\mathcal N(u)=z^\top\Phi(X;u)$, a scalar.

    At u = W/‖W‖; NaN at W = 0. $z=-\partial\ell/\partial f$ at f = 0 (y for the square
    loss, y/2 for the logistic one), of the sum over the examples. The option `z`, of
    the shape of the outputs, is for other points: at a saddle, what is left of y there.
    Costs one gradient, shared with `ncf_kkt` and `neuron_ncf`.
    (Kumar & Haupt 2024, eq. (9) and Theorem 5.1; Theorem 5.5 for saddles.)
    """
    found = _at(state, z)
    return jnp.where(found.undefined, jnp.nan, found.value)


@observer(needs_degree=True, check=_check_z)
def ncf_kkt(state: State, *, z: Any = None) -> dict[str, Array]:
    r"""How near u = W/‖W‖ is to a KKT point of $\max_{\|u\|=1}\mathcal N(u)$, a dict:

    - `residual`: $\|g-\langle g,u\rangle u\|/\|g\|$ in [0, 1], $g=\bar\partial\mathcal
        N(u)$, whose part across u is the smallest in $\partial\mathcal N(u)$. 0 at a
        KKT point.
    - `multiplier`: $\langle g,u\rangle=L\,\mathcal N(u)$; a KKT point with one that is
        not negative is where the flow's direction goes.

    NaN at W = 0; the residual also where g = 0. The option `z` and the cost are those
    of `ncf`. (Kumar & Haupt 2024, eq. (11) and Lemma 5.3.)
    """
    found = _at(state, z)
    multiplier = inner(found.gradient, found.at)
    residual = _across(found.gradient, found.at, found.undefined)
    return {
        "residual": residual,
        "multiplier": jnp.where(found.undefined, jnp.nan, multiplier),
    }


@observer(needs_degree=True, check=_check_z_and_neurons)
def neuron_ncf(
    state: State, *, z: Any = None, groups: Groups | None = None
) -> dict[str, Array]:
    r"""The correlation function of each neuron, a dict of arrays (m,):

    - `value`: $\mathcal N_j(\theta_j)=z^\top\Phi_j(X;\theta_j)$, $\theta_j=
        w_j/\|w_j\|$.
    - `residual`: $\|g_j-\langle g_j,\theta_j\rangle\theta_j\|/\|g_j\|$ in [0, 1], $g_j=
        \nabla\mathcal N_j(\theta_j)$. 0 at a KKT point.

    For networks that are sums $\Phi=\sum_j\Phi_j(x;w_j)$ of functions of degree L in
    w_j, as those with one hidden layer are. NaN for a neuron at zero, and the residual
    where g_j = 0. Neurons and the option `groups` are those of `neurons`, `z` and the
    cost those of `ncf`. (Kumar & Haupt 2024, Corollary 5.4.1, eq. (12).)
    """
    assert state.degree is not None
    found = _at(state, z)
    w, g = (
        neuron_rows(state.problem, tree, groups) for tree in (found.at, found.gradient)
    )
    dead = jnp.isinf(jax.vmap(_log_norm)(w)) | found.undefined
    theta = jax.vmap(unit)(w)
    # ∇𝒩 is of degree L - 1 in w_j, and ⟨w_j, ∇𝒩⟩ is L 𝒩_j.
    shrink = jnp.exp((1 - state.degree) * jnp.where(dead, 0, jax.vmap(_log_norm)(w)))
    value = shrink * jnp.sum(theta * g, axis=1) / state.degree
    return {
        "value": jnp.where(dead, jnp.nan, value),
        "residual": jax.vmap(_across)(g, theta, dead),
    }


def _across(g: Params, u: Params, undefined: Any) -> Scalar:
    # ‖ĝ - ⟨ĝ, u⟩u‖ with ĝ = g/‖g‖.
    towards = unit(g)
    along = inner(towards, u)
    rest = jax.tree.map(lambda a, b: a - along.astype(a.dtype) * b, towards, u)
    undefined = undefined | jnp.isinf(_log_norm(g))
    return jnp.where(undefined, jnp.nan, jnp.exp(_log_norm(rest)))
