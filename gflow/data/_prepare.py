"""Preparation of data: choose classes and examples, centre and scale."""

import operator
from typing import SupportsIndex

import numpy as np
from numpy.typing import ArrayLike

from ._dataset import Dataset


# A feature counts as constant when its standard deviation is at most this fraction of
# its mean. The mean of n copies of c, summed row by row, is wrong by up to n u |c| with
# u = 1.1e-16; for the largest data set here, n = 60,000, that is 6.6e-12 |c|, and
# 1.1e-12 |c| was measured (c = 0.3). A "standard deviation" of that size is rounding.
_CONSTANT = 1e-11


def two_classes(
    x: ArrayLike, y: ArrayLike, negative: SupportsIndex, positive: SupportsIndex
) -> Dataset:
    """Keep the examples of two classes and label them -1 and +1.

    **Arguments:**

    - `x`: examples, shape `(n, ...)`.
    - `y`: classes, shape `(n,)`.
    - `negative`: the class that becomes -1.
    - `positive`: the class that becomes +1.

    **Returns:**

    A `Dataset` with the `m` examples of these classes in their old order: `x` of shape
    `(m, ...)` and unchanged dtype, `y` float64 of shape `(m,)` with values -1.0, +1.0.

    **Raises:**

    - `ValueError`: a class is not present, the two are the same, or `x` and `y` differ
        in length.
    - `TypeError`: a class is not an integer.

    Examples:
        >>> import gflow
        >>> x, y = gflow.data.two_classes(*gflow.data.iris(), negative=1, positive=0)
        >>> x.shape, y[[0, -1]].tolist()
        ((100, 4), [1.0, -1.0])
    """
    x, y = _check_pair(x, y)
    negative, positive = operator.index(negative), operator.index(positive)
    if negative == positive:
        raise ValueError(f"The two classes must differ; both are {negative}.")
    for wanted in (negative, positive):
        if not np.any(y == wanted):
            raise ValueError(
                f"Class {wanted} is not present: y has {np.unique(y).tolist()}."
            )
    keep = (y == negative) | (y == positive)
    return Dataset(x[keep], np.where(y[keep] == positive, 1.0, -1.0))


def subset(
    x: ArrayLike,
    y: ArrayLike,
    n: SupportsIndex,
    seed: SupportsIndex,
    *,
    balanced: bool = False,
) -> Dataset:
    """Draw `n` examples at random, without replacement.

    With one seed, a smaller subset is the beginning of a larger one. So disjoint sets
    for training and validation are slices of one subset: draw `n_train + n_valid`
    examples and cut.

    **Arguments:**

    - `x`: examples, shape `(N, ...)`.
    - `y`: labels, shape `(N,)`.
    - `n`: how many examples to draw, from 1 to `N`.
    - `seed`: a nonnegative integer for `numpy.random.default_rng`. A seed gives the
        same examples on every platform (NumPy may change its streams in a release).
    - `balanced`: whether to draw the same number from each label. The labels then take
        turns, in increasing order, so that slices at multiples of the number of labels
        are balanced too.

    **Returns:**

    A `Dataset` with `x` of shape `(n, ...)` and `y` of shape `(n,)`, dtypes unchanged.

    **Raises:**

    - `ValueError`: `n` is too small or too large, `seed` is negative, or `x` and `y`
        differ in length; with `balanced`, `n` is not a multiple of the number of
        labels, or some label has too few examples.
    - `TypeError`: `n` or `seed` is not an integer.

    Examples:
        >>> import gflow
        >>> x, y = gflow.data.subset(*gflow.data.iris(), 6, seed=0, balanced=True)
        >>> x.shape, y.tolist()
        ((6, 4), [0, 1, 2, 0, 1, 2])
    """
    x, y = _check_pair(x, y)
    n = operator.index(n)
    if not 1 <= n <= len(x):
        raise ValueError(
            f"Cannot draw {n} of {len(x)} examples: choose n from 1 to {len(x)}."
        )
    # `default_rng(None)` would draw a different subset each time.
    rng = np.random.default_rng(operator.index(seed))
    if not balanced:
        chosen = rng.permutation(len(x))[:n]
        return Dataset(x[chosen], y[chosen])

    labels, counts = np.unique(y, return_counts=True)
    each, remainder = divmod(n, len(labels))
    if remainder:
        raise ValueError(
            f"A balanced subset of {len(labels)} labels needs a multiple of "
            f"{len(labels)} examples; {n} is not one."
        )
    if counts.min() < each:
        raise ValueError(
            f"Cannot draw {each} examples of each label: label "
            f"{labels[counts.argmin()]} has {counts.min()}."
        )
    columns = [rng.permutation(np.flatnonzero(y == label))[:each] for label in labels]
    chosen = np.stack(columns, axis=1).reshape(-1)
    return Dataset(x[chosen], y[chosen])


