"""Theorems about the gradient flow, as checks of a solution.

JT is Ji & Telgarsky (2020), "Directional convergence and alignment in deep learning",
arXiv:2006.06657, with its appendices; T3 is Banburski et al. (2019), "Theory III:
Dynamics and Generalization in Deep Networks", arXiv:1903.04991.
"""

from ._check import check as check
from ._late import PathLimit as PathLimit
from ._late import path_limit as path_limit
from ._table import Check as Check
from ._table import Laws as Laws
