"""Alternating minimisation whose objective is looked at after every half-step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from companion.solvers.problem import Problem

State = TypeVar("State")


class History(NamedTuple, Generic[State]):
    """Where an alternation ended, and the objective after every half-step."""

    state: State
    objective: list[float]
    n_iter: int


def alternate(
    steps: Sequence[Callable[[State], State]],
    objective: Callable[[State], float],
    state: State,
    tol: float,
    max_iter: int,
    stop: Callable[[State], bool] | None = None,
) -> History[State]:
    """Apply the half-steps in turn until a whole round lowers the objective by at most ``tol`` times its value.

    Parameters
    ----------
    steps : sequence of callables
        Each minimises the objective over its own part of the state.
    stop : callable, optional
        A better criterion, asked after every round instead, e.g. a duality gap.

    Raises
    ------
    RuntimeError
        A half-step raised the objective beyond rounding: it does not minimise what it should.
    """
    values = [objective(state)]
    for n_iter in range(1, max_iter + 1):
        before = values[-1]
        for number, step in enumerate(steps):
            state = step(state)
            values.append(objective(state))
            if values[-1] > values[-2] + 1e-9 * abs(values[-2]):
                raise RuntimeError(
                    f"half-step {number} of round {n_iter} raised the objective from {values[-2]!r} to {values[-1]!r}"
                )
        done = stop(state) if stop is not None else before - values[-1] <= tol * abs(values[-1])
        if done:
            return History(state, values, n_iter)
    return History(state, values, max_iter)


class FeatureMetric(NamedTuple):
    """Weights and the metric in which they are small."""

    W: Tensor  # (d, T)
    D: Tensor  # (d, d), symmetric, positive semidefinite, trace one


def best_metric(W: Tensor, eps: float = 0.0) -> Tensor:
    r"""(d, d) minimiser D of :math:`\sum_t \langle w_t, D^{-1} w_t \rangle` over trace one: a matrix square root.

    :math:`D = (W W^\top + \epsilon I)^{1/2}`, divided by its trace (Argyriou et al., 2008); I/d for W = 0.
    """
    d = W.shape[0]
    U, s, _ = torch.linalg.svd(W, full_matrices=True)
    roots = W.new_zeros(d)
    roots[: len(s)] = s
    roots = (roots**2 + eps).sqrt()
    if float(roots.sum()) == 0:
        return torch.eye(d, dtype=W.dtype, device=W.device) / d
    return (U * (roots / roots.sum())) @ U.T


def learn_features(
    problem: Problem, gamma: float, eps: float = 1e-4, tol: float = 1e-10, max_iter: int = 1000
) -> History[FeatureMetric]:
    r"""Convex feature learning by alternation: ridge regression in the metric D, then the best D.

    The algorithm of Argyriou et al. (2008).

    Minimises :math:`F(W) + \gamma \operatorname{tr} D^{-1} (W W^\top + \epsilon I)` over W and D of trace one. The
    perturbation ``eps`` keeps D invertible; it is part of the objective that is monitored, and tends to the convex
    problem as it tends to zero.

    Parameters
    ----------
    problem : Problem
        Squared loss without free intercepts.
    gamma : float
    eps : float
        > 0, in units of squared weights. Directions that the weights have left come back through eps only: many orders
        below the squared weights, the alternation stalls above the optimum.
    tol : float
        Relative fall of the objective in one round at which to stop.

    Returns
    -------
    History
        Its state holds W (d, T) and D (d, d).
    """
    if not problem.is_quadratic:
        raise ValueError("learn_features needs a squared loss with every label present")
    if not gamma > 0 or not eps > 0:
        raise ValueError(f"gamma and eps must be > 0; got {gamma} and {eps}")
    d, gram = problem.n_features, problem.rows.gram(problem.v)
    Xty = problem.rows.transpose_times(problem.v * problem.y)  # (d, T)

    def weights(state: FeatureMetric) -> FeatureMetric:
        # w = D^(1/2) u turns the penalty into gamma ||u||^2, and no inverse of D is needed.
        values, U = torch.linalg.eigh(state.D)
        root = (U * values.clamp(min=0).sqrt()) @ U.T
        system = root @ gram @ root + 2 * gamma * torch.eye(d, dtype=root.dtype, device=root.device)  # (T or 1, d, d)
        u = torch.linalg.solve(system, (root @ Xty).T[:, :, None])[:, :, 0]  # (T, d)
        return state._replace(W=root @ u.T)

    def metric(state: FeatureMetric) -> FeatureMetric:
        return state._replace(D=best_metric(state.W, eps))

    def objective(state: FeatureMetric) -> float:
        values, U = torch.linalg.eigh(state.D)
        scaled = ((U.T @ state.W) ** 2).sum(1) + eps
        return problem.at(state.W).value + gamma * float((scaled / values.clamp(min=1e-300)).sum())

    start = FeatureMetric(problem.zero(), best_metric(problem.zero()))
    return alternate([weights, metric], objective, start, tol, max_iter)
