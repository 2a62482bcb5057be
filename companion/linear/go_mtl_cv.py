"""GO-MTL with the number of latent tasks and their sparsity chosen by cross-validation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from companion.linear._base import MultiTaskClassifier, MultiTaskRegressor
from companion.linear._convex import check_alphas
from companion.linear.go_mtl import Fit, LabelsOfFit, _GOMTLBase, fit_factors, separate_weights, starting_factors
from companion.losses import LogisticLoss, SquaredLoss
from companion.penalties import L1
from companion.penalties._base import check_positive
from companion.penalties.clustered import check_count
from companion.solvers._threads import threads_for
from companion.solvers.latent import LatentProblem
from companion.solvers.problem import Problem
from companion.solvers.result import Result
from companion.tasks import Tasks


def latent_path(
    problem: Problem, alone: Tensor, n_latent: int, mus: Sequence[float], lam: float, tol: float, max_iter: int
) -> Iterator[Fit]:
    """Factors for rising ``mus``, each from those before.

    It runs from dense codes to sparse ones, for a latent task that once has been given up does not come back.

    Parameters
    ----------
    alone : (d, T) tensor
        Weights of separate models, from which the first factors are made.
    """
    factors = starting_factors(alone, n_latent)
    for mu in mus:
        fit = fit_factors(LatentProblem(problem, L1(mu), lam), factors, tol, max_iter)
        factors = fit.factors
        yield fit


def mu_scale(problem: Problem, alone: Tensor, lam: float) -> float:
    r"""A mu that leaves little: the penalty of the leading direction of separate weights is the whole null objective.

    Factors at their best scale cost a multiple of :math:`\mu^{2/3}`. 1 where there are no weights.
    """
    unit = LatentProblem(problem, L1(1.0), lam)
    cost = unit.penalty(unit.balanced(starting_factors(alone, 1)))
    return (problem.null_objective / cost) ** 1.5 if cost > 0 else 1.0


class _GOMTLSearch(_GOMTLBase):
    def __init__(
        self,
        n_latents: Any = (2, 4, 8),
        mus: Any = None,
        n_mus: int = 10,
        mu_ratio: float = 1e-4,
        lam: float = 0.1,
        n_init: int = 1,
        cv: Any = 3,
        reduction: str = "mean",
        fit_intercept: bool = True,
        tol: float = 1e-6,
        tol_in_search: float = 1e-3,
        max_iter: int = 1000,
        random_state: int = 0,
        device: Any = None,
    ) -> None:
        self.n_latents = n_latents
        self.mus = mus
        self.n_mus = n_mus
        self.mu_ratio = mu_ratio
        self.lam = lam
        self.n_init = n_init
        self.cv = cv
        self.reduction = reduction
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.tol_in_search = tol_in_search
        self.max_iter = max_iter
        self.random_state = random_state
        self.device = device

    def _check_parameters(self) -> None:
        super(_GOMTLBase, self)._check_parameters()
        for K in np.atleast_1d(np.asarray(self.n_latents, dtype=object)).tolist():
            check_count("n_latents", K)
        check_count("n_init", self.n_init)
        check_positive("lam", self.lam)
        check_positive("tol_in_search", self.tol_in_search)
        if self.mus is None:
            check_count("n_mus", self.n_mus)
            if not 0 < self.mu_ratio < 1:
                raise ValueError(f"mu_ratio must lie between 0 and 1; got {self.mu_ratio!r}")

    def _settings(self) -> tuple[int, float]:
        return self.n_latent_, self.mu_

    def _solve(self, tasks: Tasks) -> Result:
        problem = self._problem(tasks)
        self.n_latents_ = np.unique(np.atleast_1d(np.asarray(self.n_latents, dtype=np.int64)))
        if self.mus is None:
            with threads_for(problem.rows.X):
                top = mu_scale(problem, separate_weights(problem, float(self.lam)), float(self.lam))
            self.mus_ = top * np.geomspace(self.mu_ratio, 1.0, self.n_mus)
        else:
            self.mus_ = check_alphas(self.mus, "mus")[::-1]
        shape = len(self.n_latents_), len(self.mus_)
        loss = self._held_out_loss(tasks, self._candidates, shape[0] * shape[1])
        self.cv_loss_ = loss.reshape(-1, *shape)
        best = np.unravel_index(self.cv_loss_.sum(0).argmin(), shape)
        self.n_latent_, self.mu_ = int(self.n_latents_[best[0]]), float(self.mus_[best[1]])
        return super()._solve(tasks)

    def _candidates(self, train: Tasks) -> Iterator[tuple[Tensor, Tensor]]:
        """Weights and intercepts for every number of latent tasks and every mu."""
        problem, lam = self._problem(train), float(self.lam)
        with threads_for(problem.rows.X):
            alone = separate_weights(problem, lam)
            for K in self.n_latents_.tolist():
                for fit in latent_path(problem, alone, K, self.mus_.tolist(), lam, self.tol_in_search, self.max_iter):
                    W = fit.factors.L @ fit.factors.S
                    yield W, problem.original_intercepts(problem.at(W))


_DOC = r"""
    A grid of both is searched along warm-started paths in every fold, from small mu to large. With lam fixed, mu alone
    decides how much is shared: only :math:`\lambda \mu^2` matters to the weights.

    Parameters
    ----------
    n_latents : sequence of int, default (2, 4, 8)
        Numbers of latent tasks to try.
    mus : 1-D array, optional
        Weights of the codes to try; by default ``n_mus`` values from ``mu_ratio`` times one that leaves little.
    n_mus, mu_ratio : int and float, default 10 and 1e-4
    lam : float, default 0.1
        Weight > 0 of the squared length of the latent tasks.
    n_init : int, default 1
        Number of starts of the last fit; paths have one.
    cv : int or iterable of (train, test) row positions, default 3
        An int gives shuffled folds stratified by task (and by class). The rows held out are weighted as in the
        objective: each task counts the same with "mean", each row with "sum".
    reduction : {"mean", "sum"}
        "mean" divides each task's loss by n_t, the sum of its weights; "sum" does not.
    fit_intercept : bool, default True
        Fit one unpenalised intercept per task.
    tol : float, default 1e-6
        Bound on each number in ``certificate_``.
    tol_in_search : float, default 1e-3
        The same along the paths.
    max_iter : int, default 1000
        Most sweeps and Newton steps in one start.
    random_state : int, default 0
        Seed of the folds, and of the starts.
    device : torch device, optional
        Where to compute; by default where the data is.

    Attributes
    ----------
    n_latent_, mu_ : int and float
        Chosen.
    n_latents_ : (A,) array, mus_ : (M,) array
        The grid, rising.
    cv_loss_ : (T, A, M) array
        Held-out loss.
    coef_, intercept_, latent_, codes_, n_active_, task_ids_, objective_, dual_gap_, certificate_, history_, n_iter_
        As in :class:`GOMTL`, of the fit to all rows.
    """


class GOMTLCV(_GOMTLSearch, MultiTaskRegressor):
    __doc__ = "GO-MTL for regression, with the number of latent tasks and mu chosen by cross-validation.\n" + _DOC

    loss = SquaredLoss()


class GOMTLClassifierCV(LabelsOfFit, _GOMTLSearch, MultiTaskClassifier):
    __doc__ = "GO-MTL for classification, with the number of latent tasks and mu chosen by cross-validation.\n" + _DOC

    loss = LogisticLoss()
