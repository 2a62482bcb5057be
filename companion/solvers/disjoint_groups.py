r"""Tasks in disjoint groups that share a metric on features: exact values of partitions, and moves of single tasks.

.. math:: \min_{c, W} \; F(W) + \gamma \sum_g \lVert W_g \rVert_*^2

Columns of one group form :math:`W_g` (Kang et al., 2011). For given groups this is convex feature learning, group by
group; :mod:`companion.solvers.group_metrics` proposes groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from companion.solvers._threads import threads_for
from companion.solvers.group_metrics import GroupMetric, search_groups
from companion.solvers.partitions import Labels, by_appearance
from companion.solvers.problem import Problem
from companion.solvers.squared_trace import SquaredTraceProblem, Value, duality_gap
from companion.solvers.task_rows import Array, TaskRows

_MOVED_TASKS = 60  # moves start from more than the best proposal as long as these have no more tasks together
Part = tuple[int, ...]  # tasks of a group, in rising order


class Groups:
    r"""The convex problems of groups of tasks, each solved as far as was asked for so far.

    Parameters
    ----------
    rows : TaskRows
    gamma : float
    max_iter : int
        Most iterations in one solve.
    """

    def __init__(self, rows: TaskRows, gamma: float, max_iter: int) -> None:
        self.rows, self.gamma, self.max_iter = rows, gamma, max_iter
        self.alone, self.W_alone = rows.ridge(gamma)  # the squared trace norm of one column
        self.scale = float(rows.null_losses().sum())
        self.n_iter = 1
        self._problem = SquaredTraceProblem(rows, gamma)
        self._known: dict[Part, Value] = {}

    def bounds(self, part: Part, gap: float, W: Array) -> Value:
        """Solve until the duality gap is at most ``gap``, from where the last solve ended or else from ``W (r, T)``."""
        tasks = list(part)
        if len(tasks) < 2:
            value = float(self.alone[tasks].sum())
            return Value(value, value, self.W_alone[:, tasks], 1)
        known = self._known.get(part)
        if known is None or known.gap > gap:
            start = W[:, tasks] if known is None or known.W is None else known.W
            known = self._known[part] = self._problem.solve(tasks, gap, start, self.max_iter)
            self.n_iter = max(self.n_iter, known.n_iter)
        return known

    def solve(self, part: Part, gap: float, W: Array) -> Value:
        """The same, and the weights are there."""
        if self.bounds(part, gap, W).W is None:
            del self._known[part]
        return self.bounds(part, gap, W)

    def drop_weights(self, part: Part) -> None:
        """Keep no more than the bounds of a group that is not going to be used."""
        if part in self._known:
            self._known[part] = self._known[part]._replace(W=None)


class Partition(NamedTuple):
    """Groups that are solved, and what moves of single tasks could still gain."""

    parts: list[Part]
    W: Array  # (r, T)
    value: float
    gain: float
    tried: int
    possible: int


def move_single_tasks(
    groups: Groups, parts: list[Part], threshold: float, n_candidates: int | None = None
) -> Partition:
    """Move single tasks between groups until no move lowers the objective by more than ``threshold``.

    For every candidate both groups are solved again, until bounds on their values decide whether the move gains that
    much; if so, it is made. A pass goes through the candidates in the order of what they would cost with all metrics
    as they are, and the last pass makes no move.

    Parameters
    ----------
    parts : list of tuples of tasks in rising order
        Some may be empty.
    n_candidates : int, optional
        How many candidates a pass looks at, the most promising ones; all by default.

    Returns
    -------
    Partition
        Its ``gain`` is a proven bound on the gain of any of the ``tried`` out of ``possible`` moves.
    """
    parts, W, gap = list(parts), groups.W_alone.copy(), threshold / (2 * len(parts))
    while True:
        for part in parts:
            W[:, list(part)] = groups.solve(part, gap, W).W
        candidates = _candidates(groups, parts, W)
        tried = candidates[:n_candidates]
        most, moved = 0.0, set()
        for t, a, b, w in tried:
            if t in moved or (len(parts[a]) < 2 and not parts[b]):
                continue
            rest, more = tuple(s for s in parts[a] if s != t), tuple(sorted((*parts[b], t)))
            V = W.copy()
            V[:, t] = w
            now = sum(groups.solve(part, gap, W).upper for part in (parts[a], parts[b]))
            gain, worth_it = _try(groups, now, (rest, more), V, threshold)
            most = max(most, gain)
            if worth_it:
                moved.add(t)
                parts[a], parts[b] = rest, more
                for part in (rest, more):
                    W[:, list(part)] = groups.solve(part, gap, V).W
        if not moved:
            value = sum(groups.solve(part, gap, W).upper for part in parts)
            return Partition(parts, W, value, most, len(tried), len(candidates))


def _candidates(groups: Groups, parts: list[Part], W: Array) -> list[tuple[int, int, int, Array]]:
    """(task, its group, another group, its weights there), by the rise of the objective with all metrics as they are.

    Of the groups that are empty only the first is a target, and not for a task that is alone.
    """
    eps = 1e-6 * float((groups.W_alone**2).mean()) or 1.0
    fits = [GroupMetric.of(W[:, list(part)], eps).ridge(groups.rows, groups.gamma) for part in parts]
    targets = [g for g, part in enumerate(parts) if part or g == parts.index(())]
    moves = [
        (fits[b][0][t] - fits[a][0][t], t, a, b)
        for a, part in enumerate(parts)
        for t in part
        for b in targets
        if b != a and (parts[b] or len(part) > 1)
    ]
    return [(t, a, b, fits[b][1][:, t]) for _, t, a, b in sorted(moves)]


def _try(groups: Groups, now: float, pair: tuple[Part, Part], W: Array, threshold: float) -> tuple[float, bool]:
    """A bound on what two groups gain over their value ``now`` by becoming ``pair``; whether it is worth it."""
    request = np.inf
    while True:
        values = [groups.bounds(part, request, W) for part in pair]
        lower, upper = sum(value.lower for value in values), sum(value.upper for value in values)
        if upper < now - threshold / 2:
            return now - lower, True
        if lower >= now - threshold or max(value.gap for value in values) > request:
            for part in pair:
                groups.drop_weights(part)
            return now - lower, False
        request = max((upper - now + threshold) / 4, threshold / 8)


@dataclass(frozen=True)
class DisjointGroups:
    """What :func:`group_tasks` found.

    Attributes
    ----------
    labels : (T,) int array
        Group of every task, numbered by first appearance.
    W : (d, T) tensor
    metrics : (G, d, d) tensor
        Metric of every group in use, symmetric, of trace one (I/d where all weights are zero).
    objective, null_objective : float
    gap : float
        Sum of the duality gaps of the groups.
    gain : float
        Proven bound on what any of the moves that were tried could gain.
    tried, possible : int
        Numbers of moves of single tasks.
    n_iter : int
        Most iterations in one solve of a group.
    """

    labels: Labels
    W: Tensor
    metrics: Tensor
    objective: float
    null_objective: float
    gap: float
    gain: float
    tried: int
    possible: int
    n_iter: int


def group_tasks(
    problem: Problem,
    n_groups: int,
    gamma: float,
    n_init: int = 10,
    random_state: int = 0,
    tol: float = 1e-6,
    max_iter: int = 10_000,
    n_candidates: int | None = None,
    start: Labels | None = None,
) -> DisjointGroups:
    """Weights and a partition of the tasks into at most ``n_groups`` groups, by restarts.

    The best of the partitions that :func:`~companion.solvers.group_metrics.search_groups` proposes, improved by
    :func:`move_single_tasks`.

    Parameters
    ----------
    problem : Problem
        Squared loss without free intercepts.
    gamma : float
        > 0.
    n_init : int
        Number of starts.
    tol : float
        Relative to the null objective: duality gap allowed in all groups together, and gain below which no task is
        moved.
    max_iter : int
        Most iterations in one solve of a group.
    n_candidates : int, optional
        As in :func:`move_single_tasks`; 0 for no moves.
    start : (T,) int array, optional
        Labels 0..n_groups-1 for the first start.
    """
    with threads_for(problem.rows.X):
        rows = TaskRows.of(problem)
        groups, n_groups = Groups(rows, gamma, max_iter), min(n_groups, rows.n_tasks)
        proposals = [
            [tuple(np.flatnonzero(labels == g).tolist()) for g in range(n_groups)]
            for labels in search_groups(rows, gamma, n_groups, n_init, random_state, start)
        ]
        coarse = 1e-4 * groups.scale
        proposals.sort(key=lambda parts: sum(groups.bounds(p, coarse, groups.W_alone).upper for p in parts))
        moved = [
            move_single_tasks(groups, parts, tol * groups.scale, n_candidates)
            for parts in proposals[: max(1, _MOVED_TASKS // rows.n_tasks)]
        ]
        return _finish(problem, groups, min(moved, key=lambda partition: partition.value))


def _finish(problem: Problem, groups: Groups, partition: Partition) -> DisjointGroups:
    """Weights, metrics and values in the coordinates of the data."""
    labels = np.empty(problem.n_tasks, dtype=np.int64)
    for g, part in enumerate(partition.parts):
        labels[list(part)] = g
    labels = by_appearance(labels)
    W = groups.rows.original(partition.W, problem.y)
    point = problem.at(W)
    C, r2 = problem.descent(point), problem.rows.sums(problem.v * (problem.y - point.margin) ** 2)
    objective, gap, metrics = point.value, 0.0, []
    for g in range(labels.max() + 1):
        mine = torch.from_numpy(np.flatnonzero(labels == g)).to(W.device)
        U, s, _ = torch.linalg.svd(W[:, mine], full_matrices=False)
        penalty = groups.gamma * float(s.sum()) ** 2
        conjugate = float(torch.linalg.matrix_norm(C[:, mine], ord=2)) ** 2 / (4 * groups.gamma)
        objective += penalty
        gap += duality_gap(penalty, conjugate, float((W * C)[:, mine].sum()), float(r2[mine].sum()))
        metrics.append((U * (s / s.sum())) @ U.T if bool(s.any()) else torch.eye(len(W)).to(W) / len(W))
    return DisjointGroups(
        labels,
        W,
        torch.stack(metrics),
        objective,
        problem.null_objective,
        gap,
        partition.gain,
        partition.tried,
        partition.possible,
        groups.n_iter,
    )
