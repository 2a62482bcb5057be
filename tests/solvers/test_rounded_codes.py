"""Rounded absolute values of the codes: by the definition, by differences, and where Newton's method stalls."""

import numpy as np
import pytest
import torch

from companion import Tasks
from companion.linear import go_mtl
from companion.linear.go_mtl import fit_factors, separate_weights, starting_factors
from companion.linear.go_mtl_cv import mu_scale
from companion.penalties import L1
from companion.solvers import Problem
from companion.solvers.latent import Factors, LatentProblem, newton
from companion.solvers.rounded_codes import RoundedCodes, sharpen
from tests.oracles import convex
from tests.oracles.latent import LAM, LOSSES, MU, D, K, each_setting, objective, prepared, slope, some_factors

DELTA = 0.3


def stalling(loss="squared", seed=0):
    """Tasks with nothing in common and a weak penalty: nearly every code is used, and many change their sign."""
    rng = np.random.default_rng([12, seed])
    tasks = []
    for _ in range(12):
        X = rng.normal(size=(9, 7))
        y = X @ rng.normal(size=7) + 0.3 * rng.normal(size=9)
        tasks.append((X, y if loss == "squared" else np.where(y > np.median(y), 1.0, -1.0)))
    problem = Problem.from_tasks(Tasks.from_list(tasks), LOSSES[loss])
    alone = separate_weights(problem, LAM)
    return LatentProblem(problem, L1(1e-5 * mu_scale(problem, alone, LAM)), LAM), starting_factors(alone, 5)


@each_setting
def test_codes_minimise_the_rounded_objective(loss, layout, free):
    blocks, problem = prepared(loss, layout, free)
    state = RoundedCodes.rounded(problem, some_factors(), DELTA)
    L, S = (part.numpy() for part in state.factors)
    assert torch.equal(state.factors.L, some_factors().L)
    rounded = MU * np.sqrt(S**2 + DELTA**2).sum()
    value = objective(blocks, loss, free, state.factors, mu=0.0) + rounded
    assert -state.value * problem.scale == pytest.approx(value, rel=1e-12)
    for t, (X, y, s) in enumerate(blocks):
        v, m = s / s.sum(), X @ L @ S[:, t]
        b = convex.best_intercept(loss, y, m, v) if free else 0.0
        pull = -(X @ L).T @ (v * convex.slopes(loss, y, m + b))
        np.testing.assert_allclose(pull, MU * S[:, t] / np.sqrt(S[:, t] ** 2 + DELTA**2), atol=1e-7 * MU)


@each_setting
def test_derivatives_are_those_of_differences(loss, layout, free):
    _, problem = prepared(loss, layout, free)
    state = RoundedCodes.rounded(problem, some_factors(), DELTA)
    for seed in range(3):
        x = torch.from_numpy(np.random.default_rng(seed).normal(size=D * K))
        h = 1e-5
        ahead, behind = state.moved(h * x), state.moved(-h * x)
        assert float(state.gradient @ x) == pytest.approx((ahead.value - behind.value) / (2 * h), rel=1e-6, abs=1e-8)
        change = state.coordinates.pull((slope(behind) - slope(ahead)) / (2 * h))
        torch.testing.assert_close(state.curvature(x), change, rtol=1e-5, atol=1e-6 * float(change.abs().max()))


@each_setting
def test_what_is_left_of_the_rounding_newtons_method_removes_at_once(loss, layout, free):
    _, problem = prepared(loss, layout, free)
    at, n_iter = sharpen(problem, some_factors(), 200)
    assert 8 < n_iter < 200  # nine radii, each asks for a step at least
    _, n_steps = newton(problem, at, 1e-8, 20)
    assert n_steps <= 3
    assert min(problem.stationarity(at)) < 1e-3


@pytest.mark.parametrize("loss, most", [("squared", 100), ("logistic", 50)])
def test_it_ends_where_newtons_method_alone_stalls(loss, most):
    problem, start = stalling(loss)
    stuck, n_steps = newton(problem, problem.balanced(start), 1e-6, most)
    assert n_steps == most and max(problem.stationarity(stuck)) > 1e-3
    sharp, n_iter = sharpen(problem, stuck, 200)
    found, n_steps = newton(problem, sharp, 1e-6, 100)
    assert n_iter < 150 and n_steps < 10
    assert max(problem.stationarity(found)) <= 1e-6
    assert problem.value(found) < problem.value(stuck)


def test_a_fit_that_stalls_rounds_the_corners(monkeypatch):
    problem, start = stalling()
    monkeypatch.setattr(go_mtl, "_STEPS", 30)
    fit = fit_factors(problem, start, 1e-6, 1000)
    assert max(problem.stationarity(fit.factors)) <= 1e-6 and fit.n_iter < 200
    assert (np.diff(fit.history) <= 1e-12 * fit.history[0]).all()
    assert fit.history[-1] == pytest.approx(fit.value, rel=1e-12) == problem.value(fit.factors)
    for most in (10, 25, 45, 80):  # sweeps, steps and rounded steps all count
        short = fit_factors(problem, start, 1e-6, most)
        assert short.n_iter == most
        assert most < 25 or problem.stationarity(short.factors).codes <= 1e-6


def test_a_detour_that_leads_nowhere_is_forgotten_and_counted(monkeypatch):
    problem, start = stalling()
    asked = []

    def watched(latent, at, tol, most, watch):
        asked.append((latent.value(at), most))
        return newton(latent, at, tol, most, watch)

    monkeypatch.setattr(go_mtl, "newton", watched)
    monkeypatch.setattr(go_mtl, "_STEPS", 30)
    monkeypatch.setattr(go_mtl, "sharpen", lambda latent, at, most: (Factors(0 * at.L, 0 * at.S), 7))
    fit = fit_factors(problem, start, 1e-6, 60)
    assert (np.diff(fit.history) <= 1e-12 * fit.history[0]).all() and fit.n_iter == 60
    assert [most for _, most in asked] == [30, 60 - 10 - 30 - 7]
    assert asked[1][0] < asked[0][0] < problem.value(Factors(0 * start.L, 0 * start.S))


def test_limits():
    problem, start = stalling()
    assert sharpen(problem, start, 5)[1] == 5
    nothing = Factors(0 * start.L, 0 * start.S)
    assert sharpen(problem, nothing, 50) == (nothing, 0)
    one_less = problem.balanced(Factors(start.L, start.S * torch.tensor([[1.0], [1], [1], [1], [0]])))
    at, _ = sharpen(problem, one_less, 20)
    assert not at.L[:, 4].any() and not at.S[4].any() and at.L[:, :4].any(0).all()
