r"""Directions of the parameters, W/‖W‖."""

from collections.abc import Iterator
from typing import Any

import jax.tree_util as jtu
import numpy as np
from matplotlib.axes import Axes

from .._solution import Solution
from ._lines import across, draw, draw_family, solutions_of
from ._style import (
    GREY,
    checked_against,
    colour,
    legend,
    new_axes,
    norm_of,
    set_scale,
    style,
)


# Numbers converted at a time: a large network's models at all times may fill memory.
_CHUNK = 4_000_000
# Where the guide 1/log t begins: log t of a flow whose data have been separated.
_LATE = 10.0


def directions(
    solutions: Any,
    *,
    kind: str = "auto",
    leaf: str | None = None,
    against: str = "log_t",
    scale: str = "auto",
    labels: Any = None,
    ax: Axes | None = None,
) -> Axes:
    r"""How the direction of the parameters moves and converges.

    - "circle", of two parameters: the trajectory of W/‖W‖ on the unit circle, from a
      hollow to a filled marker.
    - "neurons", of an (m, 2) weight matrix: the angles of its rows, $\arg w_j$.
    - "angle", of any number: the angle between W(t) and the limit's direction if the
      solution has a limit, else the final W. Late on it falls like $1/\log t$, which
      the dashed line shows. (The angle to the final W also falls to zero for the mere
      reason that the solve ends there.)

    **Arguments:**

    - `solutions`: a [`gflow.Solution`][], a sequence of them, or a dict from labels to
        them.
    - `kind`: "circle", "neurons" or "angle"; "auto" takes the first of them that fits.
    - `leaf`: the path of one parameter array, such as ".layers[0].weight"; None for all
        of the trained parameters together.
    - `against`, `scale`, `labels`: as for [`gflow.plot.training`][]; without effect on
        a circle.
    - `ax`: axes to draw on; None for a new figure.

    **Returns:**

    The Matplotlib axes.

    **Raises:**

    `ValueError` if there is no such leaf, or the parameters' shape is not one that
    `kind` can draw.
    """
    pairs = solutions_of(solutions, labels)
    if kind not in ("auto", "circle", "neurons", "angle"):
        raise ValueError(
            f"kind={kind!r} is not known; use 'auto', 'circle', 'neurons' or 'angle'."
        )
    x_label = checked_against(against)
    trained = [_trained(solution, leaf) for _, solution in pairs]
    kinds = {_kind(one, kind) for one in trained}
    if len(kinds) > 1:
        raise ValueError("the solutions' parameters differ in shape; use kind='angle'.")
    (kind,) = kinds
    if kind == "circle":
        return _circle(pairs, trained, ax)
    xs = [across(one, against) for _, one in pairs]
    curves = [
        _neurons(one) if kind == "neurons" else _angles(solution, one)
        for (_, solution), one in zip(pairs, trained, strict=True)
    ]
    with style(ax):
        (ax,) = new_axes(ax)
        for i, (label, _) in enumerate(pairs):
            number = i if len(pairs) > 1 else None
            if kind == "neurons":
                shade = None if number is None else colour(number)
                draw_family(ax, xs[i], curves[i], label=label, color=shade)
            else:
                draw(ax, xs[i], curves[i][..., 0], label=label, color=colour(i))
        set_scale(ax, "x", scale, logarithm=against != "t")
        if kind == "neurons":
            _angular_axis(ax)
            ax.set_ylabel(r"$\arg\,w_j$")
        else:
            ax.set_yscale("log")
            if against == "log_t":
                _guide(ax, xs, curves)
            has_limit = all(_limit_of(one) is not None for _, one in pairs)
            end = r"W_\infty" if has_limit else r"W_{\mathrm{final}}"
            ax.set_ylabel(rf"$\angle(W,\,{end})$  (rad)")
        ax.set_xlabel(x_label)
        legend(ax)
    return ax


# --- Parameters --------------------------------------------------------------------


class _Leaf:
    """A parameter array at the saved times, (lanes, T, ...), and at the end."""

    def __init__(self, path: str, models: Any, final: Any, lanes: tuple[int, ...]):
        times = models.shape[len(lanes)]
        self.path = path
        self.shape = final.shape[len(lanes) :]
        count = int(np.prod(lanes))
        self.models = np.asarray(models).reshape(count, times, *self.shape)
        self.final = np.asarray(final).reshape(count, *self.shape)


def _by_path(tree: Any) -> dict[str, Any]:
    return {jtu.keystr(p): leaf for p, leaf in jtu.tree_flatten_with_path(tree)[0]}


