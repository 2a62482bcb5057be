"""Coupled ridge regression against the dense linear system, in every layout, with every preconditioner."""

import importlib

import numpy as np
import pytest
import torch

from companion import Tasks
from companion.losses import LogisticLoss, SquaredLoss
from companion.penalties import GraphDifference, MeanDeviation, laplacian, path_graph
from companion.solvers import Problem, minimise, proximal_gradient, task_ridge

module = importlib.import_module("companion.solvers.task_ridge")  # the function has the same name
T, D = 4, 6
SIZES = (3, 11, 8, 5)


def draw(layout, d=D, seed=0):
    rng = np.random.default_rng(seed)
    if layout in ("shared", "missing"):
        X, Y = rng.normal(size=(13, d)) + 1, rng.normal(size=(13, T))
        if layout == "missing":
            Y[rng.random(Y.shape) < 0.25] = np.nan
        return Tasks.shared(X, Y)
    X = rng.normal(size=(sum(SIZES), d)) + 1
    task = np.repeat(np.arange(T), SIZES)
    weight = rng.uniform(0.2, 3, len(task)) if layout == "weighted" else None
    return Tasks.from_long(X, rng.normal(size=len(task)), task, weight)


def dense_solution(tasks, A, reduction, fit_intercept):
    """Solve for all weights and, where they are free, all intercepts at once."""
    d = tasks.n_features
    size = T * d + (T if fit_intercept else 0)
    H, c = np.zeros((size, size)), np.zeros(size)
    H[: T * d, : T * d] = np.kron(A, np.eye(d))
    for t, (X, y) in enumerate(tasks):
        v = tasks.weights(t).numpy()
        v = v / v.sum() if reduction == "mean" else v
        rows = list(range(t * d, (t + 1) * d)) + ([T * d + t] if fit_intercept else [])
        Z = np.column_stack([X, np.ones(len(y))]) if fit_intercept else X
        H[np.ix_(rows, rows)] += Z.T @ (v[:, None] * Z)
        c[rows] += Z.T @ (v * y)
    return np.linalg.solve(H, c)[: T * d].reshape(T, d).T


def penalties():
    graph = laplacian(path_graph(T), range(T))
    mean = (0.2 + 3.0) * np.eye(T) - 3.0 / T
    return {
        "mean": (MeanDeviation(0.2, 3.0), mean),
        "graph": (GraphDifference(0.2, 3.0, graph), 0.2 * np.eye(T) + 3.0 * graph.toarray()),
    }


