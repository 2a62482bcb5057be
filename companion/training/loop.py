"""The training loop, in the open."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from companion.training._setup import Bar, HeldInterrupt, one_accelerator, prepared
from companion.training.evaluation import device_of, mode_of, total_sums
from companion.training.history import History
from companion.training.objective import Loss, check_loss, task_sums
from companion.training.optimizers import adam
from companion.training.run import Run
from companion.training.stream import Stream


def train(
    network: nn.Module,
    batches: Any,
    loss: Loss | Sequence[Loss],
    *,
    steps: int,
    optimizer: torch.optim.Optimizer | None = None,
    learning_rate: float | None = None,
    task_weights: Sequence[float] | Tensor | None = None,
    validation: Any = None,
    evaluate_every: int = 100,
    patience: int | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 1000,
    accelerator: Accelerator | None = None,
    progress: bool | None = None,
) -> History:
    r"""Minimise a weighted sum over T tasks of mean losses, by exactly so many optimizer steps.

    A step takes one batch and minimises

    .. math:: \sum_{t=1}^{T} \frac{a_t}{m_t} \sum_{i} \ell_t(f_t(x_{ti}), y_{ti}),

    where the inner sum runs over the :math:`m_t` examples of the batch that are labelled for task t; a task without one
    adds zero. With several processes, each takes a batch of its own, and the batch of the step is all of them together.

    Parameters
    ----------
    network : module
        Trained in place. Maps shared inputs (B, ...), stacked inputs (T, B, ...) or a list of T tensors (B_t, ...) to a
        (T, B, ...) tensor or a list of T tensors (B_t, ...).
    batches : DataLoader, TaskLoaders or list
        Gone through again and again. A batch is ``(x, y)`` or ``(x, y, mask)``: x as the network takes it; y
        (T, B, ...) or a list of T tensors (B_t, ...); mask bool, (T, B) or a list of T tensors (B_t,), True for a
        labelled example. An example whose label contains NaN is not labelled. See :func:`make_loader` and
        :class:`TaskLoaders`.
    loss : callable, or list of T callables
        From outputs (N, ...) and labels (N, ...) to one number per example, as torch's losses do with
        ``reduction="none"``; further axes are averaged. If outputs are (N, 1) and labels are floating and (N,), it is
        given outputs (N,). One callable for all tasks is called once for all, if outputs and labels are tensors.
    steps : int
        Budget of optimizer steps, those of an earlier run that is resumed included.
    optimizer : torch optimizer, optional
        Of parameters of the network; by default :func:`adam` of all.
    learning_rate : float, default 1e-3
        Of the default optimizer.
    task_weights : sequence of T floats, optional
        :math:`a_t`, >= 0; 1 by default.
    validation : as batches, optional
        Evaluated every ``evaluate_every`` steps and after the last one; at the end the network gets the weights with
        the smallest weighted sum of mean losses.
    evaluate_every : int, default 100
    patience : int, optional
        Stop after so many evaluations in a row that brought nothing better.
    checkpoint : path, optional
        File to write every ``checkpoint_every`` steps, at the end, and on Ctrl-C. **If it exists, the run goes on from
        it** as if it had never been interrupted, and returns at once if it was finished; torch's random states are set
        to those of the file. The file holds tensors and plain values, and no code in it is ever run:
        ``torch.load(checkpoint, weights_only=True)["network"]`` are the last weights, those of ``"best"`` the best.
    checkpoint_every : int, default 1000
    accelerator : accelerate.Accelerator, optional
        For mixed precision (bf16), or to choose the device, to which the network is moved. By default the network stays
        where it is; if several processes were launched, as by torchrun, they share the work in either case.
    progress : bool, optional
        Show a progress bar; by default only on a terminal.

    Returns
    -------
    History
        Losses of every task: in training, before each step, and in validation.

    Raises
    ------
    ValueError, TypeError
        Arguments out of range; a batch that lacks a task or whose parts do not fit together; a checkpoint that is cut
        off or belongs to another network, optimizer, order of the data or number of processes. Nothing has been changed
        if it is the checkpoint.
    KeyboardInterrupt
        On Ctrl-C: after the step that was under way, with a checkpoint, if there is one and one process; a second
        Ctrl-C acts at once.

    Notes
    -----
    On the CPU a resumed run takes the very steps of one that was not interrupted, if the only randomness is torch's,
    in this process. Random augmentations in worker processes begin anew.

    Examples
    --------
    >>> import torch
    >>> from companion.networks import HardSharing
    >>> from companion.training import SharedData, make_loader, train
    >>> X = torch.linspace(-1, 1, 60)[:, None]
    >>> Y = torch.cat([X**2, X**3], dim=1)
    >>> network = HardSharing(1, 8, 2, generator=torch.Generator().manual_seed(0))
    >>> batches = make_loader(SharedData(X, Y), batch_size=20)
    >>> history = train(network, batches, torch.nn.MSELoss(reduction="none"), steps=300, learning_rate=0.03)
    >>> history.training.shape
    torch.Size([300, 2])
    >>> bool((history.training[-1] < 0.1 * history.training[0]).all())
    True
    """
    counts = {"steps": steps, "evaluate_every": evaluate_every, "checkpoint_every": checkpoint_every}
    check_settings(
        loss, optimizer, learning_rate, validation, counts | ({} if patience is None else {"patience": patience})
    )
    path = None if checkpoint is None else Path(checkpoint)
    with one_accelerator(accelerator, network) as accelerator, mode_of(network, training=True):
        if optimizer is None:
            optimizer = adam(network.parameters(), 1e-3 if learning_rate is None else learning_rate)
        weights, n_tasks = check_weights(task_weights, loss, network)
        stream = Stream(batches, accelerator.process_index, accelerator.num_processes, device_of(network), n_tasks)
        run = Run(network, optimizer, stream, weights, validation is not None, accelerator)
        if path is not None and path.exists():
            run.load(path, steps)
        if run.step < steps and not run.history.stalled(patience):
            descend(run, loss, steps, validation, evaluate_every, patience, path, checkpoint_every, progress)
        run.restore_best()
    return run.history


def descend(
    run: Run,
    loss: Loss | Sequence[Loss],
    steps: int,
    validation: Any,
    evaluate_every: int,
    patience: int | None,
    checkpoint: Path | None,
    checkpoint_every: int,
    progress: bool | None,
) -> None:
    """Take the steps of a run that are missing; the arguments are those of :func:`train`."""
    accelerator, optimizer = run.accelerator, run.optimizer
    with (
        prepared(run.network, accelerator) as model,
        HeldInterrupt(checkpoint is not None and accelerator.num_processes == 1) as interrupt,
        Bar(run, steps, progress) as bar,
    ):
        for x, y, mask in run.stream.between(run.step, steps):
            sums, counts = task_sums(model(x), y, mask, loss)  # (T,) each, of this process
            all_sums, all_counts = run.over_processes(sums, counts)
            # Of P processes the gradients are averaged: P times the weights make a sum of it.
            weights = accelerator.num_processes * run.task_weights / all_counts.clamp(min=1)
            optimizer.zero_grad()
            accelerator.backward(sums @ weights)
            optimizer.step()
            losses = all_sums / all_counts  # (T,), NaN for a task without labels
            run.record(losses)
            bar.update(run.step, losses)

            last = run.step == steps
            if validation is not None and (last or run.step % evaluate_every == 0):
                run.judge(*total_sums(run.network, validation, loss, accelerator))
                last = last or run.history.stalled(patience)
            if checkpoint is not None and (last or interrupt.pending or run.step % checkpoint_every == 0):
                run.save(checkpoint)
            if interrupt.pending:
                raise KeyboardInterrupt(f"after {run.step} of {steps} steps; the same call goes on from {checkpoint}")
            if last:
                break
    optimizer.zero_grad()
    run.up_to_date()


# --- checks -----------------------------------------------------------------------------------------------------------


def check_settings(
    loss: Any,
    optimizer: torch.optim.Optimizer | None,
    learning_rate: float | None,
    validation: Any,
    counts: dict[str, int],
) -> None:
    """What can be wrong before anything is touched."""
    check_loss(loss)
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"{name} must be an integer of at least 1; got {count!r}")
    if optimizer is not None and learning_rate is not None:
        raise ValueError("learning_rate is that of the default optimizer; give either it or an optimizer, not both")
    if "patience" in counts and validation is None:
        raise ValueError(f"patience={counts['patience']} needs validation data to stop on; validation is None")


def check_weights(
    task_weights: Any, loss: Loss | Sequence[Loss], network: nn.Module
) -> tuple[Tensor | None, int | None]:
    """The weights (T,) as a tensor beside the network, and T, where weights or losses say it."""
    n_tasks = None if callable(loss) else len(loss)
    if task_weights is None:
        return None, n_tasks
    parameter = next(network.parameters())
    dtype = torch.promote_types(parameter.dtype, torch.float32)
    weights = torch.as_tensor(task_weights).detach().to(parameter.device, dtype)
    if weights.ndim != 1 or len(weights) == 0 or (n_tasks is not None and len(weights) != n_tasks):
        expected = "one number per task" if n_tasks is None else f"{n_tasks} numbers, one per task"
        raise ValueError(f"task_weights must be {expected}; got the shape {tuple(weights.shape)}")
    if not all(weight >= 0 and math.isfinite(weight) for weight in weights.tolist()):
        raise ValueError(f"task_weights must be finite and >= 0; got {weights.tolist()}")
    return weights, len(weights)
