"""What the experiments on School have in common: the data, a prepared split, and how predictions are measured."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from companion.datasets import School, load_school
from companion.experiments._frame import UnitResult
from companion.linear import Pooled, SingleTask
from companion.metrics import explained_variance, per_task, rmse
from companion.tasks import Standardiser, Tasks

# From 0.01 to 100000, three values per factor of 10: wide enough that "no slopes at all" is among the choices.
ALPHAS = tuple(float(f"{10 ** (k / 3):.6g}") for k in range(-6, 16))
FOLD_SEED = 0
SPLITS = tuple(range(1, 11))
SMOKE = {"alphas": ALPHAS[::7], "splits": SPLITS[:1], "n_schools": 20}


@functools.cache
def school() -> School:
    """The data, read once per process."""
    return load_school()


def common_config(smoke: bool) -> dict[str, Any]:
    """What both experiments choose alike."""
    return {
        "alphas": ALPHAS,
        "splits": SPLITS,
        "n_schools": 139,
        "reduction": "sum",
        "inner_folds": 3,
        "fold_seed": FOLD_SEED,
        "split_source": "the ten published splits, 75/25 within each school",
        **(SMOKE if smoke else {}),
    }


@dataclass(frozen=True)
class Rows:
    """Rows of a split in long form: ``X (n, d)``, ``y (n,)`` and ``task (n,)`` of its two parts together.

    ``is_train (n,)`` marks the training rows.
    """

    X: NDArray[np.float64]
    y: NDArray[np.float64]
    task: NDArray[np.int64]
    is_train: NDArray[np.bool_]


def rows_of_split(split: int, n_schools: int) -> Rows:
    """The first ``n_schools`` schools on published split 1..10."""
    data = school()
    is_train = np.zeros(len(data.y), dtype=bool)
    is_train[data.splits[split - 1][0]] = True
    keep = data.task <= n_schools
    return Rows(data.X[keep], data.y[keep], data.task[keep], is_train[keep])


def prepare(rows: Rows, standardise: bool) -> tuple[Tasks, Tasks]:
    """Training and test tasks, columns (if asked) and targets standardised with the pooled training rows.

    The constant column stays as it is. Targets lose the overall training mean; metrics do not see that shift.
    """
    train, test = (
        Tasks.from_long(rows.X[part], rows.y[part], rows.task[part]) for part in (rows.is_train, ~rows.is_train)
    )
    fitted = Standardiser.fit(train)
    if standardise:
        return fitted.transform(train), fitted.transform(test)
    centred = [tasks.with_targets([y - fitted.y_mean for _, y in tasks]) for tasks in (train, test)]
    return centred[0], centred[1]


def null_predictions(method: str, train: Tasks, test: Tasks) -> list[NDArray[np.float64]]:
    """Predictions without looking at X: the overall training mean, or that of each task."""
    overall = float(np.concatenate([y for _, y in train]).mean())
    levels = [overall if method == "overall mean" else float(y.mean()) for _, y in train]
    return [np.full(len(y), level) for level, (_, y) in zip(levels, test, strict=True)]


def single_task(
    config: Mapping[str, Any], device: torch.device, fit_intercept: bool = True, per_task_alpha: bool = False
) -> SingleTask:
    """Ridge regression per task as both experiments use it, unfitted."""
    return SingleTask(
        alpha=config["alphas"],
        per_task_alpha=per_task_alpha,
        reduction=config["reduction"],
        fit_intercept=fit_intercept,
        cv=config["inner_folds"],
        random_state=config["fold_seed"],
        device=device,
    )


def pooled(
    config: Mapping[str, Any], device: torch.device, fit_intercept: bool = True, per_task_intercept: bool = False
) -> Pooled:
    """Ridge regression on the rows of all tasks, unfitted."""
    return Pooled(
        alpha=config["alphas"],
        per_task_intercept=per_task_intercept,
        reduction=config["reduction"],
        fit_intercept=fit_intercept,
        cv=config["inner_folds"],
        random_state=config["fold_seed"],
        device=device,
    )


def measure(test: Tasks, predictions: Sequence[NDArray[np.float64]], alpha: Any = None) -> UnitResult:
    """RMSE and explained variance over all test rows, RMSE per school, and the penalty that was chosen.

    Rounded far below the last digit that means anything, so that the order of a sum does not change the record.
    """
    _, y, index = test.long()
    prediction = np.concatenate(predictions)
    metrics = {"rmse": rmse(y, prediction), "explained_variance": explained_variance(y, prediction)}
    tasks = {"rmse": np.round(per_task(rmse, y, prediction, index).values, 6).tolist()}
    if np.ndim(alpha) == 1:
        tasks["alpha"] = np.asarray(alpha).tolist()
    elif alpha is not None:
        metrics["alpha"] = float(alpha)
    return {"metrics": {name: round(value, 9) for name, value in metrics.items()}, "per_task": tasks}


def describe(config: Mapping[str, Any]) -> dict[str, Any]:
    """Aggregates of the data; schools are in the order of their ids, as in the results per task."""
    data = school()
    keep = data.task <= config["n_schools"]
    y, task = data.y[keep], data.task[keep]
    train = rows_of_split(config["splits"][0], config["n_schools"])
    by_school = [y[task == t] for t in range(1, config["n_schools"] + 1)]
    train_means = [train.y[train.is_train & (train.task == t)].mean() for t in range(1, config["n_schools"] + 1)]
    return {
        "n_rows": len(y),
        "n_features": data.X.shape[1],
        "score": {"mean": round(y.mean(), 6), "sd": round(y.std(), 6), "min": int(y.min()), "max": int(y.max())},
        "score_counts": np.bincount(y.astype(int), minlength=71).tolist(),  # position = score
        "schools": {
            "id": list(range(1, config["n_schools"] + 1)),
            "n": [len(scores) for scores in by_school],
            "mean": [round(scores.mean(), 6) for scores in by_school],
            "sd": [round(scores.std(ddof=1), 6) for scores in by_school],
            "train_mean_first_split": [round(mean, 6) for mean in train_means],
        },
        "mean_score_by_verbal_reasoning_band": {
            str(band): round(y[data.X[keep, data.feature_names.index(f"vr_band_{band}")] == 1].mean(), 6)
            for band in (1, 2, 3)
        },
    }
