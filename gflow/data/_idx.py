"""The IDX format of MNIST and its successors."""

import gzip
import math
import os
import zlib
from pathlib import Path

import numpy as np

from ._dataset import Dataset, check_split, image_dataset


# Where Debian's package `dataset-fashion-mnist` puts its files.
_DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")

_PREFIX = {"train": "train", "test": "t10k"}


def idx(
    directory: str | os.PathLike[str], split: str = "train", *, flatten: bool = False
) -> Dataset:
    """Grey images and labels from a directory of IDX files.

    This is the format of MNIST, Fashion-MNIST and Kuzushiji-MNIST as their authors
    publish them. The files are `train-images-idx3-ubyte` and `train-labels-idx1-ubyte`
    for training and `t10k-images-idx3-ubyte` and `t10k-labels-idx1-ubyte` for testing,
    raw or compressed (`.gz`); where both are present the raw file is read.

    An IDX file holds two zero bytes, the type code (8 for unsigned bytes), the number
    of dimensions, each dimension as a big-endian 32-bit integer, and then the entries
    with the last index fastest.

    **Arguments:**

    - `directory`: the directory that holds the files; subdirectories are not searched.
    - `split`: `"train"` or `"test"`.
    - `flatten`: whether to return rows of `h * w` pixels (row-major) instead of images.

    **Returns:**

    A `Dataset` with `x` float64 in [0, 1], the stored bytes divided by 255, of shape
    `(n, 1, h, w)`, or `(n, h * w)` with `flatten=True`, and `y` int64 of shape `(n,)`.

    **Raises:**

    - `FileNotFoundError`: a file is missing; the message says which and where.
    - `ValueError`: the split is unknown, a file is not IDX with unsigned bytes and the
        right number of dimensions, is truncated or has bytes left over, or images and
        labels differ in number.

    **Source:** files that the user downloaded, e.g. MNIST by Y. LeCun, C. Cortes and
    C. J. C. Burges, with the format's description.

    Examples:
        >>> import gflow
        >>> x, y = gflow.data.idx("MNIST/raw", "test")  # doctest: +SKIP
        >>> x.shape  # doctest: +SKIP
        (10000, 1, 28, 28)
    """
    return _load(
        directory,
        split,
        flatten=flatten,
        remedy="Download the four IDX files of the data set into one directory and "
        "pass that directory.",
    )


def fashion_mnist(
    split: str = "train",
    directory: str | os.PathLike[str] | None = None,
    *,
    flatten: bool = False,
) -> Dataset:
    """Fashion-MNIST: 70,000 grey images of clothes, 28 by 28 pixels, 10 classes.

    The classes are 0 T-shirt or top, 1 trouser, 2 pullover, 3 dress, 4 coat, 5 sandal,
    6 shirt, 7 sneaker, 8 bag and 9 ankle boot.

    **Arguments:**

    - `split`: `"train"` (60,000 images) or `"test"` (10,000 images).
    - `directory`: the directory with the IDX files, raw or compressed. By default where
        Debian's package `dataset-fashion-mnist` puts them,
        `/usr/share/datasets/fashion-mnist`.
    - `flatten`: whether to return rows of 784 pixels (row-major) instead of images.

    **Returns:**

    A `Dataset` with `x` float64 in [0, 1] (0 is background) of shape `(n, 1, 28, 28)`,
    or `(n, 784)` with `flatten=True`, and `y` int64 of shape `(n,)`. The training
    images take 376 MB.

    **Raises:**

    - `FileNotFoundError`: a file is missing; the message says where it was sought and
        what to install.
    - `ValueError`: as for `idx`.

    **Source:** H. Xiao, K. Rasul and R. Vollgraf, *Fashion-MNIST: a novel image dataset
    for benchmarking machine learning algorithms* (2017), arXiv:1708.07747.

    Examples:
        >>> import gflow
        >>> x, y = gflow.data.fashion_mnist("test")  # doctest: +SKIP
        >>> x.shape  # doctest: +SKIP
        (10000, 1, 28, 28)
    """
    return _load(
        _DEBIAN_FASHION_MNIST if directory is None else directory,
        split,
        flatten=flatten,
        remedy="Install Debian's package with `apt install dataset-fashion-mnist`, or "
        "download the four files from github.com/zalandoresearch/fashion-mnist and "
        "pass their directory.",
    )


def _load(
    directory: str | os.PathLike[str], split: str, *, flatten: bool, remedy: str
) -> Dataset:
    check_split(split)
    folder = Path(directory)
    images_path = _find(folder, f"{_PREFIX[split]}-images-idx3-ubyte", remedy)
    labels_path = _find(folder, f"{_PREFIX[split]}-labels-idx1-ubyte", remedy)
    images = _read(images_path, ndim=3)
    labels = _read(labels_path, ndim=1)
    if len(images) != len(labels):
        raise ValueError(
            f"{images_path} has {len(images)} images but {labels_path} has "
            f"{len(labels)} labels: the files do not belong together."
        )
    return image_dataset(images[:, None], labels, white=255.0, flatten=flatten)


def _find(folder: Path, name: str, remedy: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise FileNotFoundError(f"No {name} or {name}.gz in {folder}. {remedy}")


def _read(path: Path, ndim: int) -> np.ndarray:
    content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(
                f"{path} is truncated or is not a gzip file ({error}): download it "
                "again."
            ) from error
    magic = bytes((0, 0, 8, ndim))
    if content[:4] != magic:
        raise ValueError(
            f"{path} is not an IDX file of unsigned bytes with {ndim} dimension(s): it "
            f"begins with 0x{content[:4].hex()}, not 0x{magic.hex()}."
        )
    header = 4 + 4 * ndim
    if len(content) < header:
        raise ValueError(f"{path} is truncated inside its header: download it again.")
    shape = tuple(np.frombuffer(content, ">u4", ndim, 4).tolist())
    expected = header + math.prod(shape)
    if len(content) != expected:
        what = "is truncated" if len(content) < expected else "has bytes left over"
        raise ValueError(
            f"{path} {what}: its dimensions {shape} call for {expected} bytes, and it "
            f"has {len(content)}. Download it again."
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
