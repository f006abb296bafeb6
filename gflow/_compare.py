"""compare(): the flow against gradient descent, at equal times."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ._norms import log_norm
from ._saved import has_time_axis
from ._solution import RESULTS, Solution
from ._times import is_concrete
from ._types import Scalar


# Equal times differ by the rounding of log η + log k: two additions and a logarithm.
_ROUNDINGS = 16
# The order is that of the limit of small steps.
_SMALLEST = 3


class Comparison(eqx.Module):
    r"""How far gradient descent is from the flow, at the saved times of both.

    Made by [`gflow.compare`][]. A descent under `vmap` puts its axis, the lanes, in
    front of everything. NaN stands for times that a lane did not save or reach.

    **Attributes:**

    - `log_t`: (T,) natural logarithm of the times.
    - `distance`: (T,) $\|W_\text{flow} - W_\text{gd}\|$.
    - `relative_distance`: (T,) the same over $\|W_\text{flow}\|$.
    - `function_distance`: (T,) $\sqrt{\tfrac1n\sum_i\|f_\text{flow}(x_i) -
        f_\text{gd}(x_i)\|^2}$ on the data.
    - `step_sizes`: () the step size of each lane.
    - `diverged`: () whether the lane diverged before the last of these times.
    """

    log_t: Float[Array, "*lanes times"]
    distance: Float[Array, "*lanes times"]
    relative_distance: Float[Array, "*lanes times"]
    function_distance: Float[Array, "*lanes times"]
    step_sizes: Float[Array, "*lanes"]
    diverged: Bool[Array, "*lanes"]

    @eqx.filter_jit
    def order(self, *, of: str = "parameters", lanes: int = _SMALLEST) -> Scalar:
        r"""The order in the step size: slope of log max-distance against log η.

        One for gradient descent, which is Euler's method. Fitted to the `lanes`
        smallest step sizes that did not diverge, over the times that these have in
        common; NaN with fewer than two. `of` is "parameters" or "function".

        Steps so small that the distance is the error of the flow itself spoil it:
        integrate with a smaller `rtol`.
        """
        steps, distance, good = self._ascending(of)
        chosen = good & (jnp.cumsum(good) <= lanes)
        shared = jnp.all(jnp.isfinite(distance) | ~chosen[:, None], axis=0)
        largest = jax.vmap(lambda row: _largest(row, shared))(distance)
        chosen = chosen & (largest > 0)
        y = jnp.log(jnp.where(chosen, largest, 1))
        x = jnp.log(jnp.where(chosen, steps, 1)).astype(y.dtype)
        count = jnp.sum(chosen).astype(x.dtype)
        x = jnp.where(chosen, x - jnp.sum(x) / count, 0)
        spread = jnp.sum(x**2)
        defined = (count >= 2) & (spread > 0)
        slope = jnp.sum(x * y) / jnp.where(defined, spread, 1)
        return jnp.where(defined, slope, jnp.nan)

    @eqx.filter_jit
    def ratios(self, *, of: str = "parameters") -> Float[Array, " pairs"]:
        """Max-distance over that of the next smaller step size, in ascending order.

        Each over the times that the two have in common; near 2 where the step size
        doubles. NaN where either diverged. `of` is "parameters" or "function".
        """
        _, distance, good = self._ascending(of)

        def ratio(small, large):
            shared = jnp.isfinite(small) & jnp.isfinite(large)
            return _largest(large, shared) / _largest(small, shared)

        ratios = jax.vmap(ratio)(distance[:-1], distance[1:])
        return jnp.where(good[:-1] & good[1:], ratios, jnp.nan)

    def largest_step(self, tolerance: Any) -> Scalar:
        """The largest step size that tracks the flow, as all smaller ones do.

        To track is to stay within the relative distance `tolerance` of the flow at
        every common time. NaN if the smallest step size does not.
        """
        if not (is_concrete(tolerance) and 0 < tolerance < math.inf):
            raise ValueError(f"tolerance={tolerance!r} is not a positive number.")
        return self._largest_within(jnp.asarray(tolerance, self.distance.dtype))

    @eqx.filter_jit
    def _largest_within(self, tolerance: Scalar) -> Scalar:
        steps, distance, good = self._ascending("relative")
        largest = jax.vmap(lambda row: _largest(row, jnp.isfinite(row)))(distance)
        tracks = jnp.cumprod(good & (largest <= tolerance)) == 1
        return _largest(steps, tracks)

    def _ascending(self, of: str):
        # Lanes in the order of their step sizes: these, distances, which can be used.
        names = {
            "parameters": self.distance,
            "function": self.function_distance,
            "relative": self.relative_distance,
        }
        if of not in names:
            raise ValueError(f"of={of!r} is not known; use 'parameters' or 'function'.")
        steps = jnp.atleast_1d(self.step_sizes)
        order = jnp.argsort(steps)
        # The start is no evidence: the two agree there.
        distance = jnp.where(jnp.isneginf(self.log_t), jnp.nan, names[of])
        distance = distance.reshape(steps.shape + distance.shape[-1:])[order]
        good = jnp.any(jnp.isfinite(distance), axis=1) & jnp.isfinite(steps[order])
        return steps[order], distance, good & ~jnp.atleast_1d(self.diverged)[order]


def _largest(row: Float[Array, " times"], where: Bool[Array, " times"]) -> Scalar:
    # NaN if there is none.
    largest = jnp.max(row, where=where, initial=-jnp.inf)
    return jnp.where(jnp.any(where), largest, jnp.nan)


class _Side(eqx.Module):
    # What is compared of a solution. `leaves` are the trained arrays.
    log_t: Float[Array, "*lanes times"]
    leaves: list[Float[Array, "..."]]
    predictions: Float[Array, "..."]


def compare(flow: Any, descent: Any) -> Comparison:
    r"""Compares gradient descent with the flow at equal times, step size × step.

    $$\|W(t_k) - W_k\|,\qquad
      \Big(\tfrac1n\sum_i \|f(x_i; W(t_k)) - f(x_i; W_k)\|^2\Big)^{1/2},
      \qquad t_k = \eta k$$

    for the times that both saved, equal to rounding; nothing is interpolated. To save
    the flow at the times of a descent, integrate it with
    `save_at=gflow.exp(descent.log_t)`.

    **Arguments:**

    - `flow`: a solution of [`gflow.integrate`][].
    - `descent`: a solution of [`gflow.descend`][], of the same model and data; may come
        out of `equinox.filter_vmap`, over step sizes say. So may `flow`, if both have
        the same lanes.

    **Returns:**

    A [`gflow.Comparison`][]. Parameters that are not trained are left out.

    **Raises:**

    `ValueError` if there is no common time after the start, if the descent does not
    know its step size, or if the two are not of the same model and data.

    Examples:
        >>> import equinox as eqx, gflow, jax, jax.numpy as jnp
        >>> model = gflow.nn.Linear(2, "scalar", key=jax.random.key(0))
        >>> data = jnp.array([[1.0, 2.0], [2.0, 1.0]]), jnp.array([1.0, -1.0])
        >>> loss = gflow.losses.Logistic()
        >>> t = jnp.array([0.0, 1.0, 2.0])
        >>> flow = gflow.integrate(model, data, loss, (0.0, 2.0), save_at=t)
        >>> @eqx.filter_vmap
        ... def run(step):
        ...     return gflow.descend(model, data, loss, step, 400, save_at=t)
        >>> comparison = gflow.compare(flow, run(jnp.array([0.005, 0.01, 0.02])))
        >>> round(float(comparison.order()), 1)
        1.0
    """
    _check_pair(flow, descent)
    ours, theirs = _side(flow), _side(descent)
    _check_shapes(ours, theirs)
    slots, found = _matches(ours, theirs)
    kept = np.arange(ours.log_t.shape[-1])
    if is_concrete(found):
        kept = _kept(np.asarray(found), np.asarray(ours.log_t), theirs.log_t)
    return _measured(ours, theirs, slots, found, jnp.asarray(kept), descent)


def _check_pair(flow: Any, descent: Any) -> None:
    for name, one in (("flow", flow), ("descent", descent)):
        if not isinstance(one, Solution):
            raise ValueError(f"{name} is a {type(one).__name__}, not a gflow.Solution.")
    if descent.clock != "steps":
        raise ValueError(
            "descent is not a solution of gflow.descend; call "
            "gflow.compare(flow, descent), in this order."
        )
    step = descent.stats["step_size"]
    if is_concrete(step) and np.all(np.isnan(np.asarray(step))):
        raise ValueError(
            "the descent does not know its times: pass step_size= to gflow.descend "
            "along with the Optax transformation."
        )
    lanes = descent.log_t.shape[:-1]
    if len(lanes) > 1 or flow.log_t.shape[:-1] not in ((), lanes):
        raise ValueError(
            f"flow has leading axes {flow.log_t.shape[:-1]} and descent {lanes}; the "
            "descent may have one, and the flow none or the same one. Compare inside "
            "of vmap otherwise."
        )


def _side(solution: Solution) -> _Side:
    trained = has_time_axis(solution.models, solution.final)
    leaves = jtu.tree_leaves(solution.models)
    leaves = [leaf for leaf, timed in zip(leaves, trained, strict=True) if timed]
    return _Side(solution.log_t, leaves, solution.predictions)


def _check_shapes(flow: _Side, descent: _Side) -> None:
    def shapes(side):
        skipped = side.log_t.ndim
        return [leaf.shape[skipped:] for leaf in [*side.leaves, side.predictions]]

    if shapes(flow) != shapes(descent):
        raise ValueError(
            "flow and descent are not of the same model and data: their trained arrays "
            f"and predictions have shapes {shapes(flow)} and {shapes(descent)}."
        )


def _slack(log_t: Float[Array, "..."], dtype: Any) -> Float[Array, "..."]:
    # How far apart the logarithms of equal times may be.
    eps = max(float(jnp.finfo(log_t.dtype).eps), float(jnp.finfo(dtype).eps))
    return _ROUNDINGS * eps * jnp.maximum(1, jnp.abs(log_t))


@eqx.filter_jit
def _matches(flow: _Side, descent: _Side):
    return _lanewise(_matched, flow, descent)


@eqx.filter_jit
def _measured(flow, descent, slots, found, kept, solution: Solution) -> Comparison:
    """The distances, at the flow's times `kept`."""

    def at_kept(x):
        return jnp.take(x, kept, axis=flow.log_t.ndim - 1)

    slots, found = slots[..., kept], found[..., kept]
    flow = jtu.tree_map(at_kept, flow)
    distances = _lanewise(_distances, flow, descent, slots, found)
    log_t = jnp.broadcast_to(flow.log_t, found.shape)
    reached = solution.log_t_final.astype(log_t.dtype)
    reached = reached + _slack(reached, solution.log_t_final.dtype)
    early = jnp.any(log_t > reached[..., None], axis=-1)
    return Comparison(
        log_t,
        *distances,
        step_sizes=solution.stats["step_size"],
        diverged=early & (solution.result != RESULTS.successful),
    )


