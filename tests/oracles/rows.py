"""One row of W at a time, slowly: its penalty, and the minimum of a quadratic plus that penalty by cvxpy."""

from __future__ import annotations

import numpy as np


def row_penalty(w, block, sparse, q):
    """``min_{b + s = w} block ||b||_q + sparse ||s||_1``, by trying levels at which to cut the weights off.

    Up to a common level a weight belongs to b, and what exceeds it to s. Without a sparse part: ``block ||w||_q``.
    """
    if np.isinf(sparse):
        return block * np.linalg.norm(w, ord=q)
    size = np.abs(w)
    if q == np.inf:  # split every weight at a common level; the best level is one of the weights, or zero
        return min(block * c + sparse * np.maximum(size - c, 0).sum() for c in [0.0, *size])
    levels = np.linspace(0, size.max(), 200_001)[:, None]  # at the best level the rest is a minimum: quadratic error
    cost = block * np.linalg.norm(np.minimum(size, levels), ord=q, axis=1)
    return float((cost + sparse * np.maximum(size - levels, 0).sum(1)).min())


def row_minimum(c, L, block, sparse, q):
    """Minimiser of ``sum_t L_t/2 w_t^2 - c_t w_t`` plus the row penalty, by cvxpy's interior point method."""
    import warnings

    import cvxpy as cp

    w, b = cp.Variable(len(c)), cp.Variable(len(c))
    norm = {1: cp.norm1, 2: cp.norm2, np.inf: cp.norm_inf}.get(q, lambda x: cp.pnorm(x, q))
    penalty, constraints = (
        (block * norm(w), []) if np.isinf(sparse) else (block * norm(b) + sparse * cp.norm1(w - b), [])
    )
    problem = cp.Problem(cp.Minimize(cp.sum_squares(cp.multiply(np.sqrt(L), w)) / 2 - c @ w + penalty), constraints)
    with warnings.catch_warnings():  # of accuracy below 1e-12, which nobody asks for
        warnings.simplefilter("ignore")
        problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-13, tol_gap_rel=1e-13, tol_feas=1e-13)
    return w.value


def sweep(A, y, W, l2, block, sparse, q):
    """One pass of exact minimisation over the rows of ``W (m, T)``; ``A`` is a list of designs ``(n_t, m)``."""
    W = W.copy()
    for j in range(len(W)):
        L = np.array([X[:, j] @ X[:, j] for X in A]) + l2
        c = np.array([X[:, j] @ (t - X @ w) + (X[:, j] @ X[:, j]) * w[j] for X, t, w in zip(A, y, W.T, strict=True)])
        W[j] = row_minimum(c, L, block, sparse, q)
    return W


def objective(A, y, W, l2, block, sparse, q):
    """Squared loss plus ridge plus row penalties."""
    loss = sum(((t - X @ w) ** 2).sum() for X, t, w in zip(A, y, W.T, strict=True)) / 2
    return loss + l2 / 2 * (W**2).sum() + sum(row_penalty(w, block, sparse, q) for w in W)
