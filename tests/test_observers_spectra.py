"""Eigenvalues seen along a flow, against dense matrices; the Lanczos iteration."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gflow
from gflow import observe
from gflow._lanczos import extremes
from gflow.losses import CrossEntropy, Exponential, Logistic, Square
from gflow.observe import evaluate

from .helpers import rng, tolerance


# The Lanczos iteration ----------------------------------------------------------------


def symmetric(values, seed=0):
    q = np.linalg.qr(rng(seed).normal(size=(len(values), len(values))))[0]
    return q @ np.diag(values) @ q.T


@eqx.filter_jit
def found(matrices, high=3, low=2, steps=60, tol=1e-12):
    def one(a):
        return extremes(lambda v: a @ v, a[0], high=high, low=low, steps=steps, tol=tol)

    return jax.vmap(one)(matrices)


def test_small_matrices():
    values = [
        rng(1).normal(size=20),
        np.array([3.0, 2.0, -1.0] + 17 * [0.0]),  # an invariant subspace
        np.array(10 * [2.0] + 10 * [1.0]),  # eigenvalues ten times over
        1e-200 * rng(2).normal(size=20),
        1e150 * rng(3).normal(size=20),
        np.zeros(20),
    ]
    at = found(jnp.asarray(np.stack([symmetric(v) for v in values])))
    for number, v in enumerate(values):
        v = np.sort(v)
        scale = np.max(np.abs(v))
        close = {"rtol": 0, "atol": 1e-14 * scale}
        np.testing.assert_allclose(at.largest[number], v[::-1][:3], **close)
        np.testing.assert_allclose(at.smallest[number], v[:2], **close)
        np.testing.assert_allclose(at.scale[number], scale, rtol=1e-13)
        assert np.all(at.largest_error[number] <= 1e-12 * scale)


def test_a_large_matrix():
    v = np.concatenate([np.linspace(-1, 1, 297), [10.0, 20.0, 50.0]])
    at = found(jnp.asarray(symmetric(v))[None], tol=1e-8, low=1)
    np.testing.assert_allclose(at.largest[0], [50.0, 20.0, 10.0], rtol=1e-13)
    # In the bulk 60 steps know less, and say how much.
    error = abs(at.smallest[0, 0] + 1)
    assert 1e-12 < error < at.smallest_error[0, 0] < 0.1


# The Hessian --------------------------------------------------------------------------


class Net(eqx.Module):
    """x ↦ Σ_j a_j relu(⟨w_j, x⟩)², homogeneous of degree 3."""

    w: jax.Array
    a: jax.Array

    def __call__(self, x):
        return jnp.sum(self.a * jnp.square(jax.nn.relu(self.w @ x)))


X = rng(0).normal(size=(5, 3))


def weights(seed):
    r = rng(seed)
    return r.normal(size=(3, 3)), r.normal(size=3)


def net(seed, scale=1.0):
    return Net(*(jnp.asarray(scale * w) for w in weights(seed)))


def outputs(w, a):
    return np.maximum(X @ w.T, 0) ** 2 @ a


SEED = 14
Y = np.sign(outputs(*weights(SEED)))
LATE = (1e6 / np.min(np.abs(outputs(*weights(SEED))))) ** (1 / 3)
# Ordinary, separating, at a loss of e^-1e6, and at norms of 1e-60 and 1e60.
LANES = [(25, 1.0), (SEED, 1.0), (SEED, LATE), (SEED, 1e-60), (SEED, 1e60)]


def margins(model):
    return jnp.asarray(Y) * jax.vmap(model)(jnp.asarray(X))


def as_vector(model):
    return jax.flatten_util.ravel_pytree(model)


def hessian(model):
    """log of a unit, and ∇²Σ e^-p in it."""
    # e^-p is out of reach, so by the chain rule.
    p, jac, second = (np.asarray(one) for one in derivatives(model))
    q = np.exp(np.min(p) - p)
    size = max(np.max(np.abs(jac)), 1.0)
    jac, second = jac / size, second / size / size
    total = jac.T @ (q[:, None] * jac) - np.tensordot(q, second, 1)
    return 2 * np.log(size) - np.min(p), total


@eqx.filter_jit
def derivatives(model):
    """The margins, their gradients, their second derivatives."""
    v, back = as_vector(model)

    def p(u):
        return margins(back(u))

    return p(v), jax.jacfwd(p)(v), jax.hessian(p)(v)


@pytest.fixture(scope="module")
def seen():
    options = {"k": 2, "tol": 1e-12}
    what = {
        "sharpness": observe.sharpness,
        "log_sharpness": observe.log_sharpness,
        "hessian_spectrum": observe.hessian_spectrum.using(**options),
        "lagrange": observe.normalized_jacobian.using(**options),
        "standard": observe.normalized_jacobian.using(flow="standard", **options),
    }

    @eqx.filter_jit
    @eqx.filter_vmap
    def run(model):
        return evaluate(model, (X, Y), Exponential(), what)

    models = [net(*one) for one in LANES]
    return run(jax.tree.map(lambda *w: jnp.stack(w), *models))


each_lane = pytest.mark.parametrize("number", range(len(LANES)))


@each_lane
def test_hessian(seen, number):
    at = jax.tree.map(lambda leaf: leaf[number], seen)
    log_unit, matrix = hessian(net(*LANES[number]))
    values = np.linalg.eigvalsh(matrix)
    scale = np.max(np.abs(values))
    log_scale = log_unit + np.log(scale)
    # log ℒ = -1e6 is known to 1e-10.
    exact = {"rtol": 1e-10, "atol": 1e-10}
    np.testing.assert_allclose(at["log_sharpness"], log_unit + np.log(values[-1]), 1e-9)
    np.testing.assert_allclose(at["sharpness"], np.exp(at["log_sharpness"]), **exact)
    found = at["hessian_spectrum"]
    np.testing.assert_allclose(found["log_scale"], log_scale, **exact)
    np.testing.assert_allclose(found["largest"], values[::-1][:2] / scale, **exact)
    np.testing.assert_allclose(found["smallest"], values[:2] / scale, **exact)


@eqx.filter_jit
def on_spheres(model):
    """log of a unit; in it ∇ℒ(V; ρ) on the spheres and the Hessian there; rates."""
    leaves, structure = jax.tree.flatten(model)
    rho = [jnp.linalg.norm(leaf) for leaf in leaves]
    vs = [(leaf / r).ravel() for leaf, r in zip(leaves, rho, strict=True)]
    # An orthonormal basis of each tangent space.
    bases = [jnp.linalg.svd(v[None])[2][1:].T for v in vs]
    sizes = [basis.shape[1] for basis in bases]
    least = jnp.min(margins(model))

    def loss(z):
        parts = jnp.split(z, np.cumsum(sizes)[:-1])
        moved = []
        for r, v, b, part, leaf in zip(rho, vs, bases, parts, leaves, strict=True):
            along = v + b @ part
            moved.append((r * along / jnp.linalg.norm(along)).reshape(leaf.shape))
        return jnp.sum(jnp.exp(least - margins(jax.tree.unflatten(structure, moved))))

    zero = jnp.zeros(sum(sizes))
    rates = jnp.repeat(jnp.stack(rho) ** -2.0, np.array(sizes))
    return -least, jax.grad(loss)(zero), jax.hessian(loss)(zero), rates


@pytest.mark.parametrize("number", [0, 1, 2])
def test_flow_of_the_directions(seen, number):
    at = jax.tree.map(lambda leaf: leaf[number], seen)
    log_unit, gradient, second, rates = (
        np.asarray(one) for one in on_spheres(net(*LANES[number]))
    )
    # The dense derivative has weights from margins of 1e6.
    close = {"rtol": 1e-10, "atol": 1e-10 if number < 2 else 1e-8}
    for flow, rate in (("lagrange", np.ones_like(rates)), ("standard", rates)):
        found = at[flow]
        values = np.sort(np.linalg.eigvals(-rate[:, None] * second).real)
        scale = np.max(np.abs(values))
        np.testing.assert_allclose(found["largest"], values[::-1][:2] / scale, **close)
        np.testing.assert_allclose(found["smallest"], values[:2] / scale, **close)
        np.testing.assert_allclose(
            found["log_scale"], log_unit + np.log(scale), **close
        )
        speed = np.linalg.norm(rate * gradient)
        np.testing.assert_allclose(
            found["log_speed"], log_unit + np.log(speed), **close
        )


def test_directions_at_any_norm(seen):
    # Near the origin ℒ(V; ρ) is n - Σ p to leading order, at every norm.
    tiny, huge = (jax.tree.map(lambda leaf, i=i: leaf[i], seen) for i in (3, 4))
    _, jac, second = (np.asarray(one) for one in derivatives(net(SEED)))
    h, g = -np.sum(second, axis=0), -np.sum(jac, axis=0)
    blocks = [slice(0, 9), slice(9, 12)]
    v, rho, bend, basis = np.zeros(12), np.zeros(12), np.zeros(12), np.zeros((12, 10))
    for w, block in zip(weights(SEED), blocks, strict=True):
        rho[block] = np.linalg.norm(w)
        v[block] = w.ravel() / np.linalg.norm(w)
        bend[block] = rho[block] * (g[block] @ v[block])
    basis[:9, :8] = np.linalg.svd(v[None, :9])[2][1:].T
    basis[9:, 8:] = np.linalg.svd(v[None, 9:])[2][1:].T
    second = basis.T @ (rho[:, None] * h * rho - np.diag(bend)) @ basis
    values = np.linalg.eigvalsh(-second)
    scale = np.max(np.abs(values))
    found = tiny["lagrange"]
    np.testing.assert_allclose(found["largest"], values[::-1][:2] / scale, rtol=1e-10)
    np.testing.assert_allclose(found["smallest"], values[:2] / scale, rtol=1e-10)
    expected = np.log(scale) - 180 * np.log(10)
    np.testing.assert_allclose(found["log_scale"], expected, rtol=1e-12)
    # At margins of 1e180 one example's gradient is all there is, seen from within.
    np.testing.assert_allclose(huge["lagrange"]["smallest"], [-1.0, 0.0], atol=1e-10)


def test_several_classes_and_mean():
    keys = jax.random.split(jax.random.key(0), 2)
    models = eqx.filter_vmap(lambda k: gflow.nn.DeepLinear((3, 4, 3), key=k))(keys)
    x, y = rng(4).normal(size=(6, 3)), np.array([0, 1, 2, 0, 1, 1])
    loss = CrossEntropy(reduction="mean")
    what = {"s": observe.sharpness, "h": observe.hessian_spectrum.using(tol=1e-12)}
    run = eqx.filter_vmap(lambda model: evaluate(model, (x, y), loss, what))
    seen = eqx.filter_jit(run)(models)

    @eqx.filter_jit
    def dense(model):
        v, back = as_vector(model)

        def total(u):
            logits = jax.vmap(back(u))(jnp.asarray(x))
            return -jnp.mean(jax.nn.log_softmax(logits)[np.arange(6), y])

        return jax.hessian(total)(v)

    for number in range(2):
        model = jax.tree.map(lambda leaf, i=number: leaf[i], models)
        values = np.linalg.eigvalsh(dense(model))
        np.testing.assert_allclose(seen["s"][number], values[-1], rtol=1e-10)
        scale = np.exp(seen["h"]["log_scale"][number])
        found = scale * seen["h"]["smallest"][number]
        np.testing.assert_allclose(found, values[:3], atol=1e-10 * scale)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_without_a_tail(dtype):
    # Where the residual is zero the Hessian of ½‖Xw - y‖² is XᵀX as elsewhere.
    x = rng(5).normal(size=(4, 3)).astype(dtype)
    w = jnp.asarray(rng(6).normal(size=(1, 3)), dtype)
    line = gflow.nn.Linear(3, "scalar", key=jax.random.key(0), dtype=dtype)
    line = eqx.tree_at(lambda m: m.weight, line, w)
    y = np.asarray(jax.vmap(line)(jnp.asarray(x)))
    what = ["sharpness", "log_sharpness", "hessian_spectrum", "log_loss"]
    close = tolerance(dtype)
    largest = np.linalg.eigvalsh(x.T @ x)[-1]
    for target in (y, y + 1):
        seen = evaluate(line, (x, target), Square(), what)
        np.testing.assert_allclose(seen["sharpness"], largest, **close)
        np.testing.assert_allclose(seen["log_sharpness"], np.log(largest), **close)
        assert seen["sharpness"].dtype == dtype
        assert np.all(np.isfinite(seen["hessian_spectrum"]["smallest"]))
    assert np.isfinite(seen["log_loss"])


def test_undefined():
    x, y = X[:, :2], Y
    # The first neuron has the first example at its kink.
    weight = jnp.array([[x[0, 1], -x[0, 0]], [1.0, 0.5]])
    relu = gflow.nn.TwoLayer(2, 2, key=jax.random.key(0))
    for shift in (0.0, 0.1):
        at = eqx.tree_at(lambda m: m.weight, relu, weight + shift)
        seen = evaluate(at, (x, y), Logistic(), "sharpness")
        assert np.isnan(seen["sharpness"]) == (shift == 0.0)
    # Not converged in as few steps; at the maximum of a loss λ_max is negative.
    line = gflow.nn.Linear(2, "scalar", key=jax.random.key(0))
    what = {
        "few": observe.sharpness.using(steps=1),
        "sharpness": observe.sharpness,
        "log": observe.log_sharpness,
        "spectrum": observe.hessian_spectrum,
    }
    seen = evaluate(line, (x, y), lambda f, y: -jnp.square(f - y), what)
    largest = np.linalg.eigvalsh(-2 * x.T @ x)[-1]
    np.testing.assert_allclose(seen["sharpness"], largest, rtol=1e-10)
    assert np.isnan(seen["log"]) and np.isnan(seen["few"])
    # There are two eigenvalues.
    assert np.isnan(seen["spectrum"]["largest"]).tolist() == [False, False, True]
