"""How far a solution is from breaking each law."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from ._style import GREY, PALETTE, new_axes, style


_COLOURS = {"pass": PALETTE[2], "fail": PALETTE[1], "not applicable": GREY}
# Bars begin here, and end at the other end of the axis: a violation of zero has a
# ratio of zero, and one that is infinite an infinite one.
_LEAST, _MOST = 1e-4, 1e4


def laws(table: Any, *, ax: Axes | None = None) -> Axes:
    """Violation over tolerance of each law, as horizontal bars.

    A law holds left of the line at 1. Bars are cut at 1e-4 and 1e4; laws that do not
    apply have none.

    **Arguments:**

    - `table`: what [`gflow.laws.check`][] returned.
    - `ax`: axes to draw on; None for a new figure.

    **Returns:**

    The Matplotlib axes.
    """
    rows = list(table)
    with style(ax):
        (ax,) = new_axes(ax, size=(6.4, 0.6 + 0.27 * len(rows)))
        for i, row in enumerate(rows):
            _draw(ax, i, row)
        ax.axvline(1.0, color="black", linewidth=0.8)
        ax.set_xscale("log")
        ax.set_xlim(_LEAST, _MOST)
        ax.set_ylim(len(rows) - 0.4, -0.6)
        ax.set_yticks(range(len(rows)), [row.law for row in rows])
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
        ax.set_xlabel("violation / tolerance")
        _legend(ax, {row.verdict for row in rows})
    return ax


def _draw(ax: Axes, i: int, row: Any) -> None:
    color = _COLOURS[row.verdict]
    if not row.applies:
        ax.text(
            _LEAST * 1.3,
            i,
            "not applicable",
            color=color,
            va="center",
            fontsize="small",
            fontstyle="italic",
        )
        return
    ratio = np.inf if np.isnan(row.violation) else row.violation / row.tolerance
    shown = float(np.clip(ratio, 1.25 * _LEAST, 0.5 * _MOST))
    ax.barh(i, shown - _LEAST, left=_LEAST, height=0.62, color=color, linewidth=0)
    ax.text(
        shown * 1.25,
        i,
        _shown(ratio),
        color=color,
        va="center",
        fontsize="small",
        # Over the line at 1.
        bbox={"facecolor": ax.get_facecolor(), "edgecolor": "none", "pad": 0.5},
    )


def _shown(ratio: float) -> str:
    if np.isinf(ratio):
        return "∞"
    return f"{ratio:.0f}" if 10 <= ratio < _MOST else f"{ratio:.2g}"


def _legend(ax: Axes, verdicts: set[str]) -> None:
    handles = [
        Patch(color=color, label=kind)
        for kind, color in _COLOURS.items()
        if kind in verdicts and kind != "not applicable"
    ]
    if handles:
        ax.legend(
            handles=handles,
            loc="lower left",
            bbox_to_anchor=(0.0, 1.0),
            ncols=2,
            frameon=False,
            borderaxespad=0.0,
        )
