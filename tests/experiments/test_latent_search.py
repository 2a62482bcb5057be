"""GO-MTL beside other models: its errors, the search for its parameters, and what is fitted, by hand."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss as mean_log_loss

from companion.experiments import _latent
from companion.experiments._latent import GO_MTL, SMOKE_GRID, choose_latent, fit_chosen, fit_latent, ridge_grid
from companion.experiments._relations import STRENGTH, HeldOut, choose, log_loss, scores, squared_error, validation
from companion.experiments.gomtl_synthetic import TOLD
from companion.linear import (
    GOMTL,
    ConvexFeatureLearning,
    DisjointGroups,
    GOMTLClassifier,
    MeanRegularized,
    MeanRegularizedClassifier,
    SingleTask,
    SingleTaskClassifier,
    TraceNorm,
    TraceNormClassifier,
)
from companion.linear.go_mtl import separate_weights
from companion.linear.go_mtl_cv import latent_path
from companion.tasks import Tasks
from tests.experiments.latent_cases import CONFIG, SIZES, folds_of, tasks_of

# --- errors -----------------------------------------------------------------------------------------------------------


def test_log_loss_is_that_of_scikit_learn_and_survives_large_margins():
    rng = np.random.default_rng(0)
    y, margin = rng.choice([-1.0, 1.0], size=37), 3 * rng.normal(size=37)
    found = log_loss(y, margin)
    assert found.shape == (37,)
    assert found.sum() == pytest.approx(37 * mean_log_loss(y, 1 / (1 + np.exp(-margin))))
    np.testing.assert_allclose(log_loss(np.array([1.0, -1.0]), np.array([-1e4, -1e4])), [1e4, 0.0])


def test_rows_held_out_are_measured_with_the_weights_of_their_task():
    rng = np.random.default_rng(1)
    X, y = rng.normal(size=(9, 3)), rng.choice([-1.0, 1.0], size=9)
    position, W, b = np.array([0, 0, 1, 1, 1, 3, 3, 2, 2]), rng.normal(size=(3, 4)), rng.normal(size=4)
    margins = np.array([X[i] @ W[:, position[i]] + b[position[i]] for i in range(9)])
    assert HeldOut(X, y, position).loss(W, b) == pytest.approx(((y - margins) ** 2).sum())
    expected = 9 * mean_log_loss(y, 1 / (1 + np.exp(-margins)))
    assert HeldOut(X, y, position, log_loss).loss(W, b) == pytest.approx(expected)


@pytest.mark.parametrize("shared", [False, True])
def test_scores_are_margins_of_classifiers_and_predictions_of_others(shared):
    """Task by task behind one another."""
    rng = np.random.default_rng(2)
    X, labels = rng.normal(size=(11, 3)), np.where(rng.normal(size=(11, 4)) > 0, 1.0, -1.0)
    train = Tasks.shared(X, labels) if shared else tasks_of(SIZES, classify=True)
    for model in (GOMTLClassifier(2, 0.05, tol=1e-2), GOMTL(2, 0.05, tol=1e-2)):
        fitted = model.fit(train)
        expected = [x @ fitted.coef_[t] + fitted.intercept_[t] for t, (x, _) in enumerate(train)]
        np.testing.assert_allclose(scores(fitted, train), np.concatenate(expected), atol=1e-12)


@pytest.mark.parametrize(
    ("build", "tol"),
    [
        (lambda strength: MeanRegularizedClassifier(strength, 0.0), 1e-8),
        (lambda strength: GOMTLClassifier(2, strength), 1e-2),
    ],
)
def test_classifiers_are_searched_by_log_loss_on_a_path_and_one_by_one(build, tol):
    train, settings, strengths = tasks_of(SIZES, classify=True), {"tol": tol, "max_iter": 50_000}, [0.3, 0.05]
    found = choose(build, {STRENGTH: strengths}, train, folds_of(train, True, 2), settings)
    for strength, loss in zip(strengths, found.loss, strict=True):
        expected = 0.0
        for part, held_out in train.folds(2, 5):
            margins = build(strength).set_params(**settings).fit(part).decision_function(train)
            for (_, y), m, out in zip(train, margins, held_out, strict=True):
                expected += out.sum() * mean_log_loss(y[out], 1 / (1 + np.exp(-m[out])), labels=[-1.0, 1.0])
        assert loss == pytest.approx(expected, rel=1e-4)


def test_validation_rows_carry_their_error():
    train, held_out = tasks_of(SIZES, classify=True), tasks_of((5, 7, 6, 9, 8), classify=True, seed=3)
    ((plain_fold,), (fold,)) = validation(train, held_out), validation(train, held_out, log_loss)
    assert plain_fold.held_out.error is squared_error and fold.held_out.error is log_loss
    assert fold.train is train and len(fold.held_out.y) == 35


# --- the search for the number of latent tasks and mu -----------------------------------------------------------------


def intercepts(train, W, classify):
    """The best ones for the training rows, task by task."""
    if not classify:
        return [np.mean(y - X @ W[:, t]) for t, (X, y) in enumerate(train)]
    return [
        minimize_scalar(lambda b, m=X @ W[:, t], y=y: log_loss(y, m + b).sum(), bracket=(-1, 1), tol=1e-12).x
        for t, (X, y) in enumerate(train)
    ]


@pytest.mark.parametrize("classify", [False, True])
def test_held_out_losses_of_latent_tasks_fold_by_fold(classify):
    """Every number of latent tasks has a path of its own in every fold; the least loss is chosen."""
    train, n_latents, ratios = tasks_of(SIZES, classify=classify), [3, 1], [0.02, 0.1, 0.5]
    unit = (GOMTLClassifier if classify else GOMTL)(lam=0.1, tol=1e-2, max_iter=300)
    found = choose_latent(unit, n_latents, ratios, train, folds_of(train, classify))
    top = found.mu / ratios[found.position[1]]
    expected = np.zeros((2, 3))
    for part, held_out in train.folds(3, 5):
        _, problem = unit.prepare(part)
        for a, K in enumerate(n_latents):
            path = latent_path(problem, separate_weights(problem, 0.1), K, [top * r for r in ratios], 0.1, 1e-2, 300)
            for m, fit in enumerate(path):
                W = (fit.factors.L @ fit.factors.S).numpy()
                b = intercepts(part, W, classify)
                for t, ((X, y), out) in enumerate(zip(train, held_out, strict=True)):
                    margin = X[out] @ W[:, t] + b[t]
                    error = np.log1p(np.exp(-y[out] * margin)) if classify else (y[out] - margin) ** 2
                    expected[a, m] += error.sum()
    np.testing.assert_allclose(found.loss, expected, rtol=1e-6)
    place = np.unravel_index(expected.argmin(), expected.shape)
    assert found.position == place and all(type(i) is int for i in found.position)
    assert found.n_latent == n_latents[place[0]]


def test_mus_are_parts_of_one_that_leaves_little():
    """At which the leading direction of separate ridge regressions costs as much as they can gain."""
    train, lam = tasks_of(SIZES), 0.1
    W = np.stack([Ridge(alpha=2 * lam * len(y)).fit(X, y).coef_ for X, y in train], axis=1)
    null = sum(y.var() / 2 for _, y in train)
    _, s, Vt = np.linalg.svd(W)
    length = np.abs(s[0] * Vt[0]).sum()
    # length / c + lam c² of a latent task of length c is least at c³ = length / (2 lam); mu scales it by mu^(2/3).
    cost = 3 * lam * (length / (2 * lam)) ** (2 / 3)
    for position, ratio in enumerate((0.01, 0.3)):
        found = choose_latent(GOMTL(lam=lam), [2], [ratio], train, folds_of(train, False))
        assert found.mu == pytest.approx(ratio * (null / cost) ** 1.5, rel=2e-2), position


def test_with_patience_larger_mus_are_left_out():
    train, ratios = tasks_of(SIZES), [1e-4, 1e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0]
    folds = folds_of(train, False)
    unit = GOMTL(tol=1e-2)
    whole = choose_latent(unit, [2, 1], ratios, train, folds, patience=8).loss
    assert np.isfinite(whole).all()
    for patience in (1, 2):
        found = choose_latent(unit, [2, 1], ratios, train, folds, patience=patience).loss
        assert np.isinf(found).any() and found.shape == (2, 8)
        for losses, full in zip(found, whole, strict=True):
            tried = int(np.isfinite(losses).sum())
            np.testing.assert_allclose(losses[:tried], full[:tried], rtol=1e-8)
            assert tried == min(int(losses.argmin()) + patience + 1, 8)


# --- what is chosen, fitted -------------------------------------------------------------------------------------------

GRID = {"n_latent": [1.0, 2.0], "mu_ratio": [0.03, 0.1, 0.5]}


@pytest.mark.parametrize("classify", [False, True])
def test_the_chosen_latent_tasks_are_fitted_to_all_rows(classify):
    train, common = tasks_of(SIZES, classify=classify), {"reduction": "sum", "fit_intercept": True}
    folds, kind = folds_of(train, classify), GOMTLClassifier if classify else GOMTL
    config = {**CONFIG, "latent_tol": 1e-5, "latent_tol_in_folds": 1e-2, "latent_max_iter_in_folds": 77}
    fitted, found = fit_latent(train, folds, GRID, common, config, classify)
    choice = choose_latent(kind(lam=0.1, tol=1e-2, max_iter=77, **common), [1, 2], GRID["mu_ratio"], train, folds)
    expected = kind(choice.n_latent, choice.mu, 0.1, n_init=2, tol=1e-5, max_iter=1000, **common).fit(train)
    assert type(fitted) is kind and fitted.get_params() == expected.get_params()
    np.testing.assert_array_equal(fitted.coef_, expected.coef_)
    assert (found["K"], found["mu"]) == (choice.n_latent, choice.mu)
    assert (found["K: position"], found["mu: position"]) == choice.position
    used = [sum(code != 0 for code in codes) for codes in expected.codes_.T.tolist()]
    assert found["latent tasks per task"] == pytest.approx(sum(used) / 5)
    assert found["n_active"] == expected.n_active_
    assert found["certificate"] == max(expected.certificate_.values()) <= 1e-5
    assert found["largest rise"] < 1e-12 and all(type(value) is float for value in found.values())


def test_rises_and_violations_are_reported_where_there_are_any(monkeypatch):
    class Rising(GOMTL):
        def fit(self, *arguments):
            super().fit(*arguments)
            self.history_ = np.array([-8.0, -9.0, -6.0, -7.0, -5.0])
            self.certificate_ = {"codes": 0.1, "latent": 0.3, "balance": 0.2}
            self.codes_ = np.array([[1.0, 0.0, -2.0, 0.0, 0.1], [-1.0, 0.0, 0.0, 0.0, 3.0]])
            return self

    monkeypatch.setattr(_latent, "GOMTL", Rising)
    train = tasks_of(SIZES)
    _, found = fit_latent(train, folds_of(train, False), SMOKE_GRID, {}, CONFIG)
    assert found["largest rise"] == 3 / 8 and found["certificate"] == 0.3
    assert found["latent tasks per task"] == 1.0  # 2, 0, 1, 0, 2


OTHER_MODELS = {
    "single": ({STRENGTH: [0.5, 0.05]}, lambda strength: SingleTask(strength)),
    "mean-regularised": (
        {STRENGTH: [0.5, 0.05], "ratio": [0.9, 0.1]},
        lambda strength, ratio: MeanRegularized(ratio * strength, (1 - ratio) * strength),
    ),
    "trace norm": ({STRENGTH: [0.2, 0.02]}, lambda strength: TraceNorm(strength)),
    "feature learning": ({STRENGTH: [0.2, 0.02]}, lambda strength: ConvexFeatureLearning(strength)),
    "disjoint groups": (
        {STRENGTH: [0.2, 0.02], "n_clusters": [2]},
        lambda strength, n_clusters: DisjointGroups(n_clusters, strength),
    ),
}
OTHER_CLASSIFIERS = {
    "single": ({STRENGTH: [0.5, 0.02]}, lambda strength: SingleTaskClassifier(strength)),
    "mean-regularised": (
        {STRENGTH: [0.5, 0.02], "ratio": [0.9, 0.1]},
        lambda strength, ratio: MeanRegularizedClassifier(ratio * strength, (1 - ratio) * strength),
    ),
    "trace norm": ({STRENGTH: [0.2, 0.02]}, lambda strength: TraceNormClassifier(strength)),
}


@pytest.mark.parametrize(
    ("method", "classify"), [*((m, False) for m in OTHER_MODELS), *((m, True) for m in OTHER_CLASSIFIERS)]
)
def test_other_methods_are_the_models_they_are_called_after(method, classify, monkeypatch):
    """What is fitted has the settings of a fit, and what is tried those of a search."""
    seen = []
    monkeypatch.setattr(_latent, "choose", lambda *a, **k: seen.append((a[4], k)) or choose(*a, **k))
    train, common = tasks_of(SIZES, classify=classify), {"reduction": "mean", "fit_intercept": True}
    grid, build = (OTHER_CLASSIFIERS if classify else OTHER_MODELS)[method]
    fitted, found = fit_chosen(method, train, folds_of(train, classify), grid, common, CONFIG, classify)
    rough = {"tol": 1e-8, "max_iter": 40_000, "n_init": 2, "n_candidates": 0}
    assert seen == [({**common, **rough}, {"n_strengths": 12, "least": 0.005, "patience": 3})]
    settings = {"tol": 1e-9, "max_iter": 50_000, "n_init": 3, **common}
    values = {name: found[name] for name in grid}
    expected = build(**values)
    expected.set_params(**{name: v for name, v in settings.items() if name in expected.get_params()}).fit(train)
    np.testing.assert_allclose(fitted.coef_, expected.coef_, atol=2e-4)
    np.testing.assert_allclose(fitted.intercept_, expected.intercept_, atol=2e-4)
    assert settings.items() >= {name: v for name, v in fitted.get_params().items() if name in settings}.items()
    assert all(grid[name][int(found[f"{name}: position"])] == value for name, value in values.items())
    assert 0 <= found["certificate"] <= 1e-6
    assert set(found) == {*grid, *(f"{name}: position" for name in grid), "certificate"}


@pytest.mark.parametrize("classify", [False, True])
def test_a_single_task_is_ridge_or_logistic_regression_of_scikit_learn(classify):
    """With a mean over rows, the penalty is in units of their number."""
    train = tasks_of(SIZES, classify=classify)
    common = {"reduction": "mean", "fit_intercept": True}
    fitted, _ = fit_chosen("single", train, folds_of(train, classify), {STRENGTH: [0.2]}, common, CONFIG, classify)
    for t, (X, y) in enumerate(train):
        a = 0.2 * len(y)
        model = LogisticRegression(C=1 / a, tol=1e-10, max_iter=1000) if classify else Ridge(alpha=a)
        np.testing.assert_allclose(fitted.coef_[t], np.ravel(model.fit(X, y).coef_), atol=1e-4)


@pytest.mark.parametrize(("method", "classify"), [(TOLD, False), (GO_MTL, True)])
def test_latent_tasks_are_searched_under_every_name(method, classify):
    train, common = tasks_of(SIZES, classify=classify), {"reduction": "mean", "fit_intercept": True}
    config = {**CONFIG, "latent_tol": 1e-2, "latent_tol_in_folds": 1e-2, "latent_n_init": 1}
    arguments = (
        train,
        folds_of(train, classify, 2),
        {"n_latent": [2], "mu_ratio": [0.05, 0.3]},
        common,
        config,
        classify,
    )
    fitted, found = fit_chosen(method, *arguments)
    expected, same = fit_latent(*arguments)
    assert type(fitted) is (GOMTLClassifier if classify else GOMTL) and found == same
    np.testing.assert_array_equal(fitted.coef_, expected.coef_)


def test_the_first_ridge_leaves_nothing_and_the_others_fall():
    assert ridge_grid(10, 0.1, 4) == [1e6, 10, 1, 0.1]
