"""The degree of homogeneity, measured."""

from fractions import Fraction
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, PyTree

from .nn import Batched, trainable
from .nn._init import fan_in


# Two of them powers of two, which scale without rounding. 2^L overflows float32 at
# L = 128; the third excludes functions that repeat themselves at every doubling.
_FACTORS = (0.5, 1.5, 2.0)
_EXAMPLES = 8
# A degree this near to a fraction with a small denominator is that fraction.
_LARGEST_DENOMINATOR = 12
# Outputs below this part of the largest are sums that cancelled: their rounding errors
# are those of outputs of this size.
_CANCELLED = 0.01
# Draws of surrogates before giving up on outputs that are all zero.
_ATTEMPTS = 6


def homogeneity(
    model: Any,
    x: Any,
    *,
    filter_spec: PyTree = None,
    rtol: float | None = None,
) -> float:
    r"""The degree L of a positively homogeneous model.

    $$\Phi(x; c W) = c^L\, \Phi(x; W) \qquad \text{for all } c > 0$$

    It is measured at c = ½, 3/2 and 2, on up to eight of the examples and at random
    weights of the shapes of W, not at W: weights of 1e-60 have outputs that underflow,
    and traced ones have no values. So the degree is a Python float also inside
    `jax.jit` and `jax.vmap`. It is a measurement, not a proof.

    **Arguments:**

    - `model`: a callable PyTree that takes one example, or a [`gflow.nn.Batched`][].
    - `x`: examples, shape `(n, ...)`. Random ones take their place while traced.
    - `filter_spec`: which leaves are the parameters W, as in `equinox.partition`.
        Default [`gflow.nn.trainable`][]. The others keep their values; random values
        (of integers, one) stand for those that are traced.
    - `rtol`: of c^L Φ(x; W), by example. Default the square root of the spacing of
        floats, 1.5e-8 in float64 and 3.5e-4 in float32: rounding is well below, and
        what breaks homogeneity by less is not seen.

    **Returns:**

    L: the nearest fraction with a denominator up to 12 where that is within the
    rounding error (2.0, not 1.9999999), else as measured. 0 for a model that does not
    depend on the size of its weights; the theory asks for L > 0.

    **Raises:**

    `ValueError` if the model is not homogeneous, has no parameter, closes over traced
    arrays, or if its outputs at random weights are all zero or not finite.

    Examples:
        >>> import gflow, jax, jax.numpy as jnp
        >>> model = gflow.nn.MLP(2, 16, 3, key=jax.random.key(0))
        >>> gflow.homogeneity(model, jnp.ones((1, 2)))
        3.0

    ??? cite "Reference"

        Ji and Telgarsky (2020), "Directional convergence and alignment in deep
        learning", Assumption 2.1, arXiv:2006.06657.
    """
    # Values of arrays that are known are computed with now, even inside jit.
    with jax.ensure_compile_time_eval():
        spec = trainable(model) if filter_spec is None else filter_spec
        params, static = eqx.partition(model, spec)
        leaves = jtu.tree_leaves(params)
        if not leaves:
            raise ValueError(
                "the model has no trainable parameter, so no degree of homogeneity."
            )
        dtypes = [leaf.dtype for leaf in leaves]
        x = _examples(x, np.result_type(*dtypes), isinstance(model, Batched))
        base, scaled = _measure(params, static, x)
    rounding = max(float(jnp.finfo(one).eps) for one in dtypes)
    return _degree(base, scaled, rounding**0.5 if rtol is None else rtol)


def _is_known(leaf: Any) -> bool:
    # Neither traced nor spread over other processes.
    if isinstance(leaf, Tracer):
        return False
    return not isinstance(leaf, jax.Array) or leaf.is_fully_addressable


def _examples(x: Any, dtype: Any, keep_all: bool) -> Array:
    x = x if isinstance(x, jax.Array) else np.asarray(x)
    if x.ndim == 0 or x.size == 0:
        raise ValueError(
            f"x has shape {x.shape}; give at least one example along the leading axis."
        )
    n = x.shape[0] if keep_all else min(x.shape[0], _EXAMPLES)
    if not _is_known(x):
        one_lane = jax.ShapeDtypeStruct((n, *x.shape[1:]), x.dtype)
        x = _surrogate(one_lane, np.random.default_rng(0))
    elif n < x.shape[0]:
        # Spread over the data, which may be sorted by class.
        x = np.asarray(x)[np.linspace(0, x.shape[0] - 1, n).astype(int)]
    floating = jnp.issubdtype(x.dtype, jnp.floating)
    return jnp.asarray(x, dtype if floating else None)


