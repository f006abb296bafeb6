"""Rescaling all the parameters of a model, at any magnitude."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, PyTree

from ._checks import check_positive, check_representable, is_concrete
from ._fixed import trainable
from ._init import Number


def _split(model: PyTree, filter_spec: Any) -> tuple[PyTree, PyTree, list[Array]]:
    spec = trainable(model) if filter_spec is None else filter_spec
    params, static = eqx.partition(model, spec)
    leaves = jtu.tree_leaves(params)
    if not leaves:
        raise ValueError(
            "the model has no trainable parameter: none of its leaves is a floating "
            "point JAX array (outside of gflow.nn.Fixed, and let through by "
            "filter_spec)."
        )
    return params, static, leaves


def scale(model: PyTree, c: Number, *, filter_spec: Any = None) -> PyTree:
    r"""Multiply all the parameters by one number, $W \mapsto c W$.

    **Arguments:**

    - `model`: any PyTree.
    - `c`: a finite number, which may be traced.
    - `filter_spec`: which leaves are parameters, as in `equinox.partition`. Default
        [`gflow.nn.trainable`][].

    **Returns:**

    The model with the new parameters, of their old dtypes.

    **Raises:**

    `ValueError` if there is no parameter, or for c that is not one finite number or
    that the dtype does not represent.

    Examples:
        >>> import gflow, jax, jax.numpy as jnp
        >>> model = gflow.nn.MLP(3, 8, 2, key=jax.random.key(0))
        >>> twice = gflow.nn.init.scale(model, 2.0)
        >>> bool(twice(jnp.ones(3)) == 4 * model(jnp.ones(3)))
        True
    """
    if is_concrete(c) and not (np.shape(c) == () and np.isfinite(np.asarray(c))):
        raise ValueError(f"c={c} must be one finite number.")
    params, static, leaves = _split(model, filter_spec)
    for leaf in leaves:
        if is_concrete(c) and c != 0:
            check_representable("c", abs(c), leaf.dtype)
    params = jtu.tree_map(lambda w: jnp.asarray(c).astype(w.dtype) * w, params)
    return eqx.combine(params, static)


def to_norm(model: PyTree, norm: Number, *, filter_spec: Any = None) -> PyTree:
    r"""Rescale all the parameters to a norm, $W \mapsto \text{norm}\, W / \|W\|_2$.

    The norm is that of all the parameters together. Neither W nor `norm` need have a
    square that the dtype represents.

    **Arguments:**

    - `model`: any PyTree.
    - `norm`: a positive number, which may be traced.
    - `filter_spec`: which leaves are parameters, as in `equinox.partition`. Default
        [`gflow.nn.trainable`][].

    **Returns:**

    The model with the new parameters, of their old dtypes.

    **Raises:**

    `ValueError` if there is no parameter, if all are zero or one is not finite, or for
    a norm that is not positive or that the dtype does not represent.

    Examples:
        >>> import gflow, jax, jax.numpy as jnp
        >>> model = gflow.nn.Linear(3, "scalar", key=jax.random.key(0))
        >>> model = gflow.nn.init.to_norm(model, 10.0)
        >>> print(f"{jnp.linalg.norm(model.weight):.4f}")
        10.0000
    """
    check_positive("norm", norm)
    params, static, leaves = _split(model, filter_spec)
    for leaf in leaves:
        check_representable("norm", norm, leaf.dtype)
    # The widest dtype carries what the arrays share; strict promotion mixes none.
    dtype = max((leaf.dtype for leaf in leaves), key=lambda d: jnp.finfo(d).bits)
    largest = _largest(leaves, dtype)
    undefined = (largest == 0) | ~jnp.isfinite(largest)
    message = (
        "the parameters have no direction: all are zero, or one is not finite; check "
        "the initialisation."
    )
    if is_concrete(undefined):
        if bool(undefined):
            raise ValueError(message)
    else:
        largest = eqx.error_if(largest, undefined, message)
    moved = _rescaled(leaves, largest, jnp.asarray(norm).astype(dtype))
    params = jtu.tree_unflatten(jtu.tree_structure(params), moved)
    return eqx.combine(params, static)


@functools.partial(jax.jit, static_argnames="dtype")
def _largest(leaves: list[Array], dtype: Any) -> Array:
    each = [jnp.max(jnp.abs(w), initial=0).astype(dtype) for w in leaves]
    return jnp.max(jnp.stack(each))


@jax.jit
def _rescaled(leaves: list[Array], largest: Array, norm: Array) -> list[Array]:
    # Squares of entries below 1e-154 are zero in float64: the largest entry goes first.
    # What is left has entries up to 1 and a size of at least 1: nothing overflows.
    unit = [w / largest.astype(w.dtype) for w in leaves]
    size = jnp.sqrt(sum(jnp.sum(jnp.square(w.astype(norm.dtype))) for w in unit))
    return [(norm / size).astype(w.dtype) * w for w in unit]
