"""Starts of searches over partitions, and labels that say nothing about how they were found."""

import numpy as np
import pytest

from companion.solvers.partitions import by_appearance, random_labels, spread_seeds


def test_labels_by_appearance():
    np.testing.assert_array_equal(by_appearance(np.array([2, 2, 0, 5, 0, 2, 1])), [0, 0, 1, 2, 1, 0, 3])
    np.testing.assert_array_equal(by_appearance(np.array([0, 1, 1, 2])), [0, 1, 1, 2])
    assert by_appearance(np.array([3, 1])).dtype == np.int64


@pytest.mark.parametrize("T, k", [(7, 3), (5, 5), (4, 1)])
def test_random_labels_are_balanced_and_follow_the_order_given(T, k):
    order = np.random.default_rng(1).permutation(T)
    labels = random_labels(order, k, np.random.default_rng(0))
    sizes = np.bincount(labels, minlength=k)
    assert sizes.min() >= T // k and sizes.max() <= -(-T // k)
    plain = random_labels(np.arange(T), k, np.random.default_rng(0))
    np.testing.assert_array_equal(labels[order], plain)  # the same draw, dealt out along the order
    draws = {random_labels(order, k, np.random.default_rng(s)).tobytes() for s in range(20)}
    assert len(draws) > 1 or k == 1


def test_seeds_are_drawn_in_proportion_to_their_cost():
    """With the first seed fixed by a single costless task, the second follows the costs 0, 1, 3, 6."""
    points = np.array([0.0, 1.0, 3.0, 6.0])
    cost = lambda s: np.abs(points - points[s])
    drawn = np.zeros((4, 4))
    rng = np.random.default_rng(0)
    for _ in range(4000):
        first, second = spread_seeds(cost, np.arange(4), 2, rng)
        drawn[first, second] += 1
    assert (drawn.sum(1) > 850).all() and drawn.sum() == 4000  # the first one uniformly
    expected = np.abs(points[:, None] - points)
    np.testing.assert_allclose(drawn / drawn.sum(1)[:, None], expected / expected.sum(1)[:, None], atol=0.05)


def test_seeds_differ_follow_the_order_and_stop_when_nobody_pays():
    points = np.random.default_rng(3).normal(size=(9, 2))
    cost = lambda s: ((points - points[s]) ** 2).sum(1)
    order = np.random.default_rng(4).permutation(9)
    seeds = spread_seeds(cost, order, 9, np.random.default_rng(5))
    assert sorted(seeds) == list(range(9))
    renamed = points[order]
    same = spread_seeds(lambda s: ((renamed - renamed[s]) ** 2).sum(1), np.arange(9), 5, np.random.default_rng(5))
    np.testing.assert_array_equal(order[same], seeds[:5])
    groups = np.array([0, 0, 1, 1, 1])
    few = spread_seeds(lambda s: (groups != groups[s]).astype(float), np.arange(5), 4, np.random.default_rng(0))
    assert len(few) == 2 and groups[few[0]] != groups[few[1]]
    everybody_pays = lambda s: np.ones(5)  # the seeds themselves too
    assert sorted(spread_seeds(everybody_pays, np.arange(5), 5, np.random.default_rng(0))) == list(range(5))
    negative = lambda s: np.full(5, -1e-17)  # rounding
    assert len(spread_seeds(negative, np.arange(5), 3, np.random.default_rng(0))) == 1
