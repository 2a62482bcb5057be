"""What a certificate or a cross-validation could trip over: data far from zero, rare classes, odd scales, weights."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning

from companion import Tasks
from companion.linear import Pooled, PooledClassifier, SingleTask, SingleTaskClassifier
from companion.solvers import Result

TASK = np.repeat([0, 1, 2], [19, 21, 23])
N, D = len(TASK), 4


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(N, D))
    return X, X @ rng.normal(size=D) + rng.normal(size=N)


@pytest.mark.parametrize("penalty", ["l2", "l1"])
@pytest.mark.parametrize("model", [SingleTask, Pooled])
@pytest.mark.parametrize("offset", [1e6, 1e10])
def test_targets_far_from_zero_keep_weights_and_certificate(data, model, penalty, offset):
    X, y = data
    near, far = (model(0.1, penalty=penalty).fit(X, y + c, TASK) for c in (0, offset))
    digits = offset * 1e-14  # what adding the offset leaves of y
    np.testing.assert_allclose(far.coef_, near.coef_, atol=100 * digits + 1e-6)
    np.testing.assert_allclose(far.intercept_ - offset, near.intercept_, atol=100 * digits + 1e-6)
    assert abs(far.dual_gap_) <= 1e-8 * (y**2).sum()


@pytest.mark.parametrize("model", [SingleTask, Pooled, SingleTaskClassifier, PooledClassifier])
@pytest.mark.parametrize("penalty", ["l2", "l1"])
def test_inputs_far_from_zero_keep_weights_and_certificate(data, model, penalty):
    X, y = data
    y = (y > 0) if "Classifier" in model.__name__ else y
    near, far = (model(0.05, penalty=penalty, tol=1e-11).fit(X + c, y, TASK) for c in (0, 1e7))
    np.testing.assert_allclose(far.coef_, near.coef_, atol=1e-6)
    assert abs(far.dual_gap_) <= 1e-9


@pytest.mark.parametrize("penalty", ["l2", "l1"])
@pytest.mark.parametrize("value", [0.1, -3e7])
def test_constant_targets_are_predicted_without_complaint(data, penalty, value):
    X, _ = data
    model = SingleTask(0.1, penalty=penalty).fit(X, np.full(N, value), TASK)
    np.testing.assert_array_equal(model.coef_, 0)
    np.testing.assert_allclose(model.intercept_, value)
    assert model.dual_gap_ == 0


def test_lasso_logistic_reaches_its_tolerance_on_uneven_scales():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        X = rng.normal(size=(40, 5)) * [100, 1, 1, 1, 0.01]
        y = X @ rng.normal(size=5) / 50 + rng.normal(size=40) > 0
        model = SingleTaskClassifier(0.01, penalty="l1").fit(X, y)  # a warning is an error here
        assert abs(model.dual_gap_) <= 1e-8


def test_a_rare_class_does_not_spoil_the_choice_of_alpha(data):
    """One positive label: folds that would have to learn without it are left out."""
    X, _ = data
    y = np.zeros(N)
    y[[0, 20, 21, 41, 42, 43]] = 1
    model = SingleTaskClassifier(np.logspace(-3, 3, 7)).fit(X, y, TASK)
    assert np.isfinite(model.cv_loss_).all() and model.cv_loss_.max() < 5
    assert (model.cv_loss_.max(axis=1) > 0).all()
    pairs = Tasks.from_list([(X[:2], [0, 1]), (X[2:30], y[:28])])
    assert SingleTaskClassifier([0.1, 1.0], per_task_alpha=True).fit(pairs).alpha_.shape == (2,)
    with pytest.raises(ValueError, match=r"no fold could be scored.*one alpha"):
        SingleTaskClassifier([0.1, 1.0]).fit(X[:4], [0, 0, 0, 1], [0, 0, 0, 0], [1, 0, 0, 1])


def test_folds_spread_the_classes_of_a_classifier(data):
    X, _ = data
    y = np.zeros(N)
    y[:3] = y[19:22] = y[40:43] = 1  # three of each task: one per fold
    seen = []
    model = SingleTaskClassifier([0.1, 1.0])
    for train, _ in model._folds(model._gather(X, y, TASK, None)):
        seen.append([int((train[t][1] > 0).sum()) for t in range(3)])
    assert seen == [[2, 2, 2]] * 3


def test_only_free_intercepts_need_both_classes_in_a_task(data):
    X, y = data
    y = np.where(TASK == 1, 1.0, y > 0)
    assert abs(PooledClassifier().fit(X, y, TASK).dual_gap_) < 1e-7
    with pytest.raises(ValueError, match="task 1 holds 1 class only"):
        PooledClassifier(per_task_intercept=True).fit(X, y, TASK)


def test_classes_are_those_of_rows_with_weight(data):
    X, y = data
    y = (y > 0).astype(int)
    y[5] = 7
    weight = np.ones(N)
    weight[5] = 0
    a = SingleTaskClassifier().fit(X, y, TASK, weight)
    keep = np.arange(N) != 5
    b = SingleTaskClassifier().fit(X[keep], y[keep], TASK[keep])
    np.testing.assert_allclose(a.coef_, b.coef_, rtol=1e-9)
    np.testing.assert_array_equal(a.classes_, [0, 1])


def test_string_labels_of_torch_inputs_come_back_as_strings(data):
    X, y = data
    labels = np.where(y > 0, "yes", "no")
    model = SingleTaskClassifier().fit(torch.from_numpy(X), labels, TASK)
    np.testing.assert_array_equal(
        model.predict(torch.from_numpy(X), TASK), SingleTaskClassifier().fit(X, labels, TASK).predict(X, TASK)
    )


def test_torch_probabilities_are_in_the_order_of_the_classes(data):
    X, y = data
    a = SingleTaskClassifier().fit(X, y > 0, TASK)
    np.testing.assert_allclose(a.predict_proba(torch.from_numpy(X), TASK).numpy(), a.predict_proba(X, TASK), rtol=1e-12)
    margin = a.decision_function(X, TASK)
    np.testing.assert_allclose(a.predict_proba(X, TASK)[:, 1], 1 / (1 + np.exp(-margin)), rtol=1e-12)


def test_scores_of_tasks_count_their_weights(data):
    X, y = data
    weight = np.random.default_rng(1).uniform(0.1, 3, N)
    tasks = Tasks.from_long(X, y, TASK, weight)
    model = SingleTask().fit(X, y, TASK)
    assert model.score(tasks) == pytest.approx(model.score(X, y, TASK, weight))
    assert model.score(tasks) != pytest.approx(model.score(X, y, TASK))
    with pytest.raises(ValueError, match=r"score\(tasks\) takes no y"):
        model.score(tasks, y)
    with pytest.raises(ValueError, match=r"predict\(tasks\) takes no task"):
        model.predict(tasks, TASK)
    with pytest.raises(ValueError, match="expected 4 features, as in fit; got 3"):
        model.predict(Tasks.from_long(X[:, :3], y, TASK))


def test_inner_cross_validation_counts_weights(data):
    """Integer weights are repetitions in the folds too, when these do not separate the copies."""
    X, y = data
    weight = np.arange(N) % 3 + 1
    copies = np.repeat(np.arange(N), weight)
    splits = [(np.arange(N) % 4 != k, np.arange(N) % 4 == k) for k in range(4)]
    moved = [(train[copies], test[copies]) for train, test in splits]
    a = SingleTask([0.03, 0.3, 3.0], cv=splits).fit(X, y, TASK, weight)
    b = SingleTask([0.03, 0.3, 3.0], cv=moved).fit(X[copies], y[copies], TASK[copies])
    np.testing.assert_allclose(a.cv_loss_, b.cv_loss_, rtol=1e-9)


def test_mean_reduction_lets_each_task_count_the_same_in_the_choice():
    """A task of noise with twenty times the rows must not decide for the others."""
    rng = np.random.default_rng(2)
    X = rng.normal(size=(460, D))
    task = np.repeat([0, 1, 2, 3], [20, 20, 20, 400])
    y = np.where(task < 3, X @ np.full(D, 2.0), 0) + 0.3 * rng.normal(size=460) * np.where(task < 3, 1, 20)
    model = SingleTask(np.logspace(-4, 4, 9)).fit(X, y, task)
    per_row, sizes, grid = _loss_per_row(X, y, task), np.array([20, 20, 20, 400]), np.logspace(4, -4, 9)
    np.testing.assert_allclose(model.cv_loss_, per_row / sizes[:, None], rtol=1e-8)
    assert model.alpha_ == grid[(per_row / sizes[:, None]).sum(0).argmin()]


def _loss_per_row(X, y, task):
    """Held-out losses of the mean-reduced model, each row counted once."""
    total = np.zeros((4, 9))
    grid = np.logspace(4, -4, 9)
    tasks = Tasks.from_long(X, y, task)
    for train, held_out in tasks.folds(3, random_state=0):
        for g, alpha in enumerate(grid):
            model = SingleTask(alpha).fit(train)
            for t, (Z, target) in enumerate(tasks):
                error = target[held_out[t]] - Z[held_out[t]] @ model.coef_[t] - model.intercept_[t]
                total[t, g] += (error**2).sum() / 2
    return total


def test_a_task_that_is_never_held_out_takes_the_common_alpha(data):
    X, y = data
    task = np.where(np.arange(N) == 0, 9, TASK)
    model = SingleTask([0.01, 0.1, 1.0, 10.0], per_task_alpha=True).fit(X, y, task)
    shared = SingleTask([0.01, 0.1, 1.0, 10.0]).fit(X, y, task)
    assert model.alpha_[3] == shared.alpha_


def test_random_state_draws_the_folds_and_refitting_forgets(data):
    X, y = data
    a, b = (SingleTask([0.1, 1.0], random_state=seed).fit(X, y, TASK) for seed in (0, 1))
    assert not np.allclose(a.cv_loss_, b.cv_loss_)
    assert not hasattr(a.set_params(alpha=0.1).fit(X, y, TASK), "cv_loss_")
    assert not hasattr(SingleTask().fit(Tasks.from_long(X, y, TASK)), "feature_names_in_")


@pytest.mark.parametrize("cv", ["splitter", "masks"])
def test_scikit_learn_splitters_may_look_at_the_classes(data, cv):
    from sklearn.model_selection import StratifiedKFold

    X, y = data
    y = (y > 0).astype(int)
    splitter = StratifiedKFold(3, shuffle=True, random_state=0)
    splits = [(np.isin(np.arange(N), a), np.isin(np.arange(N), b)) for a, b in splitter.split(X, y)]
    model = SingleTaskClassifier([0.1, 1.0], cv=splitter if cv == "splitter" else splits).fit(X, y, TASK)
    expected = SingleTaskClassifier([0.1, 1.0], cv=[(np.flatnonzero(a), np.flatnonzero(b)) for a, b in splits])
    np.testing.assert_allclose(model.cv_loss_, expected.fit(X, y, TASK).cv_loss_, rtol=1e-9)


@pytest.mark.parametrize(("gap", "warns"), [(1.9e-6, False), (2.1e-6, True), (-2.1e-6, True), (-1.9e-6, False)])
def test_a_gap_just_over_the_tolerance_is_reported(gap, warns):
    """Relative to the objective of the intercept-only model, 2 here; a negative gap that large is no proof either."""
    tasks = Tasks.from_long(np.ones((3, 2)), np.ones(3))
    result = Result(torch.zeros(2, 1), torch.zeros(1), 1.0, gap, null_objective=2.0, n_iter=5)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        SingleTask(tol=1e-6)._store(tasks, result)
    assert [w.category for w in caught] == [ConvergenceWarning] * warns
