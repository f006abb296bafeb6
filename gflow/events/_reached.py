"""Events: quantities of the field that reach a value.

Each is a number that changes sign there, so that the time is found to the solver's
accuracy. They compare by value: the same event again compiles nothing again.

Values are given as times are: a number is the value itself, `gflow.exp(v)` is e^v.
"""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp

from .._norms import angle, log_norm
from .._times import Exp
from .._types import Scalar
from ..losses import AbstractTailedLoss, Square
from ..observe import State


def _set(event: Any, name: str = "value", *, positive: bool = False) -> None:
    """Makes a field of the event a float or `gflow.exp` of a float, or a ValueError."""
    value = getattr(event, name)
    shown = f"events.{type(event).__name__}({value!r})"
    try:
        number = float(value.log if isinstance(value, Exp) else value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(
            f"{shown}: the value is not one finite number whose value is known; pass a "
            "float, or gflow.exp(v) for e^v."
        )
    if positive and not isinstance(value, Exp) and number <= 0:
        raise ValueError(_never(shown, number))
    known = Exp(number) if isinstance(value, Exp) else number
    object.__setattr__(event, name, known)


def _never(shown: str, number: float) -> str:
    return (
        f"{shown} never happens, because the quantity is positive; pass a positive "
        f"number, or gflow.exp({number:g}) for e^{number:g}."
    )


def _log(value: float | Exp) -> float:
    return value.log if isinstance(value, Exp) else math.log(value)


def _above(quantity: Scalar, value: float | Exp) -> Scalar:
    """A number with the sign of quantity - value."""
    if isinstance(value, Exp):
        return jnp.log(jnp.maximum(quantity, 0)) - value.log
    return quantity - value


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
                "gflow.events.LossReaches or gflow.events.Converged."
            )
        return loss.alpha(state.log_loss, n)


@dataclasses.dataclass(frozen=True)
class MarginReaches:
    r"""$\min_i p_i$ reaches a value.

    p_i = y_i f(x_i) with two classes, f_y - max of the others with more; labels must
    define it.

    **Arguments:**

    - `value`: the margin; a number, or `gflow.exp(v)` for e^v.
    """

    value: Any

    def __post_init__(self):
        _set(self)

    def __call__(self, state: State) -> Scalar:
        problem = state.problem
        margins = problem.loss.margins(state.outputs, problem.y)
        return _above(jnp.min(margins), self.value)


@dataclasses.dataclass(frozen=True)
class Classified:
    """Every example is classified correctly for the first time: min p_i > 0."""

    def __call__(self, state: State) -> Scalar:
        return MarginReaches(0.0)(state)


@dataclasses.dataclass(frozen=True)
class LossReaches:
    """ℒ falls to, or grows to, a value.

    **Arguments:**

    - `value`: the loss ℒ; a number, or `gflow.exp(v)` for e^v, which may be below the
        smallest float.
    """

    value: Any

    def __post_init__(self):
        _set(self)

    def __call__(self, state: State) -> Scalar:
        value, loss = self.value, state.problem.loss
        if not isinstance(value, Exp) and value <= 0:
            if isinstance(loss, AbstractTailedLoss | Square):
                raise ValueError(_never(f"events.LossReaches({value!r})", value))
            return state.loss - value
        above = state.log_loss - _log(value)
        # A custom loss that is negative has no logarithm.
        return jnp.where(jnp.isnan(above), jnp.full_like(above, -jnp.inf), above)


@dataclasses.dataclass(frozen=True)
class GradientNormReaches:
    r"""$\|\bar\partial\mathcal L\|$ falls to, or grows to, a value.

    **Arguments:**

    - `value`: the norm of the gradient in all parameters together; a positive number,
        or `gflow.exp(v)` for e^v, which may be below the smallest float.
    """

    value: Any

    def __post_init__(self):
        _set(self, positive=True)

    def __call__(self, state: State) -> Scalar:
        return state.log_slope + log_norm(state.direction) - _log(self.value)


@dataclasses.dataclass(frozen=True)
class Converged:
    r"""The loss has all but stopped falling: the flow is near a critical point.

    $$(t - t_0)\,\|\bar\partial\mathcal L(W(t))\|^2 \le
      \varepsilon\,\bigl(\mathcal L(W(t_0)) - \mathcal L(W(t))\bigr)$$

    The left side is the fall of ℒ while log(t - t0) grows by one at the present speed,
    the right side a fraction ε of the fall so far. If $\mathcal L - \mathcal L_\infty$
    decays like $t^{-p}$ or faster, the fall to come is at most ε/p of the fall so far.
    The condition does not depend on the units of time, weights and loss, and does not
    hold while the flow leaves a saddle where it starts. A long rest at a later saddle
    does fulfil it: use a small ε there. For the gradient flow, with any loss.

    **Arguments:**

    - `fraction`: ε; a number between 0 and 1, or `gflow.exp(v)` for e^v.
    """

    fraction: Any = 1e-6

    def __post_init__(self):
        _set(self, "fraction", positive=True)
        if _log(self.fraction) >= 0:
            raise ValueError(
                f"events.Converged({self.fraction!r}): the fraction is not below 1; "
                "pass, say, 1e-6."
            )

    def __call__(self, state: State) -> Scalar:
        fall = state.log_fall
        if fall is None or state.log_elapsed is None:
            raise ValueError(
                "events.Converged compares ℒ with its fall since t0, which is known "
                "while gflow.integrate solves the gradient flow (flow=None); use "
                "gflow.events.GradientNormReaches."
            )
        log_power = 2 * (state.log_slope + log_norm(state.direction))
        share = log_power + state.log_elapsed - fall
        # At t0 the two sides are zero, and their ratio is one.
        known = jnp.isfinite(fall) & jnp.isfinite(state.log_elapsed)
        return jnp.where(known, share, 0) - _log(self.fraction)


@dataclasses.dataclass(frozen=True)
class AngleReaches:
    r"""The angle between W and $-\bar\partial\mathcal L$ falls to a value.

    Where it is small the direction of a homogeneous network has all but converged (Ji &
    Telgarsky 2020, Theorem 4.1).

    **Arguments:**

    - `value`: the angle in radians; a positive number, or `gflow.exp(v)` for e^v.
    """

    value: Any

    def __post_init__(self):
        _set(self, positive=True)

    def __call__(self, state: State) -> Scalar:
        return _above(angle(state.params, state.direction), self.value)
