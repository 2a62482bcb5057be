"""Tasks: nothing is lost, mixed up or padded on the way from a table to T designs."""

import numpy as np
import pytest
import torch
from sklearn.preprocessing import StandardScaler

from companion.tasks import Standardiser, Tasks

T, D, N = 3, 5, 17


@pytest.fixture
def table():
    rng = np.random.default_rng(0)
    task = np.array(["b", "a", "c"])[rng.permutation(np.repeat([0, 1, 2], [4, 7, 6]))]
    return rng.normal(size=(N, D)), rng.normal(size=N), task


def test_from_long_groups_the_rows_of_every_task_in_their_order(table):
    X, y, task = table
    tasks = Tasks.from_long(X, y, task)
    assert tasks.ids == ("a", "b", "c")
    assert (tasks.n_tasks, tasks.n_features, len(tasks)) == (T, D, T)
    for t, id_ in enumerate(tasks.ids):
        X_t, y_t = tasks[t]
        np.testing.assert_array_equal(X_t, X[task == id_])
        np.testing.assert_array_equal(y_t, y[task == id_])
        np.testing.assert_array_equal(X[tasks.rows[tasks.long()[2] == t]], X_t)
    np.testing.assert_array_equal(tasks.n_samples, [7, 4, 6])


@pytest.mark.parametrize(
    ("ids", "expected"),
    [([2, 1, 2], (1, 2)), (["b", 1, "b"], ("b", 1)), ([(2, 0), (1, 5), (2, 0)], ((2, 0), (1, 5)))],
)
def test_ids_may_be_any_hashable(ids, expected):
    tasks = Tasks.from_long(np.eye(3), [1.0, 2.0, 3.0], ids)
    assert set(tasks.ids) == set(expected)
    np.testing.assert_array_equal(tasks[tasks.ids.index(ids[0])][1], [1.0, 3.0])


def test_from_list_equals_from_long(table):
    X, y, task = table
    tasks = Tasks.from_list([(X[task == i], y[task == i]) for i in "abc"], ids="abc")
    for (A, a), (B, b) in zip(tasks, Tasks.from_long(X, y, task), strict=True):
        np.testing.assert_array_equal(A, B)
        np.testing.assert_array_equal(a, b)


def test_zero_weight_removes_a_row_and_weights_add_up(table):
    X, y, task = table
    weight = np.arange(N) % 3
    tasks = Tasks.from_long(X, y, task, weight)
    for t, id_ in enumerate("abc"):
        keep = (task == id_) & (weight > 0)
        np.testing.assert_array_equal(tasks[t][0], X[keep])
        np.testing.assert_array_equal(tasks.weights(t), weight[keep])
        assert tasks.total_weight[t] == weight[keep].sum()


def test_shared_inputs_are_stored_once_and_nan_is_a_missing_label():
    X, Y = np.random.default_rng(1).normal(size=(7, 4)), np.arange(14.0).reshape(7, 2)
    full = Tasks.shared(X, Y)
    assert full.tensors(0)[0].data_ptr() == full.tensors(1)[0].data_ptr() == X.ctypes.data
    Y[2, 1] = np.nan
    tasks = Tasks.shared(X, Y, ids=["u", "v"])
    np.testing.assert_array_equal(tasks.n_samples, [7, 6])
    np.testing.assert_array_equal(tasks[1][0], np.delete(X, 2, axis=0))
    np.testing.assert_array_equal(tasks[1][1], np.delete(Y[:, 1], 2))


