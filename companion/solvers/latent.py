r"""Factors of the weights with sparse codes: :math:`W = L S`, stationary to a certificate.

.. math:: F(L S) + \mu \lVert S \rVert_1 + \lambda \lVert L \rVert_F^2

F is the data term of all tasks. The function is convex in the codes S ``(K, T)`` and convex in the latent tasks L ``(d,
K)``, not in both. For fixed L every task has a lasso of its own; for fixed S there is one ridge problem in L. Steps in
turn never raise the objective, but along a valley in which S makes up for what L does they become tiny.
:class:`CodesEliminated` is the function of L alone in which S is at its best. Newton's method on it sees the valley.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor

from companion.penalties._base import NormPenalty
from companion.solvers.convex import minimise
from companion.solvers.problem import Point, Problem
from companion.solvers.rows import SharedRows
from companion.solvers.trust_region import maximise

_GAPS = (1e-5, 1e-8, 1e-11, 1e-15)  # of the lassos, relative: the next one where the one before was not enough
_MOST_FEATURES = 2000  # for a preconditioner with a matrix of second moments


class SparsePenalty(NormPenalty, Protocol):
    r"""The penalty :math:`\mu \lVert S \rVert_1` of the codes."""

    @property
    def alpha(self) -> float: ...


class Factors(NamedTuple):
    """Latent tasks and codes: the weights are ``L @ S``."""

    L: Tensor  # (d, K)
    S: Tensor  # (K, T)


class Stationarity(NamedTuple):
    """How far the conditions of a stationary point are from being met; zero where they are.

    Attributes
    ----------
    codes : float
        Largest violation of the optimality conditions of S, in units of mu.
    latent : float
        Norm of the gradient in L, relative to the norms of its two parts.
    balance : float
        Largest difference between ``2 lam ||l_k||^2`` and ``mu ||S_k||_1``, relative to the largest of them. It
        vanishes with the other two.
    """

    codes: float
    latent: float
    balance: float


@dataclass(frozen=True)
class LatentProblem:
    r"""The data term of all tasks with the penalties of the factors.

    Parameters
    ----------
    problem : Problem
        Without a ridge of its own.
    sparse : penalty
        :math:`\mu \lVert S \rVert_1`; its ``alpha`` is mu > 0.
    lam : float
        > 0.
    """

    problem: Problem
    sparse: SparsePenalty
    lam: float

    @property
    def mu(self) -> float:
        """Weight of the codes."""
        return self.sparse.alpha

    @cached_property
    def scale(self) -> float:
        """Objective of the intercept-only model; 1 where that is perfect."""
        null = self.problem.null_objective
        return null if null > 0 else 1.0

    @cached_property
    def metric(self) -> _Metric:
        """Second moments for preconditioning: one pass over the rows, for all half-steps and Newton steps."""
        return _metric(self)

    def penalty(self, at: Factors) -> float:
        """Both penalties."""
        return float(self.sparse.value(at.S)) + self.lam * float((at.L**2).sum())

    def value(self, at: Factors) -> float:
        """The objective."""
        return self.problem.at(at.L @ at.S).value + self.penalty(at)

    def at(self, at: Factors) -> Point:
        """The weights with the data term and its gradient there."""
        return self.problem.with_descent(self.problem.at(at.L @ at.S))

    def coded(self, L: Tensor) -> Problem:
        """The data term as a function of the codes: rows ``X L`` in place of X."""
        base = self.problem
        return Problem(base.rows.mapped(L), base.y, base.v, base.loss, 0.0, base.free)

    def codes(self, at: Factors, tol: float, max_iter: int) -> Factors:
        """The best codes for these latent tasks, one lasso per task, all in one call and from where they are.

        ``tol`` is the violation of the optimality conditions that is allowed, in units of mu.
        """
        coded = self.coded(at.L)
        point = self._polished(coded, coded.at(at.S), tol)
        for gap in _GAPS:
            if self._violation(coded, point) <= tol:
                break
            point = self._polished(coded, minimise(coded, self.sparse, gap, max_iter, point).point, tol)
        return at._replace(S=point.W)

    def _violation(self, coded: Problem, point: Point) -> float:
        """Largest violation of the conditions of the codes, in units of mu."""
        return float(code_violation(coded.descent(point), point.W, self.mu).abs().max()) / self.mu

    def _polished(self, coded: Problem, point: Point, tol: float) -> Point:
        """Newton steps of the codes in use, as long as they help and none of these changes its sign.

        Once it is known which codes are used there is no better method; and where mu is small, the least gap that
        rounding allows leaves more of a violation than they do.
        """
        worst = self._violation(coded, point)
        for _ in range(3):
            if worst <= tol:
                break
            violation = code_violation(coded.descent(point), point.W, self.mu)
            bend = coded.loss.curvature(coded.y, point.margin, coded.v)
            proposal = coded.at(point.W + codes_follow(coded, bend, point.W != 0)(violation))
            now = self._violation(coded, proposal)
            # Where latent tasks depend on each other the system is singular, and a step may lead anywhere.
            same = torch.equal(proposal.W.sign(), point.W.sign())
            rise = proposal.value - point.value + float(self.sparse.value(proposal.W) - self.sparse.value(point.W))
            if not (same and now < worst and rise <= 1e-12 * self.scale):
                break
            point, worst = proposal, now
        return point

    def latent(self, at: Factors, tol: float, max_iter: int) -> Factors:
        """The best latent tasks for these codes, to an expected gain of ``tol`` times the null objective."""
        found, _, _ = maximise(_CodesFixed.at(self, at, self.metric), tol, max_iter, radius=torch.inf)
        return found.factors

    def balanced(self, at: Factors) -> Factors:
        r"""The best scale of every latent task, :math:`(c\, l_k, S_k / c)`: the weights stay, both penalties agree.

        The minimum over c has :math:`2 \lambda c^2 \lVert l_k \rVert^2 = \mu \lVert S_k \rVert_1 / c`. A latent task
        that no task uses, or that is zero, becomes zero with its codes.
        """
        squares, lengths = (at.L**2).sum(0), at.S.abs().sum(1)
        used = (squares > 0) & (lengths > 0)
        ratio = self.mu * lengths / (2 * self.lam * torch.where(used, squares, 1.0))
        c = torch.where(used, ratio, 1.0) ** (1 / 3)
        return Factors(torch.where(used, at.L * c, 0.0), torch.where(used[:, None], at.S / c[:, None], 0.0))

    def stationarity(self, at: Factors) -> Stationarity:
        """Certificates at these factors."""
        C = self.problem.descent(self.problem.at(at.L @ at.S))
        return stationarity(C, at, self.mu, self.lam)


def stationarity(C: Tensor, at: Factors, mu: float, lam: float) -> Stationarity:
    """Certificates at factors where the negative gradient of the data term in the weights is ``C (d, T)``."""
    violation = code_violation(at.L.T @ C, at.S, mu)
    loss_part, ridge_part = C @ at.S.T, 2 * lam * at.L
    size = float(loss_part.norm() + ridge_part.norm())
    shares = torch.stack([2 * lam * (at.L**2).sum(0), mu * at.S.abs().sum(1)])  # (2, K)
    largest = float(shares.max())
    return Stationarity(
        float(violation.abs().max()) / mu,
        float((loss_part - ridge_part).norm()) / size if size > 0 else 0.0,
        float((shares[0] - shares[1]).abs().max()) / largest if largest > 0 else 0.0,
    )


def newton(
    latent: LatentProblem,
    start: Factors,
    tol: float,
    max_iter: int,
    watch: Callable[[Factors], None] | None = None,
) -> tuple[Factors, int]:
    """Factors near ``start`` that are stationary to ``tol``, by Newton's method in a trust region on L alone.

    Parameters
    ----------
    start : Factors
        Its codes are only where to begin.
    tol : float
        Bound on each of :class:`Stationarity`.
    max_iter : int
        Most steps.
    watch : callable, optional
        Shown the factors after every step that was taken.

    Returns
    -------
    factors, steps tried
    """

    def done(state: CodesEliminated) -> bool:
        if watch is not None:
            watch(state.factors)
        return max(latent.stationarity(state.factors)) <= tol

    state = CodesEliminated.of(latent, start, latent.metric, tol)
    if max(latent.stationarity(state.factors)) <= tol:
        return state.factors, 0
    state, _, n_iter = maximise(state, 0.0, max_iter, radius=1.0, done=done)
    return state.factors, n_iter


class _Metric(NamedTuple):
    """Mean second moments of the rows over tasks, as ``Q diag(values) Q'``; Q is None for the diagonal alone."""

    values: Tensor  # (d,)
    Q: Tensor | None  # (d, d)