def _lanewise(function, flow: _Side, descent: _Side, *rest):
    if descent.log_t.ndim == 1:
        return function(flow, descent, *rest)
    axis = eqx.if_array(0) if flow.log_t.ndim == 2 else None
    in_axes = (axis, eqx.if_array(0), *(0 for _ in rest))
    return eqx.filter_vmap(function, in_axes=in_axes)(flow, descent, *rest)


def _matched(
    flow: _Side, descent: _Side
) -> tuple[Int[Array, " times"], Bool[Array, " times"]]:
    """The descent's slot that is nearest to each time, and whether it is that time."""
    log_t = flow.log_t
    # In order, with NaN (which sorts last) in the slots that were not reached.
    saved = descent.log_t.astype(log_t.dtype)
    after = jnp.searchsorted(saved, log_t)
    candidates = jnp.stack([after - 1, after]).clip(0, saved.shape[0] - 1)
    # Equal infinities have no difference.
    exact = saved[candidates] == log_t[None]
    gap = jnp.where(exact, 0, jnp.abs(saved[candidates] - log_t[None]))
    gap = jnp.where(jnp.isnan(gap), jnp.inf, gap)
    nearest = jnp.argmin(gap, axis=0)
    slots = jnp.take_along_axis(candidates, nearest[None], axis=0)[0]
    found = jnp.min(gap, axis=0) <= _slack(log_t, descent.log_t.dtype)
    return slots, found & ~jnp.isnan(log_t)


