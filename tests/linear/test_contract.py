"""The contract that every linear estimator keeps: scikit-learn's checks, libraries and types, ids, errors."""

import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import config_context
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from companion import Tasks, linear
from companion.linear._base import LinearMTL

PUBLIC = [getattr(linear, name) for name in linear.__all__]
# A stream depends on the order of its tasks and converges slowly; it is tested by itself.
ESTIMATORS = [E for E in PUBLIC if isinstance(E, type) and issubclass(E, LinearMTL) and E is not linear.ELLA]
BASELINES = [E for E in ESTIMATORS if E.__name__.startswith(("SingleTask", "Pooled"))]
# Searches over small grids: what is tested here does not depend on their size.
SMALL = {name: {"n_latents": 2, "n_mus": 2, "cv": 2, "max_iter": 100} for name in ("GOMTLCV", "GOMTLClassifierCV")}
VARIANTS = [E(**SMALL.get(E.__name__, {})) for E in ESTIMATORS] + [
    *(E(penalty="l1") for E in BASELINES),
    *(E(alpha=(0.01, 0.1)) for E in BASELINES),
    linear.MultiTaskLasso(q=np.inf, l2=0.1),
    linear.MultiTaskLassoClassifier(q=1.5),
    linear.MultiTaskLassoCV(alphas=(0.01, 0.1), cv=3, fit_intercept=False),
    linear.DirtyModel(0.1, 0.08, q=2, reduction="sum", tol=1e-10),
    linear.SingleTask(alpha=(0.01, 0.1), per_task_alpha=True),
    linear.MeanRegularized(0.1, 10.0, reduction="sum", fit_intercept=False),
    linear.ClusteredMTL(3, 2.0, 0.05, reduction="sum", fit_intercept=False),
    linear.MultiTaskKernelRidge(kernel="rbf", gamma="scale", reduction="sum", fit_intercept=False),
    linear.MultiTaskSVC(coupling=0.0, kernel="poly", degree=2),
    linear.Pooled(per_task_intercept=True),
    linear.SingleTask(reduction="sum", fit_intercept=False),
]
# The parameter that a search would look for, with the other weight of a pair out of the way.
WEIGHT = {
    "ConvexFeatureLearning": ("gamma", {}),
    "DirtyModel": ("alpha_sparse", {"alpha_block": 1000.0}),
    "DirtyModelClassifier": ("alpha_sparse", {"alpha_block": 1000.0}),
    "RobustMTL": ("alpha_low_rank", {"alpha_outlier": 1000.0}),
    "DisjointGroups": ("gamma", {}),
    "GraphRegularized": ("alpha", {"coupling": 1.0}),
    "ASO": ("rho2", {}),
    "ClusteredMTL": ("rho2", {}),
    "ClusteredMTLClassifier": ("rho2", {}),
    "JacobClusteredMTL": ("mean", {"between": 100.0, "within": 100.0}),
    "GOMTL": ("mu", {}),
    "GOMTLCV": ("mus", {}),
    "GOMTLClassifier": ("mu", {}),
    "GOMTLClassifierCV": ("mus", {}),
    "HardClusteredMTL": ("rho2", {}),
    "BayesianMTL": ("prior_tasks", {}),
    "MultiTaskLassoCV": ("alphas", {}),
    "TaskRelationship": ("lambda2", {"lambda1": 0.0}),
    "TraceNormCV": ("alphas", {}),
}
T, D = 3, 4


@parametrize_with_checks(VARIANTS)
def test_scikit_learn_contract(estimator, check):
    check(estimator)


@pytest.fixture(params=ESTIMATORS, ids=lambda E: E.__name__)
def fitted(request):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(41, D))
    task = np.array(["north", "south", "east"])[np.arange(41) % T]
    y = X @ rng.normal(size=D) + rng.normal(size=41)
    if is_classifier(request.param()):
        y = np.where(y > np.median(y), "yes", "no")
    model = request.param()
    # Weights found by iteration are as near as the square root of the gap; the baselines solve to the last digit.
    if request.param not in BASELINES:
        model.set_params(tol=1e-13)
    if hasattr(model, "alphas"):  # the choice depends on the folds, and these on the order of the tasks
        model.set_params(alphas=(0.05,))
    if hasattr(model, "mus"):
        model.set_params(mus=(0.05,), n_latents=2)
    return model, X, y, task


def _assert_same(a, b):
    """Equal labels; numbers equal to rounding, which differs with the number of rows in a product."""
    if a.dtype.kind == "f":
        np.testing.assert_allclose(a, b, rtol=1e-9)
    else:
        np.testing.assert_array_equal(a, b)


