r"""What tasks share, read off the factors of their weights or off the weights themselves.

The codes S of :math:`W = L S` say which latent tasks a task uses. They depend on the factors, which are not unique:
:math:`(L M)(M^{-1} S)` has the same weights for every invertible M, and penalties choose one of them.
:func:`task_similarity` looks at the weights only, and is the same for all.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]


def support_overlap(S: Any) -> Array:
    r"""(T, T) share of the latent tasks in use by either of two tasks that both use (the Jaccard index).

    Parameters
    ----------
    S : (K, T) array or tensor
        Codes; exact zeros are what a task does not use.

    Returns
    -------
    (T, T) array
        From 0, nothing in common, to 1, the same latent tasks. Zero for tasks that use none, also with themselves.
    """
    used = (_matrix(S, "S") != 0).astype(float)
    both = used.T @ used
    either = used.sum(0)[:, None] + used.sum(0) - both
    return np.divide(both, either, out=np.zeros_like(both), where=either > 0)


def code_similarity(S: Any) -> Array:
    r"""(T, T) cosines between the absolute values of codes, the edges of a task graph.

    With absolute values, a task that uses a latent task backwards is as near as one that uses it forwards.

    Parameters
    ----------
    S : (K, T) array or tensor
        Codes.

    Returns
    -------
    (T, T) array
        From 0 to 1; zero for tasks without a code, also with themselves.
    """
    return _cosines(np.abs(_matrix(S, "S")))


def task_similarity(W: Any) -> Array:
    r"""(T, T) cosines between the weights of tasks, :math:`w_s^\top w_t / (\lVert w_s \rVert \lVert w_t \rVert)`.

    It does not depend on how the weights are factorised.

    Parameters
    ----------
    W : (d, T) array or tensor
        Weights, columns are tasks (``coef_.T`` of an estimator).

    Returns
    -------
    (T, T) array
        From -1 to 1; zero for tasks without weights, also with themselves.
    """
    return _cosines(_matrix(W, "W"))


def _cosines(V: Array) -> Array:
    lengths = np.linalg.norm(V, axis=0)
    unit = np.divide(V, lengths, out=np.zeros_like(V), where=lengths > 0)
    return np.clip(unit.T @ unit, -1.0, 1.0)


def _matrix(values: Any, name: str) -> Array:
    found = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if found.ndim != 2 or found.dtype.kind not in "biuf":
        raise ValueError(f"{name} must be a matrix of numbers with one column per task; got shape {found.shape}")
    if not np.isfinite(found).all():
        raise ValueError(f"{name} must be finite; it contains NaN or infinity")
    return found.astype(np.float64)
