"""Where to stop a solve, for `gflow.integrate(..., events=)`."""

from ._reached import AngleReaches as AngleReaches
from ._reached import Classified as Classified
from ._reached import Converged as Converged
from ._reached import GradientNormReaches as GradientNormReaches
from ._reached import LossReaches as LossReaches
from ._reached import MarginReaches as MarginReaches
from ._reached import Separated as Separated
