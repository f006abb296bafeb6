"""What a loss must say about itself for the flow to be formed in the log domain."""

import abc
import math
from typing import Any

import equinox as eqx
from jaxtyping import Array, Float

from .._types import Examples, Scalar


class Linearised(eqx.Module):
    r"""The loss at given outputs, and its slope there with the scale taken out.

    $-\partial\mathcal L/\partial f = e^{\text{log\_slope}} \cdot \text{pull}$ with
    `pull` of moderate size, so that neither a loss of e^-10000 nor its gradient
    underflows.
    """

    log_loss: Scalar
    log_slope: Scalar
    pull: Float[Array, "examples ..."]
    # The loss as a number. Only losses that may be negative need it (see `custom`).
    loss: Scalar


class AbstractLoss(eqx.Module):
    r"""$\mathcal L(W) = \sum_i \ell(f(x_i; W), y_i)$, or its mean over the examples.

    `reduction="sum"` (the default, as in Ji & Telgarsky 2020) or `"mean"`, which
    divides by n and so only rescales time.
    """

    reduction: eqx.AbstractVar[str]
    # Whether labels are cast to the parameters' dtype; integer classes are not.
    casts_labels: eqx.AbstractClassVar[bool]

    @abc.abstractmethod
    def check(self, outputs_shape: tuple[int, ...], y: Any) -> None:
        """Raises ValueError if outputs of this shape or labels `y` do not fit."""

    @abc.abstractmethod
    def linearise(self, outputs: Float[Array, "examples ..."], y: Array) -> Linearised:
        """The loss and the scaled negative slope at the outputs."""

    @abc.abstractmethod
    def margins(self, outputs: Float[Array, "examples ..."], y: Array) -> Examples:
        """The margin p_i of each example; NaN where the labels define none."""

    def log_reduction(self, n: int) -> float:
        """log of the factor that the reduction puts before the sum."""
        return 0.0 if self.reduction == "sum" else -math.log(n)


def check_reduction(reduction: Any) -> None:
    """Raises ValueError unless `reduction` is one that losses know."""
    if reduction not in ("sum", "mean"):
        raise ValueError(
            f"reduction={reduction!r} is not known; use 'sum' (ℒ = Σ ℓ_i, the default) "
            "or 'mean' (ℒ = Σ ℓ_i / n)."
        )
