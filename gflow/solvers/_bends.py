r"""What kinks change about the rest of a step.

A step that was made on one pattern of branches has the dense output y(t). Where the
pattern changes, at c, the path goes on as y(t) + d(t), with

$$\dot d = f(y + d) - \dot y,\qquad d(c) = 0,$$

f the velocity on the next pattern. One step of the same method solves that. As d is as
small as the jump of the velocity that the kink makes, one kink of many, so is its
error: the rest of the step needs no smaller steps for it.
"""

from collections.abc import Callable
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float

from .._flow import FlowState
from .._types import IntScalar, Scalar


_EXACT = jax.lax.Precision.HIGHEST


class Bends(eqx.Module):
    """Those of a step, in its first `number` slots."""

    begins: Float[Array, " most"]
    end: Scalar  # of them all
    number: IntScalar
    each: Any  # the method's dense outputs, which its own class reads:
    interpolation_cls: Any = eqx.field(static=True)

    def at(self, time: Any) -> FlowState:
        """What they change about the state there."""
        on = jnp.arange(self.begins.shape[0]) < self.number
        on = on & (time >= self.begins)

        def one(begin: Scalar, dense: Any) -> FlowState:
            path = self.interpolation_cls(t0=begin, t1=self.end, **dense)
            return path.evaluate(jnp.maximum(time, begin))

        def total(rows: Array) -> Array:
            return jnp.tensordot(on.astype(rows.dtype), rows, 1, precision=_EXACT)

        return jtu.tree_map(total, jax.vmap(one)(self.begins, self.each))

    def appended(self, begin: Scalar, dense: Any) -> "Bends":
        """With one more; there must be room."""
        slot = self.number
        return Bends(
            begins=self.begins.at[slot].set(begin),
            end=self.end,
            number=slot + 1,
            each=jtu.tree_map(lambda a, x: a.at[slot].set(x), self.each, dense),
            interpolation_cls=self.interpolation_cls,
        )


def no_bends(solver: dfx.AbstractERK, most: int, path: Any, dense: Any) -> Bends:
    """Room for as many as `most`, of the step with this dense output."""
    return Bends(
        # Where there is none a time before the end, for the sake of division.
        begins=jnp.full(most, path.t0),
        end=path.t1,
        number=jnp.asarray(0),
        each=jtu.tree_map(lambda x: jnp.zeros((most, *x.shape), x.dtype), dense),
        interpolation_cls=solver.interpolation_cls,
    )


def bent(
    solver: dfx.AbstractERK,
    velocity: Callable[[Any, FlowState], FlowState],
    path: Callable[[Any], FlowState],
    begin: Scalar,
    end: Scalar,
    jump: FlowState,
) -> tuple[FlowState, FlowState, Any]:
    """d at the end, its error, and its dense output.

    `velocity` is that from `begin` on, where the state itself jumps a little.
    """

    def rate(time: Scalar, change: FlowState, args: Any) -> FlowState:
        del args
        y, slope = jax.jvp(path, (time,), (jnp.ones_like(time),))
        at = jtu.tree_map(jnp.add, y, change)
        return jtu.tree_map(jnp.subtract, velocity(time, at), slope)

    term: Any = dfx.ODETerm(rate)
    state = solver.init(term, begin, end, jump, None)
    change, error, dense, _, _ = solver.step(
        term, begin, end, jump, None, state, jnp.asarray(True)
    )
    return change, error, dense
