"""School: what models of the relations between tasks reach, on the splits and folds of the other convex models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from companion.experiments._frame import Experiment, Unit, UnitResult
from companion.experiments._relations import (
    BUILD,
    LABELS,
    Grid,
    certificate,
    choose,
    configured,
    falling,
    inner_folds,
    interval,
    thinned,
)
from companion.experiments._school import (
    ALPHAS,
    common_config,
    measure,
    null_predictions,
    pooled,
    prepare,
    rows_of_split,
    school,
    single_task,
)
from companion.experiments.school_controls import CONDITIONS
from companion.experiments.school_convex import INTERCEPTS, REFERENCE
from companion.linear import BayesianMTL
from companion.tasks import Tasks

BASELINES = ("single", "pooled")
RELATIONS = (
    *("mean-regularised", "task relationship", "Bayesian"),
    *("clustered", "Jacob", "hard clusters", "disjoint groups"),
)
AS_IT_IS = "as it is"
CONTROLS = ("y permuted within tasks", "tasks unrelated")
CONTROLLED = ("task mean", "single", "mean-regularised", "Bayesian", "clustered")
GRIDS: dict[str, dict[str, list[float]]] = {
    "mean-regularised": {"strength": falling(1e4, 1, 21), "ratio": falling(0.1, 1e-5, 5)},
    "task relationship": {"strength": falling(100, 0.1, 16), "ridge": [0.0, 0.3, 1.0, 3.0, 10.0]},
    "Bayesian": {},
    "clustered": {
        **{"strength": falling(1e5, 1, 26), "ratio": [0.999, 0.1, *falling(0.03, 0.0003, 3)]},
        "n_clusters": [1, 2, 3],
    },
    "Jacob": {
        **{"strength": falling(1e4, 10, 16), "ratio": [0.3, 0.1, 0.03], "mean_ratio": [0.1, 0.01, 0.001, 1e-5]},
        "n_clusters": [2, 4],
    },
    "hard clusters": {"strength": falling(1e4, 10, 12), "ratio": falling(0.01, 1e-4, 3), "n_clusters": [1, 2]},
    "disjoint groups": {"strength": falling(100, 0.1, 12), "n_clusters": [1, 2]},
}


class SchoolRelations(Experiment):
    """Models of the relations between tasks on the ten published splits of School, searched by nested validation.

    Splits, folds, scaling and both treatments of the intercept are those of the record "school-convex", so that results
    of the two can be compared split by split.
    """

    name = "school-relations"
    title = "School, ten published splits: tasks near their mean, related by a covariance, or in clusters"

    def config(self, smoke: bool) -> dict[str, Any]:
        full = {
            **{key: value for key, value in common_config(smoke).items() if key != "alphas"},
            "ridge_alphas": ALPHAS[3:19],
            "grids": GRIDS,
            "control_grids": {"clustered": {**GRIDS["clustered"], "n_clusters": [3]}},
            "patience": 3,
            "n_init": 10,
            "n_init_in_folds": 1,
            "n_candidates": 20,
            "n_candidates_in_folds": 0,
            "tol": 1e-5,
            "tol_in_folds": 3e-4,
            "max_iter": 20_000,
            "max_iter_in_folds": 2000,
            "coverage": 0.9,
            "scaling": "standardised by mean and standard deviation of the pooled training rows, constant kept",
            "intercept": "penalised: weight of the constant column, after y minus its training mean; free: unpenalised",
            "budget": (
                "all strengths of a grid, from strong to weak, for every combination of the further parameters; a "
                "search ends early where the held-out error has not improved for `patience` strengths. "
                "No end of a grid is meant to be best, except for natural limits: ratio -> 0 of mean-regularised is a "
                "free mean, and mean_ratio -> 0 of Jacob as well; ridge = 0 of the task relationship is feature "
                "learning; one cluster is one mean; ratio -> 1 of clustered is separate ridge regression"
            ),
            "left_out": {
                "ASO": "with k components it is clustered with k clusters",
                "kernel ridge": "with the linear kernel it is mean-regularised; with another it takes a Gram matrix of "
                "11472 x 11472 numbers and its Cholesky factor for every setting and fold",
            },
            "change_seed": "the number of the split, as in school-controls",
            "reference": REFERENCE,
        }
        if not smoke:
            return full
        small = {method: thinned(grid) for method, grid in GRIDS.items()}
        return {**full, "ridge_alphas": ALPHAS[3:19:5], "grids": small, "n_init": 2}

    def units(self, config: Mapping[str, Any]) -> list[Unit]:
        full = [(AS_IT_IS, intercept, m) for intercept in INTERCEPTS for m in (*BASELINES, *RELATIONS)]
        controls = [(condition, "free per task", m) for condition in CONTROLS for m in CONTROLLED]
        keys = ("condition", "intercept", "method")
        return [
            {"split": split, **dict(zip(keys, setting, strict=True))}
            for split in config["splits"]
            for setting in (*full, *controls)
        ]

    def run_unit(self, unit: Unit, config: Mapping[str, Any], device: torch.device) -> UnitResult:
        rows = rows_of_split(unit["split"], config["n_schools"])
        changed = CONDITIONS[unit["condition"]](rows, np.random.default_rng(unit["split"]))
        train, test = prepare(changed, standardise=unit["condition"] != "tasks unrelated")
        free, method = unit["intercept"] != "penalised", unit["method"]
        if method == "task mean":
            return measure(test, null_predictions("task mean", train, test))
        if method in BASELINES:
            ridge = {**config, "alphas": config["ridge_alphas"]}
            levels = {"per_task_intercept": True} if free and method == "pooled" else {}
            kind = {"single": single_task, "pooled": pooled}[method]
            baseline = kind(ridge, device, free, **levels).fit(train)
            return measure(test, baseline.predict(test), baseline.alpha_)
        grids = {**config["grids"], **({} if unit["condition"] == AS_IT_IS else config["control_grids"])}
        return _run(method, grids[method], train, test, free, config, device)

    def seeds(self, config: Mapping[str, Any]) -> list[int]:
        return sorted({config["fold_seed"], *config["splits"]})

    def data_files(self) -> dict[str, str]:
        return dict(school().sha256)


def _run(
    method: str, grid: Grid, train: Tasks, test: Tasks, free: bool, config: Mapping[str, Any], device: torch.device
) -> UnitResult:
    """Choose the parameters inside the training rows, fit with them, and measure."""
    common = {"reduction": config["reduction"], "fit_intercept": free, "device": device}
    in_folds = {name: config[f"{name}_in_folds"] for name in ("tol", "max_iter", "n_init", "n_candidates")}
    folds = inner_folds(train, config["inner_folds"], config["fold_seed"])
    choice = choose(BUILD[method], grid, train, folds, {**common, **in_folds}, patience=config["patience"])
    settings = {**common, **{name: config[name] for name in in_folds}}
    fitted = configured(choice.model, settings).fit(train)
    result = measure(test, fitted.predict(test))
    found = {**choice.metrics, "gap": certificate(fitted, train)}
    if isinstance(fitted, BayesianMTL):
        found |= interval(fitted, test, config["coverage"])
    labels = {"labels": getattr(fitted, LABELS[method]).tolist()} if method in LABELS else {}
    if labels:
        found["n_found"] = float(len(set(labels["labels"])))
    rounded = {name: round(float(value), 9) for name, value in found.items()}
    return {"metrics": {**result["metrics"], **rounded}, "per_task": {**result["per_task"], **labels}}
