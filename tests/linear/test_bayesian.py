"""BayesianMTL: predictive distributions against dense normal ones, calibration, limits, units, edges."""

import math
import warnings

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning

from companion import Tasks
from companion.linear import BayesianMTL, SingleTask
from companion.solvers.compressed_tasks import CompressedTasks
from companion.solvers.evidence import learn_hyperparameters
from tests.oracles.hierarchical import Model

SIZES, D = (3, 7, 12, 1, 5), 4
T = len(SIZES)


def draw(sizes=SIZES, d=D, seed=0, weighted=False, noise=1.0):
    """Blocks (X_t, y_t, s_t) and what ``fit`` takes, with rows in any order."""
    rng = np.random.default_rng(seed)
    common, blocks = rng.normal(size=d), []
    for t, n in enumerate(sizes):
        X = rng.normal(size=(n, d)) * np.arange(1, d + 1) + t
        y = X @ (common + 0.5 * rng.normal(size=d)) + noise * rng.normal(size=n) + 3 * t
        blocks.append((X, y, rng.uniform(0.5, 2.5, n) if weighted else np.ones(n)))
    X, y, s = (np.concatenate([block[i] for block in blocks]) for i in range(3))
    order = rng.permutation(len(y))
    task = np.repeat(np.arange(len(sizes)), sizes)
    return blocks, (X[order], y[order], task[order], *((s[order],) if weighted else ()))


def hyperparameters(model, blocks, fit_intercept):
    """The fitted model as the oracle knows it: the prior variance of m is found in its solver's units."""
    tasks = Tasks.from_long(
        *(np.concatenate([b[i] for b in blocks]) for i in range(2)),
        np.repeat(np.arange(len(blocks)), [len(b[1]) for b in blocks]),
        np.concatenate([b[2] for b in blocks]),
    )
    data = CompressedTasks.of(tasks, fit_intercept)
    found, _, _ = learn_hyperparameters(data, 2.0 * (model.n_features_in_ + 1), model.tol, model.max_iter)
    unit = data.y_scale / data.x_scale.numpy()
    M = found.at.mean_variance * np.diag(unit**2)
    narrow = unit[:, None] * found.covariances(widened=False).numpy() * unit
    return Model(model.covariance_, M, model.noise_variance_, fit_intercept), narrow


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_predictions_are_those_of_the_dense_normal_distribution(weighted, fit_intercept):
    """Means as they are; deviations once the covariances leave out that C is uncertain, which the oracle does not know.

    The intercepts' part is the oracle's own: it has levels with a flat prior beside the slopes.
    """
    blocks, data = draw(seed=1, weighted=weighted)
    model = BayesianMTL(fit_intercept=fit_intercept, tol=1e-12).fit(*data)
    oracle, narrow = hyperparameters(model, blocks, fit_intercept)
    rng = np.random.default_rng(2)
    X, task = rng.normal(size=(17, D)) * 3 + 1, rng.integers(T, size=17)
    expected, covariance = oracle.predict(blocks, X, task)
    mean, deviation = model.predict(X, task, return_std=True)
    np.testing.assert_allclose(mean, expected, rtol=1e-7)
    np.testing.assert_array_equal(mean, model.predict(X, task))
    wide = (deviation**2 - model.noise_variance_) / np.diag(covariance)
    assert (wide > 1).all() and (wide < 2).all()  # the uncertainty of C makes them wider
    model.coef_covariance_ = narrow
    _, deviation = model.predict(X, task, return_std=True)
    np.testing.assert_allclose(deviation**2, np.diag(covariance) + model.noise_variance_, rtol=1e-7)
    weights, _ = oracle.weights(blocks)
    np.testing.assert_allclose(np.vstack([model.coef_, model.mean_]).ravel(), weights, rtol=1e-6)
    if not weighted:
        assert model.log_evidence_ == pytest.approx(oracle.log_evidence(blocks), rel=1e-9)
    assert math.isnan(model.dual_gap_) and 0 <= model.certificate_["expected gain"] <= 1e-12 and model.n_iter_ < 40


# --- calibration -----------------------------------------------------------------------------------------------------


def draw_from_the_model(rng, n_tasks, d, n, n_test):
    """Tasks whose weights come from a normal distribution with correlated directions; new rows of every task."""
    A = rng.normal(size=(d, d))
    C = 0.3 * A @ A.T / d + 0.3 * np.eye(d)
    W = rng.normal(size=d) + rng.multivariate_normal(np.zeros(d), C, size=n_tasks)
    rows = n + n_test // n_tasks
    mix = np.linalg.cholesky(0.7 * np.eye(d) + 0.3) * np.exp(0.5 * rng.normal(size=(d, 1)))
    X = rng.normal(size=(n_tasks, rows, d)) @ mix.T + rng.normal(size=d)
    y = np.einsum("tnd,td->tn", X, W) + rng.normal(size=(n_tasks, rows)) + 5 * rng.normal(size=(n_tasks, 1))
    part = lambda rows: Tasks.from_list([(X[t, rows], y[t, rows]) for t in range(n_tasks)])
    return part(slice(n)), part(slice(n, None))


