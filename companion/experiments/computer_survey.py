"""Computer survey: what sharing is worth to respondents who rated a dozen computers, by method and by how many."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from companion.datasets import ComputerSurvey, load_computer_survey
from companion.experiments._frame import Experiment, Unit, UnitResult
from companion.experiments._relations import (
    BUILD,
    EFFORT,
    LABELS,
    STRENGTH,
    Grid,
    certificate,
    choose,
    configured,
    falling,
    inner_folds,
    interval,
    stacked,
    thinned,
)
from companion.experiments._school import null_predictions
from companion.linear import BayesianMTL, Pooled, SingleTask
from companion.metrics import per_task, rmse
from companion.tasks import Tasks

Array = NDArray[np.float64]
AS_IT_IS, PERMUTED = "as it is", "ratings permuted within respondents"
#: Training and test profiles: how many are drawn, or the two ends of the list of all 20 that are taken as they stand.
PROTOCOLS = {"15/5": (15, 5), "8/4": (8, 4)}
FIXED = {"first 8, last 4": (8, 4), "first 16, last 4": (16, 4)}
OFF = 1e6  # a penalty so strong that only the intercepts remain
RIDGE = [OFF, *falling(400, 2, 9)]
SUBSPACE = [OFF, *falling(10, 0.05, 9)]
GRIDS: dict[str, dict[str, list[float] | None]] = {
    "single": {STRENGTH: RIDGE},
    "pooled": {STRENGTH: [OFF, *falling(2e4, 2, 9)]},
    "lasso": {STRENGTH: None},
    "l1/l2": {STRENGTH: None},
    "l1/linf": {STRENGTH: None},
    "dirty": {STRENGTH: None, "ratio": falling(190, 1, 5)},
    "trace norm": {STRENGTH: None},
    "robust": {STRENGTH: None, "ratio": falling(1, 190**-0.5, 3)},
    "feature learning": {STRENGTH: SUBSPACE},
    "mean-regularised": {STRENGTH: RIDGE, "ratio": [0.5, 0.1, 0.02, 0.004, 1e-6]},
    "task relationship": {STRENGTH: SUBSPACE, "ridge": [0.0, 1.0, 3.0, 10.0]},
    "Bayesian": {},
    "clustered": {STRENGTH: RIDGE, "ratio": [0.2, 0.05], "n_clusters": [2, 4]},
    "Jacob": {STRENGTH: RIDGE, "ratio": [0.3, 0.1], "mean_ratio": [1.0, 0.1], "n_clusters": [3]},
    "hard clusters": {STRENGTH: RIDGE, "ratio": [0.1], "n_clusters": [1, 2, 4]},
    "disjoint groups": {STRENGTH: SUBSPACE, "n_clusters": [1, 2]},
    "kernel ridge": {STRENGTH: [OFF, *falling(20, 0.1, 6)], "ratio": [0.05], "gamma": [0.02]},
}
SINGLE_PENALISED = "single, constant penalised"
METHODS = ("task mean", "single", SINGLE_PENALISED, *(method for method in GRIDS if method != "single"))
CONTROLLED = ("task mean", "single", "pooled", "l1/l2", "trace norm", "mean-regularised", "Bayesian", "clustered")
REPORTED = {
    "source": "as reported by a review of the method in the last entry; its protocol is uncertain, no deviations given",
    "rmse": {"single": 2.70, "no groups": 2.06, "disjoint groups": 2.01, "GO-MTL": 1.76},
}


class Part(NamedTuple):
    """Training and test profiles, shared by all respondents; ``X`` without the constant column."""

    train: Tasks
    test: Tasks


@functools.cache
def survey() -> ComputerSurvey:
    """The data, read once per process."""
    return load_computer_survey()


def draw(protocol: str, condition: str, repeat: int, n_respondents: int) -> Part:
    """Profiles to train and to test on, drawn anew in every repeat, or the ends of the list as they stand."""
    data = survey()
    X, Y = data.X[:, 1:], data.Y[:, :n_respondents]
    if condition == PERMUTED:  # for every respondent by himself: X says nothing about his ratings any more
        Y = np.random.default_rng([1, repeat]).permuted(Y, axis=0)
    if protocol in FIXED:
        n_train, n_test = FIXED[protocol]
        order = np.arange(len(X))
    else:
        n_train, n_test = PROTOCOLS[protocol]
        order = np.random.default_rng([0, n_train, repeat]).permutation(len(X))
    train, test = np.sort(order[:n_train]), np.sort(order[-n_test:])
    return Part(Tasks.shared(X[train], Y[train]), Tasks.shared(X[test], Y[test]))


class ComputerSurveyStudy(Experiment):
    """Ratings of computers that a respondent has not rated yet, from what he and the others rated.

    Tasks are the respondents, rows the profiles, which all of them rated; test profiles are new to everybody. Inside
    the training profiles, folds are over profiles, too. Every respondent has a free intercept.
    """

    name = "computer-survey"
    title = "Computer survey: errors on new profiles with 15, 16 or 8 to learn from, by method, nested validation"

    def config(self, smoke: bool) -> dict[str, Any]:
        full: dict[str, Any] = {
            "repeats": 20,
            "protocols": PROTOCOLS,
            "fixed": FIXED,
            "fixed_source": (
                "first 16, last 4: the original study; first 8, last 4: Argyriou et al. (2008), as recalled, who "
                "had 180 respondents"
            ),
            "n_respondents": 190,
            "methods": METHODS,
            "grids": GRIDS,
            "controlled": CONTROLLED,
            "n_strengths": 10,
            "least": 0.02,
            "inner_folds": 3,
            "fold_seed": 0,
            **EFFORT,
            "coverage": 0.9,
            "reduction": "sum",
            "intercept": "free for every respondent; in one baseline the weight of a constant, after y minus its mean",
            "scaling": "none: attributes are -1 or +1",
            "budget": (
                "10 strengths for every combination of the further parameters, the first of which leaves the "
                "intercepts alone; a search ends early where the error has not improved for `patience` strengths"
            ),
            "reported": REPORTED,
        }
        if not smoke:
            return full
        small = {method: thinned(grid) for method, grid in GRIDS.items()}
        return {**full, "repeats": 1, "n_respondents": 23, "grids": small, "n_strengths": 4, "n_init": 2}

    def units(self, config: Mapping[str, Any]) -> list[Unit]:
        drawn = [
            (protocol, condition, repeat, method)
            for protocol in config["protocols"]
            for condition, methods in ((AS_IT_IS, config["methods"]), (PERMUTED, config["controlled"]))
            for repeat in range(config["repeats"])
            for method in methods
            if condition == AS_IT_IS or protocol == "15/5"
        ]
        fixed = [(protocol, AS_IT_IS, 0, method) for protocol in config["fixed"] for method in config["methods"]]
        keys = ("protocol", "condition", "repeat", "method")
        return [dict(zip(keys, setting, strict=True)) for setting in (*fixed, *drawn)]

    def run_unit(self, unit: Unit, config: Mapping[str, Any], device: torch.device) -> UnitResult:
        part = draw(unit["protocol"], unit["condition"], unit["repeat"], config["n_respondents"])
        predictions, metrics = _predict(unit["method"], part, config, device)
        _, y, index = part.test.long()
        found = {"rmse": rmse(y, predictions), **metrics}
        tasks = {"rmse": np.round(per_task(rmse, y, predictions, index).values, 6).tolist()}
        rounded = {name: round(float(value), 9) for name, value in found.items()}
        return {"metrics": rounded, "per_task": tasks if unit["protocol"] in config["fixed"] else {}}

    def seeds(self, config: Mapping[str, Any]) -> list[int]:
        """How the seeds of the draws end; a number for what is drawn comes before."""
        return list(range(config["repeats"]))

    def data_files(self) -> dict[str, str]:
        return dict(survey().sha256)

    def summary(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Aggregates of the ratings."""
        Y = survey().Y
        return {
            "n_profiles": Y.shape[0],
            "n_respondents": Y.shape[1],
            "n_attributes": survey().X.shape[1] - 1,
            "rating": {"mean": round(Y.mean(), 6), "sd": round(Y.std(), 6)},
            "sd_of_respondents_means": round(Y.mean(0).std(ddof=1), 6),
            "mean_sd_within_respondents": round(Y.std(0, ddof=1).mean(), 6),
        }


