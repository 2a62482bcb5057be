"""The hierarchical Gaussian once more, as one dense normal distribution of all targets: slow, and obvious.

Nothing here uses the package. Data are lists of ``(X_t, y_t, s_t)``: design, targets, sample weights. The targets are
jointly normal with covariance ``x' (C [same task] + M) z + sigma^2 / s [same row]``, where M is the prior covariance of
the common mean; with intercepts there is an unknown level for every task, which has a flat prior (density one).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Model:
    """Known hyperparameters: ``C (d, d)``, ``M (d, d)``, ``noise`` > 0."""

    C: Array
    M: Array
    noise: float
    fit_intercept: bool = True

    def _between(self, X: Array, t: Array, Z: Array, s: Array) -> Array:
        """Covariances of the slopes' part between rows X of tasks t and rows Z of tasks s."""
        return X @ self.M @ Z.T + (t[:, None] == s) * (X @ self.C @ Z.T)

    def _system(self, blocks):
        X, y, s = (np.concatenate([block[i] for block in blocks]) for i in range(3))
        t = np.repeat(np.arange(len(blocks)), [len(block[1]) for block in blocks])
        Sigma = self._between(X, t, X, t) + self.noise * np.diag(1 / s)
        A = (t[:, None] == np.arange(len(blocks))).astype(float) if self.fit_intercept else np.zeros((len(y), 0))
        inverse = np.linalg.inv(Sigma)
        return X, y, t, Sigma, A, inverse, np.linalg.inv(A.T @ inverse @ A)

    def log_evidence(self, blocks) -> float:
        """Log density of the targets, levels integrated out (rows of weight one)."""
        _, y, _, Sigma, A, inverse, levels = self._system(blocks)
        residual = y - A @ levels @ A.T @ inverse @ y
        logs = np.linalg.slogdet(Sigma)[1] - np.linalg.slogdet(levels)[1] + (len(y) - A.shape[1]) * np.log(2 * np.pi)
        return float(-(residual @ inverse @ residual + logs) / 2)

    def predict(self, blocks, X_new: Array, t_new: Array) -> tuple[Array, Array]:
        """Means ``(n,)`` and covariance ``(n, n)`` of new targets, noise left out: universal kriging."""
        X, y, t, _, A, inverse, levels = self._system(blocks)
        c = self._between(X_new, t_new, X, t)
        A_new = (t_new[:, None] == np.arange(len(blocks))).astype(float)[:, : A.shape[1]]
        b = levels @ A.T @ inverse @ y
        mean = A_new @ b + c @ inverse @ (y - A @ b)
        left = A_new - c @ inverse @ A
        return mean, self._between(X_new, t_new, X_new, t_new) - c @ inverse @ c.T + left @ levels @ left.T

    def weights(self, blocks) -> tuple[Array, Array]:
        """Posterior means ``(T d,)`` and joint covariance of the weights of all tasks, then of m: ``((T + 1) d, ...)``.

        Slopes are what a unit step of the inputs changes; m is the slope of a task without data.
        """
        d, T = len(self.C), len(blocks)
        X, y, t, _, A, inverse, levels = self._system(blocks)
        unit, task = np.tile(np.eye(d), (T + 1, 1)), np.repeat(np.arange(T + 1), d)
        c = self._between(unit, task, X, t)
        prior = self._between(unit, task, unit, task)
        prior[T * d :, T * d :] = self.M  # m itself, not the weights of one more task
        b = levels @ A.T @ inverse @ y
        left = c @ inverse @ A
        return c @ inverse @ (y - A @ b), prior - c @ inverse @ c.T + left @ levels @ left.T
