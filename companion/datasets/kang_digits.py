"""The small digit problems of Kang, Grauman and Sha, on which linear multi-task models are compared."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat

from companion.datasets._base import Dataset
from companion.datasets._fetch import DataFile, fetch
from companion.tasks import Tasks

_URL = "https://raw.githubusercontent.com/tjanez/PyMTL/97dfc15be3769240f2099d036ce2b55b30a56f5f/data/"
FILES = {
    "mnist": DataFile(
        folder="kang_digits",
        name="split1_mnist_1000train.mat",
        sha256="164d20effee22b1df109588b37109890d648dbabd7bf7cb67c88f69e84cc4de8",
        size=1340068,
        url=_URL + "mnist_digits/split1_mnist_1000train.mat",
    ),
    "usps": DataFile(
        folder="kang_digits",
        name="split1_usps_1000train.mat",
        sha256="106c4157c08d5df9b4c1b713ddca65696e1b63aa6bc0b20d765597b6d890cda6",
        size=985867,
        url=_URL + "usps_digits/split1_usps_1000train.mat",
    ),
}


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class KangDigits(Dataset):
    """A small digit problem as ten binary tasks; see :func:`load_kang_digits`.

    Attributes
    ----------
    Y : (2000, 10) float64 array
        ``Y[i, t]`` is 1 if row i is the digit t, else 0.
    digit : (2000,) int64 array
        The digit 0..9 of each row.
    train, validation, test : (1000,), (500,), (500,) int64 arrays
        The published parts, as rows of X.
    """

    Y: NDArray[np.float64]
    digit: NDArray[np.int64]
    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]

    @property
    def tasks(self) -> Tasks:
        """Ten tasks, ids 0..9, on the 2000 common inputs."""
        return Tasks.shared(self.X, self.Y, ids=range(10))


def load_kang_digits(name: str) -> KangDigits:
    """2000 digits of MNIST or USPS in principal components: the split that papers on linear multi-task learning share.

    Parameters
    ----------
    name : {"mnist", "usps"}

    Returns
    -------
    KangDigits
        ``X (2000, 87)`` for MNIST, ``(2000, 64)`` for USPS; 1000 rows to train, 500 to validate, 500 to test.
        ``splits`` holds the pair of training rows and test rows.

    Raises
    ------
    DataMissingError, DataCorruptError
        From :func:`companion.datasets.fetch`.

    Notes
    -----
    Columns of X: ``component_1`` and so on, of falling variance. They are neither centred nor scaled, and not quite
    uncorrelated on these rows. The projection is not published, so there are no pictures.

    Traps

    * In the files the digit 0 has the label 10. Here it is 0 again.
    * MNIST has 87 dimensions and USPS 64; some texts have them the other way round.
    * Only this split is to be had. Papers average over several.
    * The USPS one is balanced over the digits: it was not drawn from the rows of :func:`load_usps`.

    Licence: none stated, hence not redistributed here; the files are downloaded on first use.

    To cite: Z. Kang, K. Grauman, F. Sha, "Learning with whom to share in multi-task feature learning", ICML 2011.
    """
    if name not in FILES:
        raise ValueError(f"name must be 'mnist' or 'usps'; got {name!r}")
    file = FILES[name]
    content = loadmat(fetch(file))
    parts = ("train", "valid", "test")
    X = np.concatenate([content[f"digit_{part}x"] for part in parts])
    digit = np.concatenate([content[f"digit_{part}y"].ravel() for part in parts]).astype(np.int64) % 10
    ends = np.cumsum([len(content[f"digit_{part}y"]) for part in parts])
    train, validation, test = np.split(np.arange(ends[-1], dtype=np.int64), ends[:-1])
    return KangDigits(
        X=np.ascontiguousarray(X, dtype=np.float64),
        Y=(digit[:, None] == np.arange(10)).astype(np.float64),
        digit=digit,
        train=train,
        validation=validation,
        test=test,
        feature_names=tuple(f"component_{j + 1}" for j in range(X.shape[1])),
        splits=((train, test),),
        sha256={file.name: file.sha256},
    )
