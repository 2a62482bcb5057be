"""Kernel machines for many tasks: ridge regression and support vectors under a kernel on (task, input) pairs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from companion.linear._base import LinearMTL, MarginClassifier, MultiTaskRegressor
from companion.linear._gram import Array, Expansion, Labels, RowKernel
from companion.penalties.graph import GraphDifference, MeanDeviation, laplacian
from companion.solvers.kernel_machines import KernelSolution, kernel_ridge, support_vectors
from companion.solvers.result import Result
from companion.tasks import Tasks


class _KernelMachine(LinearMTL):
    """Functions of all tasks from one machine on all their rows; subclasses name the machine."""

    alpha: float
    coupling: float
    graph: Any
    signed: bool
    directed: bool
    kernel: Any
    gamma: Any
    degree: float
    coef0: float
    device = "cpu"  # where scikit-learn's machines are
    _expansion: Expansion | None  # None for linear functions: they predict by coef_
    _coef: Any

    @abstractmethod
    def _machine(self, K: Array, v: Array, labels: Labels) -> KernelSolution:
        """Solve on the Gram matrix ``K (N, N)`` of all labels, which may be overwritten, with their weights ``v``."""

    @property
    @abstractmethod
    def _centres(self) -> bool:
        """Whether every task has a free intercept, so that its rows may be centred."""

    def _support(self, C: sparse.csr_array) -> NDArray[np.int64]:
        """Rows that prediction needs, given their coefficients (n, T)."""
        return np.arange(C.shape[0])

    @property
    def coef_(self) -> Any:
        """(T, d) weights; there are some for the linear kernel only."""
        if "_coef" not in vars(self) or self._coef.shape[1] == 0:
            raise AttributeError(f"{type(self).__name__} has coef_ after fit with kernel='linear' only")
        return self._coef

    @coef_.setter
    def coef_(self, value: Any) -> None:
        self._coef = value

    def _task_kernel(self, tasks: Tasks) -> Array:
        """(T, T) inverse of the penalty's matrix."""
        if self.graph is None:
            return MeanDeviation(self.alpha, self.coupling).task_kernel(tasks.n_tasks).numpy()
        edges = laplacian(self.graph, tasks.ids, self.signed, self.directed)
        return GraphDifference(self.alpha, self.coupling, edges).task_kernel().numpy()

    def _solve(self, tasks: Tasks) -> Result:
        M = self._task_kernel(tasks)  # before the rows: bad parameters are cheap to find
        labels = Labels.of(tasks)
        v = torch.cat([self._row_weights(tasks, t) for t in range(tasks.n_tasks)]).numpy()
        kernel = RowKernel.fit(self.kernel, self.gamma, self.degree, self.coef0, labels.X, labels.row_weights())
        if kernel.kernel == "linear":
            designs, mean = labels.designs(v if self._centres else None)
            found = self._machine(labels.multi_task(designs @ designs.T, M), v, labels)
            W = M @ labels.sums(found.dual[:, None] * designs)  # (T, d)
            intercept = found.intercept - (mean * W).sum(1)
        else:
            K = kernel.gram(labels.X)
            K = K[np.ix_(labels.row, labels.row)] if tasks.is_shared else K
            found = self._machine(labels.multi_task(K, M), v, labels)
            W, intercept = np.empty((tasks.n_tasks, 0)), np.zeros(tasks.n_tasks) + found.intercept
        return Result(
            W=torch.from_numpy(W.T),
            intercept=torch.from_numpy(intercept),
            objective=found.objective,
            dual_gap=found.dual_gap,
            null_objective=found.null_objective,
            n_iter=found.n_iter,
            certificate=found.certificate,
            attributes=self._expand(tasks, kernel, labels, M, found.dual, intercept),
        )

    def _expand(
        self, tasks: Tasks, kernel: RowKernel, labels: Labels, M: Array, dual: Array, intercept: Array
    ) -> dict[str, object]:
        """Fitted attributes beside the weights; keeps in double precision what prediction needs."""
        C = sparse.csr_array((dual, (labels.row, labels.task)), shape=(len(labels.X), len(M)))
        kept = self._support(C)
        C, X = C[kept], labels.X[kept]
        self._expansion = None if kernel.kernel == "linear" else Expansion(kernel, X, C, M, intercept)
        return {
            "X_fit_": torch.from_numpy(X),
            "dual_coef_": torch.from_numpy(C.toarray() if tasks.is_shared else dual[kept]),
            "task_fit_": None if tasks.is_shared else labels.task[kept],
            "support_": tasks.rows[kept],
            "task_kernel_": torch.from_numpy(M),
        }

    def _margins_like(self, X: Any) -> Callable[[Any, Any], Any]:
        if self._expansion is None:
            return super()._margins_like(X)
        functions = self._expansion
        if isinstance(X, Tensor):
            return lambda rows, t: torch.from_numpy(functions(rows.double().cpu().numpy(), t)).to(X)
        dtype = np.result_type(X.dtype, torch.as_tensor(self.intercept_).cpu().numpy().dtype)
        return lambda rows, t: functions(rows.astype(np.float64), t).astype(dtype)


