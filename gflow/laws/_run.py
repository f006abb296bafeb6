"""What the laws are confronted with: a solution, and gradients at its saved models."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Float

from .._check import Degree, checked_problem
from .._motion import GRADIENT_FLOWS
from .._norms import angle, log_norm
from .._problem import Problem, dtype_of, like_params
from .._saved import has_time_axis
from .._solution import Solution
from .._times import is_concrete
from .._types import Params, Scalar
from ..losses import AbstractTailedLoss
from ._symmetries import Symmetries


# A law that is off by one percent does not hold, whatever tolerance was asked for.
_LOOSEST = 1e-2
# In units of eps: sums over examples, weights and steps.
_ROUNDING = 1e3


class Measured(eqx.Module):
    """At the saved models, with leading axis T."""

    log_loss: Float[Array, " times"]
    loss: Float[Array, " times"]
    log_norm: Float[Array, " times"]
    layer_log_norms: Float[Array, "times layers"]
    outputs: Float[Array, "times examples ..."]
    log_grad_norm: Float[Array, " times"]
    alignment: Float[Array, " times"]
    # ⟨W, ∇f_i⟩, for Euler's theorem.
    radial: Float[Array, "times examples ..."]
    # Angle from one saved model to the next, 0 for the first.
    turned: Float[Array, " times"]
    # NaN without an exponential tail.
    alpha: Float[Array, " times"]
    beta: Float[Array, " times"]


class Run:
    """A solution with all that the laws ask of it, as NumPy arrays over T points.

    T are the saved points that were reached.
    """

    def __init__(
        self,
        solution: Any,
        data: Any,
        loss: Any,
        *,
        rtol: float | int | None,
        degree: float | int | None,
        limit: Any,
        other: Any,
    ):
        self.solution = solution
        self.problem, self._final = problem_of(solution, data, loss)
        self.params = _reached(solution, self.problem)
        self.reached = np.isfinite(np.asarray(solution.log_norm))
        self.is_descent = solution.clock == "steps"
        self.limit = solution.limit if limit is None else limit
        self.other = other
        self.eps = float(jnp.finfo(dtype_of(self._final)).eps)
        self.rtol = _rtol(solution) if rtol is None else float(rtol)
        self._degree = degree
        self.measured = _measured(self.problem, self.params)
        self.symmetries = Symmetries(self.problem, self._final)

    def __len__(self) -> int:
        return int(self.reached.sum())

    def saved(self, name: str) -> np.ndarray | None:
        """An array of the solution at the reached points."""
        found = getattr(self.solution, name)
        return None if found is None else _double(found)[self.reached]

    def observed(self, name: str) -> np.ndarray | None:
        """What the solve observed, if it did, as an array over the reached points."""
        found = self.solution.observed.get(name)
        if not isinstance(found, jax.Array) or found.shape[:1] != self.reached.shape:
            return None
        return _double(found)[self.reached]

    def __getattr__(self, name: str) -> np.ndarray:
        # What was measured at the models.
        if name.startswith("_") or name not in Measured.__dataclass_fields__:
            raise AttributeError(name)
        return _double(getattr(self.measured, name))

    @functools.cached_property
    def log_t(self) -> np.ndarray:
        return _double(self.solution.log_t)[self.reached]

    def tolerance(self, factor: float) -> float:
        """`factor` times the solve's rtol, above rounding and below one percent."""
        rounding = _ROUNDING * self.eps
        return max(min(factor * self.rtol, _LOOSEST), rounding)

    @functools.cached_property
    def _measured_degree(self) -> tuple[float | None, str]:
        if self._degree is not None:
            return float(self._degree), ""
        try:
            return Degree(self.problem, self._final).needed_by("this law"), ""
        except ValueError as error:
            known = "is not positively homogeneous" in str(error)
            return None, (
                "the model is not positively homogeneous"
                if known
                else "the model's degree of homogeneity cannot be measured"
            )

    @property
    def degree(self) -> float | None:
        """L; None if the model is not homogeneous."""
        return self._measured_degree[0]

    @property
    def why_no_degree(self) -> str:
        return self._measured_degree[1]

    @property
    def is_smooth(self) -> bool:
        return self.solution.kinks == "none"

    @functools.cached_property
    def separated_from(self) -> int | None:
        """The first point with ℒ < ℓ(0), that is α > 0."""
        (found,) = np.nonzero(self.alpha > 0)
        return int(found[0]) if found.size else None


