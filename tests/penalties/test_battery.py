"""What holds for every penalty: prox, dual norm and conjugate against slow oracles and against their definitions."""

import math
import warnings

import cvxpy as cp
import numpy as np
import pytest
import torch
from scipy.optimize import brentq

from companion.penalties import (
    L1,
    BlockSparse,
    Dirty,
    MeanDeviation,
    RobustPair,
    SquaredBoxNorm,
    SquaredClusterNorm,
    SquaredL2,
    SquaredTraceNorm,
    TraceNorm,
)
from tests.oracles import clustered

D, T = 5, 3
NORMS = [
    L1(0.7),
    *(BlockSparse(0.6, q) for q in (1, 1.01, 1.3, 2, 3, 50, math.inf)),
    Dirty(0.9, 0.8, q=1.3),  # both parts in use below T^(1/p), for q = 1.3 below 1.29
    Dirty(1.2, 0.8, q=2),
    Dirty(1.6, 0.8, q=7),
    Dirty(1.6, 0.8, q=math.inf),
    Dirty(0.5, 0.8, q=math.inf),  # S = 0
    Dirty(1.6, 0.8, q=1.01),  # B = 0
    TraceNorm(0.8),
    RobustPair(0.8, 0.5),
]
GROUPED = [
    SquaredBoxNorm(0.4, 1.5, 2),
    SquaredBoxNorm(0.05, 3.0, 1),
    SquaredBoxNorm(0.7, 0.7, 1),  # a ridge
    SquaredBoxNorm(0.7, 1.6, 6),  # all directions are cheap
    SquaredClusterNorm(0.2, 0.5, 1.4, 2),
    SquaredClusterNorm(0.3, 0.3, 2.0, 1),
    SquaredClusterNorm(0.1, 0.8, 0.9, 3),
]
PENALTIES = [SquaredL2(0.7), MeanDeviation(0.4, 1.3), SquaredTraceNorm(0.3), *GROUPED, *NORMS]
SHAPES = [(D, T), (T, D), (D, 1), (1, T)]

each_penalty = pytest.mark.parametrize("penalty", PENALTIES, ids=repr)
each_norm = pytest.mark.parametrize("norm", NORMS, ids=repr)
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def shaped(penalty, shape):
    """Return the shape of the weights: the robust pair takes a stack of two."""
    return (2, *shape) if isinstance(penalty, RobustPair) else shape


# --- oracles: the same mathematics, slow and obvious, in NumPy and cvxpy ---------------------------------------------


def project_row(v, p, radius, cap=math.inf):
    """Nearest u to a row v with p-norm at most ``radius`` and entries at most ``cap``: one bracket in another."""
    size = max(abs(v)) or 1.0
    a, radius, cap = abs(v) / size, radius / size, cap / size
    if p == math.inf:
        return np.sign(v) * size * np.minimum(a, min(radius, cap))

    def shrunk(price):  # minimises (u - a)^2 / 2 + price u^p / p in every entry
        if p == 1:
            return np.minimum(np.maximum(a - price, 0), cap)
        slope = lambda u, x: u + price * u ** (p - 1) - x
        roots = [brentq(slope, 0, x, args=(x,), xtol=1e-18, rtol=1e-15) if x else 0.0 for x in a]
        return np.minimum(roots, cap)

    excess = lambda log_price: np.linalg.norm(shrunk(math.exp(log_price)), p) - radius
    if np.linalg.norm(np.minimum(a, cap), p) <= radius:
        return np.sign(v) * size * np.minimum(a, cap)
    return np.sign(v) * size * shrunk(math.exp(brentq(excess, -300, 300, xtol=1e-15, rtol=1e-15)))


def project_spectral(V, radius):
    """Nearest matrix with spectral norm at most ``radius``."""
    U, s, Qh = np.linalg.svd(V, full_matrices=False)
    return (U * np.minimum(s, radius)) @ Qh


