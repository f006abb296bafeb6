"""How a failed solve is reported: one short error, which says where and why."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx

from ._saved import has_failed
from ._solution import RESULTS, Solution
from ._times import is_concrete, log_of


# The share of rejected steps from which rejections are what limits a solve.
_MANY_REJECTED = 0.3


@contextlib.contextmanager
def short_errors() -> Iterator[None]:
    """Runtime errors of compiled code without their stack and advice on debuggers."""
    try:
        yield
    except eqx.EquinoxRuntimeError as error:
        text = str(error).rpartition("EquinoxRuntimeError: ")[2]
        raise RuntimeError(text.partition("\n\n---")[0]) from None


def thrown(solution: Solution, explained: Callable[[Solution], str]) -> Solution:
    """The solution; a RuntimeError with the explanation if the solve failed.

    A solution that is being traced gets a runtime error with the message of its result.
    """
    bad = has_failed(solution)
    if is_concrete((bad, solution)) and bad.ndim == 0:
        if bool(bad):
            raise RuntimeError(explained(solution))
        return solution
    with short_errors():
        leaf = solution.result.error_if(solution.log_t_final, bad)
    return eqx.tree_at(lambda s: s.log_t_final, solution, leaf)


def failed_flow(solution: Solution, max_steps: int, t1: Any) -> str:
    """Where and why a solve of the flow failed, and how to go on."""
    ran = [part for part in solution.parts if int(part.stats["num_steps"]) > 0]
    part = (ran or solution.parts)[-1]
    steps = int(part.stats["num_steps"])
    reached, asked = float(solution.log_t_final), float(log_of(t1))
    by = f"at log t = {reached:.6g} of {asked:.6g} by {_solver(solution, part)} in the "
    by += f"clock {part.clock}"
    keep = (
        "throw=False returns what was computed, from where integrate(..., "
        "resume=solution) goes on."
    )
    if solution.result != RESULTS.max_steps_reached:
        why = RESULTS[solution.result]
        return f"{why} The solve was stopped {by}, after {steps} steps; {keep}"
    share = int(part.stats["num_rejected_steps"]) / steps
    limit = f"The next step would have been {_next_step(solution):.2g} in that clock"
    if share >= _MANY_REJECTED:
        limit = "That many rejections come of kinks, or of an rtol near rounding"
    return (
        f"the maximum number of solver steps, {max_steps}, was reached {by}; "
        f"{share:.0%} of the steps were rejected. {limit}. Use a larger max_steps, "
        f"such as max_steps={10 * max_steps}, or a larger rtol; {keep}"
    )


def _solver(solution: Solution, part: Any) -> str:
    if solution.switches is None or part.solver != "Automatic":
        return part.solver
    return f"Automatic (last {'BDF' if solution.switches.is_implicit else 'Tsit5'})"


def _next_step(solution: Solution) -> float:
    assert solution.resume is not None
    at = solution.resume.position
    if hasattr(at, "positions"):  # of a relay
        at = at.positions[int(at.leg)]
    return float(at.controller_state.next_end - at.reading)


def failed_descent(solution: Solution, num_steps: int) -> str:
    """At which step a descent diverged, and what to do."""
    taken, gradients = (int(solution.stats[f"num_{n}"]) for n in ("steps", "gradients"))
    if gradients == 1 + taken:
        where = "at the start, where the parameters or the loss are not finite."
        return f"Gradient descent diverged {where} Check the model and the loss."
    return (
        f"Gradient descent diverged at step {taken + 1} of {num_steps}: the parameters "
        "or the loss are no longer finite. Use a smaller step size; throw=False "
        f"returns the solution up to step {taken}."
    )
