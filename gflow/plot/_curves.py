"""Quantities against time."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from ._lines import across, draw_any, solutions_of, values_of
from ._style import (
    checked_against,
    is_logarithm,
    label_of,
    legend,
    new_axes,
    set_scale,
    style,
)


def training(
    solutions: Any,
    *,
    against: str = "log_t",
    names: Any = None,
    scale: str = "auto",
    labels: Any = None,
    ax: Any = None,
) -> np.ndarray:
    r"""The loss and the norm along the flow, one panel above the other.

    $\log\mathcal L$ and $\log\|W\|$, and below them the accuracy and the alignment of W
    with $-\nabla\mathcal L$ if all the solutions have observed them. Logarithms are
    natural.

    **Arguments:**

    - `solutions`: a [`gflow.Solution`][], a sequence of them, or a dict from labels to
        them (the flow and gradient descent, say), drawn over one another.
    - `against`: the horizontal axis: "log_t", "t", or "loss" for $\ln(n/\mathcal L)$.
    - `names`: other quantities for the panels: "log_loss", "log_norm",
        "energy_defect", or names in the solutions' `observed`.
    - `scale`: of the horizontal axis. "auto" takes "symlog" (linear up to 10,
        logarithmic beyond) if more than 300 units have to be shown, else "linear".
    - `labels`: one for each solution.
    - `ax`: axes to draw on, as many as there are panels; None for a new figure.

    **Returns:**

    An array of Matplotlib axes, one for each panel.

    **Raises:**

    `ValueError` for a quantity that was not observed, or a solution without times.

    Examples:
        >>> import gflow, jax, jax.numpy as jnp, matplotlib
        >>> from gflow.plot import training
        >>> matplotlib.use("Agg")
        >>> model = gflow.nn.Linear(2, "scalar", key=jax.random.key(0))
        >>> data = jnp.array([[1.0, 2.0], [2.0, 1.0]]), jnp.array([1.0, -1.0])
        >>> sol = gflow.integrate(model, data, gflow.losses.Logistic(), (0.0, 1e3))
        >>> loss, norm = training(sol)
        >>> matplotlib.pyplot.close(loss.figure)
    """
    pairs = solutions_of(solutions, labels)
    if names is None:
        names = ["log_loss", "log_norm"] + [
            name
            for name in ("accuracy", "alignment")
            if all(name in solution.observed for _, solution in pairs)
        ]
    names = [names] if isinstance(names, str) else list(names)
    if not names:
        raise ValueError("names is empty: there is no quantity to draw.")
    x_label = checked_against(against)
    drawn = _gathered(pairs, names, against)
    with style(ax):
        size = (5.6, 0.7 + 1.6 * len(names))
        axes = new_axes(ax, count=len(names), size=size)
        for panel, name in zip(axes, names, strict=True):
            _draw_panel(panel, drawn, name, against, scale)
        axes[-1].set_xlabel(x_label)
        legend(axes[0])
    return np.array(axes, dtype=object)


def observed(
    solutions: Any,
    name: str,
    *,
    against: str = "log_t",
    scale: str = "auto",
    labels: Any = None,
    ax: Axes | None = None,
) -> Axes:
    """Any observed quantity along the flow.

    One line for a number, six or fewer with names for a short vector; for longer ones
    (the margins of all examples) thin lines, dark to light by final value, at most 200.

    **Arguments:**

    - `solutions`: a [`gflow.Solution`][], a sequence of them, or a dict from labels to
        them.
    - `name`: a key of the solutions' `observed`, or "log_loss", "log_norm" or
        "energy_defect".
    - `against`, `scale`, `labels`: as for [`gflow.plot.training`][].
    - `ax`: axes to draw on; None for a new figure.

    **Returns:**

    The Matplotlib axes.

    **Raises:**

    `ValueError` for a quantity that was not observed or is not an array, or a solution
    without times.
    """
    pairs = solutions_of(solutions, labels)
    x_label = checked_against(against)
    drawn = _gathered(pairs, [name], against)
    with style(ax):
        (panel,) = new_axes(ax)
        _draw_panel(panel, drawn, name, against, scale)
        panel.set_xlabel(x_label)
        legend(panel)
    return panel


def _gathered(pairs, names, against):
    # Everything is looked up before a figure is made: an error leaves none behind.
    return [
        (
            label,
            across(solution, against),
            {name: values_of(solution, name) for name in names},
        )
        for label, solution in pairs
    ]


def _draw_panel(ax: Axes, drawn, name: str, against: str, scale: str) -> None:
    for i, (label, x, values) in enumerate(drawn):
        number = i if len(drawn) > 1 else None
        draw_any(ax, x, values[name], name=name, label=label, number=number)
    set_scale(ax, "x", scale, logarithm=against != "t")
    set_scale(ax, "y", "auto", logarithm=is_logarithm(name))
    if name == "accuracy":
        ax.set_ylim(-0.03, 1.03)
    ax.set_ylabel(label_of(name))
