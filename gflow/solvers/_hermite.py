"""Dense output by cubic polynomials, without a copy of what they are made from."""

from typing import Any

from .._types import Scalar
from ._advance import combined
from ._local import AbstractLocal


class Hermite(AbstractLocal):
    """The cubic through both ends of a step with the slopes there.

    Diffrax's own stacks its coefficients, 4 P numbers, on each step. Here values are
    combined where one is asked for, from what the solver has anyway.
    """

    t0: Scalar
    t1: Scalar
    y0: Any
    y1: Any
    f0: Any
    f1: Any

    def at(self, time: Any) -> Any:
        h = self.t1 - self.t0
        x = (time - self.t0) / h
        rest = 1 - x
        return combined(
            (rest**2 * (1 + 2 * x), self.y0),
            (x**2 * (1 + 2 * rest), self.y1),
            (h * x * rest**2, self.f0),
            (-h * x**2 * rest, self.f1),
        )
