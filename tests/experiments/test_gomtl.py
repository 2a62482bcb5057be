"""GO-MTL beside other models: the search for its weights by hand, on made-up tasks; every experiment, unit by unit."""

import os

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import adjusted_rand_score
from sklearn.metrics import log_loss as mean_log_loss

from companion.datasets import (
    Digits,
    KangDigits,
    School,
    make_disjoint_groups,
    make_overlapping_groups,
)
from companion.experiments import (
    EXPERIMENTS,
    ComputerSurveyStudy,
    GOMTLComputer,
    GOMTLDigits,
    GOMTLNewTasks,
    GOMTLSchool,
    GOMTLSynthetic,
    SchoolConvex,
    _latent,
    _school,
    computer_survey,
    gomtl_digits,
    gomtl_new_tasks,
    gomtl_school,
    gomtl_synthetic,
)
from companion.experiments._frame import run
from companion.experiments._latent import (
    GO_MTL,
    LATENT,
    OTHERS,
    REPORTED,
    SMOKE_GRID,
    choose_latent,
    fit_chosen,
    fit_latent,
    reported,
    ridge_grid,
)
from companion.experiments._relations import (
    STRENGTH,
    HeldOut,
    choose,
    inner_folds,
    log_loss,
    scores,
    squared_error,
    validation,
)
from companion.experiments.gomtl_digits import CONTROLLED, DRAWN, PUBLISHED, ROTATED
from companion.experiments.gomtl_new_tasks import (
    SCHOOL,
    SYNTHETIC,
    _linear,
    _predictions,
    _refitted,
    _ridge,
    first_rows,
)
from companion.experiments.gomtl_synthetic import AS_IT_IS, TOLD, UNRELATED
from companion.experiments.school_convex import CONTROLS, INTERCEPTS
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
from companion.penalties import L1
from companion.records import plain
from companion.solvers.latent import LatentProblem
from companion.tasks import Tasks

needs_school = pytest.mark.skipif(
    not os.environ.get("COMPANION_DATA"), reason="needs school/school_b.mat and its splits: COMPANION_DATA is not set"
)
CPU = torch.device("cpu")
STUDIES = [e for e in EXPERIMENTS if e.name.startswith("gomtl-")]
EXACT = {name: 1e-9 for name in ("tol", "tol_in_folds", "latent_tol", "latent_tol_in_folds")}
EXACT |= {name: 50_000 for name in ("max_iter", "max_iter_in_folds")}
CONFIG = {**LATENT, **OTHERS, **EXACT, "latent_n_init": 2, "n_init": 3, "n_init_in_folds": 2}
CONFIG |= {"tol_in_folds": 1e-8, "max_iter_in_folds": 40_000}


def tasks_of(sizes, d=4, classify=False, seed=0, level=2.0):
    """Tasks of unequal sizes on two latent tasks, with levels; labels -1 and +1 if asked."""
    rng = np.random.default_rng(seed)
    W = np.random.default_rng(99).normal(size=(d, 2)) @ np.random.default_rng(98).normal(size=(2, len(sizes)))
    pairs = []
    for t, n in enumerate(sizes):
        X = rng.normal(size=(n, d))
        y = X @ W[:, t] + (0.3 if classify else level) * t + 0.4 * rng.normal(size=n)
        pairs.append((X, np.where(y > y.mean(), 1.0, -1.0) if classify else y))
    return Tasks.from_list(pairs)


SIZES = (16, 12, 19, 14, 17)
MU_RATIOS = [0.03, 0.06, 0.12, 0.24, 0.48]


def folds_of(train, classify, n_folds=3):
    return [fold._replace(error=log_loss if classify else squared_error) for fold in inner_folds(train, n_folds, 5)]


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


# --- synthetic data ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 2])
def test_directions_of_their_own_keep_inputs_noise_and_lengths(number):
    real, control = (gomtl_synthetic.drawn(number, condition, 3) for condition in (AS_IT_IS, UNRELATED))
    for before, after in ((real.train, control.train), (real.test, control.test)):
        for t, ((X, y), (Z, z)) in enumerate(zip(before, after, strict=True)):
            np.testing.assert_array_equal(X, Z)
            np.testing.assert_allclose(y - X @ real.W[:, t], z - Z @ control.W[:, t], atol=1e-12)
            assert np.abs(y - z).max() > 0.1
    lengths = np.linalg.norm(real.W, axis=0)
    np.testing.assert_allclose(np.linalg.norm(control.W, axis=0), lengths)
    cosines = (control.W / lengths).T @ (control.W / lengths)
    others = np.abs(cosines[~np.eye(30, dtype=bool)])
    assert others.max() < 0.8 and others.mean() < 0.25  # 0.18 for 20 features
    assert np.linalg.matrix_rank(real.W) == {1: 3, 2: 4}[number] and np.linalg.matrix_rank(control.W) == 20
    np.testing.assert_array_equal(control.L @ control.S, control.W)


