r"""Margins on given branches, with kinks held at zero.

Where the limit lies on kinks, $z_k(w) = 0$ for some k, the flow that converges to it
slides along them. On that surface, and with the other branches held fixed, the margins
are smooth: the search and the second-order condition are those of the smooth case with
the equations $z_k = 0$ beside the active margins. Which side of a pinned kink the
branches are on makes no difference there, not even if one kink feeds another.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._flat import flatten_rows, unflattener
from .._frozen import Branched, Frozen
from .._pairs import some_pairs
from .._types import Params
from ._flat import Flat, padded


class Pattern(NamedTuple):
    """The branches of all kinks, and which of them are pinned."""

    branches: np.ndarray  # (groups, kinks), lower for pinned ones
    pins: np.ndarray  # their numbers, in increasing order


def pattern_of(branches: np.ndarray, pins: Any) -> Pattern:
    """With pinned kinks on the lower branch, in order."""
    pins = np.sort(np.asarray(pins, int))
    branches = np.array(branches, bool)
    branches.reshape(-1)[pins] = False
    return Pattern(branches, pins)


@eqx.filter_jit
def _values(problem: Branched, like, w):
    frozen = problem.frozen
    return frozen.pre_activations(unflattener(like)(w), problem.branches)


@eqx.filter_jit
def _normals(problem: Branched, like, w, index):
    frozen, branches = problem.frozen, problem.branches

    def one(number):
        group, kink = number // frozen.num_kinks, number % frozen.num_kinks

        def value(params):
            here = branches[group]
            return frozen.pre_activations_of(params, here, group)[kink]

        return jax.grad(value)(unflattener(like)(w))

    return flatten_rows(jax.vmap(one)(index))


@eqx.filter_jit
def _products(problem: Branched, like, w, weights, index, forces, vectors):
    unflatten = unflattener(like)

    def lagrangian(params):
        z = problem.frozen.pre_activations(params, problem.branches)
        margins = some_pairs(problem, params, index)
        return jnp.sum(weights * margins) + jnp.sum(forces * z)

    _, product = jax.linearize(jax.grad(lagrangian), unflatten(w))
    return flatten_rows(jax.vmap(lambda v: product(unflatten(v)))(vectors))


class Pinned(Flat):
    """The margins on a pattern, and the pre-activations of its pinned kinks."""

    def __init__(
        self,
        frozen: Frozen,
        like: Params,
        degree: float,
        unit: float,
        pattern: Pattern,
        at: np.ndarray,
    ):
        problem = frozen.on(jnp.asarray(pattern.branches))
        super().__init__(problem, like, degree, unit)
        self._branched = problem
        self.frozen = frozen
        self.pattern = pattern
        self.num_pairs = len(self.margins(at))
        self.pins = self.num_pairs + np.arange(len(pattern.pins))
        # Normals of length one where the search begins.
        length = np.linalg.norm(self.normals(at, pattern.pins), axis=1)
        self._lengths = np.where(length > 0, length, 1.0)

    def on(self, pattern: Pattern, at: np.ndarray) -> "Pinned":
        """On another pattern."""
        return Pinned(self.frozen, self.like, self.degree, self.unit, pattern, at)

    def values(self, w: np.ndarray) -> np.ndarray:
        """(groups, kinks) z of every kink, on these branches."""
        return np.asarray(_values(self._branched, self.like, self.cast(w)), np.float64)

    def normals(self, w: np.ndarray, kinks: np.ndarray) -> np.ndarray:
        """(k, P) ∇z of the kinks with these numbers."""
        if len(kinks) == 0:
            return np.zeros((0, self.size))
        out = _normals(self._branched, self.like, self.cast(w), padded(kinks))
        return np.asarray(out, np.float64)[: len(kinks)]

    def constraints(self, w: np.ndarray) -> np.ndarray:
        z = self.values(w).reshape(-1)[self.pattern.pins]
        return np.append(self.margins(w), 1.0 + z / self._lengths)

    def rows(self, w: np.ndarray, index: np.ndarray) -> np.ndarray:
        index = np.asarray(index)
        out = np.zeros((len(index), self.size))
        pairs = index < self.num_pairs
        if np.any(pairs):
            out[pairs] = super().rows(w, index[pairs])
        number = index[~pairs] - self.num_pairs
        out[~pairs] = self.normals(w, self.pattern.pins[number])
        out[~pairs] /= self._lengths[number][:, None]
        return out

    def curvature(self, w: np.ndarray, weights: np.ndarray, index: np.ndarray):
        index, weights = np.asarray(index), np.asarray(weights)
        pairs = index < self.num_pairs
        chosen = padded(index[pairs])
        scaled = np.zeros(chosen.shape[0])
        scaled[: np.sum(pairs)] = weights[pairs] / self.unit
        forces = np.zeros(self.pattern.branches.size)
        number = index[~pairs] - self.num_pairs
        forces[self.pattern.pins[number]] = weights[~pairs] / self._lengths[number]
        args = (self._branched, self.like, self.cast(w), self.cast(scaled), chosen)
        forces = self.cast(forces.reshape(self.pattern.branches.shape))
        return self.in_parts(lambda vectors: _products(*args, forces, vectors))
