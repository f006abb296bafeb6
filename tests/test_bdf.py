"""BDF: its polynomials, the curvature in function space, accuracy, cost, and use."""

import diffrax as dfx
import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

import gflow
from gflow._flow import FlowField
from gflow._problem import Problem
from gflow.fields import GradientField
from gflow.solvers import BDF
from gflow.solvers import _past as past
from gflow.solvers._curvature import gauss_newton

from .helpers import rng, tolerance
from .test_stabilised import SPAN, flat, regression  # noqa: F401


# Polynomials through uneven points


NODES = jnp.array([1.3, 1.0, 0.4, -0.1, -0.3, -1.1, -2.0])


@pytest.mark.parametrize("order", range(1, 6))
def test_weights_are_exact_on_polynomials(order):
    coefficients = rng(order).normal(size=order + 1)
    poly = np.polynomial.Polynomial(coefficients)
    used = past.first(order + 1, len(NODES))
    # What is not used must not matter.
    values = jnp.where(used, poly(np.asarray(NODES)), 1e6)
    close = tolerance(np.float64, scale=30)
    found = past.at(NODES, used, jnp.asarray(1.7)) @ values
    np.testing.assert_allclose(found, poly(1.7), **close)
    found = past.slope_at_first(NODES, used) @ values
    np.testing.assert_allclose(found, poly.deriv()(NODES[0]), **close)
    found = past.integral(NODES, used, jnp.asarray(1.3)) @ values
    np.testing.assert_allclose(found, poly.integ()(1.3), **close)
    # The leading coefficient, and nothing of a lower degree.
    found = past.difference(NODES, used) @ values
    np.testing.assert_allclose(found, coefficients[-1], **close)


@pytest.mark.parametrize("order", range(1, 6))
def test_errors_of_evenly_spaced_formulas(order):
    """-h^(k+1) y^(k+1)/(k+1) γ/h, Hairer, Nørsett & Wanner (1993), III.2."""
    h = 0.5
    nodes = -h * jnp.arange(7.0)
    weights = past.error_weights(nodes, jnp.asarray(order))
    for q, row in zip(range(order - 1, order + 2), weights, strict=True):
        if not 1 <= q <= past.MOST:
            assert not np.any(row)
            continue
        gamma = h / sum(1 / j for j in range(1, q + 1))
        # y = t^(q+1) has y^(q+1) = (q+1)!.
        expected = gamma / h * h ** (q + 1) * np.prod(range(1, q + 1))
        found = row @ nodes ** (q + 1)
        np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_the_point_before_the_start_is_moved_to_the_parabola():
    gaps = jnp.array([0.0, -0.4, 0.0])
    slope, bend, h = 2.0, 3.0, 0.25
    points = jnp.array([[1.0], [1.0 - 0.4 * slope], [0.0]])
    new = jnp.array([1 + slope * h + bend * h**2])
    moved = past.straightened(gaps, points, jnp.asarray(h), new)
    np.testing.assert_allclose(moved[1, 0], 1 - 0.4 * slope + 0.16 * bend)


# Curvature


class Bilinear(eqx.Module):
    """Two outputs, linear in the weights: Gauss-Newton is all of the Hessian."""

    weight: jax.Array

    def __call__(self, x):
        return self.weight @ x


@pytest.mark.parametrize(
    "loss, clock",
    [
        (gflow.losses.CrossEntropy(), gflow.clocks.Physical()),
        (gflow.losses.CrossEntropy(reduction="mean"), gflow.clocks.LogTime()),
        (gflow.losses.MulticlassExponential(), gflow.clocks.Alpha()),
    ],
    ids=repr,
)
def test_curvature_is_minus_the_jacobian_of_a_linear_model(loss, clock):
    generator = rng(3)
    x, y = jnp.asarray(generator.normal(size=(7, 4))), jnp.arange(7) % 3
    params = Bilinear(jnp.asarray(generator.normal(size=(3, 4))))
    static = Bilinear(None)  # ty: the weight is the parameter
    problem = Problem(static, x, y, loss)
    field = FlowField(GradientField(problem), clock, jnp.zeros(()))
    state = field.start(params, path_length=False, motion=False)
    if state.log_time is not None:
        state = eqx.tree_at(lambda s: s.log_time, state, jnp.asarray(0.7))
    reading = jnp.asarray(0.9)

    def velocity(w):
        moved = eqx.tree_at(lambda s: s.params.weight, state, w.reshape(3, 4))
        return field(reading, moved, None).params.weight.reshape(-1)

    flat_weight = params.weight.reshape(-1)
    jacobian = jax.jacfwd(velocity)(flat_weight)
    curvature = gauss_newton(field, reading, state)
    gram = curvature.rows.T @ curvature.rows
    close = tolerance(np.float64, scale=10 * float(jnp.max(jnp.abs(jacobian))))
    np.testing.assert_allclose(gram, -jacobian, **close)
    np.testing.assert_allclose(
        curvature.rows @ curvature.rows.T, np.diag(curvature.squares), **close
    )
    v = jnp.asarray(generator.normal(size=12))
    step = jnp.asarray(2.5)
    solved = np.linalg.solve(np.eye(12) - 2.5 * np.asarray(jacobian), v)
    np.testing.assert_allclose(curvature.solve(step, v), solved, rtol=1e-9)


