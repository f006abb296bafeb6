"""The end of a step across kinks: dense output, bookkeeping, what its error means."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array

from .._flow import FlowState, SwitchingError
from .._sliding import Sides
from .._types import BoolScalar, IntScalar, Params, Scalar
from ._local import AbstractLocal


# Crossings in a step from which on they are like a smooth change of the velocity, whose
# errors are of third order in the step.
_SEVERAL = 4
# Both errors of second order are corrected for. Where several kinks are crossed, of
# which each has a small part, this part of the corrections is taken for what they leave
# (measured on digits, n 200, m 100, T 500, rtol 1e-6: the log loss is right to 1e-6
# with parts from 1 to 0.1, at 294 to 131 steps, the energy to 4e-6 to 1.2e-5).
_LEFT = 0.3
# The part of the longest step that the error estimate would allow which is taken.
_SAFETY = 0.7


class SwitchedPath(AbstractLocal):
    """Dense output of a step, with what kinks changed about its last part."""

    t0: Any
    t1: Any
    inner: Any
    first: Any  # the fraction at which the first kink is crossed
    linear: Any
    square: Any
    travelling: Any
    inner_cls: Any = eqx.field(static=True)

    def at(self, time: Any) -> Any:
        path = self.inner_cls(t0=self.t0, t1=self.t1, **self.inner)
        y = path.evaluate(time)
        x = (time - self.t0) / positive(self.t1 - self.t0)
        rest = 1 - self.first
        x = jnp.maximum(x - self.first, 0) / positive(rest)
        y = jtu.tree_map(
            lambda y, a, b: y + (x * (a + x * b)).astype(y.dtype),
            y,
            self.linear,
            self.square,
        )
        return dressed(y, self.travelling)


@functools.cache
def path_class(inner_cls: Any) -> Any:
    return functools.partial(SwitchedPath, inner_cls=inner_cls)


class Step(eqx.Module):
    """The end of a step, with what kinks changed about it."""

    state: FlowState
    sides: Sides
    z: Array
    rate: Array
    lately: Array
    error: SwitchingError
    first: Scalar
    linear: FlowState
    square: FlowState
    jumped: BoolScalar
    spent: Scalar  # gradients
    crossed: IntScalar
    pinned: IntScalar
    released: IntScalar
    kink: IntScalar
    jump: Scalar  # the change of the velocity, relative to it


def share(gone: Params, e: Params) -> Scalar:
    """⟨e, D⟩/⟨D, D⟩, between 1 for a jump at the start and 2 for a ramp."""
    scale = largest_entry(gone)
    a = jtu.tree_map(lambda x: x / scale, gone)
    above = dot(jtu.tree_map(lambda x: x / scale, e), a)
    below = dot(a, a)
    ratio = jnp.where(below > 0, above / jnp.where(below > 0, below, 1), 1)
    return jnp.where(jnp.isfinite(ratio), ratio, 1)


def jump_size(e: FlowState, slope: FlowState, h: Scalar) -> Scalar:
    """The size of the jump of the velocity relative to the velocity."""
    e, slope, h = jax.lax.stop_gradient((e, slope, h))
    scale = largest_entry(slope.params)
    a = jtu.tree_map(lambda x: x / scale, slope.params)
    b = jtu.tree_map(lambda x: x / scale / positive(h), e.params)
    return jnp.sqrt(dot(b, b) / jnp.maximum(dot(a, a), jnp.finfo(h.dtype).tiny))


def booked(
    y1: FlowState,
    slope: FlowState,
    gone: Params,
    e: FlowState,
    params: Params,
    h: Scalar,
) -> FlowState:
    """The state at the end, with the bookkeeping of where it has gone.

    Energy is ∫‖v + D'‖², D how far the path has moved. Other bookkeeping takes the
    part of the change of its rate that D is of the change of the velocity.
    """
    scale = largest_entry(slope.params)
    unit = lambda tree: jtu.tree_map(lambda x: x / scale, tree)  # noqa: E731
    old, way, kick = unit(slope.params), unit(gone), unit(e.params)
    # 2 ⟨v, D⟩ + ∫ ‖D'‖², D the parabola of the dense output.
    square = jtu.tree_map(jnp.subtract, kick, way)
    linear = jtu.tree_map(jnp.subtract, way, square)
    more = dot(linear, linear) + 2 * dot(linear, square)
    more = (more + 4 / 3 * dot(square, square)) / positive(h)
    work = 2 * dot(way, old) + jnp.where(h > 0, more, 0)
    size = dot(old, old)

    def energy(name: str) -> Any:
        value, before = getattr(y1, name), getattr(slope, name)
        if value is None:
            return None
        per = jnp.where(size > 0, before / jnp.where(size > 0, size, 1), 0)
        return value + per * work

    part = 1 / jnp.clip(share(gone, e.params), 1, 4)

    def other(name: str) -> Any:
        value, change = getattr(y1, name), getattr(e, name)
        return None if value is None else value + part * change

    return FlowState(
        params=params,
        dissipated=energy("dissipated"),
        fallen=energy("fallen"),
        path_length=other("path_length"),
        motion=other("motion"),
        # The clock runs on as it did before the first kink.
        log_time=y1.log_time,
        work=y1.work,
        crowding=y1.crowding,
    )


def nothing_like(tree: Any) -> Any:
    """Zeros of the same shapes."""
    return jtu.tree_map(jnp.zeros_like, tree)


def minus(a: Any, b: Any, h: Scalar) -> Any:
    return jtu.tree_map(lambda x, y: (h * (x - y)).astype(x.dtype), a, b)


def dot(a: Params, b: Params) -> Scalar:
    pairs = zip(jtu.tree_leaves(a), jtu.tree_leaves(b), strict=True)
    return jnp.sum(jnp.stack([jnp.vdot(x, y) for x, y in pairs]))


def largest_entry(tree: Params) -> Scalar:
    leaves = jtu.tree_leaves(tree)
    most = functools.reduce(
        jnp.maximum, [jnp.max(jnp.abs(leaf), initial=0) for leaf in leaves]
    )
    return jax.lax.stop_gradient(jnp.where(most > 0, most, 1))


def error_of(size: Scalar, first: Scalar, number: IntScalar) -> SwitchingError:
    """What the step-size controller is told of a step across so many kinks."""
    several = number >= _SEVERAL
    size = jnp.where(several, _LEFT * size, size)
    safe = jnp.maximum(size, 1e-12)
    power = jnp.where(several, -1 / 3, -1 / 2)
    factor = _SAFETY * safe**power
    shorter = jnp.clip(first + (1 - first) * factor, 0.02, 0.9)
    growth = jnp.where(several, jnp.clip(factor, 0.3, 5.0), 0)
    return SwitchingError(size, shorter.astype(size.dtype), growth.astype(size.dtype))


def bare(state: FlowState) -> FlowState:
    """The state without what the inner solver need not know."""
    return eqx.tree_at(
        lambda s: (s.pins, s.switching),
        state,
        (None, None),
        is_leaf=lambda x: x is None,
    )


def dressed(state: FlowState, parts: Any) -> FlowState:
    """The state with what travels with it."""
    return eqx.tree_at(
        lambda s: (s.work, s.pins, s.switching),
        state,
        parts,
        is_leaf=lambda x: x is None,
    )


def positive(h: Any) -> Any:
    """The length of a step; one where there is none, so that it may be divided by."""
    return jnp.where(h > 0, h, 1)


def stopped(tree: Any) -> Any:
    """The tree with arrays that have no derivatives."""
    arrays, rest = eqx.partition(tree, eqx.is_array)
    return eqx.combine(jax.lax.stop_gradient(arrays), rest)
