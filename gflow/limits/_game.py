r"""The value of a matrix game, a linear programme, by an interior-point method."""

import numpy as np


# Newton steps before giving up: 15 to 40 are usual.
_STEPS = 100
# How far towards the boundary a step goes.
_FRACTION = 0.9995


def solve_game(a: np.ndarray) -> tuple[float, np.ndarray, np.ndarray, float]:
    r"""$\max_{s\in\Delta_m}\min_i (As)_i = \min_{q\in\Delta_n}\max_j (A^\top q)_j$.

    With A shifted to positive entries B and the value v > 0, y = s/v solves min Σy
    subject to By ≥ 1, y ≥ 0, and x = q/v its dual. Mehrotra's predictor-corrector
    method solves both; neurons that gather in a few directions make B's columns almost
    equal, which it does not mind and the simplex method does.

    **Arguments:**

    - `a`: A, (n, m).

    **Returns:**

    (value, s, q, gap): s (m,), q (n,) and the duality gap, which is computed from s and
    q alone and so bounds the error of the value whatever happened before.

    ??? cite "Reference"

        Mehrotra (1992), "On the implementation of a primal-dual interior point
        method", SIAM J. Optim. 2(4), doi:10.1137/0802028.
    """
    a = np.asarray(a, np.float64)
    n, m = a.shape
    size = float(np.max(np.abs(a))) or 1.0
    b = a / size + 1.0 - float(np.min(a)) / size
    # min c·z, Gz = 1, z ≥ 0 with z = (y, slacks w); dual x, reduced costs r = c - Gᵀx.
    g = np.concatenate([b, -np.eye(n)], axis=1)
    c = np.append(np.ones(m), np.zeros(n))
    y = np.full(m, 2.0 / np.min(b @ np.ones(m)))
    z = np.append(y, b @ y - 1.0)
    x = np.full(n, 0.5 / np.max(b.T @ np.ones(n)))
    r = c - g.T @ x
    best = (np.inf, _simplex(y), _simplex(x))
    for _ in range(_STEPS):
        primal, dual, mu = 1.0 - g @ z, c - g.T @ x - r, z @ r / len(z)
        d = z / r
        normal = (g * d) @ g.T

        def step(complement, primal=primal, dual=dual, d=d, normal=normal, r=r):
            rhs = primal + g @ (d * dual - complement / r)
            dx = _solve(normal, rhs)
            dr = dual - g.T @ dx
            return complement / r - d * dr, dx, dr

        dz, dx, dr = step(-z * r)
        ahead = (z + _reach(z, dz) * dz) @ (r + _reach(r, dr) * dr) / len(z)
        centre = (ahead / mu) ** 3 * mu
        dz, dx, dr = step(centre - z * r - dz * dr)
        z = z + _FRACTION * _reach(z, dz) * dz
        along = _FRACTION * _reach(r, dr)
        x, r = x + along * dx, r + along * dr
        if not (np.all(np.isfinite(z)) and np.all(np.isfinite(x)) and np.all(z > 0)):
            break
        s, q = _simplex(z[:m]), _simplex(x)
        gap = float(np.max(a.T @ q) - np.min(a @ s))
        if gap < best[0]:
            best = (gap, s, q)
        if gap <= 1e-15 * size or mu < 1e-30 or not np.all(r > 0):
            break
    gap, s, q = best
    low, high = float(np.min(a @ s)), float(np.max(a.T @ q))
    return (low + high) / 2, s, q, high - low


def _reach(x: np.ndarray, dx: np.ndarray) -> float:
    """The largest step up to one that keeps x + step · dx ≥ 0."""
    falling = dx < 0
    return float(min(1.0, np.min(-x[falling] / dx[falling]))) if falling.any() else 1.0


def _solve(matrix: np.ndarray, rhs: np.ndarray) -> np.ndarray:
    # Nearly singular towards the end: scaled to a unit diagonal, and least squares.
    scale = 1 / np.sqrt(np.diag(matrix))
    scaled = matrix * scale[:, None] * scale[None, :]
    return scale * np.linalg.lstsq(scaled, scale * rhs, rcond=1e-15)[0]


def _simplex(x: np.ndarray) -> np.ndarray:
    x = np.maximum(x, 0)
    total = np.sum(x)
    return x / total if total > 0 else np.full(len(x), 1 / len(x))