def prox_conjugate(penalty, V, step):
    """Minimise ``||C - V||^2 / 2 + step * conjugate(C / step)``: for norms, project on step times the dual ball."""
    match penalty:
        case SquaredL2(alpha):
            return V * step * alpha / (1 + step * alpha)
        case MeanDeviation(alpha, coupling):  # the conjugate is quadratic too, with the inverse matrix
            inverse = np.linalg.inv((alpha + coupling) * np.eye(V.shape[1]) - coupling / V.shape[1])
            return np.linalg.solve(np.eye(V.shape[1]) + inverse / step, V.T).T
        case SquaredTraceNorm(gamma):  # singular values cut at a level that equals 2 gamma step times what is cut off
            s = np.linalg.svd(V, compute_uv=False)
            cut = lambda level: 2 * gamma * step * np.maximum(s - level, 0).sum() - level
            return project_spectral(V, brentq(cut, 0, s[0], xtol=1e-16, rtol=1e-15))
        case SquaredBoxNorm(inside, outside, k):  # for given theta the conjugate is a ridge of weight theta / 2
            U, s, Qh = np.linalg.svd(V, full_matrices=False)
            theta = clustered.thetas(s, 1 / outside, 1 / inside, k, shift=2 * step)
            return (U * (s / (1 + theta / (2 * step)))) @ Qh
        case SquaredClusterNorm(mean, between, within, r):
            level = V.mean(1, keepdims=True)
            rest = prox_conjugate(SquaredBoxNorm(between, within, r - 1), V - level, step)
            return level / (1 + 1 / (2 * step * mean)) + rest
        case L1(alpha):
            return V.clip(-step * alpha, step * alpha)
        case BlockSparse(alpha, q):
            return np.stack([project_row(v, conjugate_exponent(q), step * alpha) for v in V])
        case Dirty(block, sparse, q):
            return np.stack([project_row(v, conjugate_exponent(q), step * block, step * sparse) for v in V])
        case TraceNorm(alpha):
            return project_spectral(V, step * alpha)
        case RobustPair(low_rank, outlier):
            columns = V[1] / np.maximum(np.linalg.norm(V[1], axis=0) / (step * outlier), 1)
            return np.stack([project_spectral(V[0], step * low_rank), columns])


def conjugate_exponent(q):
    return math.inf if q == 1 else 1.0 if q == math.inf else 1 / (1 - 1 / q)


def modelled(penalty, shape):
    """Return the cvxpy variables that make up W, one for each layer of a stack, and the penalty of them."""
    W = cp.Variable(shape)
    size = lambda row, q: cp.pnorm(row, q, approx=False) if shape[1] > 1 else cp.abs(row)
    rows = lambda V, q: sum(size(V[j], q) for j in range(shape[0]))
    match penalty:
        case SquaredL2(alpha):
            return [W], alpha / 2 * cp.sum_squares(W)
        case MeanDeviation(alpha, coupling):
            deviation = np.eye(shape[1]) - 1 / shape[1]
            return [W], alpha / 2 * cp.sum_squares(W) + coupling / 2 * cp.sum_squares(W @ deviation)
        case SquaredTraceNorm(gamma):
            return [W], gamma * cp.square(cp.normNuc(W))
        case SquaredBoxNorm(inside, outside, k):
            rho1, rho2 = outside - inside, inside
            if rho1 == 0 or k >= shape[1]:
                return [W], rho2 * cp.sum_squares(W)
            value, constraints = clustered.clustered(rho1, rho2, k).model(W)
            return [W], value + cp.transforms.indicator(constraints)
        case SquaredClusterNorm(mean, between, within, r):
            value, constraints = clustered.jacob(mean, between, within, r).model(W)
            return [W], value + cp.transforms.indicator(constraints)
        case L1(alpha):
            return [W], alpha * cp.sum(cp.abs(W))
        case BlockSparse(alpha, q):
            return [W], alpha * rows(W, q)
        case Dirty(block, sparse, q):
            B = cp.Variable(shape)
            return [W], block * rows(B, q) + sparse * cp.sum(cp.abs(W - B))
        case TraceNorm(alpha):
            return [W], alpha * cp.normNuc(W)
        case RobustPair(low_rank, outlier):
            O = cp.Variable(shape)
            columns = sum(cp.norm(O[:, t]) for t in range(shape[1]))
            return [W, O], low_rank * cp.normNuc(W) + outlier * columns


