"""Penalties that group tasks: the best matrix against every other, hard clusters, limits, extreme spectra."""

import math

import numpy as np
import pytest
import torch

from companion.penalties import SquaredBoxNorm, SquaredClusterNorm, SquaredL2
from companion.penalties.clustered import box_shares
from tests.oracles import clustered as oracle

RHO1, RHO2 = 1.7, 0.6
SIZES = [(7, 4), (3, 6)]  # d, T: both ways round
LABELS = np.array([0, 1, 0, 2, 1, 0])

each_size = pytest.mark.parametrize(("d", "T"), SIZES)


def box(k, rho1=RHO1, rho2=RHO2):
    """Return the penalty of clustered multi-task learning."""
    return SquaredBoxNorm(rho2, rho1 + rho2, k)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def in_torch(function, *arrays):
    return function(*(torch.from_numpy(a) for a in arrays)).numpy()


def value(penalty, W):
    return float(penalty.value(torch.from_numpy(W)))


# --- shares of the budget --------------------------------------------------------------------------------------------

SPECTRA = {
    "falling": [3.0, 1.1, 0.7, 0.2, 0.05],
    "ties": [2.0, 2.0, 2.0, 0.5, 0.5],
    "wide": [1.0, 1e-3, 1e-6, 1e-9, 1e-12],
    "one large": [1e8, 1.0, 0.9, 0.8, 0.7],
    "zeros": [1.0, 0.4, 0.0, 0.0, 0.0],
    "one": [0.3],
}


