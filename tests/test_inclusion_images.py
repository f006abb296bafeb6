"""Convolutions, ReLU and max-pooling: the flow along their kinks."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.integrate import solve_ivp

import gflow
from gflow.losses import Square

from .test_late_kinks import stacked


END, RTOL = 4.0, 1e-8
SEEDS = (0, 1, 2, 3)
# Of 5 x 5 pixels the windows of the kernel, and of these the windows of the pool.
ROWS, COLUMNS = np.indices((4, 4))
PATCHES = [5 * (ROWS + i) + COLUMNS + j for i in range(2) for j in range(2)]


class Network(eqx.Module):
    conv: gflow.nn.Conv2d
    pool: gflow.nn.MaxPool2d
    last: gflow.nn.Linear

    def __call__(self, x):
        return self.last(self.pool(jax.nn.relu(self.conv(x))).reshape(-1))


def problem(seed, n=6):
    first, last = jr.split(jr.key(seed))
    model = Network(
        gflow.nn.Conv2d(1, 2, 2, key=first),
        gflow.nn.MaxPool2d(2),
        gflow.nn.Linear(8, "scalar", key=last),
    )
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, 1, 5, 5)), rng.normal(size=n)
    return model, (jnp.asarray(x), jnp.asarray(y))


def weights(model):
    return np.concatenate(
        [np.asarray(model.conv.weight).ravel(), np.asarray(model.last.weight).ravel()]
    )


def larger(a, b, width):
    """The larger of two numbers, rounded off where they are within the width."""
    slope = 0.5 * (1 + jnp.clip((a - b) / width, -1, 1))
    return b + jnp.where(slope < 1, slope**2 * width, a - b)


def rounded(v, x, y, width=1e-8):
    """The loss, written out, with all kinks rounded off."""
    kernels, last = v[:8].reshape(2, 4), v[8:]
    images = x.reshape(-1, 25)
    z = sum(
        images[:, None, patch] * kernels[None, :, k, None, None]
        for k, patch in enumerate(PATCHES)
    )
    z = larger(z, 0.0, width)
    corners = [z[..., i::2, j::2] for i in range(2) for j in range(2)]
    top, bottom = larger(*corners[:2], width), larger(*corners[2:], width)
    hidden = larger(top, bottom, width).reshape(len(images), 8)
    return jnp.sum((hidden @ last - y) ** 2) / 2


@jax.jit
def slope(v, x, y):
    return -jax.grad(rounded)(v, x, y)


@jax.jit
def bend(v, x, y):
    return -jax.hessian(rounded)(v, x, y)


def by_radau(start, x, y):
    """The flow of the rounded loss."""
    found = solve_ivp(
        lambda _, v: np.asarray(slope(v, x, y)),
        (0, END),
        start,
        "Radau",
        jac=lambda _, v: np.asarray(bend(v, x, y)),
        rtol=1e-10,
        atol=1e-12,
    )
    return found.y[:, -1]


@pytest.fixture(scope="module")
def flows():
    def run(model, data):
        return gflow.integrate(
            model, data, Square(), (0.0, END), save_at=[END], rtol=RTOL, throw=False
        )

    problems = stacked([problem(seed) for seed in SEEDS])
    return eqx.filter_jit(eqx.filter_vmap(run))(*problems)


def test_the_energy_balances(flows):
    assert np.all(np.asarray(flows.result == gflow.RESULTS.successful))
    assert np.max(np.abs(flows.energy_defect)) < 1e-6
    assert np.all(np.asarray(flows.inclusion.num_unsure) == 0)
    assert np.all(np.asarray(flows.inclusion.num_ambiguous) == 0)
    # Across kinks, and along some.
    assert np.all(np.asarray(flows.inclusion.num_events) > 0)
    assert np.any(np.asarray(flows.inclusion.pins) >= 0)


@pytest.mark.parametrize("lane", range(len(SEEDS)))
def test_it_is_the_limit_of_smooth_flows(flows, lane):
    model, (x, y) = problem(SEEDS[lane])
    found = weights(jax.tree.map(lambda a: a[lane], flows.final))
    expected = by_radau(weights(model), x, y)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
