"""Tasks in clusters and tasks with a common structure, where a matrix that groups them is learned with the weights."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from companion.linear._base import MultiTaskClassifier, MultiTaskRegressor
from companion.linear._convex import SquaredModel
from companion.losses import LogisticLoss, SquaredLoss
from companion.penalties._base import Penalty, check_positive
from companion.penalties.clustered import SquaredBoxNorm, SquaredClusterNorm, check_count
from companion.solvers.clusters import cluster_labels
from companion.solvers.problem import Problem
from companion.tasks import Tasks

_COMMON = r"""    reduction : {"mean", "sum"}
        "mean" divides each task's loss by n_t, the sum of its weights; "sum" does not.
    fit_intercept : bool, default True
        Fit one unpenalised intercept per task.
    tol : float, default 1e-6
        Duality gap allowed, relative to the objective of the intercept-only model.
    max_iter : int, default 10000
        Most L-BFGS iterations.
    device : torch device, optional
        Where to compute; by default where the data is.

    Attributes
    ----------
    coef_ : (T, d), intercept_ : (T,)
        In the library, type and device of the training data.
"""
_LABELS = r"""    labels_ : (T,) int64 array
        Cluster of every task, in the order of ``task_ids_``: 0, 1, ... by first task. Of all hard clusters, those of
        k-means on the weights have the least penalty; :func:`~companion.solvers.cluster_labels` looks for them, and
        :func:`cluster_stability` says how far to trust them.
"""
_END = r"""    task_ids_ : tuple of length T
    objective_, dual_gap_ : float
        Value and absolute duality gap of the weights, in float64, before float32 data rounds them.
    n_iter_ : int
"""


class _ClusteredBase(SquaredModel):
    def __init__(
        self,
        n_clusters: int = 2,
        rho1: float = 0.1,
        rho2: float = 0.1,
        reduction: str = "mean",
        fit_intercept: bool = True,
        tol: float = 1e-6,
        max_iter: int = 10_000,
        device: Any = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.rho1 = rho1
        self.rho2 = rho2
        self.reduction = reduction
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter
        self.device = device

    def _penalty(self) -> SquaredBoxNorm:
        check_count("n_clusters", self.n_clusters)
        return _relaxed(self.rho1, self.rho2, self.n_clusters)

    def _problem(self, tasks: Tasks) -> Problem:
        _check_clusters(self.n_clusters, tasks)
        return super()._problem(tasks)

    def _attributes(self, tasks: Tasks, penalty: Penalty, W: Tensor) -> dict[str, object]:
        return {"relation_": self._penalty().projection(W), "labels_": _labels(W, self.n_clusters)}


_CLUSTERED = (
    r"""
    The penalty is the relaxation of k-means on the weights of the tasks, with k clusters:

    .. math:: \min_{0 \preceq M \preceq I,\; \operatorname{tr} M = k} \rho_1 \eta (1 + \eta) \operatorname{tr} \bigl(
       W (\eta I + M)^{-1} W^\top \bigr) , \qquad \eta = \rho_2 / \rho_1

    If M averages within hard clusters, that is :math:`\rho_1` times the squared distances of the tasks to the mean of
    their cluster, plus :math:`\rho_2 \lVert W \rVert_F^2`. The problem is convex in W and M; M is known in closed form
    for given W, and is eliminated.

    Parameters
    ----------
    n_clusters : int, default 2
        k, at most the number of tasks (with a single task, any number). As many as W has dimensions make a ridge,
        :math:`\rho_2 \lVert W \rVert_F^2`.
    rho1, rho2 : float, default 0.1
        Weights > 0 of the deviations within clusters and of the ridge. Squared lengths carry no factor 1/2.
"""
    + _COMMON
    + r"""    relation_ : (T, T)
        M, symmetric, with eigenvalues in [0, 1] and trace k: a projection on vectors that are constant within clusters,
        if these are clear.
"""
    + _LABELS
    + _END
)


class ClusteredMTL(_ClusteredBase, MultiTaskRegressor):
    __doc__ = (
        r"""Regression for tasks in clusters that nobody has named (Zhou, Chen and Ye, 2011).

    Minimises :math:`\sum_t \tfrac{1}{2 n_t} \lVert y_t - X_t w_t - b_t \rVert^2` plus a penalty.
"""
        + _CLUSTERED
        + r"""
    See Also
    --------
    ASO : the same optimum, seen from the features.
    JacobClusteredMTL : with a weight of its own for the mean of all tasks.
    """
    )

    loss = SquaredLoss()


class ClusteredMTLClassifier(_ClusteredBase, MultiTaskClassifier):
    __doc__ = (
        r"""Logistic regression for tasks in clusters that nobody has named (Zhou, Chen and Ye, 2011).

    Minimises :math:`\sum_t \tfrac{1}{n_t} \sum_i \log(1 + e^{-y_{ti} (x_{ti}^\top w_t + b_t)})` plus a penalty, over
    labels -1/+1. Every task is binary, with the same two labels.
"""
        + _CLUSTERED
        + "    "
    )

    loss = LogisticLoss()


class ASO(SquaredModel, MultiTaskRegressor):
    __doc__ = (
        r"""Convex alternating structure optimisation: weights lie near a few directions that all tasks share.

    Each task has weights in a subspace of k dimensions, which is learned and costs little, and a rest of its own (Ando
    and Zhang, 2005). The convex relaxation of Chen, Tang, Liu and Ye (2009) minimises :math:`\sum_t \tfrac{1}{2 n_t}
    \lVert y_t - X_t w_t - b_t \rVert^2` plus

    .. math:: \min_{0 \preceq M \preceq I,\; \operatorname{tr} M = k} \rho_1 \eta (1 + \eta) \operatorname{tr} \bigl(
       W^\top (\eta I + M)^{-1} W \bigr) , \qquad \eta = \rho_2 / \rho_1

    For a projection M that is :math:`\rho_1` times the squared lengths of what lies outside the subspace, plus
    :math:`\rho_2 \lVert W \rVert_F^2`. It is the penalty of :class:`ClusteredMTL` with the matrix on the side of the
    features, and for the same k the same function of W.

    Parameters
    ----------
    n_components : int, default 1
        k, at most the number of features.
    rho1, rho2 : float, default 0.1
        Weights > 0 of what lies outside the subspace and of the ridge. Squared lengths carry no factor 1/2.