_PARAMETERS = r"""
    Parameters
    ----------
    alpha : float, default 0.1
        Weight of the squared norms, > 0.
    coupling : float, default 0.1
        Weight of the distances between tasks, >= 0.
    graph, signed, directed
        Edges between tasks, as in :class:`GraphRegularized`. None: every task is pulled to the mean of all.
    kernel : str or callable, default "linear"
        A name that :func:`~sklearn.metrics.pairwise.pairwise_kernels` knows, or a function ``k(X, Z) -> (n, m)`` of two
        matrices of rows in double precision. Its matrix on the training rows must be symmetric and positive
        semidefinite, where negative eigenvalues up to 1e-8 of the largest pass for rounding.
    gamma : float, "scale", "auto" or None, default None
        Parameter of the kernels that have it; "auto" stands for 1/d, "scale" for 1/(d times the variance of the
        training rows), None for the default of the kernel: 1 for "chi2", 1/d for the others.
    degree : float, default 3
    coef0 : float, default 1
        Of the kernels "poly" and "sigmoid".
    reduction : {"mean", "sum"}
        "mean" divides each task's loss by n_t, the sum of its weights; "sum" does not.
"""
_ATTRIBUTES = r"""
    Attributes
    ----------
    X_fit_ : (N, d)
        Training rows that prediction needs, ordered by task; for tasks that share their inputs, of the common rows.
    dual_coef_ : (N,)
        Coefficients :math:`c_i`; ``(n, T)``, with zeros for missing labels, for tasks that share their inputs.
    task_fit_ : (N,) array of int
        Position in ``task_ids_`` of the task of each row of ``X_fit_``; None for tasks that share their inputs.
    support_ : (N,) array of int
        Position of each row of ``X_fit_`` in the rows handed in.
    task_kernel_ : (T, T)
        M, the kernel over tasks.
    coef_ : (T, d)
        Weights, for the linear kernel only; other kernels have no such attribute.
    intercept_ : (T,)
"""


class MultiTaskKernelRidge(_KernelMachine, MultiTaskRegressor):
    __doc__ = (
        r"""Kernel ridge regression for many tasks (Evgeniou, Micchelli and Pontil, 2005).

    Minimises :math:`\sum_t \tfrac{1}{2 n_t} \sum_i (y_{ti} - f_t(x_{ti}) - b_t)^2 + \tfrac{\alpha}{2} \sum_t \lVert
    f_t \rVert_k^2 + \tfrac{c}{2} \sum_t \lVert f_t - \bar f \rVert_k^2` with c = ``coupling``, over functions
    :math:`f_t` of the kernel's space; with a graph the last sum runs over its edges. With A the matrix of that penalty
    over the tasks and :math:`M = A^{-1}`, all :math:`f_t` are together one function of (task, input) pairs under the
    kernel :math:`M_{st} k(x, z)`, and

    .. math:: f_t(x) = \sum_i c_i \, M_{t\,t(i)} \, k(x, x_i)

    over the rows of all tasks. With the linear kernel these are the models :class:`MeanRegularized` and
    :class:`GraphRegularized`, which are faster where there are fewer features than rows. With coupling 0 tasks are
    separate; as it grows, all become one function with penalty T alpha.

    scikit-learn's ``KernelRidge`` solves for c; the intercepts are eliminated by centring. That takes several matrices
    of N x N numbers for N rows of all tasks together (n T for shared inputs), and a time that grows with the cube of N.
    Prediction needs the training rows; it goes through the new rows in blocks. All of it runs in double precision on
    the CPU, whatever the data came in; results go back in the library, type and device of the data.
"""
        + _PARAMETERS
        + r"""    fit_intercept : bool, default True
        Fit one unpenalised intercept per task.
    tol : float, default 1e-8
        Residual of the linear system allowed, relative to the targets. It is solved directly: one above says that
        rounding has taken more, for a kernel that is large beside alpha.
"""
        + _ATTRIBUTES
        + r"""    task_ids_ : tuple of length T
    objective_, dual_gap_ : float
        Value and absolute duality gap of the solution, in float64, before float32 data rounds it.
    certificate_ : dict
        The residual of the linear system.
    n_iter_ : int
        1: the system is solved directly.
    """
    )

    max_iter = 1  # a direct solver

    def __init__(
        self,
        alpha: float = 0.1,
        coupling: float = 0.1,
        graph: Any = None,
        signed: bool = False,
        directed: bool = False,
        kernel: Any = "linear",
        gamma: Any = None,
        degree: float = 3,
        coef0: float = 1,
        reduction: str = "mean",
        fit_intercept: bool = True,
        tol: float = 1e-8,
    ) -> None:
        self.alpha = alpha
        self.coupling = coupling
        self.graph = graph
        self.signed = signed
        self.directed = directed
        self.kernel = kernel
        self.gamma = gamma
        self.degree = degree
        self.coef0 = coef0
        self.reduction = reduction
        self.fit_intercept = fit_intercept
        self.tol = tol

    @property
    def _centres(self) -> bool:
        return self.fit_intercept

    def _machine(self, K: Array, v: Array, labels: Labels) -> KernelSolution:
        return kernel_ridge(K, labels.y, v, labels.offsets if self.fit_intercept else None)


