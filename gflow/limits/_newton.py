r"""Newton's method for the KKT equations on a given support.

$$w = \sum_{m\in S}\lambda_m\nabla p_m(w), \qquad p_m(w) = 1 \quad (m \in S)$$

linearised in (w, λ):

$$\begin{pmatrix} I-H_\lambda & -J^\top\\ -J & 0\end{pmatrix}
\begin{pmatrix}\delta w\\ \delta\lambda\end{pmatrix} =
-\begin{pmatrix} w-J^\top\lambda\\ 1-p\end{pmatrix},
\qquad H_\lambda=\sum_m\lambda_m\nabla^2p_m(w).$$

The matrix is singular along manifolds of KKT points (the symmetries of deep linear
networks) and where rows of J depend on each other (duplicated data): the correction of
least norm is taken.
"""

from typing import NamedTuple

import numpy as np

from ._flat import Flat


# Vectors that the Krylov solve keeps.
_BASIS = 120


class Point(NamedTuple):
    """Weights w with multipliers on a working set of pairs."""

    w: np.ndarray
    weights: np.ndarray
    index: np.ndarray
    residual: float


def residual_of(flat: Flat, w, weights, index):
    """The two parts of the equations, the rows J, and their relative size."""
    p = flat.margins(w)
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

    A step is halved while the residual grows, up to a few times. The best point that
    was seen comes back; its residual says whether it is a solution.
    """
    index = np.asarray(index)
    r1, r2, j, size = residual_of(flat, w, weights, index)
    best = Point(w, weights, index, size)
    stalled = 0
    for _ in range(max_steps):
        if size <= 4 * flat.eps or not np.isfinite(size):
            break
        solve = _dense_step if dense else _krylov_step
        dw, dl = solve(flat, w, weights, index, r1, r2, j, size)
        fraction = 1.0
        for _ in range(5):
            trial = residual_of(flat, w + fraction * dw, weights + fraction * dl, index)
            if np.isfinite(trial[3]) and trial[3] < max(size, 1e3 * flat.eps):
                break
            fraction /= 2
        else:
            break
        w, weights = w + fraction * dw, weights + fraction * dl
        r1, r2, j, new = trial
        # Rounding: no longer by much.
        stalled = stalled + 1 if new > 0.5 * best.residual else 0
        size = new
        if size < best.residual:
            best = Point(w, weights, index, size)
        if stalled >= 4:
            break
    return best


def _cut(size: float, eps: float, length: int) -> float:
    # Eigenvalues below this are taken for zero. Those along a manifold of solutions are
    # as small as the distance from it, which the residual measures; a true eigenvalue e
    # that is cut leaves a residual of e times the error, and is let in once the cut
    # falls below e.
    return max(0.1 * min(size, 1e-2), 4 * length * eps)


def _dense_step(flat, w, weights, index, r1, r2, j, size):
    k, m = len(w), len(index)
    matrix = np.zeros((k + m, k + m))
    hessian = flat.curvature(w, weights, index)(np.eye(k))
    matrix[:k, :k] = np.eye(k) - (hessian + hessian.T) / 2
    matrix[:k, k:] = -j.T
    matrix[k:, :k] = -j
    values, vectors = np.linalg.eigh(matrix)
    small = np.abs(values) <= _cut(size, flat.eps, k + m) * np.max(np.abs(values))
    inverse = np.where(small, 0.0, 1 / np.where(small, 1.0, values))
    step = -vectors @ (inverse * (vectors.T @ np.concatenate([r1, r2])))
    return step[:k], step[k:]


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


def _krylov_step(flat, w, weights, index, r1, r2, j, size):
    # dw = (the least norm that meets the constraints) + v in the tangent space, where
    # Π(I - H)v = -Π(r1 + (I - H)(that)).
    product = flat.curvature(w, weights, index)

    def shifted(v):
        return v - product(v[None])[0]

    tangent = Tangent(j, flat.eps)
    start = tangent.least(r2)
    right = -tangent.project(r1 + shifted(start))
    cut = _cut(size, flat.eps, _BASIS)
    v = least_squares(
        lambda v: tangent.project(shifted(v)), right, cut, min(1e-3, size)
    )
    dw = start + v
    return dw, tangent.multipliers(r1 + shifted(dw))


def least_squares(apply, right: np.ndarray, cut: float, rtol: float) -> np.ndarray:
    """Minimum-residual Krylov solution of A v = b with symmetric A.

    Fully orthogonalised; singular values of the projected matrix below `cut` are taken
    for zero, so that a singular consistent system gets its solution of least norm.
    """
    norm = np.linalg.norm(right)
    if norm == 0:
        return np.zeros_like(right)
    most = min(_BASIS, len(right))
    basis = [right / norm]
    h = np.zeros((most + 1, most))
    y = np.zeros(0)
    for k in range(most):
        v = apply(basis[k])
        for _ in range(2):
            parts = np.array([b @ v for b in basis])
            h[: k + 1, k] += parts
            v = v - sum(c * b for c, b in zip(parts, basis, strict=True))
        h[k + 1, k] = np.linalg.norm(v)
        e = np.zeros(k + 2)
        e[0] = norm
        y = np.linalg.lstsq(h[: k + 2, : k + 1], e, rcond=cut)[0]
        rest = np.linalg.norm(h[: k + 2, : k + 1] @ y - e)
        if rest <= rtol * norm or h[k + 1, k] <= 1e-14 * np.max(np.abs(h)):
            break
        basis.append(v / h[k + 1, k])
    return np.stack(basis[: len(y)], axis=1) @ y
