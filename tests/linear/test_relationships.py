"""The covariance of tasks that is learned with them: a joint problem over weights and covariance, its special cases."""

import warnings

import numpy as np
import pytest
import torch

from companion import Tasks
from companion.linear import ConvexFeatureLearning, TaskRelationship
from companion.linear.relationships import correlation
from tests.oracles import convex as oracle

T, D, SIZES = 4, 6, (12, 3, 9, 8)


def draw(sizes=SIZES, d=D, seed=0):
    """Blocks (X_t, y_t, s_t) of tasks along one direction, every other one against it."""
    rng = np.random.default_rng(seed)
    common, blocks = rng.normal(size=d), []
    for t, n in enumerate(sizes):
        X = rng.normal(size=(n, d)) * (1 + 0.2 * t) + t
        w = (-1) ** t * common + 0.3 * rng.normal(size=d)
        blocks.append((X, X @ w + rng.normal(size=n) + 3 * t, rng.uniform(0.3, 2.5, n)))
    return blocks


def long_form(blocks, weighted=True):
    X, y, s = (np.concatenate([block[i] for block in blocks]) for i in range(3))
    task = np.repeat(np.arange(len(blocks)), [len(block[1]) for block in blocks])
    return (X, y, task, s) if weighted else (X, y, task)


