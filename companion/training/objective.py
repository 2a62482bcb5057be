"""From the outputs of a network and the labels to one sum of losses and one number of labels per task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]
Ragged = Tensor | Sequence[Tensor]


def task_sums(output: Ragged, y: Ragged, mask: Ragged | None, loss: Loss | Sequence[Loss]) -> tuple[Tensor, Tensor]:
    """Sum of the losses of every task over its labelled examples, and the number of these.

    Parameters
    ----------
    output : (T, B, ...) tensor or list of T tensors (B_t, ...)
    y : (T, B, ...) tensor or list of T tensors (B_t, ...)
    mask : (T, B) bool tensor, list of T bool tensors (B_t,) or None
    loss : callable or sequence of T callables
        From outputs (N, ...) and labels (N, ...) of N examples to one number per example.

    Returns
    -------
    (T,) tensor
        Sums; zero, with a gradient of zero, for a task without a labelled example.
    (T,) tensor
        Numbers of labelled examples, of the same type.
    """
    if isinstance(output, Tensor) and isinstance(y, Tensor) and isinstance(mask, Tensor | None) and callable(loss):
        return _stacked_sums(output, y, mask, loss)
    T = len(output)
    if len(y) != T:
        raise ValueError(f"y must have labels for the {T} tasks in the network's output; got {len(y)}")
    if mask is not None and len(mask) != T:
        raise ValueError(f"mask must have one entry for each of the {T} tasks; got {len(mask)}")
    losses = [loss] * T if callable(loss) else loss
    if len(losses) != T:
        raise ValueError(f"loss must be one callable or one for each of the {T} tasks; got {len(losses)}")
    sums, counts = [], []
    for t in range(T):
        if len(output[t]) != len(y[t]):
            raise ValueError(f"y of task {t} must have {len(output[t])} labels, as many as outputs; got {len(y[t])}")
        known = _known(y[t], None if mask is None else mask[t], f" of task {t}")
        values = _example_losses(output[t], y[t], known, losses[t], f" of task {t}")
        sums.append(values.sum())
        counts.append(values.new_full((), len(values)) if known is None else known.sum(dtype=values.dtype))
    return torch.stack(sums), torch.stack(counts).to(sums[0].dtype)


def _stacked_sums(output: Tensor, y: Tensor, mask: Tensor | None, loss: Loss) -> tuple[Tensor, Tensor]:
    """All tasks by one call of the loss, on the examples of all tasks behind one another."""
    shape = output.shape[:2]  # (T, B)
    if y.shape[:2] != shape:
        raise ValueError(f"y must have the tasks and examples of the output, {tuple(shape)}; got {tuple(y.shape)}")
    if mask is not None and mask.shape != shape:
        raise ValueError(f"mask must have the tasks and examples of y, {tuple(shape)}; got {tuple(mask.shape)}")
    y = y.flatten(0, 1)
    known = _known(y, None if mask is None else mask.flatten(), "")
    values = _example_losses(output.flatten(0, 1), y, known, loss, "").view(shape)
    if known is None:
        return values.sum(1), values.new_full(shape[:1], shape[1])
    return values.sum(1), known.view(shape).sum(1, dtype=values.dtype)


def _example_losses(output: Tensor, y: Tensor, known: Tensor | None, loss: Loss, where: str) -> Tensor:
    """Loss (N,) of every example, zero where ``known`` (N,) says that there is no label."""
    if known is not None:  # any label that the loss can be computed with
        y = y.where(known if y.ndim == 1 else known.view(-1, *[1] * (y.ndim - 1)), 0)
    if output.shape == (*y.shape, 1) and y.is_floating_point():
        output = output.squeeze(-1)  # else (N, 1) and (N,) would broadcast to (N, N)
    values = loss(output, y)
    if not isinstance(values, Tensor) or values.shape not in (y.shape, output.shape, y.shape[:1]):
        found = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(
            f"loss{where} must return one number per example, as with reduction='none', of shape {tuple(y.shape[:1])}; "
            f"got {found} from outputs {tuple(output.shape)} and labels {tuple(y.shape)}"
        )
    if values.dtype in (torch.float16, torch.bfloat16):
        values = values.float()  # sums of many
    if values.ndim > 1:
        values = values.flatten(1).mean(1)
    return values if known is None else values.where(known, 0.0)


def _known(y: Tensor, mask: Tensor | None, where: str) -> Tensor | None:
    """Which examples (N,) have a label; None if it is certain that all have."""
    if mask is not None and (mask.dtype != torch.bool or mask.shape != y.shape[:1]):
        expected = f"bool of shape {tuple(y.shape[:1])}"
        raise ValueError(f"mask{where} must be {expected}; got {mask.dtype} of shape {tuple(mask.shape)}")
    if not y.is_floating_point():
        return mask
    known = y == y  # all but NaN
    if y.ndim > 1:
        known = known.flatten(1).all(1)
    if mask is not None:
        known = mask & known
    # Without selections a small step is a fifth shorter; on another device, the answer would have to be waited for.
    return None if known.device.type == "cpu" and bool(known.all()) else known


def check_loss(loss: Any) -> None:
    """A callable, or a list or tuple of callables."""
    losses = loss if isinstance(loss, (list, tuple)) else [loss]
    if not losses or not all(map(callable, losses)):
        raise TypeError(f"loss must be a callable or a list of one per task; got {loss!r}")
