"""The equation of an implicit step, by chord iterations that learn as they go."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import BoolScalar, IntScalar, Scalar


# Iterations after which a step is given up.
_MOST = 10
# Differences of earlier iterations that a correction is combined with (Anderson 1965),
# and the rate of convergence at which that begins: chord iterations that converge well
# need no help, and it costs 4 P numbers.
_MEMORY = 2
_SLOW = 0.3
# Rates better than these are luck, within a step and from the last one.
_LUCK = 0.02
_LUCK_BEFORE = 0.1


class Found(eqx.Module):
    """Where the iteration ended."""

    x: Float[Array, " P"]
    extra: Float[Array, " Q"]
    converged: BoolScalar
    iterations: IntScalar
    rate: Scalar  # of convergence, or the one expected


class _Carry(eqx.Module):
    x: Float[Array, " P"]
    extra: Float[Array, " Q"]
    last: Scalar  # size of the last correction
    rate: Scalar
    iterations: IntScalar
    converged: BoolScalar
    diverged: BoolScalar
    points: Float[Array, "memory P"]
    residuals: Float[Array, "memory P"]


def solve(
    residual: Callable[[Any], tuple[Array, Array]],
    guess: Float[Array, " P"],
    extra: Float[Array, " Q"],
    scale: Float[Array, " P"],
    size: Callable[[Any], Scalar],
    enough: float,
    expected: Scalar,
) -> Found:
    r"""x with r(x) = 0, where `residual` gives r already preconditioned, and an extra.

    It ends once the error left, $\|\delta\|\,\rho/(1-\rho)$ with ρ the rate of
    convergence, at first the one `expected`, is at most `enough` in `size`. `scale`:
    of the entries, for least squares.
    """

    def body(carry: _Carry) -> _Carry:
        r, extra = residual(carry.x)
        whole = size(r)
        # Where the last corrections did not help enough, their differences tell what
        # the next one would miss.
        have = jnp.arange(_MEMORY) < carry.iterations
        dr = jnp.where(have[:, None], (r[None] - carry.residuals) / scale[None], 0)
        dx = jnp.where(have[:, None], carry.x[None] - carry.points, 0)
        gram = dr @ dr.T
        ridge = 1e-12 * jnp.trace(gram) + jnp.finfo(r.dtype).tiny
        gram = gram + jnp.diag(jnp.where(have, ridge, 1))
        weights = jnp.linalg.solve(gram, dr @ (r / scale))
        slow = (carry.iterations > 0) & (whole > _SLOW * carry.last)
        weights = jnp.where(slow & jnp.isfinite(weights), weights, 0)
        step = -r - weights @ (dx - dr * scale[None])
        now = size(step)
        started = carry.iterations > 0
        rate = jnp.maximum(now / jnp.where(started, carry.last, 1), _LUCK)
        rate = jnp.where(started, rate, carry.rate)
        left = jnp.where(
            started,
            rate / jnp.maximum(1 - rate, 1e-3),
            2 * jnp.maximum(rate, _LUCK_BEFORE),
        )
        left = jnp.minimum(left, 1) * now
        good = jnp.isfinite(now)
        converged = good & (left <= enough)
        diverged = ~good | (started & (now > 2 * carry.last))
        return _Carry(
            x=carry.x + step,
            extra=extra,
            last=now,
            rate=rate,
            iterations=carry.iterations + 1,
            converged=converged,
            diverged=diverged & ~converged,
            points=jnp.concatenate([carry.x[None], carry.points[:-1]]),
            residuals=jnp.concatenate([r[None], carry.residuals[:-1]]),
        )

    def goes_on(carry: _Carry) -> BoolScalar:
        done = carry.converged | carry.diverged | (carry.iterations >= _MOST)
        return ~done

    blank = jnp.zeros((_MEMORY, guess.shape[0]), guess.dtype)
    no = jnp.asarray(False)
    start = _Carry(
        x=guess,
        extra=extra,
        last=jnp.zeros_like(expected),
        rate=expected,
        iterations=jnp.asarray(0),
        converged=no,
        diverged=no,
        points=blank,
        residuals=blank,
    )
    end = jax.lax.while_loop(goes_on, body, start)
    return Found(end.x, end.extra, end.converged, end.iterations, end.rate)
