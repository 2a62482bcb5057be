"""Models that cluster tasks, against semidefinite programs, ridge regression, planted clusters and odd data."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import adjusted_rand_score

from companion import Tasks
from companion.datasets import load_school
from companion.linear import ASO, ClusteredMTL, ClusteredMTLClassifier, JacobClusteredMTL, SingleTask
from companion.tasks import Standardiser
from tests.needs import needs_school
from tests.oracles import clustered, convex

RHO1, RHO2, MEAN, BETWEEN, WITHIN = 0.9, 0.07, 0.03, 0.11, 0.8
MODELS = {
    "clustered": (lambda k, **kw: ClusteredMTL(k, RHO1, RHO2, **kw), lambda k: clustered.clustered(RHO1, RHO2, k)),
    "logistic": (
        lambda k, **kw: ClusteredMTLClassifier(k, RHO1 / 9, RHO2 / 9, **kw),
        lambda k: clustered.clustered(RHO1 / 9, RHO2 / 9, k),
    ),
    "aso": (lambda k, **kw: ASO(k, RHO1, RHO2, **kw), lambda k: clustered.aso(RHO1, RHO2, k)),
    "jacob": (
        lambda k, **kw: JacobClusteredMTL(k, MEAN, BETWEEN, WITHIN, **kw),
        lambda k: clustered.jacob(MEAN, BETWEEN, WITHIN, k),
    ),
}
# sizes n_t, d, clusters, how the tasks lie, options: T above and below d, n_t above and below d
SETTINGS = {
    "ragged": ((4, 11, 9), 6, 2, "ragged", {}),
    "more tasks than features": ((12, 5, 8, 3, 9), 2, 2, "ragged", {}),
    "weighted sum": ((9, 14, 7, 10), 5, 3, "weighted", {"reduction": "sum"}),
    "one cluster without intercept": ((8, 13, 10), 4, 1, "ragged", {"fit_intercept": False}),
    "shared wide": ((7, 7, 7, 7), 9, 2, "shared", {}),
    "missing": ((19, 19, 19, 19), 3, 2, "missing", {}),
    "one large task": ((6, 900, 9, 8), 5, 2, "ragged", {"reduction": "sum"}),
}


def draw(sizes, d, layout, loss, seed=0):
    """Oracle's blocks and what ``fit`` takes; tasks in two groups, both labels in each."""
    rng = np.random.default_rng(seed)
    groups, X_common = 2 * rng.normal(size=(2, d)), rng.normal(size=(sizes[0], d)) + 0.5
    blocks = []
    for t, n in enumerate(sizes):
        X = X_common if layout in ("shared", "missing") else rng.normal(size=(n, d)) * (1 + t / 2) + t
        y = X @ (groups[t % 2] + 0.3 * rng.normal(size=d)) + 2 * rng.normal(size=n) + 3 * t
        if loss == "logistic":
            y = np.where(y > np.sort(y)[n // 3], 1.0, -1.0)
        blocks.append([X, y, rng.uniform(0.3, 2.5, n) if layout == "weighted" else np.ones(n)])
    if layout in ("shared", "missing"):
        seen = rng.random((sizes[0], len(sizes))) > (0.3 if layout == "missing" else -1)
        Y = np.where(seen, np.stack([y for _, y, _ in blocks], axis=1), np.nan)
        blocks = [[X[seen[:, t]], y[seen[:, t]], s[seen[:, t]]] for t, (X, y, s) in enumerate(blocks)]
        return blocks, (Tasks.shared(X_common, Y),)
    X, y, s = (np.concatenate([block[i] for block in blocks]) for i in range(3))
    return blocks, (X, y, np.repeat(np.arange(len(sizes)), sizes), *((s,) if layout == "weighted" else ()))


# --- the optimum -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", MODELS)
def test_optimum_of_the_semidefinite_program(name, setting):
    """Clarabel solves for W and the matrix together; the certificate and the matrix are recomputed in NumPy."""
    sizes, d, k, layout, options = SETTINGS[setting]
    loss = "logistic" if name == "logistic" else "squared"
    blocks, data = draw(sizes, d, layout, loss)
    make, norms = MODELS[name][0], MODELS[name][1](k)
    model = make(k, tol=1e-10, **options).fit(*data)
    reduction, fit_intercept = options.get("reduction", "mean"), options.get("fit_intercept", True)
    W, b = model.coef_.T, model.intercept_
    null = convex.null_objective(blocks, loss, reduction, fit_intercept)
    fitted = convex.data_term(blocks, W, b, loss, reduction)
    assert model.objective_ == pytest.approx(fitted + norms.value(W), rel=1e-11)
    dual = convex.lower_bound(blocks, W, norms, loss, reduction, fit_intercept)
    assert model.dual_gap_ == pytest.approx(model.objective_ - dual, abs=1e-12 * null)
    assert abs(model.dual_gap_) <= 1e-10 * null
    value, W_cvxpy, _ = convex.solve(blocks, norms, loss, reduction, fit_intercept)
    assert model.objective_ == pytest.approx(value, rel=1e-7)
    assert dual <= value * (1 + 1e-7)
    assert np.abs(W).max() > 0.01
    np.testing.assert_allclose(W, W_cvxpy, rtol=0, atol=1e-3 * np.abs(W).max())  # as near as the root of the gaps
    # The matrix that comes with the weights makes the joint objective, in the words of each paper.
    if name == "jacob":
        penalty = np.trace(W @ np.linalg.solve(model.relation_, W.T))
    elif name == "aso":
        penalty = clustered.joint(W.T, model.shared_structure_, RHO1, RHO2)
    else:
        scale = 1 / 9 if name == "logistic" else 1
        penalty = clustered.joint(W, model.relation_, scale * RHO1, scale * RHO2)
    assert fitted + penalty == pytest.approx(model.objective_, rel=1e-10)


def test_aso_has_the_weights_of_clustered_learning():
    _, data = draw((9, 14, 7, 10), 6, "ragged", "squared")
    options = {"rho1": RHO1, "rho2": RHO2, "tol": 1e-12}
    a, b = ClusteredMTL(3, **options).fit(*data), ASO(3, **options).fit(*data)
    np.testing.assert_array_equal(a.coef_, b.coef_)
    assert a.objective_ == b.objective_
    assert a.relation_.shape == (4, 4) and b.shared_structure_.shape == (6, 6)
    assert np.trace(b.shared_structure_) == pytest.approx(3)
    assert not hasattr(b, "labels_")
    many = ASO(5, **options).fit(*data)  # more than tasks: a ridge, with what is left of the trace on unused features
    assert np.trace(many.shared_structure_) == pytest.approx(5)
    assert_ridge(many, RHO2, data)


# --- limits ----------------------------------------------------------------------------------------------------------


def assert_ridge(model, weight, data):
    """Compare with ``weight ||W||^2``, which is alpha = 2 weight in the package's ridge regression."""
    ridge = SingleTask(2 * weight, reduction=model.reduction).fit(*data)
    np.testing.assert_allclose(model.set_params(tol=1e-13).fit(*data).coef_, ridge.coef_, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(model.intercept_, ridge.intercept_, rtol=1e-5)


def test_ridges():
    """As many clusters as tasks; as many components as features; three equal weights."""
    _, data = draw((9, 14, 7, 10), 3, "ragged", "squared")
    every = ClusteredMTL(4, 5.0, 0.2)
    assert_ridge(every, 0.2, data)
    np.testing.assert_allclose(every.relation_, np.eye(4), atol=1e-12)
    np.testing.assert_array_equal(every.labels_, np.arange(4))
    assert_ridge(ClusteredMTL(3, 5.0, 0.2), 0.2, data)  # W has three dimensions
    assert_ridge(ASO(3, 5.0, 0.2), 0.2, data)
    assert_ridge(JacobClusteredMTL(2, 0.3, 0.3, 0.3, reduction="sum"), 0.3, data)
    assert_ridge(ClusteredMTL(2, 1e-10, 0.4), 0.4, data)


@pytest.mark.parametrize("n_clusters", [1, 2, 5])
def test_one_task_is_ridge_regression_for_any_number_of_clusters(n_clusters):
    _, (X, y, _) = draw((13,), 4, "ragged", "squared")
    clusters = ClusteredMTL(n_clusters, 5.0, 0.2)
    assert_ridge(clusters, 0.2, (X, y))
    np.testing.assert_allclose(clusters.relation_, [[1.0]])
    np.testing.assert_array_equal(clusters.labels_, [0])
    jacob = JacobClusteredMTL(n_clusters, 0.2, 0.7, 3.0)  # one task is its own mean
    assert_ridge(jacob, 0.2, (X, y))
    np.testing.assert_allclose(jacob.relation_, [[5.0]])
    np.testing.assert_array_equal(jacob.labels_, [0])


def test_one_cluster_draws_every_task_to_the_mean():
    """Jacob's model with r = 1 has the normal equations of mean-regularised learning."""
    blocks, data = draw((9, 14, 7), 4, "ragged", "squared")
    model = JacobClusteredMTL(1, MEAN, BETWEEN, WITHIN, tol=1e-13).fit(*data)
    U, system, right = np.full((3, 3), 1 / 3), np.zeros((12, 12)), []
    for t, (X, y, _) in enumerate(blocks):
        Z, r = X - X.mean(0), y - y.mean()
        system[4 * t : 4 * t + 4, 4 * t : 4 * t + 4] = Z.T @ Z / len(y)
        right.append(Z.T @ r / len(y))
    system += np.kron(2 * MEAN * U + 2 * WITHIN * (np.eye(3) - U), np.eye(4))
    np.testing.assert_allclose(model.coef_, np.linalg.solve(system, np.concatenate(right)).reshape(3, 4), rtol=1e-5)
    np.testing.assert_array_equal(model.labels_, 0)


def test_no_finite_weight_gives_zero():
    _, (X, y, task) = draw((9, 14, 7), 4, "ragged", "squared")
    for model in (ClusteredMTL(), ASO(), JacobClusteredMTL()):
        assert model.alpha_max(X, y, task) == np.inf
        assert model.alpha_max(X, 0 * y, task) == 0


def test_constant_targets_leave_no_clusters():
    _, (X, _, task) = draw((9, 14, 7), 4, "ragged", "squared")
    a = ClusteredMTL(2).fit(X, np.full(30, 5.0), task)
    b = JacobClusteredMTL(2, MEAN, BETWEEN, WITHIN).fit(X, np.full(30, 5.0), task)
    np.testing.assert_allclose(a.relation_, np.eye(3) * 2 / 3, atol=1e-14)
    for model in (a, b):
        np.testing.assert_array_equal(model.coef_, 0)
        np.testing.assert_array_equal(model.labels_, 0)
        np.testing.assert_allclose(model.intercept_, 5.0)
    np.testing.assert_array_equal(ASO(1).fit(X, np.full(30, 5.0), task).shared_structure_, np.eye(4) / 4)


# --- clusters --------------------------------------------------------------------------------------------------------

PLANTED = np.array([0, 1, 1, 2, 0, 2, 1, 0, 0, 1, 2])


def planted(loss="squared", noise=0.5, spread=0.1, seed=0, n=25, d=6):
    """Eleven tasks in three clusters of 4, 4 and 3."""
    rng = np.random.default_rng(seed)
    centres, task = rng.normal(size=(3, d)), np.repeat(np.arange(len(PLANTED)), n)
    W = centres[PLANTED] + spread * rng.normal(size=(len(PLANTED), d))
    X = rng.normal(size=(len(task), d))
    y = (X * W[task]).sum(1) + noise * rng.normal(size=len(task))
    return X, y if loss == "squared" else np.where(y > 0, "yes", "no"), task


@pytest.mark.parametrize("layout", ["long", "shared"])
@pytest.mark.parametrize("name", ["clustered", "logistic", "jacob"])
def test_planted_clusters_are_found(name, layout):
    make, loss = MODELS[name][0], "logistic" if name == "logistic" else "squared"
    X, y, task = planted(loss, n=80 if loss == "logistic" else 25)
    if layout == "shared":
        X, Y = X[:200], np.random.default_rng(1).normal(size=(200, 11)) * 0.5
        Y += X @ (np.random.default_rng(2).normal(size=(6, 3))[:, PLANTED])
        data = (Tasks.shared(X, Y if loss == "squared" else (Y > 0).astype(float)),)
    else:
        data = (X, y, task)
    model = make(3).fit(*data)
    np.testing.assert_array_equal(model.labels_, PLANTED)
    assert model.labels_.dtype == np.int64
    assert np.abs(model.relation_ - model.relation_.T).max() < 1e-12


def test_order_of_tasks_only_renumbers_the_clusters():
    """Clusters that are not clear, so that the labels could move."""
    X, y, task = planted(noise=3.0, spread=0.6)
    order = np.random.default_rng(3).permutation(11)
    for model in (ClusteredMTL(3, tol=1e-10), JacobClusteredMTL(3, tol=1e-10)):
        labels = model.fit(X, y, task).labels_
        relation = model.relation_
        moved = model.fit(X, y, order[task])  # what was task t is now task order[t]
        np.testing.assert_allclose(moved.relation_[np.ix_(order, order)], relation, atol=1e-3)
        assert adjusted_rand_score(labels, moved.labels_[order]) == 1.0
        for found in (labels, moved.labels_):
            first = [found.tolist().index(c) for c in range(found.max() + 1)]
            assert first == sorted(first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_matrices_come_in_the_library_of_the_data(dtype):
    X, y, task = planted()
    X = torch.from_numpy(X).to(dtype)
    for model, name in (
        (ClusteredMTL(3), "relation_"),
        (JacobClusteredMTL(3), "relation_"),
        (ASO(), "shared_structure_"),
    ):
        matrix = getattr(model.fit(X, torch.from_numpy(y), task), name)
        assert isinstance(matrix, torch.Tensor) and matrix.dtype == dtype
        if name == "relation_":
            np.testing.assert_array_equal(model.labels_, PLANTED)
        assert isinstance(getattr(model.fit(X.numpy(), y, task), name), np.ndarray)


# --- parameters, hard data -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (ClusteredMTL(4), "n_clusters must be at most the number of tasks; got n_clusters=4 and T=3"),
        (JacobClusteredMTL(4), "n_clusters must be at most the number of tasks; got n_clusters=4 and T=3"),
        (ASO(6), "n_components must be at most the number of features; got n_components=6 and d=5"),
        (ClusteredMTL(0), "n_clusters must be an integer >= 1; got 0"),
        (ClusteredMTL(2.0), r"n_clusters must be an integer >= 1; got 2\.0"),
        (ClusteredMTLClassifier(True), "n_clusters must be an integer >= 1; got True"),
        (JacobClusteredMTL(-1), "n_clusters must be an integer >= 1; got -1"),
        (JacobClusteredMTL(1.5), r"n_clusters must be an integer >= 1; got 1\.5"),
        (ASO(0), "n_components must be an integer >= 1; got 0"),
        (ASO("2"), "n_components must be an integer >= 1; got '2'"),
        (ClusteredMTL(rho1=0.0), r"rho1 must be a finite number > 0; got 0\.0"),
        (ClusteredMTL(rho1=-1.0), r"rho1 must be a finite number > 0; got -1\.0"),
        (ClusteredMTL(rho2=np.nan), "rho2 must be a finite number > 0; got nan"),
        (ClusteredMTLClassifier(rho2=np.inf), "rho2 must be a finite number > 0; got inf"),
        (ASO(rho1=np.nan), "rho1 must be a finite number > 0; got nan"),
        (ASO(rho2=0), "rho2 must be a finite number > 0; got 0"),
        (JacobClusteredMTL(mean=0.0), r"mean must be a finite number > 0; got 0\.0"),
        (JacobClusteredMTL(between=np.inf), "between must be a finite number > 0; got inf"),
        (JacobClusteredMTL(within=np.nan), "within must be a finite number > 0; got nan"),
        (JacobClusteredMTL(2, 0.2, 0.1, 1.0), r"within >= between >= mean; got mean=0\.2 > between=0\.1"),
        (JacobClusteredMTL(2, 0.1, 0.5, 0.4), r"within >= between >= mean; got between=0\.5 > within=0\.4"),
    ],
    ids=repr,
)
def test_bad_parameters_are_named(model, message):
    _, data = draw((9, 14, 7), 5, "ragged", "logistic" if "Classifier" in type(model).__name__ else "squared")
    with pytest.raises(ValueError, match=message):
        model.fit(*data)


@pytest.mark.parametrize("model", [ClusteredMTL(), ASO(), JacobClusteredMTL(), ClusteredMTLClassifier()], ids=repr)
def test_running_out_of_iterations_is_said(model):
    _, data = draw((9, 14, 7), 5, "ragged", "logistic" if "Classifier" in type(model).__name__ else "squared")
    with pytest.warns(
        ConvergenceWarning, match=r"1 iterations \(max_iter=1\) at a relative duality gap of .*tol=1.0e-12"
    ):
        model.set_params(max_iter=1, tol=1e-12).fit(*data)
    assert np.isfinite(model.coef_).all() and model.dual_gap_ > 0


@pytest.mark.parametrize("name", MODELS)
def test_a_task_of_a_hundred_thousand_rows_among_small_ones(name):
    """With summed losses the steps are those of the large task; the small ones get there all the same."""
    rng = np.random.default_rng(0)
    sizes, d = (5, 100_000, 8, 6), 4
    X, task = rng.normal(size=(sum(sizes), d)), np.repeat(np.arange(4), sizes)
    y = X @ rng.normal(size=d) + rng.normal(size=len(task))
    y = np.where(y > 0, 1.0, -1.0) if name == "logistic" else y
    keep = rng.permutation(100_000)[:99_000] + 5  # and the same with some rows given twice by their weight
    weight = np.ones(len(y))
    weight[keep[:500]] = 2.0
    weight[keep[500:1000]] = 0.0
    model = MODELS[name][0](2, reduction="sum", fit_intercept=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.fit(X, y, task, weight)
    assert (
        0
        <= model.dual_gap_
        <= 1e-6
        * convex.null_objective(
            [(X[task == t], y[task == t], weight[task == t]) for t in range(4)],
            "logistic" if name == "logistic" else "squared",
            "sum",
            False,
        )
    )


# --- School ----------------------------------------------------------------------------------------------------------


@needs_school
@pytest.mark.parametrize("name", ["clustered", "jacob"])
def test_school_to_a_gap_of_a_millionth(name):
    """All pupils of 139 schools, summed losses, no intercept: the certificate of NumPy, in some hundred steps."""
    tasks = load_school().tasks
    tasks = Standardiser.fit(tasks).transform(tasks)
    options = {"reduction": "sum", "fit_intercept": False}
    if name == "clustered":
        model, norms = ClusteredMTL(3, 10.0, 1.0, **options), clustered.clustered(10.0, 1.0, 3)
    else:
        model, norms = JacobClusteredMTL(3, 1.0, 1.0, 11.0, **options), clustered.jacob(1.0, 1.0, 11.0, 3)
    model.fit(tasks)
    blocks = [(*tasks[t], np.ones(tasks.n_samples[t])) for t in range(139)]
    W = model.coef_.T
    primal = convex.data_term(blocks, W, model.intercept_, "squared", "sum") + norms.value(W)
    dual = convex.lower_bound(blocks, W, norms, "squared", "sum", fit_intercept=False)
    assert model.objective_ == pytest.approx(primal, rel=1e-11)
    assert 0 <= primal - dual <= 1e-6 * convex.null_objective(blocks, "squared", "sum", False)
    assert model.n_iter_ <= 700
    assert model.labels_.shape == (139,) and set(model.labels_) == {0, 1, 2}
