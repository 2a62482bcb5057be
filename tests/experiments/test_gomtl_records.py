"""What the records of GO-MTL's experiments show, and that they were computed with what the code chooses now."""

import numpy as np
import pytest
import torch

from companion.experiments import EXPERIMENTS
from companion.experiments.gomtl_digits import DRAWN, PUBLISHED, ROTATED
from companion.experiments.gomtl_new_tasks import N_EXAMPLES, SCHOOL, SYNTHETIC
from companion.experiments.gomtl_synthetic import AS_IT_IS, TOLD, UNRELATED
from companion.metrics import paired_difference
from companion.records import load_record, plain

RECORDED = tuple(sorted(e.name for e in EXPERIMENTS if e.name.startswith("gomtl-")))
GO_MTL = "GO-MTL"
RELATED = (AS_IT_IS, PUBLISHED, DRAWN, SYNTHETIC, SCHOOL)  # conditions in which there may be something to share
DIGITS = ("gomtl-mnist", "gomtl-usps")


def experiment(name):
    return next(e for e in EXPERIMENTS if e.name == name)


def values(name, metric="rmse", **unit):
    return load_record(name).values(metric, unit)


@pytest.mark.parametrize("name", RECORDED)
def test_a_record_was_computed_with_what_the_code_chooses_now(name):
    record, now = load_record(name), experiment(name)
    config = plain(now.config(smoke=False), "config")
    assert record.config == config
    assert [row["unit"] for row in record.results] == [plain(unit, "unit") for unit in now.units(config)]
    assert not record.smoke and not record.dirty


@pytest.mark.parametrize("name", RECORDED)
def test_the_objective_of_go_mtl_never_rose(name):
    rises = [row["metrics"]["largest rise"] for row in load_record(name).results if "largest rise" in row["metrics"]]
    assert rises and max(rises) <= 1e-12


@pytest.mark.parametrize("name", RECORDED)
def test_fits_to_data_with_something_to_share_are_certified(name):
    record = load_record(name)
    rows = [row for row in record.results if row["unit"]["condition"] in RELATED]
    assert len(rows) >= 20 and max(row["metrics"]["certificate"] for row in rows) <= 1e-6


def test_groups_without_overlap_are_read_off_the_codes():
    """Adjusted Rand index of the tasks with a multiple of a quarter and more, by the largest entry of each code."""
    ari = values("gomtl-synthetic1", "ari", condition=AS_IT_IS, method=TOLD)
    assert len(ari) == 20 and (ari >= 0.95).sum() >= 18


@pytest.mark.parametrize(("number", "most"), [(1, 0.38), (2, 0.45)])
def test_go_mtl_is_best_where_there_are_few_latent_tasks(number, most):
    name = f"gomtl-synthetic{number}"
    go = values(name, condition=AS_IT_IS, method=TOLD)
    assert len(go) == 20 and 0.1**0.5 < go.mean() <= most  # noise: 0.316
    for method in ("single", "mean-regularised", "trace norm", "feature learning", "disjoint groups"):
        assert paired_difference(go, values(name, condition=AS_IT_IS, method=method)).high < 0


@pytest.mark.parametrize("number", [1, 2])
def test_it_does_harm_where_there_is_nothing_to_share(number):
    name = f"gomtl-synthetic{number}"
    go, single = (values(name, condition=UNRELATED, method=method) for method in (GO_MTL, "single"))
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


def survey(method, protocol="15/5", condition=AS_IT_IS):
    record = "gomtl-computer" if method == GO_MTL else "computer-survey"
    return values(record, method=method, protocol=protocol, condition=condition)


def test_on_the_survey_latent_tasks_beat_separate_ridge_and_lose_to_the_lasso():
    go = survey(GO_MTL)
    assert len(go) == 20 and paired_difference(go, survey("single")).high < 0
    assert paired_difference(go, survey("lasso")).low > 0
    mean = paired_difference(go, survey("mean-regularised"))
    assert mean.low < 0 < mean.high


def test_on_permuted_ratings_nothing_is_found():
    permuted = "ratings permuted within respondents"
    go, level = (survey(method, condition=permuted) for method in (GO_MTL, "task mean"))
    assert len(go) == 20 and abs(paired_difference(go, level).mean) < 0.01


@pytest.mark.parametrize("loss", ["squared", "logistic"])
@pytest.mark.parametrize("name", DIGITS)
def test_digits_gain_nothing(name, loss):
    """Of more than a point; GO-MTL with the logistic loss gives each digit a latent task of its own."""
    go, single = (values(name, "error", condition=DRAWN, loss=loss, method=method) for method in (GO_MTL, "single"))
    assert len(go) == 10 and paired_difference(go, single).low > -1
    assert len(values(name, "error", condition=PUBLISHED, loss=loss, method=GO_MTL)) == 1
    if loss == "logistic":
        used = values(name, "latent tasks per task", condition=DRAWN, loss=loss, method=GO_MTL)
        assert (used == 1).sum() >= 9


@pytest.mark.parametrize("name", DIGITS)
def test_separate_models_do_not_notice_that_inputs_are_turned(name):
    drawn, turned = (values(name, "error", condition=c, loss="logistic", method="single") for c in (DRAWN, ROTATED))
    assert len(drawn) == 10
    np.testing.assert_allclose(drawn, turned, atol=0.25)  # a picture of 500


def new_tasks(condition, n, way):
    return values("gomtl-new-tasks", f"{n}: {way}", condition=condition)


@pytest.mark.parametrize("condition", [SYNTHETIC, SCHOOL])
@pytest.mark.parametrize("n", N_EXAMPLES)
def test_new_tasks_are_better_off_with_a_code_than_alone(condition, n):
    adapted = new_tasks(condition, n, "adapt")
    assert len(adapted) == {SYNTHETIC: 20, SCHOOL: 10}[condition]
    gain = paired_difference(adapted, new_tasks(condition, n, "ridge"))
    assert gain.mean < 0 and (gain.high < 0 or (condition, n) == (SCHOOL, 5))  # five pupils say little


@pytest.mark.parametrize("n", N_EXAMPLES)
def test_new_schools_are_best_off_with_the_slopes_of_the_old(n):
    adapted, near = (new_tasks(SCHOOL, n, way) for way in ("adapt", "ridge towards the old"))
    assert paired_difference(adapted, near).low > 0
    assert abs(paired_difference(adapted, new_tasks(SCHOOL, n, "refit")).mean) < 0.03
