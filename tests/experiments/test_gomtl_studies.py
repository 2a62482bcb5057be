"""Experiments with GO-MTL beside other models, unit by unit, on made-up data."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import adjusted_rand_score

from companion.datasets import Digits, KangDigits, make_disjoint_groups, make_overlapping_groups
from companion.experiments import (
    EXPERIMENTS,
    ComputerSurveyStudy,
    GOMTLComputer,
    GOMTLDigits,
    GOMTLSchool,
    GOMTLSynthetic,
    SchoolConvex,
    computer_survey,
    gomtl_digits,
    gomtl_synthetic,
)
from companion.experiments._frame import run
from companion.experiments._latent import GO_MTL, REPORTED, choose_latent, reported
from companion.experiments._relations import STRENGTH, inner_folds
from companion.experiments.gomtl_digits import CONTROLLED, DRAWN, PUBLISHED, ROTATED
from companion.experiments.gomtl_synthetic import AS_IT_IS, UNRELATED
from companion.experiments.school_convex import CONTROLS, INTERCEPTS
from companion.linear import GOMTL
from companion.records import plain
from companion.tasks import Tasks
from tests.experiments.latent_cases import CPU, EXACT, MU_RATIOS

STUDIES = [e for e in EXPERIMENTS if e.name.startswith("gomtl-")]


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


SAME = {GOMTLComputer: ComputerSurveyStudy, GOMTLSchool: SchoolConvex}


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
