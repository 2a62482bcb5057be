r"""What the linear benchmark measures, with what, and whom: data, one certificate for everybody, the contestants.

Every contestant solves

.. math:: \min_W\; \sum_t \frac{1}{2 n_t} \lVert y_t - X_t w_t \rVert^2 + \alpha\, \Omega(W)

without intercepts; with one X for all tasks this is scikit-learn's scaling. The package takes part as one contestant
and reads School; nothing else here uses it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

TOL = 1e-6  # relative duality gap that everybody has to reach

# --- the problem and its certificate ----------------------------------------------------------------------------------


class Norm(NamedTuple):
    """A norm of W (d, T), its dual norm, and its prox ``(V, threshold) -> W``."""

    name: str
    value: Callable[[np.ndarray], float]
    dual: Callable[[np.ndarray], float]
    prox: Callable[[np.ndarray, float], np.ndarray]


def shorten_rows(V: np.ndarray, threshold: float) -> np.ndarray:
    """Prox of l1/l2: every row shorter by the threshold."""
    lengths = np.linalg.norm(V, axis=1, keepdims=True)
    return V * np.maximum(1 - threshold / np.maximum(lengths, threshold), 0)


def shorten_singular_values(V: np.ndarray, threshold: float) -> np.ndarray:
    """Prox of the trace norm: every singular value smaller by the threshold."""
    U, s, Qh = np.linalg.svd(V, full_matrices=False)
    return (U * np.maximum(s - threshold, 0)) @ Qh


def _row_lengths(W: np.ndarray) -> np.ndarray:
    return np.linalg.norm(W, axis=1)


ROWS = Norm("l1/l2", lambda W: float(_row_lengths(W).sum()), lambda C: float(_row_lengths(C).max()), shorten_rows)
TRACE = Norm(
    "trace norm",
    lambda W: float(np.linalg.norm(W, "nuc")),
    lambda C: float(np.linalg.norm(C, 2)),
    shorten_singular_values,
)


@dataclass(frozen=True, eq=False)
class Data:
    """T tasks: one ``X (n, d)`` with ``Y (n, T)``, or T designs behind one another in ``X (N, d)`` with ``Y (N,)``.

    Attributes
    ----------
    X, Y : arrays
    offsets : (T + 1,) int array or None
        First row of every task; None where all tasks share X.
    sources : dict of str to str
        sha256 of the files they were read from; empty for generated data.
    """

    X: np.ndarray
    Y: np.ndarray
    offsets: np.ndarray | None = None
    sources: dict[str, str] = field(default_factory=dict)

    @property
    def is_shared(self) -> bool:
        return self.offsets is None

    @property
    def shape(self) -> tuple[int, int]:
        """d and T, the shape of W."""
        return self.X.shape[1], self.Y.shape[1] if self.offsets is None else len(self.offsets) - 1

    @cached_property
    def pairs(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """``(X_t, y_t)`` of every task with its own design: views."""
        return [(self.X[a:b], self.Y[a:b]) for a, b in pairwise(self.offsets)]


def descent(data: Data, W: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Negative gradient of the loss (d, T), and of the residuals r the sums of ``r'r / n_t`` and of ``r'y / n_t``."""
    if data.is_shared:
        R, n = data.Y - data.X @ W, len(data.Y)
        return data.X.T @ R / n, float((R * R).sum()) / n, float((R * data.Y).sum()) / n
    C, square, cross = np.empty(W.shape), 0.0, 0.0
    for t, (X, y) in enumerate(data.pairs):
        r, n = y - X @ W[:, t], len(y)
        C[:, t] = X.T @ r / n
        square, cross = square + r @ r / n, cross + r @ y / n
    return C, float(square), float(cross)


