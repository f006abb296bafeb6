"""The laws: each holds on a good run, and fails on one that breaks it."""

import functools
import warnings

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np
import pytest

import gflow
from gflow.clocks import Alpha, LogTime, Physical
from gflow.laws import Check, Laws, check
from gflow.losses import CrossEntropy, Exponential, Logistic, Square
from gflow.nn import DeepLinear, TwoLayer, relu, squared_relu

from .helpers import rng


EXPONENTIAL, LOGISTIC = Exponential(), Logistic()
LOG_TIME = LogTime()
TIMES = jnp.concatenate([jnp.zeros(1), jnp.geomspace(0.01, 100.0, 30)])


@functools.cache
def flowers(a=0, b=1):
    x, y = gflow.data.two_classes(*gflow.data.iris(), a, b)
    return gflow.data.standardise(x), y


def verdicts(table, laws):
    return {law: table[law].verdict for law in laws}


def everything(laws, verdict):
    return dict.fromkeys(laws, verdict)


LATE = (
    "layer shares",
    "layers become rank one",
    "path length is finite",
    "gradient aligns",
    "growth rate",
)
BALANCE = ("layers stay balanced", "neurons stay balanced", "matrices stay balanced")
MARGINS = ("α ≤ β", "smoothed margin rises", "norm rises")
ENERGY = ("energy identity", "energy identity, late")


# Good runs ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def late():
    """A deep linear network, to log t = 1e6."""
    span = (0.0, gflow.exp(1e6))
    return gflow.integrate(
        deep_linear(), flowers(), EXPONENTIAL, span, observe="path_length"
    )


def late_table(solution, **options):
    return check(solution, data=flowers(), loss=EXPONENTIAL, **options)


def deep_linear(width=6):
    return DeepLinear((4, width, "scalar"), key=jr.key(0))


def explicit(model, data, loss, clock, t1, **options):
    return gflow.integrate(
        model, data, loss, (0.0, t1), clock=clock, solver=dfx.Tsit5(), **options
    )


@functools.cache
def smooth(clock=LOG_TIME, rtol=1e-6):
    """A squared ReLU network, to t = 100."""
    model = TwoLayer(4, 6, squared_relu, key=jr.key(1))
    options = {"save_at": TIMES, "rtol": rtol}
    return explicit(model, flowers(), LOGISTIC, clock, 100.0, **options)


def smooth_table(solution, **options):
    return check(solution, data=flowers(), loss=LOGISTIC, **options)


def test_a_deep_linear_network_passes_every_law(late):
    table = late_table(late)
    assert table.passed, str(table)
    absent = {one.law for one in table if not one.applies}
    assert absent == {"direction's rate", "one curve under every clock"}
    assert all(one.violation >= 0 for one in table if one.applies)


def test_the_rate_of_the_direction(late):
    limit = gflow.limit(late, flowers(), EXPONENTIAL)
    row = late_table(late, limit=limit)["direction's rate"]
    assert row.verdict == "pass", str(row)
    fast = 4 * limit.evidence.predicted_rate
    limit = eqx.tree_at(lambda one: one.evidence.predicted_rate, limit, fast)
    assert late_table(late, limit=limit)["direction's rate"].verdict == "fail"


def test_a_squared_relu_network_follows_one_curve_under_two_clocks():
    table = smooth_table(smooth(), other=smooth(Alpha()))
    assert table.passed, str(table)
    assert table["one curve under every clock"].applies
    assert table["neurons stay balanced"].predicted == "constant, p = 2"


def test_several_classes():
    x = rng(0).normal(size=(6, 5))
    data = (x, np.array([0, 1, 2, 0, 1, 2]))
    model = DeepLinear((5, 4, 3), key=jr.key(2))
    loss = CrossEntropy()
    sol = explicit(model, data, loss, LOG_TIME, gflow.exp(20.0))
    table = check(sol, data=data, loss=loss)
    assert table.passed, str(table)
    assert verdicts(table, MARGINS) == everything(MARGINS, "pass")
    assert "several outputs" in table["layers become rank one"].reason


