"""The batches of one process, step after step, from any step on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from companion.training import loaders
from companion.training.objective import Ragged


class Batch(NamedTuple):
    """Inputs (B, ...), (T, B, ...) or a list of T; labels and mask with the task axis first, or lists of T."""

    x: Ragged
    y: Ragged
    mask: Ragged | None


class Stream:
    """Batches of one of P processes: of every P batches, in the order of the loader, each process takes one.

    Where the last group of an epoch is not full, a process without a batch of its own takes part with another's, all of
    whose labels count as missing.

    Parameters
    ----------
    batches : loader with a length
    process, n_processes : int
        Number of this process, and P.
    device : torch.device
        Where the batches go.
    n_tasks : int, optional
        T, if it is known before the first batch.
    """

    def __init__(
        self, batches: Any, process: int, n_processes: int, device: torch.device, n_tasks: int | None = None
    ) -> None:
        self.batches, self.process, self.n_processes = batches, process, n_processes
        self.device, self.n_tasks = device, n_tasks
        self.length = loaders.n_batches(batches)
        if self.length == 0:
            raise ValueError("batches must hold at least one batch; got none")
        if n_processes > 1 and not loaders.splittable(batches):
            raise ValueError(
                "batches must come in the same order in every process: use make_loader, a DataLoader whose "
                f"batch_sampler is a BatchOrder, TaskLoaders of such, or a list; got {type(batches).__name__}"
            )
        self.steps_per_epoch = -(-self.length // n_processes)
        self._generators = [_apart(), *loaders.generators(batches)]
        self.epoch_start = self.loader_state()

    def random_state(self) -> list[Tensor]:
        """States of all generators: those of torch, and those that the loader draws from."""
        states = [torch.get_rng_state()]
        if self.device.type != "cpu":
            module, which = _device_module(self.device)
            states.append(module.get_rng_state(*which))
        return states + self.loader_state()

    def go_on(self, random_state: list[Tensor], epoch_start: list[Tensor]) -> None:
        """Set all generators to what they were, and remember what the loader's were when the epoch began."""
        rest = iter(random_state)
        torch.set_rng_state(next(rest))
        if self.device.type != "cpu":
            module, which = _device_module(self.device)
            module.set_rng_state(next(rest), *which)
        self.set_loader_state(list(rest))
        self.epoch_start = epoch_start

    def between(self, first: int, last: int) -> Iterator[Batch]:
        """The batches of the steps first, first + 1, ..., last - 1."""
        step = first
        while step < last:
            epoch, position = divmod(step, self.steps_per_epoch)
            for batch in islice(self._epoch(epoch, position), last - step):
                yield batch
                step += 1

    def _epoch(self, epoch: int, position: int) -> Iterator[Batch]:
        """The rest of an epoch."""
        P, split = self.n_processes, loaders.splittable(self.batches)
        steps = range(position if split else 0, self.steps_per_epoch)
        own = [P * step + self.process < self.length for step in steps]
        numbers = [P * step + self.process * there for step, there in zip(steps, own, strict=True)]
        now = self.loader_state()
        if position == 0:
            self.epoch_start = now
        self.set_loader_state(self.epoch_start)
        with self._loader_draws():
            stream = loaders.pick(self.batches, epoch, numbers)
        if not split:
            stream = self._apart_from_the_network(stream)  # so that it can be repeated without the network
            for _ in range(position):
                next(stream)
        elif position > 0:
            self.set_loader_state(now)
        for batch, there in zip(stream, own[position - steps.start :], strict=True):
            yield self._check(unpack(batch, self.device), there)

    def _apart_from_the_network(self, stream: Iterator[Any]) -> Iterator[Any]:
        while True:
            with self._loader_draws():
                try:
                    batch = next(stream)
                except StopIteration:
                    return
            yield batch

    @contextmanager
    def _loader_draws(self) -> Iterator[None]:
        """What is drawn from torch's default generator meanwhile comes from one of the loader's own."""
        default = torch.get_rng_state()
        torch.set_rng_state(self._generators[0].get_state())
        try:
            yield
        finally:
            self._generators[0].set_state(torch.get_rng_state())
            torch.set_rng_state(default)

    def loader_state(self) -> list[Tensor]:
        """States of the generators that the loader draws from."""
        return [generator.get_state() for generator in self._generators]

    def set_loader_state(self, states: list[Tensor]) -> None:
        """The inverse of :meth:`loader_state`."""
        for generator, state in zip(self._generators, states, strict=True):
            generator.set_state(state)

    def _check(self, batch: Batch, there: bool) -> Batch:
        """The batch with as many tasks as before; without any labels if it is another process's."""
        if self.n_tasks is None:
            self.n_tasks = len(batch.y)
        if len(batch.y) != self.n_tasks:
            raise ValueError(f"every batch must have labels for {self.n_tasks} tasks; got {len(batch.y)}")
        if there:
            return batch
        if isinstance(batch.y, Tensor):
            return batch._replace(mask=torch.zeros(batch.y.shape[:2], dtype=torch.bool, device=self.device))
        return batch._replace(mask=[torch.zeros(len(y), dtype=torch.bool, device=self.device) for y in batch.y])


def unpack(batch: Any, device: torch.device) -> Batch:
    """A batch on the device, with lists for lists and tuples.

    Raises
    ------
    TypeError, ValueError
        Something else than ``(x, y)`` or ``(x, y, mask)``, each a tensor or a list of tensors; other tasks in x and y.
    """
    if not isinstance(batch, (tuple, list)) or len(batch) not in (2, 3):
        raise TypeError(f"a batch must be (x, y) or (x, y, mask); got {type(batch).__name__}")
    x, y = _move(batch[0], device, "x"), _move(batch[1], device, "y")
    mask = None if len(batch) == 2 or batch[2] is None else _move(batch[2], device, "mask")
    if isinstance(x, list) and len(x) != len(y):
        raise ValueError(f"a batch must have inputs and labels for the same tasks; got {len(x)} and {len(y)}")
    return Batch(x, y, mask)


def _move(values: Any, device: torch.device, name: str) -> Tensor | list[Tensor]:
    if isinstance(values, Tensor):
        return values if values.device == device else values.to(device, non_blocking=True)
    if isinstance(values, (list, tuple)) and values and all(isinstance(part, Tensor) for part in values):
        return [part.to(device, non_blocking=True) for part in values]
    raise TypeError(f"{name} of a batch must be a tensor or a list of tensors; got {type(values).__name__}")


def _apart() -> torch.Generator:
    """A generator with another sequence than torch's default one, yet determined by its state."""
    digest = hashlib.sha256(torch.get_rng_state().numpy().tobytes()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _device_module(device: torch.device) -> tuple[Any, tuple[torch.device, ...]]:
    """The part of torch that knows the device, and how to name the device to it: not at all where there is but one."""
    module = getattr(torch, device.type)
    return module, (device,) if module.device_count() > 1 else ()
