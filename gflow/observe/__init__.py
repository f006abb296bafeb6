"""Observers: quantities of the theory, as functions of the observed state.

`gflow.observe.NAME` is an observer; `Solution.observed["NAME"]` holds its values.
"""

from ._geometry import alignment as alignment
from ._geometry import grad_norm as grad_norm
from ._geometry import layer_norms as layer_norms
from ._geometry import log_loss as log_loss
from ._geometry import log_norm as log_norm
from ._geometry import path_length as path_length
from ._kinks import clarke as clarke
from ._kinks import radial_spherical as radial_spherical
from ._known import KNOWN as KNOWN
from ._known import evaluate as evaluate
from ._margins import accuracy as accuracy
from ._margins import margins as margins
from ._margins import min_margin as min_margin
from ._margins import normalized_margins as normalized_margins
from ._margins import smoothed_margin as smoothed_margin
from ._observer import Observer as Observer
from ._observer import named as named
from ._observer import observer as observer
from ._state import State as State
from ._state import observe_at as observe_at
