"""check(): every law against one solution."""

import math
from typing import Any

import jax.tree_util as jtu

from .._solution import Solution
from .._times import is_concrete
from . import _balance, _curve, _direction, _growth, _loss, _margins
from ._run import Run, problem_of
from ._table import Laws


_ALL = (
    *_loss.LAWS,
    *_margins.LAWS,
    *_balance.LAWS,
    *_direction.LAWS,
    *_growth.LAWS,
    *_curve.LAWS,
)


def check(
    solution: Any,
    *,
    data: Any,
    loss: Any,
    other: Any = None,
    limit: Any = None,
    degree: float | int | None = None,
    rtol: float | int | None = None,
) -> Laws:
    r"""Confronts a solution with every law that must hold along the gradient flow.

    Gradients are evaluated anew at the saved models, so that a law fails where the
    curve, the loss or the time is not the flow's, whoever made it. Each verdict is
    pass, fail, or not applicable because of a reason.

    **Arguments:**

    - `solution`: a [`gflow.Solution`][] of one flow, of [`gflow.integrate`][] or
        [`gflow.descend`][].
    - `data`, `loss`: those it was computed with.
    - `other`: a second solution of the same problem with another clock, solver or
        tolerance, and the same saved times: the curve must be the same.
    - `limit`: a [`gflow.Limit`][], for the rate of the direction. Default the
        solution's own.
    - `degree`: take this L for granted and do not measure it.
    - `rtol`: judge by this tolerance. Default the solution's own; 1e-3 for gradient
        descent, which has none.

    **Returns:**

    [`gflow.laws.Laws`][], the table. Tolerances are multiples of `rtol` measured on
    good solves, at most 1e-2.

    **Raises:**

    `ValueError` for a solution with leading axes, one that is being traced or was
    loaded without its model, or data and a loss that do not fit.

    Examples:
        >>> import gflow, jax, jax.numpy as jnp
        >>> model = gflow.nn.Linear(2, "scalar", key=jax.random.key(0))
        >>> data = jnp.array([[1.0, 2.0], [2.0, 1.0]]), jnp.array([1.0, -1.0])
        >>> loss = gflow.losses.Exponential()
        >>> sol = gflow.integrate(model, data, loss, (0.0, 100.0))
        >>> table = gflow.laws.check(sol, data=data, loss=loss)
        >>> table["energy identity"].verdict
        'pass'
    """
    _check_options(degree, rtol)
    if other is not None:
        _check_other(solution, other, data, loss)
    run = Run(
        solution,
        data,
        loss,
        rtol=rtol,
        degree=degree,
        limit=limit,
        other=other,
    )
    return Laws(tuple(one(run) for one in _ALL))


def _check_options(degree: Any, rtol: Any) -> None:
    for name, value in (("degree", degree), ("rtol", rtol)):
        if value is None:
            continue
        good = (
            is_concrete(value)
            and not isinstance(value, (bool, str))
            and math.isfinite(float(value))
            and float(value) > 0
        )
        if not good:
            raise ValueError(f"{name}={value!r} is not a positive number.")


def _check_other(solution: Any, other: Any, data: Any, loss: Any) -> None:
    if not isinstance(other, Solution):
        raise ValueError(f"other is a {type(other).__name__}, not a gflow.Solution.")
    problem_of(solution, data, loss)
    try:
        problem_of(other, data, loss)
    except ValueError as error:
        raise ValueError(f"other: {error}") from error

    def shapes(one: Solution) -> list[Any]:
        return [getattr(leaf, "shape", None) for leaf in jtu.tree_leaves(one.final)]

    if shapes(solution) != shapes(other):
        raise ValueError(
            "other is not of the same model: its arrays have shapes "
            f"{shapes(other)}, not {shapes(solution)}."
        )
