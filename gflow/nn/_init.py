r"""Random initial arrays: entries N(0, std²), std a power of the fan-in.

The five families are one formula with different powers: entries
$c\, n^{-a} \mathcal N(0, 1)$ where n is the fan-in, and an output of each layer
multiplied by $n^{-b}$.

| | c | a | b |
|---|---|---|---|
| `gaussian(c)` | c | 0 | 0 |
| `he(c)` | √2 | ½ | 0 |
| `small(c)` | c | ½ | 0 |
| `ntk(c)` | 1 | 0 | ½ |
| `mean_field(c)` | 1 | 0 | 1 |
"""

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from ._checks import check_positive, check_representable, float_dtype


# A number, or a traced or concrete scalar array.
Number: TypeAlias = Any
Init: TypeAlias = Callable[[PRNGKeyArray, tuple[int, ...], Any], Array]


def fan_in(shape: tuple[int, ...]) -> int:
    """The number of inputs to one output: all axes but the first, (out, in, ...)."""
    return max(1, math.prod(shape[1:] if len(shape) > 1 else shape))


class Initialiser(eqx.Module):
    r"""Initial weights, with the scale of the output that belongs to them.

    $$W_{jk} = \text{scale} \cdot n^{-a}\, \mathcal N(0, 1), \qquad
    f = n^{-b} \sum_k W_{jk} x_k$$

    for fan-in n. Any function `(key, shape, dtype) -> array` can take its place; the
    output is then not scaled (b = 0).

    **Arguments:**

    - `scale`: a positive number; it may be traced.
    - `weight_power`: a.
    - `output_power`: b. Layers multiply their outputs by this power of the fan-in, a
        constant that is not trained.
    - `scale_first_layer`: whether the first layer of a [`gflow.nn.MLP`][] or a
        [`gflow.nn.DeepLinear`][] does so too; its inputs are not neurons.

    **Raises:**

    `ValueError` for a scale that is not positive, and where the standard deviation
    underflows or overflows in the dtype of the array.

    Examples:
        >>> import gflow, jax, jax.numpy as jnp
        >>> init = gflow.nn.init.Initialiser(2.0, weight_power=0.5)
        >>> init(jax.random.key(0), (3, 4), jnp.float32).shape
        (3, 4)
    """

    scale: Number
    weight_power: float = eqx.field(static=True, default=0.0)
    output_power: float = eqx.field(static=True, default=0.0)
    scale_first_layer: bool = eqx.field(static=True, default=True)

    def __check_init__(self):
        check_positive("scale", self.scale)

    def __call__(self, key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any) -> Array:
        dtype = float_dtype(dtype)
        factor = fan_in(shape) ** -self.weight_power
        check_representable("the standard deviation", self.scale * factor, dtype)
        std = jnp.asarray(self.scale, dtype) * jnp.asarray(factor, dtype)
        return std * jr.normal(key, shape, dtype)


def draw(
    init: Init, key: PRNGKeyArray, shape: tuple[int, ...], dtype: np.dtype
) -> Array:
    """A new array, or a ValueError for an initialisation that returns another."""
    array = jnp.asarray(init(key, shape, dtype))
    if array.shape != shape or array.dtype != dtype:
        raise ValueError(
            f"init returned an array of shape {array.shape} and dtype {array.dtype}, "
            f"but was asked for {shape} and {dtype}."
        )
    return array


def output_scale(init: Init, inputs: int, given: float | None) -> float:
    """The factor of the output: as given, or n^-b as the initialisation asks."""
    if given is not None:
        check_positive("the scale of the output", given)
        return float(given)
    return inputs**-init.output_power if isinstance(init, Initialiser) else 1.0


def gaussian(std: Number = 1.0) -> Initialiser:
    r"""Entries $\mathcal N(0, \text{std}^2)$, whatever the size of the layer.

    **Arguments:**

    - `std`: the standard deviation of each entry.

    **Returns:** an [`gflow.nn.init.Initialiser`][].

    Examples:
        >>> import gflow, jax
        >>> init = gflow.nn.init.gaussian(0.1)
        >>> layer = gflow.nn.Linear(3, 2, init=init, key=jax.random.key(0))
    """
    return Initialiser(std)


