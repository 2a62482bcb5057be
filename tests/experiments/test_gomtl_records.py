"""What the records of GO-MTL's experiments show, and that they were computed with what the code chooses now."""

import numpy as np
import pytest
import torch

from companion.experiments import EXPERIMENTS
from companion.experiments.gomtl_synthetic import AS_IT_IS, TOLD, UNRELATED
from companion.metrics import paired_difference
from companion.records import load_record, plain

RECORDED = ("gomtl-school", "gomtl-synthetic1")
GO_MTL = "GO-MTL"


def experiment(name):
    return next(e for e in EXPERIMENTS if e.name == name)


def values(name, metric="rmse", **unit):
    return load_record(name).values(metric, unit)


@pytest.mark.parametrize("name", RECORDED)
def test_a_record_was_computed_with_what_the_code_chooses_now(name):
    record, now = load_record(name), experiment(name)
    assert record.config == plain(now.config(smoke=False), "config")
    assert [row["unit"] for row in record.results] == [plain(unit, "unit") for unit in now.units(record.config)]
    assert not record.smoke and not record.dirty


@pytest.mark.parametrize("name", RECORDED)
def test_the_objective_of_go_mtl_never_rose(name):
    rises = [row["metrics"]["largest rise"] for row in load_record(name).results if "largest rise" in row["metrics"]]
    assert rises and max(rises) <= 1e-12


@pytest.mark.parametrize("name", RECORDED)
def test_fits_to_data_with_something_to_share_are_certified(name):
    record = load_record(name)
    rows = [row for row in record.results if row["unit"].get("condition", AS_IT_IS) == AS_IT_IS]
    assert max(row["metrics"]["certificate"] for row in rows) <= 1e-6


def test_groups_without_overlap_are_read_off_the_codes():
    """Adjusted Rand index of the tasks with a multiple of a quarter and more, by the largest entry of each code."""
    ari = values("gomtl-synthetic1", "ari", condition=AS_IT_IS, method=TOLD)
    assert len(ari) == 20 and (ari >= 0.95).sum() >= 18


def test_go_mtl_is_best_where_groups_do_not_overlap():
    go = values("gomtl-synthetic1", condition=AS_IT_IS, method=TOLD)
    assert go.mean() <= 0.38  # noise: 0.316
    for method in ("single", "mean-regularised", "trace norm", "feature learning", "disjoint groups"):
        assert paired_difference(go, values("gomtl-synthetic1", condition=AS_IT_IS, method=method)).high < 0


def test_it_does_harm_where_there_is_nothing_to_share():
    go, single = (values("gomtl-synthetic1", condition=UNRELATED, method=method) for method in (GO_MTL, "single"))
    assert paired_difference(go, single).low > 0


def test_a_unit_comes_out_again():
    record = load_record("gomtl-synthetic1")
    row = next(row for row in record.results if row["unit"]["method"] == TOLD and row["unit"]["seed"] == 4)
    again = experiment("gomtl-synthetic1").run_unit(row["unit"], record.config, torch.device("cpu"))
    assert again["metrics"]["rmse"] == pytest.approx(row["metrics"]["rmse"], abs=1e-4)
    np.testing.assert_array_equal(again["per_task"]["group"], row["per_task"]["group"])


def school(record, method, intercept, condition=AS_IT_IS):
    return values(record, method=method, intercept=intercept, condition=condition)


@pytest.mark.parametrize("intercept", ["penalised", "free per task"])
def test_on_school_one_mean_is_better_than_latent_tasks(intercept):
    """On the same splits and folds; both are far ahead of separate models."""
    go = school("gomtl-school", GO_MTL, intercept)
    assert len(go) == 10
    mean, single = (school("school-relations", method, intercept) for method in ("mean-regularised", "single"))
    assert paired_difference(go, mean).low > 0
    assert paired_difference(go, single).high < 0


def test_on_school_nothing_is_found_where_nothing_can_be():
    permuted = "free per task", "y permuted within tasks"
    go, mean = school("gomtl-school", GO_MTL, *permuted), school("school-relations", "task mean", *permuted)
    assert len(go) == 10 and abs(paired_difference(go, mean).mean) < 0.01
