"""A function with its kinks taken out: branches as inputs, pre-activations as outputs.

A piecewise smooth function is evaluated by the equations of its jaxpr, except that
wherever it would compare two numbers (relu, abs, max, a comparison, ...) a given branch
is taken, and the difference of the two is handed out. With branches that fit the signs
of these differences that is the function itself; with the branches held fixed it is
smooth.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jaxtyping import Array, Bool, Float

from ._kinks import live_equations


_UNROLLED = 64  # longest scan with kinks in it

# What is done to every entry alike, or only moves entries: max commutes with it.
_MOVES = {"broadcast_in_dim", "expand_dims", "reshape", "squeeze", "transpose", "copy"}
_COMPARISONS = {"ge", "gt", "le", "lt"}
# Linear in all operands together, and in each of them if the others are given.
_LINEAR = {
    *_MOVES,
    "add",
    "add_any",
    "concatenate",
    "convert_element_type",
    "gather",
    "neg",
    "pad",
    "reduce_sum",
    "rev",
    "slice",
    "dynamic_slice",
    "split",
    "sub",
}
_BILINEAR = {"conv_general_dilated", "dot_general", "mul"}


class UnsupportedKink(ValueError):
    """A primitive with a kink, or a jump, whose branches cannot be taken out."""

    def __init__(self, name: str):
        super().__init__(
            f"the model (or the loss) uses {name!r}, whose branches gflow cannot hold "
            "fixed, so its kinks cannot be followed. Write it with max, min, abs, "
            "relu, clip, where or max-pooling; or pass kinks='autodiff', which is the "
            "gradient flow only away from such points."
        )


class Taken:
    """The branches taken while a function is evaluated, and what they depend on."""

    def __init__(self, branches: Any):
        self.branches = branches  # None for those that fit the signs
        self.differences: list[Float[Array, " _"]] = []
        self.names: list[tuple[str, tuple[int, ...]]] = []
        self.count = 0
        self.in_series = False
        self.is_affine = True  # in the parameters, for given branches
        # Comparisons of the same numbers are one kink (elu compares twice).
        self.compared: dict[Any, tuple[Any, Array]] = {}

    def take(self, name: str, difference: Array, *, kinked: bool, affine: bool) -> Any:
        """Which entries are on the upper branch, where `difference` is positive.

        True or False or, where branches are numbers, the upper branch's share.
        """
        start, self.count = self.count, self.count + difference.size
        self.differences.append(difference.reshape(-1))
        self.names.append((name, difference.shape))
        self.in_series = self.in_series or kinked
        self.is_affine = self.is_affine and affine
        if self.branches is None:
            return difference > 0
        return self.branches[start : self.count].reshape(difference.shape)

    @property
    def pre_activations(self) -> Float[Array, " kinks"]:
        """All differences, in the order of the function's equations."""
        return jnp.concatenate(self.differences) if self.differences else jnp.zeros(0)


class _Value:
    # A value, whether it depends on the parameters, whether through a kink, and whether
    # it is affine in them; of a comparison, its upper branch's share.
    def __init__(
        self,
        array: Any,
        moves: bool = False,
        kinked: bool = False,
        share: Any = None,
        affine: bool = False,
    ):
        self._array, self.moves, self.kinked = array, moves, kinked
        self.share, self.affine = share, affine or not moves

    @property
    def array(self) -> Any:
        return self._array


class _Relu(_Value):
    # max(z, 0), not taken before it is needed: a maximum over its entries is that over
    # the entries of z. (Else max-pooling would be tied wherever a window is inactive.)
    def __init__(self, before: _Value, taken: Taken):
        super().__init__(None, True, True)
        self.before, self._taken = before, taken

    @property
    def array(self) -> Any:
        if self._array is None:
            z = self.before.array
            before = self.before
            on = self._taken.take("relu", z, kinked=before.kinked, affine=before.affine)
            self._array = jnp.where(on, z, 0) if on.dtype == bool else on * z
        return self._array


def evaluate(
    function: Callable[..., Any],
    branches: Bool[Array, " kinks"] | Float[Array, " kinks"] | None,
    params: Any,
    *args: Any,
) -> tuple[Any, Taken]:
    """`function(params, *args)` on these branches, and what was taken.

    Raises `UnsupportedKink`, which names the primitive, where that is not possible.
    """
    closed, shape = jax.make_jaxpr(function, return_shape=True)(params, *args)
    leaves = jax.tree.leaves(params)
    values = [_Value(leaf, moves=True, affine=True) for leaf in leaves]
    values += [_Value(leaf) for leaf in jax.tree.leaves(args)]
    taken = Taken(branches)
    outputs = _run(closed.jaxpr, closed.consts, values, taken)
    out = jax.tree.unflatten(jax.tree.structure(shape), [v.array for v in outputs])
    return out, taken


