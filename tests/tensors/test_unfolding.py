"""Unfolding, folding and mode products: against tensorly, against loops, and what must hold between them."""

import subprocess
import sys

import numpy as np
import pytest
import tensorly
import torch

from companion.tensors import fold, mode_product, unfold
from tests.tensors.cases import SHAPES, normal

MODES = [(shape, mode) for shape in SHAPES for mode in range(len(shape))]


@pytest.mark.parametrize("shape, mode", MODES)
def test_as_tensorly(shape, mode):
    W = normal(*shape)
    U = normal(8, shape[mode], seed=1)
    matrix = tensorly.unfold(W, mode)
    np.testing.assert_array_equal(unfold(W, mode), matrix)
    np.testing.assert_array_equal(fold(matrix, mode, shape), W)
    np.testing.assert_array_equal(tensorly.fold(matrix, mode, shape), fold(matrix, mode, shape))
    np.testing.assert_allclose(mode_product(W, U, mode), tensorly.tenalg.mode_dot(W, U, mode), atol=1e-12)
    np.testing.assert_allclose(unfold(mode_product(W, U, mode), mode), U @ matrix, atol=1e-12)
    np.testing.assert_array_equal(unfold(W, mode - len(shape)), matrix)  # counted from the end


def test_columns_are_fibres_and_the_last_mode_runs_fastest():
    W = normal(4, 3, 6)
    found = [unfold(W, mode) for mode in range(3)]
    for i, j, k in np.ndindex(W.shape):
        assert found[0][i, 6 * j + k] == found[1][j, 6 * i + k] == found[2][k, 3 * i + j] == W[i, j, k]


def test_product_by_its_definition():
    W, U = normal(4, 3, 6), normal(2, 3, seed=1)
    expected = np.zeros((4, 2, 6))
    for i, j, k, m in np.ndindex(4, 3, 6, 2):
        expected[i, m, k] += U[m, j] * W[i, j, k]
    np.testing.assert_allclose(mode_product(W, U, 1), expected, atol=1e-12)


def test_products_of_different_modes_commute_and_of_one_mode_compose():
    W, U, V, X = normal(4, 3, 6), normal(2, 4, seed=1), normal(7, 6, seed=2), normal(5, 2, seed=3)
    one = mode_product(mode_product(W, U, 0), V, 2)
    np.testing.assert_allclose(one, mode_product(mode_product(W, V, 2), U, 0), atol=1e-12)
    np.testing.assert_allclose(mode_product(mode_product(W, U, 0), X, 0), mode_product(W, X @ U, 0), atol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
def test_what_goes_in_comes_out(dtype):
    W = (10 * normal(4, 3, 6)).astype(dtype)
    U = (10 * normal(2, 3, seed=1)).astype(dtype)
    for found in (unfold(W, 1), fold(unfold(W, 1), 1, W.shape), mode_product(W, U, 1)):
        assert type(found) is np.ndarray and found.dtype == dtype
    T, V = torch.from_numpy(W), torch.from_numpy(U)
    for found, same in ((unfold(T, 1), unfold(W, 1)), (mode_product(T, V, 1), mode_product(W, U, 1))):
        assert found.dtype == T.dtype
        np.testing.assert_array_equal(found.numpy(), same)


def test_any_memory_layout():
    W = normal(4, 3, 6)
    for other in (np.asfortranarray(W), W[::-1, :, ::-1][::-1, :, ::-1], np.broadcast_to(W, W.shape)):
        np.testing.assert_array_equal(unfold(other, 2), tensorly.unfold(W, 2))
    view = normal(6, 3, 4).transpose(2, 1, 0)
    np.testing.assert_array_equal(unfold(torch.from_numpy(view), 0).numpy(), tensorly.unfold(view.copy(), 0))


def test_gradients():
    W = torch.from_numpy(normal(4, 3, 2)).requires_grad_()
    U = torch.from_numpy(normal(5, 3, seed=1)).requires_grad_()
    assert torch.autograd.gradcheck(lambda W: fold(unfold(W, 1).sin(), 1, (4, 3, 2)), W)
    assert torch.autograd.gradcheck(lambda W, U: mode_product(W, U, 1), (W, U))


def test_errors():
    W = normal(4, 3, 6)
    for wrong in (3, -4, 1.0, True, "1"):
        with pytest.raises(ValueError, match=rf"mode must be an integer in 0\.\.2 .*; got {wrong!r}"):
            unfold(W, wrong)
    with pytest.raises(
        ValueError, match=r"matrix must have shape \(3, 24\) to be mode 1 .* \(4, 3, 6\); got \(24, 3\)"
    ):
        fold(normal(24, 3), 1, (4, 3, 6))
    with pytest.raises(ValueError, match=r"U must have shape \(J, 3\), to multiply mode 1 .*; got \(3, 2\)"):
        mode_product(W, normal(3, 2), 1)
    with pytest.raises(ValueError, match=r"U must have shape \(J, 3\).*; got \(3,\)"):
        mode_product(W, normal(3), 1)
    with pytest.raises(ValueError, match="W must be a torch tensor or a NumPy array; got int"):
        unfold(3, 0)
    with pytest.raises(ValueError, match=r"W\[0\] must be a torch tensor or a NumPy array; got float"):
        unfold([1.0, 2.0], 0)


def test_arrays_must_be_alike():
    W, U = normal(4, 3, 6), normal(2, 3)
    with pytest.raises(ValueError, match=r"W is numpy float64 and U is torch torch\.float64 cpu"):
        mode_product(W, torch.from_numpy(U), 1)
    with pytest.raises(ValueError, match="W is numpy float64 and U is numpy float32"):
        mode_product(W, U.astype(np.float32), 1)


def test_import_loads_no_tensorly():
    code = "import sys, companion.tensors; print([m for m in ('tensorly', 'matplotlib') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
