"""Which features can matter: dual norms row by row, and the gap safe rule that discards features for good."""

from __future__ import annotations

import math
from typing import Protocol, TypeGuard

import torch
from torch import Tensor

from companion.penalties._base import Penalty
from companion.solvers.problem import Point, Problem


class RowPenalty(Penalty, Protocol):
    """A penalty that treats every row of W by itself: ``rows`` holds its block weight, sparse weight and exponent."""

    @property
    def rows(self) -> tuple[float, float, float]: ...


def is_row_wise(penalty: Penalty) -> TypeGuard[RowPenalty]:
    """Whether a penalty treats every row of W by itself."""
    return hasattr(penalty, "rows")


def row_dual_norms(rows: tuple[float, float, float], C: Tensor, reach: Tensor | None = None) -> Tensor:
    r"""(d,) dual norms of the rows of ``C (d, T)`` under a row penalty; at most one where a row is feasible.

    With ``reach (d, T)``, bounds on them when row j moves by ``reach_j`` times a unit vector over tasks: by Hölder the
    p-norm of the move is at most the largest reach for p >= 2, else the r-norm of the reaches, 1/r = 1/p - 1/2.
    """
    block, sparse, q = rows
    p = math.inf if q == 1 else (1.0 if q == math.inf else q / (q - 1))
    r = math.inf if p >= 2 else 1 / (1 / p - 0.5)
    norms, largest = torch.linalg.vector_norm(C, p, dim=1), C.abs().amax(1)
    if reach is not None:
        reach = reach.expand_as(C)
        norms, largest = norms + torch.linalg.vector_norm(reach, r, dim=1), largest + reach.amax(1)
    return torch.maximum(norms / block, largest / sparse)


def surviving(problem: Problem, penalty: RowPenalty, point: Point, column_norms: Tensor) -> Tensor:
    r"""Features that may be nonzero in the solution (gap safe rule; Ndiaye et al. 2017).

    The dual solution lies within :math:`\sqrt{2 \mu\,\mathrm{gap}}` of the dual point at hand, in the geometry of the
    row weights, :math:`\mu` being the largest curvature of the loss. A feature whose correlations stay strictly inside
    the dual ball all over that region is zero.

    Parameters
    ----------
    point : Point
        Any weights; the better they are, the more features go.
    column_norms : (d, T) or (d, 1) tensor
        From :meth:`Problem.column_norms`.

    Returns
    -------
    (m,) int64 tensor of positions
    """
    point = problem.with_descent(point)
    gap = max(problem.certify(penalty, point).gap, 0.0)
    reach = (2 * problem.loss.max_curvature * gap) ** 0.5 * column_norms
    C = problem.descent(point)
    bound = row_dual_norms(penalty.rows, penalty.dual_scale(C) * C, reach)
    return torch.nonzero((bound >= 1 - 1e-9) | (point.W != 0).any(1))[:, 0]
