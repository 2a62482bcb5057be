"""Made-up data in the place of real ones."""

import numpy as np
import pytest

from companion.datasets import ComputerSurvey
from companion.experiments import computer_survey, gomtl_computer


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
