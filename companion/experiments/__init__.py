"""Experiments whose results the book shows without computing them while it is built.

``python -m companion.experiments NAME`` computes one and writes ``book/results/NAME.json``, a
:class:`companion.records.RunRecord`. An experiment is a subclass of :class:`Experiment` in a file of its own, named
after it, and is added to ``EXPERIMENTS`` here.
"""

from companion.experiments._frame import Experiment, UnitResult, run
from companion.experiments.cluster_recovery import ClusterRecovery
from companion.experiments.computer_survey import ComputerSurveyStudy
from companion.experiments.overlap_phase_transition import OverlapPhaseTransition
from companion.experiments.school_baselines import SchoolBaselines
from companion.experiments.school_controls import SchoolControls
from companion.experiments.school_convex import SchoolConvex
from companion.experiments.school_relations import SchoolRelations

EXPERIMENTS: tuple[Experiment, ...] = (
    ClusterRecovery(),
    ComputerSurveyStudy(),
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
    "Experiment",
    "OverlapPhaseTransition",
    "SchoolBaselines",
    "SchoolControls",
    "SchoolConvex",
    "SchoolRelations",
    "UnitResult",
    "run",
]
