"""Where the rows of all tasks lie, and the two products with the design that every solver is made of.

Values per row (margins, residuals, targets, row weights) have one shape per layout: ``(N,)`` for tasks behind one
another, ``(n, T)`` for tasks that share their inputs, ``(T, n_max)`` for padded blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor


class Rows(Protocol):
    """Design matrices of all tasks in one layout."""

    X: Tensor
    n_tasks: int
    n_groups: int

    @property
    def n_features(self) -> int: ...

    def times(self, W: Tensor) -> Tensor: ...

    def transpose_times(self, theta: Tensor) -> Tensor: ...

    def sums(self, values: Tensor) -> Tensor: ...

    def spread(self, b: Tensor) -> Tensor: ...

    def columns(self, index: Tensor) -> Rows: ...

    def mapped(self, L: Tensor) -> Rows: ...

    def gram(self, v: Tensor) -> Tensor: ...

    def squares(self, v: Tensor) -> Tensor: ...

    def largest_eigenvalue(self, v: Tensor) -> float: ...

    def blocks(self, *values: Tensor) -> Iterator[Sequence[Tensor]]: ...


class _Layout:
    X: Tensor

    @property
    def n_features(self) -> int:
        return self.X.shape[-1]


class RaggedRows(_Layout):
    """Tasks behind one another: ``X (N, d)``, task t in rows ``offsets[t]:offsets[t + 1]``.

    Parameters
    ----------
    groups : (N,) int64 tensor, optional
        Which intercept a row has, 0..n_groups-1; by default that of its task.
    """

    def __init__(
        self, X: Tensor, offsets: Sequence[int] | np.ndarray, groups: Tensor | None = None, n_groups: int = 0
    ) -> None:
        self.X, self.offsets = X, np.asarray(offsets, dtype=np.int64)
        self.n_tasks = len(self.offsets) - 1
        if groups is None:
            sizes = torch.from_numpy(np.diff(self.offsets))
            groups, n_groups = torch.repeat_interleave(torch.arange(self.n_tasks), sizes).to(X.device), self.n_tasks
        self.groups, self.n_groups = groups, n_groups
        self._bounds = list(pairwise(self.offsets.tolist()))

    def times(self, W: Tensor) -> Tensor:
        """(N,) margins ``X_t w_t``."""
        m = W.new_empty(self.X.shape[0])
        X, out, w = _light(self.X), _light(m), _light(W.T.contiguous())
        for t, (a, b) in enumerate(self._bounds):
            out[a:b] = X[a:b] @ w[t]
        return m

    def transpose_times(self, theta: Tensor) -> Tensor:
        """(d, T) correlations ``X_t' theta_t``."""
        C = theta.new_empty(self.n_tasks, self.n_features)
        X, q, out = _light(self.X), _light(theta), _light(C)
        for t, (a, b) in enumerate(self._bounds):
            out[t] = q[a:b] @ X[a:b]
        return C.T.contiguous()

    def sums(self, values: Tensor) -> Tensor:
        """(G,) sums over the rows that share an intercept; (G, d) of ``(N, d)`` values."""
        return values.new_zeros((self.n_groups, *values.shape[1:])).index_add_(0, self.groups, values)

    def spread(self, b: Tensor) -> Tensor:
        """(N,) intercept of every row."""
        return b[self.groups]

    def columns(self, index: Tensor) -> RaggedRows:
        """The same rows with the features ``index`` only."""
        return RaggedRows(self.X[:, index], self.offsets, self.groups, self.n_groups)

    def mapped(self, L: Tensor) -> RaggedRows:
        """The same rows with the features ``X L`` for ``L (d, k)``."""
        return RaggedRows(self.X @ L, self.offsets, self.groups, self.n_groups)

    def blocks(self, *values: Tensor) -> Iterator[Sequence[Tensor]]:
        """``(X_t, values_t, ...)`` task by task."""
        for a, b in self._bounds:
            yield self.X[a:b], *(value[a:b] for value in values)

    def gram(self, v: Tensor) -> Tensor:
        """(T, d, d) second moments ``X_t' V_t X_t``."""
        out = self.X.new_empty(self.n_tasks, self.n_features, self.n_features)
        for G, (X, w) in zip(out, self.blocks(v), strict=True):
            torch.mm(X.T, w[:, None] * X, out=G)
        return out

    def squares(self, v: Tensor) -> Tensor:
        """(d, T) weighted sums of squares of every column."""
        return torch.stack([w @ X**2 for X, w in self.blocks(v)], dim=1)

    def largest_eigenvalue(self, v: Tensor) -> float:
        """Largest eigenvalue of ``X_t' V_t X_t`` over the tasks."""
        return max(_largest_eigenvalue(w.sqrt()[:, None] * X) for X, w in self.blocks(v))


