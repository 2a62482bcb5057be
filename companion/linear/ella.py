r"""Latent tasks from a stream of tasks, ELLA (Ruvolo and Eaton, 2013).

The squared loss of task t is exactly a quadratic around the weights :math:`\theta_t` that are best for it,

.. math:: F_t(w) = F_t(\theta_t) + \tfrac12 \lVert \theta_t - w \rVert_{D_t}^2 , \qquad
   \lVert u \rVert_D^2 = u^\top D u ,

so that a task may be forgotten once its :math:`D_t` and :math:`\theta_t` are known. The objective of GO-MTL is then

.. math:: \sum_t \min_{s_t} \Bigl( \tfrac12 \lVert \theta_t - L s_t \rVert_{D_t}^2 + \mu \lVert s_t \rVert_1 \Bigr)
   + \lambda \lVert L \rVert_F^2 + \text{const.}

When a task arrives, only its own code is computed anew. The latent tasks follow from a linear system whose matrix and
right side are sums over tasks: what the task contributed before is taken out, what it contributes now is put in.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import solve
from sklearn.utils.validation import validate_data

from companion.linear._base import MultiTaskRegressor
from companion.penalties._base import check_positive
from companion.penalties.clustered import check_count
from companion.solvers.latent import Factors, stationarity
from companion.solvers.quadratic import LassoProblem
from companion.solvers.result import Result
from companion.tasks import Tasks

Array = NDArray[np.float64]


@dataclass(frozen=True)
class RowsSeen:
    """What all rows of a task seen so far amount to: their weight, means, and second moments around the means."""

    weight: float
    x: Array  # (d,)
    y: float
    xx: Array  # (d, d)
    xy: Array  # (d,)
    yy: float

    @classmethod
    def of(cls, X: Array, y: Array, s: Array) -> RowsSeen:
        """Rows ``X (n, d)`` with targets ``y (n,)`` and weights ``s (n,)``."""
        weight = float(s.sum())
        x, level = s @ X / weight, float(s @ y / weight)
        X, y = X - x, y - level
        return cls(weight, x, level, (s[:, None] * X).T @ X, X.T @ (s * y), float(s @ y**2))

    def __add__(self, other: RowsSeen) -> RowsSeen:
        """All rows of both. Nothing large cancels, whatever the means are (Chan, Golub and LeVeque, 1983)."""
        weight = self.weight + other.weight
        share, both = other.weight / weight, self.weight * other.weight / weight
        dx, dy = other.x - self.x, other.y - self.y
        return RowsSeen(
            weight,
            self.x + share * dx,
            self.y + share * dy,
            self.xx + other.xx + both * np.outer(dx, dx),
            self.xy + other.xy + both * dx * dy,
            self.yy + other.yy + both * dy**2,
        )


@dataclass(frozen=True)
class Quadratic:
    r"""The loss of a task as a function of its weights: :math:`F + \tfrac12 \lVert \theta - w \rVert_D^2`."""

    D: Array  # (d, d)
    theta: Array  # (d,) of all minimisers, that of least length
    least: float
    null: float  # loss of the intercept-only model
    root: Array  # (r, d) with D = root' root

    @classmethod
    def of(cls, seen: RowsSeen, reduction: str, fit_intercept: bool) -> Quadratic:
        """From the rows seen, with the intercept at its best."""
        xx, xy, yy = seen.xx, seen.xy, seen.yy
        if not fit_intercept:
            xx = xx + seen.weight * np.outer(seen.x, seen.x)
            xy, yy = xy + seen.weight * seen.y * seen.x, yy + seen.weight * seen.y**2
        scale = 1 / seen.weight if reduction == "mean" else 1.0
        values, Q = np.linalg.eigh(scale * xx)
        kept = values > values.max() * len(values) * np.finfo(float).eps
        values, Q = values[kept], Q[:, kept]
        theta = Q @ (Q.T @ (scale * xy) / values)
        null = scale * yy / 2
        return cls(
            (Q * values) @ Q.T, theta, null - scale * float(xy @ theta) / 2, null, np.sqrt(values)[:, None] * Q.T
        )

    def code(self, L: Array, mu: float, gap: float) -> Array:
        """(K,) best code in the latent tasks ``L (d, K)``, to an absolute duality gap."""
        A, target = torch.from_numpy(self.root @ L), torch.from_numpy(self.root @ self.theta)
        if not len(target) or not float((A.T @ target).abs().max()) > mu:
            return np.zeros(L.shape[1])
        lasso = LassoProblem(A, target, torch.ones_like(target), None, 1, gap)
        return lasso.solve(mu).numpy()


class Knowledge:
    r"""What has been learned from the tasks so far.

    Attributes
    ----------
    L : (d, K) array
    A : (d K, d K) array
        :math:`\sum_t s_t s_t^\top \otimes D_t`, for the columns of L behind one another.
    b : (d K,) array
        :math:`\sum_t \operatorname{vec}(D_t \theta_t s_t^\top)`.
    seen, quadratics, codes : dicts from task id
        In the order in which the tasks came.
    """

    def __init__(self, n_features: int, n_latent: int, mu: float, lam: float) -> None:
        self.mu, self.lam = mu, lam
        self.L = np.zeros((n_features, n_latent))
        self.A, self.b = np.zeros((self.L.size, self.L.size)), np.zeros(self.L.size)
        self.seen: dict[Hashable, RowsSeen] = {}
        self.quadratics: dict[Hashable, Quadratic] = {}
        self.codes: dict[Hashable, Array] = {}

    @property
    def S(self) -> Array:
        """(K, T) codes of all tasks."""
        return np.stack(list(self.codes.values()), axis=1)

    def visit(self, id_: Hashable, task: Quadratic, gap: float) -> None:
        """Learn from a task that is new or has changed, or once more from one that has not.

        The objective over the tasks known before never rises when one of them is visited.
        """
        if id_ in self.codes:
            self._contribute(self.quadratics[id_], self.codes[id_], -1.0)
        L = self.L if id_ in self.codes else self._with_spare_column(task)
        self.quadratics[id_] = task
        self.codes[id_] = task.code(L, self.mu, gap)
        self._contribute(task, self.codes[id_], 1.0)
        system = self.A + 2 * self.lam * np.eye(self.L.size)
        self.L = solve(system, self.b, assume_a="pos").reshape(self.L.shape[::-1]).T
        self._balance()

    def _contribute(self, task: Quadratic, code: Array, sign: float) -> None:
        self.A += sign * np.kron(np.outer(code, code), task.D)
        self.b += sign * np.kron(code, task.D @ task.theta)

    def _with_spare_column(self, task: Quadratic) -> Array:
        """(d, K) latent tasks, of which one that nobody uses offers to a new task what the others cannot give."""
        unused = ~np.any([code != 0 for code in self.codes.values()], axis=0) if self.codes else np.array([True])
        if not unused.any():
            return self.L
        L = np.where(unused, 0.0, self.L)
        rest = task.theta - L @ task.code(L, self.mu, 1e-6 * max(task.null, 1e-300))
        size = float(np.linalg.norm(rest))
        if size > 0:  # with the length at which both penalties agree
            L[:, int(unused.argmax())] = rest / size * np.cbrt(self.mu * size / (2 * self.lam))
        return L

    def _balance(self) -> None:
        """The best scale of every latent task, as in GO-MTL; A and b follow."""
        squares, lengths = (self.L**2).sum(0), np.abs(self.S).sum(1)
        used = (squares > 0) & (lengths > 0)
        c = np.where(used, np.cbrt(self.mu * lengths / (2 * self.lam * np.where(used, squares, 1.0))), 1.0)
        self.L = np.where(used, self.L * c, 0.0)
        self.codes = {id_: np.where(used, code / c, 0.0) for id_, code in self.codes.items()}
        per_row = np.where(np.repeat(used, self.L.shape[0]), np.repeat(1 / c, self.L.shape[0]), 0.0)
        self.A *= per_row[:, None] * per_row
        self.b *= per_row

    def objective(self) -> float:
        """That of GO-MTL, over all tasks known."""
        losses = [
            task.least + float(((task.root @ (task.theta - self.L @ code)) ** 2).sum()) / 2
            for task, code in zip(self.quadratics.values(), self.codes.values(), strict=True)
        ]
        return sum(losses) + self.mu * float(np.abs(self.S).sum()) + self.lam * float((self.L**2).sum())

    def certificate(self) -> dict[str, float]:
        """How far the conditions of a stationary point of GO-MTL are from being met."""
        tasks = zip(self.quadratics.values(), self.codes.values(), strict=True)
        C = np.stack([task.D @ (task.theta - self.L @ code) for task, code in tasks], axis=1)
        at = Factors(torch.from_numpy(self.L.copy()), torch.from_numpy(self.S))
        return stationarity(torch.from_numpy(C), at, self.mu, self.lam)._asdict()


class ELLA(MultiTaskRegressor):
    r"""Regression for tasks that come one after another, with the objective of :class:`GOMTL`.

    ``partial_fit`` takes rows of one task or several, known or new, and learns from each of these tasks once (Ruvolo
    and Eaton, 2013). The codes of other tasks stay until they are visited again: earlier tasks profit from later ones
    through the latent tasks. ``fit`` forgets everything and passes over all tasks, in their order, again and again.

    A visit costs the solution of a linear system of order d K, for squared losses of any number of rows; memory holds
    one matrix of that order and one of order d for every task.

    Parameters
    ----------
    n_latent : int, default 2
        K, the number of latent tasks.
    mu : float, default 0.1
        Weight > 0 of the codes' absolute values.
    lam : float, default 0.1
        Weight > 0 of the squared length of the latent tasks, without a factor 1/2.
    reduction : {"mean", "sum"}
        "mean" divides each task's loss by n_t, the sum of its weights; "sum" does not.
    fit_intercept : bool, default True
        Fit one unpenalised intercept per task.
    tol : float, default 1e-4
        Bound on each number in ``certificate_`` at which ``fit`` ends; ``partial_fit`` does not look at it.
    max_iter : int, default 1000
        Most passes of ``fit``.

    Attributes
    ----------
    coef_ : (T, d), intercept_ : (T,)
        In the library, type and device of the rows seen last.
    latent_ : (d, K), codes_ : (K, T)
        L and S: ``coef_.T = latent_ @ codes_``.
    task_ids_ : tuple of length T
        In the order in which the tasks came.
    objective_ : float
        That of GO-MTL over all rows seen.
    dual_gap_ : float
        NaN: the problem is not convex.
    certificate_ : dict
        How far the conditions of a stationary point of GO-MTL are from being met; see :class:`GOMTL`.
    n_iter_ : int
        Passes of ``fit``; visits since the model was new, after ``partial_fit``.
    """

    device = None

    def __init__(
        self,
        n_latent: int = 2,
        mu: float = 0.1,
        lam: float = 0.1,
        reduction: str = "mean",
        fit_intercept: bool = True,
        tol: float = 1e-4,
        max_iter: int = 1000,
    ) -> None:
        self.n_latent = n_latent
        self.mu = mu
        self.lam = lam
        self.reduction = reduction
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter

    def _check_parameters(self) -> None:
        super()._check_parameters()
        check_count("n_latent", self.n_latent)
        for name in ("mu", "lam"):
            check_positive(name, getattr(self, name))

    def partial_fit(self, X: Any, y: Any = None, task: Any = None, sample_weight: Any = None) -> ELLA:
        """Learn from rows of one task or several; parameters as in ``fit``.

        Rows of a known task are added to those that it has. Tasks are visited in the order of their ids in the call.
        """
        self._check_parameters()
        known = getattr(self, "knowledge_", None)
        if known is not None:
            if isinstance(X, Tasks) and X.n_features != self.n_features_in_:
                raise ValueError(f"expected {self.n_features_in_} features, as before; got {X.n_features}")
            if not isinstance(X, Tasks):
                validate_data(self, X, skip_check_array=True, reset=False)
        tasks = self._gather(X, y, task, sample_weight)
        if known is None:
            known = self._new_knowledge(tasks.n_features)
            self._n_visits = 0
        for id_, seen in self._rows(tasks):
            known.seen[id_] = known.seen[id_] + seen if id_ in known.seen else seen
            self._visit(known, id_, self._quadratic(known.seen[id_]))
            self._n_visits += 1
        self._keep(tasks, known, self._n_visits)
        return self

    def _solve(self, tasks: Tasks) -> Result:
        known = self._new_knowledge(tasks.n_features)
        known.seen = dict(self._rows(tasks))
        quadratics = {id_: self._quadratic(seen) for id_, seen in known.seen.items()}
        passes = 0
        while passes < self.max_iter:
            for id_, task in quadratics.items():
                self._visit(known, id_, task)
            passes += 1
            if max(known.certificate().values()) <= self.tol:
                break
        self.knowledge_, self._n_visits = known, passes * tasks.n_tasks
        return self._result(known, passes)

    def _new_knowledge(self, n_features: int) -> Knowledge:
        return Knowledge(n_features, self.n_latent, float(self.mu), float(self.lam))

    def _rows(self, tasks: Tasks) -> list[tuple[Hashable, RowsSeen]]:
        """Task ids with what their rows amount to."""
        numbers = tasks.to(device="cpu", dtype=torch.float64)
        found = []
        for t, id_ in enumerate(tasks.ids):
            X, y = numbers.tensors(t)
            found.append((id_, RowsSeen.of(X.numpy(), y.numpy(), numbers.weights(t).numpy())))
        return found

    def _quadratic(self, seen: RowsSeen) -> Quadratic:
        return Quadratic.of(seen, self.reduction, self.fit_intercept)

    def _visit(self, known: Knowledge, id_: Hashable, task: Quadratic) -> None:
        known.visit(id_, task, min(1e-8, self.tol**2) * max(task.null, 1e-300))

    def _keep(self, tasks: Tasks, known: Knowledge, n_iter: int) -> None:
        """Fitted attributes after a visit. Nothing has to hold to any tolerance."""
        self.knowledge_ = known
        result = self._result(known, n_iter)
        tol, self.tol = self.tol, float("inf")
        self._store(tasks, result)
        self.tol = tol
        self.task_ids_ = tuple(known.codes)

    def _result(self, known: Knowledge, n_iter: int) -> Result:
        S, L = torch.from_numpy(known.S), torch.from_numpy(known.L.copy())
        W = L @ S
        means = [(seen.x, seen.y) for seen in known.seen.values()]
        b = [y - x @ w if self.fit_intercept else 0.0 for (x, y), w in zip(means, W.T.numpy(), strict=True)]
        null = sum(task.null for task in known.quadratics.values())
        return Result(
            W,
            torch.tensor(b, dtype=torch.float64),
            known.objective(),
            float("nan"),
            null,
            n_iter,
            certificate=known.certificate(),
            attributes={"latent_": L, "codes_": S},
        )
