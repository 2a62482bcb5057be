"""What a convex solver could trip over: odd scales, constant and repeated columns, tiny tasks, no numba, few steps."""

import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning

import companion.solvers.convex
from companion import Tasks, linear
from companion.datasets import load_school
from companion.linear import (
    ConvexFeatureLearning,
    DirtyModel,
    DirtyModelClassifier,
    MultiTaskLasso,
    MultiTaskLassoClassifier,
    MultiTaskLassoCV,
    RobustMTL,
    TraceNorm,
    TraceNormClassifier,
    TraceNormCV,
)
from companion.tasks import Standardiser
from tests.needs import needs_school
from tests.oracles import convex as oracle

INF = np.inf
SIZES, D = (19, 6, 25), 8
TASK = np.repeat(["a", "b", "c"], SIZES)
N = len(TASK)
REGRESSION = {
    "lasso": (MultiTaskLasso(0.3, 1), oracle.block_sparse(0.3, 1)),
    "group": (MultiTaskLasso(0.3), oracle.block_sparse(0.3, 2)),
    "largest": (MultiTaskLasso(0.3, INF), oracle.block_sparse(0.3, INF)),
    "between": (MultiTaskLasso(0.3, 1.5), oracle.block_sparse(0.3, 1.5)),
    "dirty": (DirtyModel(0.3, 0.2), oracle.dirty(0.3, 0.2, INF)),
    "trace": (TraceNorm(0.3), oracle.trace_norm(0.3)),
    "robust": (RobustMTL(0.3, 0.25), oracle.robust(0.3, 0.25)),
    "features": (ConvexFeatureLearning(0.05), oracle.squared_trace_norm(0.05)),
}
CLASSIFICATION = {
    "group logistic": (MultiTaskLassoClassifier(0.04), oracle.block_sparse(0.04, 2)),
    "dirty logistic": (DirtyModelClassifier(0.04, 0.03), oracle.dirty(0.04, 0.03, INF)),
    "trace logistic": (TraceNormClassifier(0.04), oracle.trace_norm(0.04)),
}
MODELS = {**REGRESSION, **CLASSIFICATION}
PARTS = {"DirtyModel": ("block_", "sparse_"), "RobustMTL": ("low_rank_", "outlier_")}


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    X, W = rng.normal(size=(N, D)), rng.normal(size=(3, D))
    index = np.repeat(np.arange(3), SIZES)
    return X, (X * W[index]).sum(1) + 0.5 * rng.normal(size=N)


def labels(y):
    """Above the median of its task or not."""
    out = np.empty(len(y))
    for id_ in np.unique(TASK):
        rows = id_ == TASK
        out[rows] = np.where(y[rows] > np.median(y[rows]), 1.0, -1.0)
    return out


def target(name, y):
    return labels(y) if name in CLASSIFICATION else y


def loss_of(name):
    return "logistic" if name in CLASSIFICATION else "squared"


def in_blocks(X, y):
    return [(X[id_ == TASK], y[id_ == TASK], np.ones(n)) for id_, n in zip("abc", SIZES, strict=True)]


def fresh(name, **options):
    model = MODELS[name][0]
    return type(model)(**{**model.get_params(), **options})


def weights_of(model):
    """The names and values of what multiplies the penalty."""
    names = ("alpha", "alpha_block", "alpha_sparse", "alpha_low_rank", "alpha_outlier", "gamma")
    return {name: value for name, value in model.get_params().items() if name in names}


def times(model, factor):
    return type(model)(**{**model.get_params(), **{name: factor * w for name, w in weights_of(model).items()}})


def check_honest(name, model, X, y, caught):
    """The certificate is that of NumPy, it holds, and a warning came exactly when it is worse than ``tol``."""
    norms, loss = MODELS[name][1], loss_of(name)
    blocks, W, b = in_blocks(X, y), model.coef_.T, model.intercept_
    null = oracle.null_objective(blocks, loss)
    assert np.isfinite(W).all() and np.isfinite(b).all()
    parts = PARTS.get(type(model).__name__.removesuffix("Classifier"), ("coef_",))
    primal = oracle.data_term(blocks, W, b, loss) + norms.value(*(getattr(model, p).T for p in parts))
    assert model.objective_ == pytest.approx(primal, abs=1e-8 * null)
    assert model.objective_ <= null * (1 + 1e-9), "worse than no weights at all"
    gap = primal - oracle.lower_bound(blocks, W, norms, loss)
    assert model.dual_gap_ == pytest.approx(gap, abs=1e-7 * max(null, abs(gap)))
    assert (abs(model.dual_gap_) > model.tol * null) == bool(caught), [str(w.message) for w in caught]
    assert all(w.category is ConvergenceWarning for w in caught)


