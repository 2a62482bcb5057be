"""Kernel machines as estimators: closed forms, scikit-learn's machines run by hand, limits, kernels of every kind."""

import pickle

import cvxpy as cp
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import config_context
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process.kernels import RBF
from sklearn.kernel_ridge import KernelRidge
from sklearn.metrics.pairwise import pairwise_kernels
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.svm import SVC

from companion import Tasks
from companion.linear import (
    GraphRegularized,
    MeanRegularized,
    MultiTaskKernelRidge,
    MultiTaskSVC,
    Pooled,
    SingleTask,
    _gram,
)

T, D = 3, 4
SIZES = (7, 11, 5)
N = sum(SIZES)
TASK = np.repeat(["a", "b", "c"], SIZES)
INDEX = np.repeat(np.arange(T), SIZES)
GROUPS = np.eye(T)[INDEX]  # (N, T)


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(N, D)) + 1
    W = rng.normal(size=D) + 0.5 * rng.normal(size=(T, D))
    return X, (X * W[INDEX]).sum(1) + rng.normal(size=N) + GROUPS @ [4.0, -3.0, 1.0]


@pytest.fixture
def labelled(data):
    X, y = data
    return X, np.where(y - GROUPS @ [4.0, -3.0, 1.0] > 0, "yes", "no")


def task_matrix(alpha, coupling):
    """The penalty's matrix A, as the definition has it."""
    return alpha * np.eye(T) + coupling * (np.eye(T) - np.ones((T, T)) / T)


def row_weights(reduction, s=None):
    s = np.ones(N) if s is None else s
    return s / (GROUPS @ (GROUPS.T @ s)) if reduction == "mean" else s


def dense_ridge(K, y, v, fit_intercept):
    """Coefficients and intercepts from one system in both, for a Gram matrix on (task, row) pairs."""
    if not fit_intercept:
        return np.linalg.solve(K + np.diag(1 / v), y), np.zeros(T)
    system = np.block([[K + np.diag(1 / v), GROUPS], [GROUPS.T, np.zeros((T, T))]])
    return np.split(np.linalg.solve(system, np.append(y, np.zeros(T))), [N])


