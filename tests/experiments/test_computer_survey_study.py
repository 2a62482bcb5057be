"""The survey's experiment: what is drawn, on made-up ratings; methods against the public classes; the record."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso, Ridge

from companion.experiments import ComputerSurveyStudy
from companion.experiments._frame import run
from companion.experiments._relations import BUILD, LABELS, STRENGTH, choose, configured, inner_folds, stacked
from companion.experiments.computer_survey import (
    AS_IT_IS,
    CONTROLLED,
    FIXED,
    GRIDS,
    METHODS,
    OFF,
    PERMUTED,
    SINGLE_PENALISED,
    _predict,
    draw,
)
from companion.linear import BayesianMTL, Pooled
from companion.metrics import paired_difference
from companion.records import load_record, plain
from tests.needs import needs_survey

CPU = torch.device("cpu")


@pytest.fixture
def ratings(use_survey):
    """A survey of 20 profiles with a constant and four attributes of -1 and +1, rated by 13 respondents."""
    rng = np.random.default_rng(0)
    X = np.column_stack([np.ones(20), rng.choice([-1.0, 1.0], size=(20, 4))])
    W = rng.normal(size=(4, 1)) + 0.3 * rng.normal(size=(4, 13))
    Y = X[:, 1:] @ W + rng.normal(5, 1, size=13) + 0.5 * rng.normal(size=(20, 13))
    return use_survey(X, Y)


@pytest.fixture
def config(ratings):
    """Grids small enough to be searched by hand, solved to the end."""
    few = {STRENGTH: [30.0, 3.0, 0.3]}
    grids = {
        **{method: few for method in GRIDS},
        **{
            "lasso": {STRENGTH: None},
            "l1/l2": {STRENGTH: None},
            "l1/linf": {STRENGTH: None},
            "trace norm": {STRENGTH: None},
        },
        **{"dirty": {STRENGTH: None, "ratio": [3.0]}, "robust": {STRENGTH: None, "ratio": [0.5]}},
        **{"mean-regularised": {**few, "ratio": [0.5, 0.01]}, "task relationship": {**few, "ridge": [0.0, 1.0]}},
        **{"Bayesian": {}, "clustered": {**few, "ratio": [0.1], "n_clusters": [2]}},
        "Jacob": {**few, "ratio": [0.1], "mean_ratio": [0.5], "n_clusters": [2]},
        "hard clusters": {**few, "ratio": [0.1], "n_clusters": [1, 2]},
        "disjoint groups": {**few, "n_clusters": [1, 2]},
        "kernel ridge": {**few, "ratio": [0.1], "gamma": [0.05]},
    }
    exact = {"tol": 1e-9, "tol_in_folds": 1e-9, "max_iter": 50_000, "max_iter_in_folds": 50_000}
    return {**ComputerSurveyStudy().config(smoke=False), "grids": grids, "n_strengths": 4, "n_respondents": 13, **exact}


# --- what is drawn ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("protocol", "n_train", "n_test"), [("15/5", 15, 5), ("8/4", 8, 4)])
def test_profiles_are_drawn_for_all_respondents_and_apart(ratings, protocol, n_train, n_test):
    part = draw(protocol, AS_IT_IS, 2, 13)
    assert (part.train.n_tasks, part.train.n_features) == (13, 4)  # no constant
    assert set(part.train.n_samples) == {n_train} and set(part.test.n_samples) == {n_test}
    rows = [profiles_of(tasks, ratings) for tasks in part]
    assert not set(rows[0]) & set(rows[1])
    for tasks, numbers in zip(part, rows, strict=True):
        np.testing.assert_array_equal(tasks.common_inputs()[0], ratings.X[numbers, 1:])
        assert numbers == sorted(numbers)
    again, other = draw(protocol, AS_IT_IS, 2, 13), draw(protocol, AS_IT_IS, 3, 13)
    assert profiles_of(again.train, ratings) == rows[0] != profiles_of(other.train, ratings)


def profiles_of(tasks, ratings):
    """Row numbers in the file, found by the ratings, which are all different."""
    return [int(np.flatnonzero((y == ratings.Y).all(1))[0]) for y in tasks.common_inputs()[1].numpy()]


def test_every_profile_is_tested_now_and_then(ratings):
    tested = np.concatenate([profiles_of(draw("15/5", AS_IT_IS, repeat, 13).test, ratings) for repeat in range(20)])
    assert np.bincount(tested, minlength=20).min() >= 1


@pytest.mark.parametrize("protocol", FIXED)
def test_fixed_splits_are_the_ends_of_the_list(ratings, protocol):
    n_train, n_test = FIXED[protocol]
    part = draw(protocol, AS_IT_IS, 0, 13)
    assert profiles_of(part.train, ratings) == list(range(n_train))
    assert profiles_of(part.test, ratings) == list(range(20 - n_test, 20))


def test_permuted_ratings_stay_with_their_respondent_and_leave_their_profile(ratings):
    real, permuted = draw("15/5", AS_IT_IS, 4, 13), draw("15/5", PERMUTED, 4, 13)
    np.testing.assert_array_equal(permuted.train.common_inputs()[0], real.train.common_inputs()[0])
    Y = np.concatenate([part.common_inputs()[1].numpy() for part in permuted])
    np.testing.assert_array_equal(np.sort(Y, axis=0), np.sort(ratings.Y, axis=0))
    # Each respondent by a permutation of his own, so that columns are not related by one either.
    original = np.concatenate([part.common_inputs()[1].numpy() for part in real])
    orders = {tuple(np.argsort(np.argsort(Y[:, t]))) for t in range(13)}
    assert len(orders) == 13 and not (original == Y).all(0).any()
    places = [np.argsort(ratings.Y[:, t])[np.argsort(np.argsort(Y[:, t]))] for t in range(13)]
    assert len({tuple(place) for place in places}) == 13


# --- methods ----------------------------------------------------------------------------------------------------------


def test_task_means_look_at_nothing_else(config):
    part = draw("15/5", AS_IT_IS, 0, 13)
    found, metrics = _predict("task mean", part, config, CPU)
    np.testing.assert_allclose(found, np.repeat(part.train.common_inputs()[1].numpy().mean(0), 5))
    assert metrics == {}


def held_out_error(train, alpha, fit):
    """Squared error over three folds of profiles, the same for all respondents."""
    error = 0.0
    X, Y = (values.numpy() for values in train.common_inputs()[:2])
    for _, held_out in train.folds(3, 0):
        out = held_out[0]
        error += ((Y[out] - fit(X[~out], Y[~out], alpha)(X[out])) ** 2).sum()
    return error


def ridge_with_levels(X, Y, alpha):
    return Ridge(alpha=alpha).fit(X, Y).predict


def ridge_with_a_penalised_constant(X, Y, alpha):
    def extended(Z):
        return np.column_stack([np.ones(len(Z)), Z])

    shift = Y.mean()
    model = Ridge(alpha=alpha, fit_intercept=False).fit(extended(X), Y - shift)
    return lambda Z: model.predict(extended(Z)) + shift


@pytest.mark.parametrize(
    ("method", "fit"), [("single", ridge_with_levels), (SINGLE_PENALISED, ridge_with_a_penalised_constant)]
)
def test_ridge_per_respondent_against_scikit_learn(config, method, fit):
    part = draw("15/5", AS_IT_IS, 1, 13)
    grid = config["grids"]["single"][STRENGTH]

    def shifted(X, Y, alpha):  # in the experiment the shift is that of all training rows, in folds too
        if method == "single":
            return fit(X, Y, alpha)
        centre = float(part.train.long_targets().mean())
        model = Ridge(alpha=alpha, fit_intercept=False).fit(np.column_stack([np.ones(len(X)), X]), Y - centre)
        return lambda Z: model.predict(np.column_stack([np.ones(len(Z)), Z])) + centre

    errors = [held_out_error(part.train, alpha, shifted) for alpha in grid]
    best = int(np.argmin(errors))
    X, Y = (values.numpy() for values in part.train.common_inputs()[:2])
    expected = fit(X, Y, grid[best])(part.test.common_inputs()[0].numpy())
    found, metrics = _predict(method, part, config, CPU)
    np.testing.assert_allclose(found, expected.T.ravel(), atol=1e-8)
    assert metrics == {STRENGTH: grid[best], f"{STRENGTH}: position": best}


def test_lasso_is_one_lasso_per_respondent_with_a_common_penalty(config):
    part = draw("15/5", AS_IT_IS, 1, 13)
    found, metrics = _predict("lasso", part, config, CPU)
    X, Y = (values.numpy() for values in part.train.common_inputs()[:2])
    lasso = Lasso(alpha=metrics[STRENGTH] / len(X), tol=1e-10).fit(X, Y)
    expected = lasso.predict(part.test.common_inputs()[0].numpy())
    np.testing.assert_allclose(found, expected.T.ravel(), atol=1e-3)  # certified is the objective


def test_pooled_has_one_slope_and_a_level_for_everybody(config):
    part = draw("15/5", AS_IT_IS, 1, 13)
    found, metrics = _predict("pooled", part, config, CPU)
    model = Pooled(metrics[STRENGTH], per_task_intercept=True, reduction="sum").fit(part.train)
    np.testing.assert_allclose(found, stacked(model.predict(part.test)), atol=1e-10)
    np.testing.assert_allclose(model.coef_, model.coef_[:1].repeat(13, 0))
    assert np.ptp(model.intercept_) > 1


SEARCHED = [method for method in METHODS if method in BUILD and method not in ("single", "pooled")]


@pytest.mark.parametrize("method", SEARCHED)
def test_the_choice_is_fitted_and_predicts(config, method):
    part, settings = draw("15/5", AS_IT_IS, 1, 13), {"reduction": "sum", "fit_intercept": True}
    found, metrics = _predict(method, part, config, CPU)
    rough = {**settings, "tol": 1e-9, "max_iter": 50_000, "n_init": 2, "n_candidates": 0}
    folds = inner_folds(part.train, 3, 0)
    grid = config["grids"][method]
    choice = choose(BUILD[method], grid, part.train, folds, rough, n_strengths=4, least=config["least"])
    fitted = configured(choice.model, {**rough, "n_init": 10, "n_candidates": 20}).fit(part.train)
    np.testing.assert_allclose(found, stacked(fitted.predict(part.test)), atol=1e-4)
    assert {name: metrics[name] for name in choice.metrics} == pytest.approx(choice.metrics)
    assert abs(metrics["gap"]) < 1e-7
    assert ("n_found" in metrics) == (method in LABELS)
    assert ("coverage" in metrics and "width" in metrics) == isinstance(fitted, BayesianMTL)


def test_every_method_has_a_grid_and_a_model():
    assert set(METHODS) == {"task mean", SINGLE_PENALISED, *GRIDS}
    assert {*GRIDS} - {"pooled"} <= BUILD.keys()
    assert set(CONTROLLED) <= set(METHODS)
    lengths = {method: len(grid[STRENGTH]) for method, grid in GRIDS.items() if grid.get(STRENGTH)}
    assert {n for method, n in lengths.items() if method != "kernel ridge"} == {
        ComputerSurveyStudy().config(smoke=False)["n_strengths"]
    }
    for method, grid in GRIDS.items():
        if grid.get(STRENGTH):
            assert grid[STRENGTH] == sorted(grid[STRENGTH], reverse=True) and grid[STRENGTH][0] == OFF, method


@pytest.mark.parametrize("method", ["single", "mean-regularised", "task relationship", "clustered", "kernel ridge"])
def test_the_strongest_penalty_leaves_the_levels_alone(config, method):
    """So "no slopes at all" is among the choices of everybody."""
    part = draw("15/5", AS_IT_IS, 1, 13)
    grids = {**config["grids"], method: {**config["grids"][method], STRENGTH: [OFF]}}
    if "ratio" in grids[method]:
        grids[method]["ratio"] = grids[method]["ratio"][:1]
    found, _ = _predict(method, part, {**config, "grids": grids}, CPU)
    means, _ = _predict("task mean", part, config, CPU)
    np.testing.assert_allclose(found, means, atol=5e-3)


def test_results_of_a_unit_by_hand(config):
    unit = {"protocol": "first 8, last 4", "condition": AS_IT_IS, "repeat": 0, "method": "mean-regularised"}
    found = ComputerSurveyStudy().run_unit(unit, config, CPU)
    part = draw("first 8, last 4", AS_IT_IS, 0, 13)
    prediction, _ = _predict("mean-regularised", part, config, CPU)
    errors = (part.test.long_targets() - prediction).reshape(13, 4)
    assert found["metrics"]["rmse"] == pytest.approx(np.sqrt((errors**2).mean()), abs=1e-8)
    np.testing.assert_allclose(found["per_task"]["rmse"], np.sqrt((errors**2).mean(1)), atol=1e-6)
    drawn = ComputerSurveyStudy().run_unit({**unit, "protocol": "8/4"}, config, CPU)
    assert drawn["per_task"] == {}


def test_units_are_distinct_and_paired_over_repeats():
    experiment = ComputerSurveyStudy()
    config = experiment.config(smoke=False)
    units = experiment.units(config)
    assert len({tuple(u.items()) for u in units}) == len(units)
    assert len(units) == (2 * config["repeats"] + len(FIXED)) * len(METHODS) + config["repeats"] * len(CONTROLLED)
    assert config["repeats"] >= 20


def test_a_small_run_repeats(config, tmp_path):
    """On made-up ratings, whole and stopped in the middle."""

    class Few(ComputerSurveyStudy):
        def __init__(self, stop_at=None):
            self.stop_at, self.computed = stop_at, []

        def config(self, smoke):
            wanted = {"methods": ["task mean", "single", "Bayesian"], "controlled": ["task mean"], "repeats": 2}
            return {**config, **wanted}

        def run_unit(self, unit, config, device):
            if len(self.computed) == self.stop_at:
                raise KeyboardInterrupt
            self.computed.append(unit)
            return super().run_unit(unit, config, device)

    whole = run(Few(), smoke=True, folder=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(Few(stop_at=5), smoke=True, folder=tmp_path / "parts")
    rest = Few()
    assert run(rest, smoke=True, folder=tmp_path / "parts").same_results(whole)
    assert rest.computed == [row["unit"] for row in whole.results[5:]]
    assert whole.summary["n_respondents"] == 13 and whole.data == {"made up": "00"}


# --- the record -------------------------------------------------------------------------------------------------------


def values(method, protocol="15/5", condition=AS_IT_IS, metric="rmse"):
    unit = {"method": method, "protocol": protocol, "condition": condition}
    return load_record("computer-survey").values(metric, unit)


def test_the_record_was_computed_with_what_the_code_chooses_now():
    record = load_record("computer-survey")
    assert record.config == plain(ComputerSurveyStudy().config(smoke=False), "config")
    assert not record.smoke


def test_every_fit_of_the_record_is_certified():
    record = load_record("computer-survey")
    gaps = {row["unit"]["method"]: abs(row["metrics"].get("gap", 0)) for row in record.results}
    assert max(gaps.values()) <= record.config["tol"]


def test_the_record_shows_what_sharing_is_worth():
    """Clusters and subspaces beat ridge regressions by themselves where there is enough to learn from."""
    for method in ("trace norm", "feature learning", "task relationship", "clustered", "Jacob", "hard clusters"):
        assert paired_difference(values(method), values("single")).high < 0
    for protocol in ("15/5", "8/4"):
        for method in ("lasso", "l1/l2"):
            assert paired_difference(values(method, protocol), values("single", protocol)).high < 0


def test_permuted_ratings_of_the_record_leave_nothing_to_share():
    means = values("task mean", condition=PERMUTED)
    for method in CONTROLLED:
        difference = paired_difference(values(method, condition=PERMUTED), means)
        assert difference.mean > -0.005
        assert difference.mean < 0.01 or method == "Bayesian"  # it has no penalty that could be infinite


def test_intervals_of_the_record_cover_new_ratings_of_a_model_that_holds():
    """With permuted ratings its assumptions are met; real ones lie further out, for new profiles are new to all."""
    assert values("Bayesian", condition=PERMUTED, metric="coverage").mean() == pytest.approx(0.9, abs=0.01)
    assert values("Bayesian", metric="coverage").mean() < 0.88


@needs_survey
def test_a_unit_of_the_record_comes_out_again():
    experiment, record = ComputerSurveyStudy(), load_record("computer-survey")
    config = experiment.config(smoke=False)
    for method in ("single", "l1/l2", "mean-regularised", "Bayesian"):
        unit = {"protocol": "15/5", "condition": AS_IT_IS, "repeat": 3, "method": method}
        (row,) = [row for row in record.results if row["unit"] == unit]
        again = experiment.run_unit(unit, config, CPU)["metrics"]
        assert again["rmse"] == pytest.approx(row["metrics"]["rmse"], abs=1e-3)
    assert record.data == experiment.data_files()
    assert record.summary["n_respondents"] == 190
