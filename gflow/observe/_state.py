"""The observed state: what observers are functions of."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._problem import Problem
from .._types import Params, Scalar


class State(eqx.Module):
    r"""A point of the flow, with one gradient evaluation shared by all observers.

    **Attributes:**

    - `problem`: model structure, data and loss.
    - `params`: the trained parameters W (`state.model` is the model with them).
    - `log_t`: log of the time; NaN for a single model.
    - `outputs`: (n, ...) f(x_i; W).
    - `log_loss`, `loss`: log ℒ, and ℒ as a number (zero where that underflows).
    - `log_slope`, `direction`: $-\nabla\mathcal L = e^{\text{log\_slope}} \cdot$
        `direction`; for tailed losses `direction` is ∇α.
    - `path_length`: ζ, if the solve integrated it; else NaN.
    - `degree`: L, if the model is positively homogeneous; else None.
    """

    problem: Problem
    params: Params
    log_t: Scalar
    outputs: Float[Array, "examples ..."]
    log_loss: Scalar
    loss: Scalar
    log_slope: Scalar
    direction: Params
    path_length: Scalar
    degree: float | None = eqx.field(static=True)

    @property
    def model(self) -> Any:
        """The model at this point."""
        return self.problem.model(self.params)

    @property
    def y(self) -> Array:
        """The labels."""
        return self.problem.y


def observe_at(
    problem: Problem,
    params: Params,
    *,
    log_t: Scalar | None = None,
    path_length: Scalar | None = None,
    degree: float | None = None,
) -> State:
    """The observed state at W: one full-data gradient evaluation."""
    at = problem.gradient(params)
    nan = jnp.full_like(at.log_loss, jnp.nan)
    return State(
        problem=problem,
        params=params,
        log_t=nan if log_t is None else log_t,
        outputs=at.outputs,
        log_loss=at.log_loss,
        loss=at.loss,
        log_slope=at.log_slope,
        direction=at.direction,
        path_length=nan if path_length is None else path_length,
        degree=degree,
    )
