"""Networks with kinks, differentiated automatically: that it is not the flow is said.

The true flow slides along a kink; automatic differentiation chatters across it and
dissipates energy that is not there. The solution says how its kinks were treated and by
how much the energy balance is off, and integrate warns.
"""

import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gflow
from gflow._check import checked_problem
from gflow._frozen import has_kinks
from gflow.losses import Logistic, Square


class Valley(eqx.Module):
    """x ↦ x (|w₁| + w₂²/2)."""

    w: jax.Array

    def __call__(self, x):
        return x * (jnp.abs(self.w[0]) + jnp.square(self.w[1]) / 2)


class TwoLayer(eqx.Module):
    """x ↦ Σ_j a_j φ(⟨w_j, x⟩ + b_j)."""

    w: jax.Array
    b: jax.Array
    a: jax.Array
    activation: str = eqx.field(static=True)

    def __call__(self, x):
        z = self.w @ x + self.b
        if self.activation == "tanh":
            h = jnp.tanh(z)
        else:
            h = jax.nn.relu(z)
            h = jnp.square(h) if self.activation == "squared relu" else h
        return jnp.sum(self.a * h)


def network(activation, shift=0.0):
    rng = np.random.default_rng(1)
    w, a = rng.normal(size=(5, 3)), rng.normal(size=5)
    return TwoLayer(jnp.asarray(w), jnp.full(5, shift), jnp.asarray(a), activation)


def points():
    rng = np.random.default_rng(6)
    return rng.normal(size=(12, 3)), np.where(rng.normal(size=12) > 0, 1.0, -1.0)


def prediction(f, y):
    return f


def absolute_error(f, y):
    return jnp.abs(f - y)


RTOL = 1e-4
TIMES = np.array([0.5, 1.0, 1.25, 1.5, 2.0])


def solve_valley():
    return gflow.integrate(
        Valley(jnp.ones(2)),
        (np.ones(1), np.ones(1)),
        prediction,
        (0.0, 2.0),
        save_at=TIMES,
        rtol=RTOL,
        kinks="autodiff",
    )


# |w₁| + w₂²/2 from (1, 1): w₁ = max(1 - t, 0), w₂ = e^-t. From t = 1 on the flow slides
# along w₁ = 0, dissipating e^-2t, while chattering dissipates 1 + e^-2t.
LOSS_0 = 1.5
TRUE_DISSIPATION = 1.5 - np.exp(-4) / 2  # 1.490842
CHATTERING = 2 + (1 - np.exp(-4)) / 2  # 2.490842


def assert_valley(sol):
    assert sol.kinks == "autodiff"
    w = np.asarray(sol.models.w)
    exact = np.stack([np.maximum(1 - TIMES, 0), np.exp(-TIMES)], axis=1)
    np.testing.assert_allclose(w, exact, atol=30 * RTOL)
    wrong = (TRUE_DISSIPATION - CHATTERING) / LOSS_0
    np.testing.assert_allclose(sol.energy_defect[-1], wrong, atol=1e-2)
    sliding = np.maximum(TIMES - 1, 0)
    np.testing.assert_allclose(sol.energy_defect, -sliding / LOSS_0, atol=1e-2)


def test_sliding_is_reported():
    with pytest.warns(UserWarning, match="energy balance.*chatters.*not the") as caught:
        sol = solve_valley()
    assert_valley(sol)
    # It says how much.
    assert "6.7e-01" in str(caught[0].message)


def test_sliding_under_jit_is_in_the_defect():
    """Values are not known while tracing, so nothing can warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sol = eqx.filter_jit(solve_valley)()
    assert_valley(sol)


def test_relu_network_that_slides():
    """12 points, 5 neurons, both layers trained: no tolerance cures the defect."""

    def solve(rtol):
        return gflow.integrate(
            network("relu"),
            points(),
            Square(),
            (0.0, 1.0),
            save_at=[1.0],
            rtol=rtol,
            kinks="autodiff",
        )

    with pytest.warns(UserWarning, match="energy balance"):
        coarse = solve(1e-4)
    with pytest.warns(UserWarning, match="energy balance"):
        fine = solve(1e-5)
    assert coarse.kinks == fine.kinks == "autodiff"
    defects = [float(s.energy_defect[-1]) for s in (coarse, fine)]
    assert max(defects) < -0.3
    assert defects[1] == pytest.approx(defects[0], rel=0.02)


def test_loss_with_a_kink():
    """|f - y| slides at f = y, whatever the model."""
    model = network("tanh")
    data = (np.ones((1, 3)), np.zeros(1))
    with pytest.warns(UserWarning, match="energy balance"):
        sol = gflow.integrate(
            model,
            data,
            absolute_error,
            (0.0, 3.0),
            save_at=[3.0],
            rtol=RTOL,
            kinks="autodiff",
        )
    assert sol.kinks == "autodiff"
    assert sol.energy_defect[-1] < -0.1


@pytest.mark.parametrize("activation", ["tanh", "squared relu", "relu, all active"])
def test_no_sliding_no_warning(activation):
    """tanh has no kinks; squared relu's are in its second derivative; one side only."""
    active = activation == "relu, all active"
    model = network(activation.split(",")[0], shift=20.0 if active else 0.0)
    x, y = points()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sol = gflow.integrate(
            model,
            (x, y),
            Logistic(),
            (0.0, 0.05 if active else 5.0),
            rtol=1e-7,
            kinks="autodiff",
        )
    assert sol.kinks == ("autodiff" if activation.startswith("relu") else "none")
    assert np.max(np.abs(sol.energy_defect)) < 1e-5
    if active:
        z = np.einsum("tjd,nd->tnj", np.asarray(sol.models.w), x)
        assert np.min(z + np.asarray(sol.models.b)[:, None]) > 0


def squares(z):
    return jnp.square(jax.nn.relu(z)), jnp.maximum(z, 0) ** 3, jnp.abs(z) ** 2


@pytest.mark.parametrize(
    ("function", "kinks"),
    [
        (lambda z: sum(squares(z)), False),
        (lambda z: (lambda r: r * r)(jnp.maximum(0.0, z)), False),
        (lambda z: jax.nn.relu(z) * z, True),  # smooth enough, but it takes a proof
        (lambda z: jnp.square(jax.nn.relu(z)) + jax.nn.relu(z), True),
        (lambda z: jnp.square(jnp.maximum(z, 1.0)), True),
        (lambda z: jnp.square(jax.nn.leaky_relu(z)), True),
        (lambda z: (lambda r: r**2 + r)(jnp.abs(z)), True),
    ],
)
def test_squares_of_what_vanishes_at_its_kink_are_smooth_enough(function, kinks):
    class Net(eqx.Module):
        inner: TwoLayer

        def __call__(self, x):
            return jnp.sum(function(self.inner.w @ x))

    problem, params = checked_problem(
        Net(network("tanh")), (np.ones((2, 3)), np.ones(2)), Logistic()
    )
    assert has_kinks(problem, params) == kinks
