"""Flows other than the gradient flow: closed forms, SciPy, and what must hold."""

import math

import diffrax as dfx
import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.linalg import expm

import gflow
from gflow._check import checked_problem
from gflow.flows import (
    CorrelationAscent,
    HeavyBall,
    LagrangeMultiplier,
    Linearised,
    Natural,
    Polar,
    TangentGradient,
    WeightNorm,
)

from .helpers import rng, tolerance


X = np.array([[1.0, 2.0], [2.0, 1.0], [-1.0, 0.3]])
Y = np.array([1.0, -1.0, 1.0])
EXPONENTIAL = gflow.losses.Exponential()
SQUARE = gflow.losses.Square()


def arrays(tree):
    return [np.asarray(w) for w in jtu.tree_leaves(eqx.filter(tree, eqx.is_array))]


def two_layers(seed=0, dtype=np.float64):
    """f = w₂ W₁ x."""
    model = gflow.nn.DeepLinear((2, 3, "scalar"), key=jax.random.key(seed))
    return jtu.tree_map(lambda w: w.astype(dtype), model)


def one_layer(weights):
    model = gflow.nn.Linear(len(weights), "scalar", key=jax.random.key(0))
    return eqx.tree_at(
        lambda m: m.weight, model, jnp.asarray(weights).reshape(model.weight.shape)
    )


def descent(ws):
    """-∂ℒ/∂W_k of the two layers with the exponential loss, in NumPy."""
    first, second = ws[0], ws[1].reshape(-1)
    pull = Y * np.exp(-Y * (X @ first.T @ second))
    return [np.outer(second, pull @ X), (first @ (pull @ X)).reshape(ws[1].shape)]


# --- The equations, in NumPy ----------------------------------------------------------


def groups(ws, per_layer):
    if per_layer:
        return [w.ravel() for w in ws]
    return [np.concatenate([w.ravel() for w in ws])]


def layers(rows, like, per_layer):
    if not per_layer:
        rows = np.split(rows[0], np.cumsum([w.size for w in like])[:-1])
    return [row.reshape(w.shape) for row, w in zip(rows, like, strict=True)]


def speed(flow, ws, v_norm=1.0):
    """dW/dt, from the equations of the papers for ρ̇ and V̇."""
    moved = []
    rows = groups(ws, flow.per_layer)
    for w, d in zip(rows, groups(descent(ws), flow.per_layer), strict=True):
        p = {"l1": 1, "l2": 2, "linf": np.inf}.get(getattr(flow, "norm", "l2"), 3)
        rho = np.linalg.norm(w, p)
        v = w / rho
        s = np.eye(v.size) - np.outer(v, v)
        if isinstance(flow, Polar):  # T3 eqs. (13), (14)
            moved.append(v @ d * v + rho * (s @ d / rho))
        elif isinstance(flow, WeightNorm):  # T3 eqs. (55), (56)
            moved.append(v @ d * v + rho * (rho / v_norm * s @ d) / v_norm)
        else:  # T3 eqs. (46), (47), (53)
            n = np.sign(v) * np.abs(v) ** (p - 1) if p < np.inf else np.sign(v)
            n = np.where(np.abs(v) == np.abs(v).max(), n, 0) if p == np.inf else n
            turn = rho * d - n * (n @ (rho * d)) / (n @ n)
            free = isinstance(flow, LagrangeMultiplier)
            moved.append((v @ d * v if free else 0) + rho * turn)
    return layers(moved, ws, flow.per_layer)


FLOWS = [
    Polar(),
    Polar(per_layer=False),
    WeightNorm(),
    WeightNorm(per_layer=False, size=2.0),
    *(LagrangeMultiplier(p) for p in ("l1", "l2", "linf", 3)),
    *(TangentGradient(p, per_layer=p != "l1") for p in ("l1", "l2", "linf", 3)),
]


def problem_of(model, data, loss=EXPONENTIAL):
    return checked_problem(model, data, loss)


