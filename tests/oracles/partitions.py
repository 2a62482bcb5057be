"""Partitions of tasks, all of them, and the exact values of the two problems that search for one.

Nothing here uses the package. Data are lists of ``(X_t, y_t, s_t)`` as in :mod:`tests.oracles.convex`.
"""

from functools import cache

import numpy as np

from tests.oracles import convex


def partitions(T, k):
    """Every partition of T tasks into at most k parts: labels (T,), numbered by first appearance."""

    def grow(labels):
        if len(labels) == T:
            yield np.array(labels)
            return
        for c in range(min(max(labels, default=-1) + 2, k)):
            yield from grow([*labels, c])

    return grow([])


def _centred(blocks, reduction, fit_intercept):
    """Designs and targets without intercepts, multiplied by the roots of their weights."""
    out = []
    for (X, y, _), v in zip(blocks, convex.row_weights(blocks, reduction), strict=True):
        if fit_intercept:
            X, y = X - v @ X / v.sum(), y - v @ y / v.sum()
        out.append((np.sqrt(v)[:, None] * X, np.sqrt(v) * y))
    return out


def best_around_centroids(blocks, labels, rho1, rho2, reduction="mean", fit_intercept=True):
    """Least objective with hard clusters, ``W (d, T)`` and centroids (k, d): one least-squares problem per cluster.

    Labels are an array (T,). Unknowns are the weights of the cluster's tasks and its centroid, all at once; every
    penalty is d more rows.
    """
    tasks, d = _centred(blocks, reduction, fit_intercept), blocks[0][0].shape[1]
    W, U, value = np.zeros((d, len(blocks))), [], 0.0
    for c in np.unique(labels):
        members = np.flatnonzero(labels == c)
        m, eye = len(members), np.eye(d)
        rows, targets = [], []
        for j, t in enumerate(members):
            pick = np.kron(np.eye(m + 1)[j], eye)  # (d, (m + 1) d): the weights of task t
            centroid = np.kron(np.eye(m + 1)[m], eye)
            rows += [tasks[t][0] @ pick, np.sqrt(2 * rho1) * (pick - centroid), np.sqrt(2 * rho2) * pick]
            targets += [tasks[t][1], np.zeros(d), np.zeros(d)]
        A, b = np.concatenate(rows), np.concatenate(targets)
        x = np.linalg.lstsq(A, b, rcond=None)[0]
        value += float(((A @ x - b) ** 2).sum()) / 2
        W[:, members], u = x[: m * d].reshape(m, d).T, x[m * d :]
        U.append(u)
    return value, W, np.stack(U)


def hard_clusters_objective(blocks, W, b, labels, rho1, rho2, reduction="mean"):
    """Data term, squared distances to the mean of the cluster, ridge: written down as the model is."""
    value = convex.data_term(blocks, W, b, "squared", reduction) + rho2 * float((W**2).sum())
    for c in np.unique(labels):
        own = W[:, labels == c]
        value += rho1 * float(((own - own.mean(1, keepdims=True)) ** 2).sum())
    return value


def group_values(blocks, gamma, reduction="mean", fit_intercept=True):
    """Function of a set of tasks: the optimum of convex feature learning on them, by Clarabel; remembered."""
    norms = convex.squared_trace_norm(gamma)

    @cache
    def value(members):
        some = [blocks[t] for t in members]
        return convex.solve(some, norms, "squared", reduction, fit_intercept)[0] if some else 0.0

    return value


def partition_value(labels, value):
    """Sum of the values of the parts."""
    return sum(value(tuple(np.flatnonzero(labels == c).tolist())) for c in np.unique(labels))


def draw_groups(seed, sizes, d, n_groups, spread, multiples=False, weighted=False):
    """Blocks of tasks around a few vectors, or along them: labels (T,) and ``[(X_t, y_t, s_t), ...]``."""
    rng = np.random.default_rng(seed)
    centres, labels = 2 * rng.normal(size=(d, n_groups)), rng.integers(n_groups, size=len(sizes))
    blocks = []
    for t, n in enumerate(sizes):
        X = rng.normal(size=(n, d)) * rng.uniform(0.5, 2) + rng.normal(size=d)
        length = rng.choice([-1, 1]) * rng.uniform(0.5, 2) if multiples else 1.0
        w = length * centres[:, labels[t]] + spread * rng.normal(size=d)
        y = X @ w + 0.5 * rng.normal(size=n) + 3 * t
        blocks.append((X, y, rng.uniform(0.3, 2.5, n) if weighted else np.ones(n)))
    return labels, blocks


def long_form(blocks):
    """What ``fit`` takes: X, y, task, and sample weights where they differ."""
    X, y, s = (np.concatenate([block[i] for block in blocks]) for i in range(3))
    task = np.repeat(np.arange(len(blocks)), [len(block[1]) for block in blocks])
    return (X, y, task) if (s == 1).all() else (X, y, task, s)
