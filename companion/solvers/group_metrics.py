r"""Where to look for disjoint groups of tasks: alternation between groups with weights, and metrics of the groups.

.. math:: \min_{c, W, D} \; F(W) + \gamma \sum_g \operatorname{tr} D_g^{-1} (W_g W_g^\top + \epsilon I)

Columns of one group form :math:`W_g`; the metrics are positive definite with trace one. As in feature learning, eps
keeps them invertible, and it smooths the search: a large eps makes it easy to change groups, a small one is exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from companion.solvers.alternating import History, alternate
from companion.solvers.partitions import Labels, by_appearance, random_labels, spread_seeds
from companion.solvers.task_rows import Array, TaskRows

_EPS = (1.0, 0.1, 0.01)  # perturbations, in units of the mean squared weight of single-task ridge regression
_MOST_TASKS = 60  # in the starts that are followed beyond the first perturbation, at least three
_TOL, _ROUNDS = 1e-5, 200


class GroupMetric(NamedTuple):
    r"""The metric :math:`D = (W W^\top + \epsilon I)^{1/2}`, divided by its trace: low rank plus a multiple of I."""

    U: Array  # (r, p) orthonormal
    roots: Array  # (p,) eigenvalues before division
    floor: float  # all other eigenvalues
    trace: float

    @classmethod
    def of(cls, W: Array, eps: float) -> GroupMetric:
        """For the weights ``W (r, m)`` of the m >= 0 tasks of a group, and eps > 0."""
        U, s, _ = np.linalg.svd(W, full_matrices=False)
        roots, floor = np.sqrt(s**2 + eps), float(np.sqrt(eps))
        return cls(U, roots, floor, float(roots.sum()) + (len(W) - len(s)) * floor)

    def times(self, V: Array) -> Array:
        """``D V`` for ``V (r, m)``."""
        return (self.U @ ((self.roots - self.floor)[:, None] * (self.U.T @ V)) + self.floor * V) / self.trace

    def squares(self, W: Array) -> Array:
        r"""(m,) numbers :math:`\langle w, D^{-1} w \rangle` of the columns of ``W (r, m)``."""
        inside = self.U.T @ W
        beyond = W - self.U @ inside
        return self.trace * ((inside**2 / self.roots[:, None]).sum(0) + (beyond**2).sum(0) / self.floor)

    def inverse_trace(self) -> float:
        r""":math:`\operatorname{tr} D^{-1}`."""
        others = len(self.U) - len(self.roots)
        return self.trace * (float((1 / self.roots).sum()) + others / self.floor)

    def ridge(self, rows: TaskRows, gamma: float) -> tuple[Array, Array]:
        r"""Ridge regression of every task in this metric: least values (T,), and weights (r, T).

        :math:`\tfrac12 b^\top (I + A D A^\top / 2 \gamma)^{-1} b`, with one matrix of the order of its rows per task.
        """
        AU = rows.A @ (self.U * np.sqrt(self.roots - self.floor))
        dual = np.empty_like(rows.b)
        for _, index in rows.blocks:
            P = AU[index]
            system = P @ P.transpose(0, 2, 1) / (2 * gamma * self.trace)
            diagonal = np.arange(index.shape[1])
            system[:, diagonal, diagonal] += 1 + rows.squares[index] * (self.floor / (2 * gamma * self.trace))
            dual[index] = np.linalg.solve(system, rows.b[index][:, :, None])[:, :, 0]
        costs = rows.rest + rows.sums(rows.b * dual) / 2
        return costs, self.times(rows.sums(rows.A * dual[:, None]).T) / (2 * gamma)


class Grouping(NamedTuple):
    """Groups, the weights of the tasks, and the metrics of the groups."""

    labels: Labels  # (T,)
    W: Array  # (r, T)
    metrics: tuple[GroupMetric, ...]


def alternate_groups(
    rows: TaskRows, gamma: float, eps: float, start: Grouping, tol: float = _TOL, max_iter: int = _ROUNDS
) -> History[Grouping]:
    """Put every task where its ridge regression is cheapest, then take the best metric of every group.

    Both half-steps minimise the perturbed objective, the first over groups and weights together.
    """
    tasks = np.arange(rows.n_tasks)

    def assign(state: Grouping) -> Grouping:
        fits = [D.ridge(rows, gamma) for D in state.metrics]
        costs = np.stack([cost for cost, _ in fits])  # (G, T)
        labels = costs.argmin(0)
        labels = np.where(costs[labels, tasks] < costs[state.labels, tasks], labels, state.labels)
        return state._replace(labels=labels, W=np.stack([W for _, W in fits])[labels, :, tasks].T)

    def metrics(state: Grouping) -> Grouping:
        return with_metrics(state, eps)

    def objective(state: Grouping) -> float:
        total = float(rows.losses(state.W).sum())
        for g, D in enumerate(state.metrics):
            total += gamma * (float(D.squares(state.W[:, state.labels == g]).sum()) + eps * D.inverse_trace())
        return total

    return alternate([assign, metrics], objective, start, tol, max_iter)


def with_metrics(state: Grouping, eps: float) -> Grouping:
    """The same groups and weights with the best metrics for ``eps``."""
    metrics = (GroupMetric.of(state.W[:, state.labels == g], eps) for g in range(len(state.metrics)))
    return state._replace(metrics=tuple(metrics))


def search_groups(
    rows: TaskRows, gamma: float, n_groups: int, n_init: int, random_state: int, start: Labels | None = None
) -> list[Labels]:
    """A few good partitions from ``n_init`` starts: labels (T,) each, numbered by first appearance.

    Starts are, in turn, tasks drawn as in k-means++ whose weights give the first metrics, and random partitions. The
    alternation runs with a large eps from all of them, and goes on with smaller ones from the best that differ.

    Parameters
    ----------
    n_groups : int
        At most T.
    start : (T,) int array, optional
        Labels 0..n_groups-1 for the first start.
    """
    T, unit = rows.n_tasks, float((rows.ridge(gamma)[1] ** 2).mean())
    if unit == 0:
        return [np.zeros(T, dtype=np.int64)]
    if n_groups in (1, T):  # all together; or each alone, which is best: joining groups never lowers the objective
        return [np.arange(T) % n_groups]
    rng = np.random.default_rng(random_state)
    found: dict[bytes, tuple[float, Grouping]] = {}
    for first in _starts(rows, gamma, n_groups, n_init, _EPS[0] * unit, rng, start):
        history = alternate_groups(rows, gamma, _EPS[0] * unit, first)
        found.setdefault(by_appearance(history.state.labels).tobytes(), (history.objective[-1], history.state))
    finalists = max(3, _MOST_TASKS // T)
    best = [state for _, state in sorted(found.values(), key=lambda one: one[0])[:finalists]]
    for eps in _EPS[1:]:
        best = [alternate_groups(rows, gamma, eps * unit, with_metrics(state, eps * unit)).state for state in best]
    labels = [by_appearance(state.labels) for state in best]
    return list({one.tobytes(): one for one in labels}.values())


def _starts(
    rows: TaskRows,
    gamma: float,
    n_groups: int,
    n_init: int,
    eps: float,
    rng: np.random.Generator,
    start: Labels | None,
) -> Iterator[Grouping]:
    alone, W = rows.ridge(gamma)
    order = rows.null_losses().argsort(kind="stable")

    def fit(s: int) -> Array:
        return GroupMetric.of(W[:, s, None], eps).ridge(rows, gamma)[0]

    for number in range(n_init):
        if number == 0 and start is not None:
            labels = start
        elif number % 2 == 0:
            seeds = spread_seeds(lambda s: fit(s) - alone, order, n_groups, rng)
            labels = np.stack([fit(s) for s in seeds]).argmin(0)
        else:
            labels = random_labels(order, n_groups, rng)
        metrics = (GroupMetric.of(W[:, labels == g], eps) for g in range(n_groups))
        yield Grouping(labels, W, tuple(metrics))
