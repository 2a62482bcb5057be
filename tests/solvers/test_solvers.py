"""Weighted least squares, proximal Newton and their certificates against scikit-learn, dense algebra and SciPy."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.linear_model import Lasso, LogisticRegression, Ridge

from companion.losses import LogisticLoss, SquaredLoss
from companion.penalties import L1, SquaredL2
from companion.solvers import LassoProblem, Problem, Result, RidgeProblem, prox_newton
from companion.solvers.problem import logistic_intercepts
from companion.solvers.rows import RaggedRows

N, D, G = 23, 4, 3


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    X, v = rng.normal(size=(N, D)), rng.uniform(0.2, 2, N)
    groups = rng.permutation(np.arange(N) % G)
    y = X @ rng.normal(size=D) + groups + rng.normal(size=N)
    return tuple(torch.from_numpy(a) for a in (X, y, v, groups))


def problem_of(loss, X, y, v, groups=None, n_groups=1):
    """One weight vector for all rows; rows of a group share a free intercept."""
    index = torch.zeros(len(y), dtype=torch.int64) if groups is None else groups
    return Problem(RaggedRows(X, [0, len(y)], index, n_groups), y, v, loss, free=groups is not None)


def ridge_steps(X, groups, n_groups, alpha):
    return lambda z, h, W, gap: RidgeProblem(X, z, h, groups, n_groups).solve(alpha)[:, None]


def dense_design(X, groups):
    """Intercepts as free dummy columns: the slow, obvious way."""
    return torch.cat([X, torch.nn.functional.one_hot(groups, G).double()], dim=1)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 40.0])
def test_ridge_with_group_intercepts_solves_the_normal_equations(data, alpha):
    X, y, v, groups = data
    problem = RidgeProblem(X, y, v, groups, G)
    w = problem.solve(alpha)
    Z = dense_design(X, groups)
    ridge = alpha * torch.diag(torch.tensor([1.0] * D + [0.0] * G, dtype=torch.float64))
    expected = torch.linalg.solve(Z.T @ (v[:, None] * Z) + ridge, Z.T @ (v * y))
    torch.testing.assert_close(torch.cat([w, problem.intercepts(w)]), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("n", [6, N])
def test_ridge_without_intercept_for_wide_and_tall_designs(data, n):
    X, y, v, _ = (a[:n] for a in data)
    wide = torch.cat([X, X**2, X**3], dim=1)
    expected = Ridge(alpha=0.4, fit_intercept=False, tol=1e-12).fit(wide, y, sample_weight=v).coef_
    np.testing.assert_allclose(RidgeProblem(wide, y, v, None, 1).solve(0.4), expected, rtol=1e-8)


def test_alpha_zero_gives_the_smallest_least_squares_solution(data):
    X, y, v, _ = data
    twice = torch.cat([X, X[:, :2]], dim=1)  # collinear
    root = v.sqrt().numpy()
    expected = np.linalg.lstsq(root[:, None] * twice.numpy(), root * y.numpy())[0]
    np.testing.assert_allclose(RidgeProblem(twice, y, v, None, 1).solve(0.0), expected, rtol=1e-8, atol=1e-10)


def test_lasso_matches_scikit_learn_and_certifies_itself(data):
    X, y, v, groups = data
    problem = LassoProblem(X, y, v, groups * 0, 1, gap=1e-10)
    w = problem.solve(3.0)
    expected = Lasso(alpha=3.0 / float(v.sum()), tol=1e-14, max_iter=100_000).fit(X, y, sample_weight=v)
    np.testing.assert_allclose(w, expected.coef_, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(problem.intercepts(w), [expected.intercept_], rtol=1e-8)
    certificate = problem_of(SquaredLoss(), problem.X, problem.y, v)
    assert 0 <= certificate.certify(L1(3.0), certificate.at(w[:, None])).gap <= 1e-10


@pytest.mark.parametrize("alpha", [0.05, 2.0])
def test_logistic_ridge_matches_scikit_learn(data, alpha):
    X, y, v, groups = data
    y = (y - y.median()).sign() + (y == y.median())
    problem = problem_of(LogisticLoss(), X, y, v, groups * 0)
    quadratic = ridge_steps(X, groups * 0, 1, alpha)
    point, certificate, _ = prox_newton(problem, SquaredL2(alpha), quadratic, 1e-13 * problem.null_objective, 100)
    w, b = point.W[:, 0], point.intercept
    model = LogisticRegression(C=1 / alpha, solver="newton-cholesky", tol=1e-12).fit(X, y, sample_weight=v)
    np.testing.assert_allclose(w, model.coef_[0], rtol=1e-7)
    np.testing.assert_allclose(b, model.intercept_, rtol=1e-7)
    assert abs(certificate.gap) <= 1e-12 * float(v.sum())


def test_logistic_lasso_with_group_intercepts_matches_scipy(data):
    X, y, v, groups = data
    y, alpha = (y - y.median()).sign() + (y == y.median()), 3.8
    problem = problem_of(LogisticLoss(), X, y, v, groups, G)
    quadratic = lambda z, h, W, gap: LassoProblem(X, z, h, groups, G, gap).solve(alpha)[:, None]
    point, certificate, _ = prox_newton(problem, L1(alpha), quadratic, 1e-12 * problem.null_objective, 100)
    w, b = point.W[:, 0], point.intercept
    A, s, u = (a.numpy() for a in (dense_design(X, groups), y, v))

    def objective(z):  # w = plus - minus, both >= 0, makes the l1 norm smooth
        beta = np.concatenate([z[:D] - z[D : 2 * D], z[2 * D :]])
        margin = s * (A @ beta)
        slope = -A.T @ (u * s / (1 + np.exp(margin)))
        gradient = np.concatenate([slope[:D] + alpha, -slope[:D] + alpha, slope[D:]])
        return u @ np.logaddexp(0, -margin) + alpha * z[: 2 * D].sum(), gradient

    bounds = [(0, None)] * (2 * D) + [(None, None)] * G
    best = minimize(objective, np.zeros(2 * D + G), jac=True, bounds=bounds, options={"ftol": 1e-15, "gtol": 1e-10})
    assert certificate.primal <= best.fun + 1e-10
    assert certificate.dual <= best.fun
    np.testing.assert_allclose(w, best.x[:D] - best.x[D : 2 * D], atol=1e-5)
    np.testing.assert_allclose(b, best.x[2 * D :], atol=1e-4)
    assert 0 < (w == 0).sum() < D


@pytest.mark.parametrize("penalty", [SquaredL2(0.7), L1(0.7)], ids=["ridge", "lasso"])
@pytest.mark.parametrize("loss", [SquaredLoss(), LogisticLoss()], ids=["squared", "logistic"])
def test_certificate_bounds_the_optimum_from_any_point(data, loss, penalty):
    """Weak duality: every dual value lies under every primal value, wherever they are taken."""
    X, y, v, _ = data
    y = y.sign() if isinstance(loss, LogisticLoss) else y
    rng = torch.Generator().manual_seed(1)
    points = [torch.randn(D, 1, dtype=torch.float64, generator=rng) * s for s in (0.0, 0.1, 1.0, 5.0)]
    problem = problem_of(loss, X, y, v)
    certificates = [problem.certify(penalty, problem.at(w)) for w in points]
    assert max(c.dual for c in certificates) <= min(c.primal for c in certificates)


def test_intercepts_zero_the_gradient_of_every_group(data):
    X, y, v, groups = data
    y = torch.where(torch.arange(N) % 4 == 0, 1.0, -1.0).double()
    m = 30 * X[:, 0]
    b = logistic_intercepts(RaggedRows(X, [0, N], groups, G), m, y, v)
    slope = LogisticLoss().grad(y, m + b[groups], v)
    for g in range(G):
        assert abs(float(slope[groups == g].sum())) < 1e-12


def test_intercepts_settle_in_a_few_steps(monkeypatch):
    """Newton's steps converge; a bracket that shuts them out would bisect to the end of the loop."""
    rng = torch.Generator().manual_seed(0)
    calls = []
    slope = LogisticLoss.grad
    monkeypatch.setattr(LogisticLoss, "grad", lambda self, y, m, v: calls.append(1) or slope(self, y, m, v))
    for _ in range(30):
        m = 5 * torch.randn(N, dtype=torch.float64, generator=rng)
        y = torch.where(torch.rand(N, generator=rng) < 0.3, 1.0, -1.0).double()
        v, groups = torch.rand(N, dtype=torch.float64, generator=rng) + 0.1, torch.zeros(N, dtype=torch.int64)
        calls.clear()
        b = logistic_intercepts(RaggedRows(m[:, None], [0, N], groups, 1), m, y, v)
        assert len(calls) <= 20
        assert abs(float(slope(LogisticLoss(), y, m + b, v).sum())) < 1e-13


