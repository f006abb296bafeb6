"""Observers: named functions of the observed state."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx

from ._state import State


class Observer(eqx.Module):
    """A named function of the observed state.

    **Attributes:**

    - `name`: its key in `Solution.observed`.
    - `function`: from a [`gflow.observe.State`][] to an array or a PyTree of arrays.
    - `needs_degree`: whether the model must be positively homogeneous.
    - `needs_path`: whether the solve must integrate the path length along.
    """

    name: str = eqx.field(static=True)
    function: Callable[[State], Any] = eqx.field(static=True)
    needs_degree: bool = eqx.field(static=True, default=False)
    needs_path: bool = eqx.field(static=True, default=False)

    def __call__(self, state: State) -> Any:
        return self.function(state)


def observer(
    *, needs_degree: bool = False, needs_path: bool = False
) -> Callable[[Callable[[State], Any]], Observer]:
    """Makes an observer of a function, named after it."""

    def make(function: Callable[[State], Any]) -> Observer:
        return Observer(function.__name__, function, needs_degree, needs_path)

    return make


def named(observe: Any, known: Mapping[str, Observer]) -> dict[str, Observer]:
    """The observers that a user asked for, by name.

    Takes an observer, the name of one, a function of the observed state, a sequence of
    these, or a dict from names to these. Raises ValueError for anything else.
    """
    if isinstance(observe, Mapping):
        found = {}
        for name, what in observe.items():
            one = _as_observer(what, known)
            found[str(name)] = Observer(
                str(name), one.function, one.needs_degree, one.needs_path
            )
        return found
    if isinstance(observe, str) or callable(observe):
        observe = (observe,)
    if not isinstance(observe, Sequence):
        raise ValueError(
            f"observe={observe!r} is not an observer, a sequence of observers or a "
            "dict from names to observers; see gflow.observe."
        )
    found = {}
    for what in observe:
        one = _as_observer(what, known)
        if one.name in found and found[one.name] != one:
            raise ValueError(
                f"two observers are called {one.name!r}; pass a dict from names to "
                "observers to tell them apart."
            )
        found[one.name] = one
    return found


def _as_observer(what: Any, known: Mapping[str, Observer]) -> Observer:
    if isinstance(what, Observer):
        return what
    if isinstance(what, str):
        if what in known:
            return known[what]
        close = difflib.get_close_matches(what, known, n=1)
        hint = f"Did you mean {close[0]!r}? " if close else ""
        raise ValueError(
            f"unknown observer {what!r}. {hint}Known observers: "
            f"{', '.join(sorted(known))}; any function of the observed state will do "
            "as well."
        )
    if callable(what):
        return Observer(getattr(what, "__name__", type(what).__name__), what)
    raise ValueError(
        f"unknown observer {what!r}: not an observer, the name of one, or a function "
        "of the observed state; see gflow.observe."
    )
