"""Ridge and lasso penalties: prox by brute force, conjugates by their definition."""

import pytest
import torch
from scipy.optimize import minimize_scalar

from companion.penalties import L1, SquaredL2

V = torch.tensor([-2.0, -0.3, 0.0, 0.25, 1.7], dtype=torch.float64)


@pytest.mark.parametrize("penalty", [L1(0.7), SquaredL2(0.7)])
@pytest.mark.parametrize("step", [0.5, 1.3])
def test_prox_minimises_its_objective(penalty, step):
    found = penalty.prox(V, step)
    for v, p in zip(V, found, strict=True):
        objective = lambda w, v=v: float((w - v) ** 2 / 2 + step * penalty.value(torch.tensor(w).double()))
        best = minimize_scalar(objective, bounds=(-3, 3), method="bounded", options={"xatol": 1e-12})
        assert float(p) == pytest.approx(best.x, abs=1e-6)  # the search itself resolves no more


def test_ridge_conjugate_is_the_supremum():
    C = torch.tensor([[0.4, -1.0], [2.0, 0.1], [0.3, 0.2]], dtype=torch.float64)
    penalty = SquaredL2(0.8)
    best = C / 0.8
    torch.testing.assert_close(penalty.conjugate(C), (C * best).sum() - penalty.value(best))


def test_lasso_scale_puts_the_dual_point_on_the_ball():
    penalty = L1(0.5)
    assert penalty.dual_norm(torch.tensor([0.2, -2.0])) == 4.0
    assert penalty.dual_scale(torch.tensor([0.2, -2.0])) == 0.25
    assert penalty.dual_scale(torch.tensor([0.2, -0.4])) == 1.0
    torch.testing.assert_close(penalty.value(torch.tensor([1.0, -3.0])), torch.tensor(2.0))
