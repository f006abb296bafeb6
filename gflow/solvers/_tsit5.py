"""Diffrax's Tsit5 with its stages written out, for what its loop over them costs."""

from collections.abc import Callable
from typing import Any, ClassVar, cast

import diffrax as dfx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu

from .._lanes import anywhere
from .._types import Scalar
from ._advance import combined
from ._local import AbstractLocal
from ._pack import packing


class Interpolation(AbstractLocal):
    """Diffrax's own polynomials, of slopes that nothing has copied to one array."""

    t0: Scalar
    t1: Scalar
    y0: Any
    y1: Any
    f: tuple[Any, ...]  # at the stages; small states as one vector each

    def at(self, time: Any) -> Any:
        h = self.t1 - self.t0
        pack, unpack = packing(self.y0)
        number = len(self.f)
        # Values are linear in the slopes: of slopes of one each, theirs alone.
        zero, one = jnp.zeros((number,), h.dtype), jnp.eye(number, dtype=h.dtype)
        theirs: Any = dfx.Tsit5.interpolation_cls(
            t0=self.t0, t1=self.t1, y0=zero, y1=zero, k=one
        )
        weights = theirs.evaluate(time)
        terms = [(h * weights[j], f) for j, f in enumerate(self.f)]
        return unpack(combined((1, pack(self.y0)), *terms))


class Tsit5(dfx.Tsit5):
    """The same method, for ordinary differential equations.

    Diffrax goes over the stages in a loop: each reads room for all of the slopes, and
    writes to it array by array. Written out, a stage reads the slopes there are, and
    those of small states are vectors. That takes a tenth less time a gradient at
    P = 1e3, a quarter less at P = 1e6 with few examples; 3 P numbers more; and no
    longer to compile.
    """

    interpolation_cls: ClassVar[Callable[..., Any]] = Interpolation  # pyright: ignore

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        pack, unpack = packing(y0)
        tableau: Any = self.tableau
        h = jnp.asarray(t1 - t0)

        def field(t: Any, y: Any) -> Any:
            return pack(terms.vf(t, y, args))

        first, slope = cast(tuple, solver_state)
        new = jnp.asarray(first | made_jump)

        def renewed() -> Any:
            # (In the lanes of `vmap` that ask for it.)
            return jtu.tree_map(
                lambda a, b: jnp.where(new, a, b), field(t0, y0), pack(slope)
            )

        slopes = [jax.lax.cond(anywhere(new), renewed, lambda: pack(slope))]
        y, y1 = pack(y0), y0
        for a, c in zip(tableau.a_lower, tableau.c, strict=True):
            y1 = unpack(combined((1, y), *_scaled(h, a, slopes)))
            slopes.append(field(t0 + jnp.asarray(c, h.dtype) * h, y1))
        error = unpack(combined(*_scaled(h, tableau.b_error, slopes)))
        # The last stage is the step's end.
        dense = {"y0": y0, "y1": y1, "f": tuple(slopes)}
        state = (jnp.zeros_like(first), unpack(slopes[-1]))
        return y1, error, dense, state, dfx.RESULTS.successful


def _scaled(h: Scalar, weights: Any, slopes: list[Any]) -> list[tuple[Any, Any]]:
    # (A slope may be all infinite, where an earlier stage was.)
    used = zip(weights, slopes, strict=True)
    return [(jnp.asarray(w, h.dtype) * h, f) for w, f in used if w != 0]