def optimum(sense, expression, constraints=()):
    """Solve a convex problem with cvxpy, and return its optimal value."""
    problem = cp.Problem(sense(expression), list(constraints))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "may be inaccurate" only says that 1e-9 was out of reach
        problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-9, tol_gap_rel=1e-9, tol_feas=1e-9)
    return problem.value


def to_numpy(tensor):
    return tensor.cpu().double().numpy()


def objective(penalty, W, V, step):
    return ((W - V) ** 2).sum() / 2 + step * penalty.value(W)


# --- prox ------------------------------------------------------------------------------------------------------------


@each_shape
@each_penalty
def test_moreau_with_the_prox_of_the_conjugate(penalty, shape, draw, tol):
    """V = prox of the penalty + prox of its conjugate, the second computed by bracketing and an SVD."""
    for step in (0.3, 1.7):
        V = draw(*shaped(penalty, shape))
        found = to_numpy(penalty.prox(V, step))
        np.testing.assert_allclose(found, to_numpy(V) - prox_conjugate(penalty, to_numpy(V), step), atol=tol)


@each_penalty
def test_prox_reaches_the_optimum_of_cvxpy(penalty, draw, tol):
    V = draw(*shaped(penalty, (D, T)), seed=1)
    parts, value = modelled(penalty, (D, T))
    layers = to_numpy(V) if len(parts) > 1 else [to_numpy(V)]
    distance = sum(cp.sum_squares(W - v) for W, v in zip(parts, layers, strict=True))
    best = optimum(cp.Minimize, distance / 2 + 0.6 * value)
    assert float(objective(penalty, penalty.prox(V, 0.6), V, 0.6)) == pytest.approx(best, rel=tol, abs=tol)


@each_shape
@each_penalty
def test_no_step_away_from_the_prox_is_better(penalty, shape, draw, dtype):
    V = draw(*shaped(penalty, shape), seed=2)
    W = penalty.prox(V, 0.8)
    best = objective(penalty, W, V, 0.8)
    noise = 50 * torch.finfo(dtype).eps * (1 + best.abs())
    for seed in range(20):
        direction = draw(*V.shape, seed=100 + seed)
        for size in (1e-1, 1e-2, 1e-3, 1e-4):
            gain = best - objective(penalty, W + size * direction, V, 0.8)
            assert gain <= noise
            assert best - objective(penalty, W - size * W, V, 0.8) <= noise


@each_shape
@each_penalty
def test_prox_is_firmly_nonexpansive(penalty, shape, draw, tol):
    for seed, scale in enumerate((0.1, 1.0, 10.0)):
        V, U = (scale * draw(*shaped(penalty, shape), seed=seed + off) for off in (10, 20))
        moved = penalty.prox(V, 0.7) - penalty.prox(U, 0.7)
        assert (moved**2).sum() <= (moved * (V - U)).sum() + tol * scale**2


@each_shape
@each_penalty
def test_no_step_is_no_change(penalty, shape, draw, tol):
    V = draw(*shaped(penalty, shape))
    V[..., 0, :] = V[..., -1, 0] = 0.0
    torch.testing.assert_close(penalty.prox(V, 0.0), V, rtol=0, atol=tol)


@each_penalty
def test_prox_leaves_its_argument_alone(penalty, draw):
    V = draw(*shaped(penalty, (D, T)))
    before = V.clone()
    W = penalty.prox(V, 0.5)
    assert torch.equal(V, before)
    assert (W.dtype, W.device, W.shape) == (V.dtype, V.device, V.shape)
    for made in (penalty.value(V), penalty.conjugate(V)):
        assert (made.dtype, made.device, made.ndim) == (V.dtype, V.device, 0)


# --- value, dual norm, conjugate -------------------------------------------------------------------------------------


@each_penalty
def test_value_is_that_of_cvxpy(penalty, draw, tol):
    W = draw(*shaped(penalty, (D, T)), seed=3)
    parts, value = modelled(penalty, (D, T))
    layers = to_numpy(W) if len(parts) > 1 else [to_numpy(W)]
    best = optimum(cp.Minimize, value, [part == w for part, w in zip(parts, layers, strict=True)])
    assert float(penalty.value(W)) == pytest.approx(best, rel=10 * tol)  # what the solver leaves of its constraints


