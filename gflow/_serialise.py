"""Solutions as arrays and JSON in one .npz file; nothing is pickled."""

import dataclasses
import json
import os
import sys
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np

from ._times import is_concrete


FORMAT = "gflow solution"
# Raised whenever files written before can no longer be read as they are.
VERSION = 1

_HEADER = "header.json"
# What a solution can do without: written as None (and said so) where it holds
# something that is not data.
_OPTIONAL = ("resume", "limit")


class NotStorable(Exception):
    """A value that is neither data nor one of our own modules."""


# --- Values to JSON ----------------------------------------------------------------
#
# A value is a "node", a JSON object that says what it is. Arrays are stored beside the
# JSON, under the name of their place in the solution. A tree of the model's own class
# (the model itself, its parameters, a velocity) is a flat table from leaf paths to
# nodes, because the class is the user's: only a template can rebuild it.


class _Encoder:
    def __init__(self, model: Any, results: Any):
        self.model_type = type(model)
        self.results = results
        self.arrays: dict[str, np.ndarray] = {}

    def node(self, value: Any, name: str) -> dict[str, Any]:
        if value is None or isinstance(value, (bool, int, float, str)):
            return {"value": value}
        if isinstance(value, self.results):
            return self.result(value, name)
        if eqx.is_array(value) or isinstance(value, (np.ndarray, np.generic)):
            return self.array(value, name)
        if type(value) is self.model_type:
            return {"model": self.leaves(value, name)}
        if type(value) in (tuple, list):
            items = [self.node(v, f"{name}[{i}]") for i, v in enumerate(value)]
            return {type(value).__name__: items}
        if type(value) is dict and all(isinstance(key, str) for key in value):
            items = {k: self.node(v, f"{name}[{k!r}]") for k, v in value.items()}
            return {"dict": items}
        if isinstance(value, eqx.Module) and is_ours(type(value)):
            names = [field.name for field in _fields(type(value))]
            fields = {
                one: self.node(getattr(value, one), f"{name}.{one}") for one in names
            }
            return {"module": class_name(type(value)), "fields": fields}
        raise NotStorable(f"{name} is a {type(value).__name__}, which is not data")

    def array(self, value: Any, name: str) -> dict[str, Any]:
        if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            data = np.asarray(jax.random.key_data(value))
            self.arrays[name] = data
            return {"key": name, "impl": str(jax.random.key_impl(value))}
        array = np.asarray(value)
        if array.dtype.kind not in "biufcV":
            raise NotStorable(f"{name} is an array of {array.dtype}")
        dtype = array.dtype.name
        if array.dtype.kind == "V":
            # bfloat16 and its like: NumPy would forget which of them it was.
            array = array.view(f"u{array.dtype.itemsize}")
        self.arrays[name] = array
        return {"array": name, "dtype": dtype}

    def leaves(self, tree: Any, name: str) -> dict[str, Any]:
        nodes = {}
        for path, leaf in jtu.tree_flatten_with_path(tree)[0]:
            key = jtu.keystr(path)
            try:
                nodes[key] = self.node(leaf, name + key)
            except NotStorable:
                # An activation function, say: the template has it too.
                nodes[key] = {"other": type(leaf).__name__}
        return nodes

    def result(self, value: Any, name: str) -> dict[str, Any]:
        # By their messages: the numbers may be others in another version of Diffrax.
        (codes,) = jtu.tree_leaves(value)
        messages = {
            str(code): self.results[_item(self.results, np.array(code, np.int32))]
            for code in np.unique(np.asarray(codes)).tolist()
        }
        return {"result": self.array(codes, name), "messages": messages}


def _item(results: Any, codes: Any) -> Any:
    return jtu.tree_unflatten(jtu.tree_structure(results.successful), [codes])


def _fields(cls: Any) -> tuple[dataclasses.Field, ...]:
    # Every Equinox module is a dataclass, which type checkers do not know.
    return dataclasses.fields(cls)


def is_ours(cls: type) -> bool:
    """Whether a class is one of this package's."""
    return cls.__module__.split(".")[0] == __name__.split(".")[0]


