"""Fully connected networks without biases."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import equinox as eqx
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ._activations import as_layer, relu
from ._checks import check_size
from ._init import Init, Initialiser, he
from ._linear import Linear


class MLP(eqx.Module):
    r"""A fully connected network without biases.

    $$f(x) = s_D W_D\, \varphi(s_{D-1} W_{D-1} \cdots \varphi(s_1 W_1 x))$$

    where D is `depth`, the number of weight matrices. For an activation of degree 1
    (identity, ReLU, leaky ReLU) it is homogeneous of degree L = D; of degree p,
    L = 1 + p + ... + p^{D-1}.

    **Arguments:**

    - `in_size`: the number of inputs.
    - `width`: the number of neurons in each of the D - 1 hidden layers.
    - `depth`: D, at least 1 (a linear model).
    - `out_size`: the number of outputs, or `"scalar"` for the shape `()`.
    - `activation`: φ, a function or a module. Default `relu`.
    - `key`: a JAX random key.
    - `init`: an initialisation from `gflow.nn.init`, or any function
        `(key, shape, dtype) -> array`. Default `he()`.
    - `dtype`: of the weights; JAX's default float if not given.
    - `scale`: s_k, constants that are not trained: one number for all layers or D of
        them. By default what `init` asks for: 1 for most; with n_k inputs to layer k,
        1/√n_k for `ntk()`; 1/n_k for `mean_field()`, but s_1 = 1, as the inputs of the
        network are not neurons.

    **Raises:**

    `ValueError` for sizes below 1, or a number of scales other than D.

    Examples:
        >>> import gflow, jax, jax.numpy as jnp
        >>> model = gflow.nn.MLP(4, 16, 3, key=jax.random.key(0))
        >>> model(jnp.ones(4)).shape
        ()
        >>> [layer.weight.shape for layer in model.layers]
        [(16, 4), (16, 16), (1, 16)]

    ??? cite "References"

        The parametrisations are those of Jacot, Gabriel and Hongler (2018),
        arXiv:1806.07572, section 2, and of Nguyen and Pham (2020), arXiv:2001.11443,
        section 2.
    """

    layers: tuple[Linear, ...]
    activation: Any

    def __init__(
        self,
        in_size: int,
        width: int,
        depth: int,
        out_size: int | Literal["scalar"] = "scalar",
        activation: Callable[..., Any] = relu,
        *,
        key: PRNGKeyArray,
        init: Init | None = None,
        dtype: Any = None,
        scale: float | Sequence[float] | None = None,
    ):
        check_size("in_size", in_size)
        check_size("width", width)
        hidden = check_size("depth", depth) - 1
        sizes = (in_size, *[width] * hidden, out_size)
        self.layers = _stack(sizes, key, init, dtype, scale)
        self.activation = as_layer(activation, "activation")

    def __call__(self, x: Float[Array, " in"]) -> Float[Array, "..."]:
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        return self.layers[-1](x)


class DeepLinear(eqx.Module):
    r"""A product of matrices, linear in x and homogeneous of degree L in W.

    $$f(x) = s_L W_L \cdots s_1 W_1\, x, \qquad
    W_k \in \mathbb R^{d_k \times d_{k-1}}$$

    **Arguments:**

    - `sizes`: (d_0, ..., d_L), at least two; the last may be `"scalar"`, for d_L = 1
        and the output shape `()`.
    - `key`, `init`, `dtype`, `scale`: as for [`gflow.nn.MLP`][]. Default init
        `he(gain=1.0)`, which keeps the second moment through linear layers.

    **Raises:**

    `ValueError` for fewer than two sizes, sizes below 1, or a number of scales other
    than L.

    Examples:
        >>> import gflow, jax, jax.numpy as jnp
        >>> model = gflow.nn.DeepLinear((4, 8, 8, "scalar"), key=jax.random.key(0))
        >>> gflow.homogeneity(model, jnp.ones((1, 4)))
        3.0
    """

    layers: tuple[Linear, ...]

    def __init__(
        self,
        sizes: Sequence[int | str],
        *,
        key: PRNGKeyArray,
        init: Init | None = None,
        dtype: Any = None,
        scale: float | Sequence[float] | None = None,
    ):
        if len(sizes) < 2:
            raise ValueError(
                f"sizes={tuple(sizes)} must hold at least an input and an output size."
            )
        for i, size in enumerate(sizes):
            if size != "scalar" or i != len(sizes) - 1:
                check_size(f"sizes[{i}]", size)
        init = he(gain=1.0) if init is None else init
        self.layers = _stack(tuple(sizes), key, init, dtype, scale)

    def __call__(self, x: Float[Array, " in"]) -> Float[Array, "..."]:
        for layer in self.layers:
            x = layer(x)
        return x


def _stack(
    sizes: tuple[Any, ...], key: PRNGKeyArray, init: Any, dtype: Any, scale: Any
) -> tuple[Linear, ...]:
    depth = len(sizes) - 1
    if scale is None or np.ndim(scale) == 0:
        scales = [scale] * depth
    else:
        scales = list(scale)
        if len(scales) != depth:
            raise ValueError(
                f"scale has {len(scales)} entries for {depth} layers; give one number, "
                "or one for each layer."
            )
    if isinstance(init, Initialiser) and not init.scale_first_layer:
        scales[0] = 1.0 if scales[0] is None else scales[0]
    return tuple(
        Linear(*sizes[k : k + 2], key=one, init=init, dtype=dtype, scale=scales[k])
        for k, one in enumerate(jr.split(key, depth))
    )
