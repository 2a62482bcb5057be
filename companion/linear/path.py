"""The regularisation path of any penalty, from long-form data."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from companion.linear._convex import check_alphas
from companion.linear.block_sparse import MultiTaskLasso, MultiTaskLassoClassifier
from companion.penalties._base import NormPenalty
from companion.penalties.block_sparse import BlockSparse
from companion.solvers.path import alpha_grid, solve_path


class MultiTaskPath(NamedTuple):
    """Solutions along a grid of penalties, alphas falling."""

    alphas: np.ndarray  # (A,)
    coefs: Any  # (A, T, d)
    intercepts: Any  # (A, T)
    gaps: np.ndarray  # (A,) relative duality gaps


def multi_task_path(
    X: Any,
    y: Any = None,
    task: Any = None,
    penalty: NormPenalty | None = None,
    n_alphas: int = 30,
    alpha_ratio: float = 0.05,
    alphas: Any = None,
    tol: float = 1e-6,
    max_iter: int = 10_000,
    reduction: str = "mean",
    fit_intercept: bool = True,
    loss: str = "squared",
    sample_weight: Any = None,
    progress: bool = False,
) -> MultiTaskPath:
    r"""Solutions for ``penalty.scaled(alpha)`` along a grid of alphas, each started from the one before.

    Parameters
    ----------
    X, y, task, sample_weight
        As in ``fit`` of the estimators; X may be a :class:`~companion.tasks.Tasks`.
    penalty : penalty, default ``BlockSparse(1.0, q=2)``
        Any penalty on ``W (d, T)`` from :mod:`companion.penalties`; its weights are multiplied by alpha.
    n_alphas : int, default 30
    alpha_ratio : float, default 0.05
        The grid falls geometrically from the least alpha that gives zero weights to this fraction of it.
    alphas : (A,) sequence of floats, optional
        A grid of your own instead; it is run through in falling order.
    tol : float, default 1e-6
        Duality gap allowed for every solution, relative to the objective of the intercept-only model.
    max_iter : int, default 10000
        Most iterations per solution.
    reduction : {"mean", "sum"}
    fit_intercept : bool, default True
    loss : {"squared", "logistic"}
    progress : bool, default False
        Show a progress bar.

    Returns
    -------
    MultiTaskPath
        ``alphas (A,)``, ``coefs (A, T, d)``, ``intercepts (A, T)`` and ``gaps (A,)``, the relative duality gaps.
        Compare ``gaps`` with ``tol``: a solution that ran out of iterations is returned as it is.
    """
    if loss not in ("squared", "logistic"):
        raise ValueError(f"loss must be 'squared' or 'logistic'; got {loss!r}")
    kind = MultiTaskLasso if loss == "squared" else MultiTaskLassoClassifier
    model = kind(reduction=reduction, fit_intercept=fit_intercept, tol=tol, max_iter=max_iter)
    tasks, problem = model.prepare(X, y, task, sample_weight)
    penalty = BlockSparse(1.0) if penalty is None else penalty
    grid = alpha_grid(problem.alpha_max(penalty), n_alphas, alpha_ratio) if alphas is None else check_alphas(alphas)
    steps = solve_path(problem, penalty, grid.tolist(), tol, max_iter)
    found = [solution.result(problem) for solution in tqdm(steps, total=len(grid), disable=not progress)]
    coefs, intercepts = (torch.stack([result.W.T for result in found]), torch.stack([r.intercept for r in found]))
    return MultiTaskPath(
        grid,
        tasks.out(coefs.to(device=tasks.device, dtype=tasks.dtype)),
        tasks.out(intercepts.to(device=tasks.device, dtype=tasks.dtype)),
        np.array([result.relative_gap for result in found]),
    )