def certify(data: Data, norm: Norm, alpha: float, W: np.ndarray) -> tuple[float, float]:
    """Objective at ``W (d, T)``, and the duality gap there over the objective at zero.

    The dual point is the scaled residual; of all scalings that the dual norm allows, the one with the best dual value.
    """
    C, square, cross = descent(data, W)
    dual_norm = norm.dual(C)
    scale = min(cross / square, alpha / dual_norm if dual_norm > 0 else np.inf)
    primal = square / 2 + alpha * norm.value(W)
    dual = scale * cross - scale**2 * square / 2
    return primal, (primal - dual) / null_objective(data)


def null_objective(data: Data) -> float:
    """Objective at ``W = 0``."""
    if data.is_shared:
        return float((data.Y**2).sum()) / len(data.Y) / 2
    return float(sum(y @ y / len(y) for _, y in data.pairs)) / 2


def alpha_max(data: Data, norm: Norm) -> float:
    """Smallest alpha at which ``W = 0`` is optimal."""
    return norm.dual(descent(data, np.zeros(data.shape))[0])


# --- plain FISTA ------------------------------------------------------------------------------------------------------


def numpy_fista(
    data: Data, norm: Norm, alpha: float, tol: float, target: float = -np.inf, max_iter: int = 100_000
) -> np.ndarray:
    """What one writes in NumPy in half an hour: constant step 1/L and a loop over the tasks.

    Parameters
    ----------
    tol : float
        Stop at this relative gap, looked at every 10 iterations.
    target : float
        Stop at this objective already, which only somebody who knows the optimum can tell.

    Returns
    -------
    (d, T) array
    """
    step = 1 / max(np.linalg.norm(X, 2) ** 2 / len(X) for X, _ in data.pairs)
    W = np.zeros(data.shape)
    V, momentum = W, 1.0
    for iteration in range(1, max_iter + 1):
        gradient = np.empty_like(W)
        for t, (X, y) in enumerate(data.pairs):
            gradient[:, t] = X.T @ (X @ V[:, t] - y) / len(y)
        new = norm.prox(V - step * gradient, step * alpha)
        following = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        V = new + (momentum - 1) / following * (new - W)
        W, momentum = new, following
        if iteration % 10 == 0:
            objective, gap = certify(data, norm, alpha, W)
            if gap <= tol or objective <= target:
                break
    return W


# --- data -------------------------------------------------------------------------------------------------------------


def correlated_rows(n: int, d: int, rng: np.random.Generator, correlation: float) -> np.ndarray:
    """(n, d) Gaussian rows of unit variance, correlation of columns j and k ``correlation ** |j - k|``; by column."""
    columns = rng.standard_normal((d, n))
    fresh = np.sqrt(1 - correlation**2)
    for j in range(1, d):
        columns[j] = correlation * columns[j - 1] + fresh * columns[j]
    return columns.T


@lru_cache(maxsize=1)
def shared_data(n: int, d: int, T: int, rows: int, seed: int = 0) -> Data:
    """One design for all tasks.

    Neighbouring columns correlate by 0.5; ``rows`` random rows of W are standard normal, the others zero; the noise has
    a third of the norm of ``X W``.
    """
    rng = np.random.default_rng(seed)
    X = correlated_rows(n, d, rng, 0.5)
    W = np.zeros((d, T))
    W[rng.choice(d, rows, replace=False)] = rng.standard_normal((rows, T))
    Y, noise = X @ W, rng.standard_normal((n, T))
    Y += noise * np.linalg.norm(Y) / np.linalg.norm(noise) / 3
    # Column after column is what all the compiled solvers want: they would copy anything else.
    return Data(X, np.asfortranarray(Y))


