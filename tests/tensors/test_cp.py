"""CP: terms that were planted, tensorly's composition, and the matrix case, where the best answer is known."""

import numpy as np
import pytest
import tensorly
import torch
from sklearn.exceptions import ConvergenceWarning

from companion.tensors import cp, cp_to_tensor
from tests.tensors.cases import SHAPES, normal, relative_error


def drawn(shape, rank, seed=0):
    return np.arange(rank, 0.0, -1), [normal(D, rank, seed=seed + n) for n, D in enumerate(shape)]


@pytest.mark.parametrize("shape", SHAPES)
def test_composes_as_tensorly(shape):
    weights, factors = drawn(shape, 3)
    W = cp_to_tensor(weights, factors)
    np.testing.assert_allclose(W, tensorly.cp_to_tensor((weights, factors)), atol=1e-10)
    assert W.shape == shape


@pytest.mark.parametrize("init", ["svd", "random"])
@pytest.mark.parametrize("shape, rank", [((6, 5, 7), 3), ((4, 5, 3, 6), 2), ((4, 3, 5), 4)])
def test_planted_terms_are_found(shape, rank, init):
    """Up to order and sign: the terms of a tensor of order three or more are unique."""
    weights, factors = drawn(shape, rank)
    W = cp_to_tensor(weights, factors)
    found, columns = cp(W, rank, random_state=3, init=init, tol=1e-13, max_iter=20000)
    np.testing.assert_allclose(cp_to_tensor(found, columns), W, atol=1e-5)  # least squares converge linearly
    lengths = weights * np.prod([np.linalg.norm(U, axis=0) for U in factors], axis=0)
    order = np.argsort(-lengths)
    np.testing.assert_allclose(found, lengths[order], rtol=1e-4)
    for U, V in zip(columns, factors, strict=True):
        np.testing.assert_allclose(np.linalg.norm(U, axis=0), 1, atol=1e-10)
        cosines = (U * V[:, order]).sum(axis=0) / np.linalg.norm(V[:, order], axis=0)
        np.testing.assert_allclose(np.abs(cosines), 1, atol=1e-6)


def test_a_matrix_gets_its_best_approximation():
    W = normal(5, 7)
    U, s, Vh = np.linalg.svd(W, full_matrices=False)
    found = cp_to_tensor(*cp(W, 3, random_state=0))
    np.testing.assert_allclose(found, U[:, :3] * s[:3] @ Vh[:3], atol=1e-8)
    weights, (left, right) = cp(W, 1, random_state=0)
    np.testing.assert_allclose([weights[0], abs(left[:, 0] @ U[:, 0]), abs(right[:, 0] @ Vh[0])], [s[0], 1, 1])


def test_ends_at_a_stationary_point():
    """Every factor solves the least squares problem that the others leave."""
    W = cp_to_tensor(*drawn((4, 5, 6), 3)) + normal(4, 5, 6, seed=7)
    weights, factors = cp(W, 3, random_state=0, tol=1e-14, max_iter=20000)
    for n in range(3):
        others = [U for m, U in enumerate(factors) if m != n]
        terms = np.einsum("ir,jr->ijr", *others).reshape(-1, 3)
        best = np.linalg.lstsq(terms, tensorly.unfold(W, n).T, rcond=None)[0].T
        np.testing.assert_allclose(factors[n] * weights, best, atol=1e-4)
    assert (np.diff(weights) <= 0).all() and (weights > 0).all()


def test_rank_may_exceed_the_sizes():
    W = normal(3, 4, 2)
    weights, factors = cp(W, 6, random_state=0)  # 2 * 3 terms always suffice
    assert relative_error(cp_to_tensor(weights, factors), W) < 1e-6
    assert [U.shape for U in factors] == [(3, 6), (4, 6), (2, 6)]
    with pytest.raises(
        ValueError, match=r"rank must be an integer in 1\.\.6, as .* suffice for shape \(3, 4, 2\); got 7"
    ):
        cp(W, 7, random_state=0)


