"""Experiments whose results the book shows without computing them while it is built.

``python -m companion.experiments NAME`` computes one and writes ``book/results/NAME.json``, a
:class:`companion.records.RunRecord`. An experiment is a subclass of :class:`Experiment` in a file of its own, named
after it, and is added to ``EXPERIMENTS`` here; data sets that are treated alike share a class.
"""

from companion.experiments._frame import Experiment, UnitResult, run
from companion.experiments.cluster_recovery import ClusterRecovery
from companion.experiments.computer_survey import ComputerSurveyStudy
from companion.experiments.dmtrl_digits import DMTRLDigits
from companion.experiments.gomtl_computer import GOMTLComputer
from companion.experiments.gomtl_digits import GOMTLDigits
from companion.experiments.gomtl_new_tasks import GOMTLNewTasks
from companion.experiments.gomtl_school import GOMTLSchool
from companion.experiments.gomtl_synthetic import GOMTLSynthetic
from companion.experiments.overlap_phase_transition import OverlapPhaseTransition
from companion.experiments.school_baselines import SchoolBaselines
from companion.experiments.school_controls import SchoolControls
from companion.experiments.school_convex import SchoolConvex
from companion.experiments.school_relations import SchoolRelations

EXPERIMENTS: tuple[Experiment, ...] = (
    ClusterRecovery(),
    ComputerSurveyStudy(),
    DMTRLDigits(),
    GOMTLComputer(),
    GOMTLDigits("mnist"),
    GOMTLDigits("usps"),
    GOMTLNewTasks(),
    GOMTLSchool(),
    GOMTLSynthetic(1),
    GOMTLSynthetic(2),
    OverlapPhaseTransition(),
    SchoolBaselines(),
    SchoolControls(),
    SchoolConvex(),
    SchoolRelations(),
)

__all__ = [
    "EXPERIMENTS",
    "ClusterRecovery",
    "ComputerSurveyStudy",
    "DMTRLDigits",
    "Experiment",
    "GOMTLComputer",
    "GOMTLDigits",
    "GOMTLNewTasks",
    "GOMTLSchool",
    "GOMTLSynthetic",
    "OverlapPhaseTransition",
    "SchoolBaselines",
    "SchoolControls",
    "SchoolConvex",
    "SchoolRelations",
    "UnitResult",
    "run",
]
