"""Shared type aliases."""

from collections.abc import Callable
from typing import Any, TypeAlias

from jaxtyping import Array, Bool, Float, Int, PyTree


Scalar: TypeAlias = Float[Array, ""]
Examples: TypeAlias = Float[Array, " examples"]
BoolScalar: TypeAlias = Bool[Array, ""]
IntScalar: TypeAlias = Int[Array, ""]
Params: TypeAlias = PyTree[Float[Array, "..."] | None]
Model: TypeAlias = Callable[..., Any]
