r"""The second-order condition: is the KKT point a local maximum of the margin?

Maximising the margin on the sphere is minimising ½‖w‖² subject to p_m(w) ≥ 1. At a KKT
point the Hessian of the Lagrangian is I - H_λ; the margin grows along v, to second
order, where $v^\top(H_\lambda-I)v>0$ for a v tangent to the active constraints.
"""

from typing import NamedTuple

import numpy as np

from ._flat import Flat
from ._newton import Point, Tangent, newton


# Vectors of the Lanczos iteration, and starts of the one-sided search.
_BASIS = 100
_STARTS = 8
_ASCENT_STEPS = 40


class Curvature(NamedTuple):
    """Eigenvalues of Π(H_λ - I)Π on a tangent space, the largest first."""

    values: np.ndarray
    vectors: np.ndarray
    # Whether these are all the eigenvalues, and how wrong the largest may be.
    complete: bool
    error: float

    def top(self) -> float:
        """The largest eigenvalue; -inf if the space is {0}."""
        return float(self.values[0]) if len(self.values) else -np.inf

    def zero(self, tolerance: float) -> np.ndarray:
        """(P, k) eigenvectors of eigenvalues that are zero."""
        return self.vectors[:, np.abs(self.values) <= tolerance]

    def growing(self, tolerance: float) -> np.ndarray:
        """(P, k) eigenvectors along which the margin grows."""
        return self.vectors[:, self.values > tolerance]

    def slowest(self, tolerance: float) -> float:
        """The largest eigenvalue that is negative; -inf if there is none."""
        below = self.values[self.values < -tolerance]
        return float(below[0]) if len(below) else -np.inf


def zero_tolerance(eps: float) -> float:
    """Eigenvalues (of order one) up to this are zero: they come with √eps of error."""
    return 20 * eps**0.5


def curvature_on(
    flat: Flat, point: Point, active: np.ndarray, *, dense: bool
) -> Curvature:
    """Π(H_λ - I)Π on the space tangent to the constraints `active`."""
    product = flat.curvature(point.w, point.weights, point.index)
    j = flat.rows(point.w, active)
    tangent = Tangent(j, flat.eps)
    dimension = flat.size - tangent.rank
    if dimension == 0:
        return Curvature(np.zeros(0), np.zeros((flat.size, 0)), True, 0.0)
    if dense:
        _, _, right = np.linalg.svd(j, full_matrices=True)
        z = right[tangent.rank :].T
        # The rows of `right` beyond the rank span the null space if J had no noise
        # between; projected to be sure.
        matrix = z.T @ (product(z.T).T - z)
        values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
        return Curvature(values[::-1], (z @ vectors)[:, ::-1], True, 0.0)
    values, vectors = _lanczos(flat.size, dimension, tangent, product)
    v = vectors[:, 0]
    image = tangent.project(product(v[None])[0] - v)
    error = float(np.linalg.norm(image - values[0] * v))
    return Curvature(values, vectors, False, error)


def _lanczos(size, dimension, tangent, product):
    rng = np.random.default_rng(0)
    v = tangent.project(rng.standard_normal(size))
    basis = [v / np.linalg.norm(v)]
    images = []
    for _ in range(min(_BASIS, dimension)):
        image = tangent.project(product(basis[-1][None])[0] - basis[-1])
        images.append(image)
        v = image
        for _ in range(2):
            v = v - sum((b @ v) * b for b in basis)
        v = tangent.project(v)
        norm = np.linalg.norm(v)
        if norm <= 1e-12 * max(np.linalg.norm(image), 1e-300):
            # An invariant subspace: go on with a new direction.
            v = tangent.project(rng.standard_normal(size))
            for _ in range(2):
                v = v - sum((b @ v) * b for b in basis)
            norm = np.linalg.norm(v)
            if norm <= 1e-8:
                break
        basis.append(v / norm)
    b = np.stack(basis[: len(images)], axis=1)
    matrix = b.T @ np.stack(images, axis=1)
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    return values[::-1], (b @ vectors)[:, ::-1]


def jumps(flat: Flat, point: Point) -> tuple[bool, bool]:
    """Whether ∇p or ∇²p jumps at the point: are they the same a little beside it?"""
    rng = np.random.default_rng(1)
    step = flat.eps**0.4 * np.linalg.norm(point.w)
    probe = rng.standard_normal((2, flat.size))
    probe /= np.linalg.norm(probe, axis=1, keepdims=True)
    gradients, products = [], []
    for _ in range(4):
        shift = rng.standard_normal(flat.size)
        w = point.w + step * shift / np.linalg.norm(shift)
        gradients.append(flat.rows(w, point.index))
        products.append(flat.curvature(w, point.weights, point.index)(probe))
    size = np.max(np.linalg.norm(gradients[0], axis=1))

    def spread(arrays):
        return np.max([np.linalg.norm(a - arrays[0], axis=1) for a in arrays[1:]])

    # A smooth function changes by `step` times its derivative. The curvature, of
    # order one, is compared along single random directions, of which a part ~ 1/√P
    # lies where it jumps.
    allowed = 30 * flat.eps**0.4
    first = spread(gradients) > allowed * size
    second = spread(products) > allowed * max(1.0, np.linalg.norm(products[0]))
    return bool(first), bool(second)


def one_sided_growth(flat: Flat, point: Point, active: np.ndarray) -> float:
    """The largest vᵀ(H(w + εv) - I)v that ascent from random tangent v finds.

    For margins whose second derivative jumps at w (squared ReLU with a neuron at zero).
    A positive value is a direction of growth; a negative one proves nothing.
    """
    rng = np.random.default_rng(2)
    tangent = Tangent(flat.rows(point.w, active), flat.eps)
    step = flat.eps**0.4 * np.linalg.norm(point.w)
    found = -np.inf
    for _ in range(_STARTS):
        v = tangent.project(rng.standard_normal(flat.size))
        v /= max(np.linalg.norm(v), 1e-300)
        for _ in range(_ASCENT_STEPS):
            product = flat.curvature(point.w + step * v, point.weights, point.index)
            image = tangent.project(product(v[None])[0])
            found = max(found, float(v @ image - 1.0))
            # Shifted, so that the largest and not the most negative is approached.
            v = image + v
            norm = np.linalg.norm(v)
            if norm == 0:
                break
            v = v / norm
    return found


def is_manifold(flat: Flat, point: Point, zero: np.ndarray, *, dense: bool) -> bool:
    """Whether zero modes are a manifold of KKT points of the same margin.

    A step along a random one of them, corrected by Newton's method, must stay at that
    distance and reach the same margin: ‖w‖ at p = 1.
    """
    rng = np.random.default_rng(3)
    v = zero @ rng.standard_normal(zero.shape[1])
    length = 1e-2 * np.linalg.norm(point.w)
    v *= length / np.linalg.norm(v)
    moved = newton(flat, point.w + v, point.weights, point.index, dense=dense)
    if moved.residual > max(1e-9, 1e3 * flat.eps):
        return False
    stays = float(v @ (moved.w - point.w)) > 0.5 * length**2
    change = abs(np.linalg.norm(moved.w) / np.linalg.norm(point.w) - 1)
    return bool(stays and change <= max(1e-9, 1e3 * flat.eps))
