"""The parts of W: layers in the order of the network, and neurons."""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Float

from .._problem import Problem, dtype_of
from .._types import Params


# Arrays whose leading axis is that of the neurons, as a function of the parameters.
Groups = Callable[[Any], Any]


def layers(problem: Problem, params: Params) -> list[Array]:
    """The parameter arrays from the input to the output of a chain of layers.

    That is the order of the PyTree or its reverse, whichever fits the examples and
    takes the outputs of one layer for the inputs of the next. ValueError, which says
    who is not a chain, if neither does.
    """
    arrays = jtu.tree_leaves(params)
    for order in (arrays, arrays[::-1]):
        shape = problem.x.shape[1:]
        fits = num_inputs(order[0]) in (math.prod(shape), *shape[:1])
        pairs = zip(order[:-1], order[1:], strict=True)
        if fits and all(outgoing(*pair) is not None for pair in pairs):
            return order
    shapes = ", ".join(str(leaf.shape) for leaf in arrays)
    raise ValueError(
        "needs layers in a chain, each taking what the one before it returns, and the "
        f"parameter arrays of shapes {shapes} are none."
    )


def matrix(w: Float[Array, "..."]) -> Float[Array, "out in"]:
    """A layer as a matrix, a kernel's filters as its rows; a vector is one row."""
    return w.reshape(w.shape[0] if w.ndim > 1 else 1, -1)


def num_inputs(w: Float[Array, "..."]) -> int:
    """The inputs, or for a kernel of a convolution the channels, that a layer takes."""
    return w.shape[1] if w.ndim > 1 else w.size


def outgoing(
    first: Float[Array, "..."], second: Float[Array, "..."]
) -> Float[Array, "neurons weights"] | None:
    """The weights of `second` on each output of `first`; None if it takes others.

    Channels of a convolution are flattened in row-major order before a linear layer.
    """
    m = matrix(first).shape[0]
    inputs = num_inputs(second)
    if inputs == m:
        moved = second[:, None] if second.ndim < 2 else jnp.moveaxis(second, 1, 0)
        return moved.reshape(m, -1)
    if first.ndim > 2 and second.ndim == 2 and inputs % m == 0:
        return jnp.moveaxis(second.reshape(-1, m, inputs // m), 1, 0).reshape(m, -1)
    return None


def neuron_rows(
    problem: Problem, tree: Params, groups: Groups | None
) -> Float[Array, "neurons weights"]:
    """The weights of each neuron, or the parts of a gradient that belong to them.

    `groups` picks them from the parameters. Without it, a single array's rows are the
    neurons, and of two layers the rows of the first with the weights of the second on
    them.
    """
    if groups is not None:
        parts = jtu.tree_leaves(groups(tree))
    else:
        arrays = layers(problem, tree)
        first = arrays[0]
        parts = [first if first.ndim > 1 else first[None]]
        for second in arrays[1:]:
            onto = outgoing(first, second)
            assert onto is not None
            parts.append(onto)
    dtype = dtype_of(tree)
    rows = [part.reshape(part.shape[0], -1).astype(dtype) for part in parts]
    return jnp.concatenate(rows, axis=1)


def check_neurons(
    problem: Problem,
    params: Params,
    degree: float | None,
    *,
    groups: Groups | None = None,
    **options: Any,
) -> None:
    """ValueError for a model whose neurons are not known."""
    del degree, options
    advice = (
        "give its groups of weights as arrays with the neurons along the leading axis, "
        "such as .using(groups=lambda model: (model.w, model.a))."
    )
    if groups is None:
        number = len(jtu.tree_leaves(params))
        if number > 2:
            raise ValueError(
                f"knows the neurons of networks with one or two layers, not of {number}"
                f" arrays; {advice}"
            )
        try:
            layers(problem, params)
        except ValueError as error:
            raise ValueError(f"{error} Else {advice}") from error
        return
    parts = jtu.tree_leaves(groups(params), is_leaf=lambda leaf: leaf is None)
    if not parts or any(part is None for part in parts):
        raise ValueError("has groups with arrays that are not trained; leave them out.")
    sizes = {np.shape(part)[:1] for part in parts}
    if len(sizes) > 1 or () in sizes:
        shapes = ", ".join(str(np.shape(part)) for part in parts)
        raise ValueError(
            f"has groups of shapes {shapes}, whose leading axes differ; transpose "
            "them so that it is that of the neurons."
        )
