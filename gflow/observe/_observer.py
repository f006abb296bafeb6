"""Observers: named functions of the observed state."""

import dataclasses
import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu

from .._captured import keyed
from .._problem import Problem, like_params
from .._types import Params
from ._state import State


class Observer(eqx.Module):
    """A named function of the observed state.

    **Attributes:**

    - `name`: its key in `Solution.observed`.
    - `function`: from a [`gflow.observe.State`][] to an array or a PyTree of arrays.
        Its keyword-only arguments are the observer's options.
    - `needs_degree`: whether the model must be positively homogeneous.
    - `needs_path`: whether the solve must integrate the path length along.
    - `check`: raises ValueError for problems that it cannot observe; called before
        tracing as `check(problem, params, degree, **options)`.
    - `remembers`: what it takes from the problem and the parameters where the solve
        starts; `function` gets it as the keyword `memory`, None for a single model.
    - `options`: those that were chosen.
    - `stride`: the saved points from one evaluation to the next.
    - `reference`: the model to remember instead of the one where the solve starts.
    - `memory`: what is remembered.
    """

    name: str = eqx.field(static=True)
    function: Callable[..., Any] = eqx.field(static=True)
    needs_degree: bool = eqx.field(static=True, default=False)
    needs_path: bool = eqx.field(static=True, default=False)
    check: Callable[..., None] | None = eqx.field(static=True, default=None)
    remembers: Callable[[Problem, Params], Any] | None = eqx.field(
        static=True, default=None
    )
    options: dict[str, Any] = eqx.field(default_factory=dict)
    stride: int = eqx.field(static=True, default=1)
    reference: Any = None
    memory: Any = None

    def __call__(self, state: State) -> Any:
        """The value; of a thinned observer, NaN where it is not evaluated."""

        def value() -> Any:
            found = self._remembering(state.problem, None)._evaluate(state)
            return jtu.tree_map(jnp.asarray, found)

        if self.stride == 1 or state.index is None:
            return value()
        blank = jtu.tree_map(_undefined, jax.eval_shape(value))
        # Lanes of `vmap` share the number of the saved point, so this stays a branch.
        return jax.lax.cond(state.index % self.stride == 0, value, lambda: blank)

    def _evaluate(self, state: State) -> Any:
        if self.remembers is None:
            return self.function(state, **self.options)
        return self.function(state, memory=self.memory, **self.options)

    def every(self, stride: Any) -> "Observer":
        """The same at the saved points number 0, stride, 2 stride, ... only.

        It is not evaluated at the others, and what it returns there is NaN (-1 for
        integers, False for booleans).

        **Arguments:**

        - `stride`: a positive integer.

        Examples:
            >>> import gflow
            >>> gflow.observe.ntk.every(10).stride
            10
        """
        if isinstance(stride, bool) or not isinstance(stride, int) or stride < 1:
            raise ValueError(f"every({stride!r}): give a positive integer.")
        return dataclasses.replace(self, stride=stride)

    def using(self, **options: Any) -> "Observer":
        """The same with options, which its documentation lists.

        **Arguments:**

        - `options`: values by name. Arrays may be traced.

        **Raises:**

        `ValueError` for an option that it has not.

        Examples:
            >>> import gflow
            >>> gflow.observe.hessian_spectrum.using(k=3).options
            {'k': 3}
        """
        known = [
            name
            for name, one in inspect.signature(self.function).parameters.items()
            if one.kind is inspect.Parameter.KEYWORD_ONLY and name != "memory"
        ]
        for name in options:
            if name not in known:
                has = f"it has {', '.join(known)}" if known else "it has none"
                raise ValueError(
                    f"observer {self.name!r} has no option {name!r}; {has}."
                )
        return dataclasses.replace(self, options=self.options | options)

    def since(self, model: Any) -> "Observer":
        """The same, measured from a model and not from where the solve starts.

        **Arguments:**

        - `model`: of the architecture that is solved for.

        **Raises:**

        `ValueError` if the observer does not compare with the start.
        """
        if self.remembers is None:
            raise ValueError(
                f"observer {self.name!r} does not compare with the start of the solve."
            )
        return dataclasses.replace(self, reference=model, memory=None)

    def _remembering(self, problem: Problem, start: Params | None) -> "Observer":
        if self.remembers is None or self.memory is not None:
            return self
        if self.reference is not None:
            start = like_params(self.reference, problem)
        if start is None:
            return self
        return dataclasses.replace(self, memory=self.remembers(problem, start))


def _undefined(like: Any) -> Any:
    if jnp.issubdtype(like.dtype, jnp.inexact):
        return jnp.full(like.shape, jnp.nan, like.dtype)
    absent = False if like.dtype == bool else -1
    return jnp.full(like.shape, absent, like.dtype)


def observer(
    *,
    needs_degree: bool = False,
    needs_path: bool = False,
    check: Callable[..., None] | None = None,
    remembers: Callable[[Problem, Params], Any] | None = None,
) -> Callable[[Callable[..., Any]], Observer]:
    """Makes an observer of a function, named after it."""

    def make(function: Callable[..., Any]) -> Observer:
        return Observer(
            function.__name__, function, needs_degree, needs_path, check, remembers
        )

    return make


def check_observers(
    observers: Mapping[str, Observer],
    problem: Problem,
    params: Params,
    degree: float | None,
) -> None:
    """ValueError, naming the observer, for a problem that one cannot observe."""
    for name, one in observers.items():
        if one.reference is not None:
            _check_reference(name, one.reference, problem, params)
        if one.check is None:
            continue
        try:
            one.check(problem, params, degree, **one.options)
        except ValueError as error:
            raise ValueError(f"observer {name!r} {error}") from error


def _check_reference(name: str, model: Any, problem: Problem, params: Params) -> None:
    def shapes(tree):
        leaves, structure = jtu.tree_flatten(tree)
        return [leaf.shape for leaf in leaves], structure

    try:
        same = shapes(like_params(model, problem)) == shapes(params)
    except (AttributeError, ValueError):
        same = False
    if not same:
        raise ValueError(
            f"observer {name!r} is measured since a model that is not of the "
            "architecture that is solved for."
        )


def started(
    observers: Mapping[str, Observer], problem: Problem, start: Params | None
) -> dict[str, Observer]:
    """The observers, with what they remember of the parameters at the start."""
    return {name: one._remembering(problem, start) for name, one in observers.items()}


def named(observe: Any, known: Mapping[str, Observer]) -> dict[str, Observer]:
    """The observers that a user asked for, by name.

    Takes an observer, the name of one, a function of the observed state, a sequence of
    these, or a dict from names to these. Raises ValueError for anything else.
    """
    if isinstance(observe, Mapping):
        return {
            str(name): dataclasses.replace(_as_observer(what, known), name=str(name))
            for name, what in observe.items()
        }
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
        if one.name in found and not _same(found[one.name], one):
            raise ValueError(
                f"two observers are called {one.name!r}; pass a dict from names to "
                "observers to tell them apart."
            )
        found[one.name] = one
    return found


def _same(a: Observer, b: Observer) -> bool:
    # Options may be traced, so that their values cannot be compared.
    plain = not (jtu.tree_leaves((a, b)))
    return a is b or (plain and a == b)


def _as_observer(what: Any, known: Mapping[str, Observer]) -> Observer:
    if isinstance(what, Observer):
        return dataclasses.replace(what, function=keyed(what.function))
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
        return Observer(getattr(what, "__name__", type(what).__name__), keyed(what))
    raise ValueError(
        f"unknown observer {what!r}: not an observer, the name of one, or a function "
        "of the observed state; see gflow.observe."
    )
