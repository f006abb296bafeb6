"""Wrappers around other layers."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
from jaxtyping import Array

from ._activations import as_layer


class Sequential(eqx.Module):
    r"""Layers one after the other, $f = f_m \circ \dots \circ f_1$.

    Layers of degrees p₁, ..., p_m, counted in their own weights and positively
    homogeneous of degree q in their inputs (1 for all of `gflow.nn` but `squared_relu`,
    2), make a network of degree L: start from 0, and L ← q L + p for each layer.

    **Arguments:**

    - `layers`: modules or functions, each taking what the one before it returns.

    **Raises:**

    `ValueError` without layers, or for a layer that cannot be called.

    Examples:
        >>> import gflow, jax, jax.numpy as jnp
        >>> first, second = jax.random.split(jax.random.key(0))
        >>> model = gflow.nn.Sequential(
        ...     gflow.nn.Conv2d(1, 4, 3, key=first),
        ...     gflow.nn.relu,
        ...     gflow.nn.MaxPool2d(2),
        ...     gflow.nn.Flatten(),
        ...     gflow.nn.Linear(36, "scalar", key=second),
        ... )
        >>> model(jnp.ones((1, 8, 8))).shape
        ()
        >>> gflow.homogeneity(model, jnp.ones((1, 1, 8, 8)))
        2.0
    """

    layers: tuple[Any, ...]

    def __init__(self, *layers: Any):
        if not layers:
            raise ValueError("Sequential needs at least one layer.")
        self.layers = tuple(as_layer(layer) for layer in layers)

    def __call__(self, x: Array) -> Array:
        for layer in self.layers:
            x = layer(x)
        return x


class Batched(eqx.Module):
    """Marks a model that takes the whole batch at once.

    Other models take one example, and gflow maps them over the batch. Batch
    normalisation, for one, cannot: the examples of a batch depend on each other.

    **Arguments:**

    - `model`: any callable PyTree, from a batch `(n, ...)` to outputs `(n, ...)`.

    **Raises:**

    `ValueError` if the model cannot be called.

    Examples:
        >>> import gflow, jax.numpy as jnp
        >>> model = gflow.nn.Batched(lambda x: x - x.mean(axis=0))
        >>> model(jnp.array([1.0, 3.0])).tolist()
        [-1.0, 1.0]
    """

    model: Callable[..., Any]

    def __init__(self, model: Callable[..., Any]):
        self.model = as_layer(model, "model")

    def __call__(self, x: Array) -> Array:
        return self.model(x)
