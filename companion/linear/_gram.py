"""What kernel machines work on: kernels on rows, the labels of all tasks, and functions expanded in a kernel."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.linalg import lapack
from sklearn.metrics.pairwise import PAIRWISE_KERNEL_FUNCTIONS, pairwise_kernels

from companion.solvers.kernel_machines import subtract_mean
from companion.tasks import Tasks

Array = NDArray[np.float64]
_PSD_TOL = 1e-8  # negative eigenvalues up to this part of the largest pass for rounding
_CHUNK = 1 << 22  # numbers of a kernel matrix held at a time in prediction


@dataclass(frozen=True)
class RowKernel:
    """k(x, z) between rows of features, one of scikit-learn's by name or a function of two matrices.

    Parameters
    ----------
    kernel : str or callable
        A name of :data:`~sklearn.metrics.pairwise.PAIRWISE_KERNEL_FUNCTIONS`, or ``k(X, Z) -> (n, m)``.
    gamma : float > 0 or None
        None: the kernel's own, which is 1 for "chi2" and 1/d for the others.
    degree, coef0 : float
    origin : (d,) array or None
        Subtracted from all rows first. Differences of rows stay what they are, only more exact far from zero.
    """

    kernel: str | Callable[[Array, Array], Array]
    gamma: float | None = None
    degree: float = 3.0
    coef0: float = 1.0
    origin: Array | None = None

    @classmethod
    def fit(cls, kernel: Any, gamma: Any, degree: Any, coef0: Any, X: Array, weight: Array) -> RowKernel:
        """Check the parameters of an estimator; ``X (n, d)`` and weights ``(n,)`` give origin and scale."""
        _check_kernel(kernel)
        if not (math.isfinite(degree) and degree >= 0 and math.isfinite(coef0)):
            raise ValueError(f"degree must be a finite number >= 0 and coef0 finite; got {degree!r} and {coef0!r}")
        mean = weight @ X / weight.sum()
        if gamma == "scale":
            variance = float(weight @ ((X - weight @ X.mean(1) / weight.sum()) ** 2).mean(1) / weight.sum())
            gamma = 1 / (X.shape[1] * variance) if variance > 0 else 1.0
        elif gamma == "auto":
            gamma = 1 / X.shape[1]
        elif gamma is not None and (isinstance(gamma, str) or not 0 < gamma < math.inf):
            raise ValueError(f"gamma must be a finite number > 0, 'scale', 'auto' or None; got {gamma!r}")
        return cls(kernel, gamma, degree, coef0, mean if kernel == "rbf" else None)

    def __call__(self, X: Array, Z: Array) -> Array:
        """(n, m) kernel between the rows of ``X (n, d)`` and of ``Z (m, d)``."""
        if callable(self.kernel):
            K = np.asarray(self.kernel(X, Z))
            if K.shape != (len(X), len(Z)) or K.dtype.kind not in "biuf":
                raise ValueError(
                    f"kernel must return a real matrix of shape ({len(X)}, {len(Z)}) for that many rows of X and Z; "
                    f"got {K.dtype} of shape {K.shape}"
                )
            K = K.astype(np.float64, copy=False)
        else:
            if self.origin is not None:
                X, Z = X - self.origin, Z - self.origin
            options = {"degree": self.degree, "coef0": self.coef0}
            if self.gamma is not None:
                options["gamma"] = self.gamma
            K = pairwise_kernels(X, Z, metric=self.kernel, filter_params=True, **options)
        if not np.isfinite(K).all():
            raise ValueError(f"kernel {_name(self.kernel)} gives NaN or infinity on these rows")
        return K

    def gram(self, X: Array) -> Array:
        """(n, n) kernel between the rows of ``X``, symmetric; one that is not positive semidefinite is an error.

        Raises
        ------
        ValueError
            The most negative eigenvalue is larger than 1e-8 of the largest, or the matrix is asymmetric by more than
            1e-8 of its largest entry.
        """
        K = self(X, X)
        name, size = _name(self.kernel), float(abs(K).max())
        asymmetry = float(abs(K - K.T).max())
        if asymmetry > 1e-8 * size:
            raise ValueError(
                f"kernel {name} must be symmetric; k(x, z) and k(z, x) differ by up to {asymmetry:.3g} on the training "
                f"rows, where its largest value is {size:.3g}"
            )
        K = (K + K.T) / 2  # a new matrix: a function may keep its own
        if self._is_psd():
            return K
        jitter = _PSD_TOL * max(float(K.diagonal().max()), 0.0)  # no more than that part of the largest eigenvalue
        if lapack.dpotrf(K + jitter * np.eye(len(K)))[1] != 0 and size > 0:
            values = np.linalg.eigvalsh(K)
            if values[0] < -_PSD_TOL * values[-1]:
                raise ValueError(
                    f"kernel {name} must be positive semidefinite; on the {len(K)} training rows its smallest "
                    f"eigenvalue is {values[0]:.3g} and its largest {values[-1]:.3g} (allowed: -{_PSD_TOL:g} of that)"
                )
        return K

    def _is_psd(self) -> bool:
        """Whether that is known without looking."""
        if self.kernel in ("poly", "polynomial"):
            return self.coef0 >= 0 and float(self.degree).is_integer()
        return self.kernel in ("linear", "rbf", "laplacian", "cosine", "chi2")


@dataclass(frozen=True)
class Labels:
    """Where the labels of all tasks lie: label i belongs to task ``task[i]`` and to row ``row[i]`` of X."""

    X: Array  # (n, d)
    y: Array  # (N,)
    s: Array  # (N,) sample weights
    row: NDArray[np.int64]  # (N,)
    task: NDArray[np.int64]  # (N,), rising
    offsets: NDArray[np.int64]  # (T + 1,)

    @classmethod
    def of(cls, tasks: Tasks) -> Labels:
        """Labels of float64 tasks on the CPU."""
        s = torch.cat([tasks.weights(t) for t in range(tasks.n_tasks)]).numpy()
        task = np.repeat(np.arange(tasks.n_tasks), tasks.n_samples)
        offsets = np.concatenate([[0], np.cumsum(tasks.n_samples)])
        if tasks.is_shared:
            X, Y, observed = tasks.common_inputs()
            row = np.nonzero(np.ones(Y.T.shape) if observed is None else observed.T.numpy())[1]
        else:
            X, row = tasks.stacked()[0], np.arange(len(task))
        return cls(X.numpy(), tasks.long_targets(), s, row, task, offsets)

    def row_weights(self) -> Array:
        """(n,) weight of every row over all its labels."""
        return np.bincount(self.row, self.s, minlength=len(self.X)).astype(float)

    def designs(self, v: Array | None) -> tuple[Array, Array]:
        """(N, d) row of every label, less the mean of its task under weights ``v``; those means (T, d)."""
        X = self.X[self.row]
        if v is None:
            return X, np.zeros((len(self.offsets) - 1, X.shape[1]))
        mean = self.sums(v[:, None] * X) / self.sums(v)[:, None]
        return subtract_mean(X, mean[self.task]), mean

    def sums(self, values: Array) -> Array:
        """(T, ...) sums over the labels of every task."""
        return np.add.reduceat(values, self.offsets[:-1])

    def multi_task(self, K: Array, M: Array) -> Array:
        """Multiply a kernel between the rows of all labels ``K (N, N)`` by that between their tasks, in place."""
        for t, (a, b) in enumerate(zip(self.offsets[:-1].tolist(), self.offsets[1:].tolist(), strict=True)):
            K[a:b] *= M[t, self.task]
        return K


@dataclass(frozen=True)
class Expansion:
    r"""Functions :math:`f_t(x) + b_t = \sum_s M_{ts} \sum_i c_{is} k(x, x_i) + b_t` of all tasks.

    Parameters
    ----------
    kernel : RowKernel
    X : (n, d) array
        Training rows.
    C : (n, T) sparse array
        Coefficient of row i as a row of task s.
    M : (T, T) array
        Kernel over tasks.
    b : (T,) array
        Intercepts.
    """

    kernel: RowKernel
    X: Array
    C: sparse.csr_array
    M: Array
    b: Array

    def __call__(self, rows: Array, t: int | list[int]) -> Array:
        """Values (m,) of task t at ``rows (m, d)``; (m, k) for a list of k tasks."""
        weights = self.C @ self.M[:, t]  # (n,) or (n, k)
        step = max(1, _CHUNK // len(self.X))
        blocks = [self.kernel(rows[a : a + step], self.X) @ weights for a in range(0, len(rows), step)]
        return np.concatenate(blocks) + self.b[t]


def _check_kernel(kernel: Any) -> None:
    if callable(kernel) or (isinstance(kernel, str) and kernel in PAIRWISE_KERNEL_FUNCTIONS):
        return
    if isinstance(kernel, str) and kernel == "precomputed":
        raise ValueError(
            "kernel='precomputed' is not supported, for prediction and cross-validation need kernels between other "
            "rows too. Give a function k(X, Z) -> (n, m); it may look them up by a column of X that numbers the rows"
        )
    known = ", ".join(sorted(map(repr, PAIRWISE_KERNEL_FUNCTIONS)))
    raise ValueError(f"kernel must be one of {known} or a function k(X, Z) -> (n, m); got {kernel!r}")


def _name(kernel: Any) -> str:
    return repr(kernel) if isinstance(kernel, str) else f"{getattr(kernel, '__name__', type(kernel).__name__)}()"
