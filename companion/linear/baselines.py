"""Baselines: one model per task, one model for all. What every multi-task method has to beat."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from companion.linear._base import LinearMTL, MultiTaskClassifier, MultiTaskRegressor
from companion.losses import LogisticLoss, Loss, SquaredLoss
from companion.penalties._base import Penalty
from companion.penalties.elementwise import L1, SquaredL2
from companion.solvers.problem import Problem
from companion.solvers.prox_newton import prox_newton
from companion.solvers.quadratic import Centring, LassoProblem, RidgeProblem
from companion.solvers.result import Result
from companion.solvers.rows import RaggedRows
from companion.tasks import Tasks


class _Block:
    """Rows that share one weight vector: a task (SingleTask) or all tasks (Pooled), centred.

    Centring by the mean of every group of rows with a common intercept changes nothing but the intercepts, and keeps
    certificates exact for data far from zero. For squared loss it removes the intercepts, for logistic loss not.

    Parameters
    ----------
    X : (n, d), y : (n,), v : (n,) row weights
    groups : (n,) tensor or None
        Which intercept a row has; None for none.
    """

    def __init__(
        self, loss: Loss, X: Tensor, y: Tensor, v: Tensor, groups: Tensor | None = None, n_groups: int = 1
    ) -> None:
        self._centring = centred = Centring(X, y, v, groups, n_groups)
        squared = isinstance(loss, SquaredLoss)
        self.loss, self.n_groups = loss, n_groups
        self.groups = None if squared else groups
        index = torch.zeros(len(y), dtype=torch.int64, device=y.device) if groups is None else groups
        rows = RaggedRows(centred.X, [0, len(y)], index, n_groups)
        self.problem = Problem(rows, centred.y if squared else y, v, loss, free=self.groups is not None)

    @property
    def data(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None, int]:
        """What solvers of weighted least squares take."""
        return self._centring.X, self.problem.y, self.problem.v, self.groups, self.n_groups

    def intercepts(self, weights: Tensor, centred: Tensor) -> Tensor:
        """(n_groups, A) intercepts on the data as it came, from those on centred data."""
        if self.groups is None:
            return self._centring.intercepts(weights)
        return centred - self._centring.X_mean @ weights


class _Baseline(LinearMTL):
    """Ridge or lasso on blocks of rows, with alpha given or chosen by cross-validation."""

    loss: Loss

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
        self.__dict__.pop("cv_loss_", None)  # of an earlier fit
        alpha = np.full(tasks.n_tasks, grid[0]) if len(grid) == 1 else self._choose(tasks, grid)
        self.alpha_ = float(alpha[0]) if self._shared_alpha() else alpha
        weights, intercepts, parts = [], [], []
        for block, a in zip(self._blocks(tasks), alpha, strict=False):
            w, centred, n_iter = self._path(block, np.array([a]))
            primal, dual = self._certify(block, float(a), w)
            parts.append((primal, dual, block.problem.null_objective, n_iter))
            weights.append(w)
            intercepts.append(block.intercepts(w, centred))
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
        """Weights (d, A), intercepts on centred data (n_groups, A), most iterations, for A alphas in falling order."""
        if isinstance(self.loss, SquaredLoss):
            problem: RidgeProblem | LassoProblem
            if self.penalty == "l2":
                problem = RidgeProblem(*block.data)
            else:
                problem = LassoProblem(*block.data, gap=self.tol * block.problem.null_objective, max_iter=self.max_iter)
            weights = problem.path(alphas)
            return weights, weights.new_zeros(block.n_groups, len(alphas)), getattr(problem, "n_iter", 1)
        ws: list[Tensor] = []
        bs: list[Tensor] = []
        most = 0
        for alpha in alphas.tolist():
            start = ws[-1] if ws else None  # the solution before
            penalty, quadratic = _penalty(self.penalty, alpha), self._quadratic(block, alpha)
            gap = self.tol * block.problem.null_objective
            point, _, n_iter = prox_newton(block.problem, penalty, quadratic, gap, self.max_iter, start)
            ws.append(point.W)
            bs.append(point.intercept)
            most = max(most, n_iter)
        return torch.cat(ws, dim=1), torch.stack(bs, dim=1), most

    def _quadratic(self, block: _Block, alpha: float) -> Callable[[Tensor, Tensor, Tensor, float], Tensor]:
        """Solver of the weighted least-squares problems inside proximal Newton."""
        X, _, _, groups, n_groups = block.data

        def ridge(z: Tensor, h: Tensor, W: Tensor, gap: float) -> Tensor:
            return RidgeProblem(X, z, h, groups, n_groups).solve(alpha)[:, None]

        def lasso(z: Tensor, h: Tensor, W: Tensor, gap: float) -> Tensor:
            return LassoProblem(X, z, h, groups, n_groups, gap, self.max_iter).solve(alpha)[:, None]

        return ridge if self.penalty == "l2" else lasso

    def _certify(self, block: _Block, alpha: float, w: Tensor) -> tuple[float, float]:
        """Primal and dual value at ``w (d, 1)``; without a penalty there is no dual value."""
        point = block.problem.at(w)
        if alpha == 0:
            return point.value, float("nan")
        return block.problem.certify(_penalty(self.penalty, alpha), point)

    def _choose(self, tasks: Tasks, grid: np.ndarray) -> np.ndarray:
        """(T,) penalties with the least held-out loss: one for all tasks, or one per task.

        Held-out rows have the weights of the objective: with ``reduction="mean"`` every task counts the same. A task
        that no fold can score (one row; one class left to train on) takes the penalty that suits the others.
        """
        held_out_loss, scored = np.zeros((tasks.n_tasks, len(grid))), np.zeros(tasks.n_tasks, dtype=bool)
        for train, held_out in self._folds(tasks):
            fit = np.flatnonzero(self._can_fit(train))
            if len(fit) == 0:
                continue
            blocks = [(block, self._path(block, grid)) for block in self._blocks(train.subset(fit))]
            weights = [w for _, (w, _, _) in blocks]
            intercepts = [block.intercepts(w, centred) for block, (w, centred, _) in blocks]
            W, b = self._spread(weights, intercepts, len(fit))
            for k, t in enumerate(fit.tolist()):
                X, y = tasks.tensors(t)
                v, out = self._row_weights(tasks, t)[:, None], torch.from_numpy(held_out[t]).to(y.device)
                margins = X[out] @ W[:, k] + b[k]  # (n_out, A)
                held_out_loss[t] += self.loss.value(y[out, None], margins, v[out]).cpu().numpy()
                scored[t] |= bool(out.any())
        if not scored.any():
            raise ValueError(
                "no fold could be scored: some task needs rows to hold out (one sample leaves none) and, for a "
                "classifier with free intercepts, both classes among the rest; give one alpha instead of a grid"
            )
        self.cv_loss_ = held_out_loss
        common = grid[held_out_loss.sum(0).argmin()]
        if self._shared_alpha():
            return np.full(tasks.n_tasks, common)
        return np.where(scored, grid[held_out_loss.argmin(1)], common)


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
            yield _Block(self.loss, X, y, self._row_weights(tasks, t), groups)

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

    @property
    def _intercept_per_task(self) -> bool:
        return self.per_task_intercept

    def _shared_alpha(self) -> bool:
        return True

    def _blocks(self, tasks: Tasks) -> Iterator[_Block]:
        parts = [tasks.tensors(t) for t in range(tasks.n_tasks)]
        v = torch.cat([self._row_weights(tasks, t) for t in range(tasks.n_tasks)])
        groups, n_groups = None, 1
        if self.fit_intercept:
            index = np.repeat(np.arange(tasks.n_tasks), tasks.n_samples) * bool(self.per_task_intercept)
            groups, n_groups = torch.from_numpy(index).to(v.device), int(index[-1]) + 1
        X, y = (torch.cat([part[i] for part in parts]) for i in (0, 1))
        yield _Block(self.loss, X, y, v, groups, n_groups)

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
        Folds of the search over a grid of alpha; an int gives shuffled folds stratified by task (and by class). The
        rows held out are weighted as in the objective: each task counts the same with "mean", each row with "sum".
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
    __doc__ = (
        r"""One linear regression per task: nothing is shared.

    Minimises :math:`\sum_t \tfrac{1}{2 n_t} \lVert y_t - X_t w_t - b_t \rVert^2 + \sum_t \Omega(w_t)`; ridge in closed
    form, lasso by coordinate descent.