@pytest.mark.parametrize("k", [0, 1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize(("low", "width"), [(0.5, 2.0), (1e-6, 1.0), (1e4, 1e-2), (2.0, 1e6)])
@pytest.mark.parametrize("name", SPECTRA)
def test_shares_are_those_of_a_bracket(name, low, width, k):
    s = np.array(SPECTRA[name])
    found = in_torch(lambda s: box_shares(s, low, width, k), s)
    expected = (oracle.thetas(s, low, low + width, k) - low) / width
    # Where low dwarfs the width, low + width * share has no more digits.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9 + 1e-13 * low / width)
    assert found.min() >= 0 and found.max() <= 1
    assert found.sum() == pytest.approx(min(k, np.count_nonzero(s)), abs=1e-9 + 1e-13 * low / width)
    assert not found[s == 0].any()


def test_shares_of_nothing_and_without_a_choice():
    zeros = torch.zeros(4, dtype=torch.float64)
    assert torch.equal(box_shares(zeros, 0.5, 2.0, 2), zeros)
    assert torch.equal(box_shares(torch.ones(4, dtype=torch.float64), 0.5, 0.0, 2), zeros)


# --- the best M, and no better one -----------------------------------------------------------------------------------


@each_size
@pytest.mark.parametrize("k", [1, 2, 3])
def test_closed_form_beats_500_feasible_matrices(d, T, k):
    rng = np.random.default_rng(1)
    W = normal(d, T)
    M = in_torch(box(k).projection, W)
    np.testing.assert_allclose(M, M.T, atol=1e-14)
    levels = np.linalg.eigvalsh(M)
    assert levels.min() >= -1e-12 and levels.max() <= 1 + 1e-12
    assert np.trace(M) == pytest.approx(k, rel=1e-12)
    best = oracle.joint(W, M, RHO1, RHO2)
    assert value(box(k), W) == pytest.approx(best, rel=1e-12)
    others = [oracle.random_relation(rng, T, k) for _ in range(500)]
    assert all(np.isclose(np.trace(other), k) for other in others)
    assert min(oracle.joint(W, other, RHO1, RHO2) for other in others) > best
    near = min(oracle.joint(W, M + 1e-3 * (other - M), RHO1, RHO2) for other in others)
    assert near >= best * (1 - 1e-14)


@each_size
@pytest.mark.parametrize("k", [1, 2, 3])
def test_closed_form_is_stationary(d, T, k):
    """M minimises the linear function that its gradient defines, whose minimum is the sum of k eigenvalues."""
    W = normal(d, T, seed=2)
    M = in_torch(box(k).projection, W)
    slope = oracle.slope_in_M(W, M, RHO1, RHO2)
    least = np.sort(np.linalg.eigvalsh(slope))[:k].sum()
    assert float((slope * M).sum()) == pytest.approx(least, rel=1e-10)


def test_eigenvalues_of_M_are_singular_values_cut_to_a_box():
    """Zhou et al.: ``clip(sigma / sqrt(nu) - eta, 0, 1)`` with one nu, on the right singular vectors of W."""
    W, eta = normal(7, 4, seed=3), RHO2 / RHO1
    _, s, Q = np.linalg.svd(W, full_matrices=False)
    M = in_torch(box(2).projection, W)
    shares = np.diag(Q @ M @ Q.T)
    np.testing.assert_allclose(Q @ M @ Q.T, np.diag(shares), atol=1e-12)
    free = (shares > 1e-9) & (shares < 1 - 1e-9)
    assert free.sum() >= 2, "no eigenvalue between the bounds tests nothing"
    root = s[free] / (shares[free] + eta)
    np.testing.assert_allclose(root, root[0], rtol=1e-10)
    np.testing.assert_allclose(shares, np.clip(s / root[0] - eta, 0, 1), atol=1e-10)


def test_gradient_in_M_by_finite_differences():
    """The formula that holds only for commuting matrices is off; it is the one to find in a public toolbox."""
    rng = np.random.default_rng(4)
    W, M = normal(5, 4, seed=4), oracle.random_relation(rng, 4, 2)
    D = rng.normal(size=(4, 4))
    D, h = D + D.T, 1e-5
    difference = (oracle.joint(W, M + h * D, RHO1, RHO2) - oracle.joint(W, M - h * D, RHO1, RHO2)) / (2 * h)
    assert float((oracle.slope_in_M(W, M, RHO1, RHO2) * D).sum()) == pytest.approx(difference, rel=1e-7)
    assert abs(float((oracle.slope_if_all_commuted(W, M, RHO1, RHO2) * D).sum()) / difference - 1) > 0.05


def test_jointly_convex_along_segments():
    rng = np.random.default_rng(5)
    for _ in range(50):
        W = rng.normal(size=(2, 5, 4))
        M = [oracle.random_relation(rng, 4, 2) for _ in range(2)]
        ends = [oracle.joint(W[i], M[i], RHO1, RHO2) for i in range(2)]
        for share in (0.1, 0.5, 0.9):
            mixed = oracle.joint(*((1 - share) * z[0] + share * z[1] for z in (W, M)), RHO1, RHO2)
            assert mixed <= (1 - share) * ends[0] + share * ends[1] + 1e-12
        middle = value(box(2), (W[0] + W[1]) / 2)
        assert middle <= (value(box(2), W[0]) + value(box(2), W[1])) / 2 + 1e-12


@each_size
@pytest.mark.parametrize("k", [1, 2, 3])
def test_matrix_on_features_gives_the_same_value(d, T, k):
    """ASO's ``tr W' (eta I + M)^-1 W`` with M (d, d), at the best M, is the penalty of clustered learning."""
    W = normal(d, T, seed=6)
    M = in_torch(box(k).projection, W.T.copy())
    assert M.shape == (d, d) and np.trace(M) == pytest.approx(k)
    assert oracle.joint(W.T, M, RHO1, RHO2) == pytest.approx(value(box(k), W), rel=1e-12)


# --- hard clusters ---------------------------------------------------------------------------------------------------


def test_three_quadratic_forms():
    W = normal(5, 6, seed=7)
    M, U, eye = oracle.averaging(LABELS), np.full((6, 6), 1 / 6), np.eye(6)
    forms = [np.trace(W @ A @ W.T) for A in (U, M - U, eye - M)]
    np.testing.assert_allclose(forms, oracle.three_norms(W, LABELS), rtol=1e-13)


def test_at_hard_clusters_the_joint_objective_is_within_plus_ridge():
    W = normal(5, 6, seed=8)
    within = oracle.three_norms(W, LABELS)[2]
    hard = RHO1 * within + RHO2 * (W**2).sum()
    assert oracle.joint(W, oracle.averaging(LABELS), RHO1, RHO2) == pytest.approx(hard, rel=1e-13)
    assert value(box(3), W) < hard


def test_cluster_norm_lies_below_the_three_norms_and_meets_them():
    norm = SquaredClusterNorm(0.3, 0.8, 2.5, 3)
    weights = np.array([0.3, 0.8, 2.5])
    for seed in range(20):
        W = normal(5, 6, seed=seed)
        assert value(norm, W) < weights @ oracle.three_norms(W, LABELS)
    # Tasks equal to the means of three clusters, which deviate from the common mean in two dimensions.
    W = normal(5, 3, seed=9)[:, LABELS]
    assert value(norm, W) == pytest.approx(weights @ oracle.three_norms(W, LABELS), rel=1e-12)
    M, U = oracle.averaging(LABELS), np.full((6, 6), 1 / 6)
    expected = U / 0.3 + (M - U) / 0.8 + (np.eye(6) - M) / 2.5
    np.testing.assert_allclose(in_torch(norm.covariance, W), expected, atol=1e-12)
    np.testing.assert_allclose(in_torch(box(3).projection, W), M, atol=1e-12)


@each_size
@pytest.mark.parametrize("r", [1, 2, 3])
def test_covariance_is_feasible_and_gives_the_penalty(d, T, r):
    norm, W = SquaredClusterNorm(0.3, 0.8, 2.5, r), normal(d, T, seed=10)
    S = in_torch(norm.covariance, W)
    assert np.trace(W @ np.linalg.solve(S, W.T)) == pytest.approx(value(norm, W), rel=1e-12)
    assert np.trace(S) == pytest.approx(1 / 0.3 + (T - r) / 2.5 + (r - 1) / 0.8, rel=1e-12)
    np.testing.assert_allclose(S @ np.ones(T), np.ones(T) / 0.3, rtol=1e-12)
    levels = np.sort(np.linalg.eigvalsh(S))[:-1]  # the mean has the largest
    assert levels.min() >= 1 / 2.5 - 1e-12 and levels.max() <= 1 / 0.8 + 1e-12


def test_relaxation_with_the_mean_apart_is_tighter():
    """With e_M = e_B = rho2 and e_W = rho1 + rho2 hard clusters cost the same; Jacob's set of M is smaller."""
    W = normal(5, 6, seed=11) + 1
    tight = SquaredClusterNorm(RHO2, RHO2, RHO1 + RHO2, 3)
    loose, hard = value(box(3), W), oracle.joint(W, oracle.averaging(LABELS), RHO1, RHO2)
    assert loose * 1.01 < value(tight, W) < hard
    assert float(np.array([RHO2, RHO2, RHO1 + RHO2]) @ oracle.three_norms(W, LABELS)) == pytest.approx(hard, rel=1e-13)


# --- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 4), (3, 6), (4, 1), (1, 5)])
@pytest.mark.parametrize("weight", [0.2, 3.0])
def test_ridges(shape, weight, draw, tol):
    """Equal weights; or as many cheap directions as W has; or one task, which has no deviation from the mean."""
    V, ridge = draw(*shape), SquaredL2(2 * weight)
    cases = [
        SquaredBoxNorm(weight, weight, 1),
        SquaredBoxNorm(weight, 50 * weight, min(shape)),
        SquaredBoxNorm(weight, 50 * weight, 99),
        SquaredBoxNorm(weight / 50, weight, 0),
        SquaredClusterNorm(weight, weight, weight, 2),
    ]
    if shape[1] == 1:
        cases += [SquaredClusterNorm(weight, 3 * weight, 9 * weight, r) for r in (1, 4)]
    for penalty in cases:
        torch.testing.assert_close(penalty.value(V), ridge.value(V), rtol=tol, atol=0)
        torch.testing.assert_close(penalty.prox(V, 0.7), ridge.prox(V, 0.7), rtol=0, atol=tol)
        torch.testing.assert_close(penalty.conjugate(V), ridge.conjugate(V), rtol=tol, atol=0)


def test_matrices_where_the_weights_leave_them_open():
    """Unused directions share what is left of the trace; no weights, and equal costs, make a multiple of I."""
    zero, eye = torch.zeros(5, 4, dtype=torch.float64), np.eye(4)
    assert np.array_equal(box(3).projection(zero).numpy(), 0.75 * eye)
    np.testing.assert_allclose(in_torch(SquaredBoxNorm(0.5, 0.5, 1).projection, normal(5, 4)), eye / 4, atol=1e-15)
    np.testing.assert_allclose(in_torch(box(4).projection, normal(5, 4)), eye, atol=1e-14)
    np.testing.assert_allclose(in_torch(box(9).projection, normal(5, 4)), eye, atol=1e-14)
    np.testing.assert_allclose(in_torch(box(9).projection, normal(2, 4)), eye, atol=1e-14)
    w = np.array([[3.0, 0.0, 4.0, 0.0]])  # one used direction of four, three cheap ones
    P = w.T @ w / 25
    np.testing.assert_allclose(in_torch(box(3).projection, w), P + 2 / 3 * (eye - P), atol=1e-14)
    U = np.full((4, 4), 0.25)
    expected = U / 0.3 + (eye - U) * (1 / 2.5 + (1 / 0.8 - 1 / 2.5) / 3)
    norm = SquaredClusterNorm(0.3, 0.8, 2.5, 2)
    alike = normal(5, 1) * (1 + 2.0**-52 * np.random.default_rng(1).integers(-1, 2, (5, 4)))
    for same in (zero.numpy(), alike):  # rounding is no structure
        np.testing.assert_allclose(in_torch(norm.covariance, same), expected, atol=1e-14)
    np.testing.assert_allclose(in_torch(norm.covariance, normal(5, 1)), [[1 / 0.3]], rtol=1e-15)


def test_values_by_hand():
    """Singular values 4, 3, 0 with one cheap direction: theta = (4, 3) s, cut to [1, 2] with sum 3."""
    V = torch.diag(torch.tensor([4.0, 3.0, 0.0], dtype=torch.float64))
    penalty = SquaredBoxNorm(0.5, 1.0, 1)
    level = 3 / 7
    assert float(penalty.value(V)) == pytest.approx(16 / (4 * level) + 9 / (3 * level), rel=1e-14)
    assert float(penalty.conjugate(V)) == pytest.approx((2 * 16 + 9) / 4, rel=1e-14)
    np.testing.assert_allclose(in_torch(penalty.projection, V.numpy()), np.diag([4 * level - 1, 3 * level - 1, 0]))
    joined = SquaredClusterNorm(0.25, 0.5, 1.0, 2)
    pair = torch.tensor([[3.0, 1.0]], dtype=torch.float64)  # mean 2, deviations 1 and -1
    assert float(joined.value(pair)) == pytest.approx(0.25 * 2 * 4 + 0.5 * 2, rel=1e-14)
    assert float(joined.conjugate(pair)) == pytest.approx(2 * 4 / (4 * 0.25) + 2 / (4 * 0.5), rel=1e-14)


# --- slopes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 4), (3, 6), (4, 1), (1, 5)])
@pytest.mark.parametrize(
    "penalty",
    [SquaredBoxNorm(0.4, 1.5, 2), SquaredBoxNorm(0.4, 0.4, 1), SquaredClusterNorm(0.2, 0.5, 1.4, 2)],
    ids=repr,
)
def test_gradient(penalty, shape, draw, tol):
    """It leads back from a prox, it meets the conjugate, and in float64 differences of values agree."""
    W, D = draw(*shape), draw(*shape, seed=1)
    C = penalty.gradient(W)
    torch.testing.assert_close(penalty.prox(W + 0.7 * C, 0.7), W, rtol=0, atol=tol)
    torch.testing.assert_close(penalty.value(W) + penalty.conjugate(C), (C * W).sum(), rtol=tol, atol=tol)
    if W.dtype == torch.float64:
        difference = (penalty.value(W + 1e-6 * D) - penalty.value(W - 1e-6 * D)) / 2e-6
        assert float((C * D).sum()) == pytest.approx(float(difference), rel=1e-7)
        curvature = (D * (penalty.gradient(W + 1e-6 * D) - C)).sum() / 1e-6 / (D * D).sum()
        assert 0 < float(curvature) <= float(penalty.diagonal(W).max()) * (1 + 1e-5)
    assert torch.equal(penalty.gradient(torch.zeros_like(W)), torch.zeros_like(W))


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def spectral(draw):
    """Return a function of singular values (5,) that makes a (9, 5) matrix, and its singular vectors."""
    U, Q = (torch.linalg.qr(draw(n, 5, seed=n)).Q for n in (9, 5))

    def make(values):
        return (U * torch.tensor(values, dtype=torch.float64).to(U)) @ Q.T, U, Q

    return make


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("name", [name for name, s in SPECTRA.items() if len(s) == 5])
@pytest.mark.parametrize("k", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize(("inside", "outside"), [(0.4, 1.5), (1e-4, 1e4), (1e-9, 1e9), (0.9999, 1.0)])
def test_prox_of_extreme_spectra(name, k, inside, outside, wide, spectral, dtype):
    """Above and below the accuracy at which the fast route gives way to the SVD."""
    V, U, Q = spectral(SPECTRA[name])
    s, step = np.array(SPECTRA[name]), 0.3
    theta = oracle.thetas(s, 1 / outside, 1 / inside, k, shift=2 * step)
    expected = (U * torch.from_numpy(s * theta / (theta + 2 * step)).to(U)) @ Q.T
    penalty = SquaredBoxNorm(inside, outside, k)
    found = penalty.prox(V.T, step).T if wide else penalty.prox(V, step)
    size = 2e-11 if dtype == torch.float64 else 2e-5
    torch.testing.assert_close(found, expected, rtol=0, atol=size * float(s[0]))


@pytest.mark.parametrize("shape", [(7, 3), (3, 7)])
def test_decompositions_are_those_of_the_smaller_side(shape, draw, monkeypatch):
    seen, eigh = [], torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda A: seen.append(tuple(A.shape)) or eigh(A))
    SquaredBoxNorm(0.5, 2.0, 2).prox(draw(*shape), 1.0)
    assert seen == [(3, 3)]


@pytest.mark.parametrize("power", [-0.6, 0.0, 0.6])
def test_magnitudes_whose_squares_overflow(power, draw, dtype):
    size = 2.0 ** round(math.log2(torch.finfo(dtype).max) * power)
    V = draw(6, 3)
    for penalty in (SquaredBoxNorm(0.4, 1.5, 2), SquaredClusterNorm(0.2, 0.4, 1.5, 2)):
        found = penalty.prox(size * V, 0.7) / size
        torch.testing.assert_close(found, penalty.prox(V, 0.7), rtol=0, atol=50 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("k", [1.0, "2", True, None, np.float64(2), -3])
def test_counts_are_whole_numbers(k):
    with pytest.raises(ValueError, match="k must be an integer >= 0; got"):
        SquaredBoxNorm(1.0, 2.0, k)


def test_counts_of_numpy_are_counts():
    assert SquaredBoxNorm(1.0, 2.0, np.int32(2)).k == 2
