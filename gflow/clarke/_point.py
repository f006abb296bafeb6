"""What the functions of a point have in common: the problem, its kinks, numbers."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Int

from .._check import checked_problem
from .._frozen import Frozen, frozen
from .._problem import Problem, dtype_of
from .._times import is_concrete
from .._types import Params, Scalar


class Point(eqx.Module):
    """W, with what defines ℒ; `frozen` is None for a smooth model."""

    problem: Problem
    params: Params
    frozen: Frozen | None
    tolerance: Scalar | None


def point(model: Any, data: Any, loss: Any, tol: Any, filter_spec: Any) -> Point:
    """The checked point, or a ValueError that says what is wrong."""
    problem, params = checked_problem(model, data, loss, filter_spec)
    return Point(problem, params, frozen(problem, params), _tolerance(tol, params))


def _tolerance(tol: Any, params: Params) -> Scalar | None:
    if tol is None:
        return None
    if jnp.ndim(tol) != 0:
        raise ValueError(
            f"tol has shape {jnp.shape(tol)}; it is one number, the |z| that counts as "
            "zero relative to the size of z."
        )
    if is_concrete(tol) and not 0 <= float(tol) < 1:
        raise ValueError(
            f"tol={tol} is not in [0, 1); it is the |z| that counts as zero relative "
            "to the size of z, and None chooses it."
        )
    return jnp.asarray(tol, dtype_of(params))


def scaled(tree: Params, log_scale: Scalar) -> Params:
    """e^log_scale times a PyTree, as numbers."""
    factor = jnp.exp(log_scale)
    return jtu.tree_map(lambda leaf: factor.astype(leaf.dtype) * leaf, tree)


def numbers(index: Int[Array, " K"], total: int) -> Int[Array, " K"]:
    """Kinks' numbers, with -1 where there is none."""
    return jnp.where(index < total, index, -1)
