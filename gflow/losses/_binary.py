"""Two classes, labels in {-1, +1}, one output: exponential and logistic loss."""

from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

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


def scalar_outputs(
    outputs: Float[Array, "examples ..."], like: Array
) -> Float[Array, " examples"]:
    """The outputs as (n,): a model may return shape () or (1,) per example."""
    return outputs.reshape(like.shape[0])


def check_signs(name: str, outputs_shape: tuple[int, ...], y: Any) -> None:
    """Raises ValueError unless outputs are scalars and labels are ±1."""
    if outputs_shape[1:] not in ((), (1,)):
        raise ValueError(
            f"{name} takes one output per example, but the model returns shape "
            f"{outputs_shape[1:]}; use CrossEntropy or MulticlassExponential for "
            "several classes, or a model with a single output."
        )
    if np.ndim(y) != 1:
        raise ValueError(
            f"{name} takes labels of shape (n,), got {np.shape(y)}; one label -1 or "
            "+1 per example."
        )
    if not is_concrete(y):
        return
    wrong = np.unique(np.asarray(y)[~np.isin(np.asarray(y), (-1, 1))])
    if wrong.size:
        raise ValueError(
            f"{name} takes labels -1 and +1, but y contains {wrong[:5].tolist()}; "
            "map your two classes to -1.0 and +1.0 (gflow.data.two_classes does it), "
            "or use CrossEntropy for integer classes."
        )


class Exponential(AbstractTailedLoss):
    r"""Exponential loss, $\ell(p) = e^{-p}$ with $p = y f(x)$, $y \in \{-1, +1\}$.

    $\alpha = -\log\sum_i e^{-p_i}$ and $q = \mathrm{softmax}(-p)$.

    **Arguments:**

    - `reduction`: `"sum"` (default) or `"mean"`.

    **Raises:** `ValueError` for an unknown reduction.

    ??? cite "Reference"

        Ji & Telgarsky (2020), "Directional convergence and alignment in deep
        learning", Section 2 (ℓ_exp).
    """

    reduction: str = "sum"
    casts_labels: ClassVar[bool] = True

    def __check_init__(self):
        check_reduction(self.reduction)

    def check(self, outputs_shape: tuple[int, ...], y: Any) -> None:
        check_signs("Exponential", outputs_shape, y)

    def soft_margins(self, outputs, y):
        return y * scalar_outputs(outputs, y)

    def margins(self, outputs, y):
        return y * scalar_outputs(outputs, y)

    def pairs(self, outputs, y):
        return (y * scalar_outputs(outputs, y))[:, None]

    def log_pair_slopes(self, pairs):
        return exponential_log_value(pairs)

    def log_value(self, p):
        return exponential_log_value(p)

    def log_slope(self, p):
        return exponential_log_value(p)

    def inverse(self, log_value):
        return exponential_inverse(log_value)


class Logistic(AbstractTailedLoss):
    r"""Logistic loss, $\ell(p) = \log(1 + e^{-p})$ with $p = y f(x)$, $y = \pm 1$.

    $\alpha = -\log(e^{\mathcal L} - 1)$ and $-\ell'(p) = 1/(1 + e^p)$; accurate for
    losses of e^-10000.

    **Arguments:**

    - `reduction`: `"sum"` (default) or `"mean"`.

    **Raises:** `ValueError` for an unknown reduction.

    ??? cite "Reference"

        Ji & Telgarsky (2020), "Directional convergence and alignment in deep
        learning", Section 2 (ℓ_log) and Lemma C.2.
    """

    reduction: str = "sum"
    casts_labels: ClassVar[bool] = True

    def __check_init__(self):
        check_reduction(self.reduction)

    def check(self, outputs_shape: tuple[int, ...], y: Any) -> None:
        check_signs("Logistic", outputs_shape, y)

    def soft_margins(self, outputs, y):
        return y * scalar_outputs(outputs, y)

    def margins(self, outputs, y):
        return y * scalar_outputs(outputs, y)

    def pairs(self, outputs, y):
        return (y * scalar_outputs(outputs, y))[:, None]

    def log_pair_slopes(self, pairs):
        return logistic_log_slope(pairs)

    def log_value(self, p):
        return logistic_log_value(p)

    def log_slope(self, p):
        return logistic_log_slope(p)

    def inverse(self, log_value):
        return logistic_inverse(log_value)


def sign_margins(outputs: Float[Array, "examples ..."], y: Array) -> Array:
    """y f where y is ±1, NaN elsewhere: real targets define no margin."""
    p = y * scalar_outputs(outputs, y)
    return jnp.where(jnp.abs(y) == 1, p, jnp.nan)