@eqx.filter_jit
def looked_at(flow, problem, params, t):
    """Motion at the start, and dW/dt by the chain rule."""
    state = flow.start(params, t)
    at = flow.motion(problem, state, t)
    scale = jnp.exp(at.log_speed)
    rate = jtu.tree_map(lambda d: scale * d, at.direction)
    _, chained = jax.jvp(flow.weights, (state, t), (rate, jnp.ones_like(t)))
    velocity = jtu.tree_map(
        lambda d: jnp.exp(at.velocity.log_speed) * d, at.velocity.direction
    )
    fall = jtu.tree_map(lambda d: jnp.exp(at.log_slope) * d, at.descent)
    return at.weights, velocity, chained, fall


@pytest.fixture(scope="module")
def at_start():
    return problem_of(two_layers(1), (X, Y))


@pytest.mark.parametrize("flow", FLOWS, ids=lambda f: f"{type(f).__name__}")
def test_velocity_is_that_of_the_equations(flow, at_start):
    problem, params = at_start
    weights, velocity, chained, fall = looked_at(flow, problem, params, jnp.zeros(()))
    ws = arrays(params)
    expected = speed(flow, ws, getattr(flow, "size", 1.0))
    for found in (velocity, chained):
        for a, b in zip(arrays(found), expected, strict=True):
            # The state of l1 lies `width` = 1e-5 beyond the sphere: to first order.
            rough = getattr(flow, "norm", None) == "l1" and found is chained
            np.testing.assert_allclose(a, b, **tolerance(np.float64, 1e7 * rough + 10))
    for a, b in zip(arrays(weights), ws, strict=True):
        np.testing.assert_allclose(a, b, **tolerance(np.float64))
    for a, b in zip(arrays(fall), descent(ws), strict=True):
        np.testing.assert_allclose(a, b, **tolerance(np.float64))


def test_prescribed_norms(at_start):
    problem, params = at_start
    flow = TangentGradient(rho=lambda t: (1 + t, jnp.exp(-t)))
    t = jnp.asarray(0.5)
    weights, velocity, chained, _ = looked_at(flow, problem, params, t)
    sizes, rates = (1.5, math.exp(-0.5)), (1.0, -math.exp(-0.5))
    ws = [r * w / np.linalg.norm(w) for r, w in zip(sizes, arrays(params), strict=True)]
    turned = speed(TangentGradient(), ws)
    for k, w in enumerate(ws):
        expected = turned[k] + rates[k] * w / sizes[k]
        np.testing.assert_allclose(arrays(weights)[k], w, **tolerance(np.float64))
        for found in (velocity, chained):
            np.testing.assert_allclose(
                arrays(found)[k], expected, **tolerance(np.float64, 10)
            )


# --- Solutions ------------------------------------------------------------------------


def solved(cases, times):
    """W of several flows at the given times, by one call of Diffrax to save compiling.

    `cases`: (flow, problem, params).
    """

    def rate(state, case, t):
        flow, problem, _ = case
        at = flow.motion(problem, state, t)
        return jtu.tree_map(lambda d: jnp.exp(at.log_speed) * d, at.direction)

    def field(t, states, args):
        return [rate(s, c, t) for s, c in zip(states, cases, strict=True)]

    @eqx.filter_jit
    def run(start):
        found = dfx.diffeqsolve(
            dfx.ODETerm(field),
            dfx.Tsit5(),
            times[0],
            times[-1],
            None,
            start,
            saveat=dfx.SaveAt(ts=times),
            stepsize_controller=dfx.PIDController(rtol=1e-12, atol=1e-12),
            max_steps=100_000,
        )
        return [
            jax.vmap(case[0].weights)(states, times)
            for case, states in zip(cases, found.ys, strict=True)
        ]

    return run([flow.start(params, times[0]) for flow, _, params in cases])


