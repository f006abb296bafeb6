"""Several classes, integer labels, one output a class."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from .._times import is_concrete
from ._abstract import check_reduction
from ._tailed import (
    AbstractTailedLoss,
    exponential_inverse,
    exponential_log_value,
    logistic_inverse,
    logistic_log_slope,
    logistic_log_value,
)


def _gaps(
    outputs: Float[Array, "examples classes"], y: Integer[Array, " examples"]
) -> Float[Array, "examples classes"]:
    # f_j - f_y, with -inf at j = y so that it drops out of sums and maxima.
    label = y.astype(jnp.int32)[:, None]
    own = jnp.take_along_axis(outputs, label, axis=1)
    is_own = jnp.arange(outputs.shape[1], dtype=jnp.int32)[None, :] == label
    return jnp.where(is_own, -jnp.inf, outputs - own)


def class_soft_margins(
    outputs: Float[Array, "examples classes"], y: Integer[Array, " examples"]
) -> Float[Array, " examples"]:
    """-log Σ_{j≠y} e^{f_j - f_y}."""
    return -jax.nn.logsumexp(_gaps(outputs, y), axis=1)


def class_pairs(
    outputs: Float[Array, "examples classes"], y: Integer[Array, " examples"]
) -> Float[Array, "examples wrong"]:
    """f_y - f_j for every j ≠ y, in the order of the classes."""
    label = y.astype(jnp.int32)[:, None]
    wrong = jnp.arange(outputs.shape[1] - 1, dtype=jnp.int32)[None, :]
    wrong = wrong + (wrong >= label).astype(jnp.int32)
    own = jnp.take_along_axis(outputs, label, axis=1)
    return own - jnp.take_along_axis(outputs, wrong, axis=1)


def class_margins(
    outputs: Float[Array, "examples classes"], y: Integer[Array, " examples"]
) -> Float[Array, " examples"]:
    """f_y - max_{j≠y} f_j."""
    return -jnp.max(_gaps(outputs, y), axis=1)


def check_classes(name: str, outputs_shape: tuple[int, ...], y: Any) -> None:
    """Raises ValueError unless outputs are (n, k), k ≥ 2, and labels fit."""
    if len(outputs_shape) != 2 or outputs_shape[1] < 2:
        raise ValueError(
            f"{name} takes one output per class and at least two classes, but the "
            f"model returns shape {outputs_shape[1:]} per example; use Exponential or "
            "Logistic with labels ±1 for a single output."
        )
    if np.ndim(y) != 1 or not np.issubdtype(np.dtype(y.dtype), np.integer):
        raise ValueError(
            f"{name} takes integer class labels of shape (n,), got {y.dtype} of shape "
            f"{np.shape(y)}; convert with y.astype(int), or use Square for real "
            "targets."
        )
    if not is_concrete(y):
        return
    low, high = int(np.min(y)), int(np.max(y))
    if low < 0 or high >= outputs_shape[1]:
        raise ValueError(
            f"{name}: labels run from {low} to {high}, but the model has "
            f"{outputs_shape[1]} outputs (classes 0 to {outputs_shape[1] - 1}); "
            "relabel the classes, or give the model more outputs."
        )


class CrossEntropy(AbstractTailedLoss):
    r"""Cross-entropy, $\ell_i = \log\sum_j e^{f_j} - f_y$, labels in {0, ..., k-1}.

    Equal to the logistic loss of the soft margin
    $p_i = -\log\sum_{j\ne y} e^{f_j - f_y}$; accurate for losses of e^-10000.

    **Arguments:**

    - `reduction`: `"sum"` (default) or `"mean"`.

    **Raises:** `ValueError` for an unknown reduction.
    """

    reduction: str = "sum"
    casts_labels: ClassVar[bool] = False

    def __check_init__(self):
        check_reduction(self.reduction)

    def check(self, outputs_shape: tuple[int, ...], y: Any) -> None:
        check_classes("CrossEntropy", outputs_shape, y)

    def soft_margins(self, outputs, y):
        return class_soft_margins(outputs, y)

    def margins(self, outputs, y):
        return class_margins(outputs, y)

    def pairs(self, outputs, y):
        return class_pairs(outputs, y)

    def log_pair_slopes(self, pairs):
        # -∂ℓ_i/∂p_ij = e^{-p_ij}/(1 + Σ_k e^{-p_ik}), the softmax.
        log_sum = jax.nn.logsumexp(-pairs, axis=1, keepdims=True)
        return -pairs - jax.nn.softplus(log_sum)

    def log_value(self, p):
        return logistic_log_value(p)

    def log_slope(self, p):
        return logistic_log_slope(p)

    def inverse(self, log_value):
        return logistic_inverse(log_value)


class MulticlassExponential(AbstractTailedLoss):
    r"""Exponential loss over wrong classes, $\ell_i = \sum_{j\ne y} e^{f_j - f_y}$.

    Labels are integers in {0, ..., k-1}.

    **Arguments:**

    - `reduction`: `"sum"` (default) or `"mean"`.

    **Raises:** `ValueError` for an unknown reduction.
    """

    reduction: str = "sum"
    casts_labels: ClassVar[bool] = False

    def __check_init__(self):
        check_reduction(self.reduction)

    def check(self, outputs_shape: tuple[int, ...], y: Any) -> None:
        check_classes("MulticlassExponential", outputs_shape, y)

    def soft_margins(self, outputs, y):
        return class_soft_margins(outputs, y)

    def margins(self, outputs, y):
        return class_margins(outputs, y)

    def pairs(self, outputs, y):
        return class_pairs(outputs, y)

    def log_pair_slopes(self, pairs):
        return exponential_log_value(pairs)

    def log_value(self, p):
        return exponential_log_value(p)

    def log_slope(self, p):
        return exponential_log_value(p)

    def inverse(self, log_value):
        return exponential_inverse(log_value)
