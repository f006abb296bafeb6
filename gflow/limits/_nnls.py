r"""Non-negative least squares, and the point of least norm of a polyhedron.

Both by the active-set methods of Lawson & Hanson (1974), "Solving Least Squares
Problems", chapter 23: exact up to rounding after finitely many steps, no tolerance on
the solution.
"""

import numpy as np


def nnls(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    r"""$\arg\min_{x\ge0}\|Ax-b\|$, with linearly independent columns in use.

    **Arguments:**

    - `a`: (p, m).
    - `b`: (p,).

    **Returns:**

    x, (m,). Where the minimiser is not unique (columns of A in use that depend on each
    other), one with few non-zero entries.
    """
    if a.shape[0] > a.shape[1]:
        # The same problem with m + 1 rows; exact, since ‖Ax - b‖ is what it was.
        q, r = np.linalg.qr(np.column_stack([a, b]))
        a, b = r[:, :-1], r[:, -1]
    m = a.shape[1]
    x, used = np.zeros(m), np.zeros(m, bool)
    size = np.linalg.norm(a, axis=0)
    small = 64 * np.finfo(np.float64).eps * max(np.linalg.norm(b), 1e-300)
    banned = size == 0
    for _ in range(10 * m + 10):
        slope = a.T @ (b - a @ x)
        slope = np.where(used | banned, -np.inf, slope / np.where(size == 0, 1, size))
        j = int(np.argmax(slope))
        if slope[j] <= small:
            break
        used[j] = True
        z = _solve(a, b, used)
        if z[j] <= 0:
            # Only rounding wanted it in.
            used[j], banned[j] = False, True
            continue
        banned = size == 0
        while np.any(z[used] <= 0):
            low = used & (z <= 0)
            step = np.min(x[low] / (x[low] - z[low]))
            x = x + step * (z - x)
            used &= ~(low & (x <= 1e-15 * np.max(x, initial=0)))
            x[~used] = 0
            z = _solve(a, b, used)
        x = z
    return x


def _solve(a: np.ndarray, b: np.ndarray, used: np.ndarray) -> np.ndarray:
    z = np.zeros(a.shape[1])
    if np.any(used):
        z[used] = np.linalg.lstsq(a[:, used], b, rcond=None)[0]
    return z


def least_norm(
    rows: np.ndarray, bound: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    r"""$\arg\min\{\|v\| : Jv \ge b\}$ and its multipliers, $v = J^\top\lambda$, λ ≥ 0.

    A hard-margin support vector machine without a bias is the case b = 1. Lawson &
    Hanson's LDP: the residual r of $\min_{u\ge0}\|(J\;b)^\top u - e\|$, e the last unit
    vector, gives v = -r/r_last.

    **Arguments:**

    - `rows`: J, (m, P).
    - `bound`: b, (m,), positive somewhere.

    **Returns:**

    (v, λ), or None if no v satisfies the inequalities.
    """
    a = np.vstack([rows.T, bound[None, :]])
    e = np.zeros(len(a))
    e[-1] = 1.0
    u = nnls(a, e)
    rest = 1.0 - bound @ u
    used = u > 0
    if rest <= 1e-13 or not np.any(used):
        return None
    # Polished: on the rows in use the inequalities are equations.
    v = np.linalg.lstsq(rows[used], bound[used], rcond=None)[0]
    weights = np.zeros(len(u))
    weights[used] = np.linalg.lstsq(rows[used].T, v, rcond=None)[0]
    return v, weights
