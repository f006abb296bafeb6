"""The paths that errors are measured against, by two methods each."""

import hashlib
import pathlib

import diffrax
import numpy as np
import scipy.integrate
from _inside import integrated, stability_gradients
from _outside import cvode, sksundae
from _problems import Diagonal, Flow

import gflow


OUTPUT = pathlib.Path(__file__).parent / "output"
MOST = 400_000  # gradients of Dopri8


def path_error(path: np.ndarray, reference: np.ndarray) -> float:
    """The largest over the times of ‖W - W*‖/‖W*‖."""
    size = np.linalg.norm(reference, axis=1)
    return float(np.max(np.linalg.norm(path - reference, axis=1) / size))


def reference(flow: Flow) -> tuple[np.ndarray, float]:
    """The path at `flow.times`, and how far a second method is from it.

    The first two of: DOP853 on log u, if the network is diagonal; Dopri8 at rtol 1e-12,
    unless that is too much; CVODE at 1e-12 with exact products; RKC3 at 1e-9. Kept in
    `benchmarks/output`, under a name that changes with the problem.
    """
    digest = hashlib.sha256(flow.start.tobytes() + flow.times.tobytes())
    for array in flow.data:
        digest.update(np.asarray(array).tobytes())
    file = OUTPUT / f"reference_{flow.name}_{digest.hexdigest()[:12]}.npz"
    if file.exists():
        kept = np.load(file)
        return kept["path"], float(kept["agreement"])
    paths = []
    for solve in (
        diagonal_in_logarithms,
        dopri8,
        lambda flow: cvode(flow, 1e-12, 10**7).path if sksundae else None,
        lambda flow: integrated(gflow.solvers.RKC3())(flow, 1e-9, 10**7).path,
    ):
        if len(paths) < 2:
            path = solve(flow)
            paths += [] if path is None else [path]
    path, agreement = paths[0], path_error(paths[1], paths[0])
    OUTPUT.mkdir(exist_ok=True)
    np.savez(file, times=flow.times, path=path, agreement=agreement)
    return path, agreement


def dopri8(flow: Flow) -> np.ndarray | None:
    """None where stability would ask for too many gradients."""
    if stability_gradients(flow) > MOST:
        return None
    return integrated(diffrax.Dopri8())(flow, 1e-12, MOST).path


def diagonal_in_logarithms(flow: Flow) -> np.ndarray | None:
    """The diagonal network's flow in z = log u: u v is conserved, so v = u(0)²/u.

    z' = -2 xᵀ(x (u² - v²) - y): no number is large or small.
    """
    if not isinstance(flow.model, Diagonal):
        return None
    x, y = (np.asarray(array) for array in flow.data)
    log_start = np.log(flow.start[: x.shape[1]])

    def velocity(t, z):
        w = np.exp(2 * z) - np.exp(4 * log_start - 2 * z)
        return -2 * x.T @ (x @ w - y)

    # A trial step that overflows is rejected.
    with np.errstate(over="ignore", invalid="ignore"):
        solution = scipy.integrate.solve_ivp(
            velocity,
            (0.0, flow.end),
            log_start,
            method="DOP853",
            t_eval=flow.times,
            rtol=1e-13,
            atol=1e-13,
        )
    z = solution.y.T
    return np.hstack([np.exp(z), np.exp(2 * log_start - z)])
