r"""Weighted least squares with free intercepts and a ridge or lasso penalty, for one penalty or many.

.. math:: \min_{w, b}\; \tfrac12 \sum_i v_i (y_i - x_i^\top w - b_{g(i)})^2 + \Omega_\alpha(w)

Rows of one group g share an intercept. Centring every group by its weighted mean removes the intercepts exactly.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import lasso_path
from torch import Tensor


class Centring:
    """Weighted group means of X and y; with ``groups=None`` nothing is centred and intercepts are zero.

    Parameters
    ----------
    X : (n, d) float64 tensor
    y, v : (n,) float64 tensors
        Targets and row weights > 0.
    groups : (n,) int64 tensor or None
        Group of every row, 0..n_groups-1, none empty.

    Attributes
    ----------
    X, y : the centred data
    X_mean (G, d), y_mean (G,) : what was subtracted
    """

    def __init__(self, X: Tensor, y: Tensor, v: Tensor, groups: Tensor | None, n_groups: int) -> None:
        self.root, self.groups = v.sqrt(), groups
        if groups is None:
            self.X, self.y = X, y
            self.X_mean, self.y_mean = X.new_zeros(n_groups, X.shape[1]), y.new_zeros(n_groups)
            return
        total = group_sums(v, groups, n_groups)
        self.y_mean = group_sums(v * y, groups, n_groups) / total
        self.X_mean = group_sums(v[:, None] * X, groups, n_groups) / total[:, None]
        self.X, self.y = _subtract(X, self.X_mean[groups]), _subtract(y, self.y_mean[groups])

    def intercepts(self, w: Tensor) -> Tensor:
        """(G,) optimal intercepts for weights ``w (d,)``; (G, A) for A weight vectors ``(d, A)``."""
        return self.y_mean.reshape(-1, *[1] * (w.ndim - 1)) - self.X_mean @ w


def _subtract(values: Tensor, mean: Tensor) -> Tensor:
    """``values - mean``, exactly zero where the difference is rounding: a constant column must stay without effect."""
    difference = values - mean
    noise = 8 * torch.finfo(values.dtype).eps * mean.abs()
    return torch.where(difference.abs() <= noise, 0.0, difference)


class RidgeProblem(Centring):
    r"""Ridge, :math:`\Omega_\alpha(w) = \tfrac{\alpha}{2} \lVert w \rVert^2`: one SVD serves every alpha >= 0.

    The SVD of the weighted design keeps its condition number (a Gram matrix would square it), and alpha = 0 gives the
    least-squares solution of smallest norm.
    """

    def __init__(self, X: Tensor, y: Tensor, v: Tensor, groups: Tensor | None, n_groups: int) -> None:
        super().__init__(X, y, v, groups, n_groups)
        U, s, Qh = torch.linalg.svd(self.root[:, None] * self.X, full_matrices=False)
        kept = s > s.max() * max(X.shape) * torch.finfo(s.dtype).eps
        self._s, self._Q = s[kept], Qh[kept].T
        self._Uy = U[:, kept].T @ (self.root * self.y)

    def solve(self, alpha: float) -> Tensor:
        """(d,) weights for one alpha."""
        return self.path(np.array([alpha]))[:, 0]

    def path(self, alphas: np.ndarray) -> Tensor:
        """(d, A) weights for all alphas."""
        ridge = torch.as_tensor(alphas, dtype=self._s.dtype, device=self._s.device)
        return self._Q @ ((self._s * self._Uy)[:, None] / (self._s[:, None] ** 2 + ridge))


class LassoProblem(Centring):
    r"""Lasso, :math:`\Omega_\alpha(w) = \alpha \lVert w \rVert_1`, by scikit-learn's coordinate descent.

    It works on the CPU whatever the device of the data, and starts each solve from the solution before, so hand it the
    alphas in falling order. It stops at an absolute duality gap of ``gap``, or at what rounding allows.
    """

    def __init__(
        self,
        X: Tensor,
        y: Tensor,
        v: Tensor,
        groups: Tensor | None,
        n_groups: int,
        gap: float,
        max_iter: int = 10_000,
    ) -> None:
        super().__init__(X, y, v, groups, n_groups)
        self._A = np.asfortranarray((self.root[:, None] * self.X).cpu().numpy())
        self._b = (self.root * self.y).cpu().numpy()
        # scikit-learn compares the gap with tol * ||b||^2; half of what is asked for leaves a margin.
        size = float(self._b @ self._b)
        tol = max(gap / (2 * size), 1e-15) if size > 0 else 1.0
        self._options = {"tol": tol, "max_iter": max_iter, "precompute": False, "return_n_iter": True}
        self._w = np.zeros(X.shape[1])
        self.n_iter = 0

    def solve(self, alpha: float) -> Tensor:
        """(d,) weights for one alpha > 0; the caller certifies them, so no warning is given here."""
        return self.path(np.array([alpha]))[:, 0]

    def path(self, alphas: np.ndarray) -> Tensor:
        """(d, A) weights for all alphas, given in falling order."""
        scaled = alphas / len(self._b)  # scikit-learn divides the squared error by the number of rows
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            _, weights, _, n_iter = lasso_path(self._A, self._b, alphas=scaled, coef_init=self._w, **self._options)
        self._w, self.n_iter = weights[:, -1].copy(), max(self.n_iter, *map(int, n_iter))
        return torch.from_numpy(weights).to(self.X)


def group_sums(values: Tensor, groups: Tensor, n_groups: int) -> Tensor:
    """Sums of ``values (n, ...)`` over the rows of every group: ``(n_groups, ...)``."""
    return values.new_zeros((n_groups, *values.shape[1:])).index_add_(0, groups, values)
