r"""Which rescalings of the weights leave the outputs alone.

Each gives a conserved quantity of the flow (Noether's theorem): degrees $L_k$ in the
layers conserve the differences of $\|W_k\|^2/L_k$, rescaling a neuron those of its
incoming and outgoing weights, and changing the basis between the layers of a deep
linear network $W_{k+1}^\top W_{k+1}-W_kW_k^\top$. Symmetries are measured, at random
weights.
"""

import functools
import itertools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Float

from .._problem import Problem, dtype_of, predict
from .._types import Params
from ..nn import Batched
from ..nn._init import fan_in
from ..observe._blocks import layers, matrix, num_inputs


class Symmetries:
    """The symmetries of a model, each measured where it is first asked for."""

    def __init__(self, problem: Problem, params: Params):
        self.problem = problem
        rng = np.random.default_rng(0)
        dtype = dtype_of(params)
        # What is equal but for rounding, which is well below.
        self._close = float(jnp.finfo(dtype).eps) ** 0.5

        def draw(w):
            values = rng.standard_normal(w.shape) * fan_in(w.shape) ** -0.5
            return jnp.asarray(values, w.dtype)

        self.params = jtu.tree_map(draw, params)
        # With random inputs too: on the data every neuron may be active.
        x = problem.x
        if jnp.issubdtype(x.dtype, jnp.floating):
            x = jnp.asarray(rng.standard_normal(x.shape), x.dtype)
        self._random = eqx.tree_at(lambda p: p.x, problem, x)
        self._rng = rng

    @functools.cached_property
    def layer_degrees(self) -> list[float | None]:
        """The degree L_k in each array alone, in tree order; None where there is none.

        By Euler's theorem: ⟨W_k, ∂f/∂W_k⟩ = L_k f for every example.
        """
        outputs, radial = _layerwise_radial(self._random, self.params)
        outputs, radial = np.asarray(outputs), np.asarray(radial)
        size = float(np.max(np.abs(outputs)))
        if not (np.isfinite(size) and size > 0):
            return [None] * radial.shape[0]
        found = []
        for one in radial:
            degree = float(np.sum(one * outputs) / np.sum(outputs * outputs))
            error = np.max(np.abs(one - degree * outputs)) / size
            near = round(12 * degree) / 12
            degree = near if abs(near - degree) <= self._close else degree
            found.append(degree if error <= 10 * self._close else None)
        return found

    @functools.cached_property
    def chain(self) -> bool:
        """Whether the parameter arrays are layers that follow each other."""
        if isinstance(self.problem.model(self.params), Batched):
            return False
        if any(w.ndim == 0 for w in jtu.tree_leaves(self.params)):
            return False
        try:
            return len(layers(self.problem, self.params)) > 1
        except ValueError:
            return False

    @functools.cached_property
    def neuron_powers(self) -> list[float] | None:
        """The degree p of the activation after each layer but the last, in order.

        None unless scaling what goes into each hidden neuron by any c > 0, and what it
        gives by c^-p, leaves the outputs alone.
        """
        if not self.chain:
            return None
        degrees = dict(
            zip(map(id, jtu.tree_leaves(self.params)), self.layer_degrees, strict=True)
        )
        ordered = layers(self.problem, self.params)
        powers = []
        for a, b in itertools.pairwise(ordered):
            first, second = degrees[id(a)], degrees[id(b)]
            if first is None or not second:
                return None
            powers.append(first / second)
        return powers if self._neurons_rescale(ordered, powers) else None

    def _neurons_rescale(self, ordered: list[Array], powers: list[float]) -> bool:
        scaled = list(ordered)
        for k, power in enumerate(powers):
            c = np.exp(self._rng.uniform(-0.7, 0.7, matrix(ordered[k]).shape[0]))
            scaled[k] = _scale_outputs(scaled[k], c)
            scaled[k + 1] = _scale_inputs(scaled[k + 1], c**-power)
        return self._same_outputs(ordered, scaled)

    def _same_outputs(self, ordered: list[Array], scaled: list[Array]) -> bool:
        new = dict(zip(map(id, ordered), scaled, strict=True))
        params = jtu.tree_map(lambda w: new[id(w)], self.params)
        a, b = (np.asarray(_outputs(self._random, w)) for w in (self.params, params))
        return bool(np.max(np.abs(a - b)) <= 10 * self._close * np.max(np.abs(a)))

    @functools.cached_property
    def is_deep_linear(self) -> bool:
        """Whether f(x) = s W_L ⋯ W_1 x, s a constant."""
        x = self._random.x
        if not self.chain or x.ndim != 2:
            return False
        ordered = layers(self.problem, self.params)
        if any(w.ndim > 2 for w in ordered) or num_inputs(ordered[0]) != x.shape[1]:
            return False
        product = functools.reduce(
            lambda p, w: matrix(w) @ p, ordered[1:], matrix(ordered[0])
        )
        expected = np.asarray(x @ product.T)
        found = np.asarray(_outputs(self._random, self.params)).reshape(expected.shape)
        scale = np.sum(found * expected) / np.sum(expected * expected)
        error = np.max(np.abs(found - scale * expected))
        return bool(error <= 10 * self._close * np.max(np.abs(found)) and scale != 0)


def _scale_outputs(w: Float[Array, "..."], c: np.ndarray) -> Array:
    factor = jnp.asarray(c, w.dtype)
    return w * factor.reshape(-1, *(1,) * (w.ndim - 1)) if w.ndim > 1 else w * factor


def _scale_inputs(w: Float[Array, "..."], c: np.ndarray) -> Array:
    # Of a kernel, the channels; of a linear layer after one, each channel's pixels.
    inputs = num_inputs(w)
    factor = jnp.asarray(np.repeat(c, inputs // c.size), w.dtype)
    if w.ndim < 2:
        return w * factor
    return w * factor.reshape(1, -1, *(1,) * (w.ndim - 2))


@eqx.filter_jit
def _outputs(problem: Problem, params: Params) -> Array:
    return predict(problem.model(params), problem.x)


@eqx.filter_jit
def _layerwise_radial(problem: Problem, params: Params) -> Any:
    outputs, push = jax.linearize(problem.outputs, params)
    leaves, structure = jtu.tree_flatten(params)
    zeros = [jnp.zeros_like(leaf) for leaf in leaves]
    radial = [
        push(jtu.tree_unflatten(structure, [*zeros[:k], w, *zeros[k + 1 :]]))
        for k, w in enumerate(leaves)
    ]
    return outputs, jnp.stack(radial)
