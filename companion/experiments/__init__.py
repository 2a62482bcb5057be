"""Experiments whose results the book shows without computing them while it is built.

``python -m companion.experiments NAME`` computes one and writes ``book/results/NAME.json``, a
:class:`companion.records.RunRecord`. An experiment is a subclass of :class:`Experiment` in a file of its own, named
after it, and is added to ``EXPERIMENTS`` here.
"""

from companion.experiments._frame import Experiment, UnitResult, run
from companion.experiments.school_baselines import SchoolBaselines
from companion.experiments.school_controls import SchoolControls

EXPERIMENTS: tuple[Experiment, ...] = (SchoolBaselines(), SchoolControls())

__all__ = ["EXPERIMENTS", "Experiment", "SchoolBaselines", "SchoolControls", "UnitResult", "run"]
