"""Integrators from outside of JAX, driven by a compiled gradient: CVODE and SciPy's.

Gradients are counted where they are evaluated, so that rejected steps, Newton
iterations and difference quotients are all in the count. A Jacobian-vector product
counts two.
"""

import dataclasses
import time

import jax
import jax.flatten_util
import numpy as np
import scipy.integrate
from _problems import Flow


try:
    import sksundae
except ImportError:
    sksundae = None


MISSING = (
    "CVODE needs scikit-sundae: python -m pip install scikit-sundae (or the extra "
    "gflow[bench]); without it, leave CVODE out of --solvers"
)
TOO_MANY = "more gradients than allowed"
DENSE = "its Jacobian is dense"
MOST_DENSE = 2000  # weights


@dataclasses.dataclass(frozen=True)
class Run:
    """What a solve cost and where it went; `path` is (times, weights), or None."""

    gradients: int
    seconds: float
    path: np.ndarray | None
    note: str = ""


class TooMany(Exception):
    """The solve has used up its gradients."""


class Counter:
    """The compiled field of a flow on NumPy vectors, with an account of its use."""

    def __init__(self, flow: Flow, most: int):
        velocity = flow.velocity()
        self._field = jax.jit(velocity)
        self._product = jax.jit(lambda w, v: jax.jvp(velocity, (w,), (v,))[1])
        self._most = most
        self.spent = 0
        self.field(flow.start), self.product(flow.start, flow.start)  # compile
        self.spent = 0

    def _bill(self, gradients):
        self.spent += gradients
        if self.spent > self._most:
            raise TooMany

    def field(self, w):
        self._bill(1)
        return np.asarray(self._field(w))

    def product(self, w, v):
        self._bill(2)
        return np.asarray(self._product(w, v))


def floor(flow: Flow, rtol: float) -> float:
    """The absolute tolerance: `rtol` of the initial weights' root mean square."""
    return rtol * float(np.sqrt(np.mean(flow.start**2)))


def cvode(
    flow: Flow, rtol: float, most: int, *, exact=True, krylov=20, atol=None
) -> Run:
    """SUNDIALS CVODE: BDF of order 1 to 5 with GMRES.

    `exact`: Jacobian-vector products by `jax.jvp`, each two gradients, or SUNDIALS's
    difference quotients, each one. `atol`: None for `floor`.
    """
    if sksundae is None:
        raise SystemExit(MISSING)
    counter = Counter(flow, most)
    failed: list[BaseException] = []

    def guarded(function, out, *arguments):
        try:
            out[:] = function(*arguments)
        except Exception as error:  # SUNDIALS calls back through C
            failed.append(error)
            out[:] = np.nan

    options = {}
    if exact:
        options["jactimes"] = sksundae.cvode.CVODEJacTimes(
            None, lambda t, y, yp, v, jv: guarded(counter.product, jv, y, v)
        )
    solver = sksundae.cvode.CVODE(
        lambda t, y, yp: guarded(counter.field, yp, y),
        method="BDF",
        rtol=rtol,
        atol=floor(flow, rtol) if atol is None else atol,
        linsolver="gmres",
        krylov_dim=krylov,
        max_num_steps=10**7,
        **options,
    )
    start = time.perf_counter()
    solution = solver.solve(np.concatenate([[0.0], flow.times]), flow.start.copy())
    seconds = time.perf_counter() - start
    if failed or not solution.success or len(solution.t) != len(flow.times) + 1:
        note = TOO_MANY if failed else str(solution.message)
        return Run(counter.spent, seconds, None, note)
    return Run(counter.spent, seconds, np.array(solution.y[1:]))


def scipy_method(method: str, atol: float | None = None):
    """One of SciPy's methods, Jacobians dense and by difference quotients."""

    def run(flow: Flow, rtol: float, most: int) -> Run:
        if flow.size > MOST_DENSE:
            return Run(0, 0.0, None, DENSE)
        counter = Counter(flow, most)
        start = time.perf_counter()
        try:
            solution = scipy.integrate.solve_ivp(
                lambda t, y: counter.field(y),
                (0.0, flow.end),
                flow.start,
                method=method,
                t_eval=flow.times,
                rtol=rtol,
                atol=floor(flow, rtol) if atol is None else atol,
            )
        except TooMany:
            return Run(counter.spent, time.perf_counter() - start, None, TOO_MANY)
        seconds = time.perf_counter() - start
        if not solution.success or len(solution.t) != len(flow.times):
            return Run(counter.spent, seconds, None, str(solution.message))
        return Run(counter.spent, seconds, solution.y.T.copy())

    return run


def call_overhead(flow: Flow, count: int = 200) -> tuple[float, float]:
    """Seconds per gradient called from NumPy, and in one compiled loop."""
    counter = Counter(flow, 10**9)
    velocity = flow.velocity()

    @jax.jit
    def loop(w, scale):
        return jax.lax.fori_loop(0, count, lambda _, w: w + scale * velocity(w), w)

    jax.block_until_ready(loop(flow.start, 1e-9))
    times: list[list[float]] = [[], []]
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(count):
            counter.field(flow.start)
        middle = time.perf_counter()
        jax.block_until_ready(loop(flow.start, 1e-9))
        times[0].append((middle - start) / count)
        times[1].append((time.perf_counter() - middle) / count)
    return float(np.median(times[0])), float(np.median(times[1]))
