"""Models of task relations on School: the search they share, on made-up rows; the protocol, on record and data."""

import itertools

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning

from companion.experiments import SchoolRelations
from companion.experiments._frame import run
from companion.experiments._relations import (
    BUILD,
    LABELS,
    STRENGTH,
    certificate,
    choose,
    configured,
    falling,
    inner_folds,
    interval,
    stacked,
    thinned,
    validation,
)
from companion.experiments.school_convex import INTERCEPTS
from companion.experiments.school_relations import (
    CONTROLLED,
    CONTROLS,
    GRIDS,
    RELATIONS,
    _run,
)
from companion.linear import (
    BayesianMTL,
    ClusteredMTL,
    ConvexFeatureLearning,
    DisjointGroups,
    HardClusteredMTL,
    JacobClusteredMTL,
    MeanRegularized,
    MultiTaskKernelRidge,
    MultiTaskLasso,
    SingleTask,
    TaskRelationship,
)
from companion.linear._convex import ConvexModel
from companion.metrics import explained_variance, paired_difference, rmse
from companion.records import load_record, plain
from companion.tasks import Tasks
from tests.needs import needs_school

CPU = torch.device("cpu")
# Where a parameter has a natural limit, its grid may end in it.
LIMITS = {
    "mean-regularised": {"ratio": "last"},  # a mean without a penalty
    "task relationship": {"ridge": "first"},  # no ridge: feature learning
    "Jacob": {"mean_ratio": "last"},  # the same
    "hard clusters": {"n_clusters": "first", "ratio": "last"},  # one mean; no penalty on it
    "disjoint groups": {"n_clusters": "first"},  # one group: feature learning
}
#: A grid small enough to be searched by hand, for every method.
SMALL = {
    "mean-regularised": {STRENGTH: [8.0, 1.0], "ratio": [0.5, 0.05]},
    "task relationship": {STRENGTH: [3.0, 0.3], "ridge": [0.0, 1.0]},
    "Bayesian": {},
    "clustered": {STRENGTH: [5.0, 0.5], "ratio": [0.2, 0.02], "n_clusters": [1, 2]},
    "Jacob": {STRENGTH: [5.0, 0.5], "ratio": [0.2], "mean_ratio": [1.0, 0.1], "n_clusters": [2]},
    "hard clusters": {STRENGTH: [5.0, 0.5], "ratio": [0.1], "n_clusters": [1, 2]},
    "disjoint groups": {STRENGTH: [3.0, 0.3], "n_clusters": [1, 2]},
}
TIGHT = {"reduction": "sum", "tol": 1e-10, "max_iter": 50_000}