TIMES = jnp.array([0.0, 0.3, 0.7, 1.2])
PUSH = np.array([1.0, 0.2, -0.5, 0.25])  # the constant -∂ℒ/∂W of a linear loss
BEGIN = np.array([0.2, 0.4, 0.3, -0.1])


@pytest.fixture(scope="module")
def linear():
    """Flows under a constant push, on which every sphere has a closed form."""
    problem, params = checked_problem(
        one_layer(BEGIN), (PUSH[None], np.zeros(1)), lambda f, y: -jnp.sum(f)
    )
    flows = {
        "l1": TangentGradient("l1", width=1e-9),
        "l2": TangentGradient("l2"),
        "linf": TangentGradient("linf"),
    }
    found = solved([(flow, problem, params) for flow in flows.values()], TIMES)
    return {
        name: arrays(ws)[0].reshape(len(TIMES), -1)
        for name, ws in zip(flows, found, strict=True)
    }


def test_l2_sphere(linear):
    rho, size = np.linalg.norm(BEGIN), np.linalg.norm(PUSH)
    # With u = ⟨V, g⟩/‖g‖: u̇ = ρ‖g‖(1 - u²).
    start = np.arctanh(BEGIN @ PUSH / rho / size)
    along = linear["l2"] @ PUSH / rho / size
    expected = np.tanh(start + rho * size * np.asarray(TIMES))
    np.testing.assert_allclose(along, expected, atol=1e-8)
    norms = np.linalg.norm(linear["l2"], axis=1)
    np.testing.assert_allclose(norms, rho, **tolerance(np.float64))


def octahedron(v, g, time):
    """V̇ of T3's remark on p = 1 from one zero to the next, and what became of them."""
    v, sign, passed = v.copy(), np.sign(v), []
    while time > 0:
        rate = np.abs(sign) * (g - sign @ g / np.abs(sign).sum() * sign)
        with np.errstate(divide="ignore", invalid="ignore"):
            zeros = np.where(v * rate < 0, -v / rate, np.inf)
        step = min(time, zeros.min())
        v, time = v + step * rate, time - step
        if zeros.min() == step:
            k = int(np.argmin(zeros))
            v[k] = sign[k] = 0
            # It goes on where that is what it would do there, else it rests.
            passes = abs(g[k]) > sign @ g / np.abs(sign).sum()
            sign[k] = np.sign(g[k]) if passes else 0
            passed.append(passes)
    return v, passed


def test_l1_sphere(linear):
    rho = np.abs(BEGIN).sum()
    expected, passed = zip(
        *(octahedron(BEGIN / rho, rho * PUSH, float(t)) for t in np.asarray(TIMES)),
        strict=True,
    )
    # Some entries pass zero and others stay there.
    assert True in passed[-1] and False in passed[-1]
    np.testing.assert_allclose(linear["l1"], rho * np.array(expected), atol=1e-7)
    np.testing.assert_array_equal(linear["l1"] == 0, np.array(expected) == 0)
    norms = np.abs(linear["l1"]).sum(axis=1)
    np.testing.assert_allclose(norms, rho, **tolerance(np.float64))


def test_linf_sphere(linear):
    rho = np.abs(BEGIN).max()
    # The largest entry, the second, is driven outwards and stays; others up to it.
    expected = np.clip(
        BEGIN[None] + rho**2 * PUSH[None] * np.asarray(TIMES)[:, None], -rho, rho
    )
    np.testing.assert_allclose(linear["linf"], expected, atol=1e-8)
    assert np.all(np.abs(linear["linf"]).max(axis=1) == rho)


def test_linf_holds_the_norm_when_all_is_driven_inwards():
    problem, params = checked_problem(
        one_layer([1.0, -0.5]), (np.array([[-1.0, 3.0]]), np.zeros(1)), lambda f, y: -f
    )
    _, velocity, _, _ = looked_at(
        TangentGradient("linf"), problem, params, jnp.zeros(())
    )
    np.testing.assert_array_equal(arrays(velocity)[0].ravel(), [0.0, 3.0])


