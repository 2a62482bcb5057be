r"""Losses of one weighted problem, as functions of the margin ``m = X w + b``.

Every data term of the book is :math:`\sum_i v_i\,\ell(y_i, m_i)` with row weights :math:`v_i`: the sample weight for
``reduction="sum"``, the sample weight over :math:`n_t` for ``reduction="mean"``. A loss gives its value, its
derivatives in the margin, and the value of the Fenchel dual, from which solvers build their certificates.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Loss(Protocol):
    """What a solver may ask of a loss; ``y, m, v`` are ``(n,)`` tensors."""

    max_curvature: float

    def value(self, y: Tensor, m: Tensor, v: Tensor) -> Tensor: ...

    def grad(self, y: Tensor, m: Tensor, v: Tensor) -> Tensor: ...

    def curvature(self, y: Tensor, m: Tensor, v: Tensor) -> Tensor: ...

    def dual_value(self, y: Tensor, theta: Tensor, v: Tensor) -> Tensor: ...


class SquaredLoss:
    r"""Squared error :math:`\tfrac12 v (y - m)^2`."""

    max_curvature = 1.0

    def value(self, y: Tensor, m: Tensor, v: Tensor) -> Tensor:
        """Sum over the rows: a scalar; (G,) for ``y, v (n, 1)`` and margins ``(n, G)``."""
        return (v * (y - m) ** 2).sum(0) / 2

    def grad(self, y: Tensor, m: Tensor, v: Tensor) -> Tensor:
        """(n,) derivative in the margin."""
        return v * (m - y)

    def curvature(self, y: Tensor, m: Tensor, v: Tensor) -> Tensor:
        """(n,) second derivative in the margin."""
        return v

    def dual_value(self, y: Tensor, theta: Tensor, v: Tensor) -> Tensor:
        r""":math:`\sum_i \theta_i y_i - \theta_i^2 / (2 v_i)` at a dual point ``theta (n,)``."""
        return (theta * y - theta**2 / (2 * v)).sum()


class LogisticLoss:
    r"""Logistic loss :math:`v \log(1 + e^{-y m})` for labels -1 and +1."""

    max_curvature = 0.25

    def value(self, y: Tensor, m: Tensor, v: Tensor) -> Tensor:
        """Sum over the rows: a scalar; (G,) for ``y, v (n, 1)`` and margins ``(n, G)``."""
        return (v * torch.nn.functional.softplus(-y * m, threshold=40.0)).sum(0)

    def grad(self, y: Tensor, m: Tensor, v: Tensor) -> Tensor:
        """(n,) derivative in the margin."""
        return -v * y * torch.sigmoid(-y * m)

    def curvature(self, y: Tensor, m: Tensor, v: Tensor) -> Tensor:
        """(n,) second derivative in the margin."""
        return v * torch.sigmoid(m) * torch.sigmoid(-m)

    def dual_value(self, y: Tensor, theta: Tensor, v: Tensor) -> Tensor:
        r""":math:`\sum_i v_i H(q_i)` with :math:`q_i = y_i \theta_i / v_i` in [0, 1] and H the binary entropy."""
        q = (y * theta / v).clamp(0.0, 1.0)  # rounding only: a scaled -grad has q in [0, 1]
        return (v * (torch.special.entr(q) + torch.special.entr(1 - q))).sum()


def lipschitz(loss: Loss, X: Tensor, v: Tensor) -> float:
    r"""Lipschitz constant of the gradient in w: ``max_curvature`` times :math:`\lambda_{\max}(X^\top V X)`.

    Parameters
    ----------
    X : (n, d) tensor
    v : (n,) tensor of row weights
    """
    return loss.max_curvature * float(torch.linalg.matrix_norm(v.sqrt()[:, None] * X, ord=2)) ** 2
