"""A progress meter that is linear in log time."""

from typing import Any

import diffrax as dfx
import jax.numpy as jnp

from ._types import Scalar


class LogTimeMeter(dfx.AbstractProgressMeter):
    """Prints the fraction log(1 + t - t0)/log(1 + t1 - t0) of a solve that is done.

    A meter that is linear in t would stay at 0 % until the end when t1 = 1e12. `span`
    is t1 - t0 if the solver steps in t itself, None if it steps in log time.
    """

    meter: dfx.TextProgressMeter
    span: Scalar | None

    def init(self) -> Any:
        return self.meter.init()

    def step(self, state: Any, progress: Any) -> Any:
        if self.span is not None:
            progress = jnp.log1p(progress * self.span) / jnp.log1p(self.span)
        return self.meter.step(state, jnp.asarray(progress, jnp.result_type(float)))

    def close(self, state: Any) -> None:
        self.meter.close(state)
