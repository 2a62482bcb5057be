"""School: what the baselines reach, and how much of it hangs on scaling, penalty and intercept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from companion.experiments._frame import Experiment, Unit, UnitResult
from companion.experiments._school import (
    common_config,
    describe,
    measure,
    null_predictions,
    pooled,
    prepare,
    rows_of_split,
    school,
    single_task,
)
from companion.linear import Pooled, SingleTask

SINGLE = [
    {"method": "single", "scaling": scaling, "penalty": penalty, "intercept": intercept}
    for scaling in ("standardised", "raw")
    for penalty in ("one for all", "per task")
    for intercept in ("penalised", "free per task")
]
POOLED = [
    {"method": "pooled", "scaling": scaling, "penalty": "one for all", "intercept": intercept}
    for scaling in ("standardised", "raw")
    for intercept in ("penalised", "free common", "free per task")
]
NULL = [
    {"method": method, "scaling": "none", "penalty": "none", "intercept": "none"}
    for method in ("overall mean", "task mean")
]


class SchoolBaselines(Experiment):
    """Single-task and pooled ridge regression on the ten published splits of School.

    The protocol in which results are usually compared is standardised columns, one penalty for all tasks, and the
    constant column penalised like any other; the other settings differ from it in one to three of these choices.
    """

    name = "school-baselines"
    title = "School, ten published splits: single-task and pooled ridge over scaling, penalty and intercept"

    def config(self, smoke: bool) -> dict[str, Any]:
        return {
            **common_config(smoke),
            "scaling": "standardised: by mean and standard deviation of the pooled training rows, constant kept; raw",
            "penalty": "chosen from alphas by cross-validation inside the training rows, for all tasks or per task",
            "intercept": "penalised: weight of the constant column, after y minus its training mean; free: unpenalised",
        }

    def units(self, config: Mapping[str, Any]) -> list[Unit]:
        return [{"split": split, **setting} for split in config["splits"] for setting in (*SINGLE, *POOLED, *NULL)]

    def run_unit(self, unit: Unit, config: Mapping[str, Any], device: torch.device) -> UnitResult:
        rows = rows_of_split(unit["split"], config["n_schools"])
        train, test = prepare(rows, standardise=unit["scaling"] == "standardised")
        if unit["scaling"] == "none":
            return measure(test, null_predictions(unit["method"], train, test))
        model = _model(unit, config, device).fit(train)
        return measure(test, model.predict(test), model.alpha_)

    def seeds(self, config: Mapping[str, Any]) -> list[int]:
        return [config["fold_seed"]]

    def data_files(self) -> dict[str, str]:
        return dict(school().sha256)

    def summary(self, config: Mapping[str, Any]) -> dict[str, Any]:
        return describe(config)


def _model(unit: Unit, config: Mapping[str, Any], device: torch.device) -> SingleTask | Pooled:
    """The estimator of a setting, unfitted."""
    free = unit["intercept"] != "penalised"
    if unit["method"] == "single":
        return single_task(config, device, fit_intercept=free, per_task_alpha=unit["penalty"] == "per task")
    return pooled(config, device, fit_intercept=free, per_task_intercept=unit["intercept"] == "free per task")
