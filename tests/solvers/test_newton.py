"""The projected Newton step of l1/l2 problems with few features: its ridge solutions, derivatives and speed."""

import numpy as np
import pytest

from companion import Tasks
from companion.losses import SquaredLoss
from companion.penalties import BlockSparse
from companion.solvers import Problem, block_coordinate, minimise
from companion.solvers import _kernels as kernels

M, T, ALPHA = 5, 3, 0.7
NOTHING = np.empty((0, M))


@pytest.fixture
def moments():
    rng = np.random.default_rng(0)
    A = rng.normal(size=(T, 4, M))  # fewer rows than features: singular moments
    G = np.einsum("tij,tik->jkt", A, A).copy()
    return G, rng.normal(size=(M, T))


@pytest.mark.parametrize("l2", [0.0, 0.4])
@pytest.mark.parametrize("eta", [(0.3, 1.2, 0.8, 2.0, 0.1), (0.3, 0.0, 0.8, 0.0, 0.1)], ids=["all", "two left out"])
def test_correlations_are_those_of_ridge_regression_row_by_row(moments, eta, l2):
    G, c = moments
    eta = np.array(eta)
    C = kernels.reweighted_ridge(G, c, l2, ALPHA, eta, NOTHING)
    used = eta > 0
    for t in range(T):
        H = G[:, :, t] + l2 * np.eye(M)
        w = np.zeros(M)
        w[used] = np.linalg.solve(H[np.ix_(used, used)] + np.diag(ALPHA / eta[used]), c[used, t])
        np.testing.assert_allclose(C[:, t], c[:, t] - H @ w, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(eta * C[:, t] / ALPHA, w, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("l2", [0.0, 0.4])
def test_curvature_is_the_derivative_of_the_slope(moments, l2):
    G, c = moments
    eta, curvature = np.array([0.3, 1.2, 0.8, 2.0, 0.1]), np.empty((M, M))
    kernels.reweighted_ridge(G, c, l2, ALPHA, eta, curvature)

    def slope(eta):
        C = kernels.reweighted_ridge(G, c, l2, ALPHA, eta, NOTHING)
        return (ALPHA**2 - (C**2).sum(axis=1)) / (2 * ALPHA)

    steps = 1e-6 * np.eye(M)
    numerical = np.stack([(slope(eta + h) - slope(eta - h)) / 2e-6 for h in steps], axis=1)
    np.testing.assert_allclose(curvature, numerical, rtol=1e-6, atol=1e-8)
    assert np.linalg.eigvalsh(curvature).min() > -1e-12


def test_bounded_step_solves_the_quadratic_over_the_radii_it_keeps():
    curvature = np.array([[2.0, 0.5, 0.1], [0.5, 1.0, 0.2], [0.1, 0.2, 3.0]])
    slope, eta = np.array([1.0, 3.0, -2.0]), np.array([1.0, 0.2, 0.0])
    direction = block_coordinate._bounded_step(curvature, slope, eta)
    assert direction[1] == -0.2  # the unbounded step would take it below zero
    gradient = slope + curvature @ direction
    np.testing.assert_allclose(gradient[[0, 2]], 0, atol=1e-9)
    assert block_coordinate._bounded_step(curvature, np.abs(slope), np.zeros(3)).tolist() == [0, 0, 0]


def test_newton_steps_end_what_sweeps_would_drag_on(monkeypatch):
    """Correlated columns, some of them dummies that add up to a constant, as survey data have them."""
    rng = np.random.default_rng(1)
    pairs = []
    for n in (25, 60, 90, 40):
        dummies = np.eye(4)[rng.integers(0, 4, n)]
        X = np.column_stack([rng.normal(size=(n, 3)) + 3 * rng.normal(size=(n, 1)), dummies, np.ones(n)])
        pairs.append((X, X @ rng.normal(size=8) + rng.normal(size=n)))
    problem = Problem.from_tasks(Tasks.from_list(pairs), SquaredLoss(), fit_intercept=False)
    penalty = BlockSparse(problem.alpha_max(BlockSparse(1.0)) / 200)
    quick = minimise(problem, penalty, 1e-11, 10_000)
    monkeypatch.setattr(block_coordinate, "_NEWTON_ROWS", 0)
    slow = minimise(problem, penalty, 1e-11, 10_000)
    assert quick.certificate.gap <= 1e-11 * problem.null_objective
    assert quick.certificate.primal == pytest.approx(slow.certificate.primal, rel=1e-9)
    assert quick.n_iter <= 30 < slow.n_iter
