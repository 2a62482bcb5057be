"""Digits as ten tasks, against scikit-learn's own loader."""

import hashlib

import numpy as np
from sklearn.datasets import load_digits

from companion.datasets import load_digits_tasks


def test_ten_tasks_on_the_images_of_scikit_learn():
    data, bunch = load_digits_tasks(), load_digits()
    np.testing.assert_array_equal(data.X, bunch.data, strict=True)
    np.testing.assert_array_equal(data.digit, bunch.target)
    for digit in range(10):
        np.testing.assert_array_equal(data.Y[:, digit], np.where(bunch.target == digit, 1.0, 0.0), strict=True)
    np.testing.assert_array_equal(data.X.reshape(-1, *data.image_shape), bunch.images)
    assert data.splits == ()
    assert np.sum(data.X.std(axis=0) == 0) == 3


def test_pixel_names_are_row_then_column():
    data = load_digits_tasks()
    np.testing.assert_array_equal(data.X[:, data.feature_names.index("pixel_2_5")], data.X.reshape(-1, 8, 8)[:, 2, 5])


def test_tasks_share_the_images():
    data = load_digits_tasks()
    assert (data.tasks.is_shared, data.tasks.ids, data.tasks.n_features) == (True, tuple(range(10)), 64)
    np.testing.assert_array_equal(data.tasks[3][1], data.Y[:, 3])


def test_sha256_is_that_of_pixels_and_digits():
    bunch = load_digits()
    expected = hashlib.sha256(bytes(bunch.data.astype(int).ravel().tolist()) + bytes(bunch.target.tolist()))
    assert load_digits_tasks().sha256 == {"scikit-learn digits": expected.hexdigest()}
