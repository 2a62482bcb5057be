"""Examples of T tasks, of which a batch is fetched by one indexing operation; a batch has the task axis first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.utils.data import Dataset

from companion._checks import share_memory


class _Examples(Dataset):
    """Inputs, labels and mask, each with its axis of examples."""

    def __init__(self, X: Tensor, y: Tensor, mask: Tensor | None, x_axis: int, y_axis: int) -> None:
        if X.is_floating_point() and not bool(torch.isfinite(X).all()):
            raise ValueError("X must be finite; it contains NaN or infinity")
        if X.shape[x_axis] == 0:
            raise ValueError(f"X must hold at least one example; got {tuple(X.shape)}")
        self._X, self._y, self._mask = X, y, mask
        self._x_axis, self._y_axis = x_axis, y_axis

    def __len__(self) -> int:
        return self._X.shape[self._x_axis]

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, ...]:
        """The batch of these examples: ``(x, y)``, or ``(x, y, mask)`` if a mask was given."""
        index = torch.as_tensor(indices)
        batch = [_select(self._X, self._x_axis, index), _select(self._y, self._y_axis, index)]
        return (*batch, _select(self._mask, self._y_axis, index)) if self._mask is not None else tuple(batch)


class SharedData(_Examples):
    """n examples, each with labels for all T tasks: shared inputs.

    A batch of B examples is x (B, ...), y (T, B, ...) and, if a mask was given, mask (T, B).

    Parameters
    ----------
    X : (n, ...) array or tensor
        Finite. Types and devices stay as they are.
    Y : (n, T, ...) array or tensor
        Label matrix, or numbers of further axes; NaN is a missing label.
    mask : (n, T) bool array or tensor, optional
        True where the label is known.
    """

    def __init__(self, X: ArrayLike | Tensor, Y: ArrayLike | Tensor, mask: ArrayLike | Tensor | None = None) -> None:
        X, Y = _tensor(X, "X", 1), _tensor(Y, "Y", 2)
        if len(X) != len(Y):
            raise ValueError(f"Y must have one row per example of X, ({len(X)}, T, ...); got {tuple(Y.shape)}")
        known = _mask(mask, Y.shape[:2])
        known = None if known is None else known.movedim(1, 0).contiguous()
        super().__init__(X, Y.movedim(1, 0).contiguous(), known, x_axis=0, y_axis=1)


class StackedData(_Examples):
    """n examples of each of T tasks, each with inputs of its own: stacked inputs.

    A batch of B examples per task is x (T, B, ...), y (T, B, ...) and, if a mask was given, mask (T, B).

    Parameters
    ----------
    X : (T, n, ...) array or tensor
        Finite. Types and devices stay as they are.
    Y : (T, n, ...) array or tensor
        Labels; NaN is a missing one.
    mask : (T, n) bool array or tensor, optional
        True where the label is known.
    """

    def __init__(self, X: ArrayLike | Tensor, Y: ArrayLike | Tensor, mask: ArrayLike | Tensor | None = None) -> None:
        X, Y = _tensor(X, "X", 2), _tensor(Y, "Y", 2)
        if X.shape[:2] != Y.shape[:2]:
            raise ValueError(f"Y must have the tasks and examples of X, {tuple(X.shape[:2])}; got {tuple(Y.shape)}")
        super().__init__(X, Y, _mask(mask, Y.shape[:2]), x_axis=1, y_axis=1)


class TaskData(_Examples):
    """n_t examples of one task, a part of ragged data; :class:`TaskLoaders` puts the tasks together.

    A batch of B examples is x (B, ...), y (B, ...) and, if a mask was given, mask (B,).

    Parameters
    ----------
    X : (n_t, ...) array or tensor
        Finite. Types and devices stay as they are.
    y : (n_t, ...) array or tensor
        Labels; NaN is a missing one.
    mask : (n_t,) bool array or tensor, optional
        True where the label is known.
    """

    def __init__(self, X: ArrayLike | Tensor, y: ArrayLike | Tensor, mask: ArrayLike | Tensor | None = None) -> None:
        X, y = _tensor(X, "X", 1), _tensor(y, "y", 1)
        if len(X) != len(y):
            raise ValueError(f"y must have one label per example of X, ({len(X)}, ...); got {tuple(y.shape)}")
        super().__init__(X, y, _mask(mask, y.shape[:1]), x_axis=0, y_axis=0)


def _tensor(values: Any, name: str, least: int) -> Tensor:
    """The same memory as a tensor with at least so many axes."""
    if not isinstance(values, Tensor):
        array = np.asarray(values)
        if array.dtype.kind not in "biuf":
            raise ValueError(f"{name} must hold real numbers; got {array.dtype} values")
        values = share_memory(array)
    if values.ndim < least:
        raise ValueError(f"{name} must have at least {least} axes; got the shape {tuple(values.shape)}")
    return values.detach()


def _mask(mask: Any, shape: tuple[int, ...]) -> Tensor | None:
    if mask is None:
        return None
    mask = _tensor(mask, "mask", 1)
    if mask.dtype != torch.bool or mask.shape != shape:
        raise ValueError(f"mask must be bool of shape {tuple(shape)}; got {mask.dtype}, {tuple(mask.shape)}")
    return mask


def _select(values: Tensor, axis: int, index: Tensor) -> Tensor:
    return values.index_select(axis, index.to(values.device))