@pytest.mark.parametrize("shared", [False, True])
def test_gram_and_padded_agree_with_dense_products(table, shared):
    X, y, task = table
    weight = np.random.default_rng(2).uniform(0.5, 2, N)
    tasks = Tasks.shared(X, np.stack([y, 2 * y], 1)) if shared else Tasks.from_long(X, y, task, weight)
    gram, padded = tasks.gram(), tasks.padded()
    assert padded.X.shape == (tasks.n_tasks, max(tasks.n_samples), D)
    for t in range(tasks.n_tasks):
        X_t, y_t = tasks[t]
        V = np.diag(tasks.weights(t))
        for XtX, Xty, yty in (
            (gram.XtX[t], gram.Xty[t], gram.yty[t]),
            (
                padded.X[t].T @ (padded.weight[t, :, None] * padded.X[t]),
                padded.X[t].T @ (padded.weight[t] * padded.y[t]),
                padded.weight[t] @ padded.y[t] ** 2,
            ),
        ):
            np.testing.assert_allclose(XtX, X_t.T @ V @ X_t, rtol=1e-12)
            np.testing.assert_allclose(Xty, X_t.T @ V @ y_t, rtol=1e-12, atol=1e-12)
            np.testing.assert_allclose(yty, y_t @ V @ y_t, rtol=1e-12)


def test_split_is_drawn_within_every_task(table):
    X, y, task = table
    train, test = Tasks.from_long(X, y, task).split(0.3, random_state=0)
    np.testing.assert_array_equal(test.n_samples, [2, 1, 2])
    both = np.concatenate([train.rows, test.rows])
    np.testing.assert_array_equal(np.sort(both), np.arange(N))
    np.testing.assert_array_equal(test.long()[0], X[test.rows])
    again = Tasks.from_long(X, y, task).split(0.3, random_state=0)[1]
    np.testing.assert_array_equal(again.rows, test.rows)
    assert not np.array_equal(Tasks.from_long(X, y, task).split(0.3, random_state=1)[1].rows, test.rows)


def test_every_row_is_held_out_once_and_single_rows_never():
    task = np.repeat([0, 1, 2], [8, 2, 1])
    X = np.arange(22.0).reshape(11, 2)
    tasks = Tasks.from_long(X, X[:, 0], task)
    counts = [np.zeros(n, int) for n in tasks.n_samples]
    for train, held_out in tasks.folds(3, random_state=0):
        for t, out in enumerate(held_out):
            counts[t] += out
            np.testing.assert_array_equal(train[t][1], tasks[t][1][~out])
    assert [c.tolist() for c in counts] == [[1] * 8, [1] * 2, [0]]


def test_part_takes_positions_in_the_rows_handed_in(table):
    X, y, task = table
    weight = np.ones(N)
    weight[3] = 0
    train, held_out = Tasks.from_long(X, y, task, weight).part(np.arange(10), np.arange(10, N))
    for t, id_ in enumerate("abc"):
        kept = np.flatnonzero((task == id_) & (weight > 0))
        np.testing.assert_array_equal(train[t][1], y[kept[kept < 10]])
        np.testing.assert_array_equal(held_out[t], kept >= 10)


def test_folds_of_shared_inputs_follow_the_observed_labels():
    Y = np.arange(22.0).reshape(11, 2)
    Y[4, 0] = np.nan
    tasks = Tasks.shared(np.arange(33.0).reshape(11, 3), Y)
    for train, held_out in tasks.folds(4, random_state=1):
        for t in range(2):
            np.testing.assert_array_equal(train[t][1], tasks[t][1][~held_out[t]])


def test_standardiser_uses_training_rows_only_and_keeps_constants(table):
    X, y, task = table
    X = np.hstack([X, np.full((N, 1), 3.0)])
    tasks = Tasks.from_long(X, y, task)
    train, test = tasks.split(0.4, random_state=3)
    scaled = Standardiser.fit(train).transform(test)
    expected = StandardScaler().fit(train.long()[0]).transform(test.long()[0])
    expected[:, -1] = 3.0
    np.testing.assert_allclose(scaled.long()[0], expected, rtol=1e-10)
    np.testing.assert_allclose(scaled.long()[1], test.long()[1] - train.long()[1].mean(), rtol=1e-10)


