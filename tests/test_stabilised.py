"""RKC2 and RKC3: order, stability, what they cost, and use in integrate."""

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate

import gflow
from gflow.solvers import RKC2, RKC3, _pack
from gflow.solvers._chebyshev import table_of_order_three, table_of_order_two

from .helpers import rng, tolerance


SOLVERS = {"RKC2": (RKC2(), 2), "RKC3": (RKC3(), 3)}
each_solver = pytest.mark.parametrize("name", SOLVERS)


def pid(rtol, atol):
    return dfx.PIDController(rtol=rtol, atol=atol, pcoeff=0.3, icoeff=0.4)


def solve(solver, field, y0, end, *, controller, start=0.0, step=None, args=None):
    return dfx.diffeqsolve(
        dfx.ODETerm(field),
        solver,
        start,
        end,
        step,
        y0,
        args,
        stepsize_controller=controller,
        saveat=dfx.SaveAt(t1=True, solver_state=True),
    )


def last(solution):
    return jax.tree.map(lambda y: y[-1], solution.ys)


# The tables


def degrees(table):
    for s, length, start in zip(*table[:3], strict=True):
        yield int(s), float(length), table.rows[start : start + s]


def amplification(rows, z):
    """R(z), by the recurrence itself, and Σβc², c_s."""
    g, change = np.ones_like(z), np.zeros_like(z)
    total = np.zeros_like(z)
    for at_start, at_change, mu_tilde, gamma_tilde, _, *beta in rows:
        total = total + (beta[0] * g if beta else 0)
        change = (
            at_start * (g - 1) + at_change * change + (mu_tilde * g + gamma_tilde) * z
        )
        g = g + change
    return 1 + z * total if rows.shape[1] == 6 else g


@pytest.mark.parametrize(
    "table, order", [(table_of_order_two(), 2), (table_of_order_three(), 3)]
)
def test_every_degree_is_stable_and_of_its_order(table, order):
    assert np.all(np.diff(table.degrees) > 0) and np.all(np.diff(table.lengths) > 0)
    assert table.degrees[-1] > 900
    for s, length, rows in degrees(table):
        assert length > (0.34 if order == 3 else 0.48) * s**2, s
        z = -length * (1 - np.cos(np.linspace(0, np.pi, 8 * s + 50)))[1:] / 2
        assert np.max(np.abs(amplification(rows, z))) < 1 - 1e-12, s
        # Damped: oscillating modes do not stay.
        far = z[(z < -4) & (z > -0.999 * length)]
        assert np.max(np.abs(amplification(rows, far)), initial=0) < 0.97, s
        # R(z) = e^z + O(z^(order + 1)).
        small = np.array([1e-2, 5e-3])
        defect = np.abs(amplification(rows, small) - np.exp(small))
        assert np.all(defect < 0.2 * small ** (order + 1)), s
        if order == 3:
            c, beta = rows[:, 4], rows[:, 5]
            assert beta.sum() == pytest.approx(1, abs=1e-11)
            assert beta @ c == pytest.approx(1 / 2, abs=1e-11)
            assert beta @ c**2 == pytest.approx(1 / 3, abs=3e-3 if s < 30 else 3e-6)


# Accuracy


def closed_forms(t, y, args):
    """Nonlinear, and the second depends on time; the third is zero, but stiff."""
    return {
        "u": y["u"] - y["u"] ** 3,
        "v": -(y["v"] ** 2) * jnp.cos(t),
        "w": -args * y["w"],
    }


U0, V0, END = 0.1, 0.7, 2.0


def exact(t):
    # Bernoulli's equation; dv/v² = -cos t dt.
    u = 1 / np.sqrt(1 + (1 / U0**2 - 1) * np.exp(-2 * t))
    return {"u": u, "v": V0 / (1 + V0 * np.sin(t))}


@each_solver
def test_order_at_fixed_steps(name):
    solver, order = SOLVERS[name]
    y0 = {"u": jnp.full((2, 1), U0), "v": jnp.asarray(V0), "w": jnp.asarray(0.0)}

    @jax.jit
    def end(step):
        # Some thirty stages. (With fewer than ten the condition Σβc² = 1/3 is met to
        # three digits only, which shows at small errors.)
        solution = solve(
            solver,
            closed_forms,
            y0,
            END,
            step=step,
            args=400 / step,
            controller=dfx.ConstantStepSize(),
        )
        return last(solution)

    counts = np.array([20, 40, 80, 160])
    errors = {"u": [], "v": []}
    for count in counts:
        found = end(jnp.asarray(END / count))
        for key, value in exact(END).items():
            errors[key].append(np.max(np.abs(found[key] - value)))
    for key, error in errors.items():
        slope = np.polynomial.polynomial.polyfit(np.log(counts), np.log(error), 1)[1]
        assert slope == pytest.approx(-order, abs=0.2), key


