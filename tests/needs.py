"""Marks of tests that read real data, which do not come with the project."""

import os
from pathlib import Path

import pytest

from companion.datasets import computer_survey, school

DATA = os.environ.get("COMPANION_DATA")


def needs(*files):
    """Skip where one of the published files is absent."""
    absent = [f"{f.folder}/{f.name}" for f in files if not DATA or not Path(DATA, f.folder, f.name).is_file()]
    return pytest.mark.skipif(
        bool(absent), reason=f"optional data absent: set COMPANION_DATA to a folder that holds {', '.join(absent)}"
    )


needs_school = needs(school.SAMPLES)
needs_survey = needs(computer_survey.SURVEY)
