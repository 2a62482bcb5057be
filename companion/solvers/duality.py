"""Certificates: primal and dual value of one weighted problem from one function."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from companion.losses import Loss
from companion.penalties.elementwise import Penalty


class Certificate(NamedTuple):
    """Objective at a point and a lower bound on the optimum."""

    primal: float
    dual: float

    @property
    def gap(self) -> float:
        return self.primal - self.dual


def certify(loss: Loss, penalty: Penalty, X: Tensor, y: Tensor, v: Tensor, w: Tensor, m: Tensor) -> Certificate:
    r"""Primal and dual value at ``w`` of :math:`\min_w \sum_i v_i \ell(y_i, m_i) + \Omega(w)`.

    The dual point is the negative gradient of the loss in the margin, scaled into the dual ball. Where the problem has
    free intercepts, the margins must hold the optimal ones: only then do the dual variables sum to zero within every
    group of rows that shares an intercept, which the dual requires.

    Parameters
    ----------
    X : (n, d) tensor
    y, v, m : (n,) tensors
        Targets, row weights > 0, margins ``X w`` plus intercept.
    w : (d,) tensor
    """
    theta = -loss.grad(y, m, v)
    C = X.T @ theta  # (d,)
    scale = penalty.dual_scale(C)
    dual = loss.dual_value(y, scale * theta, v) - penalty.conjugate(scale * C)
    return Certificate(float(loss.value(y, m, v) + penalty.value(w)), float(dual))
