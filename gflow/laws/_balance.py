"""Conserved quantities: the balance of layers, of neurons, of adjacent matrices."""

import itertools
from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Float

from .._norms import array_norm, log_norm
from .._problem import Problem
from .._types import Params
from ..observe._blocks import layers, matrix, outgoing
from ._law import Found, law, need, need_degree, need_separation, shown
from ._run import Run


# Of rtol: most flows come to a tenth of it, sliding ones to about one, and a direction
# that turns within few steps (weight normalisation) to 17.
_CONSERVED = 40.0
# Shares of a start that is not balanced approach their limits like 1/‖W‖².
_EARLY = 0.1


@law("layers stay balanced", "T3 eq. (63): d‖W_k‖²/dt is the same for all k")
def layers_balanced(run: Run) -> Found:
    r"""$L_j\|W_k\|^2-L_k\|W_j\|^2$ is constant, over ‖W‖² at the time.

    L_k is the degree of homogeneity in W_k alone, measured; arrays without one, such as
    biases, are left out.
    """
    known = [
        (k, d) for k, d in enumerate(run.symmetries.layer_degrees) if d is not None
    ]
    need(
        len(known) > 1,
        "fewer than two parameter arrays enter the outputs homogeneously",
    )
    which = [k for k, _ in known]
    degrees = np.array([d for _, d in known])
    logs, size = run.layer_log_norms[:, which], run.log_norm
    now = np.exp(2 * (logs - size[:, None]))
    # The first ones, in units of ‖W‖² now.
    with np.errstate(over="ignore"):
        start = np.exp(2 * (logs[:1] - size[:, None]))
    moved = now - start
    differences = np.abs(
        moved[:, :, None] * degrees - moved[:, None, :] * degrees[:, None]
    )
    worst = float(np.max(differences)) / max(float(np.max(degrees)), 1.0)
    return Found(
        f"constant, L_k = {', '.join(f'{d:g}' for d in degrees[:6])}"
        + (", …" if len(degrees) > 6 else ""),
        f"moves by {shown(worst)} ‖W‖²",
        worst,
        run.tolerance(_CONSERVED),
    )


@law("neurons stay balanced", "Du, Hu & Lee (2018) Theorem 2.1")
def neurons_balanced(run: Run) -> Found:
    r"""$\|w_j^{in}\|^2-p\|w_j^{out}\|^2$ of each hidden neuron is constant, over ‖W‖².

    p is the degree of the activation.
    """
    powers = run.symmetries.neuron_powers
    need(
        powers,
        "the model is no chain of layers whose hidden neurons can be rescaled without "
        "changing the outputs",
    )
    assert powers is not None

    def quantity(arrays: Sequence[Array]) -> list[Array]:
        found = []
        for (a, b), power in zip(itertools.pairwise(arrays), powers, strict=True):
            columns = outgoing(a, b)
            assert columns is not None
            size_in = jax.vmap(array_norm)(matrix(a))
            size_out = jax.vmap(array_norm)(columns).astype(size_in.dtype)
            found.append(size_in**2 - power * size_out**2)
        return found

    worst = _moved(run, quantity)
    return Found(
        f"constant, p = {', '.join(f'{p:g}' for p in powers)}",
        f"moves by {shown(worst)} ‖W‖²",
        worst,
        run.tolerance(_CONSERVED),
    )


@law(
    "matrices stay balanced",
    "Arora, Cohen & Hazan (2018) Theorem 1: W_{k+1}ᵀW_{k+1} - W_kW_kᵀ",
)
def matrices_balanced(run: Run) -> Found:
    r"""$W_{k+1}^\top W_{k+1}-W_kW_k^\top$ is constant, over ‖W‖² (Frobenius norms)."""
    need(run.symmetries.is_deep_linear, "the model is not a deep linear network")
    worst = _moved(run, _gaps)
    return Found(
        "constant",
        f"moves by {shown(worst)} ‖W‖²",
        worst,
        run.tolerance(_CONSERVED),
    )


def _gaps(arrays: Sequence[Array]) -> list[Array]:
    ws = [matrix(w) for w in arrays]
    return [b.T @ b - a @ a.T for a, b in itertools.pairwise(ws)]


def _moved(run: Run, quantity: Callable[[Sequence[Array]], list[Array]]) -> float:
    # The largest distance of a quadratic quantity from its first value, over ‖W‖².
    found = _distances(run.problem, run.params, quantity)
    return float(np.max(np.asarray(found)))


