"""Last-axis flattening: every task's weights are combinations of K latent weights, as in GO-MTL."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, Self

import torch
from torch import Tensor, nn

from companion.factorized._base import Chain, ChainSizes, FactorizedTensor, check_weights, unit_codes
from companion.factorized.ranks import Ranks, resolve_ranks
from companion.tensors import truncate


class LAF(FactorizedTensor):
    r"""Last-axis flattening (Yang & Hospedales 2017), :math:`W_{\cdot, t} = \sum_k L_{\cdot, k} S_{k, t}`.

    The matrix factorisation of GO-MTL for the unfolding of a layer that has one column per task. What it shares is
    whole weights; it says nothing about structure within a task.

    Parameters
    ----------
    L : (K, D_1, ..., D_{N-1}) tensor
        Latent weights, latent axis first.
    S : (K, T) tensor
        Codes.
    """

    def __init__(self, L: Tensor, S: Tensor) -> None:
        super().__init__((*L.shape[1:], S.shape[1]))
        self.L = nn.Parameter(L)
        self.S = nn.Parameter(S)

    @classmethod
    def from_weights(
        cls,
        W: Any,
        eps: float = 0.1,
        ranks: Ranks | None = None,
        rule: str = "frobenius",
        fold: bool = True,
        balance: bool = False,
    ) -> Self:
        """Truncated SVD of the ``(P, T)`` matrix of weights; the singular values go to the side of the tasks.

        There is one rank, K, at most the smaller of P and T. Nothing is ever folded: the basis has no factors.
        """
        W = check_weights(W)
        *D, T = W.shape
        matrix = W.reshape(-1, T)
        if ranks is None:
            U, s, Vh = truncate(matrix, eps=eps, rule=rule)
        else:
            (K,) = resolve_ranks(ranks, (min(matrix.shape),))
            U, s, Vh = truncate(matrix, rank=K, rule=rule)
        return cls(U.T.contiguous().view(-1, *D), s[:, None] * Vh)._finish(balance)

    @classmethod
    def random(
        cls,
        shape: Sequence[int],
        ranks: Ranks | None,
        fan_in: int | None = None,
        generator: torch.Generator | None = None,
        fold: bool = True,
        balance: bool = False,
    ) -> Self:
        """Normal latent weights, codes of length one."""
        *D, T = shape
        (K,) = resolve_ranks(ranks, (min(prod(D), T),))
        drawn = cls(torch.randn(K, *D, generator=generator), unit_codes(K, T, generator))
        return drawn._scale_like_plain_layer(fan_in)._finish(balance)

    def basis(self) -> Tensor:
        """(K, D_1, ..., D_{N-1}) latent weights L."""
        return self.L

    def task_factor(self) -> Tensor:
        """(K, T) codes S."""
        return self.S

    @property
    def ranks(self) -> tuple[int, ...]:
        """(K,)."""
        return (self.L.shape[0],)

    def chain(self) -> Chain:
        """The composed weights: there is nothing for activations to go through."""
        return Chain(None, self.compose().movedim(-1, 0), None)

    def chain_sizes(self) -> ChainSizes:
        """No left, no right."""
        return ChainSizes(self.shape[-3], self.shape[-2], None, False)

    def chain_cost(self) -> int:
        """As much as composing."""
        return self.compose_cost()

    def basis_cost(self) -> int:
        """Nothing."""
        return 0

    def _grow(self, code: Tensor) -> None:
        self.S = nn.Parameter(torch.cat([self.S.detach(), code[:, None]], dim=1))
