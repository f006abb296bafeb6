"""The Clarke subdifferential along the flow, and its radial and spherical parts."""

from typing import Any

import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array

from .._frozen import has_kinks
from .._least_norm import LeastNorm, frozen_if_possible, least_norm
from .._norms import inner, unit
from .._norms import log_norm as _log_norm
from .._types import Params, Scalar
from ..losses import AbstractTailedLoss
from ._observer import observer
from ._state import State


@observer()
def clarke(state: State) -> dict[str, Array]:
    r"""The element of least norm $\bar\partial\mathcal L$ and the kinks, a dict:

    - `log_norm`: $\log\|\bar\partial\mathcal L\|$, a scalar.
    - `num_at_zero`: the number of kinks at zero.
    - `kinks` (K,): their numbers, then -1. Number k of example i is i M + k, M kinks
        per example; K is their number, 64 at most.
    - `multipliers` (K,): the slope taken at each, from its lower branch, 0, to its
        upper one, 1.
    - `exact`: whether the box of slopes that was minimised over is ∂ℒ. Along the flow
        its point of least norm is $\bar\partial\mathcal L$ in any case, for almost
        every t.

    K = 0 for a smooth model. Where kinks cannot be held fixed `log_norm` is NaN. What
    [`gflow.clarke.min_norm_subgradient`][] adds, the hull, is left out here.
    (Ji & Telgarsky 2020, Lemma B.9; Bolte & Pauwels 2021 on the box.)
    """
    found = _at_kinks(state)
    if found is not None:
        index, total = found.index, found.below.size
        return {
            "log_norm": found.gradient.log_slope + _log_norm(found.gradient.direction),
            "num_at_zero": found.num_at_zero,
            "kinks": jnp.where(index < total, index, -1),
            "multipliers": found.multipliers,
            "exact": found.exact,
        }
    known = not has_kinks(state.problem, state.params)
    log_norm = state.log_slope + _log_norm(state.direction)
    return {
        "log_norm": log_norm if known else jnp.full_like(log_norm, jnp.nan),
        "num_at_zero": jnp.asarray(0),
        "kinks": jnp.zeros(0, int),
        "multipliers": jnp.zeros(0, log_norm.dtype),
        "exact": jnp.asarray(known),
    }


def _at_kinks(state: State) -> LeastNorm | None:
    if state.at_kinks is not None:
        return state.at_kinks
    # A solve that leaves kinks to automatic differentiation.
    frozen = frozen_if_possible(state.problem, state.params)
    return None if frozen is None else least_norm(frozen, state.params)


@observer(needs_degree=True)
def radial_spherical(state: State) -> dict[str, Array]:
    r"""Radial and spherical parts of $\bar\partial\mathcal L$ and of
    $\bar\partial\tilde\alpha$, a dict of scalars:

    - `log_radial_loss`, `log_spherical_loss`: $\log\|\bar\partial_r\mathcal L\|$ and
        $\log\|\bar\partial_\perp\mathcal L\|$, with
        $\bar\partial_r f=\langle\bar\partial f,\tilde W\rangle\tilde W$, $\tilde W=
        W/\|W\|$, and $\bar\partial_\perp f=\bar\partial f-\bar\partial_r f$.
    - `log_ratio_loss`: $\log(\|\bar\partial_\perp\mathcal L\|/
        \|\bar\partial_r\mathcal L\|)$.
    - `log_radial_margin`, `log_spherical_margin`, `log_ratio_margin`: the same of the
        smoothed margin $\tilde\alpha=\alpha/\|W\|^L$.

    $d\tilde\alpha/dt=\|\bar\partial_r\tilde\alpha\|\|\bar\partial_r\mathcal L\|+
    \|\bar\partial_\perp\tilde\alpha\|\|\bar\partial_\perp\mathcal L\|$ once the data
    are separated. NaN at W = 0, and those of α̃ for losses without an exponential tail.
    (Ji & Telgarsky 2020, Section 3.2 and Lemma 3.4.)
    """
    towards = unit(state.params)
    size = _log_norm(state.params)
    nan = jnp.full_like(size, jnp.nan)
    radial = inner(towards, state.direction)
    spherical = _log_norm(_without(state.direction, radial, towards))
    log_slope = jnp.where(jnp.isinf(size), nan, state.log_slope)
    found = _named("loss", log_slope + _log_abs(radial), log_slope + spherical)
    loss, degree = state.problem.loss, state.degree
    if not isinstance(loss, AbstractTailedLoss) or degree is None:
        return found | _named("margin", nan, nan)
    # ∂̄α̃ = ∂̄α/‖W‖^L - L α W/‖W‖^{L+2}, and ∂̄α is `direction`: all elements of ∂α have
    # the same radial part, by Euler's theorem.
    alpha = loss.alpha(state.log_loss, state.problem.num_examples)
    excess = radial - degree * alpha * jnp.exp(-size)
    shrink = jnp.where(jnp.isinf(size), nan, -degree * size)
    return found | _named("margin", shrink + _log_abs(excess), shrink + spherical)


def _named(what: str, radial: Scalar, spherical: Scalar) -> dict[str, Any]:
    return {
        f"log_radial_{what}": radial,
        f"log_spherical_{what}": spherical,
        f"log_ratio_{what}": spherical - radial,
    }


def _without(direction: Params, radial: Scalar, towards: Params) -> Params:
    return jtu.tree_map(lambda d, u: d - radial.astype(d.dtype) * u, direction, towards)


def _log_abs(x: Scalar) -> Scalar:
    return jnp.where(x == 0, -jnp.inf, jnp.log(jnp.abs(jnp.where(x == 0, 1, x))))
