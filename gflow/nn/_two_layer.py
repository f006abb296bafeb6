"""The two-layer network."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from ._activations import as_layer, relu
from ._checks import check_size, float_dtype
from ._fixed import Fixed
from ._init import Init, draw, he
from ._init import output_scale as scale_of


class TwoLayer(eqx.Module):
    r"""A two-layer network with scalar output, one row of `weight` per neuron.

    $$f(x) = s \sum_{j=1}^{m} a_j\, \varphi(\langle w_j, x \rangle)$$

    For an activation of degree p it is homogeneous of degree p if the outer weights a
    are fixed, p + 1 if they are trained.

    **Arguments:**

    - `in_size`: the number of inputs d.
    - `width`: the number of neurons m.
    - `activation`: φ, a function or a module. Default `relu`.
    - `outer`: `"trained"` (default), or `"fixed"`: a_j = +1, -1, +1, ... is then a
        [`gflow.nn.Fixed`][] array.
    - `outer_values`: a of shape `(m,)`: the fixed values, or those that training starts
        from.
    - `key`: a JAX random key.
    - `init`: an initialisation from `gflow.nn.init`, or any function
        `(key, shape, dtype) -> array`, for w (fan-in d) and trained a (fan-in m).
        Default `he()`.
    - `dtype`: of the weights; JAX's default float if not given.
    - `output_scale`: s, a constant that is not trained. By default what `init` asks
        for: 1, but 1/√m for `ntk()` and 1/m for `mean_field()`.

    **Raises:**

    `ValueError` for sizes below 1, an unknown `outer`, or values of another shape.

    Examples:
        >>> import gflow, jax, jax.numpy as jnp
        >>> model = gflow.nn.TwoLayer(
        ...     2, 4, gflow.nn.squared_relu, outer="fixed", key=jax.random.key(0)
        ... )
        >>> model(jnp.ones(2)).shape, model.outer.value.tolist()
        ((), [1.0, -1.0, 1.0, -1.0])
        >>> gflow.homogeneity(model, jnp.ones((1, 2)))
        2.0

    ??? cite "Reference"

        The example is the network of Ji and Telgarsky (2020), "Directional convergence
        and alignment in deep learning", eq. (5), arXiv:2006.06657, up to the order of
        the signs.
    """

    weight: Float[Array, "width in"]
    outer: Float[Array, " width"] | Fixed
    activation: Any
    output_scale: float = eqx.field(static=True)

    def __init__(
        self,
        in_size: int,
        width: int,
        activation: Callable[..., Any] = relu,
        outer: str = "trained",
        outer_values: Any = None,
        *,
        key: PRNGKeyArray,
        init: Init | None = None,
        dtype: Any = None,
        output_scale: float | None = None,
    ):
        in_size, width = check_size("in_size", in_size), check_size("width", width)
        if outer not in ("trained", "fixed"):
            raise ValueError(f'outer={outer!r} must be "trained" or "fixed".')
        init = he() if init is None else init
        dtype = float_dtype(dtype)
        first, second = jr.split(key)
        self.weight = draw(init, first, (width, in_size), dtype)
        if outer_values is not None:
            values = jnp.asarray(outer_values).astype(dtype)
            if values.shape != (width,):
                raise ValueError(
                    f"outer_values has shape {values.shape}; give one value for each "
                    f"of the {width} neurons."
                )
        elif outer == "fixed":
            values = jnp.where(jnp.arange(width) % 2 == 0, 1, -1).astype(dtype)
        else:
            values = draw(init, second, (width,), dtype)
        self.outer = Fixed(values) if outer == "fixed" else values
        self.activation = as_layer(activation, "activation")
        self.output_scale = scale_of(init, width, output_scale)

    def __call__(self, x: Float[Array, " in"]) -> Float[Array, ""]:
        outer = self.outer.value if isinstance(self.outer, Fixed) else self.outer
        return self.output_scale * (outer @ self.activation(self.weight @ x))