def _run(jaxpr: Any, consts: Sequence[Any], args: Sequence[_Value], taken: Taken):
    known: dict[Any, _Value] = {}

    def read(atom: Any) -> _Value:
        return _Value(atom.val) if isinstance(atom, core.Literal) else known[atom]

    known.update(
        zip(jaxpr.constvars, [_as_value(const) for const in consts], strict=True)
    )
    known.update(zip(jaxpr.invars, args, strict=True))
    live = live_equations(jaxpr)
    for equation, alive in zip(jaxpr.eqns, live, strict=True):
        inputs = [read(atom) for atom in equation.invars]
        outputs = _equation(jaxpr, equation, inputs, taken, alive)
        known.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _as_value(const: Any) -> _Value:
    return const if isinstance(const, _Value) else _Value(const)


def _equation(
    jaxpr: Any, equation: Any, inputs: list[_Value], taken: Taken, alive: bool
) -> list[_Value]:
    name = equation.primitive.name
    moves = any(v.moves for v in inputs)
    kinked = any(v.kinked for v in inputs)
    if name in _MOVES and len(inputs) == 1 and isinstance(inputs[0], _Relu):
        before = _bound(jaxpr, equation, [inputs[0].before], inputs[0].before.kinked)
        return [_Relu(before[0], taken)]
    inner = _inner(equation)
    shared = any(v.share is not None for v in inputs)
    if shared and inner is not None:
        return _call(equation, inner, inputs, taken)
    if shared and name in _MOVES:
        share = equation.primitive.bind(inputs[0].share, **equation.params)
        return [_Value(share > 0.5, True, True, share=share)]
    if name == "select_n" and len(inputs) == 3 and inputs[0].share is not None:
        on, below, above = inputs
        out = _blend(on.share, above.array, below.array)
        return [_Value(out, True, True)]
    if name == "convert_element_type" and inputs[0].share is not None:
        dtype = equation.params["new_dtype"]
        if jnp.issubdtype(dtype, jnp.floating):
            return [_Value(inputs[0].share.astype(dtype), True, True)]
    if not alive or not moves:
        return _bound(jaxpr, equation, inputs, kinked, moves)
    if inner is not None:
        return _call(equation, inner, inputs, taken)
    if name in _HANDLERS:
        return [_HANDLERS[name](equation, inputs, taken)]
    raise UnsupportedKink(name)


def _bound(
    jaxpr: Any, equation: Any, inputs: list[_Value], kinked: bool, moves: bool = True
) -> list[_Value]:
    # As a jaxpr of its own: how a primitive is bound changes between versions of JAX.
    given: dict[Any, Any] = {}
    for atom, value in zip(equation.invars, inputs, strict=True):
        if not isinstance(atom, core.Literal):
            given[atom] = value.array
    alone = jaxpr.replace(
        constvars=[],
        invars=list(given),
        outvars=list(equation.outvars),
        eqns=[equation],
    )
    out = core.jaxpr_as_fun(core.ClosedJaxpr(alone, ()))(*given.values())
    moving = [value for value in inputs if value.moves]
    name = equation.primitive.name
    # Division by what is given, and products of which one factor moves.
    alone = name in _BILINEAR or (name == "div" and not inputs[-1].moves)
    linear = name in _LINEAR or (alone and len(moving) == 1)
    affine = linear and all(value.affine for value in moving)
    return [_Value(x, moves, kinked, affine=affine) for x in out]


