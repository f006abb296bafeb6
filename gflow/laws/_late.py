"""What decides limits as t → ∞: stretches of log log t, and what is left after them."""

import dataclasses
import math
from typing import Any

import numpy as np


# A stretch is a factor of log t, at least 4 and at most 10; the first begins at
# log t = 5, where "late" may begin. Three stretches are compared.
_LEAST, _MOST, _FROM, _STRETCHES = 4.0, 10.0, 5.0, 3


def stretches(log_t: np.ndarray, first: int, count: int = _STRETCHES) -> np.ndarray:
    """The ends, as log t, of the last `count` stretches of equal length in log log t.

    From the saved point number `first` on; empty where log t does not grow enough.
    """
    late = np.maximum(log_t[first:], _FROM)
    finite = late[np.isfinite(late)]
    if finite.size < 2:
        return np.zeros(0)
    span = math.log(finite[-1] / finite[0])
    step = min(span / count, math.log(_MOST))
    if step < math.log(_LEAST):
        return np.zeros(0)
    return finite[-1] * np.exp(-step * np.arange(count, -1, -1.0))


def at(log_t: np.ndarray, values: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Values between saved points, linear in log log t."""
    use = log_t > 0
    return np.interp(np.log(ends), np.log(log_t[use]), values[use])


@dataclasses.dataclass(frozen=True)
class PathLimit:
    r"""What is known of ζ_∞, the length of the path of W/‖W‖, from a part of it.

    **Attributes:**

    - `path_length`: ζ at the last time.
    - `exponent`: p of $d\zeta/dy\sim y^{-p}$ with y = log log t, over the last two
        stretches. ζ_∞ is finite if p stays above 1.
    - `rate`: r of ζ_∞ - ζ ~ (log t)^-r over the same; zero or less if ζ does not slow
        down.
    - `left`: ζ_∞ - ζ if that is a power of log t; infinite if ζ does not slow down.
    - `bound`: ζ_∞ - ζ at most, as long as p does not fall below `exponent`; infinite
        if that is 1 or less.
    - `last`: by how much ζ grew over the last stretch.
    """

    path_length: float
    exponent: float
    rate: float
    left: float
    bound: float
    last: float


def path_limit(log_t: Any, path_length: Any, *, since: int = 0) -> PathLimit:
    r"""Extrapolates the length of the path of W/‖W‖ to t = ∞, with an upper bound.

    The last stretches of equal length in y = log log t, each a factor of 4 to 10 of
    log t, add $b$ and then $a$ to ζ. If ζ_∞ - ζ is a power of log t they are terms of a
    geometric series, of which $a/(b/a-1)$ is left. If only $d\zeta/dy\sim y^{-p}$, with
    p measured from a/b, it is $a/((y_2/y_1)^{p-1}-1)$, where the last stretch is from
    $y_1$ to $y_2$. That is more. Where the direction converges like $(\log t)^{-r}$ the
    exponent p = r y grows, and so this is a bound. It is not a proof: nothing that is
    measured up to a finite time can be one.

    **Arguments:**

    - `log_t`, `path_length`: (T,) of a solution that observed `path_length`.
    - `since`: number of the saved point from which to look, where ℒ < ℓ(0).

    **Returns:**

    [`gflow.laws.PathLimit`][], NaN where log t grows by less than a factor of 64
    beyond 5.

    Examples:
        >>> import gflow, numpy as np
        >>> log_t = np.geomspace(5.0, 1e6, 50)
        >>> found = gflow.laws.path_limit(log_t, 2.0 - log_t**-0.5)
        >>> round(found.path_length + found.left, 4)
        2.0
    """
    log_t, zeta = np.asarray(log_t, float), np.asarray(path_length, float)
    ends = stretches(log_t, since)
    if not len(ends):
        nan = math.nan
        return PathLimit(float(zeta[-1]), nan, nan, nan, nan, nan)
    before, last = np.diff(at(log_t, zeta, ends[1:]))
    y = np.log(ends[1:])
    if last <= 0:
        return PathLimit(float(zeta[-1]), math.inf, math.inf, 0.0, 0.0, float(last))
    # From rest into motion: no fall at all.
    fall = math.log(before / last) if before > 0 else -math.inf
    p = fall / math.log((y[2] + y[1]) / (y[1] + y[0]))
    found = {
        "path_length": zeta[-1],
        "exponent": p,
        "rate": fall / (y[2] - y[1]),
        "left": last / (before / last - 1) if before > last else math.inf,
        "bound": last / ((y[2] / y[1]) ** (p - 1) - 1) if p > 1 else math.inf,
        "last": last,
    }
    return PathLimit(**{name: float(value) for name, value in found.items()})
