"""Steps across many kinks at once, and along them (a minute in all)."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

import gflow
from gflow._box import box_min_norm
from gflow._pivoting import pivoted
from gflow.losses import Logistic, Square
from gflow.solvers._crossings import crossings, cubics

from .test_inclusion import TwoLayer, instance, smoothed


@pytest.mark.parametrize("dependent", [False, True])
def test_pivoting_finds_the_least_norm(dependent):
    rng = np.random.default_rng(0)
    for _ in range(10):
        rows = rng.normal(size=(12, 5 if dependent else 20))
        units = jnp.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))
        bound = jnp.asarray(rng.uniform(0.1, 2, size=12))
        b = jnp.asarray(rng.normal(size=units.shape[1]))
        near = jnp.asarray(rng.uniform(size=12)) * bound
        found = pivoted(units @ units.T, units @ b, bound, near)
        assert bool(found.converged)
        moved = bound[:, None] * units
        box = box_min_norm(moved @ moved.T, -(moved @ b))
        want = b - box.multipliers @ moved
        np.testing.assert_allclose(b - found.x @ units, want, atol=1e-10)


def test_when_kinks_are_crossed():
    # z = (1 - 2x), 1 + x, and a parabola that is below zero in the middle only.
    z0, rate0 = jnp.array([[1.0, 1.0, 0.1]]), jnp.array([[-2.0, 1.0, -1.0]])
    z1, rate1 = jnp.array([[-1.0, 2.0, 0.1]]), jnp.array([[-2.0, 1.0, 1.0]])
    every = jnp.ones((1, 3), bool)
    found = crossings(cubics(jnp.ones((1, 3)), every, z0, rate0, z1, rate1))
    np.testing.assert_array_equal(found.crossed, [[True, False, False]])
    dips = np.sqrt(1 - 4 * 0.1)  # between the roots of 0.1 - x + x²
    np.testing.assert_allclose(found.beyond, [[0.5, 0.0, dips]], atol=1e-7)
    np.testing.assert_allclose(found.first, 0.5 - dips / 2, atol=1e-7)


def test_it_is_the_limit_of_smooth_flows():
    w, a, x, y = instance(3, 40, 4, 6)
    model = TwoLayer(jnp.asarray(w), jnp.asarray(a), jax.nn.relu)
    sol = gflow.integrate(
        model, (x, y), Logistic(), (0.0, 1.0), save_at=[0.5, 1.0], rtol=1e-8
    )
    assert isinstance(sol.resume.position.solver_state.sides.slopes, jax.Array)
    path = sol.inclusion
    assert int(path.num_crossings) > 10 and int(path.num_pinned) > 0
    assert np.max(np.abs(sol.energy_defect)) < 1e-6
    want_w, want_a = smoothed(w, a, x, y, Logistic(), 1.0)
    np.testing.assert_allclose(sol.final.w, want_w, atol=1e-6)
    np.testing.assert_allclose(sol.final.a, want_a, atol=1e-6)
    met = np.flatnonzero(np.asarray(path.kink) >= 0)
    assert np.all(np.diff(path.log_t[met]) >= 0)
    example, name, group, place = path.where(int(path.kink[0]))
    assert name == "relu" and group == 0 and example < 40 and place < (6,)
    with pytest.raises(ValueError, match="not the number"):
        path.where(-1)


def test_real_digits_and_a_hundred_neurons():
    x, y = load_digits(return_X_y=True)
    some = (y == 3) | (y == 5)
    x, y = x[some][:200], np.where(y[some][:200] == 3, -1.0, 1.0)
    x = (x - x.mean()) / x.std() / 8
    keys = jax.random.split(jax.random.key(0))
    model = TwoLayer(
        jax.random.normal(keys[0], (100, 64)) / 8,
        jax.random.normal(keys[1], (1, 100))[0] / 10,
        jax.nn.relu,
    )
    sol = gflow.integrate(
        model,
        (x, y),
        Logistic(reduction="mean"),
        (0.0, 500.0),
        save_at=[500.0],
        rtol=1e-5,
        clock=gflow.clocks.Physical(),
    )
    assert int(sol.inclusion.num_crossings) > 3000
    assert int(sol.stats["num_accepted_steps"]) < 200
    assert int(sol.stats["num_gradients"]) < 4000
    assert np.max(np.abs(sol.energy_defect)) < 1e-4
    # What a solve at rtol = 1e-9 gives.
    np.testing.assert_allclose(sol.log_loss, -6.0385698, atol=1e-5)


class Biased(eqx.Module):
    """x ↦ ⟨a, relu(Wx)⟩, a bias among the inputs."""

    w: jax.Array
    a: jax.Array

    def __call__(self, x):
        return self.a @ jax.nn.relu(self.w @ x)


def test_plateaus_of_early_alignment():
    """Two points, 60 neurons from norm 1e-12: ‖θ‖² rests at 2/√5, then at that and
    2/√1.25 (the saddle, and the minimum, of least norm).
    """
    rng = np.random.default_rng(0)
    v, signs = rng.normal(size=(60, 2)), rng.choice([-1.0, 1.0], size=60)
    outer = 1e-12 * np.linalg.norm(v, axis=1) * signs
    model = Biased(jnp.asarray(1e-12 * v), jnp.asarray(outer))
    sol = gflow.integrate(
        model,
        (np.array([[-0.5, 1.0], [2.0, 1.0]]), np.array([-1.0, 1.0])),
        Square(reduction="mean"),
        (0.0, 60.0),
        save_at=[27.5, 60.0],
        rtol=1e-6,
        clock=gflow.clocks.Physical(),
    )
    squares = jnp.sum(sol.models.w**2, axis=(1, 2)) + jnp.sum(sol.models.a**2, axis=1)
    plateaus = np.cumsum([2 / np.sqrt(5), 2 / np.sqrt(1.25)])
    np.testing.assert_allclose(squares, plateaus, atol=1e-4)
    assert int(sol.stats["num_accepted_steps"]) < 300
    assert np.max(np.abs(sol.energy_defect)) < 1e-5
