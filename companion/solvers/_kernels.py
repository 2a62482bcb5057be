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
def _max_row(c, L, block, sparse, out):
    """Minimiser of ``sum_t L_t/2 w_t^2 - c_t w_t`` plus ``block max|w|``, entries being free above at ``sparse`` each.

    Up to a level m that they pay for together, entries are what they want to be; above it they pay ``sparse``. The
    level solves ``sum_t min(max(|c_t| - L_t m, 0), sparse) = block``, which is piecewise linear in m: a Newton step
    from inside a piece lands on its root.
    """
    low, high, total = 0.0, 0.0, 0.0
    for t in range(c.size):
        if L[t] > 0.0:
            high = max(high, abs(c[t]) / L[t])
            total += min(abs(c[t]), sparse)
    level = 0.0
    if total <= block * (1 + 1e-15 * c.size):  # on the boundary, rounding is not to leave dust
        high = 0.0
    for _ in range(200):
        if high == 0.0:
            break
        excess, slope = -block, 0.0
        for t in range(c.size):
            rest = abs(c[t]) - L[t] * level
            if L[t] > 0.0 and rest >= sparse:
                excess += sparse
            elif L[t] > 0.0 and rest > 0.0:
                excess += rest
                slope += L[t]
        if excess > 0.0:
            low = level
        else:
            high = level
        step = level + excess / slope if slope > 0.0 else 0.5 * (low + high)
        if not (low < step < high):
            step = level if excess == 0.0 else 0.5 * (low + high)
        if abs(step - level) <= 1e-16 * high:
            break
        level = step
    for t in range(c.size):
        size = 0.0
        if L[t] > 0.0:
            size = min(abs(c[t]) / L[t], max(level, (abs(c[t]) - sparse) / L[t]))
        out[t] = math.copysign(size, c[t])


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
def _share(v, q, s, tau):
    """Part w of ``v = w + u`` with ``u / tau = (w / s) ** (q - 1)``, all positive."""
    k = q - 1
    if q < 2:  # the same with both parts exchanged: the power that is solved for is then above one
        k, s, tau = 1 / k, tau, s
    z = min(v / s, (v / tau) ** (1 / k))
    w, u, move = s * z, tau * z**k, 0.0
    for _ in range(200):  # s z + tau z^k is convex in z: from the right, Newton's steps all go down
        w, u = s * z, tau * z**k
        move = (v - w - u) / max(w + k * u, 1e-308)
        z *= 1 + move
        if abs(move) <= 1e-12:
            break
    w, u = w * (1 + move), u * (1 + k * move)
    return u if q < 2 else w


@njit(cache=True)
def _prox_general(size, tau, cap, q, w):
    """Fill ``w`` with the prox of ``tau ||.||_q``, 1 < q < inf, cut by a cap, at ``size >= 0`` outside the dual ball.

    ``s = ||w||_q`` is the root of ``sum_t (w_t / s) (u_t / tau) = 1``, u = size - w; see the penalty for the argument.
    """
    largest = 0.0
    for t in range(size.size):
        largest = max(largest, size[t])
    tau, cap = tau / largest, cap / largest
    capped = (cap / tau) ** (q / (q - 1))
    low, high = 0.0, row_norm(size, q) / largest
    s = high
    for _ in range(200):
        ball, slope = 0.0, 0.0
        for t in range(size.size):
            if size[t] == 0.0:
                continue
            v = size[t] / largest
            w[t] = _share(v, q, s, tau)
            u = v - w[t] if w[t] < 0.5 * v else tau * (w[t] / s) ** (q - 1)
            if u < cap:
                part = w[t] / s * (u / tau)
                ball += part
                slope += part * w[t] / (w[t] + (q - 1) * u)
            else:
                ball += capped
        if ball >= 1.0:
            low = s
        if ball <= 1.0:
            high = s
        step = s * (1 + math.expm1(math.log(ball) / q) * ball / slope) if ball > 0.0 and slope > 0.0 else 0.0
        if not (low <= step <= high):
            step = 0.5 * (low + high)
        moved = abs(step - s)
        s = step
        if moved <= 1e-12 * s:
            break
    for t in range(size.size):
        v = size[t] / largest
        part = _share(v, q, s, tau) if v > 0.0 else 0.0
        w[t] = largest * max(part, v - cap)


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
    if q == np.inf:
        for t in range(v.size):
            u[t] = 1.0
        _max_row(v, u, radius, box, out)
        return
    dual = np.inf if q == 1.0 else q / (q - 1.0)
    if row_norm(u, dual) > radius:
        if q == 2.0:
            scale = _clipped_scale(size, box, radius)
            for t in range(v.size):
                u[t] = min(scale * size[t], box)
        else:
            _prox_general(size, radius, box, q, out)
            for t in range(v.size):
                out[t] = math.copysign(out[t], v[t])
            return
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
    elif q == np.inf:
        for t in range(T):
            scratch[0, t] = c[t] + L[t] * w[t]
        _max_row(scratch[0], L, block, sparse, new)
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
