"""A model linearised in its parameters."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array

from ._containers import Batched
from ._fixed import Fixed, trainable


def _is_fixed(node: Any) -> bool:
    return isinstance(node, Fixed)


class Linearised(eqx.Module):
    r"""A model linearised in its parameters at a reference.

    $$f_{\text{lin}}(x; W) = f(x; W_r) + \nabla_Wf(x; W_r)\,(W - W_r)$$

    Its gradient flow is the flow with a frozen tangent kernel. It costs one
    Jacobian-vector product of f; kinks of f at $W_r$ are none of $f_{\text{lin}}$.

    **Arguments:**

    - `model`: any model of one example, with weights W.
    - `reference`: one like it with weights W_r; None for W itself.
    - `filter_spec`: which leaves are W; None for those of [`gflow.nn.trainable`][]. The
        others are taken from `model`.

    **Raises:**

    `ValueError` for a model of the whole batch (linearise what is inside of
    `Batched`), or a reference of another architecture.

    Examples:
        >>> import equinox as eqx, gflow, jax, jax.numpy as jnp
        >>> model = gflow.nn.TwoLayer(2, 3, key=jax.random.key(0))
        >>> linear = gflow.nn.Linearised(model)
        >>> x = jnp.array([1.0, 2.0])
        >>> bool(jnp.allclose(linear(x), model(x)))
        True
        >>> doubled = jax.tree.map(lambda w: 2 * w, model)
        >>> two = gflow.nn.Linearised(doubled, model)  # W = 2 W_r and Euler's theorem
        >>> bool(jnp.allclose(two(x), 3 * model(x), rtol=1e-5))
        True

    ??? cite "Reference"

        Jacot, Gabriel & Hongler (2018), "Neural tangent kernel"; Chizat, Oyallon & Bach
        (2019), "On lazy training in differentiable programming".
    """

    model: Any
    reference: Any

    def __init__(self, model: Any, reference: Any = None, filter_spec: Any = None):
        if isinstance(model, Batched):
            raise ValueError(
                "Linearised takes a model of one example or what is inside of Batched; "
                "use Batched(Linearised(model.model))."
            )
        spec = trainable(model) if filter_spec is None else filter_spec
        trained = eqx.filter(model, spec)
        chosen = trained if reference is None else eqx.filter(reference, spec)
        if [jnp.shape(w) for w in jtu.tree_leaves(chosen)] != [
            jnp.shape(w) for w in jtu.tree_leaves(trained)
        ] or jtu.tree_structure(chosen) != jtu.tree_structure(trained):
            raise ValueError(
                "the reference's parameters are not like the model's; pass a model of "
                "the same architecture."
            )
        self.model = model
        self.reference = jtu.tree_map(Fixed, chosen)

    def __call__(self, x: Array) -> Array:
        at = jtu.tree_map(lambda one: one.value, self.reference, is_leaf=_is_fixed)
        spec = jtu.tree_map(
            lambda leaf: leaf is not None, at, is_leaf=lambda leaf: leaf is None
        )
        params, static = eqx.partition(self.model, spec)
        moved = jtu.tree_map(jnp.subtract, params, at)
        value, change = jax.jvp(lambda w: eqx.combine(w, static)(x), (at,), (moved,))
        return value + change
