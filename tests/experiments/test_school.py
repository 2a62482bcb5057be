"""The School experiments: what the controls change and leave alone, on made-up rows; the protocol, on the data."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from companion.datasets import load_school
from companion.experiments import SchoolBaselines, SchoolControls
from companion.experiments._school import Rows, measure, null_predictions, prepare
from companion.experiments.school_controls import as_it_is, permute_targets, shuffle_task_ids, unrelate_tasks
from companion.linear import SingleTask
from companion.records import load_record
from tests.needs import needs_school

REFERENCE = {"single": (10.355, 0.344), "pooled": (10.368, 0.342)}  # RMSE, explained variance; measured elsewhere
PROTOCOL = {"scaling": "standardised", "penalty": "one for all", "intercept": "penalised"}


@pytest.fixture
def rows():
    """Three tasks of 12, 9 and 15 rows in mixed order, 4 features and a constant in the middle."""
    rng = np.random.default_rng(0)
    task = np.repeat([1, 2, 3], [12, 9, 15])[rng.permutation(36)]
    X = rng.normal(size=(36, 5)) * [1, 10, 1, 3, 0.1] + [0, 50, 0, 1, 2]
    X[:, 2] = 1
    y = X @ [1.0, 0.1, 2.0, -1.0, 4.0] + task + rng.normal(size=36) * 0.1
    is_train = np.zeros(36, dtype=bool)
    for t, n in ((1, 8), (2, 6), (3, 11)):
        is_train[rng.permutation(np.flatnonzero(task == t))[:n]] = True
    return Rows(X, y, task, is_train)


def test_prepare_standardises_by_the_pooled_training_rows(rows):
    train, test = prepare(rows, standardise=True)
    mean, sd = rows.X[rows.is_train].mean(0), rows.X[rows.is_train].std(0)
    mean[2], sd[2] = 0, 1  # the constant column stays 1
    for t in range(3):
        part = ~rows.is_train & (rows.task == t + 1)
        np.testing.assert_allclose(test[t][0], (rows.X[part] - mean) / sd, atol=1e-12)
        np.testing.assert_allclose(test[t][1], rows.y[part] - rows.y[rows.is_train].mean(), atol=1e-12)
    np.testing.assert_allclose(np.concatenate([X for X, _ in train])[:, [0, 1, 3, 4]].std(0), np.ones(4), atol=1e-12)


def test_prepare_leaves_raw_columns_alone(rows):
    train, test = prepare(rows, standardise=False)
    np.testing.assert_array_equal(train[1][0], rows.X[rows.is_train & (rows.task == 2)])
    expected = rows.y[~rows.is_train & (rows.task == 3)] - rows.y[rows.is_train].mean()
    np.testing.assert_allclose(test[2][1], expected, atol=1e-12)


def test_null_predictions_are_training_means(rows):
    train, test = prepare(rows, standardise=False)
    centre = rows.y[rows.is_train].mean()
    for t, prediction in enumerate(null_predictions("task mean", train, test)):
        of_task = rows.task == t + 1
        expected = rows.y[rows.is_train & of_task].mean() - centre
        np.testing.assert_allclose(prediction, np.full((~rows.is_train & of_task).sum(), expected), atol=1e-12)
    np.testing.assert_allclose(np.concatenate(null_predictions("overall mean", train, test)), np.zeros(11), atol=1e-12)


def test_measure_pools_rows_and_separates_tasks(rows):
    _, test = prepare(rows, standardise=False)
    result = measure(test, [y + t for t, (_, y) in enumerate(test)], alpha=np.array([1.0, 2.0, 4.0]))
    assert result["per_task"] == {"rmse": [0.0, 1.0, 2.0], "alpha": [1.0, 2.0, 4.0]}
    assert result["metrics"]["rmse"] == pytest.approx(np.sqrt((3 * 1 + 4 * 4) / 11), abs=1e-9)
    assert "alpha" not in result["metrics"]
    assert measure(test, [y for _, y in test], alpha=0.5)["metrics"]["alpha"] == 0.5


def test_permuted_targets_stay_in_their_task(rows):
    changed = permute_targets(rows, np.random.default_rng(1))
    for t in (1, 2, 3):
        of_task = rows.task == t
        np.testing.assert_array_equal(np.sort(changed.y[of_task]), np.sort(rows.y[of_task]))
        assert (changed.y[of_task] != rows.y[of_task]).sum() > of_task.sum() // 2
        trained_on = changed.y[of_task & rows.is_train]
        assert not set(trained_on) <= set(rows.y[of_task & rows.is_train])  # across the split, too
    np.testing.assert_array_equal(changed.X, rows.X)
    np.testing.assert_array_equal(changed.task, rows.task)


def test_shuffled_ids_keep_the_sizes_of_both_parts(rows):
    changed = shuffle_task_ids(rows, np.random.default_rng(1))
    for part in (rows.is_train, ~rows.is_train):
        np.testing.assert_array_equal(np.bincount(changed.task[part]), np.bincount(rows.task[part]))
        assert (changed.task[part] != rows.task[part]).any()
    np.testing.assert_array_equal(changed.y, rows.y)


def test_unrelated_tasks_are_as_hard_for_a_model_of_their_own(rows):
    """Single-task ridge gives the same predictions; the columns of two tasks no longer agree."""
    changed = unrelate_tasks(rows, np.random.default_rng(1))
    predictions = []
    for train, test in (prepare(rows, standardise=True), prepare(changed, standardise=False)):
        predictions.append(SingleTask(alpha=[0.1, 1.0], fit_intercept=False, reduction="sum").fit(train).predict(test))
    for ours, theirs in zip(*predictions, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-10)
    train, _ = prepare(rows, standardise=True)
    moved, _ = prepare(changed, standardise=False)
    pairs = zip(train, moved, strict=True)
    orders = [[int(np.argmin(np.abs(Z - X[:, [j]]).max(0))) for j in range(5)] for (X, _), (Z, _) in pairs]
    assert all(order[2] == 2 and sorted(order) == [0, 1, 2, 3, 4] for order in orders)
    assert len({tuple(order) for order in orders}) > 1


def test_the_data_as_it_is_is_not_touched(rows):
    assert as_it_is(rows, np.random.default_rng(1)) is rows
    before = [a.copy() for a in (rows.X, rows.y, rows.task, rows.is_train)]
    for change in (permute_targets, shuffle_task_ids, unrelate_tasks):
        change(rows, np.random.default_rng(1))
    for a, b in zip(before, (rows.X, rows.y, rows.task, rows.is_train), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("experiment", [SchoolBaselines(), SchoolControls()])
def test_units_are_distinct_and_paired_over_splits(experiment):
    config = experiment.config(smoke=False)
    units = experiment.units(config)
    settings = [{k: v for k, v in unit.items() if k != "split"} for unit in units]
    assert len(units) == 10 * len({tuple(s.items()) for s in settings}) == len({tuple(u.items()) for u in units})


@pytest.mark.parametrize("method", ["single", "pooled"])
def test_the_record_reaches_the_reference_points(method):
    record = load_record("school-baselines")
    setting = {"method": method, **PROTOCOL}
    found = record.values("rmse", setting).mean(), record.values("explained_variance", setting).mean()
    assert found[0] == pytest.approx(REFERENCE[method][0], abs=0.02)
    assert found[1] == pytest.approx(REFERENCE[method][1], abs=0.003)
    assert record.task_values("rmse", setting).shape == (10, 139)


@needs_school
@pytest.mark.parametrize("experiment", [SchoolBaselines(), SchoolControls()])
def test_a_unit_of_the_record_comes_out_again(experiment):
    """A model of each kind and a null model of the record, computed anew from the data."""
    record = load_record(experiment.name)
    config = experiment.config(smoke=False)
    rows = [row for row in record.results if row["unit"]["split"] == 7]
    last = {row["unit"]["method"]: row for row in rows}
    for row in (last["single"], last["pooled"], last["task mean"]):
        again = experiment.run_unit(row["unit"], config, torch.device("cpu"))
        assert again["metrics"] == pytest.approx(row["metrics"], abs=1e-7)
        assert again["per_task"]["rmse"] == pytest.approx(row["per_task"]["rmse"], abs=1e-5)
    assert record.data == experiment.data_files()


@needs_school
def test_pooled_ridge_of_the_protocol_agrees_with_scikit_learn():
    experiment = SchoolBaselines()
    config = {**experiment.config(smoke=True), "alphas": [5.0]}
    found = experiment.run_unit({"split": 1, "method": "pooled", **PROTOCOL}, config, torch.device("cpu"))
    (X, y), (X_test, y_test) = first_split(config["n_schools"])
    mean, sd = X.mean(0), X.std(0)
    constant = sd == 0
    mean[constant], sd[constant] = 0, 1
    oracle = Ridge(alpha=5.0, fit_intercept=False).fit((X - mean) / sd, y - y.mean())
    error = oracle.predict((X_test - mean) / sd) + y.mean() - y_test
    assert found["metrics"]["rmse"] == pytest.approx(np.sqrt(np.mean(error**2)), abs=1e-8)


def first_split(n_schools):
    """Training and test rows of the first split, straight from the loader."""
    data = load_school()
    parts = [part[data.task[part] <= n_schools] for part in data.splits[0]]
    return [(data.X[part], data.y[part]) for part in parts]


@needs_school
def test_the_summary_holds_aggregates_that_add_up():
    experiment = SchoolBaselines()
    summary = experiment.summary(experiment.config(smoke=False))
    schools = {name: np.array(values) for name, values in summary["schools"].items()}
    assert {len(values) for values in schools.values()} == {139}
    assert schools["n"].sum() == sum(summary["score_counts"]) == summary["n_rows"] == 15362
    mean = (schools["n"] * schools["mean"]).sum() / 15362
    assert mean == pytest.approx(summary["score"]["mean"], abs=1e-5)
    assert np.arange(71) @ summary["score_counts"] / 15362 == pytest.approx(mean, abs=1e-5)
    within = ((schools["n"] - 1) * schools["sd"] ** 2).sum()
    between = (schools["n"] * (schools["mean"] - mean) ** 2).sum()
    assert np.sqrt((within + between) / 15362) == pytest.approx(summary["score"]["sd"], abs=1e-5)
