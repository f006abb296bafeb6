"""How figures look: colours, fonts, names of quantities, scales of the axes."""

import contextlib
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, SymLogNorm


PALETTE = (
    "#0072B2",  # blue
    "#D55E00",  # vermilion
    "#009E73",  # bluish green
    "#CC79A7",  # reddish purple
    "#E69F00",  # orange
    "#56B4E9",  # sky blue
    "#000000",  # black
)
"""The colours of Okabe & Ito (2008), "Color universal design", which are told apart
with any colour vision, in an order that keeps the first few apart in grey too. Their
yellow is left out, as it is too pale for lines on white."""
GREY = "#888888"
"""The colour of lines and marks that only serve for comparison."""

_LABEL_SIZE = 10
_SMALL_SIZE = 9
_STYLE: dict[Any, Any] = {
    "font.size": _LABEL_SIZE,
    "axes.labelsize": _LABEL_SIZE,
    "axes.titlesize": _LABEL_SIZE,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.fontsize": _SMALL_SIZE,
    "lines.solid_capstyle": "round",
}

# Values that span more than this many units are drawn on a symmetrical logarithmic
# axis: linear up to `_LINEAR_UP_TO`, where flows begin and separate, logarithmic
# beyond, where they only converge.
_WIDE = 300.0
_LINEAR_UP_TO = 10.0
# Positive values over more than three decades are drawn on a logarithmic axis.
_DECADES = 1e3

_LABELS = {
    "log_loss": r"$\log\,\mathcal{L}$",
    "log_norm": r"$\log\,\Vert W\Vert$",
    "layer_norms": r"$\Vert W_k\Vert$",
    "grad_norm": r"$\log\,\Vert\nabla\mathcal{L}\Vert$",
    "alignment": r"$\angle(W,\,{-}\nabla\mathcal{L})$  (rad)",
    "path_length": r"$\zeta_t$  (rad)",
    "margins": r"$p_i$",
    "normalized_margins": r"$p_i/\Vert W\Vert^L$",
    "min_margin": r"$\min_i\,p_i/\Vert W\Vert^L$",
    "smoothed_margin": r"$\tilde\alpha$",
    "accuracy": "accuracy",
    "energy_defect": "energy defect",
}
_AGAINST = {
    "log_t": r"$\log\,t$",
    "t": r"$t$",
    "loss": r"$\ln(n/\mathcal{L})$",
}
# Logarithms already, so never on a logarithmic axis.
_LOGARITHMS = ("log_loss", "log_norm", "grad_norm")


def label_of(name: str) -> str:
    """A quantity's symbol, or the name itself of one that we do not know."""
    return _LABELS.get(name, name)


def checked_against(against: str) -> str:
    """The label of the horizontal axis; ValueError for an unknown choice."""
    if against not in _AGAINST:
        raise ValueError(
            f"against={against!r} is not known; use 'log_t', 't', or 'loss' for "
            "ln(n/ℒ)."
        )
    return _AGAINST[against]


def colour(i: int) -> str:
    """The i-th colour, starting again after the last."""
    return PALETTE[i % len(PALETTE)]


def shades(count: int) -> Any:
    """`count` colours from dark to light, of equal visual distance."""
    return colormaps["viridis"](np.linspace(0.0, 0.88, max(count, 1)))


@contextlib.contextmanager
def style(ax: Any):
    """Our style while a figure is made; with the caller's own axes, the caller's."""
    if ax is not None:
        yield
    else:
        with plt.rc_context(_STYLE):
            yield


def new_axes(
    ax: Any, *, count: int = 1, size: tuple[float, float] = (5.6, 3.6)
) -> Sequence[Axes]:
    """The axes given, or new ones, one above the other."""
    if ax is None:
        _, made = plt.subplots(
            count, 1, figsize=size, sharex=True, squeeze=False, layout="constrained"
        )
        axes = list(made[:, 0])
        for one in axes:
            # Made when drawn, so after the style has been left.
            one.tick_params(labelsize=_SMALL_SIZE, width=0.8)
        axes[0].get_figure(root=True).align_ylabels(axes)
        return axes
    axes = [ax] if isinstance(ax, Axes) else list(np.ravel(ax))
    if len(axes) != count:
        raise ValueError(f"ax holds {len(axes)} axes and {count} are drawn on.")
    return axes


def legend(ax: Axes) -> None:
    """A legend above the axes, if anything has a name."""
    handles, labels = ax.get_legend_handles_labels()
    if not handles:
        return
    # Above the factor, such as 1e-60, that small or large numbers have taken out.
    size = np.abs(ax.get_ylim()).max()
    factored = ax.get_yscale() == "linear" and not 1e-4 < size < 1e5
    ax.legend(
        handles,
        labels,
        loc="lower left",
        bbox_to_anchor=(0.0, 1.08 if factored else 1.01),
        ncols=min(len(labels), 3),
        frameon=False,
        borderaxespad=0.0,
        handlelength=1.6,
        columnspacing=1.4,
        fontsize=_SMALL_SIZE,
    )


def set_scale(ax: Axes, axis: str, scale: str, *, logarithm: bool = True) -> None:
    """Sets the scale of axis "x" or "y", chosen by what has been drawn if "auto".

    `logarithm`: whether the quantity is a logarithm (or grows like one).
    """
    if scale not in ("auto", "linear", "log", "symlog"):
        raise ValueError(
            f"scale={scale!r} is not known; use 'auto', 'linear', 'log' or 'symlog'."
        )
    low, high = _drawn(ax, axis)
    if scale == "auto":
        scale = "linear"
        if logarithm and high - low > _WIDE:
            scale = "symlog"
        elif not logarithm and low > 0 and high / low > _DECADES:
            scale = "log"
    options = {"linthresh": _LINEAR_UP_TO} if scale == "symlog" else {}
    (ax.set_xscale if axis == "x" else ax.set_yscale)(scale, **options)
    if scale == "symlog":
        (ax.xaxis if axis == "x" else ax.yaxis).set_major_formatter(_tick)


def _tick(value: float, position: Any = None) -> str:
    # 0, 10, 100, 1000, then powers of ten.
    del position
    if abs(value) <= 1000:
        return f"{value:g}".replace("-", "\N{MINUS SIGN}")
    sign = "-" if value < 0 else ""
    exponent = np.log10(abs(value))
    power = round(exponent)
    return f"${sign}10^{{{power}}}$" if abs(exponent - power) < 1e-6 else ""


def _drawn(ax: Axes, axis: str) -> tuple[float, float]:
    # The range of the data of all lines, (0, 0) without any.
    low, high = np.inf, -np.inf
    for line in ax.lines:
        if line.get_transform() != ax.transData:
            continue
        values = np.asarray(line.get_xdata() if axis == "x" else line.get_ydata())
        values = values[np.isfinite(values)]
        if values.size:
            low, high = min(low, values.min()), max(high, values.max())
    return (float(low), float(high)) if low <= high else (0.0, 0.0)


def is_logarithm(name: str) -> bool:
    """Whether a quantity is a logarithm."""
    return name in _LOGARITHMS


def norm_of(values: np.ndarray) -> Normalize:
    """Colours for logarithms of the time, on the scale that an axis would have."""
    low, high = (values.min(), values.max()) if values.size else (0.0, 1.0)
    if high - low > _WIDE:
        return SymLogNorm(_LINEAR_UP_TO, vmin=low, vmax=high)
    return Normalize(low, high)