@eqx.filter_jit
def _distances(
    problem: Problem,
    params: Params,
    quantity: Callable[[Sequence[Array]], list[Array]],
) -> Float[Array, " times"]:
    first = jtu.tree_map(lambda w: w[0], params)

    def scaled(w: Params, size: Array) -> list[Array]:
        # Of W over the norm, whose square neither over- nor underflows.
        over = jtu.tree_map(lambda leaf: leaf * jnp.exp(-size).astype(leaf.dtype), w)
        return quantity(layers(problem, over))

    def look(w: Params) -> Array:
        size = log_norm(w)
        pairs = zip(scaled(w, size), scaled(first, size), strict=True)
        return jnp.max(jnp.stack([array_norm(a - b) for a, b in pairs]))

    return jax.lax.map(look, params)


@law("layer shares", "JT Proposition 4.4 (proof): ‖W_k‖²/‖W‖² → L_k/L")
def layer_shares(run: Run) -> Found:
    r"""The layers' shares of ‖W‖² at the end: 1/L each for deep linear networks.

    At finite times they are off that by what is left of the first imbalance: with
    $D_k$ = $\|W_k\|^2-(L_k/L)\|W\|^2$ at the first saved time, by
    $D_k/\|W(T)\|^2\to0$. The violation is what they are off beyond it.
    """
    degree = need_degree(run)
    need_separation(run)
    degrees = run.symmetries.layer_degrees
    need(len(degrees) > 1, "the model has one parameter array")
    known = np.array([np.nan if d is None else d for d in degrees])
    need(
        abs(np.sum(known) - degree) < 1e-6,
        "the degrees in the parameter arrays do not add up to L",
    )
    size = run.log_norm
    limits = known / degree
    shares = np.exp(2 * (run.layer_log_norms[[0, -1]] - size[[0, -1], None]))
    left = (shares[0] - limits) * np.exp(2 * (size[0] - size[-1]))
    most = float(np.max(np.abs(left)))
    need(
        most < _EARLY,
        f"‖W‖² has not outgrown the imbalance of the start, which is {most:.2g} of it",
    )
    worst = float(np.max(np.abs(shares[1] - limits - left)))
    return Found(
        ", ".join(shown(s) for s in limits[:4])
        + (", …" if len(limits) > 4 else "")
        + f", off by at most {shown(most)} yet",
        ", ".join(shown(s) for s in shares[1, :4]),
        worst,
        run.tolerance(_CONSERVED),
    )


@law("layers become rank one", "JT Proposition 4.4: W_k/‖W_k‖ → v_k v_{k-1}ᵀ")
def rank_one(run: Run) -> Found:
    r"""What is not of rank one stays bounded while ‖W‖ grows.

    $\|W_k\|_F^2-\|W_k\|_2^2\le D_k=\|W_k\|_F^2-\|W_L\|_F^2+\sum_{j=k}^{L-1}
    \|W_{j+1}^\top W_{j+1}-W_jW_j^\top\|_2$ at the first saved time, by conservation
    of the matrices, as W_L is a row; over ‖W‖².
    """
    need(run.symmetries.is_deep_linear, "the model is not a deep linear network")
    last = layers(run.problem, run.symmetries.params)[-1]
    need(matrix(last).shape[0] == 1, "the network has several outputs")
    need_separation(run)
    excess, bound = (np.asarray(one) for one in _ranks(run.problem, run.params))
    over = excess - bound
    worst = max(float(np.max(over)), 0.0)
    return Found(
        f"‖W_k‖² - ‖W_k‖₂² ≤ {shown(np.max(bound[-1]))} ‖W‖²",
        f"{shown(np.max(excess[-1]))} ‖W‖² at the end",
        worst,
        run.tolerance(_CONSERVED),
    )


@eqx.filter_jit
def _ranks(problem: Problem, params: Params):
    # ‖W_k‖_F² - ‖W_k‖₂² and D_k, both over ‖W‖² at the time.
    first = jtu.tree_map(lambda w: w[0], params)

    def scaled(w: Params, size: Array) -> list[Array]:
        over = jtu.tree_map(lambda leaf: leaf * jnp.exp(-size).astype(leaf.dtype), w)
        return [matrix(leaf) for leaf in layers(problem, over)]

    def look(w: Params):
        size = log_norm(w)
        excess = []
        for leaf in scaled(w, size):
            s = jnp.linalg.svd(leaf, compute_uv=False)
            excess.append(jnp.sum(s[1:] ** 2))
        start = scaled(first, size)
        gaps = [jnp.linalg.norm(one, 2) for one in _gaps(start)]
        squares = [array_norm(leaf) ** 2 for leaf in start]
        bounds = [
            squares[k] - squares[-1] + sum(gaps[k:], jnp.zeros_like(size))
            for k in range(len(start))
        ]
        return jnp.stack(excess), jnp.stack(bounds)

    return jax.lax.map(look, params)


LAWS = (
    layers_balanced,
    neurons_balanced,
    matrices_balanced,
    layer_shares,
    rank_one,
)
