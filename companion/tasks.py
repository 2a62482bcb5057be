"""Tasks: the data of T tasks, stored ragged, never padded unless asked.

Task t has a design ``X_t (n_t, d)`` and targets ``y_t (n_t,)``; the sizes ``n_t`` may differ by orders of magnitude,
so the rows of all tasks lie behind one another in one ``(N, d)`` array and a task is a slice of it. Tasks that share
their inputs (one ``X``, a label matrix ``Y``) store ``X`` once.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.utils import check_array, check_random_state
from torch import Tensor

from companion._checks import check_design, check_vector, check_weight, index_tasks, share_memory, some_ids


class Gram(NamedTuple):
    """Second moments of every task: all that a squared loss needs of the data."""

    XtX: Tensor  # (T, d, d)
    Xty: Tensor  # (T, d)
    yty: Tensor  # (T,)


class Padded(NamedTuple):
    """All tasks in dense blocks; rows beyond ``n_t`` are zero and have weight zero."""

    X: Tensor  # (T, n_max, d)
    y: Tensor  # (T, n_max)
    weight: Tensor  # (T, n_max)


class Tasks(Sequence):
    """Ragged container of the data of T tasks.

    Build it with :meth:`from_long`, :meth:`from_list` or :meth:`shared`; indexing gives ``(X_t, y_t)`` in the library
    (NumPy or torch) the data came in. Rows of weight zero are dropped: they take part in nothing. Memory is shared with
    the arrays handed in where their order allows; do not write to them afterwards.

    Attributes
    ----------
    ids : tuple of length T
        Task ids: sorted where they can be compared, else in order of appearance.
    n_tasks, n_features : int
        T and d.
    n_samples : (T,) int64 array
        Rows per task (observed labels, for shared inputs).
    is_shared : bool
        Whether all tasks share one ``X``.
    library : {"numpy", "torch"}
        What the data came in, and what predictions go out in.
    rows : (N,) int64 array
        For every stored row, its position in the rows that were handed in (the long form is sorted by task).
    n_rows : int
        Number of rows that were handed in, those of weight zero included.
    """

    ids: tuple[Hashable, ...]
    is_shared: bool
    library: str
    n_samples: np.ndarray
    rows: np.ndarray
    n_rows: int
    _X: Tensor  # (N, d), tasks behind one another; (n, d) when shared
    _y: Tensor  # (N,), or (n, T) when shared; float64, whatever the type of X, so that no target is rounded
    _weight: Tensor | None
    _observed: Tensor | None  # (n, T) bool when shared with missing labels
    _offsets: np.ndarray  # (T + 1,) first row of every task, ragged storage only

    def __init__(self) -> None:
        raise TypeError("Build Tasks with Tasks.from_long, Tasks.from_list or Tasks.shared")

    @classmethod
    def _build(cls, *, ids, X, y, weight, offsets, library, rows=None, n_rows=None) -> Tasks:
        """Ragged tasks when ``offsets`` is given, else tasks over one shared ``X`` with ``y (n, T)``."""
        self = object.__new__(cls)
        self.ids, self.library, self.is_shared = tuple(ids), library, offsets is None
        self._X, self._y, self._weight = X, y, weight
        self.rows = np.arange(X.shape[0]) if rows is None else rows
        self.n_rows = X.shape[0] if n_rows is None else n_rows
        if offsets is None:
            observed = ~torch.isnan(y)
            self._observed = None if bool(observed.all()) else observed
            self.n_samples = observed.sum(0).cpu().numpy()
        else:
            self._offsets = offsets
            self.n_samples = np.diff(offsets)
        empty = [id_ for id_, n in zip(self.ids, self.n_samples, strict=True) if n == 0]
        if empty:
            raise ValueError(
                f"every task needs at least one row, of weight above zero; none came for task {some_ids(empty)}"
            )
        return self

    @classmethod
    def from_long(cls, X: Any, y: Any, task: Any = None, sample_weight: Any = None) -> Tasks:
        """One row per sample, as in a table with a column that names the task.

        Parameters
        ----------
        X : (n, d) array or tensor
            Finite real numbers.
        y : (n,) array or tensor
            Finite targets.
        task : (n,) sequence of hashable ids, optional
            ``None``: all rows belong to one task with id 0.
        sample_weight : (n,) array or tensor, optional
            Weights >= 0: an integer weight is a repetition, zero a removal.

        Raises
        ------
        ValueError
            Lengths that differ, NaN or infinity, a task whose weights are all zero.
        """
        X, library = check_design(X)
        n = X.shape[0]
        y = check_vector(y, n, "y", like=X)
        ids, index = index_tasks(task, n)
        weight = None
        if sample_weight is not None:
            weight = check_weight(sample_weight, n, like=X)
        order = None if bool((index[1:] >= index[:-1]).all()) else np.argsort(index, kind="stable")
        if weight is not None and bool((weight == 0).any()):
            order = np.arange(n) if order is None else order
            order = order[(weight > 0).cpu().numpy()[order]]
        if order is not None:
            rows = torch.from_numpy(order).to(X.device)
            X, y, index = X[rows], y[rows], index[order]
            weight = None if weight is None else weight[rows]
        offsets = np.concatenate([[0], np.cumsum(np.bincount(index, minlength=len(ids)))])
        return cls._build(ids=ids, X=X, y=y, weight=weight, offsets=offsets, library=library, rows=order, n_rows=n)

    @classmethod
    def from_list(cls, pairs: Sequence[tuple[Any, Any]], ids: Sequence[Hashable] | None = None) -> Tasks:
        """From ``[(X_1, y_1), ..., (X_T, y_T)]``; ``ids`` default to 0..T-1 and keep the order given."""
        if len(pairs) == 0:
            raise ValueError("expected at least one (X_t, y_t) pair, got an empty list")
        ids = range(len(pairs)) if ids is None else ids
        if len(set(ids)) != len(pairs):
            raise ValueError(f"ids must be {len(pairs)} different task ids, one per pair; got {list(ids)}")
        designs = [check_design(X, name=f"X of task {id_!r}") for id_, (X, _) in zip(ids, pairs, strict=True)]
        widths = {X.shape[1] for X, _ in designs}
        if len(widths) > 1:
            raise ValueError(f"all tasks must have the same number of features; got {sorted(widths)}")
        ys = [
            check_vector(y, X.shape[0], f"y of task {id_!r}", like=X)
            for id_, (_, y), (X, _) in zip(ids, pairs, designs, strict=True)
        ]
        offsets = np.concatenate([[0], np.cumsum([len(y) for y in ys])])
        X = torch.cat([X for X, _ in designs])
        return cls._build(ids=ids, X=X, y=torch.cat(ys), weight=None, offsets=offsets, library=designs[0][1])

    @classmethod
    def shared(cls, X: Any, Y: Any, ids: Sequence[Hashable] | None = None) -> Tasks:
        """All tasks on the same inputs: ``X (n, d)`` stored once, ``Y (n, T)`` with NaN for a missing label."""
        X, library = check_design(X)
        Y = Y if isinstance(Y, Tensor) else check_array(Y, ensure_all_finite="allow-nan", input_name="Y")
        Y = (Y.detach() if isinstance(Y, Tensor) else share_memory(Y)).to(device=X.device, dtype=torch.float64)
        if Y.ndim != 2 or Y.shape[0] != X.shape[0]:
            raise ValueError(f"Y must have shape ({X.shape[0]}, T), one row per row of X; got {tuple(Y.shape)}")
        if bool(torch.isinf(Y).any()):
            raise ValueError("Y must be finite or NaN (missing label); it contains infinity")
        ids = range(Y.shape[1]) if ids is None else ids
        if len(set(ids)) != Y.shape[1]:
            raise ValueError(f"ids must be {Y.shape[1]} different task ids, one per column of Y; got {list(ids)}")
        return cls._build(ids=ids, X=X, y=Y, weight=None, offsets=None, library=library)

    # --- shape -----------------------------------------------------------------------------------------------------

    @property
    def n_tasks(self) -> int:
        return len(self.ids)

    @property
    def n_features(self) -> int:
        return self._X.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        return self._X.dtype

    @property
    def device(self) -> torch.device:
        return self._X.device

    @property
    def total_weight(self) -> np.ndarray:
        """Sums (T,) of the weights, the ``n_t`` of every formula."""
        if self._weight is None:
            return self.n_samples.astype(float)
        return np.array([float(self.weights(t).sum()) for t in range(self.n_tasks)])

    @property
    def is_weighted(self) -> bool:
        """Whether rows carry sample weights."""
        return self._weight is not None

    @property
    def offsets(self) -> np.ndarray:
        """(T + 1,) first row of every task in :meth:`stacked`; tasks that share their inputs have none."""
        if self.is_shared:
            raise ValueError("tasks that share their inputs are not stored behind one another")
        return self._offsets

    def __len__(self) -> int:
        return self.n_tasks

    def __repr__(self) -> str:
        low, high = self.n_samples.min(), self.n_samples.max()
        rows = f"n_t={low}" if low == high else f"n_t={low}..{high}"
        return f"Tasks(T={self.n_tasks}, d={self.n_features}, {rows}{', shared X' if self.is_shared else ''})"

    # --- access ----------------------------------------------------------------------------------------------------

    def tensors(self, t: int) -> tuple[Tensor, Tensor]:
        """``X_t (n_t, d)`` and ``y_t (n_t,)`` as tensors; views of the storage where no label is missing."""
        if not self.is_shared:
            rows = slice(int(self._offsets[t]), int(self._offsets[t + 1]))
            return self._X[rows], self._y[rows].to(self.dtype)
        if self._observed is None:
            return self._X, self._y[:, t].to(self.dtype)
        seen = self._observed[:, t]
        return self._X[seen], self._y[seen, t].to(self.dtype)

    def weights(self, t: int) -> Tensor:
        """(n_t,) sample weights of task t; ones where none were given."""
        if self._weight is None:
            return torch.ones(int(self.n_samples[t]), dtype=self.dtype, device=self.device)
        return self._weight[int(self._offsets[t]) : int(self._offsets[t + 1])].to(self.dtype)

    def __getitem__(self, t):
        if not isinstance(t, (int, np.integer)):
            raise TypeError(f"tasks are indexed by position 0..{self.n_tasks - 1}; got {t!r}")
        if not -self.n_tasks <= t < self.n_tasks:
            raise IndexError(f"task position {t} is outside 0..{self.n_tasks - 1}")
        X, y = self.tensors(t % self.n_tasks)
        return self.out(X), self.out(y)

    def stacked(self) -> tuple[Tensor, Tensor]:
        """``X (N, d)`` and ``y (N,)`` of all tasks behind one another, as stored: task t from ``offsets[t]`` on."""
        return self._X, self._y.to(self.dtype)

    def common_inputs(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """``X (n, d)``, ``Y (n, T)`` with zero for a missing label, and which labels there are: (n, T) bool or None."""
        if not self.is_shared:
            raise ValueError("these tasks do not share their inputs")
        Y = self._y.to(self.dtype)
        return self._X, Y if self._observed is None else Y.nan_to_num(nan=0.0), self._observed

    def out(self, tensor: Tensor) -> Any:
        """Hand a tensor back in the library the data came in."""
        return tensor.detach().cpu().numpy() if self.library == "numpy" else tensor

    def long(self) -> tuple[Any, Any, np.ndarray]:
        """``X (N, d)``, ``y (N,)`` and the position of each row's task ``(N,)``, rows ordered by task."""
        index = np.repeat(np.arange(self.n_tasks), self.n_samples)
        if not self.is_shared:
            return self.out(self._X), self.out(self._y.to(self.dtype)), index
        parts = [self.tensors(t) for t in range(self.n_tasks)]
        return self.out(torch.cat([X for X, _ in parts])), self.out(torch.cat([y for _, y in parts])), index

    def ragged(self) -> Tasks:
        """The same tasks stored behind one another; those that share their inputs get a copy of them each."""
        if not self.is_shared:
            return self
        X, y = (torch.cat(parts) for parts in zip(*(self.tensors(t) for t in range(self.n_tasks)), strict=True))
        offsets = np.concatenate([[0], np.cumsum(self.n_samples)])
        return self._build(ids=self.ids, X=X, y=y, weight=None, offsets=offsets, library=self.library)

    def long_targets(self) -> np.ndarray:
        """(N,) targets of all tasks behind one another, in float64."""
        y = (
            self._y
            if not self.is_shared
            else torch.cat([self._y[:, t][~self._y[:, t].isnan()] for t in range(len(self))])
        )
        return y.cpu().numpy()

    def to(self, device: Any = None, dtype: torch.dtype | None = None) -> Tasks:
        """The same tasks on another device or in another floating-point type."""
        return self._replace(self._X.to(device=device, dtype=dtype), self._y.to(device=device))

    def with_targets(self, targets: Sequence[Any]) -> Tasks:
        """The same inputs with other targets: one ``(n_t,)`` vector per task, e.g. permuted or recoded."""
        targets = [
            check_vector(y, int(n), f"targets of task {id_!r}", like=self._X)
            for id_, n, y in zip(self.ids, self.n_samples, targets, strict=True)
        ]
        if not self.is_shared:
            return self._replace(self._X, torch.cat(targets))
        Y = torch.full_like(self._y, torch.nan)
        for t, y in enumerate(targets):
            Y[slice(None) if self._observed is None else self._observed[:, t], t] = y
        return self._replace(self._X, Y)

    def _replace(self, X: Tensor, y: Tensor) -> Tasks:
        """The same rows with other numbers."""
        return self._build(
            ids=self.ids,
            X=X,
            y=y,
            weight=None if self._weight is None else self._weight.to(X.device),
            offsets=None if self.is_shared else self._offsets,
            library=self.library,
            rows=self.rows,
            n_rows=self.n_rows,
        )

    # --- dense views -----------------------------------------------------------------------------------------------

    def padded(self) -> Padded:
        """Blocks of ``n_max`` rows per task, for batched products; costs ``T n_max d`` numbers whatever the n_t."""
        T, n_max = self.n_tasks, int(self.n_samples.max())
        X = self._X.new_zeros(T, n_max, self.n_features)
        y, weight = X.new_zeros(T, n_max), X.new_zeros(T, n_max)
        for t, n in enumerate(self.n_samples):
            X[t, :n], y[t, :n] = self.tensors(t)
            weight[t, :n] = self.weights(t)
        return Padded(X, y, weight)

    def gram(self) -> Gram:
        """Weighted second moments ``X_t' V_t X_t``, ``X_t' V_t y_t``, ``y_t' V_t y_t`` in float64.

        Shared inputs with every label present need one Gram matrix; it is expanded, not copied, over the tasks.
        """
        if self.is_shared and self._observed is None:
            X, Y = self._X.double(), self._y.double()
            XtX = (X.T @ X).expand(self.n_tasks, -1, -1)
            return Gram(XtX, (X.T @ Y).T, (Y * Y).sum(0))
        moments = []
        for t in range(self.n_tasks):
            X, y = (a.double() for a in self.tensors(t))
            v = self.weights(t).double()
            moments.append((X.T @ (v[:, None] * X), X.T @ (v * y), (v * y * y).sum()))
        return Gram(*(torch.stack(m) for m in zip(*moments, strict=True)))

    # --- parts -----------------------------------------------------------------------------------------------------

    def split(self, test_size: float = 0.25, random_state: Any = None) -> tuple[Tasks, Tasks]:
        """Random training and test part, drawn within every task (within the common rows for shared inputs).

        Each task keeps at least one row on either side; a task with a single row is an error.
        """
        if not 0 < test_size < 1:
            raise ValueError(f"test_size must lie strictly between 0 and 1; got {test_size}")
        rng = check_random_state(random_state)
        test = []
        for id_, n in self._row_groups():
            if n < 2:
                raise ValueError(f"task {id_!r} has {n} row; splitting needs at least 2 in every task")
            n_test = min(max(round(test_size * n), 1), n - 1)
            chosen = np.zeros(n, dtype=bool)
            chosen[rng.permutation(n)[:n_test]] = True
            test.append(chosen)
        return self._take([~c for c in test]), self._take(test)

    def folds(
        self, n_folds: int = 3, random_state: Any = None, by_target: bool = False
    ) -> Iterator[tuple[Tasks, list[np.ndarray]]]:
        """Cross-validation stratified by task: the training part and, per task, the rows held out.

        Every task's rows are dealt out in random order. A task of one row always stays in the training part; a task
        with fewer rows than folds is held out in some folds only.

        Parameters
        ----------
        n_folds : int, at least 2
        random_state : int or numpy RandomState
        by_target : bool, default False
            Deal out the rows of each target value in turn, so that classes are spread evenly over the folds (not for
            shared inputs, where one row has a label in every task).

        Yields
        ------
        train : Tasks
        held_out : list of T boolean arrays (n_t,)
        """
        if n_folds < 2:
            raise ValueError(f"n_folds must be at least 2; got {n_folds}")
        rng = check_random_state(random_state)
        fold_of = []
        for t, (_, n) in enumerate(self._row_groups()):
            order = rng.permutation(n)
            if by_target and not self.is_shared:
                order = order[np.argsort(self.tensors(t)[1].cpu().numpy()[order], kind="stable")]
            fold = np.empty(n, dtype=int)
            # The first fold differs from task to task, so that small tasks do not all load the same one.
            fold[order] = (np.arange(n) + rng.randint(n_folds)) % n_folds
            fold_of.append(fold if n > 1 else np.full(n, -1))
        for k in range(n_folds):
            out = [fold == k for fold in fold_of]
            yield self._take([~o for o in out]), self._held_out(out)

    def part(self, train_rows: Any, test_rows: Any) -> tuple[Tasks, list[np.ndarray]]:
        """One fold from the caller's own rows: positions in the rows handed in, or boolean masks over them.

        Returns what :meth:`folds` yields; a task left without training rows is an error.
        """
        sizes = np.cumsum([n for _, n in self._row_groups()])[:-1]
        train, test = (self._mask(rows)[self.rows] for rows in (train_rows, test_rows))
        return self._take(np.split(train, sizes)), self._held_out(np.split(test, sizes))

    def _mask(self, rows: Any) -> np.ndarray:
        """(n_rows,) mask of row positions or of a mask."""
        rows = np.asarray(rows)
        mask = np.zeros(self.n_rows, dtype=bool)
        if rows.dtype == bool and rows.shape == mask.shape:
            return rows
        if (
            rows.ndim != 1
            or rows.dtype.kind not in "iu"
            or (len(rows) and not 0 <= rows.min() <= rows.max() < len(mask))
        ):
            raise ValueError(
                f"a fold must hold row positions 0..{self.n_rows - 1} or a mask of {self.n_rows} rows; "
                f"got {rows.dtype} of shape {rows.shape}" + (f", {rows.min()}..{rows.max()}" if rows.size else "")
            )
        mask[rows] = True
        return mask

    def _held_out(self, out: list[np.ndarray]) -> list[np.ndarray]:
        if not self.is_shared:
            return out
        if self._observed is None:
            return [out[0]] * self.n_tasks
        seen = self._observed.cpu().numpy()
        return [out[0][seen[:, t]] for t in range(self.n_tasks)]

    def _row_groups(self) -> list[tuple[Hashable, int]]:
        """(id, number of rows) of the groups that splits are drawn within."""
        if self.is_shared:
            return [("all (shared inputs)", self._X.shape[0])]
        return list(zip(self.ids, (int(n) for n in self.n_samples), strict=True))

    def _take(self, keep: list[np.ndarray], ids: Sequence[Hashable] | None = None) -> Tasks:
        """The rows marked in ``keep``, one boolean array per group of :meth:`_row_groups`; ``ids`` of those left."""
        rows = torch.from_numpy(np.flatnonzero(np.concatenate(keep))).to(self.device)
        weight = None if self._weight is None else self._weight[rows]
        sizes = [int(k.sum()) for k in keep if ids is None or k.any()]
        return self._build(
            ids=self.ids if ids is None else ids,
            X=self._X[rows],
            y=self._y[rows],
            weight=weight,
            offsets=None if self.is_shared else np.concatenate([[0], np.cumsum(sizes)]),
            library=self.library,
            rows=self.rows[np.flatnonzero(np.concatenate(keep))],
            n_rows=self.n_rows,
        )

    def subset(self, positions: ArrayLike) -> Tasks:
        """Some of the tasks, by position, with all their rows; positions must rise."""
        chosen = np.isin(np.arange(self.n_tasks), positions)
        ids = [id_ for id_, wanted in zip(self.ids, chosen, strict=True) if wanted]
        if self.is_shared:
            y = self._y[:, torch.from_numpy(np.flatnonzero(chosen)).to(self.device)]
            return self._build(ids=ids, X=self._X, y=y, weight=None, offsets=None, library=self.library)
        return self._take([np.full(n, wanted) for n, wanted in zip(self.n_samples, chosen, strict=True)], ids)


