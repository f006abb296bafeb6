"""The KKT conditions at a point, with multipliers from non-negative least squares."""

from typing import NamedTuple

import numpy as np

from ._flat import Flat
from ._nnls import nnls


class Kkt(NamedTuple):
    """Support and multipliers at a unit vector θ, and how well the conditions hold."""

    theta: np.ndarray
    margin: float
    support: np.ndarray
    multipliers: np.ndarray
    rank: int
    residual: float
    slack: float
    forces: np.ndarray  # the multipliers of the pins, over the sum of the others


def kkt(flat: Flat, w: np.ndarray, support_tolerance: float) -> Kkt:
    """The conditions at w/‖w‖; the margin is in the unit of `flat`."""
    theta = w / np.linalg.norm(w)
    p = flat.margins(theta)
    margin = float(np.min(p))
    support = p <= margin * (1 + support_tolerance)
    index = np.flatnonzero(support)
    rows = flat.rows(theta, np.append(index, flat.pins))
    held = rows[len(index) :]
    weights = nnls(np.concatenate([rows, -held]).T, theta)
    up, down = np.split(weights[len(index) :], 2)
    weights = weights[: len(index)]
    total = np.sum(weights)
    forces = (up - down) / (total if total > 0 else 1.0)
    q = np.zeros(len(p))
    if total > 0:
        q[index] = weights / total
    sums = rows.T @ np.append(q[index], forces)
    stationary = np.linalg.norm(theta - sums / (flat.degree * margin))
    complementary = float(q @ (p - margin) / margin)
    off = p[~support]
    slack = float(np.min(off) / margin - 1) if len(off) else float("inf")
    singular = np.linalg.svd(rows, compute_uv=False)
    rank = int(np.sum(singular > flat.eps**0.5 * np.max(singular)))
    residual = max(float(stationary), complementary)
    return Kkt(theta, margin, support, q, rank, residual, slack, forces)
