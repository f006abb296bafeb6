"""gflow: the true continuous gradient flow of neural networks, in JAX."""

from . import clarke as clarke
from . import clocks as clocks
from . import data as data
from . import events as events
from . import fields as fields
from . import flows as flows
from . import laws as laws
from . import limits as limits
from . import losses as losses
from . import nn as nn
from . import observe as observe
from . import plot as plot
from . import solvers as solvers
from ._compare import Comparison as Comparison
from ._compare import compare as compare
from ._descend import descend as descend
from ._homogeneity import homogeneity as homogeneity
from ._integrate import integrate as integrate
from ._limit import Limit as Limit
from ._limit import limit as limit
from ._save import load as load
from ._save import save as save
from ._solution import RESULTS as RESULTS
from ._solution import Inclusion as Inclusion
from ._solution import Part as Part
from ._solution import Resume as Resume
from ._solution import Solution as Solution
from ._solution import Switches as Switches
from ._times import INFINITY as INFINITY
from ._times import Exp as Exp
from ._times import exp as exp
from ._vector_field import vector_field as vector_field


__version__ = "0.1.0"