@pytest.mark.parametrize("n_tasks", [10, 50])
@pytest.mark.parametrize(("d", "n"), [(5, 12), (8, 5), (6, 20)])
def test_nine_of_ten_new_observations_lie_in_their_intervals(n_tasks, d, n):
    """Over 50 data sets with 2000 new observations each, with fewer rows than features too."""
    rng, inside = np.random.default_rng(100 * n_tasks + d), []
    for _ in range(50):
        train, test = draw_from_the_model(rng, n_tasks, d, n, 2000)
        means, deviations = BayesianMTL().fit(train).predict(test, return_std=True)
        z = np.concatenate([(y - m) / s for (_, y), m, s in zip(test, means, deviations, strict=True)])
        assert z.shape == (2000,)
        inside.append(np.abs(z) <= stats.norm.ppf(0.95))
    assert 0.88 <= np.mean(inside) <= 0.92


# --- limits ----------------------------------------------------------------------------------------------------------


def test_with_many_rows_it_is_least_squares_per_task():
    blocks, data = draw((4000, 5000, 3000), 3, seed=3)
    model = BayesianMTL().fit(*data)
    for t, (X, y, _) in enumerate(blocks):
        Z = np.column_stack([X, np.ones(len(y))])
        w = np.linalg.lstsq(Z, y)[0]
        np.testing.assert_allclose(model.coef_[t], w[:-1], atol=2e-3)
        assert model.intercept_[t] == pytest.approx(w[-1], abs=5e-3)
        sampling = np.linalg.inv((X - X.mean(0)).T @ (X - X.mean(0)))
        np.testing.assert_allclose(model.coef_covariance_[t], sampling, atol=0.05 * np.diag(sampling).max())
    assert model.noise_variance_ == pytest.approx(1, abs=0.03)


def test_tasks_that_are_one_get_pooled_weights_and_different_ones_do_not():
    rng = np.random.default_rng(4)
    w, task = rng.normal(size=3), np.repeat(np.arange(20), 6)
    X = rng.normal(size=(120, 3))
    y = X @ w + rng.normal(size=120)
    model = BayesianMTL().fit(X, y, task)
    alone = SingleTask(alpha=0.0).fit(X, y, task)
    assert np.linalg.norm(model.coef_ - w) < 0.3 * np.linalg.norm(alone.coef_ - w)
    assert np.abs(model.mean_ - w).max() < 0.3
    W = w + 3 * rng.normal(size=(20, 3))
    apart = BayesianMTL().fit(X, (X * W[task]).sum(1) + rng.normal(size=120), task)
    assert np.trace(apart.covariance_) > 10 > 1 > np.trace(model.covariance_)
    assert np.corrcoef(apart.coef_.ravel(), W.ravel())[0, 1] > 0.9


def test_few_rows_are_pulled_to_the_mean_of_the_tasks():
    """Better than alone; a task of one row, which its intercept takes, has the mean for its weights."""
    rng = np.random.default_rng(22)
    W, task = np.ones(4) + 0.5 * rng.normal(size=(30, 4)), np.repeat(np.arange(31), [6] * 30 + [1])
    X = rng.normal(size=(181, 4))
    y = (X * np.vstack([W, W[:1]])[task]).sum(1) + rng.normal(size=181) + task
    model = BayesianMTL().fit(X, y, task)
    alone = SingleTask(alpha=np.geomspace(0.01, 10, 7)).fit(X, y, task)
    assert np.linalg.norm(model.coef_[:30] - W) < 0.8 * np.linalg.norm(alone.coef_[:30] - W)
    np.testing.assert_allclose(model.coef_[30], model.mean_, rtol=1e-9)


def test_one_huge_task_among_small_ones():
    rng = np.random.default_rng(23)
    sizes = [20_000, 3, 2, 5]
    X, task = rng.normal(size=(sum(sizes), 3)), np.repeat(np.arange(4), sizes)
    y = X @ [1.0, -2.0, 0.5] + rng.normal(size=len(X))
    model = BayesianMTL().fit(X, y, task)
    np.testing.assert_allclose(model.coef_[0], [1.0, -2.0, 0.5], atol=0.03)
    assert model.noise_variance_ == pytest.approx(1.0, abs=0.05)


