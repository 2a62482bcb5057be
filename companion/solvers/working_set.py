"""Working sets: solve for the few features that matter, and prove that the others do not."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from companion.solvers.block_coordinate import (
    Array,
    Form,
    SharedColumns,
    SharedMoments,
    TaskColumns,
    TaskMoments,
    block_corners,
    descend,
    task_form,
)
from companion.solvers.duality import Certificate
from companion.solvers.problem import Point, Problem
from companion.solvers.prox_newton import prox_newton
from companion.solvers.rows import RaggedRows, SharedRows
from companion.solvers.screening import RowPenalty, row_dual_norms

_FIRST = 128  # rows of the first working set
_ALL = 64  # with so few features, the working set is all of them


def working_set(
    problem: Problem, penalty: RowPenalty, tol: float, max_iter: int, start: Point | None = None
) -> tuple[Point, Certificate, int]:
    r"""Minimise the problem's loss plus a row-wise penalty to an absolute duality gap of ``tol``.

    Repeats: correlate the residuals with all features, certify, add the features that come nearest to violating the
    dual constraint, solve on the enlarged set. CPU and float64 only.

    Parameters
    ----------
    problem : Problem
    penalty : penalty with ``rows``
    max_iter : int
        Most sweeps (squared loss) or Newton steps (other losses) in all.
    start : Point, optional
        Where to start, ``problem.at(W)``; at zero by default.

    Returns
    -------
    best point found, its Certificate, sweeps or steps used
    """
    point = problem.at(problem.zero()) if start is None else start
    subset = _Quadratic(problem) if _has_forms(problem) else _General(problem)
    best, best_certificate, used, idle = point, None, 0, 0
    while True:
        point = problem.with_descent(point)
        certificate = problem.certify(penalty, point)
        if best_certificate is None or certificate.gap < best_certificate.gap:
            best, best_certificate, idle = point, certificate, -1
        idle += 1
        if certificate.gap <= tol or used >= max_iter or idle == 3:  # three times no better: rounding allows no more
            return best, best_certificate, used
        active = (point.W != 0).any(1)
        grown = subset.grow(_candidates(penalty, problem.descent(point), active))
        idle = 0 if grown else idle
        target = _inner_target(problem, len(subset.chosen), tol, certificate.gap)
        point, steps = subset.solve(penalty, point, min(target, 0.3 * certificate.gap), max_iter - used)
        used += steps


def _inner_target(problem: Problem, m: int, tol: float, gap: float) -> float:
    """Gap to reach on a working set of m features.

    Where sweeps cost much less than a pass over all features, they are not to be what is missing in the end; else a
    tenth of the gap shows well enough which features matter.
    """
    n, d = problem.y.shape[0], problem.n_features
    if m == d:
        return 0.9 * tol
    cheap = 20 * m * min(m, n) < n * d
    return 0.3 * tol if cheap else max(0.3 * tol, 0.1 * gap)


def _has_forms(problem: Problem) -> bool:
    shared = isinstance(problem.rows, SharedRows)
    return problem.is_quadratic and (problem.has_common_weight if shared else isinstance(problem.rows, RaggedRows))


def _candidates(penalty: RowPenalty, C: Tensor, active: Tensor) -> Tensor:
    """Features in use and those that violate the dual constraint most, at most as many of these as of the former."""
    d, norms = len(C), row_dual_norms(penalty.rows, C)
    n_active, n_violating = int(active.sum()), int(((norms > 1) & ~active).sum())
    wanted = d if d <= _ALL else min(d, max(_FIRST, n_active + min(n_active, n_violating)))
    return torch.where(active, torch.inf, norms).topk(wanted).indices


class _Subset:
    """The working set: it only grows, so that what was computed for it stays of use."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.chosen = torch.zeros(0, dtype=torch.int64)

    def grow(self, candidates: Tensor) -> bool:
        """Add the candidates that are new; whether there were any."""
        new = candidates[~torch.isin(candidates, self.chosen)]
        self.chosen = torch.cat([self.chosen, new])
        return len(new) > 0

    def _scatter(self, W_subset: Tensor) -> Tensor:
        W = self.problem.zero()
        W[self.chosen] = W_subset
        return W