@pytest.fixture(scope="module")
def nonlinear():
    # Of a start from which no ρ_k comes near zero, where SciPy's W = ρV is stiff.
    model = two_layers(2)
    problem, params = problem_of(model, (X, Y))
    tanh = gflow.nn.TwoLayer(2, 4, jnp.tanh, key=jax.random.key(2))
    wide = checked_problem(tanh, (X, Y), SQUARE)
    tail = checked_problem(tanh, (X, Y), EXPONENTIAL)
    cases = {
        "norm": (WeightNorm(), problem, params),
        "norm 3": (WeightNorm(size=3.0), problem, params),
        "lagrange": (LagrangeMultiplier(), problem, params),
        "lagrange 3": (LagrangeMultiplier(3.0), problem, params),
        "natural": (Natural(), *wide),
        "natural tail": (Natural(), *tail),
    }
    found = solved(list(cases.values()), TIMES)
    return cases, dict(zip(cases, found, strict=True))


@pytest.mark.parametrize("name", ["norm", "norm 3", "lagrange 3"])
def test_against_scipy(nonlinear, name):
    cases, found = nonlinear
    flow, _, params = cases[name]
    ws = arrays(params)

    def rate(t, y):
        parts = np.split(y, [ws[0].size])
        now = [a.reshape(w.shape) for a, w in zip(parts, ws, strict=True)]
        moved = speed(flow, now, getattr(flow, "size", 1.0))
        return np.concatenate([m.ravel() for m in moved])

    expected = solve_ivp(
        rate,
        (0.0, float(TIMES[-1])),
        np.concatenate([w.ravel() for w in ws]),
        method="DOP853",
        rtol=1e-11,
        atol=1e-12,
        t_eval=np.asarray(TIMES),
    ).y.T
    flat = [a.reshape(len(TIMES), -1) for a in arrays(found[name])]
    np.testing.assert_allclose(np.concatenate(flat, axis=1), expected, atol=1e-8)


def test_lagrange_in_l2_is_weight_normalisation(nonlinear):
    _, found = nonlinear
    for a, b in zip(arrays(found["lagrange"]), arrays(found["norm"]), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-8)


def test_natural_flow_moves_the_outputs_alone(nonlinear):
    cases, found = nonlinear
    times = np.asarray(TIMES)[:, None]
    outputs = {
        name: np.asarray(jax.vmap(cases[name][1].outputs)(found[name]))
        for name in ("natural", "natural tail")
    }
    first = outputs["natural"][:1]
    # ḟ = y - f.
    np.testing.assert_allclose(
        outputs["natural"], Y + np.exp(-times) * (first - Y), atol=1e-8
    )
    margins = Y * outputs["natural tail"]
    # ṗ = 1.
    np.testing.assert_allclose(margins, margins[:1] + times, atol=1e-8)


