"""min_norm_subgradient(): the element of least norm of ∂ℒ(W)."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float, Int

from .._cells import can_hull, hulled
from .._flat import unflattener
from .._frozen import Frozen
from .._lanes import anywhere
from .._least_norm import LeastNorm, least_norm
from .._norms import log_norm
from .._times import is_concrete
from .._types import BoolScalar, IntScalar, Params, Scalar
from ._point import Point, numbers, point, scaled


class Subgradient(eqx.Module):
    r"""The element of least norm of the Clarke subdifferential.

    Returned by [`gflow.clarke.min_norm_subgradient`][]. K is the number of kinks there
    is room for: all there are, 64 at most.

    **Attributes:**

    - `value`: $\bar\partial\mathcal L(W)$, a PyTree like the parameters, as numbers:
        zero where the loss has underflowed.
    - `norm`, `log_norm`: its norm, and the logarithm of that, which does not underflow;
        -inf where the norm is zero.
    - `direction`: a PyTree of moderate size, minus which `value` is a multiple of.
    - `log_scale`: $\bar\partial\mathcal L=-e^{\text{log\_scale}}\cdot$ `direction`.
    - `multipliers`: (K,) λ_k in [0, 1], the slope taken at each kink at zero, from that
        of its lower branch to that of its upper one. Unique only where the kinks'
        gradients are independent.
    - `kinks`: (K,) the numbers of the kinks at zero; number k of example i is i M + k,
        M kinks per example, in the order in which the model evaluates them. -1 where
        there is none.
    - `num_at_zero`: how many kinks are at zero.
    - `gap`, `log_gap`: bounds the squared distance of `value` from the true point of
        least norm of the set used, rounding included for the box.
    - `exact`: whether that set is ∂ℒ(W).
    - `hull`: whether it is the hull of the gradients around W, not the box of slopes.
    """

    value: Params
    norm: Scalar
    log_norm: Scalar
    direction: Params
    log_scale: Scalar
    multipliers: Float[Array, " K"]
    kinks: Int[Array, " K"]
    num_at_zero: IntScalar
    gap: Scalar
    log_gap: Scalar
    exact: BoolScalar
    hull: BoolScalar


def min_norm_subgradient(
    model: Any,
    data: Any,
    loss: Any,
    *,
    tol: Any = None,
    filter_spec: Any = None,
) -> Subgradient:
    r"""The element of least norm of the Clarke subdifferential of ℒ at a model.

    $$\bar\partial\mathcal L(W)=\arg\min\{\|g\|:g\in\partial\mathcal L(W)\},\qquad
      \partial\mathcal L(W)=\operatorname{conv}\{\lim\nabla\mathcal L(W_j):W_j\to W\}$$

    Minus it is the velocity of the gradient flow at almost every time. W is stationary
    if and only if it is zero. It is not what automatic differentiation returns at a
    kink, which may not even be in ∂ℒ(W).

    First ∂ℒ(W) is taken for the box $\{b+\sum_k\lambda_k u_k,\ 0\le\lambda_k\le1\}$ of
    the slopes at the kinks at zero. That contains it, and is it if
    $\operatorname{rank}[N_+\,N_-]=\operatorname{rank}N_++\operatorname{rank}N_-$, with
    the normals ∇z_k parted by the sign of the derivative of ℒ upstream: so if they are
    independent. Where the test fails, and at most 8 kinks have an effect, the set is
    the hull of the gradients in the cells around W: for a two-layer network that is
    ∂ℒ(W). For pre-activations that are not affine in W it may be too small. Where kinks
    at zero may be in series (the same example has several, in a model whose kinks
    depend on others), it is the hull over all patterns, which contains ∂ℒ(W). `exact`
    and `hull` say what was done.

    **Arguments:**

    - `model`, `data`, `loss`, `filter_spec`: as for [`gflow.integrate`][].
    - `tol`: kinks count as at zero where |z| is at most `tol` times its size (its root
        mean square under changes of the weights' signs). Default 1.1e-8 in float64,
        1e-4 in float32.

    **Returns:**

    A [`gflow.clarke.Subgradient`][]. Of a smooth model, its gradient.

    **Raises:**

    `ValueError` for a model, data or a loss that [`gflow.integrate`][] does not take
    either, for kinks whose branches cannot be held fixed (`sort`, say), and for a
    tolerance outside of [0, 1).

    Examples:
        The first example is at the kink of the only neuron, and pushes it to the left,
        the second one to the right; half of the push is enough to stay.

        >>> import equinox as eqx, gflow, jax, jax.numpy as jnp
        >>> model = gflow.nn.TwoLayer(2, 1, outer="fixed", key=jax.random.key(0))
        >>> model = eqx.tree_at(lambda m: m.weight, model, jnp.array([[0.0, 1.0]]))
        >>> x, y = jnp.array([[1.0, 0.0], [1.0, 0.25]]), jnp.array([-1.0, 0.75])
        >>> found = gflow.clarke.min_norm_subgradient(
        ...     model, (x, y), gflow.losses.Square()
        ... )
        >>> found.kinks.tolist(), found.multipliers.tolist(), bool(found.exact)
        ([0, -1], [0.5, 0.0], True)
        >>> jnp.abs(found.value.weight).tolist()
        [[0.0, 0.125]]

    ??? cite "Reference"

        Clarke (1975), "Generalized gradients and applications", Transactions of the
        American Mathematical Society 205; Ji and Telgarsky (2020), "Directional
        convergence and alignment in deep learning", Lemma B.9, arXiv:2006.06657.
    """
    at = point(model, data, loss, tol, filter_spec)
    if at.frozen is None:
        return _smooth(at)
    found = least_norm(at.frozen, at.params, None, at.tolerance)
    wanted = can_hull(found)
    # Outside of jit the hull is compiled when a point first needs it.
    if is_concrete(wanted) and not bool(wanted):
        return _finished(at.frozen, found, _of_box(found), wanted)
    return _best(at.frozen, at.params, found, wanted)


class _Least(eqx.Module):
    direction: Params
    multipliers: Float[Array, " K"]
    log_gap: Scalar
    exact: BoolScalar


def _of_box(found: LeastNorm) -> _Least:
    direction = found.gradient.direction
    return _Least(direction, found.multipliers, found.log_gap, found.exact)


@eqx.filter_jit
def _best(
    frozen: Frozen, params: Params, found: LeastNorm, wanted: BoolScalar
) -> Subgradient:
    box = _of_box(found)

    def of_hull() -> _Least:
        hull = hulled(frozen, params, found)
        direction = unflattener(params)(hull.direction)
        here = _Least(direction, hull.multipliers, hull.log_gap, hull.affine)
        return jtu.tree_map(lambda a, b: jnp.where(wanted, a, b), here, box)

    least = jax.lax.cond(anywhere(wanted), of_hull, lambda: box)
    return _finished(frozen, found, least, wanted)


@eqx.filter_jit
def _finished(
    frozen: Frozen, found: LeastNorm, least: _Least, hull: BoolScalar
) -> Subgradient:
    log_scale = found.gradient.log_slope
    log_gap = least.log_gap + 2 * log_scale
    return _with_numbers(
        least.direction,
        log_scale,
        multipliers=least.multipliers,
        kinks=numbers(found.index, frozen.total),
        num_at_zero=found.num_at_zero,
        gap=jnp.exp(log_gap),
        log_gap=log_gap,
        exact=least.exact,
        hull=hull,
    )


@eqx.filter_jit
def _smooth(at: Point) -> Subgradient:
    gradient = at.problem.gradient(at.params)
    none = jnp.zeros(0, gradient.log_loss.dtype)
    return _with_numbers(
        gradient.direction,
        gradient.log_slope,
        multipliers=none,
        kinks=jnp.zeros(0, int),
        num_at_zero=jnp.asarray(0),
        gap=jnp.zeros_like(gradient.log_loss),
        log_gap=jnp.full_like(gradient.log_loss, -jnp.inf),
        exact=jnp.asarray(True),
        hull=jnp.asarray(False),
    )


def _with_numbers(direction: Params, log_scale: Scalar, **rest: Any) -> Subgradient:
    length = log_scale + log_norm(direction)
    return Subgradient(
        value=jtu.tree_map(jnp.negative, scaled(direction, log_scale)),
        norm=jnp.exp(length),
        log_norm=length,
        direction=direction,
        log_scale=log_scale,
        **rest,
    )
