r"""Tasks in clusters around centroids, each task in exactly one: alternation, restarts, and moves of single tasks.

.. math::
   \min_{c, U, W} \; F(W) + \rho_1 \sum_t \lVert w_t - u_{c(t)} \rVert^2 + \rho_2 \lVert W \rVert_F^2

The best centroids are the means of their clusters, so that this is the problem which clustered multi-task learning
(Jacob et al., 2008; Zhou et al., 2011) relaxes. With the weights of a task at their best for a centroid u, the task
costs

.. math::
   q_t(u) = \tfrac12 \lVert \tilde b_t - \tilde A_t u \rVert^2 + \kappa \lVert u \rVert^2 + \text{rest}_t, \qquad
   \kappa = \frac{\rho_1 \rho_2}{\rho_1 + \rho_2},

where the rows of the task have been divided by :math:`\sqrt{1 + \sigma^2 / 2(\rho_1 + \rho_2)}`, with :math:`\sigma`
their singular values, and those of :math:`\tilde A_t` multiplied by :math:`\rho_1 / (\rho_1 + \rho_2)`. What remains
is to cluster tasks by ridge regressions: one per cluster, on the rows of all its tasks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky, solve_triangular
from torch import Tensor

from companion.solvers._threads import threads_for
from companion.solvers.alternating import History, alternate
from companion.solvers.partitions import Labels, by_appearance, random_labels, spread_seeds
from companion.solvers.problem import Problem
from companion.solvers.task_rows import Array, TaskRows

_NOISE = 1e-9  # relative to the null objective: changes that updating formulas cannot tell from zero
Mask = NDArray[np.bool_]


class Clustering(NamedTuple):
    """Labels, and the centroids that go with them."""

    labels: Labels  # (T,)
    U: Array  # (r, k)


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


class ClusterLoss:
    """The problem with its weights at their best: ridge regressions on clusters of tasks.

    Parameters
    ----------
    rows : TaskRows
    rho1, rho2 : float
        > 0.
    """

    def __init__(self, rows: TaskRows, rho1: float, rho2: float) -> None:
        rho2 = max(rho2, 1e-13 * rho1)  # below this the systems of the clusters would be singular in float64
        self.rows, self.rho = rows, rho1 + rho2
        self.share = rho1 / self.rho
        self.kappa = self.share * rho2
        root = 1 / np.sqrt(1 + rows.squares / (2 * self.rho))
        self.A, self.b = self.share * root[:, None] * rows.A, root * rows.b  # (N, r), (N,)
        self.K = None if rows.basis is None else self.A @ self.A.T  # (N, N), where N <= r
        self.alone, self.W_alone = rows.ridge(rho2)  # a task that is its own cluster
        self.scale = float(rows.null_losses().sum())

    def costs(self, U: Array) -> Array:
        """(T, k) costs of every task with each of the centroids ``U (r, k)``."""
        residual = self.b[:, None] - self.A @ U
        return self.rows.rest[:, None] + self.rows.sums(residual**2) / 2 + self.kappa * (U**2).sum(0)

    def centroid(self, inside: Mask) -> Array:
        """(r,) best centroid for the tasks that ``inside (T,)`` marks; zero for none."""
        return self._system(inside, int(inside.sum())).u if inside.any() else np.zeros(self.A.shape[1])

    def centroids(self, labels: Labels, k: int) -> Clustering:
        """The labels with the best centroids for them."""
        return Clustering(labels, np.stack([self.centroid(labels == c) for c in range(k)], axis=1))

    def value(self, inside: Mask) -> float:
        """Least cost of the cluster of the tasks that ``inside (T,)`` marks."""
        u, mine = self.centroid(inside), inside[self.rows.task]
        misfit = ((self.b[mine] - self.A[mine] @ u) ** 2).sum() / 2
        return float(self.rows.rest[inside].sum() + misfit + self.kappa * inside.sum() * (u @ u))

    def changes(self, inside: Mask) -> Array:
        """(T,) change of the cluster's value as each task by itself joins it, or leaves it if it is inside.

        All T from one factorisation of the cluster's system for those that join and one for those that leave, the way
        leave-one-out residuals follow from leverages.
        """
        n, out = int(inside.sum()), np.full(self.rows.n_tasks, -self.value(inside))
        for sign, wanted in ((1, ~inside), (-1, inside)):
            if n + sign == 0:
                continue  # its only task leaves: nothing remains
            system = self._system(inside, n + sign)
            residual = self.b - self.A @ system.u
            cost = self.rows.rest[inside].sum() + (residual[inside[self.rows.task]] ** 2).sum() / 2
            cost += self.kappa * (n + sign) * (system.u @ system.u)
            out[wanted] += (cost + sign * (self.rows.rest + self._misfits(system, residual, sign, wanted)))[wanted]
        return out

    def _misfits(self, system: _Primal | _Dual, residual: Array, sign: int, wanted: Mask) -> Array:
        r"""(T,) :math:`\tfrac12 e_t^\top (I \pm A_t M^{-1} A_t^\top)^{-1} e_t` for the residuals of the tasks wanted."""
        out = np.zeros(self.rows.n_tasks)
        for tasks, rows in self.rows.blocks:
            keep = wanted[tasks]
            if keep.any():
                e = residual[rows[keep]]
                matrix = np.eye(rows.shape[1]) + sign * system.leverage(rows[keep])
                out[tasks[keep]] = (e * np.linalg.solve(matrix, e[:, :, None])[:, :, 0]).sum(1) / 2
        return out

    def _system(self, inside: Mask, n: int) -> _Primal | _Dual:
        """Ridge regression on the rows of the tasks inside, with the ridge term of a cluster of n tasks."""
        chosen, shift = np.flatnonzero(inside[self.rows.task]), 2 * self.kappa * n
        if self.K is None:
            return _Primal(self.A, self.b, chosen, shift)
        return _Dual(self.A, self.b, chosen, shift, self.K)

    def weights(self, clustering: Clustering) -> Array:
        """(r, T) best weights given everybody's centroid."""
        pulled = self.share * clustering.U[:, clustering.labels]
        residual = self.rows.b - np.einsum("ij,ij->i", self.rows.A, pulled.T[self.rows.task])
        dual = residual / (self.rows.squares + 2 * self.rho)
        return pulled + self.rows.sums(self.rows.A * dual[:, None]).T