class SharedRows(_Layout):
    """All tasks on the same inputs ``X (n, d)``; values per row are ``(n, T)``."""

    def __init__(self, X: Tensor, n_tasks: int) -> None:
        self.X, self.n_tasks, self.n_groups = X, n_tasks, n_tasks

    def times(self, W: Tensor) -> Tensor:
        """(n, T) margins."""
        return self.X @ W

    def transpose_times(self, theta: Tensor) -> Tensor:
        """(d, T) correlations."""
        if theta.device.type == "cpu":  # NumPy's BLAS with the long side last: up to three times faster here
            return torch.from_numpy(theta.numpy().T @ self.X.numpy()).T.contiguous()
        return self.X.T @ theta

    def sums(self, values: Tensor) -> Tensor:
        """(T,) sums over the rows."""
        return values.sum(0)

    def spread(self, b: Tensor) -> Tensor:
        """(1, T) intercepts, to be broadcast."""
        return b[None, :]

    def columns(self, index: Tensor) -> SharedRows:
        """The same rows with the features ``index`` only."""
        return SharedRows(self.X[:, index], self.n_tasks)

    def mapped(self, L: Tensor) -> SharedRows:
        """The same rows with the features ``X L`` for ``L (d, k)``."""
        return SharedRows(self.X @ L, self.n_tasks)

    def blocks(self, *values: Tensor) -> Iterator[Sequence[Tensor]]:
        """``(X, values_t, ...)`` task by task."""
        for t in range(self.n_tasks):
            yield self.X, *(value[:, t] for value in values)

    def gram(self, v: Tensor) -> Tensor:
        """(1, d, d): one matrix of second moments for all tasks, whose rows must weigh the same."""
        return (float(v[0, 0]) * (self.X.T @ self.X))[None]

    def squares(self, v: Tensor) -> Tensor:
        """(d, T) weighted sums of squares of every column."""
        return (self.X**2).T @ v

    def largest_eigenvalue(self, v: Tensor) -> float:
        """Largest eigenvalue of ``X' V_t X``; for weights that differ by task, of the largest weight of each row."""
        return _largest_eigenvalue(v.amax(1).sqrt()[:, None] * self.X)


class PaddedRows(_Layout):
    """Blocks of equal size ``X (T, n_max, d)`` whose spare rows have weight zero: one batched product per step.

    Accelerators want it; on a CPU it costs as much as the largest task for every task.
    """

    def __init__(self, X: Tensor) -> None:
        self.X, self.n_tasks, self.n_groups = X, X.shape[0], X.shape[0]

    def times(self, W: Tensor) -> Tensor:
        """(T, n_max) margins."""
        return torch.bmm(self.X, W.T[:, :, None])[:, :, 0]

    def transpose_times(self, theta: Tensor) -> Tensor:
        """(d, T) correlations."""
        return torch.bmm(theta[:, None, :], self.X)[:, 0, :].T

    def sums(self, values: Tensor) -> Tensor:
        """(T,) sums over the rows."""
        return values.sum(1)

    def spread(self, b: Tensor) -> Tensor:
        """(T, 1) intercepts, to be broadcast."""
        return b[:, None]

    def columns(self, index: Tensor) -> PaddedRows:
        """The same rows with the features ``index`` only."""
        return PaddedRows(self.X[:, :, index])

    def mapped(self, L: Tensor) -> PaddedRows:
        """The same rows with the features ``X L`` for ``L (d, k)``."""
        return PaddedRows(self.X @ L)

    def blocks(self, *values: Tensor) -> Iterator[Sequence[Tensor]]:
        """``(X_t, values_t, ...)`` task by task, padding included."""
        yield from zip(self.X, *values, strict=True)

    def gram(self, v: Tensor) -> Tensor:
        """(T, d, d) second moments ``X_t' V_t X_t``."""
        return torch.bmm(self.X.mT, v[:, :, None] * self.X)

    def squares(self, v: Tensor) -> Tensor:
        """(d, T) weighted sums of squares of every column."""
        return torch.bmm(v[:, None, :], self.X**2)[:, 0, :].T

    def largest_eigenvalue(self, v: Tensor) -> float:
        """Largest eigenvalue of ``X_t' V_t X_t`` over the tasks."""
        return _largest_eigenvalue(v.sqrt()[:, :, None] * self.X)


def _light(tensor: Tensor) -> Any:
    """A NumPy view where there is one: it costs a fraction of a tensor per operation on small blocks."""
    return tensor.numpy() if tensor.device.type == "cpu" else tensor


def _largest_eigenvalue(A: Tensor) -> float:
    """Largest eigenvalue of ``A' A`` (over a batch, the largest of all), from the smaller of the two products."""
    small = A.mT @ A if A.shape[-1] <= A.shape[-2] else A @ A.mT
    return max(float(torch.linalg.eigvalsh(small).max()), 0.0)
