"""What enters the package is checked here, once: designs, targets, weights and task ids."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_array
from torch import Tensor


def check_design(X: Any, name: str = "X") -> tuple[Tensor, str]:
    """A finite real ``(n, d)`` floating-point tensor and the library it came in.

    Raises
    ------
    ValueError
        Not two-dimensional, no rows, no columns, NaN or infinity, strings, complex numbers.
    TypeError
        A sparse matrix.
    """
    if not isinstance(X, Tensor):
        X = check_array(X, dtype=[np.float64, np.float32], input_name=name, estimator=None)
        if not X.flags.writeable or any(s < 0 for s in X.strides):  # torch wants writable, forward-strided memory
            X = X.copy()
        return torch.from_numpy(X), "numpy"
    X = X.detach()
    if X.ndim != 2 or X.shape[0] == 0 or X.shape[1] == 0:
        raise ValueError(f"{name} must be a tensor of shape (n, d) with n, d >= 1; got {tuple(X.shape)}")
    if X.is_complex():
        raise ValueError(f"Complex data not supported: {name} must be real, got {X.dtype}")
    if not X.is_floating_point():
        X = X.to(torch.get_default_dtype())
    if not bool(torch.isfinite(X).all()):
        raise ValueError(f"{name} must be finite; it contains NaN or infinity")
    return X, "torch"


def share_memory(values: np.ndarray) -> Tensor:
    """A tensor on the same memory where torch can: it wants writable memory without negative strides."""
    if not values.flags.writeable or any(stride < 0 for stride in values.strides):
        values = values.copy()
    return torch.from_numpy(values)


def check_vector(y: Any, n: int, name: str, like: Tensor) -> Tensor:
    """A finite ``(n,)`` float64 tensor on the device of ``like``."""
    if y is None:
        raise ValueError(f"{name} is missing: expected {n} values, one per row of X, got None")
    if not isinstance(y, Tensor):
        y = np.asarray(y)
        if y.dtype.kind not in "biuf":
            if y.dtype.kind == "c":
                raise ValueError(f"Complex data not supported: {name} must be real, got {y.dtype}")
            try:
                y = y.astype(np.float64)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{name} must hold numbers; got {y.dtype} values such as {y.flat[0]!r}") from error
        y = share_memory(y.astype(np.float64, copy=False))
    if tuple(y.shape) != (n,):
        raise ValueError(f"{name} must have shape ({n},), one value per row of X; got {tuple(y.shape)}")
    y = y.detach()
    if y.is_complex():
        raise ValueError(f"Complex data not supported: {name} must be real, got {y.dtype}")
    y = y.to(device=like.device, dtype=torch.float64)
    if not bool(torch.isfinite(y).all()):
        raise ValueError(
            f"{name} must be finite; it contains NaN or infinity. Leave rows without a label out of the long form, "
            "or give shared inputs and a label matrix with NaN to Tasks.shared"
        )
    return y


def check_weight(weight: Any, n: int, like: Tensor) -> Tensor:
    """``(n,)`` weights >= 0; a scalar stands for equal weights."""
    if not isinstance(weight, Tensor):
        weight = np.asarray(weight)
        if weight.ndim == 0:
            weight = np.full(n, float(weight))
    weight = check_vector(weight, n, "sample_weight", like)
    if bool((weight < 0).any()):
        raise ValueError(f"sample_weight must be >= 0; its smallest value is {float(weight.min())}")
    return weight


def index_tasks(task: Any, n: int) -> tuple[tuple[Hashable, ...], np.ndarray]:
    """Task ids and, per row, the position of its id: sorted ids where they compare, else order of appearance."""
    if task is None:
        return (0,), np.zeros(n, dtype=np.int64)
    values = task_values(task, n)
    if values.dtype != object:
        ids, index = np.unique(values, return_inverse=True)
        return tuple(ids.tolist()), index.astype(np.int64)
    # By hash, since objects may compare without being ordered (sets, for one); sorting is for the eye.
    seen: dict[Hashable, int] = {}
    index = np.fromiter((seen.setdefault(v, len(seen)) for v in values), np.int64, n)
    try:
        ordered = sorted(seen)  # type: ignore[type-var]
    except TypeError:
        return tuple(seen), index
    place = np.empty(len(seen), dtype=np.int64)
    for position, id_ in enumerate(ordered):
        place[seen[id_]] = position
    return tuple(ordered), place[index]


def task_values(task: Any, n: int) -> np.ndarray:
    """``task`` as an (n,) array of ids; tuples and mixed types become an object array."""
    if isinstance(task, Tensor):
        task = task.detach().cpu().numpy()
    values = _objects(task) if _needs_objects(task) else np.asarray(task)
    if values.ndim != 1 or len(values) != n:
        raise ValueError(f"task must have shape ({n},), one id per row of X; got {values.shape}")
    if values.dtype.kind in "fcmMO" and any(map(_is_missing, values.tolist())):
        raise ValueError("task contains NaN or another missing value: every row needs a task id")
    return values


def _needs_objects(task: Any) -> bool:
    """np.asarray would turn [1, "a"] into strings, tuples into a second axis and huge integers into floats."""
    if not isinstance(task, (list, tuple)):
        return False
    kinds = {type(v) for v in task}
    if len(kinds) > 1 or any(issubclass(kind, (tuple, frozenset)) for kind in kinds):
        return True
    return kinds == {int} and np.asarray(task).dtype.kind not in "iu"


def _is_missing(value: Any) -> bool:
    """None, NaN, and the missing values of pandas, which compare as neither true nor false."""
    return (
        value is None or type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, float) and value != value)
    )


def _objects(task: Sequence[Hashable]) -> np.ndarray:
    values = np.empty(len(task), dtype=object)
    values[:] = task
    return values


def some_ids(values: Sequence[Hashable], most: int = 5) -> str:
    """A few ids for a message."""
    shown = ", ".join(repr(v) for v in values[:most])
    return shown if len(values) <= most else f"{shown}, ... ({len(values)} in all)"
