"""Disjoint groups of tasks: the best partition of few tasks, limits, certificates, and odd data."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import adjusted_rand_score

from companion import Tasks
from companion.datasets import make_disjoint_groups
from companion.linear import ConvexFeatureLearning, DisjointGroups, SingleTask
from tests.oracles import convex
from tests.oracles.partitions import draw_groups, group_values, long_form, partition_value, partitions

GAMMA = 0.05
# sizes n_t, d, G, options; n_t on both sides of d
SETTINGS = {
    "ragged": ((4, 11, 9, 6), 3, 2, {}),
    "weighted sum": ((9, 5, 7, 3), 4, 2, {"reduction": "sum"}),
    "without intercept": ((7, 3, 9, 5), 5, 3, {"fit_intercept": False}),
    "wide": ((3, 4, 2, 5), 11, 2, {}),
    "one large task": ((6, 300, 5, 8), 3, 2, {"reduction": "sum"}),
}


def drawn(setting, seed=7):
    sizes, d, G, options = SETTINGS[setting]
    blocks = draw_groups(seed, sizes, d, G, 0.4, multiples=True, weighted="weighted" in setting)[1]
    return blocks, G, options


@pytest.mark.parametrize("setting", SETTINGS)
def test_best_of_all_partitions_with_every_number_recomputed(setting):
    blocks, G, options = drawn(setting)
    reduction, fit_intercept = options.get("reduction", "mean"), options.get("fit_intercept", True)
    model = DisjointGroups(G, GAMMA, tol=1e-8, **options).fit(*long_form(blocks))
    value = group_values(blocks, GAMMA, **options)
    everything = {tuple(p.tolist()): partition_value(p, value) for p in partitions(4, G)}
    best = min(everything, key=everything.get)
    null = convex.null_objective(blocks, "squared", reduction, fit_intercept)
    assert tuple(model.groups_.tolist()) == best
    assert model.objective_ == pytest.approx(everything[best], abs=3e-8 * null)
    # What the attributes say, from the weights alone.
    W, b, norms = model.coef_.T, model.intercept_, convex.squared_trace_norm(GAMMA)
    primal, dual = convex.data_term(blocks, W, b, "squared", reduction), 0.0
    for g, D in enumerate(model.feature_covariances_):
        mine = np.flatnonzero(model.groups_ == g)
        V, some = W[:, mine], [blocks[t] for t in mine]
        primal += norms.value(V)
        dual += convex.lower_bound(some, V, norms, "squared", reduction, fit_intercept)
        values, Q = np.linalg.eigh(V @ V.T)
        root = (Q * np.sqrt(values.clip(min=0))) @ Q.T
        np.testing.assert_allclose(D, root / np.trace(root), atol=1e-7)
    assert len(model.feature_covariances_) == len(set(best))
    assert model.objective_ == pytest.approx(primal, rel=1e-11)
    gap = model.certificate_["gap in the groups"]
    assert 0 <= gap <= 1e-8 and gap * null <= (primal - dual) * (1 + 1e-6) + 1e-14 * null
    assert model.certificate_["gain of a move"] <= 1e-8 and model.moves_tried_[0] == model.moves_tried_[1]
    assert np.isnan(model.dual_gap_) and model.n_iter_ > 1
    for t, ((X, y, _), v) in enumerate(zip(blocks, convex.row_weights(blocks, reduction), strict=True)):
        mean = v @ (y - X @ model.coef_[t]) / v.sum() if fit_intercept else 0.0
        assert b[t] == pytest.approx(mean, rel=1e-9, abs=1e-10)


@pytest.mark.parametrize("setting", SETTINGS)
def test_one_group_is_convex_feature_learning(setting):
    blocks, _, options = drawn(setting, 3)
    data = long_form(blocks)
    model = DisjointGroups(1, GAMMA, tol=1e-10, **options).fit(*data)
    expected = ConvexFeatureLearning(GAMMA, tol=1e-10, **options).fit(*data)
    null = convex.null_objective(
        blocks, "squared", options.get("reduction", "mean"), options.get("fit_intercept", True)
    )
    assert model.objective_ == pytest.approx(expected.objective_, abs=2e-10 * null)
    np.testing.assert_allclose(model.coef_, expected.coef_, atol=1e-4 * np.abs(expected.coef_).max())
    np.testing.assert_allclose(model.feature_covariances_, expected.feature_covariance_[None], atol=1e-3)
    assert model.groups_.tolist() == [0] * 4 and model.moves_tried_ == (0, 0)
    assert model.certificate_["gain of a move"] == 0


@pytest.mark.parametrize("G", [4, 7])
def test_a_group_for_every_task_is_ridge_regression(G):
    """And so are more groups than tasks: joining groups never lowers the objective."""
    blocks, _, _ = drawn("ragged")
    model, ridge = DisjointGroups(G, GAMMA).fit(*long_form(blocks)), SingleTask(2 * GAMMA).fit(*long_form(blocks))
    np.testing.assert_allclose(model.coef_, ridge.coef_, rtol=1e-9)
    assert model.objective_ == pytest.approx(ridge.objective_, rel=1e-12)
    assert model.groups_.tolist() == [0, 1, 2, 3] and model.feature_covariances_.shape == (4, 3, 3)
    for w, D in zip(model.coef_, model.feature_covariances_, strict=True):
        np.testing.assert_allclose(D, np.outer(w, w) / (w @ w), atol=1e-12)


def test_more_groups_cost_less_and_every_partition_costs_more_than_separate_tasks():
    blocks, _, _ = drawn("wide")
    fits = [DisjointGroups(G, GAMMA, tol=1e-9).fit(*long_form(blocks)).objective_ for G in (1, 2, 3, 4)]
    assert (np.diff(fits) < 0).all()


def test_planted_groups_are_found_where_a_direction_is_shared():
    """Multiples of a vector, backwards too: groups of directions, which clusters of weights are not."""
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=24)
    W = rng.normal(size=(10, 3))[:, labels] * rng.uniform(0.5, 1.5, 24) * rng.choice([-1, 1], 24)
    blocks = []
    for t, n in enumerate((6, 7, 8, 9) * 6):
        X = rng.normal(size=(n, 10))
        blocks.append((X, X @ W[:, t] + 0.2 * rng.normal(size=n) + t, np.ones(n)))
    data = long_form(blocks)
    model = DisjointGroups(3, 0.01, n_init=4).fit(*data)
    assert adjusted_rand_score(labels, model.groups_) == 1
    error = lambda m: np.linalg.norm(m.coef_.T - W)
    assert error(model) < 0.8 * min(error(SingleTask(0.1).fit(*data)), error(ConvexFeatureLearning(0.003).fit(*data)))
    np.testing.assert_allclose(model.feature_covariances_.trace(axis1=1, axis2=2), 1)
    assert model.groups_.dtype == np.int64 and [model.groups_.tolist().index(g) for g in range(3)] == sorted(
        model.groups_.tolist().index(g) for g in range(3)
    )


def test_the_synthetic_data_of_the_literature():
    data = make_disjoint_groups(random_state=0)
    model = DisjointGroups(3, 0.003, n_init=2, tol=1e-5).fit(data.train)
    assert adjusted_rand_score(data.groups, model.groups_) > 0.85
    tried, possible = model.moves_tried_
    assert tried == possible == 60 and model.certificate_["gain of a move"] <= 1e-5


def test_moves_only_lower_the_objective():
    blocks = draw_groups(3, (5, 8, 6, 7, 4, 9, 5, 6), 6, 3, 0.8, multiples=True)[1]
    fit = lambda n: DisjointGroups(3, GAMMA, n_init=1, n_candidates=n).fit(*long_form(blocks))
    none, few, every = fit(0), fit(3), fit(None)
    assert none.objective_ >= few.objective_ - 1e-9 and none.objective_ > every.objective_
    assert "gain of a move" not in none.certificate_ and none.moves_tried_ == (0, 16)
    assert "gain of a move" in few.certificate_
    assert few.moves_tried_ == (3, 16) and every.moves_tried_ == (16, 16)
    assert DisjointGroups().n_candidates == 300


def test_more_features_than_rows_are_those_of_the_span():
    blocks = [(X / 9, y, s) for X, y, s in draw_groups(3, (4, 3, 6, 5, 4), 80, 2, 0.0, multiples=True)[1]]
    basis = np.linalg.qr(np.concatenate([X for X, _, _ in blocks]).T)[0]
    wide = DisjointGroups(2, GAMMA, n_init=3, tol=1e-9).fit(*long_form(blocks))
    narrow = DisjointGroups(2, GAMMA, n_init=3, tol=1e-9).fit(*long_form([(X @ basis, y, s) for X, y, s in blocks]))
    np.testing.assert_array_equal(wide.groups_, narrow.groups_)
    np.testing.assert_allclose(wide.coef_, narrow.coef_ @ basis.T, atol=1e-4 * np.abs(wide.coef_).max())
    assert wide.objective_ == pytest.approx(narrow.objective_, rel=1e-7)
    np.testing.assert_allclose(wide.feature_covariances_.trace(axis1=1, axis2=2), 1)


def test_any_order_of_many_tasks():
    blocks = draw_groups(4, (4, 6, 3, 8, 5, 7) * 2, 5, 3, 0.5, multiples=True)[1]
    fit = lambda order: DisjointGroups(3, GAMMA, n_init=2, tol=1e-11).fit(*long_form([blocks[t] for t in order]))
    order = np.random.default_rng(0).permutation(12)
    a, b, c = fit(range(12)), fit(order), fit(range(12))
    assert adjusted_rand_score(a.groups_[order], b.groups_) == 1 and b.groups_[0] == 0
    np.testing.assert_allclose(b.coef_, a.coef_[order], atol=1e-4 * np.abs(a.coef_).max())
    assert b.objective_ == pytest.approx(a.objective_, rel=1e-10)
    np.testing.assert_array_equal(a.coef_, c.coef_)


def test_shared_inputs_with_missing_labels_in_torch():
    rng = np.random.default_rng(0)
    X, W = rng.normal(size=(17, 5)), np.repeat(rng.normal(size=(5, 2)), [3, 2], axis=1) * np.array([1, -2, 0.5, 1, -1])
    Y = X @ W + 0.1 * rng.normal(size=(17, 5))
    Y[rng.random(Y.shape) < 0.2] = np.nan
    model = DisjointGroups(2, 0.01).fit(Tasks.shared(torch.tensor(X, dtype=torch.float32), torch.tensor(Y)))
    seen = ~np.isnan(Y)
    lists = Tasks.from_list([(X[seen[:, t]], Y[seen[:, t], t]) for t in range(5)])
    expected = DisjointGroups(2, 0.01).fit(lists)
    assert model.feature_covariances_.dtype == torch.float32 and isinstance(model.groups_, np.ndarray)
    assert model.groups_.tolist() == expected.groups_.tolist() == [0, 0, 0, 1, 1]
    np.testing.assert_allclose(model.coef_, expected.coef_, atol=1e-3)


# --- odd data and bad input ------------------------------------------------------------------------------------------


def test_one_task_is_ridge_regression():
    blocks = draw_groups(0, (9,), 4, 1, 0.5)[1]
    for G in (1, 2, 5):
        model = DisjointGroups(G, GAMMA).fit(*long_form(blocks))
        np.testing.assert_allclose(model.coef_, SingleTask(2 * GAMMA).fit(*long_form(blocks)).coef_, rtol=1e-10)
        assert model.groups_.tolist() == [0] and model.feature_covariances_.shape == (1, 4, 4)


def test_targets_without_signal_make_one_group():
    blocks = draw_groups(0, (7, 5, 6), 4, 2, 0.5)[1]
    levels = [(X, np.full(len(y), 3.0 + t), s) for t, (X, y, s) in enumerate(blocks)]
    constant = DisjointGroups(2).fit(*long_form(levels))
    assert not constant.coef_.any() and constant.intercept_ == pytest.approx([3, 4, 5])
    assert constant.objective_ == 0 and set(constant.certificate_.values()) == {0.0}
    np.testing.assert_array_equal(constant.feature_covariances_, np.eye(4)[None] / 4)
    zero_rows = DisjointGroups(2).fit(*long_form([(0 * X, y, s) for X, y, s in blocks]))
    assert not zero_rows.coef_.any()
    # One task of three without signal.
    mixed = DisjointGroups(2, tol=1e-8).fit(*long_form([blocks[0], levels[1], blocks[2]]))
    value = group_values([blocks[0], blocks[2]], 0.1)
    assert not mixed.coef_[1].any()
    assert mixed.objective_ == pytest.approx(value((0,)) + value((1,)), rel=1e-7)


def test_tasks_of_one_row_and_a_task_a_thousand_times_larger():
    blocks = draw_groups(0, (1, 1, 1, 1), 3, 2, 0.5)[1]
    alone = DisjointGroups(2, GAMMA).fit(*long_form(blocks))
    assert not alone.coef_.any() and alone.intercept_ == pytest.approx([y[0] for _, y, _ in blocks])
    model = DisjointGroups(2, GAMMA, fit_intercept=False, tol=1e-8).fit(*long_form(blocks))
    value = group_values(blocks, GAMMA, fit_intercept=False)
    assert model.objective_ == pytest.approx(min(partition_value(p, value) for p in partitions(4, 2)), rel=1e-6)
    blocks = draw_groups(1, (7, 9, 6, 8), 3, 2, 0.5)[1]
    X, y, s = blocks[2]
    blocks[2] = (X, 1000 * y, s)
    model = DisjointGroups(2, GAMMA, tol=1e-8).fit(*long_form(blocks))
    value = group_values(blocks, GAMMA)
    assert model.objective_ == pytest.approx(min(partition_value(p, value) for p in partitions(4, 2)), rel=1e-6)


def test_stopping_early_says_what_failed():
    blocks = draw_groups(3, (5, 8, 6, 7, 4, 9), 6, 2, 0.8, multiples=True)[1]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model = DisjointGroups(2, 0.001, n_init=1, max_iter=3, tol=1e-7).fit(*long_form(blocks))
    gap, gain = (model.certificate_[name] for name in ("gap in the groups", "gain of a move"))
    assert gap > 1e-7 and model.n_iter_ == 3 and len(caught) == 1
    message = str(caught[0].message)
    assert "stopped after 3 iterations (max_iter=3) at a" in message and f"gap in the groups of {gap:.1e}" in message
    assert (f"gain of a move of {gain:.1e}" in message) == (gain > 1e-7)
    with pytest.warns(ConvergenceWarning):  # in another unit of the targets, where the null objective is small
        small = DisjointGroups(2, 0.001, n_init=1, max_iter=3, tol=1e-7).fit(
            *long_form([(X, 1e-3 * y, s) for X, y, s in blocks])
        )
    assert small.certificate_ == pytest.approx(model.certificate_, rel=1e-6)
    done = DisjointGroups(2, 0.001, n_init=1, tol=1e-7).fit(*long_form(blocks))
    null = convex.null_objective(blocks, "squared")
    if (done.groups_ == model.groups_).all():  # the gap was a bound
        assert model.objective_ - done.objective_ <= gap * null


def test_the_first_start_can_be_named():
    blocks = draw_groups(3, (5, 8, 6, 7, 4, 9), 4, 2, 0.2, multiples=True)[1]
    for groups in ([0, 1, 0, 1, 0, 1], np.array([1, 1, 1, 0, 0, 0])):
        model = DisjointGroups(2, GAMMA, n_init=1, n_candidates=0, groups=groups).fit(*long_form(blocks))
        assert set(model.groups_) <= {0, 1}
    mixed = draw_groups(0, (5, 8, 6, 7, 4, 9), 4, 3, 0.2, multiples=True)[1]
    end = lambda **options: round(
        DisjointGroups(3, GAMMA, n_init=1, n_candidates=0, **options).fit(*long_form(mixed)).objective_, 3
    )
    assert len({end(groups=labels) for labels in list(partitions(6, 3))[::12]}) > 1
    assert len({end(random_state=seed) for seed in range(5)}) > 1
    for bad, message in [
        ([0, 1, 0], r"groups must be 6 integers, one per task; got shape \(3,\)"),
        ([0, 1, 0, 1, 0, 2], "groups must lie between 0 and 1; got 0 to 2"),
        ([0, 1, 0, 1, 0, -1], "groups must lie between 0 and 1; got -1 to 1"),
        ([0.0, 1, 0, 1, 0, 1], "6 integers.*float64"),
    ]:
        with pytest.raises(ValueError, match=message):
            DisjointGroups(2, groups=bad).fit(*long_form(blocks))


@pytest.mark.parametrize(
    "name, values, message",
    [
        ("n_groups", (0, -1, 1.0, True, "2", None), "n_groups must be an integer >= 1; got "),
        ("n_init", (0, 2.0), "n_init must be an integer >= 1; got "),
        ("n_candidates", (-1, 2.0), "n_candidates must be an integer >= 0; got "),
        ("gamma", (0.0, -1.0, np.nan, np.inf), "gamma must be a finite number > 0; got "),
    ],
)
def test_bad_parameters_are_refused(name, values, message):
    blocks = draw_groups(0, (5, 4, 6), 3, 2, 0.5)[1]
    for value in values:
        with pytest.raises(ValueError, match=message):
            DisjointGroups(**{name: value}).fit(*long_form(blocks))
