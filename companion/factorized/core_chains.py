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

    def _left(self) -> Tensor | None:
        """(r_0, P, r) product of the cores but the last, None where there is only one."""
        product = None
        for core in self._before:
            if product is None:
                product = core.flatten(1, -2)
            else:
                step = product.flatten(0, 1) @ core.flatten(1)
                product = step.view(self._closing, -1, core.shape[-1])
        return product

    def basis(self) -> Tensor:
        """(K, D_1, ..., D_{N-1}) product of the shared cores, K = r_{N-1} r_0."""
        left, core = self._left(), self.core  # (r_0, P, r), (r_{N-1}, r, D...)
        product = core if left is None else left.unsqueeze(0) @ core.flatten(2).unsqueeze(1)
        return product.reshape(-1, *self.shape[:-1])  # from (r_{N-1}, r_0, ...)

    def task_factor(self) -> Tensor:
        """(K, T) task core, its two ranks flattened."""
        return self.S.flatten(0, 1)

    @property
    def _splits(self) -> bool:
        """Whether the outputs have a core of their own, so that inputs can go through the others first."""
        return self._n_before > 0 and self.core.ndim == 3

    def chain(self) -> Chain:
        """Product of the cores before the last, then the last one combined for every task."""
        left = self._left()
        if left is None or not self._splits:
            return Chain(None, self.compose().movedim(-1, 0), None)
        return Chain(left.movedim(0, 1).reshape(*self.shape[:-2], -1), self._task_cores(), None)

    def _task_cores(self) -> Tensor:
        """(T, r_0 r, D) the last shared core combined for every task."""
        codes = self.S.permute(2, 1, 0).reshape(-1, self.core.shape[0])  # (T r_0, r_{N-1})
        return (codes @ self.core.flatten(1)).view(self.n_tasks, self._closing * self.core.shape[1], -1)

    def squared_norm(self) -> Tensor:
        """Squared Frobenius norm of the composed weights, from the factors."""
        left = self._left()
        if left is None:
            return super().squared_norm()
        left, cores = left.movedim(0, 1).flatten(1), self._task_cores()  # (P, r_0 r), (T, r_0 r, D)
        return (cores * (left.T @ left @ cores)).sum()

    def chain_sizes(self) -> ChainSizes:
        """Rank behind the left map, or the whole weight where nothing can be split off."""
        if not self._splits:
            return ChainSizes(self.shape[-3], self.shape[-2], None, False)
        return ChainSizes(self._closing * self.core.shape[1], self.shape[-2], "kernel and channels", False)

    def chain_cost(self) -> int:
        """Product of the other cores, and the last core once per task."""
        if not self._splits:
            return self.compose_cost()
        return self._left_cost() + self.n_tasks * self._closing * self.core.numel()

    def basis_cost(self) -> int:
        """One product per core."""
        last = self.core.numel() * self._closing * prod(self.shape[:-1]) // prod(self.core.shape[2:])
        return self._left_cost() + (last if self._n_before else 0)

    def _left_cost(self) -> int:
        cost, rows = 0, self._closing
        for n, core in enumerate(self._before):
            cost += rows * core.numel() if n else 0
            rows *= prod(core.shape[1:-1])
        return cost

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