def test_with_targets_replaces_labels_only(table):
    X, y, task = table
    tasks = Tasks.from_long(X, y, task)
    other = tasks.with_targets([-y_t for _, y_t in tasks])
    np.testing.assert_array_equal(other.long()[1], -tasks.long()[1])
    np.testing.assert_array_equal(other.long()[0], tasks.long()[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_library_and_dtype_follow_the_input(table, dtype):
    X, y, task = table
    X_t, y_t = Tasks.from_long(torch.tensor(X, dtype=dtype), torch.tensor(y, dtype=dtype), list(task))[1]
    assert isinstance(X_t, torch.Tensor) and X_t.dtype == y_t.dtype == dtype
    assert isinstance(Tasks.from_long(X.astype(np.float32), y, task)[1][0], np.ndarray)
    assert Tasks.from_long(X.astype(np.float32), y, task)[1][0].dtype == np.float32


def test_sorted_input_is_not_copied():
    X = np.ones((6, 2))
    assert Tasks.from_long(X, np.ones(6), [0, 0, 1, 1, 1, 2]).tensors(0)[0].data_ptr() == X.ctypes.data


def _bad(name, value):
    call = {"X": np.ones((4, 2)), "y": np.ones(4), "task": [0, 0, 1, 1], "sample_weight": None}
    return call | {name: value}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (_bad("y", np.ones(3)), ValueError, r"y must have shape \(4,\), one value per row of X; got \(3,\)"),
        (_bad("task", [0, 1, 1]), ValueError, r"task must have shape \(4,\), one id per row of X; got \(3,\)"),
        (_bad("task", np.zeros((4, 1))), ValueError, r"task must have shape \(4,\).*got \(4, 1\)"),
        (_bad("task", [0, 1, np.nan, 1]), ValueError, "task contains NaN"),
        (_bad("sample_weight", np.ones(5)), ValueError, r"sample_weight must have shape \(4,\)"),
        (_bad("sample_weight", [1, 1, -1, 1]), ValueError, "sample_weight must be >= 0; its smallest value is -1"),
        (_bad("sample_weight", [1, 1, 0, 0]), ValueError, "every task needs at least one row.*task 1"),
        (_bad("X", np.array([[1, np.nan]] * 4)), ValueError, "X contains NaN"),
        (_bad("X", np.array([[1, np.inf]] * 4)), ValueError, "X contains infinity"),
        (_bad("X", torch.full((4, 2), torch.inf)), ValueError, "X must be finite"),
        (_bad("y", [1, np.nan, 1, 1]), ValueError, "y must be finite.*Tasks.shared"),
        (_bad("X", np.ones(4)), ValueError, "Expected 2D array, got 1D array"),
        (_bad("X", torch.ones(4)), ValueError, r"shape \(n, d\).*got \(4,\)"),
        (_bad("X", np.ones((4, 2, 2))), ValueError, "dim 3"),
        (_bad("X", np.array([["red", "blue"]] * 4)), ValueError, "could not convert string"),
        (_bad("X", np.ones((4, 2), complex)), ValueError, "Complex data not supported"),
        (_bad("X", torch.ones(4, 2, dtype=torch.complex64)), ValueError, "Complex data not supported"),
        (_bad("y", np.ones(4, complex)), ValueError, "Complex data not supported: y"),
        (_bad("y", ["low", "high", "low", "low"]), ValueError, "y must hold numbers.*'low'"),
        (_bad("y", None), ValueError, "y is missing: expected 4 values"),
    ],
)
def test_bad_input_says_what_was_expected_and_what_came(call, error, message):
    with pytest.raises(error, match=message):
        Tasks.from_long(**call)


