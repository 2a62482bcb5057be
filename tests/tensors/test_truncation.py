"""Where a matrix is cut off: against NumPy's SVD, and against SciPy's pivoted QR for the rule of that name."""

import numpy as np
import pytest
import scipy.linalg
import torch

from companion.tensors import pivoted_qr_svd, truncate, truncated_svd
from companion.tensors.truncation import rank_for_tail
from tests.tensors.cases import normal, relative_error, tail


def product(parts):
    """The matrix of a decomposition, with its factors checked: orthonormal vectors, falling values."""
    U, s, Vh = parts
    np.testing.assert_allclose(U.T @ U, np.eye(len(s)), atol=1e-10)
    np.testing.assert_allclose(Vh @ Vh.T, np.eye(len(s)), atol=1e-10)
    assert (np.diff(s) <= 1e-12 * s[0]).all() and (s >= 0).all()
    return U * s @ Vh


def matrices():
    """(name, matrix): tall and wide, flat and falling spectra, low rank, rows and columns of very different length."""
    for shape in ((9, 6), (5, 11), (8, 8)):
        m = min(shape)
        Q, Z = np.linalg.qr(normal(shape[0], m))[0], np.linalg.qr(normal(shape[1], m, seed=1))[0]
        yield f"noise {shape}", normal(*shape, seed=2)
        yield f"geometric {shape}", Q * 0.5 ** np.arange(m) @ Z.T
        yield f"low rank {shape}", normal(shape[0], 3, seed=3) @ normal(3, shape[1], seed=4)
        yield f"long columns {shape}", normal(*shape, seed=5) * 10.0 ** -np.arange(shape[1])


MATRICES = list(matrices())
EVERY_MATRIX = pytest.mark.parametrize("A", [A for _, A in MATRICES], ids=[name for name, _ in MATRICES])


@EVERY_MATRIX
def test_rank_gives_the_leading_part(A):
    U, s, Vh = np.linalg.svd(A, full_matrices=False)
    for rank in range(1, min(A.shape) + 1):
        expected = U[:, :rank] * s[:rank] @ Vh[:rank]
        for parts in (truncated_svd(A, rank=rank), truncate(A, rank=rank), truncate(A, rank=rank, rule="pivoted-qr")):
            np.testing.assert_allclose(product(parts), expected, atol=1e-10)
            np.testing.assert_allclose(parts[1], s[:rank], atol=1e-12)
    np.testing.assert_allclose(product(truncated_svd(A)), A, atol=1e-10)


@EVERY_MATRIX
def test_tail_gives_the_smallest_rank(A):
    size = np.linalg.norm(A)
    for bound in size * np.array([2.0, 0.7, 0.3, 0.1, 0.02, 1e-9]):
        rank = len(truncated_svd(A, tail=bound)[1])
        assert tail(A, rank) <= bound
        assert rank == 1 or tail(A, rank - 1) > bound


@EVERY_MATRIX
@pytest.mark.parametrize("eps", [0.9, 0.3, 0.1, 1e-6])
def test_frobenius_rule_shares_the_error(A, eps):
    whole = 3.0 * np.linalg.norm(A)
    for n, norm, size in ((1, None, np.linalg.norm(A)), (4, None, np.linalg.norm(A)), (5, whole, whole)):
        parts = truncate(A, eps=eps, n_truncations=n, norm=norm)
        bound, rank = eps * size / np.sqrt(n), len(parts[1])
        assert np.linalg.norm(product(parts) - A) <= bound * (1 + 1e-9)
        assert rank == 1 or tail(A, rank - 1) > bound * (1 - 1e-9)


@EVERY_MATRIX
@pytest.mark.parametrize("eps", [0.9, 0.5, 0.3, 0.1, 0.01])
def test_pivoted_rule_counts_what_scipy_counts(A, eps):
    Q, R, columns = scipy.linalg.qr(A, pivoting=True)
    diagonal = np.abs(np.diag(R))
    rank = max(1, int(np.sum(diagonal > eps * diagonal[0])))
    expected = np.empty_like(A)
    expected[:, columns] = Q[:, :rank] @ R[:rank]
    for parts in (truncate(A, eps=eps, rule="pivoted-qr"), pivoted_qr_svd(A, eps)):
        assert len(parts[1]) == rank
        np.testing.assert_allclose(product(parts), expected, atol=1e-10)


def test_eps_of_the_pivoted_rule_is_no_error():
    """Many small values add up to more than eps, and at the same rank the SVD is nearer."""
    many = np.diag([1.0] + [0.09] * 80)
    parts = truncate(many, eps=0.1, rule="pivoted-qr")
    assert len(parts[1]) == 1
    assert relative_error(product(parts), many) == pytest.approx(np.sqrt(80 * 0.09**2 / (1 + 80 * 0.09**2)))
    assert relative_error(product(truncate(many, eps=0.1)), many) <= 0.1
    A = normal(60, 40)
    parts = truncate(A, eps=0.5, rule="pivoted-qr")
    assert 1 < len(parts[1]) < 40
    assert relative_error(product(parts), A) > 1.02 * tail(A, len(parts[1])) / np.linalg.norm(A)


