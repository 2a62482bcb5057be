r"""Tucker decomposition: a small core and one matrix per mode (Tucker, 1966).

.. math:: \mathcal W = \mathcal C \times_1 U^{(1)} \times_2 U^{(2)} \dots \times_N U^{(N)}
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from companion.tensors._arrays import (
    Array,
    any_library,
    check_choice,
    check_rank,
    check_ranks,
    check_sweeps,
    check_tensor,
)
from companion.tensors._tensorly import numpy_backend, warn_unless_settled
from companion.tensors.truncation import check_rule, truncate
from companion.tensors.unfolding import mode_product, unfold


@any_library("W")
def hosvd(
    W: Array, ranks: Sequence[int] | None = None, eps: float | None = None, rule: str = "frobenius"
) -> tuple[Array, list[Array]]:
    r"""Tucker decomposition by one truncated SVD per mode (De Lathauwer, De Moor and Vandewalle, 2000a).

    Every unfolding is that of W itself, so that no mode depends on the others. The error is at most
    :math:`\sqrt N` times the smallest that is possible with these ranks.

    Parameters
    ----------
    W : (D_1, ..., D_N) tensor or array
    ranks : (N,) sequence of int, optional
        Multilinear ranks :math:`K_n`, at most :math:`D_n` and the product of the other sizes.
    eps : float in (0, 1], optional
        Tolerance, in place of the ranks; a bound of the relative error for ``rule="frobenius"``.
    rule : "frobenius" or "pivoted-qr"
        How eps chooses ranks, see :func:`~companion.tensors.truncate`.

    Returns
    -------
    core : (K_1, ..., K_N) tensor or array
        W in the coordinates of the factors. It carries all the scale.
    factors : list of (D_n, K_n) tensors or arrays
        Orthonormal columns: left singular vectors of the unfoldings.
    """
    check_tensor(W)
    check_choice(ranks, eps)
    check_rule(rule)
    chosen = check_multilinear_ranks(ranks, tuple(W.shape))
    cut = partial(truncate, eps=eps, n_truncations=W.ndim, rule=rule)
    factors = [cut(unfold(W, n), rank=rank)[0] for n, rank in enumerate(chosen)]
    return core_of(W, factors), factors


@any_library("W")
def hooi(W: Array, ranks: Sequence[int], max_iter: int = 200, tol: float = 1e-7) -> tuple[Array, list[Array]]:
    r"""Tucker decomposition by higher-order orthogonal iteration (De Lathauwer, De Moor and Vandewalle, 2000b).

    It begins with :func:`hosvd` and improves one factor after the other, each the best one for the others as they are.
    The error never rises; it ends at a stationary point, which need not be the best. Computed by tensorly, on the CPU.

    Parameters
    ----------
    W : (D_1, ..., D_N) tensor or array
    ranks : (N,) sequence of int
        As in :func:`hosvd`; besides, :math:`K_n` is at most the product of the other ranks.
    max_iter : int
        Most sweeps over the modes.
    tol : float
        Stop when a sweep changes the relative error by less.

    Returns
    -------
    core, factors : tensors or arrays
        As in :func:`hosvd`.
    """
    check_tensor(W)
    check_sweeps(max_iter, tol)
    chosen = check_multilinear_ranks(ranks, tuple(W.shape))
    for n, rank in enumerate(chosen):
        others = math.prod(chosen[:n] + chosen[n + 1 :])
        check_rank(rank, others, f"ranks[{n}]", "the product of the other ranks")
    core, factors = hosvd(W, chosen)
    if not bool(core.any()):
        return core, factors
    with numpy_backend():
        from tensorly.decomposition import tucker

        start = (core.numpy(force=True), [U.numpy(force=True) for U in factors])
        options = {"init": start, "n_iter_max": max_iter, "tol": tol, "return_errors": True}
        (_, found), errors = tucker(W.numpy(force=True), chosen, **options)
    warn_unless_settled("HOOI", errors, tol, max_iter)
    factors = [torch.from_numpy(U.copy()).to(W) for U in found]
    return core_of(W, factors), factors


@any_library("core", "factors")
def tucker_to_tensor(core: Array, factors: Sequence[Array]) -> Array:
    r"""The tensor of a core and its factors, :math:`\mathcal C \times_1 U^{(1)} \dots \times_N U^{(N)}`.

    Parameters
    ----------
    core : (K_1, ..., K_N) tensor or array
    factors : N tensors or arrays (D_n, K_n)

    Returns
    -------
    (D_1, ..., D_N) tensor or array
    """
    if len(factors) != core.ndim:
        raise ValueError(f"factors must be one matrix per mode of the core, {core.ndim}; got {len(factors)}")
    for n, (U, K) in enumerate(zip(factors, core.shape, strict=True)):
        if U.ndim != 2 or U.shape[1] != K:
            raise ValueError(f"factors[{n}] must have shape (D, {K}), as the core has; got {tuple(U.shape)}")
    W = core
    for n, U in enumerate(factors):
        W = mode_product(W, U, n)
    return W


def core_of(W: Tensor, factors: Sequence[Tensor]) -> Tensor:
    r""":math:`\mathcal W \times_1 U^{(1)\top} \dots \times_N U^{(N)\top}`, the best core for orthonormal factors."""
    for n, U in enumerate(factors):
        W = mode_product(W, U.T, n)
    return W


def check_multilinear_ranks(ranks: Sequence[int] | None, shape: tuple[int, ...]) -> list:
    """A rank per mode, or None per mode."""
    chosen = check_ranks(ranks, len(shape))
    for n, rank in enumerate(chosen):
        if ranks is not None:
            limit = min(shape[n], math.prod(shape[:n] + shape[n + 1 :]))
            chosen[n] = check_rank(rank, limit, f"ranks[{n}]", f"the most that mode {n} of shape {shape} can have")
    return chosen
