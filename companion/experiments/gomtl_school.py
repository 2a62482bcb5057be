"""School: GO-MTL on the splits and folds that the other models of the book were given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from companion.experiments._frame import Experiment, Unit, UnitResult
from companion.experiments._latent import GO_MTL, LATENT, SMOKE_GRID, fit_latent, reported
from companion.experiments._relations import falling, inner_folds
from companion.experiments._school import common_config, measure, prepare, rows_of_split, school
from companion.experiments.school_controls import CONDITIONS
from companion.experiments.school_convex import AS_IT_IS, CONTROLS, INTERCEPTS

GRID: dict[str, list[float]] = {"n_latent": [1, 2, 4, 8], "mu_ratio": falling(1e-4, 1, 8)}
#: With as many latent tasks as there are features, nothing has to be shared.
CONTROL_GRIDS: dict[str, dict[str, list[float]]] = {"tasks unrelated": {**GRID, "n_latent": [2, 8, 28]}}


class GOMTLSchool(Experiment):
    """GO-MTL in the place of a method of the records "school-convex" and "school-relations": the same splits, folds,
    scaling and treatments of the intercept."""

    name = "gomtl-school"
    title = "GO-MTL, School: ten published splits and the folds of the other models, so that results are paired"

    def config(self, smoke: bool) -> dict[str, Any]:
        return {
            **{key: value for key, value in common_config(smoke).items() if key != "alphas"},
            **LATENT,
            "latent_n_init": 3,
            "patience": 3,
            "grid": SMOKE_GRID if smoke else GRID,
            "control_grids": {} if smoke else CONTROL_GRIDS,
            "scaling": "standardised by mean and standard deviation of the pooled training rows, constant kept",
            "intercept": "penalised: weight of the constant column, after y minus its training mean; free: unpenalised",
            "change_seed": "the number of the split, as in school-controls",
            "others": "records school-convex and school-relations",
            "reported": reported(self.name),
        }

    def units(self, config: Mapping[str, Any]) -> list[Unit]:
        settings = [(AS_IT_IS, intercept) for intercept in INTERCEPTS]
        settings += [(condition, "free per task") for condition in CONTROLS]
        return [
            {"split": split, "condition": condition, "intercept": intercept, "method": GO_MTL}
            for split in config["splits"]
            for condition, intercept in settings
        ]

    def run_unit(self, unit: Unit, config: Mapping[str, Any], device: torch.device) -> UnitResult:
        rows = rows_of_split(unit["split"], config["n_schools"])
        changed = CONDITIONS[unit["condition"]](rows, np.random.default_rng(unit["split"]))
        train, test = prepare(changed, standardise=unit["condition"] != "tasks unrelated")
        free = unit["intercept"] != "penalised"
        common = {"reduction": config["reduction"], "fit_intercept": free, "device": device}
        folds = inner_folds(train, config["inner_folds"], config["fold_seed"])
        grid = config["control_grids"].get(unit["condition"], config["grid"])
        fitted, metrics = fit_latent(train, folds, grid, common, config)
        result = measure(test, fitted.predict(test))
        rounded = {name: round(value, 9) for name, value in metrics.items()}
        return {**result, "metrics": {**result["metrics"], **rounded}}

    def seeds(self, config: Mapping[str, Any]) -> list[int]:
        return sorted({config["fold_seed"], *config["splits"]})

    def data_files(self) -> dict[str, str]:
        return dict(school().sha256)