# --- ridge: the same model three ways ------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("weighted", [False, True])
def test_linear_ridge_is_mean_regularised_regression(data, reduction, fit_intercept, weighted):
    X, y = data
    s = np.random.default_rng(1).uniform(0.2, 3, N) if weighted else None
    options = {"reduction": reduction, "fit_intercept": fit_intercept}
    kernel = MultiTaskKernelRidge(0.3, 1.7, **options).fit(X, y, TASK, s)
    primal = MeanRegularized(0.3, 1.7, tol=1e-14, **options).fit(X, y, TASK, s)
    np.testing.assert_allclose(kernel.coef_, primal.coef_, rtol=1e-8)
    np.testing.assert_allclose(kernel.intercept_, primal.intercept_, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(kernel.predict(X, TASK), primal.predict(X, TASK), rtol=1e-8)
    assert kernel.objective_ == pytest.approx(primal.objective_, rel=1e-12)
    assert 0 <= kernel.dual_gap_ <= 1e-20 and kernel.n_iter_ == 1


@pytest.mark.parametrize("form", ["array", "signed", "directed", "laplacian", "frame", "none"])
def test_linear_ridge_is_graph_regularised_regression(data, form):
    X, y = data
    edges = np.array([[0, 2.0, 0], [2.0, 0, 0.5], [0, 0.5, 0]])
    options = {}
    if form == "signed":
        edges, options = edges * [[1, -1, 1], [-1, 1, 1], [1, 1, 1]], {"signed": True}
    elif form == "directed":
        edges, options = edges + 3.0 * np.eye(3, k=2), {"directed": True}
    elif form == "laplacian":
        edges = np.diag(edges.sum(0)) - edges
    elif form == "frame":
        edges = pd.DataFrame(edges, index=list("abc"), columns=list("abc")).loc[list("cab"), list("bca")]
    elif form == "none":
        edges = None
    kernel = MultiTaskKernelRidge(0.3, 1.7, graph=edges, **options).fit(X, y, TASK)
    primal = GraphRegularized(0.3, 1.7, graph=edges, tol=1e-14, **options).fit(X, y, TASK)
    np.testing.assert_allclose(kernel.coef_, primal.coef_, rtol=1e-8)
    np.testing.assert_allclose(kernel.intercept_, primal.intercept_, rtol=1e-8)


def test_three_formulations_of_the_mean_are_one(data):
    """A common part plus deviations, distances to the mean, and the kernel (1/mu + delta) <x, z>; no factors 1/2."""
    X, y = data
    l1, l2 = 1.3, 0.7
    r1, r2, mu = l1 * l2 / ((l1 + l2) * T), l1**2 / ((l1 + l2) * T), T * l2 / l1
    # sum of squares + l1/T sum ||v_t||^2 + l2 ||w_0||^2 with w_t = w_0 + v_t: one ridge on the features (x, task x x)
    design = np.hstack([X, (GROUPS[:, :, None] * X[:, None]).reshape(N, -1)])
    ridge = np.diag(np.repeat([l2, l1 / T], [D, T * D]))
    u = np.linalg.solve(design.T @ design + ridge, design.T @ y)
    split = u[:D] + u[D:].reshape(T, D)
    # sum of squares + r1 sum ||w_t||^2 + r2 sum ||w_t - mean||^2
    A = np.kron(task_matrix(r1, r2), np.eye(D)) + design[:, D:].T @ design[:, D:]
    penalised = np.linalg.solve(A, design[:, D:].T @ y).reshape(T, D)
    # kernel ridge with K((x, s), (z, t)) = (1/mu + delta_st) <x, z> and ridge l1/T
    both = 1 / mu + np.eye(T)
    c = np.linalg.solve(both[INDEX][:, INDEX] * (X @ X.T) + l1 / T * np.eye(N), y)
    kernel = both @ (GROUPS.T @ (c[:, None] * X))
    np.testing.assert_allclose(penalised, split, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(kernel, split, rtol=1e-9, atol=1e-12)
    model = MultiTaskKernelRidge(r1, r2, reduction="sum", fit_intercept=False).fit(X, y, TASK)
    np.testing.assert_allclose(model.coef_, split, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(u[:D], l1 / (l1 + l2) * model.coef_.mean(0), rtol=1e-9)
    np.testing.assert_allclose(model.task_kernel_ * l1 / T, both, rtol=1e-12)


@pytest.mark.parametrize("coupling", [0.0, 1.7, 1e14])
def test_the_task_kernel_inverts_the_matrix_of_the_penalty(data, coupling):
    X, y = data
    edges = np.array([[0, 2.0, 0], [2.0, 0, 0.5], [0, 0.5, 0]])
    A = 0.3 * np.eye(T) + min(coupling, 1e4) * (np.diag(edges.sum(0)) - edges)
    model = MultiTaskKernelRidge(0.3, min(coupling, 1e4), graph=edges).fit(X, y, TASK)
    np.testing.assert_allclose(model.task_kernel_, np.linalg.inv(A), rtol=1e-9, atol=1e-14)
    P = np.ones((T, T)) / T  # eigenvalue alpha on the mean, alpha + coupling beside it
    model = MultiTaskKernelRidge(0.3, coupling).fit(X, y, TASK)
    np.testing.assert_allclose(model.task_kernel_, P / 0.3 + (np.eye(T) - P) / (0.3 + coupling), rtol=1e-13)


KERNELS = [
    ("rbf", {"gamma": 0.3}),
    ("rbf", {}),
    ("rbf", {"gamma": "scale"}),
    ("poly", {"degree": 2, "coef0": 0.5, "gamma": 0.2}),
    ("polynomial", {}),
    ("laplacian", {"gamma": "auto"}),
    ("cosine", {}),
]


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("kernel, options", KERNELS)
def test_ridge_of_any_kernel_against_a_dense_system(data, kernel, options, reduction, fit_intercept):
    X, y = data
    Z, z_task = X[::2] + 0.1, INDEX[::2]
    s = np.random.default_rng(1).uniform(0.2, 3, N)
    model = MultiTaskKernelRidge(
        0.3, 1.7, kernel=kernel, reduction=reduction, fit_intercept=fit_intercept, **options
    ).fit(X, y, TASK, s)
    centre = np.average(X.mean(1), weights=s)
    scale = 1 / (D * np.average(((X - centre) ** 2).mean(1), weights=s))
    gamma = {"scale": scale, "auto": 1 / D, None: 1 / D}.get(options.get("gamma"), options.get("gamma"))
    k = {
        "rbf": lambda A, B: np.exp(-gamma * ((A[:, None] - B) ** 2).sum(-1)),
        "poly": lambda A, B: (0.2 * A @ B.T + 0.5) ** 2,
        "polynomial": lambda A, B: (A @ B.T / D + 1) ** 3,
        "laplacian": lambda A, B: np.exp(-gamma * abs(A[:, None] - B).sum(-1)),
        "cosine": lambda A, B: A @ B.T / np.linalg.norm(A, axis=1)[:, None] / np.linalg.norm(B, axis=1),
    }[kernel]
    M = np.linalg.inv(task_matrix(0.3, 1.7))
    K = M[INDEX][:, INDEX] * k(X, X)
    v = row_weights(reduction, s)
    c, b = dense_ridge(K, y, v, fit_intercept)
    np.testing.assert_allclose(model.dual_coef_, c, rtol=1e-7, atol=1e-10)
    np.testing.assert_allclose(model.intercept_, b, rtol=1e-8)
    np.testing.assert_allclose(model.predict(X, TASK), K @ c + b[INDEX], rtol=1e-8)
    expected = (M[z_task][:, INDEX] * k(Z, X)) @ c + b[z_task]
    np.testing.assert_allclose(model.predict(Z, TASK[::2]), expected, rtol=1e-8)
    r = y - K @ c - b[INDEX]
    assert model.objective_ == pytest.approx((v @ r**2 + c @ K @ c) / 2, rel=1e-10)


def test_scale_is_scikit_learns(data):
    X, y = data
    machine = SVC(kernel="rbf", gamma="scale", C=2.0, tol=1e-8).fit(X, y > 0)
    model = MultiTaskSVC(0.5, kernel="rbf", gamma="scale", reduction="sum").fit(X, y > 0)
    np.testing.assert_allclose(model.decision_function(X), machine.decision_function(X), atol=1e-6)


# --- ridge: limits -------------------------------------------------------------------------------------------------


def test_no_coupling_is_one_ridge_per_task(data):
    X, y = data
    linear = MultiTaskKernelRidge(0.3, 0.0).fit(X, y, TASK)
    np.testing.assert_allclose(linear.coef_, SingleTask(0.3).fit(X, y, TASK).coef_, rtol=1e-9)
    model = MultiTaskKernelRidge(0.3, 0.0, kernel="rbf", fit_intercept=False, reduction="sum").fit(X, y, TASK)
    for t in range(T):
        own = KernelRidge(alpha=0.3, kernel="rbf").fit(X[t == INDEX], y[t == INDEX])
        np.testing.assert_allclose(model.predict(X, np.full(N, "abc"[t])), own.predict(X), rtol=1e-9)


def test_strong_coupling_is_one_ridge_with_t_times_the_penalty(data):
    X, y = data
    linear = MultiTaskKernelRidge(0.3, 1e12).fit(X, y, TASK)
    pooled = Pooled(0.3 * T, per_task_intercept=True).fit(X, y, TASK)
    np.testing.assert_allclose(linear.coef_, pooled.coef_, rtol=1e-9)
    np.testing.assert_allclose(linear.intercept_, pooled.intercept_, rtol=1e-9)
    model = MultiTaskKernelRidge(0.3, 1e12, kernel="rbf", fit_intercept=False, reduction="sum").fit(X, y, TASK)
    common = KernelRidge(alpha=0.3 * T, kernel="rbf").fit(X, y)
    for id_ in "abc":
        np.testing.assert_allclose(model.predict(X, np.full(N, id_)), common.predict(X), rtol=1e-8)


@pytest.mark.parametrize("coupling", [0.0, 5.0])
def test_one_task_is_scikit_learns_machine_whatever_the_coupling(labelled, data, coupling):
    X, y = data
    ridge = MultiTaskKernelRidge(0.3, coupling, kernel="rbf", fit_intercept=False, reduction="sum").fit(X, y)
    machine = KernelRidge(alpha=0.3, kernel="rbf").fit(X, y)
    np.testing.assert_allclose(ridge.dual_coef_ / 0.3, machine.dual_coef_, rtol=1e-9)
    np.testing.assert_allclose(ridge.predict(X), machine.predict(X), rtol=1e-9)
    svc = MultiTaskSVC(0.3, coupling, kernel="rbf", reduction="sum").fit(X, labelled[1])
    machine = SVC(C=1 / 0.3, kernel="rbf", gamma=1 / D, tol=1e-9).fit(X, labelled[1])
    np.testing.assert_allclose(svc.decision_function(X), machine.decision_function(X), atol=1e-6)
    np.testing.assert_array_equal(np.sort(svc.support_), np.sort(machine.support_))


def test_a_single_row_is_its_task(data):
    X, y = data
    model = MultiTaskKernelRidge(0.3, kernel="rbf").fit(X[:1], y[:1])
    assert model.predict(X[3:5]) == pytest.approx(y[[0, 0]])


# --- support vectors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("kernel, options", [("linear", {}), *KERNELS[:4]])
def test_support_vectors_against_scikit_learns_machine_on_the_gram_matrix(labelled, kernel, options, reduction):
    X, y = labelled
    s = np.random.default_rng(1).uniform(0.2, 3, N)
    model = MultiTaskSVC(0.05, 0.2, kernel=kernel, reduction=reduction, **options).fit(X, y, TASK, s)
    M = np.linalg.inv(task_matrix(0.05, 0.2))
    gamma = options.get("gamma")
    if gamma == "scale":
        centre = np.average(X.mean(1), weights=s)
        gamma = 1 / (D * np.average(((X - centre) ** 2).mean(1), weights=s))
    names = {"gamma": gamma, "degree": options.get("degree", 3), "coef0": options.get("coef0", 1)}
    K = M[INDEX][:, INDEX] * pairwise_kernels(X, metric=kernel, filter_params=True, **names)
    v = row_weights(reduction, s)
    machine = SVC(C=1, kernel="precomputed", tol=1e-9).fit(K, y, sample_weight=v)
    np.testing.assert_allclose(model.decision_function(X, TASK), machine.decision_function(K), atol=2e-5)
    np.testing.assert_array_equal(model.predict(X, TASK), machine.predict(K))
    np.testing.assert_array_equal(model.support_, np.sort(machine.support_))
    c = np.zeros(N)
    c[model.support_] = model.dual_coef_
    signs = np.where(y == "yes", 1.0, -1.0)
    f = K @ c + model.intercept_[0]
    np.testing.assert_allclose(model.decision_function(X, TASK), f, rtol=1e-9)
    primal = v @ np.maximum(0, 1 - signs * f) + c @ K @ c / 2
    assert model.objective_ == pytest.approx(primal, rel=1e-11)
    assert primal - (signs @ c - c @ K @ c / 2) == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize("graph", [None, np.array([[0, 2.0, 0], [2.0, 0, 0.5], [0, 0.5, 0]])])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_linear_support_vectors_against_the_primal_problem(labelled, graph, reduction):
    X, y = labelled
    model = MultiTaskSVC(0.05, 0.2, graph=graph, reduction=reduction).fit(X, y, TASK)
    W, b = cp.Variable((T, D)), cp.Variable()
    if graph is None:
        apart = cp.sum_squares(W - np.ones((T, T)) @ W / T)
    else:
        apart = 2 * cp.sum_squares(W[0] - W[1]) + 0.5 * cp.sum_squares(W[1] - W[2])
    margin = cp.sum(cp.multiply(X, GROUPS @ W), axis=1) + b
    hinge = row_weights(reduction) @ cp.pos(1 - cp.multiply(np.where(y == "yes", 1.0, -1.0), margin))
    problem = cp.Problem(cp.Minimize(hinge + 0.025 * cp.sum_squares(W) + 0.1 * apart))
    problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-11, tol_gap_rel=1e-11, tol_feas=1e-11)
    assert model.objective_ == pytest.approx(problem.value, rel=1e-8)
    np.testing.assert_allclose(model.coef_, W.value, atol=1e-5)
    np.testing.assert_allclose(model.intercept_, np.full(T, b.value), atol=1e-5)
    assert 0 <= model.dual_gap_ <= 1e-8


def test_limits_of_the_coupling_of_support_vectors(labelled):
    """Without coupling tasks share the intercept only; with much of it there is one machine with C = 1 / (T alpha)."""
    X, y = labelled
    apart = MultiTaskSVC(0.5, 0.0, kernel="rbf", reduction="sum").fit(X, y, TASK)
    K = np.where(INDEX[:, None] == INDEX, pairwise_kernels(X, metric="rbf", gamma=1 / D), 0) / 0.5
    machine = SVC(C=1, kernel="precomputed", tol=1e-9).fit(K, y)
    np.testing.assert_allclose(apart.decision_function(X, TASK), machine.decision_function(K), atol=1e-6)
    together = MultiTaskSVC(0.1, 1e12, kernel="rbf", reduction="sum").fit(X, y, TASK)
    machine = SVC(C=1 / (0.1 * T), kernel="rbf", gamma=1 / D, tol=1e-9).fit(X, y)
    for id_ in "abc":
        np.testing.assert_allclose(together.decision_function(X, [id_] * N), machine.decision_function(X), atol=1e-5)


def test_a_task_with_one_class_lends_its_rows_and_borrows_the_intercept(labelled):
    X, y = labelled
    y = np.where(TASK == "b", "yes", y)
    model = MultiTaskSVC(0.05, 0.2).fit(X, y, TASK)
    assert model.score(X, y, TASK) > 0.7 and len(set(model.intercept_)) == 1
    with pytest.raises(ValueError, match="y must hold 2 classes; got 1 class only: 'yes'"):
        MultiTaskSVC().fit(X, np.full(N, "yes"), TASK)
    with pytest.raises(ValueError, match="Only binary classification is supported"):
        MultiTaskSVC().fit(X, np.arange(N) % 3, TASK)


def test_a_constant_in_the_kernel_is_an_intercept_per_task(labelled):
    """(gamma <x, z> + 1) is the linear kernel on the features (x, 1), whose last weight is penalised like the rest."""
    X, y = labelled
    model = MultiTaskSVC(0.05, 0.2, kernel="poly", degree=1, gamma=1.0, coef0=1).fit(X, y, TASK)
    linear = MultiTaskSVC(0.05, 0.2).fit(np.column_stack([X, np.ones(N)]), y, TASK)
    np.testing.assert_allclose(
        model.decision_function(X, TASK), linear.decision_function(np.column_stack([X, np.ones(N)]), TASK), rtol=1e-8
    )
    assert np.ptp(linear.coef_[:, -1]) > 1e-3


def test_hinge_has_no_probabilities(labelled):
    model = MultiTaskSVC().fit(*labelled, TASK)
    assert not hasattr(model, "predict_proba") and "fit_intercept" not in model.get_params()
    np.testing.assert_array_equal(model.classes_, ["no", "yes"])
    assert set(model.predict(labelled[0], TASK)) == {"no", "yes"}


def test_support_vectors_that_stop_early_say_so(labelled):
    X, y = labelled
    with pytest.warns(ConvergenceWarning, match=r"MultiTaskSVC stopped after .*max_iter=1.*relative duality gap of"):
        model = MultiTaskSVC(1e-6, max_iter=1).fit(X, y, TASK)
    assert model.dual_gap_ > 1e-3


def test_ridge_beyond_double_precision_says_so(data):
    X, y = data
    with pytest.warns(ConvergenceWarning, match=r"MultiTaskKernelRidge .* at a residual of the linear system of"):
        model = MultiTaskKernelRidge(1e-22).fit(X, y, TASK)
    assert model.certificate_["residual of the linear system"] > 1e-8


# --- shapes, libraries, containers ---------------------------------------------------------------------------------

BOTH = pytest.mark.parametrize("Model", [MultiTaskKernelRidge, MultiTaskSVC])


def _target(Model, y):
    return y if Model is MultiTaskKernelRidge else (y > np.median(y)).astype(float)


def _values(model, X, task=None):
    return model.decision_function(X, task) if isinstance(model, MultiTaskSVC) else model.predict(X, task)


@BOTH
@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_order_names_and_repetitions_change_nothing(data, Model, kernel):
    X, y = data[0], _target(Model, data[1])
    rng = np.random.default_rng(2)
    weight = rng.integers(0, 4, N)
    weight[::5] = 2  # no task without rows
    model = Model(0.05, 0.2, kernel=kernel, gamma=None if kernel == "linear" else "scale", tol=1e-12)
    a = model.fit(X, y, TASK, weight)
    expected = _values(a, X, TASK)
    rows = rng.permutation(np.repeat(np.arange(N), weight))
    b = Model(**model.get_params()).fit(X[rows], y[rows], TASK[rows])
    np.testing.assert_allclose(_values(b, X, TASK), expected, rtol=1e-8, atol=1e-10)
    assert b.objective_ == pytest.approx(a.objective_, rel=1e-10)
    renamed = np.array(["z", "y", "x"])[INDEX]
    c = Model(**model.get_params()).fit(X, y, renamed, weight)
    np.testing.assert_allclose(_values(c, X, renamed), expected, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(c.task_kernel_, a.task_kernel_[::-1, ::-1], rtol=1e-12)


@BOTH
@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_tasks_in_every_container(data, Model, kernel):
    X, y = data[0], _target(Model, data[1])
    model = Model(0.05, 0.2, kernel=kernel, tol=1e-12)
    a = Model(**model.get_params()).fit(X, y, TASK)
    pairs = Tasks.from_list([(X[t == INDEX], y[t == INDEX]) for t in range(T)], ids=["a", "b", "c"])
    b = Model(**model.get_params()).fit(pairs)
    for t, values in enumerate(_values(b, pairs)):
        np.testing.assert_allclose(values, _values(a, X[t == INDEX], TASK[t == INDEX]), rtol=1e-9)
    assert a.score(X, y, TASK) == pytest.approx(b.score(pairs))
    mixed = np.random.default_rng(3).permutation(N)
    np.testing.assert_allclose(_values(a, X[mixed], TASK[mixed]), _values(a, X, TASK)[mixed], rtol=1e-12)


@BOTH
@pytest.mark.parametrize("kernel", ["linear", "rbf"])
@pytest.mark.parametrize("missing", ["none", "some", "all but one a row"])
def test_shared_inputs_are_the_same_rows_in_every_task(data, Model, kernel, missing):
    X = data[0]
    rng = np.random.default_rng(3)
    Y = _target(Model, X @ rng.normal(size=(D, T)) + rng.normal(size=(N, T)))
    if missing == "some":
        Y[rng.random(Y.shape) < 0.3] = np.nan
    elif missing == "all but one a row":  # as many labels as rows, in another order
        Y[np.arange(N)[:, None] % T != np.arange(T)] = np.nan
    seen = ~np.isnan(Y)
    tasks = Tasks.shared(X, Y, ids=["p", "q", "r"])
    listed = Tasks.from_list([(X[seen[:, t]], Y[seen[:, t], t]) for t in range(T)], ids=["p", "q", "r"])
    options = {"kernel": kernel, "gamma": "scale", "tol": 1e-12}
    a, b = (Model(0.05, 0.2, **options).fit(form) for form in (tasks, listed))
    values = _values(a, tasks)
    assert values.shape == (N, T)
    for t, id_ in enumerate("pqr"):
        np.testing.assert_allclose(values[:, t], _values(b, X, [id_] * N), rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(values[:, t], _values(a, X, [id_] * N), rtol=1e-12, atol=1e-13)
    assert a.objective_ == pytest.approx(b.objective_, rel=1e-12)
    assert a.task_fit_ is None and a.dual_coef_.shape == (len(a.X_fit_), T)
    np.testing.assert_array_equal(a.X_fit_, X[a.support_])
    mixed = pairwise_kernels(X, a.X_fit_, metric=kernel, filter_params=True, gamma=_gamma(X, seen.sum(1)))
    np.testing.assert_allclose(mixed @ a.dual_coef_ @ a.task_kernel_ + a.intercept_, values, rtol=1e-9, atol=1e-10)
    if Model is MultiTaskKernelRidge:
        np.testing.assert_array_equal(a.dual_coef_[~seen], 0)


def _gamma(X, weight):
    centre = np.average(X.mean(1), weights=weight)
    return 1 / (D * np.average(((X - centre) ** 2).mean(1), weights=weight))


@BOTH
def test_the_expansion_predicts(data, Model):
    """Coefficients, training rows and their tasks are in the order they say, zero weights left out."""
    X, y = data[0], _target(Model, data[1])
    order = np.random.default_rng(4).permutation(N)
    X, y, task = X[order], y[order], TASK[order]
    weight = np.ones(N)
    weight[:3] = 0
    model = Model(0.05, 0.2, kernel="rbf").fit(X, y, task, weight)
    np.testing.assert_array_equal(model.X_fit_, X[model.support_])
    np.testing.assert_array_equal(np.array(model.task_ids_)[model.task_fit_], task[model.support_])
    assert not set(model.support_) & {0, 1, 2}
    assert len(model.support_) == N - 3 if Model is MultiTaskKernelRidge else (model.dual_coef_ != 0).all()
    k = np.exp(-((X[:, None] - model.X_fit_) ** 2).sum(-1) / D)
    position = np.searchsorted(model.task_ids_, task)
    f = (model.task_kernel_[position][:, model.task_fit_] * k) @ model.dual_coef_ + model.intercept_[position]
    np.testing.assert_allclose(_values(model, X, task), f, rtol=1e-10)


@BOTH
@pytest.mark.parametrize("kernel", ["linear", "rbf"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_torch_and_single_precision(data, Model, kernel, dtype):
    X, y = data[0], _target(Model, data[1])
    X_torch = torch.tensor(X, dtype=dtype)
    model = Model(0.05, 0.2, kernel=kernel)
    a, b = Model(**model.get_params()).fit(X, y, TASK), Model(**model.get_params()).fit(X_torch, torch.tensor(y), TASK)
    c = Model(**model.get_params()).fit(X.astype(np.float32), y, TASK)
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 1e-9}
    for name in ("X_fit_", "dual_coef_", "intercept_", "task_kernel_"):
        assert getattr(b, name).dtype == dtype and getattr(c, name).dtype == np.float32
        np.testing.assert_allclose(getattr(b, name), getattr(a, name), **tolerance)
    values = _values(b, X_torch, TASK)
    assert isinstance(values, torch.Tensor) and values.dtype == dtype and values.device == X_torch.device
    np.testing.assert_allclose(values, _values(a, X, TASK), **tolerance)
    assert _values(b, X, TASK).dtype == np.float64 and _values(a, X_torch, TASK).dtype == dtype
    assert _values(c, X.astype(np.float32), TASK).dtype == np.float32
    shared = Tasks.shared(X_torch[:9], torch.zeros(9, T), ids=["a", "b", "c"])
    assert _values(b, shared).dtype == dtype and _values(b, shared).shape == (9, T)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@BOTH
@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_results_go_back_to_the_device_of_the_data(data, Model, kernel):
    X, y = data[0], _target(Model, data[1])
    model = Model(0.05, 0.2, kernel=kernel).fit(torch.from_numpy(X).cuda(), torch.from_numpy(y).cuda(), TASK)
    values = _values(model, torch.from_numpy(X).cuda(), TASK)
    assert model.dual_coef_.is_cuda and model.intercept_.is_cuda and values.is_cuda
    here = Model(0.05, 0.2, kernel=kernel).fit(X, y, TASK)
    np.testing.assert_allclose(values.cpu(), _values(here, X, TASK), rtol=1e-9)
    np.testing.assert_allclose(_values(model, X, TASK), _values(here, X, TASK), rtol=1e-9)
    shared = Tasks.shared(torch.from_numpy(X).cuda(), torch.zeros(N, T).cuda(), ids=["a", "b", "c"])
    assert _values(model, shared).is_cuda and _values(model, shared).shape == (N, T)


def test_single_precision_does_not_spoil_an_expansion_that_cancels(data):
    """Large coefficients that nearly cancel: prediction goes on with those of double precision."""
    X, y = (a.astype(np.float32) for a in data)
    model = MultiTaskKernelRidge(1e-6, 1e-6, kernel="rbf", gamma=0.003)
    exact = MultiTaskKernelRidge(**model.get_params()).fit(X.astype(float), y.astype(float), TASK)
    model.fit(X, y, TASK)
    expected = exact.predict(X.astype(float), TASK)
    np.testing.assert_allclose(model.predict(X, TASK), expected, rtol=1e-5)
    K = exact.task_kernel_[INDEX][:, INDEX] * pairwise_kernels(X.astype(float), metric="rbf", gamma=0.003)
    rounded = K @ model.dual_coef_.astype(float) + exact.intercept_[INDEX]
    assert abs(rounded / expected - 1).max() > 1e-4  # what the coefficients that are shown would give


@BOTH
def test_prediction_in_blocks(monkeypatch, data, Model):
    X, y = data[0], _target(Model, data[1])
    model = Model(0.05, 0.2, kernel="rbf").fit(X, y, TASK)
    expected = _values(model, X, TASK)
    sizes = []
    plain = _gram.pairwise_kernels
    monkeypatch.setattr(_gram, "pairwise_kernels", lambda A, B, **o: sizes.append(len(A)) or plain(A, B, **o))
    monkeypatch.setattr(_gram, "_CHUNK", 2 * len(model.X_fit_) + 1)
    np.testing.assert_allclose(_values(model, X, TASK), expected, rtol=1e-13)
    assert max(sizes) == 2 and sum(sizes) == N


def test_weights_exist_for_the_linear_kernel_only(data):
    X, y = data
    model = MultiTaskKernelRidge()
    with pytest.raises(AttributeError, match="coef_ after fit with kernel='linear' only"):
        _ = model.coef_
    assert model.fit(X, y, TASK).coef_.shape == (T, D)
    model.set_params(kernel="rbf").fit(X, y, TASK)
    assert not hasattr(model, "coef_")
    assert model.set_params(kernel="linear").fit(X, y, TASK).coef_.shape == (T, D)
    model.set_params(kernel="rbf")  # not fitted with it
    np.testing.assert_allclose(
        model.predict(X, TASK), (X * model.coef_[INDEX]).sum(1) + model.intercept_[INDEX], rtol=1e-10
    )
    np.testing.assert_allclose(
        pickle.loads(pickle.dumps(model.fit(X, y, TASK))).predict(X, TASK), model.predict(X, TASK)
    )


@BOTH
def test_a_search_over_kernels(data, Model):
    X, y = data[0], _target(Model, data[1])
    grid = {"kernel": ["linear", "rbf"], "coupling": [0.0, 10.0], "gamma": [0.5]}
    with config_context(enable_metadata_routing=True):
        model = Model().set_fit_request(task=True).set_score_request(task=True)
        search = GridSearchCV(model, grid, cv=KFold(3, shuffle=True, random_state=0), error_score="raise").fit(
            X, y, task=TASK
        )
    assert len(set(search.cv_results_["mean_test_score"])) > 1


# --- kernels of one's own ------------------------------------------------------------------------------------------


@BOTH
def test_functions_and_scikit_learns_kernel_objects(data, Model):
    X, y = data[0], _target(Model, data[1])
    by_name = _values(Model(0.05, 0.2, kernel="rbf", gamma=0.125).fit(X, y, TASK), X[:9], TASK[:9])
    by_object = _values(Model(0.05, 0.2, kernel=RBF(2.0)).fit(X, y, TASK), X[:9], TASK[:9])  # 1 / (2 * 2^2)
    np.testing.assert_allclose(by_object, by_name, rtol=1e-9)
    whole = _values(Model(0.05, 0.2, kernel=lambda A, B: A @ B.T).fit(X, y, TASK), X, TASK)
    linear = Model(0.05, 0.2).fit(X, y, TASK)
    np.testing.assert_allclose(whole, _values(linear, X, TASK), rtol=1e-8)


def test_a_kernel_that_looks_rows_up(data):
    """What "precomputed" is wished for: a column of numbers of rows, and a table of kernel values that stays intact."""
    X, y = data
    table = X @ X.T
    copy = table.copy()
    numbers = np.arange(N, dtype=float)[:, None]

    def look_up(A, B):
        return table[np.ix_(A[:, 0].astype(int), B[:, 0].astype(int))]

    def whole_table(A, B):
        return table if len(A) == N else look_up(A, B)

    linear = MultiTaskKernelRidge(0.3, 1.7).fit(X, y, TASK).predict(X, TASK)
    for kernel in (look_up, whole_table):
        model = MultiTaskKernelRidge(0.3, 1.7, kernel=kernel).fit(numbers, y, TASK)
        np.testing.assert_allclose(model.predict(numbers, TASK), linear, rtol=1e-9)
        np.testing.assert_array_equal(table, copy)
    with pytest.raises(ValueError, match=r"kernel='precomputed' is not supported.*function k\(X, Z\)"):
        MultiTaskKernelRidge(kernel="precomputed").fit(table, y, TASK)


def _with_eigenvalues(values):
    """A kernel on row numbers whose matrix has these eigenvalues."""
    Q = np.linalg.qr(np.random.default_rng(5).normal(size=(N, N)))[0]
    K = (Q * values) @ Q.T
    K = (K + K.T) / 2
    return lambda A, B: K[np.ix_(A[:, 0].astype(int), B[:, 0].astype(int))]


@BOTH
def test_kernels_that_are_not_positive_semidefinite(data, Model):
    X, y = data[0], _target(Model, data[1])
    numbers = np.arange(N, dtype=float)[:, None]
    values = np.linspace(0.1, 5.0, N)
    values[0] = -3e-8
    message = r"kernel <lambda>\(\) must be positive semidefinite; on the 23 training rows its smallest eigenvalue is "
    values[0] = -1e-7
    with pytest.raises(ValueError, match=message + r"-1e-07 and its largest 5 \(allowed: -1e-08 of that\)"):
        Model(kernel=_with_eigenvalues(values)).fit(numbers, y, TASK)
    values[0] = -4e-8  # more than the cheap check lets pass, less than is refused
    Model(kernel=_with_eigenvalues(values)).fit(numbers, y, TASK)
    for kernel, options in [("sigmoid", {"gamma": 5.0}), ("additive_chi2", {}), ("poly", {"coef0": -1.0, "degree": 2})]:
        with pytest.raises(ValueError, match=f"kernel '{kernel}' must be positive semidefinite"):
            Model(kernel=kernel, **options).fit(abs(X), y, TASK)
    with pytest.raises(ValueError, match=r"must be positive semidefinite.*smallest eigenvalue is -"):
        Model(kernel=lambda A, B: -A @ B.T).fit(X, y, TASK)
    assert Model(kernel=lambda A, B: np.zeros((len(A), len(B)))).fit(X, y, TASK).dual_coef_.shape[0] > 0
    assert Model(kernel="chi2").fit(abs(X), y, TASK).predict(abs(X), TASK).shape == (N,)


@BOTH
def test_kernels_that_are_no_kernels(data, Model):
    X, y = data[0], _target(Model, data[1])

    def fit(kernel, **options):
        return Model(kernel=kernel, **options).fit(X, y, TASK)

    for kernel, message in [
        (
            lambda A, B: (A @ B.T)[:-1],
            r"kernel must return a real matrix of shape \(23, 23\).*got float64 of shape \(22,",
        ),
        (lambda A, B: A @ B.T + 1j, r"real matrix.*got complex128"),
        (lambda A, B: np.sum(A) * np.sum(B), r"got float64 of shape \(\)"),
        (lambda A, B: A @ B.T + A[:, :1] * 1e-3, r"kernel <lambda>\(\) must be symmetric; .* differ by up to"),
        (lambda A, B: np.where(A[:, :1] > 1, np.nan, A @ B.T), r"kernel <lambda>\(\) gives NaN or infinity"),
        ("poli", r"kernel must be one of 'additive_chi2', .*'sigmoid' or a function .*; got 'poli'"),
        (None, r"kernel must be one of .*; got None"),
        (3, r"kernel must be one of .*; got 3"),
    ]:
        with pytest.raises(ValueError, match=message):
            fit(kernel)
    for name, value in [("gamma", 0.0), ("gamma", -1.0), ("gamma", np.inf), ("gamma", np.nan), ("gamma", "wide")]:
        with pytest.raises(
            ValueError, match=f"gamma must be a finite number > 0, 'scale', 'auto' or None; got {value!r}"
        ):
            fit("rbf", **{name: value})
    for options in ({"degree": -1}, {"degree": np.nan}, {"coef0": np.inf}):
        with pytest.raises(ValueError, match="degree must be a finite number >= 0 and coef0 finite; got"):
            fit("poly", **options)
    with pytest.raises(ValueError, match="kernel 'poly' gives NaN or infinity"), np.errstate(all="ignore"):
        fit("poly", degree=400, gamma=10.0)
    late = fit(lambda A, B: A @ B.T if len(A) > 5 else np.full((len(A), len(B)), np.nan))
    with pytest.raises(ValueError, match="gives NaN or infinity"):
        late.predict(X[:5], TASK[:5])


@BOTH
def test_bad_weights_and_graphs(data, Model):
    X, y = data[0], _target(Model, data[1])
    for options, message in [
        ({"alpha": 0.0}, "alpha must be .*> 0; got 0.0"),
        ({"alpha": -1.0}, "alpha must be .*> 0"),
        ({"alpha": np.nan}, "alpha must be .*finite"),
        ({"alpha": np.inf}, "alpha must be .*finite"),
        ({"coupling": -1.0}, "coupling must be a finite number >= 0; got -1.0"),
        ({"coupling": np.inf}, "coupling must be a finite number >= 0"),
        ({"coupling": np.nan}, "coupling must be a finite number >= 0"),
        ({"graph": np.ones((2, 2))}, r"graph must have shape \(3, 3\)"),
        ({"graph": -np.ones((3, 3)) + np.eye(3)}, "graph must have weights >= 0"),
        ({"graph": np.triu(np.ones((3, 3)), 1)}, "graph must be symmetric"),
    ]:
        with pytest.raises(ValueError, match=message):
            Model(**options).fit(X, y, TASK)


# --- hard data -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
@pytest.mark.parametrize("offset", [1e4, 1e7])
def test_ridge_far_from_zero(data, kernel, offset):
    X, y = data
    near = MultiTaskKernelRidge(0.3, 1.7, kernel=kernel).fit(X, y, TASK)
    far = MultiTaskKernelRidge(0.3, 1.7, kernel=kernel).fit(X + offset, y - offset, TASK)
    np.testing.assert_allclose(far.predict(X + offset, TASK) + offset, near.predict(X, TASK), atol=1e-14 * offset * 100)
    assert far.certificate_["residual of the linear system"] <= 1e-8


def test_support_vectors_far_from_zero(labelled):
    """The same up to the shift where there is one task or differences only; else the certificate holds all the same."""
    X, y = labelled
    near, far = (MultiTaskSVC(0.05, kernel="rbf").fit(X + c, y, TASK) for c in (0.0, 1e6))
    np.testing.assert_allclose(far.decision_function(X + 1e6, TASK), near.decision_function(X, TASK), atol=1e-7)
    near, far = (MultiTaskSVC(0.05).fit(X + c, y) for c in (0.0, 1e4))
    np.testing.assert_allclose(far.coef_, near.coef_, rtol=1e-5)
    model = MultiTaskSVC(0.05).fit(X + 1e4, y, TASK)  # a warning would be an error
    assert model.dual_gap_ <= 1e-7


def test_constant_columns_and_targets(data):
    X, y = data
    X = np.column_stack([X, np.full(N, 0.1 * 3e6)])
    model = MultiTaskKernelRidge(0.3, 1.7).fit(X, y, TASK)
    np.testing.assert_array_equal(model.coef_[:, -1], 0)
    model = MultiTaskKernelRidge(0.3, 1.7, kernel="rbf").fit(X, GROUPS @ [0.1, 1e6 + 0.3, -7.7], TASK)
    np.testing.assert_allclose(model.predict(X, TASK), GROUPS @ [0.1, 1e6 + 0.3, -7.7], rtol=1e-14)
    assert model.objective_ == model.dual_gap_ == 0


@BOTH
def test_one_task_is_much_larger_than_all_others(Model):
    rng = np.random.default_rng(6)
    sizes = (600, 2, 3, 1)
    index = np.repeat(np.arange(4), sizes)
    X = rng.normal(size=(sum(sizes), D))
    y = _target(Model, X[:, 0] + 0.3 * rng.normal(size=len(X)))
    model = Model(0.05, 1.0, kernel="rbf").fit(X, y, index)
    v = 1 / np.array(sizes)[index]
    M = np.linalg.inv(0.05 * np.eye(4) + 1.0 * (np.eye(4) - 0.25))
    K = M[index][:, index] * np.exp(-((X[:, None] - X) ** 2).sum(-1) / D)
    if Model is MultiTaskSVC:
        machine = SVC(C=1, kernel="precomputed", tol=1e-9).fit(K, y, sample_weight=v)
        np.testing.assert_allclose(_values(model, X, index), machine.decision_function(K), atol=1e-5)
    else:
        E = np.eye(4)[index]
        system = np.block([[K + np.diag(1 / v), E], [E.T, np.zeros((4, 4))]])
        c, b = np.split(np.linalg.solve(system, np.append(y, np.zeros(4))), [len(y)])
        np.testing.assert_allclose(model.predict(X, index), K @ c + b[index], rtol=1e-7)
