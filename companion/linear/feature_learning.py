"""Convex multi-task feature learning: a metric on features, learned with the tasks."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from companion.linear._base import MultiTaskRegressor
from companion.linear._convex import SquaredModel
from companion.losses import SquaredLoss
from companion.penalties._base import Penalty
from companion.penalties.trace_norm import SquaredTraceNorm
from companion.solvers.alternating import best_metric
from companion.tasks import Tasks


class ConvexFeatureLearning(SquaredModel, MultiTaskRegressor):
    r"""Ridge regression in a metric D that all tasks share and learn together (Argyriou et al., 2008).

    Minimises :math:`\sum_t \tfrac{1}{2 n_t} \lVert y_t - X_t w_t - b_t \rVert^2 + \gamma \sum_t \langle w_t, D^{-1} w_t
    \rangle` over W and over positive semidefinite D of trace one. The best D for given weights is
    :math:`(W W^\top)^{1/2} / \operatorname{tr} (W W^\top)^{1/2}`, and with it the penalty is :math:`\gamma \lVert W
    \rVert_*^2`. Known as "no-group MTL" in comparisons with methods that group tasks.

    Parameters
    ----------
    gamma : float, default 0.1
        Weight of the penalty, > 0.
    reduction : {"mean", "sum"}
        "mean" divides each task's loss by n_t, the sum of its weights; "sum" does not.
    fit_intercept : bool, default True
        Fit one unpenalised intercept per task.
    tol : float, default 1e-6
        Duality gap allowed, relative to the objective of the intercept-only model.
    max_iter : int, default 10000
        Most FISTA iterations on the problem with D eliminated.
    device : torch device, optional
        Where to compute; by default where the data is.

    Attributes
    ----------
    coef_ : (T, d), intercept_ : (T,)
        In the library, type and device of the training data.
    feature_covariance_ : (d, d)
        The metric D, symmetric, of trace one (I/d where all weights are zero).
    task_ids_ : tuple of length T
    objective_, dual_gap_ : float
        Value and absolute duality gap of the weights, in float64, before float32 data rounds them.
    n_iter_ : int

    See Also
    --------
    companion.solvers.learn_features : the alternation between W and D, which has the same optimum.
    """

    loss = SquaredLoss()

    def __init__(
        self,
        gamma: float = 0.1,
        reduction: str = "mean",
        fit_intercept: bool = True,
        tol: float = 1e-6,
        max_iter: int = 10_000,
        device: Any = None,
    ) -> None:
        self.gamma = gamma
        self.reduction = reduction
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter
        self.device = device

    def _penalty(self) -> SquaredTraceNorm:
        return SquaredTraceNorm(self.gamma)

    def _attributes(self, tasks: Tasks, penalty: Penalty, W: Tensor) -> dict[str, object]:
        return {"feature_covariance_": best_metric(W)}
