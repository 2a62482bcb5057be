r"""Penalties that look at one weight at a time: squared :math:`\ell_2` (ridge) and :math:`\ell_1` (lasso)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from companion.penalties._base import NormPenalty, Penalty, RowNorm, check_positive

__all__ = ["L1", "NormPenalty", "Penalty", "SquaredL2", "soft_threshold"]


def soft_threshold(V: Tensor, threshold: float | Tensor) -> Tensor:
    """Move every entry of V towards zero by the threshold; smaller ones become exactly zero."""
    return V.sign() * (V.abs() - threshold).clamp(min=0.0)


@dataclass(frozen=True)
class SquaredL2:
    r"""Ridge penalty :math:`\tfrac{\alpha}{2} \lVert W \rVert_F^2`, alpha > 0."""

    alpha: float

    def __post_init__(self) -> None:
        check_positive("alpha", self.alpha)

    def value(self, W: Tensor) -> Tensor:
        """Penalty of weights of any shape."""
        return self.alpha / 2 * (W**2).sum()

    def prox(self, V: Tensor, step: float) -> Tensor:
        """Shrink every weight by the factor ``1 / (1 + step * alpha)``."""
        return V / (1 + step * self.alpha)

    def dual_scale(self, C: Tensor) -> float:
        """Every dual point is feasible."""
        return 1.0

    def conjugate(self, C: Tensor) -> Tensor:
        r""":math:`\lVert C \rVert_F^2 / (2 \alpha)`."""
        return (C**2).sum() / (2 * self.alpha)

    def scaled(self, factor: float) -> SquaredL2:
        """The same penalty times ``factor`` > 0."""
        return SquaredL2(factor * self.alpha)


@dataclass(frozen=True)
class L1(NormPenalty):
    r"""Lasso penalty :math:`\alpha \lVert W \rVert_1`, alpha > 0."""

    alpha: float

    def __post_init__(self) -> None:
        check_positive("alpha", self.alpha)

    def value(self, W: Tensor) -> Tensor:
        """Penalty of weights of any shape."""
        return self.alpha * W.abs().sum()

    def prox(self, V: Tensor, step: float) -> Tensor:
        """Move every weight towards zero by ``step * alpha``; smaller ones become exactly zero."""
        return soft_threshold(V, step * self.alpha)

    def dual_norm(self, C: Tensor) -> float:
        r""":math:`\max |C| / \alpha`."""
        return float(C.abs().max()) / self.alpha

    def scaled(self, factor: float) -> L1:
        """The same penalty times ``factor`` > 0."""
        return L1(factor * self.alpha)

    @property
    def rows(self) -> RowNorm:
        """The penalty of one row in numbers, those of a block norm with q = 1."""
        return RowNorm(self.alpha, math.inf, 1.0)