def test_bad_lists_and_shared_inputs():
    X = np.ones((3, 2))
    with pytest.raises(ValueError, match=r"same number of features; got \[2, 4\]"):
        Tasks.from_list([(X, np.ones(3)), (np.ones((3, 4)), np.ones(3))])
    with pytest.raises(ValueError, match="at least one"):
        Tasks.from_list([])
    with pytest.raises(ValueError, match="2 different task ids"):
        Tasks.from_list([(X, np.ones(3))] * 2, ids=["a", "a"])
    with pytest.raises(ValueError, match="minimum of 1 is required"):
        Tasks.from_list([(X, np.ones(3)), (np.ones((0, 2)), np.ones(0))])
    with pytest.raises(ValueError, match=r"Y must have shape \(3, T\).*got \(4, 2\)"):
        Tasks.shared(X, np.ones((4, 2)))
    with pytest.raises(ValueError, match="none came for task 1"):
        Tasks.shared(X, np.array([[1, np.nan]] * 3))
    with pytest.raises(ValueError, match="contains infinity"):
        Tasks.shared(X, torch.full((3, 2), torch.inf))
    with pytest.raises(TypeError, match="Build Tasks with"):
        Tasks()
    with pytest.raises(ValueError, match=r"task 1 has 1 row; splitting needs at least 2"):
        Tasks.from_long(X, np.ones(3), [0, 0, 1]).split()
    with pytest.raises(ValueError, match="expected 2 features"):
        Standardiser.fit(Tasks.from_long(X, np.ones(3))).transform(Tasks.from_long(np.ones((3, 4)), np.ones(3)))


# --- what a careless container would get wrong


def test_ids_without_an_order_are_told_apart_by_hash():
    """Sets compare by inclusion: sorting them would scatter equal ids."""
    a, b, c = frozenset("x"), frozenset("y"), frozenset("z")
    tasks = Tasks.from_long(np.eye(6), np.arange(6.0), [a, b, a, c, b, a])
    assert set(tasks.ids) == {a, b, c}
    np.testing.assert_array_equal(tasks[tasks.ids.index(a)][1], [0, 2, 5])


def test_named_tuples_and_huge_integers_are_ids():
    from collections import namedtuple

    Place = namedtuple("Place", "row column")
    ids = [Place(1, 2), Place(0, 3), Place(1, 2)]
    assert Tasks.from_long(np.eye(3), np.ones(3), ids).ids == (Place(0, 3), Place(1, 2))
    huge = [2**63 + 1, -1, 2**63 + 3]
    assert Tasks.from_long(np.eye(3), np.ones(3), huge).ids == (-1, 2**63 + 1, 2**63 + 3)


@pytest.mark.parametrize("missing", [None, np.nan, "NA"])
def test_missing_ids_are_refused(missing):
    import pandas as pd

    ids = pd.Series(["a", pd.NA, "b"], dtype="string") if missing == "NA" else ["a", missing, "b"]
    with pytest.raises(ValueError, match="missing value: every row needs a task id"):
        Tasks.from_long(np.eye(3), np.ones(3), ids)


def test_any_memory_layout_is_taken_and_left_alone():
    X, Y = np.arange(12.0).reshape(4, 3), np.arange(8.0).reshape(4, 2)
    Y.flags.writeable = X.flags.writeable = False
    tasks = Tasks.shared(X[::-1], Y[::-1])
    np.testing.assert_array_equal(tasks[1][1], Y[::-1, 1])
    np.testing.assert_array_equal(tasks[0][0], X[::-1])


def test_targets_keep_their_digits_beside_float32_inputs():
    X, y = np.eye(3, dtype=np.float32), np.array([2e7 + 1, 2e7 + 2, 2e7 + 3])
    np.testing.assert_array_equal(Tasks.from_long(X, y).to(dtype=torch.float64)[0][1], y)
    assert Tasks.from_long(X, y)[0][1].dtype == np.float32
    assert Tasks.from_long(X, y).gram().XtX.dtype == torch.float64


def test_parts_carry_their_weights(table):
    X, y, task = table
    weight = np.random.default_rng(5).uniform(0.5, 2, N)
    tasks = Tasks.from_long(X, y, task, weight)
    for part in (*tasks.split(0.4, random_state=0), next(tasks.folds(2, 0))[0], tasks.subset([0, 2])):
        for t in range(part.n_tasks):
            rows = part.rows[part.long()[2] == t]
            np.testing.assert_array_equal(part.weights(t), weight[rows])
            np.testing.assert_array_equal(part[t][1], y[rows])
    assert tasks.subset([0, 2]).ids == ("a", "c")
    assert Tasks.from_long(X, y, task, 2.0).total_weight.tolist() == [14, 8, 12]