@pytest.mark.parametrize("rule", ["frobenius", "pivoted-qr"])
def test_zero_has_rank_one_and_eps_one_keeps_one(rule):
    U, s, Vh = truncate(np.zeros((5, 3)), eps=0.1, rule=rule)
    assert (U.shape, s.tolist(), Vh.shape) == ((5, 1), [0.0], (1, 3))
    assert len(truncate(normal(5, 3), eps=1.0, rule=rule)[1]) == 1


@pytest.mark.parametrize("rule", ["frobenius", "pivoted-qr"])
@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_no_length_is_too_short(rule, scale):
    A = normal(9, 6)
    assert len(truncate(scale * A, eps=0.3, rule=rule)[1]) == len(truncate(A, eps=0.3, rule=rule)[1])


@pytest.mark.parametrize("rule", ["frobenius", "pivoted-qr"])
def test_what_goes_in_comes_out(rule):
    A = normal(9, 6)
    before = A.copy()
    U, s, Vh = truncate(A, eps=0.4, rule=rule)
    for dtype, tol in ((np.float64, 1e-12), (np.float32, 1e-5)):
        arrays = truncate(A.astype(dtype), eps=0.4, rule=rule)
        tensors = truncate(torch.from_numpy(A.astype(dtype)), eps=0.4, rule=rule)
        for array, tensor in zip(arrays, tensors, strict=True):
            assert type(array) is np.ndarray and array.dtype == dtype and isinstance(tensor, torch.Tensor)
            np.testing.assert_array_equal(array, tensor.numpy())
        np.testing.assert_allclose(arrays[0] * arrays[1] @ arrays[2], U * s @ Vh, atol=tol)
    np.testing.assert_array_equal(A, before)


@pytest.mark.parametrize("dtype, small", [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_small_squares_do_not_drown_beside_the_first(dtype, small):
    s = torch.tensor([1.0, small, small, small], dtype=dtype)
    found = [rank_for_tail(s, bound * small) for bound in (2.0, 1.5, 1.2, 0.9)]
    assert found == [1, 2, 3, 4]


def test_errors():
    A = normal(5, 3)
    with pytest.raises(ValueError, match=r"rank must be an integer in 1\.\.3, as A has shape \(5, 3\); got 4"):
        truncate(A, rank=4)
    for wrong in (0, -1, 2.0, True):
        with pytest.raises(ValueError, match=rf"rank must be an integer in 1\.\.3.*; got {wrong!r}"):
            truncate(A, rank=wrong)
    for wrong in (0.0, -0.1, 1.5, np.nan):
        with pytest.raises(ValueError, match=rf"eps must be in \(0, 1\].*; got {wrong!r}"):
            truncate(A, eps=wrong)
        with pytest.raises(ValueError, match=rf"eps must be in \(0, 1\].*; got {wrong!r}"):
            pivoted_qr_svd(A, wrong)
    with pytest.raises(ValueError, match="exactly one of rank and eps must be given; got neither"):
        truncate(A)
    with pytest.raises(ValueError, match="exactly one of rank and eps must be given; got both"):
        truncate(A, rank=2, eps=0.1)
    with pytest.raises(ValueError, match="at most one of rank and tail may be given; got both"):
        truncated_svd(A, rank=2, tail=0.1)
    with pytest.raises(ValueError, match=r"tail must be >= 0; got -0\.1"):
        truncated_svd(A, tail=-0.1)
    with pytest.raises(ValueError, match='rule must be "frobenius" or "pivoted-qr"; got \'spectral\''):
        truncate(A, rank=2, rule="spectral")
    with pytest.raises(ValueError, match=r"A must have exactly 2 modes; got shape \(5, 3, 2\)"):
        truncate(normal(5, 3, 2), rank=1)


@pytest.mark.parametrize(
    "A, message",
    [
        (np.zeros((5, 0)), r"A must have entries; got shape \(5, 0\)"),
        (np.ones((5, 3), dtype=int), r"A must hold float32 or float64 numbers; got torch.int64"),
        (np.ones((5, 3), dtype=complex), r"A must hold float32 or float64 numbers; got torch.complex128"),
        (np.full((5, 3), np.nan), "A must be finite"),
        (np.full((5, 3), np.inf), "A must be finite"),
    ],
)
@pytest.mark.parametrize("rule", ["frobenius", "pivoted-qr"])
def test_what_has_no_decomposition(A, message, rule):
    with pytest.raises(ValueError, match=message):
        truncate(A, eps=0.1, rule=rule)


@pytest.mark.parametrize("n", [0, -1, 1.5])
def test_numbers_of_truncations(n):
    with pytest.raises(ValueError, match=f"n_truncations must be a positive integer; got {n}"):
        truncate(normal(5, 3), eps=0.1, n_truncations=n)
