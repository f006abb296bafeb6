"""The observed state: what observers are functions of."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jax.extend.core import get_opaque_trace_state
from jaxtyping import Array, Float

from .._frozen import Frozen
from .._least_norm import LeastNorm, least_norm
from .._problem import Problem
from .._types import IntScalar, Params, Scalar


class State(eqx.Module):
    r"""A point of the flow, with one gradient evaluation shared by all observers.

    **Attributes:**

    - `problem`: model structure, data and loss.
    - `params`: the trained parameters W (`state.model` is the model with them).
    - `log_t`: log of the time; NaN for a single model.
    - `log_elapsed`, `log_fall`: of events, log(t - t0) and log(ℒ(t0) - ℒ(t)), the fall
        as the solve has added it up; else None. The fall is known of the gradient flow.
    - `outputs`: (n, ...) f(x_i; W).
    - `log_loss`, `loss`: log ℒ, and ℒ as a number (zero where that underflows).
    - `log_slope`, `direction`: $-\nabla\mathcal L = e^{\text{log\_slope}} \cdot$
        `direction`; for tailed losses `direction` is ∇α. Of a model with kinks, $-\bar
        \partial\mathcal L$, the element of least norm.
    - `path_length`: ζ, if the solve integrated it; else NaN.
    - `degree`: L, if the model is positively homogeneous; else None.
    - `at_kinks`: how the element of least norm was found; None of a smooth model, and
        where kinks are left to automatic differentiation.
    - `index`: the number of the saved point; None where points are not saved.
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
    at_kinks: LeastNorm | None = None
    index: IntScalar | None = None
    log_elapsed: Scalar | None = None
    log_fall: Scalar | None = None

    @property
    def model(self) -> Any:
        """The model at this point."""
        return self.problem.model(self.params)

    @property
    def y(self) -> Array:
        """The labels."""
        return self.problem.y

    def once(self, function: Callable[..., Any], *args: Any) -> Any:
        """`function(state, *args)`, evaluated once for all observers that ask for it.

        `args` are hashable.
        """
        # Beside the fields, so that copies and other traces start afresh.
        known = vars(self).setdefault("_once", {})
        trace, key = get_opaque_trace_state(), (function, args)
        if key not in known or known[key][0] != trace:
            known[key] = (trace, function(self, *args))
        return known[key][1]


def observe_at(
    problem: Problem,
    params: Params,
    *,
    log_t: Scalar | None = None,
    path_length: Scalar | None = None,
    degree: float | None = None,
    frozen: Frozen | None = None,
    pins: Float[Array, " K"] | None = None,
    index: IntScalar | None = None,
    log_elapsed: Scalar | None = None,
    log_fall: Scalar | None = None,
) -> State:
    """The observed state at W: one full-data gradient evaluation.

    Of a problem whose kinks are taken out (`frozen`), -∇ℒ is minus the element of least
    norm of ∂ℒ, on the kinks at zero and those with the numbers `pins`.
    """
    found = None
    if frozen is None:
        at = problem.gradient(params)
    else:
        found = least_norm(frozen, params, pins)
        # The loss itself, not that of the lower branches of kinks at 1e-9.
        outputs = problem.outputs(params)
        loss = problem.loss.linearise(outputs, problem.y)
        at = eqx.tree_at(
            lambda g: (g.outputs, g.log_loss, g.loss),
            found.gradient,
            (outputs, loss.log_loss, loss.loss),
        )
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
        at_kinks=found,
        index=index,
        log_elapsed=log_elapsed,
        log_fall=log_fall,
    )
