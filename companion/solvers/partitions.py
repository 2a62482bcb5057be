"""Partitions of tasks: where a search for one starts, and labels that do not depend on how it was found."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]


def by_appearance(labels: Labels) -> Labels:
    """(T,) the same partition with the labels 0, 1, ... in the order in which they appear."""
    names: dict[int, int] = {}
    return np.array([names.setdefault(label, len(names)) for label in labels.tolist()])


def random_labels(order: Labels, k: int, rng: np.random.Generator) -> Labels:
    """(T,) labels 0..k-1 drawn so that the parts differ by at most one task in size.

    Parameters
    ----------
    order : (T,) int array
        The tasks in an order that the data determine: drawn along it, labels do not depend on how tasks are called.
    """
    labels = np.empty_like(order)
    labels[order] = rng.permutation(len(order)) % k
    return labels


def spread_seeds(
    excess: Callable[[int], NDArray[np.float64]], order: Labels, k: int, rng: np.random.Generator
) -> list[int]:
    """Draw up to k different tasks as k-means++ does (Arthur and Vassilvitskii, 2007).

    The first one uniformly, each of the others with a probability in proportion to what it costs it to be represented
    by the best of those before.

    Parameters
    ----------
    excess : callable
        From a task s to these costs ``(T,)`` with s alone.
    order : (T,) int array
        As in :func:`random_labels`.

    Returns
    -------
    list of at least one and at most k tasks
        Fewer than k where the others cost nothing.
    """
    seeds = [int(order[rng.integers(len(order))])]
    cost = np.full(len(order), np.inf)
    while len(seeds) < k:
        cost = np.minimum(cost, excess(seeds[-1]).clip(min=0.0))
        cost[seeds] = 0.0
        if not cost.any():
            break
        total = cost[order].cumsum()
        seeds.append(int(order[np.searchsorted(total, rng.random() * total[-1], side="right")]))
    return seeds
