"""The gradient field W ↦ -∇ℒ(W)."""

import equinox as eqx

from .._problem import AbstractProblem
from .._types import Params, Scalar


class Velocity(eqx.Module):
    r"""dW/dt as $e^{\text{log\_speed}} \cdot \text{direction}$, with ℒ at W."""

    log_speed: Scalar
    direction: Params
    log_loss: Scalar
    loss: Scalar


class GradientField(eqx.Module):
    r"""The gradient flow's velocity, $\dot W = -\nabla\mathcal L(W)$.

    Where ℒ is not differentiable this is whatever automatic differentiation returns,
    which need not be the velocity of the differential inclusion.
    """

    problem: AbstractProblem

    def __call__(self, params: Params) -> Velocity:
        at = self.problem.gradient(params)
        return Velocity(at.log_slope, at.direction, at.log_loss, at.loss)
