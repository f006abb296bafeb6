"""The spectral radius that limits an explicit step, tracked along a solve."""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu

from .._lanes import anywhere
from .._norms import inner, log_norm, unit
from .._types import BoolScalar, IntScalar, Scalar


# A larger estimate than this share of the true radius is as good as the true one.
_ACCURACY = 0.05
_MOST_PRODUCTS = 4  # at a refresh
_MOST_PRODUCTS_AT_FIRST = 20
# Gradients between refreshes: doubled while the radius hardly changes.
_SHORTEST, _LONGEST = 20, 80
_STEADY, _UNSTEADY = 0.05, 0.15
_MARGIN = 1.1
# A trend is trusted up to this factor.
_MOST_GROWTH = 2.0


class Spectrum(eqx.Module):
    """The most negative eigenvalue of the Jacobian, as far as it is known."""

    # Of unit norm, near its eigenvector.
    direction: Any
    # The last step's error estimate, in which stiff components are large, and those of
    # a mode that has become unstable largest: eigenvalues cross.
    suspect: Any
    radius: Scalar
    # When that was, and d log(radius)/dt there.
    time: Scalar
    growth: Scalar
    # Gradients since then, and from then to the next refresh.
    age: IntScalar
    interval: IntScalar
    # The length of the last step.
    step: Scalar
    is_new: BoolScalar

    def expected(self, time: Scalar) -> Scalar:
        """The radius at a later time, if it keeps growing as it did.

        In log time it grows like the time itself, in any clock with the sharpness.
        """
        grown = self.growth * (time - self.time)
        return self.radius * jnp.exp(jnp.clip(grown, 0, math.log(_MOST_GROWTH)))

    def bound(self, time: Scalar) -> Scalar:
        """The radius that a step to this time should be stable for."""
        return _MARGIN * self.expected(time)

    def after(self, gradients: IntScalar, step: Scalar, error: Any) -> "Spectrum":
        """After a step of so many gradients."""
        return eqx.tree_at(
            lambda s: (s.age, s.step, s.suspect),
            self,
            (self.age + gradients, step, error),
        )


def unknown(slope: Any, time: Scalar) -> Spectrum:
    """Nothing known; the search starts from dy/dt, where stiff components are large,
    and from random numbers, for those that are zero by symmetry.
    """
    leaves, structure = jtu.tree_flatten(slope)
    keys = jr.split(jr.key(0), len(leaves))
    noise = [
        jr.normal(key, leaf.shape, leaf.dtype)
        for key, leaf in zip(keys, leaves, strict=True)
    ]
    zero, whole = jnp.zeros_like(time), jnp.zeros((), jnp.result_type(int))
    return Spectrum(
        direction=unit(jtu.tree_unflatten(structure, noise)),
        suspect=slope,
        radius=zero,
        time=time,
        growth=zero,
        age=whole,
        interval=whole,
        step=zero,
        is_new=jnp.asarray(True),
    )


class _Search(eqx.Module):
    vector: Any
    image: Any  # J vector
    probe: Any  # of unit norm and, but for the first, orthogonal to it
    quotient: Scalar  # ⟨vector, J vector⟩
    residual: Scalar  # ‖J vector - quotient · vector‖
    count: IntScalar