def stiff_spectrum(size, largest, seed):
    """A symmetric matrix with these eigenvalues -10^-1..-largest, not diagonal."""
    q, _ = np.linalg.qr(rng(seed).normal(size=(size, size)))
    return q @ np.diag(-np.geomspace(1e-1, largest, size)) @ q.T


def towards_moving_target(t, y, args):
    return args @ (y - jnp.sin(t)) + jnp.cos(t)


@each_solver
def test_linear_problem_with_known_spectrum(name):
    """Accurate at h ρ of thousands; what it costs is √(hρ), or it is rejected."""
    solver, _ = SOLVERS[name]
    matrix, largest, end = stiff_spectrum(12, 1e4, 0), 1e4, 20.0

    @jax.jit
    def run(matrix):
        return solve(
            solver,
            towards_moving_target,
            jnp.zeros(12),
            end,
            args=matrix,
            controller=pid(1e-4, 1e-4),
        )

    solution = run(jnp.asarray(matrix))
    # The exact solution is sin t.
    np.testing.assert_allclose(last(solution), np.sin(end), atol=3e-4)
    state = solution.solver_state
    assert state.spectral_radius == pytest.approx(largest, rel=0.05)
    kept, failed = (
        int(solution.stats[f"num_{what}_steps"]) for what in ("accepted", "rejected")
    )
    assert failed <= 0.15 * kept
    # s = √(hρ/0.455) (or 0.65) if all steps were of one length, 10 % more for √1.1 and
    # degrees that are rounded up, and two products for 20 to 80 gradients. A radius
    # that is 10 % too low costs several times as much, in rejected steps.
    share = 0.455 if name == "RKC3" else 0.65
    ideal = np.sqrt(kept * end * largest / share)
    assert int(state.num_gradients) < 1.35 * ideal
    assert ideal < end * largest / 10  # Tsit5's


def test_a_saddle_is_left_with_few_stages():
    """The dominant eigenvalue is positive, and does not limit the step."""

    def saddle(t, y, args):
        return jnp.array([60.0, -1.0, -2.0, -0.5]) * y

    y0 = jnp.array([1e-6, 1.0, 1.0, 1.0])
    solution = solve(RKC3(), saddle, y0, 0.2, controller=pid(1e-5, 1e-12))
    state = solution.solver_state
    assert state.spectral_radius < 2.5
    assert state.num_stages == 4
    products = 20 * 2 + 2 * 4 * (int(state.num_gradients) // 20 + 1)
    steps = int(solution.stats["num_accepted_steps"])
    assert int(state.num_gradients) <= 1 + 4 * steps + products
    np.testing.assert_allclose(last(solution)[0], 1e-6 * np.exp(12), rtol=1e-3)


# What it costs


@jax.custom_jvp
def counted(y):
    jax.debug.callback(lambda: CALLS.append(1))
    return -200 * y + jnp.sin(y)


@counted.defjvp
def _(primals, tangents):
    (y,), (v,) = primals, tangents
    jax.debug.callback(lambda: CALLS.append(2))
    return -200 * y + jnp.sin(y), -200 * v + jnp.cos(y) * v


CALLS = []


@each_solver
def test_gradients_are_counted(name):
    CALLS.clear()
    solution = solve(
        SOLVERS[name][0],
        lambda t, y, args: counted(y),
        jnp.ones(3),
        2.0,
        step=0.1,
        controller=dfx.ConstantStepSize(),
    )
    jax.effects_barrier()
    assert int(solution.solver_state.num_gradients) == sum(CALLS)
    assert CALLS.count(2) >= 2


# JAX


def test_lanes_of_vmap_are_single_solves():
    solver = RKC3()

    def run(scale, start):
        matrix = jnp.asarray(stiff_spectrum(6, 300.0, 1))
        return solve(
            solver,
            towards_moving_target,
            start,
            3.0,
            args=scale * matrix,
            controller=pid(1e-5, 1e-5),
        )

    scales = jnp.array([0.01, 1.0, 30.0])
    starts = jnp.asarray(rng(2).normal(size=(3, 6)))
    lanes = eqx.filter_jit(eqx.filter_vmap(run))(scales, starts)
    alone = eqx.filter_jit(run)
    for i in range(3):
        one = alone(scales[i], starts[i])
        np.testing.assert_allclose(
            lanes.ys[i], one.ys, **tolerance(np.float64, scale=1e3)
        )
        for name in ("num_gradients", "num_stages"):
            found, wanted = (getattr(s.solver_state, name) for s in (lanes, one))
            assert int(found[i]) == int(wanted), name


def test_one_vector_or_a_tree_is_the_same(monkeypatch):
    matrix = jnp.asarray(stiff_spectrum(6, 500.0, 3))
    y0 = {"a": jnp.ones((2, 2)), "b": (jnp.zeros(2),)}

    def field(t, y, args):
        whole = jnp.concatenate([y["a"].reshape(-1), y["b"][0]])
        moved = towards_moving_target(t, whole, matrix)
        return {"a": moved[:4].reshape(2, 2), "b": (moved[4:],)}

    def run():
        return solve(RKC3(), field, y0, 3.0, controller=pid(1e-4, 1e-4))

    packed = run()
    assert packed.solver_state.slope.shape == (6,)
    monkeypatch.setattr(_pack, "_MOST", 0)
    jax.clear_caches()
    tree = run()
    assert jax.tree.structure(tree.solver_state.slope) == jax.tree.structure(y0)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), packed.ys, tree.ys
    )


