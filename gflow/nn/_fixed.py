"""What is trained and what is not."""

from typing import Any

import equinox as eqx
import jax
import jax.tree_util as jtu
from jaxtyping import Array, PyTree


class Fixed(eqx.Module):
    """An array of the model that is not trained: data, never part of W.

    The model reads it as `fixed.value`. [`gflow.nn.trainable`][], and so every function
    of gflow, leaves it out of the parameters; `equinox.filter_grad` does not.

    **Arguments:**

    - `value`: the array.

    Examples:
        >>> import gflow, jax.numpy as jnp
        >>> signs = gflow.nn.Fixed(jnp.array([1.0, -1.0]))
        >>> signs.value.tolist()
        [1.0, -1.0]
        >>> gflow.nn.trainable(signs).value
        False
    """

    value: Array


def _is_fixed(node: Any) -> bool:
    # Running statistics are no parameters either.
    return isinstance(node, Fixed | eqx.nn.State)


def trainable(model: PyTree) -> PyTree:
    """Which leaves of a model are its parameters W.

    **Arguments:**

    - `model`: any PyTree or callable.

    **Returns:**

    A PyTree like the model: True for a floating point JAX array that is not inside a
    [`gflow.nn.Fixed`][] or an `equinox.nn.State`, False for everything else. It is a
    filter specification for `equinox.partition`.

    Examples:
        >>> import equinox as eqx, gflow, jax
        >>> model = gflow.nn.TwoLayer(2, 3, outer="fixed", key=jax.random.key(0))
        >>> params, static = eqx.partition(model, gflow.nn.trainable(model))
        >>> [w.shape for w in jax.tree.leaves(params)]
        [(3, 2)]
    """

    def spec(node: Any) -> PyTree:
        if _is_fixed(node):
            return jtu.tree_map(lambda _: False, node)
        # Equinox counts NumPy arrays too.
        return isinstance(node, jax.Array) and eqx.is_inexact_array(node)

    return jtu.tree_map(spec, model, is_leaf=_is_fixed)
