"""Tensor rings: against tensorly, rotations, the train as a special case, and the error bound from every start."""

import itertools

import numpy as np
import pytest
import tensorly
import torch
from tensorly.decomposition import tensor_ring as tensorly_ring

from companion.tensors import ring_to_tensor, tensor_ring, tt_svd, tt_to_tensor
from companion.tensors.tensor_ring import balanced_divisor
from tests.tensors.cases import SHAPES, many_tensors, normal, relative_error, tail

TENSORS = dict(many_tensors())
EVERY_TENSOR = pytest.mark.parametrize("W", TENSORS.values(), ids=TENSORS.keys())


@pytest.mark.parametrize("shape", SHAPES)
def test_composes_as_tensorly_and_by_its_definition(shape):
    ranks = [n % 3 + 2 for n in range(len(shape))]
    ranks.append(ranks[0])
    cores = [normal(ranks[n], D, ranks[n + 1], seed=n) for n, D in enumerate(shape)]
    W = ring_to_tensor(cores)
    np.testing.assert_allclose(W, tensorly.tr_to_tensor(cores), atol=1e-10)
    for index in itertools.islice(np.ndindex(shape), 0, None, 7):
        entry = np.eye(ranks[0])
        for core, i in zip(cores, index, strict=True):
            entry = entry @ core[:, i]
        assert W[index] == pytest.approx(np.trace(entry), abs=1e-10)
    turned = ring_to_tensor([*cores[1:], cores[0]])  # a ring has no first core
    np.testing.assert_allclose(turned, np.moveaxis(W, 0, -1), atol=1e-10)


def test_a_single_core_is_a_trace():
    core = normal(3, 5, 3)
    np.testing.assert_allclose(ring_to_tensor([core]), np.einsum("aia->i", core), atol=1e-12)


@pytest.mark.parametrize("start", range(4))
def test_as_tensorly(start):
    W = TENSORS["fading (3, 5, 2, 4)"]
    ranks = [(3, 1, 4, 2), (3, 1, 4, 2), (3, 2, 1, 2), (3, 3, 2, 1)][start]  # one bond of 1: no sign matters
    cores = tensor_ring(W, ranks, start=start)
    modes = [(start + n) % 4 for n in range(4)]  # tensorly itself misplaces ranks for other modes than the first
    reference = tensorly_ring(W.transpose(modes), [*(ranks[n] for n in modes), ranks[start]], mode=0)
    assert [core.shape for core in cores] == [(ranks[n], W.shape[n], ranks[(n + 1) % 4]) for n in range(4)]
    expected = np.transpose(tensorly.tr_to_tensor(reference), np.argsort(modes))
    np.testing.assert_allclose(ring_to_tensor(cores), expected, atol=1e-8)
    for n, other in zip(modes, reference, strict=True):
        np.testing.assert_allclose(np.abs(cores[n]), np.abs(other), atol=1e-8)


@pytest.mark.parametrize("start", range(4))
def test_a_start_is_a_rotation(start):
    """The same as to turn the tensor, to begin with its first mode and to turn the cores back."""
    W = normal(3, 5, 2, 4)
    modes = [(start + n) % 4 for n in range(4)]
    for options, turned in (({"eps": 0.4}, {"eps": 0.4}), ({"ranks": (1, 2, 2, 1)}, None)):
        turned = turned or {"ranks": [(1, 2, 2, 1)[n] for n in modes]}
        cores = tensor_ring(W, **options, start=start)
        reference = tensor_ring(W.transpose(modes), **turned)
        for n, core in zip(modes, reference, strict=True):
            np.testing.assert_allclose(cores[n], core, atol=1e-10)
        assert [core.shape[1] for core in cores] == [3, 5, 2, 4]


@EVERY_TENSOR
@pytest.mark.parametrize("eps", [0.7, 0.3, 0.1, 1e-10])
def test_total_error_is_at_most_eps_from_every_start(W, eps):
    for start in range(W.ndim):
        cores = tensor_ring(W, eps=eps, start=start)
        assert relative_error(ring_to_tensor(cores), W) <= eps * (1 + 1e-9)
        front, _, back = cores[start].shape
        assert front == balanced_divisor(front * back) <= back
        share = eps / np.sqrt(W.ndim - 1) * np.linalg.norm(W)
        first = np.moveaxis(W, start, 0).reshape(W.shape[start], -1)
        assert tail(first, front * back) <= share * (1 + 1e-9)
        assert front * back == 1 or tail(first, front * back - 1) > share * (1 - 1e-9)


