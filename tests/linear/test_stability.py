"""Stability of clusters: what is drawn, what is counted, and that it tells structure from noise."""

import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.metrics import adjusted_rand_score

from companion import Tasks
from companion.linear import ClusteredMTL, ClusteredMTLClassifier, SingleTask, cluster_stability

PLANTED = np.array([0, 1, 1, 0, 2, 2, 1])
SIZES = (14, 30, 9, 21, 17, 12, 1)


class Recorder(BaseEstimator):
    """Keeps the tasks it was fitted on, and finds the clusters that it is told to find, one after the other."""

    def __init__(self, answers, seen):
        self.answers = answers
        self.seen = seen

    def __sklearn_clone__(self):
        return self

    def fit(self, tasks):
        self.labels_ = np.array(self.answers[len(self.seen) % len(self.answers)])
        self.seen.append(tasks)
        return self


class ClassRecorder(ClassifierMixin, Recorder):
    pass


def tasks_of(sizes, seed=0, labels=False):
    rng = np.random.default_rng(seed)
    pairs = []
    for t, n in enumerate(sizes):
        y = rng.normal(size=n) if not labels else np.where(np.arange(n) < 2, 1.0, -1.0)
        pairs.append((100 * t + np.arange(n)[:, None] + np.zeros((n, 2)), y))
    return Tasks.from_list(pairs, ids=[f"task {t}" for t in range(len(sizes))])


def test_bootstrap_draws_rows_within_their_task():
    tasks, seen = tasks_of(SIZES), []
    cluster_stability(Recorder([PLANTED], seen), tasks, n_resamples=40)
    assert len(seen) == 41
    counts = np.zeros((7, 30))
    for drawn in seen[1:]:
        np.testing.assert_array_equal(drawn.total_weight, SIZES)  # as many rows as there were
        for t, (X, y) in enumerate(drawn):
            rows = (X[:, 0] - 100 * t).astype(int)
            np.testing.assert_array_equal(y, tasks[t][1][rows])
            counts[t, rows] += drawn.weights(t).numpy()
    for t, n in enumerate(SIZES):  # 40 on average, and not always the same
        assert abs(counts[t, :n].mean() - 40) < 1e-9
        assert n == 1 or (counts[t, :n].min() > 10 and counts[t, :n].std() > 1)
    assert all(float(drawn.weights(6)[0]) == 1 for drawn in seen)


def test_classes_are_drawn_by_themselves():
    tasks, seen = tasks_of((5, 9, 30), labels=True), []
    cluster_stability(ClassRecorder([[0, 1, 0]], seen), tasks, n_resamples=30)
    for drawn in seen:
        for t in range(3):
            _, y = drawn.tensors(t)
            assert float(drawn.weights(t)[y > 0].sum()) == 2
    seen.clear()
    cluster_stability(Recorder([[0, 1, 0]], seen), tasks, n_resamples=30)  # numbers are not classes
    assert len({float(drawn.weights(2)[drawn.tensors(2)[1] > 0].sum()) for drawn in seen}) > 2


def test_weights_are_kept():
    rng = np.random.default_rng(1)
    X, weight = np.arange(12.0)[:, None], rng.uniform(0.5, 2, 12)
    tasks, seen = Tasks.from_long(X, X[:, 0], np.arange(12) % 2, weight), []
    cluster_stability(Recorder([[0, 1]], seen), tasks, n_resamples=5)
    for drawn in seen:
        for t in range(2):
            ratio = drawn.weights(t).numpy() / weight[drawn.tensors(t)[0][:, 0].numpy().astype(int)]
            np.testing.assert_allclose(ratio, ratio.round(), atol=1e-12)
            assert ratio.sum() == pytest.approx(6)


def test_counts_and_scores_by_hand():
    answers = [[0, 0, 1, 1], [0, 1, 0, 1], [0, 0, 1, 1], [0, 0, 0, 1], [0, 0, 1, 1]]
    found = cluster_stability(Recorder(answers, []), tasks_of((4, 5, 6, 7)), n_resamples=4)
    np.testing.assert_array_equal(found.labels, [0, 0, 1, 1])
    together = [[1, 0.75, 0.5, 0], [0.75, 1, 0.25, 0.25], [0.5, 0.25, 1, 0.5], [0, 0.25, 0.5, 1]]
    np.testing.assert_array_equal(found.co_assignment, together)
    expected = [adjusted_rand_score(answers[0], answer) for answer in answers[1:]]
    np.testing.assert_allclose(found.scores, expected)
    assert found.scores[1] == found.scores[3] == 1 and found.score == pytest.approx(np.mean(expected))


def planted(spread, loss="squared", seed=0):
    rng = np.random.default_rng(seed)
    task = np.repeat(np.arange(7), 40)
    W = rng.normal(size=(3, 5))[PLANTED] if spread == "clusters" else np.ones((7, 5))
    X = rng.normal(size=(280, 5))
    y = (X * W[task]).sum(1) + rng.normal(size=280)
    return Tasks.from_long(X, y if loss == "squared" else (y > 0).astype(float), task)


def test_clusters_are_stable_and_their_absence_shows():
    model = ClusteredMTL(3, 1.0, 0.1)
    clear = cluster_stability(model, planted("clusters"), n_resamples=10)
    np.testing.assert_array_equal(clear.labels, PLANTED)
    np.testing.assert_array_equal(clear.co_assignment, np.equal.outer(PLANTED, PLANTED))
    assert clear.score == 1.0
    assert not hasattr(model, "labels_"), "the model itself was fitted"
    split = cluster_stability(model, planted("alike"), n_resamples=10)
    assert split.score < 0.4


def test_same_seed_same_answer():
    model, tasks = ClusteredMTL(3, 1.0, 0.1), planted("alike")
    a, b, c = (cluster_stability(model, tasks, 6, seed) for seed in (0, np.random.RandomState(0), 1))
    np.testing.assert_array_equal(a.co_assignment, b.co_assignment)
    assert a.score == b.score
    assert not np.array_equal(a.scores, c.scores) or not np.array_equal(a.co_assignment, c.co_assignment)


def test_classifiers_shared_inputs_and_torch():
    logistic = cluster_stability(ClusteredMTLClassifier(3, 0.1, 0.005), planted("clusters", "logistic"), n_resamples=3)
    assert logistic.score > 0.5
    rng = np.random.default_rng(5)
    X, W = rng.normal(size=(50, 4)), rng.normal(size=(4, 2))[:, [0, 1, 1, 0, 1]]
    Y = X @ W + 0.1 * rng.normal(size=(50, 5))
    Y[3, 2] = np.nan
    for tasks in (Tasks.shared(X, Y), Tasks.shared(torch.from_numpy(X).float(), torch.from_numpy(Y))):
        found = cluster_stability(ClusteredMTL(2, 1.0, 0.1), tasks, n_resamples=3)
        np.testing.assert_array_equal(found.labels, [0, 1, 1, 0, 1])
        assert found.score == 1.0


def test_bad_input():
    tasks = planted("clusters")
    with pytest.raises(TypeError, match="tasks must be a Tasks object; got ndarray"):
        cluster_stability(ClusteredMTL(), np.ones((3, 2)))
    with pytest.raises(ValueError, match="n_resamples must be at least 1; got 0"):
        cluster_stability(ClusteredMTL(), tasks, 0)
    with pytest.raises(TypeError, match="labels_; SingleTask has none"):
        cluster_stability(SingleTask(), tasks)
