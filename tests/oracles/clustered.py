"""Clustered multi-task learning once more: joint objectives of weights and a matrix, in NumPy and cvxpy.

Nothing here uses the package. Weights are ``W (d, T)``, tasks are columns.
"""

import numpy as np
from scipy.optimize import brentq

from tests.oracles.convex import Norms


def thetas(s, low, high, k, shift=0.0):
    """Minimise ``sum s^2 / (theta + shift)`` over low <= theta <= high, ``sum(theta - low) <= k (high - low)``."""
    at = lambda log_level: np.clip(np.exp(log_level) * s - shift, low, high)
    excess = lambda log_level: (at(log_level) - low).sum() - k * (high - low)
    if excess(300.0) <= 0:
        return at(300.0)
    return at(brentq(excess, -300, 300, xtol=1e-15, rtol=1e-15))


def singular_values(W):
    return np.linalg.svd(W, compute_uv=False)


def _box_value(W, inside, outside, k):
    s = singular_values(W)
    return float((s**2 / thetas(s, 1 / outside, 1 / inside, k)).sum())


def _box_conjugate(C, inside, outside, k):
    """A quarter of the largest ``sum theta s^2``: a linear program over the box, whose corners are sorted by hand."""
    squares = np.sort(singular_values(C) ** 2)[::-1]
    theta = np.where(np.arange(len(squares)) < k, 1 / inside, 1 / outside)
    return float(theta @ squares) / 4


def clustered(rho1, rho2, k):
    """``rho1 eta (1 + eta) tr W (eta I + M)^-1 W'`` at the best M (T, T), written as in the paper."""
    return _paper(rho1, rho2, k, lambda W: W.T)


def aso(rho1, rho2, k):
    """The same with M (d, d) on the other side."""
    return _paper(rho1, rho2, k, lambda W: W)


def _paper(rho1, rho2, k, rows):
    def model(W):
        import cvxpy as cp

        n, eta = rows(W).shape[0], rho2 / rho1
        M = cp.Variable((n, n), symmetric=True)
        penalty = rho1 * eta * (1 + eta) * cp.matrix_frac(rows(W), eta * np.eye(n) + M)
        return penalty, [M >> 0, np.eye(n) - M >> 0, cp.trace(M) == k]

    return Norms(
        lambda W: _box_value(W, rho2, rho1 + rho2, k),
        lambda C: np.nan,
        model,
        is_norm=False,
        conjugate=lambda C: _box_conjugate(C, rho2, rho1 + rho2, k),
    )


def jacob(mean, between, within, r):
    """The mean by itself, and ``tr Wc Sigma^-1 Wc'`` of the centred weights over T x T matrices Sigma.

    The mean direction counts with its smallest eigenvalue: trace ``(T - r + 1) / within + (r - 1) / between``.
    """

    def split(W):
        centre = np.eye(W.shape[1]) - 1 / W.shape[1]
        return W @ np.full((W.shape[1], 1), W.shape[1] ** -0.5), W @ centre

    def model(W):
        import cvxpy as cp

        T, (level, deviation) = W.shape[1], split(W)
        S = cp.Variable((T, T), symmetric=True)
        penalty = mean * cp.sum_squares(level) + cp.matrix_frac(deviation.T, S)
        a, b = 1 / within, 1 / between
        return penalty, [S - a * np.eye(T) >> 0, b * np.eye(T) - S >> 0, cp.trace(S) == (T - r + 1) * a + (r - 1) * b]

    def value(W):
        level, deviation = split(W)
        return mean * float((level**2).sum()) + _box_value(deviation, between, within, r - 1)

    def conjugate(C):
        level, deviation = split(C)
        return float((level**2).sum()) / (4 * mean) + _box_conjugate(deviation, between, within, r - 1)

    return Norms(value, lambda C: np.nan, model, is_norm=False, conjugate=conjugate)


# --- joint objective of W and M --------------------------------------------------------------------------------------


def joint(W, M, rho1, rho2):
    """``rho1 eta (1 + eta) tr W (eta I + M)^-1 W'``."""
    eta = rho2 / rho1
    return rho1 * eta * (1 + eta) * float(np.trace(W @ np.linalg.solve(eta * np.eye(len(M)) + M, W.T)))


def slope_in_M(W, M, rho1, rho2):
    """(T, T) gradient of :func:`joint` in M, ``-c (eta I + M)^-1 W'W (eta I + M)^-1``."""
    eta = rho2 / rho1
    half = np.linalg.solve(eta * np.eye(len(M)) + M, W.T)
    return -rho1 * eta * (1 + eta) * half @ half.T


def slope_if_all_commuted(W, M, rho1, rho2):
    """``-c W'W (eta I + M)^-2``, which is the gradient only where M commutes with W'W."""
    eta = rho2 / rho1
    inverse = np.linalg.inv(eta * np.eye(len(M)) + M)
    return -rho1 * eta * (1 + eta) * W.T @ W @ inverse @ inverse


def random_relation(rng, T, k):
    """(T, T) symmetric, eigenvalues in [0, 1], trace k: a mixture of projections of rank k in one random basis."""
    Q = np.linalg.qr(rng.normal(size=(T, T)))[0]
    corners = np.stack([rng.permutation(np.arange(T) < k) for _ in range(rng.integers(1, 4))]).astype(float)
    return (Q * (rng.dirichlet(np.ones(len(corners))) @ corners)) @ Q.T


# --- hard clusters ---------------------------------------------------------------------------------------------------


def averaging(labels):
    """(T, T) matrix that replaces every task by the mean of its cluster."""
    members = np.equal.outer(labels, labels)
    return members / members.sum(1)


def three_norms(W, labels):
    """Mean, between-cluster and within-cluster squares, task by task."""
    centre, between, within = W.mean(1), 0.0, 0.0
    for c in np.unique(labels):
        members = W[:, labels == c]
        between += members.shape[1] * ((members.mean(1) - centre) ** 2).sum()
        within += sum(((w - members.mean(1)) ** 2).sum() for w in members.T)
    return W.shape[1] * (centre**2).sum(), between, within
