"""Times, as numbers or as their logarithms."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float


class Exp(eqx.Module):
    """The time t = e^log, kept as its logarithm; made by [`gflow.exp`][]."""

    log: Any


def exp(v: Any) -> Exp:
    r"""The time $t = e^v$, kept as $v$ so that it cannot overflow.

    **Arguments:**

    - `v`: natural logarithm of the time; a number or an array, concrete or traced.

    **Returns:**

    A time that `gflow.integrate` takes in `t_span` and `save_at`, or a value that
    [`gflow.events`][] take.

    Examples:
        >>> import gflow
        >>> gflow.exp(1e4).log
        10000.0
    """
    return Exp(v)


INFINITY = Exp(np.inf)
"""The time t = ∞: as t1 of [`gflow.integrate`][], it asks for the limit as well."""


def is_infinity(t: Any) -> bool:
    """Whether a time is `INFINITY`."""
    return isinstance(t, Exp) and is_concrete(t) and bool(np.all(np.isposinf(t.log)))


def is_concrete(x: Any) -> bool:
    """Whether every array in `x` has values now (none is being traced)."""
    return not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(x))


def as_time(t: Any) -> Any:
    """The time as float64 NumPy where its value is known, else as a JAX array.

    Arithmetic on times happens before they are cast to the parameters' dtype: 1e300
    is a good time for a float32 solve in a logarithmic clock.
    """
    if isinstance(t, Exp):
        return Exp(as_time(t.log))
    return np.asarray(t, dtype=np.float64) if is_concrete(t) else jnp.asarray(t)


def library(*values: Any):
    """NumPy if all the values are NumPy's, else JAX's."""
    return np if all(isinstance(v, (np.ndarray, np.floating)) for v in values) else jnp


def log_of(t: Any) -> Any:
    """log t: -inf at t = 0, NaN for t < 0."""
    if isinstance(t, Exp):
        return t.log
    with np.errstate(divide="ignore", invalid="ignore"):
        return library(t).log(t)


def log_difference(a: Any, b: Any) -> Any:
    """log(e^a - e^b) for a ≥ b; -inf where they are equal, NaN where a < b."""
    xp = library(a, b)
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = xp.where(a == b, xp.zeros_like(a), b - a)
        # Two branches, as usual for log(1 - e^gap): each is accurate on its side.
        near = xp.log(-xp.expm1(gap))
        far = xp.log1p(-xp.exp(gap))
        return a + xp.where(gap > -0.6931471805599453, near, far)


def log_elapsed(t: Any, t0: Any) -> Any:
    """log(t - t0), for times given in either form.

    Differences of plain numbers are formed before the logarithm, so that a large
    offset t0 costs no more digits than it must.
    """
    if not isinstance(t, Exp) and not isinstance(t0, Exp):
        with np.errstate(divide="ignore", invalid="ignore"):
            return library(t, t0).log(t - t0)
    a = log_of(t)
    if isinstance(t0, Exp):
        return log_difference(a, t0.log)
    xp = library(a, t0)
    with np.errstate(divide="ignore", invalid="ignore"):
        after = log_difference(a, xp.log(xp.maximum(t0, xp.zeros_like(t0))))
        before = xp.logaddexp(a, xp.log(xp.maximum(-t0, xp.zeros_like(t0))))
        return xp.where(t0 < 0, before, after)


def log_time_after(t0: Any, log_elapsed: Float[Array, "..."]) -> Float[Array, "..."]:
    """log(t0 + e^log_elapsed): -inf at t = 0, NaN where the time is negative."""
    dtype = log_elapsed.dtype
    if isinstance(t0, Exp):
        return jnp.logaddexp(jnp.asarray(t0.log, dtype), log_elapsed)
    # A negative origin: the time itself, which fits where the origin mattered.
    start = jnp.asarray(t0, dtype)
    after = jnp.logaddexp(jnp.log(jnp.maximum(start, 0)), log_elapsed)
    time = start + jnp.exp(log_elapsed)
    before = jnp.log(jnp.where(time < 0, jnp.nan, time))
    before = jnp.where(jnp.isinf(time), log_elapsed, before)
    return jnp.where(start < 0, before, after)


def time_after(t0: Any, log_elapsed: Float[Array, "..."]) -> Float[Array, "..."]:
    """t0 + e^log_elapsed as a number; inf where it overflows."""
    if isinstance(t0, Exp):
        return jnp.exp(log_time_after(t0, log_elapsed))
    return jnp.asarray(t0, log_elapsed.dtype) + jnp.exp(log_elapsed)
