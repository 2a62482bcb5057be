r"""Newton's method in a trust region, for smooth functions of many variables that are to be as large as possible.

The Newton step solves :math:`H x = g` with gradient g and curvature H, the negative second derivatives. Conjugate
gradients need only products ``H x`` and notice when H is not positive definite: then the step goes to the edge of the
region in which the quadratic model is trusted (Steihaug, 1983).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol, Self, TypeVar

import torch
from torch import Tensor


class LocalModel(Protocol):
    """A function at one point: value, gradient and curvature in coordinates around the point, which are zero there.

    The better the curvature resembles the identity in these coordinates, the fewer products are needed.
    """

    @property
    def value(self) -> float: ...

    @property
    def gradient(self) -> Tensor: ...

    def curvature(self, x: Tensor) -> Tensor: ...

    def moved(self, x: Tensor) -> Self: ...


State = TypeVar("State", bound=LocalModel)


def maximise(
    state: State, tol: float, max_iter: int, radius: float = 1.0, done: Callable[[State], bool] | None = None
) -> tuple[State, float, int]:
    r"""Climb until a Newton step is expected to gain at most ``tol``; the value never falls.

    The expected gain :math:`\tfrac12 g^\top H^{-1} g` is half the squared Newton decrement. For the logarithm of a
    density it has a meaning of its own: the point is :math:`\sqrt{2 \cdot \text{gain}}` standard deviations away from
    the mode of the normal distribution that has the same curvature.

    Parameters
    ----------
    state : LocalModel
        Where to start.
    tol : float
        Expected gain at which to stop, absolute.
    max_iter : int
        Most steps tried.
    radius : float
        Length of the longest first step, in the coordinates of the state.
    done : callable, optional
        A better criterion, asked at every state that is reached.

    Returns
    -------
    state, expected gain there (infinity where it is not known to have a Newton step), steps tried
    """
    gain_left = math.inf
    for n_iter in range(1, max_iter + 1):
        step, predicted, inside = newton_step(state, radius)
        gain_left = predicted if inside else math.inf
        if gain_left <= tol:
            return state, gain_left, n_iter
        proposal = state.moved(step)
        ratio = (proposal.value - state.value) / predicted
        if predicted <= 1e-11 * abs(state.value) and math.isfinite(proposal.value):
            ratio = 1.0 if proposal.gradient.norm() < state.gradient.norm() else 0.0  # rounding hides the gain
        if not ratio > 0.25:
            radius = 0.25 * float(step.norm())
        elif ratio > 0.75 and not inside:
            radius = 2 * radius
        if ratio > 0:
            state = proposal
            gain_left = math.inf
            if done is not None and done(state):
                return state, gain_left, n_iter
    if math.isinf(gain_left):
        _, predicted, inside = newton_step(state, math.inf)
        gain_left = predicted if inside else math.inf
    return state, gain_left, max_iter


def newton_step(state: LocalModel, radius: float) -> tuple[Tensor, float, bool]:
    r"""Maximise :math:`g^\top x - \tfrac12 x^\top H x` over ``|x| <= radius`` by conjugate gradients.

    Returns
    -------
    x, the value of the model there, and whether x is a Newton step: H showed no other sign, and x lies inside.
    """
    r = state.gradient
    x, direction, Hx = torch.zeros_like(r), r, torch.zeros_like(r)
    squared = float(r @ r)
    enough = squared * min(0.1, squared**0.25) ** 2  # ever more accurate, which makes the steps converge faster
    for _ in range(5 * len(r)):  # in exact arithmetic len(r) would do
        if squared <= enough or squared == 0:
            break
        Hd = state.curvature(direction)
        bend = float(direction @ Hd)
        length = squared / bend if bend > 0 else math.inf
        if bend <= 0 or float((x + length * direction).norm()) >= radius:
            if math.isinf(radius):
                return x, math.inf, False
            length = _to_the_edge(x, direction, radius)
            x, Hx = x + length * direction, Hx + length * Hd
            return x, float(state.gradient @ x - x @ Hx / 2), False
        x, Hx, r = x + length * direction, Hx + length * Hd, r - length * Hd
        before, squared = squared, float(r @ r)
        direction = r + squared / before * direction
    return x, float(state.gradient @ x - x @ Hx / 2), True


def _to_the_edge(x: Tensor, direction: Tensor, radius: float) -> float:
    """The positive factor by which ``x + factor * direction`` gets the length ``radius``."""
    a, b, c = float(direction @ direction), float(x @ direction), float(x @ x) - radius**2
    return (math.sqrt(b**2 - a * c) - b) / a