def joint_problem(blocks, lambda1, lambda2, reduction="mean", fit_intercept=True):
    """Optimal value, W, b and Omega of the semidefinite program; ``tr Z`` bounds ``tr W Omega^-1 W'`` from above."""
    import cvxpy as cp

    d, n_tasks = blocks[0][0].shape[1], len(blocks)
    W, b, Z = cp.Variable((d, n_tasks)), cp.Variable(n_tasks), cp.Variable((d, d), symmetric=True)
    Omega = cp.Variable((n_tasks, n_tasks), symmetric=True)
    value = lambda1 / 2 * cp.sum_squares(W) + lambda2 / 2 * cp.trace(Z)
    for t, ((X, y, _), v) in enumerate(zip(blocks, oracle.row_weights(blocks, reduction), strict=True)):
        residual = y - X @ W[:, t] - (b[t] if fit_intercept else 0)
        value += cp.sum_squares(cp.multiply(np.sqrt(v), residual)) / 2
    joint = cp.Problem(cp.Minimize(value), [cp.bmat([[Omega, W.T], [W, Z]]) >> 0, cp.trace(Omega) == 1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "may be inaccurate": 1e-11 was out of reach
        joint.solve(solver=cp.CLARABEL, tol_gap_abs=1e-11, tol_gap_rel=1e-11, tol_feas=1e-11)
    return float(joint.value), W.value, b.value, Omega.value


def objective(blocks, W, b, Omega, lambda1, lambda2, reduction="mean"):
    """The objective in W and Omega, from its formula, where Omega may be singular and the rows of W in its span."""
    term = lambda2 / 2 * np.trace(W @ np.linalg.pinv(Omega, rcond=1e-9, hermitian=True) @ W.T)
    return oracle.data_term(blocks, W, b, "squared", reduction, lambda1) + term


@pytest.mark.parametrize(
    ("lambda1", "lambda2", "options"),
    [
        (0.3, 0.2, {}),
        (0.0, 0.5, {}),
        (2.0, 0.7, {"reduction": "sum"}),
        (0.1, 0.4, {"fit_intercept": False}),
        (5.0, 50.0, {}),
    ],
)
def test_matches_the_semidefinite_program_over_weights_and_covariance(lambda1, lambda2, options):
    blocks = draw()
    model = TaskRelationship(lambda1, lambda2, tol=1e-12, **options).fit(*long_form(blocks))
    value, W, b, Omega = joint_problem(blocks, lambda1, lambda2, **options)
    assert model.objective_ == pytest.approx(value, rel=1e-7)
    np.testing.assert_allclose(model.coef_.T, W, atol=1e-4 * np.abs(W).max())
    np.testing.assert_allclose(model.covariance_, Omega, atol=1e-3)
    if options.get("fit_intercept", True):
        np.testing.assert_allclose(model.intercept_, b, rtol=1e-3, atol=1e-3)
    # The attributes are what the formula says: objective, covariance and dual value belong together.
    ours = objective(
        blocks, model.coef_.T, model.intercept_, model.covariance_, lambda1, lambda2, options.get("reduction", "mean")
    )
    assert model.objective_ == pytest.approx(ours, rel=1e-7)
    assert model.dual_gap_ <= 1e-12 * oracle.null_objective(blocks, "squared", **options)


def test_no_other_covariance_is_better():
    blocks = draw(seed=1)
    model = TaskRelationship(0.2, 0.3, tol=1e-12).fit(*long_form(blocks))
    rng = np.random.default_rng(2)
    W, b = model.coef_.T, model.intercept_
    best = objective(blocks, W, b, model.covariance_, 0.2, 0.3)
    for size in (1e-3, 1e-2, 0.1, 1.0):
        for _ in range(50):
            A = rng.normal(size=(T, T + 2))
            other = model.covariance_ + size * A @ A.T / (T + 2)
            assert objective(blocks, W, b, other / np.trace(other), 0.2, 0.3) >= best * (1 - 1e-12)


@pytest.mark.parametrize("shape", [(SIZES, D), ((7, 9, 5, 8, 6, 10), 3)])
def test_without_ridge_it_is_feature_learning_from_the_other_side(shape):
    blocks = draw(*shape, seed=3)
    tasks = TaskRelationship(0.0, 0.6, tol=1e-13).fit(*long_form(blocks))
    features = ConvexFeatureLearning(0.3, tol=1e-13).fit(*long_form(blocks))
    assert tasks.objective_ == pytest.approx(features.objective_, rel=1e-10)
    np.testing.assert_allclose(tasks.coef_, features.coef_, atol=1e-6)
    # One matrix of weights, seen from both sides: W Omega^-1/2 and D^-1/2 W have the same singular vectors.
    W, D_, Omega = tasks.coef_.T, features.feature_covariance_, tasks.covariance_
    np.testing.assert_allclose(D_ @ W, W @ Omega, atol=1e-6)


def test_one_task_is_ridge_regression_with_both_weights():
    [(X, y, s)] = draw((19,), 5, seed=4)
    model = TaskRelationship(0.2, 0.5, tol=1e-14).fit(X, y, sample_weight=s)
    v = s / s.sum()
    Z, r = X - v @ X, y - v @ y
    w = np.linalg.solve(Z.T @ (v[:, None] * Z) + 0.7 * np.eye(5), Z.T @ (v * r))
    np.testing.assert_allclose(model.coef_[0], w, rtol=1e-7)
    np.testing.assert_array_equal(model.covariance_, [[1.0]])
    np.testing.assert_array_equal(model.correlation_, [[1.0]])


def test_covariance_and_correlation_are_those_of_the_weights():
    blocks = draw(seed=5)
    model = TaskRelationship(0.1, 0.3).fit(*long_form(blocks))
    values, Q = np.linalg.eigh(model.coef_ @ model.coef_.T)  # (T, T)
    root = (Q * np.sqrt(np.maximum(values, 0))) @ Q.T
    np.testing.assert_allclose(model.covariance_, root / np.trace(root), atol=1e-7)
    assert np.trace(model.covariance_) == pytest.approx(1, rel=1e-12)
    deviation = np.sqrt(np.diag(model.covariance_))
    np.testing.assert_allclose(model.correlation_, model.covariance_ / np.outer(deviation, deviation), atol=1e-12)
    signs = np.sign(model.correlation_)
    np.testing.assert_array_equal(signs, [[(-1) ** (s + t) for s in range(T)] for t in range(T)])  # as planted


def test_correlations_have_signs():
    """Two like tasks, their opposite, and one along another direction."""
    rng = np.random.default_rng(10)
    w, other = rng.normal(size=(2, 4))
    other -= other @ w / (w @ w) * w
    pairs = [(X := rng.normal(size=(200, 4)), X @ v + 0.1 * rng.normal(size=200)) for v in (w, w, -w, other)]
    found = TaskRelationship(0.0, 0.01).fit(Tasks.from_list(pairs)).correlation_
    assert found[0, 1] > 0.95 and found[0, 2] < -0.95 and abs(found[0, 3]) < 0.1


def test_tasks_without_weights_have_no_variance_and_no_correlation():
    blocks = draw(seed=6)
    X, _, s = blocks[2]
    blocks[2] = (X, np.full(len(X), 7.0), s)
    model = TaskRelationship(0.2, 0.3, tol=1e-12).fit(*long_form(blocks))
    np.testing.assert_allclose(model.coef_[2], 0, atol=1e-15)
    others = np.arange(T) != 2
    np.testing.assert_allclose(model.covariance_[2], 0, atol=1e-12)
    np.testing.assert_array_equal(model.correlation_[2, others], 0)
    assert (np.abs(model.correlation_[np.ix_(others, others)]) > 0.1).all()
    np.testing.assert_array_equal(np.diag(model.correlation_), 1)
    X, y, task = long_form(blocks, weighted=False)
    flat = TaskRelationship().fit(X, 0 * y + 2, task)
    np.testing.assert_array_equal(flat.coef_, 0)
    np.testing.assert_array_equal(flat.covariance_, np.eye(T) / T)
    np.testing.assert_array_equal(flat.correlation_, np.eye(T))


def test_correlation_of_a_covariance():
    A = torch.tensor([[4.0, -3.0, 0.0], [-3.0, 9.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    expected = torch.tensor([[1.0, -0.5, 0.0], [-0.5, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(correlation(A), expected, rtol=0, atol=1e-15)
    torch.testing.assert_close(correlation(torch.zeros(2, 2)), torch.eye(2))


def test_permuting_the_tasks_permutes_the_covariance():
    blocks = draw(seed=7)
    order = [2, 0, 3, 1]
    a = TaskRelationship(0.2, 0.4, tol=1e-13).fit(*long_form(blocks))
    b = TaskRelationship(0.2, 0.4, tol=1e-13).fit(*long_form([blocks[t] for t in order]))
    np.testing.assert_allclose(b.coef_, a.coef_[order], atol=1e-8)
    np.testing.assert_allclose(b.covariance_, a.covariance_[np.ix_(order, order)], atol=1e-7)
    np.testing.assert_allclose(b.correlation_, a.correlation_[np.ix_(order, order)], atol=1e-6)


def test_shared_inputs_with_missing_labels_and_torch():
    rng = np.random.default_rng(8)
    X = rng.normal(size=(11, 5))
    Y = X @ rng.normal(size=(5, 3)) + rng.normal(size=(11, 3))
    Y[rng.random(Y.shape) < 0.2] = np.nan
    seen = ~np.isnan(Y)
    ragged = Tasks.from_list([(X[seen[:, t]], Y[seen[:, t], t]) for t in range(3)])
    a = TaskRelationship(0.1, 0.2, tol=1e-12).fit(Tasks.shared(X, Y))
    b = TaskRelationship(0.1, 0.2, tol=1e-12).fit(ragged)
    np.testing.assert_allclose(a.covariance_, b.covariance_, atol=1e-6)
    c = TaskRelationship(0.1, 0.2, tol=1e-12).fit(
        Tasks.shared(torch.tensor(X, dtype=torch.float32), torch.tensor(Y, dtype=torch.float32))
    )
    assert isinstance(c.covariance_, torch.Tensor) and c.covariance_.dtype == c.correlation_.dtype == torch.float32
    np.testing.assert_allclose(c.covariance_, a.covariance_, atol=1e-4)


def test_a_huge_weight_leaves_little_and_there_is_no_largest_one():
    blocks = draw(seed=9)
    data = long_form(blocks)
    model = TaskRelationship(0.0, 1e6, tol=1e-12).fit(*data)
    assert 0 < np.abs(model.coef_).max() < 1e-3
    assert TaskRelationship().alpha_max(*data) == np.inf


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("lambda1", -0.1, "lambda1 must be a finite number >= 0; got -0.1"),
        ("lambda1", np.nan, "lambda1 must be a finite number >= 0; got nan"),
        ("lambda1", np.inf, "lambda1 must be a finite number >= 0; got inf"),
        ("lambda2", 0.0, "lambda2 must be a finite number > 0; got 0.0"),
        ("lambda2", np.inf, "lambda2 must be a finite number > 0; got inf"),
    ],
)
def test_bad_weights_are_refused(name, value, message):
    X, y, task = long_form(draw(), weighted=False)
    with pytest.raises(ValueError, match=message):
        TaskRelationship(**{name: value}).fit(X, y, task)
