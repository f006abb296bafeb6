"""The limit at t = ∞, and the theorems that say what it must be."""

from ._deep_linear import DeepLinearCertificate as DeepLinearCertificate
from ._deep_linear import deep_linear_certificate as deep_linear_certificate
from ._game import solve_game as solve_game
from ._result import CERTIFICATE as CERTIFICATE
from ._result import SECOND_ORDER as SECOND_ORDER
from ._result import Evidence as Evidence
from ._result import Limit as Limit
from ._squared_relu import SquaredReluCertificate as SquaredReluCertificate
from ._squared_relu import squared_relu_certificate as squared_relu_certificate
