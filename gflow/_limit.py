"""limit(): where the flow's direction goes as t → ∞."""

import math
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np

from ._branches import UnsupportedKink
from ._check import Degree, checked_problem
from ._flat import flatten, unflattener
from ._frozen import frozen
from ._pairs import tailed
from ._problem import Problem
from ._saved import has_time_axis
from ._solution import Solution
from ._times import is_concrete
from ._types import Params
from .limits._evidence import distances, fit_rate, saved_directions
from .limits._flat import Flat
from .limits._judge import Judge
from .limits._newton import Point
from .limits._patterns import pattern_at, search_patterns
from .limits._pinned import Pinned
from .limits._result import CERTIFICATE as CERTIFICATE
from .limits._result import SECOND_ORDER as SECOND_ORDER
from .limits._result import Evidence as Evidence
from .limits._result import Limit as Limit
from .limits._result import code_of
from .limits._search import search


# Up to this many parameters the KKT matrix is formed and factorised.
_DENSE = 1000
# The fitted rate must be at least this part of the predicted one, and that at least so
# large that saved times can show it: (log t)^-0.05 halves in 6 decades of log t.
_RATE, _SLOWEST = 0.5, 0.05
# The flow's last direction must be this near, ‖θ - θ̄‖.
_NEAR = 0.35


