"""School with its structure taken apart: what the baselines gain where there is nothing, or too much, to share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from companion.experiments._frame import Experiment, Unit, UnitResult
from companion.experiments._school import (
    Rows,
    common_config,
    measure,
    null_predictions,
    pooled,
    prepare,
    rows_of_split,
    school,
    single_task,
)
from companion.linear import Pooled, SingleTask
from companion.tasks import Standardiser, Tasks

METHODS = ("single", "pooled", "pooled, levels per task", "overall mean", "task mean")
# A change of the rows with a random generator, before they are split and standardised.
Change = Callable[[Rows, np.random.Generator], Rows]


def as_it_is(rows: Rows, rng: np.random.Generator) -> Rows:
    """No change."""
    return rows


def permute_targets(rows: Rows, rng: np.random.Generator) -> Rows:
    """Targets permuted within each task, training and test rows together: X says nothing about y any more.

    Levels and spreads of the tasks stay, so the mean of a task's training targets is the best there is.
    """
    y = rows.y.copy()
    for t in np.unique(rows.task):
        of_task = np.flatnonzero(rows.task == t)
        y[of_task] = y[rng.permutation(of_task)]
    return dataclasses.replace(rows, y=y)


def unrelate_tasks(rows: Rows, rng: np.random.Generator) -> Rows:
    """The standardised columns reordered, in another order in each task: the tasks are as hard, but unrelated.

    A ridge model of one task does not see the order of its columns, so single-task learning stays what it was.
    """
    train = Tasks.from_long(rows.X[rows.is_train], rows.y[rows.is_train], rows.task[rows.is_train])
    fitted = Standardiser.fit(train)
    X = (rows.X - fitted.mean.numpy()) / fitted.scale.numpy()  # a constant column keeps its values
    movable = np.flatnonzero(X.std(axis=0) > 1e-9)
    for t in np.unique(rows.task):
        of_task = np.flatnonzero(rows.task == t)
        X[np.ix_(of_task, movable)] = X[np.ix_(of_task, rng.permutation(movable))]
    return dataclasses.replace(rows, X=X)


def shuffle_task_ids(rows: Rows, rng: np.random.Generator) -> Rows:
    """Task ids dealt out anew over all rows: the *wrong* control.

    Every task becomes a sample of one and the same mixture. That makes the tasks identical, the best case of pooling
    and not the absence of something to share. Ids are dealt out within the training and the test rows, so that
    every task keeps its numbers of both.
    """
    task = rows.task.copy()
    for part in (np.flatnonzero(rows.is_train), np.flatnonzero(~rows.is_train)):
        task[part] = task[rng.permutation(part)]
    return dataclasses.replace(rows, task=task)


CONDITIONS: dict[str, Change] = {
    "as it is": as_it_is,
    "y permuted within tasks": permute_targets,
    "tasks unrelated": unrelate_tasks,
    "task ids shuffled": shuffle_task_ids,
}


class SchoolControls(Experiment):
    """Negative controls on the ten published splits of School, paired over splits.

    Columns standardised, one penalty for all tasks, intercepts free: with y permuted, shrinking everything to the
    mean of each task is then among the choices of single-task learning and of pooling with levels per task.
    """

    name = "school-controls"
    title = "School, ten published splits: gains with y permuted within tasks, unrelated tasks, shuffled task ids"

    def config(self, smoke: bool) -> dict[str, Any]:
        return {
            **common_config(smoke),
            "conditions": list(CONDITIONS),
            "change_seed": "the number of the split",
            "scaling": "standardised by mean and standard deviation of the pooled training rows",
            "intercept": "unpenalised: per task (single; pooled, levels per task) or common (pooled)",
        }

    def units(self, config: Mapping[str, Any]) -> list[Unit]:
        return [
            {"split": split, "condition": condition, "method": method}
            for split in config["splits"]
            for condition in config["conditions"]
            for method in METHODS
        ]

    def run_unit(self, unit: Unit, config: Mapping[str, Any], device: torch.device) -> UnitResult:
        rows = rows_of_split(unit["split"], config["n_schools"])
        # One generator per split and condition: all methods see the same changed data.
        changed = CONDITIONS[unit["condition"]](rows, np.random.default_rng(unit["split"]))
        train, test = prepare(changed, standardise=unit["condition"] != "tasks unrelated")
        if unit["method"] in ("overall mean", "task mean"):
            return measure(test, null_predictions(unit["method"], train, test))
        model = _model(unit["method"], config, device).fit(train)
        return measure(test, model.predict(test), model.alpha_)

    def seeds(self, config: Mapping[str, Any]) -> list[int]:
        return sorted({config["fold_seed"], *config["splits"]})

    def data_files(self) -> dict[str, str]:
        return dict(school().sha256)


def _model(method: str, config: Mapping[str, Any], device: torch.device) -> SingleTask | Pooled:
    """The estimator of a method, unfitted."""
    if method == "single":
        return single_task(config, device)
    return pooled(config, device, per_task_intercept=method == "pooled, levels per task")
