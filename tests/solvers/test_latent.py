"""Factors with sparse codes: half-steps by their own oracles, derivatives by differences, certificates by hand."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso

from companion import Tasks
from companion.losses import SquaredLoss
from companion.penalties import L1
from companion.solvers import Problem, latent
from companion.solvers.latent import CodesEliminated, Factors, LatentProblem, _CodesFixed, _metric, newton
from tests.oracles import convex
from tests.oracles.latent import (
    LAM,
    LOSSES,
    MU,
    D,
    K,
    centred,
    each_setting,
    objective,
    prepared,
    slope,
    some_factors,
)

# --- half-steps -------------------------------------------------------------------------------------------------------


@each_setting
def test_the_objective_is_that_of_the_definition(loss, layout, free):
    blocks, problem = prepared(loss, layout, free)
    at = some_factors()
    assert problem.value(at) == pytest.approx(objective(blocks, loss, free, at), rel=1e-12)


@each_setting
def test_codes_meet_their_conditions(loss, layout, free):
    """Of ``X L`` with the slopes: mu times the sign where a code is used, and no larger elsewhere."""
    blocks, problem = prepared(loss, layout, free)
    at = problem.codes(some_factors(), 1e-9, 1000)
    W = (at.L @ at.S).numpy()
    zeros = 0
    for t, (X, y, s) in enumerate(blocks):
        v, m = s / s.sum(), X @ W[:, t]
        b = convex.best_intercept(loss, y, m, v) if free else 0.0
        pull = -(X @ at.L.numpy()).T @ (v * convex.slopes(loss, y, m + b))
        code = at.S[:, t].numpy()
        used = code != 0
        zeros += (~used).sum()
        np.testing.assert_allclose(pull[used], MU * np.sign(code[used]), atol=1e-8 * MU)
        assert (np.abs(pull[~used]) <= MU * (1 + 1e-8)).all()
    assert problem.stationarity(at).codes <= 1e-8
    assert zeros > 0 or loss == "squared"
    assert torch.equal(at.L, some_factors().L)


@pytest.mark.parametrize("free", [True, False])
def test_codes_are_those_of_scikit_learn(free):
    blocks, problem = prepared("squared", "ragged", free, mu=0.5)
    at = problem.codes(some_factors(), 1e-9, 1000)
    assert (at.S == 0).any() and (at.S != 0).any()
    for t, (X, y, s) in enumerate(blocks):
        lasso = Lasso(alpha=0.5, fit_intercept=free, tol=1e-14, max_iter=100_000)
        lasso.fit(np.repeat(X @ at.L.numpy(), s.astype(int), axis=0), np.repeat(y, s.astype(int)))
        np.testing.assert_allclose(at.S[:, t], lasso.coef_, atol=1e-7)


@pytest.mark.parametrize("layout", ["ragged", "padded", "shared", "missing"])
def test_latent_tasks_solve_the_normal_equations(layout):
    r""":math:`[2 \lambda I + \sum_t s_t s_t^\top \otimes X_t^\top V_t X_t] \operatorname{vec} L = \dots`"""
    blocks, problem = prepared("squared", layout, True)
    start = some_factors()
    at = problem.latent(start, 1e-20, 50)
    S = start.S.numpy()
    system, right = 2 * LAM * np.eye(D * K), np.zeros(D * K)
    for t, (X, y, v) in enumerate(centred(blocks, True)):
        system += np.kron(np.outer(S[:, t], S[:, t]), (v[:, None] * X).T @ X)
        right += np.kron(S[:, t], X.T @ (v * y))
    np.testing.assert_allclose(at.L.T.flatten(), np.linalg.solve(system, right), rtol=1e-8, atol=1e-10)
    assert torch.equal(at.S, start.S)


@each_setting
def test_latent_tasks_have_no_slope_left(loss, layout, free):
    blocks, problem = prepared(loss, layout, free)
    at = problem.latent(some_factors(), 1e-18, 50)
    assert problem.stationarity(at).latent < 1e-7 < problem.stationarity(some_factors()).latent
    for sign in (1, -1):
        direction = torch.from_numpy(np.random.default_rng(5).normal(size=(D, K)))
        assert objective(blocks, loss, free, at._replace(L=at.L + sign * 1e-3 * direction)) > problem.value(at)


def test_scales_are_the_best_ones():
    _, problem = prepared("squared", "ragged", True)
    start = some_factors()
    at = problem.balanced(start)
    torch.testing.assert_close(at.L @ at.S, start.L @ start.S, rtol=1e-12, atol=1e-12)
    squares, lengths = (at.L**2).sum(0), at.S.abs().sum(1)
    torch.testing.assert_close(2 * LAM * squares, MU * lengths, rtol=1e-12, atol=0.0)
    least = 3 * (LAM * (start.L**2).sum(0)) ** (1 / 3) * (MU * start.S.abs().sum(1) / 2) ** (2 / 3)
    assert problem.penalty(at) == pytest.approx(float(least.sum()), rel=1e-12)
    for c in (0.9, 1.1):
        assert problem.penalty(Factors(c * at.L, at.S / c)) > problem.penalty(at)
    torch.testing.assert_close(problem.balanced(at).L, at.L)


def test_latent_tasks_without_use_become_zero():
    _, problem = prepared("squared", "ragged", True)
    L, S = some_factors()
    for unused in (Factors(L, S * torch.tensor([[1.0], [0.0]])), Factors(L * torch.tensor([1.0, 0.0]), S)):
        at = problem.balanced(unused)
        assert not at.L[:, 1].any() and not at.S[1].any() and at.L[:, 0].all()
        assert problem.value(at) <= problem.value(unused)
        found, _ = newton(problem, at, 1e-8, 50)
        assert not found.L[:, 1].any() and not found.S[1].any()
        assert max(problem.stationarity(found)) <= 1e-8
    zero = Factors(0 * L, 0 * S)
    assert max(problem.stationarity(zero)) == 0 and newton(problem, zero, 1e-8, 50)[1] == 0


def test_certificates_by_hand():
    blocks, problem = prepared("squared", "ragged", True)
    at = some_factors()
    L, S = (part.numpy() for part in at)
    W = L @ S
    C = np.stack([X.T @ (v * (y - X @ W[:, t])) for t, (X, y, v) in enumerate(centred(blocks, True))], axis=1)
    pull = L.T @ C
    violation = np.where(S != 0, np.abs(pull - MU * np.sign(S)), np.maximum(np.abs(pull) - MU, 0))
    found = problem.stationarity(at)
    assert found.codes == pytest.approx(violation.max() / MU, rel=1e-10)
    size = np.linalg.norm(C @ S.T) + np.linalg.norm(2 * LAM * L)
    assert found.latent == pytest.approx(np.linalg.norm(C @ S.T - 2 * LAM * L) / size, rel=1e-10)
    shares = 2 * LAM * (L**2).sum(0), MU * np.abs(S).sum(1)
    assert found.balance == pytest.approx(np.abs(shares[0] - shares[1]).max() / np.max(shares), rel=1e-12)


# --- derivatives ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [_CodesFixed, CodesEliminated])
@each_setting
def test_derivatives_are_those_of_differences(kind, loss, layout, free):
    _, problem = prepared(loss, layout, free, mu=0.15 if loss == "squared" else 0.15 / 4)
    metric, at = _metric(problem), some_factors()
    at = at._replace(L=at.L * torch.tensor([0.2, 1.0]))  # the first latent task is too short for some
    eliminated = kind is CodesEliminated
    state = kind.of(problem, at, metric, 1e-9) if eliminated else kind.at(problem, at, metric)
    assert 1 <= (state.factors.S == 0).sum() <= 5
    for seed in range(3):
        x = torch.from_numpy(np.random.default_rng(seed).normal(size=D * K))
        h = 1e-5
        ahead, behind = state.moved(h * x), state.moved(-h * x)
        assert float(state.gradient @ x) == pytest.approx((ahead.value - behind.value) / (2 * h), rel=1e-6, abs=1e-8)
        if eliminated:  # else the second derivatives jump
            assert torch.equal(ahead.factors.S == 0, behind.factors.S == 0)
        change = state.coordinates.pull((slope(behind) - slope(ahead)) / (2 * h))
        torch.testing.assert_close(state.curvature(x), change, rtol=1e-5, atol=1e-6 * float(change.abs().max()))


def test_coordinates_make_tasks_with_equal_moments_round():
    """Shared inputs and codes that stay: the Hessian is the identity."""
    _, problem = prepared("squared", "shared", True)
    state = _CodesFixed.at(problem, some_factors(), _metric(problem))
    x = torch.from_numpy(np.random.default_rng(0).normal(size=D * K))
    torch.testing.assert_close(state.curvature(x), x, rtol=1e-10, atol=1e-12)


def test_derivatives_in_coordinates_belong_to_changes_in_them():
    """For three latent tasks, whose eigenvectors are no symmetric matrix."""
    _, problem = prepared("squared", "ragged", True)
    rng = np.random.default_rng(0)
    L, S, G = (torch.from_numpy(rng.normal(size=shape)) for shape in ((D, 3), (3, 4), (D, 3)))
    state = _CodesFixed.at(problem, Factors(L, S), _metric(problem))
    assert not torch.allclose(state.coordinates.R, state.coordinates.R.T)
    x = torch.from_numpy(rng.normal(size=D * 3))
    assert float((state.coordinates.change(x) * G).sum()) == pytest.approx(
        float(state.coordinates.pull(G) @ x), rel=1e-10
    )


def test_many_features_have_a_diagonal_metric(monkeypatch):
    _, problem = prepared("squared", "ragged", True)
    values, Q = _metric(problem)
    expected = newton(problem, some_factors(), 1e-9, 100)[0]
    monkeypatch.setattr(latent, "_MOST_FEATURES", D - 1)
    _, problem = prepared("squared", "ragged", True)
    assert problem.metric.Q is None
    torch.testing.assert_close(_metric(problem).values, torch.diagonal((Q * values) @ Q.T))
    found = newton(problem, some_factors(), 1e-9, 100)[0]
    torch.testing.assert_close(found.L @ found.S, expected.L @ expected.S, rtol=1e-6, atol=1e-8)


# --- the whole --------------------------------------------------------------------------------------------------------


@each_setting
def test_newton_ends_at_the_certificates_and_never_rises(loss, layout, free):
    blocks, problem = prepared(loss, layout, free)
    seen = []
    at, n_iter = newton(problem, some_factors(), 1e-8, 100, seen.append)
    values = [objective(blocks, loss, free, step) for step in seen]
    assert (np.diff(values) <= 1e-12 * values[0]).all() and 0 < len(seen) <= n_iter < 100
    assert max(problem.stationarity(at)) <= 1e-8
    assert problem.value(at) == pytest.approx(values[-1], rel=1e-12)
    again, none = newton(problem, at, 1e-7, 100)
    assert none == 0
    torch.testing.assert_close(again.L, at.L, rtol=1e-6, atol=1e-8)


def test_names_and_signs_of_latent_tasks_do_not_matter():
    _, problem = prepared("squared", "ragged", True)
    L, S = some_factors()
    sign = torch.tensor([-1.0, 1.0], dtype=L.dtype)
    other = Factors((L * sign)[:, [1, 0]], (sign[:, None] * S)[[1, 0]])
    a, b = (newton(problem, start, 1e-10, 100)[0] for start in (Factors(L, S), other))
    torch.testing.assert_close((b.L * sign[[1, 0]])[:, [1, 0]], a.L, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(a.L @ a.S, b.L @ b.S, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("loss", LOSSES)
def test_one_task_pays_a_power_of_its_length(loss):
    r"""What is best for ``w = l s`` costs :math:`3 (\lambda \mu^2 / 4)^{1/3} \lVert w \rVert^{2/3}`."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(17, D))
    m = X @ rng.normal(size=D)
    y = m + 0.1 * rng.normal(size=17) if loss == "squared" else np.where(m + rng.logistic(size=17) > 0, 1.0, -1.0)
    problem = Problem.from_tasks(Tasks.from_long(X, y, None), LOSSES[loss], "mean", False)
    mu, lam = 0.03, 0.02
    start = Factors(torch.from_numpy(rng.normal(size=(D, 1))), torch.ones(1, 1, dtype=torch.float64))
    at, _ = newton(LatentProblem(problem, L1(mu), lam), start, 1e-10, 100)
    w = (at.L @ at.S)[:, 0].numpy()
    size = np.linalg.norm(w)
    assert size > 0.1
    cost = 3 * (lam * mu**2 / 4) ** (1 / 3)
    assert LatentProblem(problem, L1(mu), lam).penalty(at) == pytest.approx(cost * size ** (2 / 3), rel=1e-10)
    slope = X.T @ convex.slopes(loss, y, X @ w) / 17
    np.testing.assert_allclose(slope + cost * (2 / 3) * size ** (-4 / 3) * w, 0, atol=1e-8)


