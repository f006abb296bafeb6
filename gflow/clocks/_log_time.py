"""Logarithmic time."""

import jax.numpy as jnp

from .._times import library
from ._abstract import AbstractTimeClock


class LogTime(AbstractTimeClock):
    r"""The clock $\tau = \log(1 + t - t_0)$: $dW/d\tau = -e^\tau\,\nabla\mathcal L$.

    Regular at the start, where τ = 0, and logarithmic later; $e^\tau$ meets the small
    gradient as a sum of logarithms, so t = e^10000 is as good a time as any.
    """

    def log_rate(self, reading, params, log_time, velocity):
        return reading

    def reading(self, log_elapsed):
        xp = library(log_elapsed)
        return xp.logaddexp(log_elapsed, xp.zeros_like(log_elapsed))

    def log_elapsed(self, reading):
        # log(e^τ - 1), without the overflow of expm1.
        return reading + jnp.log(-jnp.expm1(-reading))
