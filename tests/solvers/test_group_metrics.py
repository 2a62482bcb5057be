"""Metrics of groups of tasks: closed forms, watched alternation, and the partitions that the search proposes."""

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score

from companion import Tasks
from companion.losses import SquaredLoss
from companion.solvers import Problem, best_metric, group_metrics, learn_features
from companion.solvers.group_metrics import (
    Grouping,
    GroupMetric,
    _starts,
    alternate_groups,
    search_groups,
    with_metrics,
)
from companion.solvers.partitions import random_labels, spread_seeds
from companion.solvers.task_rows import TaskRows
from tests.oracles.partitions import draw_groups, long_form

GAMMA = 0.05
SIZES = {"tall": ((9, 14, 7, 11, 8), 4), "mixed": ((3, 11, 1, 6, 4), 5), "wide": ((3, 4, 2, 5, 3), 23)}
each_size = pytest.mark.parametrize("name", SIZES)


def prepared(name, seed=0):
    sizes, d = SIZES[name]
    blocks = draw_groups(seed, sizes, d, 2, 0.3, multiples=True, weighted=True)[1]
    problem = Problem.from_tasks(Tasks.from_long(*long_form(blocks)), SquaredLoss())
    return blocks, problem, TaskRows.of(problem)


def dense(metric):
    D = (metric.U * (metric.roots - metric.floor)) @ metric.U.T + metric.floor * np.eye(len(metric.U))
    return D / metric.trace


@pytest.mark.parametrize("shape", [(6, 3), (3, 5), (4, 4), (5, 1), (4, 0)])
def test_the_metric_is_the_best_one(shape):
    W = np.random.default_rng(0).normal(size=shape)
    metric, eps = GroupMetric.of(W, 0.2), 0.2
    D = best_metric(torch.from_numpy(W), eps).numpy() if shape[1] else np.eye(4) / 4
    np.testing.assert_allclose(dense(metric), D, atol=1e-13)
    V = np.random.default_rng(1).normal(size=(shape[0], 7))
    np.testing.assert_allclose(metric.times(V), D @ V, atol=1e-13)
    np.testing.assert_allclose(metric.squares(V), np.diag(V.T @ np.linalg.inv(D) @ V), rtol=1e-11)
    assert metric.inverse_trace() == pytest.approx(np.trace(np.linalg.inv(D)), rel=1e-11)


@each_size
def test_ridge_in_the_metric_by_normal_equations(name):
    blocks, problem, rows = prepared(name)
    W = np.random.default_rng(1).normal(size=(rows.A.shape[1], 3))
    metric = GroupMetric.of(W, 0.1)
    costs, fitted = metric.ridge(rows, GAMMA)
    full = rows.original(fitted, problem.y).numpy()
    D = dense(metric) if rows.basis is None else rows.basis.numpy() @ dense(metric) @ rows.basis.numpy().T
    for t, (X, y, s) in enumerate(blocks):
        v = s / s.sum()
        X, y = X - v @ X, y - v @ y
        G, c = (v[:, None] * X).T @ X, X.T @ (v * y)
        w = np.linalg.solve(D @ G + 2 * GAMMA * np.eye(len(c)), D @ c)
        np.testing.assert_allclose(full[:, t], w, rtol=1e-8, atol=1e-10)
        penalty = GAMMA * w @ np.linalg.pinv(D, rcond=1e-10) @ w
        assert costs[t] == pytest.approx(v @ (y - X @ w) ** 2 / 2 + penalty, rel=1e-9)


@each_size
def test_every_half_step_lowers_the_objective(name):
    _, _, rows = prepared(name)
    for seed, eps in enumerate((1.0, 0.1, 1e-3)):
        labels = np.random.default_rng(seed).permutation(5) % 3
        start = with_metrics(Grouping(labels, rows.ridge(GAMMA)[1], (None,) * 3), eps)
        history = alternate_groups(rows, GAMMA, eps, start, 1e-9, 500)
        falls, state = np.diff(history.objective), history.state
        assert (falls <= 1e-12 * history.objective[0]).all() and falls[0] < 0 and falls[1] < 0
        # What is watched, written down from the definition, at the start and at the end.
        for value, at in ((history.objective[0], start), (history.objective[-1], state)):
            penalty = sum(
                np.trace(np.linalg.solve(dense(D), W @ W.T + eps * np.eye(len(W))))
                for D, W in zip(at.metrics, (at.W[:, at.labels == g] for g in range(3)), strict=True)
            )
            assert value == pytest.approx(rows.losses(at.W).sum() + GAMMA * penalty, rel=1e-10)
        costs = np.stack([D.ridge(rows, GAMMA)[0] for D in state.metrics])
        np.testing.assert_allclose(costs[state.labels, np.arange(5)], costs.min(0), rtol=1e-9)


