r"""Grouping and overlap in multi-task learning, GO-MTL (Kumar and Daumé III, 2012).

.. math:: \min_{L, S}\; F(L S) + \mu \lVert S \rVert_1 + \lambda \lVert L \rVert_F^2

Every task is a combination of a few of K latent tasks, the columns of L; which ones is up to the task. Tasks that use
the same latent tasks form a group, and groups overlap.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from companion._checks import check_design
from companion.linear._base import LinearMTL, MultiTaskClassifier, MultiTaskRegressor
from companion.losses import LogisticLoss, Loss, SquaredLoss
from companion.penalties import L1, MeanDeviation
from companion.penalties._base import check_positive
from companion.penalties.clustered import check_count
from companion.solvers._threads import threads_for
from companion.solvers.alternating import History, alternate
from companion.solvers.convex import minimise
from companion.solvers.latent import Factors, LatentProblem, newton
from companion.solvers.problem import Problem
from companion.solvers.result import Result
from companion.solvers.rounded_codes import sharpen
from companion.tasks import Tasks

_ROUGH = 1e-2  # accuracy of the half-steps as long as Newton's method is still to come
_SWEEPS = 10  # before it
_STEPS = 200  # of it, before corners are rounded


def separate_weights(problem: Problem, lam: float) -> Tensor:
    r"""(d, T) weights of separate models with the penalty :math:`\lambda \lVert w_t \rVert^2`, roughly."""
    return minimise(problem, MeanDeviation(2 * lam, 0.0), 1e-4, 1000).point.W


def starting_factors(W: Tensor, n_latent: int, rng: np.random.Generator | None = None) -> Factors:
    r"""Factors of single-task weights ``W (d, T)``: the K leading singular directions, and what codes they imply.

    How the singular values are divided between L and S does not matter, because :meth:`LatentProblem.balanced` sets
    the scales. A generator turns the directions within the subspace they span. For K above the rank the further latent
    tasks are drawn from the span, too.
    """
    U, s, _ = torch.linalg.svd(W, full_matrices=False)
    K, rank = n_latent, max(int((s > 1e-10 * s.max()).sum()), 1)
    kept = min(K, rank)
    rng_extra = np.random.default_rng(0) if rng is None else rng
    turn = np.eye(kept) if rng is None else np.linalg.qr(rng.normal(size=(kept, kept)))[0]
    extra = rng_extra.normal(size=(kept, K - kept))
    R = np.hstack([turn, extra / np.linalg.norm(extra, axis=0)])
    L = U[:, :kept] @ torch.from_numpy(R).to(W)
    return Factors(L, torch.linalg.pinv(L) @ W)


def alternate_factors(
    latent: LatentProblem,
    start: Factors,
    max_iter: int,
    tol: float = _ROUGH,
    rescale: bool = True,
    stop: Callable[[Factors], bool] | None = None,
) -> History[Factors]:
    """Sweeps of half-steps, each of which minimises the objective over its own part of the factors.

    First the codes, one lasso per task; then the scale of every latent task, in closed form; then the latent tasks.

    Parameters
    ----------
    tol : float
        Accuracy of the half-steps: violation allowed to the codes, in units of mu; a hundredth of its square is what
        the latent tasks may still gain, in units of the objective of the intercept-only model.
    rescale : bool
        Leave out the second half-step, as the original algorithm does.
    stop : callable, optional
        Asked after every sweep; by default they end when one gains less than what the half-steps leave.
    """

    def codes(at: Factors) -> Factors:
        return latent.codes(at, tol, 1000)

    def latent_tasks(at: Factors) -> Factors:
        return latent.latent(at, tol**2 / 100, 50)

    steps = [codes, latent.balanced, latent_tasks] if rescale else [codes, latent_tasks]
    return alternate(steps, latent.value, start, tol**2 / 10, max_iter, stop)


class Fit(NamedTuple):
    """Factors with how they were found."""

    factors: Factors
    value: float
    history: list[float]  # objective after every half-step
    n_iter: int


def fit_factors(latent: LatentProblem, start: Factors, tol: float, max_iter: int) -> Fit:
    """A few sweeps from ``start``, then Newton's method until every condition holds to ``tol``.

    Where that does not come to an end, the corners of the absolute values are rounded for a while (see
    :mod:`companion.solvers.rounded_codes`), and it goes on from there.
    """
    sweeps = alternate_factors(latent, latent.balanced(start), min(_SWEEPS, max_iter))
    factors, history, left = sweeps.state, list(sweeps.objective), max_iter - sweeps.n_iter

    def watch(at: Factors) -> None:
        history.append(latent.value(at))

    def go_on(at: Factors, most: int) -> Factors:
        nonlocal left
        found, n_steps = newton(latent, at, tol, min(most, left), watch) if left > 0 else (at, 0)
        left -= n_steps
        return found

    factors = go_on(factors, _STEPS)
    if left > 0 and max(latent.stationarity(factors)) > tol:
        sharp, n_steps = sharpen(latent, factors, left)
        left -= n_steps
        sharp = latent.codes(sharp, tol / 3, 10_000)
        factors = go_on(sharp if latent.value(sharp) < latent.value(factors) else factors, left)
    return Fit(factors, latent.value(factors), history, max_iter - left)


def in_order(factors: Factors) -> Factors:
    """The same weights from latent tasks of falling length, each with codes whose sum is not negative."""
    order = (factors.L**2).sum(0).argsort(descending=True, stable=True)
    L, S = factors.L[:, order], factors.S[order]
    sign = torch.where(S.sum(1) < 0, -1.0, 1.0).to(L)
    return Factors(L * sign, S * sign[:, None])


class _GOMTLBase(LinearMTL):
    loss: Loss

    def __init__(
        self,
        n_latent: int = 2,
        mu: float = 0.1,
        lam: float = 0.1,
        n_init: int = 1,
        reduction: str = "mean",
        fit_intercept: bool = True,
        tol: float = 1e-6,
        max_iter: int = 1000,
        random_state: int = 0,
        device: Any = None,
    ) -> None:
        self.n_latent = n_latent
        self.mu = mu
        self.lam = lam
        self.n_init = n_init
        self.reduction = reduction
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter
        self.random_state = random_state
        self.device = device

    def _check_parameters(self) -> None:
        super()._check_parameters()
        check_count("n_latent", self.n_latent)
        check_count("n_init", self.n_init)
        for name in ("mu", "lam"):
            check_positive(name, getattr(self, name))

    def prepare(self, X: Any, y: Any = None, task: Any = None, sample_weight: Any = None) -> tuple[Tasks, Problem]:
        """Validated training data and the data term of the objective; parameters as in :meth:`fit`."""
        self._check_parameters()
        tasks = self._gather(X, y, task, sample_weight)
        return tasks, self._problem(tasks.to(device=self.device, dtype=torch.float64))

    def _problem(self, tasks: Tasks) -> Problem:
        return Problem.from_tasks(tasks, self.loss, self.reduction, self.fit_intercept)

    def _settings(self) -> tuple[int, float]:
        """K and mu to fit with."""
        return self.n_latent, float(self.mu)

    def _solve(self, tasks: Tasks) -> Result:
        n_latent, mu = self._settings()
        latent = LatentProblem(self._problem(tasks), L1(mu), float(self.lam))
        with threads_for(latent.problem.rows.X):
            alone = separate_weights(latent.problem, latent.lam)
            return self._result(latent, self._best_of_starts(latent, alone, n_latent))

    def _best_of_starts(self, latent: LatentProblem, alone: Tensor, n_latent: int) -> Fit:
        best: Fit | None = None
        for number in range(self.n_init):
            rng = np.random.default_rng([self.random_state, number]) if number else None
            fit = fit_factors(latent, starting_factors(alone, n_latent, rng), self.tol, self.max_iter)
            if best is None or fit.value < best.value:
                best = fit
        assert best is not None  # n_init >= 1
        return best

    def _result(self, latent: LatentProblem, fit: Fit) -> Result:
        factors = in_order(fit.factors)
        W = factors.L @ factors.S
        stationarity = latent.stationarity(factors)
        return Result(
            W,
            latent.problem.original_intercepts(latent.problem.at(W)),
            fit.value,
            float("nan"),
            latent.problem.null_objective,
            fit.n_iter,
            certificate=stationarity._asdict(),
            attributes={
                "latent_": factors.L,
                "codes_": factors.S,
                "n_active_": int((factors.S != 0).any(1).sum()),
                "history_": np.array(fit.history),
            },
        )

    def adapt(self, X: Any, y: Any, sample_weight: Any = None, return_intercept: bool = False) -> Any:
        """Code of a new task: its own lasso, with the latent tasks as they are.

        Parameters
        ----------
        X : (n, d) array or tensor
        y : (n,) array or tensor
        sample_weight : (n,) array, optional
        return_intercept : bool, default False

        Returns
        -------
        (K,) code, whose weights are ``latent_ @ code``; with ``return_intercept`` the pair of code and intercept
        """
        if not hasattr(self, "latent_"):
            self._each_row(X, None, self._margins_like)  # says that nothing is fitted
        rows, _ = check_design(X)
        if rows.shape[1] != self.n_features_in_:
            raise ValueError(f"X must have {self.n_features_in_} features, as in fit; got {rows.shape[1]}")
        tasks = Tasks.from_long(X, self._new_targets(y, rows.shape[0]), None, sample_weight)
        problem = self._problem(tasks.to(device=self.device, dtype=torch.float64))
        L = torch.as_tensor(self.latent_).to(problem.rows.X)
        latent = LatentProblem(problem, L1(self._settings()[1]), float(self.lam))
        with threads_for(problem.rows.X):
            at = latent.codes(Factors(L, L.new_zeros(L.shape[1], 1)), self.tol, 10_000)
        b = problem.original_intercepts(problem.at(at.L @ at.S))
        code = tasks.out(at.S[:, 0].to(device=tasks.device, dtype=tasks.dtype))
        return (code, float(b[0])) if return_intercept else code

    def _new_targets(self, y: Any, n: int) -> Any:
        return y


class LabelsOfFit:
    """Labels of a new task are those of the tasks in ``fit``."""

    classes_: np.ndarray
    fit_intercept: bool

    def _new_targets(self, y: Any, n: int) -> np.ndarray:
        """Labels of a new task as -1 and +1; it needs both, unless there is no intercept."""
        labels = np.asarray(y.cpu() if isinstance(y, Tensor) else y).ravel()
        unknown = np.setdiff1d(labels, self.classes_)
        if len(unknown):
            raise ValueError(
                f"y must hold the labels of fit, {self.classes_.tolist()}; got {unknown.tolist()[0]!r} as well"
            )
        if self.fit_intercept and len(np.unique(labels)) < 2:
            raise ValueError(
                f"y holds 1 class only ({labels.tolist()[0]!r}): the intercept would be infinite. Adapt with examples "
                "of both classes, or fit without intercept"
            )
        return np.where(labels == self.classes_[1], 1.0, -1.0)


_DOC = r"""
    The problem is not convex. A stationary point is found by sweeps of alternating minimisation from a factorisation of
    single-task weights, and by Newton's method on L with the codes eliminated; it satisfies every condition of
    ``certificate_``. Where that takes too long, as it does for a small mu and many latent tasks, the corners of the
    absolute values are rounded for a while. For another scale of L there is another of S: only :math:`\lambda \mu^2`
    matters to the weights, so that one of the two may stay as it is while the other is tuned.

    Parameters
    ----------
    n_latent : int, default 2
        K, the number of latent tasks; may exceed d and T. Some may end unused.
    mu : float, default 0.1
        Weight > 0 of the codes' absolute values. (At 0 there is no minimum: L could shrink for ever, and S grow.)
    lam : float, default 0.1
        Weight > 0 of the squared length of the latent tasks, without a factor 1/2.
    n_init : int, default 1
        Number of starts: the singular directions of the single-task weights, then random turns of them.
    reduction : {"mean", "sum"}
        "mean" divides each task's loss by n_t, the sum of its weights; "sum" does not.
    fit_intercept : bool, default True
        Fit one unpenalised intercept per task.
    tol : float, default 1e-6
        Bound on each number in ``certificate_``.
    max_iter : int, default 1000
        Most sweeps and Newton steps in one start.
    random_state : int, default 0
        Seed of the turns.
    device : torch device, optional
        Where to compute; by default where the data is.

    Attributes
    ----------
    coef_ : (T, d), intercept_ : (T,)
        In the library, type and device of the training data.
    latent_ : (d, K), codes_ : (K, T)
        L and S: ``coef_.T = latent_ @ codes_``. Latent tasks of falling length, with codes whose sum is >= 0. Latent
        tasks that no task uses are zero.
    n_active_ : int
        Number of latent tasks in use.
    task_ids_ : tuple of length T
    objective_ : float
        Value of the weights, in float64, before float32 data rounds them.
    dual_gap_ : float
        NaN: the problem is not convex.
    certificate_ : dict
        How far the conditions of a stationary point are from being met, relative: "codes" and "latent" are those of S
        and L, "balance" is :math:`2 \lambda \lVert l_k \rVert^2 = \mu \lVert S_k \rVert_1`.
    history_ : array
        Objective after every half-step and Newton step of the start that was kept.
    n_iter_ : int
        Sweeps and Newton steps in that start.
    """


class GOMTL(_GOMTLBase, MultiTaskRegressor):
    __doc__ = (
        r"""Regression with a few latent tasks for all tasks, of which each uses some.

    Minimises :math:`\sum_t \tfrac{1}{2 n_t} \lVert y_t - X_t L s_t - b_t \rVert^2 + \mu \lVert S \rVert_1 + \lambda
    \lVert L \rVert_F^2` (Kumar and Daumé III, 2012).
"""
        + _DOC
    )

    loss = SquaredLoss()


class GOMTLClassifier(LabelsOfFit, _GOMTLBase, MultiTaskClassifier):
    __doc__ = (
        r"""Binary classification with a few latent tasks for all tasks, of which each uses some.

    Minimises :math:`\sum_t \tfrac{1}{n_t} \sum_i \log(1 + e^{-y_{ti} (x_{ti}^\top L s_t + b_t)}) + \mu \lVert S
    \rVert_1 + \lambda \lVert L \rVert_F^2` over labels -1/+1 (Kumar and Daumé III, 2012).
"""
        + _DOC
    )

    loss = LogisticLoss()
