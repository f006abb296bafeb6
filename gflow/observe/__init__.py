"""Observers: quantities of the theory, as functions of the observed state.

`gflow.observe.NAME` is an observer; `Solution.observed["NAME"]` holds its values.
"""

from ._curvature import hessian_spectrum as hessian_spectrum
from ._curvature import log_sharpness as log_sharpness
from ._curvature import normalized_jacobian as normalized_jacobian
from ._curvature import sharpness as sharpness
from ._geometry import J_potential as J_potential
from ._geometry import alignment as alignment
from ._geometry import grad_norm as grad_norm
from ._geometry import layer_norms as layer_norms
from ._geometry import log_loss as log_loss
from ._geometry import log_norm as log_norm
from ._geometry import path_length as path_length
from ._geometry import velocity as velocity
from ._kernel import ntk as ntk
from ._kernel import ntk_alignment as ntk_alignment
from ._kernel import ntk_drift as ntk_drift
from ._kinks import clarke as clarke
from ._kinks import radial_spherical as radial_spherical
from ._kkt import kkt as kkt
from ._known import KNOWN as KNOWN
from ._known import evaluate as evaluate
from ._layers import balancedness as balancedness
from ._layers import layer_alignment as layer_alignment
from ._layers import layer_rank as layer_rank
from ._layers import matrix_balancedness as matrix_balancedness
from ._layers import neuron_balancedness as neuron_balancedness
from ._margins import accuracy as accuracy
from ._margins import beta as beta
from ._margins import dual as dual
from ._margins import layer_margins as layer_margins
from ._margins import margins as margins
from ._margins import median_margins as median_margins
from ._margins import min_margin as min_margin
from ._margins import normalized_margins as normalized_margins
from ._margins import smoothed_margin as smoothed_margin
from ._ncf import ncf as ncf
from ._ncf import ncf_kkt as ncf_kkt
from ._ncf import neuron_ncf as neuron_ncf
from ._neurons import neuron_alignment as neuron_alignment
from ._neurons import neurons as neurons
from ._observer import Observer as Observer
from ._observer import check_observers as check_observers
from ._observer import named as named
from ._observer import observer as observer
from ._observer import started as started
from ._saliency import saliency as saliency
from ._state import State as State
from ._state import observe_at as observe_at
