"""The dirty model's penalty: the split it optimises out, and the penalties it becomes when one part is too dear."""

import math

import cvxpy as cp
import numpy as np
import pytest
import torch

from companion.penalties import L1, BlockSparse, Dirty
from companion.penalties._rows import prox_row_norms

EXPONENTS = [1.01, 1.5, 2, 3, 50, math.inf]
T = 4


def both_used(q, place=0.5):
    """Return a penalty with 1 < alpha_block / alpha_sparse < T^(1/p), at T^(place/p) in this range."""
    return Dirty(0.7 * T ** (place * (1 if q == math.inf else 1 - 1 / q)), 0.7, q)


@pytest.fixture
def weights(draw):
    """(8, 4) weights with every kind of row: plain, one weight, all tied, two tied, with zeros, of zeros, spread."""
    kinds = [[0, -2, 0, 0], [1, 1, -1, 1], [3, 3, 1, 0.5], [0, 0.1, 0, 4], [0, 0, 0, 0], [1, 1e-9, 1e-3, 0]]
    return torch.cat([draw(2, T), torch.tensor(kinds, dtype=torch.float64).to(draw(1))])


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("q", EXPONENTS)
def test_no_split_is_cheaper(q, place, weights, tol):
    """Row by row against cvxpy, and against every clipping level: the price is convex in it."""
    penalty = both_used(q, place)
    B, S = penalty.split(weights)
    torch.testing.assert_close(B + S, weights, rtol=0, atol=1e-7 * tol)
    price = BlockSparse(penalty.alpha_block, q).value(B) + L1(penalty.alpha_sparse).value(S)
    assert float(penalty.value(weights)) == pytest.approx(float(price), rel=1e-6)
    W = weights.cpu().double().numpy()
    block = lambda B: penalty.alpha_block * np.linalg.norm(B, q, axis=1)
    sparse = lambda S: penalty.alpha_sparse * np.abs(S).sum(axis=1)
    levels = np.abs(W).max(axis=1, keepdims=True) * np.linspace(0, 1, 501)
    prices = [block(W.clip(-t, t)) + sparse(W - W.clip(-t, t)) for t in np.moveaxis(levels[..., None], 1, 0)]
    ours = block(B.cpu().double().numpy()) + sparse(S.cpu().double().numpy())
    assert (ours <= np.min(prices, axis=0) + tol).all()


@pytest.mark.parametrize("q", EXPONENTS)
def test_the_split_is_that_of_cvxpy(q, draw, tol):
    penalty, W = both_used(q), draw(3, T)
    B = cp.Variable((3, T))
    rows = sum(cp.pnorm(B[j], q, approx=False) for j in range(3))
    problem = cp.Problem(
        cp.Minimize(penalty.alpha_block * rows + penalty.alpha_sparse * cp.sum(cp.abs(W.cpu().double().numpy() - B)))
    )
    problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-9, tol_gap_rel=1e-9, tol_feas=1e-9)
    assert float(penalty.value(W)) == pytest.approx(problem.value, rel=tol)
    if 1.5 <= q <= 3:  # elsewhere the price is nearly flat, and its minimum not unique at q = inf
        np.testing.assert_allclose(penalty.split(W)[0].cpu().double().numpy(), B.value, atol=1e-3)


@pytest.mark.parametrize("q", [1, *EXPONENTS])
def test_dear_sparse_part_leaves_the_block_norm(q, draw):
    V, block = draw(5, T), BlockSparse(0.6, q)
    for sparse in (0.6, 0.7, 100.0):
        penalty = Dirty(0.6, sparse, q)
        assert torch.equal(penalty.prox(V, 1.3), block.prox(V, 1.3))
        assert torch.equal(penalty.split(V)[0], V)
        assert torch.equal(penalty.split(V)[1], torch.zeros_like(V))
        assert penalty.value(V) == block.value(V)
        assert penalty.dual_norm(V) == block.dual_norm(V)


