"""Solvers made for gradient flow, for `gflow.integrate(..., solver=)`."""

from ._primal_dual import PrimalDual as PrimalDual
