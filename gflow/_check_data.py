"""Errors about the data, before tracing."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ._times import is_concrete


def checked_data(data: Any) -> tuple[Any, Any]:
    """The inputs and labels as arrays, or a ValueError that says what is wrong."""
    if isinstance(data, Mapping):
        keys = list(data)
        given = f"data[{keys[0]!r}], data[{keys[1]!r}]" if len(keys) == 2 else "x, y"
        raise ValueError(
            f"data is a {type(data).__name__} with keys {keys}, not a pair; pass "
            f"({given}), the inputs and then the labels."
        )
    try:
        x, y = data
    except (TypeError, ValueError):
        raise ValueError(
            "data must be a pair (x, y) of inputs with leading axis n and n labels."
        ) from None
    x, y = _array("x", x), _array("y", y)
    if x.ndim == 0 or x.shape[0] == 0 or x.size == 0:
        raise ValueError(
            f"the data are empty: x has shape {x.shape}; give at least one example, "
            "along the leading axis."
        )
    if y.ndim == 0 or y.shape[0] != x.shape[0]:
        raise ValueError(
            f"x has {x.shape[0]} examples but y has shape {y.shape}; there must be "
            "one label for each row of x."
        )
    for name, array in (("x", x), ("y", y)):
        if is_concrete(array) and not bool(np.all(np.isfinite(np.asarray(array)))):
            bad = np.argwhere(~np.isfinite(np.asarray(array)))[0]
            raise ValueError(
                f"{name} is not finite: {name}{bad.tolist()} is "
                f"{np.asarray(array)[tuple(bad)]}; remove or impute such examples."
            )
    return x, y


def _array(name: str, value: Any) -> Any:
    if isinstance(value, jax.Array):
        return value
    # Sparse arrays of JAX, SciPy and others.
    for dense in ("toarray", "todense"):
        if hasattr(value, dense):
            raise ValueError(
                f"{name} is sparse (a {type(value).__name__}), and gflow takes dense "
                f"arrays; pass {name}.{dense}()."
            )
    if isinstance(value, Mapping):
        raise ValueError(
            f"{name} is a {type(value).__name__} with keys {list(value)}, not an "
            f"array; pass one array, such as {name}[{next(iter(value), 0)!r}], or "
            "stack the arrays along a new axis after the first."
        )
    try:
        array = np.asarray(value)
    except ValueError:
        array = np.empty((0,), dtype=object)
    if array.dtype == object or not (
        np.issubdtype(array.dtype, np.number) or array.dtype == bool
    ):
        raise ValueError(
            f"{name} is not a numeric array (ragged rows, or entries that are not "
            "numbers); give every example the same shape."
        )
    return array
