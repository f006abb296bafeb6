"""The late phase: explicit solvers, closed forms, and truth at log t = 1e8."""

import diffrax as dfx
import equinox as eqx
import jax
import jax.monitoring
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import pytest

import gflow
from gflow.losses import CrossEntropy, Exponential, Logistic, MulticlassExponential
from gflow.solvers import PrimalDual

from .helpers import rng


class Net(eqx.Module):
    """Σ_j ± max(⟨w_j, x⟩, 0)², of degree 2."""

    w: jax.Array

    def __call__(self, x):
        signs = jnp.tile(jnp.array([1.0, -1.0], self.w.dtype), self.w.shape[0] // 2)
        return jnp.sum(signs * jnp.maximum(self.w @ x, 0) ** 2)


def instance(seed, n=20, d=5, m=20, dtype=float):
    """Random points on the sphere, random labels."""
    draw = rng(seed)
    x = draw.normal(size=(n, d))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    y = np.sign(draw.normal(size=n))
    net = Net(jnp.asarray(draw.normal(size=(m, d)) * 0.5, dtype))
    return net, (jnp.asarray(x, dtype), jnp.asarray(y, dtype))


class Cubic(eqx.Module):
    """Three smooth layers: a · W₂ (W₁ x)³/‖W₁‖², of degree 3, no kink but at W₁ = 0."""

    first: jax.Array
    second: jax.Array
    outer: jax.Array

    def __call__(self, x):
        hidden = (self.first @ x) ** 3 / jnp.sum(self.first**2)
        return self.outer @ (self.second @ hidden)


def cubic(seed):
    draw = rng(seed)
    _, (x, _) = instance(seed)
    y = jnp.sign(x @ draw.normal(size=5))
    shapes = (8, 5), (6, 8), (6,)
    return Cubic(*(jnp.asarray(draw.normal(size=s) * 0.5) for s in shapes)), (x, y)


def direction(model):
    w = np.concatenate([np.ravel(leaf) for leaf in jtu.tree_leaves(model)])
    return w / np.linalg.norm(w)


def at(models, i):
    return jtu.tree_map(lambda leaf: leaf[i], models)


# Compiling takes most of the time, 20 s for a solve that may go over to the late phase.
# Programs depend on the model's class and shapes, the loss, the observers, and whether
# and how many times are given; not on the data, the times and the tolerance. So tests
# take the same where they can.
TIMES = np.geomspace(3.0, 1000.0, 13)
OBSERVED = ("smoothed_margin", "alignment")


@pytest.mark.parametrize(
    ("problem", "rtol"), [(cubic(0), 1e-6), (instance(0), 2e-9)], ids=["cubic", "relu2"]
)
def test_agrees_with_an_explicit_solver(problem, rtol):
    model, data = problem
    span, save_at = (0.0, gflow.exp(1e3)), gflow.exp(TIMES)
    options = dict(save_at=save_at, observe=OBSERVED)
    if isinstance(model, Net):
        options["observe"] = ()
    reference = gflow.integrate(
        model,
        data,
        Exponential(),
        span,
        rtol=1e-10,
        clock=gflow.clocks.LogTime(),
        **options,
    )
    sol = gflow.integrate(model, data, Exponential(), span, rtol=rtol, **options)
    assert [part.solver for part in sol.parts] == ["Tsit5", "PrimalDual", "Tsit5"]
    first, late, last = sol.parts
    assert first.result == gflow.RESULTS.separated
    assert late.result == gflow.RESULTS.successful
    assert last.result == gflow.RESULTS.not_needed
    assert int(late.stats["num_steps"]) > 0 == int(last.stats["num_steps"])
    assert int(sol.stats["num_steps"]) < int(reference.stats["num_steps"]) / 5
    for i in range(len(TIMES)):
        a, b = direction(at(sol.models, i)), direction(at(reference.models, i))
        assert np.linalg.norm(a - b) < 1e-6
    np.testing.assert_allclose(sol.log_loss, reference.log_loss, rtol=2e-6)
    np.testing.assert_allclose(sol.log_t, TIMES)
    assert np.max(np.abs(sol.log_loss_defect)) < 10 * max(rtol, 1e-7)
    assert np.max(np.abs(sol.energy_defect)) < 10 * max(rtol, 1e-7)
    if not isinstance(model, Net):
        a, b = (s.observed["smoothed_margin"] for s in (sol, reference))
        np.testing.assert_allclose(a, b, rtol=1e-6)


class Product(eqx.Module):
    """f(x) = a_1 ... a_L x."""

    factors: jax.Array

    def __call__(self, x):
        return jnp.prod(self.factors) * x[0]


ONE = jnp.ones((1, 1)), jnp.ones(1)


def test_one_layer_in_closed_form():
    """dw/dt = e^-w: w = log(e^w0 + t)."""
    log_t = np.array([1.0, 50.0, 1e3, 1e5, 1e8])
    sol = gflow.integrate(
        Product(jnp.array([0.5])),
        ONE,
        Exponential(),
        (0.0, gflow.exp(1e8)),
        save_at=gflow.exp(log_t),
    )
    exact = np.logaddexp(log_t, 0.5)
    np.testing.assert_allclose(sol.models.factors[:, 0], exact, rtol=2e-6)
    np.testing.assert_allclose(-sol.log_loss, exact, rtol=2e-6)


def test_two_layers_in_closed_form():
    """p = a², a = b: dp/dt = 2 p e^-p, so t = (Ei(p) - Ei(p0))/2."""
    log_t = np.array([1e2, 1e3, 1e5, 1e8])
    sol = gflow.integrate(
        Product(jnp.array([0.6, 0.6])),
        ONE,
        Exponential(),
        (0.0, gflow.exp(1e8)),
        save_at=gflow.exp(log_t),
        rtol=1e-8,
    )
    p = np.prod(sol.models.factors, axis=1)
    # Ei(p) = (e^p/p)(1 + 1/p + 2/p² + 6/p³ + ...); Ei(p0) is nothing against it.
    series = 1 + 1 / p + 2 / p**2 + 6 / p**3 + 24 / p**4 + 120 / p**5
    np.testing.assert_allclose(p - np.log(2 * p) + np.log(series), log_t, rtol=1e-7)
    np.testing.assert_allclose(
        sol.models.factors[:, 0], sol.models.factors[:, 1], rtol=1e-12
    )


def test_a_hundred_steps_to_1e8_and_every_quantity_stays_finite():
    model, data = instance(3)
    sol = gflow.integrate(model, data, Exponential(), (0.0, gflow.exp(1e8)))
    assert sol.result == gflow.RESULTS.successful
    assert int(sol.parts[1].stats["num_steps"]) <= 100
    assert int(sol.parts[1].stats["num_newton"]) > 0
    assert float(sol.log_t_final) == pytest.approx(1e8, rel=1e-12)
    assert np.all(np.diff(sol.log_t) > 0) and np.all(np.diff(sol.log_loss) < 0)
    assert np.all(np.diff(sol.log_norm[-60:]) > 0)
    assert np.max(np.abs(sol.log_loss_defect)) < 2e-5
    # Late, ℒ ~ 1/(t (log t)^(2 - 2/L)): log ℒ + log t is small against either.
    assert abs(float(sol.log_loss[-1] / sol.log_t[-1]) + 1) < 1e-6
    for leaf in jtu.tree_leaves(sol):
        if jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.ndim:
            assert np.all(np.isfinite(leaf[..., 1:]) | np.isneginf(leaf[..., 1:]))


def test_saved_states_are_consistent_with_their_own_gradient():
    """Late weights q differ by e^(log t δθ): they show errors of 1e-9 in θ."""
    model, data = cubic(1)
    times = gflow.exp(10 ** np.linspace(3, 6, 13))
    sol = gflow.integrate(
        model,
        data,
        Exponential(),
        (0.0, gflow.exp(1e6)),
        observe=OBSERVED,
        save_at=times,
    )
    # JT Theorem 4.1: the angle between W and -∇ℒ goes to zero. It does so as slowly as
    # 1/‖W‖ ~ (log t)^(-1/3), at which what the data do not see of W(t0) fades.
    angle, log_t = np.asarray(sol.observed["alignment"]), np.asarray(sol.log_t)
    late = log_t > 1e4
    slope = np.polyfit(np.log(log_t[late]), np.log(angle[late]), 1)[0]
    assert -0.36 < slope < -0.31
    assert np.all(np.diff(angle) < 0) and angle[-1] < 0.02


LOSSES = [
    pytest.param(Exponential(reduction="mean"), marks=pytest.mark.slow),
    pytest.param(Logistic(), marks=pytest.mark.slow),
    CrossEntropy(),
    pytest.param(MulticlassExponential(), marks=pytest.mark.slow),
]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_every_tailed_loss(loss):
    """Deep linear networks on three clouds (or two) of points."""
    draw = rng(5)
    several = not loss.casts_labels
    y = np.repeat(np.arange(3), 6)
    x = jnp.asarray(draw.normal(size=(18, 3)) * 0.3 + np.eye(3)[y])
    y = jnp.asarray(y) if several else jnp.where(jnp.asarray(y) > 0, 1.0, -1.0)
    model = gflow.nn.DeepLinear(
        [3, 4, 3 if several else "scalar"], key=jax.random.key(0), dtype=float
    )
    span, save_at = (0.0, gflow.exp(400.0)), gflow.exp(np.array([400.0]))
    late = gflow.integrate(model, (x, y), loss, span, rtol=1e-7, save_at=save_at)
    reference = gflow.integrate(
        model,
        (x, y),
        loss,
        span,
        rtol=1e-9,
        save_at=save_at,
        clock=gflow.clocks.LogTime(),
    )
    assert int(late.parts[1].stats["num_steps"]) > 0
    assert np.linalg.norm(direction(late.final) - direction(reference.final)) < 1e-6
    np.testing.assert_allclose(late.log_loss[-1], reference.log_loss[-1], rtol=1e-6)


@pytest.mark.slow
def test_balancedness_is_conserved():
    model = gflow.nn.DeepLinear([4, 5, 5, "scalar"], key=jax.random.key(1), dtype=float)
    x, y = gflow.data.iris().x[:100], None
    x = jnp.asarray(x - x.mean(axis=0))
    y = jnp.where(jnp.arange(100) < 50, 1.0, -1.0)
    sol = gflow.integrate(model, (x, y), Logistic(), (0.0, gflow.exp(1e6)))
    weights = [np.asarray(layer) for layer in jtu.tree_leaves(sol.models)]
    weights = [w.reshape(w.shape[0], -1, w.shape[-1]) for w in weights]
    scale = np.exp(2 * np.asarray(sol.log_norm))
    for below, above in zip(weights, weights[1:], strict=False):
        gap = np.einsum("tij,tik->tjk", above, above) - np.einsum(
            "tij,tkj->tik", below, below
        )
        drift = np.linalg.norm(gap - gap[0], axis=(1, 2)) / scale
        assert np.max(drift) < 1e-5
    assert float(sol.log_norm[-1]) > 2


@pytest.mark.slow
def test_vmap_is_a_loop():
    """Lanes that hand over at different times, on different data."""
    lanes = [instance(0), instance(1)]
    span = (0.0, gflow.exp(1e4))

    def solve(net, data):
        return gflow.integrate(net, data, Logistic(), span)

    both = eqx.filter_vmap(solve)(*jtu.tree_map(lambda *a: jnp.stack(a), *lanes))
    for i, lane in enumerate(lanes):
        one = solve(*lane)
        np.testing.assert_allclose(both.final.w[i], one.final.w, rtol=1e-7, atol=1e-6)
        for mine, theirs in zip(both.parts, one.parts, strict=True):
            assert mine.stats["num_steps"][i] == theirs.stats["num_steps"]
            np.testing.assert_allclose(mine.log_t_final[i], theirs.log_t_final)
    assert both.parts[0].log_t_final[0] != both.parts[0].log_t_final[1]


def test_second_call_does_not_compile():
    seen = []

    def listen(event, duration, **kwargs):
        seen.append((event.rpartition("/")[2], kwargs.get("fun_name")))

    (net, data), (other, _) = instance(0), instance(1)
    gflow.integrate(net, data, Exponential(), (0.0, gflow.exp(1e3)), throw=False)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        gflow.integrate(other, data, Exponential(), (0.0, gflow.exp(1e5)), throw=False)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    # The check for kinks traces the model; nothing is compiled.
    assert [one for one in seen if one[0] == "backend_compile_duration"] == []
    assert ("jaxpr_trace_duration", "run") not in seen


def test_resumes_bit_for_bit():
    model, data = instance(0)
    span = (0.0, gflow.exp(1e6))
    whole = gflow.integrate(model, data, Exponential(), span)
    # The first time it stops before separation, and after it.
    for most in (20, 60):
        part = gflow.integrate(
            model, data, Exponential(), span, max_steps=most, throw=False
        )
        all_parts = [part]
        assert (int(part.parts[1].stats["num_steps"]) > 0) == (most == 60)
        while part.result == gflow.RESULTS.max_steps_reached:
            part = gflow.integrate(
                model,
                data,
                Exponential(),
                span,
                max_steps=20,
                throw=False,
                resume=part,
            )
            all_parts.append(part)
        np.testing.assert_array_equal(part.final.w, whole.final.w)
        for name in ("num_steps", "num_gradients"):
            counted = sum(int(one.stats[name]) for one in all_parts)
            assert counted == int(whole.stats[name])
    assert sum(int(one.stats["num_gradients"]) for one in whole.parts) + 1 == counted


@pytest.mark.slow
def test_goes_back_if_the_late_phase_fails(monkeypatch):
    """A tolerance that no stage meets: the explicit solver goes on."""
    monkeypatch.setattr("gflow.solvers._stage._DUAL_TOLERANCE", -1.0)
    model, data = instance(0)

    class Failing(Net):
        """With programs of its own."""

    failing = Failing(model.w)
    span, save_at = (0.0, gflow.exp(301.0)), np.geomspace(3.0, 301.0, 13)
    sol = gflow.integrate(
        failing, data, Exponential(), span, save_at=gflow.exp(save_at[-1:])
    )
    first, late, last = sol.parts
    assert late.result == gflow.RESULTS.unresolved
    assert int(last.stats["num_accepted_steps"]) > 100
    assert sol.result == gflow.RESULTS.successful
    explicit = gflow.integrate(
        model,
        data,
        Exponential(),
        span,
        save_at=gflow.exp(save_at),
        clock=gflow.clocks.LogTime(),
    )
    assert np.linalg.norm(direction(sol.final) - direction(explicit.final)) < 1e-5
    again = gflow.integrate(
        failing,
        data,
        Exponential(),
        (0.0, gflow.exp(310.0)),
        save_at=gflow.exp(np.array([310.0])),
        resume=sol,
    )
    assert int(again.parts[1].stats["num_steps"]) == 0
    assert float(again.log_t_final) == pytest.approx(310.0)


@pytest.mark.slow
def test_few_supporting_examples_are_enough():
    """Newton's matrix for 8 of 20 examples: the same curve as with all of them."""
    model, data = cubic(0)
    span = (0.0, gflow.exp(1e4))
    few = gflow.integrate(
        model, data, Exponential(), span, rtol=1e-7, solver=PrimalDual(support=8)
    )
    every = gflow.integrate(
        model,
        data,
        Exponential(),
        span,
        rtol=1e-7,
        save_at=gflow.exp(np.geomspace(3.0, 1e4, 13)),
        observe=OBSERVED,
    )
    assert every.parts[1].result == gflow.RESULTS.successful
    assert np.linalg.norm(direction(few.final) - direction(every.final)) < 1e-6
    assert few.clock == "LogLogTime"


def test_single_precision_stops_where_rounding_blurs_it():
    model, data = instance(0, dtype=jnp.float32)
    sol = gflow.integrate(
        model, data, Exponential(), (0.0, gflow.exp(1e8)), rtol=1e-4, throw=False
    )
    assert sol.final.w.dtype == jnp.float32
    assert sol.result == gflow.RESULTS.precision
    assert float(sol.log_t_final) == pytest.approx(1e-2 / np.finfo(np.float32).eps)
    double, data64 = instance(0)
    reference = gflow.integrate(
        double, data64, Exponential(), (0.0, gflow.exp(float(sol.log_t_final)))
    )
    assert np.linalg.norm(direction(sol.final) - direction(reference.final)) < 2e-3
    with pytest.raises(RuntimeError, match="float64"):
        gflow.integrate(model, data, Exponential(), (0.0, gflow.exp(1e8)), rtol=1e-4)


def test_log_norm_clock_is_the_same_curve():
    model, data = instance(0)
    start = gflow.integrate(model, data, Exponential(), (0.0, gflow.exp(2.0)))
    sols = [
        gflow.integrate(
            start.final,
            data,
            Exponential(),
            (0.0, gflow.exp(20.0)),
            clock=clock,
            rtol=1e-8,
        )
        for clock in (gflow.clocks.LogNorm(), gflow.clocks.LogTime())
    ]
    a, b = (sol.final.w for sol in sols)
    assert np.linalg.norm(a - b) < 1e-6 * np.linalg.norm(b)
    assert sols[0].clock == "LogNorm"
    # At the start the loss may make the norm shrink: it says so.
    small = Net(0.1 * jnp.ones_like(model.w) * jnp.sign(model.w))
    sol = gflow.integrate(
        small,
        data,
        Exponential(),
        (0.0, 10.0),
        clock=gflow.clocks.LogNorm(),
        throw=False,
    )
    assert sol.result in (gflow.RESULTS.unresolved, gflow.RESULTS.successful)


@pytest.mark.slow
def test_infinity():
    """t1 = ∞ integrates to log t = 1e8 and finds the limit from there."""
    draw = rng(1)
    x = jnp.asarray(draw.normal(size=(12, 4)))
    y = jnp.where(x @ draw.normal(size=4) > 0, 1.0, -1.0)
    model = gflow.nn.DeepLinear([4, 3, "scalar"], key=jax.random.key(0), dtype=float)
    sol = gflow.integrate(model, (x, y), Logistic(), (0.0, gflow.INFINITY))
    assert float(sol.log_t_final) == pytest.approx(1e8)
    assert bool(sol.limit.certified), sol.limit.reason
    assert float(sol.limit.kkt_residual) < 1e-10
    assert np.linalg.norm(direction(sol.final) - direction(sol.limit.direction)) < 1e-3
    # JT Prop. 4.4: the product is the hard-margin solution; its margin is that of the
    # support vector machine times L^(-L/2) = 1/2, found here by a linear network.
    linear = gflow.nn.Linear(4, "scalar", key=jax.random.key(0), dtype=float)
    one = gflow.integrate(
        linear,
        (x, y),
        Logistic(),
        (0.0, gflow.INFINITY),
        clock=gflow.clocks.LogTime(),
    )
    # In this clock the steps grow with log t, so that infinity is nearer.
    assert float(one.log_t_final) == pytest.approx(1e3)
    margin = float(one.limit.margin) / 2
    assert float(sol.limit.margin) == pytest.approx(margin, rel=1e-10)


RELU = gflow.nn.MLP(5, 3, 2, "scalar", key=jax.random.key(0))


class Stopped(Exception):
    """Raised before anything is compiled."""


@pytest.mark.parametrize(
    ("options", "end"),
    [
        ({}, 1e8),
        ({"solver": PrimalDual()}, 1e8),
        ({"solver": PrimalDual(), "clock": gflow.clocks.LogLogTime()}, 1e8),
        ({"solver": dfx.Tsit5()}, 1e3),
        ({"clock": gflow.clocks.LogTime()}, 1e3),
        ({"clock": gflow.clocks.LogLogTime()}, 1e3),
        ({"events": lambda state: state.log_loss + 1.0}, 1e3),
        ({"model": RELU}, 1e8),
        ({"model": RELU, "kinks": "autodiff"}, 1e3),
    ],
)
def test_where_infinity_is(options, end, monkeypatch):
    """As late as the late phase's solver comes, or as the others can afford."""
    ends = []

    def stop(save_at, t0, t1, *rest):
        ends.append(float(t1.log))
        raise Stopped

    monkeypatch.setattr("gflow._integrate.scheduled", stop)
    model, data = instance(0)
    options = {"model": model, "data": data, "loss": Logistic()} | options
    with pytest.raises(Stopped):
        gflow.integrate(t_span=(0.0, gflow.INFINITY), **options)
    assert ends == [end]


def test_infinity_where_there_is_none(getkey):
    model, (x, y) = instance(0)
    to_infinity = (0.0, gflow.INFINITY)
    with pytest.raises(ValueError, match="tail"):
        gflow.integrate(model, (x, y), gflow.losses.Square(), to_infinity)
    mlp = eqx.nn.MLP(5, "scalar", 8, 2, jnp.tanh, key=getkey())
    with pytest.raises(ValueError, match="homogeneous"):
        gflow.integrate(mlp, (x, y), Logistic(), to_infinity)
    with pytest.raises(ValueError, match="traced"):
        eqx.filter_jit(gflow.integrate)(model, (x, y), Logistic(), to_infinity)
    with pytest.raises(ValueError, match="finite time"):
        gflow.integrate(model, (x, y), Logistic(), (gflow.INFINITY, gflow.INFINITY))
    # Opposite labels at one point: nothing separates them, and the solve is short of
    # steps; what was computed is kept.
    x, y = x.at[1].set(x[0]), y.at[0].set(1.0).at[1].set(-1.0)
    with pytest.warns(UserWarning, match="no limit was found.*separate"):
        sol = gflow.integrate(
            model,
            (x, y),
            Logistic(),
            to_infinity,
            clock=gflow.clocks.LogTime(),
            max_steps=50,
            throw=False,
        )
    assert sol.limit is None and np.all(np.isfinite(sol.log_loss))


def test_errors():
    model, data = instance(0)
    mlp = eqx.nn.MLP(5, "scalar", 8, 2, jnp.tanh, key=jax.random.key(0))
    with pytest.raises(ValueError, match="homogeneous"):
        gflow.integrate(mlp, data, Logistic(), (0.0, 1.0), solver=PrimalDual())
    with pytest.raises(ValueError, match="exponential tail"):
        gflow.integrate(
            model, data, gflow.losses.Square(), (0.0, 1.0), solver=PrimalDual()
        )
    with pytest.raises(ValueError, match="LogLogTime"):
        gflow.integrate(
            model,
            data,
            Logistic(),
            (0.0, 1.0),
            solver=PrimalDual(),
            clock=gflow.clocks.LogTime(),
        )
    # A degree that is not the network's costs steps, nothing else.
    sol = gflow.integrate(
        mlp, data, Logistic(), (0.0, 10.0), solver=PrimalDual(degree=jnp.inf)
    )
    reference = gflow.integrate(mlp, data, Logistic(), (0.0, 10.0), rtol=1e-8)
    assert np.linalg.norm(direction_of(sol) - direction_of(reference)) < 1e-5


def direction_of(sol):
    return direction(eqx.filter(sol.final, eqx.is_inexact_array))
