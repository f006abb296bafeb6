"""Balanced weights: the zero set of what the flow conserves between layers."""

import functools
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._fixed import Fixed
from ._mlp import DeepLinear
from ._two_layer import TwoLayer


Model = TypeVar("Model")


def balanced(model: Model) -> Model:
    r"""The same function with balanced weights.

    For [`gflow.nn.DeepLinear`][], for every two adjacent layers,

    $$W_{k+1}^\top W_{k+1} = W_k W_k^\top,$$

    so all layers have the same singular values, the L-th roots of those of the
    product. For [`gflow.nn.TwoLayer`][] with trained outer weights and an activation of
    degree p, for every neuron,

    $$\|w_j\|^2 = p\, a_j^2,$$

    which is |a_j| = ‖w_j‖ for ReLU. The differences of the two sides are conserved by
    the flow, so a flow that starts balanced stays so.

    A neuron with w_j = 0 or a_j = 0 adds nothing to the function, and both become 0.

    **Arguments:**

    - `model`: a `DeepLinear`, or a `TwoLayer` with trained outer weights.

    **Returns:**

    The model with balanced weights, and the same outputs up to rounding.

    **Raises:**

    `ValueError` for other models, fixed outer weights, or an activation that is not
    positively homogeneous.

    Examples:
        >>> import gflow, jax, jax.numpy as jnp
        >>> model = gflow.nn.DeepLinear((3, 5, 2), key=jax.random.key(0))
        >>> first, second = gflow.nn.init.balanced(model).layers
        >>> gap = second.weight.T @ second.weight - first.weight @ first.weight.T
        >>> bool(jnp.max(jnp.abs(gap)) < 1e-5)
        True

    ??? cite "References"

        Arora, Cohen, Golowich and Hu (2019), "A Convergence Analysis of Gradient
        Descent for Deep Linear Neural Networks", Definition 1 and Procedure 1,
        arXiv:1810.02281; Du, Hu and Lee (2018), "Algorithmic Regularization in
        Learning Deep Homogeneous Models", Theorem 2.1, arXiv:1806.00900.
    """
    if isinstance(model, DeepLinear):
        weights = _balanced_product([layer.weight for layer in model.layers])
        return eqx.tree_at(
            lambda m: [layer.weight for layer in m.layers], model, weights
        )
    if isinstance(model, TwoLayer):
        if isinstance(model.outer, Fixed):
            raise ValueError(
                "the outer weights are fixed, so there is nothing to balance: use "
                'outer="trained".'
            )
        pair = _balanced_neurons(
            model.weight, model.outer, _activation_degree(model.activation)
        )
        return eqx.tree_at(lambda m: (m.weight, m.outer), model, pair)
    raise ValueError(
        f"balanced takes a DeepLinear or a TwoLayer, not a {type(model).__name__}."
    )


def _norm(x: Float[Array, "..."], axis: int | None = None) -> Float[Array, "..."]:
    # Of any magnitude: the square of 1e-200 is zero.
    largest = jnp.max(jnp.abs(x), axis=axis, keepdims=True)
    safe = jnp.where(largest == 0, 1, largest)
    total = jnp.sum(jnp.square(x / safe), axis=axis, keepdims=True)
    return jnp.squeeze(largest * jnp.sqrt(total), axis=axis)


@jax.jit
def _balanced_product(weights: list[Array]) -> list[Array]:
    # W_k = Q_k Σ^{1/L} Q_{k-1}ᵀ with Q_k of r orthonormal columns, Q_L Σ Q_0ᵀ the
    # singular value decomposition of the product, r the smallest size. Where Arora et
    # al. choose unit vectors for the hidden Q_k, here each is the orthonormal factor
    # nearest to W_k Q_{k-1}, so that balanced weights stay what they are.
    depth = len(weights)
    rank = min(min(w.shape) for w in weights)
    # A product of four layers of 1e-100 is zero: norms are divided out before.
    norms = [_norm(w) for w in weights]
    units = [w / jnp.where(s == 0, 1, s) for w, s in zip(weights, norms, strict=True)]
    size = jnp.prod(jnp.stack([s ** (1 / depth) for s in norms]))
    product = units[0]
    for unit in units[1:]:
        product = unit @ product
    left, values, right = jnp.linalg.svd(product, full_matrices=False)
    root = size * values[:rank] ** (1 / depth)
    bases = [right[:rank].T]
    for unit in units[:-1]:
        u, _, v = jnp.linalg.svd(unit @ bases[-1], full_matrices=False)
        bases.append(u @ v)
    bases.append(left[:, :rank])
    return [(bases[k + 1] * root[None, :]) @ bases[k].T for k in range(depth)]


@functools.partial(jax.jit, static_argnames="degree")
def _balanced_neurons(
    weight: Float[Array, "width in"], outer: Float[Array, " width"], degree: float
) -> tuple[Array, Array]:
    # a φ(⟨w, x⟩) is unchanged by w → c w, a → c^{-p} a; ‖c w‖ = √p c^{-p} |a| gives
    # ‖c w‖ = (√p |a| ‖w‖^p)^{1/(p+1)}.
    norm = _norm(weight, axis=1)
    alive = (norm > 0) & (outer != 0)
    safe_norm = jnp.where(alive, norm, 1)
    safe_outer = jnp.where(alive, jnp.abs(outer), 1)
    power = 1 / (degree + 1)
    new = (degree**0.5 * safe_outer) ** power * safe_norm ** (degree * power)
    unit = weight / safe_norm[:, None]
    # w is rounded first: a is then exact for the norm that w really has.
    weight = jnp.where(alive[:, None], unit * new[:, None], 0)
    outer = jnp.where(alive, jnp.sign(outer) * _norm(weight, axis=1) / degree**0.5, 0)
    return weight, outer


def _activation_degree(activation: Any) -> float:
    # p of φ(cz) = c^p φ(z), c > 0.
    with jax.ensure_compile_time_eval():
        z = np.array([-1.0, 1.0])
        one, two, three = (
            np.asarray(activation(jnp.asarray(c * z, jnp.float32)), np.float64)
            for c in (1.0, 2.0, 3.0)
        )
    with np.errstate(all="ignore"):
        degree = np.log2(np.max(np.abs(two)) / np.max(np.abs(one)))
        fits = degree > 0 and all(
            np.allclose(f, c**degree * one, rtol=1e-5, atol=0)
            for f, c in ((two, 2.0), (three, 3.0))
        )
    if not fits:
        raise ValueError(
            "the activation is not positively homogeneous, so the flow conserves no "
            "balance between the layers."
        )
    # float32 rounds to 6e-8, and powers to a few times that.
    return float(round(degree, 5))
