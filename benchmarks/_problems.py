"""The flows on which solvers are compared.

Each is W' = -∇V(W) from given weights to a time T, with V a function of the model. All
also go through `gflow.integrate`: `model`, `data` and `loss` are such that this is
their flow in the
clock `Physical`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np

import gflow
from gflow.losses import Logistic, Square


# Times at which paths are compared, equally spaced in log t.
NUM_TIMES = 17
FIRST_TIME = 1e-4  # of T


@dataclasses.dataclass(frozen=True)
class Flow:
    """W' = -∇V(W), W(0) = `model`, to t = `end`.

    `num_outputs` is what a Jacobian of the predictions costs in gradients, per example:
    as many as there are outputs of one example. `times`: where paths are compared.
    """

    name: str
    title: str
    model: Any
    data: tuple[Any, Any]
    loss: Any
    potential: Callable[[Any], Any]
    end: float
    times: np.ndarray

    @property
    def start(self) -> np.ndarray:
        """The initial weights, as one vector."""
        return np.asarray(jax.flatten_util.ravel_pytree(self.model)[0])

    @property
    def size(self) -> int:
        return self.start.size

    def velocity(self) -> Callable[[Any], Any]:
        """w ↦ -∇V(w) on vectors."""
        _, unravel = jax.flatten_util.ravel_pytree(self.model)
        gradient = jax.grad(lambda w: self.potential(unravel(w)))
        return lambda w: -gradient(w)


def _flow(name, title, model, data, loss, potential, end, times=None):
    if times is None:
        times = np.geomspace(FIRST_TIME * end, end, NUM_TIMES)
    return Flow(name, title, model, data, loss, potential, float(end), times)


class TwoLayer(eqx.Module):
    """x ↦ Σ_j a_j φ(⟨w_j, x⟩ + b_j)."""

    weight: jax.Array
    outer: jax.Array
    bias: jax.Array
    activation: Any = eqx.field(static=True)

    def __call__(self, x):
        return self.outer @ self.activation(self.weight @ x + self.bias)


def two_layer(name, activation, end, width=100, d=10, n=100):
    """Regression on a teacher of three tanh neurons, with noise; mean square loss."""
    k = jax.random.split(jax.random.PRNGKey(0), 5)
    x = jax.random.normal(k[0], (n, d))
    teacher = jax.random.normal(k[1], (3, d)) / np.sqrt(d)
    y = jnp.tanh(x @ teacher.T * 2).sum(1) + 0.1 * jax.random.normal(k[4], (n,))
    model = TwoLayer(
        jax.random.normal(k[2], (width, d)) / np.sqrt(d),
        jax.random.normal(k[3], (width,)) / np.sqrt(width),
        jnp.zeros(width),
        activation,
    )

    def potential(m):
        outputs = activation(x @ m.weight.T + m.bias) @ m.outer
        return 0.5 * jnp.mean((outputs - y) ** 2)

    return _flow(
        f"{name}-{end:.0e}".replace("e+0", "e"),
        f"{name}, two layers, square loss, P {width * (d + 2)}, T {end:g}",
        model,
        (x, y),
        Square(reduction="mean"),
        potential,
        end,
    )


class MinusSmoothedMargin(gflow.losses.AbstractLoss):
    """-α = log Σ_i e^(-p_i) of the exponential loss, which is no sum over the examples.

    The time of its flow is the α-clock's reading.
    """

    reduction: str = "sum"
    casts_labels: ClassVar[bool] = True

    def check(self, outputs_shape, y):
        del outputs_shape, y

    def linearise(self, outputs, y):
        value = jax.nn.logsumexp(-y * outputs)
        zero = jnp.zeros_like(value)
        pull = y * jax.nn.softmax(-y * outputs)
        return gflow.losses.Linearised(jnp.log(value), zero, pull, value)

    def margins(self, outputs, y):
        return y * outputs


class SquaredReLU(eqx.Module):
    """x ↦ Σ_j a_j max(0, ⟨w_j, x⟩)²."""

    weight: jax.Array
    outer: jax.Array

    def __call__(self, x):
        return self.outer @ jax.nn.relu(self.weight @ x) ** 2


def squared_relu(name="sqrelu", end=25.0, width=50, d=10, n=40, scale=0.5):
    """Ascent of the exponential loss's smoothed margin α, the flow in the α-clock.

    α reaches infinity at about s = 25.6: sharpness is 3 at first and 14,000 at 25.
    """
    k = jax.random.split(jax.random.PRNGKey(1), 4)
    x = jax.random.normal(k[0], (n, d)) / np.sqrt(d)
    y = jnp.sign(x[:, 0] * x[:, 1] + 0.5 * x[:, 2])
    model = SquaredReLU(
        scale * jax.random.normal(k[1], (width, d)),
        scale * jax.random.normal(k[2], (width,)) / np.sqrt(width),
    )

    def potential(m):
        return jax.nn.logsumexp(-y * (jax.nn.relu(x @ m.weight.T) ** 2 @ m.outer))

    return _flow(
        name,
        f"squared ReLU, α-clock, P {width * (d + 1)}, s = {end:g}",
        model,
        (x, y),
        MinusSmoothedMargin(),
        potential,
        end,
    )


class Product(eqx.Module):
    """x ↦ W_L … W_1 x."""

    layers: list

    def __call__(self, x):
        for weight in self.layers:
            x = weight @ x
        return x


def deep_linear(end=1e3, depth=4, width=20, d=10, outputs=5, init=0.3):
    """½ Σ_i c_i ‖(W_L … W_1 - A) e_i‖², singular values of A 5, 3, 1.5, 0.7, 0.3."""
    k = jax.random.split(jax.random.PRNGKey(2), depth + 2)
    sizes = [d] + [width] * (depth - 1) + [outputs]
    layers = [
        init * jax.random.normal(k[i], (sizes[i + 1], sizes[i])) / np.sqrt(sizes[i]) * 2
        for i in range(depth)
    ]
    left = jnp.linalg.qr(jax.random.normal(k[depth], (outputs, outputs)))[0]
    right = jnp.linalg.qr(jax.random.normal(k[depth + 1], (d, outputs)))[0]
    target = left @ jnp.diag(jnp.array([5.0, 3.0, 1.5, 0.7, 0.3])) @ right.T
    x = jnp.diag(jnp.sqrt(jnp.logspace(0, -2, d)))
    y = x @ target.T

    def potential(m):
        whole = m.layers[0]
        for weight in m.layers[1:]:
            whole = weight @ whole
        return 0.5 * jnp.sum((x @ whole.T - y) ** 2)

    model = Product(layers)
    size = sum(w.size for w in layers)
    return _flow(
        "deeplin",
        f"deep linear, {depth} layers, P {size}, T {end:g}",
        model,
        (x, y),
        Square(),
        potential,
        end,
    )


class Diagonal(eqx.Module):
    """x ↦ ⟨u ∘ u - v ∘ v, x⟩."""

    u: jax.Array
    v: jax.Array

    def __call__(self, x):
        return (self.u * self.u - self.v * self.v) @ x


def diagonal(end=1e3, d=40, n=15, sparse=True, seed=0, start=1e-60):
    """From `start` the flow goes to the interpolator of least ℓ¹-norm.

    `sparse`: targets of a w with three entries, or random ones, which take n.
    """
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(n, d)) / np.sqrt(n)
    truth = np.zeros(d)
    truth[:3] = [1.0, -0.7, 0.4]
    y = x @ truth if sparse else draw.normal(size=n)
    x, y = jnp.asarray(x), jnp.asarray(y)
    model = Diagonal(jnp.full(d, start), jnp.full(d, start))

    def potential(m):
        return 0.5 * jnp.sum((x @ (m.u * m.u - m.v * m.v) - y) ** 2)

    return _flow(
        "diagonal",
        f"diagonal network from {start:g}, P {2 * d}, T {end:g}",
        model,
        (x, y),
        Square(),
        potential,
        end,
        np.geomspace(0.05 * end, end, NUM_TIMES),
    )


def mnist(end=30.0, width=126, n=200):
    """Fours and nines of MNIST, three-layer tanh network, mean logistic loss."""
    images = gflow.data.two_classes(*gflow.data.mnist5k(), 4, 9)
    draw = np.random.default_rng(0)
    keep = draw.permutation(len(images.x))[:n]
    x = np.asarray(images.x, float).reshape(len(images.x), -1)[keep]
    x = jnp.asarray(x / np.linalg.norm(x, axis=1, keepdims=True) * 10.0)
    y = jnp.asarray(np.asarray(images.y, float)[keep])
    model = gflow.nn.MLP(
        x.shape[1], width, 2, "scalar", jnp.tanh, key=jax.random.key(0)
    )
    size = jax.flatten_util.ravel_pytree(model)[0].size
    return _flow(
        "mnist",
        f"MNIST 4/9, n {n}, tanh, logistic, P {size}, T {end:g}",
        model,
        (x, y),
        Logistic(reduction="mean"),
        lambda m: jnp.mean(jax.nn.softplus(-y * jax.vmap(m)(x))),
        end,
    )


FLOWS: dict[str, Callable[[], Flow]] = {
    "tanh-1e2": lambda: two_layer("tanh", jnp.tanh, 1e2),
    "tanh-1e3": lambda: two_layer("tanh", jnp.tanh, 1e3),
    "tanh-1e4": lambda: two_layer("tanh", jnp.tanh, 1e4),
    "tanh-1e5": lambda: two_layer("tanh", jnp.tanh, 1e5),
    "softplus-1e2": lambda: two_layer("softplus", jax.nn.softplus, 1e2),
    "softplus-1e3": lambda: two_layer("softplus", jax.nn.softplus, 1e3),
    "softplus-1e4": lambda: two_layer("softplus", jax.nn.softplus, 1e4),
    "sqrelu-1": lambda: squared_relu("sqrelu-1", 1.0),
    "sqrelu": squared_relu,
    "deeplin": deep_linear,
    "diagonal": diagonal,
    "mnist": mnist,
}
