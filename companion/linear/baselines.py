"""Baselines: one model per task, one model for all. What every multi-task method has to beat."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from sklearn.model_selection import check_cv
from torch import Tensor

from companion.linear._base import LinearMTL, MultiTaskClassifier, MultiTaskRegressor
from companion.losses import LogisticLoss, SquaredLoss
from companion.penalties.elementwise import L1, Penalty, SquaredL2
from companion.solvers.duality import certify
from companion.solvers.prox_newton import logistic_intercepts, prox_newton
from companion.solvers.quadratic import LassoProblem, RidgeProblem
from companion.solvers.result import Result
from companion.tasks import Tasks


class _Block:
    """Rows that share one weight vector: a task (SingleTask) or all tasks (Pooled).

    ``X (n, d)``, ``y (n,)``, ``v (n,)`` row weights; ``groups (n,)`` says which intercept a row has, None for none.
    """

    def __init__(self, X: Tensor, y: Tensor, v: Tensor, groups: Tensor | None, n_groups: int) -> None:
        self.X, self.y, self.v, self.groups, self.n_groups = X, y, v, groups, n_groups

    def margins(self, w: Tensor, b: Tensor) -> Tensor:
        return self.X @ w if self.groups is None else self.X @ w + b[self.groups]


class _Baseline(LinearMTL):
    """Ridge or lasso on blocks of rows, with alpha given or chosen by cross-validation."""

    loss: Any

    @abstractmethod
    def _blocks(self, tasks: Tasks) -> Iterator[_Block]:
        """The independent problems that ``tasks`` fall into."""

    @abstractmethod
    def _spread(self, weights: list[Tensor], intercepts: list[Tensor], n_tasks: int) -> tuple[Tensor, Tensor]:
        """From one entry per block to ``W (d, T, A)`` and ``b (T, A)``, A the number of alphas."""

    @abstractmethod
    def _shared_alpha(self) -> bool:
        """Whether one alpha serves all tasks."""

    def _solve(self, tasks: Tasks) -> Result:
        if self.penalty not in ("l2", "l1"):
            raise ValueError(f"penalty must be 'l2' or 'l1'; got {self.penalty!r}")
        grid = self._grid()
        alpha = np.full(tasks.n_tasks, grid[0]) if len(grid) == 1 else self._choose(tasks, grid)
        self.alpha_ = float(alpha[0]) if self._shared_alpha() else alpha
        weights, intercepts, parts = [], [], []
        for block, a in zip(self._blocks(tasks), alpha, strict=False):
            w, b, n_iter = self._path(block, np.array([a]))
            parts.append((*self._certificate(block, float(a), w[:, 0], b[:, 0]), n_iter))
            weights.append(w)
            intercepts.append(b)
        W, b = self._spread(weights, intercepts, tasks.n_tasks)
        primal, dual, null = (sum(part[i] for part in parts) for i in range(3))
        return Result(W[..., 0], b[..., 0], primal, primal - dual, null, max(part[3] for part in parts))

    def _grid(self) -> np.ndarray:
        grid = np.atleast_1d(np.asarray(self.alpha, dtype=float))
        if grid.ndim != 1 or len(grid) == 0 or not np.isfinite(grid).all():
            raise ValueError(f"alpha must be a finite number or a 1-D grid of them; got {self.alpha!r}")
        least = 0.0 if self.penalty == "l2" and isinstance(self.loss, SquaredLoss) else np.nextafter(0.0, 1.0)
        if (grid < least).any():
            wanted = ">= 0" if least == 0 else "> 0"
            raise ValueError(f"alpha must be {wanted} for this loss and penalty; got {self.alpha!r}")
        return -np.unique(-grid)  # falling, so that each solution starts the next

    def _path(self, block: _Block, alphas: np.ndarray) -> tuple[Tensor, Tensor, int]:
        """Weights (d, A), intercepts (n_groups, A) and most iterations for A alphas in falling order."""
        data = (block.X, block.y, block.v, block.groups, block.n_groups)
        if isinstance(self.loss, SquaredLoss):
            problem: RidgeProblem | LassoProblem
            if self.penalty == "l2":
                problem = RidgeProblem(*data)
            else:
                problem = LassoProblem(*data, tol=self.tol, max_iter=self.max_iter)
            weights = problem.path(alphas)
            return weights, problem.intercepts(weights), getattr(problem, "n_iter", 1)
        ws: list[Tensor] = []
        bs: list[Tensor] = []
        most = 0
        for alpha in alphas.tolist():
            start = ws[-1] if ws else None  # the solution before
            penalty, quadratic = _penalty(self.penalty, alpha), self._quadratic(alpha)
            w, b, _, n_iter = prox_newton(*data, penalty, quadratic, self.tol, self.max_iter, start)
            ws.append(w)
            bs.append(b)
            most = max(most, n_iter)
        return torch.stack(ws, dim=1), torch.stack(bs, dim=1), most

    def _quadratic(self, alpha: float) -> Callable[..., Tensor]:
        """Solver of the weighted least-squares problems inside proximal Newton."""
        if self.penalty == "l2":
            return lambda X, z, h, groups, n_groups: RidgeProblem(X, z, h, groups, n_groups).solve(alpha)
        # Newton's own error falls quadratically: its last subproblem has to be better than the final tolerance.
        return lambda X, z, h, groups, n_groups: LassoProblem(
            X, z, h, groups, n_groups, tol=self.tol / 10, max_iter=self.max_iter
        ).solve(alpha)

    def _certificate(self, block: _Block, alpha: float, w: Tensor, b: Tensor) -> tuple[float, float, float]:
        """Primal and dual value at (w, b) and the objective of the intercept-only model."""
        if block.groups is not None:
            null_b = self._null_intercepts(block)
            null_m = null_b[block.groups]
        else:
            null_m = torch.zeros_like(block.y)
        null = float(self.loss.value(block.y, null_m, block.v))
        m = block.margins(w, b)
        if alpha == 0:
            value = float(self.loss.value(block.y, m, block.v))
            return value, float("nan"), null
        primal, dual = certify(self.loss, _penalty(self.penalty, alpha), block.X, block.y, block.v, w, m)
        return primal, dual, null

    def _null_intercepts(self, block: _Block) -> Tensor:
        if isinstance(self.loss, LogisticLoss):
            return logistic_intercepts(torch.zeros_like(block.y), block.y, block.v, block.groups, block.n_groups)
        zeros = torch.zeros_like(block.X[:, :1])
        return RidgeProblem(zeros, block.y, block.v, block.groups, block.n_groups).intercepts(zeros[0])

    def _choose(self, tasks: Tasks, grid: np.ndarray) -> np.ndarray:
        """(T,) penalties with the least held-out loss: one for all tasks, or one per task."""
        held_out_loss = np.zeros((tasks.n_tasks, len(grid)))
        for train, held_out in self._folds(tasks):
            weights, intercepts, _ = zip(*(self._path(block, grid) for block in self._blocks(train)), strict=True)
            W, b = self._spread(list(weights), list(intercepts), tasks.n_tasks)
            for t, rows in enumerate(held_out):
                X, y = tasks.tensors(t)
                v, out = tasks.weights(t)[:, None], torch.from_numpy(rows).to(y.device)
                margins = X[out] @ W[:, t] + b[t]  # (n_out, A)
                held_out_loss[t] += self.loss.value(y[out, None], margins, v[out]).cpu().numpy()
        self.cv_loss_ = held_out_loss
        if self._shared_alpha():
            return np.full(tasks.n_tasks, grid[held_out_loss.sum(0).argmin()])
        return grid[held_out_loss.argmin(1)]

    def _folds(self, tasks: Tasks) -> Iterator[tuple[Tasks, list[np.ndarray]]]:
        if isinstance(self.cv, (int, np.integer)):
            yield from tasks.folds(int(self.cv), self.random_state)
            return
        for train, test in check_cv(self.cv).split(np.zeros(int(tasks.rows.max()) + 1)):
            yield tasks.part(train, test)


class _OnePerTask(_Baseline):
    """Every task is its own block."""

    def __init__(
        self,
        alpha: Any = 0.1,
        penalty: str = "l2",
        per_task_alpha: bool = False,
        reduction: str = "mean",
        fit_intercept: bool = True,
        cv: Any = 3,
        tol: float = 1e-8,
        max_iter: int = 10_000,
        random_state: int = 0,
        device: Any = None,
    ) -> None:
        self.alpha = alpha
        self.penalty = penalty
        self.per_task_alpha = per_task_alpha
        self.reduction = reduction
        self.fit_intercept = fit_intercept
        self.cv = cv
        self.tol = tol
        self.max_iter = max_iter
        self.random_state = random_state
        self.device = device

    def _shared_alpha(self) -> bool:
        return not self.per_task_alpha

    def _blocks(self, tasks: Tasks) -> Iterator[_Block]:
        for t in range(tasks.n_tasks):
            X, y = tasks.tensors(t)
            groups = torch.zeros(len(y), dtype=torch.int64, device=y.device) if self.fit_intercept else None
            yield _Block(X, y, self._row_weights(tasks, t), groups, 1)

    def _spread(self, weights: list[Tensor], intercepts: list[Tensor], n_tasks: int) -> tuple[Tensor, Tensor]:
        return torch.stack(weights, dim=1), torch.cat(intercepts)


class _OneForAll(_Baseline):
    """All tasks are one block; only the intercepts may differ."""

    def __init__(
        self,
        alpha: Any = 0.1,
        penalty: str = "l2",
        per_task_intercept: bool = False,
        reduction: str = "mean",
        fit_intercept: bool = True,
        cv: Any = 3,
        tol: float = 1e-8,
        max_iter: int = 10_000,
        random_state: int = 0,
        device: Any = None,
    ) -> None:
        self.alpha = alpha
        self.penalty = penalty
        self.per_task_intercept = per_task_intercept
        self.reduction = reduction
        self.fit_intercept = fit_intercept
        self.cv = cv
        self.tol = tol
        self.max_iter = max_iter
        self.random_state = random_state
        self.device = device

    def _shared_alpha(self) -> bool:
        return True

    def _blocks(self, tasks: Tasks) -> Iterator[_Block]:
        parts = [tasks.tensors(t) for t in range(tasks.n_tasks)]
        v = torch.cat([self._row_weights(tasks, t) for t in range(tasks.n_tasks)])
        groups, n_groups = None, 1
        if self.fit_intercept:
            index = np.repeat(np.arange(tasks.n_tasks), tasks.n_samples) * bool(self.per_task_intercept)
            groups, n_groups = torch.from_numpy(index).to(v.device), int(index[-1]) + 1
        yield _Block(torch.cat([X for X, _ in parts]), torch.cat([y for _, y in parts]), v, groups, n_groups)

    def _spread(self, weights: list[Tensor], intercepts: list[Tensor], n_tasks: int) -> tuple[Tensor, Tensor]:
        W = weights[0][:, None, :].expand(-1, n_tasks, -1)
        return W, intercepts[0].expand(n_tasks, -1)


def _penalty(kind: str, alpha: float) -> Penalty:
    return SquaredL2(alpha) if kind == "l2" else L1(alpha)


_SINGLE = r"""

    Parameters
    ----------
    alpha : float or 1-D array, default 0.1
        Penalty. A grid is searched by cross-validation inside ``fit``; the choice is ``alpha_``.
    penalty : {"l2", "l1"}
        Ridge, :math:`\tfrac{\alpha}{2} \lVert w_t \rVert^2`, or lasso, :math:`\alpha \lVert w_t \rVert_1`.
    per_task_alpha : bool, default False
        With a grid: let every task choose its own alpha instead of one for all.
