"""Relations between tasks that are learned with them: a covariance of tasks."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from companion.linear._base import MultiTaskRegressor
from companion.linear._convex import SquaredModel
from companion.losses import SquaredLoss
from companion.penalties._base import Penalty
from companion.penalties.trace_norm import SquaredTraceNorm
from companion.solvers.alternating import best_metric
from companion.solvers.problem import Problem
from companion.tasks import Tasks


class TaskRelationship(SquaredModel, MultiTaskRegressor):
    r"""Ridge regression in a metric over tasks that is learned with them: MTRL (Zhang and Yeung, 2010).

    Minimises :math:`\sum_t \tfrac{1}{2 n_t} \lVert y_t - X_t w_t - b_t \rVert^2 + \tfrac{\lambda_1}{2} \lVert W
    \rVert_F^2 + \tfrac{\lambda_2}{2} \operatorname{tr}(W \Omega^{-1} W^\top)` over W and over positive semidefinite
    :math:`\Omega` (T, T) of trace one. The best one for given weights is :math:`(W^\top W)^{1/2} / \operatorname{tr}
    (W^\top W)^{1/2}`, and with it the last term is :math:`\tfrac{\lambda_2}{2} \lVert W \rVert_*^2`. It is
    :class:`ConvexFeatureLearning` seen from the side of the tasks, with a ridge term.

    Parameters
    ----------
    lambda1 : float, default 0.1
        Weight of the ridge term, >= 0.
    lambda2 : float, default 0.1
        Weight of the term with the covariance, > 0.
    reduction : {"mean", "sum"}
        "mean" divides each task's loss by n_t, the sum of its weights; "sum" does not.
    fit_intercept : bool, default True
        Fit one unpenalised intercept per task.
    tol : float, default 1e-6
        Duality gap allowed, relative to the objective of the intercept-only model.
    max_iter : int, default 10000
        Most FISTA iterations on the problem with the covariance eliminated.
    device : torch device, optional
        Where to compute; by default where the data is.

    Attributes
    ----------
    coef_ : (T, d), intercept_ : (T,)
        In the library, type and device of the training data.
    covariance_ : (T, T)
        :math:`\Omega`, symmetric, of trace one (I/T where all weights are zero).
    correlation_ : (T, T)
        The same with ones on the diagonal: -1 for opposite tasks, 0 for unrelated ones, and for tasks without weights.
    task_ids_ : tuple of length T
    objective_, dual_gap_ : float
        Value and absolute duality gap of the weights, in float64, before float32 data rounds them.
    n_iter_ : int
    """

    loss = SquaredLoss()

    def __init__(
        self,
        lambda1: float = 0.1,
        lambda2: float = 0.1,
        reduction: str = "mean",
        fit_intercept: bool = True,
        tol: float = 1e-6,
        max_iter: int = 10_000,
        device: Any = None,
    ) -> None:
        self.lambda1 = lambda1
        self.lambda2 = lambda2
        self.reduction = reduction
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter
        self.device = device

    def _penalty(self) -> SquaredTraceNorm:
        if not 0 <= self.lambda1 < math.inf:
            raise ValueError(f"lambda1 must be a finite number >= 0; got {self.lambda1!r}")
        if not 0 < self.lambda2 < math.inf:
            raise ValueError(f"lambda2 must be a finite number > 0; got {self.lambda2!r}")
        return SquaredTraceNorm(self.lambda2 / 2)

    def _problem(self, tasks: Tasks) -> Problem:
        return Problem.from_tasks(tasks, self.loss, self.reduction, self.fit_intercept, float(self.lambda1))

    def _attributes(self, tasks: Tasks, penalty: Penalty, W: Tensor) -> dict[str, object]:
        covariance = best_metric(W.T)
        return {"covariance_": covariance, "correlation_": correlation(covariance)}


def correlation(covariance: Tensor) -> Tensor:
    """(T, T) correlations that belong to a covariance; zero beside the diagonal for tasks without variance.

    A variance that the rounding of the trace would hide counts as none.
    """
    variance = covariance.diagonal()
    seen = variance > torch.finfo(covariance.dtype).eps * variance.sum()
    scale = torch.where(seen, 1 / variance.clamp(min=torch.finfo(covariance.dtype).tiny).sqrt(), 0.0)
    found = (scale[:, None] * covariance * scale).clamp(-1.0, 1.0)
    found.fill_diagonal_(1.0)
    return found
