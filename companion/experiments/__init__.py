"""Experiments whose results the book shows without computing them while it is built.

``python -m companion.experiments NAME`` computes one and writes ``book/results/NAME.json``, a
:class:`companion.records.RunRecord`. An experiment is a subclass of :class:`Experiment` in a file of its own, named
after it, and is added to ``EXPERIMENTS`` here.
"""

from companion.experiments._frame import Experiment, UnitResult, run
from companion.experiments.overlap_phase_transition import OverlapPhaseTransition
from companion.experiments.school_baselines import SchoolBaselines
from companion.experiments.school_controls import SchoolControls
from companion.experiments.school_convex import SchoolConvex

EXPERIMENTS: tuple[Experiment, ...] = (OverlapPhaseTransition(), SchoolBaselines(), SchoolControls(), SchoolConvex())

__all__ = [
    "EXPERIMENTS",
    "Experiment",
    "OverlapPhaseTransition",
    "SchoolBaselines",
    "SchoolControls",
    "SchoolConvex",
    "UnitResult",
    "run",
]