# Any differential equation


LAMBDA = jnp.array([1.0, 10.0, 1e3])


def forced(t, y, args):
    return -LAMBDA * (y - jnp.cos(t))


def test_a_stiff_linear_problem_in_diffrax():
    """y' = -λ (y - cos t), in closed form; saved between the steps."""
    times = jnp.linspace(0.1, 3.0, 7)
    rtol, atol = 1e-7, 1e-10
    solution = dfx.diffeqsolve(
        dfx.ODETerm(forced),
        BDF(rtol=rtol, atol=atol),
        0.0,
        3.0,
        None,
        jnp.zeros(3),
        stepsize_controller=dfx.PIDController(rtol=rtol, atol=atol),
        saveat=dfx.SaveAt(ts=times, solver_state=True),
    )
    t, rate = np.asarray(times)[:, None], np.asarray(LAMBDA)
    exact = rate**2 * (np.cos(t) - np.exp(-rate * t)) + rate * np.sin(t)
    np.testing.assert_allclose(solution.ys, exact / (1 + rate**2), atol=2e-8)
    # At a hundredth of this tolerance. Stability alone takes an explicit method 1,000.
    assert int(solution.stats["num_steps"]) < 500
    assert int(solution.solver_state.num_gradients) < 1_000


def test_outside_of_integrate_it_wants_tolerances():
    with pytest.raises(ValueError, match=r"BDF\(rtol=1e-6, atol=1e-9\)"):
        dfx.diffeqsolve(dfx.ODETerm(forced), BDF(), 0.0, 1.0, 0.1, jnp.zeros(3))


# In integrate


SQUARE = gflow.losses.Square()


@eqx.filter_jit
def solved(model, data, end, rtol):
    times = jnp.geomspace(1e-2, 1.0, 5) * end
    return gflow.integrate(
        model, data, SQUARE, (0.0, end), save_at=times, solver=BDF(), rtol=rtol
    )


def test_integrate(regression):  # noqa: F811
    model, data, end = regression
    span = jnp.asarray(SPAN)
    loose, tight = (solved(model, data, span, jnp.asarray(r)) for r in (1e-5, 1e-8))
    for sol, rtol, most in ((loose, 1e-5, 500), (tight, 1e-8, 1_200)):
        assert sol.solver == "BDF"
        np.testing.assert_allclose(flat(sol.final), end, rtol=0, atol=100 * rtol)
        assert np.max(np.abs(sol.energy_defect)) < 30 * rtol
        # Tsit5 takes 47,000, RKC3 5,000 at 1e-5.
        assert int(sol.stats["num_gradients"]) < most
    for i in range(5):
        one, other = (jax.tree.map(lambda w: w[i], s.models) for s in (loose, tight))  # noqa: B023
        np.testing.assert_allclose(flat(one), flat(other), rtol=0, atol=3e-4)


def test_lanes_of_vmap_are_single_solves(regression):  # noqa: F811
    model, data, _ = regression
    ends, rtols = jnp.array([1.0, SPAN]), jnp.array([1e-4, 1e-6])
    together = eqx.filter_vmap(solved, in_axes=(None, None, 0, 0))
    lanes = together(model, data, ends, rtols)
    # What another lane asks for changes nothing in this one.
    others = together(model, data, ends, rtols.at[0].set(1e-3))
    for mine, same in zip(*map(jax.tree.leaves, (lanes, others)), strict=True):
        np.testing.assert_array_equal(mine[1], same[1])
    for i in range(2):
        one = solved(model, data, ends[i], rtols[i])
        # (Rounding, which differs, decides whether some iterations have converged.)
        for name in ("num_gradients", "num_steps"):
            count = int(one.stats[name])
            assert abs(int(lanes.stats[name][i]) - count) <= 0.01 * count, name
        # Where an iteration more or less was taken they differ by what it leaves.
        found = flat(jax.tree.map(lambda w: w[i], lanes.final))  # noqa: B023
        np.testing.assert_allclose(found, flat(one.final), rtol=0, atol=rtols[i])