def test_subset_of_shared_inputs_keeps_missing_labels():
    Y = np.arange(12.0).reshape(4, 3)
    Y[1, 2] = np.nan
    part = Tasks.shared(np.eye(4), Y, ids="abc").subset([1, 2])
    assert part.ids == ("b", "c")
    np.testing.assert_array_equal(part[1][1], [2, 8, 11])


def test_folds_are_shuffled_and_spread_classes():
    y = np.repeat([0.0, 1.0], [9, 6])
    tasks = Tasks.from_long(np.arange(15.0)[:, None], y)
    for train, (out,) in tasks.folds(3, random_state=0, by_target=True):
        assert train.n_samples[0] == 10
        assert y[out].sum() == 2
    a, b = ([out[0].tolist() for _, out in tasks.folds(3, seed)] for seed in (0, 1))
    assert a != b
    assert a != [[k % 3 == i for k in range(15)] for i in range(3)]


def test_small_tasks_do_not_all_fill_the_same_fold():
    tasks = Tasks.from_long(np.ones((40, 1)), np.ones(40), np.repeat(np.arange(20), 2))
    sizes = [sum(out.sum() for out in held_out) for _, held_out in tasks.folds(5, random_state=0)]
    assert max(sizes) < 20 and min(sizes) > 0  # dealt out alike, two folds would hold all rows


def test_masks_are_folds_too_and_wrong_positions_are_refused(table):
    X, y, task = table
    tasks = Tasks.from_long(X, y, task)
    mask = np.arange(N) % 3 == 0
    (a, held_a), (b, held_b) = tasks.part(~mask, mask), tasks.part(np.flatnonzero(~mask), np.flatnonzero(mask))
    np.testing.assert_array_equal(a.rows, b.rows)
    np.testing.assert_array_equal(np.concatenate(held_a), np.concatenate(held_b))
    for bad in (np.arange(30), np.array([-1]), np.array([0.5]), mask[:5]):
        with pytest.raises(ValueError, match=r"row positions 0\.\.16 or a mask of 17 rows"):
            tasks.part(np.arange(3), bad)


def test_split_leaves_a_row_on_either_side():
    tasks = Tasks.from_long(np.ones((4, 1)), np.ones(4), [0, 0, 1, 1])
    for size in (0.01, 0.99):
        assert [part.n_samples.tolist() for part in tasks.split(size, 0)] == [[1, 1], [1, 1]]
    for size in (0, 1, -0.5):
        with pytest.raises(ValueError, match="strictly between 0 and 1"):
            tasks.split(size)


def test_standardiser_counts_rows_by_weight():
    X, y = np.random.default_rng(0).normal(size=(9, 2)), np.arange(9.0)
    weight = np.arange(9) % 3 + 1
    a = Standardiser.fit(Tasks.from_long(X, y, None, weight))
    repeated = np.repeat(np.arange(9), weight)
    b = Standardiser.fit(Tasks.from_long(X[repeated], y[repeated]))
    np.testing.assert_allclose(a.mean, b.mean, rtol=1e-12)
    np.testing.assert_allclose(a.scale, b.scale, rtol=1e-12)
    assert a.y_mean == pytest.approx(b.y_mean)
    kept = a.transform(Tasks.from_long(X, y), center_y=False)
    np.testing.assert_array_equal(kept[0][1], y)


def test_more_bad_input():
    with pytest.raises(ValueError, match="Complex data not supported: y"):
        Tasks.from_long(torch.ones(3, 2), torch.ones(3, dtype=torch.complex64))
    with pytest.raises(ValueError, match="2 different task ids"):
        Tasks.shared(np.ones((3, 2)), np.ones((3, 2)), ids=[1, 1])
    tasks = Tasks.from_long(torch.ones(3, 2, dtype=torch.int64), [1, 2, 3])
    assert tasks.dtype == torch.get_default_dtype()
    with pytest.raises(IndexError, match=r"position 1 is outside 0\.\.0"):
        tasks[1]
    with pytest.raises(TypeError, match="indexed by position"):
        tasks["a"]
    with pytest.raises(ValueError, match="n_folds must be at least 2"):
        next(tasks.folds(1))