@pytest.mark.parametrize("q", [1, *EXPONENTS])
def test_dear_block_part_leaves_the_lasso(q, draw, tol):
    V, lasso = draw(5, T), L1(0.6)
    limit = T ** (1.0 if q == math.inf else 1 - 1 / q)
    for factor in (1 + 1e-12, 1.1, 100.0):
        penalty = Dirty(0.6 * factor * limit, 0.6, q)
        assert torch.equal(penalty.prox(V, 1.3), lasso.prox(V, 1.3))
        assert torch.equal(penalty.split(V)[0], torch.zeros_like(V))
        assert torch.equal(penalty.split(V)[1], V)
        assert penalty.value(V) == lasso.value(V)
        assert penalty.dual_norm(V) == pytest.approx(lasso.dual_norm(V), rel=tol)


def test_no_power_overflows(draw):
    """Exponents close to one have huge duals: 1500^101 is beyond float64."""
    V = draw(2, 2000)
    penalty = Dirty(0.6 * 1500, 0.6, 1.01)
    assert torch.equal(penalty.split(V)[1], V)
    assert torch.equal(penalty.prox(V, 0.5), L1(0.6).prox(V, 0.5))


@pytest.mark.parametrize("q", EXPONENTS)
def test_nothing_jumps_where_a_part_drops_out(q, draw, tol):
    """Just inside the regime in which both parts are used, the penalty is that of the regime outside."""
    V = draw(5, T)
    limit = T ** (1.0 if q == math.inf else 1 - 1 / q)
    for inside, outside in ((1 + 1e-10, BlockSparse(0.6, q)), (limit * (1 - 1e-10), L1(0.6))):
        penalty = Dirty(0.6 * inside, 0.6, q)
        torch.testing.assert_close(penalty.prox(V, 0.8), outside.prox(V, 0.8), rtol=0, atol=tol)
        torch.testing.assert_close(penalty.value(V), outside.value(V), rtol=tol, atol=0)


@pytest.mark.parametrize("q", EXPONENTS)
def test_between_its_collapses_it_is_below_both(q, draw):
    penalty, W = both_used(q), draw(5, T)
    assert penalty.value(W) < BlockSparse(penalty.alpha_block, q).value(W)
    assert penalty.value(W) < L1(penalty.alpha_sparse).value(W)


@pytest.mark.parametrize("q", EXPONENTS)
def test_prox_and_split_solve_the_problem_in_both_parts(q, weights, dtype):
    """W = prox(V), and V - W is at once a subgradient of both norms at the parts of W."""
    penalty, V = both_used(q, 0.4), 3 * weights
    W = penalty.prox(V, 1.0)
    B, S = penalty.split(W)
    C = V - W
    eps = torch.finfo(dtype).eps
    for part, norm in ((B, BlockSparse(penalty.alpha_block, q)), (S, L1(penalty.alpha_sparse))):
        assert norm.dual_norm(C) <= 1 + 40 * eps
        torch.testing.assert_close((C * part).sum(), norm.value(part), rtol=0, atol=500 * eps)


def test_closed_form_at_two_agrees_with_the_root_finder(weights, tol):
    for place in (0.05, 0.5, 0.95):
        penalty = both_used(2, place)
        roots = prox_row_norms(weights, 2, penalty.alpha_block, penalty.alpha_sparse)
        torch.testing.assert_close(penalty.prox(weights, 1.0), roots, rtol=0, atol=tol)


@pytest.mark.parametrize("q", EXPONENTS)
def test_rows_of_any_magnitude(q, weights, dtype):
    penalty = both_used(q)
    W, (B, _) = penalty.prox(weights, 1.0), penalty.split(weights)
    for k in (-400, 400) if dtype == torch.float64 else (-40, 40):
        large = weights * 2.0**k
        torch.testing.assert_close(penalty.prox(large, 2.0**k) / 2.0**k, W, rtol=0, atol=40 * torch.finfo(dtype).eps)
        torch.testing.assert_close(penalty.split(large)[0] / 2.0**k, B, rtol=0, atol=40 * torch.finfo(dtype).eps)


def test_rows_in_numbers():
    assert tuple(Dirty(0.9, 0.5).rows) == (0.9, 0.5, math.inf)
    assert tuple(Dirty(0.9, 0.5, 2).rows) == (0.9, 0.5, 2)
