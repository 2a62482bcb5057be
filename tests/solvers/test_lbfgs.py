"""L-BFGS against closed forms, other solvers, and functions on which line searches go astray."""

import numpy as np
import pytest
import torch

import companion.solvers.convex as convex_module
from companion import Tasks
from companion.losses import LogisticLoss, SquaredLoss
from companion.penalties import SquaredBoxNorm, SquaredClusterNorm
from companion.solvers import Problem, lbfgs, minimise, proximal_gradient
from companion.solvers.lbfgs import _step


def never(W):
    return False


def test_quadratic_in_as_many_steps_as_it_has_curvatures():
    """With enough memory and good steps, few more than the dimension; the exact inverse takes one."""
    rng = torch.Generator().manual_seed(0)
    A = torch.randn(6, 6, dtype=torch.float64, generator=rng)
    A, b = A @ A.T + 0.1 * torch.eye(6, dtype=torch.float64), torch.arange(6.0, dtype=torch.float64)
    expected = torch.linalg.solve(A, b)
    gradient = lambda x: A @ x - b
    asked = []
    close = lambda x: asked.append(1) or bool((x - expected).abs().max() < 1e-9)
    x, n_iter = lbfgs(gradient, lambda g: g, torch.zeros_like(b), close, 200, check_every=1)
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-9)
    assert 6 <= n_iter <= 20 and len(asked) == n_iter
    x, n_iter = lbfgs(gradient, lambda g: torch.linalg.solve(A, g), torch.zeros_like(b), close, 200, check_every=1)
    assert n_iter == 1
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("scale", [1e-6, 1e-2, 1e3, 1e7])
def test_preconditioner_on_the_wrong_scale(scale):
    """Steps far too long or too short are found out on the first line."""
    A = torch.diag(torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64))
    b = torch.ones(3, dtype=torch.float64)
    x, n_iter = lbfgs(lambda x: A @ x - b, lambda g: scale * g, torch.zeros_like(b), never, 60)
    torch.testing.assert_close(x, b / A.diagonal(), rtol=1e-9, atol=0)
    assert n_iter < 60, "it goes on when gradients are rounding"


def test_scale_is_learned_for_directions_not_yet_seen():
    """Forty curvatures, ten steps remembered, and a preconditioner that is a million times too small."""
    curvature = torch.linspace(1, 3, 40, dtype=torch.float64)
    close = lambda x: bool((curvature * x - 1).abs().max() < 1e-8)
    _, n_iter = lbfgs(lambda x: curvature * x - 1, lambda g: 1e-6 * g, torch.zeros_like(curvature), close, 500)
    assert n_iter <= 30


@pytest.mark.parametrize("length", [1e-4, 0.3, 1.0, 1.9, 40.0, 1e6])
def test_a_step_halves_the_slope(length):
    """On a quadratic, for directions far too short and too long."""
    curvature = torch.tensor([1.0, 4.0], dtype=torch.float64)
    W = torch.tensor([3.0, -1.0], dtype=torch.float64)
    direction = -length * W
    slope = float((direction * curvature * W).sum())
    step, g = _step(lambda x: curvature * x, W, direction, slope)
    torch.testing.assert_close(g, curvature * (W + step * direction))
    assert abs(float((g * direction).sum())) <= abs(slope) / 2


def test_nothing_to_do():
    zero = torch.zeros(2, 3, dtype=torch.float64)
    asked = []
    x, n_iter = lbfgs(lambda W: W, lambda g: g, zero, lambda W: bool(asked.append(W)), 10)
    assert torch.equal(x, zero) and n_iter == 1 and len(asked) == 1


def test_limits_of_iterations_and_questions():
    asked = []
    gradient = lambda x: x**3 + x - 1
    x = torch.full((1,), 50.0, dtype=torch.float64)
    _, n_iter = lbfgs(gradient, lambda g: g, x, lambda W: bool(asked.append(float(W))), 7, check_every=3)
    assert n_iter == 7 and len(asked) == 3  # after 3, 6 and the last
    root, _ = lbfgs(gradient, lambda g: g, x, never, 100)
    assert float(gradient(root)) == pytest.approx(0, abs=1e-12)