def test_without_penalties_it_is_the_best_fit_of_its_rank():
    """Of shared white inputs: a truncated SVD of the separate weights."""
    rng = np.random.default_rng(0)
    X = np.linalg.qr(rng.normal(size=(23, D)))[0] * math.sqrt(23)
    Y = X @ rng.normal(size=(D, 4)) + 0.1 * rng.normal(size=(23, 4))
    problem = Problem.from_tasks(Tasks.shared(X, Y), SquaredLoss(), "mean", False)
    U, s, Vh = np.linalg.svd(X.T @ Y / 23, full_matrices=False)
    best = (U[:, :K] * s[:K]) @ Vh[:K]
    start = Factors(torch.from_numpy(rng.normal(size=(D, K))), torch.from_numpy(rng.normal(size=(K, 4))))
    apart = []
    for mu in (1e-2, 3e-4):
        weak = LatentProblem(problem, L1(mu), 1e-3)
        at, _ = newton(weak, weak.balanced(start), 1e-8, 500)
        assert max(weak.stationarity(at)) <= 1e-8
        apart.append(float(np.abs((at.L @ at.S).numpy() - best).max()))
    assert apart[1] < apart[0] / 5 and apart[1] < 1e-2


def test_only_one_product_of_the_weights_matters():
    """lam mu^2: for a multiple of L and a fraction of S, the weights and the objective are the same."""
    _, one = prepared("squared", "ragged", True)
    _, other = prepared("squared", "ragged", True, mu=3 * MU, lam=LAM / 9)
    L, S = some_factors()
    a, _ = newton(one, Factors(L, S), 1e-10, 100)
    b, _ = newton(other, Factors(3 * L, S / 3), 1e-10, 100)
    torch.testing.assert_close(b.L, 3 * a.L, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(b.S, a.S / 3, rtol=1e-7, atol=1e-9)
    assert one.value(a) == pytest.approx(other.value(b), rel=1e-12)
