r"""Ridge regression of all tasks at once, coupled by a penalty :math:`\tfrac12 \operatorname{tr}(W A W^\top)`.

The optimality condition is one linear system over all weights,

.. math:: X_t^\top V_t X_t\, w_t + \sum_s A_{ts}\, w_s = X_t^\top V_t\, y_t , \qquad t = 1, \dots, T,

of order ``dT``. It is never formed: conjugate gradients ask for one product per iteration.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeGuard

import torch
from torch import Tensor

from companion.losses import SquaredLoss
from companion.penalties._base import Penalty
from companion.solvers.duality import Certificate
from companion.solvers.problem import Point, Problem
from companion.solvers.prox_newton import prox_newton
from companion.solvers.rows import SharedRows

# The gap is quadratic in the error of the weights. A few more iterations give these as many digits as the gap has.
_BEYOND = 1e-6
_FEW_NUMBERS, _MOST_NUMBERS = 1 << 21, 1 << 27  # in the blocks of a preconditioner: 16 MiB, 1 GiB


class QuadraticPenalty(Penalty, Protocol):
    """A penalty with a linear gradient ``W A``, and the diagonal of A."""

    def times(self, W: Tensor) -> Tensor: ...

    def diagonal(self, W: Tensor) -> Tensor: ...


def is_task_quadratic(penalty: Penalty) -> TypeGuard[QuadraticPenalty]:
    """Whether the gradient of a penalty is ``W A``."""
    return hasattr(penalty, "times") and hasattr(penalty, "diagonal")


def task_ridge(
    problem: Problem, penalty: QuadraticPenalty, gap: float, max_iter: int, start: Tensor | None = None
) -> tuple[Tensor, int]:
    r"""Minimise a squared loss plus :math:`\tfrac12 \operatorname{tr}(W A W^\top)` by conjugate gradients.

    The gradient of the objective at W is minus the residual R of the linear system. With the dual point that belongs to
    W, the duality gap is :math:`\tfrac12 \operatorname{tr}(R A^{-1} R^\top)`, so that the residual itself says when to
    stop.

    Parameters
    ----------
    problem : Problem
        Squared loss; intercepts may be free.
    penalty : QuadraticPenalty
        With A positive definite.
    gap : float
        Absolute duality gap to reach. Iterations go on to a millionth of it, as long as they make progress.
    max_iter : int
        Most iterations.
    start : (d, T) tensor, optional
        First weights; zero by default.

    Returns
    -------
    (d, T) weights and the iterations used
    """
    W = problem.zero() if start is None else start
    constant = problem.gradient(problem.zero())  # the gradient of a squared loss is affine: this is what W adds to

    def system(V: Tensor) -> Tensor:
        return problem.gradient(V) - constant + penalty.times(V)

    R = -problem.gradient(W) - penalty.times(W)
    now = before = float(penalty.conjugate(R))
    if now <= _BEYOND * gap:
        return W, 0
    precondition = block_inverse(problem, penalty.diagonal(W))
    P, rho = torch.zeros_like(W), 1.0
    for iteration in range(1, max_iter + 1):
        Z = precondition(R)
        rho_before, rho = rho, float((R * Z).sum())
        P = Z + (rho / rho_before) * P
        Q = system(P)
        curvature = float((P * Q).sum())
        if not curvature > 0:  # the direction is rounding
            return W, iteration
        W = W + rho / curvature * P
        fresh = iteration % 50 == 0  # rounding accumulates in the updated residual
        R = -problem.gradient(W) - penalty.times(W) if fresh else R - rho / curvature * Q
        now = float(penalty.conjugate(R))
        if now <= _BEYOND * gap or (fresh and now <= gap and now > before / 2):
            return W, iteration
        before = now if fresh else before
    return W, max_iter


def minimise_task_quadratic(
    problem: Problem, penalty: QuadraticPenalty, gap: float, max_iter: int, start: Point | None = None
) -> tuple[Point, Certificate, int]:
    """Any loss plus a quadratic penalty over tasks: one linear system, or proximal Newton with one per step.

    ``max_iter`` bounds the iterations in each linear system, and the Newton steps.
    """
    W = None if start is None else start.W
    if isinstance(problem.loss, SquaredLoss):
        W, n_iter = task_ridge(problem, penalty, gap / 2, max_iter, W)  # half: margins are rounded once more
        point = problem.with_descent(problem.at(W))
        return point, problem.certify(penalty, point), n_iter

    def quadratic(z: Tensor, h: Tensor, W: Tensor, gap: float) -> Tensor:
        weighted = Problem(problem.rows, z, h, SquaredLoss(), problem.l2, problem.free)
        return task_ridge(weighted, penalty, gap, max_iter, W)[0]

    return prox_newton(problem, penalty, quadratic, gap, max_iter, W)


def block_inverse(problem: Problem, diagonal: Tensor) -> Callable[[Tensor], Tensor]:
    r"""Inverse of the system's diagonal blocks, :math:`X_t^\top V_t X_t + A_{tt} I`, as a preconditioner.

    With weak coupling it nearly solves the system; what couples the tasks beyond it has few directions.
    """
    shift = diagonal + problem.l2  # (T,)
    d, T = problem.n_features, problem.n_tasks
    if problem.moments is not None and problem.moments.XtX.shape[0] == 1:  # one matrix for all: diagonalise it
        values, Q = torch.linalg.eigh(problem.moments.XtX[0])
        scale = 1 / (values.clamp(min=0.0)[:, None] + shift)
        return lambda R: Q @ (scale * (Q.T @ R))
    n_rows = problem.y.shape[0] if isinstance(problem.rows, SharedRows) else problem.y.numel() / T
    if d > n_rows and d * d * T > _FEW_NUMBERS:
        return _tall_blocks(problem, shift)
    return _wide_blocks(problem, shift) if d * d * T <= _MOST_NUMBERS else _scaling(problem, shift)


def _wide_blocks(problem: Problem, shift: Tensor) -> Callable[[Tensor], Tensor]:
    """From second moments of order d."""
    if problem.moments is not None:
        G = problem.moments.XtX
    elif isinstance(problem.rows, SharedRows):
        G = torch.stack([X.T @ (v[:, None] * X) for X, v in problem.rows.blocks(problem.v)])
    else:
        G = problem.rows.gram(problem.v)
    eye = torch.eye(problem.n_features, dtype=G.dtype, device=G.device)
    inverse = torch.linalg.inv(G + shift[:, None, None] * eye)
    return lambda R: torch.bmm(inverse, R.T[:, :, None])[:, :, 0].T


def _scaling(problem: Problem, shift: Tensor) -> Callable[[Tensor], Tensor]:
    """Where even the blocks are too large: their diagonals."""
    scale = 1 / (problem.rows.squares(problem.v) + shift)
    return lambda R: scale * R


def _tall_blocks(problem: Problem, shift: Tensor) -> Callable[[Tensor], Tensor]:
    r"""From products of order n_t, for more features than rows (Woodbury).

    :math:`(X^\top X + a I)^{-1} = (I - X^\top (X X^\top + a I)^{-1} X) / a` with X scaled by the root of its weights.
    """
    factors = []
    for (X, v), a in zip(problem.rows.blocks(problem.v), shift.tolist(), strict=True):
        X = v.sqrt()[:, None] * X
        eye = torch.eye(X.shape[0], dtype=X.dtype, device=X.device)
        factors.append((X, torch.linalg.inv(X @ X.T + a * eye), a))

    def apply(R: Tensor) -> Tensor:
        columns = [(r - X.T @ (K @ (X @ r))) / a for (X, K, a), r in zip(factors, R.T, strict=True)]
        return torch.stack(columns, dim=1)

    return apply
