r"""What every penalty offers, and what all norms share.

A norm :math:`\Omega` has the dual norm :math:`\Omega^*(C) = \max \{\langle C, W \rangle : \Omega(W) \le 1\}`. Its
conjugate is zero where the dual norm is at most one, and infinite elsewhere. The weight of a penalty belongs to the
norm, so "C is dual feasible" reads ``dual_norm(C) <= 1`` for every one of them, and with weight one the dual norm of
the gradient at zero is the smallest penalty for which the solution is zero.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor


class Penalty(Protocol):
    """What solvers and certificates ask of a penalty."""

    def value(self, W: Tensor) -> Tensor: ...

    def prox(self, V: Tensor, step: float) -> Tensor: ...

    def dual_scale(self, C: Tensor) -> float: ...

    def conjugate(self, C: Tensor) -> Tensor: ...

    def scaled(self, factor: float) -> Self: ...


class NormPenalty(Penalty, Protocol):
    """A penalty that is a norm: it has a dual norm, and the rest of its dual follows."""

    def dual_norm(self, C: Tensor) -> float: ...

    def dual_scale(self, C: Tensor) -> float:
        """Largest s <= 1 for which ``s C`` lies in the dual ball."""
        return 1 / max(1.0, self.dual_norm(C))

    def conjugate(self, C: Tensor) -> Tensor:
        """Zero inside the dual ball, where :meth:`dual_scale` has put the point."""
        return torch.zeros((), dtype=C.dtype, device=C.device)


class RowNorm(NamedTuple):
    r"""A penalty that treats every row w by itself, in numbers, for solvers that are compiled.

    It is the least :math:`a \lVert b \rVert_q + c \lVert s \rVert_1` over all :math:`w = b + s`, with
    ``a = alpha_block`` and ``c = alpha_sparse``, infinite where there is no sparse part.
    """

    alpha_block: float
    alpha_sparse: float
    q: float


def check_positive(name: str, weight: float) -> None:
    """Refuse weights of a penalty that are not finite and above zero."""
    if not 0 < weight < math.inf:
        raise ValueError(f"{name} must be a finite number > 0; got {weight!r}")


def check_exponent(q: float) -> None:
    """Refuse exponents for which the q-norm is no norm."""
    if not q >= 1:
        raise ValueError(f"q must be a number in [1, inf]; got {q!r}")
