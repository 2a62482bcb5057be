"""Shared subspace: weights of low rank, and low rank with outlier tasks."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from companion.linear._base import MultiTaskClassifier, MultiTaskRegressor
from companion.linear._convex import ConvexModel, PathSearch
from companion.losses import LogisticLoss, SquaredLoss
from companion.penalties import trace_norm as penalties
from companion.penalties._base import Penalty
from companion.solvers.convex import SplitProblem
from companion.solvers.problem import Problem
from companion.tasks import Tasks


class _TraceNormBase(ConvexModel):
    def __init__(
        self,
        alpha: float = 0.1,
        reduction: str = "mean",
        fit_intercept: bool = True,
        tol: float = 1e-6,
        max_iter: int = 10_000,
        device: Any = None,
    ) -> None:
        self.alpha = alpha
        self.reduction = reduction
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter
        self.device = device

    def _penalty(self) -> penalties.TraceNorm:
        return penalties.TraceNorm(self.alpha)

    def _unit_penalty(self) -> penalties.TraceNorm:
        return penalties.TraceNorm(1.0)


_COMMON = r"""    reduction : {"mean", "sum"}
        "mean" divides each task's loss by n_t, the sum of its weights; "sum" does not.
    fit_intercept : bool, default True
        Fit one unpenalised intercept per task.
    tol : float, default 1e-6
        Duality gap allowed, relative to the objective of the intercept-only model.
    max_iter : int, default 10000
        Most FISTA iterations.
    device : torch device, optional
        Where to compute; by default where the data is.

    Attributes
    ----------
    coef_ : (T, d), intercept_ : (T,)
        In the library, type and device of the training data.
"""
_END = r"""    task_ids_ : tuple of length T
    objective_, dual_gap_ : float
        Value and absolute duality gap of the weights, in float64, before float32 data rounds them.
    n_iter_ : int
    """
_PARAMETERS = (
    r"""
    Parameters
    ----------
    alpha : float, default 0.1
        Weight of the trace norm, > 0.
"""
    + _COMMON
    + _END
)


class TraceNorm(_TraceNormBase, MultiTaskRegressor):
    __doc__ = (
        r"""Regression with weights of low rank: the tasks lie in a common subspace.

    Minimises :math:`\sum_t \tfrac{1}{2 n_t} \lVert y_t - X_t w_t - b_t \rVert^2 + \alpha \lVert W \rVert_*`, where the
    trace norm is the sum of the singular values (Ji and Ye, 2009; Obozinski et al., 2010).
"""
        + _PARAMETERS
    )

    loss = SquaredLoss()


class TraceNormClassifier(_TraceNormBase, MultiTaskClassifier):
    __doc__ = (
        r"""Logistic regression with weights of low rank.

    Minimises :math:`\sum_t \tfrac{1}{n_t} \sum_i \log(1 + e^{-y_{ti} (x_{ti}^\top w_t + b_t)}) + \alpha \lVert W
    \rVert_*` over labels -1/+1. Every task is binary, with the same two labels.
"""
        + _PARAMETERS
    )

    loss = LogisticLoss()


class TraceNormCV(PathSearch, MultiTaskRegressor):
    r"""Trace-norm regression whose alpha is chosen by cross-validation over a regularisation path.

    Parameters
    ----------
    alphas, n_alphas, alpha_ratio, cv, random_state
        As in :class:`~companion.linear.MultiTaskLassoCV`.
    reduction, fit_intercept, tol, max_iter, device
        As in :class:`TraceNorm`.

    Attributes
    ----------
    alpha_ : float
    alphas_ : (A,) array, falling
    cv_loss_ : (T, A) array
        Held-out loss per task and alpha, summed over the folds.
    coef_, intercept_, task_ids_, objective_, dual_gap_, n_iter_
        Of the model fitted to all rows with ``alpha_``; as in :class:`TraceNorm`.
    """

    loss = SquaredLoss()

    def __init__(
        self,
        alphas: Any = None,
        n_alphas: int = 30,
        alpha_ratio: float = 0.05,
        reduction: str = "mean",
        fit_intercept: bool = True,
        cv: Any = 5,
        tol: float = 1e-6,
        max_iter: int = 10_000,
        random_state: int = 0,
        device: Any = None,
    ) -> None:
        self.alphas = alphas
        self.n_alphas = n_alphas
        self.alpha_ratio = alpha_ratio
        self.reduction = reduction
        self.fit_intercept = fit_intercept
        self.cv = cv
        self.tol = tol
        self.max_iter = max_iter
        self.random_state = random_state
        self.device = device

    def _unit_penalty(self) -> penalties.TraceNorm:
        return penalties.TraceNorm(1.0)


class RobustMTL(ConvexModel, MultiTaskRegressor):
    __doc__ = (
        r"""Low rank plus outlier tasks: most tasks share a subspace, a few go their own way (Chen et al., 2011).

    Minimises :math:`\sum_t \tfrac{1}{2 n_t} \lVert y_t - X_t (l_t + s_t) - b_t \rVert^2 + \alpha_L \lVert L \rVert_* +
    \alpha_S \sum_t \lVert s_t \rVert_2` over W = L + S; a task with a nonzero column of S is an outlier.

    Parameters
    ----------
    alpha_low_rank, alpha_outlier : float, default 0.1
        Weights of the two parts, > 0. With ``alpha_outlier >= alpha_low_rank`` no task is an outlier.
"""
        + _COMMON
        + r"""    low_rank_, outlier_ : (T, d)
        The two parts, ``coef_ = low_rank_ + outlier_``.
"""
        + _END
    )

    loss = SquaredLoss()

    def __init__(
        self,
        alpha_low_rank: float = 0.1,
        alpha_outlier: float = 0.1,
        reduction: str = "mean",
        fit_intercept: bool = True,
        tol: float = 1e-6,
        max_iter: int = 10_000,
        device: Any = None,
    ) -> None:
        self.alpha_low_rank = alpha_low_rank
        self.alpha_outlier = alpha_outlier
        self.reduction = reduction
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter
        self.device = device

    def _penalty(self) -> penalties.RobustPair:
        return penalties.RobustPair(self.alpha_low_rank, self.alpha_outlier)

    def _problem(self, tasks: Tasks) -> Problem:
        return SplitProblem(super()._problem(tasks))

    def _parts(self, penalty: Penalty, W: Tensor) -> dict[str, Tensor]:
        return {"coef_": W.sum(0), "low_rank_": W[0], "outlier_": W[1]}
