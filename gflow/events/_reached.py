"""Events: quantities of the field that reach a value.

Each is a number that changes sign there, so that the time is found to the solver's
accuracy. They compare by value: the same event again compiles nothing again.
"""

import dataclasses

import jax.numpy as jnp

from .._norms import angle, log_norm
from .._types import Scalar
from ..losses import AbstractTailedLoss
from ..observe import State


@dataclasses.dataclass(frozen=True)
class Separated:
    r"""ℒ falls below ℓ(0): α > 0, and every example is classified correctly.

    From there on the margins grow (Ji & Telgarsky 2020, Assumption 2.2). For losses
    with an exponential tail; `reduction="mean"` is undone.
    """

    def __call__(self, state: State) -> Scalar:
        loss, n = state.problem.loss, state.problem.num_examples
        if not isinstance(loss, AbstractTailedLoss):
            raise ValueError(
                "events.Separated compares ℒ with ℓ(0) of a loss with an exponential "
                f"tail, and {type(loss).__name__} has none; use "
                "gflow.events.LogLossReaches or gflow.events.MarginReaches."
            )
        return loss.alpha(state.log_loss, n)


@dataclasses.dataclass(frozen=True)
class MarginReaches:
    r"""$\min_i p_i$ reaches a value.

    p_i = y_i f(x_i) with two classes, f_y - max of the others with more; labels must
    define it.

    **Arguments:**

    - `value`: a number.
    """

    value: float

    def __call__(self, state: State) -> Scalar:
        problem = state.problem
        margins = problem.loss.margins(state.outputs, problem.y)
        return jnp.min(margins) - self.value


@dataclasses.dataclass(frozen=True)
class Classified:
    """Every example is classified correctly for the first time: min p_i > 0."""

    def __call__(self, state: State) -> Scalar:
        return MarginReaches(0.0)(state)


@dataclasses.dataclass(frozen=True)
class LogLossReaches:
    """log ℒ (natural) falls to, or grows to, a value.

    **Arguments:**

    - `value`: of log ℒ.
    """

    value: float

    def __call__(self, state: State) -> Scalar:
        return state.log_loss - self.value


@dataclasses.dataclass(frozen=True)
class GradientNormReaches:
    r"""$\log\|\bar\partial\mathcal L\|$ falls to, or grows to, a value.

    **Arguments:**

    - `log_value`: of the natural logarithm of the norm of all parameters together.
    """

    log_value: float

    def __call__(self, state: State) -> Scalar:
        return state.log_slope + log_norm(state.direction) - self.log_value


@dataclasses.dataclass(frozen=True)
class AngleReaches:
    r"""The angle between W and $-\bar\partial\mathcal L$ falls to a value.

    Where it is small the direction of a homogeneous network has all but converged (Ji &
    Telgarsky 2020, Theorem 4.1).

    **Arguments:**

    - `value`: in radians.
    """

    value: float

    def __call__(self, state: State) -> Scalar:
        return angle(state.params, state.direction) - self.value
