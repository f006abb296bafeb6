r"""The point of least norm of the convex hull of finitely many points.

$$\min_{\mu \ge 0,\ \sum_i\mu_i = 1} \tfrac12\|V^\top\mu\|^2$$

by the method of Wolfe (1976), "Finding the nearest point in a polytope", Mathematical
Programming 11, 128-149: vertices enter a corral, an affinely independent set, one at a
time, and leave it where their weight would turn negative.

What differs from the paper:

1. Everything but the result is done on the Gram matrix of the edges $v_i - v_0$ from
   the shortest vertex. The vertices' own Gram matrix would lose the digits in which
   they differ.
2. The step towards the affine minimiser keeps the slopes of the corral equal, with the
   same linear algebra as for a box: each edge is divided by its length.
3. A vertex that depends on the corral affinely replaces one of it, at no change of the
   point.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ._box import SIGN, curvature, factorise, few_moves, most_moves, product, solve
from ._types import BoolScalar, IntScalar, Scalar


class Hull(eqx.Module):
    """The point of least norm of a convex hull, and how it was found."""

    point: Float[Array, " parameters"]
    # μ, at most as many non-zero as an affinely independent set has points.
    weights: Float[Array, " vertices"]
    # ‖p‖² - min_i ⟨p, v_i⟩, at least the squared distance from the true point.
    gap: Scalar
    converged: BoolScalar


class _State(eqx.Module):
    weights: Float[Array, " vertices"]
    corral: Bool[Array, " vertices"]
    # The vertex that has some weight and has not joined the corral; -1: none.
    entering: IntScalar
    # Vertices that entered although dependent: once, until something is gained.
    spent: Bool[Array, " vertices"]
    optimal: BoolScalar
    failed: BoolScalar
    num_iterations: IntScalar


class _Problem(eqx.Module):
    """min ½μᵀQμ + cᵀμ over the weights of the vertices: Q = EEᵀ, c = Ev₀."""

    q: Float[Array, "vertices vertices"]
    c: Float[Array, " vertices"]
    mask: Bool[Array, " vertices"]
    # How many vertices can be affinely independent.
    most: int = eqx.field(static=True)

    def slope(self, weights: Float[Array, " vertices"]) -> Float[Array, " vertices"]:
        return product(self.q, weights) + self.c

    def start(self, first: IntScalar) -> _State:
        number = self.c.shape[0]
        alone = jnp.arange(number) == first
        return _State(
            weights=alone.astype(self.c.dtype),
            corral=alone,
            entering=jnp.array(-1),
            spent=jnp.zeros(number, bool),
            optimal=jnp.array(False),
            failed=~jnp.any(self.mask),
            num_iterations=jnp.array(0),
        )

    def move(self, state: _State) -> _State:
        number = self.c.shape[0]
        eps = jnp.finfo(self.c.dtype).eps
        each = jnp.arange(number)
        corral, idle = state.corral, state.entering < 0

        # The corral's edges from its heaviest vertex, of unit length.
        (index,) = jnp.nonzero(corral, size=self.most, fill_value=0)
        used = jnp.arange(self.most) < jnp.sum(corral)
        base = jnp.argmax(jnp.where(corral, state.weights, -1))
        rest = used & (index != base)
        block = self._edges(base, index[:, None], index[None, :])
        length = jnp.sqrt(jnp.maximum(jnp.diagonal(block), 0))
        rest = rest & (length > 0)
        length = jnp.where(rest, length, 1)
        both = rest[:, None] & rest[None, :]
        block = jnp.where(both, block / length[:, None] / length[None, :], 0)
        factor = factorise(block, rest)

        def balanced(right: Array) -> Array:
            # The change of the weights that changes the edges' slopes by `right`.
            part = solve(factor, rest, right / length) / length
            change = jnp.zeros_like(self.c).at[index].add(part)
            return change.at[base].add(-jnp.sum(part))

        # At rest: equal slopes on the corral, to rounding.
        g = self.slope(state.weights)
        correction = jnp.where(idle, balanced(g[base] - g[index]), 0)
        weights = jnp.maximum(state.weights + correction, 0)
        weights = weights / jnp.sum(weights)
        slipped = idle & corral & (weights <= 0)

        g = self.slope(weights)
        terms = jnp.abs(self.c) + product(jnp.abs(self.q), weights)
        level = jnp.sum(weights * g)
        error = SIGN * eps * (terms + jnp.sum(weights * terms))
        wrong = jnp.where(self.mask & ~corral & ~state.spent, level - g, 0)
        wrong = jnp.where(wrong > error, wrong, 0)
        j = jnp.where(idle, jnp.argmax(wrong), state.entering)
        wait = jnp.any(slipped)
        optimal = idle & ~wait & ~jnp.any(wrong > 0)

        # Vertex j by one, the corral such that its slopes stay equal.
        column = self._edges(base, index, j)
        d = jnp.where(each == j, 1, 0) - balanced(column)
        d = d.at[base].add(-1)
        far = jnp.sqrt(jnp.maximum(self._edges(base, j, j), 0))
        far = jnp.where(far > 0, far, 1)
        # Edge by edge, with the entering one last.
        edges = jnp.append(jnp.where(rest, d[index] * length / far, 0), 1)
        column = jnp.where(rest, column / length / far, 0)
        corner = self._edges(base, j, j) / far**2
        table = jnp.block([[block, column[:, None]], [column[None, :], corner]])
        bend, independent = curvature(table, edges)
        independent = independent & (jnp.sum(corral) < self.most)
        gain = jnp.maximum(g[base] - g[j], 0) / far**2
        full = jnp.where(independent, gain / jnp.where(independent, bend, 1), jnp.inf)
        room = jnp.where(d < 0, weights / jnp.where(d < 0, -d, 1), jnp.inf)
        step = jnp.minimum(full, jnp.min(room))
        moved = jnp.where(room <= step, 0, jnp.maximum(weights + step * d, 0))
        joins = (each == j) & (full <= jnp.min(room))

        still = wait | optimal
        gained = ~still & independent & jnp.any(joins)
        patient = state.num_iterations < few_moves(number)
        return _State(
            weights=jnp.where(still, weights, moved),
            corral=jnp.where(still, corral & ~slipped, (corral | joins) & (moved > 0)),
            entering=jnp.where(~still & (full > jnp.min(room)), j, -1),
            spent=(state.spent & ~(gained & patient))
            | ((each == j) & ~still & ~independent),
            optimal=optimal,
            failed=~jnp.isfinite(level) | ~jnp.isfinite(bend),
            num_iterations=state.num_iterations + 1,
        )

    def _edges(self, base: Array, i: Array, j: Array) -> Array:
        """⟨v_i - v_base, v_j - v_base⟩."""
        q = self.q
        return q[i, j] - q[i, base] - q[base, j] + q[base, base]


def hull_min_norm(
    vertices: Float[Array, "vertices parameters"],
    mask: Bool[Array, " vertices"],
    *,
    dimension: int | None = None,
) -> Hull:
    r"""$\arg\min\{\|p\| : p \in \operatorname{conv}\{v_i\}\}$.

    **Arguments:**

    - `vertices`: $v_i$, the rows.
    - `mask`: which of them count.
    - `dimension`: a bound on the dimension of the hull, where less than both the number
        of parameters and of vertices. It makes each step cheaper.

    **Returns:**

    `Hull`. The point is unique, its weights need not be. Without any vertex the point
    and the weights are zero, `gap` is infinite and `converged` False.
    """
    number, parameters = vertices.shape
    most = min(number, parameters + 1)
    most = most if dimension is None else min(most, dimension + 1)
    present = jnp.where(mask[:, None], vertices, 0)
    scale = jnp.max(jnp.abs(present), initial=0)
    scale = jnp.where(scale > 0, scale, 1)
    present = present / scale
    squares = jnp.where(mask, jnp.sum(present**2, axis=1), jnp.inf)
    first = jnp.argmin(squares)
    edges = jnp.where(mask[:, None], present - present[first][None, :], 0)
    problem = _Problem(
        q=product(edges, edges.T),
        c=product(edges, present[first]),
        mask=mask,
        most=most,
    )
    limit = most_moves(number)
    state = jax.lax.while_loop(
        lambda s: ~s.optimal & ~s.failed & (s.num_iterations < limit),
        lambda s: problem.move(s),
        problem.start(first),
    )
    some = jnp.any(mask)
    weights = jnp.where(some, state.weights, 0)
    g = problem.slope(weights)
    least = jnp.min(jnp.where(mask, g, jnp.inf))
    return Hull(
        point=scale * (product(edges.T, weights) + present[first]),
        weights=weights,
        gap=jnp.where(
            some, scale**2 * jnp.maximum(jnp.sum(weights * g) - least, 0), jnp.inf
        ),
        converged=state.optimal & ~state.failed,
    )
