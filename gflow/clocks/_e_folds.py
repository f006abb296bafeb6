"""The clock that counts e-folds, of the weights or of time."""

import jax.numpy as jnp

from .._norms import log_norm
from ._abstract import AbstractClock


class EFolds(AbstractClock):
    r"""The clock $dc = (\|\dot W\|/\|W\| + 1/(1 + t - t_0))\,dt$.

    In one unit of it neither ‖W‖ nor the time grows by more than a factor e, whatever
    their scales: a network of three or more layers that starts at 1e-60 rests for a
    time of about 1e60 and then escapes within a time of 1, which no clock that tells
    the time can resolve. Time is recovered from u = log(1 + t - t0) as one more
    unknown, to the precision that a float has.
    """

    def log_rate(self, reading, params, log_time, velocity):
        speed = velocity.log_speed + log_norm(velocity.direction)
        size = log_norm(params)
        # At W = 0 there are no e-folds of W to count.
        relative = jnp.where(jnp.isneginf(size), -jnp.inf, speed - size)
        assert log_time is not None, "its reading does not tell the time"
        return -jnp.logaddexp(relative, -log_time)
