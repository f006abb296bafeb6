"""Which derivatives are being taken of a solve, told by the tracers in its arguments.

Diffrax has a loop for each kind: a plain loop (forward mode), a loop with checkpoints
(reverse mode, once), and a loop of bounded length (any nesting, but it costs more).
"""

from typing import Any, Literal

import diffrax as dfx
import equinox as eqx
import jax.tree_util as jtu

from .clocks import AbstractTimeClock
from .solvers import BDF, Automatic, PrimalDual
from .solvers._inner import inner_solver
from .solvers._rkc import AbstractRKC


Derivatives = Literal["unknown", "forward", "forward twice", "reverse", "nested"]
# Names of JAX's tracers, by the mode of differentiation that they belong to.
_MODES = {"JVPTracer": "forward", "LinearizeTracer": "reverse"}
_INSIDE = {"JVPTracer": "primal", "LinearizeTracer": "primal", "BatchTracer": "val"}


def derivatives_of(*arguments: Any) -> Derivatives:
    """The derivatives that are taken with respect to any of the arguments.

    Derivatives of a whole `jax.jit` function, `jax.jvp(jax.jit(f), …)`, cannot be seen
    inside that function: they are "unknown", and taken to be in reverse mode.
    """
    levels = set(map(_levels, jtu.tree_leaves(arguments))) - {()}
    if not levels:
        return "unknown"
    once = max(map(len, levels)) == 1
    if not any("reverse" in level for level in levels):
        return "forward" if once else "forward twice"
    return "reverse" if levels == {("reverse",)} else "nested"


def _levels(leaf: Any) -> tuple[str, ...]:
    """The modes of the derivatives that a tracer stands for, the last one first."""
    name = type(leaf).__name__
    if name not in _INSIDE:
        return ()
    mode = (_MODES[name],) if name in _MODES else ()
    return mode + _levels(getattr(leaf, _INSIDE[name], None))


def adjoint_for(derivatives: Derivatives) -> dfx.AbstractAdjoint:
    """Diffrax's way of solving that the derivatives can be taken through."""
    if derivatives in ("forward", "forward twice"):
        return dfx.ForwardMode()
    if derivatives == "nested":
        return dfx.DirectAdjoint()
    return dfx.RecursiveCheckpointAdjoint()


def with_loops(solver: Any, derivatives: Derivatives) -> Any:
    """The solver with loops over its stages that the derivatives can be taken through.

    Diffrax sees to this for its own solvers, but not for those inside of another.
    """
    if derivatives in ("unknown", "reverse"):
        return solver
    kind = "bounded" if derivatives == "nested" else "lax"
    inner = getattr(solver, "solver", None)
    if getattr(inner, "scan_kind", kind) is not None:
        return solver
    return eqx.tree_at(
        lambda s: s.solver.scan_kind, solver, kind, is_leaf=lambda leaf: leaf is None
    )


def check_derivatives(
    derivatives: Derivatives, save: str, clock: Any, solver: Any, kinks: str
) -> None:
    """ValueError for derivatives that the solve does not have."""
    if kinks == "inclusion" and derivatives in ("forward twice", "nested"):
        raise ValueError(
            "second derivatives are not available of a flow that follows kinks: where "
            "steps cross kinks they would be wrong by some percent. Take them of a "
            "smooth model, or first derivatives."
        )
    if derivatives not in ("reverse", "nested"):
        return
    forward = "or differentiate in forward mode (jax.jvp, jax.jacfwd)"
    if save != "given":
        raise ValueError(
            "derivatives in reverse mode (jax.grad, jax.vjp) need given save times, "
            "because the number of steps is not known beforehand; pass save_at, such "
            f"as save_at=[t1], {forward}."
        )
    solver = inner_solver(solver)
    if isinstance(solver, AbstractRKC | Automatic | BDF | PrimalDual):
        raise ValueError(
            f"the solver {type(solver).__name__} has derivatives in forward mode only. "
            f"Use diffrax.Tsit5() or diffrax.Kvaerno5(), {forward}."
        )
    if not isinstance(clock, AbstractTimeClock):
        raise ValueError(
            f"in {type(clock).__name__} times are found as the solve goes, which has "
            "derivatives in forward mode only. Use gflow.clocks.LogTime() or "
            f"gflow.clocks.Physical(), {forward}."
        )
