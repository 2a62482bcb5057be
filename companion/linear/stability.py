"""How stable the clusters of a model are: it is fitted again to resampled rows, and its labels are compared."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone, is_classifier
from sklearn.metrics import adjusted_rand_score
from sklearn.utils import check_random_state

from companion.linear._base import LinearMTL
from companion.tasks import Tasks


class ClusterStability(NamedTuple):
    """Clusters found on all rows, and how they did on resampled ones."""

    labels: NDArray[np.int64]  # (T,) on all rows
    co_assignment: NDArray[np.float64]  # (T, T) fraction of the refits in which two tasks share a cluster
    scores: NDArray[np.float64]  # (n_resamples,) adjusted Rand index of each refit against the labels
    score: float  # mean of the scores: 1 for the same clusters every time, about 0 for chance


def cluster_stability(model: LinearMTL, tasks: Tasks, n_resamples: int = 20, random_state: Any = 0) -> ClusterStability:
    """Refit a model that clusters tasks on bootstrap samples of the rows of every task.

    Each refit draws as many rows as a task has, with replacement; for a classifier it does so within each class, so
    that no class is lost. A model finds clusters in any data: labels that do not survive other rows of the same tasks
    say nothing about the tasks. The converse does not hold. Tasks that differ, each in its own way, can be split the
    same way every time, and one cluster, or as many as tasks, is stable for no reason.

    Parameters
    ----------
    model : estimator with ``labels_``
        It is cloned, and stays as it is.
    tasks : Tasks
    n_resamples : int, default 20
        Number of refits, >= 1.
    random_state : int or numpy RandomState

    Returns
    -------
    ClusterStability
    """
    if not isinstance(tasks, Tasks):
        raise TypeError(f"tasks must be a Tasks object; got {type(tasks).__name__}")
    if n_resamples < 1:
        raise ValueError(f"n_resamples must be at least 1; got {n_resamples}")
    rng = check_random_state(random_state)
    strata = _strata(tasks, by_target=is_classifier(model))
    labels = _labels(model, tasks)
    refits = np.stack([_labels(model, _bootstrap(tasks, strata, rng)) for _ in range(n_resamples)])
    scores = np.array([adjusted_rand_score(labels, refit) for refit in refits])
    together = (refits[:, :, None] == refits[:, None, :]).mean(0)
    return ClusterStability(labels, together, scores, float(scores.mean()))


def _labels(model: LinearMTL, tasks: Tasks) -> NDArray[np.int64]:
    """(T,) clusters that a fresh copy of the model finds."""
    fitted = clone(model).fit(tasks)
    if not hasattr(fitted, "labels_"):
        raise TypeError(f"model must find clusters of tasks, labels_; {type(model).__name__} has none")
    return np.asarray(fitted.labels_)


def _strata(tasks: Tasks, by_target: bool) -> list[NDArray[np.int64]]:
    """Positions of the rows that are drawn among themselves: those of a task, or of a class in it."""
    index = np.repeat(np.arange(tasks.n_tasks), tasks.n_samples)
    keys = np.stack([index, tasks.long_targets()]) if by_target else index[None]
    _, group = np.unique(keys, axis=1, return_inverse=True)
    order = np.argsort(group.ravel(), kind="stable")
    return np.split(order, np.cumsum(np.bincount(group.ravel()))[:-1])


def _bootstrap(tasks: Tasks, strata: list[NDArray[np.int64]], rng: np.random.RandomState) -> Tasks:
    """The same tasks, every row with a weight that says how often it was drawn."""
    X, y, index = tasks.long()
    weight = np.concatenate([tasks.weights(t).cpu().numpy() for t in range(tasks.n_tasks)])
    for rows in strata:
        weight[rows] *= rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)))
    return Tasks.from_long(X, y, index, weight)