@EVERY_TENSOR
def test_errors_of_the_steps_add_up_in_squares(W):
    """Of a ring opened at mode 0: the tail of its first SVD, then those of the train that is left."""
    ranks = [1, 2] + [2] * (W.ndim - 2)
    cores = tensor_ring(W, ranks)
    chain, steps = np.moveaxis(cores[0], 1, 0).reshape(W.shape[0], -1), [tail(W.reshape(W.shape[0], -1), 2)]
    rest = (chain.T @ W.reshape(W.shape[0], -1)).reshape(ranks[0], -1).T  # (r_1 D_2 ... D_N, r_0)
    for n in range(1, W.ndim - 1):
        A = rest.reshape(ranks[n] * W.shape[n], -1)
        steps.append(tail(A, ranks[n + 1]))
        rest = cores[n].reshape(-1, ranks[n + 1]).T @ A
    error = np.linalg.norm(ring_to_tensor(cores) - W)
    assert error == pytest.approx(np.linalg.norm(steps), rel=1e-8)


@EVERY_TENSOR
def test_a_closing_rank_of_one_is_a_train(W):
    inner = [2] * (W.ndim - 1)
    cores = tensor_ring(W, [1, *inner])
    for core, other in zip(cores, tt_svd(W, inner), strict=True):
        np.testing.assert_allclose(np.abs(core), np.abs(other), atol=1e-10)
    np.testing.assert_allclose(ring_to_tensor(cores), tt_to_tensor(tt_svd(W, inner)), atol=1e-10)
    np.testing.assert_allclose(ring_to_tensor(tt_svd(W, inner)), tt_to_tensor(tt_svd(W, inner)), atol=1e-12)


def test_orthonormal_but_for_the_last_core():
    """The cores split off are orthonormal in the mode where the ring was opened, then from left to right."""
    cores = tensor_ring(normal(6, 3, 4, 5), (2, 3, 4, 5))
    first = np.moveaxis(cores[0], 1, 0).reshape(6, -1)
    np.testing.assert_allclose(first.T @ first, np.eye(6), atol=1e-10)
    for core in cores[1:-1]:
        merged = core.reshape(-1, core.shape[2])
        np.testing.assert_allclose(merged.T @ merged, np.eye(core.shape[2]), atol=1e-10)
    merged = cores[0].reshape(-1, cores[0].shape[2])
    assert np.abs(merged.T @ merged - np.eye(3)).max() > 0.1  # not in the sense of a train


def test_the_closing_rank_widens_the_last_svd():
    """With r_0 = 2 the last SVD has twice as many columns as the last mode is large."""
    W = normal(4, 6, 3)
    cores = tensor_ring(W, (2, 2, 6))
    assert [core.shape for core in cores] == [(2, 4, 2), (2, 6, 6), (6, 3, 2)]
    np.testing.assert_allclose(ring_to_tensor(cores), W, atol=1e-10)
    with pytest.raises(ValueError, match=r"ranks\[2\] must be an integer in 1\.\.6, .* \(12, 6\); got 7"):
        tensor_ring(W, (2, 2, 7))


