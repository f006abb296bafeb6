"""The solver that steps, where another one makes it follow kinks."""

import diffrax as dfx

from ._filippov import Filippov
from ._switching import Switching


def inner_solver(solver: dfx.AbstractSolver) -> dfx.AbstractSolver:
    """The solver itself, or the one that is made to follow kinks."""
    return solver.solver if isinstance(solver, (Filippov, Switching)) else solver