def test_natural_gradient_of_the_logistic_loss():
    model = gflow.nn.TwoLayer(2, 4, jnp.tanh, key=jax.random.key(3))
    x = np.concatenate([X, rng(0).normal(size=(5, 2))])
    y = np.sign(rng(1).normal(size=8))
    for loss in (gflow.losses.Logistic(), gflow.losses.Logistic(reduction="mean")):
        problem, params = checked_problem(model, (x, y), loss)
        flat, _ = jax.flatten_util.ravel_pytree(params)
        by_tree = arrays(jax.jacobian(problem.outputs)(params))
        jacobian = np.concatenate([j.reshape(8, -1) for j in by_tree], axis=1)
        margins = y * np.asarray(problem.outputs(params))
        scale = 1.0 if loss.reduction == "sum" else 1 / 8
        likely = 1 / (1 + np.exp(-margins))
        fisher = scale * jacobian.T @ np.diag(likely * (1 - likely)) @ jacobian
        gradient = -scale * jacobian.T @ (y * (1 - likely))
        damped = np.linalg.solve(fisher + 0.1 * np.eye(flat.size), -gradient)
        _, velocity, _, _ = looked_at(
            Natural(damping=0.1), problem, params, jnp.zeros(())
        )
        found = jax.flatten_util.ravel_pytree(velocity)[0]
        np.testing.assert_allclose(found, damped, **tolerance(np.float64, 100))
        # On the spheres: tangent t minimises ½ tᵀ(F + δ)t + ∇ℒᵀt.
        tangent = []
        for k, w in enumerate(arrays(params)):
            unit = np.zeros(flat.size)
            start = sum(v.size for v in arrays(params)[:k])
            unit[start : start + w.size] = w.ravel() / np.linalg.norm(w)
            tangent.append(unit)
        basis = np.linalg.svd(np.stack(tangent))[2][len(tangent) :].T
        inner = basis.T @ (fisher + 0.1 * np.eye(flat.size)) @ basis
        expected = basis @ np.linalg.solve(inner, -basis.T @ gradient)
        flow = Natural(damping=0.1, constrained=True)
        _, velocity, chained, _ = looked_at(flow, problem, params, jnp.zeros(()))
        for one in (velocity, chained):
            found = jax.flatten_util.ravel_pytree(one)[0]
            np.testing.assert_allclose(found, expected, **tolerance(np.float64, 100))


def test_natural_gradient_of_several_classes():
    model = gflow.nn.Linear(2, 3, key=jax.random.key(0))
    labels = np.array([0, 2, 1])
    loss = gflow.losses.CrossEntropy()
    problem, params = checked_problem(model, (X, labels), loss)
    w = arrays(params)[0]
    logits = X @ w.T
    share = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    fisher, pull = np.zeros((6, 6)), np.zeros(6)
    for x, s, label in zip(X, share, labels, strict=True):
        jacobian = np.kron(np.eye(3), x)
        fisher += jacobian.T @ (np.diag(s) - np.outer(s, s)) @ jacobian
        pull += jacobian.T @ (np.eye(3)[label] - s)
    _, velocity, _, _ = looked_at(Natural(), problem, params, jnp.zeros(()))
    expected = np.linalg.pinv(fisher, rcond=1e-10) @ pull
    np.testing.assert_allclose(
        arrays(velocity)[0].ravel(), expected, **tolerance(np.float64, 100)
    )


# --- integrate ------------------------------------------------------------------------


def test_polar_form_is_the_gradient_flow():
    """T3 Observation 1."""
    model, times = two_layers(1), jnp.array([0.5, 2.0, 20.0])

    def run(flow):
        return gflow.integrate(
            model,
            (X, Y),
            EXPONENTIAL,
            (0.0, 20.0),
            save_at=times,
            rtol=1e-10,
            flow=flow,
        )

    standard, polar = run(None), run(Polar())
    assert standard.flow == "gradient" and polar.flow == "Polar"
    for a, b in zip(arrays(standard.models), arrays(polar.models), strict=True):
        sizes = [np.linalg.norm(w.reshape(3, -1), axis=1) for w in (a, b)]
        np.testing.assert_allclose(sizes[0], sizes[1], rtol=1e-8)
        directions = [
            w.reshape(3, -1) / size[:, None]
            for w, size in zip((a, b), sizes, strict=True)
        ]
        np.testing.assert_allclose(directions[0], directions[1], atol=1e-8)
    for one in (standard, polar):
        assert np.abs(one.energy_defect).max() < 1e-8
        assert np.abs(one.log_loss_defect).max() < 1e-8
    with pytest.raises(ValueError, match="laws are those of the gradient flow"):
        gflow.laws.check(polar, data=(X, Y), loss=EXPONENTIAL)