@EVERY_TENSOR
@pytest.mark.parametrize("eps", [0.7, 0.3, 0.1])
def test_every_rank_is_the_smallest_for_its_share_of_the_whole_norm(W, eps):
    """Step by step with NumPy, the ring opened at mode 0, the largest entry of each first singular vector positive."""
    share = eps / np.sqrt(W.ndim - 1) * np.linalg.norm(W)

    def cut(A):
        U, s, Vh = np.linalg.svd(A, full_matrices=False)
        r = next(r for r in range(1, len(s) + 1) if np.linalg.norm(s[r:]) <= share)
        signs = np.sign(U[np.abs(U).argmax(axis=0), np.arange(len(s))])
        return r, (signs * s)[:r, None] * Vh[:r]

    together, rest = cut(W.reshape(W.shape[0], -1))
    front = balanced_divisor(together)
    ranks, rest = [front, together // front], rest.reshape(front, -1).T
    for D in W.shape[1:-1]:
        r, rest = cut(rest.reshape(ranks[-1] * D, -1))
        ranks.append(r)
    assert [core.shape[0] for core in tensor_ring(W, eps=eps)] == ranks


def test_other_coordinates_give_the_same_tensor():
    cores = tensor_ring(normal(6, 5, 4), (2, 3, 4))
    M = normal(2, 2, seed=5)  # on the bond that closes the ring
    turned = [np.tensordot(np.linalg.inv(M), cores[0], axes=1), cores[1], cores[2] @ M]
    np.testing.assert_allclose(ring_to_tensor(turned), ring_to_tensor(cores), atol=1e-8)
    assert np.abs(turned[0] - cores[0]).max() > 0.1


def test_divisors():
    expected = {1: 1, 2: 1, 4: 2, 6: 2, 7: 1, 12: 3, 16: 4, 36: 6, 60: 6, 97: 1}
    assert {number: balanced_divisor(number) for number in expected} == expected


def test_one_task_and_modes_of_size_one():
    for shape in ((4, 5, 1), (1, 4, 5), (4, 1, 5, 1), (1, 1)):
        W = normal(*shape)
        for start in range(len(shape)):
            cores = tensor_ring(W, eps=1e-12, start=start)
            assert [core.shape[1] for core in cores] == list(shape)
            np.testing.assert_allclose(ring_to_tensor(cores), W, atol=1e-10)


@pytest.mark.parametrize("rule", ["frobenius", "pivoted-qr"])
def test_zero_has_ranks_one(rule):
    cores = tensor_ring(np.zeros((4, 3, 5)), eps=0.1, rule=rule, start=1)
    assert [core.shape for core in cores] == [(1, 4, 1), (1, 3, 1), (1, 5, 1)]
    assert not ring_to_tensor(cores).any()


def test_pivoted_rule_reaches_every_step():
    W = normal(6, 5, 7, 4)
    found = {rule: [c.shape for c in tensor_ring(W, eps=0.6, rule=rule)] for rule in ("frobenius", "pivoted-qr")}
    assert [shape[0] for shape in found["frobenius"]] != [shape[0] for shape in found["pivoted-qr"]]
    assert relative_error(ring_to_tensor(tensor_ring(W, eps=1e-12, rule="pivoted-qr")), W) < 1e-8


def test_what_goes_in_comes_out():
    W = normal(4, 3, 6)
    before, best = W.copy(), ring_to_tensor(tensor_ring(W, (2, 2, 3)))
    for dtype, tol in ((np.float64, 1e-8), (np.float32, 1e-4)):
        arrays = tensor_ring(W.astype(dtype), (2, 2, 3))
        tensors = tensor_ring(torch.from_numpy(W.astype(dtype)), (2, 2, 3))
        for array, tensor in zip(arrays, tensors, strict=True):
            assert type(array) is np.ndarray and array.dtype == dtype and isinstance(tensor, torch.Tensor)
            np.testing.assert_array_equal(array, tensor.numpy())
        np.testing.assert_allclose(ring_to_tensor(arrays), best, atol=tol)
        np.testing.assert_array_equal(ring_to_tensor(tensors).numpy(), ring_to_tensor(arrays))
    np.testing.assert_array_equal(W, before)


def test_gradients():
    cores = [torch.from_numpy(normal(*shape, seed=k)) for k, shape in enumerate([(2, 4, 3), (3, 3, 2), (2, 5, 2)])]
    assert torch.autograd.gradcheck(lambda *cores: ring_to_tensor(cores), [core.requires_grad_() for core in cores])


def test_errors():
    W = normal(4, 3, 6)
    for start, ranks, message in (
        (0, (2, 3, 2), r"ranks\[0\] \* ranks\[1\] must be at most 4, the smaller side of .* \(4, 18\); got 2 \* 3"),
        (2, (4, 2, 2), r"ranks\[2\] \* ranks\[0\] must be at most 6, the smaller side of .* \(6, 12\); got 2 \* 4"),
        (0, (1, 2, 7), r"ranks\[2\] must be an integer in 1\.\.6, the smaller side of a matrix \(6, 6\); got 7"),
        (1, (5, 1, 2), r"ranks\[0\] must be an integer in 1\.\.4, the smaller side of a matrix \(12, 4\); got 5"),
        (0, (0, 2, 2), r"ranks\[0\] must be a positive integer; got 0"),
        (0, (2, 1.5, 2), r"ranks\[1\] must be a positive integer; got 1\.5"),
        (0, (2, 2), r"ranks must be 3 integers; got 2: \(2, 2\)"),
    ):
        with pytest.raises(ValueError, match=message):
            tensor_ring(W, ranks, start=start)
    for wrong in (3, -1, 0.5, True):
        with pytest.raises(ValueError, match=rf"start must be an integer in 0\.\.2; got {wrong!r}"):
            tensor_ring(W, eps=0.1, start=wrong)
    for rule in ("frobenius", "pivoted-qr"):
        with pytest.raises(ValueError, match="exactly one of ranks and eps must be given; got neither"):
            tensor_ring(W, rule=rule)
        with pytest.raises(ValueError, match=r"eps must be in \(0, 1\].*; got 0"):
            tensor_ring(W, eps=0, rule=rule)
    with pytest.raises(ValueError, match='rule must be "frobenius" or "pivoted-qr"; got None'):
        tensor_ring(W, (1, 2, 2), rule=None)
    with pytest.raises(ValueError, match=r"W must have at least two modes; got shape \(4,\)"):
        tensor_ring(normal(4), (1,))
    cores = tensor_ring(W, (2, 2, 3))
    with pytest.raises(ValueError, match=r"cores\[2\] must end with the rank that cores\[0\] begins with"):
        ring_to_tensor([*cores[:2], cores[2][:, :, :1]])
    with pytest.raises(ValueError, match=r"cores\[1\] must have shape"):
        ring_to_tensor([cores[0], cores[1][0], cores[2]])
