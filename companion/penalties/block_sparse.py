r"""Block sparsity, :math:`\ell_1/\ell_q`: a sum of row norms, which keeps or drops a feature in all tasks at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from companion.penalties._base import NormPenalty, RowNorm, check_exponent, check_positive
from companion.penalties._rows import dual_exponent, prox_row_norms, row_norms
from companion.penalties.elementwise import soft_threshold


@dataclass(frozen=True)
class BlockSparse(NormPenalty):
    r"""Block norm :math:`\alpha \sum_j \lVert W_{j,:} \rVert_q` of ``W (d, T)``: row j holds feature j in all tasks.

    q = 2 is the group lasso. q = 1 is the lasso, which shares nothing. At q = inf only the largest weight of a row
    counts, and the others are free up to it.

    Parameters
    ----------
    alpha : float
        Weight, > 0.
    q : float, default 2
        Exponent of the row norm, 1 <= q <= inf.
    """

    alpha: float
    q: float = 2.0

    def __post_init__(self) -> None:
        check_positive("alpha", self.alpha)
        check_exponent(self.q)

    def value(self, W: Tensor) -> Tensor:
        """Weighted sum of the row norms of ``W (d, T)``."""
        return self.alpha * row_norms(W, self.q).sum()

    def prox(self, V: Tensor, step: float) -> Tensor:
        r"""Row by row, :math:`w = v - u` with u the nearest point to v in the dual ball of radius ``step * alpha``.

        Moreau's identity gives this for every norm. q = 1 lowers each weight by the radius and q = 2 the length of the
        row; q = inf clips the row, at the level where the cut tops add up to the radius. Any other q takes a root.
        """
        tau = step * self.alpha
        if self.q == 1:
            return soft_threshold(V, tau)
        if self.q == 2:
            norms = row_norms(V, 2)  # (d, 1)
            return V * torch.where(norms > tau, 1 - tau / norms, 0.0)
        if self.q == math.inf:
            level = _l1_threshold(V, tau)
            return V.clamp(-level, level)
        return prox_row_norms(V, self.q, tau)

    def dual_norm(self, C: Tensor) -> float:
        r""":math:`\max_j \lVert C_{j,:} \rVert_p / \alpha`, where :math:`1/p + 1/q = 1`."""
        return float(row_norms(C, dual_exponent(self.q)).max()) / self.alpha

    def scaled(self, factor: float) -> BlockSparse:
        """The same penalty times ``factor`` > 0."""
        return BlockSparse(factor * self.alpha, self.q)

    @property
    def rows(self) -> RowNorm:
        """The penalty of one row in numbers."""
        return RowNorm(self.alpha, math.inf, self.q)


def project_l1_ball(V: Tensor, radius: float) -> Tensor:
    r"""Nearest point to every row of V with :math:`\lVert u \rVert_1 \le` radius (Duchi et al., 2008).

    Parameters
    ----------
    V : (d, T) tensor
    radius : float
        At least 0.

    Returns
    -------
    (d, T) tensor
        Rows inside the ball stay as they are.
    """
    return soft_threshold(V, _l1_threshold(V, radius))


def _l1_threshold(V: Tensor, radius: float) -> Tensor:
    r"""(d, 1) amounts by which to lower the rows so that their :math:`\ell_1` norm is ``radius``; zero inside the ball.

    If the k largest entries stay positive, the amount is (their sum - radius) / k. Taking one entry more raises this
    exactly as long as that entry is above it, so the right k is the one that gives the most.
    """
    sums = V.abs().sort(dim=1, descending=True).values.cumsum(dim=1)
    counts = torch.arange(1, V.shape[1] + 1, dtype=V.dtype, device=V.device)
    return ((sums - radius) / counts).amax(dim=1, keepdim=True).clamp(min=0.0)