@pytest.mark.parametrize("condition", [AS_IT_IS, UNRELATED])
def test_draws_differ_by_data_set_and_seed(condition):
    keys = [(1, 0), (1, 1), (2, 0), (2, 1)]
    draws = [gomtl_synthetic.drawn(number, condition, seed) for number, seed in keys]
    directions = [draw.W / np.linalg.norm(draw.W, axis=0) for draw in draws]
    for i in range(4):
        for j in range(i):
            assert not np.isclose(directions[i], directions[j]).any() and not np.isclose(draws[i].W, draws[j].W).any()
            assert not np.isclose(draws[i].train[0][0], draws[j].train[0][0]).any()
    again = gomtl_synthetic.drawn(2, condition, 1)
    np.testing.assert_array_equal(again.W, draws[3].W)
    for make, draw in zip((make_disjoint_groups, make_overlapping_groups), (draws[0], draws[2]), strict=True):
        number = 1 if make is make_disjoint_groups else 2
        same = make(random_state=np.random.default_rng([number, 0]))
        np.testing.assert_array_equal(draw.test[7][0], same.test[7][0])
        assert condition == UNRELATED or np.array_equal(draw.W, same.W)


def test_single_tasks_on_synthetic_data_by_hand():
    grid = [1.0, 0.1, 1e-3]
    experiment = GOMTLSynthetic(2)
    config = {**experiment.config(smoke=True), **EXACT, "grids": {"single": {STRENGTH: grid}}}
    unit = {"condition": AS_IT_IS, "method": "single", "seed": 5}
    found = experiment.run_unit(unit, config, CPU)
    data = gomtl_synthetic.drawn(2, AS_IT_IS, 5)

    def weights(tasks, alpha):
        return [Ridge(alpha=alpha * len(y), fit_intercept=False).fit(X, y).coef_ for X, y in tasks]

    def error(alpha):
        total = 0.0
        for part, held_out in data.train.folds(config["inner_folds"], 0):
            for w, (X, y), out in zip(weights(part, alpha), data.train, held_out, strict=True):
                total += ((y - X @ w)[out] ** 2).sum()
        return total

    best = min(grid, key=error)
    W = weights(data.train, best)
    errors = np.concatenate([y - X @ w for w, (X, y) in zip(W, data.test, strict=True)])
    distance = np.sqrt(sum(((w - v) ** 2).sum() for w, v in zip(W, data.W.T, strict=True)) / (data.W**2).sum())
    assert (found["metrics"][STRENGTH], found["per_task"]) == (best, {})
    assert found["metrics"]["rmse"] == pytest.approx(np.sqrt((errors**2).mean()), abs=1e-6)
    assert found["metrics"]["error of the weights"] == pytest.approx(distance, abs=1e-6)


def test_latent_tasks_on_synthetic_data_by_hand():
    """Groups are compared where a task has enough of its latent task."""
    experiment, unit = GOMTLSynthetic(1), {"condition": AS_IT_IS, "method": GO_MTL, "seed": 1}
    grids = {GO_MTL: {"n_latent": [3], "mu_ratio": [0.003, 0.03]}}
    config = {**experiment.config(smoke=True), "grids": grids, "latent_n_init": 1}
    found = experiment.run_unit(unit, config, CPU)
    data, metrics = gomtl_synthetic.drawn(1, AS_IT_IS, 1), found["metrics"]
    fitted = GOMTL(3, metrics["mu"], 0.1, fit_intercept=False).fit(data.train)
    errors = np.concatenate([y - X @ fitted.coef_[t] for t, (X, y) in enumerate(data.test)])
    assert metrics["rmse"] == pytest.approx(np.sqrt((errors**2).mean()), abs=1e-5)
    distance = np.linalg.norm(fitted.coef_ - data.W.T) / np.linalg.norm(data.W)
    assert metrics["error of the weights"] == pytest.approx(distance, abs=1e-5)
    multiple = np.array([max(code) for code in data.S.T.tolist()])
    group = [max(range(3), key=lambda k, c=code: abs(c[k])) for code in fitted.codes_.T.tolist()]
    clear = multiple >= 0.25
    assert 0 < (~clear).sum() < 10
    assert metrics["ari"] == pytest.approx(adjusted_rand_score(data.groups[clear], np.array(group)[clear]))
    assert metrics["ari"] != pytest.approx(adjusted_rand_score(data.groups, group))
    assert found["per_task"]["group"] == group
    np.testing.assert_allclose(found["per_task"]["multiple"], multiple, atol=1e-6)


@pytest.mark.parametrize(("number", "condition"), [(1, UNRELATED), (2, AS_IT_IS), (2, UNRELATED)])
def test_groups_are_compared_only_where_there_are_any(number, condition):
    """And the control has a grid of its own."""
    experiment, unit = GOMTLSynthetic(number), {"condition": condition, "method": GO_MTL, "seed": 0}
    grid = {"n_latent": [2], "mu_ratio": [0.1]}
    other = {**grid, "n_latent": [5]}
    config = {**experiment.config(smoke=True), "grids": {GO_MTL: grid}, "control_grids": {GO_MTL: other}}
    config |= {"latent_n_init": 1, "latent_tol": 1e-3}
    found = experiment.run_unit(unit, config, CPU)
    assert found["per_task"] == {} and "ari" not in found["metrics"]
    assert found["metrics"]["K"] == (5 if condition == UNRELATED else 2)


