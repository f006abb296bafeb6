"""Dense output by cubic polynomials, without a copy of what they are made from."""

from typing import Any

import diffrax as dfx
import jax.numpy as jnp
import jax.tree_util as jtu

from .._types import Scalar


class Hermite(dfx.AbstractLocalInterpolation):
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

    def evaluate(self, t0, t1=None, left=True):
        del left
        if t1 is not None:
            there, here = self.evaluate(t1), self.evaluate(t0)
            return jtu.tree_map(jnp.subtract, there, here)
        h = self.t1 - self.t0
        x = (t0 - self.t0) / h
        rest = 1 - x
        weights = (
            rest**2 * (1 + 2 * x),
            x**2 * (1 + 2 * rest),
            h * x * rest**2,
            -h * x**2 * rest,
        )

        def value(*leaves: Any) -> Any:
            terms = [
                jnp.asarray(w, leaf.dtype) * leaf
                for w, leaf in zip(weights, leaves, strict=True)
            ]
            return terms[0] + terms[1] + (terms[2] + terms[3])

        return jtu.tree_map(value, self.y0, self.y1, self.f0, self.f1)
