"""Initialisations: of arrays, and of whole models."""

from ._balanced import balanced as balanced
from ._init import Initialiser as Initialiser
from ._init import gaussian as gaussian
from ._init import he as he
from ._init import mean_field as mean_field
from ._init import ntk as ntk
from ._init import small as small
from ._rescale import scale as scale
from ._rescale import to_norm as to_norm
