"""School: what the convex models of the book reach, in the usual protocol and beside the strongest baseline."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from companion.experiments._frame import Experiment, Unit, UnitResult
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
from companion.linear import ConvexFeatureLearning, DirtyModel, MultiTaskLasso, Pooled, RobustMTL, TraceNorm
from companion.linear._convex import ConvexModel
from companion.solvers import alpha_grid, solve_path
from companion.tasks import Tasks

# Exponent of the block norm of the models that select features.
BLOCK_EXPONENT = {"l1": 1.0, "l1/l2": 2.0, "l1/linf": math.inf}
CONVEX = (*BLOCK_EXPONENT, "dirty", "trace norm", "robust", "feature learning")
INTERCEPTS = ("penalised", "free per task")
AS_IT_IS = "as it is"
# On changed data: one model for features, one for subspaces, and what they are compared with.
CONTROLS = ("y permuted within tasks", "tasks unrelated")
CONTROLLED = ("task mean", "single", "l1/l2", "trace norm")
SIZES = {"n_alphas": 16, "n_ratios": 5, "ridge_alphas": ALPHAS[3:19], "gammas": np.geomspace(100, 0.1, 16)}
SMOKE_SIZES = {"n_alphas": 4, "n_ratios": 2, "ridge_alphas": ALPHAS[3:19:5], "gammas": np.geomspace(100, 0.1, 4)}
REFERENCE = {
    "source": "computed in the same protocol with code that is independent of this package",
    "rmse": {"single": 10.355, "pooled": 10.368, "l1/l2": 10.191, "trace norm": 10.083, "mean-regularised": 10.039},
    "explained_variance": {
        **{"single": 0.344, "pooled": 0.342, "l1/l2": 0.365, "trace norm": 0.378, "mean-regularised": 0.383}
    },
}


class SchoolConvex(Experiment):
    """The convex models on the ten published splits of School, every penalty chosen inside the training rows.

    With the constant column penalised like any other, as results are usually compared; with a free intercept per
    school, as the strongest baseline has it; and, in that second setting, on data that leave nothing to share.
    """

    name = "school-convex"
    title = "School, ten published splits: shared features, shared subspaces and outlier tasks, nested validation"

    def config(self, smoke: bool) -> dict[str, Any]:
        return {
            **{key: value for key, value in common_config(smoke).items() if key != "alphas"},
            **(SMOKE_SIZES if smoke else SIZES),
            "alpha_ratio": 0.005,
            "tol": 1e-5,
            "tol_in_folds": 1e-4,
            "max_iter": 20_000,
            "max_iter_in_folds": 2000,
            "scaling": "standardised by mean and standard deviation of the pooled training rows, constant kept",
            "intercept": "penalised: weight of the constant column, after y minus its training mean; free: unpenalised",
            "budget": (
                "n_alphas values along each penalty axis, for ridge regression too: from the least penalty that gives "
                "zero weights down to alpha_ratio of it; gammas for feature learning. Models with two penalties: "
                "n_ratios of them, over all ratios at which both parts can be in use, ends included"
            ),
            "change_seed": "the number of the split, as in school-controls",
            "reference": REFERENCE,
        }

    def units(self, config: Mapping[str, Any]) -> list[Unit]:
        full = [(AS_IT_IS, intercept, m) for intercept in INTERCEPTS for m in ("single", "pooled", *CONVEX)]
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
        free = unit["intercept"] != "penalised"
        if unit["method"] == "task mean":
            return measure(test, null_predictions("task mean", train, test))
        if unit["method"] in CONVEX:
            return _run_convex(unit["method"], train, test, free, config, device)
        ridge = {**config, "alphas": config["ridge_alphas"]}
        kind = {"single": single_task, "pooled": _pooled_with_levels if free else pooled}[unit["method"]]
        model = kind(ridge, device, free).fit(train)
        return measure(test, model.predict(test), model.alpha_)

    def seeds(self, config: Mapping[str, Any]) -> list[int]:
        return sorted({config["fold_seed"], *config["splits"]})

    def data_files(self) -> dict[str, str]:
        return dict(school().sha256)


def _pooled_with_levels(config: Mapping[str, Any], device: torch.device, fit_intercept: bool) -> Pooled:
    """One ridge regression for all rows, with a free intercept per school: the strongest baseline."""
    return pooled(config, device, fit_intercept, per_task_intercept=True)


def _run_convex(
    method: str, train: Tasks, test: Tasks, free: bool, config: Mapping[str, Any], device: torch.device
) -> UnitResult:
    """Choose the penalties inside the training rows, fit with them, and measure."""
    common = {"reduction": config["reduction"], "fit_intercept": free, "device": device}
    rough = {**common, "tol": config["tol_in_folds"], "max_iter": config["max_iter_in_folds"]}
    ratios = _ratios(method, train.n_tasks, config["n_ratios"])
    searched = [_model(method, 1.0, ratio).set_params(**rough) for ratio in ratios]
    grids = [_grid(unit, train, config) for unit in searched]
    loss = np.stack([_held_out_loss(unit, train, grid, config) for unit, grid in zip(searched, grids, strict=True)])
    best, position = np.unravel_index(loss.argmin(), loss.shape)  # of (R, A)
    alpha = float(grids[best][position])
    final = _model(method, alpha, ratios[best]).set_params(**common, tol=config["tol"], max_iter=config["max_iter"])
    fitted = final.fit(train)
    result = measure(test, fitted.predict(test), alpha)
    found = {"position": int(position), "ratio": ratios[best], **_structure(fitted)}
    found["gap"] = fitted.dual_gap_ / fitted.prepare(train)[1].null_objective
    return {**result, "metrics": {**result["metrics"], **{name: round(value, 9) for name, value in found.items()}}}


def _model(method: str, alpha: float, ratio: float) -> ConvexModel:
    """The estimator of a method, unfitted; ``ratio`` of the second penalty to the first, where there are two."""
    if method in BLOCK_EXPONENT:
        return MultiTaskLasso(alpha, q=BLOCK_EXPONENT[method])
    if method == "dirty":
        return DirtyModel(alpha_block=ratio * alpha, alpha_sparse=alpha)
    if method == "robust":
        return RobustMTL(alpha_low_rank=alpha, alpha_outlier=ratio * alpha)
    return TraceNorm(alpha) if method == "trace norm" else ConvexFeatureLearning(alpha)


def _ratios(method: str, n_tasks: int, n_ratios: int) -> list[float]:
    """(R,) ratios of two penalties between the ends at which one of the two parts is never used."""
    ends = {"dirty": (1.0, float(n_tasks)), "robust": (n_tasks**-0.5, 1.0)}
    return np.geomspace(*ends[method], n_ratios).tolist() if method in ends else [1.0]


def _grid(model: ConvexModel, train: Tasks, config: Mapping[str, Any]) -> NDArray[np.float64]:
    """(A,) penalties to try, falling."""
    if isinstance(model, ConvexFeatureLearning):
        return np.array(config["gammas"])
    return alpha_grid(model.alpha_max(train), config["n_alphas"], config["alpha_ratio"])


def _held_out_loss(
    model: ConvexModel, train: Tasks, alphas: NDArray[np.float64], config: Mapping[str, Any]
) -> NDArray[np.float64]:
    """(A,) squared error of the rows held out, summed over folds and tasks, along a warm-started path."""
    loss = np.zeros(len(alphas))
    for part, held_out in train.folds(config["inner_folds"], config["fold_seed"]):
        _, problem = model.prepare(part)
        path = solve_path(problem, model._penalty(), alphas.tolist(), model.tol, model.max_iter)
        for a, solution in enumerate(path):
            W, b = _weights(solution.point.W).cpu().numpy(), problem.original_intercepts(solution.point).cpu().numpy()
            for t, (X, y) in enumerate(train):
                loss[a] += ((y - X @ W[:, t] - b[t])[held_out[t]] ** 2).sum()
    return loss


def _weights(W: torch.Tensor) -> torch.Tensor:
    """(d, T) weights of a solution, which may come as a stack of two parts."""
    return W.sum(0) if W.ndim == 3 else W


def _structure(model: ConvexModel) -> dict[str, float]:
    """What the weights look like: features in use, rank, and what belongs to the second part of a model of two."""
    W = np.asarray(model.coef_)  # (T, d)
    s = np.linalg.svd(model.low_rank_ if isinstance(model, RobustMTL) else W, compute_uv=False)
    found: dict[str, float] = {"n_features_used": int(W.any(axis=0).sum()), "rank": int((s > 1e-6 * s[0]).sum())}
    if isinstance(model, RobustMTL):
        found["n_outlier_tasks"] = int(model.outlier_.any(axis=1).sum())
    if isinstance(model, DirtyModel):
        found["n_sparse_entries"] = int(np.count_nonzero(model.sparse_))
    return found
