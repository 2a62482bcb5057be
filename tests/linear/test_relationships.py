"""Task relationships: the joint problem in weights and covariance by cvxpy, limits, and what the covariance says."""

import warnings

import cvxpy as cp
import numpy as np
import pytest

from companion import Tasks
from companion.linear import ConvexFeatureLearning, SingleTask, TaskRelationship


@pytest.fixture
def tasks():
    rng = np.random.default_rng(0)
    return Tasks.from_list([(rng.normal(size=(n, 3)), rng.normal(size=n)) for n in (6, 9, 4, 7, 5)])


def joint(tasks, lambda1, lambda2, fit_intercept, omega=None):
    """Optimal value over W, intercepts and, where none is given, the covariance: a semidefinite program."""
    d, T = tasks.n_features, tasks.n_tasks
    W, b = cp.Variable((d, T)), cp.Variable(T)
    loss = sum(
        cp.sum_squares(y - X @ W[:, t] - (b[t] if fit_intercept else 0)) / (2 * len(y))
        for t, (X, y) in enumerate(tasks)
    )
    ridge = lambda1 / 2 * cp.sum_squares(W)
    if omega is None:
        omega = cp.Variable((T, T), symmetric=True)
        constraints = [cp.trace(omega) == 1, omega >> 0]
        relation = sum(cp.matrix_frac(W[j], omega) for j in range(d))
    else:
        constraints, relation = [], cp.sum_squares(np.linalg.inv(np.linalg.cholesky(omega)) @ W.T)
    problem = cp.Problem(cp.Minimize(loss + ridge + lambda2 / 2 * relation), constraints)
    # "Solution may be inaccurate" only says that 1e-10 was out of reach; it is compared to 1e-7.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-10, tol_gap_rel=1e-10, tol_feas=1e-10)
    return problem.value


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize(("lambda1", "lambda2"), [(0.0, 0.2), (0.3, 0.1), (0.05, 1.5)])
def test_objective_is_that_of_the_semidefinite_program(tasks, lambda1, lambda2, fit_intercept):
    model = TaskRelationship(lambda1, lambda2, fit_intercept=fit_intercept, tol=1e-11).fit(tasks)
    assert model.objective_ == pytest.approx(joint(tasks, lambda1, lambda2, fit_intercept), rel=1e-7)
    # The covariance that is handed out belongs to these weights: with it fixed the optimum is the same.
    nearly = model.covariance_ + 1e-9 * np.eye(5)
    assert joint(tasks, lambda1, lambda2, fit_intercept, nearly) == pytest.approx(model.objective_, rel=1e-5)


def test_no_other_covariance_is_better(tasks):
    model = TaskRelationship(0.1, 0.4, tol=1e-10).fit(tasks)
    W, rng = model.coef_.T, np.random.default_rng(1)
    values = np.linalg.svd(W, compute_uv=False)
    for _ in range(200):
        root = rng.normal(size=(5, 5)) * rng.uniform(0.1, 1, size=5)
        omega = root @ root.T
        omega /= np.trace(omega)
        assert np.trace(W @ np.linalg.solve(omega, W.T)) >= values.sum() ** 2 * (1 - 1e-9)
    np.testing.assert_allclose(model.covariance_, model.covariance_.T, atol=1e-12)
    assert np.trace(model.covariance_) == pytest.approx(1.0)
    root = model.covariance_ * values.sum()  # (W'W)^(1/2)
    np.testing.assert_allclose(root @ root, W.T @ W, atol=1e-8)


def test_without_ridge_it_is_feature_learning_and_with_one_task_ridge(tasks):
    features = ConvexFeatureLearning(0.15, tol=1e-12).fit(tasks)
    model = TaskRelationship(0.0, 0.3, tol=1e-12).fit(tasks)
    np.testing.assert_allclose(model.coef_, features.coef_, atol=1e-6)
    assert model.objective_ == pytest.approx(features.objective_, rel=1e-10)
    X, y = tasks[1]
    one = TaskRelationship(0.2, 0.3, tol=1e-13).fit(X, y)
    np.testing.assert_allclose(one.coef_, SingleTask(alpha=0.5).fit(X, y).coef_, rtol=1e-5)
    np.testing.assert_allclose(one.covariance_, [[1.0]])


def test_correlations_have_signs():
    """Two like tasks, their opposite, and one without a signal."""
    rng = np.random.default_rng(2)
    w, other = rng.normal(size=4), rng.normal(size=4)
    other -= other @ w / (w @ w) * w
    weights = [w, w, -w, other]
    pairs = [(X := rng.normal(size=(200, 4)), X @ v + 0.1 * rng.normal(size=200)) for v in weights]
    model = TaskRelationship(0.0, 0.01).fit(Tasks.from_list(pairs))
    assert model.correlation_[0, 1] > 0.95 and model.correlation_[0, 2] < -0.95
    assert abs(model.correlation_[0, 3]) < 0.1
    np.testing.assert_allclose(np.diag(model.correlation_), 1.0)
    flat = TaskRelationship().fit(Tasks.from_list([(X, np.full(200, 3.0)) for X, _ in pairs]))
    np.testing.assert_array_equal(flat.correlation_, np.eye(4))
    np.testing.assert_allclose(flat.covariance_, np.eye(4) / 4)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"lambda1": -0.1}, "lambda1 must be a finite number >= 0; got -0.1"),
        ({"lambda1": np.nan}, "lambda1 must be a finite number >= 0; got nan"),
        ({"lambda2": 0.0}, "lambda2 must be a finite number > 0; got 0.0"),
        ({"lambda2": np.inf}, "lambda2 must be a finite number > 0; got inf"),
    ],
)
def test_bad_parameters(tasks, parameters, message):
    with pytest.raises(ValueError, match=message):
        TaskRelationship(**parameters).fit(tasks)
