"""Losses, in the log domain: exponential and logistic tails, square, your own."""

from ._abstract import AbstractLoss as AbstractLoss
from ._abstract import Linearised as Linearised
from ._binary import Exponential as Exponential
from ._binary import Logistic as Logistic
from ._multiclass import CrossEntropy as CrossEntropy
from ._multiclass import MulticlassExponential as MulticlassExponential
from ._plain import Custom as Custom
from ._plain import Square as Square
from ._plain import as_loss as as_loss
from ._tailed import AbstractTailedLoss as AbstractTailedLoss
