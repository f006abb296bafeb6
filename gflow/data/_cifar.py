"""The two official layouts of CIFAR-10."""

import io
import math
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from ._dataset import Dataset, check_split, image_dataset


_PIXELS = 3 * 32 * 32
_BATCHES = {
    "train": tuple(f"data_batch_{i}" for i in range(1, 6)),
    "test": ("test_batch",),
}


def cifar10(
    directory: str | os.PathLike[str], split: str = "train", *, flatten: bool = False
) -> Dataset:
    """CIFAR-10: 60,000 colour images of 32 by 32 pixels, 10 classes.

    The classes are 0 airplane, 1 automobile, 2 bird, 3 cat, 4 deer, 5 dog, 6 frog,
    7 horse, 8 ship and 9 truck. The training batches are joined in their order.

    The batches of the Python version are pickles, a format that can run any program
    when it is read. Here they are read by an unpickler that knows only the few names an
    array of bytes needs and refuses every other.

    **Arguments:**

    - `directory`: `cifar-10-batches-py` (the Python version), `cifar-10-batches-bin`
        (the binary version), or the directory that holds one of them. Where both are
        present the Python version is read; the images are the same.
    - `split`: `"train"` (50,000 images) or `"test"` (10,000 images).
    - `flatten`: whether to return rows of 3,072 values (1,024 red, then green, then
        blue, each row-major) instead of images.

    **Returns:**

    A `Dataset` with `x` float64 in [0, 1] of shape `(n, 3, 32, 32)`, channels red,
    green and blue, or `(n, 3072)` with `flatten=True`, and `y` int64 of shape `(n,)`.
    The training images take 1.2 GB.

    **Raises:**

    - `FileNotFoundError`: a batch is missing; the message says where it was sought and
        what to download.
    - `ValueError`: the split is unknown, or a batch is truncated, malformed, or refused
        because its pickle asks for more than arrays.

    **Source:** `cifar-10-python.tar.gz` or `cifar-10-binary.tar.gz`, unpacked, from
    https://www.cs.toronto.edu/~kriz/cifar.html; A. Krizhevsky, *Learning multiple
    layers of features from tiny images* (2009).

    Examples:
        >>> import gflow
        >>> x, y = gflow.data.cifar10("cifar-10-batches-py", "test")  # doctest: +SKIP
        >>> x.shape  # doctest: +SKIP
        (10000, 3, 32, 32)
    """
    check_split(split)
    paths = _find(Path(directory), split)
    read = _read_binary if paths[0].suffix == ".bin" else _read_python
    batches = [read(path) for path in paths]
    pixels = np.concatenate([pixels for pixels, _ in batches])
    labels = np.concatenate([labels for _, labels in batches])
    return image_dataset(
        pixels.reshape(-1, 3, 32, 32), labels, white=255.0, flatten=flatten
    )


def _find(directory: Path, split: str) -> list[Path]:
    incomplete = []
    for name, suffix in (("cifar-10-batches-py", ""), ("cifar-10-batches-bin", ".bin")):
        for folder in (directory, directory / name):
            paths = [folder / f"{batch}{suffix}" for batch in _BATCHES[split]]
            missing = [path.name for path in paths if not path.is_file()]
            if not missing:
                return paths
            if len(missing) < len(paths):
                incomplete.append(f"{', '.join(missing)} missing from {folder}")
    found = f" ({'; '.join(incomplete)})" if incomplete else ""
    raise FileNotFoundError(
        f"No complete CIFAR-10 {split} set in {directory}, nor in cifar-10-batches-py "
        f"or cifar-10-batches-bin inside it{found}. Download cifar-10-python.tar.gz or "
        "cifar-10-binary.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html, "
        "unpack it, and pass the directory."
    )


