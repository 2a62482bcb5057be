r"""Rows under an :math:`\ell_q` norm: the norm itself, and its prox for q that has no closed form."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def dual_exponent(q: float) -> float:
    r"""The p with :math:`1/p + 1/q = 1`: the dual of the q-norm is the p-norm."""
    if q == 1:
        return math.inf
    return 1.0 if q == math.inf else q / (q - 1)


def row_norms(W: Tensor, q: float) -> Tensor:
    """(d, 1) q-norms of the rows of ``W (d, T)``, divided by their maximum first: no power over- or underflows."""
    largest = W.abs().amax(dim=1, keepdim=True)
    if q == math.inf:
        return largest
    size = largest.clamp(min=torch.finfo(W.dtype).tiny)  # a row of zeros stays one
    return size * torch.linalg.vector_norm(W / size, ord=q, dim=1, keepdim=True)


def prox_row_norms(V: Tensor, q: float, tau: float, cap: float = math.inf) -> Tensor:
    r"""Minimise :math:`\tfrac12 \lVert w - v \rVert^2 + \tau \lVert w \rVert_q` for every row v of V, by root finding.

    By Moreau, :math:`w = v - u` with u the projection of v on the ball :math:`\lVert u \rVert_p \le \tau`, where
    :math:`1/p + 1/q = 1`. A ``cap`` cuts the box :math:`|u_t| \le` cap out of the ball, which turns the penalty into
    that of the dirty model.

    Parameters
    ----------
    V : (d, T) tensor
    q : float
        1 < q < inf.
    tau, cap : float
        Radii > 0 of the ball and of the box.

    Returns
    -------
    (d, T) tensor
        Rows whose projection is v itself become exactly zero.
    """
    boxed = V.clamp(-cap, cap)
    W = V - boxed
    outside = (row_norms(boxed, dual_exponent(q)) > tau).squeeze(1)  # the other rows meet the box alone
    v = V[outside]  # (r, T)
    size = v.abs().amax(dim=1, keepdim=True)
    W[outside] = v.sign() * size * _solve_rows(v.abs() / size, q, tau / size, cap / size)
    return W


def _solve_rows(v: Tensor, q: float, tau: Tensor, cap: Tensor) -> Tensor:
    r"""The prox of rows ``v (r, T)`` with maximum 1 that lie outside the ball of radius ``tau (r, 1)``.

    Without a cap, s = ||w||_q solves the problem when u has norm tau, and all u shrink as s grows. By Hölder's
    equality :math:`(u_t / \tau)^p = w_t u_t / (s \tau)`, so the condition reads ``ball(s) = 1``. Newton's method runs
    on ``ball(s) ** (-1 / q)``, which is nearly straight, inside a bracket that halves whenever a step leaves it.
    """
    tau = tau.clamp(min=torch.finfo(v.dtype).tiny)
    capped = (cap / tau) ** dual_exponent(q)  # what a capped entry adds to the ball
    low, high = torch.zeros_like(tau), row_norms(v, q)
    s = high
    for _ in range(200):
        w, u = _share(v, q, s, tau)
        free = u < cap
        part = torch.where(free, w / s * (u / tau), capped)
        ball = part.sum(dim=1, keepdim=True)
        slope = torch.where(free, part * w / (w + (q - 1) * u), 0.0).nan_to_num().sum(dim=1, keepdim=True)
        low, high = torch.where(ball >= 1, s, low), torch.where(ball <= 1, s, high)
        newton = s * (1 + (ball.log() / q).expm1() * ball / slope)  # expm1: q may be large
        inside = (newton >= low) & (newton <= high)
        moved, s = s, torch.where(inside, newton, (low + high) / 2)
        # Convergence is quadratic: the step after one this small is below rounding.
        if bool(((s - moved).abs() <= torch.finfo(v.dtype).eps ** 0.75 * s).all()):
            break
    w, u = _share(v, q, s, tau)
    return torch.where(u < cap, w, v - cap)


def _share(v: Tensor, q: float, s: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
    """Split ``v >= 0`` into ``w + u`` with ``u / tau = (w / s) ** (q - 1)``, entry by entry."""
    if q < 2:  # the same with both parts exchanged: the power that is solved for is then above one
        u, w = _share(v, dual_exponent(q), tau, s)
        return w, u
    k = q - 1
    z = torch.minimum(v / s, (v / tau) ** (1 / k))
    for _ in range(200):  # s z + tau z^k is convex in z: from the right, Newton's steps all go down
        w, u = s * z, tau * z**k
        step = (v - w - u) / (w + k * u).clamp(min=torch.finfo(v.dtype).tiny)
        z = z * (1 + step)
        if bool((step.abs() <= torch.finfo(v.dtype).eps ** 0.75).all()):
            break
    return w * (1 + step), u * (1 + k * step)  # the last step, with the rounding of z in it
