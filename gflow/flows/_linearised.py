"""The flow of the model linearised in its parameters."""

from typing import Any

import equinox as eqx
import jax.tree_util as jtu

from .. import nn
from .._problem import Problem, like_params
from .._types import Params
from ._abstract import AbstractFlow


class Linearised(AbstractFlow):
    r"""The gradient flow of the model linearised at a reference W_r.

    $$f_{\text{lin}}(x; W) = f(x; W_r) + \nabla_Wf(x; W_r)\,(W - W_r),$$

    whose tangent kernel is frozen: with the square loss, $\dot f_{\text{lin}} =
    -K(f_{\text{lin}} - y)$. Activations are frozen too, so that there are no kinks.
    The solution's models are [`gflow.nn.Linearised`][], and everything said of the
    gradient flow (energy, laws, limits) holds of them.

    **Arguments:**

    - `reference`: a model like the one that is solved for; None for that one itself.

    **Raises:**

    `ValueError` (in `integrate`) for a reference of another architecture.

    Examples:
        >>> import gflow, jax, jax.numpy as jnp
        >>> model = gflow.nn.TwoLayer(2, 3, key=jax.random.key(0))
        >>> data = jnp.array([[1.0, 2.0], [2.0, 1.0]]), jnp.array([1.0, -1.0])
        >>> sol = gflow.integrate(
        ...     model, data, gflow.losses.Square(), (0.0, 1.0),
        ...     flow=gflow.flows.Linearised(),
        ... )
        >>> type(sol.final).__name__
        'Linearised'

    ??? cite "Reference"

        Jacot, Gabriel & Hongler (2018), "Neural tangent kernel"; Chizat, Oyallon & Bach
        (2019), "On lazy training in differentiable programming".
    """

    reference: Any = None

    def check(self, problem, params, t0, t1):
        if self.reference is None:
            return
        try:
            theirs = like_params(self.reference, problem)
        except ValueError:
            theirs = None  # of another structure
        if _shapes(theirs) != _shapes(params):
            raise ValueError(
                "Linearised(reference=): the reference's parameters are not like the "
                "model's; pass a model of the same architecture."
            )

    def applied(self, problem: Problem, params: Params) -> tuple[Problem, Params]:
        """The linearised problem, whose gradient flow this is, and its parameters."""
        trained = jtu.tree_map(
            lambda leaf: leaf is not None, params, is_leaf=lambda leaf: leaf is None
        )
        model, reference = problem.model(params), self.reference
        batched = isinstance(model, nn.Batched)
        if batched:
            model, trained = model.model, trained.model
            reference = None if reference is None else reference.model
        linear: Any = nn.Linearised(model, reference, filter_spec=trained)
        none = jtu.tree_map(lambda _: False, linear)
        spec = eqx.tree_at(lambda one: one.model, none, trained)
        if batched:
            linear = nn.Batched(linear)
            spec = eqx.tree_at(
                lambda one: one.model, jtu.tree_map(lambda _: False, linear), spec
            )
        params, static = eqx.partition(linear, spec)
        return Problem(
            static, problem.x, problem.y, problem.loss, problem.reads
        ), params


def _shapes(params: Any) -> Any:
    return jtu.tree_structure(params), [w.shape for w in jtu.tree_leaves(params)]
