"""Fields: parameters to velocity."""

from ._gradient import GradientField as GradientField
from ._gradient import Velocity as Velocity