def test_prox_newton_never_rises_and_stops_at_max_iter(data):
    X, y, v, groups = data
    y = y.sign()
    problem = problem_of(LogisticLoss(), 50 * X, y, v, groups * 0)
    quadratic = ridge_steps(50 * X, groups * 0, 1, 1e-4)
    primal = [prox_newton(problem, SquaredL2(1e-4), quadratic, 1e-14, k)[1].primal for k in (1, 2, 3, 5, 9)]
    assert all(b <= a * (1 + 1e-14) for a, b in pairwise(primal))


def test_relative_gap_of_a_perfect_null_model_is_zero():
    assert Result(torch.zeros(2, 1), torch.zeros(1), 0.0, 0.0, 0.0, 1).relative_gap == 0.0
    assert Result(torch.zeros(2, 1), torch.zeros(1), 1.0, 0.5, 2.0, 1).relative_gap == 0.25


def test_prox_newton_halves_its_step_where_newton_overshoots():
    """From a far start on few rows the full Newton step rises; without repeated halving the descent would end there."""
    X = torch.tensor([[3.0], [-2.0], [5.0], [1.0], [-4.0]], dtype=torch.float64)
    y = torch.tensor([1.0, -1.0, 1.0, -1.0, -1.0], dtype=torch.float64)
    v, penalty = torch.ones(5, dtype=torch.float64), SquaredL2(1e-6)
    problem, quadratic = problem_of(LogisticLoss(), X, y, v), ridge_steps(X, None, 1, 1e-6)
    for start in (-6.0, 8.0):
        first = torch.tensor([[start]], dtype=torch.float64)
        point, certificate, _ = prox_newton(problem, penalty, quadratic, 1e-12, 200, first)
        w = point.W[:, 0]
        slope = (X.T @ LogisticLoss().grad(y, X @ w, v) + 1e-6 * w).abs()
        assert float(slope) < 1e-6
        assert abs(certificate.gap) <= 1e-11