def _predict(
    method: str, part: Part, config: Mapping[str, Any], device: torch.device
) -> tuple[Array, dict[str, float]]:
    """Predictions (N,) for the test profiles, respondent by respondent, and what was chosen on the way."""
    train, test = part
    if method == "task mean":
        return np.concatenate(null_predictions("task mean", train, test)), {}
    if method in ("single", SINGLE_PENALISED, "pooled"):
        return _ridge(method, part, config, device)
    common = {"reduction": config["reduction"], "fit_intercept": True, "device": device}
    in_folds = {name: config[f"{name}_in_folds"] for name in ("tol", "max_iter", "n_init", "n_candidates")}
    grid: Grid = config["grids"][method]
    folds = inner_folds(train, config["inner_folds"], config["fold_seed"])
    limits = {name: config[name] for name in ("n_strengths", "least", "patience")}
    choice = choose(BUILD[method], grid, train, folds, {**common, **in_folds}, **limits)
    fitted = configured(choice.model, {**common, **{name: config[name] for name in in_folds}}).fit(train)
    metrics = {**choice.metrics, "gap": certificate(fitted, train)}
    if method in LABELS:
        metrics["n_found"] = float(len(set(getattr(fitted, LABELS[method]).tolist())))
    if isinstance(fitted, BayesianMTL):
        metrics |= interval(fitted, test, config["coverage"])
    return stacked(fitted.predict(test)), metrics


def _ridge(method: str, part: Part, config: Mapping[str, Any], device: torch.device) -> tuple[Array, dict[str, float]]:
    """The baselines, with one penalty for all respondents, searched on the same folds."""
    grid = config["grids"]["pooled" if method == "pooled" else "single"][STRENGTH]
    common = {
        **{"alpha": grid, "reduction": config["reduction"], "device": device},
        **{"cv": config["inner_folds"], "random_state": config["fold_seed"]},
    }
    train, test, shift = *part, 0.0
    if method == SINGLE_PENALISED:
        shift = float(train.long_targets().mean())
        train, test = (_with_constant(tasks, shift) for tasks in part)
        model: SingleTask | Pooled = SingleTask(**common, fit_intercept=False)
    else:
        model = SingleTask(**common) if method == "single" else Pooled(**common, per_task_intercept=True)
    fitted = model.fit(train)
    position = float(list(grid).index(fitted.alpha_))
    return stacked(fitted.predict(test)) + shift, {STRENGTH: fitted.alpha_, f"{STRENGTH}: position": position}


def _with_constant(tasks: Tasks, shift: float) -> Tasks:
    """A first column of ones, and targets minus ``shift``."""
    inputs, targets, _ = tasks.common_inputs()
    X = inputs.numpy()
    return Tasks.shared(np.column_stack([np.ones(len(X)), X]), targets.numpy() - shift)