@each_size
def test_one_group_is_feature_learning(name):
    _, problem, rows = prepared(name)
    eps = 0.05
    start = with_metrics(Grouping(np.zeros(5, dtype=np.int64), rows.ridge(GAMMA)[1], (None,)), eps)
    history = alternate_groups(rows, GAMMA, eps, start, 1e-14, 3000)
    if rows.basis is None:  # else eps I has another dimension
        expected = learn_features(problem, GAMMA, eps, 1e-14, 3000)
        assert history.objective[-1] == pytest.approx(expected.objective[-1], rel=1e-10)
        np.testing.assert_allclose(rows.original(history.state.W, problem.y), expected.state.W, atol=1e-5)
    assert not history.state.labels.any()


def test_the_search_finds_planted_groups():
    """Tasks along one of three vectors, backwards as well as forwards, fewer rows than features."""
    labels, blocks = draw_groups(1, (6, 7, 8, 9) * 6, 10, 3, 0.0, multiples=True)
    rows = TaskRows.of(Problem.from_tasks(Tasks.from_long(*long_form(blocks)), SquaredLoss()))
    proposals = search_groups(rows, 0.01, 3, 10, 0)
    assert adjusted_rand_score(labels, proposals[0]) == 1 and len(proposals) <= 3
    assert len({tuple(p) for p in proposals}) == len(proposals)
    assert all(p[0] == 0 and p.max() <= 2 for p in proposals)
    assert [p.tolist() for p in proposals] == [p.tolist() for p in search_groups(rows, 0.01, 3, 10, 0)]
    first = search_groups(rows, 0.01, 3, 1, 0, labels)  # where the truth is the only start
    assert len(first) == 1 and adjusted_rand_score(labels, first[0]) == 1


def test_more_starts_propose_more_and_better(monkeypatch):
    _, _, rows = prepared("mixed", 2)
    many, few = search_groups(rows, GAMMA, 3, 12, 0), search_groups(rows, GAMMA, 3, 1, 0)
    assert len(few) == 1 < len(many)
    assert len({search_groups(rows, GAMMA, 3, 1, seed)[0].tobytes() for seed in range(6)}) > 1
    assert len(search_groups(rows, GAMMA, 3, 1, 0, np.array([0, 0, 0, 0, 0]))) == 1  # two groups are empty at first
    monkeypatch.setattr(group_metrics, "_MOST_TASKS", 0)  # three starts are followed, of different partitions
    assert len(search_groups(rows, GAMMA, 3, 12, 0)) == 3


@pytest.mark.parametrize("given", [None, np.array([2, 0, 1, 1, 0])])
def test_starts_are_seeds_and_random_partitions_in_turn(given):
    """Seeds are drawn by what a task costs in their metrics beyond what it costs alone, and take what is cheapest."""
    _, _, rows = prepared("mixed", 1)
    alone, W = rows.ridge(GAMMA)
    costs = np.stack([GroupMetric.of(W[:, [s]], 0.3).ridge(rows, GAMMA)[0] for s in range(5)])
    order, rng = rows.null_losses().argsort(), np.random.default_rng(3)
    starts = list(_starts(rows, GAMMA, 3, 40, 0.3, np.random.default_rng(3), given))
    assert len(starts) == 40
    for number, start in enumerate(starts):
        if number == 0 and given is not None:
            labels = given
        elif number % 2:
            labels = random_labels(order, 3, rng)
        else:
            labels = costs[spread_seeds(lambda s: costs[s] - alone, order, 3, rng)].argmin(0)
        np.testing.assert_array_equal(start.labels, labels)
        for g, metric in enumerate(start.metrics):
            np.testing.assert_allclose(dense(metric), dense(GroupMetric.of(W[:, labels == g], 0.3)), atol=1e-13)


def test_nothing_to_search():
    blocks, _, rows = prepared("tall")
    np.testing.assert_array_equal(search_groups(rows, GAMMA, 1, 5, 0), [[0] * 5])
    np.testing.assert_array_equal(search_groups(rows, GAMMA, 5, 5, 0), [np.arange(5)])
    constant = Tasks.from_list([(X, np.ones(len(y))) for X, y, _ in blocks])
    flat = TaskRows.of(Problem.from_tasks(constant, SquaredLoss()))
    np.testing.assert_array_equal(search_groups(flat, GAMMA, 2, 5, 0), [[0] * 5])
