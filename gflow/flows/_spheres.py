"""W = ρ V by layer or as a whole, and what flows of (ρ, V) share."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Float

from .._norms import array_norm
from .._problem import dtype_of
from .._times import is_concrete
from .._types import Params, Scalar


class OnSpheres(eqx.Module):
    """The state (ρ, V) of flows with W_k = ρ_k V_k.

    **Attributes:**

    - `rho`: (K,) the norms; None where they are prescribed.
    - `v`: V, a PyTree like the parameters. Of unit norm up to a factor that the flow
        takes out.
    """

    rho: Float[Array, " K"] | None
    v: Params


# Of any lengths.
Vectors = list[Float[Array, " _"]]


def vectors(tree: Params, per_layer: bool) -> Vectors:
    """The layers, that is the parameter arrays, as vectors; or all as one vector."""
    leaves = [leaf.reshape(-1) for leaf in jtu.tree_leaves(tree)]
    if per_layer:
        return leaves
    dtype = dtype_of(tree)
    return [jnp.concatenate([leaf.astype(dtype) for leaf in leaves])]


def as_tree(parts: Vectors, like: Params) -> Params:
    """The inverse of `vectors`."""
    leaves, structure = jtu.tree_flatten(like)
    if len(parts) < len(leaves):
        ends = np.cumsum([leaf.size for leaf in leaves])
        parts = jnp.split(parts[0], ends[:-1])
    return jtu.tree_unflatten(
        structure,
        [
            part.reshape(leaf.shape).astype(leaf.dtype)
            for part, leaf in zip(parts, leaves, strict=True)
        ],
    )


def on_spheres(
    params: Params,
    per_layer: bool,
    norm: Callable[[Float[Array, " entries"]], Scalar] = array_norm,
) -> tuple[Float[Array, " K"], Vectors]:
    """ρ_k = ‖W_k‖ and V_k = W_k/ρ_k."""
    parts = vectors(params, per_layer)
    dtype = dtype_of(params)
    rho = [norm(w) for w in parts]
    rows = [w / r for w, r in zip(parts, rho, strict=True)]
    return jnp.stack([r.astype(dtype) for r in rho]), rows


def scaled(rho: Float[Array, " K"], rows: Vectors) -> Vectors:
    """ρ_k V_k."""
    return [rho[k].astype(v.dtype) * v for k, v in enumerate(rows)]


def check_nonzero(params: Params, per_layer: bool, who: str) -> None:
    """ValueError if a layer is zero, so that it has no direction."""
    if not is_concrete(params):
        return
    sizes = [float(array_norm(w)) for w in vectors(params, per_layer)]
    if min(sizes) > 0:
        return
    where = "the model's parameters are all zero"
    if per_layer:
        names = [jtu.keystr(path) for path, _ in jtu.tree_leaves_with_path(params)]
        where = f"parameter model{names[int(np.argmin(sizes))]} is zero"
    raise ValueError(
        f"{who} moves directions W/‖W‖, and {where}; start from other weights, leave "
        "that array out with filter_spec, or pass per_layer=False."
    )


def check_flag(name: str, value: Any) -> None:
    """ValueError unless it is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name}={value!r} is neither True nor False.")


def check_rho(
    rho: Callable[[Scalar], Any], params: Params, per_layer: bool, t0: Any, t1: Any
) -> None:
    """ValueError unless it is a function of t with as many values as there are layers.

    `t0`, `t1` are times; t1 must be one that a float holds.
    """
    dtype = dtype_of(params)
    number = len(vectors(params, per_layer))
    try:
        shape = jnp.shape(
            jax.eval_shape(lambda t: _values(rho, t, dtype), _blank(dtype))
        )
    except Exception as error:
        raise ValueError(
            f"rho={rho!r} cannot be called with a time t (a scalar array): {error}"
        ) from error
    if shape not in ((), (number,)):
        raise ValueError(
            f"rho(t) has shape {shape}, and there are {number} norms to prescribe; "
            "return one number for all, or one for each."
        )
    check_finite_times(t0, t1, dtype, "a norm that is prescribed as rho(t)")
    if is_concrete((rho, t0)):
        # Numbers also where this is traced, unless ρ depends on what is.
        with jax.ensure_compile_time_eval():
            first = _values(rho, jnp.asarray(number_of(t0), dtype), dtype)
        if not is_concrete(first):
            return
        first = np.asarray(first)
        if not (np.all(np.isfinite(first)) and np.all(first > 0)):
            raise ValueError(
                f"rho(t0) = {first.tolist()} is not a positive number; prescribe "
                "positive norms."
            )


def _blank(dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((), dtype)


def number_of(t: Any) -> Any:
    """A time as a number."""
    return np.exp(t.log) if hasattr(t, "log") else t


def check_finite_times(t0: Any, t1: Any, dtype: Any, who: str) -> None:
    """ValueError if t1 is beyond the largest float."""
    del t0
    if not is_concrete(t1):
        return
    largest = float(np.log(float(jnp.finfo(dtype).max)))
    late = float(np.max(t1.log)) if hasattr(t1, "log") else -np.inf
    if late > largest - 1:
        raise ValueError(
            f"{who} needs times that a {jnp.dtype(dtype).name} holds, up to "
            f"e^{largest - 1:.0f}, and t1 is e^{late:g}; end earlier."
        )


def prescribed(
    rho: Callable[[Scalar], Any], t: Scalar, number: int, dtype: Any
) -> tuple[Float[Array, " K"], Float[Array, " K"]]:
    """ρ_k(t) and dρ_k/dt."""

    def values(time: Scalar) -> Float[Array, " K"]:
        return jnp.broadcast_to(_values(rho, time, dtype), (number,))

    t = jnp.asarray(t, dtype)
    return jax.jvp(values, (t,), (jnp.ones_like(t),))


def _values(rho: Callable[[Scalar], Any], t: Any, dtype: Any) -> Any:
    found = rho(t)
    if isinstance(found, (tuple, list)):
        found = jnp.stack([jnp.asarray(one, dtype) for one in found])
    return jnp.asarray(found, dtype)
