"""Pair margins against Jacobians of the outputs, and against the loss itself."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import pytest

import gflow
from gflow._check import checked_problem
from gflow._pairs import (
    curvature,
    log_pair_slopes,
    pair_margins,
    rows,
    some_pairs,
)

from .helpers import tolerance


LOSSES = [
    gflow.losses.Exponential(),
    gflow.losses.Logistic(reduction="mean"),
    gflow.losses.CrossEntropy(),
    gflow.losses.MulticlassExponential(reduction="mean"),
]


class Vmapped(eqx.Module):
    model: gflow.nn.MLP

    def __call__(self, x):
        return jax.vmap(self.model)(x)


def _problem(loss, getkey, batched):
    several = not loss.casts_labels
    model = gflow.nn.MLP(
        3, 4, 3, 4 if several else "scalar", jnp.tanh, key=getkey(), dtype=float
    )
    if batched:
        model = gflow.nn.Batched(Vmapped(model))
    x = jr.normal(getkey(), (6, 3))
    y = jnp.array([0, 1, 2, 3, 0, 1]) if several else jnp.array([1.0, -1.0] * 3)
    return checked_problem(model, (x, y), loss)


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_pairs(loss, batched, getkey):
    problem, params = _problem(loss, getkey, batched)
    p = pair_margins(problem, params)
    outputs = np.asarray(problem.outputs(params))
    y = np.asarray(problem.y)
    if loss.casts_labels:
        expected = y * outputs
    else:
        expected = [
            outputs[i, y[i]] - outputs[i, j]
            for i in range(6)
            for j in range(4)
            if j != y[i]
        ]
    np.testing.assert_allclose(p, expected, **tolerance(p.dtype))

    # The slopes are those of the loss: Σ_m e^slope ∇p_m = -∇ℒ.
    index = jnp.arange(p.shape[0])
    slopes = jnp.exp(log_pair_slopes(problem, p))
    each = rows(problem, params, index)
    at = problem.gradient(params)
    for row, direction in zip(
        jtu.tree_leaves(each), jtu.tree_leaves(at.direction), strict=True
    ):
        np.testing.assert_allclose(
            jnp.tensordot(slopes, row, 1),
            jnp.exp(at.log_slope) * direction,
            **tolerance(p.dtype),
        )

    some = jnp.array([4, 0, 5])
    np.testing.assert_allclose(
        some_pairs(problem, params, some), p[some], **tolerance(p.dtype)
    )
    for row, all_rows in zip(
        jtu.tree_leaves(rows(problem, params, some)), jtu.tree_leaves(each), strict=True
    ):
        np.testing.assert_allclose(row, all_rows[some], **tolerance(p.dtype))


@pytest.mark.parametrize("loss", LOSSES[1:3], ids=lambda loss: type(loss).__name__)
def test_curvature(loss, getkey):
    problem, params = _problem(loss, getkey, False)
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    number = pair_margins(problem, params).shape[0]
    weights = jr.uniform(getkey(), (number,))
    hessian = jax.hessian(lambda w: weights @ pair_margins(problem, unravel(w)))(flat)
    v = jr.normal(getkey(), flat.shape)
    product = curvature(problem, params, weights, jnp.arange(number))(unravel(v))
    np.testing.assert_allclose(
        jax.flatten_util.ravel_pytree(product)[0], hessian @ v, **tolerance(v.dtype, 10)
    )
    some = jnp.array([3, 1])
    hessian = jax.hessian(
        lambda w: weights[some] @ pair_margins(problem, unravel(w))[some]
    )(flat)
    product = curvature(problem, params, weights[some], some)(unravel(v))
    np.testing.assert_allclose(
        jax.flatten_util.ravel_pytree(product)[0], hessian @ v, **tolerance(v.dtype, 10)
    )
