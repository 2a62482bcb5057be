"""The two synthetic tests of GO-MTL: groups of tasks without and with overlap, every method tuned alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score

from companion.datasets import SyntheticTasks, make_disjoint_groups, make_overlapping_groups
from companion.experiments._frame import Experiment, Unit, UnitResult
from companion.experiments._latent import GO_MTL, LATENT, OTHERS, SMOKE_GRID, fit_chosen, reported, ridge_grid
from companion.experiments._relations import STRENGTH, Grid, falling, inner_folds, scores, thinned
from companion.metrics import rmse
from companion.tasks import Tasks

Array = NDArray[np.float64]
AS_IT_IS, UNRELATED = "as it is", "directions drawn for every task"
TOLD = f"{GO_MTL}, K known"
N_LATENT = {1: 3, 2: 4}  # true numbers of latent tasks
RIDGE = ridge_grid(1, 1e-4, 13)
SUBSPACE = falling(0.1, 1e-4, 10)
MU_RATIOS = falling(1e-4, 0.1, 10)
GRIDS: dict[str, dict[str, list[float]]] = {
    "single": {STRENGTH: RIDGE},
    "mean-regularised": {STRENGTH: RIDGE, "ratio": [0.999, 0.3, 0.03, 0.003]},
    "trace norm": {STRENGTH: falling(1, 1e-3, 13)},
    "feature learning": {STRENGTH: SUBSPACE},
    "disjoint groups": {STRENGTH: SUBSPACE, "n_clusters": [2, 3, 4]},
    GO_MTL: {"n_latent": [2, 3, 4, 6], "mu_ratio": MU_RATIOS},
}
#: With as many latent tasks as there are features, nothing has to be shared.
CONTROL_GRIDS = {GO_MTL: {**GRIDS[GO_MTL], "n_latent": [2, 4, 20]}}
METHODS = (*GRIDS, TOLD)
CONTROLLED = ("single", "feature learning", GO_MTL)
LEAST_MULTIPLE = 0.25  # tasks with less of their latent task than this are mostly noise


class GOMTLSynthetic(Experiment):
    """Thirty tasks of 15 rows in three groups, whose latent tasks are their own (1) or shared with a neighbour (2).

    Beside the data as they are drawn stands a control with nothing to share: the weights of every task keep their
    length and point in a direction of their own.

    Parameters
    ----------
    number : {1, 2}
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.name = f"gomtl-synthetic{number}"
        kind = {1: "groups without overlap", 2: "groups that share a latent task with their neighbour"}[number]
        self.title = f"GO-MTL, synthetic data {number}: {kind}; all methods tuned on the same folds"

    def config(self, smoke: bool) -> dict[str, Any]:
        known = {TOLD: {**GRIDS[GO_MTL], "n_latent": [N_LATENT[self.number]]}}
        full: dict[str, Any] = {
            "draws": 20,
            "methods": METHODS,
            "controlled": CONTROLLED,
            "grids": {**GRIDS, **known},
            "control_grids": CONTROL_GRIDS,
            "inner_folds": 5,
            "fold_seed": 0,
            **LATENT,
            **{**OTHERS, "tol_in_folds": 1e-3},
            "reduction": "mean",
            "intercept": "none: inputs and weights have mean zero",
            "recipe": "make_disjoint_groups" if self.number == 1 else "make_overlapping_groups",
            "least_multiple": LEAST_MULTIPLE,
            "reported": reported(self.name),
        }
        if not smoke:
            return full
        kept = ("single", "feature learning", GO_MTL)  # the slow ones are left out
        few = {method: SMOKE_GRID if method == GO_MTL else thinned(GRIDS[method]) for method in kept}
        small = {"draws": 1, "methods": kept, "controlled": kept[:1], "grids": few, "control_grids": {}}
        return {**full, **small, "inner_folds": 2, "latent_n_init": 1}

    def units(self, config: Mapping[str, Any]) -> list[Unit]:
        settings = [(AS_IT_IS, method) for method in config["methods"]]
        settings += [(UNRELATED, method) for method in config["controlled"]]
        return [
            {"condition": condition, "method": method, "seed": seed}
            for seed in range(config["draws"])
            for condition, method in settings
        ]

    def run_unit(self, unit: Unit, config: Mapping[str, Any], device: torch.device) -> UnitResult:
        data = drawn(self.number, unit["condition"], unit["seed"])
        common = {"reduction": config["reduction"], "fit_intercept": False, "device": device}
        folds = inner_folds(data.train, config["inner_folds"], config["fold_seed"])
        grids = {**config["grids"], **(config["control_grids"] if unit["condition"] == UNRELATED else {})}
        grid: Grid = grids[unit["method"]]
        fitted, metrics = fit_chosen(unit["method"], data.train, folds, grid, common, config)
        W = np.asarray(fitted.coef_).T
        metrics |= {
            "rmse": rmse(data.test.long()[1], scores(fitted, data.test)),
            "error of the weights": float(np.linalg.norm(W - data.W) / np.linalg.norm(data.W)),
        }
        per_task: dict[str, list[float]] = {}
        if unit["method"].startswith(GO_MTL) and (self.number, unit["condition"]) == (1, AS_IT_IS):
            multiple = data.S.max(0)
            group = np.abs(np.asarray(fitted.codes_)).argmax(0)
            clear = multiple >= config["least_multiple"]
            metrics["ari"] = float(adjusted_rand_score(data.groups[clear], group[clear]))
            per_task = {"group": group.tolist(), "multiple": np.round(multiple, 6).tolist()}
        return {"metrics": {name: round(value, 9) for name, value in metrics.items()}, "per_task": per_task}

    def seeds(self, config: Mapping[str, Any]) -> list[int]:
        """How the seeds of the draws end; the number of the data set comes before."""
        return list(range(config["draws"]))


def drawn(number: int, condition: str, seed: int) -> SyntheticTasks:
    """Draw ``seed`` of data set ``number``; without anything to share, the same inputs and noise."""
    make = make_disjoint_groups if number == 1 else make_overlapping_groups
    data = make(random_state=np.random.default_rng([number, seed]))
    if condition == AS_IT_IS:
        return data
    directions = np.random.default_rng([3, number, seed]).normal(size=data.W.shape)
    W = directions / np.linalg.norm(directions, axis=0) * np.linalg.norm(data.W, axis=0)

    def moved(tasks: Tasks) -> Tasks:
        return tasks.with_targets([y + X @ (W[:, t] - data.W[:, t]) for t, (X, y) in enumerate(tasks)])

    truth = {"W": W, "L": W, "S": np.eye(len(W.T)), "groups": np.arange(len(W.T))}
    return replace(data, train=moved(data.train), test=moved(data.test), **truth)
