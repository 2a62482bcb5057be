"""Compressed rows: the same losses, orthogonal rows, less memory than a matrix per task."""

import numpy as np
import pytest
import torch

from companion import Tasks
from companion.losses import LogisticLoss, SquaredLoss
from companion.solvers import Problem
from companion.solvers.task_rows import TaskRows
from tests.oracles import convex
from tests.oracles.partitions import draw_groups, long_form

SIZES = {"tall": ((9, 14, 7), 5), "mixed": ((3, 11, 1, 6), 5), "fewer rows than features": ((3, 4, 2), 12)}


def prepared(name, reduction="mean", fit_intercept=True, seed=0):
    sizes, d = SIZES[name]
    blocks = draw_groups(seed, sizes, d, 2, 0.4, weighted=True)[1]
    problem = Problem.from_tasks(Tasks.from_long(*long_form(blocks)), SquaredLoss(), reduction, fit_intercept)
    return blocks, problem, TaskRows.of(problem)


@pytest.mark.parametrize("options", [{}, {"reduction": "sum", "fit_intercept": False}])
@pytest.mark.parametrize("name", SIZES)
def test_losses_are_those_of_the_data(name, options):
    blocks, problem, rows = prepared(name, **options)
    r = rows.A.shape[1]
    W = np.random.default_rng(1).normal(size=(r, len(blocks)))
    full = rows.original(W, problem.y)
    b = problem.original_intercepts(problem.at(full)).numpy()
    expected = [
        convex.data_term([block], full[:, [t]].numpy(), b[[t]], "squared", options.get("reduction", "mean"))
        for t, block in enumerate(blocks)
    ]
    np.testing.assert_allclose(rows.losses(W), expected, rtol=1e-11)
    np.testing.assert_allclose(rows.null_losses(), rows.losses(0 * W), rtol=1e-13)


@pytest.mark.parametrize("name", SIZES)
def test_rows_are_few_and_orthogonal(name):
    _, _, rows = prepared(name)
    sizes, d = SIZES[name]
    n = np.minimum(sizes, d)
    assert rows.A.shape == (n.sum(), min(d, n.sum())) and rows.n_tasks == len(sizes)
    np.testing.assert_array_equal(np.diff(rows.offsets), n)
    np.testing.assert_array_equal(rows.task, np.repeat(np.arange(len(sizes)), n))
    for t in range(len(sizes)):
        A = rows.A[rows.offsets[t] : rows.offsets[t + 1]]
        np.testing.assert_allclose(A @ A.T, np.diag(rows.squares[rows.task == t]), atol=1e-12)
    if name == "fewer rows than features":
        np.testing.assert_allclose(rows.basis.T @ rows.basis, np.eye(n.sum()), atol=1e-13)
    else:
        assert rows.basis is None
    seen = np.concatenate([tasks for tasks, _ in rows.blocks])
    assert sorted(seen) == list(range(len(sizes)))
    for tasks, index in rows.blocks:
        np.testing.assert_array_equal(rows.task[index], np.repeat(tasks[:, None], index.shape[1], axis=1))
        np.testing.assert_array_equal(index, rows.offsets[tasks][:, None] + np.arange(n[tasks[0]]))


@pytest.mark.parametrize("name", SIZES)
def test_ridge_in_closed_form(name):
    blocks, problem, rows = prepared(name)
    values, W = rows.ridge(0.3)
    full = rows.original(W, problem.y).numpy()
    for t, (X, y, s) in enumerate(blocks):
        v = s / s.sum()
        X, y = X - v @ X, y - v @ y
        w = np.linalg.solve((v[:, None] * X).T @ X + 0.6 * np.eye(X.shape[1]), X.T @ (v * y))
        np.testing.assert_allclose(full[:, t], w, rtol=1e-9, atol=1e-12)
        assert values[t] == pytest.approx(v @ (y - X @ w) ** 2 / 2 + 0.3 * w @ w, rel=1e-11)


@pytest.mark.parametrize("name", SIZES)
def test_the_ridge_gap_is_the_excess_over_the_minimum(name):
    """Exact for separate ridge regressions, whose curvature is that of the bound; also with a feature scaled up."""
    for scale in (1.0, 1e6):
        sizes, d = SIZES[name]
        blocks = draw_groups(3, sizes, d, 2, 0.4)[1]
        blocks[1][0][:, 0] *= scale
        problem = Problem.from_tasks(Tasks.from_long(*long_form(blocks)), SquaredLoss())
        rows = TaskRows.of(problem)
        best = rows.original(rows.ridge(0.2)[1], problem.y)
        step = torch.from_numpy(np.random.default_rng(2).normal(size=best.shape))
        step[0] /= scale
        slope = -problem.descent(problem.at(best + step)) + 0.4 * (best + step)
        objective = lambda W, problem=problem: problem.at(W).value + 0.2 * float((W**2).sum())
        excess = objective(best + step) - objective(best)
        assert rows.ridge_gap(slope, 0.2) == pytest.approx(excess, rel=1e-7)
        assert rows.ridge_gap(-problem.descent(problem.at(best)) + 0.4 * best, 0.2) < 1e-14 * problem.null_objective


def test_one_large_task_among_many_with_many_features():
    """Memory is that of the rows: the (T, d, d) arrays would hold 45 million numbers here."""
    rng = np.random.default_rng(0)
    X, task = rng.normal(size=(400, 1500)), np.repeat(np.arange(20), [20] * 19 + [20])
    rows = TaskRows.of(Problem.from_tasks(Tasks.from_long(X, X[:, 0], task), SquaredLoss()))
    assert sum(a.size for a in (rows.A, rows.b, rows.squares)) + rows.basis.numel() < 2 * X.size


def test_what_it_cannot_compress_is_refused():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(9, 3)), np.where(np.arange(9) % 2, 1.0, -1.0)
    tasks = Tasks.from_long(X, y, np.arange(9) // 5)
    for problem in (Problem.from_tasks(tasks, LogisticLoss()), Problem.from_tasks(tasks, SquaredLoss(), l2=0.1)):
        with pytest.raises(ValueError, match="TaskRows needs a squared loss"):
            TaskRows.of(problem)
