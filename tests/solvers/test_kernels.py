"""Compiled prox and sweeps against the penalties' prox and against slow sweeps that minimise row by row."""

import numpy as np
import pytest
import torch

from companion.penalties import L1, BlockSparse, Dirty
from companion.solvers import _kernels as kernels
from tests.oracles import rows as oracle

INF = np.inf
PENALTIES = [
    L1(0.7),
    *(BlockSparse(0.7, q) for q in (1, 1.05, 1.5, 2, 3, 10, INF)),
    *(Dirty(0.9, 0.6, q) for q in (1, 1.5, 2, 3, INF)),
    Dirty(0.5, 0.6, INF),
    Dirty(6.0, 0.3, 2),
]
COUNT = 2  # sweeps


def prox(penalty, V, step):
    out, size, u = np.empty_like(V), np.empty(V.shape[1]), np.empty(V.shape[1])
    for v, row in zip(V, out, strict=True):
        kernels.prox_row(v, step, *map(float, penalty.rows), row, size, u)
    return out


@pytest.mark.parametrize("step", [1e-6, 0.1, 1.0, 30.0])
@pytest.mark.parametrize("penalty", PENALTIES, ids=repr)
def test_prox_of_a_row_is_the_prox_of_the_penalty(penalty, step):
    rng = np.random.default_rng(0)
    for T in (1, 2, 5, 40):
        V = rng.normal(size=(30, T)) * np.logspace(-3, 3, 30)[:, None]
        V[::4] *= np.logspace(-6, 6, T)  # huge ratios within a row
        V[1], V[2, 0], V[5] = 0, 0, 1.3  # a row of zeros, one zero, ties
        V[6] = -penalty.rows[0] * step / T  # the border of the dual ball for q = inf
        expected = penalty.prox(torch.from_numpy(V), step).numpy()
        np.testing.assert_allclose(prox(penalty, V, step), expected, rtol=1e-9, atol=1e-12 * np.abs(V).max())
        small = np.abs(V).sum(1) <= min(penalty.rows[:2]) * step  # inside every dual ball
        np.testing.assert_array_equal(prox(penalty, V, step)[small], 0)


@pytest.mark.parametrize("q", [1, 1.5, 2, 3, INF])
def test_norm_of_a_row(q):
    rng = np.random.default_rng(1)
    for size in (1e-200, 1.0, 1e200):
        v = rng.normal(size=7)
        assert kernels.row_norm(size * v, float(q)) == pytest.approx(size * np.linalg.norm(v, ord=q), rel=1e-13)
    assert kernels.row_norm(np.zeros(3), float(q)) == 0


# --- sweeps ----------------------------------------------------------------------------------------------------------