# --- parameters ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (MultiTaskLasso(0.0), r"alpha must be a finite number > 0; got 0\.0"),
        (MultiTaskLasso(-1.0), r"alpha must be .*; got -1\.0"),
        (MultiTaskLasso(q=0.99), r"q must be a number in \[1, inf\]; got 0\.99"),
        (MultiTaskLasso(q=np.nan), "q must be .*; got nan"),
        (MultiTaskLasso(l2=-0.1), r"l2 must be a finite number >= 0; got -0\.1"),
        (MultiTaskLasso(l2=INF), "l2 must be .*; got inf"),
        (MultiTaskLassoClassifier(np.nan), "alpha must be .*; got nan"),
        (DirtyModel(alpha_block=0.0), r"alpha_block must be .*; got 0\.0"),
        (DirtyModel(alpha_sparse=-0.2), r"alpha_sparse must be .*; got -0\.2"),
        (DirtyModel(q=0.5), r"q must be .*; got 0\.5"),
        (RobustMTL(alpha_low_rank=0), "alpha_low_rank must be .*; got 0"),
        (RobustMTL(alpha_outlier=INF), "alpha_outlier must be .*; got inf"),
        (ConvexFeatureLearning(0.0), r"gamma must be .*; got 0\.0"),
        (TraceNormClassifier(-3.0), r"alpha must be .*; got -3\.0"),
        (MultiTaskLassoCV(alphas=()), r"alphas must be a 1-D sequence of finite numbers > 0; got \(\)"),
        (MultiTaskLassoCV(alphas=(0.1, 0.0)), "alphas must be"),
        (TraceNormCV(alphas=[[0.1]]), "alphas must be a 1-D"),
        (MultiTaskLassoCV(n_alphas=0), "n_alphas must be >= 1; got 0"),
        (TraceNormCV(alpha_ratio=1.0), r"alpha_ratio must lie strictly between 0 and 1; got 1\.0"),
        (TraceNormCV(cv=1), "n_folds must be at least 2; got 1"),
    ],
    ids=repr,
)
def test_bad_parameters_are_named(data, model, message):
    X, y = data
    y = labels(y) if "Classifier" in type(model).__name__ else y
    with pytest.raises(ValueError, match=message):
        model.fit(X, y, TASK)


# --- running out of iterations ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_running_out_of_iterations_warns_and_keeps_the_best(data, name):
    X, y = data[0] * np.logspace(0, 1.5, D), data[1]  # uneven columns: nobody is done at once
    y, values = target(name, y), []
    for max_iter in (1, 2, 4, 9, 17, 33):
        model = fresh(name, tol=1e-13, max_iter=max_iter)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.fit(X, y, TASK)
        check_honest(name, model, X, y, caught)
        values.append(model.objective_)
        if max_iter == 1:
            null = oracle.null_objective(in_blocks(X, y), loss_of(name))
            assert len(caught) == 1
            text = str(caught[0].message)
            assert text.startswith(f"{type(model).__name__} stopped after ")
            assert f"{model.dual_gap_ / null:.1e}" in text and "tol=1.0e-13" in text and "max_iter=1)" in text
            assert f"after {model.n_iter_} iterations" in text
    assert all(b <= a * (1 + 1e-12) for a, b in pairwise(values)), values
    assert values[-1] < values[0] or name == "group logistic"


def test_the_warning_comes_at_the_tolerance_and_not_later(data):
    """FISTA goes through the same points whatever the tolerance: just under the gap it reaches, a warning is due."""
    X, y = data
    model = TraceNorm(0.3, tol=1e-13, max_iter=20)
    with pytest.warns(ConvergenceWarning):
        model.fit(X, y, TASK)
    reached = model.dual_gap_ / oracle.null_objective(in_blocks(X, y), "squared")
    with pytest.warns(ConvergenceWarning, match="stopped after 20 iterations"):
        model.set_params(tol=0.99 * reached).fit(X, y, TASK)
    model.set_params(tol=1.01 * reached).fit(X, y, TASK)


