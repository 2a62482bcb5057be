"""Tasks in disjoint groups, each of which shares its features and nothing with the others."""

from __future__ import annotations

from typing import Any

from companion.linear._base import MultiTaskRegressor, check_labels
from companion.losses import SquaredLoss
from companion.penalties._base import check_positive
from companion.penalties.clustered import check_count
from companion.solvers.disjoint_groups import group_tasks
from companion.solvers.problem import Problem
from companion.solvers.result import Result
from companion.tasks import Tasks


class DisjointGroups(MultiTaskRegressor):
    r"""Convex feature learning in groups of tasks, where the groups are learned too (Kang, Grauman and Sha, 2011).

    Minimises :math:`\sum_t \tfrac{1}{2 n_t} \lVert y_t - X_t w_t - b_t \rVert^2 + \gamma \sum_g \lVert W_g \rVert_*^2`
    over the weights and over the partitions of the tasks into at most G groups; the columns of one group form
    :math:`W_g`. One group is :class:`ConvexFeatureLearning`, a group for every task is ridge regression with penalty
    :math:`2 \gamma`. Groups share a subspace: a task may be a multiple of another, also a negative one. The problem is
    not convex: alternation between groups and their metrics from several starts, then moves of single tasks.

    Parameters
    ----------
    n_groups : int, default 2
        G, most groups; more than there are tasks make no difference.
    gamma : float, default 0.1
        Weight of the penalty, > 0.
    n_init : int, default 10
        Number of starts.
    n_candidates : int or None, default 300
        How many of the T (G - 1) moves of single tasks a pass tries, those that would cost least with all metrics as
        they are. None for all, 0 for none: moves take most of the time where there are many tasks.
    groups : (T,) sequence of int, optional
        Groups 0..G-1 for the first start, in the order of ``task_ids_``.
    reduction : {"mean", "sum"}
        "mean" divides each task's loss by n_t, the sum of its weights; "sum" does not.
    fit_intercept : bool, default True
        Fit one unpenalised intercept per task.
    tol : float, default 1e-6
        Bound on each number in ``certificate_``.
    max_iter : int, default 10000
        Most iterations in one solve of a group.
    random_state : int, default 0
        Seed of the starts.

    Attributes
    ----------
    coef_ : (T, d), intercept_ : (T,)
        In the library, type and device of the training data.
    groups_ : (T,) int64 array
        Group of every task, in the order of ``task_ids_``: 0, 1, ... by first task.
    feature_covariances_ : (G, d, d)
        Metric of each group in use, symmetric, of trace one.
    task_ids_ : tuple of length T
    objective_ : float
        Value of the weights, in float64, before float32 data rounds them.
    dual_gap_ : float
        NaN: the problem is not convex.
    certificate_ : dict
        Relative to the objective of the intercept-only model: "gain of a move", a proven bound on what any of the moves
        that were tried could gain (not there if none were), and "gap in the groups", the sum of the duality gaps of all
        groups.
    moves_tried_ : (int, int)
        How many moves of a single task that bound is about, and how many there are.
    n_iter_ : int
        Most iterations in one solve of a group.
    """

    device = None

    def __init__(
        self,
        n_groups: int = 2,
        gamma: float = 0.1,
        n_init: int = 10,
        n_candidates: int | None = 300,
        groups: Any = None,
        reduction: str = "mean",
        fit_intercept: bool = True,
        tol: float = 1e-6,
        max_iter: int = 10_000,
        random_state: int = 0,
    ) -> None:
        self.n_groups = n_groups
        self.gamma = gamma
        self.n_init = n_init
        self.n_candidates = n_candidates
        self.groups = groups
        self.reduction = reduction
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter
        self.random_state = random_state

    def _solve(self, tasks: Tasks) -> Result:
        check_count("n_groups", self.n_groups)
        check_count("n_init", self.n_init)
        if self.n_candidates is not None:
            check_count("n_candidates", self.n_candidates, least=0)
        check_positive("gamma", self.gamma)
        start = check_labels("groups", self.groups, tasks.n_tasks, self.n_groups)
        problem = Problem.from_tasks(tasks.ragged(), SquaredLoss(), self.reduction, self.fit_intercept)
        found = group_tasks(
            problem,
            self.n_groups,
            float(self.gamma),
            self.n_init,
            self.random_state,
            self.tol,
            self.max_iter,
            self.n_candidates,
            start,
        )
        scale = found.null_objective if found.null_objective > 0 else 1.0
        certificate = {"gain of a move": found.gain / scale, "gap in the groups": found.gap / scale}
        if found.tried < min(1, found.possible):
            del certificate["gain of a move"]
        return Result(
            found.W,
            problem.original_intercepts(problem.at(found.W)),
            found.objective,
            float("nan"),
            found.null_objective,
            found.n_iter,
            certificate=certificate,
            attributes={
                "groups_": found.labels,
                "feature_covariances_": found.metrics,
                "moves_tried_": (found.tried, found.possible),
            },
        )
