"""How final values are distributed over initialisations."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from ._lines import solutions_of, values_of
from ._style import colour, label_of, legend, new_axes, set_scale, style


# Bins of a histogram.
_MOST = 60


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
        bins = _bins(every, [values for _, values, _ in samples])
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


def _bins(every: np.ndarray, samples: list[np.ndarray]) -> np.ndarray:
    # Shared by all samples, as narrow as the narrowest of them asks for (Freedman &
    # Diaconis 1981 or Sturges 1926), but no more than can be seen.
    logarithmic = _is_wide(every)
    scale = 1.0 if logarithmic else float(np.abs(every).max()) or 1.0

    def position(values):
        # In units of order one: margins of 1e-60 are numbers like any other, but
        # not to `histogram_bin_edges`.
        return np.log(values) if logarithmic else values / scale

    low, high = position(every).min(), position(every).max()
    widths = [
        np.diff(np.histogram_bin_edges(position(values), bins="auto"))[0]
        for values in samples
        if np.ptp(position(values)) > 0
    ]
    count = int(np.clip(np.ceil((high - low) / min(widths, default=1.0)), 1, _MOST))
    if high == low:
        low, high = low - 0.05, high + 0.05
    made = np.linspace(low, high, count + 1)
    if logarithmic:
        # The ends again, which rounding may have moved inwards.
        return np.concatenate([[every.min()], np.exp(made[1:-1]), [every.max()]])
    return made * scale


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
