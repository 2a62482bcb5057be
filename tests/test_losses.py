"""Losses against autograd and Fenchel duality."""

import pytest
import torch
from torch.autograd.functional import hessian

from companion.losses import LogisticLoss, SquaredLoss, lipschitz

N, D = 9, 4


@pytest.fixture(params=[SquaredLoss(), LogisticLoss()], ids=["squared", "logistic"])
def problem(request):
    rng = torch.Generator().manual_seed(0)
    y, m = torch.randn(2, N, dtype=torch.float64, generator=rng)
    v = torch.rand(N, dtype=torch.float64, generator=rng) + 0.3
    return request.param, (y.sign() if isinstance(request.param, LogisticLoss) else y), m, v


def test_values_are_the_textbook_sums():
    y, m, v = torch.tensor([[1.0, -1.0], [0.5, 2.0], [2.0, 3.0]], dtype=torch.float64)
    torch.testing.assert_close(SquaredLoss().value(y, m, v), torch.tensor(0.5 * (2 * 0.25 + 3 * 9)).double())
    expected = 2 * (1 + (-m[0]).exp()).log() + 3 * (1 + m[1].exp()).log()
    torch.testing.assert_close(LogisticLoss().value(y, m, v), expected)


def test_derivatives_match_autograd(problem):
    loss, y, m, v = problem
    m = m.requires_grad_()
    (grad,) = torch.autograd.grad(loss.value(y, m, v), m)
    torch.testing.assert_close(loss.grad(y, m, v), grad)
    torch.testing.assert_close(loss.curvature(y, m, v), hessian(lambda m: loss.value(y, m, v), m).diag())
    assert (loss.curvature(y, m, v) <= loss.max_curvature * v + 1e-15).all()


def test_fenchel_equality_at_the_gradient(problem):
    """value(m) = dual_value(theta) - <theta, m> exactly when theta is the negative gradient, and >= otherwise."""
    loss, y, m, v = problem
    theta = -loss.grad(y, m, v)
    torch.testing.assert_close(loss.value(y, m, v), loss.dual_value(y, theta, v) - theta @ m)
    for scale in (0.3, 0.9):
        assert loss.value(y, m, v) > loss.dual_value(y, scale * theta, v) - scale * theta @ m + 1e-6


def test_lipschitz_bounds_the_curvature_along_every_direction(problem):
    loss, _, _, v = problem
    X = torch.randn(N, D, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    largest = torch.linalg.eigvalsh(X.T @ (v[:, None] * X))[-1]
    assert lipschitz(loss, X, v) == pytest.approx(loss.max_curvature * float(largest), rel=1e-12)


def test_extreme_margins_stay_finite():
    y, v = torch.tensor([1.0, -1.0], dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    m = torch.tensor([-800.0, -800.0], dtype=torch.float64)
    loss = LogisticLoss()
    assert float(loss.value(y, m, v)) == pytest.approx(800.0)
    assert torch.isfinite(loss.dual_value(y, -loss.grad(y, m, v), v))
