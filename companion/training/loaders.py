"""Batches in an order that depends on a seed and the number of the epoch only, so that any of them can be found again.

This is what lets a run go on in the middle of an epoch, and several processes divide the batches among them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from companion.training.data import TaskData


class BatchOrder(Sampler):
    """Which examples make each batch; the ``batch_sampler`` of a ``torch.utils.data.DataLoader``.

    Parameters
    ----------
    n_examples, batch_size : int
        n and B, at least 1.
    seed : int, default 0
        With the number of the epoch, it determines the order.
    shuffle : bool, default True
        False: 0, 1, 2, ... in every epoch.
    drop_last : bool, default False
        Leave out the last batch where it has fewer than B examples.
    """

    def __init__(
        self, n_examples: int, batch_size: int, *, seed: int = 0, shuffle: bool = True, drop_last: bool = False
    ) -> None:
        for name, size in {"n_examples": n_examples, "batch_size": batch_size}.items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1; got {size}")
        if seed < 0:
            raise ValueError(f"seed must be at least 0; got {seed}")
        if drop_last and n_examples < batch_size:
            raise ValueError(f"drop_last leaves no batch: batch_size is {batch_size}, with {n_examples} examples")
        self.n_examples, self.batch_size, self.seed = n_examples, batch_size, seed
        self.shuffle, self.drop_last = shuffle, drop_last
        self.set_epoch(0)

    def set_epoch(self, epoch: int, numbers: Sequence[int] | None = None) -> None:
        """Choose the epoch that the next iteration goes through, and of its batches those with these numbers only."""
        self._epoch, self._numbers = epoch, range(len(self)) if numbers is None else numbers

    def __len__(self) -> int:
        """Batches in an epoch."""
        whole, rest = divmod(self.n_examples, self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        order = np.arange(self.n_examples)
        if self.shuffle:
            order = np.random.default_rng([self.seed, self._epoch]).permutation(self.n_examples)
        size = self.batch_size
        return map(lambda k: order[k * size : (k + 1) * size], self._numbers)

    def description(self) -> dict[str, Any]:
        """All that the order depends on."""
        names = ("n_examples", "batch_size", "seed", "shuffle", "drop_last")
        return {name: getattr(self, name) for name in names}


def make_loader(
    data: Dataset, batch_size: int, *, seed: int = 0, shuffle: bool = True, drop_last: bool = False
) -> DataLoader:
    """A loader for data that make a whole batch at once, such as :class:`SharedData`.

    It is ``DataLoader(data, batch_sampler=BatchOrder(...))``, which can also be written out: to have worker processes,
    or another ``collate_fn`` for data that return one example at a time. :func:`train` chooses the epochs; a loop of
    your own calls ``loader.batch_sampler.set_epoch(epoch)`` before each, or goes through epoch 0 every time.

    Parameters
    ----------
    data : dataset with ``__len__`` and ``__getitems__(indices)``
        The latter returns a batch, ``(x, y)`` or ``(x, y, mask)``. A ``torch.utils.data.Subset`` of such data will do.
    batch_size : int
        B, at least 1.
    seed, shuffle, drop_last
        See :class:`BatchOrder`.

    Returns
    -------
    DataLoader
    """
    if not callable(getattr(data, "__getitems__", None)):
        raise TypeError(f"data must have __getitems__, which returns the batch of some indices; got {type(data)}")
    order = BatchOrder(len(data), batch_size, seed=seed, shuffle=shuffle, drop_last=drop_last)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(seed)  # else every pass would draw from torch's default generator
    return DataLoader(data, batch_sampler=order, collate_fn=_unchanged, generator=generator)


class TaskLoaders:
    """One loader per task: a step takes one batch from each.

    An epoch is as long as the longest loader; the shorter ones start again, in the order of their next epoch. A batch
    is a list of T inputs, a list of T labels and, if any loader gives one, a list of T masks.

    Parameters
    ----------
    loaders : sequence of T loaders
        Each with a length, giving ``(x_t, y_t)`` or ``(x_t, y_t, mask_t)``.
    once : bool, default False
        The labels of a loader that has started again within an epoch count as missing, so that every example counts
        once; :func:`evaluate` does this by itself.
    """

    def __init__(self, loaders: Sequence[Any], *, once: bool = False) -> None:
        if len(loaders) == 0:
            raise ValueError("loaders must hold one loader per task; got none")
        for t, loader in enumerate(loaders):
            if not isinstance(loader, Iterable) or n_batches(loader, f"loader of task {t}") == 0:
                raise ValueError(f"the loader of task {t} must have at least one batch; got none")
        self.loaders, self.once = tuple(loaders), once
        self._epoch = 0

    @classmethod
    def from_data(
        cls, data: Sequence[Sequence[Any]], batch_size: int, *, seed: int = 0, shuffle: bool = True
    ) -> TaskLoaders:
        """Loaders for ragged data in memory.

        Parameters
        ----------
        data : sequence of T pairs ``(X_t, y_t)`` or triples ``(X_t, y_t, mask_t)``
            See :class:`TaskData`; also :class:`companion.Tasks`.
        batch_size : int
            B, of every task.
        seed : int, default 0
            Each task gets a seed of its own from it.
        shuffle : bool, default True

        Returns
        -------
        TaskLoaders
        """
        loaders = []
        for t, (part, own) in enumerate(zip(data, np.random.SeedSequence(seed).generate_state(len(data)), strict=True)):
            try:
                examples = TaskData(*part)
            except ValueError as error:
                raise ValueError(f"data of task {t}: {error}") from error
            loaders.append(make_loader(examples, batch_size, seed=int(own), shuffle=shuffle))
        return cls(loaders)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return max(map(len, self.loaders))

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration goes through."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[tuple[list, ...]]:
        return self.pick(self._epoch, range(len(self)))

    def pick(self, epoch: int, numbers: Sequence[int]) -> Iterator[tuple[list, ...]]:
        """The batches with these increasing numbers of an epoch."""
        parts = zip(*(self._part(loader, epoch, numbers) for loader in self.loaders), strict=True)
        return map(self._join, numbers, parts)

    def _part(self, loader: Any, epoch: int, numbers: Sequence[int]) -> Iterator[Any]:
        """One task's share: a loader of length L has made L batches of this epoch when it starts again."""
        length = len(loader)
        passes = -(-len(self) // length)
        groups = [(p, [k % length for k in group]) for p, group in groupby(numbers, key=lambda k: k // length)]
        first = [pick(loader, epoch * passes + p, part) for p, part in groups[:1]]
        return chain(*first, chain.from_iterable(pick(loader, epoch * passes + p, part) for p, part in groups[1:]))

    def _join(self, number: int, parts: tuple[Any, ...]) -> tuple[list, ...]:
        """The batches of the tasks as one batch of lists."""
        if not all(map(_is_batch, parts)):
            wrong = next(t for t, part in enumerate(parts) if not _is_batch(part))
            raise TypeError(f"the loader of task {wrong} must give (x, y) or (x, y, mask); got {type(parts[wrong])}")
        again = [self.once and number >= len(loader) for loader in self.loaders]
        x, y = [part[0] for part in parts], [part[1] for part in parts]
        if not any(again) and all(len(part) == 2 for part in parts):
            return x, y
        masks = [part[2] if len(part) == 3 else torch.ones(len(part[1]), dtype=torch.bool) for part in parts]
        return x, y, [mask & (not repeated) for mask, repeated in zip(masks, again, strict=True)]


def _is_batch(part: Any) -> bool:
    return isinstance(part, (tuple, list)) and len(part) in (2, 3)


def _unchanged(batch: Any) -> Any:
    return batch


# --- any batches at all -----------------------------------------------------------------------------------------------


def n_batches(batches: Any, name: str = "batches") -> int:
    """The number of batches in an epoch."""
    try:
        return len(batches)
    except TypeError as error:
        raise TypeError(
            f"{name} must have a length, the number of its batches; got {type(batches).__name__}"
        ) from error


def batch_order(batches: Any) -> BatchOrder | None:
    """The order of a loader that has one of ours."""
    order = getattr(batches, "batch_sampler", None)
    return order if isinstance(order, BatchOrder) else None


def splittable(batches: Any) -> bool:
    """Whether any batch of any epoch can be had without the ones before it."""
    if isinstance(batches, TaskLoaders):
        return all(map(splittable, batches.loaders))
    return isinstance(batches, Sequence) or batch_order(batches) is not None


def pick(batches: Any, epoch: int, numbers: Sequence[int]) -> Iterator[Any]:
    """The batches with these increasing numbers of an epoch, or as many from the start if the loader is not splittable.

    The loader starts at once, not with the first batch: starting may draw random numbers.
    """
    if isinstance(batches, TaskLoaders):
        return batches.pick(epoch, numbers)
    if isinstance(batches, Sequence):
        return map(batches.__getitem__, numbers)
    if (order := batch_order(batches)) is not None:
        order.set_epoch(epoch, numbers)
        stream = iter(batches)  # takes the order as it is now
        order.set_epoch(epoch)
        return stream
    return _first(iter(batches), len(numbers))


def _first(stream: Iterator[Any], n: int) -> Iterator[Any]:
    """The first n batches, which there must be."""
    for given in range(n):
        try:
            batch = next(stream)
        except StopIteration:
            raise ValueError(f"a loader must give as many batches as its length says, {n}; got {given}") from None
        yield batch


def generators(batches: Any) -> list[torch.Generator]:
    """The random generators that a loader draws its order from, each once."""
    if isinstance(batches, TaskLoaders):
        found = [generator for loader in batches.loaders for generator in generators(loader)]
    else:
        sampler = getattr(batches, "batch_sampler", None)
        parts = (batches, getattr(batches, "sampler", None), sampler, getattr(sampler, "sampler", None))
        found = [g for part in parts if isinstance(g := getattr(part, "generator", None), torch.Generator)]
    return list({id(generator): generator for generator in found}.values())


def description(batches: Any) -> Any:
    """What the order of the batches depends on, as far as it can be told, in plain values."""
    if isinstance(batches, TaskLoaders):
        return [description(loader) for loader in batches.loaders]
    order = batch_order(batches)
    return {"n_batches": len(batches)} if order is None else order.description()
