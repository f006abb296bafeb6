r"""The value of a matrix game, a small linear programme, by the simplex method."""

import numpy as np


# Pivots before giving up: the simplex method needs a few times m + n.
_PIVOTS_PER_ROW = 50


def solve_game(a: np.ndarray) -> tuple[float, np.ndarray, np.ndarray, float]:
    r"""$\max_{s\in\Delta_m}\min_i (As)_i = \min_{q\in\Delta_n}\max_j (A^\top q)_j$.

    With A shifted to positive entries and the value v > 0, x = q/v solves max Σx
    subject to Aᵀx ≤ 1, x ≥ 0, which has a feasible start; the dual gives s/v. Bland's
    rule, so that it ends.

    **Arguments:**

    - `a`: A, (n, m).

    **Returns:**

    (value, s, q, gap): s (m,), q (n,) and the duality gap, which is computed from s and
    q alone and so bounds the error of the value whatever happened before.
    """
    a = np.asarray(a, np.float64)
    n, m = a.shape
    size = float(np.max(np.abs(a))) or 1.0
    shift = 1.0 - float(np.min(a)) / size
    b = a / size + shift
    # Rows: m constraints; columns: x (n), slacks (m), right-hand side.
    table = np.zeros((m + 1, n + m + 1))
    table[:m, :n] = b.T
    table[:m, n : n + m] = np.eye(m)
    table[:m, -1] = 1.0
    table[m, :n] = -1.0
    basis = np.arange(n, n + m)
    for _ in range(_PIVOTS_PER_ROW * (m + n)):
        falling = np.flatnonzero(table[m, :-1] < -1e-12)
        if len(falling) == 0:
            break
        column = falling[0]
        entries = table[:m, column]
        positive = entries > 1e-12
        if not np.any(positive):
            break
        ratio = np.where(
            positive, table[:m, -1] / np.where(positive, entries, 1), np.inf
        )
        ties = np.flatnonzero(ratio <= np.min(ratio) * (1 + 1e-12))
        row = ties[np.argmin(basis[ties])]
        table[row] /= table[row, column]
        others = np.arange(m + 1) != row
        table[others] -= np.outer(table[others, column], table[row])
        basis[row] = column
    x = np.zeros(n + m)
    x[basis] = table[:m, -1]
    q = _simplex(x[:n])
    s = _simplex(table[m, n : n + m])
    low, high = float(np.min(a @ s)), float(np.max(a.T @ q))
    return (low + high) / 2, s, q, high - low


def _simplex(x: np.ndarray) -> np.ndarray:
    x = np.maximum(x, 0)
    total = np.sum(x)
    return x / total if total > 0 else np.full(len(x), 1 / len(x))