def test_rows_may_come_in_any_order(fitted):
    model, X, y, task = fitted
    order = np.random.default_rng(1).permutation(len(y))
    a, b = clone(model).fit(X, y, task), clone(model).fit(X[order], y[order], task[order])
    assert a.task_ids_ == b.task_ids_ == ("east", "north", "south")
    assert a.coef_.shape == (T, D) and a.intercept_.shape == (T,)
    np.testing.assert_allclose(a.coef_, b.coef_, rtol=1e-6)
    _assert_same(a.predict(X, task)[order], a.predict(X[order], task[order]))


def test_renaming_the_tasks_permutes_the_coefficients(fitted):
    model, X, y, task = fitted
    renamed = np.select([task == "east", task == "north"], ["z", "y"], "x")
    a, b = clone(model).fit(X, y, task), clone(model).fit(X, y, renamed)
    np.testing.assert_allclose(a.coef_, b.coef_[::-1], rtol=1e-9)


def test_tasks_and_long_form_agree(fitted):
    model, X, y, task = fitted
    codes = np.unique(y, return_inverse=True)[1].astype(float) if is_classifier(model) else y
    tasks = Tasks.from_long(X, codes, task)
    a, b = clone(model).fit(X, codes, task), clone(model).fit(tasks)
    np.testing.assert_allclose(a.coef_, b.coef_, rtol=1e-12)
    for t, prediction in enumerate(b.predict(tasks)):
        _assert_same(prediction, a.predict(X[tasks.rows][tasks.long()[2] == t], [tasks.ids[t]] * len(prediction)))
    assert a.score(X, codes, task) == pytest.approx(b.score(tasks))


def test_shared_inputs_predict_a_matrix_and_ignore_missing_labels(fitted):
    model, X, _, _ = fitted
    rng = np.random.default_rng(2)
    Y = (X @ rng.normal(size=(D, T)) + rng.normal(size=(41, T)) > 0).astype(float)
    Y[rng.random(Y.shape) < 0.2] = np.nan
    tasks = Tasks.shared(X, Y, ids=["p", "q", "r"])
    seen = ~np.isnan(Y)
    long = [(X[seen[:, t]], Y[seen[:, t], t]) for t in range(T)]
    a, b = clone(model).fit(tasks), clone(model).fit(Tasks.from_list(long, ids=["p", "q", "r"]))
    # Iterations take another road where the inputs are shared, and end within the square root of the gap.
    np.testing.assert_allclose(a.coef_, b.coef_, rtol=1e-9, atol=0 if type(model) in BASELINES else 1e-7)
    assert a.predict(tasks).shape == (41, T)
    np.testing.assert_allclose(a.predict(tasks)[:, 1], a.predict(X, ["q"] * 41))
    assert a.score(tasks) == pytest.approx(b.score(Tasks.from_list(long, ids=["p", "q", "r"])))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_torch_in_torch_out(fitted, dtype):
    model, X, y, task = fitted
    codes = np.unique(y, return_inverse=True)[1] if is_classifier(model) else y
    X_torch = torch.tensor(X, dtype=dtype)
    a, b = clone(model).fit(X, codes, task), clone(model).fit(X_torch, torch.tensor(codes), task)
    assert isinstance(b.coef_, torch.Tensor) and b.coef_.dtype == b.intercept_.dtype == dtype
    np.testing.assert_allclose(b.coef_, a.coef_, rtol=1e-4 if dtype == torch.float32 else 1e-7, atol=1e-6)
    out = b.decision_function(X_torch, task) if is_classifier(b) else b.predict(X_torch, task)
    assert isinstance(out, torch.Tensor) and out.dtype == dtype
    assert isinstance(b.predict(X, task), np.ndarray)  # a torch model serves numpy users too
    assert isinstance(a.predict(X_torch, task), torch.Tensor)
    assert clone(model).fit(X.astype(np.float32), codes, task).coef_.dtype == np.float32


def test_data_frames_pickles_and_feature_names(fitted):
    model, X, y, task = fitted
    frame = pd.DataFrame(X, columns=list("abcd")).assign(task=task)
    model.fit(frame[list("abcd")], y, frame["task"])
    assert list(model.feature_names_in_) == list("abcd")
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict(frame[list("abcd")], task), model.predict(frame[list("abcd")], task))


