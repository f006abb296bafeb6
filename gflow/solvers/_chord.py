"""The equation of an implicit step, by chord iterations that learn as they go."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._lanes import anywhere
from .._types import BoolScalar, IntScalar, Scalar
from ._tolerance import Measure


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
# A rate that is not measured anew, by a second iteration, is trusted less and less.
_AGEING, _AGED = 1.2, 0.15
# An estimated error from which on a step is given up at once: a first correction of
# this size tells what that of the equation's solution will be.
_HOPELESS = 2.0


class Found(eqx.Module):
    """Where the iteration ended."""

    x: Float[Array, " P"]
    extra: Float[Array, " Q"]
    converged: BoolScalar
    hopeless: BoolScalar  # not accurate enough, as far as it got
    iterations: IntScalar
    rate: Scalar  # of convergence, or the one expected
    plain: Scalar  # that without help, from what was expected on


class _Carry(eqx.Module):
    x: Float[Array, " P"]
    extra: Float[Array, " Q"]
    last: Scalar  # size of the last correction
    rate: Scalar
    plain: Scalar
    iterations: IntScalar
    converged: BoolScalar
    diverged: BoolScalar
    hopeless: BoolScalar
    # Where it was before and is now, in no order.
    points: Float[Array, "memory P"]
    residuals: Float[Array, "memory P"]


def _aged(rate: Scalar) -> Scalar:
    return jnp.maximum(rate, jnp.minimum(_AGEING * rate, _AGED))


def solve(
    residual: Callable[[Any], tuple[Array, Array]],
    guess: Float[Array, " P"],
    extra: Float[Array, " Q"],
    measure: Measure,
    share: Scalar,
    enough: float,
    rate: Scalar,
    plain: Scalar,
) -> Found:
    r"""x with r(x) = 0, where `residual` gives r already preconditioned, and an extra.

    It ends once the error left, $\|\delta\|\,\rho/(1-\rho)$ with ρ the rate of
    convergence, of the first iteration the `plain` one of steps before, is at most
    `enough`; its size is `share` of what `measure` says. Or at once, if the first
    correction is so large that the step will not be accurate enough: `share` of
    x - `guess` is what it is wrong by.
    """

    def learned(carry: _Carry, r: Array, have: Array) -> Array:
        # The differences of the last corrections tell what the next one would miss.
        scale = measure.scale()
        dr = jnp.where(have[:, None], (r[None] - carry.residuals) / scale[None], 0)
        dx = jnp.where(have[:, None], carry.x[None] - carry.points, 0)
        gram = dr @ dr.T
        ridge = 1e-12 * jnp.trace(gram) + jnp.finfo(r.dtype).tiny
        gram = gram + jnp.diag(jnp.where(have, ridge, 1))
        weights = jnp.linalg.solve(gram, dr @ (r / scale))
        weights = jnp.where(jnp.isfinite(weights), weights, 0)
        return -r - weights @ (dx - dr * scale[None])

    def body(carry: _Carry) -> _Carry:
        r, extra = residual(carry.x)
        whole = share * measure.size(r)
        started = carry.iterations > 0
        slow = started & (whole > _SLOW * carry.last)
        # What the first iteration, which has no help, is to be judged by.
        second = carry.iterations == 1
        ratio = jnp.maximum(whole / jnp.where(started, carry.last, 1), _LUCK)
        plain = jnp.where(second, ratio, carry.plain)
        place = carry.iterations % (_MEMORY + 1)
        carry = eqx.tree_at(
            lambda c: (c.points, c.residuals),
            carry,
            (carry.points.at[place].set(carry.x), carry.residuals.at[place].set(r)),
        )

        def helped() -> tuple[Array, Scalar]:
            number = jnp.arange(_MEMORY + 1)
            have = (number <= carry.iterations) & (number != place)
            step = jnp.where(slow, learned(carry, r, have), -r)
            return carry.x + step, share * measure.size(step)

        # (Passes over all numbers, where no lane of `vmap` needs them.)
        x, now = jax.lax.cond(anywhere(slow), helped, lambda: (carry.x - r, whole))
        rate = jnp.maximum(now / jnp.where(started, carry.last, 1), _LUCK)
        rate = jnp.where(started, rate, carry.rate)
        left = jnp.where(
            started,
            rate / jnp.maximum(1 - rate, 1e-3),
            2 * jnp.maximum(plain, _LUCK_BEFORE),
        )
        left = jnp.minimum(left, 1) * now
        good = jnp.isfinite(now)
        converged = good & (left <= enough)
        diverged = ~good | (started & (now > 2 * carry.last))
        hopeless = good & ~started & (now * (1 - 2 * plain) > _HOPELESS) & ~converged
        return _Carry(
            x=x,
            extra=extra,
            last=now,
            rate=rate,
            plain=plain,
            iterations=carry.iterations + 1,
            converged=converged,
            diverged=diverged & ~converged,
            hopeless=hopeless,
            points=carry.points,
            residuals=carry.residuals,
        )

    def goes_on(carry: _Carry) -> BoolScalar:
        done = carry.converged | carry.diverged | carry.hopeless
        return ~(done | (carry.iterations >= _MOST))

    blank = jnp.zeros((_MEMORY + 1, guess.shape[0]), guess.dtype)
    no = jnp.asarray(False)
    start = _Carry(
        x=guess,
        extra=extra,
        last=jnp.zeros_like(rate),
        rate=rate,
        plain=_aged(plain),
        iterations=jnp.asarray(0),
        converged=no,
        diverged=no,
        hopeless=no,
        points=blank,
        residuals=blank,
    )
    end = jax.lax.while_loop(goes_on, body, start)
    return Found(
        x=end.x,
        extra=end.extra,
        converged=end.converged,
        hopeless=end.hopeless,
        iterations=end.iterations,
        rate=end.rate,
        plain=end.plain,
    )
