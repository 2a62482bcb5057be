"""Tucker factors: one basis per mode, a core that says how they combine."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Self

import torch
from torch import Tensor, nn

from companion.factorized._base import (
    Chain,
    ChainSizes,
    FactorizedTensor,
    Takes,
    orthonormal,
    unit_codes,
)
from companion.factorized.ranks import Ranks, resolve_ranks
from companion.tensors import hosvd


class Tucker(FactorizedTensor):
    r"""Tucker factorisation of the weights of T tasks (Yang & Hospedales 2017).

    .. math:: W_{i_1 \dots i_{N-1} t} = \sum_{k_1 \dots k_N}
        C_{k_1 \dots k_N} U^{(1)}_{i_1 k_1} \cdots U^{(N-1)}_{i_{N-1} k_{N-1}} S_{k_N t}

    There are N ranks, that of the task mode last; a rank is at most the size of its mode and at most the product of the
    other sizes. Given weights are factorised by the higher-order SVD, which leaves the singular values in the core;
    drawn factors are a normal core, orthonormal bases and codes of length one.

    Parameters
    ----------
    core : (K_N, K_1, ..., K_{N-1}) tensor
        Core C, its task mode first.
    factors : sequence of N - 1 tensors (D_n, K_n) or None
        Bases of the modes but the last; None stands for the identity, of a factor that went into the core.
    S : (K_N, T) tensor
        Transpose of the last basis.
    """

    def __init__(self, core: Tensor, factors: Sequence[Tensor | None], S: Tensor) -> None:
        D = [size if U is None else U.shape[0] for U, size in zip(factors, core.shape[1:], strict=True)]
        super().__init__((*D, S.shape[1]))
        self.core = nn.Parameter(core)
        for n, U in enumerate(factors, start=1):
            self.register_parameter(f"U{n}", None if U is None else nn.Parameter(U))
        self.S = nn.Parameter(S)

    @property
    def factors(self) -> tuple[Tensor | None, ...]:
        """U^(1), ..., U^(N-1); None where one was folded into the core."""
        return tuple(getattr(self, f"U{n}") for n in range(1, len(self.shape)))

    @classmethod
    def _resolve_ranks(cls, ranks: Ranks | None, shape: tuple[int, ...]) -> tuple[int, ...]:
        return resolve_ranks(ranks, tuple(min(size, prod(shape) // size) for size in shape))

    @classmethod
    def _factorise(cls, W: Tensor, ranks: tuple[int, ...] | None, eps: float | None, rule: str, fold: bool) -> Self:
        core, U = hosvd(W, ranks=ranks, eps=eps, rule=rule)
        core, S = core.movedim(-1, 0), U[-1].T
        factors: list[Tensor | None] = [*U[:-1]]
        for n, factor in enumerate(U[:-1]):
            if fold and factor.shape[0] == factor.shape[1]:
                core = torch.tensordot(core, factor, dims=([n + 1], [1])).movedim(-1, n + 1)
                factors[n] = None
        return cls(core.contiguous(), factors, S.contiguous())

    @classmethod
    def _draw(
        cls, shape: tuple[int, ...], ranks: tuple[int, ...], generator: torch.Generator | None, fold: bool
    ) -> Self:
        (*D, T), (*K, K_N) = shape, ranks
        core = torch.randn(K_N, *K, generator=generator)
        factors = [
            None if fold and k == size else orthonormal(size, k, generator) for size, k in zip(D, K, strict=True)
        ]
        return cls(core, factors, unit_codes(K_N, T, generator))

    def basis(self) -> Tensor:
        """(K_N, D_1, ..., D_{N-1}) core multiplied by the bases of all modes but the last."""
        return self._expand(self.core, self.factors)

    def task_factor(self) -> Tensor:
        """(K_N, T) transpose of the last basis."""
        return self.S

    @property
    def ranks(self) -> tuple[int, ...]:
        """(K_1, ..., K_N)."""
        return (*self.core.shape[1:], self.core.shape[0])

    @property
    def folded(self) -> tuple[int, ...]:
        """Modes whose basis is in the core."""
        return tuple(n for n, U in enumerate(self.factors) if U is None)

    def squared_norm(self) -> Tensor:
        """Squared Frobenius norm of the composed weights, from the factors."""
        grams = [None if U is None else U.T @ U for U in self.factors]  # (K_n, K_n)
        weighted = self._expand(self.core, grams).flatten(1)
        return (self.S * (self.core.flatten(1) @ weighted.T @ self.S)).sum()

    def chains(self) -> tuple[ChainSizes, ...]:
        """One, unless the bases of the last input mode and of the outputs both went into the core."""
        left, right = self.factors[-2:]
        if left is None and right is None:
            return ()
        cost = self.n_tasks * self.core.numel() + self._expansion_cost(self.n_tasks, len(self.shape) - 3)
        takes: Takes | None = None if left is None else "channels"
        return (ChainSizes(takes, self.core.shape[-2], self.core.shape[-1], cost, right=right is not None),)

    def chain(self, sizes: ChainSizes) -> Chain:
        """Basis of the last input mode, a core per task, basis of the outputs; other modes go into the core."""
        *inner, left, right = self.factors
        cores = (self.S.T @ self.core.flatten(1)).view(self.n_tasks, *self.core.shape[1:])
        return Chain(left, self._expand(cores, inner), None if right is None else right.T)

    def basis_cost(self) -> int:
        """One product per mode."""
        return self._expansion_cost(self.core.shape[0], len(self.shape) - 1)

    def _expand(self, core: Tensor, factors: Sequence[Tensor | None]) -> Tensor:
        """Multiply the modes of ``core`` (a, K_1, K_2, ...) after the first by bases, one after the other."""
        for n, U in enumerate(factors, start=1):
            if U is not None:
                before, after = core.shape[:n], core.shape[n + 1 :]
                core = (U @ core.reshape(prod(before), core.shape[n], -1)).view(*before, U.shape[0], *after)
        return core

    def _expansion_cost(self, first: int, n_modes: int) -> int:
        sizes, cost = [first, *self.core.shape[1:]], 0
        for n, U in enumerate(self.factors[:n_modes], start=1):
            if U is not None:
                cost += prod(sizes) * U.shape[0]
                sizes[n] = U.shape[0]
        return cost

    def _grow(self, code: Tensor) -> None:
        self.S = nn.Parameter(torch.cat([self.S.detach(), code[:, None]], dim=1))
