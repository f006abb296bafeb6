"""Convolution of images, without bias."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from ._checks import check_not_empty, check_pair, check_size, float_dtype
from ._init import Init, draw, fan_in, he, output_scale


class Conv2d(eqx.Module):
    r"""A convolution of an image without bias.

    $$f(x)_{o,i,j} = s \sum_{c,a,b} W_{o,c,a,b}\; x_{c,\; i\,t_1 + a - q_1,\;
    j\,t_2 + b - q_2}$$

    with stride t, padding q, and x zero outside of the image (a cross-correlation, as
    everywhere in deep learning). Homogeneous of degree 1.

    **Arguments:**

    - `in_channels`, `out_channels`: x has shape `(in_channels, height, width)`.
    - `kernel_size`: an integer, or `(height, width)`.
    - `stride`: likewise; default 1.
    - `padding`: likewise, the zeros on each side; default 0.
    - `key`: a JAX random key.
    - `init`, `dtype`, `scale`: as for [`gflow.nn.Linear`][]; the fan-in is in_channels
        times the kernel's size.

    **Raises:**

    `ValueError` for sizes below 1, negative padding, or an image smaller than the
    kernel.

    Examples:
        >>> import gflow, jax, jax.numpy as jnp
        >>> layer = gflow.nn.Conv2d(3, 8, 3, stride=2, padding=1, key=jax.random.key(0))
        >>> layer(jnp.ones((3, 32, 32))).shape
        (8, 16, 16)
    """

    weight: Float[Array, "out in height width"]
    stride: tuple[int, int] = eqx.field(static=True)
    padding: tuple[int, int] = eqx.field(static=True)
    scale: float = eqx.field(static=True)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        *,
        key: PRNGKeyArray,
        init: Init | None = None,
        dtype: Any = None,
        scale: float | None = None,
    ):
        init = he() if init is None else init
        shape = (
            check_size("out_channels", out_channels),
            check_size("in_channels", in_channels),
            *check_pair("kernel_size", kernel_size),
        )
        self.stride = check_pair("stride", stride)
        self.padding = check_pair("padding", padding, least=0)
        self.weight = draw(init, key, shape, float_dtype(dtype))
        self.scale = output_scale(init, fan_in(shape), scale)

    def __call__(self, x: Float[Array, "in height width"]) -> Float[Array, "out _ _"]:
        (out,) = jax.lax.conv_general_dilated(
            x[None], self.weight, self.stride, [(p, p) for p in self.padding]
        )
        check_not_empty("Conv2d", x, out)
        return self.scale * out
