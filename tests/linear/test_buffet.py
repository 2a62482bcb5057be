"""The sampler of latent tasks: its prior without data, its conditional distributions by hand, planted numbers."""

import math

import numpy as np
import pytest
from scipy import stats

from companion import Tasks
from companion.datasets import make_overlapping_groups
from companion.linear.buffet import Buffet, TaskRows, sample_latent_tasks
from companion.metrics import rmse

D = 3


def no_data(T, seed=0):
    """Tasks without rows, with alpha and variances that stay."""
    rows = [TaskRows(np.zeros((D, D)), np.zeros(D), 0.0, 0, np.zeros(D), np.eye(D), np.zeros(D), 0.0) for _ in range(T)]
    return Buffet(rows, np.zeros((D, 0)), np.zeros((0, T)), 1.0, 2.0, 1.7, np.random.default_rng(seed))


def drawn(sizes=(9, 5, 12, 7), seed=0):
    rng = np.random.default_rng(seed)
    L, S = rng.normal(size=(D, 2)), np.array([[1.0, -2.0, 0.0, 0.7], [0.0, 1.0, 1.5, 0.0]])
    X = [rng.normal(size=(n, D)) + 1 for n in sizes]
    return [(x, x @ L @ s + 0.3 * rng.normal(size=len(x)) + 2) for x, s in zip(X, S.T, strict=True)], L, S


def test_without_data_it_draws_from_the_process():
    """K is Poisson(alpha H_T), every task uses Poisson(alpha) latent tasks, whatever its name."""
    T, state = 5, no_data(5)
    numbers, uses, squares = [], [], []
    for sweep in range(12_000):
        for t in range(T):
            state.draw_use(t)
            state.draw_own(t)
        state.draw_latent_tasks()
        if sweep % 4 == 0:
            numbers.append(state.L.shape[1])
            uses.append((state.S != 0).sum(0))
            squares.append((state.L**2).sum() - 2.0 * state.L.size)
    harmonic = sum(1 / t for t in range(1, T + 1))
    error = np.std(numbers) / math.sqrt(len(numbers) / 10)  # draws depend on those before
    assert np.mean(numbers) == pytest.approx(1.7 * harmonic, abs=4 * error) and error < 0.15
    assert np.var(numbers) == pytest.approx(1.7 * harmonic, rel=0.15)
    uses = np.array(uses)
    np.testing.assert_allclose(uses.mean(0), 1.7, atol=0.25)
    np.testing.assert_allclose(uses.var(0), 1.7, rtol=0.25)
    assert abs(np.mean(squares)) < 4 * np.std(squares) / math.sqrt(len(squares) / 10)


def test_odds_of_use_are_those_of_the_integral_over_the_code():
    """By quadrature: likelihood times N(0, 1), against the likelihood without."""
    pairs, L, _ = drawn()
    rows = [TaskRows.of(X, y, True) for X, y in pairs]
    a = np.linspace(-12, 12, 40_001)
    X, y = (part - part.mean(0) for part in pairs[0])
    rest = y - X @ (L[:, 1] * 0.4)
    loglik = -((rest[:, None] - np.outer(X @ L[:, 0], a)) ** 2).sum(0) / (2 * 0.5)
    weight = np.exp(loglik - loglik.max()) * stats.norm.pdf(a)
    evidence = np.trapezoid(weight, a)
    odds = evidence / np.exp(-(rest @ rest) / (2 * 0.5) - loglik.max())  # times 2 / (4 - 2): two of four tasks use it
    centre, square = np.trapezoid(weight * a, a) / evidence, np.trapezoid(weight * a**2, a) / evidence
    hits, codes = 0, []
    for seed in range(4000):
        # Task 0 has the second latent task to itself, which stays as it is; two tasks use the first one.
        codes_now = np.array([[0.0, 1.0, 2.0, 0.0], [0.4, 0.0, 0.0, 0.0]])
        state = Buffet(rows, L.copy(), codes_now, 0.5, 1.0, 1.0, np.random.default_rng(seed))
        state.draw_use(0)
        hits += state.S[0, 0] != 0
        codes += [state.S[0, 0]] if state.S[0, 0] != 0 else []
    share = odds / (1 + odds)
    assert hits / 4000 == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / 4000) + 1e-3)
    assert np.mean(codes) == pytest.approx(centre, abs=5 * math.sqrt(square - centre**2) / math.sqrt(len(codes)))


def test_likelihood_of_own_latent_tasks_is_that_of_the_dense_normal_distribution():
    pairs, _, _ = drawn()
    for X, y in pairs:
        row = TaskRows.of(X, y, False)
        state = Buffet([row], np.zeros((D, 0)), np.zeros((0, 1)), 0.4, 1.3, 1.0, np.random.default_rng(0))
        dense = []
        for codes in (np.zeros(0), np.array([0.7]), np.array([1.0, -2.0])):
            covariance = 0.4 * np.eye(len(y)) + 1.3 * (codes @ codes) * X @ X.T
            dense.append(stats.multivariate_normal(np.zeros(len(y)), covariance).logpdf(y))
            found = state._log_likelihood(row, row.Q.T @ row.c, codes)
            assert found == pytest.approx(dense[-1] - dense[0], rel=1e-9, abs=1e-9)


