"""Bayesian multi-task regression: the distribution that the weights of tasks come from is learned with them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from companion._checks import share_memory
from companion.linear._base import MultiTaskRegressor
from companion.solvers.compressed_tasks import CompressedTasks
from companion.solvers.evidence import Evidence, learn_hyperparameters
from companion.solvers.result import Result
from companion.tasks import Tasks


class BayesianMTL(MultiTaskRegressor):
    r"""Hierarchical Gaussian regression with a learned mean and covariance of the weights (Heskes, 2000).

    .. math:: y_{ti} = x_{ti}^\top w_t + b_t + \varepsilon_{ti}, \quad \varepsilon_{ti} \sim N(0, \sigma^2), \quad
       w_t \sim N(m, C)

    For given m, C and :math:`\sigma^2` the posterior mean of the weights is ridge regression around m in the metric C,
    with no penalty to choose: the data of all tasks say how far the tasks lie apart, and in which directions. The
    intercepts have a flat prior and m a normal one; they are integrated out with the weights. C, :math:`\sigma^2` and
    the scales of the two priors maximise what is left, the evidence times the priors, so that nothing is
    cross-validated.

    With few tasks C is poorly known, and intervals that take the best C for the truth are too short, by far where tasks
    have fewer rows than features. Three things are done about it. m is integrated out, so that its uncertainty counts.
    Variances have priors that are wide but vanish at zero (their logarithms are logistic), so that no estimate sticks
    there; C has an inverse Wishart prior whose scale is learned, which keeps it positive definite also with fewer tasks
    than features. And the posterior covariances count the uncertainty of C, to first order in one over the number of
    tasks.

    Parameters
    ----------
    prior_tasks : float, optional
        How many tasks the prior on C weighs as much as, > d - 1. It pulls C towards a multiple of the identity in the
        units of the columns' deviations within tasks. 2 (d + 1) by default.
    fit_intercept : bool, default True
        Give every task an intercept with a flat prior.
    tol : float, default 1e-6
        Bound on ``certificate_``.
    max_iter : int, default 200
        Most steps of Newton's method.
    device : torch device, optional
        Where to compute; by default where the data is.

    Attributes
    ----------
    coef_ : (T, d), intercept_ : (T,)
        Posterior means, in the library, type and device of the training data.
    coef_covariance_ : (T, d, d)
        Posterior covariances of the weights, the uncertainty of C included. The largest thing that is kept: 8 T d^2
        bytes in double precision.
    mean_ : (d,), covariance_ : (d, d)
        Posterior mean of m, and C.
    noise_variance_ : float
        :math:`\sigma^2`, of a row of weight one; never below 1e-10 of the variance of y within tasks.
    task_ids_ : tuple of length T
    objective_ : float
        Minus the log density of the hyperparameters given the data, up to a constant, for columns and targets divided
        by their deviations within tasks.
    log_evidence_ : float
        Log density of the targets given the hyperparameters, in the units of the data; every intercept has density one.
    dual_gap_ : float
        NaN: the density is not concave.
    certificate_ : dict
        "expected gain": what another Newton step is expected to add to the log density. A gain of g means that the
        hyperparameters are :math:`\sqrt{2 g}` standard deviations away from their best.
    n_iter_ : int
        Newton steps.

    Notes
    -----
    Integer sample weights are repetitions: a weight divides the noise variance of its row and counts as that many rows.
    With intercepts the weights must sum to at least one per task. A single task is Bayesian ridge regression, where
    only the sum of the variances of m and of w - m matters. Where no task has two rows, nothing tells noise from
    intercepts, and the noise variance is that of all targets. The evidence may have several local maxima; one is found.
    """

    reduction = "sum"  # the likelihood has no other

    def __init__(
        self,
        prior_tasks: float | None = None,
        fit_intercept: bool = True,
        tol: float = 1e-6,
        max_iter: int = 200,
        device: Any = None,
    ) -> None:
        self.prior_tasks = prior_tasks
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter
        self.device = device

    def _solve(self, tasks: Tasks) -> Result:
        d = tasks.n_features
        nu = 2.0 * (d + 1) if self.prior_tasks is None else float(self.prior_tasks)
        if not d - 1 < nu < math.inf:
            raise ValueError(f"prior_tasks must be a finite number > d - 1 = {d - 1}; got {self.prior_tasks!r}")
        data = CompressedTasks.of(tasks, self.fit_intercept)
        return self._result(data, *learn_hyperparameters(data, nu, self.tol, self.max_iter))

    def _result(self, data: CompressedTasks, found: Evidence, gain: float, n_iter: int) -> Result:
        """Everything in the units of the data."""
        unit = data.y_scale / data.x_scale  # (d,)
        W = unit[:, None] * found.weights
        C = found.at.L @ found.at.L.T
        self._x_mean = data.x_mean.cpu()
        self._noise_share = (1 / data.n if self.fit_intercept else torch.zeros_like(data.n)).cpu()
        return Result(
            W,
            data.y_mean - (data.x_mean * W.T).sum(1),
            -found.value,
            math.nan,
            -found.value,
            n_iter,
            certificate={"expected gain": gain},
            attributes={
                "mean_": unit * found.mean,
                "covariance_": unit[:, None] * C * unit,
                "coef_covariance_": unit[:, None] * found.covariances() * unit,
                "noise_variance_": float(found.at.noise) * data.y_scale**2,
                "log_evidence_": found.log_evidence - data.dof * math.log(data.y_scale),
            },
        )

    def predict(self, X: Any, task: Any = None, return_std: bool = False) -> Any:
        r"""Posterior predictive means, with ``return_std`` also the standard deviations of new observations.

        A deviation counts the noise of the observation, and the uncertainty of the weights and of the intercept:
        :math:`\sigma^2 (1 + 1 / n_t) + (x - \bar x_t)^\top V_t (x - \bar x_t)`. About 90 % of new observations lie
        within 1.645 deviations of the mean.

        Parameters
        ----------
        X : (n, d) array or tensor, or Tasks
        task : (n,) sequence of ids seen by fit
            May be left out when the model was fitted on one task.
        return_std : bool

        Returns
        -------
        means, or means and deviations, of the shapes that every model's ``predict`` gives
        """
        mean = self._margin(X, task)
        return (mean, self._each_row(X, task, self._deviations_like)) if return_std else mean

    def _deviations_like(self, X: Any) -> Callable[[Any, Any], Any]:
        """Function of rows (n, d) and a task's position, or a list of k positions: deviations (n,) or (n, k)."""
        device = X.device if isinstance(X, Tensor) else torch.device("cpu")
        V, centre, share = (
            (part if isinstance(part, Tensor) else share_memory(part)).to(device=device, dtype=torch.float64)
            for part in (self.coef_covariance_, self._x_mean, self._noise_share)
        )

        def of_task(rows: Tensor, t: int) -> Tensor:
            away = rows - centre[t]
            return (((away @ V[t]) * away).sum(1).clamp(min=0.0) + self.noise_variance_ * (1 + share[t])).sqrt()

        def deviations(rows: Any, t: Any) -> Any:
            numbers = torch.as_tensor(rows).to(torch.float64)
            found = torch.stack([of_task(numbers, s) for s in t], dim=1) if isinstance(t, list) else of_task(numbers, t)
            return found.to(X.dtype) if isinstance(X, Tensor) else found.numpy().astype(X.dtype)

        return deviations
