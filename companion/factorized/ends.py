"""The two ends between which factorised weights lie: nothing shared, and everything."""

from __future__ import annotations

from math import prod
from typing import Self

import torch
from torch import Tensor, nn

from companion.factorized._base import Chain, ChainSizes, FactorizedTensor
from companion.factorized.ranks import Ranks


class _PlainWeight(FactorizedTensor):
    """Weights that are stored as they are: no factors, no ranks to choose, nothing to compute."""

    weight: nn.Parameter

    @classmethod
    def _resolve_ranks(cls, ranks: Ranks | None, shape: tuple[int, ...]) -> tuple[int, ...]:
        return ()

    @torch.no_grad()
    def _scale_like_plain_layer(self, fan_in: int) -> None:
        """Uniform entries keep their own mean square, as those of :class:`torch.nn.Linear` do."""
        self.weight.div_(fan_in**0.5)

    def basis_cost(self) -> int:
        """Nothing."""
        return 0

    def compose_cost(self) -> int:
        """Nothing: the weights are there."""
        return 0


class Independent(_PlainWeight):
    """Separate weights for every task: single-task learning, T networks side by side.

    Arguments about ranks, tolerance and folding mean nothing to it.

    Parameters
    ----------
    weight : (T, D_1, ..., D_{N-1}) tensor
        Task axis first, as it is stored.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__((*weight.shape[1:], weight.shape[0]))
        self.weight = nn.Parameter(weight)

    @classmethod
    def _factorise(cls, W: Tensor, ranks: tuple[int, ...] | None, eps: float | None, rule: str, fold: bool) -> Self:
        return cls(W.movedim(-1, 0).contiguous().clone())

    @classmethod
    def _draw(
        cls, shape: tuple[int, ...], ranks: tuple[int, ...], generator: torch.Generator | None, fold: bool
    ) -> Self:
        return cls(uniform((shape[-1], *shape[:-1]), 1, generator))

    def basis(self) -> Tensor:
        """(T, D_1, ..., D_{N-1}) the weights themselves: every task is its own latent task."""
        return self.weight

    def task_factor(self) -> Tensor:
        """(T, T) identity."""
        return torch.eye(self.n_tasks, dtype=self.weight.dtype, device=self.weight.device)

    def compose(self) -> Tensor:
        """(D_1, ..., D_{N-1}, T) a view of the weights."""
        return self.weight.movedim(0, -1)

    @property
    def ranks(self) -> tuple[int, ...]:
        """The number of tasks."""
        return (self.n_tasks,)

    def _grow(self, code: Tensor) -> None:
        new = torch.tensordot(code, self.weight.detach(), 1)
        self.weight = nn.Parameter(torch.cat([self.weight.detach(), new[None]]))


class Tied(_PlainWeight):
    """One weight for all tasks: hard sharing.

    Of given weights it takes the mean over the tasks, the nearest in the square sense; arguments about ranks, tolerance
    and folding mean nothing to it.

    Parameters
    ----------
    weight : (D_1, ..., D_{N-1}) tensor
    n_tasks : int
    """

    def __init__(self, weight: Tensor, n_tasks: int) -> None:
        super().__init__((*weight.shape, n_tasks))
        self.weight = nn.Parameter(weight)

    @classmethod
    def _factorise(cls, W: Tensor, ranks: tuple[int, ...] | None, eps: float | None, rule: str, fold: bool) -> Self:
        return cls(W.mean(dim=-1), W.shape[-1])

    @classmethod
    def _draw(
        cls, shape: tuple[int, ...], ranks: tuple[int, ...], generator: torch.Generator | None, fold: bool
    ) -> Self:
        return cls(uniform(shape[:-1], 1, generator), shape[-1])

    def basis(self) -> Tensor:
        """(1, D_1, ..., D_{N-1}) the one weight."""
        return self.weight[None]

    def task_factor(self) -> Tensor:
        """(1, T) row of ones."""
        return self.weight.new_ones(1, self.n_tasks)

    def compose(self) -> Tensor:
        """(D_1, ..., D_{N-1}, T) the one weight seen T times, without a copy."""
        return self.weight.unsqueeze(-1).expand(self.shape)

    @property
    def ranks(self) -> tuple[int, ...]:
        """One."""
        return (1,)

    def chains(self) -> tuple[ChainSizes, ...]:
        """One: all of the weight is left."""
        O = self.shape[-2]
        return (ChainSizes("kernel and channels", O, O, taps=prod(self.shape[:-3]), middle=False),)

    def chain(self, sizes: ChainSizes) -> Chain:
        """The one weight, on the left."""
        return Chain(self.weight, None, None)

    def _grow(self, code: Tensor) -> None:
        if not torch.equal(code, torch.ones_like(code)):
            raise ValueError(
                f"tied weights are the same for every task: the code of a new one is 1; got {code.tolist()}"
            )


def uniform(shape: tuple[int, ...], fan_in: int, generator: torch.Generator | None) -> Tensor:
    """Uniform with variance ``1 / (3 fan_in)``, as :class:`torch.nn.Linear` begins."""
    if fan_in < 1:
        raise ValueError(f"fan_in must be at least 1; got {fan_in}")
    return (2 * torch.rand(shape, generator=generator) - 1) / fan_in**0.5