@each_norm
def test_dual_norm_is_the_maximum_over_the_unit_ball(norm, draw, tol):
    C = draw(*shaped(norm, (D, T)), seed=4)
    parts, value = modelled(norm, (D, T))
    layers = to_numpy(C) if len(parts) > 1 else [to_numpy(C)]
    product = sum(cp.sum(cp.multiply(W, c)) for W, c in zip(parts, layers, strict=True))
    assert norm.dual_norm(C) == pytest.approx(optimum(cp.Maximize, product, [value <= 1]), rel=10 * tol)


@each_shape
@each_norm
def test_no_weights_beat_the_dual_norm(norm, shape, draw):
    C = draw(*shaped(norm, shape), seed=5)
    for seed in range(20):
        W = norm.prox(3 * draw(*C.shape, seed=seed) + C, 1.0)  # sparse or of low rank, where the maximum is
        assert (C * W).sum() <= norm.dual_norm(C) * norm.value(W) * (1 + 1e-5)


@each_shape
@each_norm
def test_value_is_a_norm(norm, shape, draw, dtype):
    W, U = draw(*shaped(norm, shape), seed=6), draw(*shaped(norm, shape), seed=7)
    for factor in (-2.5, 0.3, 1e3):
        assert float(norm.value(factor * W)) == pytest.approx(abs(factor) * float(norm.value(W)), rel=1e-5)
    assert norm.value(W + U) <= (norm.value(W) + norm.value(U)) * (1 + 1e-6)
    assert norm.value(W) > 0
    assert isinstance(norm.dual_norm(W), float)


@each_shape
@each_penalty
def test_conjugate_is_met_at_the_prox(penalty, shape, draw, tol):
    """Fenchel: value(W) + conjugate(C) >= <C, W> for every feasible C, with equality at C = V - W, W = prox(V, 1)."""
    V, other = draw(*shaped(penalty, shape), seed=8), draw(*shaped(penalty, shape), seed=9)
    W = penalty.prox(V, 1.0)
    C = V - W
    assert penalty.dual_scale(C) == pytest.approx(1.0, rel=tol)
    torch.testing.assert_close(penalty.value(W) + penalty.conjugate(C), (C * W).sum(), rtol=0, atol=10 * tol)
    feasible = penalty.dual_scale(other) * other
    assert penalty.value(W) + penalty.conjugate(feasible) >= (feasible * W).sum() - tol


@each_norm
def test_dual_scale_puts_a_point_on_the_ball_or_leaves_it(norm, draw, tol):
    C = draw(*shaped(norm, (D, T)))
    size = norm.dual_norm(C)
    assert norm.dual_scale(C * (3 / size)) == pytest.approx(1 / 3, rel=tol)
    assert norm.dual_scale(C * (0.3 / size)) == 1.0


@each_shape
@each_norm
def test_prox_is_zero_exactly_up_to_dual_norm_one(norm, shape, draw):
    V = draw(*shaped(norm, shape), seed=11)
    V = V / norm.dual_norm(V)
    assert torch.equal(norm.prox(0.9999 * V, 1.0), torch.zeros_like(V))
    assert norm.prox(1.0001 * V, 1.0).abs().max() > 0


@each_shape
@each_penalty
def test_nothing_is_divided_by_zero(penalty, shape, draw):
    Z = torch.zeros_like(draw(*shaped(penalty, shape)))
    assert torch.equal(penalty.prox(Z, 0.5), Z)
    assert penalty.value(Z) == 0
    assert penalty.conjugate(Z) == 0
    assert penalty.dual_scale(Z) == 1.0
    V = 5 * draw(*shaped(penalty, shape))
    V[..., 0, :] = 0.0  # a feature that no task uses
    W = penalty.prox(V, 0.1)
    assert W.isfinite().all()
    assert penalty.value(V).isfinite()
    assert W[..., 0, :].abs().max() < 1e-5  # rounding, where rows are mixed
    if not isinstance(penalty, (TraceNorm, SquaredTraceNorm, RobustPair, SquaredBoxNorm, SquaredClusterNorm)):
        assert torch.equal(W[0], torch.zeros_like(W[0]))