class _Primal:
    r"""The system :math:`M = A_c^\top A_c + \lambda I` of the rows chosen, factored, and its solution u."""

    def __init__(self, A: Array, b: Array, chosen: Labels, shift: float) -> None:
        self.A, rows = A, A[chosen]
        self.L = cholesky(rows.T @ rows + shift * np.eye(A.shape[1]), lower=True)
        self.u = cho_solve((self.L, True), rows.T @ b[chosen])

    @cached_property
    def _half(self) -> Array:
        return solve_triangular(self.L, self.A.T, lower=True).T  # (N, r)

    def leverage(self, rows: Labels) -> Array:
        r"""(m, n, n) matrices :math:`A_t M^{-1} A_t^\top` for the ``rows (m, n)`` of m tasks."""
        half = self._half[rows]
        return half @ half.transpose(0, 2, 1)


class _Dual:
    r"""The same from :math:`K = A A^\top`, for fewer rows than columns.

    :math:`M^{-1} = (I - A_c^\top (K_{cc} + \lambda I)^{-1} A_c) / \lambda`.
    """

    def __init__(self, A: Array, b: Array, chosen: Labels, shift: float, K: Array) -> None:
        self.shift, self.K, self.chosen = shift, K, chosen
        self.L = cholesky(K[np.ix_(chosen, chosen)] + shift * np.eye(len(chosen)), lower=True)
        self.u = A[chosen].T @ cho_solve((self.L, True), b[chosen])

    @cached_property
    def _half(self) -> Array:
        return solve_triangular(self.L, self.K[self.chosen], lower=True).T  # (N, rows chosen)

    def leverage(self, rows: Labels) -> Array:
        r"""(m, n, n) matrices :math:`A_t M^{-1} A_t^\top` for the ``rows (m, n)`` of m tasks."""
        half = self._half[rows]
        return (self.K[rows[:, :, None], rows[:, None, :]] - half @ half.transpose(0, 2, 1)) / self.shift


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
    # The Hessian is at least 2 (rho1 + rho2) within clusters, and 2 rho2 for their means, where the rho1 term vanishes.
    slope = -problem.descent(point)
    mean = slope @ (members / members.sum(0))
    within = slope - mean @ members.T + 2 * (rho1 + rho2) * away
    mean = mean + 2 * rho2 * centroids
    gap = float((within**2).sum()) / (4 * (rho1 + rho2)) + float((mean**2 * members.sum(0)).sum()) / (4 * rho2)
    return HardClusters(labels, W, centroids, objective, problem.null_objective, gain, gap, n_iter)
