"""What is seen at the saved states of a solve."""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Bool, Float

from ._frozen import Frozen
from ._norms import log_norm
from ._problem import Problem
from ._solution import RESULTS, Solution
from ._types import Params
from .observe import Observer, observe_at, started


class Seen(eqx.Module):
    """What a solution reports of each saved state, all with leading axis T."""

    log_loss: Float[Array, " times"]
    loss: Float[Array, " times"]
    log_norm: Float[Array, " times"]
    outputs: Float[Array, "times examples ..."]
    observed: dict[str, Any]


def seen_at(
    problem: Problem,
    params: Params,
    observers: Mapping[str, Observer],
    *,
    log_t: Float[Array, " times"],
    path_length: Float[Array, " times"] | None = None,
    degree: float | None = None,
    frozen: Frozen | None = None,
    pins: Float[Array, "times K"] | None = None,
    start: Params | None = None,
) -> Seen:
    """Losses, norms, outputs and observers at states stacked along a leading axis.

    One state after the other: the memory is that of one gradient evaluation. `start`
    are the parameters where the solve began.
    """
    observers = started(observers, problem, start)

    def look(item):
        index, log_t, params, path, pinned = item
        state = observe_at(
            problem,
            params,
            log_t=log_t,
            path_length=path,
            degree=degree,
            frozen=frozen,
            pins=pinned,
            index=index,
        )
        observed = {name: one(state) for name, one in observers.items()}
        return state.log_loss, state.loss, log_norm(params), state.outputs, observed

    index = jnp.arange(log_t.shape[0])
    return Seen(*jax.lax.map(look, (index, log_t, params, path_length, pins)))


def masked(tree: Any, reached: Bool[Array, " times"]) -> Any:
    """NaN in the slots that were not reached; what is not floating stays."""

    def one(x):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        return jnp.where(reached.reshape((-1,) + (1,) * (x.ndim - 1)), x, jnp.nan)

    return jtu.tree_map(one, tree)


def has_time_axis(models: Any, final: Any) -> list[bool]:
    """Which leaves of a solution's `models` are trained, so have an axis of times.

    The others are those of the model itself, whatever axes `vmap` put in front.
    """
    pairs = zip(jtu.tree_leaves(models), jtu.tree_leaves(final), strict=True)
    return [
        eqx.is_array(leaf) and leaf.ndim == getattr(last, "ndim", 0) + 1
        for leaf, last in pairs
    ]


def has_failed(solution: Solution) -> Bool[Array, "*lanes"]:
    """Whether the solve neither reached its end nor stopped at an event."""
    return (solution.result != RESULTS.successful) & (
        solution.result != RESULTS.event_occurred
    )
