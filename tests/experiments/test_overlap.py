"""The phase transition in the overlap: rules of success by hand, draws as described, runs that repeat."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso

from companion.experiments import OverlapPhaseTransition, overlap_phase_transition, run
from companion.experiments.overlap_phase_transition import (
    DIRTY,
    PENALTIES,
    RULES,
    THRESHOLDS,
    TUNED,
    Recovery,
    draw_two_tasks,
    signed_support,
    union_support,
)
from companion.records import load_record

# Features 0 and 1 are common, 2 belongs to task 0, 3 to task 1, 4 to nobody.
TRUTH = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
RIGHT = 0.6 * TRUTH


def changed(row, weights):
    """RIGHT with another row."""
    W = RIGHT.copy()
    W[row] = weights
    return W


@pytest.mark.parametrize(
    ("W", "signed", "union"),
    [
        (RIGHT, True, True),
        (changed(2, [-0.6, 0.2]), False, True),  # a block norm gives the other task a weight, but a smaller one
        (changed(2, [-0.6, -0.6]), False, False),  # of the same size: the rule would read its sign, too
        (changed(2, [-0.6, 0.5995]), False, False),  # of the same size up to the numerical zero
        (changed(2, [-0.6, 0.598]), False, True),
        (changed(1, [0.6, 0.3]), False, True),  # wrong sign where the row is not largest
        (changed(1, [-0.6, -0.3]), False, False),  # wrong sign where it is
        (changed(0, [0.0, 0.6]), False, True),  # row in use, one of its weights missed
        (changed(0, [0.0, 0.0]), False, False),  # row missed
        (changed(4, [0.0, 0.01]), False, False),  # row too many
        (-RIGHT, False, False),
        (0 * RIGHT, False, False),
    ],
)
def test_rules_of_success(W, signed, union):
    assert signed_support(W, TRUTH) is signed
    assert union_support(W, TRUTH, zero=1e-3) is union


def test_thresholds_of_the_papers():
    for overlap, l1, linf, dirty in ((0.3, 2, 3.1, 1.7), (2 / 3, 2, 2, 4 / 3), (1.0, 2, 1, 1)):
        found = [THRESHOLDS[method](overlap) for method in ("l1", "l1/linf", DIRTY)]
        assert found == pytest.approx([l1, linf, dirty])
    assert "l1/l2" not in THRESHOLDS


def test_draws_are_as_described():
    p, overlap, theta = 90, 1 / 3, 2.5
    tasks, W, rate = draw_two_tasks(p, overlap, theta, np.random.default_rng(3), noise_variance=0.25)
    support = W != 0
    assert support.sum(0).tolist() == [9, 9]
    assert support.all(1).sum() == 3  # a third of nine
    assert set(np.unique(W)) == {-1.0, 0.0, 1.0}
    n = math.ceil(2.5 * 9 * math.log(90 - 15))
    assert tasks.n_samples.tolist() == [n, n]
    assert rate == pytest.approx(math.sqrt(math.log(75) / n))
    (X, y), (Z, z) = tasks
    noise = np.concatenate([y - X @ W[:, 0], z - Z @ W[:, 1]])
    assert noise.var() == pytest.approx(0.25, rel=0.35)
    assert np.concatenate([X, Z]).std() == pytest.approx(1, abs=0.02)
    assert abs(np.corrcoef(X.ravel(), Z.ravel())[0, 1]) < 0.05  # a design for each task
    again = draw_two_tasks(p, overlap, theta, np.random.default_rng(3), noise_variance=0.25)
    np.testing.assert_array_equal(again.tasks[1][0], Z)


def test_the_extremes_of_overlap():
    rng = np.random.default_rng(0)
    apart, same = draw_two_tasks(50, 0.0, 1.0, rng).W != 0, draw_two_tasks(50, 1.0, 1.0, rng).W != 0
    assert not apart.all(1).any()
    np.testing.assert_array_equal(same[:, 0], same[:, 1])


def test_l1_is_a_lasso_per_task():
    draw = draw_two_tasks(40, 0.5, 2.0, np.random.default_rng(1))
    W, gap = Recovery(draw).fit("l1", 1.5)
    assert gap <= 1e-9
    for t, (X, y) in enumerate(draw.tasks):
        lasso = Lasso(alpha=1.5 * draw.rate, fit_intercept=False, tol=1e-12).fit(X, y)
        np.testing.assert_allclose(W[:, t], np.where(abs(lasso.coef_) > 1e-3, lasso.coef_, 0), atol=1e-4)


def test_penalties_by_their_price_of_a_row():
    """Strength 2 on the row (3, -1); the dirty model with ratio 1.5 pays 1.5 for each pair and 1 for what is over."""
    row = torch.tensor([[3.0, -1.0]], dtype=torch.float64)
    prices = {method: float(PENALTIES[method](2.0, 1.5).value(row)) for method in PENALTIES}
    expected = {"l1": 8, "l1/l2": 2 * math.sqrt(10), "l1/linf": 6, DIRTY: 2 * (1.5 + 2), TUNED: 2 * (1.5 + 2)}
    assert prices == pytest.approx(expected)
    assert prices.keys() == RULES.keys()


def test_methods_separate_where_theory_says_so():
    """Common features: l1/linf needs half of what l1 needs. Few of them: it needs more than l1."""

    def successes(overlap, theta, method, rule):
        draws = (draw_two_tasks(64, overlap, theta, np.random.default_rng(seed)) for seed in range(10))
        return sum(getattr(Recovery(draw)(method, 2.0), rule) for draw in draws)

    assert successes(1.0, 1.7, "l1/linf", "union") >= 8 > 3 >= successes(1.0, 1.7, "l1", "signed")
    assert successes(0.3, 3.0, "l1", "signed") >= 6 > 4 >= successes(0.3, 3.0, "l1/linf", "union")


def test_a_small_run_repeats(tmp_path):
    first = run(OverlapPhaseTransition(), smoke=True, folder=tmp_path / "a")
    overlap_phase_transition._calibrate.cache_clear()
    second = run(OverlapPhaseTransition(), smoke=True, folder=tmp_path / "b")
    assert first.same_results(second)
    for row in first.results:
        assert row["metrics"]["largest gap"] <= first.config["tol"]
        assert all(row["metrics"][f"{m}: success"] == row["metrics"][f"{m}: {rule}"] for m, rule in RULES.items())
    easy = {"p": 40, "overlap": "1", "theta": 3.0}
    assert first.values("l1/linf: success", easy) > first.values("l1/linf: success", {**easy, "theta": 0.6})


def test_chosen_weights_succeed_most_often_in_calibration():
    record = load_record("overlap-phase-transition")
    tried = record.summary["calibration"]
    for method, chosen in record.summary["chosen"].items():
        successes = {(c["constant"], c.get("ratio")): c["successes"] for c in tried if c["method"] == method}
        ratios = {DIRTY: 1, TUNED: len(record.config["ratios"])}
        assert len(successes) == len(record.config["constants"]) * ratios.get(method, 1)
        assert successes[chosen["constant"], chosen.get("ratio")] == max(successes.values())
    assert set(record.summary["chosen"]) == set(PENALTIES)


def test_a_unit_of_the_record_comes_out_again(monkeypatch):
    record = load_record("overlap-phase-transition")
    monkeypatch.setattr(overlap_phase_transition, "_calibrate", lambda config: record.summary)  # a minute's work
    unit = {"p": 128, "overlap": "1", "theta": 1.5}
    found = OverlapPhaseTransition().run_unit(unit, record.config, torch.device("cpu"))["metrics"]
    for name, value in found.items():
        if name == "largest gap":
            assert value <= record.config["tol"]
        else:  # another machine may decide a draw in a hundred differently
            assert value == pytest.approx(record.values(name, unit).item(), abs=0.0101)
