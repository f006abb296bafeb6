"""What decides limits as t → ∞: stretches of log log t, and what is left after them."""

import math

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


def remaining(before: float, after: float) -> float:
    """What is left of a sum whose last two terms these are, if it is geometric.

    Infinite if the terms do not fall.
    """
    if after >= before:
        return math.inf
    ratio = after / before
    return after * ratio / (1 - ratio)
