r"""Tensor train: a chain of cores, one per mode (Oseledets, 2011).

.. math:: \mathcal W_{i_1 \dots i_N} = G^{(1)}_{i_1} G^{(2)}_{i_2} \cdots G^{(N)}_{i_N}

where :math:`G^{(n)}_{i}`, slice i of core n, is a matrix (K_{n-1}, K_n), and :math:`K_0 = K_N = 1`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from companion.tensors._arrays import Array, any_library, check_choice, check_rank, check_ranks, check_tensor
from companion.tensors.truncation import check_rule, frobenius_norm, truncate


@any_library("W")
def tt_svd(
    W: Array, ranks: Sequence[int] | None = None, eps: float | None = None, rule: str = "frobenius"
) -> list[Array]:
    r"""Tensor train by N - 1 truncated SVDs, from the first mode to the last (Oseledets, 2011).

    The singular values go to the right, so that the scale ends up in the last core, that of the tasks. The error is at
    most :math:`\sqrt{N - 1}` times the smallest that is possible with these ranks.

    Parameters
    ----------
    W : (D_1, ..., D_N) tensor or array
    ranks : (N - 1,) sequence of int, optional
        Inner ranks :math:`K_1, \dots, K_{N-1}`, at most :math:`K_{n-1} D_n` and the product of the sizes to the right.
    eps : float in (0, 1], optional
        Tolerance, in place of the ranks; a bound of the relative error for ``rule="frobenius"``.
    rule : "frobenius" or "pivoted-qr"
        How eps chooses ranks, see :func:`~companion.tensors.truncate`.

    Returns
    -------
    list of N tensors or arrays (K_{n-1}, D_n, K_n)
        All but the last have orthonormal columns when their first two axes are merged.
    """
    check_tensor(W)
    check_choice(ranks, eps)
    check_rule(rule)
    shape, chosen = tuple(W.shape), check_ranks(ranks, W.ndim - 1)
    check_bonds(chosen, shape, 1, 1, [f"ranks[{n}]" for n in range(W.ndim - 1)])
    norm = frobenius_norm(W)
    cut = partial(truncate, eps=eps, n_truncations=W.ndim - 1, norm=norm, rule=rule)
    return split_off(W, 1, shape, chosen, cut)


def split_off(
    rest: Tensor, K: int, sizes: Sequence[int], ranks: Sequence[int | None], cut: Callable[..., tuple]
) -> list[Tensor]:
    """Cores of a chain of modes: each is split off by an SVD from what the modes before it have left.

    Parameters
    ----------
    rest : tensor of K * product of the sizes * K' entries, in this order
    K : int
        Rank in front of the first mode.
    sizes : (n,) sequence of int
    ranks : (n - 1,) sequence of int or None
        Ranks between the modes; where None, ``cut`` chooses.
    cut : callable
        From a matrix and ``rank=`` to its truncated singular value decomposition.

    Returns
    -------
    list of n tensors (K_{n-1}, D_n, K_n)
    """
    cores = []
    for size, rank in zip(sizes, ranks, strict=False):  # all but the last
        U, s, Vh = cut(rest.reshape(K * size, -1), rank=rank)
        cores.append(U.reshape(K, size, -1))
        K, rest = len(s), s[:, None] * Vh  # (K_n, all that is to the right)
    return [*cores, rest.reshape(K, sizes[-1], -1)]


@any_library("cores")
def tt_to_tensor(cores: Sequence[Array]) -> Array:
    r"""The tensor of a train: each core is contracted with the next.

    Parameters
    ----------
    cores : N tensors or arrays (K_{n-1}, D_n, K_n)
        With :math:`K_0 = K_N = 1`.

    Returns
    -------
    (D_1, ..., D_N) tensor or array
    """
    check_cores(cores)
    if cores[0].shape[0] != 1:
        raise ValueError(f"cores must begin and end with rank 1; got {cores[0].shape[0]}")
    W = cores[0]
    for core in cores[1:]:
        W = torch.tensordot(W, core, dims=1)
    return W.squeeze(0).squeeze(-1)


def check_bonds(ranks: Sequence[int | None], sizes: Sequence[int], K: int, closing: int, names: Sequence[str]) -> None:
    """Refuse ranks between modes that no SVD can have, K and ``closing`` being the ranks at both ends."""
    for n, (rank, name) in enumerate(zip(ranks, names, strict=True)):
        if rank is not None:
            left, right = K * sizes[n], math.prod(sizes[n + 1 :]) * closing
            K = check_rank(rank, min(left, right), name, f"the smaller side of a matrix ({left}, {right})")


def check_cores(cores: Sequence[Tensor]) -> None:
    """Refuse cores of which one does not fit the next, or the last does not fit the first."""
    for n, core in enumerate(cores):
        if core.ndim != 3:
            raise ValueError(f"cores[{n}] must have shape (K, D, K'); got {tuple(core.shape)}")
    for n, (core, following) in enumerate(zip(cores, [*cores[1:], cores[0]], strict=True)):
        if core.shape[2] != following.shape[0]:
            other = (n + 1) % len(cores)
            raise ValueError(
                f"cores[{n}] must end with the rank that cores[{other}] begins with; got shapes "
                f"{tuple(core.shape)} and {tuple(following.shape)}"
            )
