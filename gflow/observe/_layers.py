"""Layers: alignment of each, balance between them, rank."""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Float

from .._norms import angle, array_norm
from .._norms import log_norm as _log_norm
from .._problem import Problem
from .._types import Params, Scalar
from ._blocks import layers, matrix, num_inputs, outgoing
from ._observer import observer
from ._state import State


def _check_degrees(
    problem: Problem,
    params: Params,
    degree: float | None,
    *,
    degrees: Any = None,
) -> None:
    number = len(jtu.tree_leaves(params))
    if number < 2:
        raise ValueError("compares layers, and the model has one parameter array.")
    if degrees is not None and len(degrees) != number:
        raise ValueError(
            f"was given {len(degrees)} degrees for {number} parameter arrays."
        )
    total = number if degrees is None else float(np.sum(degrees))
    if degree is not None and abs(total - degree) > 1e-6:
        raise ValueError(
            f"takes the degrees of homogeneity in each of the {number} parameter "
            f"arrays to add up to {total:g}, but the model's is {degree:g}; give them "
            "in tree order, as in .using(degrees=(2, 1))."
        )


@observer()
def layer_alignment(state: State):
    r"""Angle between each W_k and $-\nabla_{W_k}\mathcal L$ (arrays,), in radians.

    In tree order. NaN where either is zero. Tends to 0 where $\|W_k\|/\|W\|$ stays
    away from 0. No gradient beyond the shared one.
    (Ji & Telgarsky 2020, Lemma E.1.)
    """
    pairs = zip(
        jtu.tree_leaves(state.params), jtu.tree_leaves(state.direction), strict=True
    )
    return jnp.stack([angle(w, d) for w, d in pairs])


@observer(needs_degree=True, check=_check_degrees)
def balancedness(
    state: State, *, degrees: Sequence[float | int] | None = None
) -> dict[str, Array]:
    r"""Differences of the layers' squared norms (arrays - 1,), a dict:

    - `difference`: $\|W_{k+1}\|^2/L_{k+1}-\|W_k\|^2/L_k$, in tree order, constant
        along the flow.
    - `relative`: the same over $\|W\|^2$, which neither over- nor underflows.

    L_k is the degree of homogeneity in W_k alone; the option `degrees` gives them,
    default one each. No gradient. (Banburski et al. 2019, Section 11.1.1; Du, Hu & Lee
    2018, Theorem 2.1.)
    """
    arrays = jtu.tree_leaves(state.params)
    powers = [1] * len(arrays) if degrees is None else degrees
    size = _log_norm(state.params)
    squares = [
        jnp.exp(2 * (_log_norm(w).astype(size.dtype) - size)) / power
        for w, power in zip(arrays, powers, strict=True)
    ]
    relative = jnp.diff(jnp.stack(squares))
    return {"difference": relative * jnp.exp(2 * size), "relative": relative}


def _check_chain(
    problem: Problem, params: Params, degree: float | None, **options: Any
) -> None:
    del degree, options
    if len(layers(problem, params)) < 2:
        raise ValueError("compares layers, and the model has one parameter array.")


def _check_matrices(
    problem: Problem, params: Params, degree: float | None, **options: Any
) -> None:
    _check_chain(problem, params, degree)
    if any(w.ndim > 2 for w in jtu.tree_leaves(params)):
        raise ValueError("needs matrices, and the model has convolutions.")


@observer(check=_check_matrices)
def matrix_balancedness(state: State) -> tuple[Array, ...]:
    r"""$W_{k+1}^\top W_{k+1}-W_kW_k^\top$ of each pair of layers, a tuple of matrices.

    Of shape (width, width), from the input on. Constant along the flow of a deep
    *linear* network; of others it is what it says, and not conserved. No gradient.
    (Banburski et al. 2019, Section 11.1.1; Arora, Cohen & Hazan 2018, Theorem 1.)
    """
    ws = [matrix(w) for w in layers(state.problem, state.params)]
    return tuple(b.T @ b - a @ a.T for a, b in itertools.pairwise(ws))


@observer(check=_check_chain)
def neuron_balancedness(state: State, *, power: float | int = 1) -> tuple[Array, ...]:
    r"""$\|w_j^{in}\|^2-p\,\|w_j^{out}\|^2$ of each hidden neuron, a tuple of (width,).

    One array for each hidden layer, from the input on; channels are the neurons of
    convolutions. Constant along the flow for activations of degree p, the option
    `power`: default 1, as of ReLU and leaky ReLU. No gradient. (Banburski et al. 2019,
    Section 11.1.1; Du, Hu & Lee 2018, Theorem 2.1.)
    """
    found = []
    for a, b in itertools.pairwise(layers(state.problem, state.params)):
        rows, columns = matrix(a), outgoing(a, b)
        assert columns is not None
        size_in, size_out = jax.vmap(array_norm)(rows), jax.vmap(array_norm)(columns)
        found.append(size_in**2 - power * size_out.astype(size_in.dtype) ** 2)
    return tuple(found)


@observer()
def layer_rank(state: State) -> dict[str, Any]:
    r"""How near each layer is to rank one, a dict:

    - `singular_values`: those of each W_k, a tuple of arrays, descending. Of a
        convolution, those of the matrix with its filters as rows.
    - `stable_rank` (arrays,): $\|W_k\|_F^2/\|W_k\|_2^2$, which is 1 for rank one.
    - `angles` (arrays - 1,): between the first left singular vector of $W_k$ and the
        first right one of $W_{k+1}$, as lines, in [0, π/2]. NaN where their sizes
        differ, a matrix is zero, or its two largest singular values are equal.

    In tree order. Deep linear networks converge to $W_k/\|W_k\|\to v_kv_{k-1}^\top$:
    stable ranks tend to 1 and angles to 0. No gradient; a singular value decomposition
    of each layer. (Ji & Telgarsky 2020, Proposition 4.4.)
    """
    arrays = jtu.tree_leaves(state.params)
    values, lefts, rights = zip(*(_decomposed(matrix(w)) for w in arrays), strict=True)
    pairs = zip(arrays[1:], lefts[:-1], rights[1:], strict=True)
    angles = [
        _line_angle(left, right)
        if left.shape == right.shape and num_inputs(w) == left.shape[0]
        else jnp.asarray(jnp.nan, left.dtype)
        for w, left, right in pairs
    ]
    squares = [jnp.sum((s / s[0]) ** 2) for s in values]
    dtype = jnp.result_type(*squares)
    return {
        "singular_values": values,
        "stable_rank": jnp.stack([one.astype(dtype) for one in squares]),
        "angles": jnp.stack([one.astype(dtype) for one in angles])
        if angles
        else jnp.zeros(0, dtype),
    }


def _decomposed(w: Float[Array, "out in"]) -> tuple[Array, Array, Array]:
    """Singular values and the first pair of vectors, NaN where they are not unique."""
    scale = jnp.max(jnp.abs(w))
    left, values, right = jnp.linalg.svd(
        w / jnp.where(scale == 0, 1, scale), full_matrices=False
    )
    eps = max(w.shape) * float(jnp.finfo(w.dtype).eps)
    second = values[1] if values.shape[0] > 1 else jnp.zeros_like(values[0])
    unique = values[0] - second > eps * values[0]
    u, v = (jnp.where(unique, one, jnp.nan) for one in (left[:, 0], right[0]))
    return scale * values, u, v


def _line_angle(a: Float[Array, " m"], b: Float[Array, " m"]) -> Scalar:
    found = angle(a, b.astype(a.dtype))
    return jnp.minimum(found, jnp.pi - found)
