"""Regularisation paths: a grid of penalties from the largest down, warm starts, and safe screening of features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from companion.penalties._base import Penalty
from companion.solvers.convex import Solution, minimise
from companion.solvers.problem import Point, Problem
from companion.solvers.screening import is_row_wise, surviving


def alpha_grid(alpha_max: float, n_alphas: int, alpha_ratio: float) -> NDArray[np.float64]:
    """(A,) penalties falling geometrically from ``alpha_max`` to ``alpha_ratio * alpha_max``."""
    if n_alphas < 1:
        raise ValueError(f"n_alphas must be >= 1; got {n_alphas}")
    if not 0 < alpha_ratio < 1:
        raise ValueError(f"alpha_ratio must lie strictly between 0 and 1; got {alpha_ratio}")
    if not alpha_max > 0:
        raise ValueError(
            "no grid of penalties: zero weights are optimal for every one (y is constant, or one sample per task "
            "leaves nothing to explain)"
        )
    return np.geomspace(alpha_max, alpha_ratio * alpha_max, n_alphas)


def solve_path(
    problem: Problem, penalty: Penalty, alphas: Sequence[float], tol: float, max_iter: int, screen: bool = True
) -> Iterator[Solution]:
    """Solutions for ``penalty.scaled(alpha)``, alphas in falling order, each started from the one before.

    Parameters
    ----------
    tol : float
        Relative duality gap of every solution.
    screen : bool
        Leave out features that the solution before proves to be zero in this one (row-wise penalties only).
    """
    point = problem.with_descent(problem.at(problem.zero()))
    column_norms = problem.column_norms() if screen and is_row_wise(penalty) else None
    everything = torch.arange(problem.n_features, device=problem.y.device)
    for alpha in alphas:
        scaled, alive = penalty.scaled(float(alpha)), everything
        if column_norms is not None and is_row_wise(scaled):
            alive = surviving(problem, scaled, point, column_norms)
        if 2 * len(alive) > problem.n_features:  # too few to be worth a copy of the rest
            solution = minimise(problem, scaled, tol, max_iter, point)
        else:
            solution = _solve_part(problem, scaled, tol, max_iter, point, alive)
        point = solution.point
        yield solution


def _solve_part(problem: Problem, penalty: Penalty, tol: float, max_iter: int, start: Point, alive: Tensor) -> Solution:
    """Solve over the features ``alive`` and certify over all of them."""
    W, n_iter, point = problem.zero(), 0, start
    if len(alive):
        part = minimise(problem.columns(alive), penalty, tol, max_iter, problem.restricted(start, alive))
        W[alive], n_iter = part.point.W, part.n_iter
        point = problem.with_descent(part.point._replace(W=W, C=None))
    certificate = problem.certify(penalty, point)
    if certificate.gap <= tol * problem.null_objective or n_iter >= max_iter:
        return Solution(point, certificate, n_iter)
    # The dual point has to be scaled a little more for the features left out.
    rest = minimise(problem, penalty, tol, max_iter, point)
    return Solution(rest.point, rest.certificate, n_iter + rest.n_iter)
