"""The estimator contract that every linear model of the package keeps.

A model implements ``_solve(tasks) -> Result``; validation, task ids, libraries, devices, certificates and the
transposition from ``W (d, T)`` to scikit-learn's ``coef_ (T, d)`` live here and nowhere else.
"""

from __future__ import annotations

import warnings
from abc import ABCMeta, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.metrics import accuracy_score, r2_score
from sklearn.model_selection import check_cv
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import column_or_1d, validate_data
from torch import Tensor

from companion._checks import check_design, some_ids, task_values
from companion.losses import Loss
from companion.solvers.result import Result
from companion.tasks import Tasks


class LinearMTL(BaseEstimator, metaclass=ABCMeta):
    """Base of all linear multi-task estimators.

    Subclasses store ``tol``, ``max_iter``, ``reduction``, ``fit_intercept`` and ``device`` in ``__init__`` and
    implement :meth:`_solve`.
    """

    tol: float
    max_iter: int
    reduction: str
    fit_intercept: bool
    device: Any
    cv: Any  # models that search by cross-validation
    loss: Loss
    random_state: int

    @abstractmethod
    def _solve(self, tasks: Tasks) -> Result:
        """Weights of all tasks with their certificate; ``tasks`` are validated, in float64."""

    def fit(self, X: Any, y: Any = None, task: Any = None, sample_weight: Any = None):
        """Fit on the long form or on a :class:`~companion.tasks.Tasks`.

        Parameters
        ----------
        X : (n, d) array or tensor, or Tasks
            One row per sample; a Tasks object carries ``y`` and the task ids itself.
        y : (n,) array or tensor
            Targets.
        task : (n,) sequence of hashable ids, optional
            ``None``: all rows belong to one task.
        sample_weight : (n,) array, optional
            Weights >= 0: an integer weight is a repetition, zero a removal.

        Returns
        -------
        self
        """
        self._check_parameters()
        tasks = self._gather(X, y, task, sample_weight)
        result = self._solve(tasks.to(device=self.device, dtype=torch.float64))
        self._store(tasks, result)
        return self

    def predict(self, X: Any, task: Any = None) -> Any:
        """Predictions ``(n,)``; for Tasks a list of ``(n_t,)``, or ``(n, T)`` when the tasks share their inputs.

        Parameters
        ----------
        X : (n, d) array or tensor, or Tasks
        task : (n,) sequence of ids seen by fit
            May be left out when the model was fitted on one task.
        """
        return self._margin(X, task)

    def _check_parameters(self) -> None:
        if self.reduction not in ("mean", "sum"):
            raise ValueError(f"reduction must be 'mean' or 'sum'; got {self.reduction!r}")
        if not self.tol > 0 or not self.max_iter >= 1:
            raise ValueError(f"tol must be > 0 and max_iter >= 1; got {self.tol} and {self.max_iter}")

    # --- in --------------------------------------------------------------------------------------------------------

    def _gather(self, X: Any, y: Any, task: Any, sample_weight: Any) -> Tasks:
        """The training data as Tasks, whatever form it came in."""
        if isinstance(X, Tasks):
            if y is not None or task is not None or sample_weight is not None:
                raise ValueError("fit(tasks) takes no y, task or sample_weight: the Tasks object carries them")
            self._forget_names(X.n_features)
            return self._encode_tasks(X)
        if isinstance(X, Tensor):
            check_design(X)
            validate_data(self, X, skip_check_array=True)
            y = _need(y, self)
            if not (isinstance(y, Tensor) and y.is_complex()):  # Tasks refuses complex targets in words
                y = self._encode(column_or_1d(_to_numpy(y)), sample_weight)
        else:
            X, y = validate_data(self, X, y, dtype=[np.float64, np.float32], y_numeric=self._y_numeric)
            y = self._encode(y, sample_weight)
        return Tasks.from_long(X, y, task, sample_weight)

    def _forget_names(self, n_features: int) -> None:
        self.n_features_in_ = n_features
        if hasattr(self, "feature_names_in_"):
            del self.feature_names_in_

    _y_numeric = True

    def _encode(self, y: np.ndarray, sample_weight: Any = None) -> np.ndarray:
        """Targets as the loss wants them; classifiers map labels to -1 and +1."""
        return y

    def _can_fit(self, tasks: Tasks) -> np.ndarray:
        """(T,) whether the training rows of each task determine its model."""
        return np.ones(tasks.n_tasks, dtype=bool)

    def _encode_tasks(self, tasks: Tasks) -> Tasks:
        return tasks

    def _row_weights(self, tasks: Tasks, t: int) -> Tensor:
        """(n_t,) weights of the rows in the objective: s for "sum", s / n_t for "mean"."""
        s = tasks.weights(t)
        return s if self.reduction == "sum" else s / s.sum()

    def _folds(self, tasks: Tasks) -> Iterator[tuple[Tasks, list[np.ndarray]]]:
        """Training tasks and, for every task, which of its rows are held out; ``self.cv`` and ``self.random_state``."""
        if isinstance(self.cv, (int, np.integer)):
            yield from tasks.folds(int(self.cv), self.random_state, by_target=isinstance(self, ClassifierMixin))
            return
        y = np.zeros(tasks.n_rows)
        if not tasks.is_shared:  # for splitters that look at the classes
            y[tasks.rows] = tasks.long_targets()
        for train, test in check_cv(self.cv).split(np.zeros((tasks.n_rows, 1)), y):
            yield tasks.part(train, test)

    def _held_out_loss(
        self, tasks: Tasks, candidates: Callable[[Tasks], Iterable[tuple[Tensor, Tensor]]], n_candidates: int
    ) -> np.ndarray:
        """(T, A) loss of the rows held out, summed over the folds, with the weights of the objective.

        ``candidates`` makes weights ``(d, T)`` and intercepts ``(T,)`` from training tasks, one pair for each of A
        settings. A task that cannot be trained on in a fold is left out of it; the rest still fit their penalty.
        """
        loss, scored = np.zeros((tasks.n_tasks, n_candidates)), False
        for train, held_out in self._folds(tasks):
            fit = np.flatnonzero(self._can_fit(train))
            if len(fit) == 0:
                continue
            for a, (W, b) in enumerate(candidates(train.subset(fit))):
                for k, t in enumerate(fit.tolist()):
                    loss[t, a] += self._loss_of(tasks, t, held_out[t], W[:, k], b[k])
            scored |= any(bool(held_out[t].any()) for t in fit.tolist())
        if not scored:
            raise ValueError(
                "no fold could be scored: some task needs rows to hold out (one sample leaves none) and, for a "
                "classifier with free intercepts, both classes among the rest"
            )
        return loss

    def _loss_of(self, tasks: Tasks, t: int, held_out: np.ndarray, w: Tensor, b: Tensor) -> float:
        X, y = tasks.tensors(t)
        out = torch.from_numpy(held_out).to(y.device)
        return float(self.loss.value(y[out], X[out] @ w + b, self._row_weights(tasks, t)[out]).sum())

    # --- out -------------------------------------------------------------------------------------------------------

    def _store(self, tasks: Tasks, result: Result) -> None:
        """Fitted attributes, in the library, type and device of the data; the only transposition of the package."""
        self.task_ids_ = tasks.ids
        for name, part in {"coef_": result.W, **result.parts}.items():
            setattr(self, name, tasks.out(part.T.contiguous().to(device=tasks.device, dtype=tasks.dtype)))
        self.intercept_ = tasks.out(result.intercept.to(device=tasks.device, dtype=tasks.dtype))
        for name, value in result.attributes.items():
            if isinstance(value, Tensor):
                value = tasks.out(value.to(device=tasks.device, dtype=tasks.dtype))
            setattr(self, name, value)
        self.objective_, self.dual_gap_, self.n_iter_ = result.objective, result.dual_gap, result.n_iter
        missed = {name: value for name, value in result.certificate.items() if not value <= self.tol}
        if result.certificate:
            self.certificate_ = dict(result.certificate)
        if abs(result.relative_gap) > self.tol:  # negative: rounding has eaten the certificate
            missed["relative duality gap"] = result.relative_gap
        if missed:
            found = " and ".join(f"{name} of {value:.1e}" for name, value in missed.items())
            warnings.warn(
                f"{type(self).__name__} stopped after {result.n_iter} iterations (max_iter={self.max_iter}) at a "
                f"{found}; tol={self.tol:.1e}. The best weights are kept.",
                ConvergenceWarning,
                stacklevel=3,
            )

    def _margin(self, X: Any, task: Any) -> Any:
        """The function of its task, ``X w_t + b_t`` for a linear model, at every row."""
        return self._each_row(X, task, self._margins_like)

    def _each_row(self, X: Any, task: Any, function_like: Callable[[Any], Callable[[Any, Any], Any]]) -> Any:
        """A function of rows and the position of their task, as :meth:`_margins_like` makes it, at every row."""
        if not hasattr(self, "task_ids_"):
            raise NotFittedError(f"This {type(self).__name__} instance is not fitted yet; call fit first")
        if isinstance(X, Tasks):
            if task is not None:
                raise ValueError("predict(tasks) takes no task: the Tasks object carries the ids")
            return self._each_task(X, function_like)
        if isinstance(X, Tensor):
            X, _ = check_design(X)
            validate_data(self, X, skip_check_array=True, reset=False)
        else:
            X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        function = function_like(X)
        index = self._positions(task, X.shape[0])
        order = np.argsort(index, kind="stable")
        bounds = np.searchsorted(index[order], np.arange(len(self.task_ids_) + 1))
        parts = [function(X[order[bounds[t] : bounds[t + 1]]], t) for t in np.unique(index).tolist()]
        back = np.argsort(order)
        return torch.cat(parts)[back] if isinstance(X, Tensor) else np.concatenate(parts)[back]

    def _each_task(self, tasks: Tasks, function_like: Callable[[Any], Callable[[Any, Any], Any]]) -> Any:
        if tasks.n_features != self.n_features_in_:
            raise ValueError(f"expected {self.n_features_in_} features, as in fit; got {tasks.n_features}")
        function = function_like(tasks._X)
        columns = [self._position(id_) for id_ in tasks.ids]
        if tasks.is_shared:
            return tasks.out(function(tasks._X, columns))
        return [tasks.out(function(tasks.tensors(t)[0], c)) for t, c in enumerate(columns)]

    def _margins_like(self, X: Any) -> Callable[[Any, Any], Any]:
        """Function of rows ``(n, d)`` and a task's position, or a list of k positions: margins ``(n,)``, ``(n, k)``.

        Rows and margins are in the library, type and device of ``X``.
        """
        W, b = self._weights_like(X)
        return lambda rows, t: rows @ (W[t].T if isinstance(t, list) else W[t]) + b[t]

    def _pooled_rows(self, X: Any, y: Any, task: Any, sample_weight: Any) -> tuple[Any, Any, Any]:
        """Targets, predictions and weights of the rows of all tasks, as NumPy arrays for a score."""
        if isinstance(X, Tasks):
            if y is not None or sample_weight is not None:
                raise ValueError("score(tasks) takes no y or sample_weight: the Tasks object carries them")
            return _flat(X, self.predict(X, task))
        weight = None if sample_weight is None else _to_numpy(sample_weight)
        return _to_numpy(_need(y, self)), _to_numpy(self.predict(X, task)), weight

    def _weights_like(self, X: Any) -> tuple[Any, Any]:
        """``coef_`` and ``intercept_`` in the library, type and device of X."""
        if isinstance(X, Tensor):
            return torch.as_tensor(self.coef_).to(X), torch.as_tensor(self.intercept_).to(X)
        return _to_numpy(self.coef_), _to_numpy(self.intercept_)

    def _position(self, id_: Hashable) -> int:
        if id_ not in self.task_ids_:
            raise ValueError(f"task {id_!r} was not seen by fit; known tasks: {some_ids(self.task_ids_)}")
        return self.task_ids_.index(id_)

    def _positions(self, task: Any, n: int) -> np.ndarray:
        """(n,) position of every row's task among ``task_ids_``."""
        if task is None:
            if len(self.task_ids_) > 1:
                raise ValueError(
                    f"this model was fitted on {len(self.task_ids_)} tasks: give task, one id per row (a "
                    "Pipeline or search hands it on with metadata routing enabled and set_fit_request(task=True), "
                    "set_score_request(task=True), set_predict_request(task=True))"
                )
            return np.zeros(n, dtype=np.int64)
        known = {id_: t for t, id_ in enumerate(self.task_ids_)}
        values = task_values(task, n).tolist()
        unseen = {v: None for v in values if v not in known}
        if unseen:
            raise ValueError(
                f"task contains ids that fit has not seen: {some_ids(tuple(unseen))}; known: {some_ids(self.task_ids_)}"
            )
        return np.array([known[v] for v in values], dtype=np.int64)


