r"""Explicit steps that stay inside of the region of stability.

Where stability limits the steps, error control keeps them at its very edge, $h\rho$
about 3.5 for Tsit5. What is stiff is then noise, as large as is tolerated, which does
not die out. Held a tenth below, it does, for as many gradients, as fewer steps are
rejected: tanh, T = 1e3, rtol 1e-4, 15,540 gradients for a path error of 7e-7, 14,510
for 9e-5 without. On kinks, whose multipliers the noise makes leave [0, 1] again and
again, it is thousands of events.
"""

from typing import Any

import diffrax as dfx
import jax.numpy as jnp
import jax.tree_util as jtu

from .._norms import square_norm
from .._types import Scalar


# Of Tsit5: |R(-3.51)| is one, |R(-3.06)|, where step-size control leaves it, 0.45.
_LIMIT = 3.4
_ORDER = 5  # of its error
# Roundings of the state that the two stages have to be apart. Nearer, what is seen is
# rounding of the slopes, which is large where their exponents are: a flow from 1e-30
# took more steps than it may.
_ROUNDINGS = 100


def reach(moved: Any, apart: Any, y: Any) -> Scalar:
    r"""$h\rho \approx h\|f(g_7) - f(g_6)\| / \|g_7 - g_6\|$, of the last two stages.

    Both are at the step's end (Hairer & Wanner 1996, IV.2). Zero where it is not known.
    """
    one = jnp.ones((), jnp.result_type(*jtu.tree_leaves(apart)))
    above, below, size = (square_norm(x, one) for x in (moved, apart, y))
    least = (_ROUNDINGS * float(jnp.finfo(one.dtype).eps)) ** 2 * size
    known = (below > least) & jnp.isfinite(below) & jnp.isfinite(above)
    return jnp.where(known, jnp.sqrt(above / jnp.where(known, below, 1)), 0)


def crowding(reach: Scalar) -> Scalar:
    """How near that is to the limit, as the error of a step: to be below one."""
    return (reach / _LIMIT) ** _ORDER


def reach_of(solver: dfx.AbstractERK, changes: Any, y: Any) -> Scalar:
    """The same from h times the slopes of Diffrax's Tsit5, stacked."""
    tableau: Any = solver.tableau
    last, before = tableau.a_lower[-1], [*tableau.a_lower[-2], 0.0]
    weights = [float(a - b) for a, b in zip(last, before, strict=True)]

    def apart(x: Any) -> Any:
        return sum(jnp.asarray(w, x.dtype) * x[j] for j, w in enumerate(weights))

    moved = jtu.tree_map(lambda x: x[-1] - x[-2], changes)
    return reach(moved, jtu.tree_map(apart, changes), y)