def test_the_square_loss():
    x, _ = flowers()
    data = (x, rng(0).normal(size=len(x)))
    sol = explicit(deep_linear(8), data, Square(), Physical(), 1.0)
    table = check(sol, data=data, loss=Square())
    assert table.passed, str(table)
    assert verdicts(table, BALANCE) == everything(BALANCE, "pass")
    assert "no exponential tail" in table["α ≤ β"].reason


# Runs that break laws ----------------------------------------------------------------


@pytest.mark.parametrize("step, verdict", [(1e-5, "pass"), (0.05, "fail")])
def test_gradient_descent_follows_the_flow_with_small_steps_only(step, verdict):
    sol = gflow.descend(deep_linear(8), flowers(), LOGISTIC, step, 100)
    table = smooth_table(sol)
    broken = ("loss falls", "energy identity", *BALANCE)
    assert verdicts(table, broken) == everything(broken, verdict)
    assert table["energy identity, late"].verdict == "not applicable"


def test_a_descent_must_have_saved_every_step():
    at = 1e-5 * jnp.arange(0.0, 101.0, 10.0)
    sol = gflow.descend(deep_linear(8), flowers(), LOGISTIC, 1e-5, 100, save_at=at)
    assert "every step" in smooth_table(sol)["energy identity"].reason


