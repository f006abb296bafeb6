"""How final values are distributed over initialisations."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from ._lines import solutions_of, values_of
from ._style import colour, label_of, legend, new_axes, set_scale, style


def distribution(
    solutions: Any,
    name: str,
    *,
    kind: str = "ecdf",
    labels: Any = None,
    ax: Axes | None = None,
) -> Axes:
    """The distribution of a final value over the lanes of a solution.

    Such as the margin reached from each of 100 initialisations. Lanes where the final
    value is undefined are left out, and the legend says how many remain.

    **Arguments:**

    - `solutions`: a [`gflow.Solution`][] with a leading axis (from `vmap`), or several,
        as a sequence or a dict from labels, each with a distribution of its own. A
        sequence of solutions without leading axes is one sample.
    - `name`: a scalar in `observed`, or "log_loss", "log_norm" or "energy_defect".
    - `kind`: "ecdf", the fraction of lanes up to each value, or "histogram".
    - `labels`: one for each distribution.
    - `ax`: axes to draw on; None for a new figure.

    **Returns:**

    The Matplotlib axes.

    **Raises:**

    `ValueError` for a quantity that was not observed, is not a scalar, or is undefined
    in every lane.
    """
    if kind not in ("ecdf", "histogram"):
        raise ValueError(f"kind={kind!r} is not known; use 'ecdf' or 'histogram'.")
    samples = [
        (label, values[np.isfinite(values)], values.size)
        for label, values in _samples(solutions, name, labels)
    ]
    for label, values, _ in samples:
        if not values.size:
            raise ValueError(f"{name} {label} is undefined at the end of every lane.")
    every = np.concatenate([values for _, values, _ in samples])
    with style(ax):
        (ax,) = new_axes(ax)
        bins = _bins(every)
        for i, (label, values, count) in enumerate(samples):
            if values.size < count:
                label = f"{label} ({values.size} of {count})".strip()
            _draw(ax, kind, values, bins, label=label, color=colour(i))
        if kind == "ecdf":
            ax.set_ylim(0, 1.02)
            set_scale(ax, "x", "auto", logarithm=False)
        elif _is_wide(every):
            ax.set_xscale("log")
        ax.set_xlabel(f"final {label_of(name)}")
        ax.set_ylabel("fraction of lanes" if kind == "ecdf" else "lanes")
        legend(ax)
    return ax


def _samples(solutions: Any, name: str, labels: Any) -> list[tuple[str, np.ndarray]]:
    # A sequence of solutions without lanes is one sample, with one label if any.
    is_sequence = isinstance(solutions, (list, tuple))
    if is_sequence and all(np.ndim(one.log_t) == 1 for one in solutions):
        final = [_final(one, name) for _, one in solutions_of(solutions)]
        label = "" if labels is None else labels
        return [(label if isinstance(label, str) else label[0], np.concatenate(final))]
    pairs = solutions_of(solutions, labels)
    return [(label, _final(one, name)) for label, one in pairs]


def _final(solution: Any, name: str) -> np.ndarray:
    values = values_of(solution, name)
    if values.shape[-1] != 1:
        raise ValueError(f"{name} is not a scalar, so it has no one distribution.")
    return values[:, -1, 0]


def _is_wide(values: np.ndarray) -> bool:
    return bool(values.min() > 0 and values.max() / values.min() > 1e3)


def _bins(values: np.ndarray) -> np.ndarray:
    # Shared by all samples; as many as Freedman & Diaconis (1981) or Sturges (1926)
    # would take, whichever are more, but no more than can be seen.
    logarithmic = _is_wide(values)
    edges = np.log(values) if logarithmic else values
    scale = np.abs(edges).max() or 1.0
    # In units of order one: spreads of 1e-60 are good ones, but not to `histogram`.
    made = np.histogram_bin_edges(edges / scale, bins="auto") * scale
    if made.size > 61:
        made = np.linspace(made[0], made[-1], 61)
    return np.exp(made) if logarithmic else made


def _draw(ax: Axes, kind: str, values, bins, *, label: str, color: str) -> None:
    if kind == "ecdf":
        # A staircase from 0, so that it can be read where it begins.
        x = np.sort(values)
        x = np.concatenate([x[:1], x])
        y = np.arange(x.size) / (x.size - 1)
        ax.plot(x, y, drawstyle="steps-post", color=color, label=label, linewidth=1.6)
        return
    ax.hist(values, bins, color=color, alpha=0.25, histtype="stepfilled")
    ax.hist(
        values, bins, color=color, histtype="step", linewidth=1.4, label=label or None
    )
