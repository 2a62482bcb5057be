r"""Machines on a Gram matrix: kernel ridge regression and the support vector machine, weighted and certified.

.. math::
   \min_{f, b}\; \sum_i v_i\, \ell(y_i, f_i + b_i) + \tfrac12 \lVert f \rVert_K^2, \qquad f = K c

scikit-learn solves both; what is done here is to eliminate intercepts, to certify, and for the support vector machine
to go on from libsvm's solution, which single precision holds back, to one of double precision. Everything is NumPy on
the CPU.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgWarning, lapack
from sklearn.exceptions import ConvergenceWarning
from sklearn.kernel_ridge import KernelRidge
from sklearn.svm import SVC

Array = NDArray[np.float64]
_LIBSVM_TOL = 1e-3  # of the margins: near enough for a few Newton steps to do the rest
_MOST_STEPS = 1000  # after libsvm; a handful is usual, and a start that needs more is better improved by libsvm


class KernelSolution(NamedTuple):
    """Coefficients of a kernel machine with their certificate."""

    dual: Array  # (N,) c, the function is f = K c
    intercept: Array  # (G,)
    objective: float
    dual_gap: float  # absolute
    null_objective: float  # objective of the intercept-only model
    n_iter: int
    certificate: dict[str, float]  # name -> relative violation, where it says more than the gap


# --- ridge ---------------------------------------------------------------------------------------------------------


def kernel_ridge(K: Array, y: Array, v: Array, offsets: NDArray[np.int64] | None = None) -> KernelSolution:
    r"""Least squares with a free intercept in every group of rows.

    .. math:: \min_{c, b}\; \tfrac12 \sum_i v_i (y_i - (K c)_i - b_{g(i)})^2 + \tfrac12 c^\top K c

    The best intercepts are those that centre the residuals. Subtracting from every row's feature map, and from y, the
    weighted mean of its group therefore removes them: with the projection H that does so the problem has the Gram
    matrix :math:`H K H^\top` and no intercept. The solution of :math:`(H K H^\top + V^{-1}) c = H y` sums to zero in
    every group, so :math:`H^\top c = c`, and the same c solves the problem above.

    With the residual r of that linear system the duality gap at c is :math:`\tfrac12 \sum_i v_i r_i^2`, without
    cancellation.

    Parameters
    ----------
    K : (N, N) array
        Symmetric, positive semidefinite. Overwritten.
    y, v : (N,) arrays
        Targets and row weights > 0.
    offsets : (G + 1,) array, optional
        Group g holds the rows from ``offsets[g]`` to ``offsets[g + 1]``. None: no intercepts.
    """
    K_mean, y_mean = np.zeros((1, len(y))), np.zeros(1)
    if offsets is not None:
        K_mean, y, y_mean = _centre(K, y, v, offsets)
    with warnings.catch_warnings():  # what rounding leaves is certified below
        warnings.simplefilter("ignore", LinAlgWarning)
        warnings.filterwarnings("ignore", "Singular matrix in solving dual problem", UserWarning)
        c = KernelRidge(alpha=1.0, kernel="precomputed").fit(K, y, sample_weight=v).dual_coef_
    error = y - K @ c
    objective = float(v @ error**2 + c @ (y - error)) / 2
    gap, null = float(v @ (error - c / v) ** 2) / 2, float(v @ y**2) / 2
    residual = {"residual of the linear system": (gap / null) ** 0.5 if null > 0 else 0.0}
    return KernelSolution(c, y_mean - K_mean @ c, objective, gap, null, 1, residual)


def _centre(K: Array, y: Array, v: Array, offsets: NDArray[np.int64]) -> tuple[Array, Array, Array]:
    """Centre K in place: means of its rows before that (G, N), centred y (N,), means of y (G,)."""
    groups = [slice(a, b) for a, b in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)]
    shares = [v[rows] / v[rows].sum() for rows in groups]
    K_mean = np.stack([share @ K[rows] for share, rows in zip(shares, groups, strict=True)])
    y_mean = np.array([share @ y[rows] for share, rows in zip(shares, groups, strict=True)])
    for mean, rows in zip(K_mean, groups, strict=True):
        K[rows] -= mean
    for share, rows in zip(shares, groups, strict=True):
        K[:, rows] -= (K[:, rows] @ share)[:, None]
    return K_mean, subtract_mean(y, np.repeat(y_mean, np.diff(offsets))), y_mean


def subtract_mean(values: Array, mean: Array) -> Array:
    """``values - mean``, exactly zero where the difference is rounding: a constant must not pass for a signal."""
    difference = values - mean
    return np.where(abs(difference) <= 8 * np.finfo(float).eps * abs(mean), 0.0, difference)


# --- support vectors -----------------------------------------------------------------------------------------------


class _State(NamedTuple):
    """Where a dual point of the support vector machine stands."""

    u: Array  # (N,) y - K c: minus the gradient of the dual objective
    free: NDArray[np.bool_]  # (N,) strictly between their bounds
    pair: tuple[int, int]  # coefficients that want to rise and to fall most
    violation: float  # of the optimality conditions, by that pair
    intercept: float
    gap: float


def support_vectors(K: Array, y: Array, v: Array, tol: float, max_iter: int) -> KernelSolution:
    r"""Hinge loss with one free intercept.

    .. math:: \min_{c, b}\; \sum_i v_i \max(0, 1 - y_i ((K c)_i + b)) + \tfrac12 c^\top K c

    The dual is to maximise :math:`y^\top c - \tfrac12 c^\top K c` over :math:`\sum_i c_i = 0` and :math:`0 \leq y_i c_i
    \leq v_i`. libsvm solves it up to the single precision in which it keeps K, which leaves relative gaps of 1e-11 to
    1e-7. From there an active-set method goes on in double precision: a Newton step on all coefficients that are
    strictly between their bounds, as far as the bounds allow, and those that reach one stay there; once no bound is in
    the way, the pair that violates the optimality conditions most joins them. The few steps that takes cost a Cholesky
    factor of the free part each.

    Since the coefficients sum to zero, K may be centred, which changes nothing but b and keeps digits for data far from
    zero.

    Parameters
    ----------
    K : (N, N) array
        Symmetric, positive semidefinite. Overwritten.
    y, v : (N,) arrays
        Labels -1 and +1, both present, and row weights > 0.
    tol : float
        Duality gap allowed, relative to the objective of the intercept-only model.
    max_iter : int
        Most iterations of libsvm, and most steps after it (of which there are at most 1000).

    Returns
    -------
    KernelSolution
        With one intercept; where many are optimal, the middle of them.
    """
    null = 2 * float(min(v[y > 0].sum(), v[y < 0].sum()))  # the constant that suits the heavier class
    mean = K.mean(1)
    K -= mean[:, None]
    K -= mean - mean.mean()
    c, n_iter = _libsvm(K, y, v, max_iter)
    state = best = _state(K, c, y, v)
    best_c, working, blocked = c, state.free, bool(state.free.any())
    noise = 0.1 * np.finfo(float).eps * float(K.diagonal().max())
    for _ in range(min(max_iter, _MOST_STEPS)):
        if best.gap <= tol * null or (not blocked and state.violation <= noise * abs(c).sum()):
            break
        if not blocked:
            working = state.free.copy()
            working[list(state.pair)] = True
        c, stopped = _newton_step(K, c, y, v, state.u, np.flatnonzero(working))
        working[stopped] = False
        blocked = len(stopped) > 0 and bool(working.any())
        n_iter += 1
        state = _state(K, c, y, v)
        if state.gap <= best.gap:
            best, best_c = state, c
    f, b = y - best.u, best.intercept
    objective = float(v @ np.maximum(0.0, 1 - y * (f + b)) + best_c @ f / 2)
    return KernelSolution(best_c, np.array([b - mean @ best_c]), objective, best.gap, null, n_iter, {})


def _libsvm(K: Array, y: Array, v: Array, max_iter: int) -> tuple[Array, int]:
    """Coefficients (N,) and iterations; the caller certifies them, so no warning is given here."""
    machine = SVC(C=1.0, kernel="precomputed", tol=_LIBSVM_TOL, max_iter=max_iter, cache_size=500)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        machine.fit(K, y, sample_weight=v)
    c = np.zeros(len(y))
    c[machine.support_] = machine.dual_coef_[0]
    return c, int(machine.n_iter_.max())


def _state(K: Array, c: Array, y: Array, v: Array) -> _State:
    r"""Optimality conditions and duality gap of a feasible dual point.

    An intercept b is optimal if :math:`u_i \leq b` for every coefficient that can rise and :math:`u_i \geq b` for
    every one that can fall. The gap is a sum over the rows of terms >= 0.
    """
    u, alpha = y - K @ c, c * y
    slack = 1e-14 * v.sum()  # nearer to a bound than rounding of sum c = 0 is on it
    below, above = alpha < v - slack, alpha > slack
    rises, falls = np.where(y > 0, below, above), np.where(y > 0, above, below)
    i, j = int(np.where(rises, u, -np.inf).argmax()), int(np.where(falls, u, np.inf).argmin())
    b = (u[i] + u[j]) / 2
    lack = y * (u - b)  # 1 - y (K c + b)
    gap = np.where(lack > 0, (v - alpha) * lack, -alpha * lack).sum()
    return _State(u, below & above, (i, j), float(u[i] - u[j]), float(b), float(gap))


def _newton_step(
    K: Array, c: Array, y: Array, v: Array, u: Array, working: NDArray[np.int64]
) -> tuple[Array, NDArray[np.int64]]:
    """Maximise the dual over some coefficients, sum kept, up to the nearest bound: new c, and which stopped there.

    Where there is no curvature the direction is too short, for which the length of the step makes up.
    """
    A, u = K[np.ix_(working, working)], u[working] - u[working].mean()
    p = _direction(A, u)
    slope, bend = float(u @ p), float(p @ A @ p)
    if not slope > 0:  # nothing but rounding
        return c, working[:0]
    alpha, towards = c[working] * y[working], p * y[working]
    room = np.where(towards > 0, v[working] - alpha, alpha)
    reach = np.divide(room, abs(towards), out=np.full_like(room, np.inf), where=towards != 0)
    nearest = max(float(reach.min()), 0.0)
    step = min(nearest, slope / bend if bend > 0 else np.inf)
    stopped = reach <= nearest if step == nearest else np.zeros(len(p), dtype=bool)
    alpha = np.clip(alpha + step * towards, 0.0, v[working])
    alpha[stopped] = np.where(towards > 0, v[working], 0.0)[stopped]
    c = c.copy()
    c[working] = alpha * y[working]
    return c, working[stopped]


def _direction(A: Array, u: Array) -> Array:
    r"""p that maximises :math:`u^\top p - \tfrac12 p^\top A p` where p sums to zero; u has mean zero.

    A multiple of the identity makes A definite: copies of a row make it singular.
    """
    shift = 1e-12 * max(float(A.diagonal().max()), np.finfo(float).tiny)
    while True:
        factor, failed = lapack.dpotrf(A + shift * np.eye(len(u)))
        if not failed:
            break
        shift *= 100.0
    solved, _ = lapack.dpotrs(factor, np.column_stack([u, np.ones(len(u))]))
    p = solved[:, 0] - solved[:, 0].sum() / solved[:, 1].sum() * solved[:, 1]
    return p - p.mean()
