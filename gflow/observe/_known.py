"""The observers there are, by name, and how to use them on a single model."""

from typing import Any

import equinox as eqx

from .._check import Degree, checked_problem
from .._least_norm import frozen_if_possible
from . import (
    _curvature,
    _geometry,
    _kernel,
    _kinks,
    _kkt,
    _layers,
    _margins,
    _ncf,
    _neurons,
    _saliency,
)
from ._observer import Observer, check_observers, named, started
from ._state import observe_at


KNOWN: dict[str, Observer] = {
    one.name: one
    for module in (
        _geometry,
        _margins,
        _layers,
        _neurons,
        _kinks,
        _kkt,
        _kernel,
        _curvature,
        _ncf,
        _saliency,
    )
    for one in vars(module).values()
    if isinstance(one, Observer)
}
"""All observers of gflow by their names."""


def evaluate(
    model: Any, data: Any, loss: Any, observe: Any, *, filter_spec: Any = None
) -> dict[str, Any]:
    """Observers on a single model; one gradient evaluation for all of them.

    **Arguments:**

    - `model`, `data`, `loss`, `filter_spec`: as for `gflow.integrate`.
    - `observe`: an observer, its name, a function of the observed state, a sequence of
        these, or a dict from names to these.

    **Returns:**

    A dict from names to values. What only a solve can know (`path_length`, `ntk_drift`
    without a model to measure from) is NaN.

    **Raises:**

    `ValueError` for data that do not fit the model and the loss, for an unknown
    observer, or for a model that is not homogeneous where a degree is needed.
    """
    observers = named(observe, KNOWN)
    problem, params = checked_problem(model, data, loss, filter_spec)
    degree = Degree(problem, params).needed_for(observers)
    check_observers(observers, problem, params, degree)
    kinks = frozen_if_possible(problem, params)
    return _evaluate(problem, params, degree, observers, kinks)


@eqx.filter_jit
def _evaluate(problem, params, degree, observers, kinks):
    observers = started(observers, problem, None)
    state = observe_at(problem, params, degree=degree, frozen=kinks)
    return {name: one(state) for name, one in observers.items()}
