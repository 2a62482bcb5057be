r"""A squared loss in as few rows as it needs: at most d per task, orthogonal to one another.

.. math:: \tfrac12 \sum_i v_{ti} (y_{ti} - x_{ti}^\top w)^2 = \tfrac12 \lVert b_t - A_t w \rVert^2 + \text{rest}_t

With :math:`A_t A_t^\top` diagonal, the inverses that ridge regression asks for are divisions, row by row. What is
stored is no larger than the data: no ``(T, d, d)`` array appears.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from companion.solvers.problem import Problem

Array = NDArray[np.float64]
_TINY = np.finfo(float).tiny


class TaskRows(NamedTuple):
    """Tasks behind one another, N rows in all, as NumPy arrays; build it with :meth:`of`.

    Searches over partitions of tasks solve many small systems, and NumPy spends a fraction of torch's time on each.
    They therefore run on the CPU, wherever the data are.

    Attributes
    ----------
    A : (N, r) array
        Rows, in coordinates of the space that they span where this is smaller than all of R^d; else r = d.
    b, squares : (N,) arrays
        Targets, and the squared length of every row.
    rest : (T,) array
        Loss that no weights remove.
    offsets : (T + 1,) int array
        Task t has the rows from ``offsets[t]`` to ``offsets[t + 1]``, at least one.
    task : (N,) int array
        Task of every row.
    basis : (d, r) tensor or None
        Orthonormal basis of the span: weights are ``basis @ W``. None where r = d.
    blocks : list of (tasks (m,), rows (m, n)) int arrays
        Tasks with equally many rows, and which rows these are.
    """

    A: Array
    b: Array
    squares: Array
    rest: Array
    offsets: NDArray[np.int64]
    task: NDArray[np.int64]
    basis: Tensor | None
    blocks: list[tuple[NDArray[np.int64], NDArray[np.int64]]]

    @classmethod
    def of(cls, problem: Problem) -> TaskRows:
        """The rows of a problem with squared loss, without free intercepts and ridge."""
        if not problem.is_quadratic or problem.l2 != 0:
            raise ValueError("TaskRows needs a squared loss with every label present, and no ridge term")
        tasks = []
        for X, y, v in problem.rows.blocks(problem.y, problem.v):
            root = v.sqrt()
            U, s, Qh = torch.linalg.svd(root[:, None] * X, full_matrices=False)
            b = U.T @ (root * y)
            tasks.append((s[:, None] * Qh, b, s**2, ((root * y - U @ b) ** 2).sum()[None] / 2))
        sizes = np.array([len(b) for _, b, _, _ in tasks])
        A, b, squares, rest = (torch.cat(part) for part in zip(*tasks, strict=True))
        basis = None
        if A.shape[0] < A.shape[1]:
            basis, R = torch.linalg.qr(A.T)
            A = R.T.contiguous()
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        task = np.repeat(np.arange(len(sizes)), sizes)
        parts = [array.cpu().numpy() for array in (A, b, squares, rest)]
        return cls(parts[0], parts[1], parts[2], parts[3], offsets, task, basis, _blocks(sizes, offsets))

    @property
    def n_tasks(self) -> int:
        return len(self.rest)

    def sums(self, values: Array) -> Array:
        """(T, ...) sums of ``values (N, ...)`` over the rows of every task."""
        return np.add.reduceat(values, self.offsets[:-1], axis=0)

    def losses(self, W: Array) -> Array:
        """(T,) losses at weights ``W (r, T)``."""
        residual = self.b - np.einsum("ij,ij->i", self.A, W.T[self.task])
        return self.rest + self.sums(residual**2) / 2

    def null_losses(self) -> Array:
        """(T,) losses at weights zero."""
        return self.rest + self.sums(self.b**2) / 2

    def ridge(self, penalty: float) -> tuple[Array, Array]:
        r"""(T,) least values of loss plus ``penalty`` :math:`\lVert w \rVert^2`, and the weights ``(r, T)`` there."""
        dual = self.b / (self.squares + 2 * penalty)
        return self.rest + penalty * self.sums(self.b * dual), self.sums(self.A * dual[:, None]).T

    def ridge_gap(self, slope: Tensor, penalty: float) -> float:
        r"""How far an objective can lie above its minimum if it curves at least as much as the losses plus a ridge.

        :math:`\tfrac12 \sum_t g_t^\top (A_t^\top A_t + 2 c I)^{-1} g_t` for gradients ``slope (d, T)`` and penalty c.
        Directions of the rows and the rest are added up separately, since curvatures differ by orders of magnitude.
        """
        inside = slope if self.basis is None else self.basis.T @ slope
        beyond = 0.0 if self.basis is None else float(((slope - self.basis @ inside) ** 2).sum())
        g = inside.T.cpu().numpy()[self.task]  # (N, r)
        along = np.einsum("ij,ij->i", self.A, g) / self.squares.clip(min=_TINY)  # times the row: the part along it
        rest = inside.T.cpu().numpy() - self.sums(self.A * along[:, None])
        in_rows = float((along**2 * self.squares / (self.squares + 2 * penalty)).sum())
        return in_rows / 2 + (float((rest**2).sum()) + beyond) / (4 * penalty)

    def original(self, W: Array, like: Tensor) -> Tensor:
        """(d, T) tensor of weights from ``W (r, T)``."""
        weights = torch.from_numpy(np.ascontiguousarray(W)).to(like)
        return weights if self.basis is None else self.basis @ weights


def _blocks(sizes: NDArray[np.int64], offsets: NDArray[np.int64]) -> list[tuple[NDArray, NDArray]]:
    tasks = [np.flatnonzero(sizes == size) for size in np.unique(sizes)]
    return [(some, offsets[some, None] + np.arange(sizes[some[0]])) for some in tasks]
