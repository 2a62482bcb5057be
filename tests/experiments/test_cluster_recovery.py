"""Planted clusters: what is drawn, what is measured, and that every method finds what it is made for."""

import itertools

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from companion.experiments import ClusterRecovery
from companion.experiments._frame import run
from companion.experiments._relations import LABELS
from companion.experiments.cluster_recovery import (
    CLUSTERS,
    DIRECTIONS,
    GRIDS,
    KNOWN,
    NOTHING,
    SINGLE,
    TWO_STEPS,
    Search,
    _around,
    _drawn,
    draw_clusters,
)
from companion.linear import HardClusteredMTL, SingleTask
from companion.metrics import paired_difference
from companion.records import load_record, plain

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def config():
    """The real configuration with grids of a few values."""
    weights = {"ratio": [0.1, 0.01]}
    grids = {
        **{method: {"strength": [100.0, 10.0, 1.0], **weights} for method in (TWO_STEPS, KNOWN, "hard clusters")},
        SINGLE: {"strength": [10.0, 1.0, 0.1]},
        "clustered": {"strength": [100.0, 10.0, 1.0], **weights},
        "Jacob": {"strength": [100.0, 10.0], "ratio": [0.1], "mean_ratio": [0.5]},
        "disjoint groups": {"strength": [3.0, 0.3, 0.03]},
    }
    return {**ClusterRecovery().config(smoke=False), "grids": grids, "n_init": 3}


# --- what is drawn ----------------------------------------------------------------------------------------------------


def drawn(condition, n_tasks=20, noise=0.5, seed=3, **changes):
    return draw_clusters(condition, n_tasks, noise, np.random.default_rng(seed), **changes)


def test_sizes_of_clusters_and_tasks():
    draw = drawn(CLUSTERS, n_tasks=30, n_features=6, n_rows=(4, 9))
    assert np.bincount(draw.labels).tolist() == [15, 9, 6]
    assert (np.diff(draw.labels) < 0).any()  # in no order
    assert draw.W.shape == (6, 30) and draw.train.n_features == 6
    n = draw.train.n_samples
    assert n.min() >= 4 and n.max() <= 9 and len(set(n.tolist())) > 3
    np.testing.assert_array_equal(n, draw.held_out.n_samples)
    assert [np.bincount(drawn(CLUSTERS, n_tasks=T).labels).tolist() for T in (10, 100)] == [[5, 3, 2], [50, 30, 20]]


@pytest.mark.parametrize("condition", [CLUSTERS, DIRECTIONS, NOTHING])
def test_targets_are_weights_times_inputs_plus_noise(condition):
    exact = drawn(condition, noise=0.0)
    for part in (exact.train, exact.held_out):
        for t, (X, y) in enumerate(part):
            np.testing.assert_allclose(y, X @ exact.W[:, t], atol=1e-12)
    assert not np.array_equal(exact.train[0][0], exact.held_out[0][0])
    noisy = drawn(condition, n_tasks=100, noise=2.0)
    errors = np.concatenate([y - X @ noisy.W[:, t] for t, (X, y) in enumerate(noisy.train)])
    assert errors.std() == pytest.approx(2.0, rel=0.1)
    inputs = np.concatenate([X.ravel() for X, _ in noisy.train])
    assert (inputs.mean(), inputs.std()) == pytest.approx((0, 1), abs=0.03)


def test_tasks_of_a_cluster_lie_around_its_centre():
    tight, wide = (drawn(CLUSTERS, n_tasks=100, n_features=40, spread=spread) for spread in (0.0, 0.3))
    np.testing.assert_array_equal(tight.labels, wide.labels)
    for c in range(3):
        of_cluster = tight.W[:, tight.labels == c]
        np.testing.assert_allclose(of_cluster, of_cluster[:, :1].repeat(of_cluster.shape[1], 1), atol=1e-12)
    away = np.linalg.norm(wide.W - tight.W, axis=0)
    assert away.mean() == pytest.approx(0.3, rel=0.1)  # the length of a task's own part
    assert np.linalg.norm(tight.W, axis=0).mean() == pytest.approx(1, rel=0.35)


def test_directions_are_multiples_of_either_sign():
    draw = drawn(DIRECTIONS, n_tasks=100)
    for c in range(3):
        of_cluster = draw.W[:, draw.labels == c]
        s = np.linalg.svd(of_cluster, compute_uv=False)
        assert s[1] < 1e-12 * s[0]
        lengths = np.linalg.norm(of_cluster, axis=0)
        assert 2 < lengths.max() / lengths.min() < 3
        cosines = of_cluster[:, 0] @ of_cluster / lengths / lengths[0]
        np.testing.assert_allclose(np.abs(cosines), np.ones(len(cosines)), atol=1e-12)
        assert 0.2 < (cosines > 0).mean() < 0.8


