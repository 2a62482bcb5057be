r"""Block coordinate descent with Anderson acceleration, for squared loss and row-wise penalties, on one working set.

.. math:: \min_W \tfrac12 \sum_t \lVert b_t - A_t w_t \rVert^2 + \tfrac{l_2}{2} \lVert W \rVert_F^2 + \sum_j h(W_{j,:})

Four forms of the same sweep, chosen by shape: from second moments or from residuals, with designs that the tasks share
or not. Working sets only grow, so moments once computed are kept. Arrays here are NumPy float64: this is the CPU path.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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


class Form(Protocol):
    """A quadratic over m rows, with a state (correlations or residuals) that is affine in ``W (m, T)``."""

    W: Array
    state: Array

    def sweep(self, rows: tuple[float, float, float], W_kept: Array, state_kept: Array) -> None: ...

    def loss(self, W: Array, state: Array) -> float: ...

    def correlations(self) -> Array: ...

    def residual_energy(self) -> float: ...


class _Moments:
    """Forms whose state is the correlations ``C = c - G W - l2 W``."""

    def __init__(self, G: Array, c: Array, yty: float, l2: float, W: Array) -> None:
        self.G, self.c, self.yty, self.l2, self.W = G, c, yty, l2, W
        self.state = c - self._product(W) - l2 * W

    def _product(self, W: Array) -> Array:
        raise NotImplementedError

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

    def __init__(self, A: Array, y: Array, l2: float, W: Array) -> None:
        self.A, self.l2, self.W = A, l2, W
        self.state = y - self._margins(W)

    def _margins(self, W: Array) -> Array:
        raise NotImplementedError

    def loss(self, W: Array, state: Array) -> float:
        return 0.5 * float(np.vdot(state, state)) + self.l2 / 2 * float(np.vdot(W, W))

    def residual_energy(self) -> float:
        return 2 * self.loss(self.W, self.state)


class SharedColumns(_Columns):
    """Columns ``A (m, n)`` that all tasks share, residuals ``(n, T)``."""

    def __init__(self, A: Array, y: Array, l2: float, W: Array) -> None:
        super().__init__(A, y, l2, W)
        m, size = len(A), kernels.BLOCK
        self._corners = np.zeros((m, size))
        for a in range(0, m, size):
            block = A[a : a + size]
            self._corners[a : a + size, : len(block)] = block @ block.T
        self._L = np.repeat(np.einsum("jn,jn->j", A, A)[:, None] + l2, W.shape[1], axis=1)

    def _margins(self, W: Array) -> Array:
        return self.A.T @ W

    def correlations(self) -> Array:
        return self.A @ self.state - self.l2 * self.W

    def sweep(self, rows: tuple[float, float, float], W_kept: Array, state_kept: Array) -> None:
        kernels.sweep_shared_residuals(
            self.A, self.W, self.state, self._L, self._corners, self.l2, *rows, W_kept, state_kept
        )


class TaskColumns(_Columns):
    """Columns ``A (m, N)`` of tasks behind one another, residuals ``(N,)``."""

    def __init__(self, A: Array, offsets: NDArray[np.int64], y: Array, l2: float, W: Array) -> None:
        self.offsets = offsets
        super().__init__(A, y, l2, W)
        self._L = np.add.reduceat(A * A, offsets[:-1], axis=1) + l2

    def _margins(self, W: Array) -> Array:
        spread = np.repeat(W, np.diff(self.offsets), axis=1)  # (m, N)
        return np.einsum("jn,jn->n", self.A, spread)

    def correlations(self) -> Array:
        return np.add.reduceat(self.A * self.state, self.offsets[:-1], axis=1) - self.l2 * self.W

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
    return TaskColumns(np.concatenate(As).T.copy(), offsets, np.concatenate(ys), l2, W)


def descend(form: Form, penalty: RowPenalty, gap: float, max_sweeps: int) -> int:
    """Sweep until the duality gap on the working set is at most ``gap``; returns the sweeps used.

    After every few sweeps, Anderson extrapolation (Bertrand and Massias 2021) proposes the combination of the last
    iterates whose differences nearly cancel; it is taken if it lowers the objective.
    """
    with one_thread():
        return _descend(form, penalty, gap, max_sweeps)


def _descend(form: Form, penalty: RowPenalty, gap: float, max_sweeps: int) -> int:
    rows = penalty.rows
    W_kept = np.empty((SWEEPS + 1, *form.W.shape))
    state_kept = np.empty((SWEEPS + 1, *form.state.shape))
    for sweeps in range(SWEEPS, max_sweeps + SWEEPS, SWEEPS):
        W_kept[0], state_kept[0] = form.W, form.state
        form.sweep(rows, W_kept[1:], state_kept[1:])
        _extrapolate(form, penalty, W_kept, state_kept)
        if _gap(form, penalty) <= gap or np.array_equal(W_kept[-1], W_kept[-2]):
            return sweeps
    return max_sweeps


def _extrapolate(form: Form, penalty: RowPenalty, W_kept: Array, state_kept: Array) -> None:
    weights = kernels.extrapolation_weights(W_kept.reshape(SWEEPS + 1, -1))
    W = (weights @ W_kept[1:].reshape(SWEEPS, -1)).reshape(form.W.shape)
    state = (weights @ state_kept[1:].reshape(SWEEPS, -1)).reshape(form.state.shape)
    now = form.loss(form.W, form.state) + float(penalty.value(torch.from_numpy(form.W)))
    if form.loss(W, state) + float(penalty.value(torch.from_numpy(W))) < now:
        form.W[...], form.state[...] = W, state


def _gap(form: Form, penalty: RowPenalty) -> float:
    """Duality gap of the restricted problem; see :class:`~companion.solvers.problem.Moments` for the formula."""
    C, W = torch.from_numpy(form.correlations()), torch.from_numpy(form.W)
    s = penalty.dual_scale(C)
    return float(penalty.value(W) - s * (W * C).sum()) + (1 - s) ** 2 / 2 * form.residual_energy()
