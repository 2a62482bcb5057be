r"""Tensor ring: a tensor train whose ends are joined (Zhao et al., 2016).

.. math:: \mathcal W_{i_1 \dots i_N} = \operatorname{tr} \bigl( G^{(1)}_{i_1} G^{(2)}_{i_2} \cdots G^{(N)}_{i_N} \bigr)

where :math:`G^{(n)}_{i}`, slice i of core n, is a matrix (r_{n-1}, r_n), and :math:`r_N = r_0`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from companion.tensors._arrays import Array, any_library, check_choice, check_rank, check_ranks, check_tensor
from companion.tensors.tensor_train import check_bonds, check_cores, split_off
from companion.tensors.truncation import check_rule, frobenius_norm, truncate


@any_library("W")
def tensor_ring(
    W: Array, ranks: Sequence[int] | None = None, eps: float | None = None, rule: str = "frobenius", start: int = 0
) -> list[Array]:
    r"""Tensor ring by N - 1 truncated SVDs, beginning at a mode of choice (Zhao et al., 2016).

    The rank of the first SVD is shared out between the two bonds of the mode where the ring is opened. From there on it
    is the algorithm of the tensor train. The ranks that eps leads to depend on ``start``. Where both bonds are wider
    than 1, they even depend on the signs of the first singular vectors: the largest entry of each is made positive.

    Parameters
    ----------
    W : (D_1, ..., D_N) tensor or array
    ranks : (N,) sequence of int, optional
        ``ranks[n]`` is the bond in front of mode n, counted from zero: :math:`r_0, \dots, r_{N-1}`, where :math:`r_0`
        closes the ring. No SVD can have a rank above the smaller side of its matrix.
    eps : float in (0, 1], optional
        Tolerance, in place of the ranks; a bound of the relative error for ``rule="frobenius"``. The first rank is
        split into its most balanced pair of divisors, the smaller in front.
    rule : "frobenius" or "pivoted-qr"
        How eps chooses ranks, see :func:`~companion.tensors.truncate`.
    start : int in 0..N-1
        Mode at which the algorithm begins.

    Returns
    -------
    list of N tensors or arrays (r_{n-1}, D_n, r_n)
        Core n belongs to mode n, whatever the start. The scale is in the core before ``start``, the last one for 0.
    """
    check_tensor(W)
    check_choice(ranks, eps)
    check_rule(rule)
    order, modes = W.ndim, _modes_from(start, W.ndim)
    given = check_ranks(ranks, order)
    chosen = [given[n] for n in modes]
    if ranks is not None:
        _check_ring_ranks(chosen, [W.shape[n] for n in modes], modes)
    norm = frobenius_norm(W)
    cut = partial(truncate, eps=eps, n_truncations=order - 1, norm=norm, rule=rule)
    cores = ring_of(W.permute(modes), chosen, cut)
    return [cores[(n - start) % order] for n in range(order)]


def ring_of(W: Tensor, ranks: Sequence[Any], cut: Callable[..., tuple]) -> list[Tensor]:
    """Ring that is opened in front of the first mode; ``cut`` chooses the ranks that are None.

    Parameters
    ----------
    W : (D_1, ..., D_N) tensor
    ranks : (N,) sequence of int or None
    cut : callable
        From a matrix and ``rank=`` to its truncated singular value decomposition.

    Returns
    -------
    list of N tensors (r_{n-1}, D_n, r_n)
    """
    together = None if ranks[0] is None else ranks[0] * ranks[1]
    U, s, Vh = cut(W.reshape(W.shape[0], -1), rank=together)
    signs = U.gather(0, U.abs().argmax(0, keepdim=True)).sign()  # open in an SVD, but the ranks to come depend on them
    U, Vh = U * signs, signs.T * Vh
    front = balanced_divisor(len(s)) if ranks[0] is None else ranks[0]
    first = U.reshape(W.shape[0], front, -1).movedim(1, 0)  # (r_0, D_1, r_1)
    rest = (s[:, None] * Vh).reshape(front, -1).T  # (r_1 D_2 ... D_N, r_0): the other end of bond 0 goes last
    return [first, *split_off(rest, first.shape[2], W.shape[1:], ranks[2:], cut)]


@any_library("cores")
def ring_to_tensor(cores: Sequence[Array]) -> Array:
    r"""The tensor of a ring: each core is contracted with the next, and the last also with the first.

    Parameters
    ----------
    cores : N tensors or arrays (r_{n-1}, D_n, r_n)
        With :math:`r_N = r_0`.

    Returns
    -------
    (D_1, ..., D_N) tensor or array
    """
    check_cores(cores)
    W = cores[0]
    for core in cores[1:-1]:
        W = torch.tensordot(W, core, dims=1)  # (r_0, D_1, ..., D_n, r_n)
    if len(cores) == 1:
        return W.diagonal(dim1=0, dim2=2).sum(-1)
    return torch.tensordot(W, cores[-1], dims=([-1, 0], [0, 2]))


def balanced_divisor(number: int) -> int:
    """The largest divisor of a number that is at most its square root."""
    return next(k for k in range(math.isqrt(number), 0, -1) if number % k == 0)


def _modes_from(start: int, order: int) -> list[int]:
    """All modes in cyclic order, ``start`` first."""
    if isinstance(start, bool) or not isinstance(start, (int, np.integer)) or not 0 <= start < order:
        raise ValueError(f"start must be an integer in 0..{order - 1}; got {start!r}")
    return [(int(start) + n) % order for n in range(order)]


def _check_ring_ranks(ranks: Sequence[Any], sizes: Sequence[int], modes: Sequence[int]) -> None:
    """Refuse ranks, given in the order of the algorithm, that no SVD can have."""
    names = [f"ranks[{n}]" for n in modes]
    for rank, name in zip(ranks, names, strict=True):
        check_rank(rank, None, name)
    limit = min(sizes[0], math.prod(sizes[1:]))
    if ranks[0] * ranks[1] > limit:
        raise ValueError(
            f"{names[0]} * {names[1]} must be at most {limit}, the smaller side of a matrix "
            f"({sizes[0]}, {math.prod(sizes[1:])}); got {ranks[0]} * {ranks[1]}"
        )
    check_bonds(ranks[2:], sizes[1:], ranks[1], ranks[0], names[2:])
