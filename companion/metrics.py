"""How good predictions are: errors pooled and per task, relative gains, and paired differences with their error.

Every metric takes targets and predictions in long form, one value per row, as NumPy arrays, torch tensors or lists, and
returns a float. *Pooled* means over the rows of all tasks together, so large tasks count more; :func:`per_task` gives
one value per task, with which each task can be counted the same.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from companion._checks import index_tasks

Metric = Callable[[Any, Any], float]


class PerTask(NamedTuple):
    """One value per task.

    Attributes
    ----------
    ids : tuple of length T
        Task ids: sorted where they can be compared, else in order of appearance, as in :class:`companion.Tasks`.
    values : (T,) float64 array
        The metric of each, in the order of ``ids``.
    """

    ids: tuple[Hashable, ...]
    values: NDArray[np.float64]


@dataclass(frozen=True)
class PairedDifference:
    """Mean of n paired differences and its confidence interval; see :func:`paired_difference`.

    Attributes
    ----------
    mean : float
        Average of the n differences.
    standard_error : float
        Standard deviation of the differences (n - 1 in the denominator) over the square root of n.
    low, high : float
        Ends of the confidence interval for the mean.
    n : int
        Number of pairs.
    """

    mean: float
    standard_error: float
    low: float
    high: float
    n: int


def rmse(y: Any, prediction: Any) -> float:
    """Root of the mean squared error over all rows.

    Parameters
    ----------
    y, prediction : (n,) array or tensor
        Targets and predictions, finite.

    Returns
    -------
    float
    """
    y, prediction = _numbers(y, prediction)
    return float(np.sqrt(np.mean((y - prediction) ** 2)))


def explained_variance(y: Any, prediction: Any) -> float:
    """One minus the sum of squared errors over the sum of squares of ``y`` around its own mean.

    The mean is that of the ``y`` handed in: of all rows pooled, or, through :func:`per_task`, of the task's own test
    rows. A constant bias counts as error; scikit-learn calls this number R² (``r2_score``), while its
    ``explained_variance_score`` forgives the bias.

    Parameters
    ----------
    y, prediction : (n,) array or tensor
        Targets, not all of them equal, and predictions; finite.

    Returns
    -------
    float
        1 is perfect, 0 as good as the mean of ``y``; below 0 is worse than that mean.

    Raises
    ------
    ValueError
        All of ``y`` is one value, so that there is no variance to explain.
    """
    y, prediction = _numbers(y, prediction)
    if np.all(y == y[0]):
        raise ValueError(f"explained variance needs targets that differ; all {len(y)} of them are {y[0]:g}")
    return float(1 - np.sum((y - prediction) ** 2) / np.sum((y - y.mean()) ** 2))


def error_rate(y: Any, prediction: Any) -> float:
    """Fraction of rows whose predicted label is not the true one.

    Parameters
    ----------
    y, prediction : (n,) array or tensor
        Labels of any type that can be compared for equality.

    Returns
    -------
    float
        0 is perfect, 1 always wrong.
    """
    y, prediction = _pair(y, prediction, "prediction")
    _refuse_nan(y, "y")
    _refuse_nan(prediction, "prediction")
    if (y.dtype.kind in "US") != (prediction.dtype.kind in "US") and "O" not in (y.dtype.kind, prediction.dtype.kind):
        raise ValueError(f"y and prediction must be labels of one kind; got {y.dtype} and {prediction.dtype}")
    return float(np.mean(y != prediction))


def per_task(metric: Metric, y: Any, prediction: Any, task: Any) -> PerTask:
    """A metric of every task's own rows.

    Parameters
    ----------
    metric : function of (y, prediction)
        Such as :func:`rmse`, :func:`explained_variance` or :func:`error_rate`.
    y, prediction : (n,) array or tensor
        Targets and predictions of all tasks.
    task : (n,) sequence of hashable ids
        Task of each row.

    Returns
    -------
    PerTask
        ``ids`` and ``values (T,)``.

    Examples
    --------
    >>> per_task(rmse, [1.0, 2.0, 5.0], [1.0, 4.0, 2.0], ["b", "a", "b"]).ids
    ('a', 'b')
    """
    y, prediction = _pair(y, prediction, "prediction")
    ids, index = index_tasks(task, len(y))
    order = np.argsort(index, kind="stable")
    ends = np.cumsum(np.bincount(index, minlength=len(ids)))[:-1]
    values = np.empty(len(ids))
    for t, rows in enumerate(np.split(order, ends)):
        try:
            values[t] = metric(y[rows], prediction[rows])
        except ValueError as error:
            raise ValueError(f"task {ids[t]!r}: {error}") from error
    return PerTask(ids, values)


def relative_gain(error: Any, reference: Any) -> NDArray[np.float64]:
    """``(reference - error) / reference``: what part of the reference's error is gone; positive is better.

    With the per-task errors of a method and of single-task learning this is the relative gain of every task, and
    ``.mean()`` of it the average in which each task counts the same.

    Parameters
    ----------
    error, reference : arrays or tensors of one shape
        Errors (smaller is better; not scores), such as RMSE per task; the reference above 0, the error >= 0.

    Returns
    -------
    float64 array of that shape
    """
    error, reference = _array(error, "error").astype(np.float64), _array(reference, "reference").astype(np.float64)
    if error.shape != reference.shape:
        raise ValueError(f"error and reference must have one shape; got {error.shape} and {reference.shape}")
    _refuse_nan(error, "error")
    _refuse_nan(reference, "reference")
    if (error < 0).any():
        raise ValueError(f"error must be >= 0; its smallest value is {error.min():g}")
    if (reference <= 0).any():
        raise ValueError(f"reference must be > 0, as it is divided by; its smallest value is {reference.min():g}")
    return np.asarray((reference - error) / reference)


def paired_difference(a: Any, b: Any, confidence: float = 0.95) -> PairedDifference:
    """Mean of ``a - b`` over pairs measured on the same split or seed, with a Student t interval.

    Parameters
    ----------
    a, b : (n,) array or tensor, n >= 2
        One number per split or seed, in the same order in both.
    confidence : float in (0, 1), default 0.95
        Coverage of the interval if the differences are independent draws of a normal distribution. Splits of one data
        set share rows and are not independent: the interval is then usually too short for statements about new data.

    Returns
    -------
    PairedDifference
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie strictly between 0 and 1; got {confidence}")
    a, b = _numbers(a, b, names=("a", "b"))
    n = len(a)
    if n < 2:
        raise ValueError(f"a standard error needs at least 2 pairs; got {n}")
    difference = a - b
    mean, error = float(difference.mean()), float(difference.std(ddof=1) / np.sqrt(n))
    half = float(stats.t.ppf((1 + confidence) / 2, df=n - 1)) * error
    return PairedDifference(mean, error, mean - half, mean + half, n)