def limit(
    solution_or_model: Any,
    data: Any,
    loss: Any,
    *,
    filter_spec: Any = None,
    tol: float | int | None = None,
    method: str = "auto",
) -> Limit:
    r"""The limit of the flow's direction W/‖W‖ as t → ∞, with a certificate.

    For a homogeneous model and a loss with an exponential tail, once the data are
    separated the direction converges to a KKT point θ̄ of

    $$\max_{\|\theta\|=1}\ \min_m p_m(\theta).$$

    It is not reached by integrating (the distance falls like a power of log t), but
    from a late state it is found by Newton's method on

    $$W=\sum_{m\in S}\lambda_m\nabla p_m(W),\quad p_m(W)=1\ (m\in S),\quad
    \lambda\ge0,\quad p_m(W)>1\ (m\notin S),$$

    and then judged: is it a KKT point, to rounding; is it a local maximum of the
    margin; and does this flow approach it.

    With kinks (ReLU) θ̄ may lie on some of them, $z_k(\bar\theta)=0$, along which the
    flow slides; ∇p_m is then an element of Clarke's subdifferential, by a share
    $s_k\in[0,1]$ of the upper branch of each. These equations and their multipliers
    join the system, and θ̄ is a local maximum only if the margin is concave across these
    kinks. The search begins with the pinned kinks of the solution or, of a model on its
    own, those at zero. Shares in [0, 1] are Clarke's subdifferential, except for kinks
    in series (one feeds another) and where normals depend on each other (a rank
    condition): then `kinks_exact` is false, and the limit is not certified.

    **Arguments:**

    - `solution_or_model`: a [`gflow.Solution`][] (its `final` is where the search
        starts, its `models` are the evidence), or a model that separates the data. Of
        a model alone, whether its flow goes to this limit is not asked.
    - `data`, `loss`: as for [`gflow.integrate`][].
    - `filter_spec`: which leaves are the parameters, as in [`gflow.integrate`][].
        Default, of a solution: those that it trained.
    - `tol`: what `kkt_residual` must reach. Default the 2/3 power of the spacing of
        floats: 3.7e-11 in float64, 2.4e-5 in float32.
    - `method`: of the linear algebra: `"dense"` forms matrices of P × P, `"krylov"`
        needs products with them only, `"auto"` (default) is dense up to 1000
        parameters.

    **Returns:**

    A `Limit`. Look at `certified` and `reason`: what could not be certified is
    returned as well.

    **Raises:**

    `ValueError` for a model that is not homogeneous, a loss without an exponential
    tail, data that the model does not separate, or arrays that are being traced (the
    support is decided outside of `jit`).

    Examples:
        >>> import gflow, jax, jax.numpy as jnp
        >>> x = jnp.array([[2.0, 1.0], [-1.0, 0.0]])
        >>> y = jnp.array([1.0, -1.0])
        >>> model = gflow.nn.Linear(2, "scalar", key=jax.random.key(0))
        >>> times = gflow.exp(jnp.linspace(1.0, 100.0, 20))
        >>> loss = gflow.losses.Exponential()
        >>> sol = gflow.integrate(
        ...     model, (x, y), loss, (0.0, gflow.exp(100.0)), save_at=times
        ... )
        >>> found = gflow.limit(sol, (x, y), loss)
        >>> bool(found.certified), round(float(found.margin), 3)
        (True, 1.0)

    ??? cite "Reference"

        Lyu and Li (2019), "Gradient descent maximizes the margin of homogeneous neural
        networks", Theorem 4.4, arXiv:1906.05890; Ji and Telgarsky (2020), "Directional
        convergence and alignment in deep learning", Theorems 3.1 and 4.1,
        arXiv:2006.06657.
    """
    if method not in ("auto", "dense", "krylov"):
        raise ValueError(
            f"method={method!r} is not known; use 'auto', 'dense' or 'krylov'."
        )
    if tol is not None and not 0 < tol < 1:
        raise ValueError(f"tol={tol} must be between 0 and 1; the default is None.")
    solution = solution_or_model if isinstance(solution_or_model, Solution) else None
    model = solution_or_model if solution is None else solution.final
    _check_concrete(solution_or_model, data, solution)
    if solution is not None and filter_spec is None:
        filter_spec = _trained(solution)
    problem, params = checked_problem(model, data, loss, filter_spec)
    degree = _degree(problem, params)
    w = _vector(params)
    largest = np.max(np.abs(w))
    smoothed = _smoothed_margin(problem, params, degree)
    w = w / (largest if largest > 0 else 1.0)
    w /= np.linalg.norm(w) if largest > 0 else 1.0
    unit = float(np.min(Flat(problem, params, degree, 1.0).margins(w)))
    if not unit > 0:
        raise ValueError(
            f"the model does not separate the data: its smallest margin is {unit:.3g} "
            "at unit norm, so there is no limit of this kind yet. Integrate to a later "
            "time (integrate with gflow.exp(100.0), say), or use a model that can fit "
            "every example."
        )
    flat = Flat(problem, params, degree, unit)
    tolerance = flat.eps ** (2 / 3) if tol is None else float(tol)
    dense = method == "dense" or (method == "auto" and flat.size <= _DENSE)
    floor = max(smoothed / unit, 0.0) * (1 - 1e3 * flat.eps)
    judge, point = _searched(problem, flat, w, solution, tolerance, floor, dense)
    verdict = judge.judge(point)
    evidence = _evidence(solution, w, verdict, filter_spec, smoothed, degree, flat.eps)
    reason = verdict.reason(judge.flat, tolerance, floor)
    if reason is CERTIFICATE.certified and solution is not None:
        reason = _approached(evidence)
    at = verdict.kkt
    dtype = flat.dtype

    def scalar(x):
        return jnp.asarray(x, dtype)

    def integer(x):
        return jnp.asarray(x, jnp.int32)

    theta = unflattener(params)(jnp.asarray(at.theta, dtype))
    kinks, on = verdict.kinks, judge.flat
    pins = on.pattern.pins if isinstance(on, Pinned) else np.zeros(0, int)
    shares = np.full(len(pins), np.nan) if kinks is None else kinks.shares
    return Limit(
        direction=eqx.combine(theta, problem.static),
        degree=scalar(degree),
        margin=scalar(at.margin * unit),
        support=jnp.asarray(at.support),
        multipliers=scalar(at.multipliers),
        rank=integer(at.rank),
        kkt_residual=scalar(at.residual),
        slack=scalar(at.slack),
        curvature=scalar(verdict.top),
        zero_modes=integer(verdict.zero_modes),
        growing_modes=integer(verdict.growing_modes),
        second_order_code=code_of(verdict.second_order),
        reason_code=code_of(reason),
        kinks=integer(pins),
        kink_multipliers=scalar(shares),
        kink_slack=scalar(math.inf if kinks is None else kinks.slack),
        kink_room=scalar(math.inf if kinks is None else kinks.room),
        vanishing_kinks=integer(0 if kinks is None else kinks.num_vanishing),
        kinks_exact=jnp.asarray(kinks is None or kinks.exact),
        evidence=evidence,
        tolerance=scalar(tolerance),
        support_tolerance=scalar(judge.support_tolerance),
    )


def _check_concrete(given: Any, data: Any, solution: Solution | None) -> None:
    if not is_concrete((given, data)):
        raise ValueError(
            "limit() was called on arrays that are being traced by jit, vmap or grad; "
            "it decides which examples are support vectors from their values. Call it "
            "outside, on one solution at a time."
        )
    if solution is not None and solution.log_t.ndim != 1:
        raise ValueError(
            f"the solution has {solution.log_t.ndim - 1} leading axes (it came out of "
            "vmap); pass one lane at a time, jax.tree.map(lambda a: a[0], solution)."
        )
    if solution is not None and isinstance(solution.final, dict):
        raise ValueError(
            "the solution was loaded without its model; use gflow.load(path, model)."
        )


