"""Where the task axis goes: in front for whoever writes a network, among the channels for a grouped convolution.

Activations of T tasks have shape ``(T, B, ...)``. Moving the axis is a view where the memory allows it: a convolution
leaves its output as ``(B, H, W, T, C)`` in memory, and pooling and the next convolution take it from there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def is_shared(x: Tensor) -> bool:
    """Whether all tasks see the same activations: ``x`` (T, B, ...) was expanded over its first axis, not copied."""
    return x.shape[0] > 1 and x.stride(0) == 0


def expand_tasks(x: Tensor, n_tasks: int) -> Tensor:
    """(B, ...) seen by T tasks as (T, B, ...), without a copy."""
    return x.unsqueeze(0).expand(n_tasks, *x.shape)


def to_rows(x: Tensor) -> Tensor:
    """(T, B, C, ...) -> (B, ..., T, C), a view: the order in which convolutions leave activations in memory."""
    return x.permute(1, *range(3, x.ndim), 0, 2)


def from_rows(rows: Tensor) -> Tensor:
    """(B, ..., T, C) -> (T, B, C, ...), a view."""
    return rows.permute(-2, 0, -1, *range(1, rows.ndim - 2))


def fold_channels(x: Tensor) -> Tensor:
    """(T, B, C, ...) -> (B, T C, ...), channels last in memory; a view where ``x`` came from a convolution."""
    return channels_last(to_rows(x).flatten(-2).movedim(-1, 1))


def channels_last(x: Tensor) -> Tensor:
    """Images (n, C, H, W) with the channels last in memory, copied where they are not; anything else as it is.

    Convolutions and pooling are several times faster so, and give memory of the kind that they are given.
    """
    if x.ndim != 4:
        return x
    if x.shape[1] == 1:  # fits any memory; what is looked at is the stride of the channel
        x = x.squeeze(1).unsqueeze(-1).movedim(-1, 1)
    return x.contiguous(memory_format=torch.channels_last)


def unfold_channels(x: Tensor, n_tasks: int) -> Tensor:
    """(B, T C, ...) -> (T, B, C, ...), a view."""
    return x.unflatten(1, (n_tasks, -1)).movedim(1, 0)


def folds_freely(x: Tensor) -> bool:
    """Whether the channels of ``x`` (T, B, C, ...) lie task by task in memory, so that folding them is a view."""
    return x.ndim > 2 and x.stride(0) == x.shape[2] * x.stride(2)


def check_stacked(x: Tensor, n_tasks: int, n_features: int, feature_axis: int, ndim: Sequence[int], layer: str) -> None:
    """Refuse activations that are not those of T tasks.

    Parameters
    ----------
    x : tensor
        Should be (T, B, ...).
    n_tasks, n_features : int
        T, and the size of axis ``feature_axis``.
    ndim : sequence of int
        Numbers of axes that are allowed; empty for any from 3.
    layer : str
        Name for the message.
    """
    fits = x.ndim in ndim if ndim else x.ndim >= 3
    if not fits or x.shape[0] != n_tasks or x.shape[feature_axis] != n_features:
        wanted = "(T, B, ..., I)" if feature_axis == -1 else "(T, B, C, ...)"
        raise ValueError(
            f"{layer} takes {wanted} with T={n_tasks} tasks and {n_features} features; got {tuple(x.shape)}. "
            "Inputs that all tasks share are expanded over a first axis of length T"
        )
