"""What theory says of the limit of deep linear networks."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._types import Scalar
from ..nn import DeepLinear, Linear
from ._nnls import least_norm
from ._result import Limit


class DeepLinearCertificate(eqx.Module):
    r"""A deep linear network against its limit by Ji & Telgarsky, Prop. 4.4.

    **Attributes:**

    - `svm_direction`: (d,) ū, the unit vector of the largest margin, by a convex solve.
    - `svm_margin`: $\min_i y_i\langle\bar u,x_i\rangle$.
    - `svm_gap`: primal minus dual value of that solve, relative: zero up to rounding.
    - `angle`: between the product W_L ... W_1 and ū, in radians; 0 at the limit.
    - `margin`: $\min_i y_i\langle u,x_i\rangle$ of the product's direction u.
    - `shares`: (L,) $\|W_k\|/\|W\|$, all $L^{-1/2}$ at the limit.
    - `stable_ranks`: (L,) $\|W_k\|_F^2/\|W_k\|_\sigma^2$, 1 at the limit.
    - `rank_one_residuals`: (L,) $\|W_k-\sigma_1u_1v_1^\top\|/\|W_k\|$, 0 at the limit.
    - `alignments`: (L - 1,) |⟨left singular vector of W_k, right one of W_{k+1}⟩| for
        the largest singular values, 1 at the limit.
    - `largest_deviation`: the largest of angle, share and rank-one residual from what
        they are at the limit.
    """

    svm_direction: Float[Array, " features"]
    svm_margin: Scalar
    svm_gap: Scalar
    angle: Scalar
    margin: Scalar
    shares: Float[Array, " layers"]
    stable_ranks: Float[Array, " layers"]
    rank_one_residuals: Float[Array, " layers"]
    alignments: Float[Array, " gaps"]
    largest_deviation: Scalar


def deep_linear_certificate(limit_or_model: Any, data: Any) -> DeepLinearCertificate:
    r"""Compares a deep linear network with the maximum-margin predictor.

    $$\frac{W_k}{\|W_k\|}\to v_kv_{k-1}^\top, \qquad
    \frac{W_L\cdots W_1}{\|W_L\cdots W_1\|}\to\bar u^\top
    =\arg\max_{\|u\|\le1}\min_i y_i\langle u,x_i\rangle, \qquad
    \frac{\|W_k\|}{\|W\|}\to L^{-1/2}.$$

    ū comes from a solve of its own, which knows nothing of the network.

    **Arguments:**

    - `limit_or_model`: a `Limit`, or a [`gflow.nn.DeepLinear`][] (or a
        [`gflow.nn.Linear`][]) with one output, at any time.
    - `data`: (x, y), y in {-1, +1}.

    **Returns:**

    A `DeepLinearCertificate`.

    **Raises:**

    `ValueError` for another model, or data that no linear predictor separates.

    ??? cite "Reference"

        Ji and Telgarsky (2020), "Directional convergence and alignment in deep
        learning", Proposition 4.4, arXiv:2006.06657.
    """
    model = limit_or_model
    if isinstance(model, Limit):
        model = model.direction
    if not isinstance(model, (DeepLinear, Linear)):
        raise ValueError(
            f"deep_linear_certificate takes a gflow.nn.DeepLinear or Linear, got "
            f"{type(model).__name__}."
        )
    layers = model.layers if isinstance(model, DeepLinear) else (model,)
    dtype = layers[0].weight.dtype
    weights = [np.asarray(layer.weight, np.float64) for layer in layers]
    if weights[-1].shape[0] != 1:
        raise ValueError(
            f"the network has {weights[-1].shape[0]} outputs; Proposition 4.4 is for "
            "one output and labels ±1."
        )
    x, y = (np.asarray(one, np.float64) for one in data)
    signed = y[:, None] * x.reshape(len(x), -1)
    solved = least_norm(signed, np.ones(len(signed)))
    if solved is None:
        raise ValueError(
            "no linear predictor separates the data, so there is no maximum margin; "
            "append a constant feature with gflow.nn.append_one if a bias is missing."
        )
    u, dual = solved
    # ½‖u‖² against its dual Σλ - ½‖Σλ_i y_i x_i‖²; u as feasible as rounding makes it.
    u = u / np.min(signed @ u)
    value = u @ u / 2
    gap = (value - (np.sum(dual) - np.sum((dual @ signed) ** 2) / 2)) / value
    direction = u / np.linalg.norm(u)

    product = weights[0] / np.linalg.norm(weights[0])
    for w in weights[1:]:
        product = w @ product
        product = product / np.linalg.norm(product)
    found = product[0]
    angle = 2 * np.arctan2(
        np.linalg.norm(found - direction), np.linalg.norm(found + direction)
    )
    norms = np.array([np.linalg.norm(w) for w in weights])
    shares = norms / np.linalg.norm(norms)
    parts = [np.linalg.svd(w, full_matrices=False) for w in weights]
    stable = np.array([np.sum(s**2) / s[0] ** 2 for _, s, _ in parts])
    rest = np.array([np.linalg.norm(s[1:]) / np.linalg.norm(s) for _, s, _ in parts])
    aligned = np.array(
        [
            abs(below[0][:, 0] @ above[2][0])
            for below, above in zip(parts[:-1], parts[1:], strict=True)
        ]
    )
    deviation = max(
        float(angle),
        float(np.max(np.abs(shares * len(weights) ** 0.5 - 1))),
        float(np.max(rest)),
    )
    return DeepLinearCertificate(
        svm_direction=jnp.asarray(direction, dtype),
        svm_margin=jnp.asarray(np.min(signed @ direction), dtype),
        svm_gap=jnp.asarray(gap, dtype),
        angle=jnp.asarray(angle, dtype),
        margin=jnp.asarray(np.min(signed @ found), dtype),
        shares=jnp.asarray(shares, dtype),
        stable_ranks=jnp.asarray(stable, dtype),
        rank_one_residuals=jnp.asarray(rest, dtype),
        alignments=jnp.asarray(aligned, dtype),
        largest_deviation=jnp.asarray(deviation, dtype),
    )