def class_name(cls: type) -> str:
    """The name under which a class is stored."""
    return f"{cls.__module__}.{cls.__qualname__}"


# --- JSON to values ----------------------------------------------------------------


class _Decoder:
    def __init__(self, arrays: Mapping[str, np.ndarray], classes, results, template):
        self.arrays = arrays
        self.classes = classes
        self.results = results
        self.template = template

    def value(self, node: dict[str, Any]) -> Any:
        if "value" in node:
            return node["value"]
        if "array" in node:
            return self.array(node)
        if "key" in node:
            data = jnp.asarray(self.arrays[node["key"]])
            return jax.random.wrap_key_data(data, impl=node["impl"])
        if "result" in node:
            return self.result(node)
        if "model" in node:
            return self.model(node["model"])
        if "tuple" in node:
            return tuple(self.value(item) for item in node["tuple"])
        if "list" in node:
            return [self.value(item) for item in node["list"]]
        if "dict" in node:
            return {key: self.value(item) for key, item in node["dict"].items()}
        cls = self.classes.get(node["module"])
        if cls is None:
            raise NotStorable(f"{node['module']} is not a class of this version")
        return self.module(cls, node["fields"])

    def module(self, cls: type, nodes: dict[str, Any]) -> Any:
        # As unflattening a PyTree does, without running `__init__`.
        module = object.__new__(cls)
        for field in _fields(cls):
            if field.name in nodes:
                value = self.value(nodes[field.name])
            elif field.default is not dataclasses.MISSING:
                value = field.default
            else:
                raise NotStorable(f"{class_name(cls)} has no {field.name} in the file")
            object.__setattr__(module, field.name, value)
        return module

    def array(self, node: dict[str, Any]) -> Any:
        stored = self.arrays[node["array"]]
        if stored.dtype.name != node["dtype"]:
            stored = stored.view(jnp.dtype(node["dtype"]))
        array = jnp.asarray(stored)
        if array.dtype != stored.dtype:
            # Without x64 mode. The numbers of steps fit an int32, a float64 does not.
            integer = jnp.issubdtype(stored.dtype, jnp.integer)
            if not (integer and np.array_equal(np.asarray(array), stored)):
                raise ValueError(
                    f"{node['array']} was saved as {stored.dtype.name}, which JAX now "
                    f"turns into {array.dtype.name}; enable it by "
                    'jax.config.update("jax_enable_x64", True).'
                )
        return array

    def result(self, node: dict[str, Any]) -> Any:
        codes = self.arrays[node["result"]["array"]]
        now = {
            self.results[_item(self.results, np.array(code, np.int32))]: code
            for code in range(len(self.results))
        }
        found = np.zeros_like(codes)
        for code, message in node["messages"].items():
            if message not in now:
                raise NotStorable(f"the result {message!r} is not one of this version")
            found = np.where(codes == int(code), now[message], found)
        return _item(self.results, jnp.asarray(found.astype(codes.dtype)))

    def model(self, nodes: dict[str, Any]) -> Any:
        if self.template is None:
            return {
                key: self.value(node)
                for key, node in nodes.items()
                if "other" not in node
            }

        # Leaves that are not in the file are those of a part of the model, such as its
        # trained parameters; `check_template` has seen that the whole fits.
        def leaf(path, old):
            node = nodes.get(jtu.keystr(path))
            if node is None:
                return None
            return old if "other" in node else self.value(node)

        return jtu.tree_map_with_path(leaf, self.template)


