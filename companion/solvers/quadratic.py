r"""Weighted least squares with free intercepts and a ridge or lasso penalty, for one penalty or many.

.. math:: \min_{w, b}\; \tfrac12 \sum_i v_i (y_i - x_i^\top w - b_{g(i)})^2 + \Omega_\alpha(w)

Rows of one group g share an intercept. Centring every group by its weighted mean removes the intercepts exactly.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Lasso
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
    """

    def __init__(self, X: Tensor, y: Tensor, v: Tensor, groups: Tensor | None, n_groups: int) -> None:
        self.root, self.n_groups, self.groups = v.sqrt(), n_groups, groups
        if groups is None:
            self.X, self.y = X, y
            return
        total = group_sums(v, groups, n_groups)
        self.y_mean = group_sums(v * y, groups, n_groups) / total  # (G,)
        self.X_mean = group_sums(v[:, None] * X, groups, n_groups) / total[:, None]  # (G, d)
        self.X, self.y = X - self.X_mean[groups], y - self.y_mean[groups]

    def intercepts(self, w: Tensor) -> Tensor:
        """(G,) optimal intercepts for weights ``w (d,)``; (G, A) for A weight vectors ``(d, A)``."""
        if self.groups is None:
            return w.new_zeros((self.n_groups, *w.shape[1:]))
        return self.y_mean.reshape(-1, *[1] * (w.ndim - 1)) - self.X_mean @ w


class RidgeProblem(Centring):
    r"""Ridge, :math:`\Omega_\alpha(w) = \tfrac{\alpha}{2} \lVert w \rVert^2`: one SVD serves every alpha >= 0.

    The SVD of the weighted design keeps its condition number (a Gram matrix would square it), and alpha = 0 gives the
    least-squares solution of smallest norm.
    """

    def __init__(self, X: Tensor, y: Tensor, v: Tensor, groups: Tensor | None, n_groups: int) -> None:
        super().__init__(X, y, v, groups, n_groups)
        U, s, Vh = torch.linalg.svd(self.root[:, None] * self.X, full_matrices=False)
        kept = s > s[0] * max(X.shape) * torch.finfo(s.dtype).eps
        self._s, self._V = s[kept], Vh[kept].T
        self._Uy = U[:, kept].T @ (self.root * self.y)

    def solve(self, alpha: float) -> Tensor:
        """(d,) weights for one alpha."""
        return self.path(np.array([alpha]))[:, 0]

    def path(self, alphas: np.ndarray) -> Tensor:
        """(d, A) weights for all alphas."""
        ridge = torch.as_tensor(alphas, dtype=self._s.dtype, device=self._s.device)
        return self._V @ ((self._s * self._Uy)[:, None] / (self._s[:, None] ** 2 + ridge))


class LassoProblem(Centring):
    r"""Lasso, :math:`\Omega_\alpha(w) = \alpha \lVert w \rVert_1`, by scikit-learn's coordinate descent.

    It works on the CPU whatever the device of the data, and starts each solve from the solution before, so hand it the
    alphas in falling order. ``tol`` bounds the duality gap relative to the intercept-only objective.
    """

    def __init__(
        self,
        X: Tensor,
        y: Tensor,
        v: Tensor,
        groups: Tensor | None,
        n_groups: int,
        tol: float = 1e-8,
        max_iter: int = 10_000,
    ) -> None:
        super().__init__(X, y, v, groups, n_groups)
        self._A = np.asfortranarray((self.root[:, None] * self.X).cpu().numpy())
        self._b = (self.root * self.y).cpu().numpy()
        # scikit-learn compares the gap with tol * ||b||^2, twice the objective at zero; half of ours leaves a margin.
        self._lasso = Lasso(fit_intercept=False, tol=tol / 4, max_iter=max_iter, warm_start=True)
        self.n_iter = 0

    def solve(self, alpha: float) -> Tensor:
        """(d,) weights for one alpha > 0; the caller certifies them, so no warning is given here."""
        self._lasso.set_params(alpha=alpha / len(self._b))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            self._lasso.fit(self._A, self._b)
        self.n_iter = max(self.n_iter, int(self._lasso.n_iter_))
        return torch.from_numpy(self._lasso.coef_.copy()).to(self.X)

    def path(self, alphas: np.ndarray) -> Tensor:
        """(d, A) weights for all alphas, given in falling order."""
        return torch.stack([self.solve(float(alpha)) for alpha in alphas], dim=1)


def group_sums(values: Tensor, groups: Tensor, n_groups: int) -> Tensor:
    """Sums of ``values (n, ...)`` over the rows of every group: ``(n_groups, ...)``."""
    return values.new_zeros((n_groups, *values.shape[1:])).index_add_(0, groups, values)