"""
        + _COMMON
        + r"""    shared_structure_ : (d, d)
        M, symmetric, with eigenvalues in [0, 1] and trace k.
"""
        + _END
        + "    "
    )

    loss = SquaredLoss()

    def __init__(
        self,
        n_components: int = 1,
        rho1: float = 0.1,
        rho2: float = 0.1,
        reduction: str = "mean",
        fit_intercept: bool = True,
        tol: float = 1e-6,
        max_iter: int = 10_000,
        device: Any = None,
    ) -> None:
        self.n_components = n_components
        self.rho1 = rho1
        self.rho2 = rho2
        self.reduction = reduction
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter
        self.device = device

    def _penalty(self) -> SquaredBoxNorm:
        check_count("n_components", self.n_components)
        return _relaxed(self.rho1, self.rho2, self.n_components)

    def _problem(self, tasks: Tasks) -> Problem:
        if self.n_components > tasks.n_features:
            found = f"n_components={self.n_components} and d={tasks.n_features}"
            raise ValueError(f"n_components must be at most the number of features; got {found}")
        return super()._problem(tasks)

    def _attributes(self, tasks: Tasks, penalty: Penalty, W: Tensor) -> dict[str, object]:
        return {"shared_structure_": self._penalty().projection(W.T)}


class JacobClusteredMTL(SquaredModel, MultiTaskRegressor):
    __doc__ = (
        r"""Regression for tasks in unknown clusters, with a weight for each of three norms (Jacob et al., 2008).

    Minimises :math:`\sum_t \tfrac{1}{2 n_t} \lVert y_t - X_t w_t - b_t \rVert^2` plus the convex relaxation of

    .. math:: e_M\, T \lVert \bar w \rVert^2 + e_B \sum_c T_c \lVert \bar w_c - \bar w \rVert^2 +
       e_W \sum_c \sum_{t \in c} \lVert w_t - \bar w_c \rVert^2

    over all ways to put T tasks into r clusters, with :math:`T_c` tasks in cluster c: a mean that all tasks share is
    cheapest, then the means of the clusters, then the tasks on their own.

    Parameters
    ----------
    n_clusters : int, default 2
        r, at most the number of tasks (with a single task, any number). One cluster draws every task to the mean of
        all by the weight ``within``.
    mean, between, within : float, default 0.01, 0.1 and 1
        :math:`e_M, e_B, e_W`, with ``within >= between >= mean > 0``. Squared lengths carry no factor 1/2; equal
        weights make a ridge.
"""
        + _COMMON
        + r"""    relation_ : (T, T)
        Covariance of the tasks, so that the penalty is the trace of ``W relation_^-1 W'``. The mean of all tasks has
        variance ``1 / mean``, deviations from it have between ``1 / within`` and ``1 / between``.
"""
        + _LABELS
        + _END
        + r"""
    See Also
    --------
    ClusteredMTL : with ``rho2 = mean = between`` and ``rho1 = within - between`` the same cost of hard clusters. Its
        relaxation is looser, for it does not know that the mean of all tasks is constant within clusters.
    """
    )

    loss = SquaredLoss()

    def __init__(
        self,
        n_clusters: int = 2,
        mean: float = 0.01,
        between: float = 0.1,
        within: float = 1.0,
        reduction: str = "mean",
        fit_intercept: bool = True,
        tol: float = 1e-6,
        max_iter: int = 10_000,
        device: Any = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.mean = mean
        self.between = between
        self.within = within
        self.reduction = reduction
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter
        self.device = device

    def _penalty(self) -> SquaredClusterNorm:
        return SquaredClusterNorm(self.mean, self.between, self.within, self.n_clusters)

    def _problem(self, tasks: Tasks) -> Problem:
        _check_clusters(self.n_clusters, tasks)
        return super()._problem(tasks)

    def _attributes(self, tasks: Tasks, penalty: Penalty, W: Tensor) -> dict[str, object]:
        return {"relation_": self._penalty().covariance(W), "labels_": _labels(W, self.n_clusters)}


def _labels(W: Tensor, n_clusters: int) -> NDArray[np.int64]:
    """(T,) clusters of the columns of ``W (d, T)``. The learned matrix would whiten them, and blow up what is noise."""
    return cluster_labels(W.T @ W, min(n_clusters, W.shape[1]))


def _relaxed(rho1: float, rho2: float, k: int) -> SquaredBoxNorm:
    """Penalty of clustered MTL and of ASO: rho2 on the k directions of M, rho1 more on all others."""
    check_positive("rho1", rho1)
    check_positive("rho2", rho2)
    return SquaredBoxNorm(rho2, rho1 + rho2, k)


def _check_clusters(n_clusters: int, tasks: Tasks) -> None:
    """Refuse more clusters than tasks. A single task has nothing to be clustered with: every number makes a ridge."""
    if n_clusters > tasks.n_tasks > 1:
        found = f"n_clusters={n_clusters} and T={tasks.n_tasks}"
        raise ValueError(f"n_clusters must be at most the number of tasks; got {found}")
