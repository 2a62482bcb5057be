"""Proximal Newton for losses that are not quadratic: a sequence of weighted least-squares problems."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from companion.penalties._base import Penalty
from companion.solvers.duality import Certificate
from companion.solvers.problem import Point, Problem


def prox_newton(
    problem: Problem,
    penalty: Penalty,
    solve_quadratic: Callable[[Tensor, Tensor, Tensor, float], Tensor],
    gap: float,
    max_iter: int,
    start: Tensor | None = None,
) -> tuple[Point, Certificate, int]:
    r"""Minimise the problem's loss :math:`F(W)` plus a penalty :math:`\Omega(W)`.

    Each iteration replaces the loss by its second-order expansion in the margins, solves that weighted least-squares
    problem with the same penalty, and goes along the segment towards its solution until the objective falls.
    Intercepts are at their best in every point.

    Parameters
    ----------
    problem : Problem
    penalty : Penalty
    solve_quadratic : callable
        ``(z, h, W, gap) -> W`` for targets ``z`` and row weights ``h``, one per row: the minimiser of
        ``1/2 sum h (z - X w - b)^2`` plus ridge and penalty. Iterative ones start at ``W`` and may stop at the absolute
        duality gap ``gap`` of that problem.
    gap : float
        Stop at this absolute duality gap. It must not be negative by more either: that would be rounding, not
        convergence.
    start : (d, T) tensor, optional
        First weights; zero by default.

    Returns
    -------
    point, its Certificate, iterations used
    """
    rounding = 1e-15 * problem.null_objective
    point = problem.at(problem.zero() if start is None else start)
    value = point.value + float(penalty.value(point.W))
    before: tuple[Point, Certificate] | None = None  # the point before a step too small to be seen in the value
    for iteration in range(1, max_iter + 1):
        certificate = problem.certify(penalty, point)
        if before is not None and abs(certificate.gap) >= abs(before[1].gap):
            return *before, iteration
        if abs(certificate.gap) <= gap:
            return point, certificate, iteration
        y, v, m = problem.y, problem.v, point.margin
        # The floor keeps rows classified beyond doubt in the expansion; their curvature underflows.
        h = torch.maximum(problem.loss.curvature(y, m, v), 1e-12 * v)
        z = m - torch.where(v > 0, problem.loss.grad(y, m, v) / h.clamp(min=1e-300), 0.0)
        # Newton's own error falls quadratically: its subproblems have to be better than the final tolerance.
        direction = solve_quadratic(z, h, point.W, gap / 20) - point.W
        # Near the solution the value falls by the square of what the gap falls by, hence by less than rounding.
        new, new_value = _search(problem, penalty, point.W, direction, value + rounding)
        if new_value > value + rounding:
            return point, certificate, iteration
        before = (point, certificate) if new_value >= value else None
        point, value = new, new_value
    return point, problem.certify(penalty, point), max_iter


def _search(problem: Problem, penalty: Penalty, W: Tensor, direction: Tensor, allowed: float) -> tuple[Point, float]:
    """Halve the step until the objective is at most ``allowed``, down to 1e-10."""
    step = 1.0
    while True:
        point = problem.at(W + step * direction)
        value = point.value + float(penalty.value(point.W))
        if value <= allowed or step <= 1e-10:
            return point, value
        step /= 2
