"""Proximal Newton for the logistic loss: a sequence of weighted least-squares problems."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from companion.losses import LogisticLoss
from companion.penalties.elementwise import Penalty
from companion.solvers.duality import Certificate, certify
from companion.solvers.quadratic import group_sums


def prox_newton(
    X: Tensor,
    y: Tensor,
    v: Tensor,
    groups: Tensor | None,
    n_groups: int,
    penalty: Penalty,
    solve_quadratic: Callable[[Tensor, Tensor, Tensor, Tensor | None, int, float], Tensor],
    tol: float,
    max_iter: int,
    start: Tensor | None = None,
) -> tuple[Tensor, Tensor, Certificate, int]:
    r"""Minimise :math:`\sum_i v_i \log(1 + e^{-y_i (x_i^\top w + b_{g(i)})}) + \Omega(w)`.

    Each iteration replaces the loss by its second-order expansion, solves that weighted least-squares problem with the
    same penalty, and goes along the segment towards its solution until the objective falls. Intercepts are solved to
    machine precision before every certificate.

    Parameters
    ----------
    X : (n, d) float64 tensor
    y, v : (n,) float64 tensors
        Labels -1/+1 and row weights > 0.
    groups : (n,) int64 tensor or None
        Group of every row; each group has its own free intercept. None: no intercept.
    solve_quadratic : callable
        ``(X, z, h, groups, n_groups, gap) -> w`` for targets ``z`` and row weights ``h``; iterative ones may stop at
        the absolute duality gap ``gap`` of that problem.
    tol : float
        Stop when the gap is at most ``tol`` times the objective of the intercept-only model. It must not be negative
        by more either: that would be rounding, not convergence.
    start : (d,) tensor, optional
        First weights; zero by default.

    Returns
    -------
    w (d,), intercepts (n_groups,), Certificate at both, iterations used
    """
    loss = LogisticLoss()
    w = X.new_zeros(X.shape[1]) if start is None else start

    def evaluate(w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        b = logistic_intercepts(X @ w, y, v, groups, n_groups)
        m = X @ w if groups is None else X @ w + b[groups]
        return b, m, loss.value(y, m, v) + penalty.value(w)

    null = float(evaluate(torch.zeros_like(w))[2])
    b, m, value = evaluate(w)
    before: tuple[Tensor, Tensor, Certificate] | None = (
        None  # the point before a step too small to be seen in the value
    )
    for iteration in range(1, max_iter + 1):
        certificate = certify(loss, penalty, X, y, v, w, m)
        if before is not None and abs(certificate.gap) >= abs(before[2].gap):
            return *before, iteration
        if abs(certificate.gap) <= tol * null:
            return w, b, certificate, iteration
        # The floor keeps rows classified beyond doubt in the expansion; their curvature underflows.
        h = torch.maximum(loss.curvature(y, m, v), 1e-12 * v)
        # Newton's own error falls quadratically: its subproblems have to be better than the final tolerance.
        target = m - loss.grad(y, m, v) / h
        direction = solve_quadratic(X, target, h, groups, n_groups, tol * null / 20) - w
        # Near the solution the value falls by the square of what the gap falls by, hence by less than rounding.
        allowed, step = value + 1e-15 * null, 1.0
        new = evaluate(w + direction)
        while new[2] > allowed and step > 1e-10:
            step /= 2
            new = evaluate(w + step * direction)
        if new[2] > allowed:
            return w, b, certificate, iteration
        before = (w, b, certificate) if new[2] >= value else None
        w, (b, m, value) = w + step * direction, new
    return w, b, certify(loss, penalty, X, y, v, w, m), max_iter


def logistic_intercepts(m: Tensor, y: Tensor, v: Tensor, groups: Tensor | None, n_groups: int) -> Tensor:
    """(G,) intercepts that minimise the logistic loss over margins ``m (n,)``, to machine precision.

    Newton steps inside a bracket that halves whenever a step leaves it. Every group needs both labels.
    """
    if groups is None:
        return m.new_zeros(n_groups)
    # Odds of the labels bound the optimal intercept up to the largest margin.
    spread = m.abs().max() + 2 * (1 + (group_sums(v, groups, n_groups) / _lightest_label(y, v, groups, n_groups)).log())
    low, high, b = -spread, spread, torch.zeros_like(spread)
    loss = LogisticLoss()
    for _ in range(100):
        shifted = m + b[groups]
        slope = group_sums(loss.grad(y, shifted, v), groups, n_groups)
        bend = group_sums(loss.curvature(y, shifted, v), groups, n_groups)
        low, high = torch.where(slope < 0, b, low), torch.where(slope > 0, b, high)
        newton = b - slope / bend.clamp(min=1e-300)
        inside = (newton >= low) & (newton <= high)  # at the solution the step is zero and b an end of the bracket
        proposal = torch.where(slope == 0, b, torch.where(inside, newton, (low + high) / 2))
        moved = (proposal - b).abs()
        b = proposal
        if bool((moved <= 1e-15 * (1 + b.abs())).all()):
            break
    return b


def _lightest_label(y: Tensor, v: Tensor, groups: Tensor, n_groups: int) -> Tensor:
    """(G,) smaller of the total weights of the two labels in every group."""
    positive = group_sums(torch.where(y > 0, v, 0.0), groups, n_groups)
    return torch.minimum(positive, group_sums(torch.where(y < 0, v, 0.0), groups, n_groups))
