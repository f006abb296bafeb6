"""The problem (model, data, loss) and its log-domain gradient."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float

from ._types import Params, Scalar
from .losses import AbstractLoss, AbstractTailedLoss
from .nn import Batched


class Gradient(eqx.Module):
    r"""One full-data gradient evaluation.

    $-\nabla\mathcal L(W) = e^{\text{log\_slope}} \cdot \text{direction}$. For a loss
    with an exponential tail `direction` is ∇α and e^log_slope is -ℓ'(α) (Ji &
    Telgarsky 2020, Lemma C.2), so both stay moderate however small the loss.
    """

    log_loss: Scalar
    log_slope: Scalar
    direction: Params
    outputs: Float[Array, "examples ..."]
    loss: Scalar


class AbstractProblem(eqx.Module):
    """Model, data and loss: everything that defines ℒ(W) but W itself.

    `static` is the model without its trained arrays; `x` and `y` have the leading
    axis n.
    """

    static: eqx.AbstractVar[Any]
    x: eqx.AbstractVar[Array]
    y: eqx.AbstractVar[Array]
    loss: eqx.AbstractVar[AbstractLoss]

    @abc.abstractmethod
    def outputs(self, params: Params) -> Float[Array, "examples ..."]:
        """f(x_i; W) for every example."""

    @abc.abstractmethod
    def output_of(self, params: Params, number: Any) -> Float[Array, "..."]:
        """f(x_i; W) for one example, of a model that takes one."""

    @property
    def num_examples(self) -> int:
        return self.x.shape[0]

    @property
    def is_tailed(self) -> bool:
        return isinstance(self.loss, AbstractTailedLoss)

    def model(self, params: Params) -> Any:
        """The model with these parameters."""
        return eqx.combine(params, self.static)

    def log_loss(self, params: Params) -> Scalar:
        """log ℒ alone: a forward pass."""
        return self.loss.linearise(self.outputs(params), self.y).log_loss

    def gradient(self, params: Params) -> Gradient:
        """ℒ and -∇ℒ in the log domain; one forward and one backward pass."""
        outputs, pull_back = jax.vjp(self.outputs, params)
        at = self.loss.linearise(outputs, self.y)
        (direction,) = pull_back(at.pull)
        return Gradient(at.log_loss, at.log_slope, direction, outputs, at.loss)


class Problem(AbstractProblem):
    """The user's, as it is. Built, with its parameters, by `make_problem`."""

    static: Any
    x: Array
    y: Array
    loss: AbstractLoss
    # A key of the values that the model's and the loss's code reads from outside.
    reads: str = eqx.field(static=True, default="")

    def outputs(self, params):
        return predict(self.model(params), self.x)

    def output_of(self, params, number):
        return self.model(params)(self.x[number])


def like_params(model: Any, problem: Problem) -> Params:
    """The parameters of a model of the problem's architecture."""
    # They are where the problem's own model has none left.
    spec = jtu.tree_map(
        lambda leaf: leaf is None, problem.static, is_leaf=lambda leaf: leaf is None
    )
    return eqx.filter(model, spec)


def predict(model: Any, x: Array) -> Any:
    """The model's outputs on a batch: one call if it is `Batched`, else vmapped."""
    if isinstance(model, Batched):
        return model(x)
    return jax.vmap(model)(x)


def dtype_of(params: Params) -> Any:
    """The floating dtype that times, tolerances and data are cast to."""
    return jnp.result_type(*jtu.tree_leaves(params))


def cast_data(x: Any, y: Any, loss: AbstractLoss, dtype: Any) -> tuple[Array, Array]:
    """Data as JAX arrays: floats in the parameters' dtype, ±1 labels as floats."""
    x = jnp.asarray(x)
    if jnp.issubdtype(x.dtype, jnp.floating):
        x = x.astype(dtype)
    y = jnp.asarray(y)
    if loss.casts_labels or jnp.issubdtype(y.dtype, jnp.floating):
        y = y.astype(dtype)
    return x, y
