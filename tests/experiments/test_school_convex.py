"""The convex models on School: the search for penalties on made-up rows; the protocol, on the record and the data."""

import math

import numpy as np
import pytest
import torch

from companion.experiments import SchoolConvex
from companion.experiments.school_convex import (
    CONTROLS,
    CONVEX,
    INTERCEPTS,
    _grid,
    _held_out_loss,
    _model,
    _ratios,
    _run_convex,
    _structure,
)
from companion.linear import DirtyModel, MultiTaskLasso, RobustMTL, TraceNorm
from companion.metrics import paired_difference
from companion.records import load_record, plain
from companion.tasks import Tasks
from tests.needs import needs_school

REFERENCE = {
    "single": (10.355, 0.344),
    "pooled": (10.368, 0.342),
    "l1/l2": (10.191, 0.365),
    "trace norm": (10.083, 0.378),
}
CPU = torch.device("cpu")


@pytest.fixture
def config():
    """A search small enough to be done by hand."""
    return {
        **SchoolConvex().config(smoke=True),
        **{"n_alphas": 3, "n_ratios": 3, "gammas": [3.0, 0.3], "inner_folds": 2, "fold_seed": 4},
        **{"tol": 1e-10, "tol_in_folds": 1e-10, "max_iter": 50_000, "max_iter_in_folds": 50_000},
    }


@pytest.fixture(scope="module")
def tasks():
    """Three tasks of 11, 8 and 14 rows with levels, 5 features, two of them irrelevant; 9 more rows each to test."""
    rng = np.random.default_rng(0)
    W = rng.normal(size=(5, 1)) * rng.uniform(0.5, 2, size=3)
    W[3:] = 0
    sizes = ((11, 8, 14), (9, 9, 9))
    drawn = []
    for part in sizes:
        X = [rng.normal(size=(n, 5)) for n in part]
        drawn.append(
            Tasks.from_list([(x, x @ W[:, t] + 3 * t + 0.5 * rng.normal(size=len(x))) for t, x in enumerate(X)])
        )
    return drawn


def test_methods_are_the_models_they_are_called_after():
    block = {m: _model(m, 0.7, 1.0) for m in ("l1", "l1/l2", "l1/linf")}
    assert {m: (type(model), model.alpha, model.q) for m, model in block.items()} == {
        "l1": (MultiTaskLasso, 0.7, 1.0),
        "l1/l2": (MultiTaskLasso, 0.7, 2.0),
        "l1/linf": (MultiTaskLasso, 0.7, math.inf),
    }
    dirty, robust = _model("dirty", 0.5, 4.0), _model("robust", 0.5, 0.4)
    assert (dirty.alpha_sparse, dirty.alpha_block, dirty.q) == (0.5, 2.0, math.inf)
    assert (robust.alpha_low_rank, robust.alpha_outlier) == (0.5, 0.2)
    assert type(_model("trace norm", 0.7, 1.0)) is TraceNorm and _model("feature learning", 0.7, 1.0).gamma == 0.7


def test_ratios_reach_from_one_useless_part_to_the_other(tasks):
    """At the ends the dirty and the robust model are the simpler models; inside they need not be."""
    assert _ratios("trace norm", 9, 4) == [1.0]
    np.testing.assert_allclose(_ratios("dirty", 9, 3), [1, 3, 9])
    np.testing.assert_allclose(_ratios("robust", 9, 3), [1 / 3, 3**-0.5, 1])
    train, common = tasks[0], {"tol": 1e-10, "max_iter": 50_000}
    low, high = _ratios("dirty", 3, 2)
    for ratio, alone in ((low, MultiTaskLasso(0.1, q=math.inf)), (high, MultiTaskLasso(0.1, q=1))):
        together = _model("dirty", 0.1, ratio).set_params(**common).fit(train)
        assert together.objective_ == pytest.approx(alone.set_params(**common).fit(train).objective_, rel=1e-8)
    low, high = _ratios("robust", 3, 2)
    whole = _model("robust", 0.1, high).set_params(**common).fit(train)
    assert whole.objective_ == pytest.approx(TraceNorm(0.1, **common).fit(train).objective_, rel=1e-8)
    assert np.linalg.norm(_model("robust", 0.1, 0.99 * low).set_params(**common).fit(train).low_rank_) < 1e-8


