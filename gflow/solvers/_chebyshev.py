"""Stages of Runge-Kutta-Chebyshev methods, and the tables of RKC2 and RKC3."""

import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np


# Damping: the stability polynomials stay below one by about ε/3 (Sommeijer, Shampine &
# Verwer 1998, eq. 2.6).
DAMPING = 2 / 13
# Output weights of RKC3, by degree: made by benchmarks/rkc3_weights.py.
WEIGHTS = Path(__file__).with_name("_rkc3.npz")
# Of RKC2, whose stages cost nothing to make.
_MOST_STAGES = 1000


class Stages(NamedTuple):
    r"""The stages of a Runge-Kutta-Chebyshev method.

    $$g_0 = y_0,\quad g_1 = y_0 + \tilde\mu_1 h f_0,\quad
      g_j = (1 - \mu_j - \nu_j) y_0 + \mu_j g_{j-1} + \nu_j g_{j-2}
      + \tilde\mu_j h f(t_0 + c_{j-1}h, g_{j-1}) + \tilde\gamma_j h f_0$$

    For y' = λy, $g_j = (1 - b_j T_j(w_0) + b_j T_j(w_0 + w_1 h\lambda))\,y_0$ with
    Chebyshev polynomials T_j. Of order two from j = 2 on.
    """

    mu: np.ndarray
    nu: np.ndarray
    mu_tilde: np.ndarray
    gamma_tilde: np.ndarray
    c: np.ndarray


class Table(NamedTuple):
    """Methods of many degrees, one after the other, by increasing stability."""

    # Gradients that a step costs, s.
    degrees: np.ndarray
    # Real stability interval [-l, 0].
    lengths: np.ndarray
    # Where the rows of a degree begin.
    starts: np.ndarray
    # μ_j + ν_j - 1, -ν_j, μ̃_j, γ̃_j, c_j-1 and, of RKC3, the output weight β_j-1, for
    # j = 1..s: what increments g_j - g_j-1 are made of.
    rows: np.ndarray


def chebyshev(degree: int, x: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """T_j(x), T_j'(x) and T_j''(x) for j = 0..degree, by their recurrences."""
    t, d1, d2 = np.zeros((3, degree + 1))
    t[0], t[1], d1[1] = 1, x, 1
    for j in range(2, degree + 1):
        t[j] = 2 * x * t[j - 1] - t[j - 2]
        d1[j] = 2 * t[j - 1] + 2 * x * d1[j - 1] - d1[j - 2]
        d2[j] = 4 * d1[j - 1] + 2 * x * d2[j - 1] - d2[j - 2]
    return t, d1, d2


def stages(degree: int, w1: float, first: float | None) -> tuple[Stages, np.ndarray]:
    """The stages j = 0..degree at w₀ = 1 + ε/degree², and b_j.

    `first` is b₁, or None for b₁ = b₂. (With b₁ ≠ b₂ the first stage's abscissa is
    off the others' pattern.)
    """
    w0 = 1 + DAMPING / degree**2
    t, d1, d2 = chebyshev(degree, w0)
    b = np.empty(degree + 1)
    b[2:] = d2[2:] / d1[2:] ** 2
    b[0] = b[2]
    b[1] = b[2] if first is None else first
    a = 1 - b * t
    mu, nu, mu_tilde, gamma_tilde, c = np.zeros((5, degree + 1))
    mu[2:] = 2 * w0 * b[2:] / b[1:-1]
    nu[2:] = -b[2:] / b[:-2]
    mu_tilde[1] = c[1] = b[1] * w1
    mu_tilde[2:] = 2 * w1 * b[2:] / b[1:-1]
    gamma_tilde[2:] = -a[1:-1] * mu_tilde[2:]
    for j in range(2, degree + 1):
        c[j] = mu[j] * c[j - 1] + nu[j] * c[j - 2] + mu_tilde[j] + gamma_tilde[j]
    return Stages(mu, nu, mu_tilde, gamma_tilde, c), b


def stages_of_order_two(degree: int) -> tuple[Stages, float]:
    """RKC2, in which the last stage is the result, and its stability interval."""
    w0 = 1 + DAMPING / degree**2
    _, d1, d2 = chebyshev(degree, w0)
    w1 = d1[-1] / d2[-1]
    return stages(degree, w1, None)[0], (w0 + 1) / w1


def stages_of_order_three(degree: int, length: float) -> tuple[Stages, np.ndarray]:
    """RKC3: s stages stretched over an interval of their own, and b_j.

    At low degrees a first stage that is hardly off y₀ (b₁ = 0.05/w₀) keeps the order:
    Σ β_j c_j² = 1/3 holds up to β₁ c₁².
    """
    w0 = 1 + DAMPING / degree**2
    first = (0.05 if degree <= 30 else 1.0) / w0
    return stages(degree, (w0 + 1) / length, first)


def degrees_up_to(most: int, least: int, ratio: float) -> list[int]:
    """All degrees to 30, from there on by this ratio."""
    count = int(np.log(most / 30) / np.log(ratio)) + 1
    larger = {round(30 * ratio**i) for i in range(count)}
    return sorted(set(range(least, 31)) | {s for s in larger if s <= most})


def _rows(given: Stages, weights: np.ndarray | None) -> np.ndarray:
    increments = (given.mu + given.nu - 1, -given.nu, given.mu_tilde, given.gamma_tilde)
    columns = [column[1:] for column in increments] + [given.c[:-1]]
    return np.stack(columns if weights is None else [*columns, weights], axis=1)


def _table(methods: list[tuple[Stages, float, np.ndarray | None]]) -> Table:
    rows = [_rows(given, weights) for given, _, weights in methods]
    degrees = np.array([len(one) for one in rows])
    return Table(
        degrees=degrees,
        lengths=np.array([length for _, length, _ in methods]),
        starts=np.cumsum(degrees) - degrees,
        rows=np.concatenate(rows),
    )


@functools.cache
def table_of_order_two() -> Table:
    """RKC2 with 2 to 1,000 stages."""
    degrees = degrees_up_to(_MOST_STAGES, least=2, ratio=1.04)
    return _table([(*stages_of_order_two(s), None) for s in degrees])


@functools.cache
def table_of_order_three() -> Table:
    """RKC3 with the degrees of the file."""
    with np.load(WEIGHTS) as file:
        degrees, lengths, weights = (
            file[name] for name in ("degrees", "lengths", "weights")
        )
    parts = np.split(weights, np.cumsum(degrees)[:-1])
    return _table(
        [
            (stages_of_order_three(s, length)[0], length, part)
            for s, length, part in zip(degrees.tolist(), lengths, parts, strict=True)
        ]
    )
