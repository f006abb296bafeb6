"""Lanes of `vmap`: what holds in any of them, and what only some of them ask for."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Bool, Int

from ._types import BoolScalar, IntScalar


@jax.custom_batching.custom_vmap
def largest(number: Int[Array, "..."]) -> IntScalar:
    """The largest entry, over all lanes as well."""
    return jnp.max(number)


@largest.def_vmap
def _(axis_size, in_batched, number):
    return largest(number), False


def anywhere(condition: Bool[Array, "..."]) -> BoolScalar:
    """Whether any entry is True, in any lane: with one predicate for all, `cond` stays
    one.
    """
    return largest(condition.astype(jnp.int32)) > 0


def where_due(
    due: BoolScalar | bool, compute: Callable[[], Any], keep: Callable[[Any], Any]
) -> Any:
    """`compute()` where it is due, else `keep(blank)`, which is cheap; `blank` is what
    `compute` returns, all zero.

    Under `vmap` the lanes where it is due are computed one after the other, each as if
    it were alone: what they ask for differs, and few of them are due at a time. (On
    accelerators all of them at once, if any is due: there a batch costs what one does.)
    """
    # What the functions depend on has to be given to them under `vmap`.
    first = eqx.filter_closure_convert(compute)
    blank = jtu.tree_map(lambda s: jnp.zeros(s.shape, s.dtype), first.out_struct)
    second = eqx.filter_closure_convert(lambda: keep(blank))
    arrays, static = eqx.partition((first, second), eqx.is_array)

    def computed(arrays: Any) -> Any:
        return eqx.combine(arrays, static)[0]()

    def kept(arrays: Any) -> Any:
        return eqx.combine(arrays, static)[1]()

    @jax.custom_batching.custom_vmap
    def alone(due, arrays):
        return jax.lax.cond(due, computed, kept, arrays)

    @alone.def_vmap
    def _(axis_size, in_batched, due, arrays):
        # Arrays without an axis of lanes are the same in all.
        axes = jtu.tree_map(lambda batched: 0 if batched else None, in_batched[1])
        due = jnp.broadcast_to(due, (axis_size,))
        old = jax.vmap(kept, in_axes=(axes,), axis_size=axis_size)(arrays)
        if jax.default_backend() == "cpu":
            out = _one_by_one(alone, due, arrays, axes, old)
        else:
            out = _all_at_once(computed, due, arrays, axes, old)
        return out, jtu.tree_map(lambda _: True, out)

    return alone(jnp.asarray(due), arrays)


def either(condition: BoolScalar, yes: Callable[[], Any], no: Callable[[], Any]) -> Any:
    """`yes()` where the condition holds and `no()` elsewhere, both of arrays alone.

    Under `vmap` what no lane needs is not evaluated, and what some need is for all.
    """
    converted = [eqx.filter_closure_convert(_strong(one)) for one in (yes, no)]
    arrays, static = eqx.partition(converted, eqx.is_array)

    def run(which: int) -> Callable[[Any], Any]:
        return lambda arrays: eqx.combine(arrays, static)[which]()

    @jax.custom_batching.custom_vmap
    def chosen(condition, arrays):
        return jax.lax.cond(condition, run(0), run(1), arrays)

    @chosen.def_vmap
    def _(axis_size, in_batched, condition, arrays):
        axes = jtu.tree_map(lambda batched: 0 if batched else None, in_batched[1])
        condition = jnp.broadcast_to(condition, (axis_size,))

        def where_any(needed: Any, which: int) -> Any:
            whole = jax.vmap(run(which), in_axes=(axes,), axis_size=axis_size)
            shapes = jax.eval_shape(whole, arrays)
            blank = jtu.tree_map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
            return jax.lax.cond(anywhere(needed), lambda: whole(arrays), lambda: blank)

        out = jtu.tree_map(
            functools.partial(_select, condition),
            where_any(condition, 0),
            where_any(~condition, 1),
        )
        return out, jtu.tree_map(lambda _: True, out)

    return chosen(jnp.asarray(condition), arrays)


def _strong(function: Callable[[], Any]) -> Callable[[], Any]:
    # The two sides of `cond` may not differ in weak types.
    def strong(x: Any) -> Array:
        x = jnp.asarray(x)
        return x.astype(x.dtype)

    return lambda: jtu.tree_map(strong, function())


def _select(due: Any, new: Array, old: Array) -> Array:
    return jnp.where(due.reshape((-1,) + (1,) * (new.ndim - 1)), new, old)


def _one_by_one(alone: Any, due: Any, arrays: Any, axes: Any, old: Any) -> Any:
    (lanes,) = jnp.nonzero(due, size=due.shape[0], fill_value=0)
    number = jnp.sum(due)

    def of_lane(lane: IntScalar, x: Any, axis: int | None) -> Any:
        return x if axis is None else x[lane]

    def next_lane(carry: Any) -> Any:
        count, out = carry
        # Under a second `vmap`, the lanes of some run out before those of others.
        more = count < number
        lane = lanes[jnp.minimum(count, due.shape[0] - 1)]
        here = jtu.tree_map(
            functools.partial(of_lane, lane), arrays, axes, is_leaf=lambda x: x is None
        )
        place = jnp.where(more, lane, due.shape[0])
        found = jtu.tree_map(
            lambda all_, one: all_.at[place].set(one, mode="drop"),
            out,
            alone(more, here),
        )
        return count + 1, found

    start = (jnp.zeros_like(number), old)
    return jax.lax.while_loop(lambda carry: carry[0] < number, next_lane, start)[1]


def _all_at_once(compute: Any, due: Any, arrays: Any, axes: Any, old: Any) -> Any:
    def renewed() -> Any:
        new = jax.vmap(compute, in_axes=(axes,), axis_size=due.shape[0])(arrays)
        return jtu.tree_map(functools.partial(_select, due), new, old)

    return jax.lax.cond(anywhere(due), renewed, lambda: old)
