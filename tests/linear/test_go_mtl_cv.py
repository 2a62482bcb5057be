"""The search over latent tasks and their sparsity: held-out losses by hand, paths that stay stationary, bad input."""

import numpy as np
import pytest

from companion import Tasks
from companion.datasets import make_overlapping_groups
from companion.linear import GOMTL, GOMTLCV, GOMTLClassifier, GOMTLClassifierCV
from companion.linear.go_mtl import separate_weights
from companion.linear.go_mtl_cv import latent_path, mu_scale
from companion.penalties import L1
from companion.solvers.latent import LatentProblem


def small_tasks(seed=0, sizes=(14, 9, 11, 10, 12), d=5):
    rng = np.random.default_rng(seed)
    L, S = rng.normal(size=(d, 2)), rng.normal(size=(2, len(sizes)))
    X = [rng.normal(size=(n, d)) for n in sizes]
    return Tasks.from_list([(x, x @ L @ s + 0.3 * rng.normal(size=len(x)) + 1) for x, s in zip(X, S.T, strict=True)])


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_held_out_losses_are_those_of_models_fitted_fold_by_fold(reduction):
    tasks = small_tasks()
    mus, numbers = [0.3, 0.01], [3, 1]
    search = GOMTLCV(numbers, mus, lam=0.05, cv=3, reduction=reduction, tol_in_search=1e-8, random_state=4).fit(tasks)
    expected = np.zeros((5, 2, 2))
    for train, held_out in tasks.folds(3, 4):
        for k, K in enumerate((1, 3)):
            for m, mu in enumerate((0.01, 0.3)):
                model = GOMTL(K, mu, 0.05, reduction=reduction, tol=1e-8)
                if mu == 0.01:  # the second one of a path starts from the first, which may lead elsewhere
                    model.fit(train)
                    for t, out in enumerate(held_out):
                        X, y = tasks[t]
                        loss = (y[out] - X[out] @ model.coef_[t] - model.intercept_[t]) ** 2 / 2
                        expected[t, k, m] += loss.sum() / (len(y) if reduction == "mean" else 1)
    np.testing.assert_allclose(search.cv_loss_[:, :, 0], expected[:, :, 0], rtol=1e-4)
    assert search.n_latents_.tolist() == [1, 3] and search.mus_.tolist() == [0.01, 0.3]
    k, m = np.unravel_index(search.cv_loss_.sum(0).argmin(), (2, 2))
    assert (search.n_latent_, search.mu_) == ([1, 3][k], [0.01, 0.3][m])
    plain = GOMTL(search.n_latent_, search.mu_, 0.05, reduction=reduction).fit(tasks)
    np.testing.assert_allclose(search.coef_, plain.coef_, atol=1e-6)
    assert max(search.certificate_.values()) <= 1e-6


def test_paths_stay_stationary_and_give_up_latent_tasks_for_good():
    tasks = small_tasks(1)
    _, problem = GOMTL().prepare(tasks)
    alone = separate_weights(problem, 0.05)
    mus = np.geomspace(1e-3, 3.0, 7)
    in_use = []
    for mu, fit in zip(mus, latent_path(problem, alone, 4, mus, 0.05, 1e-7, 500), strict=True):
        assert max(LatentProblem(problem, L1(mu), 0.05).stationarity(fit.factors)) <= 1e-7
        in_use.append(int((fit.factors.S != 0).any(1).sum()))
    assert in_use[0] == 4 and in_use[-1] < 4 and (np.diff(in_use) <= 0).all()


def test_the_default_grid_ends_where_little_is_left():
    tasks = small_tasks(2)
    _, problem = GOMTL().prepare(tasks)
    alone = separate_weights(problem, 0.1)
    top = mu_scale(problem, alone, 0.1)
    unit = LatentProblem(problem, L1(top), 0.1)
    _, s, Vh = np.linalg.svd(alone.numpy(), full_matrices=False)
    cost = 3 * 0.1 ** (1 / 3) * (top * s[0] * np.abs(Vh[0]).sum() / 2) ** (2 / 3)
    assert cost == pytest.approx(problem.null_objective, rel=1e-10) and unit.lam == 0.1
    search = GOMTLCV(2, n_mus=4, mu_ratio=1e-3).fit(tasks)
    np.testing.assert_allclose(search.mus_, top * np.array([1e-3, 1e-2, 1e-1, 1]), rtol=1e-6)
    assert GOMTL(2, 2 * top).fit(tasks).n_active_ < 2 and search.mu_ < top
    assert mu_scale(problem, 0 * alone, 0.1) == 1.0


def test_the_planted_number_of_latent_tasks_is_enough():
    data = make_overlapping_groups(n_tasks=15, n_train=30, random_state=0)
    search = GOMTLCV((1, 2, 4, 6), fit_intercept=False, n_mus=4, mu_ratio=1e-3).fit(data.train)
    loss = search.cv_loss_.sum(0).min(1)  # the best mu for every number
    assert loss[0] > loss[1] > loss[2] and search.n_latent_ >= 4
    assert search.n_active_ in (4, 5, 6)


def test_classifiers_search_too_and_adapt_with_what_was_chosen():
    rng = np.random.default_rng(0)
    data = small_tasks(3, sizes=(30, 24, 28))
    X, y, task = data.long()
    labels = np.where(y + 0.5 * rng.logistic(size=len(y)) > np.median(y), "yes", "no")
    search = GOMTLClassifierCV((1, 2), (0.01, 0.1), cv=2).fit(X, labels, task)
    assert search.cv_loss_.shape == (3, 2, 2) and (search.cv_loss_ > 0).all()
    plain = GOMTLClassifier(search.n_latent_, search.mu_).fit(X, labels, task)
    np.testing.assert_allclose(search.predict_proba(X, task), plain.predict_proba(X, task), atol=1e-5)
    np.testing.assert_allclose(search.adapt(X[:30], labels[:30]), plain.adapt(X[:30], labels[:30]), atol=1e-5)


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("n_latents", (2, 0), "n_latents must be an integer >= 1; got 0"),
        ("n_latents", 2.5, "n_latents must be an integer >= 1; got 2.5"),
        ("mus", (0.1, -1.0), r"mus must be a 1-D sequence of finite numbers > 0; got \(0.1, -1.0\)"),
        ("mus", (), r"mus must be a 1-D sequence of finite numbers > 0; got \(\)"),
        ("n_mus", 0, "n_mus must be an integer >= 1; got 0"),
        ("mu_ratio", 1.0, "mu_ratio must lie between 0 and 1; got 1.0"),
        ("lam", 0.0, "lam must be a finite number > 0; got 0.0"),
        ("tol_in_search", 0.0, "tol_in_search must be a finite number > 0; got 0.0"),
    ],
)
def test_bad_parameters_are_refused(name, value, message):
    with pytest.raises(ValueError, match=message):
        GOMTLCV(**{name: value}).fit(small_tasks())
