"""Tasks near their mean, and tasks near their neighbours in a graph."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from companion.linear._base import MultiTaskClassifier, MultiTaskRegressor
from companion.linear._convex import SquaredModel
from companion.losses import LogisticLoss, SquaredLoss
from companion.penalties._base import Penalty
from companion.penalties.graph import GraphDifference, MeanDeviation, complete_graph, laplacian, n_components
from companion.solvers.result import Result
from companion.tasks import Tasks


class _MeanRegularizedBase(SquaredModel):
    def __init__(
        self,
        alpha: float = 0.1,
        coupling: float = 0.1,
        reduction: str = "mean",
        fit_intercept: bool = True,
        tol: float = 1e-8,
        max_iter: int = 10_000,
        device: Any = None,
    ) -> None:
        self.alpha = alpha
        self.coupling = coupling
        self.reduction = reduction
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter
        self.device = device

    def _penalty(self) -> MeanDeviation:
        return MeanDeviation(self.alpha, self.coupling)

    def _attributes(self, tasks: Tasks, penalty: Penalty, W: Tensor) -> dict[str, object]:
        return {"mean_": W.mean(1)}


_COMMON = r"""    reduction : {"mean", "sum"}
        "mean" divides each task's loss by n_t, the sum of its weights; "sum" does not.
    fit_intercept : bool, default True
        Fit one unpenalised intercept per task.
    tol : float, default 1e-8
        Duality gap allowed, relative to the objective of the intercept-only model.
    max_iter : int, default 10000
        Most iterations of conjugate gradients in a linear system, and most Newton steps for the logistic loss.
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
        Iterations of conjugate gradients; Newton steps for the logistic loss.
    """
_MEAN = (
    r"""
    Parameters
    ----------
    alpha : float, default 0.1
        Weight of the ridge term, > 0.
    coupling : float, default 0.1
        Weight of the distances to the mean, >= 0. With 0 the tasks are separate regressions with penalty alpha; as it
        grows they become one, with penalty T alpha.
"""
    + _COMMON
    + r"""    mean_ : (d,)
        The mean of the tasks' weights.
"""
    + _END
)


class MeanRegularized(_MeanRegularizedBase, MultiTaskRegressor):
    __doc__ = (
        r"""Ridge regression that pulls every task towards the mean of all (Evgeniou and Pontil, 2004).

    Minimises :math:`\sum_t \tfrac{1}{2 n_t} \lVert y_t - X_t w_t - b_t \rVert^2 + \tfrac{\alpha}{2} \lVert W \rVert_F^2
    + \tfrac{c}{2} \sum_t \lVert w_t - \bar w \rVert^2` with c = ``coupling``.
"""
        + _MEAN
    )

    loss = SquaredLoss()


class MeanRegularizedClassifier(_MeanRegularizedBase, MultiTaskClassifier):
    __doc__ = (
        r"""Logistic regression that pulls every task towards the mean of all.

    The penalty is that of :class:`MeanRegularized`, the loss :math:`\sum_t \tfrac{1}{n_t} \sum_i \log(1 + e^{-y_{ti}
    (x_{ti}^\top w_t + b_t)})` over labels -1/+1. Every task is binary, with the same two labels.
"""
        + _MEAN
    )

    loss = LogisticLoss()


class GraphRegularized(SquaredModel, MultiTaskRegressor):
    __doc__ = (
        r"""Ridge regression that pulls tasks towards their neighbours in a given graph.

    Minimises :math:`\sum_t \tfrac{1}{2 n_t} \lVert y_t - X_t w_t - b_t \rVert^2 + \tfrac{\alpha}{2} \lVert W \rVert_F^2
    + \tfrac{c}{2} \operatorname{tr}(W \mathcal L W^\top)` with c = ``coupling`` and the graph's Laplacian
    :math:`\mathcal L`: half of c times the sum of :math:`a_{st} \lVert w_s - w_t \rVert^2` over the edges (Evgeniou,
    Micchelli and Pontil, 2005).

    Parameters
    ----------
    alpha : float, default 0.1
        Weight of the ridge term, > 0.
    coupling : float, default 0.1
        Weight of the distances along edges, >= 0.
    graph : (T, T) array, scipy sparse array or data frame, optional
        Edge weights or a Laplacian, rows in the order of ``task_ids_`` (sorted ids); a data frame with the ids as index
        and columns may have them in any order. None ties every two tasks with weight 1/T, which is
        :class:`MeanRegularized`. See :func:`companion.penalties.path_graph` for tasks along time. Parts of the graph
        without an edge between them share nothing.
    signed : bool, default False
        Accept negative edge weights, which pull :math:`w_s` towards :math:`-w_t`.
    directed : bool, default False
        Accept weights that differ by direction; an edge gets the mean of both.
"""
        + _COMMON
        + r"""    laplacian_ : (T, T) array or scipy sparse array
        Laplacian of the graph.
    n_components_ : int
        Connected parts of the graph.
"""
        + _END
    )

    loss = SquaredLoss()

    def __init__(
        self,
        alpha: float = 0.1,
        coupling: float = 0.1,
        graph: Any = None,
        signed: bool = False,
        directed: bool = False,
        reduction: str = "mean",
        fit_intercept: bool = True,
        tol: float = 1e-8,
        max_iter: int = 10_000,
        device: Any = None,
    ) -> None:
        self.alpha = alpha
        self.coupling = coupling
        self.graph = graph
        self.signed = signed
        self.directed = directed
        self.reduction = reduction
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter
        self.device = device

    def _solve(self, tasks: Tasks) -> Result:
        graph = complete_graph(tasks.n_tasks) if self.graph is None else self.graph
        self.laplacian_ = laplacian(graph, tasks.ids, self.signed, self.directed)
        self.n_components_ = n_components(self.laplacian_)
        return super()._solve(tasks)

    def _penalty(self) -> GraphDifference:
        return GraphDifference(self.alpha, self.coupling, self.laplacian_)
