"""Figures show the numbers they were given."""

from itertools import pairwise

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest
from scipy.stats import binomtest

from companion.metrics import paired_difference
from companion.plotting import (
    COLOURS,
    forest,
    gain_curve,
    image_grid,
    matrix,
    shrinkage,
    success_curve,
    task_graph,
    task_places,
    unit_ball,
)


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


def test_places_of_a_path_lie_on_a_line_in_order():
    """The shortest ways along a path are its distances on a line, which the plane can match exactly."""
    order = np.array([3, 0, 4, 1, 5, 2])
    path = np.zeros((6, 6))
    for k, (s, t) in enumerate(pairwise(order)):
        path[s, t] = path[t, s] = (-1) ** k  # the sign does not matter
    along, across = task_places(path)[order].T
    np.testing.assert_allclose(across, np.zeros(6), atol=5e-3)  # what is left of a start that keeps dots apart
    np.testing.assert_allclose(np.abs(np.diff(along)), np.full(5, 0.4), atol=1e-4)


def test_weak_edges_are_long():
    along, _ = task_places([[0.0, 1.0, 0.0], [1.0, 0.0, 0.25], [0.0, 0.25, 0.0]]).T
    assert abs(along[2] - along[1]) == pytest.approx(4 * abs(along[1] - along[0]), rel=1e-3)


def test_places_keep_groups_together_and_apart_from_each_other():
    groups = np.array([0, 1, 0, 1, 1, 0, 1])
    weights = np.where(groups[:, None] == groups, -0.8, 0.02)
    np.fill_diagonal(weights, 7.0)
    places = task_places(weights, least=0.1)
    distance = np.linalg.norm(places[:, None] - places, axis=2)
    same = groups[:, None] == groups
    assert distance[same].max() < 0.8 * distance[~same].min()
    assert distance[~np.eye(7, dtype=bool)].min() > 0.1  # no two dots on one spot
    np.testing.assert_allclose([places.mean(axis=0).max(), np.abs(places).max()], [0, 1], atol=1e-12)
    np.testing.assert_array_equal(places, task_places(weights, least=0.1))


@pytest.mark.parametrize("T", [1, 2, 5])
def test_places_of_unrelated_tasks_are_apart(T):
    places = task_places(np.eye(T))
    assert places.shape == (T, 2) and np.isfinite(places).all()
    assert T == 1 or np.linalg.norm(places[:, None] - places, axis=2)[~np.eye(T, dtype=bool)].min() > 0.5


def test_task_graph_draws_signed_edges_above_a_part_of_the_largest(axes):
    weights = np.array([[9.0, 2.0, -1.0], [2.0, 9.0, 0.3], [-1.0, 0.3, 9.0]])
    places = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    task_graph(axes, weights, groups=[1, 0, 1], names=["a", "b", "c"], least=0.2, places=places)
    positive, negative, dots = axes.collections
    np.testing.assert_array_equal(positive.get_segments(), [places[[0, 1]]])
    np.testing.assert_array_equal(negative.get_segments(), [places[[0, 2]]])
    assert positive.get_linewidths()[0] == pytest.approx(2 * negative.get_linewidths()[0])
    assert positive.get_linestyles()[0][1] is None and negative.get_linestyles()[0][1] is not None
    np.testing.assert_array_equal(dots.get_offsets(), places)
    np.testing.assert_allclose(dots.get_facecolors(), matplotlib.colors.to_rgba_array([COLOURS[k] for k in (1, 0, 1)]))
    assert [t.get_text() for t in axes.texts] == ["a", "b", "c"]
    assert axes.get_xlim()[0] < 0 and axes.get_ylim()[1] > 2


def test_task_graph_without_relations_is_dots(axes):
    task_graph(axes, np.eye(4))
    (dots,) = axes.collections
    assert len(dots.get_offsets()) == 4


@pytest.mark.parametrize(
    ("weights", "options", "message"),
    [
        (np.ones((2, 3)), {}, r"finite \(T, T\) matrix; got shape \(2, 3\)"),
        (np.full((2, 2), np.nan), {}, "finite"),
        ([[0.0, 1.0], [2.0, 0.0]], {}, "symmetric"),
        (np.eye(3), {"names": ["a"]}, "names must have 3 entries, one per task; got 1"),
        (np.eye(3), {"groups": [0, 1]}, "groups must have 3 entries, one per task; got 2"),
        (np.eye(3), {"places": np.zeros((2, 2))}, r"places must have shape \(3, 2\); got \(2, 2\)"),
    ],
)
def test_task_graph_refuses(axes, weights, options, message):
    with pytest.raises(ValueError, match=message):
        task_graph(axes, weights, **options)
