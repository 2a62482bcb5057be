r"""Shared features, :math:`\ell_1/\ell_q`: a feature is used by all tasks or by none."""

from __future__ import annotations

from typing import Any

from companion.linear._base import MultiTaskClassifier, MultiTaskRegressor
from companion.linear._convex import ConvexModel, PathSearch
from companion.losses import LogisticLoss, SquaredLoss
from companion.penalties.block_sparse import BlockSparse


class _BlockSparseModel(ConvexModel):
    def __init__(
        self,
        alpha: float = 0.1,
        q: float = 2,
        l2: float = 0.0,
        reduction: str = "mean",
        fit_intercept: bool = True,
        tol: float = 1e-6,
        max_iter: int = 10_000,
        device: Any = None,
    ) -> None:
        self.alpha = alpha
        self.q = q
        self.l2 = l2
        self.reduction = reduction
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter
        self.device = device

    def _penalty(self) -> BlockSparse:
        return BlockSparse(self.alpha, self.q)

    def _unit_penalty(self) -> BlockSparse:
        return BlockSparse(1.0, self.q)


_PARAMETERS = r"""
    Parameters
    ----------
    alpha : float, default 0.1
        Weight of the block norm, > 0.
    q : float, default 2
        Exponent of the row norm, 1 <= q <= inf: 1 is the lasso, which shares nothing; 2 the group lasso; ``numpy.inf``
        charges a feature for its largest weight only.
    l2 : float, default 0
        Ridge term :math:`\tfrac{l_2}{2} \lVert W \rVert_F^2` (elastic net).
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
        In the library, type and device of the training data; column j is zero where feature j is not used.
    task_ids_ : tuple of length T
    objective_, dual_gap_ : float
        Value and absolute duality gap of the weights, in float64, before float32 data rounds them.
    n_iter_ : int
    """


class MultiTaskLasso(_BlockSparseModel, MultiTaskRegressor):
    __doc__ = (
        r"""Multi-task lasso: features are selected for all tasks together, with a design of its own for every task.

    Minimises :math:`\sum_t \tfrac{1}{2 n_t} \lVert y_t - X_t w_t - b_t \rVert^2 + \alpha \sum_j \lVert W_{j,:}
    \rVert_q + \tfrac{l_2}{2} \lVert W \rVert_F^2` (Obozinski et al., 2010; Turlach et al., 2005). With inputs that all
    tasks share and q = 2 this is the problem of :class:`sklearn.linear_model.MultiTaskLasso`.
"""
        + _PARAMETERS
    )

    loss = SquaredLoss()


class MultiTaskLassoClassifier(_BlockSparseModel, MultiTaskClassifier):
    __doc__ = (
        r"""Logistic regression with features that are selected for all tasks together.

    Minimises :math:`\sum_t \tfrac{1}{n_t} \sum_i \log(1 + e^{-y_{ti} (x_{ti}^\top w_t + b_t)}) + \alpha \sum_j \lVert
    W_{j,:} \rVert_q + \tfrac{l_2}{2} \lVert W \rVert_F^2` over labels -1/+1. Every task is binary, with the same two
    labels.
"""
        + _PARAMETERS
    )

    loss = LogisticLoss()


class MultiTaskLassoCV(PathSearch, MultiTaskRegressor):
    r"""Multi-task lasso whose alpha is chosen by cross-validation over a regularisation path.

    Folds are drawn within every task. Held-out rows weigh as in the objective: each task counts the same with
    ``reduction="mean"``, each row with "sum".

    Parameters
    ----------
    alphas : (A,) sequence of floats, optional
        Penalties to try; by default ``n_alphas`` of them, falling geometrically from the least that gives zero weights
        to ``alpha_ratio`` times that.
    n_alphas : int, default 30
    alpha_ratio : float, default 0.05
    cv : int or iterable of (train, test) row positions, default 5
    random_state : int, default 0
        Seed of the folds.
    q, l2, reduction, fit_intercept, tol, max_iter, device
        As in :class:`MultiTaskLasso`.

    Attributes
    ----------
    alpha_ : float
    alphas_ : (A,) array, falling
    cv_loss_ : (T, A) array
        Held-out loss per task and alpha, summed over the folds.
    coef_, intercept_, task_ids_, objective_, dual_gap_, n_iter_
        Of the model fitted to all rows with ``alpha_``; as in :class:`MultiTaskLasso`.
    """

    loss = SquaredLoss()

    def __init__(
        self,
        alphas: Any = None,
        n_alphas: int = 30,
        alpha_ratio: float = 0.05,
        q: float = 2,
        l2: float = 0.0,
        reduction: str = "mean",
        fit_intercept: bool = True,
        cv: Any = 5,
        tol: float = 1e-6,
        max_iter: int = 10_000,
        random_state: int = 0,
        device: Any = None,
    ) -> None:
        self.alphas = alphas
        self.n_alphas = n_alphas
        self.alpha_ratio = alpha_ratio
        self.q = q
        self.l2 = l2
        self.reduction = reduction
        self.fit_intercept = fit_intercept
        self.cv = cv
        self.tol = tol
        self.max_iter = max_iter
        self.random_state = random_state
        self.device = device

    def _unit_penalty(self) -> BlockSparse:
        return BlockSparse(1.0, self.q)
