"""Margins, their gradients and their curvature on flat NumPy vectors.

The search for the limit decides on the host which pairs are active, so its linear
algebra is NumPy's; what touches the model is compiled. Everything is scaled so that
weights and margins are of order one: the margins are divided by a fixed `unit`.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array

from .._flat import flatten_rows, unflattener
from .._pairs import curvature, pair_margins, rows
from .._problem import AbstractProblem, dtype_of
from .._types import Params


# Products with the curvature are formed this many at a time.
_AT_ONCE = 128


@eqx.filter_jit
def _margins(problem, like, w):
    return pair_margins(problem, unflattener(like)(w))


@eqx.filter_jit
def _rows(problem, like, w, index):
    return flatten_rows(rows(problem, unflattener(like)(w), index))


@eqx.filter_jit
def _products(problem, like, w, weights, index, vectors):
    unflatten = unflattener(like)
    product = curvature(problem, unflatten(w), weights, index)
    return flatten_rows(jax.vmap(lambda v: product(unflatten(v)))(vectors))


class Flat:
    """The pair margins p_m(w)/unit as functions of a flat vector w."""

    def __init__(
        self, problem: AbstractProblem, like: Params, degree: float, unit: float
    ):
        self.problem = problem
        self.like = like
        self.degree = degree
        self.unit = unit
        self.dtype = dtype_of(like)
        self.eps = float(jnp.finfo(self.dtype).eps)
        self.size = sum(leaf.size for leaf in jtu.tree_leaves(like))
        # Numbers of constraints c(w) = 1 that are no margins: they follow the pairs'.
        self.pins = np.zeros(0, int)

    def cast(self, x: np.ndarray) -> Array:
        return jnp.asarray(x, self.dtype)

    def margins(self, w: np.ndarray) -> np.ndarray:
        """(M,) every margin, over the unit."""
        out = _margins(self.problem, self.like, self.cast(w))
        return np.asarray(out, np.float64) / self.unit

    def constraints(self, w: np.ndarray) -> np.ndarray:
        """Every function that is 1 if it is active: the margins, then the pins."""
        return self.margins(w)

    def rows(self, w: np.ndarray, index: np.ndarray) -> np.ndarray:
        """(m, P) gradients of the given margins, over the unit."""
        out = _rows(self.problem, self.like, self.cast(w), padded(index))
        return np.asarray(out, np.float64)[: len(index)] / self.unit

    def curvature(self, w: np.ndarray, weights: np.ndarray, index: np.ndarray):
        r"""The product (k, P) ↦ (k, P) with $\sum_m \lambda_m \nabla^2 p_m(w)$."""
        index = np.asarray(index)
        chosen = padded(index)
        scaled = np.zeros(chosen.shape[0])
        scaled[: len(index)] = weights / self.unit
        args = (self.problem, self.like, self.cast(w), self.cast(scaled), chosen)
        return self.in_parts(lambda vectors: _products(*args, vectors))

    def in_parts(self, products):
        """Of as many vectors as one likes, a few at a time."""

        def product(vectors: np.ndarray) -> np.ndarray:
            out = []
            for k in range(0, len(vectors), _AT_ONCE):
                part = vectors[k : k + _AT_ONCE]
                full = np.zeros((length(len(part)), vectors.shape[1]))
                full[: len(part)] = part
                some = np.asarray(products(self.cast(full)), np.float64)
                out.append(some[: len(part)])
            return np.concatenate(out)

        return product


def length(number: int) -> int:
    """1, 8, 32, 128, ...: few lengths, so that few are compiled."""
    least = 1 if number == 1 else 8
    while least < number:
        least *= 4
    return least


def padded(index: np.ndarray) -> Array:
    """To such a length by repeating the first."""
    index = np.asarray(index, np.int32)
    out = np.full(max(8, length(len(index))), index[0], np.int32)
    out[: len(index)] = index
    return jnp.asarray(out)
