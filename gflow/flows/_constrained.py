"""Descent on spheres ‖V_k‖ = 1, with norms ρ_k that are free, fixed or prescribed."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import jax.tree_util as jtu

from .._norms import log_norm
from .._problem import Problem, dtype_of
from .._types import Params, Scalar
from ..fields import Velocity
from ._abstract import Motion
from ._norm_spheres import AbstractSphere
from ._spheres import (
    OnSpheres,
    as_tree,
    on_spheres,
    prescribed,
    scaled,
    vectors,
)


Rho = str | Callable[[Scalar], Any]


def begin(on: AbstractSphere, rho: Rho, per_layer: bool, params: Params) -> OnSpheres:
    """The state of a model."""
    sizes, rows = on_spheres(params, per_layer, on.norm)
    lifted = as_tree([on.lifted(v) for v in rows], params)
    return OnSpheres(None if callable(rho) else sizes, lifted)


def weights_of(
    on: AbstractSphere, rho: Rho, per_layer: bool, state: OnSpheres, t: Scalar
) -> Params:
    """W = ρ V."""
    rows = [on.point(u) for u in vectors(state.v, per_layer)]
    sizes = state.rho
    if callable(rho):
        sizes, _ = prescribed(rho, t, len(rows), dtype_of(state.v))
    assert sizes is not None
    return as_tree(scaled(sizes, rows), state.v)


def motion_of(
    on: AbstractSphere,
    rho: Rho,
    per_layer: bool,
    problem: Problem,
    state: OnSpheres,
    t: Scalar,
) -> Motion:
    """V̇ = S g with g = -∂ℒ/∂V, and ρ̇ = -∂ℒ/∂ρ if it is free."""
    weights = weights_of(on, rho, per_layer, state, t)
    at = problem.gradient(weights)
    lifted = vectors(state.v, per_layer)
    rows = [on.point(u) for u in lifted]
    dtype = dtype_of(state.v)
    growth = None
    if callable(rho):
        sizes, growth = prescribed(rho, t, len(rows), dtype)
    else:
        assert state.rho is not None
        sizes = state.rho
    descent = scaled(sizes, vectors(at.direction, per_layer))
    pairs = [on.tangent(u, g) for u, g in zip(lifted, descent, strict=True)]
    turning = as_tree([pair[0] for pair in pairs], state.v)
    turned = as_tree(scaled(sizes, [pair[1] for pair in pairs]), state.v)
    if callable(rho):
        assert growth is not None
        state_growth = None
        # Two terms of different scales: ρ̇ does not fade with the gradient.
        grown = as_tree(scaled(growth, rows), state.v)
        log_turn = at.log_slope + log_norm(turned)
        largest = jnp.maximum(log_turn, log_norm(grown))
        shift = jnp.where(jnp.isneginf(largest), 0, largest)
        a, b = jnp.exp(at.log_slope - shift), jnp.exp(-shift)
        moved = jtu.tree_map(lambda x, y: a * x + b * y, turned, grown)
        velocity = Velocity(shift, moved, at.log_loss, at.loss)
    else:
        radial = [
            jnp.sum(v * d)
            for v, d in zip(rows, vectors(at.direction, per_layer), strict=True)
        ]
        state_growth = jnp.stack([r.astype(dtype) for r in radial])
        if rho == "fixed":
            state_growth = jnp.zeros_like(state_growth)
        grown = as_tree(scaled(state_growth, rows), state.v)
        moved = jtu.tree_map(jnp.add, turned, grown)
        velocity = Velocity(at.log_slope, moved, at.log_loss, at.loss)
    return Motion(
        log_speed=at.log_slope,
        direction=OnSpheres(state_growth, turning),
        weights=weights,
        velocity=velocity,
        log_slope=at.log_slope,
        descent=at.direction,
    )


def check_choice(rho: Any, choices: tuple[str, ...]) -> None:
    """ValueError unless it is one of the choices, or a function."""
    if callable(rho) or rho in choices:
        return
    known = " or ".join(repr(one) for one in choices)
    raise ValueError(f"rho={rho!r} is not known; use {known}, or a function of t.")
