"""What several test files share: tolerances, random numbers."""

import numpy as np


# What rounding alone may do to a quantity of order one: a few hundred operations, each
# wrong by half a unit in the last place, all in the same direction at worst.
_ROUNDINGS = 512
_TOLERANCE = {
    np.dtype(dtype): _ROUNDINGS * float(np.finfo(dtype).eps) / 2
    for dtype in (np.float32, np.float64)
}


def tolerance(dtype, scale: float = 1.0) -> dict[str, float]:
    """Keywords for `np.testing.assert_allclose`: equal but for rounding.

    `scale` multiplies both: the condition number of a problem, or the tolerance a
    solver was given over the rounding error.
    """
    size = scale * _TOLERANCE[np.dtype(dtype)]
    return {"rtol": size, "atol": size}


def rng(seed: int) -> np.random.Generator:
    """NumPy random numbers; `getkey` gives JAX keys."""
    return np.random.default_rng(seed)


def is_through_jax(caught):
    """Whether an error's traceback has a frame of JAX or Equinox."""
    parts = {part for frame in caught.traceback for part in frame.path.parts}
    return bool(parts & {"jax", "equinox"})