def test_slopes_that_change_abruptly():
    """A valley with a kink in its slope: flat on one side, steep on the other."""
    gradient = lambda x: torch.where(x < 3, 1e-3 * (x - 3), 1e4 * (x - 3)) + 1e-6 * x
    x, _ = lbfgs(gradient, lambda g: g, torch.full((1,), -100.0, dtype=torch.float64), never, 200)
    assert float(x) == pytest.approx(3, rel=1e-2)


# --- with a penalty --------------------------------------------------------------------------------------------------

PENALTIES = [SquaredBoxNorm(0.05, 0.6, 2), SquaredClusterNorm(0.03, 0.1, 0.9, 2)]
SIZES = {"tall": ((31, 12, 55), 6), "wide": ((4, 9, 6), 14), "mixed": ((3, 40, 8), 7)}


def problem_of(sizes, d, loss, shared, seed=0):
    rng = np.random.default_rng(seed)
    if shared:
        X, Y = rng.normal(size=(sizes[0], d)), rng.normal(size=(sizes[0], 3))
        Y[0, 1] = np.nan
        Y = np.where(np.isnan(Y), Y, np.sign(Y)) if isinstance(loss, LogisticLoss) else Y
        return Problem.from_tasks(Tasks.shared(X, Y), loss)
    pairs = []
    for n in sizes:
        X, y = rng.normal(size=(n, d)), rng.normal(size=n)
        y = np.where(y > np.median(y), 1.0, -1.0) if isinstance(loss, LogisticLoss) else y + 3
        pairs.append((X, y))
    return Problem.from_tasks(Tasks.from_list(pairs), loss)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("loss", [SquaredLoss(), LogisticLoss()], ids=lambda loss: type(loss).__name__)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("penalty", PENALTIES, ids=repr)
def test_the_optimum_of_fista(penalty, size, loss, shared):
    problem = problem_of(*SIZES[size], loss, shared)
    fast = minimise(problem, penalty, 1e-11, 1000)
    slow = proximal_gradient(problem, penalty, 1e-11 * problem.null_objective, 20_000)
    assert abs(fast.certificate.gap) <= 1e-11 * problem.null_objective
    assert fast.certificate.primal == pytest.approx(slow.certificate.primal, rel=1e-10)
    torch.testing.assert_close(fast.point.W, slow.point.W, rtol=0, atol=1e-4)


def test_minimise_starts_where_it_is_told_and_knows_when_it_is_there(monkeypatch):
    problem, penalty = problem_of(*SIZES["mixed"], SquaredLoss(), False), PENALTIES[0]
    solution = minimise(problem, penalty, 1e-10, 1000)
    assert solution.n_iter > 0
    again = minimise(problem, penalty, 1e-9, 1000, start=solution.point)
    assert again.n_iter == 0 and torch.equal(again.point.W, solution.point.W)
    monkeypatch.setattr(convex_module, "proximal_gradient", None)  # FISTA is not asked
    minimise(problem, penalty, 1e-6, 1000)


def test_one_task_of_many_rows_does_not_slow_the_others_down():
    rng = np.random.default_rng(1)
    pairs = [(rng.normal(size=(n, 4)), rng.normal(size=n)) for n in (5, 20_000, 8)]
    problem = Problem.from_tasks(Tasks.from_list(pairs), SquaredLoss(), "sum")
    fast = minimise(problem, PENALTIES[0], 1e-9, 1000)
    slow = proximal_gradient(problem, PENALTIES[0], 1e-6 * problem.null_objective, 20_000)
    assert fast.n_iter <= 30 < 10 * fast.n_iter < slow.n_iter
    assert fast.certificate.primal == pytest.approx(slow.certificate.primal, rel=1e-6)


def test_the_best_point_is_kept_when_iterations_run_out():
    problem, penalty = problem_of(*SIZES["mixed"], SquaredLoss(), False), PENALTIES[1]
    gaps = [minimise(problem, penalty, 1e-14, n).certificate.gap for n in (1, 2, 4, 8, 16)]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 1e-3 * gaps[0]
