"""MNIST: ten one-vs-rest tasks on 70 000 images of handwritten digits."""

from __future__ import annotations

import gzip

import numpy as np
from numpy.typing import NDArray

from companion.datasets._fetch import DataFile, fetch
from companion.datasets.digits import Digits

_URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"


def _file(name: str, size: int, sha256: str) -> DataFile:
    return DataFile("mnist", name, sha256, size, _URL + name)


#: Images and labels of the training part, then those of the test part.
FILES = (
    _file("train-images-idx3-ubyte.gz", 9912422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
    _file("train-labels-idx1-ubyte.gz", 28881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
    _file("t10k-images-idx3-ubyte.gz", 1648877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
    _file("t10k-labels-idx1-ubyte.gz", 4542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
)


def load_mnist() -> Digits:
    """Handwritten digits of 28 x 28 pixels, 60 000 to train and 10 000 to test, as ten one-vs-rest tasks.

    Returns
    -------
    Digits
        ``X (70000, 784)`` in float32, from 0 (paper) to 1 (ink), ``Y (70000, 10)``, ``digit (70000,)``, and in
        ``splits`` the published pair of training rows (0..59999) and test rows.

    Raises
    ------
    DataMissingError, DataCorruptError
        From :func:`companion.datasets.fetch`.

    Notes
    -----
    Columns of X: ``pixel_r_c`` in row r and column c.

    Traps

    * About one label in ten is 1: a constant answer is right for 90 % of a task's rows. Report the error of the
      ten-class decision, too.
    * 67 of the 784 pixels are 0 in every training image: dividing by a column's standard deviation divides by zero.
    * The first half of the test images is said to be easier than the second, which others wrote: shuffle before taking
      a part.
    * Training and test images are by different writers; a random split of all of them puts a hand on both sides.

    Licence: none on the original page; hence not redistributed here, but downloaded on first use (11.6 MB).

    To cite: Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-based learning applied to document recognition",
    Proceedings of the IEEE 86(11), 1998, 2278-2324.
    """
    train_images, train_digits, test_images, test_digits = (_read_idx(file) for file in FILES)
    images = np.concatenate([train_images, test_images])
    n_train, shape = len(train_images), images.shape[1:]
    return Digits.from_images(
        X=images.reshape(len(images), -1).astype(np.float32) / np.float32(255),
        digit=np.concatenate([train_digits, test_digits]).astype(np.int64),
        image_shape=(int(shape[0]), int(shape[1])),
        sha256={file.name: file.sha256 for file in FILES},
        n_train=n_train,
    )


def _read_idx(file: DataFile) -> NDArray[np.uint8]:
    """The array in an idx file: two zero bytes, type 8 (unsigned byte), number of axes, sizes, values."""
    with gzip.open(fetch(file)) as stream:
        content = stream.read()
    n_axes = content[3]
    sizes = np.frombuffer(content, dtype=">u4", count=n_axes, offset=4)
    return np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * n_axes).reshape(sizes.astype(int))
