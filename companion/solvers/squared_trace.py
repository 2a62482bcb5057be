r"""A squared loss plus a squared trace norm for few tasks, solved thousands of times: FISTA in NumPy.

.. math:: \min_W \; \tfrac12 \sum_t \lVert b_t - A_t w_t \rVert^2 + \gamma \lVert W \rVert_*^2

The method is that of :func:`companion.solvers.minimise` with the penalty ``SquaredTraceNorm``; here every operation is
on small arrays, where NumPy takes a fraction of torch's time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from companion.solvers.fista import fista
from companion.solvers.task_rows import Array, TaskRows

_FEW_NUMBERS = 1 << 22  # in all second moments: 32 MiB
_TINY = np.finfo(float).tiny


class Value(NamedTuple):
    """Bounds on the optimal value, and weights that attain the upper one."""

    lower: float
    upper: float
    W: Array | None  # (r, m); None where nobody needs it any more
    n_iter: int

    @property
    def gap(self) -> float:
        return self.upper - self.lower


class SquaredTraceProblem:
    """The problems of all subsets of the tasks.

    Parameters
    ----------
    rows : TaskRows
    gamma : float
        > 0.
    """

    def __init__(self, rows: TaskRows, gamma: float) -> None:
        self.rows, self.gamma = rows, gamma
        self._curvature = np.maximum.reduceat(rows.squares, rows.offsets[:-1])  # largest eigenvalues of A'A
        self._Ab, self._bb = rows.sums(rows.A * rows.b[:, None]), rows.sums(rows.b**2)  # (T, r), (T,)
        T, r = rows.n_tasks, rows.A.shape[1]
        self._gram = None
        if T * r * r <= _FEW_NUMBERS:
            self._gram = np.stack([A.T @ A for A in self._designs(range(T))])  # (T, r, r)

    def _designs(self, tasks: Sequence[int]) -> list[Array]:
        return [self.rows.A[self.rows.offsets[t] : self.rows.offsets[t + 1]] for t in tasks]

    def solve(self, tasks: list[int], gap: float, W: Array, max_iter: int) -> Value:
        """Solve for some tasks, from ``W (r, m)`` on, until the duality gap is at most ``gap``."""
        problem = _Subset(self, tasks)
        best, (least, value) = W, problem.gap_and_value(W)

        def good_enough(W: Array) -> bool:
            nonlocal best, least, value
            now = problem.gap_and_value(W)
            if now[0] < least:
                best, (least, value) = W, now
            return now[0] <= gap

        n_iter = 0
        if least > gap:
            lipschitz = float(self._curvature[tasks].max())
            _, n_iter = fista(problem.gradient, problem.prox, lipschitz, W, good_enough, max_iter, check_every=5)
        value += float(self.rows.rest[tasks].sum())
        return Value(value - least, value, best, n_iter)


class _Subset:
    """Gradient, prox and duality gap for some of the tasks."""

    def __init__(self, whole: SquaredTraceProblem, tasks: list[int]) -> None:
        self.gamma, self._Ab, self._bb = whole.gamma, whole._Ab[tasks].T, float(whole._bb[tasks].sum())
        self._gram = None if whole._gram is None else whole._gram[tasks]
        self._designs = whole._designs(tasks) if whole._gram is None else []
        self._last: tuple[Array, float] = (np.empty(0), 0.0)  # what prox returned, and its trace norm

    def gradient(self, W: Array) -> Array:
        """(r, m) gradient of the loss."""
        if self._gram is not None:
            return (self._gram @ W.T[:, :, None])[:, :, 0].T - self._Ab
        return np.stack([A.T @ (A @ w) for A, w in zip(self._designs, W.T, strict=True)], axis=1) - self._Ab

    def gap_and_value(self, W: Array) -> tuple[float, float]:
        """Duality gap and objective, less the rest that no weights change, at ``W (r, m)``."""
        C = -self.gradient(W)
        r2, along = max(self._bb - float((W * (self._Ab + C)).sum()), 0.0), float((W * C).sum())
        norm = self._last[1] if self._last[0] is W else float(np.linalg.svd(W, compute_uv=False).sum())
        small = C @ C.T if C.shape[0] <= C.shape[1] else C.T @ C
        penalty, conjugate = self.gamma * norm**2, float(np.linalg.eigvalsh(small)[-1]) / (4 * self.gamma)
        return duality_gap(penalty, conjugate, along, r2), r2 / 2 + penalty

    def prox(self, V: Array, step: float) -> Array:
        """Lower the singular values of ``V (r, m)`` as :meth:`~companion.penalties.SquaredTraceNorm.prox` does."""
        W, norm = (
            _lower(V, 2 * self.gamma * step) if V.shape[0] >= V.shape[1] else _lower_wide(V, 2 * self.gamma * step)
        )
        self._last = W, norm
        return W


def _lower_wide(V: Array, c: float) -> tuple[Array, float]:
    W, norm = _lower(V.T, c)
    return W.T, norm


def duality_gap(penalty: float, conjugate: float, along: float, r2: float) -> float:
    r"""Gap of a squared loss with a squared norm, between the weights W and the best multiple of their residuals r.

    For the multiple s it is :math:`\Omega(W) + s^2 \Omega^*(C) - s \langle W, C \rangle + \tfrac{(1-s)^2}{2} \lVert r
    \rVert^2`, in which no large numbers cancel (compare ``Moments.gap``); C is the negative gradient.

    Parameters
    ----------
    penalty, conjugate : float
        :math:`\Omega(W)` and :math:`\Omega^*(C)`; for the squared trace norm the latter is the squared spectral norm
        over :math:`4 \gamma`.
    along, r2 : float
        :math:`\langle W, C \rangle` and :math:`\lVert r \rVert^2`.
    """
    bend = 2 * conjugate + r2
    s = (along + r2) / bend if bend > 0 else 1.0
    return penalty + s**2 * conjugate - s * along + (1 - s) ** 2 / 2 * r2


def _lower(V: Array, c: float) -> tuple[Array, float]:
    r"""Lower singular values by the same amount, c times the sum of what is left of them; and that sum.

    From eigenvectors of :math:`V^\top V`, unless singular values survive of which squares keep half the digits.
    """
    squares, Q = np.linalg.eigh(V.T @ V)
    s = np.sqrt(np.maximum(squares, 0.0))  # rising
    kept = _kept(s, c)
    norm = float(kept.sum())
    if s[-(kept > 0).sum() or -1] > 1e-4 * s[-1] or norm == 0:
        return V @ ((Q * (kept / np.maximum(s, _TINY))) @ Q.T), norm
    U, s, Qh = np.linalg.svd(V, full_matrices=False)
    kept = _kept(s[::-1], c)[::-1]
    return (U * kept) @ Qh, float(kept.sum())


def _kept(s: Array, c: float) -> Array:
    """What is left of rising singular values: with the k largest and their sum S, each loses ``c S / (1 + k c)``."""
    amount = (c * s[::-1].cumsum() / (1 + c * np.arange(1, len(s) + 1))).max()
    return np.maximum(s - amount, 0.0)
