"""Means and graphs as estimators: closed forms, limits, graphs given in every form, odd data."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning

from companion import Tasks
from companion.linear import GraphRegularized, MeanRegularized, MeanRegularizedClassifier, Pooled, SingleTask
from companion.linear.baselines import SingleTaskClassifier
from companion.penalties import laplacian, path_graph

T, D = 5, 3
SIZES = (4, 9, 13, 6, 7)
TASK = np.repeat(list("abcde"), SIZES)


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(sum(SIZES), D)) + 2
    W = rng.normal(size=D) + 0.5 * rng.normal(size=(T, D))
    y = (X * W[np.repeat(np.arange(T), SIZES)]).sum(1) + rng.normal(size=len(X)) + 10
    return X, y


def closed_form(X, y, A, reduction):
    """Weights (T, d) with free intercepts: the data centred task by task, then one dense system."""
    H, c = np.kron(A, np.eye(D)), np.zeros(T * D)
    for t, id_ in enumerate("abcde"):
        rows = np.flatnonzero(id_ == TASK)
        Z, z = X[rows] - X[rows].mean(0), y[rows] - y[rows].mean()
        v = 1 / len(rows) if reduction == "mean" else 1.0
        block = slice(t * D, (t + 1) * D)
        H[block, block] += v * Z.T @ Z
        c[block] = v * Z.T @ z
    return np.linalg.solve(H, c).reshape(T, D)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_closed_forms(data, reduction):
    mean = MeanRegularized(0.3, 2.5, reduction=reduction, tol=1e-13).fit(*data, TASK)
    A = (0.3 + 2.5) * np.eye(T) - 2.5 / T
    np.testing.assert_allclose(mean.coef_, closed_form(*data, A, reduction), rtol=1e-9)
    np.testing.assert_allclose(mean.mean_, mean.coef_.mean(0), rtol=1e-12)
    weights = np.arange(25.0).reshape(T, T) % 6
    weights = np.triu(weights, 1) + np.triu(weights, 1).T
    weights[0, 2] = weights[2, 0] = -1.5
    A = 0.3 * np.eye(T) + 2.5 * laplacian(weights, tuple("abcde"), signed=True)
    for graph in (weights, sparse.csr_array(weights), torch.from_numpy(weights)):
        model = GraphRegularized(0.3, 2.5, graph, signed=True, reduction=reduction, tol=1e-13).fit(*data, TASK)
        np.testing.assert_allclose(model.coef_, closed_form(*data, A, reduction), rtol=1e-9)
    assert abs(model.dual_gap_) < 1e-11 and model.n_components_ == 1


def test_no_coupling_is_a_model_per_task_and_much_coupling_one_for_all(data):
    X, y = data
    alone = SingleTask(alpha=0.4).fit(X, y, TASK)
    np.testing.assert_allclose(MeanRegularized(0.4, 0.0).fit(X, y, TASK).coef_, alone.coef_, rtol=1e-9)
    free = GraphRegularized(0.4, 5.0, np.zeros((T, T))).fit(X, y, TASK)  # no edge at all
    np.testing.assert_allclose(free.coef_, alone.coef_, rtol=1e-9)
    assert free.n_components_ == T
    together = Pooled(alpha=0.4 * T, per_task_intercept=True).fit(X, y, TASK)
    for model in (MeanRegularized(0.4, 1e9), GraphRegularized(0.4, 1e8, path_graph(T))):
        np.testing.assert_allclose(model.fit(X, y, TASK).coef_, together.coef_, rtol=1e-6)
    labels = np.where(np.arange(len(y)) % 3 == 0, "no", "yes")
    one = MeanRegularizedClassifier(0.2, 0.0, tol=1e-12).fit(X, labels, TASK)
    np.testing.assert_allclose(one.coef_, SingleTaskClassifier(0.2, tol=1e-12).fit(X, labels, TASK).coef_, rtol=1e-5)


def test_parts_of_a_disconnected_graph_share_nothing(data):
    X, y = data
    graph = np.zeros((T, T))
    graph[0, 1] = graph[1, 0] = graph[2, 3] = graph[3, 2] = 1.0
    both = GraphRegularized(0.3, 4.0, graph).fit(X, y, TASK)
    assert both.n_components_ == 3
    for ids in ("ab", "cd", "e"):
        rows = np.isin(TASK, list(ids))
        positions = ["abcde".index(i) for i in ids]
        part = GraphRegularized(0.3, 4.0, graph[np.ix_(positions, positions)]).fit(X[rows], y[rows], TASK[rows])
        np.testing.assert_allclose(both.coef_[positions], part.coef_, rtol=1e-8)


def test_a_negative_edge_serves_opposite_tasks():
    """Tasks w and -w: the mean pulls both to zero, a negative edge lets each help the other."""
    rng = np.random.default_rng(1)
    w = rng.normal(size=8)
    pairs = [(X := rng.normal(size=(10, 8)), sign * X @ w + 0.5 * rng.normal(size=10)) for sign in (1, -1)]
    opposite = GraphRegularized(0.01, 100.0, [[0, -1], [-1, 0]], signed=True, fit_intercept=False)
    error = {}
    for name, model in (
        ("mean", MeanRegularized(0.01, 100.0, fit_intercept=False)),
        ("alone", SingleTask(alpha=0.01, fit_intercept=False)),
        ("opposite", opposite),
    ):
        error[name] = np.linalg.norm(model.fit(Tasks.from_list(pairs)).coef_ - np.stack([w, -w]))
    assert error["opposite"] < 0.8 * error["alone"] and error["alone"] < 0.5 * error["mean"]
    np.testing.assert_allclose(opposite.coef_[0], -opposite.coef_[1], atol=0.05)


def test_rows_of_the_graph_follow_the_sorted_ids(data):
    X, y = data
    names = {"a": "winter", "b": "autumn", "c": "spring", "d": "summer", "e": "all"}
    task = np.array([names[i] for i in TASK])
    ids = sorted(names.values())
    by_place = np.triu(np.arange(25.0).reshape(T, T), 1)
    by_place = by_place + by_place.T
    frame = pd.DataFrame(by_place, index=ids, columns=ids).sample(frac=1, random_state=0)
    a = GraphRegularized(0.3, 0.2, by_place).fit(X, y, task)
    b = GraphRegularized(0.3, 0.2, frame).fit(X, y, task)
    assert list(a.task_ids_) == ids
    np.testing.assert_allclose(a.coef_, b.coef_, rtol=1e-12)
    shuffled = by_place[::-1, ::-1]
    assert np.abs(GraphRegularized(0.3, 0.2, shuffled).fit(X, y, task).coef_ - a.coef_).max() > 1e-3


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (np.ones((4, 4)) - np.eye(4), r"graph must have shape \(5, 5\)"),
        (np.triu(np.ones((5, 5)), 1), "must be symmetric.*'a' and 'b'"),
        (np.eye(5) - 1, "weights >= 0; the smallest is -1"),
    ],
)
def test_bad_graphs(data, graph, message):
    with pytest.raises(ValueError, match=message):
        GraphRegularized(graph=graph).fit(*data, TASK)


@pytest.mark.parametrize("coupling", [-1.0, math.nan, math.inf])
def test_bad_coupling(data, coupling):
    for model in (MeanRegularized(coupling=coupling), GraphRegularized(coupling=coupling)):
        with pytest.raises(ValueError, match=r"coupling must be a finite number >= 0; got"):
            model.fit(*data, TASK)


def test_one_task_and_one_huge_task():
    rng = np.random.default_rng(2)
    X, y = rng.normal(size=(20_000, D)), rng.normal(size=20_000)
    task = np.full(20_000, 9)
    task[:6] = [0, 0, 0, 1, 1, 2]
    model = MeanRegularized(0.1, 1.0, reduction="sum").fit(X, y, task)
    assert model.coef_.shape == (4, D) and abs(model.dual_gap_) < 1e-8 * model.objective_
    alone = SingleTask(alpha=0.1).fit(X, y)
    for single in (MeanRegularized(0.1, 7.0), GraphRegularized(0.1, 7.0), GraphRegularized(0.1, 7.0, [[0]])):
        np.testing.assert_allclose(single.fit(X, y).coef_, alone.coef_, rtol=1e-9)


def test_too_few_iterations_are_told(data):
    with pytest.warns(ConvergenceWarning, match=r"MeanRegularized stopped after 2 iterations.*gap of .*; tol=1.0e-08"):
        MeanRegularized(0.001, 10.0, max_iter=2).fit(*data, TASK)


def test_many_features_and_many_tasks():
    """More features than rows, and a long sparse path: neither forms a matrix over all weights."""
    rng = np.random.default_rng(3)
    wide = Tasks.from_list([(rng.normal(size=(n, 700)), rng.normal(size=n)) for n in (12, 30, 8, 19, 5)])
    model = MeanRegularized(0.05, 1.0, tol=1e-10).fit(wide)
    assert abs(model.dual_gap_) < 1e-10 and model.n_iter_ < 200
    chain = Tasks.from_list([(rng.normal(size=(4, 2)), rng.normal(size=4)) for _ in range(3000)])
    model = GraphRegularized(0.05, 50.0, path_graph(3000)).fit(chain)
    assert sparse.issparse(model.laplacian_) and abs(model.dual_gap_) < 1e-7 * model.objective_
    steps = np.linalg.norm(np.diff(model.coef_, axis=0), axis=1).mean()
    assert steps < 0.2 * np.linalg.norm(model.coef_, axis=1).mean()
