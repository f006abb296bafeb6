"""Kinks: the Clarke subdifferential at a point, and how the flow leaves it."""

from ._leave import Leaving as Leaving
from ._leave import resolve as resolve
from ._subdifferential import Subdifferential as Subdifferential
from ._subdifferential import subdifferential as subdifferential
from ._subgradient import Subgradient as Subgradient
from ._subgradient import min_norm_subgradient as min_norm_subgradient
