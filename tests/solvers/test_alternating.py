"""Alternating minimisation: half-steps are watched, histories fall, and the two half-steps are the best ones."""

import numpy as np
import pytest
import torch

from companion import Tasks
from companion.losses import LogisticLoss, SquaredLoss
from companion.solvers import Problem, alternate, best_metric, learn_features


def quartic(state):
    """Smooth, convex, and coupled: (x + y - 3)^2 + x^2 + 2 y^2."""
    x, y = state
    return (x + y - 3) ** 2 + x**2 + 2 * y**2


STEPS = [lambda s: ((3 - s[1]) / 2, s[1]), lambda s: (s[0], (3 - s[0]) / 3)]


def test_exact_half_steps_reach_the_minimum():
    history = alternate(STEPS, quartic, (10.0, -7.0), 1e-15, 200)
    # Stationarity: 2x + y = 3, x + 3y = 3.
    np.testing.assert_allclose(history.state, (6 / 5, 3 / 5), rtol=1e-6)
    assert history.n_iter < 200 and len(history.objective) == 1 + 2 * history.n_iter
    assert history.objective[0] == quartic((10.0, -7.0)) and history.objective[-1] == quartic(history.state)
    assert (np.diff(history.objective) <= 0).all()
    before, after = history.objective[-3], history.objective[-1]
    assert before - after <= 1e-15 * after < history.objective[-5] - before + 1e-15 * before


def test_it_stops_when_told_or_after_max_iter():
    seen = []
    history = alternate(STEPS, quartic, (10.0, -7.0), 0.0, 50, stop=lambda s: seen.append(s) or len(seen) == 4)
    assert history.n_iter == 4 and seen[-1] == history.state
    history = alternate(STEPS, quartic, (10.0, -7.0), -1.0, 3)
    assert history.n_iter == 3 and len(history.objective) == 7


@pytest.mark.parametrize("size", [1.0, 1e-3])
@pytest.mark.parametrize("broken", [0, 1])
def test_a_half_step_that_raises_the_objective_is_an_error(broken, size):
    steps = list(STEPS)
    steps[broken] = lambda s: (s[0] + size, s[1] - 2 * size)
    with pytest.raises(RuntimeError, match=rf"half-step {broken} of round \d+ raised the objective from .* to "):
        alternate(steps, quartic, (1.2, 0.6), 1e-10, 20)


def test_rounding_is_not_a_rise():
    values = iter([1.0, 1.0 + 1e-12, 1.0, 1.0, 1.0])
    assert alternate([lambda s: s], lambda s: next(values), 0.0, 1e-10, 1).n_iter == 1


def tasks_and_problem(fit_intercept=True, shared=False, reduction="mean"):
    rng = np.random.default_rng(0)
    if shared:
        X = rng.normal(size=(21, 5)) + 1
        tasks = Tasks.shared(X, X @ rng.normal(size=(5, 4)) + rng.normal(size=(21, 4)))
    else:
        X, task = rng.normal(size=(40, 5)) + 1, np.repeat(np.arange(4), [6, 14, 9, 11])
        tasks = Tasks.from_long(X, (X * rng.normal(size=(4, 5))[task]).sum(1) + rng.normal(size=40), task)
    return tasks, Problem.from_tasks(tasks, SquaredLoss(), reduction, fit_intercept)


@pytest.mark.parametrize("options", [{}, {"shared": True}, {"fit_intercept": False, "reduction": "sum"}])
def test_weights_are_ridge_regression_in_the_metric(options):
    """At the end W solves every task's normal equations with D, and D is the root of W W' + eps I."""
    tasks, problem = tasks_and_problem(**options)
    gamma, eps = 0.2, 1e-3
    history = learn_features(problem, gamma, eps, 1e-15, 2000)
    W, D = history.state.W.numpy(), history.state.D.numpy()
    for t in range(4):
        X, y = tasks[t]
        if options.get("fit_intercept", True):
            X, y = X - X.mean(0), y - y.mean()
        n = 1 if options.get("reduction") == "sum" else len(y)
        w = np.linalg.solve(X.T @ X / n + 2 * gamma * np.linalg.inv(D), X.T @ y / n)
        np.testing.assert_allclose(W[:, t], w, rtol=1e-5, atol=1e-7)
    values, Q = np.linalg.eigh(W @ W.T + eps * np.eye(5))
    root = (Q * np.sqrt(values)) @ Q.T
    np.testing.assert_allclose(D, root / np.trace(root), atol=1e-10)
    # The objective that is watched, at the end: F + gamma (sum of roots)^2.
    expected = problem.at(history.state.W).value + gamma * np.sqrt(values).sum() ** 2
    assert history.objective[-1] == pytest.approx(expected, rel=1e-9)
    falls = np.diff(history.objective)
    assert (falls <= 1e-12 * history.objective[0]).all() and falls[0] < 0 and falls[1] < 0
    assert len(history.objective) == 1 + 2 * history.n_iter


def test_the_best_metric_beats_any_other():
    rng = np.random.default_rng(1)
    for d, T in ((6, 3), (3, 5), (4, 4)):
        W = rng.normal(size=(d, T))
        for eps in (0.0, 0.1) if d <= T else (0.1,):
            D = best_metric(torch.from_numpy(W), eps).numpy()
            np.testing.assert_allclose(D, D.T, atol=1e-14)
            assert np.trace(D) == pytest.approx(1, rel=1e-13)
            cost = lambda M, eps=eps, W=W: np.trace(np.linalg.solve(M, W @ W.T + eps * np.eye(len(W))))
            s = np.sqrt(np.linalg.eigvalsh(W @ W.T) + eps)
            assert cost(D) == pytest.approx(s.sum() ** 2, rel=1e-9)
            for _ in range(50):
                B = D + 0.05 * rng.normal(size=(d, d))
                M = B @ B.T
                assert cost(M / np.trace(M)) >= cost(D) * (1 - 1e-12)
    np.testing.assert_array_equal(best_metric(torch.zeros(4, 2)), np.eye(4) / 4)


def test_low_rank_weights_have_a_metric_of_low_rank():
    w = torch.tensor([[3.0, 0.0, 4.0]], dtype=torch.float64).T @ torch.ones(1, 2, dtype=torch.float64)
    np.testing.assert_allclose(best_metric(w), np.outer([0.6, 0, 0.8], [0.6, 0, 0.8]), atol=1e-7)


def test_bad_arguments_are_refused():
    tasks, problem = tasks_and_problem()
    for gamma, eps in ((0.0, 1e-6), (0.1, 0.0), (-1.0, 1e-6)):
        with pytest.raises(ValueError, match="gamma and eps must be > 0; got "):
            learn_features(problem, gamma, eps)
    labels = tasks.with_targets([np.where(np.arange(n) % 2, 1.0, -1.0) for n in tasks.n_samples])
    with pytest.raises(ValueError, match="squared loss"):
        learn_features(Problem.from_tasks(labels, LogisticLoss()), 0.1)