def test_grids_fall_from_the_least_penalty_that_gives_zero(tasks, config):
    for method in ("l1/l2", "trace norm", "dirty"):
        unit = _model(method, 1.0, 2.0)
        grid = _grid(unit, tasks[0], config)
        np.testing.assert_allclose(grid[1:] / grid[:-1], np.full(2, 0.005**0.5))
        assert not _model(method, 1.0001 * grid[0], 2.0).fit(tasks[0]).coef_.any()
        assert _model(method, 0.99 * grid[0], 2.0).fit(tasks[0]).coef_.any()
    np.testing.assert_array_equal(_grid(_model("feature learning", 1.0, 1.0), tasks[0], config), [3.0, 0.3])


@pytest.mark.parametrize("free", [True, False])
@pytest.mark.parametrize("method", ["l1/l2", "robust", "feature learning"])
def test_held_out_loss_is_that_of_models_fitted_fold_by_fold(method, free, tasks, config):
    alphas, ratio = np.array([2.0, 0.5]), 0.6
    common = {"reduction": "sum", "fit_intercept": free, "tol": 1e-10, "max_iter": 50_000}
    found = _held_out_loss(_model(method, 1.0, ratio).set_params(**common), tasks[0], alphas, config)
    expected = np.zeros(2)
    for part, held_out in tasks[0].folds(2, 4):
        for a, alpha in enumerate(alphas):
            fitted = _model(method, alpha, ratio).set_params(**common).fit(part)
            for (_, y), prediction, out in zip(tasks[0], fitted.predict(tasks[0]), held_out, strict=True):
                expected[a] += ((y - prediction)[out] ** 2).sum()
    np.testing.assert_allclose(found, expected, rtol=1e-4)  # squares of weights with a certificate on the objective


@pytest.mark.parametrize("method", CONVEX)
def test_the_penalties_with_the_least_held_out_loss_are_fitted_and_measured(method, tasks, config):
    train, test = tasks
    found = _run_convex(method, train, test, True, config, CPU)
    common = {"reduction": "sum", "fit_intercept": True, "tol": 1e-10, "max_iter": 50_000}
    tried = {}
    for ratio in _ratios(method, 3, 3):
        unit = _model(method, 1.0, ratio).set_params(**common)
        grid = _grid(unit, train, config)
        for k, loss in enumerate(_held_out_loss(unit, train, grid, config)):
            tried[loss] = (ratio, k, grid[k])
    ratio, position, alpha = tried[min(tried)]
    fitted = _model(method, alpha, ratio).set_params(**common).fit(train)
    errors = np.concatenate([y - p for (_, y), p in zip(test, fitted.predict(test), strict=True)])
    metrics = found["metrics"]
    assert (metrics["position"], metrics["ratio"]) == (position, pytest.approx(ratio, abs=1e-8))
    assert metrics["alpha"] == pytest.approx(alpha, abs=1e-8)
    assert metrics["rmse"] == pytest.approx(np.sqrt(np.mean(errors**2)), abs=1e-8)
    null = sum(((y - y.mean()) ** 2).sum() / 2 for _, y in train)
    assert metrics["gap"] == pytest.approx(fitted.dual_gap_ / null, abs=1e-8) and metrics["gap"] < 1e-8


def test_structure_counts_what_is_there():
    """Weights set by hand: three tasks, five features, of which two are used; rank one; one outlier task."""
    low_rank = np.outer([1.0, 2.0, -1.0], [0.0, 3.0, 0.0, 1.0, 0.0])
    robust = RobustMTL()
    robust.low_rank_, robust.outlier_ = low_rank, np.zeros((3, 5))
    robust.outlier_[1, [1, 3]] = 0.1
    robust.coef_ = robust.low_rank_ + robust.outlier_
    assert _structure(robust) == {"n_features_used": 2, "rank": 1, "n_outlier_tasks": 1}
    dirty = DirtyModel()
    dirty.sparse_ = robust.outlier_
    dirty.coef_ = robust.coef_
    assert _structure(dirty) == {"n_features_used": 2, "rank": 2, "n_sparse_entries": 2}
    lasso = MultiTaskLasso()
    lasso.coef_ = np.zeros((3, 5))
    assert _structure(lasso) == {"n_features_used": 0, "rank": 0}