def _inner(equation: Any) -> Any:
    """The jaxpr that an equation calls, and its constants, if it calls one as it is."""
    name = equation.primitive.name
    if name in ("jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "scan"):
        key = "jaxpr" if "jaxpr" in equation.params else "call_jaxpr"
    elif name in ("checkpoint", "remat", "remat2"):
        key = "jaxpr"
    else:
        return None
    return equation.params[key]


def _call(equation: Any, inner: Any, inputs: list[_Value], taken: Taken):
    jaxpr, consts = getattr(inner, "jaxpr", inner), getattr(inner, "consts", ())
    if equation.primitive.name != "scan":
        return _run(jaxpr, consts, inputs, taken)
    params = equation.params
    length, num_consts = params["length"], params["num_consts"]
    if length > _UNROLLED:
        raise UnsupportedKink(f"scan of length {length}")
    num_carry = params["num_carry"]
    fixed, carry = inputs[:num_consts], inputs[num_consts : num_consts + num_carry]
    sliced = inputs[num_consts + num_carry :]
    kept: list[list[_Value]] = [[] for _ in equation.outvars[num_carry:]]
    for step in reversed(range(length)) if params["reverse"] else range(length):
        here = [
            _Value(v.array[step], v.moves, v.kinked, affine=v.affine) for v in sliced
        ]
        outputs = _run(jaxpr, consts, [*fixed, *carry, *here], taken)
        carry = outputs[:num_carry]
        for track, value in zip(kept, outputs[num_carry:], strict=True):
            track.append(value)
    if params["reverse"]:
        kept = [track[::-1] for track in kept]
    stacked = [
        _Value(
            jnp.stack([v.array for v in track]),
            any(v.moves for v in track),
            any(v.kinked for v in track),
        )
        for track in kept
    ]
    return [*carry, *stacked]


def _max(equation: Any, inputs: list[_Value], taken: Taken) -> _Value:
    a, b = inputs
    for one, other in ((a, b), (b, a)):
        if _is_zero(equation, inputs.index(other)) and not isinstance(one, _Relu):
            return _Relu(one, taken)
    affine = a.affine and b.affine
    return _larger("max", a.array, b.array, taken, a.kinked or b.kinked, affine)


def _is_zero(equation: Any, position: int) -> bool:
    atom = equation.invars[position]
    return isinstance(atom, core.Literal) and not np.any(np.asarray(atom.val))


def _blend(on: Array, a: Any, b: Any) -> Array:
    """a where `on`, b where not; of a share, in proportion."""
    if on.dtype == bool:
        return jnp.where(on, a, b)
    between = (on != 0) & (on != 1)
    whole = jnp.where(on > 0.5, a, b)
    safe_a, safe_b = jnp.where(between, a, 0), jnp.where(between, b, 0)
    out = jnp.where(between, on * safe_a + (1 - on) * safe_b, whole)
    # The derivative in the share, at its bounds too.
    apart = a - b
    apart = jnp.where(jnp.isfinite(apart) & ~between, apart, 0)
    return out + (on - jax.lax.stop_gradient(on)) * apart


def _min(equation: Any, inputs: list[_Value], taken: Taken) -> _Value:
    a, b = inputs
    affine = a.affine and b.affine
    out = _larger("min", -a.array, -b.array, taken, a.kinked or b.kinked, affine)
    return _Value(-out.array, True, True)


def _larger(
    name: str, a: Any, b: Any, taken: Taken, kinked: bool, affine: bool = False
) -> _Value:
    a, b = jnp.broadcast_arrays(a, b)
    # What pads a window, -inf, is never the larger one.
    outside, inside = jnp.isneginf(b), jnp.isneginf(a)
    safe_a, safe_b = jnp.where(inside, 0, a), jnp.where(outside, 0, b)
    difference = jnp.where(
        outside | inside, jnp.where(outside, 1, -1).astype(a.dtype), safe_a - safe_b
    )
    on = taken.take(name, difference, kinked=kinked, affine=affine)
    if on.dtype == bool:
        return _Value(jnp.where(on, a, b), True, True)
    # Padding takes part with a weight of zero, which needs a finite number.
    safe_a, safe_b = jnp.where(inside, b, a), jnp.where(outside, a, b)
    return _Value(on * safe_a + (1 - on) * safe_b, True, True)


def _abs(equation: Any, inputs: list[_Value], taken: Taken) -> _Value:
    (x,) = inputs
    on = taken.take("abs", x.array, kinked=x.kinked, affine=x.affine)
    sign = jnp.where(on, 1, -1) if on.dtype == bool else 2 * on - 1
    return _Value(sign.astype(x.array.dtype) * x.array, True, True)


def _sign(equation: Any, inputs: list[_Value], taken: Taken) -> _Value:
    (x,) = inputs
    on = taken.take("sign", x.array, kinked=x.kinked, affine=x.affine)
    one = jnp.ones_like(x.array)
    return _Value(_blend(on, one, -one), True, True)


def _clamp(equation: Any, inputs: list[_Value], taken: Taken) -> _Value:
    low, x, high = inputs
    kinked = any(v.kinked for v in inputs)
    above = _larger("clip", x.array, low.array, taken, kinked).array
    # The two kinks are apart, so they are not in series.
    out = _larger("clip", -above, -high.array, taken, kinked)
    return _Value(-out.array, True, True)


def _compare(equation: Any, inputs: list[_Value], taken: Taken) -> _Value:
    a, b = inputs
    same = tuple(
        ("number", float(atom.val))
        if isinstance(atom, core.Literal) and np.ndim(atom.val) == 0
        else ("array", id(value.array))
        for atom, value in zip(equation.invars, inputs, strict=True)
    )
    key = (equation.primitive.name, *same)
    if key not in taken.compared:
        # With the arrays, so that their ids are not given to others.
        taken.compared[key] = ((a, b), _compared(equation, a, b, taken))
    on = taken.compared[key][1]
    if on.dtype == bool:
        return _Value(on, True, True)
    return _Value(on > 0.5, True, True, share=on)


def _compared(equation: Any, a: _Value, b: _Value, taken: Taken) -> Array:
    difference = jnp.subtract(*jnp.broadcast_arrays(a.array, b.array))
    if equation.primitive.name in ("le", "lt"):
        difference = -difference
    kinked, affine = a.kinked or b.kinked, a.affine and b.affine
    return taken.take("where", difference, kinked=kinked, affine=affine)


def _reduced(sign: int):
    def reduce(equation: Any, inputs: list[_Value], taken: Taken) -> _Value:
        (x,) = inputs
        axes = equation.params["axes"]
        if sign > 0 and isinstance(x, _Relu):
            return _Relu(_tournament(_slices(x.before.array, axes), x, taken), taken)
        out = _tournament(_slices(sign * x.array, axes), x, taken)
        return _Value(sign * out.array, True, True)

    return reduce


def _slices(x: Any, axes: Sequence[int]) -> list[Array]:
    moved = jnp.moveaxis(x, axes, range(len(axes)))
    flat = moved.reshape(-1, *moved.shape[len(axes) :])
    return list(flat)


def _pooled(sign: int):
    def reduce(equation: Any, inputs: list[_Value], taken: Taken) -> _Value:
        x, params = inputs[0], equation.params
        if sign > 0 and isinstance(x, _Relu):
            return _Relu(_tournament(_windows(x.before.array, params), x, taken), taken)
        out = _tournament(_windows(sign * x.array, params), x, taken)
        return _Value(sign * out.array, True, True)

    return reduce


def _windows(x: Any, params: dict[str, Any]) -> list[Array]:
    """The entries of each window, one array for each place in it."""
    if any(d != 1 for d in (*params["base_dilation"], *params["window_dilation"])):
        raise UnsupportedKink("reduce_window_max with dilation")
    size, strides = params["window_dimensions"], params["window_strides"]
    padded = jax.lax.pad(
        x,
        jnp.asarray(-jnp.inf, x.dtype),
        [(low, high, 0) for low, high in params["padding"]],
    )
    counts = [
        (length - width) // stride + 1
        for length, width, stride in zip(padded.shape, size, strides, strict=True)
    ]
    return [
        padded[
            tuple(
                slice(start, start + (count - 1) * stride + 1, stride)
                for start, count, stride in zip(place, counts, strides, strict=True)
            )
        ]
        for place in np.ndindex(*size)
    ]


def _tournament(entries: list[Array], x: _Value, taken: Taken) -> _Value:
    kinked = x.before.kinked if isinstance(x, _Relu) else x.kinked
    while len(entries) > 1:
        pairs = zip(entries[::2], entries[1::2], strict=False)
        winners = [_larger("max", a, b, taken, kinked).array for a, b in pairs]
        entries = winners + entries[len(entries) - len(entries) % 2 :]
        kinked = True
    return _Value(entries[0], True, True)


_HANDLERS: dict[str, Callable[[Any, list[_Value], Taken], _Value]] = {
    "abs": _abs,
    "clamp": _clamp,
    "max": _max,
    "min": _min,
    "reduce_max": _reduced(1),
    "reduce_min": _reduced(-1),
    "reduce_window_max": _pooled(1),
    "reduce_window_min": _pooled(-1),
    "sign": _sign,
    **dict.fromkeys(_COMPARISONS, _compare),
}
