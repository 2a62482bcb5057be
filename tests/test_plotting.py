"""Figures show the numbers they were given."""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest

from companion.metrics import paired_difference
from companion.plotting import forest, gain_curve, image_grid, matrix


@pytest.fixture
def axes():
    figure, ax = plt.subplots()
    yield ax
    plt.close(figure)


@pytest.fixture
def differences():
    rng = np.random.default_rng(0)
    return [paired_difference(rng.normal(k, 1, 9), np.zeros(9)) for k in range(3)]


def test_gain_curve_draws_mean_interval_and_one_zero_line(axes, differences):
    gain_curve(axes, [1, 2, 5], differences, label="a")
    gain_curve(axes, [1, 2, 5], differences, label="b", percent=False)
    zero, first, second = axes.lines
    np.testing.assert_array_equal(zero.get_ydata(), [0, 0])
    np.testing.assert_allclose(first.get_ydata(), [100 * d.mean for d in differences])
    np.testing.assert_allclose(second.get_ydata(), [d.mean for d in differences])
    band = axes.collections[1].get_paths()[0].vertices[:, 1]
    assert band.min() == pytest.approx(min(d.low for d in differences))
    assert band.max() == pytest.approx(max(d.high for d in differences))
    with pytest.raises(ValueError, match="same length; got 2 and 3"):
        gain_curve(axes, [1, 2], differences)


def test_forest_puts_the_first_label_on_top(axes, differences):
    forest(axes, ["x", "y", "z"], differences)
    ticks = dict(zip([t.get_text() for t in axes.get_yticklabels()], axes.get_yticks(), strict=True))
    assert ticks["x"] > ticks["y"] > ticks["z"]
    points = axes.containers[0].lines[0]
    np.testing.assert_allclose(points.get_xdata(), [d.mean for d in differences])
    np.testing.assert_array_equal(points.get_ydata(), [2, 1, 0])
    segments = axes.containers[0].lines[2][0].get_segments()
    np.testing.assert_allclose([s[:, 0] for s in segments], [[d.low, d.high] for d in differences])
    with pytest.raises(ValueError, match="same length; got 1 and 3"):
        forest(axes, ["x"], differences)


def test_image_grid_shows_every_image_and_hides_empty_places():
    images = np.random.default_rng(0).random((5, 3, 4))
    figure = image_grid(images, titles=list("abcde"), columns=3)
    np.testing.assert_array_equal([ax.images[0].get_array() for ax in figure.axes[:5]], images)
    assert [ax.get_title() for ax in figure.axes] == ["a", "b", "c", "d", "e", ""]
    assert not figure.axes[5].axison
    plt.close(figure)
    with pytest.raises(ValueError, match="titles must have 5 entries"):
        image_grid(images, titles=["a"])
    with pytest.raises(ValueError, match=r"\(n, height, width\); got \(3, 4\)"):
        image_grid(images[0])


def test_matrix_has_symmetric_limits(axes):
    image = matrix(axes, [[1.0, -3.0], [0.0, 2.0], [0.5, 0.1]], "feature", "task")
    assert image.get_clim() == (-3.0, 3.0)
    np.testing.assert_array_equal(image.get_array(), [[1.0, -3.0], [0.0, 2.0], [0.5, 0.1]])
    with pytest.raises(ValueError, match="matrix"):
        matrix(axes, [1.0], "a", "b")


def test_matrix_takes_a_limit(axes):
    assert matrix(axes, [[1.0, -3.0]], "feature", "task", limit=5.0).get_clim() == (-5.0, 5.0)
