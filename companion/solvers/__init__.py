"""Solvers: every answer comes with a certificate.

:class:`Problem` is the data term of all tasks; :func:`minimise` adds a penalty and picks a solver: :func:`fista`, which
the book shows, or working sets with compiled coordinate descent. :func:`solve_path` runs along a grid of penalties,
:func:`prox_newton` reduces other losses to squared ones, :func:`alternate` watches alternating minimisation.
"""

from companion.solvers.alternating import alternate, best_metric, learn_features
from companion.solvers.clusters import cluster_labels
from companion.solvers.convex import Solution, SplitProblem, minimise, proximal_gradient, quasi_newton
from companion.solvers.duality import Certificate
from companion.solvers.fista import fista
from companion.solvers.kernel_machines import KernelSolution, kernel_ridge, support_vectors
from companion.solvers.lbfgs import lbfgs
from companion.solvers.path import alpha_grid, solve_path
from companion.solvers.problem import Point, Problem
from companion.solvers.prox_newton import prox_newton
from companion.solvers.quadratic import LassoProblem, RidgeProblem
from companion.solvers.result import Result
from companion.solvers.task_ridge import task_ridge

__all__ = [
    "Certificate",
    "KernelSolution",
    "LassoProblem",
    "Point",
    "Problem",
    "Result",
    "RidgeProblem",
    "Solution",
    "SplitProblem",
    "alpha_grid",
    "alternate",
    "best_metric",
    "cluster_labels",
    "fista",
    "kernel_ridge",
    "lbfgs",
    "learn_features",
    "minimise",
    "prox_newton",
    "proximal_gradient",
    "quasi_newton",
    "solve_path",
    "support_vectors",
    "task_ridge",
]
