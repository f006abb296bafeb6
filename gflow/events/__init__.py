"""Where to stop a solve, for `gflow.integrate(..., events=)`."""

from ._reached import AngleReaches as AngleReaches
from ._reached import Classified as Classified
from ._reached import GradientNormReaches as GradientNormReaches
from ._reached import LogLossReaches as LogLossReaches
from ._reached import MarginReaches as MarginReaches
from ._reached import Separated as Separated
