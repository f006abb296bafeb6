"""Saliency maps."""

from typing import Any

import jax
import jax.numpy as jnp

from .._norms import log_norm as _log_norm
from .._norms import unit
from .._problem import Problem, predict
from .._types import Params
from ..nn import Batched
from ._observer import observer
from ._state import State


def _check(
    problem: Problem, params: Params, degree: float | None, **options: Any
) -> None:
    if isinstance(problem.static, Batched):
        raise ValueError(
            "is the gradient of one example's output in that example, and a Batched "
            "model mixes examples."
        )
    if not jnp.issubdtype(problem.x.dtype, jnp.floating):
        raise ValueError(
            f"is a gradient in x, which holds {problem.x.dtype}; convert it to floats."
        )
    shape = jax.eval_shape(problem.outputs, params).shape
    classes = problem.y.ndim == 1 and jnp.issubdtype(problem.y.dtype, jnp.integer)
    if problem.x.shape[0] == _size(shape) or (len(shape) == 2 and classes):
        return
    raise ValueError(
        f"needs a single output per example, or integer classes, and the outputs have "
        f"shape {shape[1:]}."
    )


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for one in shape:
        size *= one
    return size


@observer(check=_check)
def saliency(state: State):
    r"""Directions of the saliency maps: $\nabla_x\Phi(x_i;W)$ over its norm (n, ...).

    Shaped like the examples. With several classes, of the label's output. NaN where the
    gradient is zero. By automatic differentiation, on kinks as well. Costs about one
    gradient. (Ji & Telgarsky 2020, Section 1.2; Simonyan, Vedaldi & Zisserman 2013.)
    """

    def output(x, y):
        out = predict(state.model, x[None]).reshape(-1)
        return out[0] if out.size == 1 else out[y]

    def one(x, y):
        slope = jax.grad(output)(x, y)
        return jnp.where(jnp.isinf(_log_norm(slope)), jnp.nan, unit(slope))

    return jax.vmap(one)(state.problem.x, state.y)
