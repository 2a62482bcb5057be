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


def sharing_strength(S: Any, normalized: bool = True) -> float:
    r"""Mean cosine between the codes of all pairs of tasks (Yang & Hospedales 2017),

    .. math:: \rho = \frac{2}{T (T - 1)} \sum_{s < t} \cos(\tilde S_{\cdot s}, \tilde S_{\cdot t}),
        \qquad \tilde S_{\cdot t} = \mathrm{softmax}(\lvert S_{\cdot t} \rvert).

    It depends on the factors as well as on the weights they make: on the basis that the latent tasks are written in
    and, once normalised, on the scale of the codes. Compare it within one format only, and look at
    :func:`task_similarity` beside it.

    Parameters
    ----------
    S : (K, T) array or tensor
        Task factor of a layer, T at least 2.
    normalized : bool, default True
        Take the softmax of absolute values in every column first, as the paper does. It makes all values positive, and
        separate tasks (S the identity) get :math:`(2 e + T - 2) / (e^2 + T - 1)`, not zero.

    Returns
    -------
    float
        In (0, 1] normalised, in [-1, 1] raw: 0 for orthogonal codes and 1 for equal ones. A task without a code has
        cosine 0 with every other.

    Raises
    ------
    ValueError
        Fewer than two tasks, which have no pair.
    """
    codes = _matrix(S, "S")
    T = codes.shape[1]
    if T < 2:
        raise ValueError(f"sharing strength compares pairs of tasks and needs at least two; got {T}")
    if normalized:
        codes = np.exp(np.abs(codes) - np.abs(codes).max(axis=0))
        codes = codes / codes.sum(axis=0)
    return float(_cosines(codes)[np.triu_indices(T, 1)].mean())


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
