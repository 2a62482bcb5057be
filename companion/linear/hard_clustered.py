"""Tasks in hard clusters: the problem of which clustered multi-task learning is the convex relaxation."""

from __future__ import annotations

from typing import Any

from companion.linear._base import MultiTaskRegressor, check_labels
from companion.losses import SquaredLoss
from companion.penalties._base import check_positive
from companion.penalties.clustered import check_count
from companion.solvers.hard_clusters import cluster_tasks
from companion.solvers.problem import Problem
from companion.solvers.result import Result
from companion.tasks import Tasks


class HardClusteredMTL(MultiTaskRegressor):
    r"""Regression for tasks in clusters, each task near the centre of its own.

    Minimises :math:`\sum_t \tfrac{1}{2 n_t} \lVert y_t - X_t w_t - b_t \rVert^2 + \rho_1 \sum_c \sum_{t \in c} \lVert
    w_t - \bar w_c \rVert^2 + \rho_2 \lVert W \rVert_F^2` over the weights and over the partitions of the tasks into at
    most k clusters. That is k-means on weights that are learned with the clusters; :class:`ClusteredMTL` is its convex
    relaxation, whose optimum is a lower bound. The problem is not convex: alternation between clusters and centres from
    several starts, then moves of single tasks until none lowers the objective.

    Parameters
    ----------
    n_clusters : int, default 2
        k, at most the number of tasks (with a single task, any number).
    rho1, rho2 : float, default 0.1
        Weights > 0 of the deviations within clusters and of the ridge. Squared lengths carry no factor 1/2.
    n_init : int, default 10
        Number of starts.
    labels : (T,) sequence of int, optional
        Clusters 0..k-1 for the first start, in the order of ``task_ids_``.
    reduction : {"mean", "sum"}
        "mean" divides each task's loss by n_t, the sum of its weights; "sum" does not.
    fit_intercept : bool, default True
        Fit one unpenalised intercept per task.
    tol : float, default 1e-6
        Bound on each number in ``certificate_``.
    max_iter : int, default 1000
        Most rounds of alternation, and most moves, in one start.
    random_state : int, default 0
        Seed of the starts.

    Attributes
    ----------
    coef_ : (T, d), intercept_ : (T,)
        In the library, type and device of the training data.
    labels_ : (T,) int64 array
        Cluster of every task, in the order of ``task_ids_``: 0, 1, ... by first task.
    centroids_ : (k, d)
        Mean weights of the clusters in use.
    task_ids_ : tuple of length T
    objective_ : float
        Value of the weights, in float64, before float32 data rounds them.
    dual_gap_ : float
        NaN: the problem is not convex.
    certificate_ : dict
        Relative to the objective of the intercept-only model: "gain of a move", what moving one task could still lower
        the objective by, and "gap in the weights", a bound on what other weights could with these clusters.
    n_iter_ : int
        Rounds and moves in the start that was kept.
    """

    device = None

    def __init__(
        self,
        n_clusters: int = 2,
        rho1: float = 0.1,
        rho2: float = 0.1,
        n_init: int = 10,
        labels: Any = None,
        reduction: str = "mean",
        fit_intercept: bool = True,
        tol: float = 1e-6,
        max_iter: int = 1000,
        random_state: int = 0,
    ) -> None:
        self.n_clusters = n_clusters
        self.rho1 = rho1
        self.rho2 = rho2
        self.n_init = n_init
        self.labels = labels
        self.reduction = reduction
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter
        self.random_state = random_state

    def _solve(self, tasks: Tasks) -> Result:
        check_count("n_clusters", self.n_clusters)
        check_count("n_init", self.n_init)
        check_positive("rho1", self.rho1)
        check_positive("rho2", self.rho2)
        if self.n_clusters > tasks.n_tasks > 1:
            both = f"n_clusters={self.n_clusters} and T={tasks.n_tasks}"
            raise ValueError(f"n_clusters must be at most the number of tasks; got {both}")
        start = check_labels("labels", self.labels, tasks.n_tasks, self.n_clusters)
        problem = Problem.from_tasks(tasks.ragged(), SquaredLoss(), self.reduction, self.fit_intercept)
        found = cluster_tasks(
            problem,
            min(self.n_clusters, tasks.n_tasks),
            float(self.rho1),
            float(self.rho2),
            self.n_init,
            self.random_state,
            self.tol,
            self.max_iter,
            start,
        )
        scale = found.null_objective if found.null_objective > 0 else 1.0
        return Result(
            found.W,
            problem.original_intercepts(problem.at(found.W)),
            found.objective,
            float("nan"),
            found.null_objective,
            found.n_iter,
            certificate={"gain of a move": found.gain / scale, "gap in the weights": found.gap / scale},
            attributes={"labels_": found.labels, "centroids_": found.centroids.T.contiguous()},
        )