def refreshed(
    spectrum: Spectrum, time: Scalar, step: Scalar, product: Callable[[Any], Any]
) -> tuple[Spectrum, IntScalar]:
    r"""The spectrum at a new point, if it is due, and the number of products it took.

    `product`: v ↦ Jv. Steepest descent of the Rayleigh quotient: the leftmost Ritz
    vector of the last one and its residual, again and again, from the last point's and
    the suspect on. Unlike power iteration it looks for the *most negative* eigenvalue,
    also where a positive one is larger (at a saddle), and converges quadratically
    faster; J need not be symmetric.

    A `step` shorter than the last one follows a rejected one: that may be why.
    """
    rejected = step < (1 - _ACCURACY) * spectrum.step
    due = spectrum.is_new | rejected | (spectrum.age >= spectrum.interval)
    most = jnp.where(spectrum.is_new, _MOST_PRODUCTS_AT_FIRST, _MOST_PRODUCTS)
    most = jnp.where(due, most, 0)
    zero = jnp.zeros_like(spectrum.radius)
    foreseen = spectrum.expected(time)
    suspicious = jnp.isfinite(log_norm(spectrum.suspect))
    blank = jtu.tree_map(jnp.zeros_like, spectrum.direction)
    whole = spectrum.age.dtype

    def goes_on(s: _Search) -> BoolScalar:
        # The next Ritz value would be lower by about residual²/|quotient|.
        rough = s.residual**2 > _ACCURACY * s.quotient**2
        rough = rough | ((s.quotient > 0) & (s.residual > 0))
        return (s.count < most) & ((s.count < 2) | rough)

    def body(s: _Search) -> _Search:
        image = product(s.probe)
        x, y = _leftmost(
            s.quotient,
            inner(s.vector, image),
            inner(s.probe, s.image),
            inner(s.probe, image),
        )
        first = s.count == 0
        # In one dimension there is nothing else to probe.
        only = ~first & (inner(s.probe, s.probe) == 0)
        x = jnp.where(first, 0, jnp.where(only, 1, x)).astype(zero.dtype)
        y = jnp.where(first, 1, jnp.where(only, 0, y)).astype(zero.dtype)
        vector = _sum(x, s.vector, y, s.probe)
        image = _sum(x, s.image, y, image)
        quotient = inner(vector, image).astype(zero.dtype)
        size = jnp.exp(log_norm(image)).astype(zero.dtype)
        residual = jnp.sqrt(jnp.maximum(size**2 - quotient**2, 0))
        lead = jtu.tree_map(
            lambda u, v: jnp.where(first & suspicious, u, v), spectrum.suspect, image
        )
        along = inner(vector, lead).astype(zero.dtype)
        probe = unit(_sum(jnp.ones_like(along), lead, -along, vector))
        return _Search(vector, image, probe, quotient, residual, s.count + 1)

    start = _Search(blank, blank, spectrum.direction, zero, zero, jnp.zeros((), whole))

    # A loop alone would not do: compilers move what does not depend on the probe, a
    # gradient, out of it, to where it is evaluated whether the loop runs or not.
    def searched() -> _Search:
        return jax.lax.while_loop(goes_on, body, start)

    end = jax.lax.cond(anywhere(due), searched, lambda: start)
    radius = _outermost(end.quotient, end.residual)
    found = due & jnp.isfinite(radius)
    radius = jnp.where(found, radius, spectrum.radius)
    known = ~spectrum.is_new & (spectrum.radius > 0) & (time > spectrum.time)
    ratio = jnp.where(known, radius / jnp.where(known, spectrum.radius, 1), 1)
    elapsed = jnp.where(known, time - spectrum.time, 1)
    surprise = jnp.where(known, radius / jnp.where(known, foreseen, 1), 1)
    surprise = jnp.abs(surprise - 1)
    longer = jnp.where(surprise < _STEADY, 2 * spectrum.interval, spectrum.interval)
    interval = jnp.where(surprise > _UNSTEADY, 0, longer)
    new = Spectrum(
        direction=end.vector,
        radius=radius,
        time=time,
        # (After a rejected step no time has passed.)
        growth=jnp.where(known, jnp.log(ratio) / elapsed, spectrum.growth),
        age=jnp.zeros_like(spectrum.age),
        interval=jnp.clip(interval, _SHORTEST, _LONGEST).astype(whole),
        suspect=spectrum.suspect,
        step=spectrum.step,
        is_new=jnp.asarray(False),
    )
    new = jtu.tree_map(lambda a, b: jnp.where(found, a, b), new, spectrum)
    return jax.lax.stop_gradient(new), end.count


def _sum(x: Scalar, a: Any, y: Scalar, b: Any) -> Any:
    """x a + y b."""
    return jtu.tree_map(
        lambda u, v: x.astype(u.dtype) * u + y.astype(v.dtype) * v, a, b
    )


def _outermost(quotient: Scalar, residual: Scalar) -> Scalar:
    """-λ of the leftmost eigenvalue if the probe's own quotient is zero.

    Most of the spectrum is near zero; so this is where the next product would lead.
    """
    return jnp.hypot(quotient / 2, residual) - quotient / 2


def _leftmost(a: Scalar, b: Scalar, c: Scalar, d: Scalar) -> tuple[Scalar, Scalar]:
    """The unit eigenvector of [[a, b], [c, d]] of least eigenvalue.

    That of the real part, if they are complex.
    """
    half = (a - d) / 2
    root = jnp.sqrt(jnp.maximum(half**2 + b * c, 0))
    # (b, λ - a) and (λ - d, c) are both it: the one that does not cancel.
    low = -half - root, half - root  # λ - a, λ - d
    upper = jnp.abs(low[0]) > jnp.abs(low[1])
    x, y = jnp.where(upper, b, low[1]), jnp.where(upper, low[0], c)
    size = jnp.hypot(x, y)
    degenerate = size == 0
    safe = jnp.where(degenerate, 1, size)
    return jnp.where(degenerate, 1, x / safe), jnp.where(degenerate, 0, y / safe)
