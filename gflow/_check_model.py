"""Errors about the model and its parameters, before tracing."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np

from ._times import is_concrete
from ._types import Params
from .nn import trainable


def split(model: Any, filter_spec: Any) -> tuple[Params, Any]:
    """The parameters W and the rest of the model; ValueError for a bad parameter."""
    spec = trainable(model) if filter_spec is None else filter_spec
    params, static = eqx.partition(model, spec)
    leaves = jtu.tree_leaves_with_path(params)
    if not leaves:
        raise ValueError(
            "the model has no trainable parameter: none of its leaves is a floating "
            "point JAX array that filter_spec lets through (NumPy arrays and "
            "gflow.nn.Fixed are not trained)."
        )
    for path, leaf in leaves:
        name = jtu.keystr(path)
        if not eqx.is_inexact_array(leaf) or jnp.iscomplexobj(leaf):
            raise ValueError(
                f"parameter model{name} is not a real floating point JAX array (it is "
                f"{getattr(leaf, 'dtype', type(leaf).__name__)}); convert it, or "
                "exclude it with filter_spec."
            )
        if leaf.size == 0:
            raise ValueError(
                f"parameter model{name} is empty (shape {leaf.shape}); remove it, or "
                "give the layer a positive size."
            )
        if is_concrete(leaf) and not bool(np.all(np.isfinite(np.asarray(leaf)))):
            raise ValueError(
                f"parameter model{name} is not finite (it contains NaN or inf); check "
                "the initialisation."
            )
    _check_one_dtype(leaves)
    return params, static


def _check_one_dtype(leaves: list[tuple[Any, Any]]) -> None:
    first: dict[Any, str] = {}
    for path, leaf in leaves:
        first.setdefault(leaf.dtype, f"model{jtu.keystr(path)}")
    if len(first) == 1:
        return
    shown = ", ".join(f"{name} is {dtype}" for dtype, name in first.items())
    size = max(dtype.itemsize for dtype in first)
    largest = [dtype.name for dtype in first if dtype.itemsize == size]
    # Neither float16 nor bfloat16 holds the numbers of the other.
    widest = largest[0] if len(largest) == 1 else "float32"
    raise ValueError(
        f"the parameters have several dtypes ({shown}), and the flow is integrated in "
        "one; pass jax.tree.map(lambda a: a.astype(jnp."
        f"{widest}) if equinox.is_inexact_array(a) else a, model), or exclude "
        "parameters with filter_spec."
    )


def unsupported_layer(model: Any) -> str:
    """A sentence about the model's first random or stateful layer; empty if none."""

    def matters(node: Any) -> bool:
        if isinstance(node, eqx.nn.Dropout):
            return not node.inference and node.p != 0
        return isinstance(node, eqx.nn.StatefulLayer)

    for path, layer in jtu.tree_leaves_with_path(model, is_leaf=matters):
        if not matters(layer):
            continue
        name, kind = f"model{jtu.keystr(path)}", f"equinox.nn.{type(layer).__name__}"
        if isinstance(layer, eqx.nn.Dropout):
            return (
                f" {name} is an {kind} in training mode, and random layers are not "
                "supported; pass equinox.nn.inference_mode(model)."
            )
        return (
            f" {name} is an {kind}, and layers that update a state are not supported; "
            "pass equinox.nn.inference_mode(model) in a module that holds the "
            "equinox.nn.State as a field and returns the output alone, or wrap a model "
            "that normalises by the whole batch in gflow.nn.Batched."
        )
    return ""
