"""Observers against brute force in NumPy, under jit and vmap; extremes of size."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import svdvals
from scipy.optimize import minimize_scalar

import gflow
from gflow import observe
from gflow.losses import CrossEntropy, Exponential, Logistic, Square
from gflow.observe import evaluate
from gflow.observe._known import KNOWN

from .helpers import rng, tolerance


LANES = 2
N, D, M = 5, 3, 3
CLOSE = {"rtol": 1e-10, "atol": 1e-10}


class Net(eqx.Module):
    """x ↦ Σ_j a_j relu(⟨w_j, x⟩)², homogeneous of degree 3."""

    w: jax.Array
    a: jax.Array

    def __call__(self, x):
        return jnp.sum(self.a * jnp.square(jax.nn.relu(self.w @ x)))


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def stack(models):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *models)


def lane(tree, number):
    return jax.tree.map(lambda leaf: leaf[number], tree)


@eqx.filter_jit
def observed(models, data, loss, what):
    return eqx.filter_vmap(lambda model: evaluate(model, data, loss, what))(models)


def angle(a, b):
    return np.arccos(np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b))


def check(found, expected):
    """Two dicts of arrays, the second of one lane or of what is looked at in it."""
    for name, value in expected.items():
        if isinstance(value, dict):
            check(found[name], value)
        else:
            np.testing.assert_allclose(found[name], value, **CLOSE, err_msg=name)


# A squared ReLU network ----------------------------------------------------------


@pytest.fixture(scope="module")
def data():
    x = rng(0).normal(size=(N, D))
    return x, np.array([1.0, -1.0, 1.0, 1.0, -1.0])


def nets():
    """Two of them. The second has all margins positive with `labels_of`."""
    r = rng(3)
    return [
        Net(jnp.asarray(r.normal(size=(M, D))), jnp.asarray(r.normal(size=M)))
        for _ in range(LANES)
    ]


def labels_of(net, x):
    return np.where(np.asarray(jax.vmap(net)(x)) < 0, -1.0, 1.0)


def dense(net, x):
    """Outputs, their Jacobian (n, P), and their second derivatives (n, P, P)."""
    leaves, structure = jax.tree.flatten(net)
    sizes = np.cumsum([leaf.size for leaf in leaves])[:-1]

    def outputs(v):
        parts = jnp.split(v, sizes)
        new = [p.reshape(w.shape) for p, w in zip(parts, leaves, strict=True)]
        return jax.vmap(jax.tree.unflatten(structure, new))(jnp.asarray(x))

    v = jnp.asarray(flat(net))
    return tuple(
        np.asarray(f(v)) for f in (outputs, jax.jacfwd(outputs), jax.hessian(outputs))
    )


SMALL = {
    name: getattr(observe, name)
    for name in (
        "beta dual layer_alignment median_margins J_potential velocity layer_rank kkt "
        "ntk ntk_alignment ntk_drift ncf ncf_kkt neuron_ncf neurons neuron_alignment "
        "saliency normalized_margins smoothed_margin"
    ).split()
} | {
    "balancedness": observe.balancedness.using(degrees=(2, 1)),
    "neuron_balancedness": observe.neuron_balancedness.using(power=2),
    "ncf_of_ones": observe.ncf.using(z=np.ones(N)),
}


# Of one gradient, and evaluated in the same program.
PLAIN = (
    "log_loss log_norm grad_norm layer_norms margins min_margin accuracy alignment "
    "radial_spherical clarke"
).split()


@pytest.fixture(scope="module")
def seen(data):
    what = SMALL | {name: getattr(observe, name) for name in PLAIN}
    what["drift"] = observe.ntk_drift.since(nets()[1])
    return observed(stack(nets()), data, Logistic(), what)


@pytest.mark.parametrize("number", range(LANES))
def test_against_numpy(seen, data, number):
    x, y = data
    net, seen = nets()[number], lane(seen, number)
    f, jac, _ = dense(net, x)
    w, norm, p = flat(net), np.linalg.norm(flat(net)), y * f
    # α = ℓ⁻¹(ℒ), q = ℓ'(p)/ℓ'(α)
    alpha = -np.log(np.expm1(np.sum(np.log1p(np.exp(-p)))))
    q = (1 + np.exp(alpha)) / (1 + np.exp(p))
    toward = (q * y) @ jac
    speed = 1 / (1 + np.exp(alpha))
    parts = [(w[:9], toward[:9]), (w[9:], toward[9:])]
    each = np.concatenate([w[:9].reshape(M, D), w[9:, None]], axis=1)
    pull = np.concatenate([toward[:9].reshape(M, D), toward[9:, None]], axis=1)
    sizes = np.linalg.norm(each, axis=1)
    singular = svdvals(w[:9].reshape(M, D))
    left = np.linalg.svd(w[:9].reshape(M, D))[0][:, 0]
    radial = toward @ w / norm
    kernel = jac @ jac.T
    jac_then = dense(nets()[1], x)[1]
    then = jac_then @ jac_then.T
    moved = np.linalg.norm(kernel - then)
    across = np.linalg.norm(toward - radial * w / norm)
    # ∂̄α̃ = ∇α/‖W‖³ - 3αW/‖W‖⁵
    excess = abs(radial - 3 * alpha / norm)
    squares = [np.sum(w[:9] ** 2) / 2, np.sum(w[9:] ** 2)]
    positive = np.median(p[p >= 0])
    check(
        seen,
        {
            "log_loss": np.log(np.sum(np.log1p(np.exp(-p)))),
            "log_norm": np.log(norm),
            "grad_norm": np.log(speed * np.linalg.norm(toward)),
            "layer_norms": [np.linalg.norm(w[:9]), np.linalg.norm(w[9:])],
            "margins": p,
            "min_margin": p.min() / norm**3,
            "accuracy": np.mean(p > 0),
            "alignment": angle(w, toward),
            "radial_spherical": {
                "log_radial_loss": np.log(speed * abs(radial)),
                "log_spherical_loss": np.log(speed * across),
                "log_ratio_loss": np.log(across / abs(radial)),
                "log_radial_margin": np.log(excess / norm**3),
                "log_spherical_margin": np.log(across / norm**3),
                "log_ratio_margin": np.log(across / excess),
            },
            "clarke": {
                "log_norm": np.log(speed * np.linalg.norm(toward)),
                "num_at_zero": 0,
                "exact": True,
            },
            "drift": {
                "log_relative": np.log(moved / np.linalg.norm(then))
                if number == 0
                else -np.inf,
            },
            "beta": np.sum(q * p),
            "dual": q,
            "layer_alignment": [angle(*pair) for pair in parts],
            "neuron_alignment": [angle(*pair) for pair in zip(each, pull, strict=True)],
            "median_margins": p / positive,
            "J_potential": np.sum(toward**2) / norm**4,
            "normalized_margins": p / norm**3,
            "smoothed_margin": alpha / norm**3,
            "velocity": {
                "direction": toward / np.linalg.norm(toward),
                "log_speed": np.log(speed * np.linalg.norm(toward)),
                "log_growth": np.log(speed * abs(radial) / norm),
                "log_turning": np.log(speed * across / norm),
            },
            "layer_rank": {
                "stable_rank": [np.sum(singular**2) / singular[0] ** 2, 1.0],
                "angles": [np.arccos(abs(left @ w[9:]) / np.linalg.norm(w[9:]))],
            },
            "balancedness": {
                "difference": [squares[1] - squares[0]],
                "relative": [(squares[1] - squares[0]) / norm**2],
            },
            "ntk": {
                "kernel": kernel / np.trace(kernel),
                "log_trace": np.log(np.trace(kernel)),
            },
            "ntk_alignment": y @ kernel @ y / N / np.linalg.norm(kernel),
            "neurons": {
                "direction": each / sizes[:, None],
                "share": sizes**2 / norm**2,
                "log_norm": np.log(sizes),
            },
        },
    )
    assert np.isnan(seen["ntk_drift"]["angle"])
    if number == 0:
        np.testing.assert_allclose(
            seen["drift"]["angle"], angle(kernel.ravel(), then.ravel()), **CLOSE
        )
    np.testing.assert_allclose(seen["layer_rank"]["singular_values"][0], singular)
    np.testing.assert_allclose(
        seen["neuron_balancedness"][0],
        np.sum(each[:, :D] ** 2, axis=1) - 2 * each[:, D] ** 2,
    )
    # ∇_x f = Σ_j 2 a_j relu(⟨w_j, x⟩) w_j
    slope = 2 * (each[:, D] * np.maximum(x @ each[:, :D].T, 0)) @ each[:, :D]
    slope /= np.where(slope == 0, np.nan, np.linalg.norm(slope, axis=1, keepdims=True))
    np.testing.assert_allclose(seen["saliency"], slope, **CLOSE)


def test_every_observer_is_computed_again_in_numpy():
    """Here or in test_deep_linear, under jit and vmap; and the others elsewhere."""
    deep_linear = {"matrix_balancedness", "layer_margins"}
    spectra = {
        "sharpness",
        "log_sharpness",
        "hessian_spectrum",
        "normalized_jacobian",
    }
    # Of a solve: test_path_length_is_that_of_a_polygon.
    along = {"path_length"}
    assert set(SMALL) | set(PLAIN) | deep_linear | spectra | along >= set(KNOWN)


def test_path_length_is_that_of_a_polygon(data):
    # A fine polygon through saved directions is shorter by a sixth of Σ|turn|³κ².
    times = np.linspace(0.0, 0.5, 2001)

    @eqx.filter_jit
    @eqx.filter_vmap
    def run(net):
        return gflow.integrate(
            net,
            data,
            Logistic(),
            (0.0, 0.5),
            save_at=times,
            observe="path_length",
            rtol=1e-12,
        )

    both = run(stack(nets()))
    for number in range(LANES):
        models = lane(both.models, number)
        w = np.concatenate(
            [np.asarray(leaf).reshape(len(times), -1) for leaf in (models.w, models.a)],
            axis=1,
        )
        w /= np.linalg.norm(w, axis=1, keepdims=True)
        step = np.linalg.norm(np.diff(w, axis=0), axis=1)
        coarse = np.linalg.norm(np.diff(w[::2], axis=0), axis=1)
        # Richardson: the chord's defect is of third order in the step.
        length = (4 * step.sum() - coarse.sum()) / 3
        np.testing.assert_allclose(
            both.observed["path_length"][number, -1], length, rtol=1e-10
        )
        assert length > 0.01


@pytest.mark.parametrize("number", range(LANES))
def test_correlation_against_numpy(seen, data, number):
    x, y = data
    net, seen = nets()[number], lane(seen, number)
    f, jac, _ = dense(net, x)
    norm = np.linalg.norm(flat(net))
    u, g = flat(net) / norm, (y / 2) @ jac / norm**2
    across = g - (g @ u) * u
    check(
        seen,
        {
            "ncf": (y / 2) @ f / norm**3,
            "ncf_of_ones": np.sum(f) / norm**3,
            "ncf_kkt": {
                "residual": np.linalg.norm(across) / np.linalg.norm(g),
                "multiplier": 3 * (y / 2) @ f / norm**3,
            },
        },
    )
    for j in range(M):
        # The neuron alone, at norm one.
        v = np.append(net.w[j], net.a[j])
        v /= np.linalg.norm(v)
        z = np.maximum(x @ v[:D], 0)
        g = np.append((y * v[D] * z) @ x, (y / 2) @ z**2)
        across = g - (g @ v) * v
        check(
            lane(seen["neuron_ncf"], j),
            {
                "value": (y / 2) @ (v[D] * z**2),
                "residual": np.linalg.norm(across) / np.linalg.norm(g),
            },
        )


def test_approximate_kkt_against_numpy(data):
    x, nets_ = data[0], nets()
    net = nets_[1]
    y = labels_of(net, x)
    seen = observed(stack(nets_), (x, y), Logistic(), SMALL)["kkt"]
    assert np.isnan(seen["epsilon"][0]) and np.isnan(seen["delta"][0])
    f, jac, _ = dense(net, x)
    w, p = flat(net), y * f
    # Lyu & Li, Appendix C: the multipliers, then the conditions at min p = 1.
    h = (y / (1 + np.exp(p))) @ jac
    scaled = w / p.min() ** (1 / 3)
    multipliers = (
        p.min() ** (1 - 2 / 3) * np.linalg.norm(w) / np.linalg.norm(h) / (1 + np.exp(p))
    )
    rows = y[:, None] * jac / p.min() ** (2 / 3)
    epsilon = np.linalg.norm(scaled - multipliers @ rows)
    delta = np.max(multipliers * (p / p.min() - 1))
    assert epsilon > 0.1 and delta > 0.1
    np.testing.assert_allclose(seen["epsilon"][1], epsilon, **CLOSE)
    np.testing.assert_allclose(seen["delta"][1], delta, **CLOSE)


def test_a_kkt_point():
    # Along (1, 0) the first two are support vectors with the same q; δ is the third's.
    x, y = np.array([[1.0, 1.0], [1.0, -1.0], [3.0, 0.0]]), np.ones(3)
    line = eqx.tree_at(
        lambda m: m.weight,
        gflow.nn.Linear(2, "scalar", key=jax.random.key(0)),
        jnp.array([[2.0, 0.0]]),
    )
    seen = evaluate(line, (x, y), Exponential(), ["kkt", "alignment"])
    q = np.exp(-np.array([2.0, 2.0, 6.0]))
    assert seen["kkt"]["epsilon"] < 1e-15 and seen["alignment"] < 1e-15
    np.testing.assert_allclose(seen["kkt"]["delta"], 2 * q[2] / (q @ x[:, 0]))


# Deep linear networks and several classes ------------------------------------------


def test_deep_linear():
    x = rng(1).normal(size=(4, 3))
    keys = jax.random.split(jax.random.key(1), LANES)
    models = eqx.filter_vmap(lambda k: gflow.nn.DeepLinear((3, 4, 5, 2), key=k))(keys)
    what = ["balancedness", "matrix_balancedness", "layer_rank", "layer_margins"]
    what += ["margins", "dual", "ntk", "ntk_alignment", "saliency", "ncf", "beta"]
    y = np.array([0, 1, 0, 1])
    seen = observed(models, (x, y), CrossEntropy(), what)
    for number in range(LANES):
        one = lane(seen, number)
        ws = [np.asarray(layer.weight[number]) for layer in models.layers]
        squares = [np.sum(w**2) for w in ws]
        product = ws[2] @ ws[1] @ ws[0]
        f = x @ product.T
        p = f[range(4), y] - f[range(4), 1 - y]
        q = 1 / (1 + np.exp(p))
        q /= 1 - np.exp(-np.sum(np.log1p(np.exp(-p))))  # -ℓ'(α) = 1 - e^-ℒ
        decomposed = [np.linalg.svd(w) for w in ws]
        pairs = [(0, 1), (1, 2)]
        cosines = [decomposed[i][0][:, 0] @ decomposed[j][2][0] for i, j in pairs]
        kernel = sum(
            np.kron(x @ below.T @ below @ x.T, above @ above.T)
            for below, above in (
                (np.eye(3), ws[2] @ ws[1]),
                (ws[0], ws[2]),
                (ws[1] @ ws[0], np.eye(2)),
            )
        )
        z = (np.eye(2)[y] - 0.5).ravel()
        check(
            one,
            {
                "margins": p,
                "dual": q,
                "beta": np.sum(q * p),
                "layer_margins": p / np.sqrt(np.prod(squares)),
                "balancedness": {"difference": np.diff(squares)},
                "layer_rank": {
                    "stable_rank": [np.sum(s**2) / s[0] ** 2 for _, s, _ in decomposed],
                    "angles": np.arccos(np.abs(cosines)),
                },
                "ntk": {
                    "kernel": (kernel / np.trace(kernel)).reshape(4, 2, 4, 2),
                    "log_trace": np.log(np.trace(kernel)),
                },
                "ntk_alignment": z @ kernel @ z / (z @ z) / np.linalg.norm(kernel),
                "saliency": product[y] / np.linalg.norm(product[y], axis=1)[:, None],
                "ncf": z @ f.ravel() / np.sum(squares) ** 1.5,
            },
        )
        for i, j in pairs:
            np.testing.assert_allclose(
                one["matrix_balancedness"][i],
                ws[j].T @ ws[j] - ws[i] @ ws[i].T,
                **CLOSE,
            )


def test_convolutions():
    first, second, third = jax.random.split(jax.random.key(2), 3)
    net = gflow.nn.Sequential(
        gflow.nn.Conv2d(2, 3, 3, key=first),
        gflow.nn.Conv2d(3, 4, 2, key=second),
        gflow.nn.Flatten(),
        gflow.nn.Linear(16, "scalar", key=third),
    )
    data = rng(2).normal(size=(3, 2, 5, 5)), np.array([1.0, -1.0, 1.0])
    what = ["balancedness", "neuron_balancedness", "layer_rank", "ntk", "saliency"]
    seen = evaluate(net, data, Logistic(), what)
    a, b, c = (np.asarray(leaf) for leaf in jax.tree.leaves(net))
    channels = np.sum(c.reshape(4, 4) ** 2, axis=1)
    balance = [
        np.sum(a**2, axis=(1, 2, 3)) - np.sum(b**2, axis=(0, 2, 3)),
        np.sum(b**2, axis=(1, 2, 3)) - channels,
    ]
    for found, expected in zip(seen["neuron_balancedness"], balance, strict=True):
        np.testing.assert_allclose(found, expected, **CLOSE)
    sizes = [np.sum(w**2) for w in (a, b, c)]
    np.testing.assert_allclose(seen["balancedness"]["difference"], np.diff(sizes))
    np.testing.assert_allclose(
        seen["layer_rank"]["singular_values"][1], svdvals(b.reshape(4, -1))
    )
    # A kernel's columns are not the channels of the layer before.
    assert np.all(np.isnan(seen["layer_rank"]["angles"]))
    assert seen["saliency"].shape == data[0].shape
    norms = np.linalg.norm(seen["saliency"].reshape(3, -1), axis=1)
    np.testing.assert_allclose(norms, 1, **CLOSE)
    np.testing.assert_allclose(np.trace(seen["ntk"]["kernel"]), 1, **CLOSE)


# Kinks ------------------------------------------------------------------------------


def test_correlation_on_a_kink():
    # The neuron has the first example at its kink: ∂𝒩 is a segment.
    x, y = np.array([[3.0, 0.0], [1.0, 1.0], [2.0, -1.0]]), np.array([-1.0, 1.0, 0.5])
    net = gflow.nn.TwoLayer(2, 1, key=jax.random.key(0))
    net = eqx.tree_at(
        lambda m: (m.weight, m.outer), net, (jnp.array([[0.0, 3.0]]), jnp.array([1.0]))
    )
    seen = evaluate(net, (x, y), Square(), ["ncf", "ncf_kkt", "neuron_ncf"])
    u = np.array([0.0, 3.0, 1.0]) / 10**0.5

    def gradient(share):
        return np.append(u[2] * (x[1] + share * y[0] * x[0]), u[1])

    def across(share):
        g = gradient(share)
        return np.linalg.norm(g - (g @ u) * u)

    share = minimize_scalar(across, bounds=(0, 1), options={"xatol": 1e-10}).x
    assert 0.1 < share < 0.9
    expected = across(share) / np.linalg.norm(gradient(share))
    assert min(across(0.0), across(1.0)) > 1.05 * across(share)
    np.testing.assert_allclose(seen["ncf_kkt"]["residual"], expected, rtol=1e-9)
    np.testing.assert_allclose(seen["neuron_ncf"]["residual"], expected, rtol=1e-9)
    np.testing.assert_allclose(seen["ncf"], u[1] * u[2])
    np.testing.assert_allclose(seen["ncf_kkt"]["multiplier"], 2 * seen["ncf"])


# Any size, any time -----------------------------------------------------------------


def test_sizes(data):
    x, net = data[0], nets()[1]
    y = labels_of(net, x)

    def at(log10):
        return jax.tree.map(lambda leaf: leaf * 10.0**log10, net)

    logs = [-60.0, -30.0, 0.0, 60.0]
    seen = observed(stack([at(one) for one in logs]), (x, y), Exponential(), SMALL)
    tiny, small, one, huge = (lane(seen, number) for number in range(4))
    per_decade = np.log(10)
    for name in ("ncf", "ncf_kkt", "neuron_ncf", "ntk_alignment", "saliency"):
        for other in (tiny, small, huge):
            jax.tree.map(
                lambda a, b, name=name: np.testing.assert_allclose(
                    a, b, rtol=1e-10, err_msg=name
                ),
                other[name],
                one[name],
            )
    for other, log10 in zip((tiny, small, huge), (-60, -30, 60), strict=True):
        check(
            other,
            {
                "ntk": {
                    "kernel": one["ntk"]["kernel"],
                    "log_trace": one["ntk"]["log_trace"] + 4 * log10 * per_decade,
                },
                "neurons": {
                    "share": one["neurons"]["share"],
                    "log_norm": one["neurons"]["log_norm"] + log10 * per_decade,
                },
                "layer_rank": {
                    name: one["layer_rank"][name] for name in ("stable_rank", "angles")
                },
                "balancedness": {"relative": one["balancedness"]["relative"]},
                "median_margins": one["median_margins"],
                "normalized_margins": one["normalized_margins"],
            },
        )
    # Near the origin all q are 1/n, and the flow's direction is that of the NCF.
    check(
        tiny,
        {
            name: small[name]
            for name in ("layer_alignment", "neuron_alignment", "J_potential", "dual")
        },
    )
    np.testing.assert_allclose(tiny["dual"], 1.0 / N)
    shift = tiny["velocity"]["log_growth"] - small["velocity"]["log_growth"]
    np.testing.assert_allclose(shift, -30 * per_decade)
    # At margins of 1e180 one example has all the weight: ε is that of its gradient.
    f, jac, _ = dense(net, x)
    p = y * f
    least = np.argmin(p)
    np.testing.assert_allclose(huge["dual"], np.arange(N) == least)
    toward = y[least] * jac[least]
    turn = 2 * np.sin(angle(flat(net), toward) / 2)
    norm = np.linalg.norm(flat(net))
    check(
        huge,
        {
            "kkt": {"epsilon": norm / p[least] ** (1 / 3) * turn, "delta": 0},
            "J_potential": np.sum(toward**2) / norm**4,
        },
    )


def test_float32(data):
    x, net = data[0], nets()[1]
    y = labels_of(net, x)
    factors = (1e-9, 1.0, 1e9, 1e-3)

    def at(dtype):
        def cast(factor):
            return jax.tree.map(lambda w: jnp.asarray(factor * w, dtype), net)

        return observed(stack(map(cast, factors)), (x, y), Exponential(), SMALL)

    single, double = at(jnp.float32), at(jnp.float64)
    for name in SMALL:
        leaves = (jax.tree.leaves(both[name]) for both in (single, double))
        for a, b in zip(*leaves, strict=True):
            assert a.dtype == np.float32, name
            np.testing.assert_allclose(a, b, **tolerance(np.float32, 100), err_msg=name)


def test_undefined(data):
    x = data[0]
    zero = jax.tree.map(jnp.zeros_like, nets()[0])
    names = "ncf ncf_kkt neuron_ncf ntk ntk_alignment saliency velocity J_potential"
    names += " layer_alignment neuron_alignment neurons"
    seen = observed(stack([zero, nets()[0]]), data, Logistic(), SMALL)
    seen = {name: lane(seen[name], 0) for name in names.split()}
    assert np.isneginf(seen["ntk"].pop("log_trace"))
    assert np.isneginf(seen["velocity"].pop("log_speed"))
    assert np.all(np.isneginf(seen["neurons"].pop("log_norm")))
    for name, value in seen.items():
        assert all(np.all(np.isnan(leaf)) for leaf in jax.tree.leaves(value)), name
    square = ["beta", "dual", "kkt", "J_potential"]
    for name, value in evaluate(nets()[0], data, Square(), square).items():
        assert all(np.all(np.isnan(leaf)) for leaf in jax.tree.leaves(value)), name
    wrong = -labels_of(nets()[0], x)
    seen = observed(stack(nets()), (x, wrong), Logistic(), SMALL)
    assert np.all(np.isnan(seen["median_margins"][0]))
    # The identity has no first singular vector.
    flat_net = gflow.nn.DeepLinear((2, 2, 1), key=jax.random.key(0))
    flat_net = eqx.tree_at(lambda m: m.layers[0].weight, flat_net, jnp.eye(2))
    flat_data = x[:, :2], np.ones((N, 1))
    seen = evaluate(flat_net, flat_data, Square(), "layer_rank")["layer_rank"]
    np.testing.assert_allclose(seen["stable_rank"], [2.0, 1.0])
    assert np.isnan(seen["angles"][0])


# Options, thinning, the start ---------------------------------------------------------


def test_thinned_observers_are_not_evaluated(data, tmp_path):
    calls = []

    def counted(state):
        jax.debug.callback(lambda loss: calls.append(float(loss)), state.log_loss)
        return {"loss": state.loss, "number": state.index, "true": state.loss > 0}

    watch = observe.Observer("counted", counted)
    what = {"all": watch, "some": watch.every(3), "drift": observe.ntk_drift.every(2)}

    def run(net):
        return gflow.descend(
            net, data, Logistic(), 1e-3, 6, save_at=range(7), observe=what
        )

    both = eqx.filter_vmap(run)(stack(nets()))
    jax.effects_barrier()
    assert len(calls) == LANES * (7 + 3)
    alone = lane(both, 0)
    every, some = alone.observed["all"], alone.observed["some"]
    kept = np.arange(7) % 3 == 0
    expected = np.where(kept, every["loss"], np.nan)
    np.testing.assert_array_equal(some["loss"], expected)
    assert some["number"].tolist() == [0, -1, -1, 3, -1, -1, 6]
    assert some["true"].tolist() == kept.tolist()
    drift = alone.observed["drift"]["angle"]
    assert np.isnan(drift).tolist() == [False, True] * 3 + [False]
    gflow.save(alone, tmp_path / "sol")
    again = gflow.load(tmp_path / "sol", nets()[0])
    np.testing.assert_array_equal(again.observed["drift"]["angle"], drift)


def test_drift_of_the_kernel(data):
    start, other = nets()
    what = {
        "start": observe.ntk_drift,
        "other": observe.ntk_drift.since(other),
        "kernel": "ntk",
    }
    loss = Logistic()
    sol = gflow.descend(start, data, loss, 0.01, 20, save_at=[0, 20], observe=what)

    def kernel(net):
        jac = dense(net, data[0])[1]
        return jac @ jac.T

    now = kernel(sol.final)
    for name, net in (("start", start), ("other", other)):
        then = kernel(net)
        expected = {
            "log_relative": np.log(np.linalg.norm(now - then) / np.linalg.norm(then)),
            "angle": angle(now, then),
        }
        check(lane(sol.observed[name], 1), expected)
    assert np.isneginf(sol.observed["start"]["log_relative"][0])
    assert sol.observed["start"]["angle"][0] < 1e-7
    alone = evaluate(sol.final, data, loss, {"other": what["other"]})
    np.testing.assert_allclose(
        alone["other"]["angle"], sol.observed["other"]["angle"][1], **CLOSE
    )


def test_groups_of_neurons(data):
    class Deep(eqx.Module):
        first: jax.Array
        fixed: gflow.nn.Fixed
        last: jax.Array

        def __call__(self, x):
            hidden = jnp.square(jax.nn.relu(self.first @ x)) * self.fixed.value
            return jnp.sum(self.last.T @ hidden)

    r = rng(5)
    net = Deep(
        jnp.asarray(r.normal(size=(M, D))),
        gflow.nn.Fixed(jnp.ones(M)),
        jnp.asarray(r.normal(size=(M, 2))),
    )
    groups = lambda m: (m.first, m.last)  # noqa: E731
    what = {
        name: getattr(observe, name).using(groups=groups)
        for name in ("neurons", "neuron_alignment", "neuron_ncf")
    }
    seen = evaluate(net, data, Logistic(), what)
    each = np.concatenate([net.first, net.last], axis=1)
    sizes = np.linalg.norm(each, axis=1)
    np.testing.assert_allclose(seen["neurons"]["direction"], each / sizes[:, None])
    assert seen["neuron_alignment"].shape == seen["neuron_ncf"]["value"].shape == (M,)
    with pytest.raises(ValueError, match="not trained; leave them out"):
        bad = observe.neurons.using(groups=lambda m: (m.first, m.fixed.value))
        evaluate(net, data, Logistic(), bad)
    with pytest.raises(ValueError, match="leading axes differ"):
        bad = observe.neurons.using(groups=lambda m: (m.first, m.last.T))
        evaluate(net, data, Logistic(), bad)

    # The order of the fields does not matter where the shapes tell.
    class Swapped(eqx.Module):
        a: jax.Array
        w: jax.Array

        def __call__(self, x):
            return jnp.sum(self.a * (self.w @ x))

    swapped = Swapped(jnp.arange(1.0, 5.0), jnp.asarray(r.normal(size=(4, D))))
    seen = evaluate(swapped, data, Logistic(), ["neurons", "neuron_balancedness"])
    np.testing.assert_allclose(
        seen["neuron_balancedness"][0],
        np.sum(np.square(swapped.w), axis=1) - np.square(swapped.a),
    )
    assert seen["neurons"]["direction"].shape == (4, D + 1)


# Errors -------------------------------------------------------------------------------


class Both(eqx.Module):
    """A model of the batch."""

    one: gflow.nn.MLP

    def __call__(self, x):
        return jax.vmap(self.one)(x)


ONE = gflow.nn.Linear(D, "scalar", key=jax.random.key(0))
THREE = gflow.nn.DeepLinear((D, 2, 2, "scalar"), key=jax.random.key(0))
VECTOR = gflow.nn.DeepLinear((D, 2, 2), key=jax.random.key(0))
BATCHED = gflow.nn.Batched(Both(gflow.nn.MLP(D, 2, 2, key=jax.random.key(0))))
SMOOTH = gflow.nn.MLP(D, 2, 2, activation=jnp.tanh, key=jax.random.key(0))

ERRORS = {
    "one layer": (ONE, observe.balancedness, "one parameter array"),
    "degrees": (None, observe.balancedness, "add up to 2, but the model's is 3"),
    "number of degrees": (
        None,
        observe.balancedness.using(degrees=(1, 1, 1)),
        "3 degrees for 2 parameter arrays",
    ),
    "layer margins": (None, observe.layer_margins, "degree is 3 in 2 arrays"),
    "neurons of three layers": (THREE, observe.neurons, "one or two layers, not of 3"),
    "no homogeneity": (SMOOTH, observe.beta, "positively homogeneous"),
    "wrong z": (None, observe.ncf.using(z=np.ones(2)), r"z of shape \(2,\)"),
    "k": (None, observe.hessian_spectrum.using(k=0), "k=0, which is no positive"),
    "steps": (None, observe.sharpness.using(steps=1.5), "steps=1.5"),
    "tol": (None, observe.sharpness.using(tol=2.0), "tol=2.0"),
    "flow": (None, observe.normalized_jacobian.using(flow="sgd"), "flow='sgd'"),
    "batched": (BATCHED, observe.saliency, "mixes examples"),
    "since": (None, observe.ntk_drift.since(ONE), "not of the architecture"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(data, case):
    model, what, message = ERRORS[case]
    model = nets()[0] if model is None else model
    with pytest.raises(ValueError, match=message) as caught:
        evaluate(model, data, Logistic(), what)
    assert repr(what.name) in str(caught.value)


def test_errors_of_options(data):
    with pytest.raises(ValueError, match="no option 'j'; it has k, steps, tol"):
        observe.hessian_spectrum.using(j=3)
    with pytest.raises(ValueError, match="no option 'memory'; it has none"):
        observe.ntk_drift.using(memory=3)
    with pytest.raises(ValueError, match="does not compare with the start"):
        observe.ntk.since(ONE)
    for stride in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="positive integer"):
            observe.ntk.every(stride)
    targets = np.ones((N, 2))
    with pytest.raises(ValueError, match="'saliency' needs a single output"):
        evaluate(VECTOR, (data[0], targets), Square(), "saliency")
    bumpy = Net(jnp.ones((M, 4)), jnp.ones(2))
    with pytest.raises(ValueError, match="cannot be applied|chain"):
        evaluate(bumpy, data, Logistic(), "matrix_balancedness")
    # integrate and descend ask too.
    with pytest.raises(ValueError, match="'balancedness' compares layers"):
        gflow.integrate(ONE, data, Logistic(), (0.0, 1.0), observe="balancedness")
    with pytest.raises(ValueError, match="'balancedness' compares layers"):
        gflow.descend(ONE, data, Logistic(), 0.1, 1, observe="balancedness")
