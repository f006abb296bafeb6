"""What a step cost, written where a flow's state keeps account."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp

from .._flow import FlowState, Work
from .._types import IntScalar


def billed(y0: Any, y1: Any, error: Any, gradients: IntScalar) -> tuple[Any, Any]:
    """With what the step cost, where the flow's state keeps account.

    In the error too: the step-size controller sees it even if the step is rejected.
    """
    if not isinstance(y0, FlowState) or y0.work is None:
        return y1, error
    dtype = y0.work.gradients.dtype
    spent = Work(jnp.zeros((), dtype), gradients.astype(dtype))
    y1 = eqx.tree_at(_work, y1, y0.work + spent, is_leaf=_is_none)
    return y1, eqx.tree_at(_work, error, spent, is_leaf=_is_none)


def _work(state: Any) -> Any:
    return state.work


def _is_none(x: Any) -> bool:
    return x is None