def test_float32_and_late_times(tmp_path):
    model = two_layers(1, np.float32)
    flow = WeightNorm(size=2.0)
    sol = gflow.integrate(
        model, (X, Y), EXPONENTIAL, (0.0, gflow.exp(30.0)), flow=flow, rtol=1e-4
    )
    assert all(w.dtype == np.float32 for w in arrays(sol.models))
    # ρ₁ρ₂ min p ~ log t, also where ℒ itself is e^-30.
    assert -40 < sol.log_loss[-1] < -28 and sol.clock == "LogTime"
    assert np.abs(sol.energy_defect).max() < 5e-3
    # ‖v_k‖ is constant (T3 section 10.2).
    for v in arrays(sol.resume.position.state.params.v):
        assert np.linalg.norm(v) == pytest.approx(2.0, rel=1e-2)
    path = tmp_path / "flow.npz"
    gflow.save(sol, path)
    again = gflow.load(path, model)
    assert again.flow == "WeightNorm" and again.resume.flow == "WeightNorm"
    for a, b in zip(arrays(again), arrays(sol), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="of the flow WeightNorm"):
        gflow.integrate(
            model, (X, Y), EXPONENTIAL, (0.0, gflow.exp(40.0)), resume=again, rtol=1e-4
        )


def test_prescribed_norm_under_jit_and_vmap_with_an_event():
    flow = TangentGradient(per_layer=False, rho=lambda t: 1 + t)
    times = jnp.array([0.0, 0.5, 1.0])

    @eqx.filter_jit
    @eqx.filter_vmap
    def run(key):
        model = gflow.nn.DeepLinear((2, 3, "scalar"), key=key)
        return gflow.integrate(
            model,
            (X, Y),
            EXPONENTIAL,
            (0.0, 9.0),
            save_at=times,
            events=lambda state: gflow.observe.log_norm(state) - math.log(3.0),
            flow=flow,
        )

    sol = run(jax.random.split(jax.random.key(0), 2))
    # The event is that ρ = 3, at t = 2 whatever the direction.
    np.testing.assert_allclose(np.exp(sol.log_t_final), 2.0, rtol=1e-6)
    np.testing.assert_allclose(
        np.exp(sol.log_norm),
        np.broadcast_to(1 + times, (2, 3)),
        **tolerance(np.float64),
    )
    assert np.abs(sol.energy_defect).max() < 1e-5
    assert not np.allclose(sol.log_loss[0], sol.log_loss[1])