def test_without_clusters_labels_say_nothing():
    draw = drawn(NOTHING, n_tasks=100, n_features=40)
    cosines = (draw.W / np.linalg.norm(draw.W, axis=0)).T @ (draw.W / np.linalg.norm(draw.W, axis=0))
    same = draw.labels[:, None] == draw.labels
    np.fill_diagonal(same, False)
    assert abs(cosines[same].mean()) < 0.02
    assert np.abs(cosines[same]).max() < 0.7


def test_draws_depend_on_the_unit_but_not_on_k(config):
    unit = {"condition": CLUSTERS, "n_tasks": 10, "noise": 0.5, "seed": 4, "k": 3}
    first, again, other_k = (_drawn({**unit, **change}, config) for change in ({}, {}, {"k": 5}))
    for draw in (again, other_k):
        np.testing.assert_array_equal(draw.W, first.W)
        np.testing.assert_array_equal(draw.train[3][0], first.train[3][0])
        np.testing.assert_array_equal(draw.held_out[3][1], first.held_out[3][1])
    for change in ({"seed": 5}, {"noise": 0.501}, {"condition": NOTHING}):
        assert not np.array_equal(_drawn({**unit, **change}, config).W, first.W)


# --- what is measured -------------------------------------------------------------------------------------------------


def test_models_around_known_clusters_are_hard_clusters_that_do_not_move():
    """The same weights as the model that learns its clusters, once these are the right ones."""
    draw = drawn(CLUSTERS, noise=0.1)
    settings = {"reduction": "sum", "fit_intercept": False}
    hard = HardClusteredMTL(3, 4.5, 0.5, **settings).fit(draw.train)
    assert adjusted_rand_score(hard.labels_, draw.labels) == 1
    # Penalties of the hard model carry no factor 1/2: its weights are half of the others'.
    around = _around(draw.labels)(10.0, 0.1).set_params(**settings, tol=1e-12).fit(draw.train)
    np.testing.assert_allclose(around.coef_, hard.coef_, atol=1e-6)


def test_metrics_by_hand(config):
    """Weights and labels of two methods from the public classes, tuned by a loop."""
    unit = {"condition": CLUSTERS, "n_tasks": 10, "noise": 0.5, "seed": 1, "k": 3}
    found = ClusterRecovery().run_unit(unit, config, CPU)["metrics"]
    draw = _drawn(unit, config)

    def error(model):
        return sum(((y - p) ** 2).sum() for (_, y), p in zip(draw.held_out, model.predict(draw.held_out), strict=True))

    settings = {"reduction": "sum", "fit_intercept": False}
    ridges = [SingleTask(alpha, **settings).fit(draw.train) for alpha in config["grids"][SINGLE]["strength"]]
    ridge = min(ridges, key=error)
    assert found["single: strength at"] == ridges.index(ridge)
    assert found["single: error"] == pytest.approx(
        np.linalg.norm(ridge.coef_.T - draw.W) / np.linalg.norm(draw.W), 1e-6
    )
    labels = KMeans(3, n_init=10, random_state=0).fit_predict(ridge.coef_)
    assert found["k-means: ari"] == pytest.approx(adjusted_rand_score(labels, draw.labels))
    grid = config["grids"]["hard clusters"]
    places = list(itertools.product(range(2), range(3)))
    hard = [
        HardClusteredMTL(3, (1 - grid["ratio"][r]) * s, grid["ratio"][r] * s, n_init=3, **settings).fit(draw.train)
        for r, s in ((r, grid["strength"][a]) for r, a in places)
    ]
    best = min(hard, key=error)
    place = places[hard.index(best)]
    assert (found["hard clusters: ratio at"], found["hard clusters: strength at"]) == place
    assert found["hard clusters: ari"] == pytest.approx(adjusted_rand_score(best.labels_, draw.labels))
    expected = np.linalg.norm(best.coef_.T - draw.W) / np.linalg.norm(draw.W)
    assert found["hard clusters: error"] == pytest.approx(expected, rel=1e-4)
    assert found["hard clusters: n_found"] == len(set(best.labels_.tolist()))
    assert "single: ari" not in found and "known clusters: ari" not in found


def test_every_method_finds_clear_clusters(config):
    draw = drawn(CLUSTERS, noise=0.1, seed=0)
    results = Search(draw, 3, config, CPU).results()
    assert results.keys() == {SINGLE, TWO_STEPS, KNOWN, *LABELS}
    for method in ("clustered", "Jacob", "hard clusters", TWO_STEPS):
        assert adjusted_rand_score(results[method].labels, draw.labels) == 1, method
    assert results["disjoint groups"].labels.shape == draw.labels.shape
    errors = {m: np.linalg.norm(found.fitted.coef_.T - draw.W) for m, found in results.items()}
    assert max(errors[KNOWN], errors["hard clusters"], errors["clustered"]) < errors[SINGLE]


