"""The values that a user's functions read from outside: closures and globals.

JAX compiles a function once and remembers it by its identity. A number or an array that
the function reads from its closure or its module would be kept from the first call,
whatever it becomes. Here arrays that a loss reads are made inputs of the computation,
and everything else becomes part of the key by which compiled programs are found.
"""

import dataclasses
import dis
import functools
import hashlib
import inspect
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.tree_util as jtu
import numpy as np

from ._times import is_concrete


# Modules whose functions read nothing that changes between two calls.
_LIBRARIES = {
    "builtins",
    "collections",
    "diffrax",
    "equinox",
    "functools",
    "gflow",
    "jax",
    "jaxlib",
    "jaxtyping",
    "lineax",
    "math",
    "numpy",
    "operator",
    "optax",
    "optimistix",
    "scipy",
    "typing",
}
_PLAIN = (bool, int, float, complex, str, bytes, np.generic, type(None))


def is_users(thing: Any) -> bool:
    """Whether a function, class or module is the user's, not that of a library."""
    name = getattr(thing, "__module__", None)
    if isinstance(thing, types.ModuleType):
        name = thing.__name__
    return (name or "").split(".")[0] not in _LIBRARIES


def digest(*things: Any) -> str:
    """A key that changes with what the user's code in these things reads.

    Functions and classes count with the values that they read; the arrays that a model
    holds as its fields do not, because they are inputs of the computation already.

    Raises `ValueError` for values that are traced.
    """
    found = hashlib.blake2b(digest_size=16)
    seen: dict[int, Any] = {}
    for thing in things:
        for part in _fields(thing, seen):
            found.update(part)
    return found.hexdigest()


