"""School: reading a small file of the same form everywhere, and the published files where they are present."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from companion.datasets import DataFile, load_school, school
from tests.needs import DATA, needs_school


@pytest.fixture(scope="module")
def data():
    return load_school()


def test_reads_the_published_form(tmp_path, monkeypatch):
    """Features by samples, unsigned bytes, rows counted from 1: three schools of 2, 4 and 1 pupils."""
    (tmp_path / "school").mkdir()
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path))
    X = np.arange(35, dtype=np.uint8).reshape(7, 5)
    y = np.array([9, 250, 3, 7, 1, 60, 70], dtype=np.uint8)

    def saved(name, **arrays):
        path = tmp_path / "school" / name
        savemat(path, arrays)
        return DataFile("school", name, hashlib.sha256(path.read_bytes()).hexdigest(), 0, "http://unused")

    starts = np.array([[1], [3], [7]], dtype=np.uint16)
    samples = saved("samples.mat", x=X.T, y=y[:, None], task_indexes=starts)
    splits = saved("a.mat", tr=[[2, 5, 3]], tst=[[1, 4, 6, 7]]), saved("b.mat", tr=[[1]], tst=[[7, 2]])
    monkeypatch.setattr(school, "SAMPLES", samples)
    monkeypatch.setattr(school, "SPLITS", splits)
    small = load_school()
    np.testing.assert_array_equal(small.X, X.astype(float), strict=True)
    np.testing.assert_array_equal(small.y, y.astype(float), strict=True)
    np.testing.assert_array_equal(small.task, np.array([1, 1, 2, 2, 2, 2, 3]), strict=True)
    expected = (([1, 4, 2], [0, 3, 5, 6]), ([0], [6, 1]))
    for split, rows in zip(small.splits, expected, strict=True):
        for part, values in zip(split, rows, strict=True):
            np.testing.assert_array_equal(part, np.array(values, dtype=np.int64), strict=True)
    assert small.sha256 == {file.name: file.sha256 for file in (samples, *splits)}
    X_2, y_2 = small.tasks[1]
    np.testing.assert_array_equal(X_2, X[2:6])
    np.testing.assert_array_equal(y_2, y[2:6])


def test_names_and_addresses_of_the_published_files():
    assert len(set(school.FEATURE_NAMES)) == 28
    assert [file.name for file in school.SPLITS] == [f"school_{i}_indexes.mat" for i in range(1, 11)]
    assert all(file.url.endswith(f"/data/school/{file.name}") for file in school.SPLITS)


@needs_school
def test_published_arrays(data):
    """Digests of the stacked unsigned bytes, computed outside this package."""
    digests = [hashlib.sha256(a.astype(np.uint8).tobytes()).hexdigest() for a in (data.X, data.y)]
    assert digests == [
        "f6d4370e10797c409ad3f15f3fa55d40bf21c78bbc31d3f316834e1577cff52f",
        "fdf792121027c22d5d59c69cdde2390a1fb7024dd01510bcfbeda87dbf59d939",
    ]
    assert (data.X.shape, data.y.shape, data.task.shape) == ((15362, 28), (15362,), (15362,))
    assert (data.X.dtype, data.y.dtype, data.task.dtype) == (np.float64, np.float64, np.int64)
    assert (data.y.min(), data.y.max()) == (1, 70)
    assert repr(data) == "School(X (15362, 28), y (15362,), task (15362,))"


@needs_school
def test_sha256_is_that_of_the_files(data):
    assert len(data.sha256) == 11
    for name, sha256 in data.sha256.items():
        assert hashlib.sha256(Path(DATA, "school", name).read_bytes()).hexdigest() == sha256
    for file in (school.SAMPLES, *school.SPLITS):
        assert Path(DATA, "school", file.name).stat().st_size == file.size


@needs_school
def test_tasks_are_the_schools(data):
    tasks = data.tasks
    assert tasks.ids == tuple(range(1, 140))
    assert (tasks.n_samples.min(), tasks.n_samples.max(), tasks.n_samples.sum()) == (22, 251, 15362)


@needs_school
def test_splits_are_disjoint_and_cover_every_pupil(data):
    assert len(data.splits) == 10
    for train, test in data.splits:
        assert (len(train), len(test)) == (11472, 3890)
        np.testing.assert_array_equal(np.sort(np.concatenate([train, test])), np.arange(15362))
        for rows in (train, test):  # ordered by school, every school present
            assert np.all(np.diff(data.task[rows]) >= 0)
            assert len(np.unique(data.task[rows])) == 139
    assert len({train.tobytes() for train, _ in data.splits}) == 10


@needs_school
def test_columns_mean_what_their_names_say(data):
    X = dict(zip(data.feature_names, data.X.T, strict=True))
    groups = {name: [c for c in X if c.startswith(name)] for name in ("year_", "ethnic_", "vr_band_")}
    assert [X[c].sum() for c in groups["year_"]] == [4915, 4514, 5933]
    np.testing.assert_array_equal(sum(X[c] for c in groups["year_"]), 1)
    np.testing.assert_array_equal(sum(X[c] for c in groups["ethnic_"]), 1)
    np.testing.assert_array_equal(X["female_inferred"] + X["male_inferred"], 1)
    bands = sum(X[c] for c in groups["vr_band_"])
    assert [(bands == n).sum() for n in (0, 1)] == [15, 15347]
    correlations = [np.corrcoef(X[f"vr_band_{band}"], data.y)[0, 1] for band in (3, 1, 2)]
    np.testing.assert_allclose(correlations, [-0.37, 0.46, -0.12], atol=0.005)  # published to two digits
    np.testing.assert_array_equal(X["constant"], 1)
    assert np.all(X["female_inferred"][X["school_female"] == 1] == 1)
    assert np.sum(X["male_inferred"][X["school_male"] == 1] == 0) == 1


@needs_school
def test_columns_constant_within_a_school(data):
    firsts = np.searchsorted(data.task, np.arange(1, 140))
    own_first = data.X[firsts][data.task - 1]  # (15362, 28)
    constant = np.flatnonzero((own_first == data.X).all(axis=0))
    np.testing.assert_array_equal(constant, np.arange(21, 28))
    per_school = data.X[firsts][:, 21:27]  # (139, 6)
    np.testing.assert_array_equal(per_school.sum(axis=0), [64, 33, 42, 88, 17, 34])
    years = data.X[:, :3] @ [0, 1, 2]
    for column in (3, 4):  # percentages of a school and year
        for key in np.unique(cells := data.task * 3 + years):
            assert len(np.unique(data.X[cells == key, column])) == 1