class MultiTaskRegressor(RegressorMixin, LinearMTL):
    """Regression: targets are numbers, ``score`` is R² over the pooled rows."""

    def score(self, X: Any, y: Any = None, task: Any = None, sample_weight: Any = None) -> float:
        """R² of the pooled rows of all tasks, against the mean of ``y``; 1 is perfect.

        Parameters as in :meth:`fit`; tasks with missing labels are scored on the labels they have.
        """
        y, prediction, weight = self._pooled_rows(X, y, task, sample_weight)
        return float(r2_score(y, prediction, sample_weight=weight))


class MarginClassifier(ClassifierMixin, LinearMTL):
    """Binary classification by the sign of a margin, with the same two labels in all tasks."""

    _y_numeric = False

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags

    def _encode(self, y: np.ndarray, sample_weight: Any = None) -> np.ndarray:
        check_classification_targets(y)
        weight = np.ones(len(y)) if sample_weight is None else _to_numpy(sample_weight)
        # A row of weight zero is no row; weights of another length are refused later, in words.
        self.classes_ = np.unique(y[weight != 0] if weight.shape == y.shape and weight.any() else y)
        if len(self.classes_) > 2:
            kind = type_of_target(y, input_name="y", raise_unknown=True)
            raise ValueError(
                f"Only binary classification is supported. The type of the target is {kind}: "
                f"got {len(self.classes_)} classes"
            )
        if len(self.classes_) < 2:
            raise ValueError(f"y must hold 2 classes; got 1 class only: {self.classes_.tolist()[0]!r}")
        return np.where(y == self.classes_[1], 1.0, -1.0)

    def _encode_tasks(self, tasks: Tasks) -> Tasks:
        sizes = np.cumsum(tasks.n_samples)[:-1]
        return tasks.with_targets(np.split(self._encode(tasks.long_targets()), sizes))

    def _gather(self, X: Any, y: Any, task: Any, sample_weight: Any) -> Tasks:
        tasks = super()._gather(X, y, task, sample_weight)
        self._need_both_classes(tasks)
        return tasks

    @property
    def _intercept_per_task(self) -> bool:
        """Whether each task has an intercept of its own, which takes both classes to be finite."""
        return True

    def _can_fit(self, tasks: Tasks) -> np.ndarray:
        both = np.array([len(torch.unique(tasks.tensors(t)[1])) > 1 for t in range(tasks.n_tasks)])
        if not self.fit_intercept:
            return np.ones_like(both)
        if self._intercept_per_task:
            return both
        return np.full_like(both, len(np.unique(tasks.long_targets())) > 1)

    def _need_both_classes(self, tasks: Tasks) -> None:
        """One label only has no finite intercept."""
        for t in np.flatnonzero(~self._can_fit(tasks)).tolist():
            only = self.classes_.tolist()[int(tasks.tensors(t)[1][0] > 0)]
            raise ValueError(
                f"task {tasks.ids[t]!r} holds 1 class only ({only!r}): its intercept would be infinite. "
                "Leave the task out or fit without intercept"
            )

    def decision_function(self, X: Any, task: Any = None) -> Any:
        """Margins, positive for ``classes_[1]``; shapes as in :meth:`predict`."""
        return self._margin(X, task)

    def predict(self, X: Any, task: Any = None) -> Any:
        """Labels; shapes as for regression."""
        return _map(self._label, self._margin(X, task))

    def _label(self, margin: Any) -> Any:
        positive = margin > 0
        if not isinstance(margin, Tensor) or self.classes_.dtype.kind not in "biuf":  # torch knows no strings
            return self.classes_[_to_numpy(positive).astype(int)]
        return torch.as_tensor(self.classes_, device=margin.device)[positive.long()]

    def score(self, X: Any, y: Any = None, task: Any = None, sample_weight: Any = None) -> float:
        """Fraction of the pooled rows that get the right label."""
        y, prediction, weight = self._pooled_rows(X, y, task, sample_weight)
        return float(accuracy_score(y, prediction, sample_weight=weight))


