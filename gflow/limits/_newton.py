r"""Newton's method, regularised, for the KKT equations on a given support.

$$w = \sum_{m\in S}\lambda_m\nabla p_m(w), \qquad p_m(w) = 1 \quad (m \in S)$$

linearised in (w, λ):

$$\begin{pmatrix} I-H_\lambda & -J^\top\\ -J & 0\end{pmatrix}
\begin{pmatrix}\delta w\\ \delta\lambda\end{pmatrix} =
-\begin{pmatrix} w-J^\top\lambda\\ 1-p\end{pmatrix},
\qquad H_\lambda=\sum_m\lambda_m\nabla^2p_m(w).$$

The matrix is singular along manifolds of KKT points (the symmetries of deep linear
networks, wide networks) and where rows of J depend on each other (duplicated data), and
nearly singular beside such manifolds. So its inverse is that of Levenberg & Marquardt,
eigenvalue e ↦ e/(e² + μ²), with μ proportional to the residual: quadratic convergence
to the nearest point of a manifold too (Yamashita & Fukushima 2001, "On the rate of
convergence of the Levenberg-Marquardt method").
"""

from typing import NamedTuple

import numpy as np

from ._flat import Flat


# Vectors that the Krylov solve keeps.
_BASIS = 120
# Corrections back to the constraints after a step.
_RESTORATIONS = 4


class Point(NamedTuple):
    """Weights w with multipliers on a working set of pairs, and on all pins."""

    w: np.ndarray
    weights: np.ndarray
    index: np.ndarray
    residual: float


def residual_of(flat: Flat, w, weights, index):
    """The two parts of the equations, the rows J, and their relative size."""
    p = flat.constraints(w)
    j = flat.rows(w, index)
    r1 = w - j.T @ weights
    r2 = 1.0 - p[index]
    size = max(np.linalg.norm(r1) / np.linalg.norm(w), float(np.max(np.abs(r2))))
    return r1, r2, j, float(size)


def newton(
    flat: Flat,
    w: np.ndarray,
    weights: np.ndarray,
    index: np.ndarray,
    *,
    dense: bool,
    max_steps: int = 25,
) -> Point:
    """Newton's iteration on one support, until rounding stops it or it fails.

    After every step the constraints are met again and the multipliers are those of
    least squares: the constraints curve, the Lagrangian along them much less. μ over
    the residual falls after every step that reduces it and is raised until one does.
    The best point that was seen comes back; its residual says whether it is a solution.
    """
    index = np.asarray(index)
    r1, r2, j, size = residual_of(flat, w, weights, index)
    best = Point(w, weights, index, size)
    stalled, damping = 0, 0.1
    for _ in range(max_steps):
        if size <= 4 * flat.eps or not np.isfinite(size):
            break
        solve = _dense_step if dense else _krylov_step
        step = solve(flat, w, weights, index, r1, r2, j)
        for _ in range(8):
            dw = step(max(damping * size, 4 * flat.eps * flat.size))
            trial = _restored(flat, w + dw, index)
            new = trial[-1]
            if np.isfinite(new) and new < max(size, 1e3 * flat.eps):
                break
            damping *= 5
        else:
            break
        damping = max(damping / 5, 1e-3)
        w, weights, r1, r2, j, new = trial
        stalled = stalled + 1 if new > 0.9 * best.residual else 0
        size = new
        if size < best.residual:
            best = Point(w, weights, index, size)
        if stalled >= 4:
            break
    return best


def _restored(flat: Flat, w: np.ndarray, index: np.ndarray):
    # w moved onto {p_m = 1, m in S}, with multipliers of least squares.
    tangent = None
    for _ in range(_RESTORATIONS):
        p = flat.constraints(w)[index]
        j = flat.rows(w, index)
        if not (np.all(np.isfinite(p)) and np.all(np.isfinite(j))):
            return w, w, w, w, j, np.inf
        tangent = Tangent(j, flat.eps)
        move = tangent.least(1.0 - p)
        w = w + move
        if np.linalg.norm(move) <= 1e-9 * np.linalg.norm(w):
            break
    assert tangent is not None
    j = flat.rows(w, index)
    tangent = Tangent(j, flat.eps)
    weights = tangent.multipliers(w)
    r1, r2, j, size = residual_of(flat, w, weights, index)
    return w, weights, r1, r2, j, size


