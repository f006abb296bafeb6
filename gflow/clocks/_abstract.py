"""A clock is a change of the independent variable; the curve W(·) stays the same."""

import abc

import equinox as eqx
from jaxtyping import Array, Float

from .._types import Params, Scalar
from ..fields import Velocity


class AbstractClock(eqx.Module):
    """Relates the clock's reading c to the time t - t0 elapsed since the start.

    A clock is one function, log(dt/dc). The velocity in the clock is then
    dW/dc = (dt/dc) · dW/dt, and every solver steps in c.
    """

    @abc.abstractmethod
    def log_rate(
        self,
        reading: Scalar,
        params: Params,
        log_time: Scalar | None,
        velocity: Velocity,
    ) -> Scalar:
        """log(dt/dc), at W = params and, if it tells no time, log(1 + t - t0)."""


class AbstractTimeClock(AbstractClock):
    """A clock that tells the time: its reading is a function of t - t0 alone."""

    @abc.abstractmethod
    def reading(self, log_elapsed: Float[Array, "..."]) -> Float[Array, "..."]:
        """c at t - t0 = e^log_elapsed."""

    @abc.abstractmethod
    def log_elapsed(self, reading: Float[Array, "..."]) -> Float[Array, "..."]:
        """log(t - t0) at c; -inf at c = 0."""