# --- columns and tasks that say nothing ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_constant_columns_get_no_weight(data, name):
    X, y = data
    y = target(name, y)
    Z = X.copy()
    Z[:, 2], Z[:, 5] = 0.1, 0.0  # 0.1 is no binary fraction: its mean is off by rounding
    Z[TASK == "b", 3] = 7.7  # constant in one task only
    model = fresh(name, tol=1e-9).fit(Z, y, TASK)
    np.testing.assert_array_equal(model.coef_[:, [2, 5]], 0)
    check_honest(name, model, Z, y, [])
    bare = fresh(name, tol=1e-9).fit(np.delete(Z, [2, 5], axis=1), y, TASK)
    assert model.objective_ == pytest.approx(bare.objective_, rel=1e-8)


@pytest.mark.parametrize("name", ["lasso", "group", "largest", "between", "dirty", "group logistic", "dirty logistic"])
def test_repeated_columns_change_no_optimum(data, name):
    """For a sum of norms of rows, splitting a row over two equal columns gains nothing and costs nothing."""
    X, y = data
    y = target(name, y)
    Z = np.concatenate([X, X[:, ::-1], -X], axis=1)
    once, thrice = (fresh(name, tol=1e-10).fit(A, y, TASK) for A in (X, Z))
    assert thrice.objective_ == pytest.approx(once.objective_, rel=1e-9)
    check_honest(name, thrice, Z, y, [])
    merged = thrice.coef_[:, :D] + thrice.coef_[:, D : 2 * D][:, ::-1] - thrice.coef_[:, 2 * D :]
    if name in ("lasso", "group", "between"):
        np.testing.assert_allclose(merged, once.coef_, atol=1e-3)


@pytest.mark.parametrize("name", ["trace", "robust", "features", "trace logistic"])
def test_repeated_columns_are_certified(data, name):
    """Norms that mix rows are smaller on doubled columns: twice the columns at alpha is once at alpha / sqrt(2)."""
    X, y = data
    y = target(name, y)
    twice = fresh(name, tol=1e-10).fit(np.concatenate([X, X], axis=1), y, TASK)
    check_honest(name, twice, np.concatenate([X, X], axis=1), y, [])
    np.testing.assert_allclose(twice.coef_[:, :D], twice.coef_[:, D:], atol=1e-5)
    # W = (V, V) has the singular values of sqrt(2) V, and X (V + V) = X (2 V).
    power = 1.0 if name == "features" else 0.5
    if name != "robust":
        once = times(fresh(name, tol=1e-10), 2**-power).fit(X, y, TASK)
        assert twice.objective_ == pytest.approx(once.objective_, rel=1e-8)
        np.testing.assert_allclose(2 * twice.coef_[:, :D], once.coef_, atol=1e-4)


@pytest.mark.parametrize("name", REGRESSION)
def test_a_task_of_one_row_is_its_intercept(data, name):
    X, y = data
    task = np.where(np.arange(N) == 30, "alone", TASK)
    model = fresh(name, tol=1e-9).fit(X, y, task)
    # Nothing pulls on these weights; where singular vectors mix the tasks, rounding does.
    np.testing.assert_allclose(model.coef_[1], 0, atol=1e-13 if name in ("trace", "robust", "features") else 0)
    assert model.task_ids_[1] == "alone"
    assert model.intercept_[1] == pytest.approx(y[30], rel=1e-12)
    assert np.abs(model.coef_).max() > 0


@pytest.mark.parametrize("name", REGRESSION)
@pytest.mark.parametrize("value", [0.0, -1.7e5])
def test_constant_targets_need_no_weights(data, name, value):
    model = fresh(name).fit(data[0], np.full(N, value), TASK)
    np.testing.assert_array_equal(model.coef_, 0)
    np.testing.assert_allclose(model.intercept_, value, rtol=1e-14)
    assert model.objective_ == model.dual_gap_ == 0
    assert model.alpha_max(data[0], np.full(N, value), TASK) == 0


@pytest.mark.parametrize("model", [MultiTaskLassoCV(), TraceNormCV()])
def test_constant_targets_leave_no_grid(data, model):
    with pytest.raises(ValueError, match="no grid of penalties: zero weights are optimal"):
        model.fit(data[0], np.zeros(N), TASK)
    model.set_params(alphas=(0.1,)).fit(data[0], np.zeros(N), TASK)
    np.testing.assert_array_equal(model.coef_, 0)


