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
from .._types import Scalar


_EXACT = jax.lax.Precision.HIGHEST


def flat_output(dense: Any) -> Any:
    """A step's dense output, of states as vectors.

    It is evaluated in many places of a program: with one array instead of a dozen, that
    compiles in a fraction of the time.
    """

    def flat(state: FlowState) -> Array:
        lead = state.dissipated.shape
        leaves = jtu.tree_leaves(state)
        dtype = state.dissipated.dtype
        return jnp.concatenate(
            [leaf.reshape(*lead, -1).astype(dtype) for leaf in leaves], axis=-1
        )

    return {name: flat(state) for name, state in dense.items()}


class Bends(eqx.Module):
    """Those of a step, in its first `number` slots, as vectors."""

    begins: Float[Array, " most"]
    end: Scalar  # of them all
    number: Scalar  # as Diffrax fills what it keeps of a step with infinity
    each: Any  # the method's dense outputs, which its own class reads:
    interpolation_cls: Any = eqx.field(static=True)

    def at(self, time: Any) -> Float[Array, " N"]:
        """What they change about the state there."""
        on = jnp.arange(self.begins.shape[0]) < self.number.astype(int)
        on = on & (time >= self.begins)

        def one(begin: Scalar, dense: Any) -> Array:
            path = self.interpolation_cls(t0=begin, t1=self.end, **dense)
            return path.evaluate(jnp.maximum(time, begin))

        rows = jax.vmap(one)(self.begins, self.each)
        return jnp.tensordot(on.astype(rows.dtype), rows, 1, precision=_EXACT)

    def appended(self, begin: Scalar, dense: Any) -> "Bends":
        """With one more; there must be room."""
        slot = self.number.astype(int)
        return Bends(
            begins=self.begins.at[slot].set(begin),
            end=self.end,
            number=self.number + 1,
            each=jtu.tree_map(lambda a, x: a.at[slot].set(x), self.each, dense),
            interpolation_cls=self.interpolation_cls,
        )


def no_bends(solver: dfx.AbstractERK, most: int, path: Any, dense: Any) -> Bends:
    """Room for as many as `most`, of the step with this (flat) dense output."""
    return Bends(
        # Where there is none a time before the end, for the sake of division.
        begins=jnp.full(most, path.t0),
        end=path.t1,
        number=jnp.zeros_like(path.t0),
        each=jtu.tree_map(lambda x: jnp.zeros((most, *x.shape), x.dtype), dense),
        interpolation_cls=solver.interpolation_cls,
    )


def bent(
    solver: dfx.AbstractERK,
    velocity: Callable[[Any, Array], Array],
    path: Callable[[Any], Array],
    begin: Scalar,
    end: Scalar,
    jump: Float[Array, " N"],
) -> tuple[Float[Array, " N"], Float[Array, " N"], Any]:
    """d at the end, its error, and its dense output.

    `velocity` is that from `begin` on, where the state itself jumps a little.
    """

    def rate(time: Any, change: Any, args: Any) -> Array:
        del args
        y, slope = jax.jvp(path, (time,), (jnp.ones_like(time),))
        return velocity(time, y + change) - slope

    term: Any = dfx.ODETerm(rate)
    state = solver.init(term, begin, end, jump, None)
    change, error, dense, _, _ = solver.step(
        term, begin, end, jump, None, state, jnp.asarray(True)
    )
    return change, error, dense  # pyright: ignore
