"""ReLU networks in the late phase: pins in the primal-dual system."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gflow
from gflow.losses import Logistic

from .test_limit_kinks import residual


SEEDS = (0, 1, 2)
LATE = np.array([1.0, 10.0, 30.0, 1e3, 1e4, 1e5, 3e5, 1e6])


class TwoLayer(eqx.Module):
    w: jax.Array
    a: jax.Array

    def __call__(self, x):
        return self.a @ jax.nn.relu(self.w @ x)


def problem(seed, n=10, d=3, m=8):
    rng = np.random.default_rng(seed)
    model = TwoLayer(
        jnp.asarray(rng.normal(size=(m, d)) / np.sqrt(d)),
        jnp.asarray(rng.normal(size=m) / np.sqrt(m)),
    )
    x, y = rng.normal(size=(n, d)), np.sign(rng.normal(size=n))
    return model, (jnp.asarray(x), jnp.asarray(y))


def stacked(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


@pytest.fixture(scope="module")
def problems():
    return stacked([problem(seed) for seed in SEEDS])


@pytest.fixture(scope="module")
def late(problems):
    """To log t = 10⁶ by the default route, several networks at once."""

    def run(model, data):
        return gflow.integrate(
            model,
            data,
            Logistic(),
            (0.0, gflow.exp(LATE[-1])),
            save_at=gflow.exp(LATE),
            observe=["smoothed_margin"],
            throw=False,
        )

    return eqx.filter_jit(eqx.filter_vmap(run))(*problems)


@pytest.fixture(scope="module")
def explicit(problems):
    """The same by Tsit5 alone, a hundred times as exact."""

    def run(model, data):
        return gflow.integrate(
            model,
            data,
            Logistic(),
            (0.0, gflow.exp(30.0)),
            save_at=gflow.exp(LATE[:3]),
            clock=gflow.clocks.LogTime(),
            rtol=1e-8,
        )

    return eqx.filter_jit(eqx.filter_vmap(run))(*problems)


def directions(sol):
    """(lanes, times, P), of norm one."""
    lead = sol.log_t.shape
    w = np.concatenate(
        [np.asarray(leaf).reshape(*lead, -1) for leaf in jax.tree.leaves(sol.models)],
        axis=2,
    )
    return w / np.linalg.norm(w, axis=2, keepdims=True)


def test_the_late_phase_is_reached_and_balanced(late):
    assert np.all(np.asarray(late.result == gflow.RESULTS.successful))
    assert np.all(late.log_loss[:, -1] < -0.99e6)
    # log ℒ falls by ∫‖∂̄ℒ‖²/ℒ dt, through all kinks.
    assert np.max(np.abs(late.log_loss_defect)) < 2e-5
    assert np.all(np.diff(late.observed["smoothed_margin"][:, 1:], axis=1) > -1e-9)


def test_it_goes_over_to_the_primal_dual_solver(late):
    solvers = [part.solver for part in late.parts]
    assert solvers == ["Tsit5", "PrimalDual", "Tsit5"]
    assert np.all(late.parts[1].stats["num_steps"] > 0)
    assert np.all(late.parts[2].stats["num_steps"] == 0)
    # Explicit steps are of 1/2 in log t at most.
    assert np.all(late.stats["num_steps"] < 1000)


@pytest.mark.slow
def test_it_slides_along_kinks_where_the_explicit_solver_does(late, explicit):
    slid = np.sort(np.asarray(late.inclusion.pins)[:, :3], axis=2)
    expected = np.sort(np.asarray(explicit.inclusion.pins), axis=2)
    np.testing.assert_array_equal(slid, expected)
    assert np.all(np.max(np.sum(slid >= 0, axis=2), axis=1) > 0)


def test_it_agrees_with_the_explicit_solver(late, explicit):
    difference = directions(late)[:, :3] - directions(explicit)
    assert np.max(np.linalg.norm(difference, axis=2)) < 1e-5
    np.testing.assert_allclose(late.log_loss[:, :3], explicit.log_loss, rtol=1e-5)


def test_pinned_kinks_stay_at_zero(late, problems):
    models, (x, _) = problems
    final = directions(late)[:, -1]
    d, m = models.w.shape[2], models.w.shape[1]
    w = final[:, : m * d].reshape(-1, m, d)
    z = np.einsum("smd,snd->snm", w, np.asarray(x)).reshape(len(SEEDS), -1)
    for lane, pins in enumerate(np.asarray(late.inclusion.pins)[:, -1]):
        pins = pins[pins >= 0]
        assert len(pins) > 0
        assert np.max(np.abs(z[lane, pins])) < 1e-12


def test_events_are_logged_in_order_over_all_parts(late):
    for lane in range(len(SEEDS)):
        number = int(late.inclusion.num_events[lane])
        log_t = np.asarray(late.inclusion.log_t[lane])
        assert np.all(np.diff(log_t[:number]) >= 0)
        assert np.all(np.asarray(late.inclusion.kink[lane][:number]) >= 0)
        assert np.all(np.asarray(late.inclusion.kink[lane][number:]) == -1)
        assert np.max(log_t[:number]) > float(late.parts[0].log_t_final[lane])


@pytest.mark.parametrize("lane", [1, 2])
def test_limit(late, lane):
    """A KKT point on several kinks, to rounding; of lane 2 it is the flow's limit."""
    _, (x, y) = problem(SEEDS[lane])
    sol = jax.tree.map(lambda leaf: leaf[lane], late)
    found = gflow.limit(sol, (x, y), Logistic())
    assert float(found.kkt_residual) < 1e-10
    assert residual(found, np.asarray(x), np.asarray(y), trained=True) < 1e-10
    assert found.kinks.size > 3 and bool(found.kinks_exact)
    assert 0 < float(found.kink_slack) < 0.5
    if lane == 2:
        # Along a manifold of equal margin: neurons with the same direction.
        assert bool(found.certified), found.reason
        assert int(found.zero_modes) == 2 and float(found.evidence.distance[-1]) < 0.01
        pins = np.asarray(sol.inclusion.pins[-1])
        np.testing.assert_array_equal(found.kinks, np.sort(pins[pins >= 0]))
