r"""Penalties that look at one weight at a time: squared :math:`\ell_2` (ridge) and :math:`\ell_1` (lasso)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Penalty(Protocol):
    """What a certificate asks of a penalty."""

    def value(self, W: Tensor) -> Tensor: ...

    def dual_scale(self, C: Tensor) -> float: ...

    def conjugate(self, C: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class SquaredL2:
    r"""Ridge penalty :math:`\tfrac{\alpha}{2} \lVert W \rVert_F^2`, alpha > 0."""

    alpha: float

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


@dataclass(frozen=True)
class L1:
    r"""Lasso penalty :math:`\alpha \lVert W \rVert_1`, alpha > 0."""

    alpha: float

    def value(self, W: Tensor) -> Tensor:
        """Penalty of weights of any shape."""
        return self.alpha * W.abs().sum()

    def prox(self, V: Tensor, step: float) -> Tensor:
        """Move every weight towards zero by ``step * alpha``; smaller ones become exactly zero."""
        return V.sign() * (V.abs() - step * self.alpha).clamp(min=0.0)

    def dual_norm(self, C: Tensor) -> float:
        """Largest absolute entry."""
        return float(C.abs().max())

    def dual_scale(self, C: Tensor) -> float:
        """Largest s <= 1 for which ``s C`` lies in the dual ball ``max|s C| <= alpha``."""
        norm = self.dual_norm(C)
        return 1.0 if norm <= self.alpha else self.alpha / norm

    def conjugate(self, C: Tensor) -> Tensor:
        """Zero inside the dual ball, where :meth:`dual_scale` has put the point."""
        return torch.zeros((), dtype=C.dtype, device=C.device)