def _trained(solution: Solution, leaf: str | None) -> list[_Leaf]:
    # Those with an axis of times that the final model has not: the rest is fixed.
    lanes = np.shape(solution.log_t)[:-1]
    models, final = _by_path(solution.models), _by_path(solution.final)
    found = [
        _Leaf(path, models[path], last, lanes)
        for path, last in final.items()
        if hasattr(last, "shape") and models[path].ndim == last.ndim + 1
    ]
    if leaf is None:
        return found
    chosen = [one for one in found if one.path == leaf]
    if not chosen:
        raise ValueError(
            f"leaf={leaf!r} is not a trained parameter; those are "
            f"{', '.join(one.path for one in found)}."
        )
    return chosen


def _kind(trained: list[_Leaf], kind: str) -> str:
    size = sum(int(np.prod(one.shape)) for one in trained)
    rows = len(trained) == 1 and len(trained[0].shape) == 2
    fits = {
        "circle": size == 2,
        "neurons": rows and trained[0].shape[1] == 2,
        "angle": size > 0,
    }
    if kind == "auto":
        kind = next((one for one, good in fits.items() if good), "angle")
    if not fits[kind]:
        raise ValueError(
            f"kind={kind!r} takes "
            + {
                "circle": "two parameters",
                "neurons": "one weight matrix of shape (m, 2) (choose it by `leaf`)",
                "angle": "one parameter at least",
            }[kind]
            + f", and these are {', '.join(f'{o.path} {o.shape}' for o in trained)}."
        )
    return kind


def _unit(w: np.ndarray) -> np.ndarray:
    # W/‖W‖ over the last axis; NaN at W = 0. By the largest entry first, since squares
    # of 1e-200 are zero.
    w = w.astype(np.float64)
    size = np.max(np.abs(w), axis=-1, keepdims=True)
    w = w / np.where(size > 0, size, np.nan)
    return w / np.linalg.norm(w, axis=-1, keepdims=True)


