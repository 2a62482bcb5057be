r"""CP decomposition: a sum of products of one vector per mode, computed by tensorly.

.. math:: \mathcal W = \sum_{r=1}^R \lambda_r\; u^{(1)}_r \circ u^{(2)}_r \circ \dots \circ u^{(N)}_r
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from sklearn.utils import check_random_state
from torch import Tensor

from companion.tensors._arrays import Array, any_library, check_rank, check_sweeps, check_tensor
from companion.tensors._tensorly import numpy_backend, warn_unless_settled
from companion.tensors.truncation import truncated_svd
from companion.tensors.unfolding import unfold

STARTS = ("svd", "random")


@any_library("W")
def cp(
    W: Array, rank: int, *, random_state: int, init: str = "svd", max_iter: int = 1000, tol: float = 1e-7
) -> tuple[Array, list[Array]]:
    r"""CP decomposition by alternating least squares: each factor in turn is the best one for the others.

    Unlike the SVDs of the other formats it has no bound. There are local minima, and for some tensors no minimum at
    all: the terms grow without limit and cancel each other (De Silva and Lim, 2008).

    Parameters
    ----------
    W : (D_1, ..., D_N) tensor or array
    rank : int
        Number R of terms. It may exceed every size, but not the product of all but the largest: so many always suffice.
    random_state : int
        Seed of the starting point; with ``init="svd"`` of the columns for which there are no singular vectors.
    init : "svd" or "random"
        Begin with the left singular vectors of the unfoldings, or with random factors.
    max_iter : int
        Most sweeps over the modes.
    tol : float
        Stop when a sweep changes the relative error by less.

    Returns
    -------
    weights : (R,) tensor or array
        Lengths of the terms in falling order, >= 0.
    factors : list of (D_n, R) tensors or arrays
        Columns of length one.
    """
    check_tensor(W)
    enough = W.numel() // max(W.shape)
    check_rank(rank, enough, "rank", f"as that many terms suffice for shape {tuple(W.shape)}")
    check_sweeps(max_iter, tol)
    if init not in STARTS:
        raise ValueError(f'init must be "svd" or "random"; got {init!r}')
    if not bool(W.any()):
        raise ValueError("W must not be zero: there is no term to fit")
    start, errors = _start(W, rank, random_state, use_svd=init == "svd"), []
    with numpy_backend():
        from tensorly.decomposition import parafac

        options = {"n_iter_max": max_iter, "tol": tol, "callback": lambda _, error: errors.append(error)}
        _, factors = parafac(W.numpy(force=True), rank, init=(None, start), **options)
    warn_unless_settled("CP", errors, tol, max_iter)
    return _with_unit_columns([torch.from_numpy(U.copy()).to(W) for U in factors])


@any_library("weights", "factors")
def cp_to_tensor(weights: Array, factors: Sequence[Array]) -> Array:
    r"""The tensor of a CP decomposition, :math:`\sum_r \lambda_r\, u^{(1)}_r \circ \dots \circ u^{(N)}_r`.

    Parameters
    ----------
    weights : (R,) tensor or array
    factors : N tensors or arrays (D_n, R)

    Returns
    -------
    (D_1, ..., D_N) tensor or array
    """
    if weights.ndim != 1:
        raise ValueError(f"weights must have shape (R,); got {tuple(weights.shape)}")
    for n, U in enumerate(factors):
        if U.ndim != 2 or U.shape[1] != len(weights):
            raise ValueError(f"factors[{n}] must have shape (D, {len(weights)}), as weights has; got {tuple(U.shape)}")
    terms = weights[None]  # (1, R): products of the entries so far, one column per term
    for U in factors[:-1]:
        terms = (terms[:, None] * U).reshape(-1, len(weights))
    return (terms @ factors[-1].T).reshape([len(U) for U in factors])


def _start(W: Tensor, rank: int, random_state: int, use_svd: bool) -> list[np.ndarray]:
    """(D_n, R) factors to begin with: singular vectors as far as there are any, and random columns."""
    rng, factors = check_random_state(random_state), []
    for n in range(W.ndim):
        U = truncated_svd(unfold(W, n))[0][:, :rank] if use_svd else W.new_empty(W.shape[n], 0)
        columns = rng.standard_normal((W.shape[n], rank - U.shape[1])).astype(U.numpy(force=True).dtype)
        factors.append(np.concatenate([U.numpy(force=True), columns], axis=1))
    return factors


def _with_unit_columns(factors: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Lengths out of the factors and into weights, the longest term first."""
    lengths = [torch.linalg.vector_norm(U, dim=0) for U in factors]
    weights = math.prod(lengths)  # type: ignore[arg-type]
    order = weights.argsort(descending=True)
    tiny = torch.finfo(weights.dtype).tiny
    return weights[order], [(U / length.clamp(min=tiny))[:, order] for U, length in zip(factors, lengths, strict=True)]
