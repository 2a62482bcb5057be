"""Every convex model against cvxpy and scikit-learn: objectives, weights, intercepts, certificates, special cases."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import ElasticNet, Lasso, LogisticRegression
from sklearn.linear_model import MultiTaskLasso as SharedLasso

from companion import Tasks, linear
from companion.losses import SquaredLoss
from companion.solvers import Problem, learn_features
from tests.oracles import convex as oracle

INF = np.inf


@dataclass(frozen=True)
class Case:
    """An estimator and the same model as the oracle knows it."""

    make: Any
    norms: oracle.Norms
    loss: str = "squared"
    l2: float = 0.0
    parts: tuple[str, ...] = ("coef_",)
    unique: bool = True  # whether data in general position determine the weights


def _block(q, l2=0.0, alpha=0.11):
    return Case(lambda **kw: linear.MultiTaskLasso(alpha, q, l2, **kw), oracle.block_sparse(alpha, q), l2=l2)


def _block_logistic(q, l2=0.0, alpha=0.06):
    make = lambda **kw: linear.MultiTaskLassoClassifier(alpha, q, l2, **kw)
    return Case(make, oracle.block_sparse(alpha, q), "logistic", l2)


def _dirty(kind, loss, q):
    make = lambda **kw: getattr(linear, kind)(0.1, 0.07, q, **kw)
    return Case(make, oracle.dirty(0.1, 0.07, q), loss, parts=("block_", "sparse_"), unique=False)


CASES = {
    **{f"lasso q={q}": _block(q) for q in (1, 1.5, 2, 3, INF)},
    **{f"lasso q={q} ridge": _block(q, 0.23) for q in (1.5, 2, INF)},
    **{f"lasso logistic q={q}": _block_logistic(q) for q in (1, 1.5, 2, 3, INF)},
    "lasso logistic q=2 ridge": _block_logistic(2, 0.13),
    "dirty": _dirty("DirtyModel", "squared", INF),
    "dirty q=2": _dirty("DirtyModel", "squared", 2),
    "dirty logistic": _dirty("DirtyModelClassifier", "logistic", INF),
    "trace": Case(lambda **kw: linear.TraceNorm(0.17, **kw), oracle.trace_norm(0.17)),
    "trace logistic": Case(lambda **kw: linear.TraceNormClassifier(0.08, **kw), oracle.trace_norm(0.08), "logistic"),
    "robust": Case(
        lambda **kw: linear.RobustMTL(0.15, 0.12, **kw),
        oracle.robust(0.15, 0.12),
        parts=("low_rank_", "outlier_"),
    ),
    "features": Case(lambda **kw: linear.ConvexFeatureLearning(0.05, **kw), oracle.squared_trace_norm(0.05)),
    "mean": Case(lambda **kw: linear.MeanRegularized(0.07, 0.4, **kw), oracle.mean_deviation(0.07, 0.4)),
    "complete graph": Case(lambda **kw: linear.GraphRegularized(0.07, 0.4, **kw), oracle.mean_deviation(0.07, 0.4)),
    "mean logistic": Case(
        lambda **kw: linear.MeanRegularizedClassifier(0.05, 0.3, **kw), oracle.mean_deviation(0.05, 0.3), "logistic"
    ),
}
# sizes n_t, d, how the tasks lie, options; n_t on both sides of d
SETTINGS = {
    "ragged": ((4, 11, 9), 6, "ragged", {}),
    "weighted": ((12, 5, 8, 3), 7, "weighted", {}),
    "weighted sum": ((9, 14), 5, "weighted", {"reduction": "sum"}),
    "ragged without intercept": ((3, 13, 10), 5, "ragged", {"fit_intercept": False}),
    "shared wide": ((7, 7, 7, 7), 9, "shared", {}),
    "shared tall sum": ((17, 17, 17), 4, "shared", {"reduction": "sum"}),
    "missing": ((19, 19, 19), 6, "missing", {}),
    "missing without intercept": ((14, 14), 5, "missing", {"fit_intercept": False}),
    "one task": ((12,), 8, "ragged", {}),
    "one feature": ((6, 9, 4), 1, "ragged", {}),
}


def draw(sizes, d, layout, loss, seed=0):
    """Oracle's blocks and what ``fit`` takes; every task has both labels where labels are wanted."""
    rng = np.random.default_rng(seed)
    common, X_common = rng.normal(size=d), rng.normal(size=(sizes[0], d)) + 0.5
    blocks = []
    for t, n in enumerate(sizes):
        X = X_common if layout in ("shared", "missing") else rng.normal(size=(n, d)) * (1 + t) + t
        y = X @ (common + 0.5 * rng.normal(size=d)) + 2 * rng.normal(size=n) + 3 * t
        if loss == "logistic":
            y = np.where(y > np.sort(y)[n // 3], 1.0, -1.0)
        blocks.append([X, y, rng.uniform(0.3, 2.5, n) if layout == "weighted" else np.ones(n)])
    if layout == "missing":
        seen = rng.random((sizes[0], len(sizes))) > 0.3
        Y = np.where(seen, np.stack([y for _, y, _ in blocks], axis=1), np.nan)
        blocks = [[X[seen[:, t]], y[seen[:, t]], s[seen[:, t]]] for t, (X, y, s) in enumerate(blocks)]
        return blocks, (Tasks.shared(X_common, Y),)
    if layout == "shared":
        return blocks, (Tasks.shared(X_common, np.stack([y for _, y, _ in blocks], axis=1)),)
    X, y, s = (np.concatenate([block[i] for block in blocks]) for i in range(3))
    task = np.repeat(np.arange(len(sizes)), sizes)
    order = rng.permutation(len(y))
    rest = (s[order],) if layout == "weighted" else ()
    return blocks, (X[order], y[order], task[order], *rest)


def fitted(case, setting, tol=1e-10):
    sizes, d, layout, options = SETTINGS[setting]
    blocks, data = draw(sizes, d, layout, case.loss)
    return blocks, case.make(tol=tol, **options).fit(*data), options


def penalty_of(case, model):
    return case.norms.value(*(getattr(model, name).T for name in case.parts))


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", CASES)
def test_objective_matches_cvxpy_and_certificate_matches_numpy(name, setting):
    """A gap of 1e-10 without a warning, the objective of Clarabel to 1e-8, and all three numbers recomputed."""
    case = CASES[name]
    blocks, model, options = fitted(case, setting)
    reduction, fit_intercept = options.get("reduction", "mean"), options.get("fit_intercept", True)
    W, b = model.coef_.T, model.intercept_
    null = oracle.null_objective(blocks, case.loss, reduction, fit_intercept)
    # The attributes are what their names say.
    primal = oracle.data_term(blocks, W, b, case.loss, reduction, case.l2) + penalty_of(case, model)
    assert model.objective_ == pytest.approx(primal, rel=1e-12)
    dual = oracle.lower_bound(blocks, W, case.norms, case.loss, reduction, fit_intercept, case.l2)
    assert model.dual_gap_ == pytest.approx(primal - dual, abs=1e-13 * null)
    assert abs(model.dual_gap_) <= 1e-10 * null
    for t, ((X, y, _), v) in enumerate(zip(blocks, oracle.row_weights(blocks, reduction), strict=True)):
        if fit_intercept:  # the intercept is the best one for these weights
            assert abs(v @ oracle.slopes(case.loss, y, X @ W[:, t] + b[t])) <= 1e-12 * null
        else:
            assert b[t] == 0
    # And the answer is right.
    value, W_cvxpy, b_cvxpy = oracle.solve(blocks, case.norms, case.loss, reduction, fit_intercept, case.l2)
    assert model.objective_ == pytest.approx(value, rel=1e-8)
    assert dual <= value * (1 + 1e-8)
    assert np.abs(W).max() > 0, "a test of zeros would show nothing"
    if case.unique and setting in ("shared tall sum", "one feature"):  # strongly convex: the weights are unique
        np.testing.assert_allclose(W, W_cvxpy, atol=2e-4 * np.abs(W_cvxpy).max())
        np.testing.assert_allclose(b, b_cvxpy, rtol=1e-3, atol=1e-3)


# --- scikit-learn's models, where it has them ------------------------------------------------------------------------


@pytest.mark.parametrize("l2", [0.0, 0.3])
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize(("n", "d", "T"), [(31, 7, 4), (9, 23, 3)])
def test_shared_inputs_match_scikit_learn(n, d, T, fit_intercept, l2):
    """sklearn's MultiTaskLasso has our objective; its elastic net splits one alpha by l1_ratio."""
    from sklearn.linear_model import MultiTaskElasticNet

    rng = np.random.default_rng(1)
    X = rng.normal(size=(n, d)) + 1
    Y = X[:, :3] @ rng.normal(size=(3, T)) + rng.normal(size=(n, T)) + 5
    alpha = 0.2
    model = linear.MultiTaskLasso(alpha, l2=l2, fit_intercept=fit_intercept, tol=1e-14).fit(Tasks.shared(X, Y))
    options = {"fit_intercept": fit_intercept, "tol": 1e-15, "max_iter": 100_000}
    if l2:
        twin = MultiTaskElasticNet(alpha + l2, l1_ratio=alpha / (alpha + l2), **options)
    else:
        twin = SharedLasso(alpha, **options)
    twin.fit(X, Y)
    np.testing.assert_allclose(model.coef_, twin.coef_, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(model.intercept_, twin.intercept_, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal((model.coef_ == 0).all(0), (twin.coef_ == 0).all(0))
    residual = Y - X @ twin.coef_.T - twin.intercept_
    value = (residual**2).sum() / (2 * n) + alpha * np.linalg.norm(twin.coef_, axis=0).sum()
    assert model.objective_ == pytest.approx(value + l2 / 2 * (twin.coef_**2).sum(), rel=1e-10)


@pytest.mark.parametrize("q", [1, 1.5, 2, 3, INF])
@pytest.mark.parametrize("l2", [0.0, 0.4])
def test_one_task_is_the_lasso_or_the_elastic_net(q, l2):
    """``alpha ||w||_1 + l2/2 ||w||^2`` is ElasticNet(alpha + l2, l1_ratio=alpha / (alpha + l2)); weights alike."""
    rng = np.random.default_rng(2)
    X, s = rng.normal(size=(27, 6)) + 2, rng.uniform(0.2, 3, 27)
    y = X @ [1, -2, 0, 0, 0.5, 0] + rng.normal(size=27)
    alpha = 0.3
    model = linear.MultiTaskLasso(alpha, q, l2, tol=1e-14).fit(X, y, sample_weight=s)
    twin = ElasticNet(alpha + l2, l1_ratio=alpha / (alpha + l2), tol=1e-15, max_iter=100_000)
    twin = twin if l2 else Lasso(alpha, tol=1e-15, max_iter=100_000)
    twin.fit(X, y, sample_weight=s)
    np.testing.assert_allclose(model.coef_[0], twin.coef_, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(model.intercept_, twin.intercept_, rtol=1e-6)


@pytest.mark.parametrize("kind", ["MultiTaskLassoClassifier", "DirtyModelClassifier"])
def test_one_logistic_task_is_l1_logistic_regression(kind):
    """With losses divided by n, ``C = 1 / (alpha n)``; sample weights are divided by their sum."""
    rng = np.random.default_rng(3)
    X, s = rng.normal(size=(45, 5)) * 1.5, rng.uniform(0.2, 3, 45)
    y = np.where(X @ [1, -1, 0, 0.5, 0] + rng.logistic(size=45) > 0.7, "in", "out")
    alpha = 0.05
    model = getattr(linear, kind)(alpha).set_params(tol=1e-12)
    if kind.startswith("Dirty"):
        model.set_params(alpha_sparse=10.0)  # so dear that only the block part is used
    model.fit(X, y, sample_weight=s)
    twin = LogisticRegression(C=1 / (alpha * s.sum()), l1_ratio=1, solver="saga", tol=1e-12, max_iter=100_000)
    twin.fit(X, y, sample_weight=s)
    np.testing.assert_allclose(model.coef_, twin.coef_, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(model.intercept_, twin.intercept_, rtol=1e-5)
    np.testing.assert_array_equal(model.classes_, twin.classes_)
    np.testing.assert_allclose(model.predict_proba(X), twin.predict_proba(X), rtol=1e-4)


def test_one_task_turns_the_trace_norm_into_a_length_and_its_square_into_a_ridge():
    rng = np.random.default_rng(4)
    X, y = rng.normal(size=(19, 6)) + 1, rng.normal(size=19) * 3
    gamma, alpha = 0.2, 0.4
    features = linear.ConvexFeatureLearning(gamma, tol=1e-14).fit(X, y)
    Z, r = X - X.mean(0), y - y.mean()
    ridge = np.linalg.solve(Z.T @ Z / 19 + 2 * gamma * np.eye(6), Z.T @ r / 19)
    np.testing.assert_allclose(features.coef_[0], ridge, rtol=1e-6)
    w = linear.TraceNorm(alpha, tol=1e-14).fit(X, y).coef_[0]
    np.testing.assert_allclose(Z.T @ (r - Z @ w) / 19, alpha * w / np.linalg.norm(w), atol=1e-6)


# --- where weights become zero ---------------------------------------------------------------------------------------

WEIGHTS = {"DirtyModel": ("alpha_block", "alpha_sparse"), "RobustMTL": ("alpha_low_rank", "alpha_outlier")}
WITH_ALPHA_MAX = [name for name, case in CASES.items() if case.norms.is_norm]


def times(model, factor):
    """The model with its weight set to ``factor``, or with both weights multiplied by it."""
    pair = WEIGHTS.get(type(model).__name__.removesuffix("Classifier"))
    names = {"alpha": factor} if pair is None else {name: factor * getattr(model, name) for name in pair}
    return type(model)(**{**model.get_params(), **names})


@pytest.mark.parametrize("setting", ["weighted", "ragged without intercept", "missing", "shared wide"])
@pytest.mark.parametrize("name", WITH_ALPHA_MAX)
def test_alpha_max_is_where_weights_vanish(name, setting):
    case = CASES[name]
    sizes, d, layout, options = SETTINGS[setting]
    blocks, data = draw(sizes, d, layout, case.loss, seed=5)
    model = case.make(**options)
    top = model.alpha_max(*data)
    b = np.zeros(len(blocks))
    if options.get("fit_intercept", True):
        b = [oracle.best_intercept(case.loss, y, 0 * y, s) for _, y, s in blocks]
    C = oracle.descent(blocks, np.zeros((d, len(blocks))), b, case.loss)
    unit = getattr(model, "alpha", 1.0)
    assert top == pytest.approx(unit * case.norms.dual(C), rel=1e-12)
    above, below = (times(model, factor * top).fit(*data) for factor in (1.0001, 0.99))
    np.testing.assert_array_equal(above.coef_, 0)
    np.testing.assert_allclose(above.intercept_, b, rtol=1e-9, atol=1e-12)
    assert above.dual_gap_ == pytest.approx(0, abs=1e-12)
    assert np.abs(below.coef_).max() > 0


def test_alpha_max_takes_tasks_weights_and_reductions():
    blocks, (X, y, task, s) = draw((9, 14), 5, "weighted", "squared")
    C = oracle.descent(blocks, np.zeros((5, 2)), [s_ @ y_ / s_.sum() for _, y_, s_ in blocks], "squared", "sum")
    for E, expected in [
        (linear.MultiTaskLasso, np.linalg.norm(C, axis=1).max()),
        (linear.MultiTaskLassoCV, np.linalg.norm(C, axis=1).max()),
        (linear.TraceNormCV, np.linalg.norm(C, 2)),
    ]:
        model = E(reduction="sum")
        assert model.alpha_max(X, y, task, s) == pytest.approx(expected, rel=1e-12)
        assert model.alpha_max(Tasks.from_long(X, y, task, s)) == model.alpha_max(X, y, task, s)
    assert linear.ConvexFeatureLearning().alpha_max(X, y, task) == np.inf
    assert linear.ConvexFeatureLearning().alpha_max(X, 0 * y, task) == 0


# --- optimality conditions -------------------------------------------------------------------------------------------


def _solved(E, options, seed=6, sizes=(15, 28, 22), d=8):
    blocks, data = draw(sizes, d, "ragged", "squared", seed)
    model = E(**options, tol=1e-14 if "q" not in options or options["q"] == 2 else 1e-13).fit(*data)
    return oracle.descent(blocks, model.coef_.T, model.intercept_, "squared"), model.coef_.T


def test_conditions_of_the_group_lasso():
    alpha = 3.0
    C, W = _solved(linear.MultiTaskLasso, {"alpha": alpha, "q": 2})
    active = (W != 0).any(1)
    assert 0 < active.sum() < len(W)
    assert np.linalg.norm(C[~active], axis=1).max() <= alpha
    lengths = np.linalg.norm(W[active], axis=1, keepdims=True)
    np.testing.assert_allclose(C[active], alpha * W[active] / lengths, atol=1e-5 * alpha)


def test_conditions_of_the_largest_weight_norm():
    alpha = 4.0
    C, W = _solved(linear.MultiTaskLasso, {"alpha": alpha, "q": INF})
    active = (W != 0).any(1)
    assert 0 < active.sum() < len(W)
    assert np.abs(C[~active]).sum(1).max() <= alpha
    np.testing.assert_allclose(np.abs(C[active]).sum(1), alpha, rtol=1e-5)
    for c, w in zip(C[active], W[active], strict=True):
        largest = np.abs(w) >= np.abs(w).max() * (1 - 1e-5)
        np.testing.assert_allclose(c[~largest], 0, atol=1e-4 * alpha)
        assert (c[largest] * w[largest] >= -1e-6).all()


def test_conditions_of_the_trace_norm():
    """C = alpha (U V' + Z) with Z orthogonal to the singular vectors of W and of spectral norm at most one."""
    alpha = 4.0
    C, W = _solved(linear.TraceNorm, {"alpha": alpha})
    U, s, Vh = np.linalg.svd(W, full_matrices=False)
    rank = int((s > 1e-9 * s[0]).sum())
    assert 0 < rank < min(W.shape)
    U, Vh = U[:, :rank], Vh[:rank]
    Z = C / alpha - U @ Vh
    assert np.linalg.norm(Z, 2) <= 1 + 1e-6
    np.testing.assert_allclose(U.T @ Z, 0, atol=1e-5)
    np.testing.assert_allclose(Z @ Vh.T, 0, atol=1e-5)


# --- models in two parts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [3.3, 3.0, 2.0, 1.0, 0.9])
def test_dirty_model_collapses_to_its_parts(ratio):
    """T = 3: from alpha_block = T alpha_sparse on it is the lasso, up to alpha_sparse the multi-task lasso."""
    _, data = draw((24, 17, 30), 9, "ragged", "squared", seed=7)
    small = 1.5
    dirty = linear.DirtyModel(ratio * small, small, tol=1e-11).fit(*data)
    lasso = linear.MultiTaskLasso(small, 1, tol=1e-11).fit(*data)
    block = linear.MultiTaskLasso(ratio * small, INF, tol=1e-11).fit(*data)
    np.testing.assert_array_equal(dirty.block_ + dirty.sparse_, dirty.coef_)
    if ratio >= 3:
        np.testing.assert_array_equal(dirty.block_, 0)
        assert dirty.objective_ == pytest.approx(lasso.objective_, rel=1e-10)
        assert lasso.objective_ < block.objective_
    elif ratio <= 1:
        np.testing.assert_array_equal(dirty.sparse_, 0)
        assert dirty.objective_ == pytest.approx(block.objective_, rel=1e-10)
        assert block.objective_ < lasso.objective_
    else:
        assert np.abs(dirty.block_).max() > 0 and np.abs(dirty.sparse_).max() > 0
        assert dirty.objective_ < min(lasso.objective_, block.objective_) * (1 - 1e-4)


def test_dirty_classifier_collapses_too():
    _, data = draw((24, 17, 30), 9, "ragged", "logistic", seed=7)
    lasso = linear.MultiTaskLassoClassifier(0.05, 1, tol=1e-11).fit(*data)
    dirty = linear.DirtyModelClassifier(0.16, 0.05, tol=1e-11).fit(*data)
    np.testing.assert_array_equal(dirty.block_, 0)
    assert dirty.objective_ == pytest.approx(lasso.objective_, rel=1e-10)


@pytest.mark.parametrize("ratio", [1.0, 1.7])
def test_robust_model_without_cheap_outliers_is_the_trace_norm(ratio):
    _, data = draw((24, 17, 30), 5, "ragged", "squared", seed=8)
    robust = linear.RobustMTL(2.0, 2.0 * ratio, tol=1e-12).fit(*data)
    trace = linear.TraceNorm(2.0, tol=1e-12).fit(*data)
    np.testing.assert_allclose(robust.outlier_, 0, atol=1e-5)
    np.testing.assert_allclose(robust.coef_, trace.coef_, atol=1e-4)
    assert robust.objective_ == pytest.approx(trace.objective_, rel=1e-10)
    np.testing.assert_array_equal(robust.low_rank_ + robust.outlier_, robust.coef_)


def test_robust_model_with_dear_low_rank_is_a_group_lasso_on_tasks():
    """||L||_* >= ||L||_F >= sum_t ||l_t|| / sqrt(T): from a ratio of sqrt(T) on, columns by themselves cost less."""
    blocks, data = draw((24, 17, 30), 5, "ragged", "squared", seed=8)
    robust = linear.RobustMTL(1.8 * 2.0, 2.0, tol=1e-13).fit(*data)
    np.testing.assert_allclose(robust.low_rank_, 0, atol=1e-6)
    C = oracle.descent(blocks, robust.coef_.T, robust.intercept_, "squared").T  # (T, d)
    for c, w in zip(C, robust.coef_, strict=True):
        np.testing.assert_allclose(c, 2.0 * w / np.linalg.norm(w), atol=1e-4)


def test_robust_model_finds_the_planted_outlier():
    rng = np.random.default_rng(9)
    w, T, n, d = rng.normal(size=6), 7, 40, 6
    W = np.outer(w, rng.uniform(0.5, 2, T))
    W[:, 4] = 3 * rng.normal(size=d)
    X, task = rng.normal(size=(T * n, d)), np.repeat(np.arange(T), n)
    y = (X * W.T[task]).sum(1) + 0.1 * rng.normal(size=T * n)
    model = linear.RobustMTL(0.3, 0.2).fit(X, y, task)
    sizes = np.linalg.norm(model.outlier_, axis=1)
    assert (np.delete(sizes, 4) < 0.02 * sizes[4]).all() and np.linalg.norm(model.low_rank_[4]) < 0.3 * sizes[4]
    assert np.linalg.matrix_rank(model.low_rank_, tol=1e-6) == 1


# --- convex feature learning -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sizes", "d"), [((12, 5, 9, 8), 6), ((22, 17), 5)])
def test_feature_learning_is_the_trace_norm_at_the_matching_alpha(sizes, d):
    """The subgradient of gamma ||W||_*^2 is that of 2 gamma ||W||_* times the trace norm."""
    gamma = 0.3
    _, data = draw(sizes, d, "weighted", "squared", seed=10)
    model = linear.ConvexFeatureLearning(gamma, tol=1e-13).fit(*data)
    size = np.linalg.svd(model.coef_, compute_uv=False).sum()
    trace = linear.TraceNorm(2 * gamma * size, tol=1e-13).fit(*data)
    np.testing.assert_allclose(trace.coef_, model.coef_, atol=1e-5 * np.abs(model.coef_).max())
    np.testing.assert_allclose(trace.intercept_, model.intercept_, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("sizes", "d", "eps"), [((12, 15, 9, 8, 21, 17, 10), 4, 1e-12), ((12, 5, 9, 8), 6, 1e-4)])
def test_feature_learning_is_the_limit_of_the_alternation(sizes, d, eps):
    """Perturbed by eps, the optimum lies between the unperturbed one and the perturbed objective at its solution."""
    gamma = 0.05
    blocks, data = draw(sizes, d, "weighted", "squared", seed=10)
    model = linear.ConvexFeatureLearning(gamma, tol=1e-13).fit(*data)
    history = learn_features(Problem.from_tasks(Tasks.from_long(*data), SquaredLoss()), gamma, eps, 1e-11, 3000)
    W = history.state.W.numpy()
    b = [oracle.best_intercept("squared", y, X @ w, s) for (X, y, s), w in zip(blocks, W.T, strict=True)]
    value = oracle.data_term(blocks, W, b, "squared") + oracle.squared_trace_norm(gamma).value(W)
    s = np.linalg.svd(model.coef_, compute_uv=False)
    padded = np.concatenate([s, np.zeros(d - len(s))]) if len(s) < d else s
    excess = gamma * (np.sqrt(padded**2 + eps).sum() ** 2 - s.sum() ** 2)
    assert model.objective_ <= value * (1 + 1e-12)
    assert value <= history.objective[-1] * (1 + 1e-12)
    assert history.objective[-1] <= (model.objective_ + excess) * (1 + 1e-7)
    assert excess <= 5e-3 * model.objective_
    np.testing.assert_allclose(W, model.coef_.T, atol=0.02 * np.abs(W).max() if eps > 1e-12 else 1e-4)
    np.testing.assert_allclose(history.state.D, model.feature_covariance_, atol=0.02 if eps > 1e-12 else 1e-5)
    assert float(history.state.D.trace()) == pytest.approx(1, rel=1e-12)
    falls = np.diff(history.objective)
    assert (falls <= 1e-9 * history.objective[0]).all() and falls[:4].max() < 0


def test_feature_covariance_is_the_normalised_root():
    _, data = draw((12, 5, 9), 7, "ragged", "squared", seed=11)
    model = linear.ConvexFeatureLearning(0.2).fit(*data)
    values, Q = np.linalg.eigh(model.coef_.T @ model.coef_)
    root = (Q * np.sqrt(np.maximum(values, 0))) @ Q.T
    D = model.feature_covariance_
    np.testing.assert_allclose(D, root / np.trace(root), atol=1e-7)
    np.testing.assert_allclose(D, D.T, atol=1e-15)
    assert np.trace(D) == pytest.approx(1, rel=1e-12)
    assert np.linalg.eigvalsh(D).min() >= -1e-12
    # The variational form: this D makes gamma sum_t <w_t, D^-1 w_t> equal gamma ||W||_*^2.
    W = model.coef_.T
    form = np.trace(W.T @ np.linalg.pinv(D, rcond=1e-9) @ W)
    assert form == pytest.approx(np.linalg.svd(W, compute_uv=False).sum() ** 2, rel=1e-8)
    flat = linear.ConvexFeatureLearning(0.2).fit(data[0], np.full(26, 3.0), data[2])
    np.testing.assert_array_equal(flat.feature_covariance_, np.eye(7) / 7)


# --- data of any library ---------------------------------------------------------------------------------------------


def test_single_precision_input_is_solved_in_double():
    _, (X, y, task) = draw((12, 5, 9), 7, "ragged", "squared", seed=12)
    X32 = torch.tensor(X, dtype=torch.float32)
    for E in (linear.MultiTaskLasso, linear.TraceNorm, linear.DirtyModel, linear.RobustMTL):
        a = E(tol=1e-10).fit(X32, torch.from_numpy(y), task)
        b = E(tol=1e-10).fit(X32.double(), torch.from_numpy(y), task)
        assert a.objective_ == b.objective_ and a.dual_gap_ == b.dual_gap_
        torch.testing.assert_close(a.coef_, b.coef_.float(), rtol=0, atol=0)
