"""Tucker: against NumPy and tensorly, the error bounds, and what must not depend on the factors."""

import numpy as np
import pytest
import tensorly
import torch
from sklearn.exceptions import ConvergenceWarning

from companion.tensors import hooi, hosvd, truncate, tucker_to_tensor
from tests.tensors.cases import SHAPES, many_tensors, normal, planted_tucker, relative_error, tail

TENSORS = dict(many_tensors())
EVERY_TENSOR = pytest.mark.parametrize("W", TENSORS.values(), ids=TENSORS.keys())


def half(shape):
    """Ranks of about half the sizes, all that a tensor of this shape can have."""
    return [max(1, min(D, int(np.prod(shape)) // D) // 2) for D in shape]


def assert_orthonormal(factors):
    for U in factors:
        np.testing.assert_allclose(U.T @ U, np.eye(U.shape[1]), atol=1e-10)


@EVERY_TENSOR
def test_factors_are_singular_vectors_of_the_unfoldings(W):
    """Projections on their columns are those of NumPy, and the core is W contracted with them."""
    ranks = half(W.shape)
    core, factors = hosvd(W, ranks)
    expected = W
    for n, (U, K) in enumerate(zip(factors, ranks, strict=True)):
        reference = np.linalg.svd(tensorly.unfold(W, n))[0][:, :K]
        np.testing.assert_allclose(U @ U.T, reference @ reference.T, atol=1e-8)
        np.testing.assert_allclose(np.abs((U * reference).sum(axis=0)), 1, atol=1e-8)  # each one, up to its sign
        expected = tensorly.tenalg.mode_dot(expected, U.T, n)
    np.testing.assert_allclose(core, expected, atol=1e-10)
    assert core.shape == tuple(ranks)
    assert_orthonormal(factors)


@pytest.mark.parametrize("shape", SHAPES)
def test_composes_as_tensorly(shape):
    ranks = [D % 3 + 2 for D in shape]
    core, factors = normal(*ranks), [normal(D, K, seed=n) for n, (D, K) in enumerate(zip(shape, ranks, strict=True))]
    expected = tensorly.tucker_to_tensor((core, factors))
    np.testing.assert_allclose(tucker_to_tensor(core, factors), expected, atol=1e-10)
    np.testing.assert_allclose(tucker_to_tensor(core, tuple(factors)), expected, atol=1e-10)


@EVERY_TENSOR
def test_full_ranks_are_exact_and_the_core_is_all_orthogonal(W):
    """Slices of the core in any mode are orthogonal to each other, as long as singular values of the unfolding."""
    limits = [min(D, W.size // D) for D in W.shape]
    core, factors = hosvd(W, limits)
    np.testing.assert_allclose(tucker_to_tensor(core, factors), W, atol=1e-10)
    for n in range(W.ndim):
        slices = tensorly.unfold(core, n)
        s = np.linalg.svd(tensorly.unfold(W, n), compute_uv=False)[: limits[n]]
        np.testing.assert_allclose(slices @ slices.T, np.diag(s**2), atol=1e-8 * s[0] ** 2)


@EVERY_TENSOR
@pytest.mark.parametrize("eps", [0.7, 0.3, 0.1, 0.01])
def test_total_error_is_at_most_eps(W, eps):
    core, factors = hosvd(W, eps=eps)
    assert relative_error(tucker_to_tensor(core, factors), W) <= eps * (1 + 1e-9)
    for n, K in enumerate(core.shape):  # and no rank is larger than its share of the error demands
        assert K == 1 or tail(tensorly.unfold(W, n), K - 1) > eps / np.sqrt(W.ndim) * np.linalg.norm(W) * (1 - 1e-9)


@EVERY_TENSOR
def test_error_lies_between_the_largest_tail_and_the_root_of_their_squares(W):
    """The largest tail bounds every tensor of these ranks from below: hence at most sqrt(N) times the best."""
    ranks = half(W.shape)
    error = np.linalg.norm(tucker_to_tensor(*hosvd(W, ranks)) - W)
    tails = [tail(tensorly.unfold(W, n), K) for n, K in enumerate(ranks)]
    assert max(tails) * (1 - 1e-9) <= error <= np.linalg.norm(tails) * (1 + 1e-9)
    best = np.linalg.norm(tucker_to_tensor(*hooi(W, allowed(ranks))) - W)
    start = np.linalg.norm(tucker_to_tensor(*hosvd(W, allowed(ranks))) - W)
    assert best <= start * (1 + 1e-12) and start <= np.sqrt(W.ndim) * best * (1 + 1e-9)


def allowed(ranks):
    """Ranks that do not exceed the product of the others."""
    while True:
        cut = [min(K, int(np.prod(ranks)) // K) for K in ranks]
        if cut == ranks:
            return ranks
        ranks = cut


@pytest.mark.parametrize("shape, ranks", [((6, 7), (3, 3)), ((6, 5, 7), (3, 2, 4)), ((4, 5, 3, 6), (2, 4, 1, 3))])
def test_planted_ranks_are_found(shape, ranks):
    W = planted_tucker(shape, ranks)
    W += 1e-7 * np.linalg.norm(W) / np.sqrt(W.size) * normal(*shape, seed=9)
    core, factors = hosvd(W, eps=1e-5)
    assert core.shape == ranks
    found = tucker_to_tensor(core, factors)
    for n, K in enumerate(ranks):
        assert np.linalg.matrix_rank(tensorly.unfold(found, n), tol=1e-9 * np.linalg.norm(W)) == K
    assert relative_error(found, W) < 1e-6
    counted = np.prod(ranks) + sum(D * K for D, K in zip(shape, ranks, strict=True))
    assert core.size + sum(U.size for U in factors) == counted


def test_unfoldings_of_a_truncated_tensor_have_the_ranks():
    W = normal(6, 5, 7)
    for solver in (hosvd, hooi):
        found = tucker_to_tensor(*solver(W, (4, 2, 3)))
        assert [np.linalg.matrix_rank(tensorly.unfold(found, n)) for n in range(3)] == [4, 2, 3]


def test_order_two_is_the_singular_value_decomposition():
    W = normal(5, 7)
    U, s, Vh = np.linalg.svd(W, full_matrices=False)
    core, factors = hosvd(W, (3, 3))
    np.testing.assert_allclose(np.abs(core), np.diag(s[:3]), atol=1e-10)
    np.testing.assert_allclose(tucker_to_tensor(core, factors), U[:, :3] * s[:3] @ Vh[:3], atol=1e-10)


def test_task_factor_is_that_of_the_matrix_of_all_weights():
    """Its columns are right singular vectors of the matrix with one column per task, up to sign."""
    W = normal(3, 5, 4, 6)
    Vh = np.linalg.svd(W.reshape(-1, 6), full_matrices=False)[2][:4]
    core, factors = hosvd(W, (3, 5, 4, 4))
    np.testing.assert_allclose(np.abs(Vh @ factors[-1]), np.eye(4), atol=1e-8)
    L, s, Vh = np.linalg.svd(W.reshape(-1, 6), full_matrices=False)  # the other modes being full: low rank in tasks
    best = (L[:, :4] * s[:4] @ Vh[:4]).reshape(W.shape)
    np.testing.assert_allclose(tucker_to_tensor(core, factors), best, atol=1e-8)


def test_other_coordinates_give_the_same_tensor():
    W = normal(4, 5, 6)
    core, factors = hosvd(W, (2, 3, 4))
    M = normal(3, 3, seed=5)
    moved = tensorly.tenalg.mode_dot(core, np.linalg.inv(M), 1)
    turned = tucker_to_tensor(moved, [factors[0], factors[1] @ M, factors[2]])
    np.testing.assert_allclose(turned, tucker_to_tensor(core, factors), atol=1e-10)


def test_one_task_and_modes_of_size_one():
    for shape in ((4, 5, 1), (1, 4, 5), (4, 1, 5, 1), (1, 1)):
        W = normal(*shape)
        core, factors = hosvd(W, eps=1e-12)
        assert [U.shape[0] for U in factors] == list(shape)
        np.testing.assert_allclose(tucker_to_tensor(core, factors), W, atol=1e-10)
        np.testing.assert_allclose(tucker_to_tensor(*hooi(W, core.shape)), W, atol=1e-10)


@pytest.mark.parametrize("rule", ["frobenius", "pivoted-qr"])
def test_zero_has_ranks_one(rule):
    core, factors = hosvd(np.zeros((4, 3, 5)), eps=0.1, rule=rule)
    assert core.shape == (1, 1, 1) and not tucker_to_tensor(core, factors).any()
    assert not tucker_to_tensor(*hooi(np.zeros((4, 3, 5)), (2, 2, 2))).any()


def test_pivoted_rule_chooses_every_rank_by_itself():
    W = TENSORS["noise (3, 5, 2, 4)"]
    core, _ = hosvd(W, eps=0.5, rule="pivoted-qr")
    ranks = [len(truncate(tensorly.unfold(W, n), eps=0.5, rule="pivoted-qr")[1]) for n in range(4)]
    assert list(core.shape) == ranks != list(hosvd(W, eps=0.5)[0].shape)


def test_full_rank_costs_more_than_the_tensor():
    """The second convolution of the MNIST network with ten tasks: 12928 numbers more than the weights."""
    W = torch.from_numpy(normal(4, 4, 32, 64, 10))
    core, factors = hosvd(W, W.shape)
    assert (W.numel(), core.numel() + sum(U.numel() for U in factors)) == (327680, 332932)


@pytest.mark.parametrize("solver", [lambda W: hosvd(W, (2, 2, 3)), lambda W: hooi(W, (2, 2, 3))], ids=["hosvd", "hooi"])
def test_what_goes_in_comes_out(solver):
    W = normal(4, 3, 6)
    before, best = W.copy(), tucker_to_tensor(*solver(W))
    for dtype, tol in ((np.float64, 1e-8), (np.float32, 1e-4)):
        core, factors = solver(W.astype(dtype))
        tensors, others = solver(torch.from_numpy(W.astype(dtype)).requires_grad_())
        for array, tensor in zip([core, *factors], [tensors, *others], strict=True):
            assert type(array) is np.ndarray and array.dtype == dtype and isinstance(tensor, torch.Tensor)
            np.testing.assert_allclose(array, tensor.numpy(force=True), atol=tol)
        np.testing.assert_allclose(tucker_to_tensor(core, factors), best, atol=tol)
    np.testing.assert_array_equal(W, before)


def test_gradients():
    parts = [torch.from_numpy(normal(*shape, seed=k)) for k, shape in enumerate([(2, 3, 2), (4, 2), (3, 3), (5, 2)])]
    for part in parts:
        part.requires_grad_()
    assert torch.autograd.gradcheck(lambda core, *factors: tucker_to_tensor(core, factors), parts)


# Iteration


@EVERY_TENSOR
def test_hooi_ends_where_tensorly_ends(W):
    ranks = allowed(half(W.shape))
    core, factors = hooi(W, ranks, tol=1e-12, max_iter=2000)
    reference = tensorly.decomposition.tucker(W, ranks, init="svd", tol=1e-12, n_iter_max=2000)
    np.testing.assert_allclose(tucker_to_tensor(core, factors), tensorly.tucker_to_tensor(reference), atol=1e-5)
    assert_orthonormal(factors)
    again = hooi(W, ranks, tol=1e-12, max_iter=2000)
    for one, other in zip([core, *factors], [again[0], *again[1]], strict=True):
        np.testing.assert_array_equal(one, other)


def test_hooi_ends_at_a_stationary_point():
    """Each factor spans the leading singular vectors of W contracted with the others."""
    W = normal(6, 5, 7)
    core, factors = hooi(W, (3, 2, 4), tol=1e-14, max_iter=5000)
    for n in range(3):
        others = [U.T for m, U in enumerate(factors) if m != n]
        rest = tensorly.tenalg.multi_mode_dot(W, others, modes=[m for m in range(3) if m != n])
        U = np.linalg.svd(tensorly.unfold(rest, n))[0][:, : core.shape[n]]
        np.testing.assert_allclose(factors[n] @ factors[n].T, U @ U.T, atol=1e-5)  # it converges linearly
    start = tucker_to_tensor(*hosvd(W, (3, 2, 4)))
    assert relative_error(tucker_to_tensor(core, factors), W) < relative_error(start, W) - 1e-3


def test_hooi_leaves_the_backend_of_the_user_alone():
    with tensorly.backend_context("pytorch"):
        found = hooi(normal(4, 3, 6), (2, 2, 3))
        assert tensorly.get_backend() == "pytorch"
    assert tensorly.get_backend() == "numpy"
    for part, same in zip([found[0], *found[1]], [(p := hooi(normal(4, 3, 6), (2, 2, 3)))[0], *p[1]], strict=True):
        np.testing.assert_array_equal(part, same)


def test_hooi_says_when_it_did_not_settle():
    W = normal(6, 5, 7)
    with pytest.warns(ConvergenceWarning, match=r"HOOI did not settle: .* in the last of 3 sweeps \(tol=1e-14\)"):
        hooi(W, (3, 2, 4), max_iter=3, tol=1e-14)
    with pytest.warns(ConvergenceWarning, match="the last of 1 sweeps") as caught:
        hooi(W, (3, 2, 4), max_iter=1)
    assert caught[0].filename == __file__
    hooi(W, (3, 2, 4), max_iter=3, tol=0.5)  # settled in the last sweep allowed: nothing to say


# Errors


@pytest.mark.parametrize("rule", ["frobenius", "pivoted-qr"])
def test_errors_of_both_rules(rule):
    W = normal(4, 3, 6)
    with pytest.raises(ValueError, match="exactly one of ranks and eps must be given; got neither"):
        hosvd(W, rule=rule)
    with pytest.raises(ValueError, match="exactly one of ranks and eps must be given; got both"):
        hosvd(W, (2, 2, 2), 0.1, rule=rule)
    for wrong in (0.0, 1.01, -1.0):
        with pytest.raises(ValueError, match=rf"eps must be in \(0, 1\].*; got {wrong}"):
            hosvd(W, eps=wrong, rule=rule)


def test_errors():
    W = normal(4, 3, 6)
    for solver in (hosvd, hooi):
        with pytest.raises(ValueError, match=r"ranks\[1\] must be an integer in 1\.\.3, .* mode 1 of .*; got 4"):
            solver(W, (2, 4, 2))
        with pytest.raises(ValueError, match=r"ranks\[2\] must be an integer in 1\.\.6, .* mode 2 of .*; got 0"):
            solver(normal(2, 3, 8), (2, 2, 0))
        with pytest.raises(ValueError, match=r"ranks\[0\] must be an integer in 1\.\.4, .*; got 2\.5"):
            solver(W, (2.5, 2, 2))
        with pytest.raises(ValueError, match=r"ranks must be 3 integers; got 2: \(2, 2\)"):
            solver(W, (2, 2))
        with pytest.raises(ValueError, match=r"ranks must be 3 integers; got 2$"):
            solver(W, 2)
        with pytest.raises(ValueError, match=r"W must have at least two modes; got shape \(4,\)"):
            solver(normal(4), (2,))
        with pytest.raises(ValueError, match=r"W must hold float32 or float64 numbers; got torch\.int64"):
            solver(W.astype(int), (2, 2, 2))
    with pytest.raises(ValueError, match='rule must be "frobenius" or "pivoted-qr"; got \'qr\''):
        hosvd(W, (2, 2, 2), rule="qr")
    with pytest.raises(
        ValueError, match=r"ranks\[2\] must be an integer in 1\.\.2, the product of the other ranks; got 5"
    ):
        hooi(W, (2, 1, 5))
    with pytest.raises(ValueError, match="max_iter must be a positive integer; got 0"):
        hooi(W, (2, 2, 2), max_iter=0)
    with pytest.raises(ValueError, match="tol must be > 0; got 0"):
        hooi(W, (2, 2, 2), tol=0)
    core, factors = hosvd(W, (2, 2, 3))
    with pytest.raises(ValueError, match="factors must be one matrix per mode of the core, 3; got 2"):
        tucker_to_tensor(core, factors[:2])
    with pytest.raises(ValueError, match=r"factors\[1\] must have shape \(D, 2\), as the core has; got \(2, 3\)"):
        tucker_to_tensor(core, [factors[0], factors[1].T, factors[2]])
    with pytest.raises(ValueError, match=r"core is numpy float64 and factors\[1\] is numpy float32"):
        tucker_to_tensor(core, [factors[0], factors[1].astype(np.float32), factors[2]])
