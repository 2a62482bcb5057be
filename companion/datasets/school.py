"""School: exam scores of pupils in 139 schools, one regression task per school."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat

from companion.datasets._base import Dataset, Split
from companion.datasets._fetch import DataFile, fetch
from companion.tasks import Tasks

_URL = "https://raw.githubusercontent.com/tjanez/PyMTL/97dfc15be3769240f2099d036ce2b55b30a56f5f/data/school/"


def _file(name: str, size: int, sha256: str) -> DataFile:
    return DataFile("school", name, sha256, size, _URL + name)


SAMPLES = _file("school_b.mat", 40592, "973f1ca99d0d41a838ec6ae86001a48e7b69391eb74646b9e4fc54f62866a146")
SPLITS = tuple(
    _file(f"school_{i}_indexes.mat", size, sha256)
    for i, size, sha256 in (
        (1, 28567, "030c9ca0a73d6264aa1eeac49aba1d760a1b5692cd3124667e74a7a2b7751bc5"),
        (2, 28570, "63d3a076a4cdd3de81825d3cf0c030b93bdc60e912eaed4763ee224efab163f8"),
        (3, 28559, "f7f68e3adb50db8094e230c2b83d548790379cd93ad98fadb35ff2999762dbe6"),
        (4, 28571, "02643928224056a61e25dec8d4841dba5195ed9affdc76fdc697854a2506d142"),
        (5, 28569, "6ed00a453d582dce4397f6f49120cff803c22f53cfb2dd63a3826c359c24bcdf"),
        (6, 28568, "ca853babe5b7f0f5812e7f4261f8b5e5728f1b3b06711e56a76b27b7f959f379"),
        (7, 28568, "b72105509c70f94f48c7c8b0e1359c6c0ea630c7ac588337b412f946ede62283"),
        (8, 28569, "8ad60073b135220f1a6f49fdd79b4430b6a0c8ce9925a22dcc5a09141f5b1c04"),
        (9, 28573, "0de74247d93c413b690ebb65e2e7beb1c55f05b2a2d5db46469e673a552cccf2"),
        (10, 28573, "b408742eab66cd124563493057b080fd39e5075f48b4c391c53e5f6a1a4c8df1"),
    )
)

# The names of the two genders of pupils are inferred (see load_school).
FEATURE_NAMES = (
    *("year_1985", "year_1986", "year_1987"),
    *("percent_free_school_meals", "percent_vr_band_1"),
    *("female_inferred", "male_inferred"),
    *("vr_band_3", "vr_band_1", "vr_band_2"),
    *(
        "ethnic_eswi",
        "ethnic_african",
        "ethnic_arab",
        "ethnic_bangladeshi",
        "ethnic_caribbean",
        "ethnic_greek",
    ),
    *("ethnic_indian", "ethnic_pakistani", "ethnic_south_east_asian", "ethnic_turkish", "ethnic_other"),
    *("school_mixed", "school_male", "school_female"),
    *("school_maintained", "school_church_of_england", "school_roman_catholic"),
    "constant",
)


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class School(Dataset):
    """School in long form; see :func:`load_school`.

    Attributes
    ----------
    X : (15362, 28) float64 array
        One row per pupil.
    y : (15362,) float64 array
        Exam scores, whole numbers 1..70.
    task : (15362,) int64 array
        School 1..139 of each pupil; rows are ordered by school.
    """

    X: NDArray[np.float64]
    y: NDArray[np.float64]
    task: NDArray[np.int64]

    @property
    def tasks(self) -> Tasks:
        """All rows as 139 tasks with ids 1..139."""
        return Tasks.from_long(self.X, self.y, self.task)


def load_school() -> School:
    """Exam scores of 15 362 pupils in 139 secondary schools of inner London, 1985-1987.

    The standard benchmark of linear multi-task learning: predict a pupil's score; a task is a school, with 22
    to 251 pupils. The rows come in the binary coding, and with the ten random splits, of Argyriou, Evgeniou
    and Pontil.

    Returns
    -------
    School
        ``X (15362, 28)``, ``y (15362,)``, ``task (15362,)``, and in ``splits`` ten pairs of 11472 training
        and 3890 test rows, every school in both; within a school the rows of a part are in the published,
        shuffled order.

    Raises
    ------
    DataMissingError, DataCorruptError
        From :func:`companion.datasets.fetch`.

    Notes
    -----
    Columns (0-based). Their order is inferred from the description that comes with the splits and was checked
    against the data.

    ======  ===========================================================================================
    0-2     year of the exam, one-hot
    3       percentage of pupils eligible for free school meals: 8..91, constant in a school and year
    4       percentage of pupils in verbal-reasoning band 1: 3..43, constant in a school and year
    5-6     gender of the pupil, one-hot: female, male (inferred, see below)
    7-9     verbal-reasoning band of the pupil: bands 3, 1, 2 in this order; 15 pupils have none
    10-20   ethnic group, one-hot (ESWI: born in England, Scotland, Wales or Ireland)
    21-23   gender of the school, one-hot: mixed, male, female
    24-26   denomination of the school, one-hot
    27      constant 1
    ======  ===========================================================================================

    Which gender is column 5: the codes of the original record would make it male. But every pupil of the
    schools marked female, and all but one of those marked male, would then have the other gender, so "female"
    is the likelier reading.

    Traps

    * The target is not standardised (mean 20.6), and columns 3 and 4 are percentages beside columns of 0 and
      1.
    * Columns 21-27 are constant within a school, and so are some years and genders: least squares for one
      school is singular. The one-hot groups together with the constant are collinear in all schools together,
      too.
    * Many pupils share all their features with others of their school: part of the error is irreducible.
    * There are 139 schools, though some texts say 140; papers count 27 features or 28 (with the constant).
    * Explained variance, RMSE and normalised errors are all in use: look up which one a paper reports.

    Licence: none stated with the data, hence not redistributed here; the files are downloaded on first use.
    They hold nothing that names a pupil.

    To cite: H. Goldstein, "Multilevel modelling of survey data", The Statistician 40, 1991, 235-244 (the
    study), and A. Argyriou, T. Evgeniou, M. Pontil, "Convex multi-task feature learning", Machine Learning
    73, 2008 (the coding and the splits).
    """
    samples = loadmat(fetch(SAMPLES))
    # The file stores features by samples in uint8, where a subtraction would wrap around.
    X = np.ascontiguousarray(samples["x"].T, dtype=np.float64)  # (15362, 28)
    y = samples["y"].ravel().astype(np.float64)  # (15362,)
    starts = samples["task_indexes"].ravel().astype(np.int64) - 1  # (139,), 1-based in the file
    sizes = np.diff(starts, append=len(y))
    return School(
        X=X,
        y=y,
        task=np.repeat(np.arange(1, len(sizes) + 1, dtype=np.int64), sizes),
        feature_names=FEATURE_NAMES,
        splits=tuple(_split(file) for file in SPLITS),
        sha256={file.name: file.sha256 for file in (SAMPLES, *SPLITS)},
    )


def _split(file: DataFile) -> Split:
    rows = loadmat(fetch(file))
    train, test = (rows[part].ravel().astype(np.int64) - 1 for part in ("tr", "tst"))  # 1-based in the file
    return train, test
