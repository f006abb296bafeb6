"""Saving solutions to files, and loading them."""

import os
from typing import Any

import equinox as eqx

from ._serialise import check_template, class_name, decode, is_ours, read
from ._solution import RESULTS, Solution


def save(solution: Any, path: str | os.PathLike) -> None:
    """Writes a solution to one file, which [`gflow.load`][] reads.

    The file is an uncompressed NumPy `.npz` archive: each array under the name of its
    place in the solution, in its own dtype, and a JSON header with everything else.
    It holds data only, no code (nothing is pickled).

    **Arguments:**

    - `solution`: a [`gflow.Solution`][], outside of `jit`; with any leading axes.
    - `path`: where to; taken as it is, no suffix is added. An existing file is replaced
        once the new one is complete.

    **Raises:**

    `ValueError` if `solution` is not a solution, or is being traced.

    Examples:
        >>> import gflow, jax, os, tempfile
        >>> import jax.numpy as jnp
        >>> model = gflow.nn.Linear(2, "scalar", key=jax.random.key(0))
        >>> data = jnp.array([[1.0, 2.0], [2.0, 1.0]]), jnp.array([1.0, -1.0])
        >>> sol = gflow.integrate(model, data, gflow.losses.Logistic(), (0.0, 1.0))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "flow.npz")
        ...     gflow.save(sol, path)
        ...     again = gflow.load(path, model)
        >>> bool(jnp.all(again.log_loss == sol.log_loss))
        True
    """
    if not isinstance(solution, Solution):
        raise ValueError(f"{type(solution).__name__} is not a gflow.Solution.")
    solution.save(path)


def load(path: str | os.PathLike, model: Any = None) -> Solution:
    """Reads a solution that [`gflow.save`][] wrote, bit for bit.

    **Arguments:**

    - `path`: the file.
    - `model`: any model of the architecture that was solved for, such as the initial
        one; its values and dtypes do not matter (what `equinox.filter_eval_shape`
        returns will do), its functions are kept.

    **Returns:**

    The [`gflow.Solution`][]. Without `model`, its `models` and `final` (and models
    inside `limit`) are dicts from the leaves' paths to arrays, and it cannot be
    resumed.

    **Raises:**

    `ValueError` if the file is not a saved solution, is damaged or was written in a
    newer format; if `model` does not fit, naming the leaf; or if it holds 64-bit
    numbers and JAX does not have them enabled.
    """
    nodes, arrays = read(path)
    try:
        lanes = arrays[nodes["log_t"]["array"]].shape[:-1]
        if model is not None:
            check_template(nodes["final"]["model"], arrays, lanes, model)
            if nodes["models"]["model"].keys() != nodes["final"]["model"].keys():
                raise KeyError("models")
        return decode(
            Solution,
            nodes,
            arrays,
            classes=_classes(),
            results=RESULTS,
            template=model,
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: its header does not fit.") from error


def _classes() -> dict[str, type]:
    """Our own modules by name: the only classes that a file can name."""
    found, queue = {}, [eqx.Module]
    while queue:
        cls = queue.pop()
        queue += cls.__subclasses__()
        if is_ours(cls):
            found[class_name(cls)] = cls
    return found
