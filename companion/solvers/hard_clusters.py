r"""Tasks in clusters around centroids, each task in exactly one: alternation, restarts, and moves of single tasks.

.. math::
   \min_{c, U, W} \; F(W) + \rho_1 \sum_t \lVert w_t - u_{c(t)} \rVert^2 + \rho_2 \lVert W \rVert_F^2

The best centroids are the means of their clusters: this is the problem that clustered multi-task learning relaxes
(Jacob et al., 2008; Zhou et al., 2011). The weights are always at their best for the centroids, as
:mod:`companion.solvers.cluster_loss` has it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from companion.solvers._threads import threads_for
from companion.solvers.alternating import History, alternate
from companion.solvers.cluster_loss import Clustering, ClusterLoss
from companion.solvers.partitions import Labels, by_appearance, random_labels, spread_seeds
from companion.solvers.problem import Problem
from companion.solvers.task_rows import Array, TaskRows

_NOISE = 1e-9  # relative to the null objective: changes that updating formulas cannot tell from zero


@dataclass(frozen=True)
class HardClusters:
    """What :func:`cluster_tasks` found.

    Attributes
    ----------
    labels : (T,) int array
        Cluster of every task, numbered by first appearance.
    W, centroids : (d, T) and (d, k) tensors
        k is the number of clusters in use.
    objective, null_objective : float
    gain : float
        Most that moving one task to another cluster lowers the objective; 0 where no move lowers it.
    gap : float
        Bound on what other weights could gain with these labels.
    n_iter : int
        Rounds of alternation and moves, in the start that was kept.
    """

    labels: Labels
    W: Tensor
    centroids: Tensor
    objective: float
    null_objective: float
    gain: float
    gap: float
    n_iter: int


def alternate_clusters(loss: ClusterLoss, start: Clustering, max_iter: int) -> History[Clustering]:
    """Assign every task to its cheapest centroid, then solve for the centroids, until nothing changes.

    A cluster that has lost its last task gets the one that has most to gain from being alone.
    """

    def assign(state: Clustering) -> Clustering:
        costs, tasks = loss.costs(state.U), np.arange(len(state.labels))
        labels = costs.argmin(1)
        labels = np.where(costs[tasks, labels] < costs[tasks, state.labels], labels, state.labels)
        return _refill(loss, Clustering(labels, state.U), costs[tasks, labels])

    def centroids(state: Clustering) -> Clustering:
        return loss.centroids(state.labels, state.U.shape[1])

    def objective(state: Clustering) -> float:
        return float(loss.costs(state.U)[np.arange(len(state.labels)), state.labels].sum())

    return alternate([assign, centroids], objective, start, 1e-13, max_iter)


def _refill(loss: ClusterLoss, state: Clustering, costs: Array) -> Clustering:
    """Give every empty cluster the task that pays most for not being alone."""
    labels, U, excess = state.labels.copy(), state.U.copy(), costs - loss.alone
    for c in np.flatnonzero(np.bincount(labels, minlength=U.shape[1]) == 0):
        worst = int(excess.argmax())
        if not excess[worst] > _NOISE * loss.scale:
            break
        labels[worst], U[:, c], excess[worst] = c, loss.W_alone[:, worst], 0.0
    return Clustering(labels, U)


def move_single_tasks(
    loss: ClusterLoss, labels: Labels, k: int, threshold: float, max_moves: int
) -> tuple[Labels, float, int]:
    """Move the task that lowers the objective most, time and again, until none lowers it by more than ``threshold``.

    Both clusters of a move are solved again before it is made. A partition where this stops is also a fixed point of
    the alternation, but not the other way round.

    Returns
    -------
    labels (T,), the largest gain of a move that remains (0 if all lose), moves made
    """
    labels = labels.copy()
    changes = np.stack([loss.changes(labels == c) for c in range(k)], axis=1)  # (T, k)
    for n_moves in range(max_moves + 1):
        gain, t, c = _best_move(loss, labels, changes, threshold)
        if gain <= threshold or n_moves == max_moves:
            break
        old, labels[t] = labels[t], c
        for part in (old, c):
            changes[:, part] = loss.changes(labels == part)
    return labels, gain, n_moves


def _best_move(loss: ClusterLoss, labels: Labels, changes: Array, threshold: float) -> tuple[float, int, int]:
    """Gain, task and new cluster: the first move in the order of ``changes`` that gains more than the threshold.

    ``changes`` may be off by rounding; those near zero are computed once more. Without such a move, the best of all.
    """
    tasks = np.arange(len(labels))
    total = changes + changes[tasks, labels][:, None]
    total[tasks, labels] = np.inf
    best = (0.0, 0, 0)
    for position in total.argsort(axis=None, kind="stable"):
        t, c = divmod(int(position), total.shape[1])
        if not total[t, c] < _NOISE * loss.scale:
            break
        old, new = labels == labels[t], labels == c
        before = loss.value(old) + loss.value(new)
        old[t], new[t] = False, True
        best = max(best, (before - loss.value(old) - loss.value(new), t, c))
        if best[0] > threshold:
            break
    return best


def cluster_tasks(
    problem: Problem,
    n_clusters: int,
    rho1: float,
    rho2: float,
    n_init: int = 10,
    random_state: int = 0,
    tol: float = 1e-6,
    max_iter: int = 1000,
    start: Labels | None = None,
) -> HardClusters:
    """Weights and a partition of the tasks into at most ``n_clusters`` clusters, by restarts.

    Every start is improved by alternation, then by moves of single tasks. Starts are, in turn, tasks drawn as in
    k-means++ with their excess costs, and random partitions.

    Parameters
    ----------
    problem : Problem
        Squared loss without free intercepts.
    rho1, rho2 : float
        > 0.
    n_init : int
        Number of starts.
    tol : float
        Gain, relative to the null objective, below which a move is not made; at most 1e-12 is used.
    max_iter : int
        Most rounds of alternation, and most moves, in one start.
    start : (T,) int array, optional
        Labels 0..k-1 for the first start.
    """
    with threads_for(problem.rows.X):
        loss = ClusterLoss(TaskRows.of(problem), rho1, rho2)
        k = min(n_clusters, loss.rows.n_tasks)
        threshold = min(tol, 1e-12) * loss.scale
        found: dict[bytes, tuple[float, Labels, float, int]] = {}
        for first in _starts(loss, k, n_init, np.random.default_rng(random_state), start):
            history = alternate_clusters(loss, first, max_iter)
            labels = by_appearance(history.state.labels)
            if labels.tobytes() not in found:
                moved, gain, n_moves = move_single_tasks(loss, labels, k, threshold, max_iter)
                value = sum(loss.value(moved == c) for c in range(k))
                found[labels.tobytes()] = (value, moved, gain, history.n_iter + n_moves)
        _, labels, gain, n_iter = min(found.values(), key=lambda one: one[0])
        return _finish(problem, loss, by_appearance(labels), gain, n_iter, rho1, rho2)


def _starts(
    loss: ClusterLoss, k: int, n_init: int, rng: np.random.Generator, start: Labels | None
) -> Iterator[Clustering]:
    """Clusterings to start from; one is enough where all tasks are together, or each can be alone."""
    T = loss.rows.n_tasks
    if k in (1, T):
        yield loss.centroids(np.arange(T) % k, k)
        return
    order = loss.rows.null_losses().argsort(kind="stable")
    for number in range(n_init):
        if number == 0 and start is not None:
            yield loss.centroids(start, k)
        elif number % 2 == 0:
            seeds = spread_seeds(lambda s: loss.costs(loss.W_alone[:, s, None])[:, 0] - loss.alone, order, k, rng)
            U = loss.W_alone[:, (seeds * k)[:k]]
            yield Clustering(loss.costs(U).argmin(1), U)
        else:
            yield loss.centroids(random_labels(order, k, rng), k)


def _finish(
    problem: Problem, loss: ClusterLoss, labels: Labels, gain: float, n_iter: int, rho1: float, rho2: float
) -> HardClusters:
    """Weights for the labels, in the coordinates of the data, with objective and gap."""
    k = int(labels.max()) + 1
    W = loss.rows.original(loss.weights(loss.centroids(labels, k)), problem.y)
    members = torch.from_numpy(np.eye(k)[labels]).to(W)  # (T, k)
    centroids = W @ (members / members.sum(0))
    away = W - centroids @ members.T
    point = problem.at(W)
    objective = point.value + rho1 * float((away**2).sum()) + rho2 * float((W**2).sum())
    slope = -problem.descent(point)
    # Two lower bounds on the curvature: the penalty's alone, where weights of tasks deviate and where they do so
    # together (there the rho1 term vanishes), and that of the ridge and the data.
    mean = slope @ (members / members.sum(0))
    within = slope - mean @ members.T + 2 * (rho1 + rho2) * away
    together = ((mean + 2 * rho2 * centroids) ** 2 * members.sum(0)).sum()
    of_penalty = float((within**2).sum()) / (4 * (rho1 + rho2)) + float(together) / (4 * rho2)
    gap = min(of_penalty, loss.rows.ridge_gap(slope + 2 * rho1 * away + 2 * rho2 * W, rho2))
    return HardClusters(labels, W, centroids, objective, problem.null_objective, gain, gap, n_iter)