class MultiTaskClassifier(MarginClassifier):
    """Binary classification whose margins are log odds."""

    def predict_proba(self, X: Any, task: Any = None) -> Any:
        """Probabilities of the two classes on the last axis: ``(n, 2)``, for shared inputs ``(n, T, 2)``."""
        return _map(_probabilities, self._margin(X, task))


def check_labels(name: str, labels: Any, n_tasks: int, n_groups: int) -> np.ndarray | None:
    """(T,) int64 labels 0..n_groups-1, one per task, or None."""
    if labels is None:
        return None
    found = np.asarray(labels)
    if found.shape != (n_tasks,) or found.dtype.kind not in "iu":
        raise ValueError(f"{name} must be {n_tasks} integers, one per task; got shape {found.shape} of {found.dtype}")
    if found.min() < 0 or found.max() >= n_groups:
        raise ValueError(f"{name} must lie between 0 and {n_groups - 1}; got {found.min()} to {found.max()}")
    return found.astype(np.int64)


def _probabilities(margin: Any) -> Any:
    if isinstance(margin, Tensor):
        return torch.stack([torch.sigmoid(-margin), torch.sigmoid(margin)], dim=-1)
    with np.errstate(over="ignore"):
        return np.stack([1 / (1 + np.exp(margin)), 1 / (1 + np.exp(-margin))], axis=-1)


def _map(function: Any, margin: Any) -> Any:
    return [function(m) for m in margin] if isinstance(margin, list) else function(margin)


def _flat(tasks: Tasks, prediction: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Observed targets, their predictions and weights, pooled over tasks."""
    y = np.concatenate([_to_numpy(tasks.tensors(t)[1]) for t in range(tasks.n_tasks)])
    weight = np.concatenate([_to_numpy(tasks.weights(t)) for t in range(tasks.n_tasks)])
    if isinstance(prediction, list):
        return y, np.concatenate([_to_numpy(p) for p in prediction]), weight
    seen = ~np.isnan(_to_numpy(tasks._y))
    return y, _to_numpy(prediction).T[seen.T], weight


def _to_numpy(values: Any) -> Any:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _need(y: Any, estimator: Any) -> Any:
    if y is None:
        raise ValueError(
            f"This {type(estimator).__name__} estimator requires y to be passed, but the target y is None."
        )
    return y
