r"""The dirty model's penalty: some features serve all tasks and others only a few (Jalali et al., 2010)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from companion.penalties._base import NormPenalty, RowNorm, check_exponent, check_positive
from companion.penalties._rows import dual_exponent, prox_row_norms
from companion.penalties.block_sparse import BlockSparse
from companion.penalties.elementwise import L1


@dataclass(frozen=True)
class Dirty(NormPenalty):
    r"""Cheapest way to write ``W (d, T)`` as a block-sparse B plus a sparse S.

    .. math:: \Omega(W) = \min_{B + S = W} \alpha_b \sum_j \lVert B_{j,:} \rVert_q + \alpha_s \lVert S \rVert_1

    A sum W = B + S enters a loss only through W, so the split can be optimised out, and what remains is a norm. Its
    dual ball is the part that both dual balls share: :math:`\lVert C_{j,:} \rVert_p \le \alpha_b` for every row, with
    :math:`1/p + 1/q = 1`, and :math:`|C| \le \alpha_s`. Both parts are in use where
    :math:`\alpha_s < \alpha_b < T^{1/p} \alpha_s`. Below, S = 0; above, B = 0.

    Parameters
    ----------
    alpha_block, alpha_sparse : float
        Weights :math:`\alpha_b, \alpha_s > 0` of the two parts.
    q : float, default inf
        Exponent of the block norm, 1 <= q <= inf.
    """

    alpha_block: float
    alpha_sparse: float
    q: float = math.inf

    def __post_init__(self) -> None:
        check_positive("alpha_block", self.alpha_block)
        check_positive("alpha_sparse", self.alpha_sparse)
        check_exponent(self.q)

    def value(self, W: Tensor) -> Tensor:
        """Penalty of the best split of ``W (d, T)``."""
        B, S = self.split(W)
        return BlockSparse(self.alpha_block, self.q).value(B) + L1(self.alpha_sparse).value(S)

    def split(self, W: Tensor) -> tuple[Tensor, Tensor]:
        """Block and sparse part of ``W (d, T)``: every row is clipped at a level of its own, and S is what was cut off.

        Up to that level, a weight costs less as part of its row than by itself. The split need not be unique.
        """
        alone = self._one_part(W.shape[1])
        if alone is None:
            level = _clip_level(W, self.q, self.alpha_block / self.alpha_sparse)
            B = W.clamp(-level, level)
        else:
            B = W if isinstance(alone, BlockSparse) else torch.zeros_like(W)
        return B, W - B

    def prox(self, V: Tensor, step: float) -> Tensor:
        r"""Row by row, :math:`w = v - u` with u the nearest point to v in the dual ball, scaled by ``step``."""
        alone = self._one_part(V.shape[1])
        if alone is not None:
            return alone.prox(V, step)
        radius, cap = step * self.alpha_block, step * self.alpha_sparse
        if self.q == math.inf:  # u = v lowered by the threshold, and cut at the cap
            size = V.abs()
            threshold = _capped_l1_threshold(size, radius, cap)
            return V.sign() * torch.maximum(size.minimum(threshold), size - cap)
        if self.q == 2:  # u = v shrunk and cut at the cap, which is v cut at a level and then shrunk
            level = _clip_level(V, 2, self.alpha_block / self.alpha_sparse)
            level = level.clamp(min=max(cap, torch.finfo(V.dtype).tiny))  # below the cap, v is cut there alone
            return V - cap / level * V.clamp(-level, level)
        return prox_row_norms(V, self.q, radius, cap)

    def dual_norm(self, C: Tensor) -> float:
        r"""The larger of :math:`\max_j \lVert C_{j,:} \rVert_p / \alpha_b` and :math:`\max |C| / \alpha_s`."""
        return max(BlockSparse(self.alpha_block, self.q).dual_norm(C), L1(self.alpha_sparse).dual_norm(C))

    def scaled(self, factor: float) -> Dirty:
        """The same penalty times ``factor`` > 0."""
        return Dirty(factor * self.alpha_block, factor * self.alpha_sparse, self.q)

    @property
    def rows(self) -> RowNorm:
        """The penalty of one row in numbers."""
        return RowNorm(self.alpha_block, self.alpha_sparse, self.q)

    def _one_part(self, n_tasks: int) -> BlockSparse | L1 | None:
        """The penalty of the only part in use, where the other is never worth its price."""
        ratio = self.alpha_block / self.alpha_sparse
        if ratio <= 1:
            return BlockSparse(self.alpha_block, self.q)
        return L1(self.alpha_sparse) if ratio >= n_tasks ** (1 / dual_exponent(self.q)) else None


def _clip_level(W: Tensor, q: float, ratio: float) -> Tensor:
    r"""(d, 1) levels t at which the rows of ``W (d, T)`` are clipped, for ``ratio = alpha_block / alpha_sparse``.

    Where both parts are in use, the price of raising t is the same in both: :math:`\sum_i \min(|w_i| / t, 1)^q =`
    ratio :math:`^p`. With the weights sorted, this is solved between any two neighbours: if k of them are clipped,
    :math:`t^q (\text{ratio}^p - k) = \sum_{i > k} |w_i|^q`. For q = inf it is the weight after the first ``ratio``.
    """
    w = W.abs().sort(dim=1, descending=True).values  # (d, T)
    if q == math.inf:
        return w[:, int(ratio), None]
    total = ratio ** dual_exponent(q)
    size = w[:, :1].clamp(min=torch.finfo(W.dtype).tiny)
    logs = (w / size).log()
    tails = (q * logs).flip(1).logcumsumexp(1).flip(1)  # (d, T) logarithms of sum_{i > k} w_i^q, k = 0..T-1
    counts = torch.arange(W.shape[1], dtype=W.dtype, device=W.device)
    left = counts + (tails - q * logs).clamp(min=0.0).exp()  # the sum of the equation at t = |w_k+1|
    k = (left < total).sum(dim=1, keepdim=True)
    last = W.new_full((W.shape[0], 1), -math.inf)  # all weights are clipped: t = 0
    tail = torch.cat([tails, last], dim=1).gather(1, k)
    return size * ((tail - (total - k.to(W.dtype)).log()) / q).exp()


def _capped_l1_threshold(V: Tensor, radius: float, cap: float) -> Tensor:
    """(d, 1) thresholds for which ``sum_i min(max(v_i - threshold, 0), cap)`` is ``radius``, at least 0; V >= 0.

    As the threshold falls, an entry adds to the sum from v_i on and stops at v_i - cap. Between two such points the sum
    is straight, so it is known at all of them.
    """
    ones = torch.ones_like(V)
    points, order = torch.cat([V, V - cap], dim=1).sort(dim=1, descending=True)  # (d, 2T)
    slopes = torch.cat([ones, -ones], dim=1).gather(1, order).cumsum(dim=1)  # below each point
    gains = (slopes * -points.diff(dim=1, append=points[:, -1:])).cumsum(dim=1)  # sum at the next point
    sums = gains.roll(1, dims=1)
    sums[:, 0] = 0.0
    last = (sums <= radius).sum(dim=1, keepdim=True) - 1
    point, slope, sum_ = (values.gather(1, last) for values in (points, slopes, sums))
    return (point - (radius - sum_) / slope.clamp(min=1.0)).clamp(min=0.0)
