"""Dense output of a step, from its value at one time."""

import abc
from typing import Any

import diffrax as dfx
import jax.numpy as jnp
import jax.tree_util as jtu


class AbstractLocal(dfx.AbstractLocalInterpolation):
    """What Diffrax asks of dense output, where `at(t)` is known."""

    @abc.abstractmethod
    def at(self, time: Any) -> Any:
        """The state at a time within the step."""

    def evaluate(self, t0, t1=None, left=True):
        del left
        if t1 is None:
            return self.at(t0)
        return jtu.tree_map(jnp.subtract, self.at(t1), self.at(t0))