@pytest.fixture(scope="module")
def parts():
    """Four tasks in two clusters with levels, 5 features and unequal numbers of rows, to train and to test."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(5, 2))
    W = centres[:, [0, 1, 0, 1]] + 0.2 * rng.normal(size=(5, 4))
    drawn = []
    for sizes in ((11, 8, 14, 9), (6, 7, 6, 8)):
        X = [rng.normal(size=(n, 5)) for n in sizes]
        drawn.append(
            Tasks.from_list([(x, x @ W[:, t] + 3 * t + 0.5 * rng.normal(size=len(x))) for t, x in enumerate(X)])
        )
    return drawn


# --- the search -------------------------------------------------------------------------------------------------------


def test_methods_are_the_models_they_are_called_after():
    """The strength is what the most expensive direction costs, a ratio is what another one costs in parts of it."""

    def parameters(method, **values):
        model = BUILD[method](**values)
        return type(model), {k: v for k, v in model.get_params().items() if isinstance(v, float) or k[:2] == "n_"}

    expected = {
        "mean-regularised": (MeanRegularized, {"alpha": 0.8, "coupling": 7.2}),
        "clustered": (ClusteredMTL, {"n_clusters": 3, "rho1": 7.2, "rho2": 0.8}),
        "hard clusters": (HardClusteredMTL, {"n_clusters": 3, "rho1": 7.2, "rho2": 0.8}),
        "Jacob": (JacobClusteredMTL, {"n_clusters": 3, "mean": 0.2, "between": 0.8, "within": 8.0}),
        "task relationship": (TaskRelationship, {"lambda1": 2.0, "lambda2": 8.0}),
        "disjoint groups": (DisjointGroups, {"n_groups": 3, "gamma": 8.0}),
        "kernel ridge": (MultiTaskKernelRidge, {"alpha": 0.8, "coupling": 7.2, "gamma": 0.3}),
        "single": (MeanRegularized, {"alpha": 8.0, "coupling": 0.0}),
    }
    given = {
        "mean-regularised": {"ratio": 0.1},
        "clustered": {"ratio": 0.1, "n_clusters": 3},
        "hard clusters": {"ratio": 0.1, "n_clusters": 3},
        "Jacob": {"ratio": 0.1, "mean_ratio": 0.25, "n_clusters": 3},
        "task relationship": {"ridge": 2.0},
        "disjoint groups": {"n_clusters": 3},
        "kernel ridge": {"ratio": 0.1, "gamma": 0.3},
        "single": {},
    }
    for method, (kind, weights) in expected.items():
        found, values = parameters(method, strength=8.0, **given[method])
        assert found is kind
        assert {name: values[name] for name in weights} == pytest.approx(weights)
    assert BUILD["kernel ridge"](8.0, 0.1, 0.3).kernel == "rbf"


def test_strengths_of_a_path_are_factors_of_the_penalty(parts):
    """What lets one warm-started path stand for models that are built one by one."""
    W = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    shapes = {
        **{"dirty": {"ratio": 2.0}, "robust": {"ratio": 0.7}, "mean-regularised": {"ratio": 0.1}},
        **{"task relationship": {"ridge": 3.0}, "clustered": {"ratio": 0.1, "n_clusters": 2}},
        "Jacob": {"ratio": 0.3, "mean_ratio": 0.5, "n_clusters": 2},
    }
    on_path = [m for m in BUILD if m not in ("Bayesian", "hard clusters", "disjoint groups", "kernel ridge")]
    for method in on_path:
        shape = shapes.get(method, {})
        unit, model = BUILD[method](1.0, **shape), BUILD[method](7.0, **shape)
        assert isinstance(unit, ConvexModel)
        Z = torch.stack([W, 2 * W]) if method in ("dirty", "robust") else W
        torch.testing.assert_close(unit._penalty().scaled(7.0).value(Z), model._penalty().value(Z))
        assert unit.prepare(parts[0])[1].l2 == model.prepare(parts[0])[1].l2


@pytest.mark.parametrize("free", [True, False])
@pytest.mark.parametrize("method", [m for m in SMALL if SMALL[m]])
def test_held_out_losses_are_those_of_models_fitted_fold_by_fold(method, free, parts):
    train, grid, settings = parts[0], SMALL[method], {**TIGHT, "fit_intercept": free, "n_init": 3}
    found = choose(BUILD[method], grid, train, inner_folds(train, 2, 4), settings)
    axes = [name for name in grid if name != STRENGTH]
    assert found.loss.shape == (*(len(grid[name]) for name in axes), len(grid[STRENGTH]))
    for place in itertools.product(*(range(size) for size in found.loss.shape)):
        values = {name: grid[name][k] for name, k in zip((*axes, STRENGTH), place, strict=True)}
        expected = 0.0
        for part, held_out in train.folds(2, 4):
            fitted = configured(BUILD[method](**values), settings).fit(part)
            for (_, y), prediction, out in zip(train, fitted.predict(train), held_out, strict=True):
                expected += ((y - prediction)[out] ** 2).sum()
        assert found.loss[place] == pytest.approx(expected, rel=1e-4)  # certified is the objective, not the weights


@pytest.mark.parametrize("method", [m for m in SMALL if SMALL[m]])
def test_the_least_loss_is_chosen_and_its_place_in_the_grid_told(method, parts):
    train, grid, settings = parts[0], SMALL[method], {**TIGHT, "n_init": 2}
    found = choose(BUILD[method], grid, train, inner_folds(train, 3, 0), settings)
    axes = (*(name for name in grid if name != STRENGTH), STRENGTH)
    place = np.unravel_index(found.loss.argmin(), found.loss.shape)
    assert found.positions == dict(zip(axes, (int(k) for k in place), strict=True))
    assert found.parameters == {name: grid[name][k] for name, k in found.positions.items()}
    assert found.metrics == {
        **found.parameters,
        **{f"{name}: position": float(k) for name, k in found.positions.items()},
    }
    same = configured(BUILD[method](**found.parameters), {}).get_params()
    assert found.model.get_params() == same


def test_nothing_is_searched_without_a_strength(parts):
    found = choose(BayesianMTL, {}, parts[0], [], {})
    assert type(found.model) is BayesianMTL and found.metrics == {} and found.loss.size == 0


def test_strengths_of_none_fall_from_the_least_that_gives_zero(parts):
    grid = {STRENGTH: None}
    found = choose(BUILD["l1/l2"], grid, parts[0], inner_folds(parts[0], 3, 0), TIGHT, n_strengths=5, least=0.01)
    most = MultiTaskLasso(1.0, reduction="sum").alpha_max(parts[0])
    assert found.loss.shape == (5,)
    assert found.parameters[STRENGTH] == pytest.approx(most * 0.01 ** (found.positions[STRENGTH] / 4))


def test_a_search_ends_where_the_error_no_longer_falls(parts):
    """Weaker strengths than that stay untried, and count as infinite; with patience they are all tried."""
    train, strengths = parts[0], falling(1e3, 1e-3, 13)
    folds = inner_folds(train, 3, 0)

    def losses(patience):
        return choose(BUILD["single"], {STRENGTH: strengths}, train, folds, TIGHT, patience=patience).loss

    whole = losses(13)
    best = int(whole.argmin())
    assert np.isfinite(whole).all() and 0 < best < 9
    for patience in (1, 3):
        found = losses(patience)
        tried = best + patience + 1
        np.testing.assert_allclose(found[:tried], whole[:tried], rtol=1e-10)
        assert np.isinf(found[tried:]).all() and len(found) == 13


def test_what_is_tried_may_be_solved_roughly_without_a_warning(parts):
    """In the folds, models that are fitted one by one do not warn; what is chosen does, when it is fitted."""
    rough = {"reduction": "sum", "tol": 1e-14, "max_iter": 1}
    found = choose(BUILD["hard clusters"], SMALL["hard clusters"], parts[0], inner_folds(parts[0], 2, 0), rough)
    assert np.isfinite(found.loss).all()
    with pytest.warns(ConvergenceWarning):
        configured(ConvexFeatureLearning(0.01), rough).fit(parts[0])


def test_validation_rows_are_all_counted(parts):
    train, held_out = parts
    (fold,) = validation(train, held_out)
    found = choose(BUILD["single"], {STRENGTH: [2.0]}, train, [fold], TIGHT)
    model = SingleTask(2.0, reduction="sum").fit(train)
    expected = sum(((y - p) ** 2).sum() for (_, y), p in zip(held_out, model.predict(held_out), strict=True))
    assert found.loss[0] == pytest.approx(expected, rel=1e-8)


def test_shared_inputs_are_folded_over_their_rows_and_predicted_task_by_task():
    """A path, which works on rows behind one another, and a model that predicts a matrix agree on what is held out."""
    rng = np.random.default_rng(1)
    X, Y = rng.normal(size=(9, 3)), rng.normal(size=(9, 5)) + 10 * np.arange(5)
    train = Tasks.shared(X, Y)
    np.testing.assert_array_equal(stacked(Y), train.long_targets())
    np.testing.assert_array_equal(stacked([Y[:, t] for t in range(5)]), train.long_targets())
    folds = inner_folds(train, 3, 0)
    expected = np.zeros(1)
    for part, held_out in train.folds(3, 0):
        out = held_out[0]
        assert all((o == out).all() for o in held_out)
        fitted = MeanRegularized(0.5, 1.5, reduction="sum", tol=1e-12).fit(part)
        expected += ((Y - fitted.predict(train))[out] ** 2).sum()
    on_path = choose(BUILD["mean-regularised"], {STRENGTH: [2.0], "ratio": [0.25]}, train, folds, TIGHT)
    np.testing.assert_allclose(on_path.loss.ravel(), expected, rtol=1e-8)
    linear = {STRENGTH: [2.0], "ratio": [0.25]}
    one_by_one = choose(
        lambda strength, ratio: MultiTaskKernelRidge(ratio * strength, (1 - ratio) * strength),
        linear,
        train,
        folds,
        {"reduction": "sum"},
    )
    np.testing.assert_allclose(one_by_one.loss.ravel(), expected, rtol=1e-8)


def test_certificates_are_gaps_or_the_worst_violation(parts):
    train = parts[0]
    null = sum(((y - y.mean()) ** 2).sum() / 2 for _, y in train)
    convex = ClusteredMTL(2, 1.0, 0.1, reduction="sum", tol=1e-3).fit(train)
    assert certificate(convex, train) == pytest.approx(convex.dual_gap_ / null)
    hard = HardClusteredMTL(2, 1.0, 0.1, reduction="sum").fit(train)
    hard.certificate_ = {"one": 0.1, "other": 0.3, "third": 0.2}
    assert certificate(hard, train) == 0.3


def test_intervals_are_normal_and_central(parts):
    """Half widths of 1.645 deviations for 90 %; the share inside and the mean width by hand."""
    train, test = parts
    model = BayesianMTL().fit(train)
    mean, deviation = model.predict(test, return_std=True)
    inside, widths = [], []
    for (_, y), m, s in zip(test, mean, deviation, strict=True):
        inside.extend((m - 1.6448536269514722 * s <= y) & (y <= m + 1.6448536269514722 * s))
        widths.extend(2 * 1.6448536269514722 * s)
    found = interval(model, test, 0.9)
    assert found == pytest.approx({"coverage": np.mean(inside), "width": np.mean(widths)})
    assert interval(model, test, 0.5)["width"] == pytest.approx(
        np.mean(widths) * 0.6744897501960817 / 1.6448536269514722
    )


def test_grids_fall_and_small_ones_are_parts_of_them():
    np.testing.assert_allclose(falling(100, 1, 3), [100, 10, 1])
    assert falling(3, 1, 3)[1] == 1.732  # four digits
    small = thinned({STRENGTH: list(range(16)), "ratio": [1, 2, 3, 4, 5], "n_clusters": [7]})
    assert small == {STRENGTH: [0, 4, 8, 12], "ratio": [1, 4], "n_clusters": [7]}
    assert thinned({STRENGTH: None}) == {STRENGTH: None}


# --- one unit ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def config():
    return {
        **SchoolRelations().config(smoke=True),
        **{"inner_folds": 2, "fold_seed": 4, "tol": 1e-10, "tol_in_folds": 1e-10, "n_init": 3, "n_init_in_folds": 3},
        **{"max_iter": 50_000, "max_iter_in_folds": 50_000},
    }


@pytest.mark.parametrize("free", [True, False])
@pytest.mark.parametrize("method", RELATIONS)
def test_the_choice_is_fitted_and_measured(method, free, parts, config):
    train, test = parts
    found = _run(method, SMALL[method], train, test, free, config, CPU)
    settings = {**TIGHT, "fit_intercept": free, "n_init": 3, "n_candidates": 0}
    chosen = choose(BUILD[method], SMALL[method], train, inner_folds(train, 2, 4), settings, patience=3)
    fitted = configured(chosen.model, {**settings, "n_candidates": 20}).fit(train)
    y, prediction = np.concatenate([y for _, y in test]), np.concatenate(fitted.predict(test))
    metrics = found["metrics"]
    assert metrics["rmse"] == pytest.approx(rmse(y, prediction), abs=1e-5)
    assert metrics["explained_variance"] == pytest.approx(explained_variance(y, prediction), abs=1e-5)
    assert {name: metrics[name] for name in chosen.metrics} == pytest.approx(chosen.metrics)
    for t, ((_, target), predicted) in enumerate(zip(test, fitted.predict(test), strict=True)):
        assert found["per_task"]["rmse"][t] == pytest.approx(rmse(target, predicted), abs=1e-5)
    assert 0 <= abs(metrics["gap"]) < 1e-6
    if method in LABELS:
        assert found["per_task"]["labels"] == getattr(fitted, LABELS[method]).tolist()
        assert metrics["n_found"] == len(set(found["per_task"]["labels"]))
    assert ("coverage" in metrics) == (method == "Bayesian")


def test_units_are_distinct_and_paired_over_splits():
    experiment = SchoolRelations()
    units = experiment.units(experiment.config(smoke=False))
    settings = [{k: v for k, v in unit.items() if k != "split"} for unit in units]
    assert len(units) == 10 * len({tuple(s.items()) for s in settings}) == len({tuple(u.items()) for u in units})
    # Two intercepts, and two controls.
    assert len(units) == 10 * (2 * (2 + len(RELATIONS)) + 2 * len(CONTROLLED))
    assert GRIDS.keys() == set(RELATIONS)


def test_protocol_is_that_of_the_other_record():
    """Splits, folds, baselines and reference points; so results of the two may be joined split by split."""
    here, there = SchoolRelations().config(smoke=False), load_record("school-convex").config
    for key in ("splits", "n_schools", "reduction", "inner_folds", "fold_seed", "ridge_alphas", "scaling", "reference"):
        assert plain(here[key], key) == there[key]


# --- with the data ----------------------------------------------------------------------------------------------------


@needs_school
def test_a_small_run_repeats_after_an_interruption(tmp_path, monkeypatch):
    """Few units on few schools: whole, and stopped in the middle and resumed."""
    few = [
        u
        for u in SchoolRelations().units(SchoolRelations().config(smoke=True))
        if u["method"] in ("Bayesian", "single")
    ]

    class Few(SchoolRelations):
        computed: list

        def units(self, config):
            return few

        def run_unit(self, unit, config, device):
            if self.stop_after == len(self.computed):
                raise KeyboardInterrupt
            self.computed.append(unit)
            return super().run_unit(unit, config, device)

    whole, stopped = Few(), Few()
    whole.stop_after, whole.computed = None, []
    stopped.stop_after, stopped.computed = 3, []
    expected = run(whole, smoke=True, folder=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(stopped, smoke=True, folder=tmp_path / "parts")
    stopped.stop_after = None
    assert run(stopped, smoke=True, folder=tmp_path / "parts").same_results(expected)
    assert stopped.computed == few


# --- the record -------------------------------------------------------------------------------------------------------


def values(method, intercept="penalised", metric="rmse", condition="as it is"):
    """(10,) over the published splits, from the record."""
    unit = {"method": method, "intercept": intercept, "condition": condition}
    return load_record("school-relations").values(metric, unit)


def test_the_record_was_computed_with_what_the_code_chooses_now():
    record = load_record("school-relations")
    assert record.config == plain(SchoolRelations().config(smoke=False), "config")
    assert not record.smoke


def test_mean_regularisation_reaches_its_reference_point():
    reference = load_record("school-relations").config["reference"]
    assert values("mean-regularised").mean() == pytest.approx(reference["rmse"]["mean-regularised"], abs=0.02)
    found = values("mean-regularised", metric="explained_variance").mean()
    assert found == pytest.approx(reference["explained_variance"]["mean-regularised"], abs=0.003)


@pytest.mark.parametrize("intercept", ["penalised", "free per task"])
@pytest.mark.parametrize("method", ["single", "pooled"])
def test_baselines_are_those_of_the_record_of_the_other_models(method, intercept):
    unit = {"method": method, "intercept": intercept, "condition": "as it is"}
    other = load_record("school-convex")
    for metric in ("rmse", "explained_variance", "alpha"):
        np.testing.assert_allclose(values(method, intercept, metric), other.values(metric, unit), rtol=0, atol=1e-7)


@pytest.mark.parametrize("condition", CONTROLS)
def test_controls_change_the_data_as_in_the_other_record(condition):
    for method in ("task mean", "single"):
        unit = {"method": method, "intercept": "free per task", "condition": condition}
        other = load_record("school-convex").values("rmse", unit)
        np.testing.assert_allclose(values(method, "free per task", condition=condition), other, rtol=0, atol=1e-7)


@pytest.mark.parametrize("method", [m for m in RELATIONS if GRIDS[m] and m != "clustered"])
def test_no_value_was_chosen_at_the_end_of_its_grid(method):
    """Except where the end is a limit that has a name of its own; of two or three values any may be best."""
    for intercept, (name, grid) in itertools.product(INTERCEPTS, GRIDS[method].items()):
        if len(grid) <= 3:
            continue
        position = values(method, intercept, f"{name}: position")
        allowed = LIMITS.get(method, {}).get(name)
        assert position.min() > 0 or allowed == "first", (intercept, name, position)
        assert position.max() < len(grid) - 1 or allowed == "last", (intercept, name, position)


def test_clustered_chose_what_its_directions_cost_inside_the_grid():
    """Strength and ratio end at their ends now and then, for along a valley only their product matters."""
    strengths, ratios = (GRIDS["clustered"][name] for name in (STRENGTH, "ratio"))
    for intercept in INTERCEPTS:
        inside = values("clustered", intercept, STRENGTH) * values("clustered", intercept, "ratio")
        assert 10 * min(strengths) * min(ratios) < inside.min()
        assert inside.max() < max(strengths) * max(ratios) / 10
        assert inside.max() / inside.min() < 4


@pytest.mark.parametrize("method", RELATIONS)
def test_every_fit_is_certified(method):
    tol = load_record("school-relations").config["tol"]
    for intercept in INTERCEPTS:
        assert np.abs(values(method, intercept, "gap")).max() <= tol


def test_intervals_cover_about_what_they_should():
    for intercept in INTERCEPTS:
        assert values("Bayesian", intercept, "coverage").mean() == pytest.approx(0.9, abs=0.02)


def test_the_controls_show_no_gain():
    """With nothing to learn, no better than the school means; with nothing to share, no better than learning alone."""
    permuted, unrelated = CONTROLS
    for method in ("mean-regularised", "clustered", "Bayesian"):
        means = values("task mean", "free per task", condition=permuted)
        assert abs(paired_difference(values(method, "free per task", condition=permuted), means).mean) < 0.02
        alone = values("single", "free per task", condition=unrelated)
        gain = -paired_difference(values(method, "free per task", condition=unrelated), alone).mean
        real = values("single", "free per task") - values(method, "free per task")
        assert gain < 0.25 * real.mean()


@needs_school
def test_a_unit_of_the_record_comes_out_again():
    experiment, record = SchoolRelations(), load_record("school-relations")
    config = experiment.config(smoke=False)
    wanted = [("mean-regularised", "penalised"), ("Bayesian", "free per task"), ("pooled", "free per task")]
    for method, intercept in wanted:
        unit = {"split": 7, "condition": "as it is", "intercept": intercept, "method": method}
        (row,) = [row for row in record.results if row["unit"] == unit]
        again = experiment.run_unit(unit, config, CPU)
        assert again["metrics"]["rmse"] == pytest.approx(row["metrics"]["rmse"], abs=2e-4)
        assert again["per_task"]["rmse"] == pytest.approx(row["per_task"]["rmse"], abs=5e-3)
    assert record.data == experiment.data_files()
