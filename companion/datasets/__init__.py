"""Data sets of the book, real and synthetic; all of them come as :class:`companion.Tasks`, too.

Real data:

* :func:`load_digits_tasks`: ten one-vs-rest tasks on scikit-learn's digits; nothing to download.
* :func:`load_computer_survey`: 190 persons rate the same 20 computers; inputs shared by all tasks.
* :func:`load_school`: exam scores in 139 schools, with ten published splits.
* :func:`load_mnist` and :func:`load_usps`: ten one-vs-rest tasks on the full sets of images.
* :func:`load_kang_digits`: 2000 rows of either in principal components, the split of many papers.

All but the first are downloaded on first use and kept. Set the environment variable ``COMPANION_DATA`` to a folder that
holds the files as ``computer_survey/...``, ``school/...`` and so on to work offline, and ``COMPANION_CACHE`` to choose
where downloads go. :func:`fetch` does this, and checks every file by its sha256 each time; it raises
:class:`DataMissingError` or :class:`DataCorruptError`.

Synthetic data, returned with the truth: :func:`make_disjoint_groups` (each group of tasks has rank one) and
:func:`make_overlapping_groups` (neighbouring groups share a latent task).
"""

from companion.datasets._fetch import DataCorruptError, DataFile, DataMissingError, fetch
from companion.datasets.computer_survey import ComputerSurvey, load_computer_survey
from companion.datasets.digits import Digits, load_digits_tasks
from companion.datasets.kang_digits import KangDigits, load_kang_digits
from companion.datasets.mnist import load_mnist
from companion.datasets.school import School, load_school
from companion.datasets.synthetic import SyntheticTasks, make_disjoint_groups, make_overlapping_groups
from companion.datasets.usps import load_usps

__all__ = [
    "ComputerSurvey",
    "DataCorruptError",
    "DataFile",
    "DataMissingError",
    "Digits",
    "KangDigits",
    "School",
    "SyntheticTasks",
    "fetch",
    "load_computer_survey",
    "load_digits_tasks",
    "load_kang_digits",
    "load_mnist",
    "load_school",
    "load_usps",
    "make_disjoint_groups",
    "make_overlapping_groups",
]
