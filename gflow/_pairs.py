r"""The margins as functions of the parameters: values, gradients, curvature.

Every loss with an exponential tail is a function of pairs p_ij(W), linear in the
outputs: y_i f(x_i) with two classes, f_y - f_j for every wrong class j with more. They
are numbered m = 0 .. M-1 in here, M = n (k - 1), example after example.
"""

from collections.abc import Callable
from typing import cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ._problem import AbstractProblem, dtype_of
from ._types import Params
from .losses import AbstractTailedLoss
from .nn import Batched


def tailed(problem: AbstractProblem) -> AbstractTailedLoss:
    """The loss, for the type checker: callers have checked that it has a tail."""
    return cast(AbstractTailedLoss, problem.loss)


def pair_margins(problem: AbstractProblem, params: Params) -> Float[Array, " pairs"]:
    """Every p_m(W)."""
    return tailed(problem).pairs(problem.outputs(params), problem.y).reshape(-1)


def log_pair_slopes(
    problem: AbstractProblem, pairs: Float[Array, " pairs"]
) -> Float[Array, " pairs"]:
    r"""$\log(-\partial\mathcal L/\partial p_m)$, with the loss's reduction."""
    loss, n = tailed(problem), problem.num_examples
    slopes = loss.log_pair_slopes(pairs.reshape(n, -1)).reshape(-1)
    return slopes + loss.log_reduction(n)


def some_pairs(
    problem: AbstractProblem, params: Params, index: Int[Array, " some"]
) -> Float[Array, " some"]:
    """p_m(W) for the given m only: forward passes through their examples."""
    if isinstance(problem.static, Batched):
        return pair_margins(problem, params)[index]
    wrong = _wrong(problem, params)
    example = index // wrong
    outputs = jax.vmap(lambda i: problem.output_of(params, i))(example)
    pairs = tailed(problem).pairs(outputs, problem.y[example])
    return jnp.take_along_axis(pairs, (index % wrong)[:, None], axis=1)[:, 0]


def rows(
    problem: AbstractProblem, params: Params, index: Int[Array, " some"]
) -> Params:
    """∇p_m(W) for the given m, stacked along a leading axis."""
    if isinstance(problem.static, Batched):
        _, pull_back = jax.vjp(lambda w: pair_margins(problem, w), params)
        number = num_pairs(problem, params)
        one_hot = jax.nn.one_hot(index, number, dtype=dtype_of(params))
        return jax.vmap(lambda c: pull_back(c)[0])(one_hot)
    wrong = _wrong(problem, params)

    def pair(w, i, j):
        outputs = problem.output_of(w, i)[None]
        return tailed(problem).pairs(outputs, problem.y[i][None])[0, j]

    return jax.vmap(jax.grad(pair), in_axes=(None, 0, 0))(
        params, index // wrong, index % wrong
    )


def curvature(
    problem: AbstractProblem,
    params: Params,
    weights: Float[Array, " some"],
    index: Int[Array, " some"],
) -> Callable[[Params], Params]:
    r"""The product v ↦ $\sum_m \lambda_m\nabla^2 p_m(W)\,v$ with given weights λ.

    The sum is over the m in `index`. Linearised once, so that further products cost
    about two gradients each.
    """

    def total(w):
        return jnp.sum(weights * some_pairs(problem, w, index))

    _, product = jax.linearize(jax.grad(total), params)
    return product


def num_pairs(problem: AbstractProblem, params: Params) -> int:
    """M, the number of pairs."""
    return jax.eval_shape(lambda w: pair_margins(problem, w), params).shape[0]


def _wrong(problem: AbstractProblem, params: Params) -> int:
    return num_pairs(problem, params) // problem.num_examples
