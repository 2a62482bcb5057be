"""Figures show the numbers they were given."""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest
from scipy.stats import binomtest

from companion.metrics import paired_difference
from companion.plotting import forest, gain_curve, image_grid, matrix, shrinkage, success_curve, unit_ball


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


def test_unit_ball_lies_where_the_norm_is_one(axes):
    unit_ball(axes, lambda points: 2 * np.abs(points[:, 0]) + np.abs(points[:, 1]))
    points = axes.lines[0].get_xydata()
    np.testing.assert_allclose(2 * np.abs(points[:, 0]) + np.abs(points[:, 1]), np.ones(len(points)), atol=1e-12)
    for corner in ([0.5, 0], [0, 1], [-0.5, 0], [0, -1]):
        assert np.abs(points - corner).sum(axis=1).min() < 1e-12


def test_shrinkage_draws_where_points_go_and_which_vanish(axes):
    def prox(points):  # the second coordinate is halved; what lies within 1.2 of the origin goes there
        return points * [1.0, 0.5] * (np.abs(points).max(axis=1, keepdims=True) > 1.2)

    shrinkage(axes, prox, reach=2.0)
    gone, arrows = axes.lines[0].get_xydata(), axes.collections[0]
    assert len(gone) + len(arrows.U) == 13 * 13
    assert len(gone) == 7 * 7  # coordinates -1, -2/3 ... 1
    np.testing.assert_allclose(arrows.U, np.zeros(len(arrows.U)), atol=1e-12)
    np.testing.assert_allclose(arrows.V, -arrows.get_offsets()[:, 1] / 2, atol=1e-12)


def test_success_curve_has_wilson_intervals(axes):
    """Against scipy's interval; all or no successes have a width, too."""
    share = np.array([0.0, 0.35, 0.8, 1.0])
    success_curve(axes, [1, 2, 3, 5], share, trials=20, label="a", linestyle="--")
    line, band = axes.lines[0], axes.collections[0].get_paths()[0].vertices
    np.testing.assert_allclose(line.get_xydata(), np.stack([[1, 2, 3, 5], share], axis=1))
    assert line.get_linestyle() == "--"
    for x, successes in zip([1, 2, 3, 5], 20 * share, strict=True):
        expected = binomtest(round(successes), 20).proportion_ci(method="wilson")
        found = band[band[:, 0] == x, 1]
        np.testing.assert_allclose([found.min(), found.max()], [expected.low, expected.high], atol=1e-6)
    with pytest.raises(ValueError, match=r"same shape; got \(2,\) and \(3,\)"):
        success_curve(axes, [1, 2], [0, 0, 1], trials=5)