@each_penalty
def test_order_of_tasks_and_features_does_not_matter(penalty, draw, tol):
    V = draw(*shaped(penalty, (D, T)), seed=12)
    features, tasks = torch.tensor([3, 0, 4, 1, 2]), torch.tensor([2, 0, 1])
    mixed = V[..., features, :][..., tasks]
    W = penalty.prox(V, 0.4)[..., features, :][..., tasks]
    torch.testing.assert_close(penalty.prox(mixed, 0.4), W, rtol=0, atol=tol)
    torch.testing.assert_close(penalty.value(mixed), penalty.value(V), rtol=tol, atol=0)
    assert penalty.dual_scale(mixed) == pytest.approx(penalty.dual_scale(V), rel=tol)


@each_penalty
def test_scaled_is_the_penalty_times_a_factor(penalty, draw, tol):
    V = draw(*shaped(penalty, (D, T)), seed=13)
    triple = penalty.scaled(3.0)
    assert type(triple) is type(penalty)
    torch.testing.assert_close(triple.value(V), 3 * penalty.value(V), rtol=tol, atol=0)
    torch.testing.assert_close(triple.prox(V, 0.2), penalty.prox(V, 0.6), rtol=0, atol=tol)
    torch.testing.assert_close(triple.conjugate(3 * V), 3 * penalty.conjugate(V), rtol=tol, atol=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: L1(0.0), "alpha must be a finite number > 0; got 0.0"),
        (lambda: SquaredL2(-1.0), "alpha must be a finite number > 0; got -1.0"),
        (lambda: BlockSparse(math.nan), "alpha must be a finite number > 0; got nan"),
        (lambda: BlockSparse(1.0, 0.5), r"q must be a number in \[1, inf\]; got 0.5"),
        (lambda: BlockSparse(1.0, math.nan), r"q must be a number in \[1, inf\]; got nan"),
        (lambda: Dirty(0.0, 1.0), "alpha_block must be a finite number > 0; got 0.0"),
        (lambda: Dirty(1.0, math.inf), "alpha_sparse must be a finite number > 0; got inf"),
        (lambda: Dirty(1.0, 1.0, 0.0), r"q must be a number in \[1, inf\]; got 0.0"),
        (lambda: TraceNorm(-0.1), "alpha must be a finite number > 0; got -0.1"),
        (lambda: MeanDeviation(0.0, 1.0), "alpha must be a finite number > 0; got 0.0"),
        (lambda: MeanDeviation(1.0, -1.0), "coupling must be a finite number >= 0; got -1.0"),
        (lambda: MeanDeviation(1.0, math.inf), "coupling must be a finite number >= 0; got inf"),
        (lambda: SquaredTraceNorm(0.0), "gamma must be a finite number > 0; got 0.0"),
        (lambda: SquaredBoxNorm(0.0, 1.0, 1), "inside must be a finite number > 0; got 0.0"),
        (lambda: SquaredBoxNorm(1.0, math.inf, 1), "outside must be a finite number > 0; got inf"),
        (lambda: SquaredBoxNorm(1.0, 0.5, 1), r"satisfy outside >= inside; got inside=1\.0 > outside=0\.5"),
        (lambda: SquaredBoxNorm(1.0, 2.0, -1), "k must be an integer >= 0; got -1"),
        (lambda: SquaredClusterNorm(math.nan, 1.0, 1.0, 1), "mean must be a finite number > 0; got nan"),
        (lambda: SquaredClusterNorm(0.3, 0.2, 1.0, 1), "within >= between >= mean; got mean=0.3 > between=0.2"),
        (lambda: SquaredClusterNorm(0.1, 0.2, 0.1, 1), "within >= between >= mean; got between=0.2 > within=0.1"),
        (lambda: SquaredClusterNorm(0.1, 0.2, 0.3, 0), "n_clusters must be an integer >= 1; got 0"),
        (lambda: RobustPair(0.0, 1.0), "alpha_low_rank must be a finite number > 0; got 0.0"),
        (lambda: RobustPair(1.0, -2.0), "alpha_outlier must be a finite number > 0; got -2.0"),
        (lambda: L1(1.0).scaled(0.0), "alpha must be a finite number > 0; got 0.0"),
    ],
)
def test_weights_and_exponents_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()