def test_own_latent_tasks_have_their_conditional_distribution():
    """Mean and covariance of a task's weights, and of one of two latent tasks, over many draws."""
    (X, y), *_ = drawn()[0]
    row, codes = TaskRows.of(X, y, False), np.array([1.0, -2.0])
    weights, first = [], []
    for seed in range(3000):
        state = Buffet([row], np.zeros((D, 0)), np.zeros((0, 1)), 0.4, 1.3, 1.0, np.random.default_rng(seed))
        state._append_own(0, row, row.Q.T @ row.c, codes)
        weights.append(state.L @ state.S[:, 0])
        first.append(state.L[:, 0])
    prior = 1.3 * np.kron(np.array([[1.0, 0], [0, 1]]), np.eye(D))
    A = np.hstack([X * codes[0], X * codes[1]])  # y = A vec(l_1, l_2) + noise
    posterior = np.linalg.inv(np.linalg.inv(prior) + A.T @ A / 0.4)
    mean = posterior @ A.T @ y / 0.4
    np.testing.assert_allclose(np.mean(first, 0), mean[:D], atol=5 * math.sqrt(posterior[:D, :D].max() / 3000))
    np.testing.assert_allclose(np.cov(np.array(first).T), posterior[:D, :D], atol=0.1)
    B = np.hstack([codes[0] * np.eye(D), codes[1] * np.eye(D)])
    np.testing.assert_allclose(np.cov(np.array(weights).T), B @ posterior @ B.T, atol=0.02)


def test_latent_tasks_have_their_conditional_distribution():
    pairs, L, S = drawn()
    rows = [TaskRows.of(X, y, False) for X, y in pairs]
    draws = []
    for seed in range(3000):
        state = Buffet(rows, 0 * L, S.copy(), 0.5, 1.3, 1.0, np.random.default_rng(seed))
        state.draw_latent_tasks()
        draws.append(state.L.T.ravel())
    A = np.vstack([np.hstack([X * s[0], X * s[1]]) for (X, _), s in zip(pairs, S.T, strict=True)])
    y = np.concatenate([y for _, y in pairs])
    posterior = np.linalg.inv(np.eye(2 * D) / 1.3 + A.T @ A / 0.5)
    np.testing.assert_allclose(np.mean(draws, 0), posterior @ A.T @ y / 0.5, atol=5 * math.sqrt(posterior.max() / 3000))
    np.testing.assert_allclose(np.cov(np.array(draws).T), posterior, atol=0.1 * posterior.max())


def test_variances_have_their_conditional_distributions():
    pairs, L, S = drawn()
    rows = [TaskRows.of(X, y, True) for X, y in pairs]
    draws = []
    for seed in range(4000):
        state = Buffet(rows, L, S, 1.0, 1.0, 1.0, np.random.default_rng(seed))
        state.draw_variances()
        draws.append((state.noise, state.size, state.alpha))
    squares = sum((((y - y.mean()) - (X - X.mean(0)) @ L @ s) ** 2).sum() for (X, y), s in zip(pairs, S.T, strict=True))
    n = sum(len(y) - 1 for _, y in pairs)
    expected = (
        stats.invgamma(1 + n / 2, scale=1 + squares / 2),
        stats.invgamma(1 + L.size / 2, scale=1 + (L**2).sum() / 2),
        stats.gamma(1 + 2, scale=1 / (1 + 1 + 1 / 2 + 1 / 3 + 1 / 4)),
    )
    for found, law in zip(np.array(draws).T, expected, strict=True):
        assert stats.kstest(found, law.cdf).pvalue > 1e-3


def test_planted_latent_tasks_are_counted_and_weights_found():
    data = make_overlapping_groups(n_tasks=15, n_features=8, n_train=20, random_state=0)
    found = sample_latent_tasks(data.train, 300, 150, fit_intercept=False, random_state=1)
    assert np.median(found.n_shared) == 4 and len(found.n_latent) == 150
    assert (found.n_shared <= found.n_latent).all()
    assert np.median(found.noise_variance) == pytest.approx(0.1, rel=0.25)
    X, y, index = data.test.long()
    assert rmse(y, (X * found.coef[index]).sum(1)) < 0.39  # the noise has 0.316
    apart = data.groups[:, None] != data.groups
    assert found.overlap[~apart].mean() > found.overlap[apart].mean()
    np.testing.assert_array_equal(found.overlap, found.overlap.T)


def test_levels_belong_to_the_intercept_and_runs_repeat():
    data = make_overlapping_groups(n_tasks=6, n_features=4, n_train=15, random_state=0)
    shifted = Tasks.from_list([(X + 1, y + 100 * t) for t, (X, y) in enumerate(data.train)])
    a, b = (sample_latent_tasks(tasks, 60, 30, random_state=2) for tasks in (data.train, shifted))
    np.testing.assert_allclose(a.coef, b.coef, atol=1e-6)
    np.testing.assert_allclose(b.intercept, a.intercept + 100 * np.arange(6) - a.coef.sum(1), atol=1e-4)
    np.testing.assert_array_equal(a.n_latent, sample_latent_tasks(data.train, 60, 30, random_state=2).n_latent)


def test_bad_input():
    data = make_overlapping_groups(n_tasks=4, n_groups=2, n_features=3, random_state=0)
    for options, message in [
        ({"n_sweeps": 0}, "n_sweeps must be an integer >= 1; got 0"),
        ({"n_sweeps": 5, "burn_in": 5}, "burn_in must be at least 0 and less than n_sweeps=5; got 5"),
        ({"burn_in": -1}, "burn_in must be at least 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            sample_latent_tasks(data.train, **options)
    X, y, task = data.train.long()
    with pytest.raises(ValueError, match="sample weights have no place in this likelihood"):
        sample_latent_tasks(Tasks.from_long(X, y, task, np.arange(len(y)) % 3 + 1))