# --- digits -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def pictures(monkeypatch):
    """90 pictures of 3 x 5 pixels from 0 to 255, all different; 41 to train, 23 to validate, 17 to test."""
    rng = np.random.default_rng(0)
    digit = rng.permutation(np.arange(90) % 10)
    centres = rng.uniform(0, 80, size=(10, 15))
    X = np.clip(centres[digit] + rng.uniform(0, 170, size=(90, 15)), 0, 250).astype(np.float32)
    X[0, 0] = 255
    data = Digits.from_images(X, digit, (3, 5), {"pictures": "00"})
    monkeypatch.setattr(gomtl_digits, "images", lambda name: data)
    monkeypatch.setattr(gomtl_digits, "SIZES", (41, 23, 17))
    monkeypatch.setattr(gomtl_digits, "N_COMPONENTS", {"usps": 15, "mnist": 7})
    return data


def parts_of(part):
    return [part.train, part.held_out, part.test]


def test_tasks_are_one_digit_against_the_rest_on_shared_inputs(pictures):
    part = gomtl_digits.draw("mnist", DRAWN, 2)
    for tasks, n in zip(parts_of(part), (41, 23, 17), strict=True):
        assert tasks.is_shared and (tasks.n_tasks, tasks.n_features) == (10, 7) and set(tasks.n_samples) == {n}
    for t, (_, y) in enumerate(part.test):
        assert y.tolist() == [1.0 if digit == t else -1.0 for digit in part.digit]


def rows_in(tasks, data):
    """Which pictures they are: all components keep the length of a picture."""
    lengths, of_rows = np.linalg.norm(data.X.astype(float), axis=1), np.linalg.norm(255 * tasks[0][0], axis=1)
    distance = np.abs(of_rows[:, None] - lengths)
    assert (np.sort(distance, axis=1)[:, 0] < 1e-6).all()
    return distance.argmin(1)


@pytest.mark.parametrize("condition", [DRAWN, ROTATED])
def test_pictures_are_drawn_once_and_keep_their_digit(pictures, condition):
    part = gomtl_digits.draw("usps", condition, 4)
    rows = [rows_in(tasks, pictures) for tasks in parts_of(part)]
    assert len(set(np.concatenate(rows).tolist())) == 41 + 23 + 17
    np.testing.assert_array_equal(part.digit, pictures.digit[rows[2]])
    for tasks, numbers in zip(parts_of(part), rows, strict=True):
        labels = np.array([y for _, y in tasks])
        np.testing.assert_array_equal(labels, np.where(pictures.digit[numbers] == np.arange(10)[:, None], 1.0, -1.0))
    other = rows_in(gomtl_digits.draw("usps", condition, 5).train, pictures)
    assert (np.sort(other) != np.sort(rows[0])).any()


def test_components_are_those_of_the_training_rows(pictures, monkeypatch):
    """Not centred, and blind to what the other rows look like."""
    rows = [rows_in(tasks, pictures) for tasks in parts_of(gomtl_digits.draw("usps", DRAWN, 1))]
    X = pictures.X.astype(float) / 255
    _, vectors = np.linalg.eigh(X[rows[0]].T @ X[rows[0]])
    basis = vectors[:, -7:]
    part = gomtl_digits.draw("mnist", DRAWN, 1)
    found = [tasks[0][0] for tasks in parts_of(part)]
    for Z, numbers in zip(found, rows, strict=True):
        np.testing.assert_allclose(Z @ found[0].T, X[numbers] @ basis @ basis.T @ X[rows[0]].T, atol=1e-10)
    changed = pictures.X.copy()
    changed[np.concatenate(rows[1:])] /= 2
    changed[0, 0] = 255
    data = Digits.from_images(changed, pictures.digit, (3, 5), {})
    monkeypatch.setattr(gomtl_digits, "images", lambda name: data)
    again = [tasks[0][0] for tasks in parts_of(gomtl_digits.draw("mnist", DRAWN, 1))]
    same = rows[0] != 0
    np.testing.assert_array_equal(again[0][same], found[0][same])
    assert not np.isclose(again[2], found[2]).all(1).any()


def test_every_task_turns_the_same_rows_in_its_own_way(pictures):
    plain_part, turned = (gomtl_digits.draw("mnist", condition, 3) for condition in (DRAWN, ROTATED))
    X = [tasks[0][0] for tasks in parts_of(plain_part)]
    Z = [[x for x, _ in tasks] for tasks in parts_of(turned)]
    for t in range(10):
        for i in range(3):  # the same rotation for rows to train and to test
            np.testing.assert_allclose(Z[i][t] @ Z[0][t].T, X[i] @ X[0].T, atol=1e-10)
        assert not np.isclose(Z[0][t], X[0]).any(1).all()
        assert all(np.abs(Z[0][t] - Z[0][s]).max() > 0.1 for s in range(t))
    again, other = gomtl_digits.draw("mnist", ROTATED, 3), gomtl_digits.draw("mnist", ROTATED, 6)
    np.testing.assert_array_equal(again.train[4][0], Z[0][4])
    assert not np.allclose(other.train[4][0][:, 0], Z[0][4][:, 0])


