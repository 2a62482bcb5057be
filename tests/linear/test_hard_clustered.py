"""Hard clusters of tasks: the best partition of few tasks, the convex lower bound, limits, and odd data."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import adjusted_rand_score

from companion import Tasks
from companion.linear import ClusteredMTL, HardClusteredMTL, Pooled, SingleTask
from tests.oracles import convex
from tests.oracles.partitions import (
    best_around_centroids,
    draw_groups,
    hard_clusters_objective,
    long_form,
    partitions,
)

RHO1, RHO2 = 0.6, 0.08
# sizes n_t, d, k, options; n_t on both sides of d
SETTINGS = {
    "ragged": ((4, 11, 9, 6, 3), 4, 2, {}),
    "weighted sum": ((9, 5, 7, 3, 8, 6), 5, 3, {"reduction": "sum"}),
    "without intercept": ((7, 3, 9, 5), 6, 2, {"fit_intercept": False}),
    "wide": ((3, 4, 2, 5), 15, 3, {}),
    "one large task": ((6, 400, 5, 8), 3, 2, {"reduction": "sum"}),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_best_of_all_partitions_with_every_number_recomputed(setting):
    sizes, d, k, options = SETTINGS[setting]
    _, blocks = draw_groups(7, sizes, d, k, 0.6, weighted="weighted" in setting)
    model = HardClusteredMTL(k, RHO1, RHO2, **options).fit(*long_form(blocks))
    solve = lambda labels: best_around_centroids(blocks, labels, RHO1, RHO2, **options)
    everything = [(labels, solve(labels)) for labels in partitions(len(sizes), k)]
    labels, (value, W, U) = min(everything, key=lambda found: found[1][0])
    np.testing.assert_array_equal(model.labels_, labels)
    np.testing.assert_allclose(model.coef_.T, W, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(model.centroids_, U, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(model.coef_[model.labels_ == 0].mean(0), model.centroids_[0], rtol=1e-9)
    reduction, fit_intercept = options.get("reduction", "mean"), options.get("fit_intercept", True)
    for t, ((X, y, _), v) in enumerate(zip(blocks, convex.row_weights(blocks, reduction), strict=True)):
        mean = v @ (y - X @ model.coef_[t]) / v.sum() if fit_intercept else 0.0
        assert model.intercept_[t] == pytest.approx(mean, rel=1e-9, abs=1e-10)
    objective = hard_clusters_objective(blocks, model.coef_.T, model.intercept_, model.labels_, RHO1, RHO2, reduction)
    assert model.objective_ == pytest.approx(objective, rel=1e-11) == pytest.approx(value, rel=1e-9)
    assert np.isnan(model.dual_gap_) and model.n_iter_ >= 1
    assert model.certificate_ == {"gain of a move": 0.0, "gap in the weights": pytest.approx(0, abs=1e-15)}


@pytest.mark.parametrize("k", [1, 2, 4])
def test_the_convex_relaxation_is_a_lower_bound(k):
    """Strictly below for some k, and equal with one cluster per task, where both are ridge regression."""
    for seed in range(3):
        _, blocks = draw_groups(seed, (4, 9, 6, 7), 5, 2, 0.8)
        data = long_form(blocks)
        hard = HardClusteredMTL(k, RHO1, RHO2).fit(*data)
        relaxed = ClusteredMTL(k, RHO1, RHO2, tol=1e-9).fit(*data)
        if k == 4:
            assert hard.objective_ == pytest.approx(relaxed.objective_, rel=1e-8)
            ridge = SingleTask(2 * RHO2).fit(*data)
            np.testing.assert_allclose(hard.coef_, ridge.coef_, rtol=1e-9)
            assert hard.objective_ == pytest.approx(ridge.objective_, rel=1e-11)
        else:
            assert relaxed.objective_ < hard.objective_ * (1 - 1e-4)


def test_a_strong_pull_pools_every_cluster():
    labels, blocks = draw_groups(2, (6, 9, 7, 8, 5), 4, 2, 0.1)
    assert np.bincount(labels).tolist() == [3, 2]
    model = HardClusteredMTL(2, 1e7, RHO2).fit(*long_form(blocks))
    assert adjusted_rand_score(labels, model.labels_) == 1
    for c in range(2):
        members = np.flatnonzero(model.labels_ == c)
        pooled = Pooled(2 * RHO2 * len(members), per_task_intercept=True).fit(*long_form([blocks[t] for t in members]))
        for t in members:
            np.testing.assert_allclose(model.coef_[t], pooled.coef_[0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(model.centroids_[c], pooled.coef_[0], rtol=1e-5, atol=1e-6)


def test_planted_clusters_are_found_and_help():
    rng = np.random.default_rng(1)
    labels = rng.integers(3, size=24)
    W = rng.normal(size=(9, 3))[:, labels] + 0.1 * rng.normal(size=(9, 24))
    blocks = []
    for t, n in enumerate((5, 6, 7, 8) * 6):
        X = rng.normal(size=(n, 9))
        blocks.append((X, X @ W[:, t] + 0.3 * rng.normal(size=n) - t, np.ones(n)))
    model, alone = HardClusteredMTL(3, 0.3, 0.01).fit(*long_form(blocks)), SingleTask(0.02).fit(*long_form(blocks))
    assert adjusted_rand_score(labels, model.labels_) == 1 and model.centroids_.shape == (3, 9)
    assert np.linalg.norm(model.coef_.T - W) < np.linalg.norm(alone.coef_.T - W) / 2
    assert model.labels_.dtype == np.int64 and model.labels_[0] == 0
    first = [model.labels_.tolist().index(c) for c in range(3)]
    assert first == sorted(first)


def test_more_features_than_rows_are_those_of_the_span():
    """Weights lie in the span of the rows: in a basis of it, the same fit with fewer features."""
    _, blocks = draw_groups(3, (4, 3, 6, 5, 4), 300, 2, 0.5)
    basis = np.linalg.qr(np.concatenate([X for X, _, _ in blocks]).T)[0]
    wide = HardClusteredMTL(2, RHO1, RHO2).fit(*long_form(blocks))
    narrow = HardClusteredMTL(2, RHO1, RHO2).fit(*long_form([(X @ basis, y, s) for X, y, s in blocks]))
    np.testing.assert_array_equal(wide.labels_, narrow.labels_)
    np.testing.assert_allclose(wide.coef_, narrow.coef_ @ basis.T, atol=1e-9)
    assert wide.objective_ == pytest.approx(narrow.objective_, rel=1e-9)


def test_any_order_of_many_tasks():
    _, blocks = draw_groups(4, (4, 6, 3, 8, 5, 7) * 3, 5, 3, 1.5)
    a = HardClusteredMTL(4, RHO1, RHO2, n_init=2).fit(*long_form(blocks))
    order = np.random.default_rng(0).permutation(18)
    b = HardClusteredMTL(4, RHO1, RHO2, n_init=2).fit(*long_form([blocks[t] for t in order]))
    np.testing.assert_allclose(b.coef_, a.coef_[order], rtol=1e-8, atol=1e-10)
    assert adjusted_rand_score(a.labels_[order], b.labels_) == 1 and b.labels_[0] == 0
    c = HardClusteredMTL(4, RHO1, RHO2, n_init=2).fit(*long_form(blocks))
    np.testing.assert_array_equal(a.coef_, c.coef_)


def test_shared_inputs_torch_and_float32():
    rng = np.random.default_rng(0)
    X, W = rng.normal(size=(19, 4)), np.repeat(rng.normal(size=(4, 2)), [3, 2], axis=1)
    Y = X @ W + 0.1 * rng.normal(size=(19, 5))
    Y[rng.random(Y.shape) < 0.2] = np.nan
    model = HardClusteredMTL(2, RHO1, RHO2).fit(Tasks.shared(torch.tensor(X, dtype=torch.float32), torch.tensor(Y)))
    assert model.centroids_.dtype == torch.float32 and model.centroids_.shape == (2, 4)
    assert isinstance(model.labels_, np.ndarray)
    seen = ~np.isnan(Y)
    blocks = [(X[seen[:, t]], Y[seen[:, t], t], np.ones(seen[:, t].sum())) for t in range(5)]
    value, W, _ = best_around_centroids(blocks, model.labels_, RHO1, RHO2)
    np.testing.assert_array_equal(model.labels_, [0, 0, 0, 1, 1])
    np.testing.assert_allclose(model.coef_.T, W, atol=1e-4)
    assert model.objective_ == pytest.approx(value, rel=1e-5)


# --- odd data and bad input ------------------------------------------------------------------------------------------


def test_one_task_is_ridge_regression():
    _, blocks = draw_groups(0, (9,), 4, 1, 0.5)
    for k in (1, 2, 5):
        model = HardClusteredMTL(k, RHO1, RHO2).fit(*long_form(blocks))
        np.testing.assert_allclose(model.coef_, SingleTask(2 * RHO2).fit(*long_form(blocks)).coef_, rtol=1e-10)
        assert model.labels_.tolist() == [0] and model.centroids_.shape == (1, 4)


def test_targets_without_signal_make_one_cluster():
    _, blocks = draw_groups(0, (7, 5, 6), 4, 2, 0.5)
    levels = [(X, np.full(len(y), 3.0 + t), s) for t, (X, y, s) in enumerate(blocks)]
    constant = HardClusteredMTL(2).fit(*long_form(levels))
    assert not constant.coef_.any() and constant.intercept_ == pytest.approx([3, 4, 5])
    assert constant.objective_ == 0 and set(constant.certificate_.values()) == {0.0}
    assert constant.labels_.tolist() == [0, 0, 0] and constant.centroids_.shape == (1, 4)
    zero_rows = HardClusteredMTL(2).fit(*long_form([(0 * X, y, s) for X, y, s in blocks]))
    assert not zero_rows.coef_.any()


def test_tasks_of_one_row_and_a_task_a_million_times_larger():
    _, blocks = draw_groups(0, (1, 1, 1, 1), 3, 2, 0.5)
    alone = HardClusteredMTL(2, RHO1, RHO2).fit(*long_form(blocks))
    assert not alone.coef_.any() and alone.intercept_ == pytest.approx([y[0] for _, y, _ in blocks])
    model = HardClusteredMTL(2, RHO1, RHO2, fit_intercept=False).fit(*long_form(blocks))
    values = [best_around_centroids(blocks, p, RHO1, RHO2, fit_intercept=False)[0] for p in partitions(4, 2)]
    assert model.objective_ == pytest.approx(min(values), rel=1e-10)
    _, blocks = draw_groups(1, (7, 9, 6, 8), 3, 2, 0.5)
    for part in range(2):
        blocks[2] = tuple(1e6 * a if i == part else a for i, a in enumerate(blocks[2]))
        model = HardClusteredMTL(2, RHO1, RHO2).fit(*long_form(blocks))
        value = best_around_centroids(blocks, model.labels_, RHO1, RHO2)[0]
        assert model.objective_ == pytest.approx(value, rel=1e-6)


def test_stopping_early_says_what_failed():
    blocks = [draw_groups(seed, (5, 8, 6, 7, 4, 9, 6, 5) * 2, 4, 4, 1.2)[1] for seed in range(6)]
    fits = []
    for some in blocks:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            model = HardClusteredMTL(4, RHO1, RHO2, n_init=1, max_iter=1).fit(*long_form(some))
        fits.append((model.certificate_["gain of a move"], [str(w.message) for w in caught]))
        better = HardClusteredMTL(4, RHO1, RHO2, n_init=1).fit(*long_form(some)).objective_
        assert better <= model.objective_
    assert any(gain > 1e-6 for gain, _ in fits)
    for gain, messages in fits:
        assert len(messages) == (gain > 1e-6)
        if messages:
            assert f"max_iter=1) at a gain of a move of {gain:.1e}; tol=1.0e-06" in messages[0]


def test_the_gain_of_a_move_is_relative_to_the_null_objective():
    """A start that is cut off, in two units of the targets, and all moves of single tasks from where it ends."""
    _, blocks = draw_groups(0, (5, 8, 6, 7, 4, 9, 6, 5) * 2, 4, 4, 1.2)
    for unit in (1.0, 1e-3):
        data = [(X, unit * y, s) for X, y, s in blocks]
        with pytest.warns(ConvergenceWarning, match="gain of a move"):
            model = HardClusteredMTL(4, RHO1, RHO2, n_init=1, max_iter=1).fit(*long_form(data))
        value = lambda labels, data=data: best_around_centroids(data, labels, RHO1, RHO2)[0]
        moves = (np.where(np.arange(16) == t, c, model.labels_) for t in range(16) for c in range(4))
        gain = (value(model.labels_) - min(map(value, moves))) / convex.null_objective(data, "squared")
        assert model.certificate_["gain of a move"] == pytest.approx(gain, rel=1e-6)


def test_the_first_start_can_be_named():
    _, blocks = draw_groups(3, (5, 8, 6, 7, 4, 9), 4, 2, 0.2)
    for labels in ([0, 1, 0, 1, 0, 1], np.array([1, 1, 1, 0, 0, 0]), torch.tensor([0, 0, 0, 0, 0, 1])):
        model = HardClusteredMTL(2, RHO1, RHO2, n_init=1, labels=labels).fit(*long_form(blocks))
        assert set(model.labels_) == {0, 1}
    _, mixed = draw_groups(2, (5, 8, 6, 7, 4, 9), 4, 3, 0.2)
    end = lambda **options: round(HardClusteredMTL(3, RHO1, RHO2, **options).fit(*long_form(mixed)).objective_, 6)
    assert end(n_init=1, labels=[0, 0, 0, 1, 1, 0]) > end(n_init=1, labels=[0] * 6)
    one_start = [end(n_init=1, random_state=seed) for seed in range(5)]
    assert max(one_start) > min(one_start) == end(random_state=int(np.argmax(one_start)))  # ten starts
    for bad, message in [
        ([0, 1, 0], r"labels must be 6 integers, one per task; got shape \(3,\)"),
        ([0, 1, 0, 1, 0, 2], "labels must lie between 0 and 1; got 0 to 2"),
        ([0, 1, 0, 1, 0, -1], "labels must lie between 0 and 1; got -1 to 1"),
        ([0.0, 1, 0, 1, 0, 1], "6 integers.*float64"),
    ]:
        with pytest.raises(ValueError, match=message):
            HardClusteredMTL(2, labels=bad).fit(*long_form(blocks))


@pytest.mark.parametrize(
    "name, values, message",
    [
        ("n_clusters", (0, -1, 1.0, True, "2", None), "n_clusters must be an integer >= 1; got "),
        ("n_clusters", (4,), "n_clusters must be at most the number of tasks; got n_clusters=4 and T=3"),
        ("n_init", (0, 2.0), "n_init must be an integer >= 1; got "),
        ("rho1", (0.0, -1.0, np.nan, np.inf), "rho1 must be a finite number > 0; got "),
        ("rho2", (0.0, -1.0, np.nan, np.inf), "rho2 must be a finite number > 0; got "),
    ],
)
def test_bad_parameters_are_refused(name, values, message):
    _, blocks = draw_groups(0, (5, 4, 6), 3, 2, 0.5)
    for value in values:
        with pytest.raises(ValueError, match=message):
            HardClusteredMTL(**{name: value}).fit(*long_form(blocks))