@lru_cache(maxsize=1)
def ragged_data(sizes: tuple[int, int], d: int, T: int, rows: int, seed: int = 0) -> Data:
    """A design for every task, with n_t evenly from ``sizes[0]`` to ``sizes[1]``; otherwise as :func:`shared_data`.

    Filled task by task, without a second copy of the design, so that memory can be measured on top of it.
    """
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(np.linspace(*sizes, T).round().astype(int))])
    X, y = np.empty((offsets[-1], d)), np.empty(offsets[-1])
    support = rng.choice(d, rows, replace=False)
    for start, stop in pairwise(offsets):
        X[start:stop] = correlated_rows(stop - start, d, rng, 0.5)
        signal = X[start:stop, support] @ rng.standard_normal(rows)
        noise = rng.standard_normal(stop - start)
        y[start:stop] = signal + noise * np.linalg.norm(signal) / np.linalg.norm(noise) / 3
    return Data(X, y, offsets)


@lru_cache(maxsize=1)
def school_data(T: int) -> Data:
    """Training rows of the first published split, columns standardised over all tasks together, targets centred.

    The first ``T`` schools only.
    """
    from companion.datasets import load_school

    school = load_school()
    train = school.splits[0][0]
    train = train[school.task[train] <= T]
    train = train[np.argsort(school.task[train], kind="stable")]
    X, y, task = school.X[train], school.y[train], school.task[train]
    scale = X.std(axis=0)
    varies = scale > 0  # the constant column stays 1
    X[:, varies] = (X[:, varies] - X[:, varies].mean(axis=0)) / scale[varies]
    offsets = np.concatenate([[0], np.cumsum(np.unique(task, return_counts=True)[1])])
    return Data(X, y - y.mean(), offsets, dict(school.sha256))


# --- contestants ------------------------------------------------------------------------------------------------------


class Contestant(ABC):
    """Somebody who solves the problem. Packages are imported when they are first used: they may be missing.

    Attributes
    ----------
    name : str
    goal : {"relative_gap", "relative_error"}
        What has to come down to ``TOL``: the gap, or the distance of the objective from the optimum, which needs
        somebody who knows the optimum.
    """

    name: str
    goal = "relative_gap"

    def tolerances(self, alphas: np.ndarray) -> list[float]:
        """Settings of its tolerance to try, loosest first; a single one where the tolerance means the common gap."""
        return [TOL]

    def prepare(self, data: Data, norm: Norm, alphas: np.ndarray) -> Any:
        """The data in the form it likes best, made anew for every run and not timed."""
        return data

    @abstractmethod
    def solve(self, ready: Any, norm: Norm, alphas: np.ndarray, tol: float) -> list[np.ndarray]:
        """Weights (d, T) for every alpha, falling; several alphas are a path, warm-started."""


def _quarter_decades(loosest: float, decades: int) -> list[float]:
    return list(loosest * 10.0 ** (-np.arange(4 * decades + 1) / 4))


class Companion(Contestant):
    """This package, through its public estimators."""

    name = "companion"

    def prepare(self, data: Data, norm: Norm, alphas: np.ndarray) -> Any:
        from companion import Tasks

        if data.is_shared:
            return Tasks.shared(data.X, data.Y)
        return Tasks.from_long(data.X, data.Y, np.repeat(np.arange(data.shape[1]), np.diff(data.offsets)))

    def solve(self, ready: Any, norm: Norm, alphas: np.ndarray, tol: float) -> list[np.ndarray]:
        from companion.linear import MultiTaskLasso, TraceNorm, multi_task_path

        if len(alphas) > 1:
            path = multi_task_path(ready, alphas=alphas, tol=tol, fit_intercept=False)
            return [coef.T for coef in path.coefs]
        estimator = {ROWS: MultiTaskLasso, TRACE: TraceNorm}[norm]
        return [estimator(alpha=alphas[0], tol=tol, fit_intercept=False).fit(ready).coef_.T]


class ScikitLearn(Contestant):
    """scikit-learn's ``MultiTaskLasso``; along a path fitted again and again with ``warm_start``."""

    name = "scikit-learn"

    def tolerances(self, alphas: np.ndarray) -> list[float]:
        return _quarter_decades(0.1, 7)  # its gap, over the squared norm of Y

    def solve(self, ready: Data, norm: Norm, alphas: np.ndarray, tol: float) -> list[np.ndarray]:
        from sklearn.linear_model import MultiTaskLasso

        model = MultiTaskLasso(fit_intercept=False, tol=tol, max_iter=100_000, warm_start=True)
        return [model.set_params(alpha=alpha).fit(ready.X, ready.Y).coef_.T.copy() for alpha in alphas]