def test_distances_do_not_find_directions_and_disjoint_groups_do(config):
    draw = drawn(DIRECTIONS, noise=0.1, seed=0)
    results = Search(draw, 3, config, CPU).results()
    scores = {m: adjusted_rand_score(found.labels, draw.labels) for m, found in results.items() if m in LABELS}
    assert scores["disjoint groups"] == 1
    assert max(scores[m] for m in ("clustered", "Jacob", "hard clusters")) < 0.7


def test_the_truth_takes_no_part_in_tuning(config):
    """Other labels and weights behind the same rows change what is compared, and nothing that is chosen."""
    draw = drawn(CLUSTERS, n_tasks=10)
    results, others = (
        Search(d, 3, config, CPU).results() for d in (draw, draw._replace(labels=draw.labels[::-1], W=-draw.W))
    )
    for method in (SINGLE, TWO_STEPS, *LABELS):
        assert results[method].choice.parameters == others[method].choice.parameters
        np.testing.assert_array_equal(results[method].fitted.coef_, others[method].fitted.coef_)


def test_rows_to_tune_on_are_drawn_apart():
    draw = drawn(CLUSTERS, n_tasks=10)
    for t in range(10):
        assert not np.isin(draw.held_out[t][0], draw.train[t][0]).any()


def test_a_small_run_repeats(tmp_path):
    first, second = (run(ClusterRecovery(), smoke=True, folder=tmp_path / name) for name in "ab")
    assert first.same_results(second)
    conditions = {row["unit"]["condition"] for row in first.results}
    assert conditions == {CLUSTERS, DIRECTIONS, NOTHING}


def test_units_are_distinct_and_paired_over_seeds():
    experiment = ClusterRecovery()
    config = experiment.config(smoke=False)
    units = experiment.units(config)
    assert len({tuple(u.items()) for u in units}) == len(units)
    cells = {tuple(v for k, v in u.items() if k != "seed") for u in units}
    assert len(units) == config["draws"] * len(cells)
    assert {u["k"] for u in units} == {2, 3, 5} and {u["n_tasks"] for u in units} == {10, 30, 100}


# --- the record -------------------------------------------------------------------------------------------------------


def values(metric, **unit):
    """Over the draws, from the record; three clusters, thirty tasks and k = 3 unless told otherwise."""
    return load_record("cluster-recovery").values(metric, {"condition": CLUSTERS, "n_tasks": 30, "k": 3, **unit})


def test_the_record_was_computed_with_what_the_code_chooses_now():
    record = load_record("cluster-recovery")
    assert record.config == plain(ClusterRecovery().config(smoke=False), "config")
    assert not record.smoke


def test_every_fit_of_the_record_is_certified():
    record = load_record("cluster-recovery")
    found = [
        value for row in record.results for name, value in row["metrics"].items() if name.endswith(": certificate")
    ]
    assert np.abs(found).max() <= record.config["tol"]


def test_clusters_are_found_in_little_noise_and_in_much_noise_they_are_not():
    for method in ("clustered", "Jacob", "hard clusters"):
        assert values(f"{method}: ari", noise=0.25).mean() > 0.95
        assert values(f"{method}: ari", noise=2.5).mean() < 0.3


def test_directions_are_found_by_disjoint_groups_alone():
    unit = {"condition": DIRECTIONS, "noise": 0.25}
    groups = values("disjoint groups: ari", **unit)
    for method in ("k-means", "clustered", "Jacob", "hard clusters"):
        assert paired_difference(groups, values(f"{method}: ari", **unit)).low > 0.4


def test_without_clusters_nothing_is_found_and_nothing_gained():
    (noise,) = {
        row["unit"]["noise"] for row in load_record("cluster-recovery").results if row["unit"]["condition"] == NOTHING
    }
    unit = {"condition": NOTHING, "noise": noise}
    single = values("single: error", **unit)
    for method in ("k-means", *LABELS):
        assert abs(values(f"{method}: ari", **unit).mean()) < 0.1
        assert paired_difference(values(f"{method}: error", **unit), single).mean > -0.01


def test_weights_of_the_record_were_not_chosen_at_a_weak_end():
    """A strong end is the model with no more than its cheapest part; a weak one would be no penalty."""
    record = load_record("cluster-recovery")
    for method, grid in GRIDS.items():
        found = [row["metrics"][f"{method}: strength at"] for row in record.results]
        assert max(found) < len(grid["strength"]) - 1, method


def test_a_unit_of_the_record_comes_out_again():
    experiment, record = ClusterRecovery(), load_record("cluster-recovery")
    unit = {"condition": CLUSTERS, "n_tasks": 10, "k": 3, "noise": 0.5, "seed": 2}
    (row,) = [row for row in record.results if row["unit"] == unit]
    again = experiment.run_unit(unit, experiment.config(smoke=False), CPU)["metrics"]
    assert again.keys() == row["metrics"].keys()
    for name, value in again.items():
        if name.endswith((": error", ": ari")):
            assert value == pytest.approx(row["metrics"][name], abs=2e-3), name