"""
_POOLED = r"""

    Parameters
    ----------
    alpha : float or 1-D array, default 0.1
        Penalty. A grid is searched by cross-validation inside ``fit``; the choice is ``alpha_``.
    penalty : {"l2", "l1"}
        Ridge, :math:`\tfrac{\alpha}{2} \lVert w \rVert^2`, or lasso, :math:`\alpha \lVert w \rVert_1`.
    per_task_intercept : bool, default False
        One unpenalised intercept per task instead of a common one: tasks may differ in level, not in slope.
"""
_COMMON = r"""    reduction : {"mean", "sum"}
        "mean" divides each task's loss by n_t, the sum of its weights; "sum" does not.
    fit_intercept : bool, default True
        Fit unpenalised intercepts.
    cv : int or iterable of (train, test) row positions, default 3
        Folds of the search over a grid of alpha; an int gives shuffled folds stratified by task.
    tol : float, default 1e-8
        Duality gap allowed, relative to the objective of the intercept-only model.
    max_iter : int, default 10000
        Most iterations of the iterative solvers; ridge regression needs one.
    random_state : int, default 0
        Seed of the folds.
    device : torch device, optional
        Where to compute; by default where the data is. The lasso's coordinate descent runs on the CPU.

    Attributes
    ----------
    coef_ : (T, d), intercept_ : (T,)
        In the library, type and device of the training data.
    task_ids_ : tuple of length T
    alpha_ : float, or (T,) array where every task has its own
    cv_loss_ : (T, A) array
        With a grid: held-out loss per task and alpha, alphas in falling order.
    objective_, dual_gap_ : float
        Value and absolute duality gap of the weights (NaN for alpha = 0), in float64, before float32 data rounds them.
    n_iter_ : int
    """


class SingleTask(_OnePerTask, MultiTaskRegressor):
    __doc__ = r"""One linear regression per task: nothing is shared.

    Minimises :math:`\sum_t \tfrac{1}{2 n_t} \lVert y_t - X_t w_t - b_t \rVert^2 + \sum_t \Omega(w_t)`; ridge in closed
    form, lasso by coordinate descent.""" + _SINGLE + _COMMON  # fmt: skip

    loss = SquaredLoss()


class Pooled(_OneForAll, MultiTaskRegressor):
    __doc__ = r"""One linear regression for all tasks: everything is shared.

    Minimises :math:`\sum_t \tfrac{1}{2 n_t} \lVert y_t - X_t w - b \rVert^2 + \Omega(w)`, one w for all tasks.""" + _POOLED + _COMMON  # noqa: E501  # fmt: skip

    loss = SquaredLoss()


class SingleTaskClassifier(_OnePerTask, MultiTaskClassifier):
    __doc__ = r"""One logistic regression per task: nothing is shared.

    Minimises :math:`\sum_t \tfrac{1}{n_t} \sum_i \log(1 + e^{-y_{ti} (x_{ti}^\top w_t + b_t)}) + \sum_t \Omega(w_t)`
    over labels -1/+1 by proximal Newton. Every task is binary, with the same two labels.
    """.rstrip() + _SINGLE + _COMMON  # fmt: skip

    loss = LogisticLoss()


class PooledClassifier(_OneForAll, MultiTaskClassifier):
    __doc__ = r"""One logistic regression for all tasks: everything is shared.

    Minimises :math:`\sum_t \tfrac{1}{n_t} \sum_i \log(1 + e^{-y_{ti} (x_{ti}^\top w + b)}) + \Omega(w)`, one w for all
    tasks.""" + _POOLED + _COMMON  # fmt: skip

    loss = LogisticLoss()
