"""Errors about sizes and numbers, before anything is traced."""

import math
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


def is_concrete(x: Any) -> bool:
    """Whether `x` has a value now, rather than being traced."""
    return not isinstance(x, Tracer)


def check_size(name: str, value: Any, least: int = 1) -> int:
    """The value as an int, at least `least`."""
    try:
        size = operator.index(value)
    except TypeError:
        size = None
    if size is None or size < least:
        raise ValueError(
            f"{name}={value!r} is not a size: pass an integer of at least {least}."
        )
    return size


def check_pair(
    name: str, value: int | Sequence[int], least: int = 1
) -> tuple[int, int]:
    """(height, width) from one number for both or from two numbers."""
    both = tuple(value) if isinstance(value, Sequence) else (value, value)
    if len(both) != 2:
        raise ValueError(
            f"{name}={value!r} must be an integer, or two: (height, width)."
        )
    return check_size(name, both[0], least), check_size(name, both[1], least)


def check_positive(name: str, value: Any) -> None:
    """ValueError unless it is one positive finite number; traced ones pass."""
    if not is_concrete(value):
        return
    number = np.asarray(value)
    if number.shape != () or not (math.isfinite(number) and number > 0):
        raise ValueError(f"{name}={value} must be one positive finite number.")


def check_representable(name: str, value: Any, dtype: Any) -> None:
    """ValueError if a positive number overflows or underflows in `dtype`."""
    if not is_concrete(value):
        return
    info = jnp.finfo(dtype)
    if not float(info.tiny) <= float(value) <= float(info.max):
        raise ValueError(
            f"{name}={float(value):.1e} is outside of what {jnp.dtype(dtype).name} "
            f"represents ({float(info.tiny):.1e} to {float(info.max):.1e}); call "
            "jax.config.update('jax_enable_x64', True) and use dtype=jnp.float64."
        )


def float_dtype(dtype: Any) -> np.dtype:
    """The dtype asked for, by default JAX's default float.

    A request for float64 where JAX has it disabled would be answered with float32 and a
    warning; here it is an error.
    """
    if dtype is None:
        return jnp.zeros(()).dtype
    asked = jnp.dtype(dtype)
    if not jnp.issubdtype(asked, jnp.floating):
        raise ValueError(f"dtype={asked.name} is not a real floating point dtype.")
    if jax.dtypes.canonicalize_dtype(asked) != asked:
        raise ValueError(
            f"dtype={asked.name} is disabled in JAX; call "
            "jax.config.update('jax_enable_x64', True) first."
        )
    return asked


def check_not_empty(name: str, given: Any, result: Any) -> None:
    """ValueError if a window did not fit into the image."""
    if 0 in result.shape:
        raise ValueError(
            f"{name}: an input of shape {given.shape} is smaller than the window; use "
            "a smaller kernel_size, fewer layers that reduce the image, or padding."
        )