def published_digits():
    """64 rows of six components in no order, of which five belong to no part."""
    rng = np.random.default_rng(3)
    digit = rng.permutation(np.arange(64) % 10)
    train, validation_rows, test, _ = np.split(rng.permutation(64), [34, 48, 59])
    X = rng.normal(size=(10, 6))[digit] + 0.5 * rng.normal(size=(64, 6))
    Y = (digit[:, None] == np.arange(10)).astype(float)
    return KangDigits(
        **{"X": X, "Y": Y, "digit": digit, "train": train, "validation": validation_rows, "test": test},
        feature_names=tuple("abcdef"),
        sha256={"published": "11"},
    )


def test_the_published_split_is_taken_as_it_is(monkeypatch):
    data = published_digits()
    monkeypatch.setattr(gomtl_digits, "published", lambda name: data)
    part = gomtl_digits.draw("usps", PUBLISHED, 0)
    for tasks, rows in zip(parts_of(part), (data.train, data.validation, data.test), strict=True):
        np.testing.assert_array_equal(tasks[0][0], data.X[rows])
        np.testing.assert_array_equal(np.array([y for _, y in tasks]), 2 * data.Y[rows].T - 1)
    np.testing.assert_array_equal(part.digit, data.digit[data.test])


@pytest.mark.parametrize("condition", [PUBLISHED, ROTATED])
@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_errors_of_digits_by_hand(pictures, monkeypatch, loss, condition):
    """The digit whose model has the largest margin; penalties by the loss on the rows to validate."""
    monkeypatch.setattr(gomtl_digits, "published", lambda name: published_digits())
    strengths = [1.0, 0.1, 1e-3]
    config = {**GOMTLDigits("mnist").config(smoke=True), **EXACT, "grids": {loss: {"single": {STRENGTH: strengths}}}}
    unit = {"condition": condition, "seed": 2, "loss": loss, "method": "single"}
    found = GOMTLDigits("mnist").run_unit(unit, config, CPU)
    part = gomtl_digits.draw("mnist", condition, 2)

    def margins(tasks, strength):
        columns = []
        for (X, y), (Z, _) in zip(part.train, tasks, strict=True):
            if loss == "squared":
                columns.append(Ridge(alpha=strength * len(y)).fit(X, y).predict(Z))
            else:
                model = LogisticRegression(C=1 / (strength * len(y)), tol=1e-10, max_iter=5000).fit(X, y)
                columns.append(model.decision_function(Z))
        return np.stack(columns, axis=1)

    def error(strength):
        M, Y = margins(part.held_out, strength), np.stack([y for _, y in part.held_out], axis=1)
        return ((Y - M) ** 2).sum() if loss == "squared" else np.log1p(np.exp(-Y * M)).sum()

    best = min(strengths, key=error)
    M, Y = margins(part.test, best), np.stack([y for _, y in part.test], axis=1)
    wrong = [row.argmax() != digit for row, digit in zip(M, part.digit, strict=True)]
    assert found["per_task"] == {} and found["metrics"][STRENGTH] == best
    assert found["metrics"]["error"] == pytest.approx(100 * np.mean(wrong)) and 0 < np.mean(wrong) < 1
    assert found["metrics"]["binary error"] == pytest.approx(100 * np.mean(np.sign(M) != Y))


# --- computer survey --------------------------------------------------------------------------------------------------


@pytest.fixture
def ratings(use_survey):
    """A survey of 20 profiles with a constant and four attributes, rated by 13 respondents."""
    rng = np.random.default_rng(0)
    X = np.column_stack([np.ones(20), rng.choice([-1.0, 1.0], size=(20, 4))])
    Y = X[:, 1:] @ (rng.normal(size=(4, 2)) @ rng.normal(size=(2, 13))) + 5 + 8 * rng.normal(size=(20, 13))
    return use_survey(X, Y)


SAME = {
    GOMTLComputer: ComputerSurveyStudy,
    GOMTLSchool: SchoolConvex,
}


@pytest.mark.parametrize("smoke", [False, True])
@pytest.mark.parametrize(("here", "there"), [(h(), t()) for h, t in SAME.items()], ids=lambda e: e.name)
def test_real_data_are_treated_as_for_the_other_models(here, there, smoke):
    """So that results are paired."""
    config, others = here.config(smoke), there.config(smoke)
    shared = {"reduction", "inner_folds", "fold_seed", "scaling", *config.keys() & others.keys()} - {"reported"}
    own = {"intercept"} if isinstance(here, GOMTLComputer) else set()  # one method less, so other words
    assert {name for name in shared if config[name] != others[name]} <= own
    assert len(shared) >= 9
    settings = [{**unit, "method": "single"} for unit in here.units(config)]
    assert settings == [unit for unit in there.units(others) if unit["method"] == "single"]
    assert here.seeds(config) == there.seeds(others)


def test_the_reported_line_of_the_survey_is_that_of_the_other_record():
    assert GOMTLComputer().config(smoke=False)["reported"]["error"] == computer_survey.REPORTED["rmse"]


