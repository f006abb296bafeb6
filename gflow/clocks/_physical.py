"""Physical time."""

import jax.numpy as jnp

from .._times import library
from ._abstract import AbstractTimeClock


class Physical(AbstractTimeClock):
    r"""The clock $c = t - t_0$: $dW/dc = -\nabla\mathcal L$.

    For short spans and for comparison with gradient descent. Times beyond the
    largest float cannot be reached in it; use [`gflow.clocks.LogTime`][].
    """

    def log_rate(self, reading, params, log_time, velocity):
        return jnp.zeros_like(reading)

    def reading(self, log_elapsed):
        return library(log_elapsed).exp(log_elapsed)

    def log_elapsed(self, reading):
        return jnp.log(reading)
