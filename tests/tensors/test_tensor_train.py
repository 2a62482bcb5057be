"""Tensor trains: against tensorly and NumPy, the error bounds, where the scale goes, and other coordinates."""

import itertools

import numpy as np
import pytest
import tensorly
import torch
from tensorly.decomposition import tensor_train

from companion.tensors import truncate, tt_svd, tt_to_tensor
from tests.tensors.cases import SHAPES, many_tensors, normal, planted_ring, relative_error, tail

TENSORS = dict(many_tensors())
EVERY_TENSOR = pytest.mark.parametrize("W", TENSORS.values(), ids=TENSORS.keys())


def splits(W):
    """The N - 1 matrices with the first modes in the rows and the others in the columns."""
    return [W.reshape(int(np.prod(W.shape[: n + 1])), -1) for n in range(W.ndim - 1)]


def most(shape):
    """Largest ranks that a train can have."""
    return [min(int(np.prod(shape[: n + 1])), int(np.prod(shape[n + 1 :]))) for n in range(len(shape) - 1)]


def some(shape):
    """Ranks of about half of the largest, each allowed after the one before."""
    found, K = [], 1
    for D, limit in zip(shape, most(shape), strict=False):
        K = max(1, min(K * D, limit) // 2)
        found.append(K)
    return found


@EVERY_TENSOR
def test_as_tensorly(W):
    """The same approximation at the same ranks, and the same cores up to the sign of each bond."""
    ranks = some(W.shape)
    cores = tt_svd(W, ranks)
    reference = tensor_train(W, [1, *ranks, 1])
    np.testing.assert_allclose(tt_to_tensor(cores), tensorly.tt_to_tensor(reference), atol=1e-8)
    for core, other in zip(cores, reference, strict=True):
        np.testing.assert_allclose(np.abs(core), np.abs(other), atol=1e-8)


@pytest.mark.parametrize("shape", SHAPES)
def test_composes_as_tensorly_and_by_its_definition(shape):
    ranks = [1, *(n % 3 + 2 for n in range(len(shape) - 1)), 1]
    cores = [normal(ranks[n], D, ranks[n + 1], seed=n) for n, D in enumerate(shape)]
    W = tt_to_tensor(cores)
    np.testing.assert_allclose(W, tensorly.tt_to_tensor(cores), atol=1e-10)
    for index in itertools.islice(np.ndindex(shape), 0, None, 7):
        entry = np.eye(1)
        for core, i in zip(cores, index, strict=True):
            entry = entry @ core[:, i]
        assert W[index] == pytest.approx(entry.item(), abs=1e-10)


@EVERY_TENSOR
def test_full_ranks_are_exact(W):
    for cores in (tt_svd(W, most(W.shape)), tt_svd(W, eps=1e-13)):
        np.testing.assert_allclose(tt_to_tensor(cores), W, atol=1e-10)


@EVERY_TENSOR
@pytest.mark.parametrize("eps", [0.7, 0.3, 0.1, 0.01])
def test_total_error_is_at_most_eps(W, eps):
    cores = tt_svd(W, eps=eps)
    assert relative_error(tt_to_tensor(cores), W) <= eps * (1 + 1e-9)
    K, share = cores[0].shape[2], eps / np.sqrt(W.ndim - 1) * np.linalg.norm(W)
    assert K == 1 or tail(splits(W)[0], K - 1) > share * (1 - 1e-9)


@EVERY_TENSOR
@pytest.mark.parametrize("eps", [0.7, 0.3, 0.1])
def test_every_rank_is_the_smallest_for_its_share_of_the_whole_norm(W, eps):
    """Step by step with NumPy: the tail of each step against eps / sqrt(N - 1), relative to W and not to the rest."""
    ranks, rest, share = [1], W, eps / np.sqrt(W.ndim - 1) * np.linalg.norm(W)
    for D in W.shape[:-1]:
        _, s, Vh = np.linalg.svd(rest.reshape(ranks[-1] * D, -1), full_matrices=False)
        ranks.append(next(r for r in range(1, len(s) + 1) if np.linalg.norm(s[r:]) <= share))
        rest = s[: ranks[-1], None] * Vh[: ranks[-1]]
    assert [core.shape[0] for core in tt_svd(W, eps=eps)] == ranks


@EVERY_TENSOR
def test_error_lies_between_the_largest_tail_and_the_root_of_their_squares(W):
    """Each split of a train has at most the rank between: hence at most sqrt(N - 1) times the best error."""
    ranks = some(W.shape)
    error = np.linalg.norm(tt_to_tensor(tt_svd(W, ranks)) - W)
    tails = [tail(A, K) for A, K in zip(splits(W), ranks, strict=True)]
    assert max(tails) * (1 - 1e-9) <= error <= np.linalg.norm(tails) * (1 + 1e-9)


@EVERY_TENSOR
def test_all_but_the_last_core_are_orthonormal(W):
    """So the last one has the norm of the whole, and its singular values are those of the last split."""
    cores = tt_svd(W, eps=0.2)
    for core in cores[:-1]:
        merged = core.reshape(-1, core.shape[2])
        np.testing.assert_allclose(merged.T @ merged, np.eye(core.shape[2]), atol=1e-10)
    found = tt_to_tensor(cores)
    assert np.linalg.norm(cores[-1]) == pytest.approx(np.linalg.norm(found))
    s = np.linalg.svd(splits(found)[-1], compute_uv=False)[: cores[-1].shape[0]]
    np.testing.assert_allclose(np.linalg.norm(cores[-1][:, :, 0], axis=1), s, atol=1e-8)


@pytest.mark.parametrize("shape, ranks", [((6, 7), (3,)), ((6, 5, 7), (3, 4)), ((4, 5, 3, 6), (2, 5, 3))])
def test_planted_ranks_are_found(shape, ranks):
    W = planted_ring(shape, (1, *ranks))
    W += 1e-7 * np.linalg.norm(W) / np.sqrt(W.size) * normal(*shape, seed=9)
    cores = tt_svd(W, eps=1e-5)
    assert tuple(core.shape[2] for core in cores) == (*ranks, 1)
    found = tt_to_tensor(cores)
    assert [np.linalg.matrix_rank(A, tol=1e-9 * np.linalg.norm(W)) for A in splits(found)] == list(ranks)
    assert relative_error(found, W) < 1e-6
    ends = (1, *ranks, 1)
    assert sum(core.size for core in cores) == sum(ends[n] * D * ends[n + 1] for n, D in enumerate(shape))


def test_order_two_is_the_singular_value_decomposition():
    W = normal(5, 7)
    U, s, Vh = truncate(W, rank=3)
    first, last = tt_svd(W, (3,))
    np.testing.assert_allclose(first[0], U, atol=1e-12)
    np.testing.assert_allclose(last[:, :, 0], s[:, None] * Vh, atol=1e-12)


def test_full_other_ranks_leave_low_rank_in_the_tasks():
    W = normal(3, 2, 4, 6)
    L, s, Vh = np.linalg.svd(W.reshape(-1, 6), full_matrices=False)
    best = (L[:, :4] * s[:4] @ Vh[:4]).reshape(W.shape)
    cores = tt_svd(W, (3, 6, 4))
    np.testing.assert_allclose(tt_to_tensor(cores), best, atol=1e-10)
    np.testing.assert_allclose(np.abs(cores[-1][:, :, 0]), np.abs(s[:4, None] * Vh[:4]), atol=1e-8)


def test_other_coordinates_give_the_same_tensor():
    cores = tt_svd(normal(4, 5, 6), (3, 4))
    M = normal(4, 4, seed=5)
    turned = [cores[0], cores[1] @ M, np.tensordot(np.linalg.inv(M), cores[2], axes=1)]
    np.testing.assert_allclose(tt_to_tensor(turned), tt_to_tensor(cores), atol=1e-8)
    assert np.abs(turned[1] - cores[1]).max() > 0.1


def test_one_task_and_modes_of_size_one():
    for shape in ((4, 5, 1), (1, 4, 5), (4, 1, 5, 1), (1, 1)):
        W = normal(*shape)
        cores = tt_svd(W, eps=1e-12)
        assert [core.shape[1] for core in cores] == list(shape)
        np.testing.assert_allclose(tt_to_tensor(cores), W, atol=1e-10)
        assert tt_to_tensor(cores).shape == shape


@pytest.mark.parametrize("rule", ["frobenius", "pivoted-qr"])
def test_zero_has_ranks_one(rule):
    cores = tt_svd(np.zeros((4, 3, 5)), eps=0.1, rule=rule)
    assert [core.shape for core in cores] == [(1, 4, 1), (1, 3, 1), (1, 5, 1)]
    assert not tt_to_tensor(cores).any()


def test_pivoted_rule_at_every_step():
    W = normal(6, 5, 7, 4)
    ranks, rest, K = [], W, 1
    for D in W.shape[:-1]:
        _, s, Vh = truncate(rest.reshape(K * D, -1), eps=0.6, rule="pivoted-qr")
        rest, K = s[:, None] * Vh, len(s)
        ranks.append(K)
    assert [core.shape[2] for core in tt_svd(W, eps=0.6, rule="pivoted-qr")] == [*ranks, 1]
    assert ranks != [core.shape[2] for core in tt_svd(W, eps=0.6)][:-1]


def test_full_rank_costs_more_than_the_tensor():
    """The second convolution of the MNIST network with ten tasks."""
    shape = (4, 4, 32, 64, 10)
    W = torch.from_numpy(normal(*shape))
    cores = tt_svd(W, most(shape))
    assert (W.numel(), sum(core.numel() for core in cores)) == (327680, 590196)


def test_what_goes_in_comes_out():
    W = normal(4, 3, 6)
    before, best = W.copy(), tt_to_tensor(tt_svd(W, (3, 4)))
    for dtype, tol in ((np.float64, 1e-8), (np.float32, 1e-4)):
        arrays, tensors = tt_svd(W.astype(dtype), (3, 4)), tt_svd(torch.from_numpy(W.astype(dtype)), (3, 4))
        for array, tensor in zip(arrays, tensors, strict=True):
            assert type(array) is np.ndarray and array.dtype == dtype and isinstance(tensor, torch.Tensor)
            np.testing.assert_array_equal(array, tensor.numpy())
        np.testing.assert_allclose(tt_to_tensor(arrays), best, atol=tol)
        np.testing.assert_array_equal(tt_to_tensor(tensors).numpy(), tt_to_tensor(arrays))
    np.testing.assert_array_equal(W, before)


def test_gradients():
    cores = [torch.from_numpy(normal(*shape, seed=k)) for k, shape in enumerate([(1, 4, 2), (2, 3, 3), (3, 5, 1)])]
    assert torch.autograd.gradcheck(lambda *cores: tt_to_tensor(cores), [core.requires_grad_() for core in cores])


def test_errors():
    W = normal(4, 3, 6)
    for ranks, message in (
        ((5, 2), r"ranks\[0\] must be an integer in 1\.\.4, the smaller side of a matrix \(4, 18\); got 5"),
        ((2, 7), r"ranks\[1\] must be an integer in 1\.\.6, the smaller side of a matrix \(6, 6\); got 7"),
        ((1, 4), r"ranks\[1\] must be an integer in 1\.\.3, the smaller side of a matrix \(3, 6\); got 4"),
        ((2, 0), r"ranks\[1\] must be an integer in 1\.\.6, .*; got 0"),
        ((1, 2, 2), r"ranks must be 2 integers; got 3: \(1, 2, 2\)"),
        (3, "ranks must be 2 integers; got 3$"),
    ):
        with pytest.raises(ValueError, match=message):
            tt_svd(W, ranks)
    for rule in ("frobenius", "pivoted-qr"):
        with pytest.raises(ValueError, match="exactly one of ranks and eps must be given; got neither"):
            tt_svd(W, rule=rule)
        with pytest.raises(ValueError, match="exactly one of ranks and eps must be given; got both"):
            tt_svd(W, (2, 2), 0.1, rule=rule)
        with pytest.raises(ValueError, match=r"eps must be in \(0, 1\].*; got 2"):
            tt_svd(W, eps=2, rule=rule)
    with pytest.raises(ValueError, match='rule must be "frobenius" or "pivoted-qr"; got \'svd\''):
        tt_svd(W, (2, 2), rule="svd")
    with pytest.raises(ValueError, match=r"W must have at least two modes; got shape \(4,\)"):
        tt_svd(normal(4), ())
    with pytest.raises(ValueError, match="W must be finite"):
        tt_svd(np.full((4, 3), np.nan), eps=0.1)


def test_cores_must_fit():
    cores = tt_svd(normal(4, 3, 6), (3, 4))
    with pytest.raises(ValueError, match=r"cores\[1\] must have shape \(K, D, K'\); got \(3, 12\)"):
        tt_to_tensor([cores[0], cores[1].reshape(3, 12), cores[2]])
    with pytest.raises(
        ValueError, match=r"cores\[0\] must end with the rank that cores\[1\] begins with.*3\) and \(2, 3"
    ):
        tt_to_tensor([cores[0], cores[1][:2], cores[2]])
    with pytest.raises(ValueError, match=r"cores\[2\] must end with the rank that cores\[0\] begins with"):
        tt_to_tensor([np.repeat(cores[0], 2, axis=0), *cores[1:]])
    with pytest.raises(ValueError, match="cores must begin and end with rank 1; got 2"):
        tt_to_tensor([np.repeat(cores[0], 2, axis=0), cores[1], np.repeat(cores[2], 2, axis=2)])
    with pytest.raises(ValueError, match="cores must be a torch tensor or a NumPy array; got list"):
        tt_to_tensor([])
