"""Synthetic tasks whose weights, groups and noise are known."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral

import numpy as np
from numpy.typing import NDArray

from companion.datasets._base import ShapesInRepr
from companion.tasks import Tasks

Array = NDArray[np.float64]
RandomState = int | np.random.Generator | None


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class SyntheticTasks(ShapesInRepr):
    """Drawn tasks together with the truth they were drawn from.

    Task t has targets ``y_t = X_t w_t + noise`` with ``w_t`` column t of ``W``.

    Attributes
    ----------
    train, test : Tasks
        Two independent draws of the same T tasks, ids 0..T-1.
    W : (d, T) float64 array
        True weights: exactly ``L @ S``.
    L : (d, K) float64 array
        Latent tasks.
    S : (K, T) float64 array
        Codes: how much of each latent task is in each task.
    groups : (T,) int64 array
        Group of each task, 0..n_groups-1, in increasing order.
    noise_variance : float
        Variance of the Gaussian noise: the lowest mean squared error that can be expected.
    """

    train: Tasks
    test: Tasks
    W: Array
    L: Array
    S: Array
    groups: NDArray[np.int64]
    noise_variance: float


def make_disjoint_groups(
    n_tasks: int = 30,
    n_groups: int = 3,
    n_features: int = 20,
    n_train: int = 15,
    n_test: int = 50,
    noise_variance: float = 0.1,
    multiples: tuple[float, float] = (0.05, 1.84),
    random_state: RandomState = None,
) -> SyntheticTasks:
    """Tasks in groups without overlap: all tasks of a group are multiples of one vector.

    Each group has one latent task with independent N(0, 1) entries, and the weights of a task are that vector
    times a number drawn uniformly from the interval ``multiples``: the weights of a group have rank one.
    Inputs are uniform on [-1, 1]. The defaults follow the first synthetic data set of the GO-MTL literature;
    the interval was read off a public copy of such data, where the original description says no more than
    "identical up to scaling".

    Parameters
    ----------
    n_tasks, n_groups : int
        T and the number of groups, ``1 <= n_groups <= n_tasks``. Groups are blocks of neighbouring tasks
        whose sizes differ by at most one. There are K = n_groups latent tasks.
    n_features : int
        d >= 1.
    n_train, n_test : int
        Rows per task, >= 1.
    noise_variance : float
        >= 0.
    multiples : (float, float)
        Lowest and highest multiple.
    random_state : int, numpy.random.Generator or None
        The same seed gives the same bytes; a generator is advanced; None draws a fresh seed.

    Returns
    -------
    SyntheticTasks
        Row g of ``S (K, T)`` is nonzero in the tasks of group g only.

    Examples
    --------
    >>> data = make_disjoint_groups(n_tasks=6, n_groups=2, random_state=0)
    >>> data.train, data.groups
    (Tasks(T=6, d=20, n_t=15), array([0, 0, 0, 1, 1, 1]))
    """
    low, high = multiples
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise ValueError(f"multiples must be two finite numbers (low, high) with low <= high; got {multiples}")

    def draw_codes(rng: np.random.Generator, groups: NDArray[np.int64]) -> Array:
        S = np.zeros((n_groups, len(groups)))
        S[groups, np.arange(len(groups))] = rng.uniform(low, high, len(groups))
        return S

    return _draw(n_tasks, n_groups, n_features, n_train, n_test, noise_variance, draw_codes, random_state)


def make_overlapping_groups(
    n_tasks: int = 30,
    n_groups: int = 3,
    n_features: int = 20,
    n_train: int = 15,
    n_test: int = 50,
    noise_variance: float = 0.1,
    random_state: RandomState = None,
) -> SyntheticTasks:
    """Tasks in groups that overlap: neighbouring groups have one latent task in common.

    With the default three groups there are four latent tasks with independent N(0, 1) entries, and groups 1,
    2, 3 combine the latent tasks {1, 2}, {2, 3}, {3, 4}. A task weighs its two latent tasks with independent
    N(0, 1) codes, so that the weights of a group have rank two. Inputs are uniform on [-1, 1].

    This is one reading of the second synthetic data set of the GO-MTL literature, whose published recipe is
    not known exactly: the number of latent tasks and the distribution of the codes are our choice. Errors
    measured on it are not comparable, number by number, with published ones.

    Parameters
    ----------
    n_tasks, n_groups : int
        T and the number of groups, ``1 <= n_groups <= n_tasks``. Groups are blocks of neighbouring tasks
        whose sizes differ by at most one. There are K = n_groups + 1 latent tasks.
    n_features : int
        d >= 1.
    n_train, n_test : int
        Rows per task, >= 1.
    noise_variance : float
        >= 0.
    random_state : int, numpy.random.Generator or None
        The same seed gives the same bytes; a generator is advanced; None draws a fresh seed.

    Returns
    -------
    SyntheticTasks
        Rows g and g+1 of ``S (K, T)`` are nonzero in the tasks of group g.

    Examples
    --------
    >>> data = make_overlapping_groups(n_tasks=3, random_state=0)
    >>> (data.S != 0).astype(int)
    array([[1, 0, 0],
           [1, 1, 0],
           [0, 1, 1],
           [0, 0, 1]])
    """

    def draw_codes(rng: np.random.Generator, groups: NDArray[np.int64]) -> Array:
        S = np.zeros((n_groups + 1, len(groups)))
        for latent in (groups, groups + 1):
            S[latent, np.arange(len(groups))] = rng.standard_normal(len(groups))
        return S

    return _draw(n_tasks, n_groups, n_features, n_train, n_test, noise_variance, draw_codes, random_state)


def _draw(
    n_tasks: int,
    n_groups: int,
    n_features: int,
    n_train: int,
    n_test: int,
    noise_variance: float,
    draw_codes: Callable[[np.random.Generator, NDArray[np.int64]], Array],
    random_state: RandomState,
) -> SyntheticTasks:
    """What both generators share: they differ in the codes S given the groups."""
    counts = {
        "n_tasks": n_tasks,
        "n_groups": n_groups,
        "n_features": n_features,
        "n_train": n_train,
        "n_test": n_test,
    }
    for name, count in counts.items():
        if not isinstance(count, Integral) or isinstance(count, bool) or count < 1:
            raise ValueError(f"{name} must be a whole number >= 1; got {count!r}")
    if n_groups > n_tasks:
        raise ValueError(f"n_groups must be at most n_tasks = {n_tasks}, one task in each group; got {n_groups}")
    if not (math.isfinite(noise_variance) and noise_variance >= 0):
        raise ValueError(f"noise_variance must be a finite number >= 0; got {noise_variance!r}")
    rng = np.random.default_rng(random_state)
    groups = np.arange(n_tasks, dtype=np.int64) * n_groups // n_tasks
    S = draw_codes(rng, groups)  # (K, T)
    L = rng.standard_normal((n_features, len(S)))  # (d, K)
    W = L @ S  # (d, T)
    # Training rows come first: another n_test leaves them, and the truth, as they were.
    train, test = (_sample(rng, W, n, noise_variance) for n in (n_train, n_test))
    return SyntheticTasks(train=train, test=test, W=W, L=L, S=S, groups=groups, noise_variance=float(noise_variance))


def _sample(rng: np.random.Generator, W: Array, n: int, noise_variance: float) -> Tasks:
    d, T = W.shape
    X = rng.uniform(-1.0, 1.0, (T, n, d))
    noise = math.sqrt(noise_variance) * rng.standard_normal((T, n))
    return Tasks.from_list([(X[t], X[t] @ W[:, t] + noise[t]) for t in range(T)])