@pytest.mark.parametrize("kind", ["mean", "graph"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("layout", ["ragged", "weighted", "shared", "missing"])
def test_matches_the_dense_system(layout, fit_intercept, reduction, kind):
    penalty, A = penalties()[kind]
    tasks = draw(layout)
    problem = Problem.from_tasks(tasks, SquaredLoss(), reduction, fit_intercept)
    W, n_iter = task_ridge(problem, penalty, 1e-20, 1000)
    np.testing.assert_allclose(W.numpy(), dense_solution(tasks, A, reduction, fit_intercept), rtol=1e-9, atol=1e-10)
    assert 0 < n_iter < 200
    again, n_iter = task_ridge(problem, penalty, 1e-14, 1000, W)
    assert n_iter == 0 and torch.equal(again, W)


@pytest.mark.parametrize("d", [D, 40])
@pytest.mark.parametrize("layout", ["ragged", "weighted", "shared"])
def test_without_coupling_one_step_solves_it(layout, d, monkeypatch):
    """Then the blocks are the system; with free intercepts they would be only nearly so."""
    monkeypatch.setattr(module, "_FEW_NUMBERS", 1)
    problem = Problem.from_tasks(draw(layout, d), SquaredLoss(), "sum")
    W, n_iter = task_ridge(problem, MeanDeviation(0.2, 0.0), 1e-12, 100)
    assert n_iter == 1 and bool(W.any())


@pytest.mark.parametrize("blocks", ["_wide_blocks", "_tall_blocks", "_scaling"])
@pytest.mark.parametrize("layout", ["ragged", "missing"])
def test_every_preconditioner_inverts_the_blocks_or_their_diagonals(blocks, layout):
    problem = Problem.from_tasks(draw(layout), SquaredLoss(), "sum", False)
    shift = torch.tensor([0.3, 0.5, 0.7, 1.1], dtype=torch.float64)
    R = torch.from_numpy(np.random.default_rng(1).normal(size=(D, T)))
    found = getattr(module, blocks)(problem, shift)(R)
    for t, (X, v) in enumerate(problem.rows.blocks(problem.v)):
        H = (X.T @ (v[:, None] * X)).numpy() + float(shift[t]) * np.eye(D)
        H = np.diag(np.diag(H)) if blocks == "_scaling" else H
        np.testing.assert_allclose(found[:, t], np.linalg.solve(H, R[:, t]), rtol=1e-9)


@pytest.mark.parametrize(
    ("d", "few", "most", "expected"),
    [
        (6, 1 << 21, 1 << 27, "_wide_blocks"),
        (40, 1 << 21, 1 << 27, "_wide_blocks"),
        (40, 100, 1 << 27, "_tall_blocks"),
        (6, 1, 100, "_scaling"),
    ],
)
def test_sizes_decide_how_blocks_are_inverted(monkeypatch, d, few, most, expected):
    """Every choice ends at the same weights."""
    called = []
    for name in ("_wide_blocks", "_tall_blocks", "_scaling"):
        original = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, f=original, n=name: called.append(n) or f(*a))
    monkeypatch.setattr(module, "_FEW_NUMBERS", few)
    monkeypatch.setattr(module, "_MOST_NUMBERS", most)
    penalty, A = penalties()["mean"]
    tasks = draw("ragged", d)
    W, _ = task_ridge(Problem.from_tasks(tasks, SquaredLoss(), "sum", True), penalty, 1e-24, 1000)
    assert called == [expected]
    np.testing.assert_allclose(W.numpy(), dense_solution(tasks, A, "sum", True), rtol=1e-8, atol=1e-9)


def test_the_residual_is_the_gap():
    """Stopping early, the gap certified from the data is the one conjugate gradients stopped on."""
    penalty = penalties()["mean"][0]
    problem = Problem.from_tasks(draw("ragged"), SquaredLoss(), "sum")
    for gap in (1e5, 1e3, 1e-1):  # a millionth of it is aimed at
        W, n_iter = task_ridge(problem, penalty, gap, 1000)
        R = -problem.gradient(W) - penalty.times(W)
        certified = problem.certify(penalty, problem.at(W)).gap
        assert certified == pytest.approx(float(penalty.conjugate(R)), rel=1e-6, abs=1e-13)
        assert 0 <= certified <= 1e-6 * gap
        assert n_iter < 20
    few, n_few = task_ridge(problem, penalty, 1e-30, 2)
    assert n_few == 2 and problem.certify(penalty, problem.at(few)).gap > 1e-6


def test_out_of_reach_it_stops_where_rounding_does(monkeypatch):
    penalty = penalties()["graph"][0]
    problem = Problem.from_tasks(draw("ragged"), SquaredLoss(), "sum")
    monkeypatch.setattr(module, "_BEYOND", 0.0)
    W, n_iter = task_ridge(problem, penalty, 1e-12, 10_000)
    assert n_iter <= 150
    assert float(penalty.conjugate(-problem.gradient(W) - penalty.times(W))) <= 1e-20


@pytest.mark.parametrize("layout", ["ragged", "weighted", "missing"])
@pytest.mark.parametrize("kind", ["mean", "graph"])
def test_logistic_loss_ends_where_fista_ends(layout, kind):
    penalty = penalties()[kind][0]
    tasks = draw(layout)
    tasks = tasks.with_targets([np.where(np.arange(len(y)) % 3 == 0, 1.0, -1.0) for _, y in tasks])
    problem = Problem.from_tasks(tasks, LogisticLoss(), "mean", True)
    fast = minimise(problem, penalty, 1e-12, 100)
    slow = proximal_gradient(problem, penalty, 1e-11 * problem.null_objective, 100_000)
    assert abs(fast.certificate.gap) <= 1e-12 * problem.null_objective
    assert fast.n_iter < 12 < slow.n_iter
    torch.testing.assert_close(fast.point.W, slow.point.W, rtol=1e-4, atol=1e-6)


def test_a_constant_target_needs_no_iteration():
    tasks = draw("ragged").with_targets([np.full(n, 2.0) for n in SIZES])
    W, n_iter = task_ridge(Problem.from_tasks(tasks, SquaredLoss()), penalties()["mean"][0], 0.0, 10)
    assert n_iter == 0 and not W.any()


@pytest.mark.parametrize("loss", [SquaredLoss(), LogisticLoss()], ids=["squared", "logistic"])
def test_a_solution_is_where_the_next_search_starts(loss):
    penalty = penalties()["mean"][0]
    tasks = draw("ragged").with_targets([np.where(np.arange(n) % 3 == 0, 1.0, -1.0) for n in SIZES])
    problem = Problem.from_tasks(tasks, loss)
    cold = minimise(problem, penalty, 1e-8, 100)
    warm = minimise(problem, penalty, 1e-8, 100, cold.point)
    assert warm.n_iter <= 1 < cold.n_iter
