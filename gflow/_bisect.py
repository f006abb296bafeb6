"""Bisection to the resolution of the clock."""

from collections.abc import Callable
from typing import Any, ClassVar

import jax.numpy as jnp
import optimistix as optx


class Bisect(optx.AbstractRootFinder):
    """Optimistix's bisection, ended by the width of the interval alone.

    `optimistix.Bisection` also wants |f| < atol, in the units of f, which for an
    event are anybody's. Here the interval shrinks to a few roundings.
    """

    inner: optx.Bisection
    eps: float
    rtol: float = 0.0
    atol: float = 0.0
    norm: ClassVar[Callable[[Any], Any]] = jnp.abs

    def init(self, fn, y, args, options, f_struct, aux_struct, tags):
        return self.inner.init(fn, y, args, options, f_struct, aux_struct, tags)

    def step(self, fn, y, args, options, state, tags):
        return self.inner.step(fn, y, args, options, state, tags)

    def terminate(self, fn, y, args, options, state, tags):
        width = jnp.abs(state.upper - state.lower)
        here = jnp.maximum(jnp.abs(state.lower), jnp.abs(state.upper))
        # A root at zero has no relative precision: there the first interval counts.
        whole = jnp.maximum(jnp.abs(options["lower"]), jnp.abs(options["upper"]))
        done = width <= 4 * self.eps * jnp.maximum(here, self.eps * whole)
        return done, optx.RESULTS.successful

    def postprocess(self, fn, y, aux, args, options, state, tags, result):
        return self.inner.postprocess(fn, y, aux, args, options, state, tags, result)


def bisect(dtype: Any, *, increasing: bool) -> Bisect:
    """A root finder for a function that changes sign once, up or down."""
    inner = optx.Bisection(rtol=0.0, atol=0.0, flip=not increasing)
    return Bisect(inner=inner, eps=float(jnp.finfo(dtype).eps))
