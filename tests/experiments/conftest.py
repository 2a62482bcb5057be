"""Made-up data in the place of real ones."""

import numpy as np
import pytest

from companion.datasets import ComputerSurvey, School
from companion.experiments import _school, computer_survey, gomtl_computer, gomtl_new_tasks, gomtl_school


@pytest.fixture
def use_survey(monkeypatch):
    """A function that makes a survey of profiles ``X (n, 5)`` and ratings ``Y (n, T)`` the one that is read."""

    def use(X, Y):
        data = ComputerSurvey(
            X=X,
            Y=Y,
            respondents=np.zeros((Y.shape[1], 1)),
            feature_names=("constant", *"abcd"),
            respondent_names=("none",),
            splits=(),
            sha256={"made up": "00"},
        )
        for module in (computer_survey, gomtl_computer):
            monkeypatch.setattr(module, "survey", lambda: data)
        return data

    return use


@pytest.fixture
def pupils(monkeypatch):
    """Nine schools with 9 to 25 pupils, four columns and a constant, in two splits."""
    rng = np.random.default_rng(0)
    task = np.repeat(np.arange(1, 10), np.arange(9, 26, 2))
    n = len(task)
    X = np.column_stack([rng.normal(3, 2, size=(n, 2)), rng.choice([0.0, 1.0], size=(n, 2)), np.ones(n)])
    W = rng.normal(size=(4, 2)) @ rng.normal(size=(2, 9))
    y = 20 + rng.normal(size=9)[task - 1] + (X[:, :4] * W.T[task - 1]).sum(1) + 5 * rng.normal(size=n)
    splits = []
    for _ in range(2):
        is_test = np.zeros(n, dtype=bool)
        for t in range(1, 10):
            of_task = np.flatnonzero(task == t)
            is_test[rng.permutation(of_task)[: len(of_task) // 3]] = True
        splits.append((np.flatnonzero(~is_test), np.flatnonzero(is_test)))
    names = (*"abcd", "constant")
    data = School(X=X, y=y, task=task, splits=tuple(splits), feature_names=names, sha256={"pupils": "00"})
    for module in (_school, gomtl_school, gomtl_new_tasks):
        monkeypatch.setattr(module, "school", lambda: data)
    return data
