"""Flows that can be integrated by hand, to 1e-7 at rtol = 1e-8.

Times are compared through their logarithms. Where the closed form gives the time as a
function of the state, the state at given times is found from it by root finding; that
is an independent oracle, made of quadrature in the log domain and nothing else.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.special

import gflow
from gflow.clocks import Alpha, LogTime, Physical
from gflow.losses import (
    CrossEntropy,
    Exponential,
    Logistic,
    MulticlassExponential,
    Square,
)


RTOL = 1e-8  # given to the solver
CLOSE = 1e-7  # asked of the result
LARGEST = np.log(1e300)


class Dot(eqx.Module):
    """x ↦ ⟨w, x⟩."""

    w: jax.Array

    def __call__(self, x):
        return jnp.sum(self.w * x)


class Matrix(eqx.Module):
    """x ↦ W x."""

    w: jax.Array

    def __call__(self, x):
        return self.w @ x


class Product(eqx.Module):
    """x ↦ x₁ Π_k w_k: a linear network of width one, one array a layer."""

    w: list[jax.Array]

    def __call__(self, x):
        out = x[0]
        for w in self.w:
            out = out * w
        return out

    def product(self):
        return np.prod([np.asarray(w) for w in self.w], axis=0)


class Tanh(eqx.Module):
    """x ↦ V tanh(U x)."""

    u: jax.Array
    v: jax.Array

    def __call__(self, x):
        return self.v @ jnp.tanh(self.u @ x)


ONE = (np.ones((1, 1)), np.ones(1))  # p = Π w_k


def product(*factors):
    return Product([jnp.asarray(w) for w in factors])


def flow(model, data, loss, log_times, clock):
    """States at t = e^log_times."""
    return gflow.integrate(
        model,
        data,
        loss,
        (0.0, gflow.exp(log_times[-1])),
        save_at=gflow.exp(log_times),
        clock=clock,
        rtol=RTOL,
    )


def relative(found, exact):
    """Largest error of a row (a saved time), relative to the norm of that row."""
    found, exact = np.asarray(found), np.asarray(exact)
    found = found.reshape(len(found), -1)
    exact = exact.reshape(len(exact), -1)
    error = np.linalg.norm(found - exact, axis=1) / np.linalg.norm(exact, axis=1)
    assert np.all(np.isfinite(error))
    return np.max(error)


# Quadrature in the log domain ----------


def log_time(p0, p, log_speed, panels=400):
    """log t for dp/dt = e^log_speed(p), log ∫ e^{-log_speed}, from p0 to p.

    Gauss-Legendre with 20 nodes on panels that are even in p above 1 and in log p
    below, all terms kept as logarithms.
    """
    nodes, weights = np.polynomial.legendre.leggauss(20)
    joint = np.clip(1.0, p0, p)
    edges = [np.geomspace(p0, joint, panels + 1)] if joint > p0 else [np.array([p0])]
    if p > joint:
        edges.append(np.linspace(joint, p, max(panels, int(4 * (p - joint))) + 1)[1:])
    edges = np.concatenate(edges)
    half = np.diff(edges)[:, None] / 2
    at = edges[:-1, None] + half * (1 + nodes)
    return scipy.special.logsumexp(np.log(half) + np.log(weights) - log_speed(at))


def product_after(p0, log_times, log_speed):
    """p at t = e^log_times for dp/dt = e^log_speed(p), by root finding in log p."""
    highest = np.log(max(10.0, 3 * log_times[-1]))

    def at(v):
        root = scipy.optimize.brentq(
            lambda s: log_time(p0, np.exp(s), log_speed) - v,
            np.log(p0) + 1e-12,
            highest,
            xtol=1e-15,
            rtol=1e-14,
        )
        return np.exp(root)

    return np.array([at(v) for v in log_times])


def log_speed_two(gap):
    """log dp/dt for ℒ = e^{-ab}: (a² + b²) e^{-p} = √(gap² + 4p²) e^{-p}.

    a² - b² = gap is conserved.
    """
    return lambda p: 0.5 * np.log(gap**2 + 4 * p**2) - p


def log_speed_three(gap_b, gap_c):
    """log dp/dt for ℒ = e^{-abc}: (b²c² + a²c² + a²b²) e^{-p}.

    a² - b² = gap_b ≤ 0 and a² - c² = gap_c ≤ 0 are conserved; s = a² is the root of
    s (s - gap_b)(s - gap_c) = p².
    """

    def of(p):
        s = np.minimum(p ** (2 / 3), 1e300)
        for _ in range(60):  # Newton from the right, on an increasing convex cubic
            value = s * (s - gap_b) * (s - gap_c) - p**2
            slope = (s - gap_b) * (s - gap_c) + s * (2 * s - gap_b - gap_c)
            s = s - value / slope
        b, c = s - gap_b, s - gap_c
        return np.log(b * c + s * c + s * b) - p

    return of


def test_the_quadrature():
    """∫ e^p/(2p) dp = (Ei(p) - Ei(p₀))/2, and its asymptotic series beyond floats."""
    for p0, p in [(1.0, 1.5), (0.04, 3.0), (1e-12, 20.0), (1.0, 600.0)]:
        exact = np.log((scipy.special.expi(p) - scipy.special.expi(p0)) / 2)
        np.testing.assert_allclose(
            log_time(p0, p, log_speed_two(0.0)), exact, rtol=1e-13, atol=1e-13
        )
    p = 2000.0
    series = 1 + 1 / p + 2 / p**2 + 6 / p**3 + 24 / p**4
    exact = p - np.log(2 * p) + np.log(series)
    np.testing.assert_allclose(
        log_time(1.0, p, log_speed_two(0.0)), exact, rtol=1e-14, atol=1e-13
    )


# One layer, exponential loss ----------

SCALES = np.array([1.0, 2.0, 0.5])


def exact_dot(w0, log_times):
    """w_i(t) = log(e^{r_i w_i(0)} + r_i² t)/r_i, accurate for small t too."""
    grown = 2 * np.log(SCALES) + np.asarray(log_times)[:, None] - SCALES * w0
    return w0 + np.logaddexp(grown, 0.0) / SCALES


@pytest.mark.parametrize("clock", [LogTime(), Alpha(), Physical()], ids=repr)
@pytest.mark.parametrize("start", ["zero", "mixed"])
def test_linear_exponential(clock, start):
    w0 = {"zero": np.zeros(3), "mixed": np.array([-1.0, 0.5, 2.0])}[start]
    log_times = np.array([-30, -3, -1, 0, 1, 3, np.log(1e3), 30, 300, 600, LARGEST])
    if isinstance(clock, Physical):
        log_times = log_times[:7]
    sol = flow(
        Dot(jnp.asarray(w0)),
        (np.diag(SCALES), np.ones(3)),
        Exponential(),
        log_times,
        clock,
    )
    exact = exact_dot(w0, log_times)
    assert relative(sol.models.w, exact) < CLOSE
    log_loss = scipy.special.logsumexp(-SCALES * exact, axis=1)
    np.testing.assert_allclose(sol.log_loss, log_loss, rtol=CLOSE, atol=CLOSE)
    np.testing.assert_array_equal(sol.log_t, log_times)


def test_linear_exponential_beyond_floats():
    log_times = np.array([-5.0, 0.0, 710.0, 5e3, 2e4])
    w0 = np.array([0.3, -0.2, 0.0])
    sol = flow(
        Dot(jnp.asarray(w0)),
        (np.diag(SCALES), np.ones(3)),
        Exponential(),
        log_times,
        None,
    )
    exact = exact_dot(w0, log_times)
    assert relative(sol.models.w, exact) < CLOSE
    log_loss = scipy.special.logsumexp(-SCALES * exact, axis=1)
    np.testing.assert_allclose(sol.log_loss, log_loss, rtol=CLOSE)
    assert np.isinf(sol.t[-1]) and np.all(np.isfinite(sol.log_loss))


# Two and three layers of width one, exponential loss ----------

LATE = np.array([-3.0, 0.0, 1.0, 3.0, 10.0, 100.0, 1000.0, 2000.0])
both_clocks = pytest.mark.parametrize("clock", [LogTime(), Alpha()], ids=repr)


@both_clocks
@pytest.mark.parametrize("a, b", [(1.0, 1.0), (0.1, 0.1), (3.0, 0.1), (0.02, 1.5)])
def test_two_layers_exponential(clock, a, b):
    sol = flow(product(a, b), ONE, Exponential(), LATE, clock)
    p = product_after(a * b, LATE, log_speed_two(a**2 - b**2))
    np.testing.assert_allclose(sol.models.product(), p, rtol=CLOSE)
    np.testing.assert_allclose(sol.log_loss, -p, rtol=CLOSE)
    # a² - b² is conserved, to the accuracy of either.
    gap = np.asarray(sol.models.w[0]) ** 2 - np.asarray(sol.models.w[1]) ** 2
    np.testing.assert_allclose(gap, a**2 - b**2, rtol=0, atol=CLOSE * (1 + 2 * p[-1]))


@both_clocks
@pytest.mark.parametrize("a, b, c", [(1.0, 1.0, 1.0), (0.3, 0.3, 0.3), (0.2, 0.5, 1.5)])
def test_three_layers_exponential(clock, a, b, c):
    sol = flow(product(a, b, c), ONE, Exponential(), LATE, clock)
    p = product_after(a * b * c, LATE, log_speed_three(a**2 - b**2, a**2 - c**2))
    np.testing.assert_allclose(sol.models.product(), p, rtol=CLOSE)
    np.testing.assert_allclose(sol.log_loss, -p, rtol=CLOSE)


# The plateau near the origin, logistic loss ----------


@pytest.mark.parametrize("clock", [LogTime(), Alpha(), Physical()], ids=repr)
def test_escape_from_the_origin(clock):
    """dp/dt = 2p/(1 + e^p) from p = 1e-60: t = log(p/p₀) + ½ ∫ (e^u - 1)/u du.

    The product leaves the plateau at t = 138.8. Its logarithm is compared: a relative
    error of the escape time is an absolute error of log p.
    """
    times = np.array([1.0, 10, 100, 130, 138, 138.8, 140, 145, 200, 1e4])
    log_times = np.log(times)
    if not isinstance(clock, Physical):
        log_times = np.append(log_times, [100.0, 500.0])
    sol = flow(product(1e-30, 1e-30), ONE, Logistic(), log_times, clock)

    def log_escape(log_p):
        # Ei(p) - γ - log p = ∫_0^p (e^u - 1)/u du, by its series where it cancels.
        p = np.exp(log_p)
        if p < 0.1:
            integral = sum(
                p**k / (k * scipy.special.factorial(k)) for k in range(1, 15)
            )
        else:
            integral = scipy.special.expi(p) - np.euler_gamma - log_p
        return np.log(log_p - np.log(1e-60) + 0.5 * integral)

    log_p = np.array(
        [
            scipy.optimize.brentq(
                lambda s, v=v: log_escape(s) - v, np.log(1e-60) + 1e-9, np.log(699.0)
            )
            for v in log_times
        ]
    )
    found = sol.models.product()
    assert np.all(np.isfinite(found)) and np.all(found > 0)
    np.testing.assert_allclose(np.log(found), log_p, rtol=CLOSE, atol=CLOSE)
    late = found > 1e-3
    log_loss = np.log(np.log1p(np.exp(-np.exp(log_p))))
    np.testing.assert_allclose(sol.log_loss[late], log_loss[late], rtol=1e-5)
    np.testing.assert_allclose(sol.log_loss[~late], np.log(np.log(2)), atol=1e-3)


# Square loss ----------


@pytest.mark.parametrize("clock", [LogTime(), Physical()], ids=repr)
def test_square_loss_decays(clock):
    """w_i = w_i(0) e^{-r_i² t} for x_i = r_i e_i, y = 0; the norm shrinks to e^-25."""
    w0 = np.array([1.0, -2.0, 3.0])
    times = np.array([1e-6, 0.1, 1.0, 5.0, 20.0, 100.0])
    sol = flow(
        Dot(jnp.asarray(w0)),
        (np.diag(SCALES), np.zeros(3)),
        Square(),
        np.log(times),
        clock,
    )
    exact = w0 * np.exp(-(SCALES**2) * times[:, None])
    assert relative(sol.models.w, exact) < CLOSE
    log_loss = scipy.special.logsumexp(
        2 * np.log(SCALES * np.abs(w0)) - 2 * SCALES**2 * times[:, None], axis=1
    ) - np.log(2)
    np.testing.assert_allclose(sol.log_loss, log_loss, rtol=CLOSE, atol=2 * CLOSE)


# Several classes ----------

CLASSES = 4
EACH_ONCE = (np.eye(CLASSES), np.arange(CLASSES))
MANY = np.array([-20.0, -1.0, 0.0, 1.0, 3.0, 10.0, 100.0, 1000.0])


def symmetric(p):
    """W with margins p: (k-1) p/k on the diagonal, -p/k off it."""
    return p[:, None, None] * (np.eye(CLASSES) - 1 / CLASSES)


def test_multiclass_exponential():
    """One example e_i for each class i, W(0) = 0: dp/dt = k e^{-p}, p = log(1 + kt)."""
    sol = flow(
        Matrix(jnp.zeros((CLASSES, CLASSES))),
        EACH_ONCE,
        MulticlassExponential(),
        MANY,
        None,
    )
    p = np.logaddexp(0.0, np.log(CLASSES) + MANY)
    assert relative(sol.models.w, symmetric(p)) < CLOSE
    log_loss = np.log(CLASSES * (CLASSES - 1)) - p
    np.testing.assert_allclose(sol.log_loss, log_loss, rtol=CLOSE, atol=CLOSE)


@pytest.fixture(scope="module")
def cross_entropy():
    model = Matrix(jnp.zeros((CLASSES, CLASSES)))
    return flow(model, EACH_ONCE, CrossEntropy(), MANY, None)


def test_cross_entropy(cross_entropy):
    """dp/dt = k/(e^p + k - 1), so that e^p - 1 + (k - 1) p = k t."""

    def log_time_at(p):
        grown = p + np.log(-np.expm1(-p))
        return np.logaddexp(grown, np.log((CLASSES - 1) * p)) - np.log(CLASSES)

    p = np.array(
        [
            scipy.optimize.brentq(
                lambda p, v=v: log_time_at(p) - v, 1e-12, 2e3, xtol=1e-22, rtol=1e-15
            )
            for v in MANY
        ]
    )
    sol = cross_entropy
    assert relative(sol.models.w, symmetric(p)) < CLOSE
    late = np.log(CLASSES * (CLASSES - 1)) - p
    body = np.log(CLASSES * np.log1p((CLASSES - 1) * np.exp(-np.minimum(p, 40))))
    log_loss = np.where(p > 40, late, body)
    np.testing.assert_allclose(sol.log_loss, log_loss, rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize("dtype", [np.int32, np.uint8])
def test_labels_of_any_integer_dtype(cross_entropy, dtype):
    x, y = EACH_ONCE
    model = Matrix(jnp.zeros((CLASSES, CLASSES)))
    sol = flow(model, (x, y.astype(dtype)), CrossEntropy(), MANY, None)
    np.testing.assert_array_equal(sol.models.w, cross_entropy.models.w)


@pytest.mark.parametrize("loss", [CrossEntropy(), MulticlassExponential()], ids=repr)
def test_several_classes_against_scipy(loss):
    """No symmetry: a tanh network on random data, against DOP853 at 1e-12."""
    rng = np.random.default_rng(7)
    u0, v0 = rng.normal(size=(3, 2)), rng.normal(size=(3, 3))
    x, y = rng.normal(size=(6, 2)), rng.integers(0, 3, size=6)
    times = np.array([0.1, 1.0, 5.0, 20.0])

    def velocity(t, w):
        u, v = w[:6].reshape(3, 2), w[6:].reshape(3, 3)
        h = np.tanh(x @ u.T)
        f = h @ v.T
        own = np.arange(3) == y[:, None]
        if isinstance(loss, CrossEntropy):
            slope = scipy.special.softmax(f, axis=1) - own
        else:
            e = np.where(own, 0.0, np.exp(f - f[own][:, None]))
            slope = e - own * e.sum(axis=1, keepdims=True)
        back = (slope @ v) * (1 - h**2)
        return -np.concatenate([(back.T @ x).ravel(), (slope.T @ h).ravel()])

    exact = scipy.integrate.solve_ivp(
        velocity,
        (0.0, times[-1]),
        np.concatenate([u0.ravel(), v0.ravel()]),
        method="DOP853",
        t_eval=times,
        rtol=1e-12,
        atol=1e-13,
    ).y.T
    sol = flow(
        Tanh(jnp.asarray(u0), jnp.asarray(v0)), (x, y), loss, np.log(times), None
    )
    assert relative(sol.models.u, exact[:, :6]) < CLOSE
    assert relative(sol.models.v, exact[:, 6:]) < CLOSE