@dataclass(frozen=True)
class Standardiser:
    """Column means and standard deviations of the pooled *training* rows, to be applied to any rows.

    Fit it on training data only: statistics that have seen the test rows are a leak.

    Attributes
    ----------
    mean, scale : (d,) float64 tensors
        A constant column keeps mean 0 and scale 1, so that it stays what it was (an intercept column survives).
    y_mean : float
        Mean of the pooled training targets.
    """

    mean: Tensor
    scale: Tensor
    y_mean: float

    @classmethod
    def fit(cls, train: Tasks) -> Standardiser:
        """Statistics of the rows of all tasks of ``train``, each row counted with its weight."""
        n = torch.as_tensor(train.total_weight).sum()
        total = torch.zeros(train.n_features, dtype=torch.float64, device=train.device)
        y_total = 0.0
        for t in range(train.n_tasks):
            X, y = (a.double() for a in train.tensors(t))
            v = train.weights(t).double()
            total += v @ X
            y_total += float(v @ y)
        mean, square = total / n, torch.zeros_like(total)
        for t in range(train.n_tasks):
            square += train.weights(t).double() @ (train.tensors(t)[0].double() - mean) ** 2
        scale = (square / n).sqrt()
        # Rounding leaves a constant column of size c with a deviation of about eps * c.
        constant = scale <= 1e-12 * mean.abs().clamp(min=1e-300)
        return cls(torch.where(constant, 0.0, mean), torch.where(constant, 1.0, scale), y_total / float(n))

    def transform(self, tasks: Tasks, center_y: bool = True) -> Tasks:
        """Tasks with standardised columns and, if ``center_y``, targets minus the training mean."""
        if tasks.n_features != len(self.mean):
            raise ValueError(f"expected {len(self.mean)} features, as in the training rows; got {tasks.n_features}")
        X = (tasks._X - self.mean.to(tasks._X)) / self.scale.to(tasks._X)
        return tasks._replace(X, tasks._y - self.y_mean if center_y else tasks._y)
