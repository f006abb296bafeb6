r"""Extremes over the sphere for squared ReLU: the best neuron, the covering radius.

Exact in one and two dimensions, where the sphere is two points or a circle. In more
dimensions by ascent from many starts: then lower bounds of the maxima.
"""

import numpy as np


_STARTS, _ASCENTS, _SAMPLES = 256, 200, 20_000


def best_neuron(
    x: np.ndarray, weights: np.ndarray, starts: np.ndarray, seed: int = 0
) -> tuple[np.ndarray, float]:
    r"""$\arg\max_{\|\theta\|=1}\sum_i c_i\max\{0,\langle x_i,\theta\rangle\}^2$.

    **Arguments:**

    - `x`: (n, d).
    - `weights`: c, (n,), of any sign.
    - `starts`: (k, d) directions to start from too, in more than two dimensions.
    - `seed`: of the random starts.

    **Returns:**

    (θ, value).
    """
    d = x.shape[1]
    if d == 1:
        candidates = np.array([[1.0], [-1.0]])
    elif d == 2:
        candidates = _arc_maxima(x, weights)
    else:
        candidates = _ascend(x, weights, starts, seed)
    values = np.maximum(candidates @ x.T, 0) ** 2 @ weights
    best = int(np.argmax(values))
    return candidates[best], float(values[best])


def _arc_maxima(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    # Between the angles where a data point changes sides the function is a quadratic
    # form θᵀMθ: its maximum on an arc is the leading eigenvector or an end.
    angle = np.arctan2(x[:, 1], x[:, 0])
    ends = np.sort(np.concatenate([angle + np.pi / 2, angle - np.pi / 2]) % (2 * np.pi))
    middles = (ends + np.append(ends[1:], ends[0] + 2 * np.pi)) / 2
    found = [np.stack([np.cos(ends), np.sin(ends)], axis=1)]
    for middle in middles:
        on = x @ np.array([np.cos(middle), np.sin(middle)]) > 0
        form = (x[on] * weights[on, None]).T @ x[on]
        v = np.linalg.eigh(form)[1][:, -1]
        found.append(np.stack([v, -v]))
    return np.concatenate(found)


def _ascend(x, weights, starts, seed):
    theta = np.random.default_rng(seed).standard_normal((_STARTS, x.shape[1]))
    theta = np.concatenate([theta, starts]) if len(starts) else theta
    theta /= np.linalg.norm(theta, axis=1, keepdims=True)
    # With this multiple of ‖θ‖² added the function is convex, so that steps to its
    # gradient's direction never descend.
    minus = np.maximum(-weights, 0)
    shift = np.linalg.norm((x * minus[:, None]).T @ x, 2)
    for _ in range(_ASCENTS):
        active = np.maximum(theta @ x.T, 0)
        new = (active * weights) @ x + shift * theta
        norm = np.linalg.norm(new, axis=1, keepdims=True)
        theta = np.where(norm > 0, new / np.where(norm > 0, norm, 1), theta)
    return theta


def covering_radius(points: np.ndarray, seed: int = 0) -> tuple[float, bool]:
    r"""$\max_{\|\theta'\|=1}\min_j\|\theta_j-\theta'\|$, and whether it is exact.

    **Arguments:**

    - `points`: (k, d) unit vectors. With none of them no radius is enough: inf.
    - `seed`: of the samples, in more than two dimensions.
    """
    if len(points) == 0:
        return float("inf"), True
    d = points.shape[1]
    if d == 1:
        both = np.any(points > 0) and np.any(points < 0)
        return (0.0 if both else 2.0), True
    if d == 2:
        angle = np.sort(np.arctan2(points[:, 1], points[:, 0]))
        gap = np.max(np.append(np.diff(angle), angle[0] + 2 * np.pi - angle[-1]))
        return float(2 * np.sin(min(gap / 2, np.pi) / 2)), True
    sample = np.random.default_rng(seed).standard_normal((_SAMPLES, d))
    sample = np.concatenate([sample, -points])
    sample /= np.linalg.norm(sample, axis=1, keepdims=True)
    nearest = np.max(sample @ points.T, axis=1)
    return float(np.sqrt(2 - 2 * np.min(np.minimum(nearest, 1)))), False
