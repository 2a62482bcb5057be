"""One call for every convex problem of the book: the solver is chosen by penalty, device and what is installed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Protocol, TypeGuard

import torch
from torch import Tensor

from companion.losses import SquaredLoss
from companion.penalties._base import Penalty
from companion.solvers._threads import threads_for
from companion.solvers.duality import Certificate
from companion.solvers.fista import fista
from companion.solvers.lbfgs import lbfgs
from companion.solvers.problem import Point, Problem
from companion.solvers.result import Result
from companion.solvers.screening import is_row_wise
from companion.solvers.task_ridge import block_inverse, is_task_quadratic, minimise_task_quadratic

Stop = Callable[[Tensor], bool]


@dataclass(frozen=True)
class Solution:
    """What a solver found: the best point, its certificate, the iterations used."""

    point: Point
    certificate: Certificate
    n_iter: int

    def result(self, problem: Problem) -> Result:
        """The same on the scale of the data as they came."""
        b = problem.original_intercepts(self.point)
        gap, null = self.certificate.gap, problem.null_objective
        return Result(self.point.W, b, self.certificate.primal, gap, null, self.n_iter)


def minimise(problem: Problem, penalty: Penalty, tol: float, max_iter: int, start: Point | None = None) -> Solution:
    r"""Minimise the problem's loss plus a penalty until the duality gap is at most ``tol`` times the null objective.

    Penalties that treat every feature by itself go to working sets with compiled coordinate descent, where the data are
    on the CPU and numba is installed; quadratic penalties over tasks go to conjugate gradients, other smooth ones to
    L-BFGS; everything else goes to FISTA. All end with the same certificate.

    Parameters
    ----------
    problem : Problem
    penalty : Penalty
    tol : float
        Relative duality gap.
    max_iter : int
        Most iterations (FISTA, conjugate gradients, L-BFGS), sweeps or Newton steps (working sets).
    start : Point, optional
        Where to start, ``problem.at(W)``; at zero by default.
    """
    with threads_for(problem.rows.X):
        gap = tol * problem.null_objective
        if is_row_wise(penalty) and problem.y.device.type == "cpu" and find_spec("numba"):
            from companion.solvers.working_set import working_set  # numba takes a while to load

            return Solution(*working_set(problem, penalty, gap, max_iter, start))
        if is_task_quadratic(penalty):
            return Solution(*minimise_task_quadratic(problem, penalty, gap, max_iter, start))
        if is_smooth(penalty):
            return quasi_newton(problem, penalty, gap, max_iter, start)
        return proximal_gradient(problem, penalty, gap, max_iter, start)


class SmoothPenalty(Penalty, Protocol):
    """A penalty with a gradient, and about what each task adds to the diagonal of its Hessian."""

    def gradient(self, W: Tensor) -> Tensor: ...

    def diagonal(self, W: Tensor) -> Tensor: ...


def is_smooth(penalty: Penalty) -> TypeGuard[SmoothPenalty]:
    """Whether a penalty has a gradient."""
    return hasattr(penalty, "gradient") and hasattr(penalty, "diagonal")


def proximal_gradient(
    problem: Problem, penalty: Penalty, gap: float, max_iter: int, start: Point | None = None
) -> Solution:
    """FISTA until the absolute duality gap is at most ``gap``; after ``max_iter`` iterations the best point seen."""

    def search(W: Tensor, stop: Stop) -> tuple[Tensor, int]:
        return fista(problem.gradient, penalty.prox, problem.lipschitz, W, stop, max_iter)

    return _until(gap, search, problem, penalty, start)


def quasi_newton(
    problem: Problem, penalty: SmoothPenalty, gap: float, max_iter: int, start: Point | None = None
) -> Solution:
    r"""L-BFGS until the absolute duality gap is at most ``gap``; after ``max_iter`` iterations the best point seen.

    The preconditioner inverts every task's own block of the Hessian, with the largest curvature of the loss. Tasks of
    very different sizes, which make the steps of FISTA too short for all but the largest, make no difference then.
    """

    def gradient(W: Tensor) -> Tensor:
        return problem.gradient(W) + penalty.gradient(W)

    def search(W: Tensor, stop: Stop) -> tuple[Tensor, int]:
        bound = problem
        if not problem.is_quadratic:
            v = problem.loss.max_curvature * problem.v
            bound = Problem(problem.rows, problem.y, v, SquaredLoss(), problem.l2, problem.free)
        return lbfgs(gradient, block_inverse(bound, penalty.diagonal(W)), W, stop, max_iter)

    return _until(gap, search, problem, penalty, start)


def _until(
    gap: float,
    search: Callable[[Tensor, Stop], tuple[Tensor, int]],
    problem: Problem,
    penalty: Penalty,
    start: Point | None,
) -> Solution:
    """The best of the points at which a search asks whether they are good enough."""
    best = problem.zero() if start is None else start.W
    best_gap = problem.gap(penalty, best)

    def good_enough(W: Tensor) -> bool:
        nonlocal best, best_gap
        now = problem.gap(penalty, W)
        if now < best_gap:
            best, best_gap = W, now
        return now <= gap

    n_iter = 0
    if best_gap > gap:
        _, n_iter = search(best, good_enough)
    point = problem.with_descent(problem.at(best))
    return Solution(point, problem.certify(penalty, point), n_iter)


class SplitProblem(Problem):
    """The same data term for weights in two parts, ``W = Z[0] + Z[1]`` with ``Z (2, d, T)``; no ridge."""

    def __init__(self, base: Problem) -> None:
        super().__init__(base.rows, base.y, base.v, base.loss, 0.0, base.free)
        self._base = base

    def zero(self) -> Tensor:
        """(2, d, T) weights of the intercept-only model."""
        return self.y.new_zeros(2, self.n_features, self.n_tasks)

    def at(self, W: Tensor) -> Point:
        """Intercepts, margins and data term of the sum, at ``Z (2, d, T)``."""
        return self._base.at(W.sum(0))._replace(W=W)

    def descent(self, point: Point) -> Tensor:
        """(2, d, T) negative gradient: the same for both parts."""
        C = self._base.descent(point._replace(W=point.W.sum(0), C=None))
        return torch.stack([C, C])

    def gradient(self, W: Tensor) -> Tensor:
        """(2, d, T) gradient: the same for both parts."""
        g = self._base.gradient(W.sum(0))
        return torch.stack([g, g])

    def gap(self, penalty: Penalty, W: Tensor) -> float:
        """Duality gap at ``Z (2, d, T)``."""
        return self.certify(penalty, self.at(W)).gap

    @property
    def lipschitz(self) -> float:  # type: ignore[override]
        """Twice that of the sum, since both parts move it."""
        return 2 * self._base.lipschitz

    def original_intercepts(self, point: Point) -> Tensor:
        """(T,) intercepts for the data as they came."""
        return self._base.original_intercepts(point._replace(W=point.W.sum(0)))