def _metric(latent: LatentProblem) -> _Metric:
    problem = latent.problem
    v = problem.loss.max_curvature * problem.v
    if problem.n_features > _MOST_FEATURES:
        return _Metric(problem.rows.squares(v).mean(1), None)
    if isinstance(problem.rows, SharedRows):
        moments = problem.rows.X.T @ (v.sum(1)[:, None] * problem.rows.X)
    else:
        moments = problem.y.new_zeros(problem.n_features, problem.n_features)
        for X, weight in problem.rows.blocks(v):
            moments += X.T @ (weight[:, None] * X)
    values, Q = torch.linalg.eigh(moments / problem.n_tasks)
    return _Metric(values.clamp(min=0.0), Q)


@dataclass(frozen=True)
class Coordinates:
    r"""Coordinates x of changes of L in which the Hessian resembles the identity.

    :math:`\sum_t s_t s_t^\top \otimes X_t^\top V_t X_t` is about the product of two sums, and a product of matrices
    with eigenvectors Q and R is diagonal in them.
    """

    metric: _Metric
    R: Tensor  # (K, K)
    root: Tensor  # (d, K) square roots of the approximate Hessian's eigenvalues, over the scale

    @classmethod
    def of(cls, latent: LatentProblem, metric: _Metric, S: Tensor) -> Coordinates:
        values, R = torch.linalg.eigh(S @ S.T)
        hessian = metric.values[:, None] * values.clamp(min=0.0) + 2 * latent.lam
        return cls(metric, R, (hessian / latent.scale).sqrt())

    def change(self, x: Tensor) -> Tensor:
        """(d, K) change of L at ``x (d K,)``."""
        V = x.view(self.root.shape) / self.root
        return (V if self.metric.Q is None else self.metric.Q @ V) @ self.R.T

    def pull(self, G: Tensor) -> Tensor:
        """(d K,) derivatives in x, from those in L."""
        G = (G if self.metric.Q is None else self.metric.Q.T @ G) @ self.R
        return (G / self.root).flatten()