def test_float32():
    matrix = jnp.asarray(stiff_spectrum(6, 1e3, 4), jnp.float32)

    def field(t, y, args):
        return towards_moving_target(t, y, matrix)

    y0 = jnp.zeros(6, jnp.float32)
    zero = jnp.zeros((), jnp.float32)  # Diffrax casts y to the dtype of times
    solution = solve(
        RKC3(), field, y0, zero + 10, start=zero, controller=pid(1e-3, 1e-3)
    )
    assert last(solution).dtype == jnp.float32
    np.testing.assert_allclose(last(solution), np.sin(10.0), atol=1e-2)
    # Rounding does not make it dearer: float64 takes as many.
    wide = solve(
        RKC3(),
        lambda t, y, args: towards_moving_target(t, y, matrix.astype(jnp.float64)),
        jnp.zeros(6),
        10.0,
        controller=pid(1e-3, 1e-3),
    )
    counts = [int(s.solver_state.num_gradients) for s in (solution, wide)]
    assert counts[0] < 1.2 * counts[1]


# In integrate


class Tanh(eqx.Module):
    """x ↦ ⟨v, tanh(U x)⟩."""

    u: jax.Array
    v: jax.Array

    def __call__(self, x):
        return jnp.sum(self.v * jnp.tanh(self.u @ x))


SPAN = 200.0


@pytest.fixture(scope="module")
def regression():
    """A small tanh network, data, and W at SPAN from SciPy's LSODA."""
    generator = rng(7)
    u0, v0 = generator.normal(size=(6, 3)), generator.normal(size=6)
    x = generator.normal(size=(20, 3))
    y = np.tanh(x @ generator.normal(size=3)) + 0.1 * generator.normal(size=20)

    def velocity(t, w):
        u, v = w[:18].reshape(6, 3), w[18:]
        h = np.tanh(x @ u.T)
        pull = y - h @ v
        back = pull[:, None] * v * (1 - h**2)
        return np.concatenate([(back.T @ x).ravel(), h.T @ pull])

    start = np.concatenate([u0.ravel(), v0])
    found = scipy.integrate.solve_ivp(
        velocity, (0, SPAN), start, method="LSODA", rtol=1e-10, atol=1e-12
    )
    return Tanh(jnp.asarray(u0), jnp.asarray(v0)), (x, y), found.y[:, -1]


def flat(model):
    return np.concatenate([np.ravel(model.u), np.ravel(model.v)])


@pytest.mark.parametrize("clock", [None, gflow.clocks.LogTime()], ids=repr)
def test_integrate(regression, clock):
    model, data, end = regression
    loss = gflow.losses.Square()
    times = np.geomspace(1e-2, SPAN, 5)

    def run(**options):
        return gflow.integrate(
            model, data, loss, (0.0, SPAN), save_at=times, clock=clock, **options
        )

    sol = run(solver=RKC3(), rtol=1e-5)
    assert sol.solver == "RKC3"
    np.testing.assert_allclose(flat(sol.final), end, rtol=1e-4, atol=1e-4)
    assert np.max(np.abs(sol.energy_defect)) < 1e-4
    # Tsit5 takes 47,000. Two eigenvalues cross on the way: without the suspect
    # direction a third of the steps is rejected.
    assert int(sol.stats["num_gradients"]) < 5_500
    kept, failed = (
        int(sol.stats[f"num_{what}_steps"]) for what in ("accepted", "rejected")
    )
    # (In log time steps become shorter, which takes rejections.)
    assert failed < (0.06 if clock is None else 0.15) * kept
    # Dense output is as accurate as the steps.
    tight = run(solver=RKC3(), rtol=1e-7)
    for i in range(len(times)):
        one, other = (jax.tree.map(lambda w: w[i], s.models) for s in (sol, tight))  # noqa: B023
        np.testing.assert_allclose(flat(one), flat(other), rtol=1e-4, atol=1e-4)
    assert np.max(np.abs(tight.energy_defect)) < 1e-6