def test_autodiff_at_kinks_breaks_the_energy_identity():
    data = flowers(1, 2)
    model = TwoLayer(4, 6, relu, key=jr.key(1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sol = gflow.integrate(
            model,
            data,
            LOGISTIC,
            (0.0, 10.0),
            kinks="autodiff",
            max_steps=10_000,
            throw=False,
        )
    table = check(sol, data=data, loss=LOGISTIC)
    assert verdicts(table, ENERGY) == everything(ENERGY, "fail")
    assert "kinks" in table["gradient aligns"].reason


def test_a_loose_tolerance_fails():
    table = smooth_table(smooth(Physical(), 0.1), other=smooth())
    assert not table.passed
    # No tolerance is above one percent.
    assert all(one.tolerance <= 0.011 for one in table if one.applies)
    # Judged by what was wanted, it fails twice.
    table = smooth_table(smooth(Physical(), 0.1), other=smooth(), rtol=1e-6)
    assert table["one curve under every clock"].verdict == "fail"
    assert verdicts(table, ENERGY) == everything(ENERGY, "fail")


class Biased(eqx.Module):
    w: jax.Array
    b: jax.Array

    def __call__(self, x):
        return self.w @ x + self.b**2


def test_a_model_that_is_not_homogeneous():
    model = Biased(jnp.array([1.0, -0.5]), jnp.ones(()))
    x = np.array([[1.0, 2.0], [2.0, -1.0], [-1.0, -3.0]])
    data = (x, np.array([1.0, 1.0, -1.0]))
    sol = explicit(model, data, LOGISTIC, Physical(), 20.0)
    table = check(sol, data=data, loss=LOGISTIC)
    laws = ("Euler's theorem", *MARGINS)
    assert verdicts(table, laws) == everything(laws, "not applicable")
    assert table["norm rises"].reason == "the model is not positively homogeneous"
    assert table["layers stay balanced"].verdict == "not applicable"
    assert table["energy identity"].verdict == "pass"

    forced = check(sol, data=data, loss=LOGISTIC, degree=1)
    assert forced["Euler's theorem"].verdict == "fail"


class Hat(eqx.Module):
    r"""A Mexican hat of degree 2, one margin whose flow's direction spirals for ever.

    $\Phi=\|W\|^2(1-f(kW_{1,2}/\|W\|))$ with $f=\tfrac12q^{-4}(1-0.7\sin(\phi-q))$ in
    polar coordinates, q = 1/(1 - r²): its valley winds around the unit circle for ever.
    """

    w: jax.Array
    k: float = eqx.field(static=True, default=30.0)

    def __call__(self, x):
        square = jnp.sum(self.w**2)
        u = self.k * self.w[:2] / jnp.sqrt(square)
        q = 1 / (1 - jnp.sum(u**2))
        f = 0.5 * q**-4 * (1 - 0.7 * jnp.sin(jnp.arctan2(u[1], u[0]) - q))
        return x * square * (1 - f)


@pytest.mark.slow
def test_the_path_on_the_mexican_hat_has_no_limit_in_sight():
    start = jnp.array([0.02, 0.0, np.sqrt(1 - 0.02**2)])
    data = (np.ones(1), np.ones(1))
    sol = gflow.integrate(Hat(start), data, EXPONENTIAL, (0.0, gflow.exp(1e8)))
    table = check(sol, data=data, loss=EXPONENTIAL)
    assert [one.law for one in table.failures] == ["path length is finite"], str(table)
    # Ji & Telgarsky 2020, Theorem 4.1: alignment needs no definability.
    assert table["gradient aligns"].verdict == "pass"


def moved(solution, change):
    """The solution with other models."""
    arrays, rest = eqx.partition(solution.models, eqx.is_inexact_array)
    models = eqx.combine(change(arrays), rest)
    return eqx.tree_at(lambda one: one.models, solution, models)


def test_other_models_than_those_of_the_flow(late):
    def noise(arrays):
        return jax.tree.map(
            lambda w: w * (1 + 0.05 * jnp.asarray(rng(0).normal(size=w.shape))), arrays
        )

    def backwards(arrays):
        return jax.tree.map(lambda w: w[::-1], arrays)

    def still(arrays):
        return jax.tree.map(lambda w: jnp.broadcast_to(w[:1], w.shape), arrays)

    laws = ("saved values", "loss falls", *MARGINS[1:], *BALANCE)
    table = late_table(moved(late, noise))
    assert verdicts(table, laws) == everything(laws, "fail"), str(table)
    assert table["energy identity, late"].verdict == "fail"
    assert table["α ≤ β"].verdict == "fail"
    assert table["gradient aligns"].verdict != "pass"

    table = late_table(moved(late, backwards))
    laws = ("saved values", "loss falls", "α ≤ β")
    assert verdicts(table, laws) == everything(laws, "fail"), str(table)

    table = late_table(moved(late, still))
    laws = ("saved values", *ENERGY)
    assert verdicts(table, laws) == everything(laws, "fail"), str(table)


def test_a_direction_that_stays_away_from_the_limit(late):
    """By 3°, always on the same side: it converges, but not to where the flow goes."""

    def astray(arrays):
        leaves, structure = jax.tree.flatten(arrays)
        size = jnp.exp(late.log_norm)[:, None, None]
        first = leaves[0] + 0.05 * size * jnp.eye(*leaves[0].shape[1:])[None]
        return jax.tree.unflatten(structure, [first, *leaves[1:]])

    solution = moved(late, astray)
    limit = gflow.limit(solution, flowers(), EXPONENTIAL)
    table = late_table(solution, limit=limit, other=late)
    laws = ("gradient aligns", "direction's rate", "one curve under every clock")
    assert verdicts(table, laws) == everything(laws, "fail"), str(table)
    # It still converges, and has a path of finite length.
    assert table["path length is finite"].verdict == "pass"


def test_the_length_of_the_path_at_infinity(late):
    known = [
        gflow.laws.path_limit(
            late.log_t[late.log_t <= 10.0**k],
            late.observed["path_length"][late.log_t <= 10.0**k],
            since=int(jnp.argmax(late.log_loss < 0)),
        )
        for k in (4, 6)
    ]
    early, last = known
    # What is left at 1e4, as it is seen at 1e6, where it is a tenth of that.
    left = last.path_length + last.left - early.path_length
    assert early.left == pytest.approx(left, rel=0.2)
    assert left < early.bound < 3 * left
    assert 0 < last.left < last.bound < 0.3 * left
    # ζ_∞ - ζ = (log t)^-1/2, and a logarithmic spiral's y^{1/6}.
    log_t = np.geomspace(5.0, 1e6, 50)
    power = gflow.laws.path_limit(log_t, 2.0 - log_t**-0.5)
    assert power.rate == pytest.approx(0.5, abs=1e-3)
    assert power.path_length + power.left == pytest.approx(2.0, abs=1e-5)
    assert power.bound > power.left
    spiral = gflow.laws.path_limit(log_t, np.log(log_t) ** (1 / 6))
    assert 0.5 < spiral.exponent < 1 and np.isinf(spiral.bound)
    short = gflow.laws.path_limit(log_t[:5], log_t[:5])
    assert np.isnan(short.left) and short.path_length == log_t[4]


def test_layers_of_other_shapes(late):
    def lopsided(arrays):
        # The same outputs, with other norms of the layers as time goes on.
        factor = jnp.linspace(1.0, 2.0, len(late))[:, None, None]
        first, second = jax.tree.leaves(arrays)
        leaves, structure = jax.tree.flatten(arrays)
        return jax.tree.unflatten(structure, [first * factor, second / factor])

    table = late_table(moved(late, lopsided))
    laws = (*BALANCE, "layer shares")
    assert verdicts(table, laws) == everything(laws, "fail"), str(table)
    assert table["saved values"].verdict == "pass"

    def full_rank(arrays):
        first, second = jax.tree.leaves(arrays)
        square = jnp.eye(*first.shape[1:])[None]
        extra = 0.1 * jnp.exp(late.log_norm)[:, None, None] * square
        leaves, structure = jax.tree.flatten(arrays)
        return jax.tree.unflatten(structure, [first + extra, second])

    table = late_table(moved(late, full_rank))
    assert table["layers become rank one"].verdict == "fail"


def test_a_wrong_clock(late):
    wrong = eqx.tree_at(lambda one: one.log_t, late, late.log_t + jnp.log(2.0))
    table = late_table(wrong)
    assert [one.law for one in table.failures] == ["growth rate"]


def test_another_curve():
    other = moved(smooth(), lambda arrays: jax.tree.map(lambda w: 1.1 * w, arrays))
    table = smooth_table(smooth(), other=other)
    assert table["one curve under every clock"].verdict == "fail"


# The table ---------------------------------------------------------------------------


def test_the_table(late):
    table = late_table(late)
    assert len(table) == len(list(table)) == len(table.checks)
    assert "pass" in str(table) and "because" in str(table)
    assert "JT Theorem 4.1" in str(table) and "<td>" in table._repr_html_()
    with pytest.raises(KeyError, match="did you mean 'energy identity'"):
        table["energy identty"]


def test_verdicts():
    def row(violation, **other):
        return Check("a", "b", violation=violation, tolerance=1.0, **other)

    assert row(1.0).verdict == "pass"
    assert row(1.1).verdict == row(float("nan")).verdict == "fail"
    absent = row(float("nan"), reason="of <this>")
    assert absent.verdict == "not applicable" and "because of <this>" in str(absent)
    table = Laws((row(1.0), row(2.0), absent))
    assert not table.passed and len(table.failures) == 1
    assert "&lt;this&gt;" in table._repr_html_()
    assert str(table).endswith("1 pass, 1 fail, 1 not applicable")


def test_the_figure():
    rows = [
        Check(str(v), "", violation=v, tolerance=1.0) for v in (0.0, 0.1, 9.0, np.inf)
    ]
    table = Laws((*rows, Check("none", "", reason="it is not")))
    ax = table.plot()
    widths = [bar.get_width() for bar in ax.patches]
    assert len(widths) == 4 and sorted(widths) == widths
    assert [label.get_text() for label in ax.get_yticklabels()][-1] == "none"
    plt.close("all")


# Arguments that cannot be right ------------------------------------------------------


def test_errors():
    sol = smooth()
    data = flowers()
    lanes = jax.tree.map(lambda a: a[None] if eqx.is_array(a) else a, sol)
    with pytest.raises(ValueError, match="pick a lane"):
        smooth_table(lanes)
    lane = jax.tree.map(lambda a: a[0] if eqx.is_array(a) else a, lanes)
    assert smooth_table(lane).passed
    with pytest.raises(ValueError, match="not a gflow.Solution"):
        smooth_table(sol.final)
    with pytest.raises(ValueError, match="other is a"):
        smooth_table(sol, other=3)
    with pytest.raises(ValueError, match="100 examples|same data"):
        check(sol, data=(data[0][:5], data[1][:5]), loss=LOGISTIC)
    with pytest.raises(ValueError, match="degree=0"):
        smooth_table(sol, degree=0)
    with pytest.raises(ValueError, match="rtol"):
        smooth_table(sol, rtol=-1.0)
    with pytest.raises(ValueError, match="being traced"):
        eqx.filter_jit(smooth_table)(sol)


def test_other_data_are_noticed():
    x, y = flowers()
    table = check(smooth(), data=(x[::-1], y), loss=LOGISTIC)
    assert table["saved values"].verdict == "fail"