@dataclass(frozen=True)
class _CodesFixed:
    """The objective as a function of L, negative and over its scale, for codes that stay."""

    latent: LatentProblem
    factors: Factors
    coordinates: Coordinates
    point: Point

    @classmethod
    def at(cls, latent: LatentProblem, factors: Factors, metric: _Metric) -> Self:
        return cls(latent, factors, Coordinates.of(latent, metric, factors.S), latent.at(factors))

    @cached_property
    def value(self) -> float:
        return -(self.point.value + self.latent.penalty(self.factors)) / self.latent.scale

    @cached_property
    def gradient(self) -> Tensor:
        L, S = self.factors
        C = self.latent.problem.descent(self.point)
        return self.coordinates.pull(C @ S.T - 2 * self.latent.lam * L) / self.latent.scale

    @cached_property
    def bend(self) -> Tensor:
        """Second derivative of the loss in every margin, with the weight of the row."""
        problem = self.latent.problem
        return problem.loss.curvature(problem.y, self.point.margin, problem.v)

    @cached_property
    def _total(self) -> Tensor:
        """Sums of these over the rows that share an intercept."""
        return self.latent.problem.rows.sums(self.bend).clamp(min=1e-300)

    def bent(self, m: Tensor) -> Tensor:
        """Change of the loss's derivative in the margins where these change by m, and the intercepts with them."""
        q = self.bend * m
        if self.latent.problem.free:
            rows = self.latent.problem.rows
            q = q - self.bend * rows.spread(rows.sums(q) / self._total)
        return q

    def curvature(self, x: Tensor) -> Tensor:
        V, S = self.coordinates.change(x), self.factors.S
        rows = self.latent.problem.rows
        HV = rows.transpose_times(self.bent(rows.times(V @ S))) @ S.T + 2 * self.latent.lam * V
        return self.coordinates.pull(HV) / self.latent.scale

    def moved(self, x: Tensor) -> Self:
        factors = self.factors._replace(L=self.factors.L + self.coordinates.change(x))
        return type(self).at(self.latent, factors, self.coordinates.metric)