@pytest.mark.parametrize("name", CLASSIFICATION)
def test_one_class_in_a_task(data, name):
    X, y = data
    y = labels(y)
    y[TASK == "b"] = 1.0
    with pytest.raises(ValueError, match=r"task 'b' holds 1 class only \(1\.0\): its intercept would be infinite"):
        fresh(name).fit(X, y, TASK)
    model = fresh(name, fit_intercept=False, tol=1e-10).fit(X, y, TASK)
    blocks = in_blocks(X, y)
    value = oracle.solve(blocks, MODELS[name][1], "logistic", fit_intercept=False)[0]
    assert model.objective_ == pytest.approx(value, rel=1e-8)
    np.testing.assert_array_equal(model.intercept_, 0)
    with pytest.raises(ValueError, match="1 class only"):
        fresh(name).fit(X, np.ones(N), TASK)


# --- scales ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e8, 1e-8])
@pytest.mark.parametrize("name", MODELS)
def test_a_common_scale_of_the_features_changes_nothing(data, name, scale):
    """``s X`` with the penalty's weights times s (a square: s^2) is the same problem in W / s."""
    X, y = data
    y = target(name, y)
    base = fresh(name, tol=1e-9).fit(X, y, TASK)
    power = 2 if name == "features" else 1
    model = times(fresh(name, tol=1e-9), scale**power).fit(scale * X, y, TASK)
    assert model.objective_ == pytest.approx(base.objective_, rel=1e-9)
    np.testing.assert_allclose(scale * model.coef_, base.coef_, atol=1e-3)
    assert abs(model.dual_gap_) <= 1e-9 * oracle.null_objective(in_blocks(X, y), loss_of(name))


@pytest.mark.parametrize("scale", [1e8, 1e-8])
@pytest.mark.parametrize("name", REGRESSION)
def test_a_common_scale_of_the_targets_changes_nothing(data, name, scale):
    X, y = data
    base = fresh(name, tol=1e-9).fit(X, y, TASK)
    model = times(fresh(name, tol=1e-9), 1.0 if name == "features" else scale).fit(X, scale * y, TASK)
    assert model.objective_ == pytest.approx(scale**2 * base.objective_, rel=1e-9)
    np.testing.assert_allclose(model.coef_ / scale, base.coef_, atol=1e-3)


@pytest.mark.parametrize("where", ["column", "columns", "task", "all"])
@pytest.mark.parametrize("scale", [1e8, 1e-8])
@pytest.mark.parametrize("name", MODELS)
def test_uneven_scales_end_in_a_certificate_or_a_warning(data, name, scale, where):
    X, y = data[0].copy(), target(name, data[1])
    if where == "column":
        X[:, 1] *= scale
    elif where == "columns":
        X[:, 1], X[:, 2] = scale * X[:, 1], X[:, 2] / scale
    elif where == "task":
        X[TASK == "b"] *= scale
    else:
        X *= scale
    model = fresh(name, max_iter=3 if name in CLASSIFICATION else 60)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(X, y, TASK)
    check_honest(name, model, X, y, caught)


@pytest.mark.parametrize("name", MODELS)
def test_data_far_from_zero(data, name):
    X, y = data
    near = fresh(name, tol=1e-8).fit(X, target(name, y), TASK)
    far = fresh(name, tol=1e-8).fit(X + 1e7, target(name, y) if name in CLASSIFICATION else y + 1e6, TASK)
    # 1e7 leaves nine digits of X and 1e6 ten of y.
    assert far.objective_ == pytest.approx(near.objective_, rel=1e-6)
    np.testing.assert_allclose(far.coef_, near.coef_, atol=2e-3)
    moved = near.predict(X, TASK) if name in CLASSIFICATION else near.predict(X, TASK) + 1e6
    np.testing.assert_allclose(far.predict(X + 1e7, TASK), moved, atol=2e-2)


@pytest.mark.parametrize("name", REGRESSION)
def test_one_feature(data, name):
    X, y = data[0][:, :1], data[1]
    model = fresh(name, tol=1e-10).fit(X, y, TASK)
    check_honest(name, model, X, y, [])
    assert model.coef_.shape == (3, 1)


@pytest.mark.parametrize("name", ["group", "largest", "dirty", "trace", "group logistic"])
def test_many_features_few_rows(name):
    rng = np.random.default_rng(1)
    X = rng.normal(size=(N, 2300))
    y = target(name, 3 * X[:, :4].sum(1) + rng.normal(size=N))
    factor = fresh(name).alpha_max(X, y, TASK)
    pair = isinstance(MODELS[name][0], DirtyModel)
    model = times(fresh(name), factor / 3 if pair else factor / 3 / fresh(name).alpha).fit(X, y, TASK)
    assert abs(model.dual_gap_) <= 1e-6 * oracle.null_objective(in_blocks(X, y), loss_of(name))
    used = (model.coef_ != 0).any(0)
    if name != "trace":
        assert 0 < used.sum() < 200 and used[:4].any()


