r"""Tensors as matrices: unfolding, folding back, and the product of a tensor and a matrix.

Modes are counted from zero in code and from one in formulas. In an unfolding the columns are in C order, the last
remaining mode running fastest, as in tensorly and not as in :cite:t:`kolda2009`, where the first runs fastest; singular
values and left singular vectors are the same in both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from companion.tensors._arrays import Array, any_library, check_mode


@any_library("W")
def unfold(W: Array, mode: int) -> Array:
    r"""Mode-k unfolding :math:`\mathcal W_{(k)}`: the fibres of one mode as columns of a matrix.

    Parameters
    ----------
    W : (D_1, ..., D_N) tensor or array
    mode : int
        The mode that becomes the rows, counted from zero.

    Returns
    -------
    (D_k, product of the other sizes) tensor or array
    """
    mode = check_mode(mode, W.ndim)
    return W.movedim(mode, 0).reshape(W.shape[mode], math.prod(W.shape) // max(W.shape[mode], 1))


@any_library("matrix")
def fold(matrix: Array, mode: int, shape: Sequence[int]) -> Array:
    r"""The tensor of a given shape whose mode-k unfolding is ``matrix``.

    Parameters
    ----------
    matrix : (D_k, product of the other sizes) tensor or array
    mode : int
        The mode that is in the rows, counted from zero.
    shape : (N,) sequence of int
        Sizes :math:`D_1, \dots, D_N` of the result.

    Returns
    -------
    (D_1, ..., D_N) tensor or array
    """
    mode = check_mode(mode, len(shape))
    others = [*shape[:mode], *shape[mode + 1 :]]
    if tuple(matrix.shape) != (shape[mode], math.prod(others)):
        wanted = (shape[mode], math.prod(others))
        raise ValueError(
            f"matrix must have shape {wanted} to be mode {mode} of a tensor of shape {tuple(shape)}; "
            f"got {tuple(matrix.shape)}"
        )
    return matrix.reshape(shape[mode], *others).movedim(0, mode)


@any_library("W", "U")
def mode_product(W: Array, U: Array, mode: int) -> Array:
    r"""Mode-k product :math:`\mathcal W \times_k U`: every fibre :math:`w` of one mode becomes :math:`U w`.

    Parameters
    ----------
    W : (D_1, ..., D_N) tensor or array
    U : (J, D_k) tensor or array
    mode : int
        The mode that is multiplied, counted from zero.

    Returns
    -------
    (D_1, ..., J, ..., D_N) tensor or array
        With J in place of :math:`D_k`. Its mode-k unfolding is U times that of W.
    """
    mode = check_mode(mode, W.ndim)
    if U.ndim != 2 or U.shape[1] != W.shape[mode]:
        wanted = f"(J, {W.shape[mode]}), to multiply mode {mode} of a tensor of shape {tuple(W.shape)}"
        raise ValueError(f"U must have shape {wanted}; got {tuple(U.shape)}")
    return torch.tensordot(U, W, dims=([1], [mode])).movedim(0, mode)
