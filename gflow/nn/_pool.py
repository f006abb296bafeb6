"""Pooling of images. (Equinox's pools keep their operation as a PyTree leaf, which does
not pass through `jax.jit`.)"""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float

from ._checks import check_not_empty, check_pair


class _Window(eqx.Module):
    size: tuple[int, int] = eqx.field(static=True)
    stride: tuple[int, int] = eqx.field(static=True)
    padding: tuple[int, int] = eqx.field(static=True)

    def __init__(self, kernel_size: Any, stride: Any, padding: Any):
        self.size = check_pair("kernel_size", kernel_size)
        self.stride = self.size if stride is None else check_pair("stride", stride)
        self.padding = check_pair("padding", padding, least=0)
        # Otherwise some window would contain nothing but padding.
        if any(2 * p > k for p, k in zip(self.padding, self.size, strict=True)):
            raise ValueError(
                f"padding={padding} is more than half of kernel_size={kernel_size}; "
                "use less padding."
            )

    def reduce(self, name: str, x: Array, start: float, operation: Any) -> Array:
        out = jax.lax.reduce_window(
            x,
            # A NumPy scalar: JAX must see its value to know the derivative.
            np.asarray(start, x.dtype)[()],
            operation,
            (1, *self.size),
            (1, *self.stride),
            [(0, 0), *((p, p) for p in self.padding)],
        )
        check_not_empty(name, x, out)
        return out


class MaxPool2d(eqx.Module):
    """The largest entry of each window of an image; homogeneous of degree 1.

    **Arguments:**

    - `kernel_size`: of the window, an integer or `(height, width)`.
    - `stride`: likewise; by default the kernel_size, windows side by side.
    - `padding`: likewise, on each side; padding is never the largest.

    **Raises:**

    `ValueError` for sizes below 1, padding of more than half a window, or an image
    smaller than the window.

    Examples:
        >>> import gflow, jax.numpy as jnp
        >>> x = jnp.arange(16.0).reshape(1, 4, 4)
        >>> gflow.nn.MaxPool2d(2)(x).tolist()
        [[[5.0, 7.0], [13.0, 15.0]]]
    """

    window: _Window

    def __init__(
        self,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] | None = None,
        padding: int | Sequence[int] = 0,
    ):
        self.window = _Window(kernel_size, stride, padding)

    def __call__(self, x: Float[Array, "c height width"]) -> Float[Array, "c _ _"]:
        return self.window.reduce("MaxPool2d", x, -np.inf, jax.lax.max)


class AvgPool2d(eqx.Module):
    """The mean of each window of an image; linear.

    **Arguments:**

    - `kernel_size`: of the window, an integer or `(height, width)`.
    - `stride`: likewise; by default the kernel_size, windows side by side.
    - `padding`: likewise, zeros on each side, which count in the mean.

    **Raises:**

    `ValueError` for sizes below 1, padding of more than half a window, or an image
    smaller than the window.

    Examples:
        >>> import gflow, jax.numpy as jnp
        >>> x = jnp.arange(16.0).reshape(1, 4, 4)
        >>> gflow.nn.AvgPool2d(2)(x).tolist()
        [[[2.5, 4.5], [10.5, 12.5]]]
    """

    window: _Window

    def __init__(
        self,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] | None = None,
        padding: int | Sequence[int] = 0,
    ):
        self.window = _Window(kernel_size, stride, padding)

    def __call__(self, x: Float[Array, "c height width"]) -> Float[Array, "c _ _"]:
        height, width = self.window.size
        total = self.window.reduce("AvgPool2d", x, 0.0, jax.lax.add)
        return total / (height * width)
