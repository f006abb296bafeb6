"""Laws of the loss: it falls, and by as much as the gradient says."""

import numpy as np

from ._law import Found, law, need, shown
from ._run import Run


# Of rtol (benchmarks/laws_by_example.txt). Most flows come to about one time the
# tolerance; 40, and 200 of log ℒ, where W moves along a straight line with long steps,
# whose error is all that is controlled. Explicit steps at the very limit of their
# stability, as solvers other than Tsit5 take them, come to thousands of log ℒ: stiff
# components of the gradient are noise there. That is a failure.
_ENERGY, _LATE_ENERGY = 100.0, 500.0
# A rise is the difference of two errors of the margins, which are L rtol of them each.
_RISE = 5.0
_LARGEST = 700.0  # whose exponential is a float


@law("saved values", "the solution and its own models")
def saved_values(run: Run) -> Found:
    """Outputs and losses of the saved models are those that the solve reported."""
    saved = run.saved("predictions")
    assert saved is not None
    outputs = run.outputs
    size = max(float(np.max(np.abs(saved))), np.finfo(float).tiny)
    # Relative at each time: outputs may grow by orders of magnitude.
    axes = tuple(range(1, saved.ndim))
    sizes = np.maximum(np.max(np.abs(saved), axis=axes), 1e-300)
    error = np.max(np.abs(outputs - saved), axis=axes) / sizes
    violation = float(np.max(error))
    return Found(
        "f(x; W(t)) as reported",
        f"off by {shown(violation)} (of at most {shown(size)})",
        violation,
        run.eps**0.5,
    )


@law("loss falls", "JT Lemma B.9: dℒ/dt = -‖∂̄ℒ‖²")
def loss_falls(run: Run) -> Found:
    r"""ℒ is non-increasing: its largest rise above an earlier value.

    Of log ℒ over 1 + |log ℒ| for losses with an exponential tail; of ℒ over its largest
    size for others, whose log ℒ near a minimum is that of the solve's error.
    """
    if run.problem.is_tailed:
        values, scale = run.log_loss, 1 + np.abs(run.log_loss)
        what = "log ℒ"
    else:
        values = run.loss
        scale = np.full_like(values, max(np.max(np.abs(values)), 1e-300))
        what = "ℒ"
    rise = (values - np.minimum.accumulate(values)) / scale
    worst = int(np.argmax(rise))
    measured = f"{what}: {shown(values[0])} to {shown(values[-1])}"
    if rise[worst] > 0:
        measured += f", rises at point {worst}"
    return Found("no rise", measured, rise[worst], run.tolerance(_RISE))


@law("energy identity", "JT Lemma B.9: ℒ(0) - ℒ(T) = ∫‖∂̄ℒ‖² dt")
def energy_identity(run: Run) -> Found:
    r"""ℒ(0) - ℒ(t) = ∫‖∂̄ℒ‖² dt at every saved time, over |ℒ(0)|.

    Over the largest |ℒ| where that is more: losses that are unbounded below may begin
    near zero.

    The integral is the solve's own, the losses those of the saved models: what these
    fall by beyond the reported ones, over the first reported one, is added to the
    solve's defect. Of gradient descent it is Σ η‖∇ℒ‖² over its steps.
    """
    if run.is_descent:
        return _descent_energy(run)
    defect, saved = run.saved("energy_defect"), run.saved("log_loss")
    assert defect is not None and saved is not None
    measured = ""
    if np.all(np.isfinite(saved)):
        reported = 1 - np.exp(saved - saved[0])
        now = np.exp(np.minimum(run.log_loss - saved[0], _LARGEST))
        gone = now[0] - now
        if defect[0] == 0:  # the start was saved, and is what the defect is over
            integral = reported - defect
            measured = f"{shown(gone[-1])} and {shown(integral[-1])} (ℒ(0))"
        defect = defect + (gone - reported)
    defect = defect / _growth_of_size(run.loss)
    worst = float(np.max(np.abs(defect)))
    measured = measured or f"off by {shown(worst)} ℒ(0)"
    return Found("two equal sides", measured, worst, run.tolerance(_ENERGY))


def _growth_of_size(loss: np.ndarray) -> float:
    # Of |ℒ| above |ℒ(0)|. Losses that overflow begin with their largest value.
    sizes = np.abs(loss[np.isfinite(loss)])
    if not sizes.size or sizes[0] == 0:
        return max(1.0, float(np.max(sizes, initial=0.0)))
    return max(1.0, float(np.max(sizes) / sizes[0]))


def _descent_energy(run: Run) -> Found:
    step = float(np.asarray(run.solution.stats["step_size"]))
    need(np.isfinite(step), "the step size of the descent is not known")
    with np.errstate(over="ignore"):
        steps = np.diff(np.exp(run.log_t)) / step
    need(
        np.all(np.abs(steps - 1) < 1e-3),
        "the descent did not save every step, over which ‖∇ℒ‖² is summed",
    )
    with np.errstate(over="ignore"):
        pieces = step * np.exp(2 * run.log_grad_norm[:-1])
    gone, spent = run.loss[0] - run.loss[1:], np.cumsum(pieces)
    scale = max(abs(run.loss[0]), 1e-300)
    worst = float(np.max(np.abs(gone - spent))) / scale
    return Found(
        "two equal sides",
        f"{shown(gone[-1] / scale)} and {shown(spent[-1] / scale)} (ℒ(0))",
        worst,
        run.tolerance(_ENERGY),
    )


@law("energy identity, late", "JT Lemma B.9: log ℒ(0) - log ℒ(T) = ∫‖∂̄ℒ‖²/ℒ dt")
def late_energy_identity(run: Run) -> Found:
    """The same for log ℒ, over 1 + its fall: it sees the late phase."""
    defect, saved = run.saved("log_loss_defect"), run.saved("log_loss")
    need(not run.is_descent, "gradient descent does not integrate ‖∇ℒ‖²/ℒ")
    need(defect is not None, "the loss has no exponential tail")
    assert defect is not None and saved is not None
    fall, reported = run.log_loss[0] - run.log_loss, saved[0] - saved
    defect = defect + (fall - reported) / (1 + np.abs(reported))
    worst = float(np.max(np.abs(defect)))
    return Found(
        "two equal sides",
        f"off by {shown(worst)} of log(ℒ(0)/ℒ(t))",
        worst,
        run.tolerance(_LATE_ENERGY),
    )


LAWS = (saved_values, loss_falls, energy_identity, late_energy_identity)
