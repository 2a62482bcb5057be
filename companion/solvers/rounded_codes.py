r"""Latent tasks and codes where Newton's method on L stalls: the corners of the absolute values are rounded first.

Where mu is small, many pairs of factors fit alike, and what chooses among them, :math:`\mu \lVert S \rVert_1`, has a
corner wherever a code changes its sign. The least sum of absolute values lies where many of these corners meet. A
quadratic model is right only up to the next corner, and with a thousand codes the next one is always near. So Newton's
method goes from corner to corner in hundreds of steps. With :math:`\sqrt{s^2 + \delta^2}` in the place of
:math:`|s|` it sees them all from afar, and a falling :math:`\delta` leads to the place where they meet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from companion.solvers.latent import CodesEliminated, Coordinates, Factors, LatentProblem, codes_follow
from companion.solvers.problem import Point, Problem
from companion.solvers.trust_region import maximise

_FIRST, _LAST, _RATIO = 1.0, 1e-5, 0.25  # delta, in units of the median code
_CODES_TOL = 1e-9  # gradient left to the rounded codes, in units of mu


@dataclass(frozen=True)
class RoundedCodes(CodesEliminated):
    r"""The objective as a function of L, with :math:`\sqrt{s^2 + \delta^2}` for the absolute value of every code."""

    delta: float

    @classmethod
    def rounded(cls, latent: LatentProblem, factors: Factors, delta: float) -> Self:
        """At ``factors.L``; the search for codes starts at ``factors.S``."""
        best = factors._replace(S=_minimise_codes(latent.coded(factors.L), factors.S, latent.mu, delta))
        return cls(latent, best, Coordinates.of(latent, latent.metric, best.S), latent.at(best), 0.0, delta)

    @cached_property
    def value(self) -> float:
        L, S = self.factors
        penalty = self.latent.mu * float(_rounded(S, self.delta).sum()) + self.latent.lam * float((L**2).sum())
        return -(self.point.value + penalty) / self.latent.scale

    @cached_property
    def _solve_codes(self) -> Callable[[Tensor], Tensor]:
        return _solver(self._coded, self.bend, self.factors.S, self.latent.mu, self.delta)

    def moved(self, x: Tensor) -> Self:
        factors = self.factors._replace(L=self.factors.L + self.coordinates.change(x))
        return type(self).rounded(self.latent, factors, self.delta)


def sharpen(latent: LatentProblem, start: Factors, max_iter: int) -> tuple[Factors, int]:
    """Factors near a stationary point, for Newton's method to finish, by corners that become ever less round.

    Parameters
    ----------
    start : Factors
    max_iter : int
        Most steps, in all.

    Returns
    -------
    factors, steps tried
    """
    used = start.S[start.S != 0].abs()
    if not len(used):
        return start, 0
    factors, n_iter, delta = start, 0, _FIRST
    while delta >= _LAST and n_iter < max_iter:
        absolute = delta * float(used.median())
        # Rounding adds up to mu delta to the cost of a code: gains that are small beside that are not worth a step.
        tol = 1e-3 * latent.mu * absolute * start.S.numel() / latent.scale
        state = RoundedCodes.rounded(latent, factors, absolute)
        state, _, n_steps = maximise(state, tol, max_iter - n_iter)
        factors, n_iter, delta = state.factors, n_iter + n_steps, delta * _RATIO
    return factors, n_iter


def _rounded(S: Tensor, delta: float) -> Tensor:
    return (S**2 + delta**2).sqrt()


def _solver(coded: Problem, bend: Tensor, S: Tensor, mu: float, delta: float) -> Callable[[Tensor], Tensor]:
    """From derivatives (K, T) to the changes of the codes that undo them."""
    return codes_follow(coded, bend, torch.ones_like(S, dtype=torch.bool), mu * delta**2 / _rounded(S, delta) ** 3)


def _minimise_codes(coded: Problem, S: Tensor, mu: float, delta: float) -> Tensor:
    """(K, T) codes that minimise the rounded objective: Newton steps, halved for each task until they lower its own."""

    def costs(at: Point) -> Tensor:
        rows = coded.loss.value(coded.y[None], at.margin[None], coded.v[None])  # the loss of every row
        return coded.rows.sums(rows) + mu * _rounded(at.W, delta).sum(0)

    point = coded.at(S)
    cost = costs(point)
    for _ in range(200):
        gradient = mu * point.W / _rounded(point.W, delta) - coded.descent(point)
        if float(gradient.abs().max()) <= _CODES_TOL * mu:
            break
        bend = coded.loss.curvature(coded.y, point.margin, coded.v)
        step = -_solver(coded, bend, point.W, mu, delta)(gradient)
        slope, length = (gradient * step).sum(0), torch.ones_like(cost)
        for _ in range(50):
            proposal = coded.at(point.W + length * step)
            lower = costs(proposal)
            failed = lower > cost + 1e-4 * length * slope + 1e-14 * cost.abs()
            if not bool(failed.any()):
                break
            length = torch.where(failed, length / 2, length)
        point, cost = proposal, lower
    return point.W