# --- order, repetition, other solvers --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_two_fits_are_the_same_to_the_last_bit(data, name):
    X, y = data
    y = target(name, y)
    a, b = (fresh(name).fit(X, y, TASK) for _ in range(2))
    assert a.coef_.tobytes() == b.coef_.tobytes() and a.intercept_.tobytes() == b.intercept_.tobytes()
    assert (a.objective_, a.dual_gap_, a.n_iter_) == (b.objective_, b.dual_gap_, b.n_iter_)


@pytest.mark.parametrize("name", MODELS)
def test_order_of_tasks_and_features_changes_nothing(data, name):
    X, y = data
    y = target(name, y)
    model = fresh(name, tol=1e-11).fit(X, y, TASK)
    order = np.random.default_rng(2).permutation(D)
    renamed = np.select([TASK == "a", TASK == "b"], ["z", "y"], "x")
    other = fresh(name, tol=1e-11).fit(X[::-1, order], y[::-1], renamed[::-1])
    assert other.objective_ == pytest.approx(model.objective_, rel=1e-10)
    if name not in ("largest", "dirty", "dirty logistic"):  # whose weights are not unique
        np.testing.assert_allclose(other.coef_[::-1], model.coef_[:, order], atol=1e-4)
        np.testing.assert_allclose(other.intercept_[::-1], model.intercept_, atol=1e-4)


@pytest.mark.parametrize("name", ["lasso", "group", "between", "dirty", "group logistic"])
def test_without_numba_the_answers_are_the_same(data, name, monkeypatch):
    X, y = data
    y = target(name, y)
    fast = fresh(name, tol=1e-10).fit(X, y, TASK)
    calls = []
    slow_solver = companion.solvers.convex.proximal_gradient
    monkeypatch.setattr(companion.solvers.convex, "find_spec", lambda _: None)
    monkeypatch.setattr(
        companion.solvers.convex, "proximal_gradient", lambda *args: calls.append(1) or slow_solver(*args)
    )
    slow = fresh(name, tol=1e-10).fit(X, y, TASK)
    assert calls, "FISTA was not used"
    assert slow.objective_ == pytest.approx(fast.objective_, rel=1e-9)
    if name != "dirty":
        np.testing.assert_allclose(slow.coef_, fast.coef_, atol=1e-4)
        np.testing.assert_allclose(slow.intercept_, fast.intercept_, atol=1e-4)
    check_honest(name, slow, X, y, [])


def test_a_torch_model_and_a_numpy_model_agree(data):
    X, y = data
    a = MultiTaskLasso(tol=1e-10).fit(X, y, TASK)
    b = MultiTaskLasso(tol=1e-10).fit(torch.from_numpy(X), torch.from_numpy(y), TASK)
    np.testing.assert_array_equal(a.coef_, b.coef_.numpy())
    c = MultiTaskLasso(tol=1e-10, device="cpu").fit(Tasks.from_long(X, y, TASK))
    np.testing.assert_array_equal(a.coef_, c.coef_)


# --- real data -------------------------------------------------------------------------------------------------------


@needs_school
@pytest.mark.parametrize("kind", ["MultiTaskLasso", "TraceNorm"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_school_at_a_fiftieth_of_alpha_max(kind, reduction):
    """139 schools of 22 to 251 pupils, standardised columns: the certificate reaches 1e-8 without a warning."""
    tasks = load_school().tasks
    tasks = Standardiser.fit(tasks).transform(tasks)
    model = getattr(linear, kind)(reduction=reduction, tol=1e-8)
    alpha = model.alpha_max(tasks) / 50
    model.set_params(alpha=alpha).fit(tasks)
    blocks = [(*tasks[t], np.ones(tasks.n_samples[t])) for t in range(139)]
    norms = oracle.trace_norm(alpha) if kind == "TraceNorm" else oracle.block_sparse(alpha, 2)
    W = model.coef_.T
    primal = oracle.data_term(blocks, W, model.intercept_, "squared", reduction) + norms.value(W)
    dual = oracle.lower_bound(blocks, W, norms, "squared", reduction)
    assert primal - dual <= 1e-8 * oracle.null_objective(blocks, "squared", reduction)
    assert model.objective_ == pytest.approx(primal, rel=1e-12)