def _dense_step(flat, w, weights, index, r1, r2, j):
    k, m = len(w), len(index)
    matrix = np.zeros((k + m, k + m))
    hessian = flat.curvature(w, weights, index)(np.eye(k))
    matrix[:k, :k] = np.eye(k) - (hessian + hessian.T) / 2
    matrix[:k, k:] = -j.T
    matrix[k:, :k] = -j
    values, vectors = np.linalg.eigh(matrix)
    parts = vectors.T @ np.concatenate([r1, r2])

    def step(mu):
        return -vectors[:k] @ (values / (values**2 + mu**2) * parts)

    return step


class Tangent:
    """The space {v : Jv = 0}, without forming a basis of it."""

    def __init__(self, j: np.ndarray, eps: float):
        left, values, right = np.linalg.svd(j, full_matrices=False)
        keep = values > 100 * eps * max(j.shape) * max(values.max(initial=0), 1e-300)
        self.left, self.values, self.right = left[:, keep], values[keep], right[keep]

    @property
    def rank(self) -> int:
        return len(self.values)

    def project(self, v: np.ndarray) -> np.ndarray:
        v = v - self.right.T @ (self.right @ v)
        return v - self.right.T @ (self.right @ v)

    def least(self, b: np.ndarray) -> np.ndarray:
        """The v of least norm with Jv = b."""
        return self.right.T @ ((self.left.T @ b) / self.values)

    def multipliers(self, v: np.ndarray) -> np.ndarray:
        """The λ of least norm with Jᵀλ = v."""
        return self.left @ ((self.right @ v) / self.values)


def _krylov_step(flat, w, weights, index, r1, r2, j):
    # dw = (the least norm that meets the constraints) + v in the tangent space, where
    # Π(I - H)v = -Π(r1 + (I - H)(that)).
    product = flat.curvature(w, weights, index)

    def shifted(v):
        return v - product(v[None])[0]

    tangent = Tangent(j, flat.eps)
    start = tangent.least(r2)
    right = -tangent.project(r1 + shifted(start))
    solve = least_squares(lambda v: tangent.project(shifted(v)), right)

    def step(mu):
        return start + solve(mu)

    return step


def least_squares(apply, right: np.ndarray):
    r"""$\mu\mapsto\arg\min\|Av-b\|^2+\mu^2\|v\|^2$ on a Krylov space, A symmetric.

    Fully orthogonalised, so that a singular consistent system gets its solution of
    least norm. The space grows until it holds a solution, or `_BASIS` vectors.
    """
    norm = np.linalg.norm(right)
    if norm == 0:
        return lambda mu: np.zeros_like(right)
    most = min(_BASIS, len(right))
    basis = [right / norm]
    h = np.zeros((most + 1, most))
    k = 0
    for k in range(most):
        v = apply(basis[k])
        for _ in range(2):
            parts = np.array([b @ v for b in basis])
            h[: k + 1, k] += parts
            v = v - sum(c * b for c, b in zip(parts, basis, strict=True))
        h[k + 1, k] = np.linalg.norm(v)
        e = np.zeros(k + 2)
        e[0] = norm
        y = np.linalg.lstsq(h[: k + 2, : k + 1], e, rcond=1e-14)[0]
        rest = np.linalg.norm(h[: k + 2, : k + 1] @ y - e)
        if rest <= 1e-6 * norm or h[k + 1, k] <= 1e-14 * np.max(np.abs(h)):
            break
        basis.append(v / h[k + 1, k])
    left, values, vectors = np.linalg.svd(h[: k + 2, : k + 1], full_matrices=False)
    columns = np.stack(basis[: k + 1], axis=1) @ vectors.T

    def solve(mu):
        return columns @ (values / (values**2 + mu**2) * (norm * left[0]))

    return solve
