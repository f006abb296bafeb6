"""A bias that belongs to the data."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Shaped


def append_one(x: Any) -> Shaped[Array, "n features"]:
    """Append a constant feature 1 to every example.

    Weights on it act as biases of the first layer, and the network stays homogeneous:
    ⟨(w, b), (x, 1)⟩ = ⟨w, x⟩ + b.

    **Arguments:**

    - `x`: examples, shape `(n, d)`.

    **Returns:**

    A JAX array of shape `(n, d + 1)`, of the dtype of x.

    **Raises:**

    `ValueError` if x is not a table of examples by features.

    Examples:
        >>> import gflow, jax.numpy as jnp
        >>> gflow.nn.append_one(jnp.array([[2.0, 3.0], [4.0, 5.0]])).tolist()
        [[2.0, 3.0, 1.0], [4.0, 5.0, 1.0]]
    """
    array = jnp.asarray(x)
    if array.ndim != 2:
        raise ValueError(
            f"x has shape {array.shape}, but a feature is appended to examples of "
            "shape (n, d); reshape x first."
        )
    ones = jnp.ones((array.shape[0], 1), array.dtype)
    return jnp.concatenate([array, ones], axis=1)
