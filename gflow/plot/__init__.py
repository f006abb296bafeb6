"""Figures of solutions, with Matplotlib.

Every function takes solutions and returns the axes it drew on. Nothing is integrated
or observed again: what a figure shows is what the solutions hold. t = 0, where
log t = -∞, and undefined (NaN) values are not drawn. Of a solution with leading axes
(from `vmap`) each lane is a thin line, with the median over the lanes on top.
"""

from ._curves import observed as observed
from ._curves import training as training
from ._directions import directions as directions
from ._distribution import distribution as distribution
from ._laws import laws as laws
from ._margins import margins as margins
from ._style import GREY as GREY
from ._style import PALETTE as PALETTE
from ._style import style as style