@pytest.mark.slow
def test_a_resumed_solve_repeats_the_whole_and_its_counts(regression):
    model, data, _ = regression
    loss = gflow.losses.Square()

    def run(**options):
        return gflow.integrate(
            model,
            data,
            loss,
            (0.0, 5.0),
            save_at=[5.0],
            solver=RKC2(),
            rtol=1e-4,
            throw=False,
            **options,
        )

    whole = run()
    part = run(max_steps=20)
    rest = run(resume=part)
    assert np.array_equal(flat(rest.final), flat(whole.final))
    counted = int(part.stats["num_gradients"]) + int(rest.stats["num_gradients"])
    assert counted == int(whole.stats["num_gradients"])


@pytest.mark.slow
def test_alpha_clock_in_lanes():
    """A clock that does not tell the time; vmapped; against the default solver."""
    x = jnp.array([[1.0, 0.5], [0.2, 1.0], [-1.0, -0.3]])
    y = jnp.array([1.0, 1.0, -1.0])
    keys = jax.random.split(jax.random.key(1), 2)
    models = eqx.filter_vmap(lambda k: gflow.nn.Linear(2, "scalar", key=k))(keys)

    def run(model, solver, clock):
        return gflow.integrate(
            model,
            (x, y),
            gflow.losses.Exponential(),
            (0.0, gflow.exp(12.0)),
            save_at=gflow.exp(jnp.array([1.0, 12.0])),
            clock=clock,
            solver=solver,
            rtol=1e-7,
        )

    ours = eqx.filter_vmap(run)(models, RKC3(), gflow.clocks.Alpha())
    theirs = eqx.filter_vmap(run)(models, dfx.Tsit5(), gflow.clocks.LogTime())
    np.testing.assert_allclose(ours.log_loss, theirs.log_loss, atol=1e-5)
    np.testing.assert_allclose(ours.log_norm, theirs.log_norm, atol=1e-5)
    assert np.all(np.asarray(ours.stats["num_gradients"]) > 0)


# Failures


@each_solver
def test_a_step_beyond_the_table_fails_at_no_cost(name):
    solver, _ = SOLVERS[name]
    term = dfx.ODETerm(lambda t, y, args: -1e6 * y)
    y0, zero = jnp.ones(2), jnp.asarray(0.0)
    state = solver.init(term, zero, zero + 10.0, y0, None)

    @jax.jit
    def step(end, state):
        return solver.step(term, zero, end, y0, None, state, False)[:4]

    known = step(zero + 1e-3, state)[3]
    y1, error, _, after = step(zero + 10.0, known)
    assert np.all(np.isinf(error)) and np.array_equal(y1, y0)
    assert int(after.num_stages) == 0
    assert int(after.num_gradients) - int(known.num_gradients) <= 2 * 4


def test_a_field_that_is_not_a_number_does_not_hang(regression):
    model, (x, y), _ = regression
    sol = gflow.integrate(
        model,
        (x, y),
        lambda out, y: jnp.sqrt(out - y - 50.0),  # NaN
        (0.0, 1.0),
        solver=RKC3(),
        kinks="autodiff",
        save_at=[1.0],
        throw=False,
    )
    assert sol.result != gflow.RESULTS.successful


def test_kinks_are_stepped_across_by_stabilised_methods_too():
    model = gflow.nn.MLP(2, 4, 2, key=jax.random.key(0))
    data = jnp.array([[1.0, 2.0], [2.0, 1.0]]), jnp.array([1.0, -1.0])

    def final(solver):
        loss, span = gflow.losses.Logistic(), (0.0, 3.0)
        sol = gflow.integrate(model, data, loss, span, solver=solver, rtol=1e-7)
        assert sol.kinks == "inclusion"
        return sol.log_loss[-1]

    np.testing.assert_allclose(final(RKC3()), final(None), atol=1e-5)
