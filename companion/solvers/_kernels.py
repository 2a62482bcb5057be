"""Compiled sweeps of block coordinate descent: one row of W at a time, all tasks of a feature together.

Every sweep minimises a squared loss plus a row-wise penalty exactly along one row after another. What differs is where
the correlations ``C = X' residual - l2 W`` come from: second moments of the working set, or residuals. Arrays have the
task axis last, so that the inner loops run over contiguous numbers. Everything is float64 and C-contiguous.

A row penalty is ``(block, sparse, q)``: block weight, elementwise weight, order of the block norm; see ``RowNorm``.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

_FAST = {"reassoc", "contract", "nsz", "arcp"}  # lets sums be vectorised; NaN and infinity keep their meaning
BLOCK = 32  # rows per matrix product


@njit(cache=True, fastmath=_FAST)
def _norm(v):
    """Euclidean norm."""
    total = 0.0
    for t in range(v.size):
        total += v[t] * v[t]
    return math.sqrt(total)


@njit(cache=True)
def row_norm(v, q):
    """``||v||_q`` without overflow."""
    largest = 0.0
    for t in range(v.size):
        largest = max(largest, abs(v[t]))
    if largest == 0.0 or q == np.inf:
        return largest
    total = 0.0
    for t in range(v.size):
        total += (abs(v[t]) / largest) ** q
    return largest * total ** (1 / q)


@njit(cache=True)
def _clipped_level(size, box, radius):
    """``theta`` with ``sum_t min(max(size_t - theta, 0), box) = radius``: the l1 ball cut by a box.

    The sum is piecewise linear in theta; a Newton step from inside a piece lands on its root, so few steps suffice.
    """
    low, high = 0.0, 0.0
    for t in range(size.size):
        high = max(high, size[t])
    theta = low
    for _ in range(200):
        total, slope = -radius, 0
        for t in range(size.size):
            rest = size[t] - theta
            if rest >= box:
                total += box
            elif rest > 0.0:
                total += rest
                slope += 1
        if total > 0.0:
            low = theta
        else:
            high = theta
        step = theta + total / slope if slope > 0 else 0.5 * (low + high)
        if step <= low or step >= high:
            step = theta if total == 0.0 else 0.5 * (low + high)
        if abs(step - theta) <= 1e-16 * high:
            break
        theta = step
    return theta


@njit(cache=True)
def _clipped_scale(size, box, radius):
    """``s`` in (0, 1] with ``||min(s size, box)||_2 = radius``: the l2 ball cut by a box."""
    low, high, s = 0.0, 1.0, 1.0
    for _ in range(200):
        fixed, free = 0.0, 0.0
        for t in range(size.size):
            if s * size[t] >= box:
                fixed += box * box
            else:
                free += size[t] * size[t]
        total = fixed + s * s * free - radius * radius
        if total > 0.0:
            high = s
        else:
            low = s
        step = 0.5 * (low + high)
        if free > 0.0 and radius * radius > fixed:
            newton = math.sqrt((radius * radius - fixed) / free)  # the root if nothing else meets the box
            if low < newton < high:
                step = newton
        if abs(step - s) <= 1e-16:
            break
        s = step
    return s


@njit(cache=True)
def _entry(size, theta, p):
    """``u >= 0`` with ``u + theta u^(p-1) = size``, by Newton inside a bracket."""
    low, high = 0.0, size
    u = size / (1 + theta) if p >= 2 else size * 0.5
    for _ in range(200):
        power = u ** (p - 1) if u > 0 else 0.0
        value = u + theta * power - size
        if value > 0:
            high = u
        else:
            low = u
        slope = 1 + theta * (p - 1) * (power / u if u > 0 else 0.0)
        step = u - value / slope
        if not (low < step < high):
            step = 0.5 * (low + high)
        if abs(step - u) <= 4e-16 * size:
            break
        u = step
    return u


@njit(cache=True)
def _ball_entries(size, box, p, u):
    """Fill ``u`` with the projection of ``size >= 0`` on ``{||u||_p <= 1, u <= box}``, any 1 < p < inf."""
    largest = 0.0
    for t in range(size.size):
        largest = max(largest, size[t])
    # Log of the ball's multiplier; without a box the largest entry bounds it.
    low, high = -80.0, math.log(largest * size.size) if box == np.inf else 690.0
    for _ in range(200):
        middle = 0.5 * (low + high)
        theta = math.exp(middle)
        total = 0.0
        for t in range(size.size):
            u[t] = min(_entry(size[t], theta, p), box)
            total += u[t] ** p
        if total > 1.0:
            low = middle
        else:
            high = middle
        if high - low <= 1e-15 * max(abs(low), abs(high)):
            break


@njit(cache=True)
def prox_row(v, step, block, sparse, q, out, size, u):
    """Prox of ``step`` times the row penalty at ``v``, into ``out``: v less its projection on the dual ball.

    ``size`` and ``u`` are scratch rows.
    """
    radius, box = step * block, step * sparse
    if q == 1.0:
        box, radius = min(box, radius), np.inf
    for t in range(v.size):
        size[t] = abs(v[t])
    if q == 2.0 and box == np.inf:
        norm = _norm(v)
        shrink = 1.0 - radius / norm if norm > radius else 0.0
        for t in range(v.size):
            out[t] = shrink * v[t]
        return
    for t in range(v.size):
        u[t] = min(size[t], box)
    dual = 1.0 if q == np.inf else (np.inf if q == 1.0 else q / (q - 1.0))
    if row_norm(u, dual) > radius:
        if q == np.inf:
            theta = _clipped_level(size, box, radius)
            for t in range(v.size):
                u[t] = min(max(size[t] - theta, 0.0), box)
        elif q == 2.0:
            scale = _clipped_scale(size, box, radius)
            for t in range(v.size):
                u[t] = min(scale * size[t], box)
        else:
            for t in range(v.size):
                size[t] /= radius
            _ball_entries(size, box / radius, dual, u)
            for t in range(v.size):
                u[t] *= radius
    for t in range(v.size):
        out[t] = math.copysign(max(abs(v[t]) - u[t], 0.0), v[t])


@njit(cache=True, fastmath=_FAST)
def _group_row(c, L, block, out):
    """Minimiser of ``sum_t L_t/2 w_t^2 - c_t w_t + block ||w||_2``, curvatures L that differ by task.

    With r = ||w|| > 0 the entries are ``c_t / (L_t + block / r)``; r is the root of a secular equation that Newton
    solves in a few steps from the left, where it is concave and increasing.
    """
    norm = _norm(c)
    if norm <= block:
        for t in range(c.size):
            out[t] = 0.0
        return
    largest = 0.0
    for t in range(c.size):
        largest = max(largest, L[t])
    r = (norm - block) / largest  # the exact radius if all L were the largest: never beyond the root
    for _ in range(60):
        total, slope = 0.0, 0.0
        for t in range(c.size):
            den = L[t] * r + block
            x = c[t] / den
            total += x * x
            slope += x * x * L[t] / den
        root = math.sqrt(total)
        move = (root - 1.0) * total / slope  # Newton on 1 - 1/root(r)
        r += move
        if abs(move) <= 1e-15 * r:
            break
    for t in range(c.size):
        out[t] = c[t] * r / (L[t] * r + block)


@njit(cache=True, fastmath=_FAST)
def _minimise_row(w, c, L, block, sparse, q, new, scratch):
    """Minimiser ``new`` of the penalised quadratic along one row at ``w`` with correlations ``c``; True if it moved."""
    T = w.size
    largest, smallest = 0.0, np.inf
    for t in range(T):
        largest, smallest = max(largest, L[t]), min(smallest, L[t])
    if largest == 0.0:
        for t in range(T):
            new[t] = 0.0
    elif q == 1.0:
        level = min(block, sparse)
        for t in range(T):
            full = c[t] + L[t] * w[t]
            new[t] = math.copysign(max(abs(full) - level, 0.0), full) / L[t] if L[t] > 0.0 else 0.0
    elif q == 2.0 and sparse == np.inf:
        for t in range(T):
            scratch[0, t] = c[t] + L[t] * w[t]
        _group_row(scratch[0], L, block, new)
    else:  # one curvature for all tasks bounds the quadratic from above
        for t in range(T):
            scratch[0, t] = w[t] + c[t] / largest
        prox_row(scratch[0], 1 / largest, block, sparse, q, new, scratch[1], scratch[2])
    moved = False
    for t in range(T):
        if new[t] != w[t]:
            moved = True
    return moved


@njit(cache=True, fastmath=_FAST)
def sweep_task_moments(G, W, C, L, l2, block, sparse, q, W_kept, C_kept):
    """Sweeps over ``G (m, m, T)``: one per entry of ``W_kept (K, m, T)``, where iterates and correlations are kept."""
    m, T = W.shape
    new, scratch = np.empty(T), np.empty((3, T))
    for sweep in range(W_kept.shape[0]):
        for j in range(m):
            if not _minimise_row(W[j], C[j], L[j], block, sparse, q, new, scratch):
                continue
            for t in range(T):
                new[t] -= W[j, t]
                W[j, t] += new[t]
                C[j, t] -= l2 * new[t]
            for k in range(m):
                for t in range(T):
                    C[k, t] -= G[j, k, t] * new[t]
        W_kept[sweep], C_kept[sweep] = W, C


@njit(cache=True, fastmath=_FAST)
def _sweep_block(G, W, C, L, l2, block, sparse, q, D, new, scratch):
    """Coordinate descent inside a block of rows ``W, C (b, T)`` with moments ``G (b, b)``; D collects the moves."""
    b, T = W.shape
    moved = False
    for j in range(b):
        D[j] = 0.0
    for j in range(b):
        if not _minimise_row(W[j], C[j], L[j], block, sparse, q, new, scratch):
            continue
        moved = True
        for t in range(T):
            new[t] -= W[j, t]
            W[j, t] += new[t]
            D[j, t] = new[t]
            C[j, t] -= l2 * new[t]
        for k in range(b):
            g = G[j, k]
            for t in range(T):
                C[k, t] -= g * new[t]
    return moved


@njit(cache=True)
def sweep_shared_moments(G, W, C, L, l2, block, sparse, q, W_kept, C_kept):
    """Sweeps over moments ``G (m, m)`` that all tasks share; correlations outside a block by matrix products."""
    m, T = W.shape
    new, scratch, D = np.empty(T), np.empty((3, T)), np.empty((BLOCK, T))
    for sweep in range(W_kept.shape[0]):
        for a in range(0, m, BLOCK):
            b = min(a + BLOCK, m)
            inside = C[a:b].copy()
            moves = D[: b - a]
            corner = np.ascontiguousarray(G[a:b, a:b])
            if _sweep_block(corner, W[a:b], inside, L[a:b], l2, block, sparse, q, moves, new, scratch):
                C -= np.dot(G[a:b].T, moves)
                C[a:b] = inside
        W_kept[sweep], C_kept[sweep] = W, C


@njit(cache=True)
def sweep_shared_residuals(A, W, R, L, corners, l2, block, sparse, q, W_kept, R_kept):
    """Sweeps over columns ``A (m, n)`` that all tasks share, with residuals ``R (n, T)``.

    ``corners (m, BLOCK)`` holds the moments inside every block, row by row.
    """
    m, T = W.shape
    new, scratch, D = np.empty(T), np.empty((3, T)), np.empty((BLOCK, T))
    for sweep in range(W_kept.shape[0]):
        for a in range(0, m, BLOCK):
            b = min(a + BLOCK, m)
            inside = np.dot(A[a:b], R) - l2 * W[a:b]
            moves = D[: b - a]
            corner = np.ascontiguousarray(corners[a:b, : b - a])
            if _sweep_block(corner, W[a:b], inside, L[a:b], l2, block, sparse, q, moves, new, scratch):
                R -= np.dot(A[a:b].T, moves)
        W_kept[sweep], R_kept[sweep] = W, R


@njit(cache=True, fastmath=_FAST)
def sweep_task_residuals(A, offsets, W, r, L, l2, block, sparse, q, W_kept, r_kept):
    """Sweeps over columns ``A (m, N)`` of tasks behind one another, with residuals ``r (N,)``."""
    m, T = W.shape
    c, new, scratch = np.empty(T), np.empty(T), np.empty((3, T))
    for sweep in range(W_kept.shape[0]):
        for j in range(m):
            for t in range(T):
                total = 0.0
                for i in range(offsets[t], offsets[t + 1]):
                    total += A[j, i] * r[i]
                c[t] = total - l2 * W[j, t]
            if not _minimise_row(W[j], c, L[j], block, sparse, q, new, scratch):
                continue
            for t in range(T):
                move = new[t] - W[j, t]
                W[j, t] = new[t]
                if move != 0.0:
                    for i in range(offsets[t], offsets[t + 1]):
                        r[i] -= A[j, i] * move
        W_kept[sweep], r_kept[sweep] = W, r


@njit(cache=True, fastmath=_FAST)
def extrapolation_weights(iterates):
    """(K,) weights of the last K of ``iterates (K + 1, size)`` whose differences nearly cancel (Anderson)."""
    K, size = iterates.shape[0] - 1, iterates.shape[1]
    gram = np.zeros((K, K))
    for k in range(K):
        for i in range(k + 1):
            total = 0.0
            for j in range(size):
                total += (iterates[k + 1, j] - iterates[k, j]) * (iterates[i + 1, j] - iterates[i, j])
            gram[k, i] = gram[i, k] = total
    last = np.zeros(K)
    last[K - 1] = 1.0
    trace = 0.0
    for k in range(K):
        trace += gram[k, k]
    if trace == 0.0:
        return last
    for k in range(K):
        gram[k, k] += 1e-14 * trace  # differences that are multiples of each other
    weights = np.linalg.solve(gram, np.ones(K))
    total = weights.sum()
    return weights / total if total != 0.0 and np.isfinite(total) else last


@njit(cache=True, fastmath=_FAST, error_model="numpy")
def reweighted_ridge(G, c, l2, block, eta, curvature):
    r"""Correlations ``C (m, T)`` at the ridge solution with penalty ``block ||W_j||^2 / (2 eta_j)`` on row j.

    ``W_j = eta_j C_j / block`` there; a row with eta_j = 0 is zero, and its correlations are as smooth as the others'.
    With ``curvature (m, m)`` not empty, it is filled with minus the derivative of ``||C_j||^2 / (2 block)`` in eta_k.
    """
    m, T = c.shape
    B, scratch, C = np.empty((m, m, T)), np.empty(T), np.zeros((m, T))
    for j in range(m):
        for k in range(m):
            factor = eta[k] / block
            for t in range(T):
                B[j, k, t] = G[j, k, t] * factor
        for t in range(T):
            B[j, j, t] += 1.0 + l2 * eta[j] / block
    _invert(B, scratch)
    for j in range(m):
        for k in range(m):
            for t in range(T):
                C[j, t] += B[j, k, t] * c[k, t]
    for j in range(curvature.shape[0]):
        for k in range(m):
            for t in range(T):
                scratch[t] = l2 * B[j, k, t]
            for i in range(m):
                for t in range(T):
                    scratch[t] += B[j, i, t] * G[i, k, t]
            total = 0.0
            for t in range(T):
                total += C[j, t] * scratch[t] * C[k, t]
            curvature[j, k] = total / block**2
    return C


@njit(cache=True, fastmath=_FAST, error_model="numpy")
def _invert(B, scratch):
    """Invert ``B (m, m, T)`` for every task in place (Gauss-Jordan).

    No pivots are needed for what comes here, the identity plus a product of two positive semidefinite matrices of which
    one is diagonal: all its leading minors are positive.
    """
    m, T = B.shape[0], B.shape[2]
    for p in range(m):
        for t in range(T):
            scratch[t] = 1 / B[p, p, t]
            B[p, p, t] = 1.0
        for j in range(m):
            for t in range(T):
                B[p, j, t] *= scratch[t]
        for i in range(m):
            if i == p:
                continue
            for t in range(T):
                scratch[t] = B[i, p, t]
                B[i, p, t] = 0.0
            for j in range(m):
                for t in range(T):
                    B[i, j, t] -= scratch[t] * B[p, j, t]