def _read_binary(path: Path) -> tuple[np.ndarray, np.ndarray]:
    content = np.frombuffer(path.read_bytes(), np.uint8)
    if content.size == 0 or content.size % (1 + _PIXELS):
        raise ValueError(
            f"{path} is truncated or is not CIFAR-10: its {content.size} bytes are not "
            f"a positive multiple of {1 + _PIXELS}, one label and {_PIXELS} pixels."
        )
    records = content.reshape(-1, 1 + _PIXELS)
    pixels, labels = records[:, 1:], records[:, 0]
    if labels.max() > 9:
        raise ValueError(
            f"{path} has the label {labels.max()}, but those of CIFAR-10 are 0 to 9: "
            "the file is malformed."
        )
    return pixels, labels


def _read_python(path: Path) -> tuple[np.ndarray, np.ndarray]:
    content = path.read_bytes()
    try:
        # Written by Python 2, whose strings are bytes.
        batch = _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
    # By its documentation a bad pickle may raise anything, not only UnpicklingError.
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read as a CIFAR-10 batch ({error}): it is truncated, "
            "malformed or not to be trusted. Download cifar-10-python.tar.gz again."
        ) from error
    batch = batch if isinstance(batch, dict) else {}
    pixels, labels = batch.get(b"data"), batch.get(b"labels")
    if not isinstance(pixels, _PickledArray) or not isinstance(labels, list):
        raise ValueError(
            f"{path} is not a CIFAR-10 batch: it should be a dictionary with an array "
            "b'data' and a list b'labels'."
        )
    if not all(type(label) is int and 0 <= label <= 9 for label in labels):
        raise ValueError(f"{path} has labels that are not integers from 0 to 9.")
    if len(labels) == 0 or pixels.values.shape != (len(labels), _PIXELS):
        raise ValueError(
            f"{path} should have one row of {_PIXELS} pixels per label, but its "
            f"{len(labels)} labels come with an array of shape {pixels.values.shape}."
        )
    return pixels.values, np.array(labels)


class _ArrayUnpickler(pickle.Unpickler):
    """Reads dictionaries, lists, numbers, strings and arrays of bytes; no more.

    The names that NumPy writes into a pickle are answered by stand-ins, not by NumPy:

    1. A pickle may call what `find_class` returns with any argument, and hand any state
       to the result; `numpy.dtype` and `numpy.ndarray` were not written for hostile
       states.
    2. The official batches write `dtype('u1', 0, 1)`, and since 2.4 NumPy warns that
       these integers should be booleans.
    3. NumPy moved `numpy.core` to `numpy._core`; both names are known here.

    Functions are made afresh for each look-up: a pickle can set attributes on them.
    """

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if global_name == "_reconstruct" and module_name in (
            "numpy.core.multiarray",
            "numpy._core.multiarray",
        ):
            return lambda kind, shape, code: _PickledArray()
        if (module_name, global_name) == ("numpy", "ndarray"):
            return "ndarray"
        if (module_name, global_name) == ("numpy", "dtype"):
            return lambda code, align, copy: _PickledDtype(code)
        if (module_name, global_name) == ("_codecs", "encode"):
            # How Python 3 writes bytes in protocol 2.
            return lambda text, encoding: _encode_latin1(text, encoding)
        raise pickle.UnpicklingError(
            f"its pickle asks for {module_name}.{global_name}, which an array of bytes "
            "does not need"
        )


class _PickledDtype:
    def __init__(self, code: object):
        if code not in (b"u1", "u1"):
            raise pickle.UnpicklingError(f"its array has type {code!r}, not bytes")

    def __setstate__(self, state: object) -> None:
        """Ignore the state: for a byte it says only that there is no byte order."""


class _PickledArray:
    values: np.ndarray = np.empty((0,), np.uint8)

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, column_major, content = state
        if not isinstance(dtype, _PickledDtype) or not isinstance(content, bytes):
            raise pickle.UnpicklingError("its array is not of bytes")
        if column_major:
            raise pickle.UnpicklingError("its array is stored by columns, not by rows")
        if math.prod(shape) != len(content):
            raise pickle.UnpicklingError(
                f"its array of shape {shape} has {len(content)} bytes"
            )
        self.values = np.frombuffer(content, np.uint8).reshape(shape)


def _encode_latin1(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError(f"it asks for the encoding {encoding!r}")
    return text.encode("latin1")