class MultiTaskSVC(_KernelMachine, MarginClassifier):
    __doc__ = (
        r"""Support vector machine for many tasks (Evgeniou and Pontil, 2004).

    Minimises :math:`\sum_t \tfrac{1}{n_t} \sum_i \max(0, 1 - y_{ti} (f_t(x_{ti}) + b)) + \tfrac{\alpha}{2} \sum_t
    \lVert f_t \rVert_k^2 + \tfrac{c}{2} \sum_t \lVert f_t - \bar f \rVert_k^2` over labels -1/+1, with c =
    ``coupling`` and functions :math:`f_t` of the kernel's space; kernel over (task, input) pairs and expansion as in
    :class:`MultiTaskKernelRidge`. For one task and ``reduction="sum"`` it is :class:`sklearn.svm.SVC` with C = 1/alpha.

    There is one unpenalised intercept b for all tasks, as scikit-learn's machine has it; it can neither be left out nor
    be made one per task. Tasks whose classes differ in frequency can be given penalised intercepts of their own by a
    kernel with a constant in it, such as "poly" with ``degree=1``. A task with one class only is no problem, as long as
    another has the other. With coupling 0 tasks share b and nothing else; as it grows, all become one function with
    penalty T alpha. Where many b are optimal, the middle of them is taken.

    scikit-learn's ``SVC`` finds the support vectors; a few Newton steps on those that are not at a bound bring the
    solution from libsvm's single precision to double precision. Memory, prediction and devices as in
    :class:`MultiTaskKernelRidge`. There are no probabilities: the hinge loss says nothing about them.
"""
        + _PARAMETERS
        + r"""    tol : float, default 1e-8
        Duality gap allowed, relative to the objective of the intercept-only model.
    max_iter : int, default 1000000
        Most iterations of libsvm.
"""
        + _ATTRIBUTES
        + r"""        The common intercept, once per task.
    classes_ : (2,)
    task_ids_ : tuple of length T
    objective_, dual_gap_ : float
        Value and absolute duality gap of the solution, in float64, before float32 data rounds it.
    n_iter_ : int
        Iterations of libsvm and steps after it.
    """
    )

    fit_intercept = True

    def __init__(
        self,
        alpha: float = 0.1,
        coupling: float = 0.1,
        graph: Any = None,
        signed: bool = False,
        directed: bool = False,
        kernel: Any = "linear",
        gamma: Any = None,
        degree: float = 3,
        coef0: float = 1,
        reduction: str = "mean",
        tol: float = 1e-8,
        max_iter: int = 1_000_000,
    ) -> None:
        self.alpha = alpha
        self.coupling = coupling
        self.graph = graph
        self.signed = signed
        self.directed = directed
        self.kernel = kernel
        self.gamma = gamma
        self.degree = degree
        self.coef0 = coef0
        self.reduction = reduction
        self.tol = tol
        self.max_iter = max_iter

    @property
    def _intercept_per_task(self) -> bool:
        return False

    @property
    def _centres(self) -> bool:
        return False

    def _support(self, C: sparse.csr_array) -> NDArray[np.int64]:
        return np.flatnonzero(abs(C).sum(1))

    def _machine(self, K: Array, v: Array, labels: Labels) -> KernelSolution:
        return support_vectors(K, labels.y, v, self.tol, self.max_iter)
