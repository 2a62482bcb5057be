"""The convex multi-task problems once more: plain NumPy formulas, and cvxpy as an independent solver.

Nothing here uses the package. Data are lists of ``(X_t, y_t, s_t)``: design, targets (labels -1 and +1 for the logistic
loss), sample weights. Weights are ``W (d, T)``; a penalty is an object of :class:`Norms`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import brentq


def row_weights(blocks, reduction):
    """``s / sum(s)`` for "mean", ``s`` for "sum", task by task."""
    return [s / s.sum() if reduction == "mean" else s for _, _, s in blocks]


def losses(loss, y, m):
    """One value per row."""
    return (y - m) ** 2 / 2 if loss == "squared" else np.logaddexp(0.0, -y * m)


def slopes(loss, y, m):
    """Derivatives in the margin."""
    return m - y if loss == "squared" else -y / (1 + np.exp(np.clip(y * m, -500, 500)))


def best_intercept(loss, y, m, v):
    """The number that, added to all margins of one task, lowers its loss most: mean residual, or a root."""
    if loss == "squared":
        return float(v @ (y - m) / v.sum())
    reach = np.abs(m).max() + 50
    return brentq(lambda b: float(v @ slopes(loss, y, m + b)), -reach, reach, xtol=1e-15, rtol=1e-15)


def data_term(blocks, W, b, loss, reduction="mean", l2=0.0):
    """Weighted losses of all rows, plus the ridge."""
    total = l2 / 2 * float((W**2).sum())
    for t, ((X, y, _), v) in enumerate(zip(blocks, row_weights(blocks, reduction), strict=True)):
        total += float(v @ losses(loss, y, X @ W[:, t] + b[t]))
    return total


def null_objective(blocks, loss, reduction="mean", fit_intercept=True):
    """Objective of the intercept-only model."""
    d, T = blocks[0][0].shape[1], len(blocks)
    b = np.zeros(T)
    if fit_intercept:
        for t, ((_, y, _), v) in enumerate(zip(blocks, row_weights(blocks, reduction), strict=True)):
            b[t] = best_intercept(loss, y, 0 * y, v)
    return data_term(blocks, np.zeros((d, T)), b, loss, reduction)


def descent(blocks, W, b, loss, reduction="mean", l2=0.0):
    """(d, T) negative gradient of the data term at ``W, b``."""
    C = -l2 * W
    for t, ((X, y, _), v) in enumerate(zip(blocks, row_weights(blocks, reduction), strict=True)):
        C[:, t] -= X.T @ (v * slopes(loss, y, X @ W[:, t] + b[t]))
    return C


def lower_bound(blocks, W, norms, loss, reduction="mean", fit_intercept=True, l2=0.0):
    """Value of the Fenchel dual at the scaled slopes in ``W``: no objective, of any weights, lies below it.

    Weak duality, term by term: ``v f(m) >= theta m - v f*(theta / v)``, intercepts drop out because theta sums to zero
    in every task, the ridge is conjugate to ``|.|^2 / (2 l2)``.
    """
    b = np.zeros(W.shape[1])
    thetas = []
    for t, ((X, y, _), v) in enumerate(zip(blocks, row_weights(blocks, reduction), strict=True)):
        if fit_intercept:
            b[t] = best_intercept(loss, y, X @ W[:, t], v)
        thetas.append(-v * slopes(loss, y, X @ W[:, t] + b[t]))
    C = np.stack([X.T @ theta for (X, _, _), theta in zip(blocks, thetas, strict=True)], axis=1) - l2 * W
    scale = 1 / max(1.0, norms.dual(C)) if norms.is_norm else 1.0
    value = -(scale**2) * l2 / 2 * float((W**2).sum()) - (0.0 if norms.is_norm else norms.conjugate(C))
    for (_, y, _), v, theta in zip(blocks, row_weights(blocks, reduction), thetas, strict=True):
        theta = scale * theta
        if loss == "squared":
            value += float((theta * y - theta**2 / (2 * v)).sum())
        else:
            p = np.clip(y * theta / v, 0, 1)
            value -= float(v @ (p * np.log(np.where(p > 0, p, 1)) + (1 - p) * np.log(np.where(p < 1, 1 - p, 1))))
    return value


# --- penalties -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Norms:
    """A penalty in NumPy and in cvxpy.

    ``value`` takes W (d, T), or the two parts stacked for models that need both; ``dual`` is the dual norm, weights
    inside; ``model(W) -> expression, constraints`` is the cvxpy side.
    """

    value: Callable[..., float]
    dual: Callable[[Any], float]
    model: Callable[[Any], Any]
    is_norm: bool = True
    conjugate: Callable[[Any], float] = lambda C: 0.0


def dual_exponent(q):
    return np.inf if q == 1 else (1.0 if q == np.inf else q / (q - 1))


def _rows(W, q):
    return np.linalg.norm(W, ord=q, axis=1)


def _model_rows(W, q):
    import cvxpy as cp

    if q in (1, 2, np.inf):
        return cp.sum(cp.norm(W, q if q != np.inf else "inf", axis=1))
    return sum(cp.pnorm(W[j], q) for j in range(W.shape[0]))


def block_sparse(alpha, q):
    """alpha times the sum of the q-norms of the rows."""
    return Norms(
        lambda W: alpha * _rows(W, q).sum(),
        lambda C: _rows(C, dual_exponent(q)).max() / alpha,
        lambda W: (alpha * _model_rows(W, q), []),
    )


def dirty(alpha_block, alpha_sparse, q):
    """Block norm of B plus l1 norm of S, at the best split of W = B + S; ``value`` takes the two parts."""

    def model(W):
        import cvxpy as cp

        B = cp.Variable(W.shape)
        return alpha_block * _model_rows(B, q) + alpha_sparse * cp.sum(cp.abs(W - B)), []

    return Norms(
        lambda B, S: alpha_block * _rows(B, q).sum() + alpha_sparse * np.abs(S).sum(),
        lambda C: max(_rows(C, dual_exponent(q)).max() / alpha_block, np.abs(C).max() / alpha_sparse),
        model,
    )


def trace_norm(alpha):
    def model(W):
        import cvxpy as cp

        return alpha * cp.normNuc(W), []

    return Norms(
        lambda W: alpha * np.linalg.svd(W, compute_uv=False).sum(),
        lambda C: np.linalg.norm(C, 2) / alpha,
        model,
    )


def squared_trace_norm(gamma):
    def model(W):
        import cvxpy as cp

        return gamma * cp.square(cp.normNuc(W)), []

    return Norms(
        lambda W: gamma * np.linalg.svd(W, compute_uv=False).sum() ** 2,
        lambda C: np.nan,
        model,
        is_norm=False,
        conjugate=lambda C: np.linalg.norm(C, 2) ** 2 / (4 * gamma),
    )


def mean_deviation(alpha, coupling):
    """Ridge, plus the squared distances to the mean of the tasks."""

    def model(W):
        import cvxpy as cp

        deviation = np.eye(W.shape[1]) - 1 / W.shape[1]
        return alpha / 2 * cp.sum_squares(W) + coupling / 2 * cp.sum_squares(W @ deviation), []

    def conjugate(C):
        A = (alpha + coupling) * np.eye(C.shape[1]) - coupling / C.shape[1]
        return np.trace(C @ np.linalg.solve(A, C.T)) / 2

    return Norms(
        lambda W: alpha / 2 * (W**2).sum() + coupling / 2 * ((W - W.mean(1, keepdims=True)) ** 2).sum(),
        lambda C: np.nan,
        model,
        is_norm=False,
        conjugate=conjugate,
    )


def robust(alpha_low_rank, alpha_outlier):
    """Trace norm of L plus column norms of O, at the best split of W = L + O; ``value`` takes the two parts."""

    def model(W):
        import cvxpy as cp

        L = cp.Variable(W.shape)
        return alpha_low_rank * cp.normNuc(L) + alpha_outlier * cp.sum(cp.norm(W - L, 2, axis=0)), []

    return Norms(
        lambda L, S: (
            alpha_low_rank * np.linalg.svd(L, compute_uv=False).sum() + alpha_outlier * np.linalg.norm(S, axis=0).sum()
        ),
        lambda C: max(np.linalg.norm(C, 2) / alpha_low_rank, np.linalg.norm(C, axis=0).max() / alpha_outlier),
        model,
    )


# --- an independent solver -------------------------------------------------------------------------------------------


def solve(blocks, norms, loss, reduction="mean", fit_intercept=True, l2=0.0):
    """Optimal value, ``W (d, T)`` and ``b (T,)`` by Clarabel, an interior point method."""
    import cvxpy as cp

    d, T = blocks[0][0].shape[1], len(blocks)
    W, b = cp.Variable((d, T)), cp.Variable(T)
    penalty, constraints = norms.model(W)
    objective = penalty + (l2 / 2 * cp.sum_squares(W) if l2 else 0)
    for t, ((X, y, _), v) in enumerate(zip(blocks, row_weights(blocks, reduction), strict=True)):
        m = X @ W[:, t] + (b[t] if fit_intercept else 0)
        if loss == "squared":
            objective += cp.sum_squares(cp.multiply(np.sqrt(v), y - m)) / 2
        else:
            objective += v @ cp.logistic(cp.multiply(-y, m))
    problem = cp.Problem(cp.Minimize(objective), constraints)
    tight = {"tol_gap_abs": 1e-12, "tol_gap_rel": 1e-12, "tol_feas": 1e-12, "max_iter": 200}
    # "Solution may be inaccurate" only says that 1e-12 was out of reach; callers compare to 1e-8.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        problem.solve(solver=cp.CLARABEL, **tight)
    return float(problem.value), W.value, b.value if fit_intercept else np.zeros(T)
