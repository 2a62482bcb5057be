"""What the convex models share: one solve with a certificate, and a search over a path by cross-validation."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from companion.linear._base import LinearMTL
from companion.losses import Loss
from companion.penalties._base import Penalty
from companion.solvers.convex import Solution, minimise
from companion.solvers.path import alpha_grid, solve_path
from companion.solvers.problem import Problem
from companion.solvers.result import Result
from companion.tasks import Tasks


class ConvexModel(LinearMTL):
    """A loss and a penalty: subclasses name both."""

    loss: Loss
    l2: float = 0.0

    @abstractmethod
    def _penalty(self) -> Penalty:
        """The penalty, from the parameters."""

    def _problem(self, tasks: Tasks) -> Problem:
        """The data term of validated float64 tasks."""
        if not (np.isfinite(self.l2) and self.l2 >= 0):
            raise ValueError(f"l2 must be a finite number >= 0; got {self.l2!r}")
        return Problem.from_tasks(tasks, self.loss, self.reduction, self.fit_intercept, float(self.l2))

    def _solve(self, tasks: Tasks) -> Result:
        penalty = self._penalty()  # before the data: bad parameters are cheap to find
        problem = self._problem(tasks)
        solution = self._minimise(problem, penalty)
        result = solution.result(problem)
        parts = self._parts(penalty, solution.point.W)
        attributes = self._attributes(tasks, penalty, solution.point.W)
        return replace(result, W=parts.pop("coef_", result.W), parts=parts, attributes=attributes)

    def _minimise(self, problem: Problem, penalty: Penalty) -> Solution:
        return minimise(problem, penalty, self.tol, self.max_iter)

    def _parts(self, penalty: Penalty, W: Tensor) -> dict[str, Tensor]:
        """Fitted attributes beyond the weights, by name: ``(d, T)`` each."""
        return {}

    def _attributes(self, tasks: Tasks, penalty: Penalty, W: Tensor) -> dict[str, object]:
        """Fitted attributes without a row per task, by name."""
        return {}

    def prepare(self, X: Any, y: Any = None, task: Any = None, sample_weight: Any = None) -> tuple[Tasks, Problem]:
        """Validated training data and the data term of the objective; parameters as in :meth:`fit`."""
        self._check_parameters()
        tasks = self._gather(X, y, task, sample_weight)
        return tasks, self._problem(tasks.to(device=self.device, dtype=torch.float64))

    def alpha_max(self, X: Any, y: Any = None, task: Any = None, sample_weight: Any = None) -> float:
        """Least alpha for which all weights are zero; where the penalty has two weights, least factor on both.

        Parameters as in :meth:`fit`.
        """
        return self.prepare(X, y, task, sample_weight)[1].alpha_max(self._unit_penalty())

    def _unit_penalty(self) -> Any:
        """The penalty whose multiples a path runs through."""
        return self._penalty()


class SquaredModel(ConvexModel):
    """A loss and a squared norm, which is flat at zero and so makes no weights vanish."""

    def alpha_max(self, X: Any, y: Any = None, task: Any = None, sample_weight: Any = None) -> float:
        """Infinity: no finite factor on a squared penalty gives zero weights (0 where the data alone do)."""
        problem = self.prepare(X, y, task, sample_weight)[1]
        return math.inf if bool(problem.descent(problem.at(problem.zero())).any()) else 0.0


class PathSearch(ConvexModel):
    """Cross-validation over the penalties of a path, warm-started in every fold."""

    alphas: Any
    n_alphas: int
    alpha_ratio: float
    cv: Any
    random_state: int

    def _penalty(self) -> Penalty:
        return self._unit_penalty().scaled(self.alpha_)

    def _solve(self, tasks: Tasks) -> Result:
        unit, problem = self._unit_penalty(), self._problem(tasks)
        if self.alphas is None:
            self.alphas_ = alpha_grid(problem.alpha_max(unit), self.n_alphas, self.alpha_ratio)
        else:
            self.alphas_ = check_alphas(self.alphas)
        self.cv_loss_ = self._held_out_loss(tasks, self._solutions, len(self.alphas_))
        self.alpha_ = float(self.alphas_[self.cv_loss_.sum(0).argmin()])
        return super()._solve(tasks)

    def _solutions(self, train: Tasks) -> Iterator[tuple[Tensor, Tensor]]:
        """Weights (d, T) and intercepts (T,) for every alpha."""
        problem = self._problem(train)
        for solution in solve_path(problem, self._unit_penalty(), self.alphas_.tolist(), self.tol, self.max_iter):
            yield solution.point.W, problem.original_intercepts(solution.point)


def check_alphas(alphas: Any, name: str = "alphas") -> np.ndarray:
    """(A,) penalties in falling order, so that each solution starts the next."""
    grid = np.atleast_1d(np.asarray(alphas, dtype=float))
    if grid.ndim != 1 or len(grid) == 0 or not (np.isfinite(grid).all() and (grid > 0).all()):
        raise ValueError(f"{name} must be a 1-D sequence of finite numbers > 0; got {alphas!r}")
    return -np.unique(-grid)
