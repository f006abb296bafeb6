"""Derivatives of the flow against finite differences: about 90 s of tracing."""

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gflow
from gflow.losses import Logistic


TIMES = jnp.array([0.5, 2.0])
X = jnp.asarray(np.random.default_rng(0).standard_normal((12, 3)))
Y = jnp.asarray(np.sign(np.random.default_rng(1).standard_normal(12)))


class Net(eqx.Module):
    v: jax.Array
    a: jax.Array
    relu: bool = eqx.field(static=True)

    def __call__(self, x):
        act = jax.nn.relu if self.relu else jnp.tanh
        return jnp.dot(self.a, act(self.v @ x))


def log_losses(number, relu=False, **options):
    """The sum of the saved log losses, with data, weights and t1 moved by `number`."""
    rng = np.random.default_rng(2)
    v, a = rng.standard_normal((6, 3)), rng.standard_normal(6)
    model = Net(jnp.asarray(v) * (1 + number), jnp.asarray(a), relu)
    data = X.at[0].add(number), Y
    times = TIMES * (1 + number)
    options = {"save_at": times, "rtol": 1e-10} | options
    sol = gflow.integrate(model, data, Logistic(), (0.0, times[-1]), **options)
    return jnp.sum(sol.log_loss)


def differences(relu, h=1e-3):
    """The first and second derivative by central differences of order four."""
    f = [float(log_losses(jnp.asarray(k * h), relu)) for k in (-2, -1, 0, 1, 2)]
    first = (f[0] - 8 * f[1] + 8 * f[3] - f[4]) / (12 * h)
    second = (-f[0] + 16 * f[1] - 30 * f[2] + 16 * f[3] - f[4]) / (12 * h * h)
    return first, second


def forward(function):
    return lambda x: jax.jvp(function, (x,), (1.0,))[1]


def test_smooth_flows():
    first, second = differences(relu=False)
    assert abs(first) > 0.1 and abs(second) > 0.1
    slope, bend = jax.jvp(jax.grad(log_losses), (0.0,), (1.0,))
    np.testing.assert_allclose(slope, first, rtol=1e-7)
    np.testing.assert_allclose(bend, second, rtol=1e-5)
    np.testing.assert_allclose(forward(log_losses)(0.0), first, rtol=1e-7)


def kinked(x):
    return log_losses(x, relu=True)


# By the differences of the next test.
SLOPE_OF_KINKED = -1.179896


def test_reverse_mode_across_kinks():
    # What is left of an error of second order in the steps across kinks.
    np.testing.assert_allclose(jax.grad(kinked)(0.0), SLOPE_OF_KINKED, rtol=1e-4)


@pytest.mark.slow
def test_forward_mode_across_kinks():
    # Where a kink is crossed at a saved time the slope jumps: a short difference.
    found = differences(relu=True, h=1e-5)[0]
    np.testing.assert_allclose(found, SLOPE_OF_KINKED, rtol=1e-6)
    np.testing.assert_allclose(forward(kinked)(0.0), found, rtol=1e-5)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"save_at": None}, "need given save times"),
        ({"solver": gflow.solvers.BDF()}, "BDF has derivatives in forward mode only"),
        ({"solver": gflow.solvers.RKC2()}, "RKC2 has derivatives in forward mode only"),
        ({"clock": gflow.clocks.Alpha()}, "in Alpha times are found"),
    ],
    ids=["save_at", "BDF", "RKC2", "clock"],
)
def test_what_reverse_mode_cannot_do(options, message):
    with pytest.raises(ValueError, match=message):
        jax.grad(lambda x: log_losses(x, **options))(0.0)


def test_second_derivatives_across_kinks_are_refused():
    with pytest.raises(ValueError, match="second derivatives"):
        forward(forward(lambda x: log_losses(x, relu=True)))(0.0)


@pytest.mark.slow
def test_implicit_methods_in_forward_mode():
    options = {"solver": gflow.solvers.BDF(), "rtol": 1e-8}
    first = forward(lambda x: log_losses(x, **options))(0.0)
    exact = forward(lambda x: log_losses(x, solver=dfx.Tsit5()))(0.0)
    np.testing.assert_allclose(first, exact, rtol=1e-5)