def standardise(
    x: ArrayLike,
    *,
    mean: ArrayLike | float | None = None,
    std: ArrayLike | float | None = None,
) -> np.ndarray:
    r"""Shift and scale each feature to mean 0 and standard deviation 1 over examples.

    $$z_{ij} = (x_{ij} - \mu_j) / \sigma_j, \qquad z_{ij} = 0
    \text{ where feature } j \text{ is constant.}$$

    Here $\sigma_j$ divides by the number of examples $n$, not by $n - 1$. A constant
    feature becomes 0 rather than NaN. Constant means $\sigma_j \le 10^{-11} |\mu_j|$,
    the rounding of a computed mean; it also holds for $\mu$ and $\sigma$ passed in, so
    a feature that was constant in training is 0 in testing whatever its value there.

    **Arguments:**

    - `x`: examples, shape `(n, ...)`; each entry after the first axis is a feature (of
        images, each pixel of each channel).
    - `mean`: $\mu$, of a shape that broadcasts to a single example. By default that of
        `x`.
    - `std`: $\sigma$, likewise.

    To treat a test set like its training set, pass the training set's
    `train.mean(axis=0)` and `train.std(axis=0)`, both in float64.

    **Returns:**

    The standardised examples in the shape of `x`, computed in float64 and returned in
    the dtype of `x` if that is floating, otherwise in float64.

    **Raises:**

    - `ValueError`: `x` has no examples or no example axis, `x`, `mean` or `std` has
        entries that are not finite, `std` is negative, or a shape does not fit.

    Examples:
        >>> import gflow
        >>> gflow.data.standardise([[1.0, 7.0], [3.0, 7.0]]).tolist()
        [[-1.0, 0.0], [1.0, 0.0]]
    """
    x = _check_examples(x)
    values = x.astype(np.float64)
    # Standard deviations do not depend on the origin. Measured from the first example,
    # those of constant features are exactly 0, however the mean is rounded.
    offsets = values - values[0]
    center = (
        values[0] + offsets.mean(axis=0)
        if mean is None
        else _check_statistic(mean, "mean", values)
    )
    scale = offsets.std(axis=0) if std is None else _check_statistic(std, "std", values)
    if np.any(scale < 0):
        raise ValueError("std must not be negative.")
    varies = scale > _CONSTANT * np.abs(center)
    values -= center
    values /= np.where(varies, scale, 1.0)
    np.copyto(values, 0.0, where=~varies)
    return values.astype(_floating(x), copy=False)


def unit_norm(x: ArrayLike) -> np.ndarray:
    """Scale each example to Euclidean norm 1.

    **Arguments:**

    - `x`: examples, shape `(n, ...)`; the norm is over all axes but the first.

    **Returns:**

    The scaled examples in the shape of `x`, computed in float64 and returned in the
    dtype of `x` if that is floating, otherwise in float64.

    **Raises:**

    - `ValueError`: an example is zero, `x` has no examples or no example axis, or `x`
        has entries that are not finite.

    Examples:
        >>> import gflow
        >>> gflow.data.unit_norm([[3.0, 4.0], [0.0, 2.0]]).tolist()
        [[0.6, 0.8], [0.0, 1.0]]
    """
    x = _check_examples(x)
    rows = x.astype(np.float64).reshape(len(x), -1)
    # Divide by the largest entry first: squares overflow above 1e154 and vanish below
    # 1e-162.
    largest = np.max(np.abs(rows), axis=1, keepdims=True, initial=0.0)
    if not np.all(largest > 0):
        raise ValueError(
            f"Example {int(np.argmin(largest))} is zero and cannot be scaled to norm 1."
        )
    rows = rows / largest
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.reshape(x.shape).astype(_floating(x))


def _check_pair(x: ArrayLike, y: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(x), np.asarray(y)
    if y.ndim != 1:
        raise ValueError(f"y must have one axis, but its shape is {y.shape}.")
    if x.ndim == 0 or len(x) != len(y):
        raise ValueError(
            "x and y must have the same length, but their shapes are "
            f"{x.shape} and {y.shape}."
        )
    return x, y


def _check_examples(x: ArrayLike) -> np.ndarray:
    x = np.asarray(x)
    if x.ndim == 0 or len(x) == 0:
        raise ValueError(f"x needs at least one example, but its shape is {x.shape}.")
    if not np.all(np.isfinite(x)):
        raise ValueError("x has entries that are infinite or NaN.")
    return x


def _check_statistic(value: ArrayLike | float, name: str, x: np.ndarray) -> np.ndarray:
    value = np.asarray(value, np.float64)
    if not np.all(np.isfinite(value)):
        raise ValueError(f"{name} has entries that are infinite or NaN.")
    try:
        return np.broadcast_to(value, x.shape[1:])
    except ValueError as error:
        raise ValueError(
            f"{name} of shape {value.shape} does not fit examples of shape "
            f"{x.shape[1:]}."
        ) from error


def _floating(x: np.ndarray) -> np.dtype:
    return x.dtype if np.issubdtype(x.dtype, np.floating) else np.dtype(np.float64)
