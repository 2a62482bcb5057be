"""The proximal gradient method by itself, on problems whose solutions are known."""

import pytest
import torch

from companion.penalties import L1
from companion.solvers import fista


def quadratic(eigenvalues, seed=0):
    """Gradient of 1/2 w'Hw - c'w with these eigenvalues, its solution and the constant."""
    rng = torch.Generator().manual_seed(seed)
    n = len(eigenvalues)
    Q = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=rng))[0]
    H, c = (Q * torch.tensor(eigenvalues, dtype=torch.float64)) @ Q.T, torch.ones(n, dtype=torch.float64)
    return lambda w: H @ w - c, torch.linalg.solve(H, c), max(eigenvalues)


def never(W):
    return False


def test_without_a_penalty_it_solves_the_linear_system():
    gradient, solution, L = quadratic([1.0, 4.0, 10.0, 0.5])
    W, used = fista(gradient, lambda V, step: V, L, torch.zeros(4, dtype=torch.float64), never, 500)
    torch.testing.assert_close(W, solution, rtol=1e-10, atol=1e-10)
    assert used == 500


def test_one_step_is_a_proximal_gradient_step():
    gradient, _, L = quadratic([2.0, 3.0, 1.0])
    start, penalty = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64), L1(0.8)
    W, used = fista(gradient, penalty.prox, L, start, never, 1)
    torch.testing.assert_close(W, penalty.prox(start - gradient(start) / L, 1 / L), rtol=0, atol=1e-15)
    assert used == 1


def test_second_step_has_the_momentum_of_nesterov():
    gradient, _, L = quadratic([2.0, 3.0, 1.0])
    start, penalty = torch.zeros(3, dtype=torch.float64), L1(0.01)
    step = lambda V: penalty.prox(V - gradient(V) / L, 1 / L)
    first = step(start)
    # t_1 = 1 and t_2 = (1 + sqrt 5) / 2: the first move has no momentum, and the factor after it is (t_2 - 1) / t_3.
    second = step(first)
    t2 = (1 + 5**0.5) / 2
    t3 = (1 + (1 + 4 * t2**2) ** 0.5) / 2
    third = step(second + (t2 - 1) / t3 * (second - first))
    torch.testing.assert_close(fista(gradient, penalty.prox, L, start, never, 2)[0], second, rtol=0, atol=1e-15)
    torch.testing.assert_close(fista(gradient, penalty.prox, L, start, never, 3)[0], third, rtol=0, atol=1e-15)


def test_restart_keeps_it_linear_on_strongly_convex_problems():
    """Condition 1e4: without restarts the momentum overshoots and after 1500 steps the error is above 1e-6."""
    gradient, solution, L = quadratic([1e-2, 100.0, 3.0, 20.0])
    W, _ = fista(gradient, lambda V, step: V, L, torch.zeros(4, dtype=torch.float64), never, 3000)
    assert float((W - solution).norm()) <= 1e-9 * float(solution.norm())


@pytest.mark.parametrize(("agree_at", "every", "expected"), [(1, 10, 10), (11, 10, 20), (1, 3, 3), (95, 10, 100)])
def test_stop_is_asked_at_intervals_and_at_the_end(agree_at, every, expected):
    gradient, _, L = quadratic([2.0, 3.0, 1.0])
    seen, steps = [], []
    count = lambda V, step: steps.append(step) or V

    def stop(W):
        seen.append(len(steps))
        return len(steps) >= agree_at

    _, used = fista(gradient, count, L, torch.zeros(3, dtype=torch.float64), stop, 97 if agree_at < 90 else 100, every)
    assert used == expected == seen[-1] == len(steps)
    assert seen == list(range(every, expected + 1, every))
    assert set(steps) == {1 / L}
    seen.clear(), steps.clear()
    _, used = fista(gradient, count, L, torch.zeros(3, dtype=torch.float64), lambda W: seen.append(len(steps)), 7, 5)
    assert used == 7 and seen == [5, 7]


def test_weights_of_any_shape_and_a_constant_of_zero():
    zero = torch.zeros(2, 3, 4, dtype=torch.float64)
    W, _ = fista(lambda W: 2 * (W - 1), lambda V, step: V, 2.0, zero, never, 50)
    torch.testing.assert_close(W, torch.ones_like(zero))
    flat, used = fista(lambda W: 0 * W, L1(0.3).prox, 0.0, zero + 0.5, never, 3)
    assert used == 3 and not flat.any()