def paired_gain(error: Any, reference: Any, confidence: float = 0.95) -> PairedDifference:
    """Mean :func:`relative_gain` over splits or seeds, with the interval of :func:`paired_difference`.

    Parameters
    ----------
    error, reference : (n,) array or tensor, n >= 2
        One error per split or seed, in the same order in both.
    confidence : float in (0, 1), default 0.95

    Returns
    -------
    PairedDifference
        Of fractions: 0.02 is an error 2 % smaller than the reference's.
    """
    gain = relative_gain(error, reference)
    return paired_difference(gain, np.zeros_like(gain), confidence)


# --- boundary checks --------------------------------------------------------------------------------------------------


def _array(values: Any, name: str) -> np.ndarray:
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.dtype.kind not in "biufUSO":
        raise ValueError(f"{name} must hold numbers or labels; got {array.dtype}")
    return array


def _pair(y: Any, other: Any, name: str, first: str = "y") -> tuple[np.ndarray, np.ndarray]:
    """Two vectors of the same length, at least one row."""
    y, other = _array(y, first), _array(other, name)
    if y.ndim != 1 or len(y) == 0:
        raise ValueError(f"{first} must have shape (n,) with n >= 1; got {y.shape}")
    if other.shape != y.shape:
        raise ValueError(f"{name} must have shape {y.shape}, as {first}; got {other.shape}")
    return y, other


def _numbers(y: Any, other: Any, names: tuple[str, str] = ("y", "prediction")) -> tuple[np.ndarray, np.ndarray]:
    """Two finite float64 vectors of the same length."""
    y, other = _pair(y, other, names[1], first=names[0])
    numbers = []
    for values, name in zip((y, other), names, strict=True):
        if values.dtype.kind not in "biuf":
            raise ValueError(f"{name} must hold numbers; got {values.dtype}")
        _refuse_nan(values, name)
        numbers.append(values.astype(np.float64))
    return numbers[0], numbers[1]


def _refuse_nan(values: np.ndarray, name: str) -> None:
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
        raise ValueError(f"{name} must be finite; position {where} holds {values[where]}")
