"""From saddle to saddle: which solvers end at the interpolator of least ℓ¹-norm.

    python benchmarks/saddles.py > benchmarks/saddles.txt

A diagonal network x ↦ ⟨u∘u - v∘v, x⟩ on fewer examples than inputs, from u = v = 1e-60
in every entry, rests at one saddle after another and ends at the interpolator of least
ℓ¹-norm, which a linear programme finds. What decides the way is how entries that are
still near 1e-60 grow, so a solver whose absolute tolerance is above them stays at the
first saddle, rests at another one, or ends at another interpolator, without any
warning. (Ending at the right one does not mean that the way was right: see the path
errors of work_precision.py.) Float64; gradients of the full data, those of difference
quotients one each.
"""

import dataclasses

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import scipy
from _inside import integrated
from _machine import print_machine
from _outside import cvode, scipy_method, sksundae
from _problems import Flow, diagonal
from _references import diagonal_in_logarithms
from scipy.optimize import linprog

import gflow


MOST = 1_000_000  # gradients
NEAR = 1e-2  # relative, of the residual and of the distance


def least_norm(flow: Flow) -> np.ndarray:
    """argmin ‖w‖₁ subject to X w = y: p - q, p and q ≥ 0 of least sum."""
    x, y = (np.asarray(array) for array in flow.data)
    d = x.shape[1]
    found = linprog(np.ones(2 * d), A_eq=np.hstack([x, -x]), b_eq=y, method="highs")
    return found.x[:d] - found.x[d:]


def diffrax_tsit5(flow: Flow, rtol: float, atol: float):
    velocity = flow.velocity()
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, w, args: velocity(w)),
        diffrax.Tsit5(),
        0.0,
        flow.end,
        None,
        jnp.asarray(flow.start),
        stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol),
        max_steps=MOST // 6,
        throw=False,
    )
    assert solution.ys is not None
    return 6 * int(solution.stats["num_steps"]), np.asarray(solution.ys[-1])


def verdict(flow: Flow, weights, target: np.ndarray) -> str:
    if weights is None:
        return "did not finish"
    x, y = (np.asarray(array) for array in flow.data)
    u, v = np.split(weights, 2)
    w = u * u - v * v
    residual = np.linalg.norm(x @ w - y) / np.linalg.norm(y)
    distance = np.linalg.norm(w - target) / np.linalg.norm(target)
    norm = np.sum(np.abs(w)) / np.sum(np.abs(target))
    if not np.isfinite(residual):
        word = "not finite"
    elif residual > NEAR:
        word = "NO INTERPOLATOR"
    else:
        word = "least norm" if distance < NEAR else "ANOTHER INTERPOLATOR"
    return f"{residual:9.1e} {norm:10.6f} {distance:9.1e}  {word}"


def main():
    jax.config.update("jax_enable_x64", True)
    # Small programs run sooner where they are called.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    print_machine()
    print(f"          scipy {scipy.__version__}")
    compare(diagonal(end=3e3))
    for seed in (0, 2):
        compare(diagonal(end=1e3, d=15, n=5, sparse=False, seed=seed))


def compare(whole: Flow):
    flow = dataclasses.replace(whole, times=np.array([0.9 * whole.end, whole.end]))
    target = least_norm(flow)
    n, d = flow.data[0].shape
    print(
        f"\n{flow.title}: {n} examples, {d} inputs; the interpolator of least norm has "
        f"{np.sum(np.abs(target) > 1e-9)} entries\n"
    )
    print(
        f"{'':26} {'rtol':>7} {'atol':>7} {'gradients':>9} {'residual':>9} "
        f"{'norm ratio':>10} {'distance':>9}"
    )

    def row(name, rtol, atol, gradients, weights):
        print(
            f"{name:26} {rtol:7.0e} {atol:7.0e} {gradients:9} "
            f"{verdict(flow, weights, target)}",
            flush=True,
        )

    path = diagonal_in_logarithms(flow)
    assert path is not None
    row("DOP853 on log u", 1e-13, 1e-13, 0, path[-1])
    for name, solver in (
        ("gflow.integrate", None),
        ("gflow.integrate, BDF", gflow.solvers.BDF()),
        ("gflow.integrate, Tsit5", diffrax.Tsit5()),
        ("gflow.integrate, Dopri8", diffrax.Dopri8()),
        ("gflow.integrate, RKC2", gflow.solvers.RKC2()),
        ("gflow.integrate, RKC3", gflow.solvers.RKC3()),
    ):
        for rtol in (1e-4, 1e-6):
            run = integrated(solver)(flow, rtol, MOST)
            weights = None if run.path is None else run.path[-1]
            row(name, rtol, 0.0, run.gradients, weights)
    pairs = (1e-3, 1e-6), (1e-8, 1e-12), (1e-6, 1e-30), (1e-6, 1e-60), (1e-6, 1e-66)
    for rtol, atol in pairs:
        row("Diffrax Tsit5", rtol, atol, *diffrax_tsit5(flow, rtol, atol))
    for method in ("LSODA", "BDF", "Radau"):
        for rtol, atol in pairs:
            run = scipy_method(method, atol=atol)(flow, rtol, MOST)
            weights = None if run.path is None else run.path[-1]
            row(f"SciPy {method}", rtol, atol, run.gradients, weights)
    if sksundae is None:
        print("CVODE is left out: python -m pip install scikit-sundae")
        return
    for rtol, atol in pairs:
        run = cvode(flow, rtol, MOST, exact=False, atol=atol)
        weights = None if run.path is None else run.path[-1]
        row("CVODE, GMRES", rtol, atol, run.gradients, weights)


if __name__ == "__main__":
    main()
