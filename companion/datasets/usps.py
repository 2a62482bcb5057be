"""USPS: ten one-vs-rest tasks on handwritten digits from envelopes."""

from __future__ import annotations

import h5py
import numpy as np

from companion.datasets._fetch import DataFile, fetch
from companion.datasets.digits import Digits

DIGITS = DataFile(
    folder="usps",
    name="usps.h5",
    sha256="734f88c541104a956d88be2c95d03b4a463ffd74ccc2ba9c80841fb98e3fcb36",
    size=2913522,
    url="https://raw.githubusercontent.com/niuers/Learning-From-Data-A-Short-Course/"
    "879a698b960e5867f7c2b11f8938fa89c3d21839/data/usps.h5",
)


def load_usps() -> Digits:
    """Handwritten digits of 16 x 16 pixels, 7291 to train and 2007 to test, as ten one-vs-rest tasks.

    Digits from the envelopes of the US Postal Service, slant and size made even.

    Returns
    -------
    Digits
        ``X (9298, 256)`` in float32, from 0 (paper) to 1 (ink), ``Y (9298, 10)``, ``digit (9298,)``, and in ``splits``
        the published pair of training rows (0..7290) and test rows.

    Raises
    ------
    DataMissingError, DataCorruptError
        From :func:`companion.datasets.fetch`.

    Notes
    -----
    Columns of X: ``pixel_r_c`` in row r and column c. The values are those of "ZIP code" in *The Elements of
    Statistical Learning*, from [-1, 1] to [0, 1].

    Traps

    * About one label in ten is 1: a constant answer is right for 90 % of a task's rows. Report the error of the
      ten-class decision, too.
    * Training and test images come from different collections, and the test part is the harder one.
    * The digits are not equally frequent: 1194 zeros and 542 eights to train on.
    * Two more data sets have this name. The one of the LIBSVM pages has the same rows, labels plus one and other
      pixels; Roweis's has 1100 images of every digit. Results for one are not results for another.

    Licence: no formal one, hence not redistributed here; the file is downloaded on first use (2.9 MB).

    To cite: Y. Le Cun et al., "Handwritten digit recognition with a back-propagation network", Advances in Neural
    Information Processing Systems 2, 1990, 396-404.
    """
    with h5py.File(fetch(DIGITS)) as file:
        X = np.concatenate([file[part]["data"][:] for part in ("train", "test")])
        digit = np.concatenate([file[part]["target"][:] for part in ("train", "test")])
        n_train = len(file["train"]["target"])
    side = round(X.shape[1] ** 0.5)
    return Digits.from_images(
        X=X.astype(np.float32),
        digit=digit.astype(np.int64),
        image_shape=(side, side),
        sha256={DIGITS.name: DIGITS.sha256},
        n_train=n_train,
    )
