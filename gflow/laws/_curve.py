"""The curve W(·) does not depend on the clock."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Float

from .._norms import inner, log_norm, unit
from .._problem import Problem, like_params
from .._solution import Solution
from .._types import Params
from ._law import Found, law, need, shown
from ._run import Run


# Of the sum of the two rtol: their errors, grown along the flow.
_APART = 20.0
# Equal times may differ by the rounding of a few logarithms.
_ROUNDINGS = 16


@law("one curve under every clock", "dW/ds = (dt/ds) dW/dt")
def one_curve(run: Run) -> Found:
    """Two solves with different clocks, solvers or tolerances follow one curve.

    The largest distance over ‖W‖ at the times that both saved, less its part along the
    velocity: that is an error of the time, not of the curve.
    """
    other = run.other
    need(other is not None, "no second solution was given as other=")
    assert other is not None
    ours, theirs = _common(run.solution, other)
    need(len(ours), "the two solutions have no saved time in common after the start")
    found = _apart(
        run.problem,
        _rows(run.solution, run.problem, ours),
        _rows(other, run.problem, theirs),
    )
    worst = float(np.max(np.asarray(found)))
    tolerance = run.tolerance(_APART * (1 + _rtol(other) / run.rtol))
    return Found(
        f"distance 0 at {len(ours)} times",
        f"{shown(worst)} ‖W‖ ({run.solution.clock}, {other.clock})",
        worst,
        tolerance,
    )


def _common(a: Solution, b: Solution) -> tuple[np.ndarray, np.ndarray]:
    """The slots of both at the times after the start that both reached."""
    x, y = (
        np.where(np.isfinite(np.asarray(one.log_norm)), np.asarray(one.log_t), np.nan)
        for one in (a, b)
    )
    eps = max(float(np.finfo(one.log_t.dtype).eps) for one in (a, b))
    pairs = {}
    for i, t in enumerate(x):
        if np.isfinite(t):
            gap = np.where(np.isfinite(y), np.abs(y - t), np.inf)
            j = int(np.argmin(gap))
            if gap[j] <= _ROUNDINGS * eps * max(1.0, abs(t)):
                pairs[i] = j
    return np.array(list(pairs), int), np.array(list(pairs.values()), int)


def _rtol(solution: Solution) -> float:
    rtol = float(solution.rtol)
    return rtol if np.isfinite(rtol) else 1e-3


def _rows(solution: Solution, problem: Problem, rows: np.ndarray) -> Params:
    params = like_params(solution.models, problem)
    return jtu.tree_map(lambda w: w[jnp.asarray(rows)], params)


@eqx.filter_jit
def _apart(problem: Problem, ours: Params, theirs: Params) -> Float[Array, " times"]:
    def look(pair):
        a, b = pair
        apart = jtu.tree_map(lambda x, y: x - y.astype(x.dtype), a, b)
        velocity = unit(problem.gradient(a).direction)
        along = inner(apart, velocity)
        across = jtu.tree_map(
            lambda d, v: d - along.astype(d.dtype) * v, apart, velocity
        )
        return jnp.exp(log_norm(across) - log_norm(a))

    return jax.lax.map(look, (ours, theirs))


LAWS = (one_curve,)
