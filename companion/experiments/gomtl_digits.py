"""Digits as ten one-against-rest tasks: GO-MTL beside other models, on the published split and on more like it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from companion.datasets import Digits, KangDigits, load_kang_digits, load_mnist, load_usps
from companion.experiments._frame import Experiment, Unit, UnitResult
from companion.experiments._latent import GO_MTL, LATENT, OTHERS, SMOKE_GRID, fit_chosen, reported, ridge_grid
from companion.experiments._relations import STRENGTH, falling, log_loss, scores, squared_error, thinned, validation
from companion.tasks import Tasks

Array = NDArray[np.float64]
PUBLISHED, DRAWN, ROTATED = "published split", "drawn", "drawn, inputs of every task rotated"
SIZES = (1000, 500, 500)  # to train, to validate and to test
LOADERS: dict[str, Callable[[], Digits]] = {"mnist": load_mnist, "usps": load_usps}
N_COMPONENTS = {"mnist": 87, "usps": 64}
RIDGE = ridge_grid(10, 1e-4, 13)
SUBSPACE = falling(10, 1e-4, 13)
LATENT_GRID: dict[str, list[float]] = {"n_latent": [3, 5, 10], "mu_ratio": falling(3e-4, 0.1, 8)}
GRIDS: dict[str, dict[str, dict[str, list[float]]]] = {
    "squared": {
        "single": {STRENGTH: RIDGE},
        "mean-regularised": {STRENGTH: RIDGE, "ratio": [0.999, 0.3, 0.03, 0.003]},
        "feature learning": {STRENGTH: SUBSPACE},
        "disjoint groups": {STRENGTH: SUBSPACE, "n_clusters": [2, 3, 5, 7]},
        GO_MTL: LATENT_GRID,
    },
    "logistic": {
        "single": {STRENGTH: RIDGE},
        "mean-regularised": {STRENGTH: RIDGE, "ratio": [0.999, 0.3, 0.03, 0.003]},
        "trace norm": {STRENGTH: falling(1, 1e-3, 13)},
        GO_MTL: LATENT_GRID,
    },
}
CONTROLLED = {"logistic": ("single", GO_MTL)}


class Part(NamedTuple):
    """Rows to train, to validate and to test as ten tasks with labels -1 and +1, and the digits to test."""

    train: Tasks
    held_out: Tasks
    test: Tasks
    digit: NDArray[np.int64]


@functools.cache
def published(name: str) -> KangDigits:
    """The published split, read once per process."""
    return load_kang_digits(name)


@functools.cache
def images(name: str) -> Digits:
    """All images, read once per process."""
    return LOADERS[name]()


def draw(name: str, condition: str, seed: int) -> Part:
    """The published split, or one drawn like it.

    Principal components are those of the training rows, without centring: as many as in the published files.
    """
    if condition == PUBLISHED:
        data = published(name)
        parts = [(data.X[rows], data.digit[rows]) for rows in (data.train, data.validation, data.test)]
        return _as_tasks(parts, None)
    everything = images(name)
    rows = np.random.default_rng([0, seed]).permutation(len(everything.X))[: sum(SIZES)]
    X, digit = everything.X[rows].astype(np.float64), everything.digit[rows]
    X /= everything.X.max()
    ends = np.cumsum(SIZES)[:-1]
    basis = np.linalg.svd(X[: SIZES[0]], full_matrices=False)[2][: N_COMPONENTS[name]]
    parts = list(zip(np.split(X @ basis.T, ends), np.split(digit, ends), strict=True))
    rng = np.random.default_rng([1, seed]) if condition == ROTATED else None
    return _as_tasks(parts, rng)


def _as_tasks(parts: list[tuple[NDArray[np.floating], NDArray[np.int64]]], rng: np.random.Generator | None) -> Part:
    """With a generator, every task sees the rows turned by an orthogonal matrix of its own: nothing is left to share
    between tasks, and the same to learn in each."""
    d = parts[0][0].shape[1]
    turns = None if rng is None else [np.linalg.qr(rng.normal(size=(d, d)))[0] for _ in range(10)]
    tasks = []
    for X, digit in parts:
        Y = np.where(digit[:, None] == np.arange(10), 1.0, -1.0)
        if turns is None:
            tasks.append(Tasks.shared(X, Y))
        else:
            tasks.append(Tasks.from_list([(X @ Q, y) for Q, y in zip(turns, Y.T, strict=True)]))
    train, held_out, test = tasks
    return Part(train, held_out, test, parts[-1][1])


class GOMTLDigits(Experiment):
    """Ten-class error of ten one-against-rest models, with the squared and with the logistic loss.

    1000 rows to train, 500 to choose all parameters by their loss, 500 to test. Beside the published split there are
    ten drawn from all images, and on these a control: the inputs of every task turned by a rotation of its own.

    Parameters
    ----------
    data : {"mnist", "usps"}
    """

    def __init__(self, data: str) -> None:
        self.data = data
        self.name = f"gomtl-{data}"
        self.title = f"GO-MTL, {data.upper()}: ten-class error of ten models, published split and ten more"

    def config(self, smoke: bool) -> dict[str, Any]:
        full: dict[str, Any] = {
            "repeats": 10,
            "sizes": SIZES,
            "n_components": N_COMPONENTS[self.data],
            "grids": GRIDS,
            "controlled": CONTROLLED,
            **LATENT,
            "latent_n_init": 2,
            **OTHERS,
            "reduction": "mean",
            "intercept": "free for every task",
            "chosen_by": "loss on the validation rows; the final fit is to the training rows alone",
            "decision": "the task with the largest margin",
            "reported": reported(self.name),
        }
        if not smoke:
            return full
        kept = ("single", GO_MTL)  # the slow ones are left out
        few = {
            loss: {method: SMOKE_GRID if method == GO_MTL else thinned(grids[method]) for method in kept}
            for loss, grids in GRIDS.items()
        }
        return {**full, "repeats": 1, "grids": few, "controlled": {}, "latent_n_init": 1}

    def units(self, config: Mapping[str, Any]) -> list[Unit]:
        full = [(loss, method) for loss, grids in config["grids"].items() for method in grids]
        controlled = [(loss, method) for loss, methods in config["controlled"].items() for method in methods]
        settings = [(PUBLISHED, 0, full), *((DRAWN, seed, full) for seed in range(config["repeats"]))]
        settings += [(ROTATED, seed, controlled) for seed in range(config["repeats"])]
        return [
            {"condition": condition, "seed": seed, "loss": loss, "method": method}
            for condition, seed, methods in settings
            for loss, method in methods
        ]

    def run_unit(self, unit: Unit, config: Mapping[str, Any], device: torch.device) -> UnitResult:
        part = draw(self.data, unit["condition"], unit["seed"])
        classify = unit["loss"] == "logistic"
        folds = validation(part.train, part.held_out, log_loss if classify else squared_error)
        common = {"reduction": config["reduction"], "fit_intercept": True, "device": device}
        grid = config["grids"][unit["loss"]][unit["method"]]
        fitted, metrics = fit_chosen(unit["method"], part.train, folds, grid, common, config, classify)
        margins = scores(fitted, part.test).reshape(10, -1)  # a row per task
        labels = part.test.long()[1].reshape(margins.shape)
        metrics |= {
            "error": 100 * float((margins.argmax(0) != part.digit).mean()),
            "binary error": 100 * float((np.where(margins > 0, 1.0, -1.0) != labels).mean()),
        }
        return {"metrics": {name: round(value, 9) for name, value in metrics.items()}, "per_task": {}}

    def seeds(self, config: Mapping[str, Any]) -> list[int]:
        """How the seeds of the draws end; a number for what is drawn comes before."""
        return list(range(config["repeats"]))

    def data_files(self) -> dict[str, str]:
        return {**published(self.data).sha256, **images(self.data).sha256}
