"""Models with several weights, searched alike: what the experiments on relations between tasks have in common.

A model has a *strength*, a factor on its penalty, and up to three further parameters: ratios of weights, and counts. A
grid lists the values of each; every combination is tried.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn.exceptions import ConvergenceWarning

from companion.linear import (
    BayesianMTL,
    ClusteredMTL,
    ConvexFeatureLearning,
    DirtyModel,
    DisjointGroups,
    GraphRegularized,
    HardClusteredMTL,
    JacobClusteredMTL,
    MeanRegularized,
    MultiTaskKernelRidge,
    MultiTaskLasso,
    RobustMTL,
    TaskRelationship,
    TraceNorm,
)
from companion.linear._base import LinearMTL, MarginClassifier
from companion.linear._convex import ConvexModel
from companion.solvers import alpha_grid, solve_path
from companion.tasks import Tasks

Array = NDArray[np.float64]
STRENGTH = "strength"
#: Values of every parameter; a strength of None stands for values below the least one that makes all weights zero.
Grid = Mapping[str, Sequence[float] | None]


def split(strength: float, ratio: float) -> tuple[float, float]:
    """Two weights that add up to the strength; ``ratio`` is what the first one has of it."""
    return ratio * strength, (1 - ratio) * strength


def _mean_regularised(strength: float, ratio: float) -> LinearMTL:
    """Deviations from the mean cost ``strength``, the mean ``ratio`` of it."""
    return MeanRegularized(*split(strength, ratio))


def _task_relationship(strength: float, ridge: float) -> LinearMTL:
    """A covariance of the tasks that costs ``strength``, and a ridge beside it that is part of the loss."""
    return TaskRelationship(lambda1=ridge, lambda2=strength)


def _clustered(strength: float, ratio: float, n_clusters: int) -> LinearMTL:
    """What lies outside the k directions costs ``strength``, what lies inside ``ratio`` of it."""
    rho2, rho1 = split(strength, ratio)
    return ClusteredMTL(n_clusters, rho1, rho2)


def _jacob(strength: float, ratio: float, mean_ratio: float, n_clusters: int) -> LinearMTL:
    """Within clusters ``strength``, between them ``ratio`` of it, for the mean of all ``mean_ratio`` of that."""
    between = ratio * strength
    return JacobClusteredMTL(n_clusters, mean_ratio * between, between, strength)


def _hard_clusters(strength: float, ratio: float, n_clusters: int) -> LinearMTL:
    """As clustered, whose relaxed problem this is before it was relaxed."""
    rho2, rho1 = split(strength, ratio)
    return HardClusteredMTL(n_clusters, rho1, rho2)


def _kernel_ridge(strength: float, ratio: float, gamma: float) -> LinearMTL:
    """As mean-regularised, with functions of a Gaussian kernel."""
    return MultiTaskKernelRidge(*split(strength, ratio), kernel="rbf", gamma=gamma)


#: Estimator of every method from its parameters, unfitted.
BUILD: dict[str, Callable[..., LinearMTL]] = {
    "single": lambda strength: MeanRegularized(strength, 0.0),
    "lasso": lambda strength: MultiTaskLasso(strength, q=1.0),
    "l1/l2": lambda strength: MultiTaskLasso(strength, q=2.0),
    "l1/linf": lambda strength: MultiTaskLasso(strength, q=math.inf),
    "dirty": lambda strength, ratio: DirtyModel(alpha_block=ratio * strength, alpha_sparse=strength),
    "trace norm": lambda strength: TraceNorm(strength),
    "robust": lambda strength, ratio: RobustMTL(alpha_low_rank=strength, alpha_outlier=ratio * strength),
    "feature learning": lambda strength: ConvexFeatureLearning(strength),
    "mean-regularised": _mean_regularised,
    "task relationship": _task_relationship,
    "clustered": _clustered,
    "Jacob": _jacob,
    "hard clusters": _hard_clusters,
    "disjoint groups": lambda strength, n_clusters: DisjointGroups(n_clusters, strength),
    "kernel ridge": _kernel_ridge,
    "Bayesian": BayesianMTL,  # finds its own weights: there is nothing to search
}
#: How hard a search tries in the folds, where its answer is a comparison, and how hard the fit that comes of it.
EFFORT = {
    "patience": 3,
    "n_init": 10,
    "n_init_in_folds": 1,
    "n_candidates": 20,
    "n_candidates_in_folds": 0,
    "tol": 1e-6,
    "tol_in_folds": 1e-4,
    "max_iter": 20_000,
    "max_iter_in_folds": 2000,
}
#: Attribute with the cluster of every task.
LABELS = {"clustered": "labels_", "Jacob": "labels_", "hard clusters": "labels_", "disjoint groups": "groups_"}


def squared_error(y: Array, prediction: Array) -> Array:
    """(n,) squares of the differences."""
    return (y - prediction) ** 2


def log_loss(y: Array, margin: Array) -> Array:
    """(n,) minus the logarithm of the probability of labels -1 and +1."""
    return np.logaddexp(0.0, -y * margin)


Error = Callable[[Array, Array], Array]


class HeldOut(NamedTuple):
    """Rows to measure on: ``X (m, d)``, ``y (m,)``, and the position of the task of each, ``position (m,)``."""

    X: Array
    y: Array
    position: NDArray[np.int64]
    error: Error = squared_error

    def loss(self, W: Array, b: Array) -> float:
        """Error with weights ``W (d, T)`` and intercepts ``b (T,)``, summed over the rows."""
        prediction = (self.X * W.T[self.position]).sum(1) + b[self.position]
        return float(self.error(self.y, prediction).sum())


class Fold(NamedTuple):
    """Tasks to fit, and what to measure the fit on."""

    train: Tasks
    tasks: Tasks  # rows to predict
    keep: NDArray[np.bool_]  # (N,) which of them count
    error: Error = squared_error

    @property
    def held_out(self) -> HeldOut:
        X, y, index = self.tasks.long()
        return HeldOut(X[self.keep], y[self.keep], index[self.keep], self.error)


def inner_folds(train: Tasks, n_folds: int, seed: int) -> list[Fold]:
    """Folds inside the training rows: stratified by task, or over the common rows of tasks that share their inputs."""
    return [Fold(part, train, np.concatenate(out)) for part, out in train.folds(n_folds, seed)]


def validation(train: Tasks, held_out: Tasks, error: Error = squared_error) -> list[Fold]:
    """The one fold of training and validation rows that were drawn apart."""
    return [Fold(train, held_out, np.ones(int(held_out.n_samples.sum()), dtype=bool), error)]


@dataclass(frozen=True)
class Choice:
    """Parameters with the least held-out loss.

    Attributes
    ----------
    model : LinearMTL
        Unfitted.
    parameters : dict
        Name -> value, ``strength`` and what else the grid has.
    positions : dict
        Name -> position of the value in its grid.
    loss : array
        Held-out error over the whole grid: axes in the order of the grid, the strength last.
    """

    model: LinearMTL
    parameters: dict[str, float]
    positions: dict[str, int]
    loss: Array

    @property
    def metrics(self) -> dict[str, float]:
        """Parameters and positions, by the names they have in a record."""
        return {**self.parameters, **{f"{name}: position": float(k) for name, k in self.positions.items()}}


def choose(
    build: Callable[..., LinearMTL],
    grid: Grid,
    train: Tasks,
    folds: Iterable[Fold],
    settings: Mapping[str, Any],
    n_strengths: int = 16,
    least: float = 0.005,
    patience: int = 3,
) -> Choice:
    """Search a grid for the least error on the rows held out.

    Parameters
    ----------
    build : callable
        From the parameters of the grid, by name, to an estimator, whose penalty is in proportion to ``strength``.
    grid : mapping
        See :data:`Grid`. Strengths fall. Without any, nothing is searched.
    train : Tasks
        All rows that may be used, from which strengths of None are computed.
    folds : iterable of Fold
    settings : mapping
        Of the estimators in the folds, the same for all.
    n_strengths, least : int and float
        Strengths of None: how many, and the last one in parts of the first.
    patience : int
        So many strengths in a row without a new least error, and the weaker ones are left out.
    """
    if STRENGTH not in grid:
        return Choice(build(), {}, {}, np.zeros(0))
    axes = {name: list(values) for name, values in grid.items() if name != STRENGTH and values is not None}
    shapes = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    folds = list(folds)
    tried, losses = [], []
    for shape in shapes:
        unit, strengths = configured(build(1.0, **shape), settings), grid[STRENGTH]
        if strengths is None:
            strengths = alpha_grid(unit.alpha_max(train), n_strengths, least).tolist()
        models = [configured(build(strength, **shape), settings) for strength in strengths]
        tried.append(strengths)
        parts = [_losses(unit, strengths, models, fold) for fold in folds]
        losses.append(until_worse(parts, len(strengths), patience))
    loss = np.stack(losses)
    best, position = (int(i) for i in np.unravel_index(loss.argmin(), loss.shape))
    parameters = {**shapes[best], STRENGTH: float(tried[best][position])}
    positions = {name: values.index(parameters[name]) for name, values in axes.items()}
    size = tuple(len(values) for values in axes.values())
    return Choice(build(**parameters), parameters, {**positions, STRENGTH: position}, loss.reshape(*size, -1))


def configured(model: LinearMTL, settings: Mapping[str, Any]) -> LinearMTL:
    """A model with those of the settings that it has."""
    return model.set_params(**{name: value for name, value in settings.items() if name in model.get_params()})


def until_worse(parts: Sequence[Iterator[float]], size: int, patience: int) -> Array:
    """(size,) sums of what the parts yield, side by side; infinite from where ``patience`` of them brought no less."""
    loss = np.full(size, np.inf)
    for a in range(size):
        loss[a] = sum(next(part) for part in parts)
        if a - int(loss.argmin()) >= patience:
            break
    return loss


def _losses(unit: LinearMTL, strengths: Sequence[float], models: Sequence[LinearMTL], fold: Fold) -> Iterator[float]:
    """Errors on the rows held out, one by one: ``models`` are those of the strengths, ``unit`` that of 1."""
    if isinstance(unit, ConvexModel) and not isinstance(unit, GraphRegularized):  # that one needs its tasks first
        yield from _losses_on_path(unit, strengths, fold)
        return
    for model in models:
        with warnings.catch_warnings():  # what is searched may be solved roughly; what is chosen is certified
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(fold.train)
        yield _loss_of(model, fold)


def _losses_on_path(unit: ConvexModel, strengths: Sequence[float], fold: Fold) -> Iterator[float]:
    """The same along a warm-started path of multiples of ``unit``."""
    _, problem = unit.prepare(fold.train)
    held_out = fold.held_out
    for solution in solve_path(problem, unit._penalty(), list(strengths), unit.tol, unit.max_iter):
        W = solution.point.W
        W = W.sum(0) if W.ndim == 3 else W  # models of two parts keep them apart
        yield held_out.loss(W.cpu().numpy(), problem.original_intercepts(solution.point).cpu().numpy())


def _loss_of(fitted: LinearMTL, fold: Fold) -> float:
    _, y, _ = fold.tasks.long()
    return float(fold.error(y, scores(fitted, fold.tasks))[fold.keep].sum())


def scores(fitted: LinearMTL, tasks: Tasks) -> Array:
    """(N,) what the loss is a function of: predictions, or the margins of a classifier."""
    return stacked(fitted.decision_function(tasks) if isinstance(fitted, MarginClassifier) else fitted.predict(tasks))


def stacked(predictions: Any) -> Array:
    """(N,) predictions of all tasks behind one another: from a list of (n_t,), or from (n, T) for shared inputs."""
    return np.concatenate(predictions) if isinstance(predictions, list) else np.asarray(predictions).T.ravel()


def certificate(fitted: LinearMTL, train: Tasks) -> float:
    """Relative duality gap of a fit; where there is none, the worst violation of its optimality conditions."""
    if isinstance(fitted, ConvexModel):
        return float(fitted.dual_gap_ / fitted.prepare(train)[1].null_objective)
    return max(fitted.certificate_.values())


def interval(fitted: BayesianMTL, test: Tasks, coverage: float) -> dict[str, float]:
    """Share of the targets inside predictive intervals that should hold ``coverage`` of them, and their mean width."""
    mean, deviation = (stacked(part) for part in fitted.predict(test, return_std=True))
    half = stats.norm.ppf((1 + coverage) / 2) * deviation
    _, y, _ = test.long()
    return {"coverage": float((np.abs(y - mean) <= half).mean()), "width": float(2 * half.mean())}


def falling(first: float, last: float, n: int) -> list[float]:
    """``n`` numbers in geometric progression, rounded to four digits."""
    return [float(f"{value:.4g}") for value in np.geomspace(first, last, n)]


def thinned(grid: Grid) -> dict[str, list[float] | None]:
    """A few values of every parameter, for a small run: no more than four strengths, two of the others."""
    most = {STRENGTH: 4}
    return {
        name: None if values is None else list(values)[:: -(-len(values) // most.get(name, 2))]
        for name, values in grid.items()
    }
