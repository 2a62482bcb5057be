r"""Penalties on singular values: trace norm, its square, and low rank plus outlier tasks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from companion.penalties._base import NormPenalty, check_positive
from companion.penalties.block_sparse import BlockSparse


@dataclass(frozen=True)
class TraceNorm(NormPenalty):
    r"""Trace norm :math:`\alpha \lVert W \rVert_*` of ``W (d, T)``: alpha > 0 times the sum of the singular values.

    It favours weights of low rank: tasks whose weight vectors lie in a subspace of few dimensions.
    """

    alpha: float

    def __post_init__(self) -> None:
        check_positive("alpha", self.alpha)

    def value(self, W: Tensor) -> Tensor:
        """Weighted sum of the singular values of ``W (d, T)``."""
        return self.alpha * torch.linalg.svdvals(W).sum()

    def prox(self, V: Tensor, step: float) -> Tensor:
        """Lower every singular value of ``V (d, T)`` by ``step * alpha``, at least to zero (Cai et al., 2010)."""
        return lower_singular_values(V, lambda s: torch.full_like(s[0], step * self.alpha))

    def dual_norm(self, C: Tensor) -> float:
        """Largest singular value, over alpha."""
        return float(torch.linalg.matrix_norm(C, ord=2)) / self.alpha

    def scaled(self, factor: float) -> TraceNorm:
        """The same penalty times ``factor`` > 0."""
        return TraceNorm(factor * self.alpha)


@dataclass(frozen=True)
class SquaredTraceNorm:
    r"""Squared trace norm :math:`\gamma \lVert W \rVert_*^2`, gamma > 0, to which convex feature learning amounts."""

    gamma: float

    def __post_init__(self) -> None:
        check_positive("gamma", self.gamma)

    def value(self, W: Tensor) -> Tensor:
        """Weighted square of the sum of the singular values of ``W (d, T)``."""
        return self.gamma * torch.linalg.svdvals(W).sum() ** 2

    def prox(self, V: Tensor, step: float) -> Tensor:
        r"""Lower every singular value by the same amount: :math:`c = 2 \gamma` step, times what is left of their sum.

        If the k largest remain and add up to S before, the amount is :math:`c S / (1 + k c)`. As for the
        :math:`\ell_1` ball, one more raises it exactly as long as that one is above it: the right k gives the most.
        """
        c = 2 * self.gamma * step

        def amount(s: Tensor) -> Tensor:
            counts = torch.arange(1, len(s) + 1, dtype=s.dtype, device=s.device)
            return (c * s.cumsum(0) / (1 + c * counts)).max()

        return lower_singular_values(V, amount)

    def dual_scale(self, C: Tensor) -> float:
        """Every dual point is feasible."""
        return 1.0

    def conjugate(self, C: Tensor) -> Tensor:
        r""":math:`\lVert C \rVert_2^2 / (4 \gamma)` with the spectral norm."""
        return torch.linalg.matrix_norm(C, ord=2) ** 2 / (4 * self.gamma)

    def scaled(self, factor: float) -> SquaredTraceNorm:
        """The same penalty times ``factor`` > 0."""
        return SquaredTraceNorm(factor * self.gamma)


@dataclass(frozen=True)
class RobustPair(NormPenalty):
    r"""Norm :math:`\alpha_l \lVert L \rVert_* + \alpha_o \sum_t \lVert O_{:,t} \rVert_2` of the stack ``Z = (L, O)``.

    The weights L + O of a robust model are a low-rank part that the tasks share, and columns for the tasks that fit no
    subspace (Chen, Zhou and Ye, 2011).

    Parameters
    ----------
    alpha_low_rank, alpha_outlier : float
        Weights :math:`\alpha_l, \alpha_o > 0` of the two parts, which are stacked in arrays of shape (2, d, T).
    """

    alpha_low_rank: float
    alpha_outlier: float

    def __post_init__(self) -> None:
        check_positive("alpha_low_rank", self.alpha_low_rank)
        check_positive("alpha_outlier", self.alpha_outlier)

    @property
    def _low_rank(self) -> TraceNorm:
        return TraceNorm(self.alpha_low_rank)

    @property
    def _outlier(self) -> BlockSparse:
        return BlockSparse(self.alpha_outlier)  # its rows are the columns of O

    def value(self, Z: Tensor) -> Tensor:
        """Sum of both penalties of ``Z (2, d, T)``."""
        return self._low_rank.value(Z[0]) + self._outlier.value(Z[1].T)

    def prox(self, V: Tensor, step: float) -> Tensor:
        """Each part of ``V (2, d, T)`` by its own prox."""
        return torch.stack([self._low_rank.prox(V[0], step), self._outlier.prox(V[1].T, step).T])

    def dual_norm(self, C: Tensor) -> float:
        """The larger of the dual norms of both parts of ``C (2, d, T)``."""
        return max(self._low_rank.dual_norm(C[0]), self._outlier.dual_norm(C[1].T))

    def scaled(self, factor: float) -> RobustPair:
        """The same penalty times ``factor`` > 0."""
        return RobustPair(factor * self.alpha_low_rank, factor * self.alpha_outlier)


def lower_singular_values(V: Tensor, amount: Callable[[Tensor], Tensor]) -> Tensor:
    """Lower every singular value of V by the same amount, at least to zero, and keep the singular vectors.

    Parameters
    ----------
    V : (d, T) tensor
    amount : callable
        From singular values in falling order to the amount, a 0-dim tensor.
    """

    def factors(s: Tensor) -> Tensor:
        return (s - amount(s)).clamp(min=0.0) / s.clamp(min=torch.finfo(s.dtype).tiny)

    return scale_singular_values(V, factors)


def scale_singular_values(V: Tensor, factors: Callable[[Tensor], Tensor]) -> Tensor:
    r"""Multiply every singular value of V by a factor of its own, and keep the singular vectors.

    Eigenvectors of the smaller of :math:`V^\top V` and :math:`V V^\top` are cheaper than an SVD. But squares keep only
    half the digits of singular values far below the largest; unless these get the factor of a zero, it takes the SVD.

    Parameters
    ----------
    V : (d, T) tensor
    factors : callable
        From singular values in falling order (m,) to factors (m,); one zero more changes no other factor.
    """
    if V.shape[0] < V.shape[1]:
        return scale_singular_values(V.T, factors).T
    size = V.abs().max().clamp(min=torch.finfo(V.dtype).tiny)  # squares of V / size do not overflow
    squares, Q = torch.linalg.eigh((V / size).T @ (V / size))
    s, Q = size * squares.clamp(min=0.0).sqrt().flip(0), Q.flip(1)
    found = factors(torch.cat([s, torch.zeros_like(s[:1])]))
    vague = s < torch.finfo(V.dtype).eps ** 0.25 * s[0]
    if bool((found[:-1][vague] == found[-1]).all()):
        return V @ (Q * found[:-1]) @ Q.T
    U, s, Qh = torch.linalg.svd(V, full_matrices=False)
    return (U * (s * factors(s))) @ Qh
