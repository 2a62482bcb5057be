"""The experiment on tasks that come later: who is new, and every prediction by hand."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from companion.datasets import make_overlapping_groups
from companion.experiments import GOMTLNewTasks, _school, gomtl_new_tasks
from companion.experiments._latent import ridge_grid
from companion.experiments.gomtl_new_tasks import (
    SCHOOL,
    SYNTHETIC,
    _linear,
    _predictions,
    _refitted,
    _ridge,
    first_rows,
)
from companion.linear import GOMTL
from companion.penalties import L1
from companion.solvers.latent import LatentProblem
from companion.tasks import Tasks
from tests.experiments.latent_cases import CONFIG, CPU, tasks_of
from tests.needs import needs_school

# --- new tasks --------------------------------------------------------------------------------------------------------


def test_new_tasks_on_synthetic_data_are_others_than_the_old():
    old, new = gomtl_new_tasks.drawn(SYNTHETIC, 2, 11, 6)
    data = make_overlapping_groups(n_tasks=17, n_train=30, random_state=np.random.default_rng([4, 2])).train
    assert sorted((*old.ids, *new.ids)) == list(range(17)) and list(new.ids) != list(range(11, 17))
    assert (len(old.ids), len(new.ids)) == (11, 6)
    for part in (old, new):
        for id_, (X, y) in zip(part.ids, part, strict=True):
            np.testing.assert_array_equal(X, data[id_][0])
            np.testing.assert_array_equal(y, data[id_][1])
    assert gomtl_new_tasks.drawn(SYNTHETIC, 3, 11, 6).old[0][0][0, 0] != old[0][0][0, 0]


def check_schools(data, old, new):
    """Pupils as they are, without the constant, in another order, by mean and deviation of the old schools."""
    assert not set(old.ids) & set(new.ids)
    X_old, y_old, _ = old.long()
    np.testing.assert_allclose(X_old.mean(0), 0, atol=1e-9)
    assert np.isin(np.round(X_old.std(0), 9), [0, 1]).all() and abs(y_old.mean()) < 1e-9
    assert abs(new.long()[1].mean()) > 1e-3
    schools = [data.task == t for t in np.unique(data.task)]
    rows = np.concatenate([np.flatnonzero(schools[id_]) for id_ in old.ids])
    X, scale = data.X[:, :-1], data.X[rows, :-1].std(0)
    scale[scale == 0] = 1
    for tasks in (old, new):
        for id_, (Z, z) in zip(tasks.ids, tasks, strict=True):
            expected = np.column_stack([(X[schools[id_]] - X[rows].mean(0)) / scale, data.y[schools[id_]]])
            found = np.column_stack([Z, z + data.y[rows].mean()])
            assert np.abs(found - expected).max() > 0.1  # in another order
            order, order_found = (np.lexsort(np.round(M, 6).T) for M in (expected, found))
            np.testing.assert_allclose(found[order_found], expected[order], atol=1e-6)


def test_new_schools_are_others_than_the_old(pupils):
    old, new = gomtl_new_tasks.drawn(SCHOOL, 1, 5, 3)
    assert (old.n_tasks, new.n_tasks, old.n_features) == (5, 3, 4)
    check_schools(pupils, old, new)
    assert gomtl_new_tasks.drawn(SCHOOL, 2, 5, 3).old.ids != old.ids


@needs_school
def test_new_schools_of_the_data_are_others_than_the_old():
    config = GOMTLNewTasks().config(smoke=False)
    old, new = gomtl_new_tasks.drawn(SCHOOL, 0, config["n_old"][SCHOOL], config["n_new"][SCHOOL])
    assert old.n_tasks + new.n_tasks == 139 and new.n_samples.min() > max(config["n_examples"])
    check_schools(_school.school(), old, new)


def test_first_rows_and_the_others():
    tasks = tasks_of((6, 9, 7))
    first, others = first_rows(tasks, 4)
    assert list(first.n_samples) == [4, 4, 4] and list(others.n_samples) == [2, 5, 3]
    for (X, y), (A, a), (B, b) in zip(tasks, first, others, strict=True):
        np.testing.assert_array_equal(X, np.concatenate([A, B]))
        np.testing.assert_array_equal(y, np.concatenate([a, b]))


def test_linear_predictions_are_those_of_the_tasks_weights():
    tasks, rng = tasks_of((3, 5)), np.random.default_rng(0)
    W, b = rng.normal(size=(4, 2)), [1.0, -2.0]
    expected = [x @ W[:, t] + b[t] for t in range(2) for x in tasks[t][0]]
    np.testing.assert_allclose(_linear(tasks, W, b), expected)


@pytest.fixture(scope="module")
def old_and_new():
    """Five old tasks, and two new ones with six rows to learn from, of the same kind."""
    tasks = tasks_of((16, 12, 19, 14, 17, 13, 11), seed=7, level=0.2)
    train, test = first_rows(tasks.subset([5, 6]), 6)
    return tasks.subset(range(5)), train, test


@pytest.mark.parametrize("free", [True, False])
@pytest.mark.parametrize("far", [True, False])
def test_ridge_of_new_tasks_has_the_penalty_that_suits_the_old(old_and_new, free, far):
    """In both cases towards a centre, with the penalty that is best for six rows of the old tasks on their others."""
    old, train, test = old_and_new
    centre = np.array([0.3, -0.6, 0.2, 0.9]) if far else np.zeros(4)
    alphas = ridge_grid(30, 0.003, 60)

    def predictions(tasks, others, alpha):
        for (X, y), (Z, _) in zip(tasks, others, strict=True):
            yield Ridge(alpha=alpha, fit_intercept=free).fit(X, y - X @ centre).predict(Z) + Z @ centre

    def best_for(n):
        first, others = first_rows(old, n)
        errors = [
            sum(((y - p) ** 2).sum() for (_, y), p in zip(others, predictions(first, others, alpha), strict=True))
            for alpha in alphas
        ]
        return alphas[int(np.argmin(errors))]

    best = best_for(6)
    assert alphas[-1] < best < 1e6 and best != best_for(8)
    common = {"reduction": "sum", "fit_intercept": free, "device": CPU}
    found = _ridge(old, train, test, 6, centre, alphas, common, CONFIG)
    np.testing.assert_allclose(found, np.concatenate(list(predictions(train, test, best))), atol=1e-5)


@pytest.fixture(scope="module", params=[True, False])
def fitted(request, old_and_new):
    return GOMTL(2, 0.5, reduction="sum", fit_intercept=request.param).fit(old_and_new[0])


def test_predictions_for_new_tasks_by_hand(old_and_new, fitted):
    old, train, test = old_and_new
    alphas, free = [1e6, 3.0, 0.3], fitted.fit_intercept
    found = _predictions(fitted, old, train, test, alphas, {**CONFIG, "refit_tol": 1e-4})
    levels = [y.mean() if free else 0.0 for _, y in train]
    rows = [(X - X.mean(0), y - y.mean()) if free else (X, y) for X, y in old]
    pooled = Ridge(alpha=1.0, fit_intercept=False).fit(*(np.concatenate(part) for part in zip(*rows, strict=True)))
    np.testing.assert_allclose(found["mean"], np.repeat(levels, test.n_samples))
    shift = [y.mean() - X.mean(0) @ pooled.coef_ if free else 0.0 for X, y in train]
    slopes = np.concatenate([Z @ pooled.coef_ + b for (Z, _), b in zip(test, shift, strict=True)])
    np.testing.assert_allclose(found["slopes of the old"], slopes, atol=1e-3)
    common = {"reduction": "sum", "fit_intercept": free, "device": None}
    for name, centre in (("ridge", np.zeros(4)), ("ridge towards the old", pooled.coef_)):
        expected = _ridge(old, train, test, 6, centre, alphas, common, CONFIG)
        np.testing.assert_allclose(found[name], expected, atol=1e-3)
    adapted = []
    for (X, y), (Z, _) in zip(train, test, strict=True):
        code, b = fitted.adapt(X, y, return_intercept=True)
        adapted.append(Z @ (fitted.latent_ @ code) + b)
    np.testing.assert_allclose(found["adapt"], np.concatenate(adapted))
    np.testing.assert_array_equal(found["refit"], _refitted(fitted, old, train, test, 1e-4))
    assert list(found) == ["mean", "slopes of the old", "ridge", "ridge towards the old", "adapt", "refit"]


def test_refitted_factors_are_stationary_and_no_worse_than_adapted_ones(old_and_new, fitted, monkeypatch):
    """For every new task beside all old ones, and not beside the other new one."""
    old, train, test = old_and_new
    seen, fit_factors = [], gomtl_new_tasks.fit_factors
    monkeypatch.setattr(gomtl_new_tasks, "fit_factors", lambda *a: seen.append(fit_factors(*a)) or seen[-1])
    found = np.split(_refitted(fitted, old, train, test, 1e-7), np.cumsum(test.n_samples)[:-1])
    assert len(seen) == 2
    for fit, prediction, (X, y), (Z, _) in zip(seen, found, train, test, strict=True):
        L, S = (factor.numpy() for factor in fit.factors)
        joint = Tasks.from_list([*old, (X, y)])

        def value(L, S, joint=joint):
            error = [y - X @ L @ s for (X, y), s in zip(joint, S.T, strict=True)]
            loss = sum(((e - e.mean() * fitted.fit_intercept) ** 2).sum() / 2 for e in error)
            return loss + 0.5 * np.abs(S).sum() + 0.1 * (L**2).sum()

        adapted = np.column_stack([fitted.codes_, fitted.adapt(X, y)])
        assert value(L, S) == pytest.approx(fit.value) and fit.value < value(fitted.latent_, adapted) - 1e-3
        latent = LatentProblem(fitted.prepare(joint)[1], L1(0.5), 0.1)
        assert max(latent.stationarity(fit.factors)) <= 1e-6
        w = L @ S[:, -1]
        b = (y - X @ w).mean() if fitted.fit_intercept else 0.0
        np.testing.assert_allclose(prediction, Z @ w + b, atol=1e-10)


def test_a_unit_of_new_tasks_by_hand():
    experiment = GOMTLNewTasks()
    config = {**experiment.config(smoke=True), "latent_n_init": 1, "n_examples": (5, 12), "n_old": {SYNTHETIC: 7}}
    config |= {"n_new": {SYNTHETIC: 3}}
    found = experiment.run_unit({"condition": SYNTHETIC, "seed": 1}, config, CPU)["metrics"]
    old, new = gomtl_new_tasks.drawn(SYNTHETIC, 1, 7, 3)
    fitted = GOMTL(int(found["K"]), found["mu"], reduction="sum", fit_intercept=False).fit(old)
    for n in (5, 12):
        errors, targets = [], []
        for X, y in new:
            w = fitted.latent_ @ fitted.adapt(X[:n], y[:n])
            errors.append(y[n:] - X[n:] @ w)
            targets.append(y[n:])
        assert found[f"{n}: adapt"] == pytest.approx(np.sqrt((np.concatenate(errors) ** 2).mean()), abs=1e-5)
        assert found[f"{n}: mean"] == pytest.approx(np.sqrt((np.concatenate(targets) ** 2).mean()))  # no intercept
