"""Orders of convergence: at fixed steps, and in integrate's tolerance."""

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special

import gflow
from gflow.clocks import LogTime, Physical
from gflow.losses import Logistic


class Tanh(eqx.Module):
    """x ↦ ⟨v, tanh(U x)⟩."""

    u: jax.Array
    v: jax.Array

    def __call__(self, x):
        return jnp.sum(self.v * jnp.tanh(self.u @ x))


SHORT, LONG = 1.0, 3.0


@pytest.fixture(scope="module")
def problem():
    """A tanh network on random data, and W from SciPy's DOP853 at 1e-13."""
    rng = np.random.default_rng(11)
    u0, v0 = rng.normal(size=(4, 2)), rng.normal(size=4)
    x, y = rng.normal(size=(6, 2)), np.array([1.0, -1, 1, 1, -1, -1])

    def velocity(t, w):
        u, v = w[:8].reshape(4, 2), w[8:]
        h = np.tanh(x @ u.T)
        pull = y * scipy.special.expit(-y * (h @ v))
        back = pull[:, None] * v * (1 - h**2)
        return np.concatenate([(back.T @ x).ravel(), h.T @ pull])

    exact = scipy.integrate.solve_ivp(
        velocity,
        (0.0, LONG),
        np.concatenate([u0.ravel(), v0]),
        method="DOP853",
        t_eval=[SHORT, LONG],
        rtol=1e-13,
        atol=1e-15,
    ).y
    exact = {SHORT: exact[:, 0], LONG: exact[:, 1]}
    return Tanh(jnp.asarray(u0), jnp.asarray(v0)), (x, y), exact


def flat(params):
    return np.concatenate([np.ravel(params.u), np.ravel(params.v)])


def slope(x, y):
    return np.polynomial.polynomial.polyfit(np.log(x), np.log(y), 1)[1]


SOLVERS = {
    "Heun": (dfx.Heun(), 2),
    "Bosh3": (dfx.Bosh3(), 3),
    "Tsit5": (dfx.Tsit5(), 5),
    "Dopri8": (dfx.Dopri8(), 8),
}
# Numbers of steps in the asymptotic window. With fewer, terms of higher order are as
# large (those of order 6 in Tsit5 long are, because its coefficients of order 5 are
# tiny); with more, rounding is.
COUNTS = {
    ("Heun", "Physical"): [100, 200, 400, 800],
    ("Heun", "LogTime"): [100, 200, 400, 800],
    ("Bosh3", "Physical"): [100, 200, 400, 800],
    ("Bosh3", "LogTime"): [100, 200, 400, 800],
    ("Tsit5", "Physical"): [56, 80, 112, 160],
    ("Tsit5", "LogTime"): [40, 56, 80, 112],
    ("Dopri8", "Physical"): [12, 14, 16, 20],
    ("Dopri8", "LogTime"): [16, 20, 24, 28],
}


@pytest.mark.parametrize("clock", [Physical(), LogTime()], ids=repr)
@pytest.mark.parametrize("name", SOLVERS)
def test_order_at_fixed_steps(problem, name, clock):
    model, data, exact = problem
    solver, order = SOLVERS[name]
    term, y0 = gflow.vector_field(model, data, Logistic(), clock=clock)
    end = SHORT if isinstance(clock, Physical) else np.log1p(SHORT)

    @jax.jit
    def solve(step):
        return dfx.diffeqsolve(
            term,
            solver,
            0.0,
            end,
            step,
            y0,
            stepsize_controller=dfx.ConstantStepSize(),
            max_steps=4096,
        ).ys

    counts = np.array(COUNTS[name, type(clock).__name__])
    errors = []
    for count in counts:
        params = jax.tree.map(lambda w: w[-1], solve(jnp.asarray(end / count)))
        errors.append(np.linalg.norm(flat(params) - exact[SHORT]))
    assert slope(counts, errors) == pytest.approx(-order, abs=0.2)


def test_vector_field_starts_at_the_parameters(problem):
    model, data, _ = problem
    term, y0 = gflow.vector_field(model, data, Logistic())
    assert isinstance(term, dfx.ODETerm)
    assert eqx.tree_equal(y0, eqx.partition(model, eqx.is_inexact_array)[0])
    velocity = term.vf(jnp.asarray(0.0), y0, None)

    def total(m):
        p = data[1] * jax.vmap(m)(jnp.asarray(data[0]))
        return jnp.sum(jax.nn.softplus(-p))

    gradient = eqx.filter_grad(total)(model)
    np.testing.assert_allclose(flat(velocity), -flat(gradient), rtol=1e-13, atol=1e-14)


def test_error_is_proportional_to_rtol(problem):
    model, data, exact = problem
    rtols = np.geomspace(1e-4, 1e-11, 8)
    errors = []
    for rtol in rtols:
        sol = gflow.integrate(
            model, data, Logistic(), (0.0, LONG), save_at=[LONG], rtol=rtol
        )
        np.testing.assert_allclose(flat(sol.final), flat(sol.models), rtol=1e-13)
        errors.append(
            np.linalg.norm(flat(sol.final) - exact[LONG]) / np.linalg.norm(exact[LONG])
        )
    assert slope(rtols, errors) == pytest.approx(1.0, abs=0.15)
    # Local errors add up along the path, and are contracted again.
    assert np.all(np.array(errors) < 10 * rtols)


def test_atol_is_an_error_per_array(problem):
    """With rtol far below, atol alone sets the error."""
    model, data, exact = problem
    errors = []
    atols = np.geomspace(1e-4, 1e-9, 6)
    for atol in atols:
        sol = gflow.integrate(
            model, data, Logistic(), (0.0, LONG), save_at=[LONG], rtol=1e-12, atol=atol
        )
        errors.append(np.linalg.norm(flat(sol.final) - exact[LONG]))
    assert slope(atols, errors) == pytest.approx(1.0, abs=0.2)