class _General(_Subset):
    """Any loss: proximal Newton on the chosen features."""

    def solve(self, penalty: RowPenalty, start: Point, gap: float, max_iter: int) -> tuple[Point, int]:
        part = self.problem.columns(self.chosen)

        def quadratic(z: Tensor, h: Tensor, W: Tensor, gap: float) -> Tensor:
            form = task_form(part.rows.blocks(z, h), part.free, part.n_features, part.l2, W.numpy().copy())
            descend(form, penalty, gap, 10_000)
            return torch.from_numpy(form.W)

        point, _, steps = prox_newton(part, penalty, quadratic, gap, max_iter, start.W[self.chosen])
        return self.problem.at(self._scatter(point.W)), steps


class _Quadratic(_Subset):
    """Squared loss: coordinate descent on second moments or columns that are kept as the set grows.

    Rows are multiplied by the roots of their weights when a column enters the set.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.shared = isinstance(problem.rows, SharedRows)
        self._offsets = problem.rows.offsets if isinstance(problem.rows, RaggedRows) else np.zeros(1, dtype=np.int64)
        self._root = problem.v[:1, :1].sqrt().numpy() if self.shared else problem.v.sqrt().numpy()
        self._y = self._root * problem.y.numpy()
        self._yty = float(np.vdot(self._y, self._y))
        self._A = np.empty((0, len(self._y)))  # (m, n) columns of the working set, or (m, N)
        self._corners = np.empty((0, 0))
        self._G = np.empty((0, 0)) if self.shared else np.empty((0, 0, problem.n_tasks))
        self._c = np.empty((0, problem.n_tasks))

    def solve(self, penalty: RowPenalty, start: Point, gap: float, max_iter: int) -> tuple[Point, int]:
        form = self._form(start)
        sweeps = descend(form, penalty, gap, max_iter)
        margins = torch.from_numpy(self._margins(form.W))
        return self.problem.with_margins(self._scatter(torch.from_numpy(form.W)), margins), sweeps

    def _margins(self, W: Array) -> Array:
        if self.shared:
            return (self._A.T @ W) / self._root
        out = np.empty(len(self._y))
        for t, (a, b) in enumerate(self._slices()):
            np.dot(W[:, t], self._A[:, a:b], out=out[a:b])
        return out / self._root

    def _slices(self) -> Iterator[tuple[int, int]]:
        return pairwise(self._offsets.tolist())

    def _form(self, start: Point) -> Form:
        m, l2, W = len(self.chosen), self.problem.l2, start.W[self.chosen].numpy()
        self._extend_columns()
        if self.shared:
            if m > len(self._y):
                self._corners = block_corners(self._A, self._corners)
                return SharedColumns(self._A, self._residuals(start), l2, W, self._corners)
            self._extend_shared_moments()
            return SharedMoments(self._G, self._c, self._yty, l2, W)
        if m * self.problem.n_tasks > 2 * len(self._y):
            return TaskColumns(self._A, self._offsets, self._residuals(start), l2, W)
        self._extend_task_moments()
        return TaskMoments(self._G, self._c, self._yty, l2, W)

    def _residuals(self, point: Point) -> Array:
        return self._y - self._root * point.margin.numpy()

    def _extend_columns(self) -> None:
        new = self.chosen[len(self._A) :]
        if len(new):
            root = self._root[0, 0] if self.shared else self._root
            self._A = np.concatenate([self._A, _gather(self.problem.rows.X.numpy(), new.numpy()) * root])

    def _extend_shared_moments(self) -> None:
        old, m = len(self._G), len(self._A)
        if old == m:
            return
        G = np.empty((m, m))
        G[:old, :old] = self._G
        G[old:] = self._A[old:] @ self._A.T
        G[:old, old:] = G[old:, :old].T
        self._G, self._c = G, self._A @ self._y

    def _extend_task_moments(self) -> None:
        old, m, T = len(self._G), len(self._A), self.problem.n_tasks
        if old == m:
            return
        G, c = np.empty((m, m, T)), np.empty((m, T))
        G[:old, :old] = self._G
        for t, (a, b) in enumerate(self._slices()):
            A = self._A[:, a:b]
            new = A[old:] @ A.T
            G[old:, :, t] = new
            G[:old, old:, t] = new[:, :old].T
            c[:, t] = A @ self._y[a:b]
        self._G, self._c = G, c


def _gather(X: Array, columns: Array) -> Array:
    """(m, n) columns of ``X (n, d)``, read along the order in which X lies in memory."""
    return X.T[columns] if X.flags.f_contiguous else X[:, columns].T
