"""The linear layer, and flattening before it."""

from typing import Any, Literal

import equinox as eqx
from jaxtyping import Array, Float, PRNGKeyArray

from ._checks import check_size, float_dtype
from ._init import Init, draw, he, output_scale


class Linear(eqx.Module):
    r"""A linear layer without bias.

    $$f(x) = s\, W x, \qquad W \in \mathbb R^{\text{out} \times \text{in}}$$

    Homogeneous of degree 1. For a bias that keeps the network homogeneous, append a
    constant feature to the data: [`gflow.nn.append_one`][].

    **Arguments:**

    - `in_size`: the number of inputs; x has shape `(in_size,)`.
    - `out_size`: the number of outputs, or `"scalar"`: W then has one row, and the
        output shape `()`.
    - `key`: a JAX random key.
    - `init`: an initialisation from `gflow.nn.init`, or any function
        `(key, shape, dtype) -> array`. Default `he()`.
    - `dtype`: of the weight; JAX's default float if not given.
    - `scale`: s > 0, a constant that is not trained. By default what `init` asks for:
        1, but 1/√in for `ntk()` and 1/in for `mean_field()`.

    **Raises:**

    `ValueError` for sizes below 1 or a dtype that is not a float.

    Examples:
        >>> import gflow, jax, jax.numpy as jnp
        >>> layer = gflow.nn.Linear(3, 2, key=jax.random.key(0))
        >>> layer(jnp.ones(3)).shape
        (2,)
    """

    weight: Float[Array, "out in"]
    scale: float = eqx.field(static=True)
    scalar_output: bool = eqx.field(static=True)

    def __init__(
        self,
        in_size: int,
        out_size: int | Literal["scalar"],
        *,
        key: PRNGKeyArray,
        init: Init | None = None,
        dtype: Any = None,
        scale: float | None = None,
    ):
        init = he() if init is None else init
        rows = 1 if out_size == "scalar" else check_size("out_size", out_size)
        columns = check_size("in_size", in_size)
        self.weight = draw(init, key, (rows, columns), float_dtype(dtype))
        self.scale = output_scale(init, columns, scale)
        self.scalar_output = out_size == "scalar"

    def __call__(self, x: Float[Array, " in"]) -> Float[Array, "..."]:
        out = self.scale * (self.weight @ x)
        return out.reshape(()) if self.scalar_output else out


class Flatten(eqx.Module):
    """Any array to one axis, in row-major order.

    Examples:
        >>> import gflow, jax.numpy as jnp
        >>> gflow.nn.Flatten()(jnp.ones((3, 4, 5))).shape
        (60,)
    """

    def __call__(self, x: Array) -> Array:
        return x.reshape(-1)
