"""The problem with its branches held fixed: smooth, and the flow between kinks."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float, Int, Shaped

from ._branches import UnsupportedKink, evaluate
from ._flat import flatten, flatten_rows
from ._norms import array_norm
from ._problem import AbstractProblem, Gradient, Problem, dtype_of
from ._types import Params
from .losses import AbstractLoss, Custom
from .losses._abstract import Linearised
from .nn import Batched


_FLIPS = 4  # random signs of W by which the size of pre-activations is measured


class Rows(eqx.Module):
    """At some kinks, as vectors of all parameters: what crossing them does."""

    values: Float[Array, " kinks"]  # z_k
    normals: Float[Array, "kinks P"]  # ∇z_k
    # The change of -∇ℒ from the lower branch to the upper one, in the gradient's scale.
    jumps: Float[Array, "kinks P"]


class Frozen(eqx.Module):
    r"""ℒ(W; s) with given branches s, which is ℒ(W) where they fit.

    Kinks are numbered within an example, and so that number k of example i is
    $i M + k$, with $M$ = `num_kinks`; a model of the whole batch is one example.
    """

    problem: Problem
    num_kinks: int = eqx.field(static=True)
    in_series: bool = eqx.field(static=True)
    # Whether all pre-activations are affine in W on given branches.
    is_affine: bool = eqx.field(static=True)
    # The primitive and the shape of each group of kinks, in order.
    names: tuple[tuple[str, tuple[int, ...]], ...] = eqx.field(static=True)
    # log(-∂ℒ/∂p_m) of every pair where they are not to be had from W: late, rounding of
    # W would spoil them.
    log_weights: Float[Array, " pairs"] | None = None

    @property
    def num_groups(self) -> int:
        return 1 if self._is_batched else self.problem.num_examples

    @property
    def total(self) -> int:
        """The number of kinks of all examples."""
        return self.num_groups * self.num_kinks

    @property
    def _is_batched(self) -> bool:
        return isinstance(self.problem.static, Batched)

    @property
    def _examples(self) -> tuple[Array, Array]:
        x, y = self.problem.x, self.problem.y
        return (x[None], y[None]) if self._is_batched else (x, y)

    def _example(self, params: Params, x: Array, y: Array) -> Any:
        return _example(self.problem, params, x, y)

    def on(self, branches: Shaped[Array, "groups kinks"]) -> "Branched":
        """The smooth problem on these branches, or shares of the upper ones."""
        problem = self.problem
        fields = (problem.static, problem.x, problem.y, problem.loss)
        return Branched(*fields, self, branches)

    def outputs(self, params: Params, branches: Any) -> Float[Array, "examples ..."]:
        """The model's outputs on given branches."""
        return self._split(params, branches)[0]

    def output_of(self, params: Params, branches: Any, number: Any) -> Array:
        """The same, of one example."""
        x, y = self._examples
        here = branches[number]
        return evaluate(self._example, here, params, x[number], y[number])[0]

    def _split(self, params: Params, branches: Any) -> tuple[Array, Array]:
        # Outputs and pre-activations of every example.
        def one(x, y, s):
            out, taken = evaluate(self._example, s, params, x, y)
            return out, taken.pre_activations

        in_axes = (0, 0, None if branches is None else 0)
        out, z = jax.vmap(one, in_axes)(*self._examples, branches)
        return (out[0] if self._is_batched else out), z

    def pre_activations(
        self, params: Params, branches: Shaped[Array, "groups kinks"] | None
    ) -> Float[Array, "groups kinks"]:
        """z of every kink; without branches, with those that fit."""
        return self._split(params, branches)[1]

    def pre_activations_of(
        self, params: Params, branches: Shaped[Array, " kinks"], group: Any
    ) -> Float[Array, " kinks"]:
        """z of the kinks of one example."""
        x, y = self._examples
        _, taken = evaluate(self._example, branches, params, x[group], y[group])
        return taken.pre_activations

    def sizes(self, params: Params) -> Float[Array, "groups kinks"]:
        """What |z| is to be compared with: its root mean square under signs of W.

        Zero where z vanishes for every W, as on an empty part of an image.
        """
        leaves, structure = jtu.tree_flatten(params)
        size = jnp.asarray(sum(array_norm(leaf) for leaf in leaves))
        size = jnp.where(size == 0, 1, size)
        # Under an array that is exactly zero z is no bigger than this.
        least = float(jnp.finfo(dtype_of(params)).tiny) ** (1 / 3)

        def flipped(number):
            return jtu.tree_unflatten(
                structure,
                [
                    leaf * jnp.where(waves > 0, 1, -1)
                    + least * jnp.where(leaf == 0, size, 0) * waves
                    for leaf, waves in (
                        (leaf, _waves(leaf, number + _FLIPS * place))
                        for place, leaf in enumerate(leaves)
                    )
                ],
            )

        def one(number):
            z = jnp.abs(self.pre_activations(flipped(number), None))
            return jnp.where(jnp.isfinite(z), z, 0)

        z = jax.vmap(one)(jnp.arange(_FLIPS))
        largest = jnp.max(z, axis=0)
        safe = jnp.where(largest == 0, 1, largest)
        return largest * jnp.sqrt(jnp.mean((z / safe[None]) ** 2, axis=0))

    def next_to(self, params: Params, far: float) -> Params:
        """Other parameters, whose entries are so far away in relation to their size."""
        leaves, structure = jtu.tree_flatten(params)
        moved = [a * (1 + far * _waves(a, i)) for i, a in enumerate(leaves)]
        return jtu.tree_unflatten(structure, moved)

    def gradient(
        self, params: Params, branches: Shaped[Array, "groups kinks"]
    ) -> tuple[Gradient, Float[Array, "examples ..."]]:
        """-∇ℒ(W; s) in the log domain, and the loss's slope in the outputs."""
        outputs, pull_back = jax.vjp(lambda p: self._split(p, branches)[0], params)
        at = self._linearised(outputs)
        (direction,) = pull_back(at.pull)
        gradient = Gradient(at.log_loss, at.log_slope, direction, outputs, at.loss)
        return gradient, at.pull

    def doubts(
        self, params: Params, outputs: Array, precision: Any
    ) -> Float[Array, " groups"]:
        """Relative errors of the loss's slopes in the outputs of each example, if the
        outputs are known to this part of the largest one; none where it has a tail.
        """
        problem = self.problem
        if problem.is_tailed:
            return jnp.zeros(self.num_groups, outputs.dtype)
        if isinstance(problem.loss, Custom):
            outputs = problem.outputs(params)  # not the losses

        def slopes(f):
            return jax.grad(lambda f: problem.loss.linearise(f, problem.y).loss)(f)

        error = jnp.asarray(precision, outputs.dtype) * jnp.max(jnp.abs(outputs))
        slope, change = jax.jvp(slopes, (outputs,), (jnp.full_like(outputs, error),))
        each = (self.num_groups, -1)
        size, error = (
            jnp.linalg.norm(a.reshape(each), axis=1) for a in (slope, change)
        )
        return jnp.where(size == 0, 0, error / jnp.where(size == 0, 1, size))

    def _linearised(self, outputs: Array) -> Linearised:
        loss = self.problem.loss
        if self.log_weights is not None:
            return _weighted(self.problem, outputs, self.log_weights)
        if not isinstance(loss, Custom):
            return loss.linearise(outputs, self.problem.y)
        # The outputs are the losses themselves.
        weight = jnp.exp(loss.log_reduction(outputs.shape[0]))
        value = weight * jnp.sum(outputs)
        log_loss = jnp.log(jnp.where(value < 0, jnp.nan, value))
        pull = jnp.full_like(outputs, -weight)
        return Linearised(log_loss, jnp.zeros_like(value), pull, value)

    def normals(
        self,
        params: Params,
        branches: Shaped[Array, "groups kinks"],
        index: Int[Array, " K"],
    ) -> tuple[Float[Array, " K"], Float[Array, "K P"]]:
        """z and ∇z of the kinks with these numbers; zero where a number is `total` or
        more.
        """
        values, normals = self.normals_of(params, branches, index)
        return values, flatten_rows(normals)

    def normals_of(
        self,
        params: Params,
        branches: Shaped[Array, "groups kinks"],
        index: Int[Array, " K"],
    ) -> tuple[Float[Array, " K"], Params]:
        """z of these kinks, and ∇z as parameters with a leading axis of kinks."""

        def one(number, real):
            group, kink = self._place(number)

            def value(p):
                z = self.pre_activations_of(p, branches[group], group)[kink]
                return jnp.where(real, z, 0)

            return jax.value_and_grad(value)(params)

        return jax.vmap(one)(index, index < self.total)

    def _place(self, number: Any) -> tuple[Any, Any]:
        # The example, and the place among its kinks.
        group = jnp.minimum(number // self.num_kinks, self.num_groups - 1)
        return group, number % self.num_kinks

    def rows(
        self,
        params: Params,
        branches: Shaped[Array, "groups kinks"],
        pull: Float[Array, "examples ..."],
        index: Int[Array, " K"],
    ) -> Rows:
        """Of the kinks with these numbers; zero where a number is `total` or more.

        `branches` may be shares of the upper ones.
        """
        x, y = self._examples
        pulls = pull[None] if self._is_batched else pull

        def jump(number):
            group, kink = self._place(number)
            here = branches[group]

            def pulled(s):
                out, pull_back = jax.vjp(
                    lambda p: evaluate(self._example, s, p, x[group], y[group])[0],
                    params,
                )
                (direction,) = pull_back(pulls[group].reshape(out.shape))
                return direction

            on, off = jnp.ones((), here.dtype), jnp.zeros((), here.dtype)
            both = jnp.stack([here.at[kink].set(on), here.at[kink].set(off)])
            change = jtu.tree_map(lambda a: a[0] - a[1], jax.vmap(pulled)(both))
            real = number < self.total
            return jtu.tree_map(lambda a: jnp.where(real, a, 0), change)

        values, normals = self.normals(params, branches, index)
        return Rows(values, normals, flatten_rows(jax.vmap(jump)(index)))

    def at(
        self, params: Params, slopes: Float[Array, "groups kinks"], index: Any
    ) -> Float[Array, " K"]:
        """z of the kinks with these numbers; zero where a number is `total` or more."""
        real = index < self.total
        if index.shape[0] >= self.num_groups:
            z = self.pre_activations(params, slopes).reshape(-1)
            return z.at[index].get(mode="fill", fill_value=0)

        def one(number):
            group, kink = self._place(number)
            return self.pre_activations_of(params, slopes[group], group)[kink]

        return jnp.where(real, jax.vmap(one)(index), 0)

    def pull_in_slopes(
        self,
        params: Params,
        slopes: Float[Array, "groups kinks"],
        pull: Float[Array, "examples ..."],
        index: Any,
    ) -> Float[Array, " K"]:
        """∂⟨pull, f⟩/∂s_k of the kinks with these numbers; zero beyond `total`."""
        real = index < self.total
        if index.shape[0] >= self.num_groups:

            def product(s):
                return jnp.sum(pull * self.outputs(params, s).reshape(pull.shape))

            every = jax.grad(product)(slopes).reshape(-1)
            return every.at[index].get(mode="fill", fill_value=0)
        x, y = self._examples
        pulls = pull[None] if self._is_batched else pull

        def one(number):
            group, kink = self._place(number)

            def product(share):
                here = slopes[group].at[kink].set(share)
                out, _ = evaluate(self._example, here, params, x[group], y[group])
                return jnp.sum(pulls[group] * out.reshape(pulls[group].shape))

            return jax.grad(product)(slopes[group, kink])

        return jnp.where(real, jax.vmap(one)(index), 0)

    def flat_gradient(self, params: Params, branches: Any) -> tuple[Any, Any, Any]:
        """`gradient`, its direction as a vector, and the slope in the outputs."""
        gradient, pull = self.gradient(params, branches)
        return gradient, flatten(gradient.direction), pull


class Branched(AbstractProblem):
    """The problem on given branches, which are held fixed."""

    static: Any
    x: Array
    y: Array
    loss: AbstractLoss
    frozen: Frozen
    branches: Shaped[Array, "groups kinks"]  # or shares of the upper ones

    def outputs(self, params: Params) -> Float[Array, "examples ..."]:
        return self.frozen.outputs(params, self.branches)

    def output_of(self, params: Params, number: Any) -> Float[Array, "..."]:
        return self.frozen.output_of(params, self.branches, number)


def _weighted(problem: Problem, outputs: Array, log_weights: Array) -> Linearised:
    # With the slopes given.
    loss: Any = problem.loss
    pairs, pull_back = jax.vjp(lambda f: loss.pairs(f, problem.y), outputs)
    log_scale = jax.nn.logsumexp(log_weights)
    weights = jnp.exp(log_weights - log_scale).reshape(pairs.shape)
    (pull,) = pull_back(weights.astype(pairs.dtype))
    at = loss.linearise(outputs, problem.y)
    return Linearised(at.log_loss, log_scale, pull, at.loss)


def _waves(like: Array, number: Any) -> Array:
    # As good as random, and quick to compile.
    number = jnp.asarray(number).astype(like.dtype)
    number = jnp.asarray(number, like.dtype)
    angle = jnp.arange(like.size, dtype=like.dtype) * jnp.sqrt(2.0 + 3.0 * number)
    return jnp.sin(angle + 1.0 + number).reshape(like.shape)


def _example(problem: Problem, params: Params, x: Array, y: Array) -> Any:
    # One example's output or, of a loss of the user's, which may have kinks too, loss.
    out = problem.model(params)(x)
    if not isinstance(problem.loss, Custom):
        return out
    function = problem.loss.function
    batched = isinstance(problem.static, Batched)
    return jax.vmap(function)(out, y) if batched else function(out, y)


def frozen(problem: Problem, params: Params) -> Frozen | None:
    """The problem with its kinks taken out, or None if it has none.

    Raises `UnsupportedKink` if there are some that cannot be.
    """
    found = eqx.filter_eval_shape(_found, problem, params)
    return Frozen(problem, *found) if found[0] else None


@eqx.filter_jit  # which remembers what it has traced
def _found(problem: Problem, params: Params) -> tuple[int, bool, bool, tuple[Any, ...]]:
    """How many kinks an example has, whether one may depend on another, whether all are
    affine in the parameters, and names.
    """
    batched = isinstance(problem.static, Batched)
    x, y = problem.x, problem.y
    x, y = (x, y) if batched else (x[0], y[0])
    _, taken = evaluate(lambda p, x, y: _example(problem, p, x, y), None, params, x, y)
    return taken.count, taken.in_series, taken.is_affine, tuple(taken.names)


def has_kinks(problem: Problem, params: Params) -> bool:
    """Whether the model, or the user's loss, has kinks in its parameters."""
    try:
        return frozen(problem, params) is not None
    except UnsupportedKink:
        return True