"""
        + _SINGLE
        + _COMMON
    )

    loss = SquaredLoss()


class Pooled(_OneForAll, MultiTaskRegressor):
    __doc__ = (
        r"""One linear regression for all tasks: everything is shared.

    Minimises :math:`\sum_t \tfrac{1}{2 n_t} \lVert y_t - X_t w - b \rVert^2 + \Omega(w)`, one w for all tasks.
"""
        + _POOLED
        + _COMMON
    )

    loss = SquaredLoss()


class SingleTaskClassifier(_OnePerTask, MultiTaskClassifier):
    __doc__ = (
        r"""One logistic regression per task: nothing is shared.

    Minimises :math:`\sum_t \tfrac{1}{n_t} \sum_i \log(1 + e^{-y_{ti} (x_{ti}^\top w_t + b_t)}) + \sum_t \Omega(w_t)`
    over labels -1/+1 by proximal Newton. Every task is binary, with the same two labels.
"""
        + _SINGLE
        + _COMMON
    )

    loss = LogisticLoss()


class PooledClassifier(_OneForAll, MultiTaskClassifier):
    __doc__ = (
        r"""One logistic regression for all tasks: everything is shared.

    Minimises :math:`\sum_t \tfrac{1}{n_t} \sum_i \log(1 + e^{-y_{ti} (x_{ti}^\top w + b)}) + \Omega(w)`, one w for all
    tasks.
"""
        + _POOLED
        + _COMMON
    )

    loss = LogisticLoss()
