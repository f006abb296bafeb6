r"""The point of least norm of a box's image: slopes between two values at each kink.

$$\min_{\lambda\in[0,1]^K} \tfrac12\|b + U^\top\lambda\|^2$$

from the Gram matrix $UU^\top$ and $Ub$ alone, so that the cost does not depend on the
number of parameters. A primal active-set method (Stark & Parker 1995, "Bounded-variable
least squares: an algorithm and applications", Computational Statistics 10, 129-141):
one variable at a time leaves its bound, along the direction on which the gradient with
respect to the free ones stays zero, until it is zero for this one too or a variable
meets a bound. First-order methods leave errors of 1e-2 here: the rows are often
dependent.

What differs from the paper:

1. The variables are $x_k = \lambda_k\|u_k\|$: rows of any size have equal standing.
2. A row that depends on those of the free variables never joins them. Its variable
   moves, at no change of the point, until something meets a bound.
3. A bound is optimal where its multiplier has the wrong sign by rounding only, with the
   rounding error bounded for each variable by its own terms.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ._types import BoolScalar, IntScalar, Scalar


# Of the square of the sine between a row and the span of others, per unit of rounding.
# Gram matrices hold nothing finer; four roundings are what they arrive with.
_DEPENDENT = 32
# A slope below this many roundings of its terms has no sign. The worst case is K, as in
# `gap`; but rounding errors do not add up like this, and with K a quarter of the digits
# of 32 almost parallel rows in float32 was lost.
SIGN = 4
# Random problems take K moves, 3K at most. After the patient ones a dependent variable
# moves once only: where the sine is about √eps, rounding decides who is dependent, and
# may undo its own steps for ever.
_PATIENT_MOVES = 4
_MOVES = 16

_EXACT = jax.lax.Precision.HIGHEST


class Box(eqx.Module):
    """The minimiser over a box, and how it was found."""

    # λ, exactly 0 or 1 except where free.
    multipliers: Float[Array, " kinks"]
    # Strictly between the bounds. Their rows are linearly independent.
    free: Bool[Array, " kinks"]
    converged: BoolScalar
    num_iterations: IntScalar


def product(a: Float[Array, "rows columns"], x: Float[Array, "..."]) -> Array:
    """Ax, of a vector or a matrix x, in full precision on every device."""
    return jnp.matmul(a, x, precision=_EXACT)


def factorise(
    gram: Float[Array, "rows rows"], members: Bool[Array, " rows"]
) -> Float[Array, "rows rows"]:
    """Cholesky factor of the members' block of a matrix with unit diagonal.

    The other rows are those of the identity. K roundings on the diagonal keep it
    positive definite; what they change is corrected where the factor is used.
    """
    number = gram.shape[0]
    both = members[:, None] & members[None, :]
    eps = jnp.finfo(gram.dtype).eps
    diagonal = jnp.where(members, number * eps, 1).astype(gram.dtype)
    return jnp.linalg.cholesky(
        jnp.where(both, gram, 0) + jnp.diag(diagonal), symmetrize_input=False
    )


def solve(
    factor: Float[Array, "rows rows"],
    members: Bool[Array, " rows"],
    right: Float[Array, " rows"],
) -> Float[Array, " rows"]:
    """The solution on the members, zero elsewhere."""
    x = jax.scipy.linalg.cho_solve((factor, True), jnp.where(members, right, 0))
    return jnp.where(members, x, 0)


def curvature(
    gram: Float[Array, "rows rows"], direction: Float[Array, " rows"]
) -> tuple[Scalar, BoolScalar]:
    """dᵀQd, and whether it is more than rounding."""
    eps = jnp.finfo(gram.dtype).eps
    value = jnp.sum(direction * product(gram, direction))
    return value, value > _DEPENDENT * eps * jnp.sum(jnp.abs(direction)) ** 2


def independent(
    gram: Float[Array, "rows rows"], members: Bool[Array, " rows"]
) -> Bool[Array, " rows"]:
    """The members whose rows do not depend on those of the members before them."""
    pivots = jnp.diagonal(factorise(gram, members)) ** 2
    # The sine to the others, against that of `curvature` with as many directions.
    number = gram.shape[0]
    few = 2 * _DEPENDENT * number * float(jnp.finfo(gram.dtype).eps)
    return members & (pivots > few)


def most_moves(variables: int) -> int:
    """The number of moves after which an active-set method gives up."""
    return _MOVES * (variables + 2)


def few_moves(variables: int) -> int:
    """The number of moves during which dependent variables may move again."""
    return _PATIENT_MOVES * (variables + 2)


def _sizes(
    gram: Float[Array, "kinks kinks"], alive: Bool[Array, " kinks"] | None
) -> tuple[Float[Array, " kinks"], Bool[Array, " kinks"]]:
    size = jnp.sqrt(jnp.maximum(jnp.diagonal(gram), 0))
    present = size > 0
    return size, present if alive is None else present & alive


class _State(eqx.Module):
    x: Float[Array, " kinks"]
    free: Bool[Array, " kinks"]
    # The variable that has left its bound and has not joined the free ones; -1: none.
    entering: IntScalar
    # Variables that moved although dependent: once, until something is gained.
    spent: Bool[Array, " kinks"]
    optimal: BoolScalar
    failed: BoolScalar
    num_iterations: IntScalar


class _Problem(eqx.Module):
    """min ½xᵀQx + cᵀx over 0 ≤ x ≤ upper, Q of unit diagonal."""

    q: Float[Array, "kinks kinks"]
    c: Float[Array, " kinks"]
    upper: Float[Array, " kinks"]

    def slope(self, x: Float[Array, " kinks"]) -> Float[Array, " kinks"]:
        return product(self.q, x) + self.c

    def start(self, near: Float[Array, " kinks"] | None) -> _State:
        number = self.c.shape[0]
        nothing = jnp.zeros(number, bool)
        if near is None:
            # At the bounds that the slope at the centre prefers.
            low = self.slope(self.upper / 2) > 0
            x, free = jnp.where(low, 0, self.upper), nothing
        else:
            x = jnp.clip(near, 0, self.upper)
            free = independent(self.q, (x > 0) & (x < self.upper))
        return _State(
            x=x,
            free=free,
            entering=jnp.array(-1),
            spent=nothing,
            optimal=jnp.array(False),
            failed=jnp.array(False),
            num_iterations=jnp.array(0),
        )

    def move(self, state: _State) -> _State:
        number = self.c.shape[0]
        eps = jnp.finfo(self.c.dtype).eps
        each = jnp.arange(number)
        free, idle = state.free, state.entering < 0
        factor = factorise(self.q, free)

        # At rest: the minimum over the free variables, to rounding. Who slips out of
        # the box by this is not free.
        correction = solve(factor, free, -self.slope(state.x))
        x = jnp.clip(state.x + jnp.where(idle, correction, 0), 0, self.upper)
        slipped = idle & free & ((x <= 0) | (x >= self.upper))

        g = self.slope(x)
        terms = jnp.abs(self.c) + product(jnp.abs(self.q), x)
        wrong = jnp.where(x <= 0, -g, jnp.where(x >= self.upper, g, 0))
        wrong = jnp.where(free | state.spent | (self.upper <= 0), 0, wrong)
        wrong = jnp.where(wrong > SIGN * eps * terms, wrong, 0)
        j = jnp.where(idle, jnp.argmax(wrong), state.entering)
        wait = jnp.any(slipped)
        optimal = idle & ~wait & ~jnp.any(wrong > 0)

        # Variable j by one, the free ones such that their slope stays zero.
        d = jnp.where(each == j, 1, -solve(factor, free, self.q[:, j]))
        bend, independent = curvature(self.q, d)
        d = jnp.where(g[j] > 0, -d, d)
        full = jnp.where(
            independent, jnp.abs(g[j]) / jnp.where(independent, bend, 1), jnp.inf
        )
        way = jnp.where(d < 0, x, self.upper - x)
        room = jnp.where(d == 0, jnp.inf, way / jnp.abs(jnp.where(d == 0, 1, d)))
        step = jnp.minimum(full, jnp.min(room))
        moved = jnp.clip(x + step * d, 0, self.upper)
        moved = jnp.where(room <= step, jnp.where(d < 0, 0, self.upper), moved)
        at_bound = (moved <= 0) | (moved >= self.upper)
        # A full step joins the free variables.
        joins = (each == j) & (full <= jnp.min(room))
        goes_on = (full > jnp.min(room)) & ~at_bound[j]

        still = wait | optimal
        gained = ~still & independent & jnp.any(joins)
        patient = state.num_iterations < few_moves(number)
        return _State(
            x=jnp.where(still, x, moved),
            free=jnp.where(still, free & ~slipped, (free | joins) & ~at_bound),
            entering=jnp.where(~still & goes_on, j, -1),
            spent=(state.spent & ~(gained & patient))
            | ((each == j) & ~still & ~independent),
            optimal=optimal,
            failed=~jnp.all(jnp.isfinite(x)) | ~jnp.isfinite(bend),
            num_iterations=state.num_iterations + 1,
        )


def box_min_norm(
    gram: Float[Array, "kinks kinks"],
    linear: Float[Array, " kinks"],
    alive: Bool[Array, " kinks"] | None = None,
    near: Float[Array, " kinks"] | None = None,
) -> Box:
    r"""$\arg\min_{\lambda\in[0,1]^K} \tfrac12\|b + U^\top\lambda\|^2$.

    **Arguments:**

    - `gram`: $UU^\top$.
    - `linear`: $Ub$.
    - `alive`: which rows count; all by default.
    - `near`: multipliers to start from, if some are known.

    **Returns:**

    `Box`. Rows that do not count, and zero rows, have the multiplier 0 and are not
    free. The point b + Uᵀλ is unique; λ is not where rows depend on each other, and is
    then one with few free variables. Where `converged` is False, a variable may be
    strictly inside and not free.
    """
    size, present = _sizes(gram, alive)
    if gram.shape[0] == 0:
        return Box(linear, present, jnp.array(True), jnp.array(0))
    safe = jnp.where(present, size, 1)
    both = present[:, None] & present[None, :]
    problem = _Problem(
        q=jnp.where(both, gram / safe[:, None] / safe[None, :], 0),
        c=jnp.where(present, linear / safe, 0),
        upper=jnp.where(present, size, 0),
    )
    limit = most_moves(gram.shape[0])
    state = jax.lax.while_loop(
        lambda s: ~s.optimal & ~s.failed & (s.num_iterations < limit),
        lambda s: problem.move(s),
        problem.start(None if near is None else near * problem.upper),
    )
    inside = jnp.clip(state.x / safe, 0, 1)
    full = present & (state.x >= problem.upper)
    multipliers = jnp.where(full, 1, jnp.where(present, inside, 0))
    return Box(
        multipliers=multipliers,
        free=state.free & (multipliers > 0) & (multipliers < 1),
        converged=state.optimal & ~state.failed,
        num_iterations=state.num_iterations,
    )


def gap(
    gram: Float[Array, "kinks kinks"],
    linear: Float[Array, " kinks"],
    square: Scalar,
    multipliers: Float[Array, " kinks"],
    alive: Bool[Array, " kinks"] | None = None,
) -> Scalar:
    r"""$\|p\|^2 - \min_{v\in C}\langle p, v\rangle \ge \|p - p^*\|^2$.

    Here p = b + Uᵀλ, C is the image of the box and p* its point of least norm, so this
    bounds the error of any λ, however it was found. It is the sum over k of
    $\max(\lambda_k g_k, (\lambda_k - 1)g_k)$, $g_k = \langle u_k, p\rangle$, with the
    rounding errors of g counted against it: zero only where every sign is certain.

    **Arguments:**

    - `gram`, `linear`, `alive`: as for `box_min_norm`.
    - `square`: ‖b‖², for the rounding error of `linear`.
    - `multipliers`: λ in the box.
    """
    size, present = _sizes(gram, alive)
    eps = jnp.finfo(gram.dtype).eps
    multipliers = jnp.where(present, multipliers, 0)
    g = product(gram, multipliers) + linear
    terms = product(jnp.abs(gram), multipliers) + size * jnp.sqrt(square)
    error = (gram.shape[0] + 4) * eps * terms
    down = multipliers * (g + error)
    up = (1 - multipliers) * (error - g)
    return jnp.sum(jnp.where(present, jnp.maximum(jnp.maximum(down, up), 0), 0))
