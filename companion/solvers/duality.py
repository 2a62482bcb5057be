"""Certificates: how far from the optimum an objective can be at most."""

from __future__ import annotations

from typing import NamedTuple


class Certificate(NamedTuple):
    """Objective at a point and a lower bound on the optimum."""

    primal: float
    dual: float

    @property
    def gap(self) -> float:
        """Upper bound on the distance to the optimum."""
        return self.primal - self.dual
