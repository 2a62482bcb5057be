"""Solvers: functions that return a :class:`Result` with the certificate of what they found."""

from companion.solvers.duality import certify
from companion.solvers.prox_newton import prox_newton
from companion.solvers.quadratic import LassoProblem, RidgeProblem
from companion.solvers.result import Result

__all__ = ["LassoProblem", "Result", "RidgeProblem", "certify", "prox_newton"]
