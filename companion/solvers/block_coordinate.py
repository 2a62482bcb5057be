r"""Block coordinate descent with Anderson acceleration, for squared loss and row-wise penalties, on one working set.

.. math:: \min_W \tfrac12 \sum_t \lVert b_t - A_t w_t \rVert^2 + \tfrac{l_2}{2} \lVert W \rVert_F^2 + \sum_j h(W_{j,:})

Four forms of the same sweep, chosen by shape: from second moments or from residuals, with designs that the tasks share
or not. Working sets only grow, so moments once computed are kept. Arrays here are NumPy float64: this is the CPU path.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from companion.solvers import _kernels as kernels
from companion.solvers._threads import one_thread
from companion.solvers.screening import RowPenalty

Array = NDArray[np.float64]
SWEEPS = 5  # between two extrapolations
_NEWTON_ROWS = 64  # most rows for which a Newton step, cubic in them, is worth its cost


class Form(Protocol):
    """A quadratic over m rows, with a state (correlations or residuals) that is affine in ``W (m, T)``."""

    W: Array
    state: Array

    def sweep(self, rows: tuple[float, float, float], W_kept: Array, state_kept: Array) -> None: ...

    def loss(self, W: Array, state: Array) -> float: ...

    def correlations(self) -> Array: ...

    def residual_energy(self) -> float: ...


class _Moments(ABC):
    """Forms whose state is the correlations ``C = c - G W - l2 W``."""

    def __init__(self, G: Array, c: Array, yty: float, l2: float, W: Array) -> None:
        self.G, self.c, self.yty, self.l2, self.W = G, c, yty, l2, W
        self.state = c - self._product(W) - l2 * W

    @abstractmethod
    def _product(self, W: Array) -> Array:
        """``G W`` for every task."""

    def loss(self, W: Array, state: Array) -> float:
        """Data term at ``W`` less the constant ``yty / 2``."""
        return -0.5 * float(np.vdot(W, self.c + state))

    def correlations(self) -> Array:
        return self.state

    def residual_energy(self) -> float:
        """``||r||^2 + l2 ||W||^2``."""
        return self.yty - float(np.vdot(self.W, self.c + self.state))


class TaskMoments(_Moments):
    """``G (m, m, T)``: cheap sweeps where the working set is smaller than the tasks."""

    def _product(self, W: Array) -> Array:
        return np.einsum("jkt,kt->jt", self.G, W)

    def sweep(self, rows: tuple[float, float, float], W_kept: Array, state_kept: Array) -> None:
        L = np.ascontiguousarray(np.einsum("jjt->jt", self.G)) + self.l2
        kernels.sweep_task_moments(self.G, self.W, self.state, L, self.l2, *rows, W_kept, state_kept)


class SharedMoments(_Moments):
    """``G (m, m)``, one matrix for all tasks."""

    def _product(self, W: Array) -> Array:
        return self.G @ W

    def sweep(self, rows: tuple[float, float, float], W_kept: Array, state_kept: Array) -> None:
        L = np.repeat(np.diag(self.G)[:, None] + self.l2, self.W.shape[1], axis=1)
        kernels.sweep_shared_moments(self.G, self.W, self.state, L, self.l2, *rows, W_kept, state_kept)


class _Columns:
    """Forms whose state is the residuals; for working sets larger than the number of rows."""

    def __init__(self, A: Array, residuals: Array, l2: float, W: Array) -> None:
        self.A, self.l2, self.W, self.state = A, l2, W, residuals

    def loss(self, W: Array, state: Array) -> float:
        return 0.5 * float(np.vdot(state, state)) + self.l2 / 2 * float(np.vdot(W, W))

    def residual_energy(self) -> float:
        return 2 * self.loss(self.W, self.state)


class SharedColumns(_Columns):
    """Columns ``A (m, n)`` that all tasks share, residuals ``(n, T)``, moments inside every block of columns."""

    def __init__(self, A: Array, residuals: Array, l2: float, W: Array, corners: Array) -> None:
        super().__init__(A, residuals, l2, W)
        self.corners = corners
        squares = corners[np.arange(len(A)), np.arange(len(A)) % kernels.BLOCK]
        self._L = np.repeat(squares[:, None] + l2, W.shape[1], axis=1)

    def correlations(self) -> Array:
        return self.A @ self.state - self.l2 * self.W

    def sweep(self, rows: tuple[float, float, float], W_kept: Array, state_kept: Array) -> None:
        kernels.sweep_shared_residuals(
            self.A, self.W, self.state, self._L, self.corners, self.l2, *rows, W_kept, state_kept
        )


def block_corners(A: Array, known: Array) -> Array:
    """(m, BLOCK) moments of the columns ``A (m, n)`` with those of their block; ``known`` holds those of the first."""
    m, size = len(A), kernels.BLOCK
    corners = np.zeros((m, size))
    done = len(known) // size * size  # the last block known may have grown
    corners[:done] = known[:done].reshape(done, size)
    for a in range(done, m, size):
        block = A[a : a + size]
        corners[a : a + size, : len(block)] = block @ block.T
    return corners


class TaskColumns(_Columns):
    """Columns ``A (m, N)`` of tasks behind one another, residuals ``(N,)``."""

    def __init__(self, A: Array, offsets: NDArray[np.int64], residuals: Array, l2: float, W: Array) -> None:
        super().__init__(A, residuals, l2, W)
        self.offsets, self._slices = offsets, [slice(a, b) for a, b in pairwise(offsets.tolist())]
        # Task by task: A may be as large as the data, and nothing of its size is to be made beside it.
        self._L = np.stack([np.einsum("jn,jn->j", A[:, s], A[:, s]) for s in self._slices], axis=1) + l2

    def correlations(self) -> Array:
        C = np.stack([self.A[:, s] @ self.state[s] for s in self._slices], axis=1)
        return C - self.l2 * self.W

    def sweep(self, rows: tuple[float, float, float], W_kept: Array, state_kept: Array) -> None:
        kernels.sweep_task_residuals(
            self.A, self.offsets, self.W, self.state, self._L, self.l2, *rows, W_kept, state_kept
        )


def task_form(blocks: Iterable[Sequence[Tensor]], centre: bool, n_features: int, l2: float, W: Array) -> Form:
    """The form for designs that differ by task, from ``(X_t (n_t, m), targets (n_t,), row weights (n_t,))`` per task.

    Weights go into the data; with ``centre`` the weighted means are taken out, which eliminates free intercepts.
    Second moments where they are smaller than the columns, else columns.
    """
    As, ys = [], []
    for X, z, h in blocks:
        root = h.sqrt()
        if centre:
            X, z = X - (h @ X) / h.sum(), z - (h @ z) / h.sum()
        As.append((root[:, None] * X).numpy())
        ys.append((root * z).numpy())
    m, T = n_features, len(As)
    n_rows = sum(len(y) for y in ys)
    if m * T <= 2 * n_rows:
        G, c = np.empty((m, m, T)), np.empty((m, T))
        for t, (A, y) in enumerate(zip(As, ys, strict=True)):
            G[:, :, t], c[:, t] = A.T @ A, A.T @ y
        return TaskMoments(G, c, sum(float(y @ y) for y in ys), l2, W)
    offsets = np.concatenate([[0], np.cumsum([len(y) for y in ys])])
    residuals = np.concatenate([y - A @ w for A, y, w in zip(As, ys, W.T, strict=True)])
    return TaskColumns(np.concatenate(As).T.copy(), offsets, residuals, l2, W)


def descend(form: Form, penalty: RowPenalty, gap: float, max_sweeps: int) -> int:
    """Sweep until the duality gap on the working set is at most ``gap``; returns the sweeps used.

    After every few sweeps comes a jump, taken if it lowers the objective: Anderson extrapolation (Bertrand and Massias
    2021), the combination of the last iterates whose differences nearly cancel. Where ten sweeps have not been enough,
    the l1/l2 norm on second moments of few features gets Newton steps instead.
    """
    with one_thread():
        return _descend(form, penalty, gap, max_sweeps)


def _descend(form: Form, penalty: RowPenalty, gap: float, max_sweeps: int) -> int:
    block, sparse, q = penalty.rows
    newton = q == 2 and sparse == np.inf and len(form.W) <= _NEWTON_ROWS
    W_kept = np.empty((SWEEPS + 1, *form.W.shape))
    state_kept = np.empty((SWEEPS + 1, *form.state.shape))
    sweeps, K = 0, SWEEPS
    while sweeps < max_sweeps:
        K = min(K, max_sweeps - sweeps)
        W_kept[0], state_kept[0] = form.W, form.state
        form.sweep((block, sparse, q), W_kept[1 : K + 1], state_kept[1 : K + 1])
        sweeps += K
        if newton and isinstance(form, TaskMoments) and sweeps > 2 * SWEEPS and _newton(form, block):
            K = 1
        else:
            _extrapolate(form, penalty, W_kept[: K + 1], state_kept[: K + 1])
            K = SWEEPS
        if _gap(form, penalty) <= gap or np.array_equal(form.W, W_kept[0]):
            break
    return sweeps


def _newton(form: TaskMoments, block: float) -> bool:
    r"""One projected Newton step for the l1/l2 norm; whether it lowered the objective.

    Since :math:`\lVert w \rVert = \min_\eta \lVert w \rVert^2 / 2 \eta + \eta / 2`, this is ridge regression with a
    penalty per row. With W solved for, what remains is smooth and convex in m numbers eta >= 0:

    .. math:: \phi(\eta) = \tfrac12 y^\top y - \tfrac12 \langle c, W(\eta) \rangle + \tfrac{\alpha}{2} \sum_j \eta_j,
       \qquad \partial \phi / \partial \eta_j = (\alpha^2 - \lVert C_j \rVert^2) / 2 \alpha
    """
    eta, m = np.linalg.norm(form.W, axis=1), len(form.W)
    curvature = np.empty((m, m))
    C = kernels.reweighted_ridge(form.G, form.c, form.l2, block, eta, curvature)
    slope = (block**2 - (C**2).sum(axis=1)) / (2 * block)
    direction = _bounded_step(curvature, slope, eta)
    value = form.loss(form.W, form.state) + block * eta.sum()
    for step in (1.0, 0.5, 0.25, 0.1, 0.03):
        trial = np.maximum(eta + step * direction, 0.0)
        C = kernels.reweighted_ridge(form.G, form.c, form.l2, block, trial, np.empty((0, m)))
        W = (trial / block)[:, None] * C
        if form.loss(W, C) + block * float(np.linalg.norm(W, axis=1).sum()) < value:
            form.W[...], form.state[...] = W, C
            return True
    return False


def _bounded_step(curvature: Array, slope: Array, eta: Array) -> Array:
    """Newton direction for ``eta >= 0``: entries that it would take below zero go to zero, and the others anew."""
    direction = np.zeros_like(eta)
    free = (eta > 0) | (slope < 0)
    damping = 1e-12 * curvature.trace() + 1e-300  # features may be copies of each other
    for _ in range(len(eta)):
        system = curvature[np.ix_(free, free)]
        system[np.diag_indices(len(system))] += damping
        direction[free] = -np.linalg.solve(system, slope[free] + curvature[np.ix_(free, ~free)] @ direction[~free])
        below = free & (eta + direction < 0)
        if not below.any():
            break
        direction[below], free = -eta[below], free & ~below
    return direction


def _extrapolate(form: Form, penalty: RowPenalty, W_kept: Array, state_kept: Array) -> None:
    K = len(W_kept) - 1
    weights = kernels.extrapolation_weights(W_kept.reshape(K + 1, -1))
    W = (weights @ W_kept[1:].reshape(K, -1)).reshape(form.W.shape)
    state = (weights @ state_kept[1:].reshape(K, -1)).reshape(form.state.shape)
    _accept(form, penalty, W, state)


def _accept(form: Form, penalty: RowPenalty, W: Array, state: Array) -> bool:
    """Go to ``W`` if the objective is lower there."""
    now = form.loss(form.W, form.state) + float(penalty.value(torch.from_numpy(form.W)))
    lower = form.loss(W, state) + float(penalty.value(torch.from_numpy(W))) < now
    if lower:
        form.W[...], form.state[...] = W, state
    return lower


def _gap(form: Form, penalty: RowPenalty) -> float:
    """Duality gap of the restricted problem; see :class:`~companion.solvers.problem.Moments` for the formula."""
    C, W = torch.from_numpy(form.correlations()), torch.from_numpy(form.W)
    s = penalty.dual_scale(C)
    return float(penalty.value(W) - s * (W * C).sum()) + (1 - s) ** 2 / 2 * form.residual_energy()