def check_template(
    nodes: dict[str, Any],
    arrays: Mapping[str, np.ndarray],
    lanes: tuple[int, ...],
    template: Any,
) -> None:
    """Raises ValueError, naming the leaf, if a model does not fit a stored one."""
    leaves = {
        jtu.keystr(path): leaf for path, leaf in jtu.tree_flatten_with_path(template)[0]
    }
    remedy = "Pass an instance of the architecture that was saved."
    for key in leaves.keys() - nodes.keys():
        raise ValueError(f"model{key} is not in the file. {remedy}")
    for key, node in nodes.items():
        if key not in leaves:
            raise ValueError(f"the file holds {key}, which `model` has not. {remedy}")
        shape = getattr(leaves[key], "shape", None)
        if "array" not in node:
            if ("other" in node or "value" in node) and shape is not None:
                raise ValueError(
                    f"model{key} is an array and the saved one is not. {remedy}"
                )
            continue
        stored = arrays[node["array"]].shape
        if shape is None:
            raise ValueError(f"model{key} is no array and the saved one is. {remedy}")
        if stored not in (tuple(shape), (*lanes, *shape)):
            within = f" (after {lanes} lanes)" if lanes else ""
            raise ValueError(
                f"model{key} has shape {tuple(shape)} and the saved one "
                f"{stored[len(lanes) :]}{within}. {remedy}"
            )


# --- Files -------------------------------------------------------------------------


def write(solution: Any, path: str | os.PathLike, results: Any) -> None:
    """Writes a solution, whose `result` is of the enumeration `results`."""
    if not is_concrete(solution):
        raise ValueError(
            "a solution is saved outside of jit, vmap and grad: its arrays have no "
            "values inside."
        )
    arrays: dict[str, np.ndarray] = {}
    nodes = {}
    for field in _fields(type(solution)):
        encoder = _Encoder(solution.final, results)
        try:
            nodes[field.name] = encoder.node(getattr(solution, field.name), field.name)
        except NotStorable as error:
            if field.name not in _OPTIONAL:
                raise ValueError(f"the solution cannot be saved: {error}.") from error
            warnings.warn(f"saved without `{field.name}`: {error}.", stacklevel=3)
            nodes[field.name] = {"value": None}
            continue
        arrays.update(encoder.arrays)
    header = {
        "format": FORMAT,
        "version": VERSION,
        # The package is complete when this runs; importing it above would be a cycle.
        "gflow": getattr(sys.modules[__name__.split(".")[0]], "__version__", ""),
        "fields": nodes,
    }
    text = np.frombuffer(json.dumps(header).encode(), np.uint8)
    target = Path(path)
    # Beside the target and then renamed: a save that is interrupted leaves the
    # earlier file as it was. A file object, because `savez` adds suffixes to names.
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            np.savez(file, allow_pickle=False, **{_HEADER: text}, **arrays)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def read(path: str | os.PathLike) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The fields' nodes and the arrays of a file; ValueError if it is not one."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        header = json.loads(arrays.pop(_HEADER).tobytes().decode())
        kind, version, nodes = header["format"], header["version"], header["fields"]
    except (FileNotFoundError, IsADirectoryError, PermissionError):
        raise
    except (
        # Whatever NumPy, zipfile and json raise for other files and damaged ones.
        (AttributeError, EOFError, KeyError, OSError, TypeError, ValueError)
        + (NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error)
    ) as error:
        raise ValueError(f"{path} is not a saved solution, or is damaged.") from error
    if kind != FORMAT or not isinstance(version, int):
        raise ValueError(f"{path} is not a saved solution.")
    if version > VERSION:
        raise ValueError(
            f"{path} has format version {version}, written by gflow "
            f"{header.get('gflow')}; this version of gflow reads up to {VERSION}. "
            "Upgrade gflow."
        )
    return nodes, arrays


def decode(
    cls: type,
    nodes: dict[str, Any],
    arrays: Mapping[str, np.ndarray],
    *,
    classes: Mapping[str, type],
    results: Any,
    template: Any,
) -> Any:
    """The solution, of class `cls`; its model's trees as dicts without a template."""
    decoder = _Decoder(arrays, classes, results, template)
    if template is None:
        # Its states are trees like the model, so it would be of no use.
        nodes = {**nodes, "resume": {"value": None}}
    for name in _OPTIONAL:
        try:
            decoder.value(nodes.get(name, {"value": None}))
        except NotStorable as error:
            warnings.warn(f"loaded without `{name}`: {error}.", stacklevel=3)
            nodes = {**nodes, name: {"value": None}}
    try:
        return decoder.module(cls, nodes)
    except NotStorable as error:
        raise ValueError(f"the solution cannot be loaded: {error}.") from error
