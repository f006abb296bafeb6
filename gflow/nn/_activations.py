"""Activations: plain functions, all positively homogeneous."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float


def identity(z: Float[Array, "..."]) -> Float[Array, "..."]:
    """φ(z) = z, of degree 1.

    Examples:
        >>> import gflow, jax.numpy as jnp
        >>> gflow.nn.identity(jnp.array([-2.0, 3.0])).tolist()
        [-2.0, 3.0]
    """
    return z


def relu(z: Float[Array, "..."]) -> Float[Array, "..."]:
    """φ(z) = max(0, z), of degree 1; its derivative at 0 is 0.

    Examples:
        >>> import gflow, jax.numpy as jnp
        >>> gflow.nn.relu(jnp.array([-2.0, 3.0])).tolist()
        [0.0, 3.0]
    """
    return jax.nn.relu(z)


def leaky_relu(z: Float[Array, "..."], slope: float = 0.01) -> Float[Array, "..."]:
    """φ(z) = z for z ≥ 0 and slope · z for z < 0, of degree 1.

    **Arguments:**

    - `z`: the pre-activation.
    - `slope`: for negative z. Layers take `functools.partial(leaky_relu, slope=...)`.

    Examples:
        >>> import functools, gflow, jax, jax.numpy as jnp
        >>> gflow.nn.leaky_relu(jnp.array([-2.0, 3.0]), slope=0.25).tolist()
        [-0.5, 3.0]
        >>> activation = functools.partial(gflow.nn.leaky_relu, slope=0.25)
        >>> model = gflow.nn.TwoLayer(2, 3, activation, key=jax.random.key(0))
    """
    return jax.nn.leaky_relu(z, slope)


def squared_relu(z: Float[Array, "..."]) -> Float[Array, "..."]:
    """φ(z) = max(0, z)², of degree 2, with a Lipschitz derivative.

    Examples:
        >>> import gflow, jax.numpy as jnp
        >>> gflow.nn.squared_relu(jnp.array([-2.0, 3.0])).tolist()
        [0.0, 9.0]

    ??? cite "Reference"

        The activation of Ji and Telgarsky (2020), "Directional convergence and
        alignment in deep learning", eq. (5), arXiv:2006.06657.
    """
    return jnp.square(jax.nn.relu(z))


class Function(eqx.Module):
    """A function as a layer without arrays, z ↦ function(z, *args, **keywords).

    The function is static, so that a model is a PyTree of arrays only and passes
    through `jax.jit`. Two are equal if they do the same, which two
    `functools.partial` objects never are: as static fields those would make two models
    different PyTrees.
    """

    function: Callable[..., Any] = eqx.field(static=True)
    args: tuple[Any, ...] = eqx.field(static=True, default=())
    keywords: tuple[tuple[str, Any], ...] = eqx.field(static=True, default=())

    def __call__(self, z: Array) -> Array:
        return self.function(z, *self.args, **dict(self.keywords))


def as_layer(layer: Any, what: str = "layer") -> Any:
    """The layer itself if it is a PyTree of its own, a function as a `Function`."""
    if not callable(layer):
        raise ValueError(
            f"{what} {layer!r} cannot be called; pass a function or a module."
        )
    if isinstance(layer, type):
        raise ValueError(
            f"{what} {layer.__name__} is a class; pass an instance, "
            f"{layer.__name__}(...)."
        )
    if not jtu.all_leaves([layer]):
        return layer
    # A partial that fills positions would put z after them: it stays as it is.
    if isinstance(layer, functools.partial) and not layer.args:
        return Function(layer.func, keywords=tuple(sorted(layer.keywords.items())))
    return Function(layer)
