"""Newton's method in a trust region: quadratics, functions that are not concave, and what the certificate means."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch.autograd.functional import hessian, jacobian

from companion.solvers.trust_region import maximise, newton_step


@dataclass
class Function:
    """Any twice differentiable function of a few variables, by autograd, at one point."""

    f: object
    point: torch.Tensor

    @property
    def value(self):
        return float(self.f(self.point))

    @property
    def gradient(self):
        return jacobian(self.f, self.point)

    def curvature(self, x):
        return -hessian(self.f, self.point) @ x

    def moved(self, x):
        return Function(self.f, self.point + x)


def at(f, *numbers):
    return Function(f, torch.tensor(numbers, dtype=torch.float64))


def valley(x):
    """Rosenbrock's function, turned upside down: a curved ridge that ends in (1, 1)."""
    return -((1 - x[0]) ** 2) - 100 * (x[1] - x[0] ** 2) ** 2


def test_a_quadratic_takes_one_step():
    rng = np.random.default_rng(0)
    A = rng.normal(size=(6, 6))
    H, g = torch.from_numpy(A @ A.T + np.eye(6)), torch.from_numpy(rng.normal(size=6))
    f = lambda x: g @ x - x @ H @ x / 2
    start = Function(f, torch.zeros(6, dtype=torch.float64))
    best = torch.linalg.solve(H, g)
    _, predicted, inside = newton_step(start, math.inf)
    assert inside
    assert predicted == pytest.approx(float(g @ best / 2), rel=1e-2)  # conjugate gradients stop early
    assert predicted <= float(g @ best / 2) * (1 + 1e-12)
    state, gain, n_iter = maximise(start, 1e-20, 50, radius=1e6)
    torch.testing.assert_close(state.point, best, rtol=1e-8, atol=1e-10)
    assert 0 <= gain <= 1e-20 and n_iter <= 5


@pytest.mark.parametrize("radius", [0.5, 2.0])
def test_steps_that_leave_the_region_end_on_its_edge_and_are_the_best_there_along_the_path(radius):
    H = torch.diag(torch.tensor([1.0, 4.0, 9.0], dtype=torch.float64))
    f = lambda x: 10 * x.sum() - x @ H @ x / 2
    start = at(f, 0, 0, 0)
    step, predicted, inside = newton_step(start, radius)
    assert not inside and float(step.norm()) == pytest.approx(radius, rel=1e-12)
    assert predicted == pytest.approx(f(step).item() - start.value, rel=1e-12)
    along = radius * start.gradient / start.gradient.norm()
    assert predicted >= f(along).item() - 1e-12  # at least as good as steepest ascent


def test_negative_curvature_is_followed_to_the_edge():
    f = lambda x: -((x[0] ** 2 - 1) ** 2) - x[1] ** 2  # a saddle at zero, maxima at (1, 0) and (-1, 0)
    saddle = at(f, 0.1, 0.3)
    step, _, inside = newton_step(saddle, 0.2)
    assert not inside and float(step.norm()) == pytest.approx(0.2)
    assert newton_step(saddle, math.inf)[1:] == (math.inf, False)
    state, gain, _ = maximise(saddle, 1e-12, 60)
    torch.testing.assert_close(state.point, torch.tensor([1.0, 0.0], dtype=torch.float64), rtol=0, atol=1e-6)
    assert gain <= 1e-12


def test_the_value_rises_with_every_step():
    values = [maximise(at(valley, -1.5, 2.0), 1e-14, n)[0].value for n in (1, 2, 3, 4, 6, 9, 13, 18, 24, 60)]
    assert (np.diff(values) >= 0).all()
    assert values[-1] == pytest.approx(0, abs=1e-13) and values[0] < -1


def test_the_gain_is_what_is_left():
    """Close to the maximum the expected gain is the distance in value: half the squared Newton decrement."""
    f = lambda x: -(x[0] - 1).cosh() - 3 * (x[1] + x[0]).cosh()
    for distance in (1e-1, 1e-2, 1e-3):
        state, gain, n_iter = maximise(at(f, 1 + distance, -1 + distance), 1.0, 9)
        assert n_iter == 1
        assert gain == pytest.approx(-4 - state.value, rel=10 * distance)


def test_running_out_of_steps_tells_the_gain_at_the_point_returned():
    state, gain, n_iter = maximise(at(valley, -1.5, 2.0), 1e-14, 8)
    assert n_iter == 8 and gain > 1e-14
    H = -hessian(valley, state.point)
    g = state.gradient
    if bool((torch.linalg.eigvalsh(H) > 0).all()):
        assert gain == pytest.approx(float(g @ torch.linalg.solve(H, g)) / 2, rel=0.1)
    else:
        assert gain == math.inf
    assert maximise(at(lambda x: x[0] ** 2, 1.0), 1e-9, 3)[1] == math.inf  # no maximum at all


def test_a_value_that_is_no_number_is_refused():
    f = lambda x: torch.log(x[0]) - x[0]  # NaN left of zero
    state, gain, _ = maximise(at(f, 1e-3), 1e-13, 60, radius=100.0)
    assert state.point[0] == pytest.approx(1, abs=1e-6) and gain <= 1e-13
    g = lambda x: -torch.sqrt(x[0]) * (x[0] - 2) ** 2 - 1e-3 * x[0]
    assert math.isfinite(maximise(at(g, 0.5), 1e-10, 40, radius=100.0)[0].value)


def test_a_stationary_start_is_returned():
    state, gain, n_iter = maximise(at(lambda x: -(x @ x), 0, 0), 1e-12, 5)
    assert gain == 0 and n_iter == 1 and not state.point.any()