def test_learned_hyperparameters_are_near_the_true_ones():
    rng = np.random.default_rng(5)
    d, n_tasks, n = 3, 400, 15
    A = rng.normal(size=(d, d))
    C, m = A @ A.T / 3 + 0.1 * np.eye(d), np.array([1.0, -2.0, 0.5])
    W = m + rng.multivariate_normal(np.zeros(d), C, size=n_tasks)
    task = np.repeat(np.arange(n_tasks), n)
    X = rng.normal(size=(n_tasks * n, d))
    model = BayesianMTL().fit(X, (X * W[task]).sum(1) + 0.5 * rng.normal(size=len(task)), task)
    np.testing.assert_allclose(model.covariance_, C, atol=0.15 * np.abs(C).max())
    np.testing.assert_allclose(model.mean_, m, atol=0.2)
    assert model.noise_variance_ == pytest.approx(0.25, rel=0.06)


def test_one_task_is_ridge_regression_in_a_learned_metric():
    [(X, y, _)], _ = draw((9,), 13, seed=6)  # fewer rows than features, one task
    model = BayesianMTL(tol=1e-12).fit(X, y)
    oracle, _ = hyperparameters(model, [(X, y, np.ones(9))], True)
    Z = X - X.mean(0)
    metric = oracle.C + oracle.M
    w = metric @ Z.T @ np.linalg.solve(Z @ metric @ Z.T + model.noise_variance_ * np.eye(9), y - y.mean())
    np.testing.assert_allclose(model.coef_[0], w, rtol=1e-6)
    assert model.predict(X, return_std=True)[1].shape == (9,)


def test_a_stronger_prior_makes_the_covariance_rounder():
    rng = np.random.default_rng(7)
    W = np.array([1.0, 1.0, 1.0]) + rng.normal(size=(12, 3)) * [2.0, 0.5, 0.1]
    task = np.repeat(np.arange(12), 20)
    X = rng.normal(size=(240, 3))
    y = (X * W[task]).sum(1) + 0.3 * rng.normal(size=240)
    ratios = [np.linalg.cond(BayesianMTL(prior_tasks=nu).fit(X, y, task).covariance_) for nu in (2.5, 8.0, 1e4)]
    assert ratios[0] > 1.5 * ratios[1] > 10 and ratios[2] < 1.2
    default = BayesianMTL().fit(X, y, task)
    np.testing.assert_array_equal(default.coef_, BayesianMTL(prior_tasks=8.0).fit(X, y, task).coef_)


# --- forms of data ---------------------------------------------------------------------------------------------------