@dataclass(frozen=True)
class CodesEliminated(_CodesFixed):
    r"""The same with codes that are at their best for every L: their lassos are solved at every point.

    Where L changes by V, the codes in use follow by :math:`-H_t^{-1} (L^\top G_t V s_t - V^\top c_t)` with
    :math:`H_t = L^\top G_t L` over the codes in use, G_t the task's second derivatives and c_t its negative gradient.
    """

    tol: float

    @classmethod
    def of(cls, latent: LatentProblem, factors: Factors, metric: _Metric, tol: float) -> Self:
        """At ``factors.L``; the search for codes starts at ``factors.S``."""
        best = latent.codes(factors, tol / 3, 10_000)
        return cls(latent, best, Coordinates.of(latent, metric, best.S), latent.at(best), tol)

    @cached_property
    def _coded(self) -> Problem:
        return self.latent.coded(self.factors.L)

    @cached_property
    def _solve_codes(self) -> Callable[[Tensor], Tensor]:
        """From derivatives (K, T) to the changes of the codes in use that undo them."""
        return codes_follow(self._coded, self.bend, self.factors.S != 0)

    def curvature(self, x: Tensor) -> Tensor:
        V, (_, S) = self.coordinates.change(x), self.factors
        rows, coded = self.latent.problem.rows, self._coded.rows
        C = self.latent.problem.descent(self.point)
        m = rows.times(V @ S)
        follow = -self._solve_codes(coded.transpose_times(self.bent(m)) - V.T @ C)
        q = self.bent(m + coded.times(follow))
        HV = rows.transpose_times(q) @ S.T - C @ follow.T + 2 * self.latent.lam * V
        return self.coordinates.pull(HV) / self.latent.scale

    def moved(self, x: Tensor) -> Self:
        factors = self.factors._replace(L=self.factors.L + self.coordinates.change(x))
        return type(self).of(self.latent, factors, self.coordinates.metric, self.tol)


def code_violation(pull: Tensor, S: Tensor, mu: float) -> Tensor:
    """(K, T) by how much codes violate their conditions where the loss pulls at them with ``pull (K, T)``.

    For codes in use with a sign: what is left of the pull.
    """
    return torch.where(S != 0, pull - mu * S.sign(), (pull.abs() - mu).clamp(min=0.0))


def codes_follow(
    coded: Problem, bend: Tensor, used: Tensor, bend_of_codes: Tensor | None = None
) -> Callable[[Tensor], Tensor]:
    """From derivatives (K, T) to the changes of the codes that undo them.

    Parameters
    ----------
    coded : Problem
    bend : tensor, one number per row
        Second derivatives of the loss.
    used : (K, T) bool tensor
        The codes that may change.
    bend_of_codes : (K, T) tensor, optional
        Second derivatives of what the codes cost, where they are not zero.
    """
    H = second_moments(coded, bend)  # (T, K, K)
    if coded.free:
        u = coded.rows.transpose_times(bend).T  # (T, K)
        H = H - u[:, :, None] * u[:, None, :] / coded.rows.sums(bend).clamp(min=1e-300)[:, None, None]
    if bend_of_codes is not None:
        H = H + torch.diag_embed(bend_of_codes.T)
    free = used.T  # (T, K)
    both = free[:, :, None] & free[:, None, :]
    diagonal = torch.diagonal(H, dim1=1, dim2=2)
    ridge = torch.where(free, 1e-13 * diagonal.amax(1, keepdim=True), 1.0)
    factor = torch.linalg.cholesky_ex(torch.where(both, H, 0.0) + torch.diag_embed(ridge))[0]
    return lambda r: torch.where(free, torch.cholesky_solve((free * r.T)[:, :, None], factor)[:, :, 0], 0.0).T


def second_moments(problem: Problem, h: Tensor) -> Tensor:
    """(T, K, K) moments ``X_t' H_t X_t`` of few columns, with row weights that may differ by task."""
    if isinstance(problem.rows, SharedRows):
        X = problem.rows.X
        products = (X[:, :, None] * X[:, None, :]).flatten(1)  # (n, K K)
        return (products.T @ h).T.reshape(problem.n_tasks, X.shape[1], X.shape[1])
    return problem.rows.gram(h)
