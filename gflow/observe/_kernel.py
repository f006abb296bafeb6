r"""The neural tangent kernel $K=JJ^\top$, J the Jacobian of the outputs."""

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float

from .._flat import flatten_rows
from .._norms import angle, unit
from .._norms import log_norm as _log_norm
from .._problem import Problem, predict
from .._types import Params, Scalar
from ..nn import Batched
from ._observer import observer
from ._state import State


# log tr K, and K over its trace.
Kernel = tuple[Scalar, Float[Array, "outputs outputs"]]


def jacobian(problem: Problem, params: Params) -> Float[Array, "outputs P"]:
    """∇f of every output of every example, as rows; one backward pass each."""
    if isinstance(problem.static, Batched):
        rows = jax.jacrev(problem.outputs)(params)
    else:

        def one(w, x):
            return predict(problem.model(w), x[None])[0]

        rows = jax.vmap(jax.jacrev(one), in_axes=(None, 0))(params, problem.x)
    return flatten_rows(
        jtu.tree_map(lambda w, leaf: leaf.reshape(-1, *w.shape), params, rows)
    )


def _kernel(problem: Problem, params: Params) -> Kernel:
    rows = jacobian(problem, params)
    # ‖J‖² = tr K; the square of a gradient of 1e-180 would be zero.
    log_size = _log_norm(rows)
    rows = unit(rows)
    return 2 * log_size, rows @ rows.T


def _kernel_of(state: State) -> Kernel:
    return _kernel(state.problem, state.params)


def labels_direction(state: State) -> tuple[Scalar, Float[Array, "examples ..."]]:
    r"""$z=-\partial\sum_i\ell_i/\partial f$ at f = 0, as a logarithm times an array.

    y for the square loss, y/2 for the logistic one: what the outputs are drawn to from
    small weights. (Kumar & Haupt 2024, Theorem 5.1.)
    """
    loss = state.problem.loss
    at = loss.linearise(jnp.zeros_like(state.outputs), state.y)
    return at.log_slope - loss.log_reduction(state.problem.num_examples), at.pull


@observer()
def ntk(state: State) -> dict[str, Array]:
    r"""The neural tangent kernel $K_{ij}=\langle\nabla f_i,\nabla f_j\rangle$, a dict:

    - `kernel` (n, n): K over its trace; (n, k, n, k) for k outputs. NaN where J = 0.
    - `log_trace`: log tr K, so that weights of any size have a kernel.

    By automatic differentiation, on kinks as well. Costs one gradient for each of the k
    outputs (of a `Batched` model n k), the memory of n k gradients, and a product of
    them. (Jacot, Gabriel & Hongler 2018, Section 4.)
    """
    log_trace, kernel = state.once(_kernel_of)
    shape = state.outputs.shape
    kernel = jnp.where(jnp.isinf(log_trace), jnp.nan, kernel)
    return {"kernel": kernel.reshape(shape + shape), "log_trace": log_trace}


@observer()
def ntk_alignment(state: State):
    r"""$\langle K,zz^\top\rangle/(\|K\|_F\|z\|^2)$, a scalar in [0, 1].

    The alignment of the tangent kernel with the labels, $z=-\partial\ell/\partial f$ at
    f = 0: proportional to y for a single output, to the one-hot labels less 1/k for
    cross-entropy. 1 where $K\propto zz^\top$. NaN where J or z is zero. Costs what
    `ntk` does, once for both. (Cristianini et al. 2001; Atanasov et al. 2022.)
    """
    log_trace, kernel = state.once(_kernel_of)
    z = labels_direction(state)[1].reshape(-1)
    toward = unit(z)
    found = toward @ (unit(kernel) @ toward)
    absent = jnp.isinf(log_trace) | jnp.all(z == 0)
    return jnp.where(absent, jnp.nan, found)


@observer(remembers=_kernel)
def ntk_drift(state: State, *, memory: Kernel | None = None) -> dict[str, Array]:
    r"""How far the tangent kernel has moved from K_0, where the solve started, a dict:

    - `log_relative`: $\log(\|K-K_0\|_F/\|K_0\|_F)$.
    - `angle`: between K and K_0 as matrices, in radians; the size of the network does
        not matter to it.

    `ntk_drift.since(model)` measures from a model instead. Without either (a single
    model, an event) there is no K_0, and both are NaN; so they are where K or K_0 is
    zero. Costs what `ntk` does, once for both, and K_0 once a solve.
    (Jacot, Gabriel & Hongler 2018; Fort et al. 2020.)
    """
    log_trace, kernel = state.once(_kernel_of)
    if memory is None:
        nan = jnp.full_like(log_trace, jnp.nan)
        return {"log_relative": nan, "angle": nan}
    log_start, start = memory
    # In units of the larger of the two.
    log_unit = jnp.maximum(log_trace, log_start)
    now, then = jnp.exp(log_trace - log_unit), jnp.exp(log_start - log_unit)
    log_moved = log_unit + _log_norm(now * kernel - then * start)
    log_relative = log_moved - log_start - _log_norm(start)
    absent = jnp.isinf(log_trace) | jnp.isinf(log_start)
    return {
        "log_relative": jnp.where(absent, jnp.nan, log_relative),
        "angle": jnp.where(absent, jnp.nan, angle(kernel, start)),
    }
