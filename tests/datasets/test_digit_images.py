"""MNIST, USPS and the small digit problems: small files of the same form, and the published ones where present."""

import gzip
import hashlib
from dataclasses import replace

import h5py
import numpy as np
import pytest
from scipy.io import savemat

from companion.datasets import kang_digits, load_kang_digits, load_mnist, load_usps, mnist, usps
from tests.needs import needs


def stored(folder, file, content):
    """The file with other bytes, where the loader will find it."""
    path = folder / file.folder / file.name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return replace(file, sha256=hashlib.sha256(content).hexdigest(), size=len(content))


def idx(array):
    sizes = b"".join(int(n).to_bytes(4, "big") for n in array.shape)
    return gzip.compress(bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes())


def test_idx_files_become_rows_of_ink(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, 3, 4)), rng.integers(0, 256, (2, 3, 4))
    digits = np.array([7, 0, 9, 1, 1]), np.array([3, 7])
    contents = [idx(images[0]), idx(digits[0]), idx(images[1]), idx(digits[1])]
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path))
    monkeypatch.setattr(
        mnist, "FILES", tuple(stored(tmp_path, f, c) for f, c in zip(mnist.FILES, contents, strict=True))
    )
    small = load_mnist()
    np.testing.assert_allclose(small.X, np.concatenate(images).reshape(7, 12) / 255, rtol=1e-7)
    assert small.X.dtype == np.float32 and small.digit.tolist() == [7, 0, 9, 1, 1, 3, 7]
    assert small.image_shape == (3, 4) and small.feature_names[5] == "pixel_1_1"
    ((train, test),) = small.splits
    assert train.tolist() == [0, 1, 2, 3, 4] and test.tolist() == [5, 6]
    np.testing.assert_array_equal(small.Y.argmax(1), small.digit)
    assert small.Y.sum() == 7 and small.tasks.n_tasks == 10 and len(small.sha256) == 4


def test_hdf5_groups_become_rows(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    pixels, digits = rng.random((6, 9)).astype(np.float32), np.array([4, 4, 0, 9, 2, 1], dtype=np.int32)
    with h5py.File(tmp_path / "made.h5", "w") as file:
        for part, rows in (("train", slice(0, 4)), ("test", slice(4, 6))):
            file[f"{part}/data"], file[f"{part}/target"] = pixels[rows], digits[rows]
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path))
    monkeypatch.setattr(usps, "DIGITS", stored(tmp_path, usps.DIGITS, (tmp_path / "made.h5").read_bytes()))
    small = load_usps()
    np.testing.assert_array_equal(small.X, pixels, strict=True)
    np.testing.assert_array_equal(small.digit, digits)
    assert small.image_shape == (3, 3) and small.splits[0][1].tolist() == [4, 5]


def test_ten_is_zero_in_the_small_problems(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    sizes = {"train": 5, "valid": 3, "test": 2}
    content = {f"digit_{part}x": rng.normal(size=(n, 4)) for part, n in sizes.items()}
    labels = {"train": [10, 1, 9, 2, 10], "valid": [3, 4, 5], "test": [10, 6]}
    content |= {f"digit_{part}y": np.array(y, dtype=np.uint8)[:, None] for part, y in labels.items()}
    savemat(tmp_path / "made.mat", content)
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path))
    file = stored(tmp_path, kang_digits.FILES["usps"], (tmp_path / "made.mat").read_bytes())
    monkeypatch.setattr(kang_digits, "FILES", {"usps": file})
    small = load_kang_digits("usps")
    assert small.digit.tolist() == [0, 1, 9, 2, 0, 3, 4, 5, 0, 6]
    np.testing.assert_array_equal(small.X, np.concatenate([content[f"digit_{part}x"] for part in sizes]))
    assert small.train.tolist() == [0, 1, 2, 3, 4] and small.validation.tolist() == [5, 6, 7]
    assert small.test.tolist() == [8, 9] and small.tasks.n_tasks == 10
    np.testing.assert_array_equal(small.Y.argmax(1), small.digit)
    with pytest.raises(ValueError, match="name must be 'mnist' or 'usps'; got 'digits'"):
        load_kang_digits("digits")


@needs(mnist.FILES[0])
def test_published_mnist():
    data = load_mnist()
    assert data.X.shape == (70000, 784) and data.X.min() == 0 and data.X.max() == 1
    ((train, test),) = data.splits
    counts = np.bincount(data.digit[train]).tolist()
    assert counts == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(data.digit[test]).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert (data.X[train].max(0) == 0).sum() == 67  # as the documentation says


@needs(usps.DIGITS)
def test_published_usps():
    data = load_usps()
    ((train, test),) = data.splits
    assert data.X.shape == (9298, 256) and data.X.dtype == np.float32
    assert np.bincount(data.digit[train]).tolist() == [1194, 1005, 731, 658, 652, 556, 664, 645, 542, 644]
    assert np.bincount(data.digit[test]).tolist() == [359, 264, 198, 166, 200, 160, 170, 147, 166, 177]
    # A one is narrower than a zero: the pictures are the right way round.
    wide = [data.X[train][data.digit[train] == k].mean(0).reshape(16, 16).mean(0) > 0.3 for k in (0, 1)]
    assert wide[0].sum() > wide[1].sum() > 0


@needs(kang_digits.FILES["mnist"])
@needs(kang_digits.FILES["usps"])
@pytest.mark.parametrize("name, d", [("mnist", 87), ("usps", 64)])
def test_published_small_problems(name, d):
    data = load_kang_digits(name)
    assert data.X.shape == (2000, d) and len(data.feature_names) == d
    assert [len(part) for part in (data.train, data.validation, data.test)] == [1000, 500, 500]
    counts = [95, 111, 111, 92, 113, 78, 90, 105, 96, 109], [94, 93, 99, 90, 107, 96, 102, 102, 101, 116]
    assert np.bincount(data.digit[data.train]).tolist() == counts[name == "usps"]
    assert (np.diff(data.X.var(0)[[0, d // 3, d - 1]]) < 0).all()  # components of falling variance
