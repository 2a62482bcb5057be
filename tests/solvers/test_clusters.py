"""Hard clusters read out of a relation: planted ones, every order of the tasks, brute force, odd relations."""

import itertools

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score

from companion.solvers import cluster_labels
from tests.oracles.clustered import averaging, random_relation

PLANTED = np.array([0, 1, 1, 2, 0, 2, 1, 0])


def spread(K, labels):
    """K-means objective in the geometry of K: squared distances to the means of the clusters."""
    return float(np.trace(K) - np.trace(averaging(labels) @ K))


@pytest.mark.parametrize("factor", [1e-5, 1.0, 1e6])
@pytest.mark.parametrize("shift", [0.0, 0.4, 30.0])
def test_projections_on_clusters_are_read_exactly(shift, factor):
    """Any multiple of them, and any multiple of the identity beside them."""
    K = factor * (averaging(PLANTED) + shift * np.eye(8))
    for relation in (K, torch.from_numpy(K), K - factor / 8):  # the last without the mean of all
        labels = cluster_labels(relation, 3)
        np.testing.assert_array_equal(labels, PLANTED)
        assert labels.dtype == np.int64
    np.testing.assert_array_equal(cluster_labels(K.astype(np.float32), 3), PLANTED)


def test_labels_count_up_from_the_first_task():
    order = np.array([3, 1, 6, 0, 7, 2, 5, 4])
    np.testing.assert_array_equal(cluster_labels(averaging(PLANTED[order]), 3), [0, 1, 1, 2, 2, 1, 0, 2])


@pytest.mark.parametrize("k", [2, 3, 5])
def test_order_of_tasks_only_renumbers(k):
    rng = np.random.default_rng(0)
    for _ in range(20):
        K, order = random_relation(rng, 12, 3) + 0.1 * random_relation(rng, 12, 7), rng.permutation(12)
        labels = cluster_labels(K, k)
        assert len(np.unique(labels)) == k
        assert adjusted_rand_score(labels[order], cluster_labels(K[np.ix_(order, order)], k)) == 1.0


def test_nearly_the_best_of_all_partitions():
    """Brute force over all ways to put 8 tasks into 3 clusters: what Lloyd's iterations stop at is local."""
    rng = np.random.default_rng(1)
    every = [np.array((0, *p)) for p in itertools.product(range(3), repeat=7) if len({0, *p}) == 3]
    ratios = []
    for _ in range(7):
        W = rng.normal(size=(2, 3))[:, PLANTED] + 0.35 * rng.normal(size=(2, 8))
        K = W.T @ W
        best = min(spread(K, labels) for labels in every)
        ratios.append(spread(K, cluster_labels(K, 3)) / best)
    assert min(ratios) >= 1 - 1e-9
    assert np.median(ratios) == pytest.approx(1.0)
    assert max(ratios) < 1.3


def test_weights_of_tasks_in_clear_groups():
    rng = np.random.default_rng(2)
    W = 5 * rng.normal(size=(4, 3))[:, PLANTED] + 0.1 * rng.normal(size=(4, 8))
    np.testing.assert_array_equal(cluster_labels(W.T @ W, 3), PLANTED)


def test_tasks_that_do_not_differ_share_a_label():
    np.testing.assert_array_equal(cluster_labels(averaging(PLANTED), 5), PLANTED)  # three kinds of tasks, not five
    W = np.random.default_rng(3).normal(size=(6, 3))[:, PLANTED]
    np.testing.assert_array_equal(cluster_labels(W.T @ W, 6), PLANTED)
    W = torch.from_numpy(W * (1 + 1e-7 * np.random.default_rng(4).normal(size=(6, 8)))).float()
    np.testing.assert_array_equal(cluster_labels(W.T @ W, 6), PLANTED)
    for alike in (np.eye(5), np.zeros((5, 5)), np.ones((5, 5)) + 2 * np.eye(5)):
        np.testing.assert_array_equal(cluster_labels(alike, 3), 0)


def test_ties_still_make_as_many_clusters():
    """Four kinds of tasks, all equally far apart, in three clusters."""
    labels = cluster_labels(averaging(np.arange(8) % 4), 3)
    assert sorted(np.bincount(labels)) == [2, 2, 4]


@pytest.mark.parametrize("T", [1, 2, 5])
def test_one_cluster_and_one_per_task(T):
    K = random_relation(np.random.default_rng(4), T, 1)
    np.testing.assert_array_equal(cluster_labels(K, T), np.arange(T))
    np.testing.assert_array_equal(cluster_labels(K, 1), np.zeros(T) if T > 1 else [0])


@pytest.mark.parametrize(
    ("relation", "n_clusters", "message"),
    [
        (np.eye(4), 0, "n_clusters must lie between 1 and the number of tasks, 4; got 0"),
        (np.eye(4), 5, "n_clusters must lie between 1 and the number of tasks, 4; got 5"),
        (np.ones((3, 4)), 2, r"finite \(T, T\) matrix, got shape \(3, 4\)"),
        (np.ones(3), 2, r"finite \(T, T\) matrix, got shape \(3,\)"),
        (np.full((3, 3), np.nan), 2, r"finite \(T, T\) matrix"),
        (np.triu(np.ones((3, 3))), 2, "must be symmetric; entries differ from their mirror images by up to 1.0e"),
    ],
)
def test_bad_input(relation, n_clusters, message):
    with pytest.raises(ValueError, match=message):
        cluster_labels(relation, n_clusters)