def _rows(trained: list[_Leaf]) -> Iterator[tuple[int, slice, np.ndarray]]:
    """(lane, times, W) with W as vectors, a chunk of times at a time."""
    lanes, times = trained[0].models.shape[:2]
    size = sum(int(np.prod(one.shape)) for one in trained)
    step = max(1, _CHUNK // size)
    for lane in range(lanes):
        for start in range(0, times, step):
            part = slice(start, start + step)
            flat = [
                one.models[lane, part].reshape(one.models[lane, part].shape[0], -1)
                for one in trained
            ]
            yield lane, part, np.concatenate(flat, axis=1)


def _limit_of(solution: Solution) -> Any:
    return getattr(solution.limit, "direction", None)


def _angles(solution: Solution, trained: list[_Leaf]) -> np.ndarray:
    """(lanes, T, 1) angles to the limit or the final W; NaN where it is zero."""
    lanes, times = trained[0].models.shape[:2]
    limit = _limit_of(solution)
    ends = [one.final for one in trained]
    if limit is not None:
        by_path = _by_path(limit)
        ends = [
            np.asarray(by_path[one.path]).reshape(lanes, *one.shape) for one in trained
        ]
    end = _unit(np.concatenate([one.reshape(lanes, -1) for one in ends], axis=1))
    angle = np.full((lanes, times, 1), np.nan)
    for lane, part, w in _rows(trained):
        v = _unit(w)
        # Accurate for small angles too, unlike arccos.
        minus = np.linalg.norm(v - end[lane], axis=-1)
        plus = np.linalg.norm(v + end[lane], axis=-1)
        angle[lane, part, 0] = 2 * np.arctan2(minus, plus)
    # Zero has no place on a logarithmic axis.
    return np.where(angle > 0, angle, np.nan)


def _neurons(trained: list[_Leaf]) -> np.ndarray:
    """(lanes, T, m) angles of the rows, continuous in time; NaN for a zero row."""
    unit = _unit(trained[0].models)
    angle = np.arctan2(unit[..., 1], unit[..., 0])
    for lane in angle:
        for neuron in lane.T:
            good = np.isfinite(neuron)
            neuron[good] = np.unwrap(neuron[good])
    return angle


# --- Axes --------------------------------------------------------------------------


def _circle(pairs: Any, trained: list[list[_Leaf]], ax: Axes | None) -> Axes:
    with style(ax):
        (ax,) = new_axes(ax, size=(4.6, 4.0))
        turn = np.linspace(0, 2 * np.pi, 361)
        ax.plot(np.cos(turn), np.sin(turn), color=GREY, linewidth=0.6, zorder=0)
        ax.plot(0, 0, "+", color=GREY, markersize=5, zorder=0)
        for i, ((label, solution), leaves) in enumerate(
            zip(pairs, trained, strict=True)
        ):
            lanes = leaves[0].models.shape[0]
            path = np.full((*leaves[0].models.shape[:2], 2), np.nan)
            for lane, part, w in _rows(leaves):
                path[lane, part] = _unit(w)
            log_t = np.asarray(solution.log_t, dtype=np.float64)
            timed = len(pairs) == lanes == 1 and bool(np.isfinite(log_t).any())
            _draw_arcs(ax, path, label, colour(i), joined=not timed)
            if timed:
                _colour_by_time(ax, path[0], log_t.ravel())
        ax.set_aspect("equal")
        ax.set_xlim(-1.12, 1.12)
        ax.set_ylim(-1.12, 1.12)
        ax.set_xticks([-1, 0, 1])
        ax.set_yticks([-1, 0, 1])
        ax.set_xlabel(r"$W_1/\Vert W\Vert$")
        ax.set_ylabel(r"$W_2/\Vert W\Vert$")
        legend(ax)
    return ax


def _draw_arcs(
    ax: Axes, path: np.ndarray, label: str, color: str, *, joined: bool
) -> None:
    # (lanes, T, 2): from a hollow marker to a filled one.
    lanes = path.shape[0]
    alpha = 1.0 if lanes == 1 else float(np.clip(20 / lanes, 0.3, 0.8))
    for one in range(lanes):
        good = path[one][np.isfinite(path[one]).all(axis=1)]
        if not good.size:
            continue
        if joined:
            ax.plot(*_arc(good), color=color, linewidth=1.6, alpha=alpha)
        first, last = good[0], good[-1]
        ends = {"color": color, "linestyle": "none", "markersize": 5, "zorder": 4}
        ax.plot(*first, "o", markerfacecolor="white", alpha=alpha, **ends)
        ax.plot(*last, "o", label=label if one == 0 else None, alpha=alpha, **ends)


def _arc(path: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # Along the circle from each point to the next, not along the chord.
    angle = np.unwrap(np.arctan2(path[:, 1], path[:, 0]))
    points = np.arange(angle.size)
    fine = np.linspace(0, angle.size - 1, 32 * (angle.size - 1) + 1)
    angle = np.interp(fine, points, angle)
    return np.cos(angle), np.sin(angle)


def _colour_by_time(ax: Axes, path: np.ndarray, log_t: np.ndarray) -> None:
    # The saved states, dark to light with log t.
    good = np.isfinite(path).all(axis=1)
    ax.plot(*_arc(path[good]), color=colour(0), linewidth=1.2, zorder=1)
    good &= np.isfinite(log_t)
    dots = ax.scatter(
        *path[good].T,
        c=log_t[good],
        s=14,
        cmap="viridis",
        norm=norm_of(log_t[good]),
        zorder=3,
    )
    bar = ax.figure.colorbar(dots, ax=ax, shrink=0.75, aspect=30, pad=0.03)
    bar.set_label(r"$\log\,t$")
    bar.outline.set_visible(False)


def _angular_axis(ax: Axes) -> None:
    # Multiples of π/2, or of π where there are many.
    low, high = ax.get_ylim()
    step = 0.5 if high - low < 4 * np.pi else float(np.ceil((high - low) / 8 / np.pi))
    if high - low < 0.5:
        return
    first, last = np.floor(low / np.pi / step), np.ceil(high / np.pi / step)
    ticks = np.arange(first, last + 1) * step
    ax.set_yticks(ticks * np.pi, [_multiple_of_pi(tick) for tick in ticks])
    ax.set_ylim(low, high)


def _multiple_of_pi(x: float) -> str:
    if x == 0:
        return "$0$"
    halves = round(2 * x)
    sign, halves = ("-" if halves < 0 else ""), abs(halves)
    if halves % 2 == 0:
        whole = halves // 2
        return rf"${sign}{whole if whole > 1 else ''}\pi$"
    return rf"${sign}{halves if halves > 1 else ''}\pi/2$"


def _guide(ax: Axes, xs: list[Any], curves: list[np.ndarray]) -> None:
    # ∝ 1/log t, above the curves of the late phase, if that was reached.
    x = np.concatenate([one.ravel() for one in xs])
    y = np.concatenate([one[..., 0].ravel() for one in curves])
    late = np.isfinite(x) & np.isfinite(y) & (x > _LATE)
    if late.sum() < 3 or x[late].max() < 3 * _LATE:
        return
    constant = 2 * np.quantile(x[late] * y[late], 0.9)
    top = max(_LATE, constant / (2 * np.max(y[np.isfinite(y)])))
    ends = np.geomspace(min(top, x[late].max()), x[late].max(), 50)
    ax.plot(
        ends,
        constant / ends,
        color=GREY,
        linestyle=(0, (4, 3)),
        linewidth=1.0,
        zorder=0,
        label=r"$\propto 1/\log\,t$",
    )
