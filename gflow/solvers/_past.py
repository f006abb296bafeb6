"""Polynomials through the last points of a solve, spaced as the steps came."""

from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Float

from .._flat import Form
from .._flow import FlowState
from .._types import IntScalar, Scalar


# BDF formulas of higher order are unstable, or nearly so.
MOST = 5
# Points before the step: an estimate of order MOST needs MOST + 1, and the new one.
NUM_PAST = MOST + 1


def at(nodes: Float[Array, " nodes"], used: Array, x: Scalar) -> Float[Array, " nodes"]:
    """Weights w with p(x) = Σ w_j y_j for the polynomial p through the nodes used."""
    above, below = x - nodes[None, :], nodes[:, None] - nodes[None, :]
    others = used[None, :] & ~jnp.eye(len(nodes), dtype=bool)
    ratio = jnp.where(others, above, 1) / jnp.where(others, below, 1)
    return jnp.where(used, jnp.prod(ratio, axis=1), 0)


def slope_at_first(
    nodes: Float[Array, " nodes"], used: Array
) -> Float[Array, " nodes"]:
    """Weights a with p'(x_0) = Σ a_j y_j, for the first of the nodes used."""
    gaps = nodes[0] - nodes
    rest = used.at[0].set(False)
    first = jnp.sum(jnp.where(rest, 1 / jnp.where(rest, gaps, 1), 0))
    # That of node j is its weight at x_0 among the rest, over x_j - x_0.
    weights = at(nodes, rest, nodes[0])
    others = jnp.where(rest, -weights / jnp.where(rest, gaps, 1), 0)
    return others.at[0].set(first)


def difference(nodes: Float[Array, " nodes"], used: Array) -> Float[Array, " nodes"]:
    """Weights of the divided difference over the nodes used."""
    gaps = nodes[:, None] - nodes[None, :]
    others = used[None, :] & ~jnp.eye(len(nodes), dtype=bool)
    return jnp.where(used, 1 / jnp.prod(jnp.where(others, gaps, 1), axis=1), 0)


def error_weights(
    nodes: Float[Array, " nodes"], order: IntScalar
) -> Float[Array, "3 nodes"]:
    r"""Weights of the estimated errors of formulas of orders k - 1, k and k + 1.

    That of order k is $\gamma \prod_{j=1}^{k}(x_0 - x_j)\, y[x_0, \dots, x_{k+1}]$, the
    new point first: what the formula's derivative misses of the polynomial of degree
    k + 1, times γ. Zero where there is no such order.
    """
    number = len(nodes)

    def one(k: IntScalar) -> Array:
        among = first(k + 1, number)
        gamma = 1 / slope_at_first(nodes, among)[0]
        reach = jnp.where(among.at[0].set(False), nodes[0] - nodes, 1)
        weights = difference(nodes, first(k + 2, number))
        weights = gamma * jnp.prod(reach) * weights
        return jnp.where((k >= 1) & (k <= MOST), weights, 0)

    return jax.vmap(one)(order + jnp.arange(-1, 2))


def integral(
    nodes: Float[Array, " nodes"], used: Array, end: Scalar
) -> Float[Array, " nodes"]:
    """Weights w with ∫_0^end p = Σ w_j y_j, p through the nodes used."""
    x, weights = np.polynomial.legendre.leggauss(1 + MOST // 2 + 1)
    points = end * jnp.asarray((x + 1) / 2, nodes.dtype)
    values = jax.vmap(lambda point: at(nodes, used, point))(points)
    return end * jnp.asarray(weights / 2, nodes.dtype) @ values


def straightened(
    gaps: Float[Array, " past"], points: Float[Array, "past N"], h: Scalar, new: Array
) -> Float[Array, "past N"]:
    """The points after the first step, that before the start moved from the tangent to
    the parabola through the other two.
    """
    back = -gaps[1]
    slope = (points[0] - points[1]) / back
    bend = (new - points[0] - h * slope) / h**2
    return points.at[1].add(back**2 * bend)


def first(number: Scalar | IntScalar | int, length: int) -> Array:
    """A mask of the first so many of `length` entries."""
    number = jnp.asarray(number)
    return jnp.arange(length, dtype=number.dtype) < number


def combined(weights: Array, rows: Array) -> Array:
    """Σ_j w_j y_j, where rows without weight may hold anything."""
    return jnp.matmul(weights, rows, precision=jax.lax.Precision.HIGHEST)


def combined_with(weights: Array, new: Array, rows: Array) -> Array:
    """The same with a new point before the others (which copies nothing)."""
    return weights[:, :1] * new[None] + combined(weights[:, 1:], rows)


class Interpolation(dfx.AbstractLocalInterpolation):
    """The polynomial through the last `order` + 1 points, the step's end first."""

    t0: Scalar
    t1: Scalar
    gaps: Float[Array, " nodes"]  # x_j - t1
    new: Float[Array, " N"]
    points: Float[Array, "past N"]
    order: Scalar  # a whole number
    form: Form  # of what the points are
    # What only travels with a flow's state, constant over the step, if they are of one.
    travelling: Any

    def evaluate(self, t0, t1=None, left=True):
        del left
        if t1 is not None:
            there, here = self.evaluate(t1), self.evaluate(t0)
            return jtu.tree_map(lambda a, b: a - b, there, here)
        used = first(self.order + 1, len(self.gaps))
        # From the step's start, where t0 - t1 would have lost the digits of an early
        # time: a flow from zero is in proportion to them.
        nodes = self.gaps + jnp.asarray(self.t1 - self.t0, self.gaps.dtype)
        weights = at(nodes, used, jnp.asarray(t0 - self.t0, self.gaps.dtype))

        # Leaf by leaf, so that who asks for one of them does not pay for the others.
        def value(new: Array, points: Array) -> Array:
            along = weights.astype(new.dtype)
            return along[0] * new + jnp.tensordot(along[1:], points, 1)

        points = jax.vmap(self.form.unflatten)(self.points)
        state = jtu.tree_map(value, self.form.unflatten(self.new), points)
        if self.travelling is None:
            return state
        return with_travelling(state, self.travelling)


def with_travelling(state: FlowState, parts: Any) -> FlowState:
    """With these parts, which are not integrated."""
    return eqx.tree_at(travelling, state, parts, is_leaf=lambda x: x is None)


def travelling(state: FlowState) -> Any:
    """What `with_travelling` gives it."""
    return state.work, state.pins, state.cut, state.switching