def _double(x: Any) -> np.ndarray:
    return np.asarray(x, np.float64)


def _rtol(solution: Solution) -> float:
    rtol = float(solution.rtol)
    # A descent has no tolerance of its own: it is asked to be the flow to 1e-3.
    return rtol if np.isfinite(rtol) else 1e-3


def problem_of(solution: Any, data: Any, loss: Any) -> tuple[Problem, Params]:
    """The problem that was solved and the final parameters, or a ValueError."""
    if not isinstance(solution, Solution):
        raise ValueError(f"{type(solution).__name__} is not a gflow.Solution.")
    if not is_concrete(solution):
        raise ValueError(
            "the solution is being traced, and laws are judged by its numbers; call "
            "gflow.laws.check outside of jit and vmap."
        )
    if solution.log_t.ndim != 1:
        raise ValueError(
            f"the solution has leading axes {solution.log_t.shape[:-1]} and a law is "
            "one of a single flow; pick a lane, as in jax.tree.map(lambda leaf: "
            "leaf[0], eqx.filter(solution, eqx.is_array)) combined with the rest, or "
            "integrate that one alone."
        )
    if solution.flow not in GRADIENT_FLOWS:
        raise ValueError(
            f"the laws are those of the gradient flow, and this is a solution of the "
            f"flow {solution.flow}; its own balance is solution.energy_defect."
        )
    if isinstance(solution.final, dict):
        raise ValueError(
            "the solution was loaded without its model; use gflow.load(path, model)."
        )
    flags = has_time_axis(solution.models, solution.final)
    structure = jtu.tree_structure(solution.final)
    problem, params = checked_problem(
        solution.final, data, loss, jtu.tree_unflatten(structure, flags)
    )
    if problem.num_examples != solution.predictions.shape[1]:
        raise ValueError(
            f"the data have {problem.num_examples} examples, but the solution was "
            f"computed with {solution.predictions.shape[1]}; pass the same data."
        )
    reached = int(np.isfinite(np.asarray(solution.log_norm)).sum())
    if reached < 2:
        raise ValueError(
            f"the solution reached {reached} saved times with weights other than zero; "
            "laws compare at least two."
        )
    return problem, params


def _reached(solution: Solution, problem: Problem) -> Params:
    rows = jnp.asarray(np.flatnonzero(np.isfinite(np.asarray(solution.log_norm))))
    params = like_params(solution.models, problem)
    return jtu.tree_map(lambda w: w[rows], params)


@eqx.filter_jit
def _measured(problem: Problem, params: Params) -> Measured:
    first = jtu.tree_map(lambda w: w[:1], params)
    before = jtu.tree_map(
        lambda a, w: jnp.concatenate([a, w[:-1]], axis=0), first, params
    )

    def look(pair):
        w, previous = pair
        at = problem.gradient(w)
        outputs, radial = jax.jvp(problem.outputs, (w,), (w,))
        alpha, beta = _alpha_beta(problem, at.log_loss, at.log_slope, outputs)
        return dict(
            log_loss=at.log_loss,
            loss=at.loss,
            log_norm=log_norm(w),
            layer_log_norms=jnp.stack([log_norm(leaf) for leaf in _alike(w)]),
            outputs=outputs,
            log_grad_norm=at.log_slope + log_norm(at.direction),
            alignment=angle(w, at.direction),
            radial=radial,
            turned=angle(w, previous),
            alpha=alpha,
            beta=beta,
        )

    return Measured(**jax.lax.map(look, (params, before)))


def _alike(params: Params) -> list[Array]:
    dtype = dtype_of(params)
    return [leaf.astype(dtype) for leaf in jtu.tree_leaves(params)]


def _alpha_beta(
    problem: Problem, log_loss: Scalar, log_slope: Scalar, outputs: Array
) -> tuple[Scalar, Scalar]:
    # As `observe.beta` has it: β = Σ q_i p_i.
    loss, n = problem.loss, problem.num_examples
    if not isinstance(loss, AbstractTailedLoss):
        nan = jnp.full_like(log_loss, jnp.nan)
        return nan, nan
    pairs = loss.pairs(outputs, problem.y)
    weights = loss.log_pair_slopes(pairs) + loss.log_reduction(n) - log_slope
    return loss.alpha(log_loss, n), jnp.sum(jnp.exp(weights) * pairs)
