"""A task that comes later, with few examples: what latent tasks learned from others are worth to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from companion.datasets import make_overlapping_groups
from companion.experiments._frame import Experiment, Unit, UnitResult
from companion.experiments._latent import LATENT, OTHERS, SMOKE_GRID, fit_latent, ridge_grid
from companion.experiments._relations import (
    BUILD,
    STRENGTH,
    choose,
    configured,
    falling,
    inner_folds,
    validation,
)
from companion.experiments._school import school
from companion.linear import GOMTL, Pooled
from companion.linear.go_mtl import fit_factors
from companion.metrics import rmse
from companion.penalties import L1
from companion.solvers.latent import Factors, LatentProblem
from companion.tasks import Standardiser, Tasks

Array = NDArray[np.float64]
SYNTHETIC, SCHOOL = "overlapping groups", "School"
N_EXAMPLES = (5, 10, 20)
GRIDS: dict[str, dict[str, list[float]]] = {
    SYNTHETIC: {"n_latent": [2, 3, 4, 6], "mu_ratio": falling(1e-4, 0.1, 8)},
    SCHOOL: {"n_latent": [1, 2, 4], "mu_ratio": falling(1e-4, 1, 8)},
}
RIDGE = {SYNTHETIC: ridge_grid(100, 1e-3, 14), SCHOOL: ridge_grid(1e4, 1, 14)}


class Drawn(NamedTuple):
    """Tasks that are there from the beginning, and tasks that come later, with more rows than they may learn from."""

    old: Tasks
    new: Tasks


def drawn(condition: str, seed: int, n_old: int, n_new: int) -> Drawn:
    """The same kinds of tasks in both parts; rows are in random order."""
    rng = np.random.default_rng([4, seed])
    if condition == SYNTHETIC:
        data = make_overlapping_groups(n_tasks=n_old + n_new, n_train=30, random_state=rng).train
        order = rng.permutation(n_old + n_new)
    else:
        everything = school()
        data = _shuffled(Tasks.from_long(everything.X[:, :-1], everything.y, everything.task), rng)
        order = rng.permutation(data.n_tasks)[: n_old + n_new]
    old, new = (data.subset(np.sort(part)) for part in np.split(order, [n_old]))
    if condition == SYNTHETIC:
        return Drawn(old, new)
    scale = Standardiser.fit(old)
    return Drawn(scale.transform(old), scale.transform(new))


def _shuffled(tasks: Tasks, rng: np.random.Generator) -> Tasks:
    orders = [rng.permutation(len(y)) for _, y in tasks]
    return Tasks.from_list([(X[order], y[order]) for (X, y), order in zip(tasks, orders, strict=True)])


def first_rows(tasks: Tasks, n: int) -> tuple[Tasks, Tasks]:
    """The first n rows of every task, and the others."""
    return Tasks.from_list([(X[:n], y[:n]) for X, y in tasks]), Tasks.from_list([(X[n:], y[n:]) for X, y in tasks])


class GOMTLNewTasks(Experiment):
    """Errors on new tasks with 5, 10 and 20 examples.

    GO-MTL is fitted to the old tasks, with parameters from folds inside them. A new task then gets a code with the
    latent tasks as they are ("adapt"), or everything is fitted again with it ("refit"), always one new task at a time.
    Ridge regression of the new task alone, and towards what the old tasks have in common, have their penalty from the
    old tasks: what would have been best for these with as many examples.
    """

    name = "gomtl-new-tasks"
    title = "GO-MTL, new tasks from 5, 10 and 20 examples: adapted, fitted again, and ridge regression"

    def config(self, smoke: bool) -> dict[str, Any]:
        full: dict[str, Any] = {
            "draws": {SYNTHETIC: 20, SCHOOL: 10},
            "n_old": {SYNTHETIC: 30, SCHOOL: 109},
            "n_new": {SYNTHETIC: 30, SCHOOL: 30},
            "n_examples": N_EXAMPLES,
            "grids": GRIDS,
            "ridge": RIDGE,
            "inner_folds": 3,
            "fold_seed": 0,
            **LATENT,
            "latent_n_init": 3,
            "refit_tol": 1e-4,
            **OTHERS,
            "reduction": "sum",
            "intercept": {SYNTHETIC: "none", SCHOOL: "free for every school"},
            "scaling": {SYNTHETIC: "none", SCHOOL: "by mean and standard deviation of the rows of the old schools"},
        }
        if not smoke:
            return full
        small = {
            "draws": {SYNTHETIC: 1, SCHOOL: 1},
            "n_old": {SYNTHETIC: 15, SCHOOL: 15},
            "n_new": {SYNTHETIC: 4, SCHOOL: 4},
            "ridge": {condition: alphas[::4] for condition, alphas in RIDGE.items()},
        }
        return {**full, **small, "grids": {SYNTHETIC: SMOKE_GRID, SCHOOL: SMOKE_GRID}}

    def units(self, config: Mapping[str, Any]) -> list[Unit]:
        return [{"condition": condition, "seed": seed} for condition, n in config["draws"].items() for seed in range(n)]

    def run_unit(self, unit: Unit, config: Mapping[str, Any], device: torch.device) -> UnitResult:
        """Pooled error of every method, as ``"n: method"``."""
        condition = unit["condition"]
        old, new = drawn(condition, unit["seed"], config["n_old"][condition], config["n_new"][condition])
        common = {
            "reduction": config["reduction"],
            "fit_intercept": config["intercept"][condition] != "none",
            "device": device,
        }
        folds = inner_folds(old, config["inner_folds"], config["fold_seed"])
        fitted, found = fit_latent(old, folds, config["grids"][condition], common, config)
        metrics = {**found}
        for n in config["n_examples"]:
            train, test = first_rows(new, n)
            y = test.long()[1]
            for method, prediction in _predictions(
                fitted, old, train, test, config["ridge"][condition], config
            ).items():
                metrics[f"{n}: {method}"] = rmse(y, prediction)
        return {"metrics": {name: round(float(value), 9) for name, value in metrics.items()}, "per_task": {}}

    def seeds(self, config: Mapping[str, Any]) -> list[int]:
        """How the seeds of the draws end; a number for the experiment comes before."""
        return list(range(max(config["draws"].values())))

    def data_files(self) -> dict[str, str]:
        return dict(school().sha256)


def _predictions(
    fitted: GOMTL, old: Tasks, train: Tasks, test: Tasks, alphas: Sequence[float], config: Mapping[str, Any]
) -> dict[str, Array]:
    """(N,) predictions for the rows to test, by method."""
    common = {name: fitted.get_params()[name] for name in ("reduction", "fit_intercept", "device")}
    n = int(train.n_samples[0])
    slopes = Pooled(1.0, per_task_intercept=common["fit_intercept"], **common).fit(old).coef_[0]
    zero = np.zeros(old.n_features)
    codes = [fitted.adapt(X, y, return_intercept=True) for X, y in train]
    W = np.stack([fitted.latent_ @ code for code, _ in codes], axis=1)
    return {
        "mean": _linear(test, W * 0, [y.mean() if common["fit_intercept"] else 0.0 for _, y in train]),
        "slopes of the old": _ridge(old, train, test, n, slopes, [max(alphas)], common, config),
        "ridge": _ridge(old, train, test, n, zero, alphas, common, config),
        "ridge towards the old": _ridge(old, train, test, n, slopes, alphas, common, config),
        "adapt": _linear(test, W, [intercept for _, intercept in codes]),
        "refit": _refitted(fitted, old, train, test, config["refit_tol"]),
    }


def _linear(tasks: Tasks, W: Array, b: Sequence[float]) -> Array:
    """(N,) predictions with weights ``W (d, T)`` and intercepts ``b (T,)``."""
    return np.concatenate([X @ W[:, t] + b[t] for t, (X, _) in enumerate(tasks)])


def _ridge(
    old: Tasks,
    train: Tasks,
    test: Tasks,
    n: int,
    centre: Array,
    alphas: Sequence[float],
    common: Mapping[str, Any],
    config: Mapping[str, Any],
) -> Array:
    """Ridge regression of every task towards ``centre (d,)``, with the penalty that suits the old tasks at n rows."""
    moved_old, moved = (tasks.with_targets([y - X @ centre for X, y in tasks]) for tasks in (old, train))
    folds = validation(*first_rows(moved_old, n))
    settings = {**common, "tol": config["tol"], "max_iter": config["max_iter"]}
    choice = choose(BUILD["single"], {STRENGTH: alphas}, moved_old, folds, settings, patience=len(alphas))
    model = configured(choice.model, settings).fit(moved)
    return _linear(test, np.asarray(model.coef_).T + centre[:, None], np.asarray(model.intercept_).tolist())


def _refitted(fitted: GOMTL, old: Tasks, train: Tasks, test: Tasks, tol: float) -> Array:
    """All factors fitted again for every new task by itself, from where they are and from its adapted code."""
    predictions = []
    L = torch.as_tensor(fitted.latent_)
    for t, (X, y) in enumerate(train):
        _, problem = fitted.prepare(Tasks.from_list([*old, (X, y)]))
        code = torch.as_tensor(fitted.adapt(X, y))[:, None]
        start = Factors(L, torch.cat([torch.as_tensor(fitted.codes_), code], 1))
        latent = LatentProblem(problem, L1(fitted.mu), float(fitted.lam))
        factors = fit_factors(latent, start, tol, fitted.max_iter).factors
        W = factors.L @ factors.S
        b = problem.original_intercepts(problem.at(W))
        predictions.append(test[t][0] @ W[:, -1].numpy() + float(b[-1]))
    return np.concatenate(predictions)
