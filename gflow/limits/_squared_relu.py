"""What theory says of the limit of two-layer squared ReLU networks."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from .._types import BoolScalar, Scalar
from ..nn import Fixed, TwoLayer, squared_relu
from ._game import solve_game
from ._neurons import best_neuron, covering_radius
from ._result import Limit


# Columns added to the global problem, and the relative gap at which that ends.
_COLUMNS, _GAP = 100, 1e-9


class SquaredReluCertificate(eqx.Module):
    r"""A two-layer squared ReLU network by Ji & Telgarsky, Prop. 4.6.

    With $\phi_{ij}(\theta)=y_ia_j\max\{0,\langle\theta,x_i\rangle\}^2$.

    **Attributes:**

    - `shares`: (m,) $\bar s_j=\|w_j\|^2/\|W\|^2$.
    - `directions`: (m, d) $\bar\theta_j=w_j/\|w_j\|$, zero where the share is zero.
    - `margin`: $a=\min_ip_i/\|W\|^2$.
    - `local_value`: $\max_{s\in\Delta_m}\min_i\sum_js_j\phi_{ij}(\bar\theta_j)$, by a
        linear programme.
    - `local_lp_gap`: the duality gap of that solve.
    - `local_gap`: local_value - a, over the larger of the two: 0 at a limit, and not
        negative up to rounding.
    - `dual_gap`: $\max_j\sum_iq_i\phi_{ij}-a$ for the limit's own multipliers q, over
        the same: also bounds local_gap, without any solver. NaN for a model.
    - `global_value`: a value that $\max_\nu\min_iy_i\int\max\{0,x_i^\top\theta\}^2d\nu$
        reaches, by adding neurons: a lower bound of it.
    - `global_upper`: the upper bound by weak duality, from the best neuron found.
    - `global_is_exact`: whether the best neuron is exact (d ≤ 2), and so the bound.
    - `epsilon`: ε of the covering condition, max(`drift`, `cover`).
    - `drift`: $\max_j\|\theta_j(t_0)-\bar\theta_j\|$.
    - `cover`: the covering radius of the θ_j(t_0), the larger of that of the neurons
        with a_j > 0 and with a_j < 0.
    - `cover_is_exact`: whether it is exact (d ≤ 2). If not, it is a lower bound, and
        `global_holds` asks for more than the theorem promises.
    - `global_bound`: global_value - 4 ε R², R the largest ‖x_i‖ (the theorem has
        R ≤ 1). Below zero it says nothing.
    - `local_holds`: |local_gap| within the tolerance.
    - `global_holds`: a ≥ global_bound.
    - `is_informative`: global_bound > 0.
    """

    shares: Float[Array, " neurons"]
    directions: Float[Array, "neurons features"]
    margin: Scalar
    local_value: Scalar
    local_lp_gap: Scalar
    local_gap: Scalar
    dual_gap: Scalar
    global_value: Scalar
    global_upper: Scalar
    global_is_exact: Bool[Array, ""]
    epsilon: Scalar
    drift: Scalar
    cover: Scalar
    cover_is_exact: Bool[Array, ""]
    global_bound: Scalar
    local_holds: BoolScalar
    global_holds: BoolScalar
    is_informative: BoolScalar


def squared_relu_certificate(
    limit_or_model: Any,
    data: Any,
    *,
    start: Any = None,
    zero_share: float = 1e-14,
    rtol: float = 1e-6,
) -> SquaredReluCertificate:
    r"""Compares a squared ReLU network with its local and global guarantees.

    Local: the shares of the neurons solve the linear programme over their directions,

    $$a=\lim_{t\to\infty}\min_i\frac{p_i(W_t)}{\|W_t\|^2}
    =\max_{s\in\Delta_m}\min_i\sum_js_j\phi_{ij}(\bar\theta_j)
    =\min_{q\in\Delta_n}\max_j\sum_iq_i\phi_{ij}(\bar\theta_j).$$

    (The paper prints $\min_i\max_s$; its proof has the saddle value above.) Global: if
    at some $t_0$ both $\max_j\|\theta_j(t_0)-\bar\theta_j\|\le\epsilon$ and the neurons
    of either sign cover the sphere within ε, and $\|x_i\|\le1$, then

    $$a\ge\max_{\nu\in\mathcal P(S^{d-1})}\min_iy_i
    \int\max\{0,x_i^\top\theta\}^2d\nu(\theta)-4\epsilon,$$

    ν signed, of total variation one.

    **Arguments:**

    - `limit_or_model`: a `Limit`, or a [`gflow.nn.TwoLayer`][] with
        `gflow.nn.squared_relu`, fixed outer weights of one absolute value.
    - `data`: (x, y), y in {-1, +1}.
    - `start`: the model at t_0, for ε. Default: the limit itself, with the neurons that
        are not zero there, so drift = 0.
    - `zero_share`: shares up to this are zero.
    - `rtol`: of `local_holds`.

    **Returns:**

    A `SquaredReluCertificate`.

    **Raises:**

    `ValueError` for another model.

    ??? cite "Reference"

        Ji and Telgarsky (2020), "Directional convergence and alignment in deep
        learning", Proposition 4.6, arXiv:2006.06657.
    """
    given = limit_or_model
    model = given.direction if isinstance(given, Limit) else given
    w, a = _weights(model)
    x, y = (np.asarray(one, np.float64) for one in data)
    if x.ndim != 2 or x.shape[1] != w.shape[1]:
        raise ValueError(
            f"x has shape {x.shape}; the neurons have {w.shape[1]} inputs."
        )
    size = float(np.max(np.abs(a)))
    if np.min(np.abs(a)) < size * (1 - 1e-6):
        raise ValueError(
            "the outer weights differ in absolute value; Proposition 4.6 has a_j = ±1."
        )
    shares = np.sum(w**2, axis=1) / np.sum(w**2)
    live = shares > zero_share
    theta = np.where(live[:, None], _unit(w), 0.0)
    phi = y[:, None] * np.maximum(x @ theta.T, 0) ** 2 * a
    margin = float(np.min(phi @ shares))
    local, _, q, lp_gap = solve_game(phi)
    scale = max(abs(local), abs(margin))
    scale = scale if scale > 0 else np.nan
    dual_gap = np.nan
    if isinstance(given, Limit):
        own = np.asarray(given.multipliers, np.float64)
        dual_gap = (float(np.max(phi.T @ own)) - margin) / scale

    total, upper = _global(x, y, size, theta[live], a[live])
    if start is None:
        at, signs, drift = theta[live], np.sign(a[live]), 0.0
    else:
        w0, a0 = _weights(start)
        if w0.shape != w.shape:
            raise ValueError(
                f"start has neurons of shape {w0.shape}, the limit {w.shape}."
            )
        at, signs = _unit(w0), np.sign(a0)
        drift = float(np.max(np.linalg.norm(at - theta, axis=1)))
    radii = [covering_radius(at[signs == sign]) for sign in (1.0, -1.0)]
    cover, exact = max(r for r, _ in radii), all(one for _, one in radii)
    epsilon = max(drift, cover)
    radius = float(np.max(np.linalg.norm(x, axis=1)))
    bound = total - 4 * epsilon * size * radius**2
    dtype = model.weight.dtype

    def scalar(value):
        return jnp.asarray(value, dtype)

    local_gap = (local - margin) / scale
    return SquaredReluCertificate(
        shares=scalar(shares),
        directions=scalar(theta),
        margin=scalar(margin),
        local_value=scalar(local),
        local_lp_gap=scalar(lp_gap),
        local_gap=scalar(local_gap),
        dual_gap=scalar(dual_gap),
        global_value=scalar(total),
        global_upper=scalar(upper),
        global_is_exact=jnp.asarray(x.shape[1] <= 2),
        epsilon=scalar(epsilon),
        drift=scalar(drift),
        cover=scalar(cover),
        cover_is_exact=jnp.asarray(exact),
        global_bound=scalar(bound),
        local_holds=jnp.asarray(abs(local_gap) <= rtol),
        global_holds=jnp.asarray(margin >= bound - rtol * abs(total)),
        is_informative=jnp.asarray(bound > 0),
    )


def _weights(model: Any) -> tuple[np.ndarray, np.ndarray]:
    # Rows w_j and outer weights a_j, the output scale in them.
    if not isinstance(model, TwoLayer) or not isinstance(model.outer, Fixed):
        raise ValueError(
            "squared_relu_certificate takes a gflow.nn.TwoLayer with outer='fixed', "
            f"got {type(model).__name__}"
            + (" with trained outer weights." if isinstance(model, TwoLayer) else ".")
        )
    probe = jnp.asarray([-2.0, -0.5, 0.5, 3.0], model.weight.dtype)
    same = jnp.allclose(model.activation(probe), squared_relu(probe))
    if not bool(jax.device_get(same)):
        raise ValueError(
            "the activation is not squared ReLU; Proposition 4.6 is for "
            "gflow.nn.squared_relu."
        )
    outer = model.output_scale * np.asarray(model.outer.value, np.float64)
    return np.asarray(model.weight, np.float64), outer


def _unit(w: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(w, axis=1, keepdims=True)
    return w / np.where(norm > 0, norm, 1.0)


def _global(x, y, size, theta, a) -> tuple[float, float]:
    # max over signed measures by column generation: the linear programme over the
    # neurons so far, then the best neuron of either sign for its multipliers.
    columns = y[:, None] * np.maximum(x @ theta.T, 0) ** 2 * a
    starts = theta
    value, upper = -np.inf, np.inf
    for _ in range(_COLUMNS):
        value, _, q, _ = solve_game(columns)
        best = [best_neuron(x, sign * size * q * y, starts) for sign in (1.0, -1.0)]
        upper = min(upper, max(one for _, one in best))
        if upper <= value + _GAP * abs(value):
            break
        new = np.stack([one for one, _ in best])
        signs = size * np.array([1.0, -1.0])
        more = y[:, None] * np.maximum(x @ new.T, 0) ** 2 * signs
        columns = np.concatenate([columns, more], axis=1)
        starts = np.concatenate([starts, new])
    return value, upper