def _surrogate(leaf: Any, rng: np.random.Generator, std: float = 1.0) -> Any:
    # In NumPy: JAX would compile the random numbers of every new shape.
    if jnp.issubdtype(leaf.dtype, jnp.inexact):
        return np.asarray(std * rng.standard_normal(leaf.shape), leaf.dtype)
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jnp.broadcast_to(jax.random.key(0), leaf.shape)
    return np.ones(leaf.shape, leaf.dtype)


@eqx.filter_jit
def _outputs(params: Any, static: Any, x: Any) -> Any:
    model = eqx.combine(params, static)
    return model(x) if isinstance(model, Batched) else jax.vmap(model)(x)


def _measure(params: Any, static: Any, x: Array) -> tuple[np.ndarray, list[np.ndarray]]:
    # Outputs (examples, entries) at surrogate weights W, and at cW for each factor c.
    for attempt in range(_ATTEMPTS):
        drawn, kept = _draw(params, static, attempt)
        base = _outputs_at(1.0, drawn, kept, x)
        if np.any(base != 0):
            return base, [_outputs_at(c, drawn, kept, x) for c in _FACTORS]
    raise ValueError(
        "the model's outputs at random weights are all zero, so its degree of "
        "homogeneity cannot be measured; give examples x that are not zero."
    )


def _draw(params: Any, static: Any, attempt: int) -> tuple[Any, Any]:
    # Every other attempt has the weights of the one before with the other sign: a
    # single ReLU neuron is off in one of the two. Those of later attempts are larger.
    seed, flipped = divmod(attempt, 2)
    rng = np.random.default_rng(seed)
    sign = -1.0 if flipped else 1.0

    def draw(leaf):
        std = 1.0 if seed else fan_in(leaf.shape) ** -0.5
        return _surrogate(leaf, rng, sign * std)

    def keep(leaf):
        return leaf if _is_known(leaf) else jnp.asarray(draw(leaf))

    return jtu.tree_map(draw, params), jtu.tree_map(keep, static)


def _outputs_at(c: float, drawn: Any, kept: Any, x: Array) -> np.ndarray:
    scaled = jtu.tree_map(lambda w: jnp.asarray(np.asarray(c, w.dtype) * w), drawn)
    out = _outputs(scaled, kept, x)
    if not _is_known(out):
        raise ValueError(
            "the degree of homogeneity cannot be measured here: the model closes over "
            "traced arrays. Make them leaves of the model, wrapped in gflow.nn.Fixed "
            "if they are not trained."
        )
    return np.asarray(out, np.float64).reshape(x.shape[0], -1)


def _degree(base: np.ndarray, scaled: list[np.ndarray], rtol: float) -> float:
    if not all(np.all(np.isfinite(out)) for out in (base, *scaled)):
        raise ValueError(
            "the model's outputs at random weights are not finite, so its degree of "
            "homogeneity cannot be measured; scale the examples x to order one, or use "
            "float64."
        )
    # Sizes as maxima: squares could overflow.
    largest = np.max(np.abs(base))
    with np.errstate(divide="ignore"):
        measured = [
            float(np.log(np.max(np.abs(out)) / largest) / np.log(c))
            for c, out in zip(_FACTORS, scaled, strict=True)
        ]
    degree = float(np.median(measured))
    if np.isfinite(degree):
        simple = float(Fraction(degree).limit_denominator(_LARGEST_DENOMINATOR))
        degree = simple if abs(simple - degree) <= rtol * max(1.0, degree) else degree
        size = np.maximum(np.max(np.abs(base), axis=1), _CANCELLED * largest)
        errors = [
            np.max(np.abs(out / c**degree - base), axis=1) / size
            for c, out in zip(_FACTORS, scaled, strict=True)
        ]
        if np.max(errors) <= rtol:
            return degree
    shown = ", ".join(
        f"{one:.4g} at c = {c:g}" for one, c in zip(measured, _FACTORS, strict=True)
    )
    raise ValueError(
        f"the model is not positively homogeneous: Φ(x; cW) = c^L Φ(x; W) gives L = "
        f"{shown}, or differs by example. Remove biases, or append a constant feature "
        "to the data with gflow.nn.append_one; use homogeneous activations (relu, "
        "leaky_relu, squared_relu), no skip connections past a different number of "
        "layers, and no normalisation with an epsilon."
    )
