"""One step of a Runge-Kutta-Chebyshev method with as many stages as it needs."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np

from .._problem import dtype_of
from .._types import BoolScalar, IntScalar, Scalar
from ._chebyshev import Table


def advance(
    table: Table, field: Any, t0: Any, t1: Any, y: Any, f0: Any, radius: Scalar
) -> tuple[Any, Any, IntScalar]:
    """y₁ - y₀, f(t₁, y₁) and s; (0, f₀, 0) if no degree is stable."""
    h = t1 - t0
    dtype = dtype_of(y)
    time = jnp.result_type(t0)
    lengths = jnp.asarray(table.lengths, dtype)
    need = h.astype(dtype) * radius
    number = jnp.searchsorted(lengths, need)
    degrees, starts = jnp.asarray(table.degrees), jnp.asarray(table.starts)
    number = jnp.minimum(number, len(table.lengths) - 1)
    # (Not a number: no degree either.)
    degree = jnp.where(need <= lengths[-1], degrees[number], 0)
    start = starts[number]
    # The last row is read once too often.
    padded = jnp.asarray(np.pad(table.rows, ((0, 1), (0, 0))), dtype)

    def row(j: IntScalar) -> tuple[Scalar, ...]:
        # To form stage j.
        return tuple(jax.lax.dynamic_index_in_dim(padded, start + j - 1, 0, False))

    step = h.astype(dtype)
    _, _, mu_tilde, _, _, *beta = row(jnp.asarray(1))
    change = combined((mu_tilde * step, f0))
    total = combined((beta[0], f0)) if beta else None

    def body(carry):
        # x is stage j or, in the last round, y₁.
        j, x, change, total, _ = carry
        ends, last = j + 1 == degree, j == degree
        at_start, at_change, mu_tilde, gamma_tilde, c, *beta = row(j + 1)
        slope = field(jnp.where(last, t1, t0 + c.astype(time) * h), x)
        # Increments, not stages, are what the recurrence is for: nothing is shifted
        # from one buffer to another, and rounding does not grow with j.
        change = combined(
            (at_start, jtu.tree_map(jnp.subtract, x, y)),
            (at_change, change),
            (mu_tilde * step, slope),
            (gamma_tilde * step, f0),
        )
        ahead = combined((1, x), (1, change))
        if beta:
            total = combined((1, total), (jnp.where(last, 0, beta[0]), slope))
            result = combined((1, y), (step, total))
            ahead = _where(ends, result, ahead)
        return j + 1, _where(last, x, ahead), change, total, slope

    carry = (jnp.ones_like(degree), combined((1, y), (1, change)), change, total, f0)
    end = jax.lax.while_loop(lambda c: c[0] <= degree, body, carry)
    _, y1, _, total, f1 = end
    moved = combined((step, total)) if beta else jtu.tree_map(jnp.subtract, y1, y)
    moved = jtu.tree_map(lambda a: jnp.where(degree == 0, jnp.zeros_like(a), a), moved)
    return moved, f1, degree


def _where(condition: BoolScalar, a: Any, b: Any) -> Any:
    return jtu.tree_map(lambda x, y: jnp.where(condition, x, y), a, b)


def combined(*terms: tuple[Any, Any]) -> Any:
    """Σ a_i x_i of PyTrees x_i."""
    scalars, trees = zip(*terms, strict=True)

    def one(*leaves: Any) -> Any:
        parts = [
            leaf if isinstance(a, int) else jnp.asarray(a, leaf.dtype) * leaf
            for a, leaf in zip(scalars, leaves, strict=True)
        ]
        return sum(parts[1:], parts[0])

    return jtu.tree_map(one, *trees)
