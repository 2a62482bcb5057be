r"""Clusters of tasks around centroids as ridge regressions: one per cluster, on the rows of all its tasks.

.. math::
   q_t(u) = \min_w \; F_t(w) + \rho_1 \lVert w - u \rVert^2 + \rho_2 \lVert w \rVert^2
   = \tfrac12 \lVert \tilde b_t - \tilde A_t u \rVert^2 + \kappa \lVert u \rVert^2 + \text{rest}_t, \qquad
   \kappa = \frac{\rho_1 \rho_2}{\rho_1 + \rho_2}

is what a task costs with centroid u. The rows of the task have been divided by :math:`\sqrt{1 + \sigma^2 / 2 (\rho_1 +
\rho_2)}`, with :math:`\sigma` their singular values; those of :math:`\tilde A_t` are also multiplied by :math:`\rho_1 /
(\rho_1 + \rho_2)`.
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky, solve_triangular

from companion.solvers.partitions import Labels
from companion.solvers.task_rows import Array, TaskRows

Mask = NDArray[np.bool_]


class Clustering(NamedTuple):
    """Labels, and the centroids that go with them."""

    labels: Labels  # (T,)
    U: Array  # (r, k)


class ClusterLoss:
    """The problem with its weights at their best: ridge regressions on clusters of tasks.

    Parameters
    ----------
    rows : TaskRows
    rho1, rho2 : float
        > 0.
    """

    def __init__(self, rows: TaskRows, rho1: float, rho2: float) -> None:
        largest = float((rows.squares / (1 + rows.squares / (2 * (rho1 + rho2)))).max())
        rho2 = max(rho2, 1e-13 * largest)  # below this the systems of the clusters would be singular in float64
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
            if n + sign < 1:
                continue  # nobody remains, or nobody was there
            system = self._system(inside, n + sign)
            residual = self.b - self.A @ system.u
            cost = self.rows.rest[inside].sum() + (residual[inside[self.rows.task]] ** 2).sum() / 2
            cost += self.kappa * (n + sign) * (system.u @ system.u)
            out[wanted] += (cost + sign * (self.rows.rest + self._misfits(system, residual, sign, wanted)))[wanted]
        return out

    def _misfits(self, system: _Primal | _Dual, residual: Array, sign: int, wanted: Mask) -> Array:
        r"""(T,) values of :math:`\tfrac12 e_t^\top (I \pm A_t M^{-1} A_t^\top)^{-1} e_t` for the residuals of the tasks
        wanted.
        """
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