def lifted(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with the arrays that it reads as leaves, and the rest as its key.

    A function that reads nothing is returned as it is.
    """
    inner = _unwrapped(function)
    if not isinstance(inner, types.FunctionType) or not is_users(inner):
        return function
    reads = dict(_read_by(inner))
    arrays = {k: v for k, v in reads.items() if _has_arrays(v)}
    seen: dict[int, Any] = {}
    others = [v for k, v in reads.items() if k not in arrays and not _is_inert(v)]
    parts = [part for value in others for part in _captured(value, seen)]
    if not arrays and not parts:
        return function
    key = hashlib.blake2b(b"".join(parts), digest_size=16).hexdigest()
    return Lifted(inner, key, arrays)


class Lifted(eqx.Module):
    """A function with arrays that it reads from outside as leaves."""

    function: types.FunctionType = eqx.field(static=True)
    key: str = eqx.field(static=True)
    arrays: dict[str, Any]  # by "closure NAME" and "global NAME"

    def __call__(self, *args: Any) -> Any:
        function: Any = self.function
        arrays = self.arrays
        names = function.__code__.co_freevars
        cells = [
            types.CellType(arrays[f"closure {name}"])
            if f"closure {name}" in arrays
            else cell
            for name, cell in zip(names, function.__closure__ or (), strict=True)
        ]
        ours = {
            key.removeprefix("global "): value
            for key, value in arrays.items()
            if key.startswith("global ")
        }
        made = types.FunctionType(
            function.__code__,
            function.__globals__ | ours if ours else function.__globals__,
            function.__name__,
            function.__defaults__,
            tuple(cells),
        )
        made.__kwdefaults__ = function.__kwdefaults__
        return made(*args)


class Keyed:
    """A function that equals another only if both read the same values."""

    def __init__(self, function: Callable[..., Any], key: str):
        functools.update_wrapper(self, function)
        self.function, self.key = function, key

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def __eq__(self, other: Any) -> bool:
        same = isinstance(other, Keyed) and self.function == other.function
        return same and self.key == other.key

    def __hash__(self) -> int:
        return hash((self.function, self.key))


def keyed(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, known by the values that it reads as well."""
    inner = _unwrapped(function)
    if not isinstance(inner, types.FunctionType) or not is_users(inner):
        return function
    parts = b"".join(_captured(inner, {}))
    blank = b"".join(_captured(_nothing, {}))
    if parts == blank:
        return function
    return Keyed(inner, hashlib.blake2b(parts, digest_size=16).hexdigest())


def _nothing() -> None:
    pass


def _unwrapped(function: Any) -> Any:
    """The function that `jax.jit` was given; `jax.jit` has a memory of its own."""
    wrapped = getattr(function, "__wrapped__", None)
    jitted = wrapped is not None and not isinstance(function, types.FunctionType)
    return wrapped if jitted and callable(wrapped) else function


def _read_by(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """The values that a function reads from outside, by where they are."""
    for name, cell in zip(
        function.__code__.co_freevars, function.__closure__ or (), strict=True
    ):
        try:
            value = cell.cell_contents
        except ValueError:  # a cell that is filled later
            continue
        if not _only_grows(value, name, function.__code__):
            yield f"closure {name}", value
    for name in sorted(_names(function.__code__) & function.__globals__.keys()):
        if not _only_grows(function.__globals__[name], name, function.__code__):
            yield f"global {name}", function.__globals__[name]
    if function.__defaults__:
        yield "defaults", function.__defaults__
    if function.__kwdefaults__:
        yield "keyword defaults", function.__kwdefaults__


def _names(code: types.CodeType) -> set[str]:
    inner = (c for c in code.co_consts if isinstance(c, types.CodeType))
    return set(code.co_names).union(*map(_names, inner))


def _only_grows(value: Any, name: str, code: types.CodeType) -> bool:
    """Whether a value is a list that the code appends to and never reads: a log."""
    if not isinstance(value, list):
        return False
    steps = [step for step in dis.get_instructions(code) if step.opname != "CACHE"]
    for step, after in zip(steps, steps[1:], strict=False):
        read = step.argval == name and step.opname.startswith("LOAD_")
        handed_on = step.opname.startswith(("LOAD_CLOSURE", "LOAD_FAST"))
        if read and not handed_on and after.argval != "append":
            return False
    inner = (part for part in code.co_consts if isinstance(part, types.CodeType))
    return all(_only_grows(value, name, part) for part in inner)


def _has_arrays(value: Any) -> bool:
    """Whether a value is a PyTree with JAX arrays in it, and nothing unknown."""
    if isinstance(value, types.ModuleType | type | types.FunctionType):
        return False
    return any(isinstance(leaf, jax.Array) for leaf in jtu.tree_leaves(value))


def _is_inert(value: Any) -> bool:
    named = isinstance(value, types.ModuleType | type) or callable(value)
    return named and not is_users(value)


def _captured(value: Any, seen: dict[int, Any]) -> Iterator[bytes]:
    """What a value that the user's code reads adds to its key."""
    if isinstance(value, _PLAIN):
        yield repr(value).encode()
        return
    if id(value) in seen or _is_inert(value):
        return
    seen[id(value)] = value  # kept, so that its number is not given to another
    if isinstance(value, jax.Array) and not is_concrete(value):
        raise ValueError(
            "a function given to gflow reads a value that is being traced "
            f"({value.dtype}, shape {value.shape}) from its closure or its module. "
            "Make it an array field of the model or, in a loss, read it directly in "
            "the function that is passed as the loss."
        )
    value = _unwrapped(value)
    yield type(value).__name__.encode()
    if isinstance(value, jax.Array | np.ndarray):
        array = np.asarray(value)
        yield f"{array.dtype}{array.shape}".encode()
        yield np.ascontiguousarray(array).view(np.uint8).tobytes()
    elif isinstance(value, types.FunctionType):
        for name, read in _read_by(value):
            if isinstance(read, types.ModuleType) and is_users(read):
                wanted = _names(value.__code__)
                read = {n: v for n, v in vars(read).items() if n in wanted}
            yield name.encode()
            yield from _captured(read, seen)
    elif isinstance(value, type):
        seen.pop(id(value))
        yield from _class(value, seen)
    elif isinstance(value, functools.partial):
        for part in (value.func, value.args, value.keywords):
            yield from _captured(part, seen)
    elif isinstance(value, types.MethodType):
        yield from _captured(value.__func__, seen)
        yield from _captured(value.__self__, seen)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield repr(key).encode()
            yield from _captured(item, seen)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from _captured(item, seen)
    elif not isinstance(value, types.ModuleType) and hasattr(value, "__dict__"):
        yield from _class(type(value), seen)
        yield from _captured(vars(value), seen)


def _class(cls: type, seen: dict[int, Any]) -> Iterator[bytes]:
    """What the methods of a class of the user's, and of its bases, read."""
    for base in cls.__mro__:
        if id(base) in seen or not is_users(base):
            continue
        seen[id(base)] = base
        for name, member in vars(base).items():
            if isinstance(member, staticmethod | classmethod):
                member = member.__func__
            if isinstance(member, property):
                member = member.fget
            inner = inspect.unwrap(member) if callable(member) else member
            if isinstance(inner, types.FunctionType) and name != "__init__":
                yield from _captured(inner, seen)


def _fields(thing: Any, seen: dict[int, Any]) -> Iterator[bytes]:
    """What the code of a module, its fields and their fields reads."""
    if isinstance(thing, types.FunctionType) or (
        callable(thing) and hasattr(thing, "__wrapped__")
    ):
        yield from _captured(thing, seen)
    elif isinstance(thing, list | tuple):
        for item in thing:
            yield from _fields(item, seen)
    elif isinstance(thing, dict):
        yield from _fields(list(thing.values()), seen)
    elif dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        yield from _class(type(thing), seen)
        for field in dataclasses.fields(thing):
            yield from _fields(getattr(thing, field.name, None), seen)
