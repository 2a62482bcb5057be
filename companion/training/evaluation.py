"""Losses of a whole data set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from companion.training.loaders import TaskLoaders, splittable
from companion.training.objective import Loss, check_loss, task_sums
from companion.training.stream import Stream


def evaluate(
    network: nn.Module, batches: Any, loss: Loss | Sequence[Loss], *, accelerator: Accelerator | None = None
) -> Tensor:
    """Mean loss of every task over the labelled examples of all batches, in evaluation mode and without gradients.

    Parameters
    ----------
    network : module
        Put back into the mode that it came in.
    batches, loss
        See :func:`train`. The order is that of epoch 0; with :class:`TaskLoaders`, every example counts once.
    accelerator : accelerate.Accelerator, optional
        Its mixed precision holds, and its processes divide the batches among them.

    Returns
    -------
    (T,) tensor
        On the device of the network; NaN for a task without a labelled example.
    """
    sums, counts = total_sums(network, batches, loss, accelerator)
    return sums / counts


def total_sums(
    network: nn.Module, batches: Any, loss: Loss | Sequence[Loss], accelerator: Accelerator | None
) -> tuple[Tensor, Tensor]:
    """Sum of the losses of every task over its labelled examples in all batches, and their number, both (T,)."""
    check_loss(loss)
    batches = TaskLoaders(batches.loaders, once=True) if isinstance(batches, TaskLoaders) else batches
    process, n_processes = 0, 1
    if accelerator is not None and splittable(batches):  # else every process goes through all of them
        process, n_processes = accelerator.process_index, accelerator.num_processes
    stream = Stream(batches, process, n_processes, device_of(network))
    totals = torch.zeros((), device=stream.device)
    state = stream.loader_state()
    with mode_of(network, training=False), torch.no_grad():
        for x, y, mask in stream.between(0, stream.steps_per_epoch):
            with nullcontext() if accelerator is None else accelerator.autocast():
                output = network(x)
            totals = totals + torch.stack(task_sums(output, y, mask, loss))  # (2, T)
    stream.set_loader_state(state)  # the same loader may be in use for training
    if accelerator is not None and n_processes > 1:
        totals = accelerator.reduce(totals, "sum")
    return totals[0], totals[1]


@contextmanager
def mode_of(network: nn.Module, training: bool) -> Iterator[None]:
    """Training or evaluation mode, and afterwards for every module the mode it had."""
    modes = {module: module.training for module in network.modules()}
    network.train(training)
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def device_of(network: nn.Module) -> torch.device:
    """The device of the first parameter."""
    parameter = next(network.parameters(), None)
    if parameter is None:
        raise ValueError(f"network must have parameters; {type(network).__name__} has none")
    return parameter.device
