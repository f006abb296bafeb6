"""What every loader returns, and the steps they share."""

from typing import NamedTuple

import numpy as np


class Dataset(NamedTuple):
    """Examples and their labels, which unpack as `x, y = dataset`.

    **Fields:**

    - `x`: the examples along the first axis. The loaders give float64 arrays of shape
        `(n, features)` for tables and `(n, channels, height, width)` for images.
    - `y`: the labels, shape `(n,)`. The loaders give int64 classes; `two_classes`
        gives float64 labels -1 and +1.

    Examples:
        >>> import numpy as np
        >>> x, y = Dataset(np.zeros((3, 2)), np.array([0, 1, 1]))
        >>> x.shape, y.shape
        ((3, 2), (3,))
    """

    x: np.ndarray
    y: np.ndarray


def image_dataset(
    pixels: np.ndarray, labels: np.ndarray, *, white: float, flatten: bool
) -> Dataset:
    """Scale pixels of shape `(n, c, h, w)` from [0, white] to [0, 1]."""
    # One division straight into float64: `pixels.astype(float) / white` would hold two
    # float64 copies at once, 2.4 GB for the CIFAR-10 training set.
    x = np.divide(pixels, white, dtype=np.float64)
    if flatten:
        x = x.reshape(len(x), -1)
    return Dataset(x, labels.astype(np.int64))


def check_split(split: str) -> None:
    if split not in ("train", "test"):
        raise ValueError(f'Unknown split {split!r}: choose "train" or "test".')