def _searched(
    problem: Problem,
    flat: Flat,
    w: np.ndarray,
    solution: Solution | None,
    tolerance: float,
    floor: float,
    dense: bool,
) -> tuple[Judge, Point]:
    """The search's last point and its judge, on a pattern of kinks if there are any."""
    like = flat.like
    options = {"tolerance": tolerance, "floor": floor, "dense": dense}
    try:
        found = frozen(problem, like)
    except UnsupportedKink:
        found = None
    if found is None:
        judge = Judge(flat, w, tolerance, dense)
        return judge, search(flat, w, **options, accept=judge.accept)[0]
    pins = None
    if solution is not None and solution.inclusion is not None:
        # Of the last saved time, if that is where the solve ended, to rounding.
        ends = float(solution.log_t[-1]), float(solution.log_t_final)
        if math.isclose(*ends, rel_tol=64 * flat.eps, abs_tol=64 * flat.eps):
            pins = solution.inclusion.pins[-1]
    pattern = pattern_at(found, like, w, pins)
    on = Pinned(found, like, flat.degree, flat.unit, pattern, w)
    return search_patterns(on, w, **options)


def _degree(problem: Problem, params: Params) -> float:
    if not problem.is_tailed:
        raise ValueError(
            f"the loss {type(problem.loss).__name__} has no exponential tail, so the "
            "flow does not maximise a margin; use Exponential, Logistic, CrossEntropy "
            "or MulticlassExponential."
        )
    degree = Degree(problem, params).needed_by("the limit")
    if not degree > 0:
        raise ValueError(
            f"the model has degree {degree} in its weights; a limit needs L > 0."
        )
    return degree


def _smoothed_margin(problem: Problem, params: Params, degree: float) -> float:
    log_loss = eqx.filter_jit(lambda q, w: q.log_loss(w))(problem, params)
    alpha = float(tailed(problem).alpha(log_loss, problem.num_examples))
    norm = float(np.linalg.norm(_vector(params)))
    # Only below ℓ(0), where ‖W‖ grows, is it known not to decrease.
    return alpha / norm**degree if alpha > 0 else -math.inf


def _evidence(solution, w, verdict, filter_spec, smoothed, degree, eps) -> Evidence:
    theta = verdict.kkt.theta
    dtype = jnp.float64 if eps < 1e-10 else jnp.float32
    angle = 2 * math.atan2(np.linalg.norm(w - theta), np.linalg.norm(w + theta))
    rate = predicted = math.nan
    log_t, distance = np.full(1, np.nan), np.full(1, np.nan)
    slowest = verdict.slowest
    predicted = min(-slowest / degree, 1.0)
    if solution is not None:
        log_t = np.asarray(solution.log_t, np.float64)
        late = np.isfinite(log_t) & (log_t > 0)
        params = eqx.partition(solution.models, filter_spec)[0]
        rows = saved_directions(params)[late]
        log_t = log_t[late]
        distance = distances(rows, theta)
        # Along a manifold of limits the point of it was chosen by the last state, so
        # the distances close to that are too small.
        before_end = 2.0 if verdict.zero_modes != 0 else 1.0
        rate = fit_rate(log_t, distance, rounding=100 * eps, before_end=before_end)
    return Evidence(
        log_t=jnp.asarray(log_t, dtype),
        distance=jnp.asarray(distance, dtype),
        angle=jnp.asarray(angle, dtype),
        rate=jnp.asarray(rate, dtype),
        predicted_rate=jnp.asarray(predicted, dtype),
        smoothed_margin=jnp.asarray(smoothed, dtype),
    )


def _trained(solution: Solution) -> Any:
    # Frozen NumPy arrays come out of a solve as JAX arrays: what was trained is known
    # by its axis of times.
    flags = has_time_axis(solution.models, solution.final)
    return jtu.tree_unflatten(jtu.tree_structure(solution.final), flags)


def _vector(params: Params) -> np.ndarray:
    return np.asarray(flatten(params), np.float64)


def _approached(evidence: Evidence) -> Any:
    predicted = float(evidence.predicted_rate)
    if not math.isfinite(evidence.rate):
        return CERTIFICATE.no_evidence
    if float(evidence.rate) < _RATE * predicted or float(evidence.angle) > _NEAR:
        return CERTIFICATE.not_approached
    if predicted < _SLOWEST:
        return CERTIFICATE.too_slow
    return CERTIFICATE.certified