class Celer(Contestant):
    """celer's ``mtl_path``; its estimators do not run with current versions of scikit-learn."""

    name = "celer"

    def tolerances(self, alphas: np.ndarray) -> list[float]:
        return _quarter_decades(0.1, 7)  # its gap, over the squared norm of Y

    def solve(self, ready: Data, norm: Norm, alphas: np.ndarray, tol: float) -> list[np.ndarray]:
        from celer.homotopy import mtl_path

        _, coefs, _ = mtl_path(ready.X, ready.Y, alphas=alphas, tol=tol, max_iter=1000)
        return list(coefs.transpose(2, 1, 0))


class Skglm(Contestant):
    """skglm's ``MultiTaskBCD``, one solve or its own path.

    Predictions are handed in, zero, in Fortran order, as its path does: with its own default it is slower by half.
    """

    name = "skglm"

    def tolerances(self, alphas: np.ndarray) -> list[float]:
        return _quarter_decades(alphas[-1], 7)  # largest violation of the optimality conditions

    def solve(self, ready: Data, norm: Norm, alphas: np.ndarray, tol: float) -> list[np.ndarray]:
        from skglm.datafits import QuadraticMultiTask
        from skglm.penalties import L2_1
        from skglm.solvers import MultiTaskBCD

        solver = MultiTaskBCD(fit_intercept=False, tol=tol, max_iter=1000)
        X, Y, loss, penalty = ready.X, ready.Y, QuadraticMultiTask(), L2_1(alphas[0])
        if len(alphas) > 1:
            return list(solver.path(X, Y, loss, penalty, alphas)[1].transpose(2, 1, 0))
        zero, fitted = np.zeros(ready.shape), np.zeros(Y.shape, order="F")
        return [solver.solve(X, Y, loss, penalty, zero, fitted)[0]]


class Fista(Contestant):
    """:func:`numpy_fista`, stopped by its own gap."""

    name = "NumPy FISTA"

    def solve(self, ready: Data, norm: Norm, alphas: np.ndarray, tol: float) -> list[np.ndarray]:
        return [numpy_fista(ready, norm, alpha, tol) for alpha in alphas]


class ToldFista(Contestant):
    """:func:`numpy_fista` that is told the optimum and stops when it is near: more than a user can know."""

    name, goal = "NumPy FISTA, told the optimum", "relative_error"

    def solve(self, ready: Data, norm: Norm, alphas: np.ndarray, tol: float) -> list[np.ndarray]:
        # Its own tolerance is the gap, which lags far behind: only the target stops it.
        target = optimum(ready, norm, alphas[0]) + TOL * null_objective(ready)
        return [numpy_fista(ready, norm, alphas[0], 0.0, target)]


class ToldCompanion(Companion):
    """This package with the loosest tolerance that brings it as near to the optimum, for comparison with the former."""

    name, goal = "companion, told the optimum", "relative_error"

    def tolerances(self, alphas: np.ndarray) -> list[float]:
        return _quarter_decades(0.1, 7)


@lru_cache
def optimum(data: Data, norm: Norm, alpha: float) -> float:
    """Smallest objective, known to a thousandth of ``TOL`` and certified by :func:`certify`."""
    who, alphas = Companion(), np.array([alpha])
    (W,) = who.solve(who.prepare(data, norm, alphas), norm, alphas, TOL / 1000)
    objective, gap = certify(data, norm, alpha, W)
    if gap > TOL / 1000:
        raise RuntimeError(f"the optimum should be known to a relative gap of {TOL / 1000}; got {gap}")
    return objective
