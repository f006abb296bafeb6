"""Solvers made for gradient flow, for `gflow.integrate(..., solver=)`."""

from ._automatic import Automatic as Automatic
from ._bdf import BDF as BDF
from ._primal_dual import PrimalDual as PrimalDual
from ._rkc import RKC2 as RKC2
from ._rkc import RKC3 as RKC3
