"""Flows other than the gradient flow, for `gflow.integrate(..., flow=)`."""

from ._abstract import AbstractFlow as AbstractFlow
from ._abstract import AbstractMotion as AbstractMotion
from ._abstract import Motion as Motion
from ._correlation import CorrelationAscent as CorrelationAscent
from ._heavy_ball import HeavyBall as HeavyBall
from ._heavy_ball import Moving as Moving
from ._lagrange import LagrangeMultiplier as LagrangeMultiplier
from ._linearised import Linearised as Linearised
from ._natural import Natural as Natural
from ._polar import Polar as Polar
from ._spheres import OnSpheres as OnSpheres
from ._tangent import TangentGradient as TangentGradient
from ._weight_norm import WeightNorm as WeightNorm