@pytest.mark.parametrize(("protocol", "repeat", "n_test"), [("first 8, last 4", 0, 4), ("15/5", 1, 5)])
def test_ratings_by_hand(ratings, protocol, repeat, n_test):
    grid = {"n_latent": [1, 2], "mu_ratio": MU_RATIOS}
    config = {**GOMTLComputer().config(smoke=True), "grid": grid, "latent_n_init": 1, "n_respondents": 13}
    unit = {"protocol": protocol, "condition": AS_IT_IS, "repeat": repeat, "method": GO_MTL}
    found = GOMTLComputer().run_unit(unit, config, CPU)
    part = computer_survey.draw(protocol, AS_IT_IS, repeat, 13)
    rough = GOMTL(reduction="sum", tol=1e-2, max_iter=200)
    choice, other = (
        choose_latent(rough, [1, 2], MU_RATIOS, part.train, inner_folds(part.train, 3, seed)) for seed in (0, 1)
    )
    assert choice.position != other.position  # the folds matter
    fitted = GOMTL(choice.n_latent, choice.mu, reduction="sum").fit(part.train)
    Z, Y = (values.numpy() for values in part.test.common_inputs()[:2])
    errors = Y - (Z @ fitted.coef_.T + fitted.intercept_)
    assert errors.shape == (n_test, 13)
    assert found["metrics"]["rmse"] == pytest.approx(np.sqrt((errors**2).mean()), abs=1e-6)
    if protocol == "15/5":
        assert found["per_task"] == {}
    else:
        np.testing.assert_allclose(found["per_task"]["rmse"], np.sqrt((errors**2).mean(0)), atol=1e-5)


