"""Tensor train and tensor ring: a chain of cores, each meeting only its neighbours."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from math import prod
from typing import Self

import torch
from torch import Tensor, nn

from companion.factorized._base import (
    Chain,
    ChainSizes,
    FactorizedTensor,
    orthonormal,
    unit_codes,
)
from companion.factorized.ranks import Ranks, resolve_ranks
from companion.tensors import tensor_ring, tt_svd


class _CoreChain(FactorizedTensor):
    r"""Cores :math:`G^{(n)}` (r_{n-1}, D_n, r_n) around a ring whose last core is the task's; a train has r_0 = 1.

    .. math:: W_{i_1 \dots i_{N-1} t} = \operatorname{tr}\bigl(G^{(1)}_{\cdot i_1 \cdot} \cdots
        G^{(N-1)}_{\cdot i_{N-1} \cdot} G^{(N)}_{\cdot t \cdot}\bigr)

    Parameters
    ----------
    cores : sequence of tensors (r, D..., r')
        Shared cores from left to right; one core may hold several neighbouring modes, where the rank between them
        would be full.
    task_core : (r_{N-1}, T, r_0) tensor
    """

    def __init__(self, cores: Sequence[Tensor], task_core: Tensor) -> None:
        super().__init__((*(size for core in cores for size in core.shape[1:-1]), task_core.shape[1]))
        if [core.shape[0] for core in (*cores[1:], task_core)] != [core.shape[-1] for core in cores]:
            shapes = [tuple(core.shape) for core in (*cores, task_core)]
            raise ValueError(f"neighbouring cores must agree in the rank between them; got shapes {shapes}")
        if task_core.shape[2] != cores[0].shape[0]:
            raise ValueError(
                f"the task core must close the ring with rank {cores[0].shape[0]}; got {tuple(task_core.shape)}"
            )
        # The core next to the tasks has its latent axis first: a core per task is then one matrix product.
        self.core = nn.Parameter(cores[-1].movedim(-1, 0).contiguous())
        for n, core in enumerate(cores[:-1], start=1):
            self.register_parameter(f"core{n}", nn.Parameter(core.contiguous()))
        self.S = nn.Parameter(task_core.transpose(1, 2).contiguous())
        self._n_before = len(cores) - 1

    @property
    def cores(self) -> tuple[Tensor, ...]:
        """Shared cores (r, D..., r') from left to right."""
        return (*self._before, self.core.movedim(0, -1))

    @property
    def _before(self) -> tuple[Tensor, ...]:
        return tuple(getattr(self, f"core{n}") for n in range(1, self._n_before + 1))

    @property
    def _closing(self) -> int:
        return self.S.shape[1]

    def basis(self) -> Tensor:
        """(K, D_1, ..., D_{N-1}) product of the shared cores, K = r_{N-1} r_0."""
        basis = self._after(self._before)
        return basis.reshape(-1, *self.shape[:-1])  # from (r_{N-1}, r_0, ...)

    def _after(self, cores: Sequence[Tensor]) -> Tensor:
        """(r_{N-1}, r, ...) the last shared core, multiplied by cores (r, ..., r_{N-2}) that come before it."""
        return _product(cores).unsqueeze(0) @ self.core.flatten(2).unsqueeze(1) if cores else self.core

    def task_factor(self) -> Tensor:
        """(K, T) task core, its two ranks flattened."""
        return self.S.flatten(0, 1)

    def chains(self) -> tuple[ChainSizes, ...]:
        """Up to two: all shared cores but the last on the left, or that of the first kernel axis only."""
        found: list[ChainSizes] = []
        if not self._n_before:
            return ()
        T, (*_, C, M), before = self.n_tasks, self.shape[:-1], self._before
        if self.core.ndim == 3:  # the outputs have a core of their own
            cost = _product_cost(before) + T * self._closing * self.core.numel()
            inner = self._closing * self.core.shape[1]
            found.append(ChainSizes("kernel and channels", inner, M, cost, taps=prod(self.shape[:-3])))
        # So has the first kernel axis. For a single channel whole kernels are faster, for torch has code for them.
        if len(self.shape) > 3 and before[0].ndim == 3 and C > 1:
            r = before[0].shape[-1]
            cost = self._closing * r * T * self.core.shape[0] * prod(self.shape[1:-1])
            if before[1:]:
                cost += _product_cost(before[1:]) + r * self.core.numel() * _n_entries(before[1:])
            found.append(ChainSizes("first kernel axis", self._closing * r * C, M, cost, taps=self.shape[0]))
        return tuple(found)

    def chain(self, sizes: ChainSizes) -> Chain:
        """Product of the cores on the left; that of the others, combined for every task."""
        if sizes.left == "kernel and channels":
            left = _product(self._before).movedim(0, 1).reshape(*self.shape[:-2], -1)  # (*kernel, C, r_0 r)
            return Chain(left, self._task_cores(self.core), None)
        first, *others = self._before
        cores = self._task_cores(self._after(others))
        middle = cores.view(self.n_tasks, -1, *self.shape[1:-1])  # (T, r_0 r_1, ..., C, M)
        middle = middle.movedim(1, -3).flatten(-3, -2).unsqueeze(1)  # (T, 1, ..., r_0 r_1 C, M)
        return Chain(first.movedim(0, 1).flatten(1), middle, None)

    def _task_cores(self, core: Tensor) -> Tensor:
        """(T, r_0 r, D) a core (r_{N-1}, r, D...) combined for every task."""
        codes = self.S.permute(2, 1, 0).reshape(-1, core.shape[0])  # (T r_0, r_{N-1})
        return (codes @ core.flatten(1)).view(self.n_tasks, self._closing * core.shape[1], -1)

    def squared_norm(self) -> Tensor:
        """Squared Frobenius norm of the composed weights, from the factors."""
        if not self._n_before:
            return super().squared_norm()
        left = _product(self._before).movedim(0, 1).flatten(1)  # (P, r_0 r)
        cores = self._task_cores(self.core)  # (T, r_0 r, D)
        return (cores * (left.T @ left @ cores)).sum()

    def basis_cost(self) -> int:
        """One product per core."""
        if not self._n_before:
            return 0
        return _product_cost(self._before) + self._closing * self.core.numel() * _n_entries(self._before)

    def _bonds(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Ranks r_0, ..., r_{N-1}, and the positions of those inside a core."""
        ranks, inside = [self._closing], []
        for core in self.cores:
            r, *D, r_next = core.shape
            for n in range(1, len(D)):
                inside.append(len(ranks))
                ranks.append(min(r * prod(D[:n]), prod(D[n:]) * r_next))
            ranks.append(r_next)
        return tuple(ranks), tuple(inside)

    def _grow(self, code: Tensor) -> None:
        column = code.view(self.S.shape[0], self.S.shape[1], 1)
        self.S = nn.Parameter(torch.cat([self.S.detach(), column], dim=2))

    @classmethod
    def _draw(
        cls, shape: tuple[int, ...], ranks: tuple[int, ...], generator: torch.Generator | None, fold: bool
    ) -> Self:
        """Draw cores of ranks r_0, ..., r_{N-1}: orthonormal ones, a normal one at the end, codes of length one."""
        *D, T = shape
        sizes: list[tuple[int, ...]] = list(zip(ranks, D, ranks[1:], strict=False))
        if fold:
            sizes = fold_shapes(sizes)
        cores = [orthonormal(prod(size[:-1]), size[-1], generator).view(size) for size in sizes[:-1]]
        cores.append(torch.randn(sizes[-1], generator=generator))
        codes = unit_codes(ranks[-1] * ranks[0], T, generator).view(ranks[-1], ranks[0], T)
        return cls(cores, codes.transpose(1, 2))


class TensorTrain(_CoreChain):
    """Tensor train of the weights of T tasks (Yang & Hospedales 2017): one core per mode, the last one the tasks'.

    It shares structure between tasks and within each of them, with fewer parameters than a Tucker core of the same
    ranks. The order of the modes matters: inputs first, then outputs, then tasks.

    There are N - 1 ranks; each is at most the product of the sizes on either side of it. Given weights are factorised
    by the tensor train SVD from left to right, which leaves the singular values in the task core; drawn cores are
    orthonormal, a normal one before the last, with codes of length one.
    """

    @classmethod
    def _resolve_ranks(cls, ranks: Ranks | None, shape: tuple[int, ...]) -> tuple[int, ...]:
        return resolve_ranks(ranks, _largest_train(shape))

    @classmethod
    def _factorise(cls, W: Tensor, ranks: tuple[int, ...] | None, eps: float | None, rule: str, fold: bool) -> Self:
        *cores, task_core = tt_svd(W, ranks=ranks, eps=eps, rule=rule)
        return cls(fold_cores(cores) if fold else cores, task_core)

    @classmethod
    def _draw(
        cls, shape: tuple[int, ...], ranks: tuple[int, ...], generator: torch.Generator | None, fold: bool
    ) -> Self:
        return super()._draw(shape, (1, *ranks), generator, fold)

    @property
    def ranks(self) -> tuple[int, ...]:
        """(K_1, ..., K_{N-1})."""
        return self._bonds()[0][1:]

    @property
    def folded(self) -> tuple[int, ...]:
        """Positions of ranks inside a core that holds several modes."""
        return tuple(n - 1 for n in self._bonds()[1])


class TensorRing(_CoreChain):
    """Tensor ring of the weights of T tasks: a train whose ends are joined, so that no mode is at an end.

    A train is a ring that closes with rank 1. There are N ranks; the first closes the ring. Given weights are
    factorised by the tensor ring SVD, beginning at the largest mode but the tasks'; the two ranks of that mode multiply
    to at most its size. Cores are drawn as those of a train.
    """

    @classmethod
    def _resolve_ranks(cls, ranks: Ranks | None, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Ranks (r_0, ..., r_{N-1}); a tuple may split the rank that the ring begins with in its own way."""
        if not isinstance(ranks, Sequence):
            return resolve_ranks(ranks, _largest_ring(shape))
        return resolve_ranks(ranks, [min(prod(shape) // size for size in shape)] * len(shape))

    @classmethod
    def _factorise(cls, W: Tensor, ranks: tuple[int, ...] | None, eps: float | None, rule: str, fold: bool) -> Self:
        *cores, task_core = tensor_ring(W, ranks=ranks, eps=eps, rule=rule, start=_widest(W.shape))
        return cls(fold_cores(cores) if fold else cores, task_core)

    @property
    def ranks(self) -> tuple[int, ...]:
        """(r_0, ..., r_{N-1})."""
        return self._bonds()[0]

    @property
    def folded(self) -> tuple[int, ...]:
        """Positions of ranks inside a core that holds several modes."""
        return self._bonds()[1]


def fold_cores(cores: Sequence[Tensor]) -> list[Tensor]:
    """Multiply neighbouring cores wherever the rank between them is full, which it restricts nothing."""
    cores = list(cores)
    while (n := _full_bond([tuple(core.shape) for core in cores])) is not None:
        cores[n : n + 2] = [torch.tensordot(cores[n], cores[n + 1], 1)]
    return cores


def fold_shapes(sizes: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Shapes that :func:`fold_cores` would leave."""
    sizes = list(sizes)
    while (n := _full_bond(sizes)) is not None:
        sizes[n : n + 2] = [(*sizes[n][:-1], *sizes[n + 1][1:])]
    return sizes


def _product(cores: Sequence[Tensor]) -> Tensor:
    """(r, P, r') product of neighbouring cores."""
    product = cores[0].flatten(1, -2)
    for core in cores[1:]:
        step = product.flatten(0, 1) @ core.flatten(1)
        product = step.view(product.shape[0], -1, core.shape[-1])
    return product


def _n_entries(cores: Sequence[Tensor]) -> int:
    """P, product of the sizes of all modes in some cores."""
    return prod(prod(core.shape[1:-1]) for core in cores)


def _product_cost(cores: Sequence[Tensor]) -> int:
    """Multiply-adds of :func:`_product`."""
    rows, cost = prod(cores[0].shape[:-1]), 0
    for core in cores[1:]:
        cost += rows * core.numel()
        rows *= prod(core.shape[1:-1])
    return cost


def _full_bond(sizes: Sequence[tuple[int, ...]]) -> int | None:
    for n, (left, right) in enumerate(itertools.pairwise(sizes)):
        if left[-1] >= min(prod(left[:-1]), prod(right[1:])):
            return n
    return None


def _largest_train(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(min(prod(shape[:n]), prod(shape[n:])) for n in range(1, len(shape)))


def _widest(shape: Sequence[int]) -> int:
    return max(range(len(shape) - 1), key=lambda n: shape[n])


def _largest_ring(shape: Sequence[int]) -> tuple[int, ...]:
    """Ranks of an exact ring that begins at the widest mode, split as evenly as its size divides."""
    start, N = _widest(shape), len(shape)
    D = [*shape[start:], *shape[:start]]
    whole = min(D[0], prod(D[1:]))
    first = max(r for r in range(1, math.isqrt(whole) + 1) if whole % r == 0)
    ranks = [first, whole // first]
    for n in range(1, N - 1):
        ranks.append(min(ranks[-1] * D[n], prod(D[n + 1 :]) * first))
    return tuple(ranks[(n - start) % N] for n in range(N))
