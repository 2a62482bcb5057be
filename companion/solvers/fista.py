"""FISTA: the proximal gradient method that the book shows, and that every faster one is tested against."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Weights = TypeVar("Weights", Tensor, NDArray[np.float64])


def fista(
    gradient: Callable[[Weights], Weights],
    prox: Callable[[Weights, float], Weights],
    lipschitz: float,
    W: Weights,
    stop: Callable[[Weights], bool],
    max_iter: int,
    check_every: int = 10,
) -> tuple[Weights, int]:
    r"""Minimise :math:`F(W) + \Omega(W)` by proximal gradient steps with momentum (Beck and Teboulle 2009).

    The momentum starts anew whenever it points uphill (O'Donoghue and Candès 2015), which keeps the method fast on
    problems that are strongly convex near their solution.

    Parameters
    ----------
    gradient : callable
        Gradient of F at weights of any shape, in the same shape.
    prox : callable
        ``prox(V, step)``, the proximal operator of ``step * Omega``.
    lipschitz : float
        Lipschitz constant of the gradient; steps have length ``1 / lipschitz``.
    W : tensor or NumPy array
        First weights.
    stop : callable
        Asked every ``check_every`` iterations: whether these weights are good enough.

    Returns
    -------
    weights and iterations used, ``max_iter`` if ``stop`` never agreed
    """
    step = 1 / lipschitz if lipschitz > 0 else 1.0
    V, momentum = W, 1.0
    for iteration in range(1, max_iter + 1):
        previous, W = W, prox(V - step * gradient(V), step)
        if (iteration % check_every == 0 or iteration == max_iter) and stop(W):
            return W, iteration
        if float(((V - W) * (W - previous)).sum()) > 0:
            momentum = 1.0
        following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        V = W + (momentum - 1) / following * (W - previous)
        momentum = following
    return W, max_iter
