"""Figures: what is drawn is what the solutions hold."""

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest

import gflow
from gflow import plot
from gflow._solution import RESULTS
from gflow.plot._lines import MAX_CURVES, median


N = 5
ALL = ("min_margin", "smoothed_margin", "normalized_margins")


@pytest.fixture(autouse=True)
def figures():
    """Every figure is drawn in full, and leaves no settings behind."""
    before = dict(mpl.rcParams)
    yield
    assert dict(mpl.rcParams) == before
    for number in plt.get_fignums():
        plt.figure(number).canvas.draw()
    plt.close("all")


class Net(eqx.Module):
    weight: jax.Array
    fixed: jax.Array


def solution(shift=0.0, *, span=50.0, shape=(4, 2), log_t=None, limit=None, scale=1.0):
    """Made up: a network whose direction converges like 1/log t."""
    steps = jnp.linspace(-5.0, span, 40) + 0.1 * shift
    log_t = jnp.concatenate([jnp.array([-jnp.inf]), steps]) if log_t is None else log_t
    late = jnp.where(jnp.isfinite(log_t), jnp.maximum(log_t, 0.0), 0.0)
    angle = 1.0 + shift + 1.0 / (1.0 + late)
    count = int(np.prod(shape))
    turn = jnp.add.outer(angle, jnp.arange((count + 1) // 2, dtype=float))
    pairs = jnp.stack([jnp.cos(turn), jnp.sin(turn)], -1).reshape(len(log_t), -1)
    weight = (1.0 + late)[:, None] * pairs[:, :count]
    weight = weight.reshape(-1, *shape)
    levels = jnp.arange(N, dtype=float) + 1.0 + shift
    margins = jnp.outer(1.0 - jnp.exp(-late), levels) - 0.1
    return gflow.Solution(
        log_t=log_t,
        models=Net(weight, jnp.ones(3)),
        final=Net(weight[-1], jnp.ones(3)),
        log_loss=1.0 - late,
        log_norm=jnp.log(1.0 + late),
        predictions=jnp.zeros((len(log_t), N)),
        observed={
            "min_margin": scale * margins[:, 0],
            "smoothed_margin": scale * (margins[:, 0] - 0.01),
            "normalized_margins": scale * margins,
            "margins": margins * (1.0 + late)[:, None],
            "accuracy": jnp.mean(jnp.where(margins > 0, 1.0, 0.0), axis=1),
            "alignment": 1.0 / (1.0 + late),
            "many": jnp.outer(late, jnp.linspace(0.0, 1.0, 500)),
            "tree": {"a": late},
        },
        energy_defect=0.0 * late,
        log_t_final=log_t[-1],
        stats={},
        result=RESULTS.successful,
        resume=None,
        rtol=jnp.asarray(1e-6),
        limit=limit,
    )


def lanes(count=3, **options):
    """Solutions side by side, each with times of its own."""
    return eqx.filter_vmap(lambda s: solution(s, **options))(
        jnp.arange(count, dtype=float)
    )


def finite(x):
    x = np.asarray(x)
    return np.where(np.isfinite(x), x, np.nan)


def line(ax, label):
    found = [one for one in ax.lines if one.get_label() == label]
    assert len(found) == 1, [one.get_label() for one in ax.lines]
    return found[0]


def assert_data(line, x, y):
    np.testing.assert_array_equal(line.get_xdata(), finite(x))
    np.testing.assert_array_equal(line.get_ydata(), finite(y))


def unlabelled(ax):
    return [one for one in ax.lines if one.get_label().startswith("_")]


# Margins


def test_margins():
    sol = solution()
    ax = plot.margins(sol)
    x = np.log(N) - np.asarray(sol.log_loss)
    assert_data(line(ax, r"$\tilde\alpha$"), x, sol.observed["smoothed_margin"])
    smallest = line(ax, r"$\min_i\,p_i/\Vert W\Vert^L$")
    assert_data(smallest, x, sol.observed["min_margin"])
    family = ax.lines[:N]
    for i, one in enumerate(family):
        assert_data(one, x, sol.observed["normalized_margins"][:, i])
    assert len(ax.lines) == N + 2
    assert ax.get_xlabel() == r"$\ln(n/\mathcal{L})$"
    assert ax.get_legend() is not None


def test_margins_of_one_kind_on_given_axes():
    sol = solution()
    _, ax = plt.subplots()
    assert plot.margins(sol, kind="min_margin", against="log_t", ax=ax) is ax
    assert len(ax.lines) == 1
    assert_data(ax.lines[0], sol.log_t, sol.observed["min_margin"])


def test_margins_over_their_median():
    sol = solution()
    ax = plot.margins(sol, kind="margins")
    p = np.asarray(sol.observed["margins"])
    for i, one in enumerate(ax.lines):
        ratio = p[-1, i] / np.median(p[-1])
        np.testing.assert_allclose(one.get_ydata()[-1], ratio, rtol=1e-12)
    # Nothing is normalised where all margins are negative.
    assert np.isnan(ax.lines[0].get_ydata()[0])


def test_margins_that_were_not_observed():
    sol = eqx.tree_at(lambda s: s.observed, solution(), {})
    with pytest.raises(ValueError, match='observe=\\("min_margin", "smoothed_margin"'):
        plot.margins(sol)
    with pytest.raises(ValueError, match="observe=\\('min_margin',\\)"):
        plot.margins(sol, kind="min_margin")
    with pytest.raises(ValueError, match="not known"):
        plot.margins(sol, kind="margin")
    with pytest.raises(ValueError, match="axes of their own"):
        plot.margins(solution(), kind=("margins", "min_margin"))
    assert not plt.get_fignums()


@pytest.mark.parametrize("scale", [1e-60, 1e-200, 1.0, 1e60])
def test_margins_of_any_size(scale):
    ax = plot.margins(solution(scale=scale), kind=ALL)
    ax.figure.canvas.draw()
    low, high = ax.get_ylim()
    assert -scale < low < 0 and N * scale * 0.8 < high < 2 * N * scale


def test_smoothed_margin_of_a_tiny_network_does_not_set_the_axis():
    sol = solution()
    wild = sol.observed["smoothed_margin"].at[1].set(-1e119)
    sol = eqx.tree_at(lambda s: s.observed["smoothed_margin"], sol, wild)
    ax = plot.margins(sol)
    assert -2 * N < ax.get_ylim()[0] < 0
    assert line(ax, r"$\tilde\alpha$").get_ydata()[1] == -1e119


# Curves


def test_training():
    sol = solution()
    axes = plot.training(sol)
    assert axes.shape == (4,)
    values = (sol.log_loss, sol.log_norm, *map(sol.observed.get, ("accuracy",)))
    for ax, value in zip(axes, values, strict=False):
        assert_data(ax.lines[0], sol.log_t, value)
        assert ax.get_xscale() == "linear"
    assert_data(axes[3].lines[0], sol.log_t, sol.observed["alignment"])
    assert axes[-1].get_xlabel() == r"$\log\,t$"
    assert axes[0].get_legend() is None


def test_training_of_two():
    flow, descent = solution(), solution(1.0)
    bare = eqx.tree_at(lambda s: s.observed, descent, {})
    axes = plot.training({"flow": flow, "GD": bare})
    assert len(axes) == 2
    for label, sol in (("flow", flow), ("GD", bare)):
        assert_data(line(axes[0], label), sol.log_t, sol.log_loss)
        assert_data(line(axes[1], label), sol.log_t, sol.log_norm)
    again = plot.training([flow, bare], labels=["flow", "GD"], ax=axes)
    assert again.tolist() == axes.tolist() and len(axes[0].lines) == 4
    with pytest.raises(ValueError, match="1 labels for 2"):
        plot.training([flow, bare], labels=["flow"])
    with pytest.raises(ValueError, match="2 axes and 4"):
        plot.training(flow, ax=axes)


@pytest.mark.parametrize("span", [1e4, 1e8])
def test_long_times(span):
    axes = plot.training(solution(span=span))
    assert axes[0].get_xscale() == "symlog" and axes[0].get_yscale() == "symlog"
    assert axes[1].get_yscale() == "linear"
    assert axes[3].get_yscale() == "log"
    axes[0].figure.canvas.draw()
    shown = [one.get_text() for one in axes[-1].get_xticklabels()]
    assert {"0", "10"} <= set(shown)
    # A scale is that of everything on the axes.
    ax = plot.observed(solution(span=span), "min_margin")
    plot.observed(solution(), "min_margin", ax=ax)
    assert ax.get_xscale() == "symlog"
    assert plot.observed(solution(), "min_margin", scale="symlog").get_xscale() == (
        "symlog"
    )


def test_against_time():
    sol = solution(span=2000.0)
    ax = plot.observed(sol, "min_margin", against="t")
    t = np.asarray(sol.t)
    assert t[0] == 0 and np.isinf(t).any()
    np.testing.assert_allclose(ax.lines[0].get_xdata(), finite(t), rtol=1e-14)
    assert ax.get_xlabel() == "$t$"
    with pytest.raises(ValueError, match="against"):
        plot.observed(sol, "min_margin", against="steps")
    with pytest.raises(ValueError, match="scale"):
        plot.observed(sol, "min_margin", scale="square")


def test_observed():
    sol = solution()
    ax = plot.observed(sol, "normalized_margins")
    assert len(ax.lines) == N
    ax = plot.observed(sol, "many")
    assert len(ax.lines) == MAX_CURVES
    # The least and the greatest are among those drawn.
    assert_data(ax.lines[0], sol.log_t, sol.observed["many"][:, 0])
    assert_data(ax.lines[-1], sol.log_t, sol.observed["many"][:, -1])
    with pytest.raises(ValueError, match="observe=\\('path_length',\\)"):
        plot.observed(sol, "path_length")
    with pytest.raises(ValueError, match="not one array"):
        plot.observed(sol, "tree")
    with pytest.raises(ValueError, match=r"gflow\.Solution"):
        plot.observed(sol.final, "tree")
    with pytest.raises(ValueError, match="no solution"):
        plot.observed([], "tree")


def test_undefined_values():
    sol = solution()
    holes = sol.observed["min_margin"].at[3:6].set(jnp.nan).at[7].set(-jnp.inf)
    sol = eqx.tree_at(lambda s: s.observed["min_margin"], sol, holes)
    ax = plot.observed(sol, "min_margin")
    assert_data(ax.lines[0], sol.log_t, holes)
    nothing = eqx.tree_at(lambda s: s.observed["min_margin"], sol, holes * jnp.nan)
    plot.observed(nothing, "min_margin")
    plot.margins(nothing, kind="min_margin")


def test_descent_without_times():
    log_t = jnp.full(10, jnp.nan)
    sol = solution(log_t=log_t)
    with pytest.raises(ValueError, match="against='loss'"):
        plot.training(sol)
    assert not plt.get_fignums()
    plot.training(sol, against="loss")


# Lanes


def test_lanes():
    sols = lanes(3)
    ax = plot.observed(sols, "min_margin", labels="flow")
    thin = unlabelled(ax)
    assert len(thin) == 3
    for i, one in enumerate(thin):
        assert_data(one, sols.log_t[i], sols.observed["min_margin"][i])
        assert one.get_alpha() < 0.5
    middle = line(ax, "flow (median of 3)")
    grid, values = middle.get_data()
    # Lane 1 is in the middle wherever the lanes are apart.
    apart = (grid > 5) & (grid < 49)
    expected = np.interp(grid, sols.log_t[1, 1:], sols.observed["min_margin"][1, 1:])
    np.testing.assert_allclose(values[apart], expected[apart], atol=1e-12)
    assert apart.sum() > 50
    plot.margins(sols)
    plot.training(sols)


def test_many_axes_of_lanes():
    grid = eqx.filter_vmap(eqx.filter_vmap(solution))(jnp.arange(6.0).reshape(2, 3))
    assert len(unlabelled(plot.observed(grid, "min_margin"))) == 6
    assert len(plot.observed(grid, "normalized_margins").lines) == 6 * N
    plot.directions(grid)
    plot.directions(grid, kind="angle")


def test_median_of_shared_and_of_failed_lanes():
    x = np.broadcast_to(np.array([np.nan, 1.0, 2.0, 3.0]), (3, 4))
    y = np.array([[0, 1, 2, 3], [0, 2, 4, np.nan], [0, 3, 9, np.nan]], float)
    grid, middle = median(x, y)
    np.testing.assert_array_equal(grid, x[0])
    np.testing.assert_array_equal(middle, [np.nan, 2, 4, np.nan])
    # Of their own: from where all have begun to where half have ended.
    x = np.array([[0.0, 1, 2, 3], [1, 2, 3, 4], [1, 2, 3, 9], [np.nan] * 4])
    grid, middle = median(x, 2 * x)
    assert np.isnan(middle[grid < 1]).all() and np.isnan(middle[grid > 4]).all()
    shown = (grid >= 1) & (grid <= 3)
    np.testing.assert_allclose(middle[shown], 2 * grid[shown])


# Directions


def test_circle():
    sol = solution(shape=(2,))
    ax = plot.directions(sol)
    path = next(one for one in ax.lines if one.get_linewidth() == 1.2)
    x, y = path.get_data()
    np.testing.assert_allclose(np.hypot(x, y), 1.0, atol=1e-12)
    w = np.asarray(sol.models.weight)
    unit = w / np.linalg.norm(w, axis=1, keepdims=True)
    np.testing.assert_allclose(np.stack([x, y], 1)[::32], unit, atol=1e-12)
    # The dots are the saved states; t = 0 has no colour.
    np.testing.assert_allclose(ax.collections[0].get_offsets(), unit[1:], atol=1e-12)
    np.testing.assert_array_equal(ax.collections[0].get_array(), sol.log_t[1:])
    assert ax.get_aspect() == 1.0
    plot.directions(lanes(3, shape=(2,)))
    plot.directions([sol, solution(1.0, shape=(2,))], labels=["a", "b"])
    plot.directions(solution(shape=(2,), span=1e8))
    plot.directions(solution(shape=(2,), log_t=jnp.full(10, jnp.nan)))


def test_neurons():
    sol = solution(shape=(4, 2))
    ax = plot.directions(sol)
    angle = 1.0 + 1.0 / (1.0 + np.maximum(finite(sol.log_t)[1:], 0.0))
    found = []
    for one in ax.lines:
        # One of the neurons, in whole turns; so without jumps.
        turns = (one.get_ydata()[1:] - angle - np.arange(4)[:, None]) / (2 * np.pi)
        off = np.abs(turns - np.round(turns[:, :1])).max(axis=1)
        found.append(int(np.argmin(off)))
        assert off.min() < 1e-9
        assert -np.pi < one.get_ydata()[0] <= np.pi
    assert sorted(found) == [0, 1, 2, 3]


def test_angle_to_the_end():
    sol = solution(shape=(3, 4), span=1e4)
    ax = plot.directions(sol)
    angle = 1.0 / (1.0 + np.maximum(np.asarray(sol.log_t), 0.0))
    curve = ax.lines[0]
    expected = (angle - angle[-1])[1:-1]
    np.testing.assert_allclose(curve.get_ydata()[1:-1], expected, rtol=1e-9)
    assert np.isnan(curve.get_ydata()[-1])
    assert (ax.get_xscale(), ax.get_yscale()) == ("symlog", "log")
    assert "final" in ax.get_ylabel()
    guide = line(ax, r"$\propto 1/\log\,t$")
    product = guide.get_xdata() * guide.get_ydata()
    np.testing.assert_allclose(product, product[0])


def test_angle_to_the_limit():
    class Limit(eqx.Module):
        direction: Net

    turn = 1.0 + jnp.arange(6, dtype=float)
    weight = jnp.stack([jnp.cos(turn), jnp.sin(turn)], -1).reshape(3, 4)
    sol = solution(shape=(3, 4), limit=Limit(Net(weight, jnp.ones(3))))
    ax = plot.directions(sol)
    expected = 1.0 / (1.0 + np.maximum(np.asarray(sol.log_t), 0.0))
    np.testing.assert_allclose(ax.lines[0].get_ydata()[1:], expected[1:], rtol=1e-9)
    assert "infty" in ax.get_ylabel()


@pytest.mark.parametrize("size", [1e-60, 1e-200, 0.0])
def test_directions_of_tiny_parameters(size):
    sol = solution(shape=(4, 2))
    tiny = eqx.tree_at(
        lambda s: (s.models.weight, s.final.weight),
        sol,
        (sol.models.weight * size, sol.final.weight * size),
    )
    for kind in ("neurons", "angle"):
        ax, small = (plot.directions(one, kind=kind) for one in (sol, tiny))
        for a, b in zip(ax.lines, small.lines, strict=False):
            x, y = a.get_ydata(), b.get_ydata()
            if size:
                np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-14)
            else:
                assert np.isnan(y).all()


def test_which_parameters():
    sol = solution(shape=(4, 2))
    plot.directions(sol, leaf=".weight")
    with pytest.raises(
        ValueError, match=r"not a trained parameter; those are \.weight"
    ):
        plot.directions(sol, leaf=".fixed")
    with pytest.raises(ValueError, match="takes two parameters"):
        plot.directions(sol, kind="circle")
    with pytest.raises(ValueError, match="kind"):
        plot.directions(sol, kind="sphere")
    with pytest.raises(ValueError, match="differ in shape"):
        plot.directions([sol, solution(shape=(2,))])


# Distributions


def test_distribution():
    sols = lanes(20)
    final = np.sort(np.asarray(sols.observed["min_margin"])[:, -1])
    ax = plot.distribution(sols, "min_margin")
    (staircase,) = ax.lines
    np.testing.assert_array_equal(staircase.get_xdata()[1:], final)
    np.testing.assert_allclose(staircase.get_ydata(), np.arange(21) / 20)
    ax = plot.distribution(sols, "min_margin", kind="histogram")
    heights = ax.patches[0].get_xy()
    assert heights[:, 1].max() >= 1
    assert heights[0, 0] <= final[0] and heights[:, 0].max() >= final[-1]


def test_distributions_of_several():
    ax = plot.distribution({"a": lanes(5), "b": lanes(4)}, "log_loss")
    assert [one.get_label() for one in ax.lines] == ["a", "b"]
    # Solutions one by one are one sample.
    ax = plot.distribution([solution(1.0), solution(2.0)], "min_margin", labels="c")
    (staircase,) = ax.lines
    assert len(staircase.get_xdata()) == 3 and staircase.get_label() == "c"


def test_distribution_with_failed_lanes():
    sols = lanes(5)
    failed = sols.observed["min_margin"].at[2, -1].set(jnp.nan)
    sols = eqx.tree_at(lambda s: s.observed["min_margin"], sols, failed)
    ax = plot.distribution(sols, "min_margin")
    assert ax.lines[0].get_label() == "(4 of 5)"
    nothing = eqx.tree_at(lambda s: s.observed["min_margin"], sols, failed * jnp.nan)
    with pytest.raises(ValueError, match="undefined"):
        plot.distribution(nothing, "min_margin")
    with pytest.raises(ValueError, match="not a scalar"):
        plot.distribution(sols, "normalized_margins")
    with pytest.raises(ValueError, match="kind"):
        plot.distribution(sols, "min_margin", kind="violin")


@pytest.mark.parametrize("scale", [0.0, 1e-60, 1e-300, 1e30])
@pytest.mark.parametrize("kind", ["ecdf", "histogram"])
def test_distribution_of_any_size(kind, scale):
    ax = plot.distribution(lanes(6, scale=scale), "min_margin", kind=kind)
    ax.figure.canvas.draw()
    wide = lanes(6)
    spread = (
        wide.observed["min_margin"]
        * 10.0 ** (-10.0 * jnp.arange(6, dtype=float))[:, None]
    )
    wide = eqx.tree_at(lambda s: s.observed["min_margin"], wide, spread)
    assert plot.distribution(wide, "min_margin", kind=kind).get_xscale() == "log"
