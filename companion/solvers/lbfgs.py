"""L-BFGS for smooth convex problems: it learns the curvature that a preconditioner does not know."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

_MOST_TRIALS = 30  # steps tried along one direction


class _Pair(NamedTuple):
    """A step, what it changed in the gradient, and their inner product, which is above zero."""

    s: Tensor
    y: Tensor
    sy: Tensor


def lbfgs(
    gradient: Callable[[Tensor], Tensor],
    precondition: Callable[[Tensor], Tensor],
    W: Tensor,
    stop: Callable[[Tensor], bool],
    max_iter: int,
    memory: int = 10,
    check_every: int = 5,
) -> tuple[Tensor, int]:
    r"""Minimise a smooth convex function by quasi-Newton steps with limited memory (Liu and Nocedal, 1989).

    Parameters
    ----------
    gradient : callable
        Gradient at weights of any shape, in the same shape.
    precondition : callable
        A rough inverse of the Hessian, symmetric and positive definite, times weights.
    W : tensor
        First weights.
    stop : callable
        Asked every ``check_every`` iterations: whether these weights are good enough.
    memory : int
        Number of steps from which the curvature is learned.

    Returns
    -------
    weights and iterations used; fewer than ``max_iter`` without a nod from ``stop`` where gradients are rounding
    """
    g = gradient(W)
    pairs: deque[_Pair] = deque(maxlen=memory)
    for iteration in range(1, max_iter + 1):
        direction = -_inverse_times(g, pairs, precondition)
        slope = float((direction * g).sum())
        if not slope < 0 and pairs:  # the pairs have become rounding
            pairs.clear()
            direction = -precondition(g)
            slope = float((direction * g).sum())
        if not slope < 0:
            stop(W)
            return W, iteration
        step, new = _step(gradient, W, direction, slope)
        pair = _Pair(step * direction, new - g, step * (direction * (new - g)).sum())
        if float(pair.sy) > 0:
            pairs.append(pair)
        W, g = W + pair.s, new
        if (iteration % check_every == 0 or iteration == max_iter) and stop(W):
            return W, iteration
    return W, max_iter


def _inverse_times(g: Tensor, pairs: deque[_Pair], precondition: Callable[[Tensor], Tensor]) -> Tensor:
    """Inverse of the Hessian as far as it is known, times g: the two loops over the pairs."""
    shares = []
    for pair in reversed(pairs):
        shares.append((pair.s * g).sum() / pair.sy)
        g = g - shares[-1] * pair.y
    d = precondition(g)
    if pairs:  # the preconditioner on the scale that the last step has seen
        last = pairs[-1]
        d = d * (last.sy / (last.y * precondition(last.y)).sum())
    for pair, share in zip(pairs, reversed(shares), strict=True):
        d = d + (share - (pair.y * d).sum() / pair.sy) * pair.s
    return d


def _step(gradient: Callable[[Tensor], Tensor], W: Tensor, direction: Tensor, slope: float) -> tuple[float, Tensor]:
    """A step that leaves at most half of the slope, and the gradient there.

    Slopes are exact where differences of values would be rounding (Hager and Zhang, 2005). The slope of a convex
    function rises along a line, so secants between its two signs find the valley.
    """
    low, high, step = (0.0, slope), None, 1.0
    for trial in range(_MOST_TRIALS):
        g = gradient(W + step * direction)
        now = float((direction * g).sum())
        if abs(now) <= abs(slope) / 2 or trial == _MOST_TRIALS - 1:
            break
        if now < 0:
            low = (step, now)
        else:
            high = (step, now)
        if high is None:
            step *= 2
        else:
            share = low[1] / (low[1] - high[1])
            step = low[0] + min(max(share, 0.1), 0.9) * (high[0] - low[0])
    return step, g
