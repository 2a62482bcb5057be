"""Factors with sparse codes from the definition: data, objective, and problems in every layout."""

import numpy as np
import pytest
import torch

from companion import Tasks
from companion.losses import LogisticLoss, SquaredLoss
from companion.penalties import L1
from companion.solvers import Problem
from companion.solvers.latent import Factors, LatentProblem
from companion.solvers.problem import _padded
from tests.oracles import convex

D, K, MU, LAM = 5, 2, 0.07, 0.04
SIZES = (9, 14, 3, 7)
LOSSES = {"squared": SquaredLoss(), "logistic": LogisticLoss()}
SETTINGS = [
    (loss, layout, free)
    for loss in LOSSES
    for layout in ("ragged", "padded", "shared", "missing")
    for free in (True, False)
]
each_setting = pytest.mark.parametrize("loss, layout, free", SETTINGS)


def drawn(loss, layout, seed=0):
    """Blocks (X_t, y_t, s_t); for shared layouts one X."""
    rng = np.random.default_rng(seed)
    L, S = rng.normal(size=(D, K)), rng.normal(size=(K, len(SIZES)))
    shared = layout in ("shared", "missing")
    common = rng.normal(size=(13, D)) + 0.5
    blocks = []
    for t, n in enumerate(SIZES):
        X = common if shared else rng.normal(size=(n, D)) + 0.5
        m = X @ L @ S[:, t]
        if loss == "squared":
            y = m + 0.3 * rng.normal(size=len(m)) + t
        else:
            y = np.where(m + rng.logistic(size=len(m)) > np.median(m), 1.0, -1.0)
            y[:2] = 1.0, -1.0
        s = np.ones(len(m)) if shared else rng.integers(1, 4, len(m)).astype(float)
        if layout == "missing":
            keep = np.ones(len(m), dtype=bool)
            keep[3 + t :: 4] = False
            X, y, s = X[keep], y[keep], s[keep]
        blocks.append((X, y, s))
    return common, blocks


def prepared(loss, layout, free, seed=0, mu=MU, lam=LAM):
    common, blocks = drawn(loss, layout, seed)
    if layout in ("shared", "missing"):
        Y = np.full((len(common), len(blocks)), np.nan)
        for t, (X, y, _) in enumerate(blocks):
            Y[[int(np.flatnonzero((common == row).all(1))[0]) for row in X], t] = y
        tasks = Tasks.shared(common, Y)
    else:
        X, y, s = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
        tasks = Tasks.from_long(X, y, np.repeat(np.arange(len(blocks)), [len(b[1]) for b in blocks]), s)
    problem = Problem.from_tasks(tasks, LOSSES[loss], "mean", free)
    if layout == "padded":  # the layout of accelerators
        rows, y, v = _padded(problem.rows.X, problem.rows.offsets, problem.y, problem.v)
        problem = Problem(rows, y, v, problem.loss, 0.0, problem.free)
    return blocks, LatentProblem(problem, L1(mu), lam)


def some_factors(seed=1):
    rng = np.random.default_rng(seed)
    S = rng.normal(size=(K, len(SIZES)))
    S[0, 1] = S[1, 3] = 0.0
    return Factors(torch.from_numpy(rng.normal(size=(D, K))), torch.from_numpy(S))


def centred(blocks, free):
    """For squared losses: rows and targets less their weighted means, and row weights."""
    for X, y, s in blocks:
        v = s / s.sum()
        yield (X - v @ X, y - v @ y, v) if free else (X, y, v)


def objective(blocks, loss, free, at, mu=MU, lam=LAM):
    """From the definition, intercepts at their best."""
    W = (at.L @ at.S).numpy()
    b = np.zeros(W.shape[1])
    for t, (X, y, s) in enumerate(blocks):
        if free:
            b[t] = convex.best_intercept(loss, y, X @ W[:, t], s / s.sum())
    return convex.data_term(blocks, W, b, loss) + mu * np.abs(at.S.numpy()).sum() + lam * (at.L.numpy() ** 2).sum()


def slope(state):
    """(d, K) derivatives in L, in the units of the state."""
    problem, (L, S) = state.latent, state.factors
    return (problem.problem.descent(state.point) @ S.T - 2 * problem.lam * L) / problem.scale
