"""Computer survey: a small file of the same form everywhere, and the published file where it is present."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from companion.datasets import computer_survey, load_computer_survey
from tests.needs import DATA, needs_survey


@pytest.fixture(scope="module")
def data():
    return load_computer_survey()


def test_reads_the_published_form(tmp_path, monkeypatch):
    """Respondents by computers in unsigned bytes become computers by respondents."""
    X = np.random.default_rng(0).choice([-1, 1], (18, 5)).astype(np.int16)
    ratings = np.arange(54, dtype=np.uint8).reshape(3, 18)
    persons = np.arange(12, dtype=np.uint8).reshape(3, 4)
    path = tmp_path / "computer_survey" / "small.mat"
    path.parent.mkdir()
    savemat(path, {"designMarix": X, "likeBuy": ratings, "computerDataZ": persons})
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path))
    small_file = replace(computer_survey.SURVEY, name="small.mat", sha256=sha256)
    monkeypatch.setattr(computer_survey, "SURVEY", small_file)
    small = load_computer_survey()
    np.testing.assert_array_equal(small.X, X.astype(float), strict=True)
    np.testing.assert_array_equal(small.Y, ratings.T.astype(float), strict=True)
    np.testing.assert_array_equal(small.respondents, persons.astype(float), strict=True)
    assert small.sha256 == {"small.mat": sha256}
    ((fit, validate),) = small.splits
    np.testing.assert_array_equal(fit, np.arange(16))
    np.testing.assert_array_equal(validate, [16, 17])
    assert small.tasks.is_shared
    np.testing.assert_array_equal(small.tasks[2][1], ratings[2])


@needs_survey
def test_published_arrays(data):
    digests = [hashlib.sha256(a.astype("<i8").tobytes()).hexdigest() for a in (data.X, data.Y.T)]
    assert digests == [
        "aec8c257e25a29f60b5d02fc1cbd009d3bdaf908429aa774154004296d502690",
        "d68550082da9423b73335a832abe13f2d865f8cfd170464ab6d3c4e3c9eb4ec7",
    ]
    assert repr(data) == "ComputerSurvey(X (20, 14), Y (20, 190), respondents (190, 7))"
    assert (data.X.dtype, data.Y.dtype) == (np.float64, np.float64)
    assert (len(data.feature_names), len(data.respondent_names)) == (14, 7)
    path = Path(DATA, "computer_survey", computer_survey.SURVEY.name)
    assert path.stat().st_size == computer_survey.SURVEY.size
    assert data.sha256 == {path.name: hashlib.sha256(path.read_bytes()).hexdigest()}


@needs_survey
def test_first_sixteen_computers_are_an_orthogonal_design(data):
    ((fit, validate),) = data.splits
    np.testing.assert_array_equal(data.X[fit].T @ data.X[fit], 16 * np.eye(14))
    np.testing.assert_array_equal(np.concatenate([fit, validate]), np.arange(20))
    W = data.X[fit].T @ data.Y[fit] / 16  # least squares in closed form, (14, 190)
    error = data.Y[validate] - data.X[validate] @ W
    assert round(float(np.sqrt(np.mean(error**2))), 2) == 1.99  # the value known for these data


@needs_survey
def test_columns_mean_what_their_names_say(data):
    np.testing.assert_array_equal(data.X[:, data.feature_names.index("constant")], 1)
    assert set(np.unique(data.X)) == {-1, 1}
    # The mean respondent likes more memory and dislikes a high price.
    mean = np.linalg.lstsq(data.X, data.Y.mean(axis=1))[0]
    assert mean[data.feature_names.index("ram")] > 0 > mean[data.feature_names.index("price")]
    persons = dict(zip(data.respondent_names, data.respondents.T, strict=True))
    for name in ("female", "nerd", "usa", "own"):
        assert set(np.unique(persons[name])) == {0, 1}
    assert (persons["apply"].max(), persons["expert"].max()) == (8, 10)
    assert np.sum(data.Y.std(axis=0) == 0) == 1