def _kept(found: np.ndarray, log_t: np.ndarray, saved: Any) -> np.ndarray:
    # The flow's slots that any lane has, or an error if that is the start at most.
    if not np.any(found & ~np.isneginf(log_t)):
        times = "descent.log_t"
        if saved.ndim == 2:
            times = "numpy.unique(descent.log_t[~numpy.isnan(descent.log_t)])"
        raise ValueError(
            "flow and descent have no saved time in common after the start; integrate "
            f"the flow with save_at=gflow.exp({times}), or give both the same "
            "save_at= times, multiples of the step size."
        )
    return np.flatnonzero(found if found.ndim == 1 else found.any(axis=0))


def _distances(flow: _Side, descent: _Side, slots, found):
    # In parameters, relative, and in function; for one lane.
    def apart(a, b):
        dtype = jnp.promote_types(a.dtype, b.dtype)
        return a.astype(dtype) - b[slots].astype(dtype)

    difference = [
        apart(*pair) for pair in zip(flow.leaves, descent.leaves, strict=True)
    ]
    log_distance = jax.vmap(log_norm)(difference)
    log_size = jax.vmap(log_norm)(flow.leaves).astype(log_distance.dtype)
    outputs = apart(flow.predictions, descent.predictions)
    examples = math.sqrt(outputs.shape[1])
    measured = (
        jnp.exp(log_distance),
        jnp.exp(log_distance - log_size),
        jnp.exp(jax.vmap(log_norm)(outputs)) / examples,
    )
    return tuple(jnp.where(found, one, jnp.nan) for one in measured)
