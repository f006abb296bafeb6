"""Curves of solutions: what is drawn against what, lane by lane."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from .._solution import Solution
from ._style import colour, label_of, shades


# Of a family of curves (the margins of all examples) no more than this are drawn:
# evenly spaced ones, in the order of their final values.
MAX_CURVES = 200
# Points at which the median over lanes is taken, if each lane has times of its own.
_MEDIAN_POINTS = 400
_FEW = 6


def solutions_of(solutions: Any, labels: Any = None) -> list[tuple[str, Solution]]:
    """(label, solution) pairs, from a solution, a sequence or a dict of them."""
    if isinstance(solutions, Mapping):
        if labels is not None:
            raise ValueError("the keys of `solutions` are its labels; drop `labels`.")
        labels, solutions = list(solutions), list(solutions.values())
    elif isinstance(solutions, Solution):
        solutions = [solutions]
        labels = [labels] if isinstance(labels, str) else labels
    if not isinstance(solutions, Sequence) or not all(
        isinstance(one, Solution) for one in solutions
    ):
        raise ValueError(
            "a figure takes a gflow.Solution, a sequence of them, or a dict from "
            "labels to them."
        )
    if not solutions:
        raise ValueError("there is no solution to draw.")
    labels = [""] * len(solutions) if labels is None else [str(one) for one in labels]
    if len(labels) != len(solutions):
        raise ValueError(f"{len(labels)} labels for {len(solutions)} solutions.")
    return list(zip(labels, solutions, strict=True))


def across(solution: Solution, against: str) -> np.ndarray:
    """The horizontal coordinate, (lanes, T); NaN where there is nothing to draw."""
    log_t = _numbers(solution.log_t)
    if against == "loss":
        n = np.shape(solution.predictions)[log_t.ndim]
        x = np.log(n) - _numbers(solution.log_loss)
    elif against == "t":
        with np.errstate(over="ignore"):
            x = np.exp(log_t)
    else:
        x = log_t
    x = _finite(x).reshape(-1, log_t.shape[-1])
    if np.isnan(x).all() and against != "loss":
        raise ValueError(
            "the solution has no finite time to draw against (gradient descent whose "
            "step size is not known has none); use against='loss'."
        )
    return x


def values_of(solution: Solution, name: str) -> np.ndarray:
    """A quantity at the saved times, (lanes, T, k); NaN where not finite."""
    known = {
        "log_loss": solution.log_loss,
        "log_norm": solution.log_norm,
        "energy_defect": solution.energy_defect,
    }
    if name not in known and name not in solution.observed:
        there = ", ".join(map(repr, solution.observed)) or "nothing"
        raise ValueError(
            f"the solution has not observed {name!r} (it has observed {there}); ask "
            f"for it when solving: gflow.integrate(..., observe=({name!r},))."
        )
    value = solution.observed.get(name, known.get(name))
    times = np.shape(solution.log_t)
    if not hasattr(value, "shape") or value.shape[: len(times)] != times:
        raise ValueError(
            f"observed[{name!r}] is not one array with a leading axis of times; "
            "observe its parts under names of their own to draw them."
        )
    count = int(np.prod(times[:-1]))
    return _finite(_numbers(value)).reshape(count, times[-1], -1)


def draw(
    ax: Axes, x: np.ndarray, y: np.ndarray, *, label: str, color: Any, **options: Any
) -> None:
    """One quantity, (lanes, T): a line, or thin lines and their median."""
    lanes = x.shape[0]
    if lanes == 1:
        ax.plot(x[0], y[0], color=color, label=label, **{"linewidth": 1.6, **options})
        return
    alpha = float(np.clip(8 / lanes, 0.08, 0.45))
    for one in range(lanes):
        ax.plot(x[one], y[one], color=color, linewidth=0.6, alpha=alpha)
    name = f"{label} (median of {lanes})" if label else f"median of {lanes}"
    grid, middle = median(x, y)
    ax.plot(grid, middle, color=color, label=name, **{"linewidth": 2.0, **options})


def draw_family(
    ax: Axes, x: np.ndarray, y: np.ndarray, *, label: str, color: Any = None
) -> None:
    """Many quantities, (lanes, T, k): thin lines, shaded by their final values."""
    lanes, times, count = y.shape
    curves = y.transpose(0, 2, 1).reshape(lanes * count, times)
    xs = np.repeat(x, count, axis=0)
    order = np.argsort([last_finite(curve) for curve in curves], kind="stable")
    if order.size > MAX_CURVES:
        order = order[np.linspace(0, order.size - 1, MAX_CURVES).round().astype(int)]
    colours = shades(order.size) if color is None else [color] * order.size
    thin = order.size > 60
    for rank, one in enumerate(order):
        ax.plot(
            xs[one],
            curves[one],
            color=colours[rank],
            linewidth=0.6 if thin else 0.9,
            alpha=0.55 if thin else 0.75,
            # The one in the middle stands for all.
            label=label if rank == order.size // 2 else None,
        )


def draw_any(
    ax: Axes, x: np.ndarray, y: np.ndarray, *, name: str, label: str, number: int | None
) -> None:
    """A quantity of any shape: one line, a few with names, or a family.

    `number`: which of several solutions this is, None for the only one.
    """
    lanes, _, count = y.shape
    if count == 1:
        draw(ax, x, y[..., 0], label=label, color=colour(number or 0))
    elif number is None and lanes == 1 and count <= _FEW:
        for i in range(count):
            symbol = f"{label_of(name)}, {i}"
            draw(ax, x, y[..., i], label=symbol, color=colour(i))
    else:
        shade = None if number is None else colour(number)
        draw_family(ax, x, y, label=label, color=shade)


def median(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The median over lanes, on the lanes' own points if they share them.

    Otherwise each lane is interpolated, and the median taken from where all lanes have
    begun to where half of them have ended.
    """
    defined = np.isfinite(x) & np.isfinite(y)
    if np.array_equal(x, np.broadcast_to(x[:1], x.shape), equal_nan=True):
        return x[0], _median_where(np.where(defined, y, np.nan))
    points = np.unique(x[defined])
    if points.size > _MEDIAN_POINTS:
        keep = np.linspace(0, points.size - 1, _MEDIAN_POINTS).round().astype(int)
        points = points[keep]
    lanes = np.full((x.shape[0], points.size), np.nan)
    begun = -np.inf
    for one, good in enumerate(defined):
        if good.any():
            order = np.argsort(x[one][good], kind="stable")
            xs, ys = x[one][good][order], y[one][good][order]
            lanes[one] = np.interp(points, xs, ys, left=np.nan, right=np.nan)
            begun = max(begun, xs[0])
    return points, np.where(points >= begun, _median_where(lanes), np.nan)


def _median_where(lanes: np.ndarray) -> np.ndarray:
    # NaN where fewer than half of the lanes have a value.
    enough = 2 * np.isfinite(lanes).sum(axis=0) >= lanes.shape[0]
    middle = np.full(lanes.shape[1], np.nan)
    if enough.any():
        middle[enough] = np.nanmedian(lanes[:, enough], axis=0)
    return middle


def last_finite(curve: np.ndarray) -> float:
    """The last value that is defined; -inf if none is."""
    good = curve[np.isfinite(curve)]
    return float(good[-1]) if good.size else -np.inf


def _numbers(x: Any) -> np.ndarray:
    return np.asarray(x).astype(np.float64)


def _finite(x: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(x), x, np.nan)
