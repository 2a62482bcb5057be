"""Penalties on singular values: the fast route against the SVD, and what they become in simple cases."""

import math

import numpy as np
import pytest
import torch

from companion.penalties import BlockSparse, RobustPair, SquaredTraceNorm, TraceNorm

SPECTRA = {
    "even": [1.0, 0.9, 0.8, 0.7],
    "equal": [1.0, 1.0, 1.0, 1.0],
    "wide": [1.0, 1e-3, 1e-6, 1e-9],
    "low rank": [1.0, 0.5, 0.0, 0.0],
}


@pytest.fixture
def spectral(draw):
    """Return a function of singular values (4,) that makes a (9, 4) matrix, and its singular vectors."""
    U, Q = (torch.linalg.qr(draw(n, 4, seed=n)).Q for n in (9, 4))

    def make(values):
        return (U * torch.tensor(values, dtype=torch.float64).to(U)) @ Q.T, U, Q

    return make


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("tau", [0.3, 1e-2, 1e-4, 1e-7, 1e-10])
def test_singular_values_are_lowered(name, tau, wide, spectral, dtype):
    """Above and below the accuracy at which the fast route gives way to the SVD."""
    V, U, Q = spectral(SPECTRA[name])
    lowered = torch.tensor(SPECTRA[name], dtype=torch.float64).sub(tau).clamp(min=0).to(U)
    expected = (U * lowered) @ Q.T
    found = TraceNorm(tau).prox(V.T, 1.0).T if wide else TraceNorm(tau).prox(V, 1.0)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("shape", [(7, 3), (3, 7)])
def test_decompositions_are_those_of_the_smaller_side(shape, draw, monkeypatch):
    seen, eigh = [], torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda A: seen.append(tuple(A.shape)) or eigh(A))
    TraceNorm(0.5).prox(draw(*shape), 1.0)
    assert seen == [(3, 3)]


@pytest.mark.parametrize("power", [-0.6, 0.0, 0.6])
def test_magnitudes_whose_squares_overflow(power, draw, dtype):
    size = 2.0 ** round(math.log2(torch.finfo(dtype).max) * power)
    V = draw(6, 3)
    for penalty in (TraceNorm(0.9), RobustPair(0.9, 0.4)):
        Z = torch.stack([V, 2 * V]) if isinstance(penalty, RobustPair) else V
        found = penalty.prox(size * Z, size) / size
        torch.testing.assert_close(found, penalty.prox(Z, 1.0), rtol=0, atol=50 * torch.finfo(dtype).eps)


def test_what_is_lowered_to_zero_is_gone(spectral, dtype):
    V, _, _ = spectral([3.0, 2.0, 0.5, 0.4])
    W = TraceNorm(0.6).prox(V, 1.0)
    assert torch.linalg.matrix_rank(W, atol=20 * torch.finfo(dtype).eps) == 2


def test_one_task_has_its_length_as_trace_norm(draw, tol):
    """T = 1: one singular value, the Euclidean norm; the same as a single row of the block norm."""
    v = draw(6, 1)
    norm, row = TraceNorm(0.7), BlockSparse(0.7, 2)
    torch.testing.assert_close(norm.value(v), 0.7 * v.norm(), rtol=tol, atol=0)
    torch.testing.assert_close(norm.prox(v, 0.9), row.prox(v.T, 0.9).T, rtol=0, atol=tol)
    assert norm.dual_norm(v) == pytest.approx(float(v.norm()) / 0.7, rel=tol)


def test_values_by_hand(spectral, tol):
    V, _, _ = spectral([3.0, 2.0, 0.5, 0.25])
    assert float(TraceNorm(0.4).value(V)) == pytest.approx(0.4 * 5.75, rel=tol)
    assert TraceNorm(0.4).dual_norm(V) == pytest.approx(3 / 0.4, rel=tol)
    assert float(SquaredTraceNorm(0.4).value(V)) == pytest.approx(0.4 * 5.75**2, rel=tol)
    assert float(SquaredTraceNorm(0.4).conjugate(V)) == pytest.approx(9 / 1.6, rel=tol)


@pytest.mark.parametrize("gamma", [1e-9, 0.01, 0.3, 50.0])
def test_squared_norm_acts_as_the_norm_with_twice_the_sum(gamma, draw, tol):
    """At its own prox, the square has the gradient of the trace norm times 2 gamma ||W||_*."""
    V = draw(6, 4)
    W = SquaredTraceNorm(gamma).prox(V, 0.5)
    same = TraceNorm(2 * gamma * float(torch.linalg.svdvals(W).sum())).prox(V, 0.5)
    torch.testing.assert_close(W, same, rtol=0, atol=tol)
    assert W.abs().max() > 0  # a square never removes everything


def test_pair_treats_columns_as_tasks(draw, tol):
    """One outlier task in Z[1]: its column is shortened and the short ones vanish."""
    O = 0.1 * draw(5, 3)
    O[:, 1] = torch.tensor([3.0, 0, 4, 0, 0])
    Z = torch.stack([torch.zeros_like(O), O])
    pair = RobustPair(0.8, 0.5)
    W = pair.prox(Z, 2.0)
    expected = torch.zeros_like(O)
    expected[:, 1] = 0.8 * O[:, 1]  # of length 5, shortened by 1
    torch.testing.assert_close(W[1], expected, rtol=0, atol=tol)
    lengths = np.linalg.norm(O.cpu().double().numpy(), axis=0)
    assert float(pair.value(Z)) == pytest.approx(0.5 * lengths.sum(), rel=tol)
    assert pair.dual_norm(Z) == pytest.approx(10.0, rel=tol)
    assert pair.dual_norm(Z.flip(0)) == pytest.approx(float(torch.linalg.svdvals(O)[0]) / 0.8, rel=tol)
