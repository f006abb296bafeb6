"""What is seen of kinks along a flow: least norm, radial and spherical parts."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gflow
from gflow.clarke import min_norm_subgradient
from gflow.observe import evaluate

from .helpers import rng, tolerance


LOSS = gflow.losses.Logistic()
WANTED = ["clarke", "radial_spherical", "smoothed_margin", "grad_norm"]
# The first neuron has the first example at its kink.
X = np.array([[3.0, 0.0], [1.0, 0.5], [0.5, -1.0], [-1.0, 0.3]])
Y = np.array([-1.0, 1.0, 1.0, -1.0])
DATA = (X, Y)


def model(weight, outer=(1.0, -1.0, 0.5)):
    made = gflow.nn.TwoLayer(2, 3, key=jax.random.key(0))
    new = (jnp.asarray(weight), jnp.asarray(outer))
    return eqx.tree_at(lambda m: (m.weight, m.outer), made, new)


def at_kink():
    return model([[0.0, 1.0], [-1.0, 0.2], [0.4, -0.7]])


def generic():
    return model(rng(0).normal(size=(3, 2)))


def smoothed_margin(net):
    p = jnp.asarray(Y) * jax.vmap(net)(jnp.asarray(X))
    loss = jnp.sum(jnp.log1p(jnp.exp(-p)))
    squares = jnp.sum(jnp.square(net.weight)) + jnp.sum(jnp.square(net.outer))
    return -jnp.log(jnp.expm1(loss)) / squares


def along(net, tangent):
    return eqx.filter_jvp(smoothed_margin, (net,), (tangent,))


@pytest.mark.parametrize("make", [at_kink, generic])
def test_growth_of_the_smoothed_margin(make):
    net = make()
    seen = evaluate(net, DATA, LOSS, WANTED)
    part = jax.tree.map(np.exp, seen["radial_spherical"])
    velocity = jax.tree.map(jnp.negative, min_norm_subgradient(net, DATA, LOSS).value)
    # Along the flow the pre-activation at zero stays there, so no side is taken.
    value, rate = along(net, velocity)
    np.testing.assert_allclose(seen["smoothed_margin"], value, **tolerance(float))
    # The product of the radial parts has a sign before the data are separated.
    outwards = jnp.sum(net.weight * velocity.weight) + net.outer @ velocity.outer
    sign = np.sign(outwards) * np.sign(along(net, net)[1])
    spherical = part["log_spherical_margin"] * part["log_spherical_loss"]
    radial = part["log_radial_margin"] * part["log_radial_loss"]
    np.testing.assert_allclose(rate, spherical + sign * radial, rtol=1e-12)
    squares = part["log_spherical_loss"] ** 2 + part["log_radial_loss"] ** 2
    np.testing.assert_allclose(squares, np.exp(2 * seen["grad_norm"]), rtol=1e-12)
    for what in ("loss", "margin"):
        ratio = part[f"log_spherical_{what}"] / part[f"log_radial_{what}"]
        np.testing.assert_allclose(part[f"log_ratio_{what}"], ratio, rtol=1e-12)


def test_clarke_is_the_least_norm():
    net = at_kink()
    seen = evaluate(net, DATA, LOSS, WANTED)["clarke"]
    found = min_norm_subgradient(net, DATA, LOSS)
    assert seen["kinks"].tolist() == found.kinks.tolist() == [0] + 11 * [-1]
    assert 0.1 < seen["multipliers"][0] < 0.9
    np.testing.assert_allclose(seen["multipliers"], found.multipliers)
    np.testing.assert_allclose(seen["log_norm"], found.log_norm, **tolerance(float))
    assert int(seen["num_at_zero"]) == 1 and bool(seen["exact"])


def test_lanes_against_numpy():
    """Under jit and vmap: the least norm over the slope at the kink, by brute force."""
    nets = [at_kink(), generic()]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *nets)

    @eqx.filter_jit
    @eqx.filter_vmap
    def run(net):
        return evaluate(net, DATA, LOSS, WANTED)

    seen = run(stacked)
    for number, net in enumerate(nets):
        w, a = np.asarray(net.weight), np.asarray(net.outer)
        z = X @ w.T
        at_zero = np.abs(z) < 1e-12
        q = Y / (1 + np.exp(Y * (np.maximum(z, 0) @ a)))  # -ℓ' y

        def gradient(share, w=w, a=a, z=z, q=q, at_zero=at_zero):
            slope = np.where(at_zero, share, z > 0)
            return np.concatenate(
                [
                    ((q[:, None] * slope).T @ X * a[:, None]).ravel(),
                    q @ np.maximum(z, 0),
                ]
            )

        # ‖g_0 + λ(g_1 - g_0)‖ over λ in [0, 1].
        zero, one = gradient(0.0), gradient(1.0)
        along = one - zero
        share = 0.0
        if at_zero.any():
            share = np.clip(-(zero @ along) / (along @ along), 0, 1)
            np.testing.assert_allclose(
                seen["clarke"]["multipliers"][number, 0], share, rtol=1e-10
            )
        g, flat = gradient(share), np.concatenate([w.ravel(), a])
        size = np.linalg.norm(flat)
        radial = abs(g @ flat) / size
        across = np.linalg.norm(g - (g @ flat) * flat / size**2)
        close = {"rtol": 1e-10, "atol": 1e-10}
        for found, expected in (
            (seen["clarke"]["log_norm"], np.linalg.norm(g)),
            (seen["grad_norm"], np.linalg.norm(g)),
            (seen["radial_spherical"]["log_radial_loss"], radial),
            (seen["radial_spherical"]["log_spherical_loss"], across),
        ):
            np.testing.assert_allclose(found[number], np.log(expected), **close)
        assert int(seen["clarke"]["num_at_zero"][number]) == at_zero.sum()


def test_nothing_underflows():
    # -relu(x1) + 3 |x2| separates these; 128 times that has margins of thousands.
    net = model([[1.0, 0.0], [0.0, 1.0], [0.0, -1.0]], outer=(-1.0, 3.0, 3.0))
    far = jax.tree.map(lambda leaf: 128 * leaf, net)
    seen = evaluate(far, (X, np.array([-1.0, 1.0, 1.0, 1.0])), LOSS, WANTED)
    assert seen["clarke"]["log_norm"] < -800
    part = seen["radial_spherical"]
    for name in ("log_radial_loss", "log_spherical_loss"):
        assert -9000 < part[name] < -800
    assert np.isfinite(part["log_spherical_margin"])
    # One support vector: β is α to rounding.
    assert part["log_radial_margin"] < part["log_spherical_margin"] - 20


def test_smooth_and_unsupported_models():
    names = ["clarke", "grad_norm"]
    smooth = gflow.nn.TwoLayer(2, 3, jnp.tanh, key=jax.random.key(0))
    seen = evaluate(smooth, DATA, LOSS, names)
    assert seen["clarke"]["kinks"].shape == (0,) and bool(seen["clarke"]["exact"])
    assert seen["clarke"]["log_norm"] == seen["grad_norm"]
    with pytest.raises(ValueError, match="'radial_spherical'.*homogeneous"):
        evaluate(smooth, DATA, LOSS, "radial_spherical")
    sorts = gflow.nn.TwoLayer(2, 3, jnp.sort, key=jax.random.key(0))
    seen = evaluate(sorts, DATA, LOSS, names)
    assert np.isnan(seen["clarke"]["log_norm"]) and np.isfinite(seen["grad_norm"])
    assert not bool(seen["clarke"]["exact"])


def test_without_a_tail():
    linear = gflow.nn.Linear(2, "scalar", key=jax.random.key(0))
    square = gflow.losses.Square()
    seen = evaluate(linear, DATA, square, "radial_spherical")["radial_spherical"]
    assert np.isfinite(seen["log_radial_loss"])
    assert np.isnan(seen["log_radial_margin"]) and np.isnan(seen["log_ratio_margin"])
    zero = jax.tree.map(jnp.zeros_like, linear)
    seen = evaluate(zero, DATA, square, "radial_spherical")["radial_spherical"]
    assert np.isnan(seen["log_radial_loss"])


def test_along_a_descent(tmp_path):
    def index(state):
        return state.at_kinks.index[0]

    net = at_kink()
    observe = {"at": "clarke", "grad_norm": "grad_norm", "first": index}
    sol = gflow.descend(net, DATA, LOSS, 0.1, 4, save_at=[0, 4], observe=observe)
    seen = sol.observed["at"]
    assert seen["kinks"].shape == seen["multipliers"].shape == (2, 12)
    assert seen["kinks"][:, 0].tolist() == [0, -1]
    assert sol.observed["first"].tolist() == [0, 12]
    np.testing.assert_array_equal(seen["log_norm"], sol.observed["grad_norm"])
    found = min_norm_subgradient(net, DATA, LOSS)
    np.testing.assert_allclose(seen["log_norm"][0], found.log_norm, **tolerance(float))
    gflow.save(sol, tmp_path / "sol")
    again = gflow.load(tmp_path / "sol", net)
    np.testing.assert_array_equal(again.observed["at"]["kinks"], seen["kinks"])
