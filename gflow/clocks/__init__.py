"""Clocks: the independent variable the solver steps in."""

from ._abstract import AbstractClock as AbstractClock
from ._abstract import AbstractTimeClock as AbstractTimeClock
from ._alpha import Alpha as Alpha
from ._e_folds import EFolds as EFolds
from ._log_log_time import LogLogTime as LogLogTime
from ._log_norm import LogNorm as LogNorm
from ._log_time import LogTime as LogTime
from ._physical import Physical as Physical