@pytest.mark.parametrize("init", ["svd", "random"])
def test_the_seed_decides(init):
    W = normal(4, 3, 5)
    one, same, other = (cp(W, 6, random_state=seed, init=init, tol=1e-4) for seed in (0, 0, 1))
    for part, again in zip([one[0], *one[1]], [same[0], *same[1]], strict=True):
        np.testing.assert_array_equal(part, again)
    assert np.abs(one[0] - other[0]).max() > 1e-3
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    cp(W, 6, random_state=0, init=init, tol=1e-4)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_init_chooses_the_start():
    W = normal(4, 5, 6)
    with pytest.warns(ConvergenceWarning):
        svd, random = (cp(W, 3, random_state=0, init=init, max_iter=1)[0] for init in ("svd", "random"))
    assert np.abs(svd - random).max() > 1e-3


def test_leaves_the_backend_of_the_user_alone():
    W = normal(4, 3, 5)
    alone = cp(W, 2, random_state=0, tol=1e-4)
    with tensorly.backend_context("pytorch"):
        found = cp(torch.from_numpy(W), 2, random_state=0, tol=1e-4)
        assert tensorly.get_backend() == "pytorch"
    np.testing.assert_array_equal(found[0].numpy(), alone[0])


def test_says_when_it_did_not_settle():
    with pytest.warns(
        ConvergenceWarning, match=r"CP did not settle: .* in the last of 5 sweeps \(tol=1e-12\)"
    ) as caught:
        cp(normal(4, 5, 6), 3, random_state=0, max_iter=5, tol=1e-12)
    assert caught[0].filename == __file__


def test_what_goes_in_comes_out():
    W = cp_to_tensor(*drawn((4, 3, 6), 2))
    before = W.copy()
    for dtype, tol in ((np.float64, 1e-8), (np.float32, 1e-3)):
        weights, factors = cp(W.astype(dtype), 2, random_state=0, tol=1e-5)
        others = cp(torch.from_numpy(W.astype(dtype)).requires_grad_(), 2, random_state=0, tol=1e-5)
        for array, tensor in zip([weights, *factors], [others[0], *others[1]], strict=True):
            assert type(array) is np.ndarray and array.dtype == dtype and isinstance(tensor, torch.Tensor)
            np.testing.assert_allclose(array, tensor.numpy(), atol=tol)
        assert cp_to_tensor(weights, factors).dtype == dtype
    np.testing.assert_array_equal(W, before)


def test_gradients():
    parts = [torch.from_numpy(normal(*shape, seed=k)) for k, shape in enumerate([(3,), (4, 3), (2, 3), (5, 3)])]
    for part in parts:
        part.requires_grad_()
    assert torch.autograd.gradcheck(lambda weights, *factors: cp_to_tensor(weights, factors), parts)


def test_errors():
    W = normal(4, 3, 6)
    for wrong in (0, 2.0, "2"):
        with pytest.raises(ValueError, match=rf"rank must be an integer in 1\.\.12, .*; got {wrong!r}"):
            cp(W, wrong, random_state=0)
    with pytest.raises(ValueError, match='init must be "svd" or "random"; got \'hosvd\''):
        cp(W, 2, random_state=0, init="hosvd")
    with pytest.raises(ValueError, match="max_iter must be a positive integer; got -1"):
        cp(W, 2, random_state=0, max_iter=-1)
    with pytest.raises(ValueError, match="tol must be > 0; got nan"):
        cp(W, 2, random_state=0, tol=np.nan)
    with pytest.raises(ValueError, match="W must not be zero"):
        cp(0 * W, 2, random_state=0)
    with pytest.raises(ValueError, match=r"W must have at least two modes; got shape \(4,\)"):
        cp(normal(4), 2, random_state=0)
    weights, factors = drawn((4, 3, 6), 2)
    with pytest.raises(ValueError, match=r"factors\[1\] must have shape \(D, 2\), as weights has; got \(2, 3\)"):
        cp_to_tensor(weights, [factors[0], factors[1].T, factors[2]])
    with pytest.raises(ValueError, match=r"weights must have shape \(R,\); got \(1, 2\)"):
        cp_to_tensor(weights[None], factors)