def test_deviations_come_in_the_form_of_the_data():
    rng = np.random.default_rng(8)
    X = rng.normal(size=(14, 3))
    Y = X @ rng.normal(size=(3, 4)) + rng.normal(size=(14, 4))
    Y[rng.random(Y.shape) < 0.2] = np.nan
    seen = ~np.isnan(Y)
    ids = ["c", "a", "d", "b"]
    shared = Tasks.shared(X, Y, ids=ids)
    ragged = Tasks.from_list([(X[seen[:, t]], Y[seen[:, t], t]) for t in range(4)], ids=ids)
    model = BayesianMTL().fit(shared)
    mean, deviation = model.predict(shared, return_std=True)
    assert mean.shape == deviation.shape == (14, 4) and isinstance(deviation, np.ndarray)
    parts = model.predict(ragged, return_std=True)
    assert [len(part) for part in parts] == [4, 4] and isinstance(parts[1], list)
    for t, id_ in enumerate(ids):
        alone = model.predict(X, [id_] * 14, return_std=True)
        np.testing.assert_allclose(deviation[:, t], alone[1], rtol=1e-12)
        np.testing.assert_allclose(parts[1][t], alone[1][seen[:, t]], rtol=1e-12)
    order = rng.permutation(14 * 4)  # rows of all tasks in any order
    long_X, long_task = np.tile(X, (4, 1))[order], np.repeat(ids, 14)[order]
    np.testing.assert_allclose(model.predict(long_X, long_task, return_std=True)[1], deviation.T.ravel()[order])
    other = BayesianMTL().fit(ragged).predict(X, ["a"] * 14, return_std=True)[1]
    np.testing.assert_allclose(deviation[:, 1], other, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_torch_in_torch_out(dtype):
    _, (X, y, task) = draw(seed=9)
    a = BayesianMTL(tol=1e-12).fit(X, y, task)
    b = BayesianMTL(tol=1e-12).fit(torch.tensor(X, dtype=dtype), torch.from_numpy(y), task)
    expected = a.predict(X, task, return_std=True)
    found = b.predict(torch.tensor(X, dtype=dtype), task, return_std=True)
    for attribute in ("coef_covariance_", "covariance_", "mean_"):
        assert getattr(b, attribute).dtype == dtype
        np.testing.assert_allclose(getattr(b, attribute), getattr(a, attribute), rtol=1e-3, atol=1e-5)
    for e, f in zip(expected, found, strict=True):
        assert isinstance(f, torch.Tensor) and f.dtype == dtype
        np.testing.assert_allclose(f, e, rtol=1e-4 if dtype == torch.float32 else 1e-9)
    assert isinstance(b.predict(X, task, return_std=True)[1], np.ndarray)
    assert a.predict(torch.tensor(X, dtype=dtype), task, return_std=True)[1].dtype == dtype
    assert a.predict(X.astype(np.float32), task, return_std=True)[1].dtype == np.float32
    assert isinstance(b.noise_variance_, float) and isinstance(b.log_evidence_, float)


def test_integer_weights_are_repetitions_for_deviations_and_evidence_too():
    _, (X, y, task) = draw((6, 9, 8), 3, seed=10)
    weight = np.arange(len(y)) % 3 + 1
    repeated = np.repeat(np.arange(len(y)), weight)
    a = BayesianMTL(tol=1e-12).fit(X, y, task, weight)
    b = BayesianMTL(tol=1e-12).fit(X[repeated], y[repeated], task[repeated])
    np.testing.assert_allclose(a.predict(X, task, True), b.predict(X, task, True), rtol=1e-6)
    assert a.log_evidence_ == pytest.approx(b.log_evidence_, rel=1e-9)
    assert a.noise_variance_ == pytest.approx(b.noise_variance_, rel=1e-6)


def test_permuting_the_tasks_permutes_everything():
    _, (X, y, task) = draw(seed=11)
    order = np.array([3, 0, 4, 2, 1])  # task t is called order[t]
    a, b = BayesianMTL(tol=1e-12).fit(X, y, task), BayesianMTL(tol=1e-12).fit(X, y, order[task])
    np.testing.assert_allclose(b.coef_[order], a.coef_, rtol=1e-7)
    np.testing.assert_allclose(b.coef_covariance_[order], a.coef_covariance_, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(b.covariance_, a.covariance_, rtol=1e-6)
    np.testing.assert_allclose(b.predict(X, order[task], True), a.predict(X, task, True), rtol=1e-7)


def test_no_unit_matters():
    _, (X, y, task) = draw(seed=12)
    unit, shift = np.array([1e3, 1.0, 1e-2, 7.0]), np.array([5.0, -1.0, 0.0, 2.0])
    a = BayesianMTL(tol=1e-13).fit(X, y, task)
    b = BayesianMTL(tol=1e-13).fit(X * unit + shift, 40 * y - 9, task)
    np.testing.assert_allclose(b.coef_ * unit / 40, a.coef_, rtol=1e-6)
    np.testing.assert_allclose(b.covariance_ * np.outer(unit, unit) / 1600, a.covariance_, rtol=1e-6, atol=1e-9)
    mean, deviation = b.predict(X * unit + shift, task, return_std=True)
    np.testing.assert_allclose((mean + 9) / 40, a.predict(X, task), rtol=1e-6)
    np.testing.assert_allclose(deviation / 40, a.predict(X, task, return_std=True)[1], rtol=1e-6)
    assert b.objective_ == pytest.approx(a.objective_, rel=1e-9)
    assert b.log_evidence_ == pytest.approx(a.log_evidence_ - (len(y) - T) * math.log(40), rel=1e-9)


# --- edges -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("level", [0.0, -3.0, 1e6])
def test_constant_targets(level, fit_intercept):
    _, (X, y, task) = draw(seed=13)
    model = BayesianMTL(fit_intercept=fit_intercept).fit(X, 0 * y + level, task)
    mean, deviation = model.predict(X, task, return_std=True)
    assert np.isfinite([*model.coef_.ravel(), *deviation, model.objective_, model.log_evidence_]).all()
    assert (deviation > 0).all()
    if fit_intercept or level == 0:
        np.testing.assert_array_equal(model.coef_, 0)
        np.testing.assert_allclose(mean, level, rtol=1e-14)
        assert deviation.max() <= 1e-3 * max(abs(level), 1.0)


def test_targets_that_differ_between_tasks_only():
    _, (X, _, task) = draw(seed=14)
    model = BayesianMTL().fit(X, 2.0 * task, task)
    np.testing.assert_array_equal(model.coef_, 0)
    np.testing.assert_allclose(model.intercept_, 2.0 * np.arange(T))
    assert 0 < model.predict(X, task, return_std=True)[1].max() < 1e-2


def test_targets_without_noise():
    rng = np.random.default_rng(15)
    task = np.repeat(np.arange(5), 12)
    X, W = rng.normal(size=(60, 3)), rng.normal(size=(5, 3))
    y = (X * W[task]).sum(1) + task
    model = BayesianMTL().fit(X, y, task)
    np.testing.assert_allclose(model.coef_, W, atol=1e-4)
    assert 0 < model.noise_variance_ < 1e-8 * y.var()
    assert model.predict(X, task, return_std=True)[1].max() < 1e-3


@pytest.mark.parametrize("fit_intercept", [True, False])
def test_one_row_per_task(fit_intercept):
    rng = np.random.default_rng(16)
    X, y, task = rng.normal(size=(8, 3)), rng.normal(size=8) + 4, np.arange(8)
    model = BayesianMTL(fit_intercept=fit_intercept).fit(X, y, task)
    mean, deviation = model.predict(X, task, return_std=True)
    if fit_intercept:  # nothing is left of the data: the intercepts are the targets, the noise is all there is
        np.testing.assert_allclose(mean, y)
        assert model.noise_variance_ == pytest.approx(y.var(), rel=1e-3)
        np.testing.assert_allclose(deviation, math.sqrt(2) * y.std(), rtol=1e-3)
    else:
        assert np.abs(mean - y).max() < 4
        assert model.noise_variance_ > 0.1


def test_a_single_row():
    model = BayesianMTL().fit([[1.0, 2.0]], [5.0])
    assert model.predict([[7.0, 7.0]]) == 5
    assert np.isfinite(model.predict([[7.0, 7.0]], return_std=True)[1]).all()
    assert BayesianMTL(fit_intercept=False).fit([[1.0, 2.0]], [5.0]).coef_.shape == (1, 2)


def test_columns_that_are_constant_or_copies():
    _, (X, y, task) = draw((9, 14, 11), 3, seed=17)
    a = BayesianMTL(tol=1e-12).fit(np.column_stack([X, np.full(len(y), 3.0)]), y, task)
    np.testing.assert_array_equal(a.coef_[:, 3], 0)  # an intercept is there already
    b = BayesianMTL(tol=1e-12).fit(np.column_stack([X, X[:, 0]]), y, task)
    np.testing.assert_allclose(b.coef_[:, 3], b.coef_[:, 0], rtol=1e-6)
    assert (b.predict(np.column_stack([X, X[:, 0]]), task, True)[1] > 0).all()


def test_many_more_features_than_rows_converge():
    rng = np.random.default_rng(18)
    d, task = 120, np.repeat(np.arange(9), 11)
    common = np.zeros(d)
    common[:3] = 2
    X = rng.normal(size=(99, d))
    y = (X * (common + 0.1 * rng.normal(size=(9, d)))[task]).sum(1) + rng.normal(size=99)
    model = BayesianMTL().fit(X, y, task)
    assert model.certificate_["expected gain"] <= 1e-6 and model.n_iter_ < 60
    assert np.linalg.eigvalsh(model.covariance_).min() > 0
    assert model.coef_covariance_.shape == (9, d, d)
    assert np.argsort(-model.mean_)[:3].max() < 3


def test_too_few_steps_warn_and_tell_what_is_left():
    _, data = draw(seed=19)
    with pytest.warns(ConvergenceWarning, match=r"after 2 iterations .* at a expected gain of .*; tol=1\.0e-06"):
        model = BayesianMTL(max_iter=2).fit(*data)
    assert model.certificate_["expected gain"] > 1e-6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clone(model).set_params(max_iter=60).fit(*data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prior_tasks": 3.0}, r"prior_tasks must be a finite number > d - 1 = 3; got 3\.0"),
        ({"prior_tasks": np.nan}, "prior_tasks must be a finite number > d - 1 = 3; got nan"),
        ({"prior_tasks": np.inf}, "prior_tasks must be a finite number > d - 1 = 3; got inf"),
        ({"tol": -1.0}, "tol must be > 0"),
    ],
)
def test_bad_parameters_are_refused(options, message):
    _, data = draw(seed=20)
    with pytest.raises(ValueError, match=message):
        BayesianMTL(**options).fit(*data)


def test_weights_that_are_too_small_are_refused():
    _, (X, y, task) = draw(seed=21)
    with pytest.raises(ValueError, match=r"sample_weight counts rows: .* at least the number of tasks, 5; got 2\.8"):
        BayesianMTL().fit(X, y, task, np.full(len(y), 0.1))