def test_a_resumed_solve_repeats_the_whole_and_its_counts(regression):  # noqa: F811
    model, data, _ = regression

    def run(**options):
        return gflow.integrate(
            model,
            data,
            SQUARE,
            (0.0, 5.0),
            save_at=[5.0],
            solver=BDF(),
            rtol=1e-4,
            throw=False,
            **options,
        )

    whole = run()
    part = run(max_steps=20)
    assert "maximum number" in str(part.result)
    rest = run(resume=part)
    assert np.array_equal(flat(rest.final), flat(whole.final))
    counted = int(part.stats["num_gradients"]) + int(rest.stats["num_gradients"])
    assert counted == int(whole.stats["num_gradients"])


@pytest.mark.slow
def test_a_clock_that_does_not_tell_the_time():
    """Alpha and three classes, against Tsit5 in log time.

    The flow spreads apart: errors grow by 1e4 on the way, in W more than in ℒ.
    """
    generator = rng(5)
    x, y = generator.normal(size=(9, 3)), np.arange(9) % 3
    model = gflow.nn.MLP(3, 4, 2, 3, jnp.tanh, key=jax.random.key(0))
    loss = gflow.losses.CrossEntropy()

    def run(model, **options):
        return gflow.integrate(model, (x, y), loss, (0.0, 1e3), **options)

    alpha = run(model, solver=BDF(), clock=gflow.clocks.Alpha(), rtol=1e-9)
    tsit5 = run(model, solver=dfx.Tsit5(), clock=gflow.clocks.LogTime(), rtol=1e-7)
    ends = [jax.flatten_util.ravel_pytree(s.final)[0] for s in (alpha, tsit5)]
    np.testing.assert_allclose(*ends, rtol=0, atol=2e-4)
    assert alpha.log_loss[-1] == pytest.approx(float(tsit5.log_loss[-1]), abs=1e-6)
    assert np.max(np.abs(alpha.log_loss_defect)) < 1e-6


def test_kinks_are_refused():
    model = gflow.nn.MLP(2, 3, 2, "scalar", jax.nn.relu, key=jax.random.key(0))
    data = (np.ones((2, 2)), np.ones(2))
    with pytest.raises(ValueError, match="not with BDF"):
        gflow.integrate(model, data, SQUARE, (0.0, 1.0), solver=BDF())


def test_float32():
    generator = rng(6)
    x = generator.normal(size=(9, 3)).astype(np.float32)
    y = np.sin(x[:, 0])
    model = gflow.nn.MLP(
        3, 4, 2, "scalar", jnp.tanh, key=jax.random.key(0), dtype=jnp.float32
    )
    sol = gflow.integrate(model, (x, y), SQUARE, (0.0, 30.0), solver=BDF(), rtol=1e-4)
    assert sol.final.layers[0].weight.dtype == jnp.float32
    assert np.max(np.abs(sol.energy_defect)) < 5e-3
    assert int(sol.stats["num_gradients"]) < 300


class Wide(eqx.Module):
    """x ↦ ⟨v, tanh(U x)⟩."""

    u: jax.Array
    v: jax.Array

    def __call__(self, x):
        return self.v @ jnp.tanh(self.u @ x)


def test_curvature_of_large_models_is_renewed_rarely(monkeypatch):
    """Four of twenty eigenvalues are kept, so that convergence is slow and stays so:
    renewed wherever it is, as of small models, the curvature is 62 times here.
    """
    one = 100_000
    monkeypatch.setattr("gflow.solvers._curvature._NUMBERS_KEPT", 0)
    monkeypatch.setattr("gflow.solvers._curvature._LEAST_KEPT", 4)
    monkeypatch.setattr("gflow.solvers._bdf.cost", lambda *_: one)
    draw = rng(0)
    x, y = draw.normal(size=(20, 5)), draw.normal(size=20)
    model = Wide(
        jnp.asarray(draw.normal(size=(30, 5))), jnp.asarray(draw.normal(size=30) / 5)
    )
    sol = gflow.integrate(
        model,
        (x, y),
        SQUARE,
        (0.0, 20.0),
        clock=gflow.clocks.Physical(),
        solver=BDF(),
        rtol=1e-6,
        save_at=[20.0],
    )
    renewed, gradients = divmod(int(sol.stats["num_gradients"]), one)
    assert 1 <= renewed <= 8
    assert gradients < 700
    assert np.max(np.abs(sol.energy_defect)) < 1e-6