def designs(sizes, m, shared=False, even=False, seed=2):
    """Designs, targets and first weights; with ``even`` every column has the same length in all tasks."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(sizes[0], m))
    A = [common if shared else rng.normal(size=(n, m)) * (1 + t) for t, n in enumerate(sizes)]
    if even:
        A = [X / np.linalg.norm(X, axis=0) * np.linspace(1, 2, m) for X in A]
    y = [X @ rng.normal(size=m) + rng.normal(size=len(X)) for X in A]
    return A, y, rng.normal(size=(m, len(sizes)))


def stacked(A, y):
    """Columns (m, N), residual offsets and targets (N,)."""
    return np.concatenate(A).T.copy(), np.cumsum([0] + [len(X) for X in A]), np.concatenate(y)


def task_moments(A, y, W, l2, rows):
    G = np.stack([X.T @ X for X in A], axis=2)
    C = np.stack([X.T @ (t - X @ w) for X, t, w in zip(A, y, W.T, strict=True)], axis=1) - l2 * W
    W, kept = W.copy(), (np.empty((COUNT, *W.shape)), np.empty((COUNT, *C.shape)))
    kernels.sweep_task_moments(G, W, C, np.einsum("jjt->jt", G) + l2, l2, *rows, *kept)
    np.testing.assert_array_equal(W, kept[0][-1])
    np.testing.assert_array_equal(C, kept[1][-1])
    return kept


def shared_moments(A, y, W, l2, rows):
    G, C = A[0].T @ A[0], A[0].T @ (np.stack(y, axis=1) - A[0] @ W) - l2 * W
    W, kept = W.copy(), (np.empty((COUNT, *W.shape)), np.empty((COUNT, *C.shape)))
    L = np.repeat(np.diag(G)[:, None] + l2, W.shape[1], axis=1)
    kernels.sweep_shared_moments(G, W, C, L, l2, *rows, *kept)
    np.testing.assert_array_equal(W, kept[0][-1])
    np.testing.assert_array_equal(C, kept[1][-1])
    return kept


def shared_residuals(A, y, W, l2, rows):
    X, R, m, size = A[0], np.stack(y, axis=1) - A[0] @ W, len(W), kernels.BLOCK
    corners = np.zeros((m, size))
    for a in range(0, m, size):
        corners[a : a + size, : min(size, m - a)] = X[:, a : a + size].T @ X[:, a : a + size]
    L = np.repeat((X**2).sum(0)[:, None] + l2, W.shape[1], axis=1)
    W, kept = W.copy(), (np.empty((COUNT, *W.shape)), np.empty((COUNT, *R.shape)))
    kernels.sweep_shared_residuals(np.ascontiguousarray(X.T), W, R, L, corners, l2, *rows, *kept)
    np.testing.assert_array_equal(W, kept[0][-1])
    np.testing.assert_array_equal(R, kept[1][-1])
    return kept


def task_residuals(A, y, W, l2, rows):
    columns, offsets, _ = stacked(A, y)
    r = np.concatenate([t - X @ w for X, t, w in zip(A, y, W.T, strict=True)])
    L = np.stack([(X**2).sum(0) for X in A], axis=1) + l2
    W, kept = W.copy(), (np.empty((COUNT, *W.shape)), np.empty((COUNT, *r.shape)))
    kernels.sweep_task_residuals(columns, offsets, W, r, L, l2, *rows, *kept)
    np.testing.assert_array_equal(W, kept[0][-1])
    np.testing.assert_array_equal(r, kept[1][-1])
    return kept


def state(A, y, W, l2, kind):
    """What a sweep has to keep for weights W."""
    residuals = [t - X @ w for X, t, w in zip(A, y, W.T, strict=True)]
    if kind in (task_moments, shared_moments):
        return np.stack([X.T @ r for X, r in zip(A, residuals, strict=True)], axis=1) - l2 * W
    return np.concatenate(residuals) if kind is task_residuals else np.stack(residuals, axis=1)


KINDS = [task_moments, shared_moments, shared_residuals, task_residuals]
PAIRS = [(0.9, 0.6, INF), (0.9, 0.7, 2.0)]
ROWS = [*((0.8, INF, float(q)) for q in (1, 1.5, 2, 3, INF)), *PAIRS]


@pytest.mark.parametrize("l2", [0.0, 0.5])
@pytest.mark.parametrize("rows", ROWS, ids=str)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_sweep_minimises_row_by_row(kind, rows, l2):
    """Where all tasks have the same curvature along a row, one step is its exact minimum, found here by cvxpy."""
    shared = kind in (shared_moments, shared_residuals)
    A, y, W = designs((7, 7, 7) if shared else (7, 4, 9), 4, shared, even=not shared)
    W_kept, kept = kind(A, y, W, l2, rows)
    expected = W
    for k in range(COUNT):
        expected = oracle.sweep(A, y, expected, l2, *rows)
        np.testing.assert_allclose(W_kept[k], expected, atol=2e-5)
        np.testing.assert_allclose(kept[k], state(A, y, W_kept[k], l2, kind), atol=1e-12)


@pytest.mark.parametrize("l2", [0.0, 0.5])
@pytest.mark.parametrize("rows", [(2.0, INF, 1.0), (2.0, INF, 2.0), (0.6, 2.0, 1.0)], ids=str)
@pytest.mark.parametrize("kind", [task_moments, task_residuals], ids=lambda kind: kind.__name__)
def test_curvatures_that_differ_by_task(kind, rows, l2):
    A, y, W = designs((7, 4, 9), 5)
    W_kept, _ = kind(A, y, W, l2, rows)
    np.testing.assert_allclose(W_kept[0], oracle.sweep(A, y, W, l2, *rows), atol=2e-5)


@pytest.mark.parametrize("q", [1.0, 1.5, 2.0, INF])
@pytest.mark.parametrize("kind", [task_moments, task_residuals], ids=lambda kind: kind.__name__)
def test_rows_stay_zero_inside_the_dual_ball_and_leave_it_outside(kind, q):
    """Whatever the curvatures, the dual norm of the correlations is the weight from which on all rows are zero."""
    A, y, W = designs((7, 4, 9), 5)
    C = np.stack([X.T @ t for X, t in zip(A, y, strict=True)], axis=1)
    top = np.linalg.norm(C, ord=INF if q == 1 else (1 if q == INF else q / (q - 1)), axis=1).max()
    for factor, zero in ((1.4, True), (1.0001, True), (0.999, False)):
        found = kind(A, y, 0 * W, 0.0, (factor * top, INF, q))[0][0]
        assert bool((found == 0).all()) is zero


@pytest.mark.parametrize("rows", ROWS, ids=str)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_no_sweep_raises_the_objective(kind, rows):
    """Any curvatures, more rows than a block holds, and a column of zeros, in one task and in all of them."""
    shared = kind in (shared_moments, shared_residuals)
    A, y, W = designs((23,) * 3 if shared else (23, 11, 40), 2 * kernels.BLOCK + 6, shared)
    A = [X.copy() for X in A]
    for X in A if not shared else A[:1]:
        X[:, 3] = 0
    A[0][:, 40] = 0
    A = [A[0]] * 3 if shared else A
    W_kept, kept = kind(A, y, W, 0.1, rows)
    if np.isinf(rows[1]) or rows[2] == INF:  # for other pairs, the oracle's search over levels takes too long
        values = [oracle.objective(A, y, V, 0.1, *rows) for V in (W, *W_kept)]
        assert values[0] > values[1] > values[2]
    np.testing.assert_allclose(kept[-1], state(A, y, W_kept[-1], 0.1, kind), atol=1e-10)
    if not shared:
        return
    # Blocks change the order of the arithmetic only: the other kind of sweep goes through the same weights.
    others = task_residuals(A, y, W, 0.1, rows)[0]
    if rows[2] in (1, 2):  # by the route for different curvatures
        np.testing.assert_allclose(W_kept, others, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_columns_of_zeros_lose_their_weight(kind):
    shared = kind in (shared_moments, shared_residuals)
    A, y, W = designs((6, 6) if shared else (6, 9), 3, shared)
    A = [np.where(np.arange(3) == 1, 0.0, X) for X in A]
    for rows in ROWS:
        np.testing.assert_array_equal(kind(A, y, W, 0.0, rows)[0][0][1], 0)
