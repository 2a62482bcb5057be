"""The dirty model: some features serve all tasks, others only a few."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from companion.linear._base import MultiTaskClassifier, MultiTaskRegressor
from companion.linear._convex import ConvexModel
from companion.losses import LogisticLoss, SquaredLoss
from companion.penalties._base import Penalty
from companion.penalties.dirty import Dirty


class _DirtyBase(ConvexModel):
    def __init__(
        self,
        alpha_block: float = 0.1,
        alpha_sparse: float = 0.1,
        q: float = math.inf,
        reduction: str = "mean",
        fit_intercept: bool = True,
        tol: float = 1e-6,
        max_iter: int = 10_000,
        device: Any = None,
    ) -> None:
        self.alpha_block = alpha_block
        self.alpha_sparse = alpha_sparse
        self.q = q
        self.reduction = reduction
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter
        self.device = device

    def _penalty(self) -> Dirty:
        return Dirty(self.alpha_block, self.alpha_sparse, self.q)

    def _parts(self, penalty: Penalty, W: Tensor) -> dict[str, Tensor]:
        assert isinstance(penalty, Dirty)
        B, S = penalty.split(W)
        return {"block_": B, "sparse_": S}


_PARAMETERS = r"""
    Parameters
    ----------
    alpha_block, alpha_sparse : float, default 0.1
        Weights of the two parts, > 0. Both parts are in use where ``alpha_sparse < alpha_block < T alpha_sparse`` (for
        q = inf); below, the model is the multi-task lasso, above, the lasso.
    q : float, default inf
        Exponent of the row norm of the block part, 1 <= q <= inf.
    reduction : {"mean", "sum"}
        "mean" divides each task's loss by n_t, the sum of its weights; "sum" does not.
    fit_intercept : bool, default True
        Fit one unpenalised intercept per task.
    tol : float, default 1e-6
        Duality gap allowed, relative to the objective of the intercept-only model.
    max_iter : int, default 10000
        Most sweeps of coordinate descent (Newton steps for the logistic loss; FISTA iterations on an accelerator).
    device : torch device, optional
        Where to compute; by default where the data is.

    Attributes
    ----------
    coef_ : (T, d), intercept_ : (T,)
        In the library, type and device of the training data.
    block_, sparse_ : (T, d)
        The two parts, ``coef_ = block_ + sparse_``. Among splits that cost the same, the one whose sparse part holds
        what exceeds a level common to the feature.
    task_ids_ : tuple of length T
    objective_, dual_gap_ : float
        Value and absolute duality gap of the weights, in float64, before float32 data rounds them.
    n_iter_ : int
    """


class DirtyModel(_DirtyBase, MultiTaskRegressor):
    __doc__ = (
        r"""Dirty model: weights are a block-sparse part plus a sparse part (Jalali et al., 2010).

    Minimises :math:`\sum_t \tfrac{1}{2 n_t} \lVert y_t - X_t w_t - c_t \rVert^2 + \alpha_b \sum_j \lVert B_{j,:}
    \rVert_q + \alpha_s \lVert S \rVert_1` over W = B + S and intercepts c.
"""
        + _PARAMETERS
    )

    loss = SquaredLoss()


class DirtyModelClassifier(_DirtyBase, MultiTaskClassifier):
    __doc__ = (
        r"""Logistic regression whose weights are a block-sparse part plus a sparse part.

    The penalty is that of :class:`DirtyModel`, the loss :math:`\sum_t \tfrac{1}{n_t} \sum_i \log(1 + e^{-y_{ti}
    (x_{ti}^\top w_t + b_t)})` over labels -1/+1. Every task is binary, with the same two labels.
"""
        + _PARAMETERS
    )

    loss = LogisticLoss()
