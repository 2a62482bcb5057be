"""Last-axis flattening: every task's weights are combinations of K latent weights, as in GO-MTL."""

from __future__ import annotations

from math import prod
from typing import Self

import torch
from torch import Tensor, nn

from companion.factorized._base import FactorizedTensor, unit_codes
from companion.factorized.ranks import Ranks, resolve_ranks
from companion.tensors import truncate


class LAF(FactorizedTensor):
    r"""Last-axis flattening (Yang & Hospedales 2017), :math:`W_{\cdot, t} = \sum_k L_{\cdot, k} S_{k, t}`.

    The matrix factorisation of GO-MTL for the unfolding of a layer that has one column per task. What it shares is
    whole weights; it says nothing about structure within a task.

    There is one rank, K, at most the smaller of P = D_1 ... D_{N-1} and T. Given weights are factorised by the
    truncated SVD of the (P, T) matrix that they make, the singular values going to the side of the tasks; drawn factors
    are normal latent weights and codes of length one. Nothing is ever folded: the basis has no factors.

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
    def _resolve_ranks(cls, ranks: Ranks | None, shape: tuple[int, ...]) -> tuple[int, ...]:
        return resolve_ranks(ranks, (min(prod(shape[:-1]), shape[-1]),))

    @classmethod
    def _factorise(cls, W: Tensor, ranks: tuple[int, ...] | None, eps: float | None, rule: str, fold: bool) -> Self:
        *D, T = W.shape
        U, s, Vh = truncate(W.reshape(-1, T), rank=None if ranks is None else ranks[0], eps=eps, rule=rule)
        return cls(U.T.contiguous().view(-1, *D), s[:, None] * Vh)

    @classmethod
    def _draw(
        cls, shape: tuple[int, ...], ranks: tuple[int, ...], generator: torch.Generator | None, fold: bool
    ) -> Self:
        (*D, T), (K,) = shape, ranks
        return cls(torch.randn(K, *D, generator=generator), unit_codes(K, T, generator))

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

    def basis_cost(self) -> int:
        """Nothing."""
        return 0

    def _grow(self, code: Tensor) -> None:
        self.S = nn.Parameter(torch.cat([self.S.detach(), code[:, None]], dim=1))
