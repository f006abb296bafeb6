"""Losses without an exponential tail: square, and any function of the user's."""

import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._abstract import AbstractLoss, Linearised, check_reduction
from ._binary import sign_margins
from ._multiclass import class_margins


def _scale_out(slope: Float[Array, "..."]) -> tuple[Array, Array]:
    # slope = e^log_scale · pull with the largest entry of pull equal to one: near zero
    # residual the slope is tiny, and in log-time it meets an equally large e^τ.
    largest = jnp.max(jnp.abs(slope))
    zero = largest == 0
    safe = jnp.where(zero, 1, largest)
    return jnp.where(zero, -jnp.inf, jnp.log(safe)), slope / safe


class Square(AbstractLoss):
    r"""Square loss, $\ell_i = \tfrac12 \|f(x_i) - y_i\|^2$, summed over outputs.

    Gradient $f - y$. Targets have the shape of the outputs.

    **Arguments:**

    - `reduction`: `"sum"` over the examples (default) or `"mean"`.

    **Raises:** `ValueError` for an unknown reduction.
    """

    reduction: str = "sum"
    casts_labels: ClassVar[bool] = True

    def __check_init__(self):
        check_reduction(self.reduction)

    def check(self, outputs_shape: tuple[int, ...], y: Any) -> None:
        one = (outputs_shape[1:] in ((), (1,))) and np.ndim(y) == 1
        if not one and tuple(np.shape(y)) != tuple(outputs_shape):
            raise ValueError(
                f"Square compares outputs and targets of the same shape, but the "
                f"model returns {outputs_shape} and y has shape {np.shape(y)}; "
                "reshape y, or change the model's number of outputs."
            )

    def linearise(self, outputs: Float[Array, "examples ..."], y: Array) -> Linearised:
        residual = y.reshape(outputs.shape) - outputs
        log_scale, pull = _scale_out(residual)
        shift = self.log_reduction(residual.shape[0])
        half_square = 0.5 * jnp.sum(pull**2)
        safe = jnp.where(half_square == 0, 1, half_square)
        log_loss = 2 * log_scale + jnp.log(safe) + shift
        # Not e^log_loss, which has no second derivative where the residual is zero.
        loss = math.exp(shift) * 0.5 * jnp.sum(residual**2)
        return Linearised(log_loss, log_scale + shift, pull, loss)

    def margins(self, outputs, y):
        return _labels_margins(outputs, y)


class Custom(AbstractLoss):
    r"""Any loss `function(prediction, y) -> scalar` of one example, summed.

    It gets the flow, but not the machinery of the exponential tail: the slope is
    formed as a number, so a loss below the smallest float has no gradient left.
    Where ℒ is negative its logarithm is NaN.

    **Arguments:**

    - `function`: takes one example's prediction and label, returns a scalar.
    - `reduction`: `"sum"` over the examples (default) or `"mean"`.

    **Raises:** `ValueError` for an unknown reduction or a function that does not
    return a scalar.
    """

    function: Any
    reduction: str = "sum"
    casts_labels: ClassVar[bool] = False

    def __check_init__(self):
        check_reduction(self.reduction)
        if not callable(self.function):
            raise ValueError(
                f"loss={self.function!r} is neither a gflow loss nor a function "
                "loss(prediction, y) -> scalar; pass, say, gflow.losses.Logistic()."
            )

    def check(self, outputs_shape: tuple[int, ...], y: Any) -> None:
        pass  # Shapes are the function's own business; see `Problem`.

    def linearise(self, outputs: Float[Array, "examples ..."], y: Array) -> Linearised:
        def total(f):
            each = jax.vmap(self.function)(f, y)
            if each.shape != (outputs.shape[0],):
                raise ValueError(
                    "a custom loss returns one scalar per example, but this one "
                    f"returns shape {each.shape[1:]}; sum over the outputs in it."
                )
            return jnp.sum(each) if self.reduction == "sum" else jnp.mean(each)

        value, slope = jax.value_and_grad(total)(outputs)
        log_scale, unit_slope = _scale_out(slope)
        log_loss = jnp.log(jnp.where(value < 0, jnp.nan, value))
        return Linearised(log_loss, log_scale, -unit_slope, value)

    def margins(self, outputs, y):
        return _labels_margins(outputs, y)


def _labels_margins(outputs: Float[Array, "examples ..."], y: Array) -> Array:
    n = outputs.shape[0]
    if outputs.size == n and y.shape == (n,):
        return sign_margins(outputs, y.astype(outputs.dtype))
    if outputs.ndim == 2 and y.shape == (n,) and jnp.issubdtype(y.dtype, jnp.integer):
        return class_margins(outputs, y)
    # Vector targets: only one-hot rows name a class.
    if outputs.ndim == 2 and y.shape == outputs.shape:
        one_hot = jnp.all((y == 0) | (y == 1), axis=1) & (jnp.sum(y, axis=1) == 1)
        p = class_margins(outputs, jnp.argmax(y, axis=1))
        return jnp.where(one_hot, p, jnp.nan)
    return jnp.full((n,), jnp.nan, outputs.dtype)


def as_loss(loss: Any) -> AbstractLoss:
    """The loss itself, or a user's function wrapped as [`gflow.losses.Custom`][]."""
    if isinstance(loss, AbstractLoss):
        return loss
    if isinstance(loss, type) and issubclass(loss, AbstractLoss):
        raise ValueError(
            f"loss={loss.__name__} is a class; pass an instance, {loss.__name__}()."
        )
    return Custom(function=loss)
