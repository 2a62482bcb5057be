"""Computer survey: ratings of personal computers, one regression task per respondent."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat

from companion.datasets._base import Dataset
from companion.datasets._fetch import DataFile, fetch
from companion.tasks import Tasks

SURVEY = DataFile(
    folder="computer_survey",
    name="conjointAnalysisComputerBuyers.mat",
    sha256="6e6b5f98f438c7d15ed6c7adab44322c9345f52263a4f3026322019f184679b5",
    size=2682,
    url="https://raw.githubusercontent.com/probml/pmtkdata/42bc2738a294382f9d6ffb1b0203404ffb10295a/"
    "conjointAnalysisComputerBuyers/conjointAnalysisComputerBuyers.mat",
)

FEATURE_NAMES = (
    *("constant", "telephone_hot_line", "ram", "screen_size", "cpu_speed", "hard_disk", "cd_rom"),
    *("cache", "colour_of_unit", "availability", "warranty", "software", "guarantee", "price"),
)
RESPONDENT_NAMES = ("constant", "female", "nerd", "usa", "own", "apply", "expert")
N_CALIBRATION = 16


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class ComputerSurvey(Dataset):
    """The computer survey: one X for all respondents; see :func:`load_computer_survey`.

    Attributes
    ----------
    Y : (20, 190) float64 array
        Ratings 0..10: rows are computers, columns are respondents (tasks).
    respondents : (190, 7) float64 array
        What is known of each respondent.
    respondent_names : tuple of 7 str
        Names of the columns of ``respondents``.
    """

    Y: NDArray[np.float64]
    respondents: NDArray[np.float64]
    respondent_names: tuple[str, ...]

    @property
    def tasks(self) -> Tasks:
        """190 tasks on the 20 common inputs."""
        return Tasks.shared(self.X, self.Y)


def load_computer_survey() -> ComputerSurvey:
    """Ratings of 20 personal computers by each of 190 respondents, from a conjoint study of 1994.

    MBA students said how likely they were to buy each of 20 hypothetical computers, from 0 to 10. A task is a
    respondent, whose weights say what he or she values in a computer.

    Returns
    -------
    ComputerSurvey
        ``X (20, 14)`` with entries -1 and +1, ``Y (20, 190)``, ``respondents (190, 7)``, and in ``splits``
        the one pair of the original study: 16 computers to fit (rows 0..15), 4 to validate (rows 16..19).

    Raises
    ------
    DataMissingError, DataCorruptError
        From :func:`companion.datasets.fetch`.

    Notes
    -----
    Columns of X: the constant, then 13 attributes with +1 for the high level and -1 for the low one.

    Columns of ``respondents``, with the names of the survey: constant 1; female; nerd (engineer or computer
    specialist); usa (citizen); own (owns or leases a computer), all 0 or 1; apply (number of kinds of
    applications used) and expert (sum of two self-assessments), which are counts.

    Traps

    * 20 is the number of samples of a task, 190 the number of tasks; the two are easily taken for each other.
      Papers count 180, 190 or 200 persons: this file has the 190 (of 201) who answered everything.
    * The first 16 computers are an orthogonal design, ``X'X = 16 I``: least squares for one respondent has a
      closed form there. Papers that fit 8 computers have fewer samples than weights.
    * Respondents differ first of all in their mean rating: leave the constant unpenalised, or centre each
      task on its training rows. One respondent gave all 20 computers the same rating, so a relative error may
      divide by zero.
    * Splits differ from paper to paper, and not all say which one they used.

    Licence: none stated with the data, hence not redistributed here; the file is downloaded on first use. It
    holds nothing that names a person.

    To cite: P. Lenk, W. DeSarbo, P. Green, M. Young, "Hierarchical Bayes conjoint analysis: recovery of
    partworth heterogeneity from reduced experimental designs", Marketing Science 15(2), 1996, 173-191.
    """
    survey = loadmat(fetch(SURVEY))
    X = survey["designMarix"].astype(np.float64)  # (20, 14); the file misspells its own variable
    rows = np.arange(len(X), dtype=np.int64)
    return ComputerSurvey(
        X=X,
        Y=np.ascontiguousarray(survey["likeBuy"].T, dtype=np.float64),  # the file has respondents by computers
        respondents=survey["computerDataZ"].astype(np.float64),
        feature_names=FEATURE_NAMES,
        respondent_names=RESPONDENT_NAMES,
        splits=((rows[:N_CALIBRATION], rows[N_CALIBRATION:]),),
        sha256={SURVEY.name: SURVEY.sha256},
    )
