"""The logarithm of logarithmic time."""

import jax.numpy as jnp

from .._times import library
from ._abstract import AbstractTimeClock


class LogLogTime(AbstractTimeClock):
    r"""The clock $c = \log(1 + \log(1 + t - t_0))$, for the late phase.

    Once the data are separated a network of degree L grows like $(\log t)^{1/L}$ and
    its direction moves by powers of 1/log t: in this clock both are exponentials, so
    that an implicit solver needs about as many steps from log t = 10 to 100 as from
    10^7 to 10^8. It is the time itself, unlike [`gflow.clocks.LogNorm`][]. Explicit
    solvers gain nothing from it: stability still costs them steps in proportion to
    log t.
    """

    def log_rate(self, reading, params, log_time, velocity):
        return jnp.expm1(reading) + reading

    def reading(self, log_elapsed):
        xp = library(log_elapsed)
        return xp.log1p(xp.logaddexp(log_elapsed, xp.zeros_like(log_elapsed)))

    def log_elapsed(self, reading):
        log_time = jnp.expm1(reading)
        return log_time + jnp.log(-jnp.expm1(-log_time))
