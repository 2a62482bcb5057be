"""Which tasks belong together: hard clusters, read out of a matrix that relates the tasks."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import cut_tree, linkage
from sklearn.cluster import KMeans
from torch import Tensor

from companion.solvers.partitions import by_appearance


def cluster_labels(relation: Any, n_clusters: int) -> NDArray[np.int64]:
    r"""Cluster tasks by kernel k-means on their relation.

    With ``W.T @ W`` for weights ``W (d, T)`` that is k-means on the tasks' weights. A relaxed projection, such as M of
    clustered multi-task learning, counts directions by its eigenvalues. A multiple of the identity adds the same to the
    objective of every clustering, so the smallest eigenvalue is taken off: it would only hide the others.

    Lloyd's iterations start from Ward's hierarchy. Nothing is drawn at random, and the order of the tasks matters for
    the numbering alone, unless distances tie.

    Parameters
    ----------
    relation : (T, T) array or tensor
        Symmetric: inner products or similarities of tasks.
    n_clusters : int
        1 <= n_clusters <= T.

    Returns
    -------
    (T,) int64 array
        Labels 0, 1, ... in the order in which their first tasks appear. Fewer than ``n_clusters`` where there are fewer
        tasks that differ; all tasks differ if ``n_clusters`` is T.
    """
    K, same = _symmetric(relation)
    T = len(K)
    if not 1 <= n_clusters <= T:
        raise ValueError(f"n_clusters must lie between 1 and the number of tasks, {T}; got {n_clusters!r}")
    if n_clusters == T:
        return np.arange(T)
    if n_clusters == 1:
        return np.zeros(T, dtype=np.int64)
    values, Q = np.linalg.eigh(K)
    size, values = np.abs(values).max(), values - values[0]
    apart = values > same**2 * size
    if not apart.any():
        return np.zeros(T, dtype=np.int64)
    points = Q[:, apart] * np.sqrt(values[apart])
    merges = linkage(points, "ward")
    # Ward's heights are distances, so that merges below this one join what rounding has torn apart.
    n_clusters = min(n_clusters, 1 + int((merges[:, 2] > same * np.sqrt(size)).sum()))
    first = cut_tree(merges, n_clusters)[:, 0]
    centres = np.stack([points[first == c].mean(0) for c in range(n_clusters)])
    return by_appearance(KMeans(n_clusters, init=centres, n_init=1, tol=0.0).fit_predict(points))


def _symmetric(relation: Any) -> tuple[NDArray[np.float64], float]:
    """The relation in float64, and how far apart, relative to its size, rounding may put tasks that are the same."""
    K = relation.detach().cpu().numpy() if isinstance(relation, Tensor) else np.asarray(relation)
    rounding = np.finfo(K.dtype).eps if K.dtype.kind == "f" else np.finfo(np.float64).eps
    K = K.astype(np.float64)
    if K.ndim != 2 or K.shape[0] != K.shape[1] or not np.isfinite(K).all():
        raise ValueError(f"relation must be a finite (T, T) matrix, got shape {K.shape}")
    skew = np.abs(K - K.T).max()
    if skew > 1e-6 * np.abs(K).max():
        raise ValueError(f"relation must be symmetric; entries differ from their mirror images by up to {skew:.1e}")
    return (K + K.T) / 2, 64 * float(np.sqrt(rounding))
