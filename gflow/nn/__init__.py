"""Homogeneous layers and networks, each taking one example without a batch axis."""

from . import init as init
from ._activations import identity as identity
from ._activations import leaky_relu as leaky_relu
from ._activations import relu as relu
from ._activations import squared_relu as squared_relu
from ._containers import Batched as Batched
from ._containers import Sequential as Sequential
from ._conv import Conv2d as Conv2d
from ._data import append_one as append_one
from ._fixed import Fixed as Fixed
from ._fixed import trainable as trainable
from ._linear import Flatten as Flatten
from ._linear import Linear as Linear
from ._linearised import Linearised as Linearised
from ._mlp import MLP as MLP
from ._mlp import DeepLinear as DeepLinear
from ._pool import AvgPool2d as AvgPool2d
from ._pool import MaxPool2d as MaxPool2d
from ._two_layer import TwoLayer as TwoLayer
