"""Digits: ten one-vs-rest tasks on the images that come with scikit-learn."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from companion.datasets._base import Dataset
from companion.tasks import Tasks


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Digits(Dataset):
    """Digits as ten binary tasks; see :func:`load_digits_tasks`, and :func:`load_mnist` and :func:`load_usps`.

    Attributes
    ----------
    Y : (n, 10) float64 array
        ``Y[i, t]`` is 1 if image i shows the digit t, else 0.
    digit : (n,) int64 array
        The digit 0..9 of each image: ``Y`` with one number per row.
    image_shape : (int, int)
        ``X[i].reshape(image_shape)`` is the picture.
    """

    Y: NDArray[np.float64]
    digit: NDArray[np.int64]
    image_shape: tuple[int, int]

    @property
    def tasks(self) -> Tasks:
        """Ten tasks, ids 0..9, on the common inputs."""
        return Tasks.shared(self.X, self.Y, ids=range(10))

    @classmethod
    def from_images(
        cls,
        X: NDArray[np.floating],
        digit: NDArray[np.int64],
        image_shape: tuple[int, int],
        sha256: Mapping[str, str],
        n_train: int | None = None,
    ) -> Digits:
        """From pixels ``(n, d)`` and digits ``(n,)``; the first ``n_train`` rows are the published training part."""
        rows = np.arange(len(X), dtype=np.int64)
        height, width = image_shape
        return cls(
            X=X,
            Y=(digit[:, None] == np.arange(10)).astype(np.float64),
            digit=digit,
            image_shape=image_shape,
            feature_names=tuple(f"pixel_{row}_{column}" for row in range(height) for column in range(width)),
            sha256=sha256,
            splits=() if n_train is None else ((rows[:n_train], rows[n_train:]),),
        )


def load_digits_tasks() -> Digits:
    """Handwritten digits of 8 x 8 pixels as ten one-vs-rest tasks: is it a 0, is it a 1, and so on.

    The images are part of scikit-learn, so that nothing is downloaded: this is the data set of all examples
    that must run offline.

    Returns
    -------
    Digits
        ``X (1797, 64)``, ``Y (1797, 10)``, ``digit (1797,)``.

    Notes
    -----
    Columns of X: ``pixel_r_c`` in row r and column c, whole numbers 0 (paper) to 16 (ink) stored as float64.

    Traps

    * About one label in ten is 1: a constant answer is right for 90 % of a task's rows. Report the error of
      the ten-class decision (largest score) beside the binary errors.
    * The pixels are not scaled, and three of them (at the border) are 0 in every image: dividing by a
      column's standard deviation divides by zero there.
    * All tasks share their inputs and each row has exactly one positive label, so the tasks are dependent.
    * The images are the work of 13 writers, and no image names its own: a random split puts a hand on both
      sides.

    ``sha256`` is that of the pixels and the digits as unsigned bytes: equal in every version that holds the
    same images.

    Licence and origin: the test part of "Optical Recognition of Handwritten Digits", UCI Machine Learning
    Repository (CC BY 4.0), as distributed with scikit-learn. To cite: E. Alpaydin, C. Kaynak, 1998,
    https://doi.org/10.24432/C50P49.
    """
    X, digit = load_digits(return_X_y=True)
    digit = digit.astype(np.int64)
    pixels_and_digits = X.astype(np.uint8).tobytes() + digit.astype(np.uint8).tobytes()
    return Digits.from_images(
        X=np.ascontiguousarray(X),  # comes as a view of a wider table
        digit=digit,
        image_shape=(8, 8),
        sha256={"scikit-learn digits": hashlib.sha256(pixels_and_digits).hexdigest()},
    )
