"""Metrics against scikit-learn and scipy, their order of tasks, and what they refuse."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import accuracy_score, explained_variance_score, r2_score, root_mean_squared_error

from companion.metrics import (
    error_rate,
    explained_variance,
    paired_difference,
    paired_gain,
    per_task,
    relative_gain,
    rmse,
)


@pytest.fixture
def rows():
    """Targets, biased predictions and string task ids whose first appearance is not their order."""
    rng = np.random.default_rng(0)
    task = np.array(["c"] * 4 + ["a"] * 9 + ["b"] * 5)[rng.permutation(18)]
    y = rng.normal(size=18) * 3
    return y, y + rng.normal(size=18) + 0.7, task


@pytest.mark.parametrize("as_input", [np.asarray, torch.as_tensor, list])
def test_pooled_metrics_agree_with_scikit_learn(rows, as_input):
    y, prediction, _ = rows
    assert rmse(as_input(y), as_input(prediction)) == pytest.approx(root_mean_squared_error(y, prediction), abs=1e-12)
    found = explained_variance(as_input(y), as_input(prediction))
    assert found == pytest.approx(r2_score(y, prediction), abs=1e-12)
    labels, guess = (y > 0).astype(int), (prediction > 0).astype(int)
    assert error_rate(as_input(labels), as_input(guess)) == pytest.approx(1 - accuracy_score(labels, guess), abs=1e-15)


def test_explained_variance_counts_a_bias_as_error(rows):
    y, prediction, _ = rows
    assert explained_variance(y, prediction) < explained_variance_score(y, prediction) - 0.01
    assert explained_variance(y, np.full_like(y, y.mean())) == pytest.approx(0, abs=1e-12)


def test_float32_is_measured_in_float64():
    """The mean of many squares near 1e7 would lose digits in float32."""
    y = np.full(1000, 3e3, dtype=np.float32) + np.arange(1000, dtype=np.float32)
    assert rmse(y, np.zeros_like(y)) == pytest.approx(np.sqrt(np.mean(y.astype(float) ** 2)), rel=1e-14)


def test_unsigned_integers_do_not_wrap():
    assert rmse(np.array([1, 5], dtype=np.uint8), np.array([3, 5], dtype=np.uint8)) == pytest.approx(np.sqrt(2))


@pytest.mark.parametrize("metric", [rmse, explained_variance])
def test_per_task_takes_each_tasks_rows_in_the_order_of_tasks(rows, metric):
    y, prediction, task = rows
    ids, values = per_task(metric, torch.as_tensor(y), torch.as_tensor(prediction), list(task))
    assert ids == ("a", "b", "c")
    np.testing.assert_allclose(values, [metric(y[task == t], prediction[task == t]) for t in "abc"], atol=1e-14)


def test_per_task_keeps_order_of_appearance_where_ids_do_not_compare():
    ids, values = per_task(error_rate, ["x", "x", "y"], ["x", "y", "y"], [(2,), "b", (2,)])
    assert ids == ((2,), "b")
    np.testing.assert_array_equal(values, [0.0, 1.0])


def test_per_task_names_the_task_without_variance():
    with pytest.raises(
        ValueError, match=r"task 'b': explained variance needs targets that differ; all 2 of them are 4"
    ):
        per_task(explained_variance, [1, 2, 4, 4], [1, 2, 3, 4], ["a", "a", "b", "b"])


def test_relative_gain_is_positive_where_the_error_fell():
    gain = relative_gain(torch.tensor([1.0, 3.0, 2.0]), np.array([2.0, 2.0, 2.0]))
    np.testing.assert_array_equal(gain, [0.5, -0.5, 0.0])
    assert isinstance(gain, np.ndarray)


@pytest.mark.parametrize("confidence", [0.95, 0.6])
def test_paired_difference_agrees_with_scipy(confidence):
    rng = np.random.default_rng(1)
    a, b = rng.normal(1, 1, size=7), rng.normal(size=7)
    oracle = stats.ttest_rel(a, b)
    interval = oracle.confidence_interval(confidence)
    found = paired_difference(a, torch.as_tensor(b), confidence)
    assert found.mean == pytest.approx((a - b).mean(), abs=1e-14)
    assert found.mean / found.standard_error == pytest.approx(oracle.statistic, rel=1e-12)
    assert (found.low, found.high, found.n) == (pytest.approx(interval.low), pytest.approx(interval.high), 7)


def test_pairing_removes_what_the_splits_have_in_common():
    """Splits differ by 10, the methods by 1 on every one of them: the interval sees the 1 only."""
    b = np.array([10.0, 20.0, 30.0, 40.0])
    found = paired_difference(b - 1, b)
    assert dataclasses.astuple(found) == (-1.0, 0.0, -1.0, -1.0, 4)


def test_paired_gain_is_the_paired_mean_of_relative_gains():
    error, reference = np.array([1.0, 3.0, 4.0]), np.array([2.0, 4.0, 5.0])
    oracle = stats.ttest_1samp(1 - error / reference, 0).confidence_interval(0.9)
    found = paired_gain(error, reference, confidence=0.9)
    assert (found.mean, found.low, found.high) == pytest.approx(((0.5 + 0.25 + 0.2) / 3, oracle.low, oracle.high))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rmse([1, 2, 3], [1, 2]), r"prediction must have shape \(3,\), as y; got \(2,\)"),
        (lambda: rmse([[1, 2]], [[1, 2]]), r"y must have shape \(n,\) with n >= 1; got \(1, 2\)"),
        (lambda: rmse([], []), r"n >= 1; got \(0,\)"),
        (lambda: rmse([1, np.nan], [1, 2]), r"y must be finite; position \(1,\) holds nan"),
        (lambda: rmse([1, 2], [1, np.inf]), r"prediction must be finite; position \(1,\) holds inf"),
        (lambda: rmse(["a"], ["a"]), "y must hold numbers; got <U1"),
        (lambda: rmse([1j], [1j]), "must hold numbers or labels; got complex128"),
        (lambda: error_rate([1.0, np.nan], [1.0, 2.0]), r"y must be finite"),
        (lambda: error_rate(["1"], [1]), "labels of one kind; got <U1 and int64"),
        (lambda: per_task(rmse, [1, 2], [1, 2], ["a"]), r"task must have shape \(2,\), one id per row"),
        (lambda: per_task(rmse, [1, 2], [1], ["a", "b"]), r"prediction must have shape \(2,\)"),
        (lambda: relative_gain([1, 2], [1, 0]), "reference must be > 0, as it is divided by; its smallest value is 0"),
        (lambda: relative_gain([1, -2], [1, 1]), "error must be >= 0; its smallest value is -2"),
        (lambda: relative_gain([1, 2], [1]), r"one shape; got \(2,\) and \(1,\)"),
        (lambda: relative_gain([1, np.nan], [1, 1]), "error must be finite"),
        (lambda: paired_difference([1], [2]), "at least 2 pairs; got 1"),
        (lambda: paired_difference([1, 2], [2, 3], confidence=95), "strictly between 0 and 1; got 95"),
        (lambda: paired_difference([1, 2], [2, 3, 4]), r"b must have shape \(2,\), as a; got \(3,\)"),
    ],
)
def test_bad_input_is_refused_with_what_was_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call()
