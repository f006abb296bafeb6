"""What a flow must say about itself to be integrated."""

import abc
from typing import Any

import equinox as eqx

from .._problem import Problem
from .._types import Params, Scalar
from ..fields import Velocity


class Motion(eqx.Module):
    r"""How a flow moves at one point.

    **Attributes:**

    - `log_speed`, `direction`: $d(\text{state})/dt = e^{\text{log\_speed}} \cdot$
        `direction`, a PyTree like the state.
    - `weights`: W, a PyTree like the model's parameters.
    - `velocity`: dW/dt, as $e^{\text{log\_speed}} \cdot$ direction, and ℒ at W.
    - `log_slope`, `descent`: $-\nabla\mathcal L(W) = e^{\text{log\_slope}} \cdot$
        `descent`; with dW/dt it makes dℒ/dt, which the solution's `energy_defect`
        checks.
    """

    log_speed: Scalar
    direction: Any
    weights: Params
    velocity: Velocity
    log_slope: Scalar
    descent: Params


class AbstractFlow(eqx.Module):
    """A flow for `gflow.integrate(..., flow=)`.

    One of your own is an [`gflow.flows.AbstractMotion`][].
    """

    @abc.abstractmethod
    def check(self, problem: Problem, params: Params, t0: Any, t1: Any) -> None:
        """ValueError unless the problem, from W = params, has this flow."""


class AbstractMotion(AbstractFlow):
    """A flow of a state from which the model's parameters W are read off.

    The state is any PyTree of floating point arrays; the local error of each of them is
    held to `rtol` times its norm.
    """

    @abc.abstractmethod
    def start(self, params: Params, t: Scalar) -> Any:
        """The state at t0, for a model with the parameters `params`."""

    @abc.abstractmethod
    def weights(self, state: Any, t: Scalar) -> Params:
        """W."""

    @abc.abstractmethod
    def motion(self, problem: Problem, state: Any, t: Scalar) -> Motion:
        """d(state)/dt and what goes with it.

        `problem.gradient(W)` has ℒ and -∇ℒ = e^log_slope · direction, whose two
        factors are kept apart: late they are out of the range of floats together.
        """