def test_heavy_ball():
    """On a quadratic, in closed form; light, it is the gradient flow."""
    times = jnp.array([0.0, 0.5, 1.0, 2.0])

    masses = np.array([2.0, 1.0, 1e-3])

    def run(part=None, **options):
        @eqx.filter_vmap
        def lane(mass, part):
            return gflow.integrate(
                one_layer([1.5]),
                (np.ones((1, 1)), np.zeros(1)),
                SQUARE,
                (0.0, 2.0),
                save_at=times,
                flow=HeavyBall(1.0, mass),
                rtol=1e-9,
                resume=part,
                **options,
            )

        return lane(jnp.asarray(masses), part)

    sol = run()
    t = np.asarray(times)
    for m, found in zip(masses, np.asarray(sol.predictions), strict=True):
        roots = np.roots([m, 1.0, 1.0]).astype(complex)
        a, b = 1.5 * np.array([-roots[1], roots[0]]) / (roots[0] - roots[1])
        expected = np.real(a * np.exp(roots[0] * t) + b * np.exp(roots[1] * t))
        np.testing.assert_allclose(found.ravel(), expected, atol=1e-7)
    light = np.asarray(sol.predictions)[-1].ravel()
    np.testing.assert_allclose(light, 1.5 * np.exp(-t), atol=5e-3)
    # Resumed, it goes on bit for bit.
    part = run(max_steps=20, throw=False)
    assert np.all(part.log_t_final < math.log(2.0))
    rest = run(part.resume)
    for a, b in zip(arrays(rest.final), arrays(sol.final), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(rest.energy_defect[:, -1], sol.energy_defect[:, -1])


def test_friction_that_changes():
    """m W̎ = -∇ℒ - γ(t) Ẇ."""
    problem, params = checked_problem(two_layers(1), (X, Y), EXPONENTIAL)
    flow = HeavyBall(lambda t: 3 / (1 + t), 2.0)
    t = jnp.asarray(0.5)
    moving = jtu.tree_map(lambda w: w + 1.0, params)
    at = flow.motion(problem, gflow.flows.Moving(params, moving), t)
    pushes = descent(arrays(params))
    accelerated = arrays(at.direction.velocity)
    for a, d, v in zip(accelerated, pushes, arrays(moving), strict=True):
        np.testing.assert_allclose(a, (d - 2.0 * v) / 2, **tolerance(np.float64))
    for a, v in zip(arrays(at.direction.weights), arrays(moving), strict=True):
        np.testing.assert_array_equal(a, v)


def test_correlation_ascent():
    x, y = rng(5).normal(size=(6, 2)), rng(6).normal(size=6)
    model = gflow.nn.TwoLayer(
        2, 5, gflow.nn.squared_relu, outer="fixed", key=jax.random.key(4)
    )
    sol = gflow.integrate(
        model,
        (x, y),
        SQUARE,
        (0.0, 40.0),
        save_at=jnp.array([0.0, 0.1, 0.3, 1.0, 3.0, 40.0]),
        flow=CorrelationAscent(),
        observe=["ncf", "ncf_kkt"],
        rtol=1e-8,
    )
    np.testing.assert_allclose(sol.log_norm, 0.0, atol=1e-14)
    ncf = np.asarray(sol.observed["ncf"])
    assert np.all(np.diff(ncf) > 0) and ncf[-1] > 0
    # KH eq. (11): it ends at a non-negative KKT point.
    assert sol.observed["ncf_kkt"]["residual"][0] > 0.1
    assert sol.observed["ncf_kkt"]["residual"][-1] < 1e-6
    assert sol.observed["ncf_kkt"]["multiplier"][-1] > 0
    assert np.abs(sol.energy_defect).max() < 1e-6
    # Off the sphere it is KH eq. (10), of the same direction.
    problem, params = checked_problem(model, (x, y), SQUARE)
    times = jnp.array([0.0, 0.1, 0.3])
    free = CorrelationAscent(z=y, sphere=False)
    (weights,) = solved([(free, problem, params)], times)
    w = arrays(weights)[0].reshape(3, -1)
    w = w / np.linalg.norm(w, axis=1, keepdims=True)
    u = arrays(eqx.filter(sol.models, gflow.nn.trainable(sol.models)))[0]
    np.testing.assert_allclose(u[:3].reshape(3, -1), w, atol=1e-6)


def test_linearised_flow():
    """Against the matrix exponential of the kernel, through the kinks of a ReLU."""
    model = gflow.nn.TwoLayer(2, 6, key=jax.random.key(7))
    times = np.array([0.0, 0.4, 2.0])
    sol = gflow.integrate(
        model,
        (X, Y),
        SQUARE,
        (0.0, 2.0),
        save_at=times,
        flow=Linearised(),
        rtol=1e-9,
    )
    assert sol.kinks == "none" and sol.flow == "Linearised"
    problem, params = checked_problem(model, (X, Y), SQUARE)
    jacobian = jax.jacobian(problem.outputs)(params)
    rows = np.concatenate([j.reshape(3, -1) for j in arrays(jacobian)], axis=1)
    first = np.asarray(problem.outputs(params))
    kernel = rows @ rows.T
    expected = [Y + expm(-t * kernel) @ (first - Y) for t in times]
    np.testing.assert_allclose(sol.predictions, expected, atol=1e-7)
    # The models are what the flow saw.
    final = jax.vmap(sol.final)(jnp.asarray(X))
    np.testing.assert_allclose(final, expected[-1], atol=1e-7)
    assert np.abs(sol.energy_defect).max() < 1e-7


def test_linearised_models():
    reference, model = two_layers(1), two_layers(2)
    linear = gflow.nn.Linearised(
        gflow.nn.DeepLinear((2, 3, "scalar"), key=jax.random.key(2)), reference
    )
    x = jnp.asarray(X[0])
    a, b = arrays(reference)
    c, d = arrays(model)
    expected = (d @ a + b @ c - b @ a) @ X[0]
    np.testing.assert_allclose(linear(x), expected.squeeze(), **tolerance(np.float64))
    # Of a model of the whole batch, with a leaf that is not trained.
    spec = jtu.tree_map(lambda w: w.ndim == 2 and w.shape[0] == 3, model)

    class Mapped(eqx.Module):
        inside: gflow.nn.DeepLinear

        def __call__(self, x):
            return jax.vmap(self.inside)(x)

    batched = gflow.nn.Batched(Mapped(model))
    flow = Linearised()
    problem, params = checked_problem(batched, (X, Y), SQUARE)
    made, moved = flow.applied(problem, params)
    assert isinstance(made.model(moved), gflow.nn.Batched)
    np.testing.assert_allclose(made.outputs(moved), problem.outputs(params))
    problem, params = checked_problem(model, (X, Y), SQUARE, spec)
    made, moved = flow.applied(problem, params)
    assert len(jtu.tree_leaves(moved)) == 1


# --- Bad input ------------------------------------------------------------------------


def wrong(flow=None, model=None, match="", t_span=(0.0, 1.0), **kwargs):
    with pytest.raises(ValueError, match=match):
        flow = flow() if callable(flow) and not isinstance(flow, type) else flow
        gflow.integrate(
            two_layers() if model is None else model,
            (X, Y),
            EXPONENTIAL,
            t_span,
            flow=flow,
            **kwargs,
        )


def test_bad_input():
    zero = eqx.tree_at(lambda m: m.layers[0].weight, two_layers(), jnp.zeros((3, 2)))
    relu = gflow.nn.TwoLayer(2, 3, key=jax.random.key(0))
    wrong(WeightNorm, match="is a class")
    wrong("polar", match="is not a flow")
    for flow in (Polar(), WeightNorm(), TangentGradient(), LagrangeMultiplier()):
        wrong(flow, zero, match="layers\\[0\\].weight is zero")
    wrong(Polar(), relu, match="kinks='autodiff'")
    wrong(Polar(), t_span=(0.0, gflow.INFINITY), match="limit of the gradient flow")
    wrong(Polar(), solver=gflow.solvers.PrimalDual(), match="PrimalDual")
    wrong(Polar(), clock=gflow.clocks.Alpha(), match="Alpha")
    wrong(lambda: TangentGradient("l0"), match="'l0' is not known")
    wrong(lambda: TangentGradient(rho="free"), match="use 'fixed'")
    wrong(lambda: TangentGradient("l1", width=0.0), match="width=0.0")
    wrong(lambda: WeightNorm(size=-1.0), match="size=-1.0")
    wrong(lambda: HeavyBall(-1.0), match="friction=-1")
    wrong(lambda: HeavyBall(1.0, 0.0), match="mass=0")
    wrong(lambda: Natural(-1.0), match="damping=-1")
    wrong(TangentGradient(rho=lambda t: jnp.stack([t, t, t])), match="shape \\(3,\\)")
    wrong(TangentGradient(rho=lambda t: t), match="rho\\(t0\\) = 0")
    wrong(TangentGradient(rho=lambda: 1.0), match="cannot be called")
    wrong(HeavyBall(1.0), t_span=(0.0, gflow.exp(1e4)), match="t1 is e\\^10000")
    wrong(CorrelationAscent(z=np.ones(2)), match="z of shape \\(2,\\)")
    wrong(Linearised(relu), match="not like the model's")