def test_a_small_run_repeats_after_an_interruption(ratings, tmp_path):
    """Whole, and stopped in the middle and resumed."""

    class Few(GOMTLComputer):
        def __init__(self, stop_at=None):
            self.stop_at, self.computed = stop_at, []

        def config(self, smoke):
            few = {"repeats": 1, "latent_n_init": 1, "latent_tol": 1e-3, "grid": {"n_latent": [2], "mu_ratio": [0.1]}}
            return {**super().config(smoke), **few, "n_respondents": 7}

        def run_unit(self, unit, config, device):
            if len(self.computed) == self.stop_at:
                raise KeyboardInterrupt
            self.computed.append(unit)
            return super().run_unit(unit, config, device)

    whole = run(Few(), smoke=True, folder=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(Few(stop_at=2), smoke=True, folder=tmp_path / "parts")
    rest = Few()
    assert run(rest, smoke=True, folder=tmp_path / "parts").same_results(whole)
    assert rest.computed == [row["unit"] for row in whole.results[2:]] and len(whole.results) == 5
    assert whole.data == {"made up": "00"}


# --- School -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def pupils(monkeypatch):
    """Nine schools with 9 to 25 pupils, four columns and a constant, in two splits."""
    rng = np.random.default_rng(0)
    task = np.repeat(np.arange(1, 10), np.arange(9, 26, 2))
    n = len(task)
    X = np.column_stack([rng.normal(3, 2, size=(n, 2)), rng.choice([0.0, 1.0], size=(n, 2)), np.ones(n)])
    W = rng.normal(size=(4, 2)) @ rng.normal(size=(2, 9))
    y = 20 + rng.normal(size=9)[task - 1] + (X[:, :4] * W.T[task - 1]).sum(1) + 5 * rng.normal(size=n)
    splits = []
    for _ in range(2):
        is_test = np.zeros(n, dtype=bool)
        for t in range(1, 10):
            of_task = np.flatnonzero(task == t)
            is_test[rng.permutation(of_task)[: len(of_task) // 3]] = True
        splits.append((np.flatnonzero(~is_test), np.flatnonzero(is_test)))
    names = (*"abcd", "constant")
    data = School(X=X, y=y, task=task, splits=tuple(splits), feature_names=names, sha256={"pupils": "00"})
    for module in (_school, gomtl_school, gomtl_new_tasks):
        monkeypatch.setattr(module, "school", lambda: data)
    return data


@pytest.mark.parametrize("intercept", INTERCEPTS)
def test_schools_by_hand(pupils, intercept):
    grid = {"n_latent": [1, 2], "mu_ratio": MU_RATIOS}
    config = {**GOMTLSchool().config(smoke=True), "grid": grid, "n_schools": 7, "latent_n_init": 1}
    unit = {"split": 2, "condition": AS_IT_IS, "intercept": intercept, "method": GO_MTL}
    found = GOMTLSchool().run_unit(unit, config, CPU)
    few = pupils.task <= 7
    train, test = (rows[few[rows]] for rows in pupils.splits[1])
    mean, scale = pupils.X[train].mean(0), pupils.X[train].std(0)
    mean[-1], scale[-1] = 0, 1
    X, y = (pupils.X - mean) / scale, pupils.y - pupils.y[train].mean()
    tasks = Tasks.from_long(X[train], y[train], pupils.task[train])
    common = {"reduction": "sum", "fit_intercept": intercept != "penalised"}
    rough = GOMTL(tol=1e-2, max_iter=200, **common)
    choice, other = (choose_latent(rough, [1, 2], MU_RATIOS, tasks, inner_folds(tasks, 3, seed)) for seed in (0, 1))
    assert choice.position != other.position  # the folds matter
    fitted = GOMTL(choice.n_latent, choice.mu, **common).fit(tasks)
    position = pupils.task[test] - 1
    error = y[test] - (X[test] * fitted.coef_[position]).sum(1) - fitted.intercept_[position]
    metrics = found["metrics"]
    assert metrics["rmse"] == pytest.approx(np.sqrt((error**2).mean()), abs=1e-6)
    assert metrics["explained_variance"] == pytest.approx(1 - (error**2).mean() / y[test].var(), abs=0.02)
    assert (metrics["K"], metrics["mu: position"]) == (choice.n_latent, choice.position[1])
    each = [np.sqrt((error[position == t] ** 2).mean()) for t in range(7)]
    np.testing.assert_allclose(found["per_task"]["rmse"], each, atol=1e-5)


@pytest.mark.parametrize("condition", [AS_IT_IS, *CONTROLS])
def test_unrelated_schools_alone_have_a_grid_of_their_own(pupils, condition):
    grid = {"n_latent": [2], "mu_ratio": [0.3]}
    config = {**GOMTLSchool().config(smoke=True), "grid": grid, "latent_n_init": 1, "latent_tol": 1e-3}
    config["control_grids"] = {"tasks unrelated": {**grid, "n_latent": [3]}}
    unit = {"split": 1, "condition": condition, "intercept": "free per task", "method": GO_MTL}
    found = GOMTLSchool().run_unit(unit, config, CPU)
    assert found["metrics"]["K"] == (3 if condition == "tasks unrelated" else 2)
    assert set(GOMTLSchool().config(smoke=False)["control_grids"]) == {"tasks unrelated"}


# --- new tasks --------------------------------------------------------------------------------------------------------


def test_new_tasks_on_synthetic_data_are_others_than_the_old():
    old, new = gomtl_new_tasks.drawn(SYNTHETIC, 2, 11, 6)
    data = make_overlapping_groups(n_tasks=17, n_train=30, random_state=np.random.default_rng([4, 2])).train
    assert sorted((*old.ids, *new.ids)) == list(range(17)) and list(new.ids) != list(range(11, 17))
    assert (len(old.ids), len(new.ids)) == (11, 6)
    for part in (old, new):
        for id_, (X, y) in zip(part.ids, part, strict=True):
            np.testing.assert_array_equal(X, data[id_][0])
            np.testing.assert_array_equal(y, data[id_][1])
    assert gomtl_new_tasks.drawn(SYNTHETIC, 3, 11, 6).old[0][0][0, 0] != old[0][0][0, 0]


def check_schools(data, old, new):
    """Pupils as they are, without the constant, in another order, by mean and deviation of the old schools."""
    assert not set(old.ids) & set(new.ids)
    X_old, y_old, _ = old.long()
    np.testing.assert_allclose(X_old.mean(0), 0, atol=1e-9)
    assert np.isin(np.round(X_old.std(0), 9), [0, 1]).all() and abs(y_old.mean()) < 1e-9
    assert abs(new.long()[1].mean()) > 1e-3
    schools = [data.task == t for t in np.unique(data.task)]
    rows = np.concatenate([np.flatnonzero(schools[id_]) for id_ in old.ids])
    X, scale = data.X[:, :-1], data.X[rows, :-1].std(0)
    scale[scale == 0] = 1
    for tasks in (old, new):
        for id_, (Z, z) in zip(tasks.ids, tasks, strict=True):
            expected = np.column_stack([(X[schools[id_]] - X[rows].mean(0)) / scale, data.y[schools[id_]]])
            found = np.column_stack([Z, z + data.y[rows].mean()])
            assert np.abs(found - expected).max() > 0.1  # in another order
            order, order_found = (np.lexsort(np.round(M, 6).T) for M in (expected, found))
            np.testing.assert_allclose(found[order_found], expected[order], atol=1e-6)


def test_new_schools_are_others_than_the_old(pupils):
    old, new = gomtl_new_tasks.drawn(SCHOOL, 1, 5, 3)
    assert (old.n_tasks, new.n_tasks, old.n_features) == (5, 3, 4)
    check_schools(pupils, old, new)
    assert gomtl_new_tasks.drawn(SCHOOL, 2, 5, 3).old.ids != old.ids


@needs_school
def test_new_schools_of_the_data_are_others_than_the_old():
    config = GOMTLNewTasks().config(smoke=False)
    old, new = gomtl_new_tasks.drawn(SCHOOL, 0, config["n_old"][SCHOOL], config["n_new"][SCHOOL])
    assert old.n_tasks + new.n_tasks == 139 and new.n_samples.min() > max(config["n_examples"])
    check_schools(_school.school(), old, new)


def test_first_rows_and_the_others():
    tasks = tasks_of((6, 9, 7))
    first, others = first_rows(tasks, 4)
    assert list(first.n_samples) == [4, 4, 4] and list(others.n_samples) == [2, 5, 3]
    for (X, y), (A, a), (B, b) in zip(tasks, first, others, strict=True):
        np.testing.assert_array_equal(X, np.concatenate([A, B]))
        np.testing.assert_array_equal(y, np.concatenate([a, b]))


def test_linear_predictions_are_those_of_the_tasks_weights():
    tasks, rng = tasks_of((3, 5)), np.random.default_rng(0)
    W, b = rng.normal(size=(4, 2)), [1.0, -2.0]
    expected = [x @ W[:, t] + b[t] for t in range(2) for x in tasks[t][0]]
    np.testing.assert_allclose(_linear(tasks, W, b), expected)


@pytest.fixture(scope="module")
def old_and_new():
    """Five old tasks, and two new ones with six rows to learn from, of the same kind."""
    tasks = tasks_of((16, 12, 19, 14, 17, 13, 11), seed=7, level=0.2)
    train, test = first_rows(tasks.subset([5, 6]), 6)
    return tasks.subset(range(5)), train, test


@pytest.mark.parametrize("free", [True, False])
@pytest.mark.parametrize("far", [True, False])
def test_ridge_of_new_tasks_has_the_penalty_that_suits_the_old(old_and_new, free, far):
    """In both cases towards a centre, with the penalty that is best for six rows of the old tasks on their others."""
    old, train, test = old_and_new
    centre = np.array([0.3, -0.6, 0.2, 0.9]) if far else np.zeros(4)
    alphas = ridge_grid(30, 0.003, 60)

    def predictions(tasks, others, alpha):
        for (X, y), (Z, _) in zip(tasks, others, strict=True):
            yield Ridge(alpha=alpha, fit_intercept=free).fit(X, y - X @ centre).predict(Z) + Z @ centre

    def best_for(n):
        first, others = first_rows(old, n)
        errors = [
            sum(((y - p) ** 2).sum() for (_, y), p in zip(others, predictions(first, others, alpha), strict=True))
            for alpha in alphas
        ]
        return alphas[int(np.argmin(errors))]

    best = best_for(6)
    assert alphas[-1] < best < 1e6 and best != best_for(8)
    common = {"reduction": "sum", "fit_intercept": free, "device": CPU}
    found = _ridge(old, train, test, 6, centre, alphas, common, CONFIG)
    np.testing.assert_allclose(found, np.concatenate(list(predictions(train, test, best))), atol=1e-5)


@pytest.fixture(scope="module", params=[True, False])
def fitted(request, old_and_new):
    return GOMTL(2, 0.5, reduction="sum", fit_intercept=request.param).fit(old_and_new[0])


def test_predictions_for_new_tasks_by_hand(old_and_new, fitted):
    old, train, test = old_and_new
    alphas, free = [1e6, 3.0, 0.3], fitted.fit_intercept
    found = _predictions(fitted, old, train, test, alphas, {**CONFIG, "refit_tol": 1e-4})
    levels = [y.mean() if free else 0.0 for _, y in train]
    rows = [(X - X.mean(0), y - y.mean()) if free else (X, y) for X, y in old]
    pooled = Ridge(alpha=1.0, fit_intercept=False).fit(*(np.concatenate(part) for part in zip(*rows, strict=True)))
    np.testing.assert_allclose(found["mean"], np.repeat(levels, test.n_samples))
    shift = [y.mean() - X.mean(0) @ pooled.coef_ if free else 0.0 for X, y in train]
    slopes = np.concatenate([Z @ pooled.coef_ + b for (Z, _), b in zip(test, shift, strict=True)])
    np.testing.assert_allclose(found["slopes of the old"], slopes, atol=1e-3)
    common = {"reduction": "sum", "fit_intercept": free, "device": None}
    for name, centre in (("ridge", np.zeros(4)), ("ridge towards the old", pooled.coef_)):
        expected = _ridge(old, train, test, 6, centre, alphas, common, CONFIG)
        np.testing.assert_allclose(found[name], expected, atol=1e-3)
    adapted = []
    for (X, y), (Z, _) in zip(train, test, strict=True):
        code, b = fitted.adapt(X, y, return_intercept=True)
        adapted.append(Z @ (fitted.latent_ @ code) + b)
    np.testing.assert_allclose(found["adapt"], np.concatenate(adapted))
    np.testing.assert_array_equal(found["refit"], _refitted(fitted, old, train, test, 1e-4))
    assert list(found) == ["mean", "slopes of the old", "ridge", "ridge towards the old", "adapt", "refit"]


def test_refitted_factors_are_stationary_and_no_worse_than_adapted_ones(old_and_new, fitted, monkeypatch):
    """For every new task beside all old ones, and not beside the other new one."""
    old, train, test = old_and_new
    seen, fit_factors = [], gomtl_new_tasks.fit_factors
    monkeypatch.setattr(gomtl_new_tasks, "fit_factors", lambda *a: seen.append(fit_factors(*a)) or seen[-1])
    found = np.split(_refitted(fitted, old, train, test, 1e-7), np.cumsum(test.n_samples)[:-1])
    assert len(seen) == 2
    for fit, prediction, (X, y), (Z, _) in zip(seen, found, train, test, strict=True):
        L, S = (factor.numpy() for factor in fit.factors)
        joint = Tasks.from_list([*old, (X, y)])

        def value(L, S, joint=joint):
            error = [y - X @ L @ s for (X, y), s in zip(joint, S.T, strict=True)]
            loss = sum(((e - e.mean() * fitted.fit_intercept) ** 2).sum() / 2 for e in error)
            return loss + 0.5 * np.abs(S).sum() + 0.1 * (L**2).sum()

        adapted = np.column_stack([fitted.codes_, fitted.adapt(X, y)])
        assert value(L, S) == pytest.approx(fit.value) and fit.value < value(fitted.latent_, adapted) - 1e-3
        latent = LatentProblem(fitted.prepare(joint)[1], L1(0.5), 0.1)
        assert max(latent.stationarity(fit.factors)) <= 1e-6
        w = L @ S[:, -1]
        b = (y - X @ w).mean() if fitted.fit_intercept else 0.0
        np.testing.assert_allclose(prediction, Z @ w + b, atol=1e-10)


def test_a_unit_of_new_tasks_by_hand():
    experiment = GOMTLNewTasks()
    config = {**experiment.config(smoke=True), "latent_n_init": 1, "n_examples": (5, 12), "n_old": {SYNTHETIC: 7}}
    config |= {"n_new": {SYNTHETIC: 3}}
    found = experiment.run_unit({"condition": SYNTHETIC, "seed": 1}, config, CPU)["metrics"]
    old, new = gomtl_new_tasks.drawn(SYNTHETIC, 1, 7, 3)
    fitted = GOMTL(int(found["K"]), found["mu"], reduction="sum", fit_intercept=False).fit(old)
    for n in (5, 12):
        errors, targets = [], []
        for X, y in new:
            w = fitted.latent_ @ fitted.adapt(X[:n], y[:n])
            errors.append(y[n:] - X[n:] @ w)
            targets.append(y[n:])
        assert found[f"{n}: adapt"] == pytest.approx(np.sqrt((np.concatenate(errors) ** 2).mean()), abs=1e-5)
        assert found[f"{n}: mean"] == pytest.approx(np.sqrt((np.concatenate(targets) ** 2).mean()))  # no intercept


# --- what all of them vary --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("experiment", STUDIES, ids=lambda e: e.name)
def test_units_are_distinct_and_as_many_as_there_should_be(experiment):
    config = plain(experiment.config(smoke=False), "config")
    units = experiment.units(config)
    assert len({str(sorted(unit.items())) for unit in units}) == len(units)
    repeats = config.get("repeats", 0)
    if experiment.name.startswith("gomtl-synthetic"):
        expected = config["draws"] * (7 + 3)
    elif experiment.name in ("gomtl-mnist", "gomtl-usps"):
        expected = 9 * (1 + repeats) + 2 * repeats  # the published split, the draws, the control on these
        assert {(u["loss"], u["method"]) for u in units if u["condition"] == ROTATED} == {
            (loss, method) for loss, methods in CONTROLLED.items() for method in methods
        }
    elif experiment.name == "gomtl-computer":
        expected = 2 + (2 + 1) * repeats
    elif experiment.name == "gomtl-school":
        expected = 4 * len(config["splits"])
    else:
        expected = sum(config["draws"].values())
    assert len(units) == expected
    draws = config.get("draws", repeats or len(config.get("splits", ())))
    assert min(draws.values()) >= 10 if isinstance(draws, dict) else draws >= 10


@pytest.mark.parametrize("experiment", STUDIES, ids=lambda e: e.name)
def test_a_small_run_is_part_of_the_whole_one(experiment):
    def kinds(smoke):
        kept = ("condition", "loss", "method", "intercept", "protocol")
        units = experiment.units(plain(experiment.config(smoke), "config"))
        assert len({str(sorted(unit.items())) for unit in units}) == len(units) > 1
        return {tuple((key, unit[key]) for key in kept if key in unit) for unit in units}

    assert kinds(smoke=True) <= kinds(smoke=False)


def grids_in(config):
    """All mappings with a strength or a mu_ratio in a configuration."""
    for value in config.values():
        if isinstance(value, dict):
            yield from [value] if {STRENGTH, "mu_ratio"} & value.keys() else grids_in(value)


@pytest.mark.parametrize("smoke", [False, True])
@pytest.mark.parametrize("experiment", STUDIES, ids=lambda e: e.name)
def test_mus_rise_and_strengths_fall(experiment, smoke):
    """As the paths run."""
    config = experiment.config(smoke)
    grids = list(grids_in(config))
    assert sum("mu_ratio" in grid for grid in grids) >= 1
    for grid in grids:
        if "mu_ratio" in grid:
            assert (np.diff(grid["mu_ratio"]) > 0).all() and len(grid["mu_ratio"]) >= 2
            assert list(grid["n_latent"]) == sorted(set(grid["n_latent"])) and min(grid["n_latent"]) >= 1
        else:
            assert (np.diff(grid[STRENGTH]) < 0).all()
    for alphas in config.get("ridge", {}).values():
        assert (np.diff(alphas) < 0).all() and alphas[0] == 1e6


def test_every_study_stands_beside_its_line_of_the_reported_table():
    assert set(REPORTED) == {e.name for e in STUDIES} - {"gomtl-new-tasks"} and len(REPORTED) == 6
    for experiment in STUDIES:
        for smoke in (False, True):
            if experiment.name in REPORTED:
                found = experiment.config(smoke)["reported"]
                assert found == reported(experiment.name) and found["error"] == REPORTED[experiment.name]
            else:
                assert "reported" not in experiment.config(smoke)
    methods = ["single", "no groups", "disjoint groups", GO_MTL]
    table = np.array([[line[method] for method in methods] for line in REPORTED.values()])
    assert all(list(line) == methods for line in REPORTED.values()) and table.shape == (6, 4)
    assert (table[:, 3] < table[:, :3].min(1)).all() and (table[:, 0] == table.max(1)).all()