def test_pipeline_and_grid_search_route_string_ids(fitted):
    model, X, y, task = fitted
    with config_context(enable_metadata_routing=True):
        model.set_fit_request(task=True).set_predict_request(task=True).set_score_request(task=True)
        pipeline = make_pipeline(StandardScaler(), model)
        weight, others = WEIGHT.get(type(model).__name__, ("alpha", {}))
        model.set_params(**others)
        name = f"{type(model).__name__.lower()}__{weight}"
        single = [(0.01,), (1.0,), (100.0,)]
        lists = {"alphas": single, "mus": single, "prior_tasks": [5.0, 50.0]}
        grid = lists.get(weight, [0.01, 1.0, 100.0])
        search = GridSearchCV(pipeline, {name: grid}, cv=3, error_score="raise").fit(X, y, task=task)
        best = search.best_params_[name]
        assert best in grid[:2]
        Z = StandardScaler().fit_transform(X)
        expected = clone(model).set_params(**{weight: best}).fit(Z, y, task).predict(Z, task)
        # GridSearchCV.predict itself takes no metadata; the refitted pipeline does.
        _assert_same(search.best_estimator_.predict(X, task=task), expected)
        if len(grid) == 3:  # the last weight of a penalty is too large
            assert search.score(X, y, task=task) > search.cv_results_["mean_test_score"][2]


def test_integer_weights_are_repetitions_and_zero_is_removal(fitted):
    model, X, y, task = fitted
    weight = np.arange(41) // 3 % 3
    repeated = np.repeat(np.arange(41), weight)
    a, b = clone(model).fit(X, y, task, weight), clone(model).fit(X[repeated], y[repeated], task[repeated])
    np.testing.assert_allclose(a.coef_, b.coef_, rtol=1e-6, atol=1e-9)
    assert a.objective_ == pytest.approx(b.objective_, rel=1e-9)
    assert a.score(X, y, task, weight) == pytest.approx(b.score(X[repeated], y[repeated], task[repeated]))


def test_bad_input(fitted):
    model, X, y, task = fitted
    with pytest.raises(NotFittedError, match="not fitted"):
        model.predict(X, task)
    for bad, message in [
        ((X[:, 0], y, task), "Expected 2D array, got 1D array"),
        ((X[None], y, task), "dim 3"),
        ((X.astype(str).astype(object) + "cm", y, task), "could not convert string"),
        ((X + 1j, y, task), "Complex data not supported"),
        ((X, y[:-1], task), "inconsistent numbers of samples"),
        ((X, y, task[:-1]), r"task must have shape \(41,\), one id per row of X; got \(40,\)"),
        ((np.where(X > 1, np.nan, X), y, task), "contains NaN"),
        ((np.where(X > 1, np.inf, X), y, task), "contains infinity"),
        ((X, None, task), "requires y to be passed"),
        ((torch.from_numpy(X), None, task), "requires y to be passed"),
        ((X, y, task, np.where(task == "east", 0, 1)), "at least one row.*'east'"),
        ((Tasks.from_long(X, np.arange(41) % 2, task), y), "takes no y"),
    ]:
        with pytest.raises(ValueError, match=message):
            model.fit(*bad)
    with pytest.raises(TypeError, match=r"[Ss]parse"):
        from scipy.sparse import csr_array

        model.fit(csr_array(X), y, task)
    model.fit(X, y, task)
    with pytest.raises(ValueError, match=r"ids that fit has not seen: 'west'; known: 'east', 'north', 'south'"):
        model.predict(X[:2], ["west", "east"])
    with pytest.raises(ValueError, match="fitted on 3 tasks: give task"):
        model.predict(X)
    with pytest.raises(ValueError, match="4 features"):
        model.predict(X[:, :2], task)
    with pytest.raises(ValueError, match="task 'west' was not seen"):
        model.predict(Tasks.from_list([(X, np.zeros(41))], ids=["west"]))
    weight = WEIGHT.get(type(model).__name__, ("alpha", {}))[0]
    baseline = [
        ("alpha", [[1.0]], "1-D grid"),
        ("penalty", "l3", "penalty must be 'l2' or 'l1'; got 'l3'"),
    ]
    for name, value, message in [
        (weight, -1.0, rf"{weight} must be .*> (0|d - 1).*; got -1.0|alpha must be >= 0"),
        *(baseline if type(model) in BASELINES else [(weight, np.nan, "finite"), (weight, np.inf, "finite")]),
        ("reduction", "median", "reduction must be 'mean' or 'sum'; got 'median'"),
        ("tol", 0.0, "tol must be > 0"),
        ("max_iter", 0, "max_iter >= 1"),
    ]:
        if name not in model.get_params():  # direct solvers have no max_iter, a likelihood has no reduction
            continue
        with pytest.raises(ValueError, match=message):
            clone(model).set_params(**{name: value}).fit(X, y, task)
