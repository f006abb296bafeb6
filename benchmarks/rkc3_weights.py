"""Makes the output weights of `gflow.solvers.RKC3` anew, gflow/solvers/_rkc3.npz.

    python benchmarks/rkc3_weights.py [most stages]

RKC3 has the stages of Runge-Kutta-Chebyshev methods, of order two, stretched over the
real interval [-l, 0], and the result

    y₁ = y₀ + h Σ_j<s β_j f(g_j).

The weights β solve a linear programme: least violation of the conditions of order four,

    minimise Σ_i |residual_i|/σ_i + 2e-4 ‖β‖₁

subject to those of order three, Σβ = 1, β·c = 1/2, β·Ac = 1/6 (and β·c² = 1/3 up to
β₁c₁², because the stages have order two), and a damped stability polynomial

    -0.75 ≤ R(z) ≤ min(1, max(0.75, e^z + 0.02 min(1, z²)))

on a Chebyshev grid of [-l, 0]. l = c s² with the largest c of a list for which that is
feasible.
"""

import sys
import time

import numpy as np
from scipy.optimize import linprog

from gflow.solvers._chebyshev import (
    DAMPING,
    WEIGHTS,
    Stages,
    degrees_up_to,
    stages_of_order_three,
)


BOUND = 0.75
SPARSITY = 2e-4
SHARES = (0.455, 0.44, 0.43, 0.42, 0.41, 0.40, 0.39, 0.37, 0.35, 0.32, 0.3, 0.27, 0.2)


def matrix(stages: Stages, s: int) -> np.ndarray:
    """Runge and Kutta's A: g_i = y₀ + h Σ_j A_ij f(g_j)."""
    a = np.zeros((s, s))
    a[1, 0] = stages.mu_tilde[1]
    for j in range(2, s):
        a[j] = stages.mu[j] * a[j - 1] + stages.nu[j] * a[j - 2]
        a[j, j - 1] += stages.mu_tilde[j]
        a[j, 0] += stages.gamma_tilde[j]
    return a


def stage_polynomials(s: int, length: float, b: np.ndarray, z: np.ndarray):
    """P_j(z) = 1 - b_j T_j(w₀) + b_j T_j(w₀ + w₁z), j < s: one row each."""
    w0 = 1 + DAMPING / s**2
    at = w0 + (w0 + 1) / length * z

    def values(x):
        t = [np.ones_like(x), x]
        for _ in range(2, s):
            t.append(2 * x * t[-1] - t[-2])
        return np.stack(t[:s])

    b = b[:s, None]
    return 1 - b * values(np.full(1, w0)) + b * values(at)


def weights(s: int, length: float):
    """β, max |R| away from zero, or None if there are none."""
    stages, b = stages_of_order_three(s, length)
    a = matrix(stages, s)
    ones = np.ones(s)
    c = a @ ones
    conditions = np.array([ones, c, a @ c])
    wanted = np.array([1, 1 / 2, 1 / 6])
    fourth = (
        (c**3, 1 / 4, 6),
        (c * (a @ c), 1 / 8, 1),
        (a @ c**2, 1 / 12, 2),
        (a @ (a @ c), 1 / 24, 1),
    )
    density = 10 if s < 120 else 6
    angles = np.linspace(0, np.pi, density * s)[1:]
    z = -length * (1 - np.cos(angles)) / 2
    upper = np.exp(z) + 0.02 * np.minimum(1, z**2)
    upper = np.minimum(1, np.maximum(BOUND, upper))
    stability = (stage_polynomials(s, length, b, z) * z).T  # R = 1 + stability @ β
    # Unknowns: β, bounds of the residuals of order four, bounds of |β|.
    m = len(fourth)
    rows, bounds = [], []

    def at_most(of_weights, of_residuals, of_sizes, bound):
        rows.append(np.hstack([of_weights, of_residuals, of_sizes]))
        bounds.append(np.broadcast_to(bound, len(rows[-1])))

    none = np.zeros((len(z), m)), np.zeros((len(z), s))
    at_most(stability, *none, upper - 1)
    at_most(-stability, *none, 1 + BOUND)
    for i, (row, value, symmetry) in enumerate(fourth):
        one = -np.eye(1, m, i)
        for sign in (1, -1):
            scaled = sign * row[None] / symmetry
            at_most(scaled, one, np.zeros((1, s)), sign * value / symmetry)
    for sign in (1, -1):
        at_most(sign * np.eye(s), np.zeros((s, m)), -np.eye(s), 0)
    # The conditions are nearly dependent: an orthonormal basis of them.
    q, r = np.linalg.qr(conditions.T)
    found = linprog(
        np.concatenate([np.zeros(s), np.ones(m), np.full(s, SPARSITY)]),
        A_ub=np.vstack(rows),
        b_ub=np.concatenate(bounds),
        A_eq=np.hstack([q.T, np.zeros((3, m + s))]),
        b_eq=np.linalg.solve(r.T, wanted),
        bounds=[(None, None)] * s + [(0, None)] * (m + s),
        method="highs",
    )
    if found.x is None:
        return None
    beta = found.x[:s]
    beta = beta + np.linalg.pinv(conditions) @ (wanted - conditions @ beta)
    far = -np.linspace(3, length, 60 * s)
    largest = 0.0
    for part in np.array_split(far, 1 + 60 * s // 4000):
        values = 1 + (stage_polynomials(s, length, b, part) * part).T @ beta
        largest = max(largest, float(np.abs(values).max()))
    return beta, largest


def main(most: int) -> None:
    degrees, lengths, found = [], [], []
    for s in degrees_up_to(most, least=4, ratio=1.07):
        begin = time.perf_counter()
        for share in SHARES:
            one = weights(s, share * s**2)
            if one is not None and one[1] < 0.9:
                break
        else:
            raise RuntimeError(f"no weights for {s} stages")
        beta, largest = one
        degrees.append(s)
        lengths.append(share * s**2)
        found.append(beta)
        print(
            f"s = {s:4}  l = {share:.3f} s²  max |R| = {largest:.3f}  "
            f"Σ|β| = {np.abs(beta).sum():.2f}  {time.perf_counter() - begin:.1f} s",
            flush=True,
        )
        np.savez_compressed(
            WEIGHTS,
            degrees=np.array(degrees),
            lengths=np.array(lengths),
            weights=np.concatenate(found),
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
