"""Does the flow approach the limit, and at the rate that it must?"""

from typing import Any

import numpy as np

from .._flat import flatten_rows


# The fit uses saved times with log t within a factor of the last, the first of these
# factors that leaves enough of them, and over at least the last factor.
_WITHIN, _POINTS, _FACTOR = (30.0, 300.0, 3e3, 3e4), 4, 4.0


def fit_rate(
    log_t: np.ndarray, distance: np.ndarray, *, rounding: float, before_end: float = 1.0
) -> float:
    r"""r of distance ∝ (log t)^-r by least squares; NaN with too little to fit.

    **Arguments:**

    - `log_t`, `distance`: (T,).
    - `rounding`: distances below this are left out.
    - `before_end`: times with log t above the last over this are left out.
    """
    use = np.isfinite(distance) & (log_t > 1.0) & (distance > rounding)
    use &= log_t <= log_t[-1] / before_end if len(log_t) else False
    for within in _WITHIN:
        last = np.max(log_t, where=use, initial=0.0)
        late = use & (log_t >= last / within)
        if np.sum(late) >= _POINTS and last >= _FACTOR * np.min(log_t[late]):
            use = late
            break
    else:
        return float("nan")
    x, y = np.log(log_t[use]), np.log(distance[use])
    # Saved times may be dense somewhere: every stretch of log log t weighs the same.
    weight = np.sqrt(np.maximum(np.gradient(x), 0))
    a = np.stack([x, np.ones_like(x)], axis=1) * weight[:, None]
    slope = np.linalg.lstsq(a, y * weight, rcond=None)[0][0]
    return float(-slope)


def distances(directions: np.ndarray, limit: np.ndarray) -> np.ndarray:
    """(T,) ‖θ(t) - θ̄‖ of rows that need not be normalised."""
    norms = np.linalg.norm(directions, axis=1, keepdims=True)
    return np.linalg.norm(directions / norms - limit / np.linalg.norm(limit), axis=1)


def saved_directions(params: Any) -> np.ndarray:
    """(T, P) parameters of the saved models, scaled by their largest entry."""
    w = np.asarray(flatten_rows(params), np.float64)
    largest = np.max(np.abs(w), axis=1, keepdims=True)
    return w / np.where(largest > 0, largest, 1.0)
