r"""The spheres ‖V‖ = 1 of the norms l1, l2, lp and l∞, and gradients along them.

Where the norm is differentiable, with normal $n = \partial\|V\|/\partial V$, the
tangent gradient of g is (Banburski et al. 2019, eq. (53))

$$Sg = g - \frac{n n^\top}{\|n\|_2^2}\,g.$$

On the edges, where it is not, it is the projection of g onto the tangent cone: entries
stay at 0 (l1) or at the bound (l∞) that would leave it and be driven back at once. The
state U keeps them there without chattering: V is U with its entries within `width` of
zero set to zero (l1), or clipped to [-1, 1] (l∞), and U rests where V does.
"""

import abc
import math
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._norms import array_norm
from .._types import Scalar


Vector = Float[Array, " entries"]


class AbstractSphere(eqx.Module):
    """A sphere ‖V‖ = 1."""

    @abc.abstractmethod
    def norm(self, w: Vector) -> Scalar:
        """‖w‖."""

    @abc.abstractmethod
    def lifted(self, v: Vector) -> Vector:
        """U, for a V of norm one."""

    @abc.abstractmethod
    def point(self, u: Vector) -> Vector:
        """V, of norm one."""

    @abc.abstractmethod
    def tangent(self, u: Vector, g: Vector) -> tuple[Vector, Vector]:
        """dU/dt and dV/dt, for g = -∂ℒ/∂V."""


class Power(AbstractSphere):
    """The sphere of the norm lp, 1 < p < ∞."""

    p: float = eqx.field(static=True)

    def norm(self, w):
        if self.p == 2:
            return array_norm(w)
        scale = jnp.max(jnp.abs(w))
        safe = jnp.where(scale == 0, 1, scale)
        return scale * jnp.sum(jnp.abs(w / safe) ** self.p) ** (1 / self.p)

    def lifted(self, v):
        return v

    def point(self, u):
        return u / self.norm(u)

    def tangent(self, u, g):
        size = self.norm(u)
        v = u / size
        normal = v if self.p == 2 else jnp.sign(v) * jnp.abs(v) ** (self.p - 1)
        normal = normal / array_norm(normal)
        moved = g - jnp.sum(normal * g) * normal
        return size * moved, moved


class Octahedron(AbstractSphere):
    r"""The sphere of l1, with normal sign V.

    $\dot V_j = g_j - c\,\text{sign}V_j$ where $V_j \ne 0$ and
    $\text{sign}(g_j)\max(|g_j| - c, 0)$ where $V_j = 0$, with the c that keeps ‖V‖₁.
    """

    width: float

    def norm(self, w):
        return jnp.sum(jnp.abs(w))

    def lifted(self, v):
        return v + jnp.asarray(self.width, v.dtype) * jnp.sign(v)

    def _outside(self, u: Vector) -> Vector:
        width = jnp.asarray(self.width, u.dtype)
        return jnp.sign(u) * jnp.maximum(jnp.abs(u) - width, 0)

    def point(self, u):
        outside = self._outside(u)
        return outside / self.norm(outside)

    def tangent(self, u, g):
        sign = jnp.sign(self._outside(u))
        on = sign != 0
        # c = (Σ sign V g + Σ_A |g|)/(number), A the entries at zero with |g| > c: the
        # largest such mean over sets of the largest |g|.
        at_zero = jnp.where(on, -jnp.inf, jnp.abs(g))
        order = jnp.sort(at_zero)[::-1]
        some = jnp.where(jnp.isneginf(order), 0, order)
        total = jnp.sum(sign * g) + jnp.concatenate(
            [jnp.zeros((1,), g.dtype), jnp.cumsum(some)]
        )
        number = jnp.sum(on) + jnp.arange(g.size + 1)
        usable = jnp.concatenate([jnp.asarray([True]), ~jnp.isneginf(order)])
        usable = usable & (number > 0)
        means = total / jnp.maximum(number, 1).astype(g.dtype)
        c = jnp.max(jnp.where(usable, means, -jnp.inf))
        leaving = jnp.sign(g) * jnp.maximum(jnp.abs(g) - c, 0)
        moved = jnp.where(on, g - c * sign, leaving)
        # V as it is: entries on their way through the width have not left zero.
        outside = self._outside(u)
        size = self.norm(outside)
        growth = jnp.sum(sign * moved) / size
        turned = jnp.where(on, moved, 0) / size - growth * (outside / size)
        return moved, turned


class Cube(AbstractSphere):
    r"""The sphere of l∞, whose normal is the sign of the largest entry.

    $\dot V_j = g_j$ but for entries of modulus one that g drives outwards; where it
    drives none outwards, for the one of those that it drives inwards most slowly.
    """

    def norm(self, w):
        return jnp.max(jnp.abs(w))

    def lifted(self, v):
        return v

    def point(self, u):
        return jnp.clip(u, -1, 1)

    def tangent(self, u, g):
        largest = jnp.abs(u) >= 1
        outwards = jnp.sign(u) * g
        held = jnp.any(largest & (outwards >= 0))
        slowest = jnp.max(jnp.where(largest, outwards, -jnp.inf))
        rests = largest & jnp.where(held, outwards >= 0, outwards == slowest)
        moved = jnp.where(rests, 0, g)
        # An entry that a step has carried past the bound comes back to it first.
        return moved, jnp.where(largest, 0, moved)


def sphere(norm: Any, width: float) -> AbstractSphere:
    """The sphere of a norm by its name; ValueError if there is none."""
    if not (isinstance(width, (int, float)) and 0 < width < 1):
        raise ValueError(
            f"width={width!r} is not a number between 0 and 1; use some tens of rtol."
        )
    if norm == "l1":
        return Octahedron(width)
    if norm == "l2":
        return Power(2.0)
    if norm == "linf":
        return Cube()
    number = isinstance(norm, (int, float)) and not isinstance(norm, bool)
    if number and 1 < norm < math.inf:
        return Power(float(norm))
    raise ValueError(
        f"norm={norm!r} is not known; use 'l1', 'l2', 'linf' or a number p > 1."
    )
