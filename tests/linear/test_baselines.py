"""SingleTask and Pooled against scikit-learn, brute-force cross-validation and their own certificates."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Lasso, LogisticRegression, Ridge

from companion import Tasks
from companion.linear import Pooled, PooledClassifier, SingleTask, SingleTaskClassifier

SIZES, D = (8, 13, 21), 5
TASK = np.repeat([0, 1, 2], SIZES)
N = sum(SIZES)


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(N, D))
    W = rng.normal(size=(D, len(SIZES)))
    return X, np.einsum("nd,dn->n", X, W[:, TASK]) + TASK + rng.normal(size=N), rng.uniform(0.3, 2, N)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_single_task_ridge_is_scikit_learn_per_task(data, reduction, fit_intercept):
    X, y, s = data
    model = SingleTask(0.2, reduction=reduction, fit_intercept=fit_intercept).fit(X, y, TASK, s)
    for t in range(len(SIZES)):
        rows = t == TASK
        alpha = 0.2 * (s[rows].sum() if reduction == "mean" else 1)
        expected = Ridge(alpha, fit_intercept=fit_intercept).fit(X[rows], y[rows], s[rows])
        np.testing.assert_allclose(model.coef_[t], expected.coef_, rtol=1e-8)
        np.testing.assert_allclose(model.intercept_[t], expected.intercept_, rtol=1e-8)


def test_single_task_lasso_is_scikit_learn_per_task(data):
    X, y, _ = data
    model = SingleTask(0.4, penalty="l1", tol=1e-13).fit(X, y, TASK)
    for t in range(len(SIZES)):
        expected = Lasso(0.4, tol=1e-14).fit(X[t == TASK], y[t == TASK])
        np.testing.assert_allclose(model.coef_[t], expected.coef_, rtol=1e-6, atol=1e-9)
    assert 0 < (model.coef_ == 0).mean() < 1


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_pooled_ridge_is_weighted_ridge_on_all_rows(data, reduction):
    X, y, s = data
    v = s / np.bincount(TASK, s)[TASK] if reduction == "mean" else s
    model = Pooled(0.3, reduction=reduction).fit(X, y, TASK, s)
    expected = Ridge(0.3).fit(X, y, v)
    np.testing.assert_allclose(model.coef_, np.tile(expected.coef_, (3, 1)), rtol=1e-8)
    np.testing.assert_allclose(model.intercept_, np.full(3, expected.intercept_), rtol=1e-8)


def test_pooled_with_task_intercepts_is_ridge_with_free_dummies(data):
    X, y, _ = data
    Z = np.hstack([X, np.eye(3)[TASK]])
    ridge = 0.3 * np.diag([1.0] * D + [0.0] * 3)
    expected = np.linalg.solve(Z.T @ Z + ridge, Z.T @ y)
    model = Pooled(0.3, per_task_intercept=True, reduction="sum").fit(X, y, TASK)
    np.testing.assert_allclose(model.coef_[1], expected[:D], rtol=1e-9)
    np.testing.assert_allclose(model.intercept_, expected[D:], rtol=1e-9)


def test_classifiers_are_scikit_learn_logistic_regression(data):
    X, y, s = data
    label = np.where(y > 1, "high", "low")
    single = SingleTaskClassifier(0.3, reduction="sum", tol=1e-13).fit(X, label, TASK, s)
    pooled = PooledClassifier(0.3, reduction="sum", tol=1e-13).fit(X, label, TASK, s)
    options = {"C": 1 / 0.3, "solver": "newton-cholesky", "tol": 1e-13}
    everyone = LogisticRegression(**options).fit(X, label, s)
    for t in range(len(SIZES)):
        rows = t == TASK
        alone = LogisticRegression(**options).fit(X[rows], label[rows], s[rows])
        np.testing.assert_allclose(single.coef_[t], alone.coef_[0], rtol=1e-6)
        np.testing.assert_allclose(pooled.coef_[t], everyone.coef_[0], rtol=1e-6)
        np.testing.assert_allclose(single.predict_proba(X[rows], TASK[rows]), alone.predict_proba(X[rows]), rtol=1e-6)
        np.testing.assert_array_equal(single.predict(X[rows], TASK[rows]), alone.predict(X[rows]))
    assert list(single.classes_) == ["high", "low"]


def test_limits_of_no_and_infinite_penalty(data):
    X, y, _ = data
    free = SingleTask(0.0).fit(X, y, TASK)
    for t in range(3):
        Z = np.hstack([X[t == TASK], np.ones((SIZES[t], 1))])
        expected = np.linalg.lstsq(Z, y[t == TASK])[0]
        np.testing.assert_allclose(np.append(free.coef_[t], free.intercept_[t]), expected, rtol=1e-9)
    assert np.isnan(free.dual_gap_)
    heavy = SingleTask(1e12).fit(X, y, TASK)
    np.testing.assert_allclose(heavy.intercept_, [y[t == TASK].mean() for t in range(3)], rtol=1e-9)


@pytest.mark.parametrize("model", [SingleTask, Pooled, SingleTaskClassifier, PooledClassifier])
@pytest.mark.parametrize("penalty", ["l2", "l1"])
def test_objective_and_gap_are_those_of_the_returned_weights(data, model, penalty):
    X, y, s = data
    fitted = model(0.07, penalty=penalty).fit(X, y > 1 if "Class" in model.__name__ else y, TASK, s)
    margin = np.einsum("nd,nd->n", X, fitted.coef_[TASK]) + fitted.intercept_[TASK]
    v = s / np.bincount(TASK, s)[TASK]
    if "Class" in model.__name__:
        data_term = v @ np.logaddexp(0, -np.where(y > 1, 1, -1) * margin)
    else:
        data_term = v @ (y - margin) ** 2 / 2
    W = fitted.coef_[:1] if "Pooled" in model.__name__ else fitted.coef_
    penalty_term = 0.07 * (np.abs(W).sum() if penalty == "l1" else (W**2).sum() / 2)
    assert fitted.objective_ == pytest.approx(data_term + penalty_term, rel=1e-12)
    assert -1e-12 <= fitted.dual_gap_ <= 1e-7


def _brute_force_cv_loss(X, y, model, grid):
    """Held-out squared error of every task by loops over folds, alphas and scikit-learn fits."""
    total = np.zeros((3, len(grid)))
    for train, held_out in Tasks.from_long(X, y, TASK).folds(4, random_state=5):
        for g, alpha in enumerate(grid):
            for t in range(3):
                A, a = train[t] if model is SingleTask else train.long()[:2]
                fit = Ridge(alpha).fit(A, a)
                rows = np.flatnonzero(t == TASK)[held_out[t]]
                total[t, g] += ((fit.predict(X[rows]) - y[rows]) ** 2).sum() / 2
    return total


@pytest.mark.parametrize("model", [SingleTask, Pooled])
def test_inner_cross_validation_matches_brute_force(data, model):
    X, y, _ = data
    grid = np.array([30.0, 3.0, 0.3, 0.03])
    fitted = model(grid[[2, 0, 3, 1]], reduction="sum", cv=4, random_state=5).fit(X, y, TASK)
    expected = _brute_force_cv_loss(X, y, model, grid)
    np.testing.assert_allclose(fitted.cv_loss_, expected, rtol=1e-8)
    assert fitted.alpha_ == grid[expected.sum(0).argmin()]
    best = model(fitted.alpha_, reduction="sum").fit(X, y, TASK)
    np.testing.assert_allclose(fitted.coef_, best.coef_, rtol=1e-10)


def test_every_task_may_choose_its_own_alpha(data):
    X, y, _ = data
    y = np.where(TASK == 1, np.random.default_rng(3).normal(size=N), y)  # task 1 is noise: it wants a heavy penalty
    grid = np.array([100.0, 1.0, 0.01])
    fitted = SingleTask(grid, per_task_alpha=True, reduction="sum", cv=4, random_state=5).fit(X, y, TASK)
    expected = grid[_brute_force_cv_loss(X, y, SingleTask, grid).argmin(1)]
    np.testing.assert_array_equal(fitted.alpha_, expected)
    assert fitted.alpha_[1] > fitted.alpha_[2]


def test_own_folds_are_positions_in_the_rows_handed_in(data):
    X, y, s = data
    s = np.where(np.arange(N) % 7 == 0, 0.0, s)
    order = np.random.default_rng(1).permutation(N)
    splits = [(np.flatnonzero(np.arange(N) % 3 != k), np.flatnonzero(np.arange(N) % 3 == k)) for k in range(3)]
    moved = [tuple(np.flatnonzero(np.isin(order, part)) for part in split) for split in splits]
    a = SingleTask([0.1, 1.0], cv=splits).fit(X, y, TASK, s)
    b = SingleTask([0.1, 1.0], cv=moved).fit(X[order], y[order], TASK[order], s[order])
    np.testing.assert_allclose(a.cv_loss_, b.cv_loss_, rtol=1e-9)


@pytest.mark.parametrize("classifier", [False, True])
def test_stopping_early_warns_with_gap_tolerance_and_iterations(classifier):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(40, 30)) + 3 * rng.normal(size=(40, 1))
    y = X @ rng.normal(size=30)
    model = SingleTaskClassifier if classifier else SingleTask
    with pytest.warns(ConvergenceWarning, match=r"after 1 iterations \(max_iter=1\).*gap of \S+; tol=1.0e-08"):
        fitted = model(1e-3, penalty="l1", max_iter=1).fit(X, y > 0 if classifier else y)
    assert np.isfinite(fitted.coef_).all() and fitted.dual_gap_ > 0


def test_one_class_tasks_are_named(data):
    X, y, _ = data
    y = np.where(TASK == 2, 1, y > 1).astype(int)
    with pytest.raises(ValueError, match=r"task 2 holds 1 class only \(.*1.*\)"):
        SingleTaskClassifier().fit(X, y, TASK)
    assert SingleTaskClassifier(fit_intercept=False).fit(X, y, TASK).dual_gap_ < 1e-6


@pytest.mark.parametrize("scale", [1e-8, 1e8])
@pytest.mark.parametrize("penalty", ["l2", "l1"])
def test_extreme_feature_scales_keep_their_certificate(data, scale, penalty):
    X, y, _ = data
    X = X * np.array([scale, 1, 1, 1, 1])
    model = SingleTask(0.05, penalty=penalty).fit(X, y, TASK)  # a ConvergenceWarning would be an error here
    assert model.dual_gap_ <= 1e-8 * (y**2).sum()
    exact = SingleTask(0.05, penalty=penalty).fit(X[:, 1:], y, TASK)
    if scale < 1:  # a feature too small to matter at this penalty changes nothing
        np.testing.assert_allclose(model.coef_[:, 1:], exact.coef_, rtol=1e-5, atol=1e-7)


def test_degenerate_tasks_have_an_answer():
    X = np.array([[1.0, 2.0, 2.0, 0.0], [0.5, -1.0, -1.0, 0.0], [2.0, 0.3, 0.3, 0.0], [4.0, 1.0, 1.0, 0.0]])
    y, task = np.array([1.0, 2.0, 0.5, 3.0]), [0, 0, 0, 1]
    model = SingleTask(0.1).fit(X, y, task)  # duplicated and constant columns, a task of one row
    np.testing.assert_allclose(model.coef_[0, 1], model.coef_[0, 2], rtol=1e-10)
    np.testing.assert_array_equal(model.coef_[:, 3], 0)
    np.testing.assert_allclose(model.predict(X[3:], [1]), y[3:])
    for penalty in ("l1", "l2"):
        nothing = SingleTask(0.1, penalty=penalty).fit(X, np.zeros(4), task)
        np.testing.assert_array_equal(nothing.coef_, 0)
        assert nothing.objective_ == nothing.dual_gap_ == 0


def test_device_computes_elsewhere_and_hands_back(data):
    X, y, _ = data
    model = SingleTask(device="cpu").fit(torch.from_numpy(X), torch.from_numpy(y), TASK)
    assert model.coef_.device.type == "cpu"
    with pytest.raises(RuntimeError, match="nowhere"):
        SingleTask(device="nowhere").fit(X, y, TASK)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("penalty", ["l2", "l1"])
def test_cuda_gives_the_weights_of_the_cpu(data, penalty):
    X, y, _ = data
    cpu = SingleTask(penalty=penalty).fit(X, y, TASK)
    gpu = SingleTask(penalty=penalty).fit(torch.from_numpy(X).cuda(), torch.from_numpy(y).cuda(), TASK)
    assert gpu.coef_.is_cuda
    np.testing.assert_allclose(gpu.coef_.cpu(), cpu.coef_, rtol=1e-8)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak memory of one process")
def test_one_huge_task_costs_no_padding():
    """20 000 rows beside 99 tasks of 20 (d = 50): padding would need 800 MB."""
    program = """
        import numpy as np
        import torch
        from companion.experiments._provenance import peak_memory_mb
        from companion.linear import SingleTask
        rng = np.random.default_rng(0)
        task = np.repeat(np.arange(100), [20_000] + [20] * 99)
        X, y = rng.normal(size=(len(task), 50)), rng.normal(size=len(task))
        SingleTask().fit(X[:100], y[:100])  # loads the linear algebra libraries
        before = peak_memory_mb(torch.device("cpu"))
        SingleTask(alpha=[0.1, 1.0]).fit(X, y, task)
        print(peak_memory_mb(torch.device("cpu")) - before)
    """
    out = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)
    assert float(out.stdout) < 200