def test_units_are_distinct_and_paired_over_splits():
    experiment = SchoolConvex()
    units = experiment.units(experiment.config(smoke=False))
    settings = [{k: v for k, v in unit.items() if k != "split"} for unit in units]
    assert len(units) == 10 * len({tuple(s.items()) for s in settings}) == len({tuple(u.items()) for u in units})
    per_axis = experiment.config(smoke=False)
    assert len(per_axis["ridge_alphas"]) == len(per_axis["gammas"]) == per_axis["n_alphas"]


# --- the record -------------------------------------------------------------------------------------------------------


def values(method, intercept="penalised", metric="rmse", condition="as it is"):
    """(10,) over the published splits, from the record."""
    unit = {"method": method, "intercept": intercept, "condition": condition}
    return load_record("school-convex").values(metric, unit)


@pytest.mark.parametrize("method", sorted(REFERENCE))
def test_the_record_reaches_the_reference_points(method):
    assert values(method).mean() == pytest.approx(REFERENCE[method][0], abs=0.02)
    assert values(method, metric="explained_variance").mean() == pytest.approx(REFERENCE[method][1], abs=0.003)
    told = load_record("school-convex").config["reference"]
    assert (told["rmse"][method], told["explained_variance"][method]) == REFERENCE[method]


def test_the_record_was_computed_with_what_the_code_chooses_now():
    assert load_record("school-convex").config == plain(SchoolConvex().config(smoke=False), "config")


def test_its_baselines_are_those_of_the_other_record():
    """Where both grids choose the same penalty, and at penalties so small that they no longer matter."""
    baselines = load_record("school-baselines")
    common = {"scaling": "standardised", "penalty": "one for all"}
    for method, intercept in (("single", "penalised"), ("single", "free per task"), ("pooled", "penalised")):
        other = {"method": method, "intercept": intercept, **common}
        same = values(method, intercept, "alpha") == baselines.values("alpha", other)
        assert same.sum() >= 5
        np.testing.assert_allclose(
            values(method, intercept)[same], baselines.values("rmse", other)[same], rtol=0, atol=1e-7
        )
    strongest = baselines.values("rmse", {"method": "pooled", "intercept": "free per task", **common})
    np.testing.assert_allclose(values("pooled", "free per task"), strongest, rtol=0, atol=0.005)


@pytest.mark.parametrize("intercept", INTERCEPTS)
@pytest.mark.parametrize("method", CONVEX)
def test_no_penalty_was_chosen_at_the_end_of_its_grid(method, intercept):
    config = load_record("school-convex").config
    position = values(method, intercept, "position")
    assert position.min() > 0 and position.max() < config["n_alphas"] - 1
    assert np.abs(values(method, intercept, "gap")).max() <= config["tol"]


def test_the_controls_show_no_gain():
    """With nothing to learn, no better than the school means; with nothing to share, no better than learning alone."""
    permuted, unrelated = CONTROLS
    for method in ("l1/l2", "trace norm"):
        means = values("task mean", "free per task", condition=permuted)
        assert abs(paired_difference(values(method, "free per task", condition=permuted), means).mean) < 0.01
        alone = values("single", "free per task", condition=unrelated)
        assert paired_difference(values(method, "free per task", condition=unrelated), alone).mean > -0.01


@needs_school
def test_a_unit_of_the_record_comes_out_again():
    experiment, record = SchoolConvex(), load_record("school-convex")
    config = experiment.config(smoke=False)
    wanted = [("l1/l2", "penalised", "as it is"), ("trace norm", "free per task", "tasks unrelated")]
    wanted += [("pooled", "free per task", "as it is"), ("task mean", "free per task", "y permuted within tasks")]
    for method, intercept, condition in wanted:
        unit = {"split": 7, "condition": condition, "intercept": intercept, "method": method}
        (row,) = [row for row in record.results if row["unit"] == unit]
        again = experiment.run_unit(unit, config, CPU)
        # Solved to a relative gap of 1e-5: another version of a solver may stop elsewhere.
        assert again["metrics"]["rmse"] == pytest.approx(row["metrics"]["rmse"], abs=2e-4)
        assert again["metrics"].get("alpha", 0) == pytest.approx(row["metrics"].get("alpha", 0), rel=1e-6)
        assert again["per_task"]["rmse"] == pytest.approx(row["per_task"]["rmse"], abs=5e-3)
    assert record.data == experiment.data_files()
