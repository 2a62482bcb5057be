"""The Bayesian model as an estimator: intervals that hold what they promise, limits, units, odd data."""

import numpy as np
import pytest
import torch
from scipy import stats

from companion import Tasks
from companion.linear import BayesianMTL, SingleTask

HALF = stats.norm.ppf(0.95)  # nine tenths lie within


def draw(rng, T, d, n, noise=1.0, n_test=None):
    """Training and test tasks from the model itself, and weights (T, d): a random mean and covariance."""
    root = rng.normal(size=(d, d)) / np.sqrt(d)
    W = rng.normal(size=d) + rng.normal(size=(T, d)) @ root
    level = 3 * rng.normal(size=T)

    def sample(m):
        X = rng.normal(size=(T, m, d)) + 0.5
        y = np.einsum("tnd,td->tn", X, W) + level[:, None] + noise * rng.normal(size=(T, m))
        return Tasks.from_list(list(zip(X, y, strict=True)))

    return sample(n), sample(n_test or n), W


@pytest.mark.parametrize(("T", "d", "n"), [(10, 5, 20), (10, 6, 12), (50, 5, 6), (50, 6, 4)])
def test_nine_tenths_of_new_targets_lie_in_the_interval_of_nine_tenths(T, d, n):
    """Over 50 data sets with 2000 test points each, also with fewer rows than features."""
    covered = []
    for seed in range(50):
        train, test, _ = draw(np.random.default_rng([T, n, seed]), T, d, n, n_test=2000 // T)
        mean, deviation = (np.concatenate(part) for part in BayesianMTL().fit(train).predict(test, return_std=True))
        covered.append((np.abs(np.concatenate([y for _, y in test]) - mean) < HALF * deviation).mean())
    assert 0.88 <= np.mean(covered) <= 0.92


def test_deviations_count_noise_intercept_and_weights():
    """At the mean of a task's rows there is the noise, and the error of a mean; far away the weights take over."""
    train, _, _ = draw(np.random.default_rng(0), 6, 3, 9)
    model = BayesianMTL().fit(train)
    centre = train[2][0].mean(0)
    _, at_centre = model.predict(centre[None], [2], return_std=True)
    assert at_centre[0] == pytest.approx(np.sqrt(model.noise_variance_ * (1 + 1 / 9)), rel=1e-12)
    away = centre + np.array([0.0, 50.0, 0.0])
    _, far = model.predict(away[None], [2], return_std=True)
    expected = model.noise_variance_ * (1 + 1 / 9) + 2500 * model.coef_covariance_[2, 1, 1]
    assert far[0] ** 2 == pytest.approx(expected, rel=1e-12)
    plain = BayesianMTL(fit_intercept=False).fit(train)
    _, at_zero = plain.predict(np.zeros((1, 3)), [2], return_std=True)
    assert at_zero[0] ** 2 == pytest.approx(plain.noise_variance_, rel=1e-12)


def test_every_form_of_input_gets_deviations_of_its_form():
    train, test, _ = draw(np.random.default_rng(1), 4, 3, 8)
    model = BayesianMTL().fit(train)
    mean, deviation = model.predict(test, return_std=True)
    X, _, task = test.long()
    m, s = model.predict(X, task, return_std=True)
    np.testing.assert_allclose(s, np.concatenate(deviation), rtol=1e-12)
    np.testing.assert_allclose(m, np.concatenate(mean), rtol=1e-12)
    np.testing.assert_array_equal(m, model.predict(X, task))
    shared = Tasks.shared(X, np.zeros((len(X), 4)))
    m, s = model.predict(shared, return_std=True)
    assert m.shape == s.shape == (len(X), 4)
    np.testing.assert_allclose(s[:, 2], model.predict(X, [2] * len(X), return_std=True)[1], rtol=1e-12)
    inputs = torch.tensor(X, dtype=torch.float32)
    m, s = model.predict(inputs, task, return_std=True)
    assert isinstance(s, torch.Tensor) and s.dtype == torch.float32
    np.testing.assert_allclose(s, np.concatenate(deviation), rtol=1e-5)


def test_units_do_not_matter():
    """Columns and targets in other units: the same model in other units."""
    train, test, _ = draw(np.random.default_rng(2), 5, 3, 8)
    unit = np.array([10.0, 0.1, 1.0])
    other = Tasks.from_list([(X * unit, 100 * y + 7) for X, y in train])
    a, b = (BayesianMTL(tol=1e-12).fit(tasks) for tasks in (train, other))
    np.testing.assert_allclose(b.coef_, 100 * a.coef_ / unit, rtol=1e-5)
    np.testing.assert_allclose(b.covariance_, 1e4 * a.covariance_ / np.outer(unit, unit), rtol=1e-4, atol=1e-8)
    np.testing.assert_allclose(b.mean_, 100 * a.mean_ / unit, rtol=1e-5)
    assert b.noise_variance_ == pytest.approx(1e4 * a.noise_variance_, rel=1e-5)
    moved = Tasks.from_list([(X * unit, y) for X, y in test])
    for (m_a, m_b), (s_a, s_b) in zip(
        zip(a.predict(test), b.predict(moved), strict=True),
        zip(a.predict(test, return_std=True)[1], b.predict(moved, return_std=True)[1], strict=True),
        strict=True,
    ):
        np.testing.assert_allclose(m_b, 100 * m_a + 7, rtol=1e-5)
        np.testing.assert_allclose(s_b, 100 * s_a, rtol=1e-5)


def test_much_data_gives_least_squares_and_the_truth():
    rng = np.random.default_rng(3)
    train, _, W = draw(rng, 40, 3, 2000, noise=0.5)
    model = BayesianMTL().fit(train)
    ols = SingleTask(alpha=0.0).fit(train)
    np.testing.assert_allclose(model.coef_, ols.coef_, atol=5e-3)
    assert model.noise_variance_ == pytest.approx(0.25, rel=0.03)
    np.testing.assert_allclose(model.mean_, W.mean(0), atol=0.05)
    sample = np.cov(W.T)
    assert np.linalg.norm(model.covariance_ - sample) < 0.35 * np.linalg.norm(sample)


def test_few_rows_shrink_towards_the_mean_of_the_tasks():
    """Better than alone, and a task with one row is where the others are."""
    rng = np.random.default_rng(4)
    train, _, W = draw(rng, 30, 4, 6)
    model = BayesianMTL().fit(train)
    alone = SingleTask(alpha=np.geomspace(0.01, 10, 7)).fit(train)
    assert np.linalg.norm(model.coef_ - W) < 0.8 * np.linalg.norm(alone.coef_ - W)
    lonely = Tasks.from_list([*((X, y) for X, y in train), (train[0][0][:1], train[0][1][:1])])
    last = BayesianMTL().fit(lonely)
    np.testing.assert_allclose(last.coef_[-1], last.mean_, rtol=1e-6)


def test_more_features_than_rows_and_tasks_keeps_the_covariance_definite():
    train, test, _ = draw(np.random.default_rng(5), 4, 30, 6)
    model = BayesianMTL().fit(train)
    assert np.linalg.eigvalsh(model.covariance_).min() > 0
    assert model.certificate_["expected gain"] <= 1e-6
    _, deviation = model.predict(test, return_std=True)
    assert all(np.isfinite(s).all() and (s > 0).all() for s in deviation)


def test_constant_targets_and_one_huge_task():
    rng = np.random.default_rng(6)
    X, task = rng.normal(size=(40, 3)), np.repeat(range(4), 10)
    constant = BayesianMTL().fit(X, np.full(40, 5.0), task)
    np.testing.assert_allclose(constant.predict(X, task), 5.0, rtol=1e-9)
    sizes = [20_000, 3, 2, 5]
    X, task = rng.normal(size=(sum(sizes), 3)), np.repeat(range(4), sizes)
    y = X @ [1.0, -2.0, 0.5] + rng.normal(size=len(X))
    model = BayesianMTL().fit(X, y, task)
    np.testing.assert_allclose(model.coef_[0], [1.0, -2.0, 0.5], atol=0.03)
    assert model.noise_variance_ == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("prior_tasks", [2.0, -1.0, np.nan, np.inf])
def test_too_weak_a_prior_is_refused(prior_tasks):
    train, _, _ = draw(np.random.default_rng(7), 4, 3, 8)
    with pytest.raises(ValueError, match=r"prior_tasks must be a finite number > d - 1 = 2; got"):
        BayesianMTL(prior_tasks=prior_tasks).fit(train)