def he(gain: Number = 2**0.5) -> Initialiser:
    r"""Entries $\mathcal N(0, \text{gain}^2 / n)$ for fan-in n.

    **Arguments:**

    - `gain`: by default √2, which keeps the second moment through ReLU layers.

    **Returns:** an [`gflow.nn.init.Initialiser`][].

    Examples:
        >>> import gflow, jax
        >>> linear = gflow.nn.init.he(gain=1.0)
        >>> layer = gflow.nn.Linear(3, 2, init=linear, key=jax.random.key(0))

    ??? cite "Reference"

        He, Zhang, Ren and Sun (2015), "Delving Deep into Rectifiers", eq. (10),
        doi:10.1109/ICCV.2015.123.
    """
    return Initialiser(gain, weight_power=0.5)


def small(scale: Number) -> Initialiser:
    r"""Entries $\mathcal N(0, \text{scale}^2 / n)$ for fan-in n: a start near zero.

    The same as [`gflow.nn.init.he`][], without a default. In float64 scales down to
    1e-300 are exact: nothing is squared.

    **Arguments:**

    - `scale`: of a row's norm, which is about `scale`.

    **Returns:** an [`gflow.nn.init.Initialiser`][].

    Examples:
        >>> import gflow, jax
        >>> init = gflow.nn.init.small(1e-6)
        >>> model = gflow.nn.TwoLayer(2, 5, init=init, key=jax.random.key(0))
        >>> bool(abs(model.weight).max() < 1e-5)
        True
    """
    return Initialiser(scale, weight_power=0.5)


def ntk(scale: Number = 1.0) -> Initialiser:
    r"""Neural tangent parametrisation: weights of order one, outputs times $1/\sqrt n$.

    $$f(x) = \frac{1}{\sqrt n} \sum_{k=1}^{n} W_k x_k, \qquad
    W_k \sim \mathcal N(0, \text{scale}^2)$$

    for fan-in n. The factor is part of the model, so it also slows the flow: weights
    move by $O(1/\sqrt n)$ each in a time of order one.

    **Arguments:**

    - `scale`: the standard deviation of each weight.

    **Returns:** an [`gflow.nn.init.Initialiser`][].

    Examples:
        >>> import gflow, jax
        >>> init = gflow.nn.init.ntk()
        >>> gflow.nn.TwoLayer(2, 100, init=init, key=jax.random.key(0)).output_scale
        0.1

    ??? cite "References"

        Jacot, Gabriel and Hongler (2018), "Neural Tangent Kernel", section 2,
        arXiv:1806.07572 (every layer); Du, Zhai, Poczos and Singh (2019), "Gradient
        Descent Provably Optimizes Over-parameterized Neural Networks", eq. (1),
        arXiv:1810.02054 (two layers).
    """
    return Initialiser(scale, output_power=0.5)


def mean_field(scale: Number = 1.0) -> Initialiser:
    r"""Mean-field parametrisation: weights of order one, outputs averaged over neurons.

    $$f(x) = \frac{1}{n} \sum_{k=1}^{n} W_k x_k, \qquad
    W_k \sim \mathcal N(0, \text{scale}^2)$$

    over the n neurons of a layer. The gradient of one neuron is then of order 1/n: the
    time of the mean-field limit is the flow's time divided by n.

    **Arguments:**

    - `scale`: the standard deviation of each weight.

    **Returns:** an [`gflow.nn.init.Initialiser`][].

    Examples:
        >>> import gflow, jax
        >>> init = gflow.nn.init.mean_field()
        >>> gflow.nn.TwoLayer(2, 100, init=init, key=jax.random.key(0)).output_scale
        0.01

    ??? cite "References"

        Mei, Montanari and Nguyen (2018), "A mean field view of the landscape of
        two-layer neural networks", eq. (1), doi:10.1073/pnas.1806579115; Chizat and
        Bach (2018), arXiv:1805.09545.
    """
    return Initialiser(scale, output_power=1.0, scale_first_layer=False)
