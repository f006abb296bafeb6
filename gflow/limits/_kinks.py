r"""The conditions on kinks at a KKT point.

With shares $s_k\in[0,1]$ of the upper branches of the pinned kinks,

$$\bar\theta = \frac1{L\gamma}\sum_m q_m\nabla p_m(\bar\theta; s),\qquad
  \sum_m q_m\,\frac{\partial}{\partial s_k}\nabla p_m = w_k \nabla z_k .$$

The margin has a maximum across kink k where it is concave there, $w_k < 0$, and
$0 < s_k < 1$. Every other kink must be off zero, on the side that its branch is for.
"""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from .._flat import unflattener
from .._inclusion import unit_rows
from .._patterns import box_is_exact
from ._kkt import Kkt
from ._pinned import Pattern, Pinned, pattern_of


# Passes over the shares of kinks in series, whose jumps depend on each other.
_PASSES = 20


class Kinks(NamedTuple):
    """How the conditions hold."""

    shares: np.ndarray  # NaN without a force: of neurons that vanish
    residual: float
    slack: float  # of the shares
    room: float  # |z| of the other kinks, over their size
    num_vanishing: int  # of size zero, and not pinned by a force
    stable: bool  # whether the margin is concave across every pinned kink
    exact: bool
    wrong: np.ndarray  # the numbers of kinks on the wrong side
    released: Pattern | None  # without the pin that does not hold; None if all do

    @property
    def fit(self) -> bool:
        """Whether the pattern is that of the point."""
        return len(self.wrong) == 0 and self.released is None


@eqx.filter_jit
def _sums(frozen, like, w, shares, log_weights, pins):
    # Σ q ∇p with these shares, its jumps across the pinned kinks, and their normals.
    params = unflattener(like)(w)
    given = eqx.tree_at(
        lambda f: f.log_weights, frozen, log_weights, is_leaf=lambda x: x is None
    )
    _, total, pull = given.flat_gradient(params, shares)
    rows = given.rows(params, shares, pull, pins)
    return total, rows.jumps, rows.normals


@eqx.filter_jit
def _sizes(frozen, like, w):
    return frozen.sizes(unflattener(like)(w))


@eqx.filter_jit
def _box_is_exact(normals, weights):
    return box_is_exact(unit_rows(normals), weights, weights != 0)


def _exact(flat: Pinned, normals: np.ndarray, weight: np.ndarray) -> bool:
    # Kinks across which all margins are concave are the common case.
    if np.all(weight < 0) or np.all(weight > 0):
        return True
    return bool(_box_is_exact(flat.cast(normals), flat.cast(weight)))


def _shared(flat: Pinned, theta: np.ndarray, q: np.ndarray, margin: float):
    # The shares of least squares; jumps and normals at these; what is left.
    pins = flat.pattern.pins
    branches = flat.pattern.branches.astype(float)
    with np.errstate(divide="ignore"):
        log_q = flat.cast(np.log(q))
    total = flat.frozen.total
    room = np.full(max(8, 1 << int(np.ceil(np.log2(max(len(pins), 1))))), total)
    room[: len(pins)] = pins

    def sums(s):
        branches.reshape(-1)[pins] = s
        args = (flat.cast(theta), flat.cast(branches), log_q, jnp.asarray(room))
        found = _sums(flat.frozen, flat.like, *args)
        found = [np.asarray(x, np.float64) / flat.unit for x in found]
        return found[0], found[1][: len(pins)], found[2][: len(pins)]

    s = np.full(len(pins), 0.5)
    for _ in range(_PASSES):
        gradient, jumps, normals = sums(s)
        rest = flat.degree * margin * theta - gradient
        size = np.linalg.norm(jumps, axis=1)
        felt = size > flat.eps**0.5 * flat.degree * margin
        move = np.zeros(len(pins))
        if np.any(felt):
            move[felt] = np.linalg.lstsq(jumps[felt].T, rest, rcond=None)[0]
        s = s + move
        if np.max(np.abs(move), initial=0.0) <= 1e3 * flat.eps:
            break
    inside = np.clip(s, 0.0, 1.0)
    gradient, jumps, normals = sums(inside)
    left = np.linalg.norm(theta - gradient / (flat.degree * margin))
    return s, felt, jumps, normals, float(left)


def kinks_at(flat: Pinned, at: Kkt) -> Kinks:
    """The conditions at a point, with the multipliers of its margins."""
    theta, margin = at.theta, at.margin
    pattern, tolerance = flat.pattern, flat.eps**0.5
    pins = pattern.pins
    s, felt, jumps, normals, left = _shared(flat, theta, at.multipliers, margin)
    # z over its size, that of a vector in general position where it vanishes.
    generic = np.random.default_rng(4).standard_normal(flat.size)
    generic /= np.linalg.norm(generic)
    sizes, usual = (
        np.asarray(_sizes(flat.frozen, flat.like, flat.cast(w)), np.float64)
        for w in (theta, generic)
    )
    vanishing = (usual > 0) & (sizes <= tolerance * usual)
    side = np.where(pattern.branches, 1.0, -1.0)
    z = side * flat.values(theta) / np.where(vanishing | (sizes == 0), 1.0, sizes)
    watched = ~vanishing & (sizes > 0)
    off = np.where(watched, z, np.inf).reshape(-1)
    on = np.max(np.abs(off[pins][np.isfinite(off[pins])]), initial=0.0)
    off[pins] = np.inf
    forces = at.forces / (flat.degree * margin)
    room = float(np.min(off))
    inner = np.minimum(s, 1 - s)[felt]
    slack = float(np.min(inner, initial=np.inf))
    weight = np.sum(jumps * normals, axis=1)[felt]
    exact = _exact(flat, normals[felt], weight)
    group = pins[felt] // flat.frozen.num_kinks
    series = flat.frozen.in_series and len(np.unique(group)) < len(group)
    return Kinks(
        np.where(felt, s, np.nan),
        max(left, float(on), max(-room, 0.0)),
        slack,
        room,
        int(np.sum(vanishing)) - int(np.sum(vanishing.reshape(-1)[pins[felt]])),
        bool(np.all(weight < 0)),
        exact and not series,
        np.flatnonzero(off < -tolerance),
        _released(pattern, s, felt, weight, forces, tolerance),
    )


def _released(pattern, s, felt, weight, forces, tolerance) -> Pattern | None:
    """Without the pin whose share is farthest from [0, 1]."""
    # Where the jump is zero (no weight on the example) it cannot give any force.
    idle = np.where(np.abs(forces) > tolerance, np.copysign(np.inf, -forces), 0.5)
    s = np.where(felt, s, idle)
    out = np.maximum(-s, s - 1)
    # Across a kink where it is convex the margin grows on either side.
    out[felt] = np.where(weight > 0, np.maximum(out[felt], 1.0), out[felt])
    if np.max(out, initial=0.0) <= tolerance:
        return None
    worst = int(np.argmax(out))
    branches = pattern.branches.copy()
    branches.reshape(-1)[pattern.pins[worst]] = s[worst] > 0.5
    return pattern_of(branches, np.delete(pattern.pins, worst))
