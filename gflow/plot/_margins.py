"""Margins, as in Figure 2 of Ji & Telgarsky (2020)."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from ._lines import across, draw, draw_family, solutions_of, values_of
from ._style import (
    checked_against,
    colour,
    label_of,
    legend,
    new_axes,
    set_scale,
    style,
)


# Families first, so that the lines are on top.
_NORMALISED = ("normalized_margins", "min_margin", "smoothed_margin")
_FAMILIES = ("normalized_margins", "margins")
_COLOURS = {"min_margin": colour(1), "smoothed_margin": "#000000"}
_LINES = {"min_margin": "-", "smoothed_margin": (0, (4, 2))}


def margins(
    solutions: Any,
    *,
    kind: Any = None,
    against: str = "loss",
    scale: str = "auto",
    labels: Any = None,
    ax: Axes | None = None,
) -> Axes:
    r"""Margins against $\ln(n/\mathcal L)$, an axis that knows no step size.

    The margins $p_i/\|W\|^L$ of the examples, thin, dark to light in the order of their
    final values (of more than 200 examples, 200 evenly spaced ones); their minimum; and
    the smoothed margin $\tilde\alpha$, which bounds it from below. (Where W is still
    tiny $\tilde\alpha$ can be astronomically negative; the vertical axis then ends
    before.)

    **Arguments:**

    - `solutions`: a [`gflow.Solution`][], a sequence of them, or a dict from labels to
        them.
    - `kind`: which of "normalized_margins", "min_margin" and "smoothed_margin"; None
        for those that all the solutions have observed. Or "margins", for networks that
        are not homogeneous: each is divided by the median of the nonnegative ones at
        that time.
    - `against`: the horizontal axis: "loss" for $\ln(n/\mathcal L)$, ℒ a sum over the n
        examples (with `reduction="mean"` it is shifted by ln n); "log_t"; or "t".
    - `scale`, `labels`: as for [`gflow.plot.training`][].
    - `ax`: axes to draw on; None for a new figure.

    **Returns:**

    The Matplotlib axes.

    **Raises:**

    `ValueError` if the margins were not observed; it says what to ask for.

    Examples:
        >>> import gflow, jax, jax.numpy as jnp, matplotlib
        >>> matplotlib.use("Agg")
        >>> model = gflow.nn.Linear(2, "scalar", key=jax.random.key(0))
        >>> data = jnp.array([[1.0, 2.0], [2.0, 1.0]]), jnp.array([1.0, -1.0])
        >>> sol = gflow.integrate(
        ...     model, data, gflow.losses.Exponential(), (0.0, gflow.exp(50.0)),
        ...     observe=("min_margin", "smoothed_margin"),
        ... )
        >>> from gflow.plot import margins
        >>> ax = margins(sol)
        >>> matplotlib.pyplot.close(ax.figure)

    ??? cite "Reference"

        Ji & Telgarsky (2020), "Directional convergence and alignment in deep
        learning", Figure 2 and Appendix A.
    """
    pairs = solutions_of(solutions, labels)
    kinds = _kinds(pairs, kind)
    x_label = checked_against(against)
    drawn = [
        (
            label,
            across(solution, against),
            {one: values_of(solution, one) for one in kinds},
        )
        for label, solution in pairs
    ]
    with style(ax):
        (ax,) = new_axes(ax)
        for i, (label, x, values) in enumerate(drawn):
            for one in kinds:
                number = i if len(drawn) > 1 else None
                _draw(ax, x, values[one], one, label, number)
        set_scale(ax, "x", scale, logarithm=against != "t")
        _clip(ax, [one for _, _, values in drawn for one in values.values()])
        ax.set_xlabel(x_label)
        ax.set_ylabel("margin / median" if "margins" in kinds else "normalised margin")
        legend(ax)
    return ax


def _kinds(pairs, kind: Any) -> list[str]:
    every = (*_NORMALISED, "margins")
    if kind is None:
        there = [
            name for name in every if all(name in one.observed for _, one in pairs)
        ]
        # Those that are not normalised have another scale.
        kinds = [name for name in there if name != "margins"] or there
        if not kinds:
            raise ValueError(
                "the solution has observed no margins; ask for them when solving: "
                'gflow.integrate(..., observe=("min_margin", "smoothed_margin")), and '
                '"normalized_margins" for those of all examples (for networks that are '
                'not homogeneous, observe=("margins",)).'
            )
        return kinds
    kinds = [kind] if isinstance(kind, str) else list(kind)
    for name in kinds:
        if name not in every:
            raise ValueError(
                f"kind={name!r} is not known; use {', '.join(map(repr, every))}."
            )
    if not kinds or ("margins" in kinds and len(kinds) > 1):
        raise ValueError(
            f"kind={kind!r}: pass at least one, and 'margins', which are normalised "
            "in another way, on axes of their own."
        )
    return [name for name in every if name in kinds]


def _draw(ax: Axes, x, y, kind: str, label: str, number: int | None) -> None:
    symbol = label_of(kind)
    if kind == "margins":
        y, symbol = _by_median(y), r"$p_i/\mathrm{median}(p)$"
    name = f"{label}, {symbol}" if label else symbol
    shade = None if number is None else colour(number)
    if kind in _FAMILIES:
        draw_family(ax, x, y, label=name, color=shade)
        return
    draw(
        ax,
        x,
        y[..., 0],
        label=name,
        color=shade or _COLOURS[kind],
        linestyle=_LINES[kind],
    )


def _clip(ax: Axes, drawn: list[np.ndarray]) -> None:
    # α < 0 until the data are separated, and α/‖W‖^L is -1e119 at ‖W‖ = 1e-60.
    values = np.concatenate([one[np.isfinite(one)] for one in drawn])
    if values.size and 0 < 20 * values.max() < -values.min():
        ax.set_ylim(-values.max(), 1.05 * values.max())


def _by_median(p: np.ndarray) -> np.ndarray:
    # Appendix A: "margins were normalized by the median nonnegative margin".
    flat = p.reshape(-1, p.shape[-1])
    scale = np.full((flat.shape[0], 1), np.nan)
    for i, row in enumerate(flat):
        nonnegative = row[row >= 0]
        if nonnegative.size and np.median(nonnegative) > 0:
            scale[i] = np.median(nonnegative)
    return (flat / scale).reshape(p.shape)
