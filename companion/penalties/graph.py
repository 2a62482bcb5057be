r"""Squared differences between tasks: to the mean of all, or along the edges of a graph.

Both are :math:`\tfrac12 \operatorname{tr}(W A W^\top)` with a positive definite ``A (T, T)`` over the tasks. The
gradient is ``W A``, the conjugate :math:`\tfrac12 \operatorname{tr}(C A^{-1} C^\top)`, and :math:`A^{-1}` is the kernel
over tasks that belongs to the penalty (Evgeniou, Micchelli and Pontil, 2005).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from companion.penalties._base import Penalty, check_positive


class TaskQuadratic(Penalty, Protocol):
    r"""A penalty :math:`\tfrac12 \operatorname{tr}(W A W^\top)`, as solvers of linear systems see it."""

    def times(self, W: Tensor) -> Tensor:
        """(d, T) product ``W A``, the gradient of the penalty."""

    def diagonal(self, W: Tensor) -> Tensor:
        """(T,) diagonal of A, in the type and on the device of ``W (d, T)``."""

    def value(self, W: Tensor) -> Tensor:
        """Penalty of ``W (d, T)``."""
        return (W * self.times(W)).sum() / 2

    def dual_scale(self, C: Tensor) -> float:
        """Every dual point is feasible."""
        return 1.0


@dataclass(frozen=True)
class MeanDeviation(TaskQuadratic):
    r"""Distance to the mean of the tasks (Evgeniou and Pontil, 2004).

    .. math:: \tfrac{\alpha}{2} \lVert W \rVert_F^2 + \tfrac{c}{2} \sum_t \lVert w_t - \bar w \rVert^2

    Here :math:`A = (\alpha + c) I - \tfrac{c}{T} \mathbf 1 \mathbf 1^\top`. It has the eigenvalue :math:`\alpha` on
    what all tasks have in common and :math:`\alpha + c` on what they differ by, so its inverse is as simple.

    Parameters
    ----------
    alpha : float
        > 0.
    coupling : float
        c >= 0.
    """

    alpha: float
    coupling: float

    def __post_init__(self) -> None:
        check_positive("alpha", self.alpha)
        check_coupling(self.coupling)

    def times(self, W: Tensor) -> Tensor:
        """(d, T) product ``W A``."""
        return (self.alpha + self.coupling) * W - self.coupling * W.mean(1, keepdim=True)

    def diagonal(self, W: Tensor) -> Tensor:
        """(T,) diagonal of A."""
        T = W.shape[1]
        return W.new_full((T,), self.alpha + self.coupling * (T - 1) / T)

    def prox(self, V: Tensor, step: float) -> Tensor:
        """Shrink the mean of ``V (d, T)`` by alpha and the rest by alpha plus coupling."""
        mean = V.mean(1, keepdim=True)
        return mean / (1 + step * self.alpha) + (V - mean) / (1 + step * (self.alpha + self.coupling))

    def conjugate(self, C: Tensor) -> Tensor:
        r""":math:`\tfrac12 \operatorname{tr}(C A^{-1} C^\top)` of ``C (d, T)``."""
        mean = C.mean(1, keepdim=True)
        common = C.shape[1] * (mean**2).sum() / self.alpha
        return (common + ((C - mean) ** 2).sum() / (self.alpha + self.coupling)) / 2

    def task_kernel(self, n_tasks: int) -> Tensor:
        r"""(T, T) kernel over tasks :math:`A^{-1}`, without the cancellation that inverting A would bring."""
        own = 1 / (self.alpha + self.coupling)
        common = self.coupling / self.alpha * own / n_tasks
        return own * torch.eye(n_tasks, dtype=torch.float64) + common

    def scaled(self, factor: float) -> MeanDeviation:
        """The same penalty times ``factor`` > 0."""
        return MeanDeviation(factor * self.alpha, factor * self.coupling)


@dataclass(frozen=True, eq=False)
class GraphDifference(TaskQuadratic):
    r"""Distances along the edges of a graph over the tasks.

    .. math::
       \tfrac{\alpha}{2} \lVert W \rVert_F^2 + \tfrac{c}{2} \operatorname{tr}(W \mathcal L W^\top)
       = \tfrac{\alpha}{2} \lVert W \rVert_F^2 + \tfrac{c}{2} \sum_{s < t} a_{st} \lVert w_s - w_t \rVert^2

    with the Laplacian :math:`\mathcal L` of the edge weights :math:`a_{st}`, so :math:`A = \alpha I + c \mathcal L`.

    Parameters
    ----------
    alpha : float
        > 0.
    coupling : float
        c >= 0.
    laplacian : (T, T) array or scipy sparse array
        As :func:`laplacian` makes it. A sparse one stays sparse on the CPU and is factorised as such.
    """

    alpha: float
    coupling: float
    laplacian: Any = field(repr=False)

    def __post_init__(self) -> None:
        check_positive("alpha", self.alpha)
        check_coupling(self.coupling)

    def times(self, W: Tensor) -> Tensor:
        """(d, T) product ``W A``."""
        if sparse.issparse(self.laplacian) and W.device.type == "cpu":
            edges = torch.from_numpy(np.ascontiguousarray((self.laplacian @ W.numpy().T).T)).to(W)
        else:
            edges = W @ self._dense.to(W)
        return self.alpha * W + self.coupling * edges

    def diagonal(self, W: Tensor) -> Tensor:
        """(T,) diagonal of A."""
        return self.alpha + self.coupling * torch.from_numpy(np.array(self.laplacian.diagonal(), dtype=float)).to(W)

    def prox(self, V: Tensor, step: float) -> Tensor:
        """Solve ``P (I + step A) = V`` for ``P (d, T)``."""
        return self._solver(1 + step * self.alpha, step * self.coupling)(V)

    def conjugate(self, C: Tensor) -> Tensor:
        r""":math:`\tfrac12 \operatorname{tr}(C A^{-1} C^\top)` of ``C (d, T)``."""
        return (C * self._inverse(C)).sum() / 2

    def scaled(self, factor: float) -> GraphDifference:
        """The same penalty times ``factor`` > 0."""
        return GraphDifference(factor * self.alpha, factor * self.coupling, self.laplacian)

    def task_kernel(self) -> Tensor:
        r"""(T, T) kernel over tasks :math:`A^{-1}`."""
        inverse = self._inverse(torch.eye(self.laplacian.shape[0], dtype=torch.float64))
        return (inverse + inverse.T) / 2

    @cached_property
    def _inverse(self) -> Callable[[Tensor], Tensor]:
        return self._solver(self.alpha, self.coupling)

    @cached_property
    def _dense(self) -> Tensor:
        dense = self.laplacian.toarray() if sparse.issparse(self.laplacian) else self.laplacian
        return torch.from_numpy(np.asarray(dense, dtype=float))

    def _solver(self, shift: float, factor: float) -> Callable[[Tensor], Tensor]:
        """``V -> V (shift I + factor Lap)^-1``, factorised once."""
        if sparse.issparse(self.laplacian):
            T = self.laplacian.shape[0]
            lu = sparse.linalg.splu(sparse.csc_array(shift * sparse.eye_array(T) + factor * self.laplacian))
            return lambda V: torch.from_numpy(lu.solve(V.double().cpu().numpy().T).T).to(V)
        values, Q = torch.linalg.eigh(self._dense)
        return lambda V: ((V @ Q.to(V)) / (shift + factor * values.clamp(min=0.0)).to(V)) @ Q.T.to(V)


def check_coupling(coupling: float) -> None:
    """Refuse couplings that are not finite and at least zero."""
    if not 0 <= coupling < math.inf:
        raise ValueError(f"coupling must be a finite number >= 0; got {coupling!r}")


def path_graph(n_tasks: int) -> sparse.csr_array:
    """(T, T) adjacency in which every task is tied to the next with weight one: tasks along time, in their order."""
    if n_tasks < 1:
        raise ValueError(f"n_tasks must be >= 1; got {n_tasks}")
    ones = np.ones(n_tasks - 1)
    return sparse.csr_array(sparse.diags_array([ones, ones], offsets=[-1, 1], shape=(n_tasks, n_tasks)))


def laplacian(graph: Any, ids: Sequence[Hashable], signed: bool = False, directed: bool = False) -> Any:
    r"""Laplacian of a graph over tasks: degrees on the diagonal, minus the edge weights beside it.

    Parameters
    ----------
    graph : (T, T) array, scipy sparse array, or pandas data frame
        Edge weights (zero diagonal), or a Laplacian. Rows are in the order of ``ids``; a data frame whose index and
        columns are the ids may have them in any order.
    ids : sequence of length T
    signed : bool
        Accept negative edge weights: an edge :math:`a_{st} < 0` then pulls :math:`w_s` towards :math:`-w_t`, with
        penalty :math:`|a_{st}| \lVert w_s + w_t \rVert^2`.
    directed : bool
        Accept edge weights that differ by direction. The distance of two tasks has none: an edge gets the mean of both.

    Returns
    -------
    (T, T) float64 array, or scipy csr_array if ``graph`` is sparse
        Symmetric and positive semidefinite.

    Raises
    ------
    ValueError
        Wrong shape or ids, NaN or infinity, asymmetric or negative weights that were not asked for, a diagonal that
        belongs to neither edge weights nor a Laplacian.
    """
    matrix = _matrix(graph, ids)
    asymmetry = abs(matrix - matrix.T)
    worst = float(asymmetry.max())
    if worst > 1e-10 * float(abs(matrix).max()):
        if not directed:
            s, t = (int(i[0]) for i in np.unravel_index([_argmax(asymmetry)], asymmetry.shape))
            raise ValueError(
                f"graph must be symmetric; the weights between tasks {ids[s]!r} and {ids[t]!r} are {matrix[s, t]:g} "
                f"and {matrix[t, s]:g}. With directed=True an edge gets the mean of both directions"
            )
        matrix = (matrix + matrix.T) / 2
    weights = _edge_weights(matrix)
    lowest = float(weights.min())
    if lowest < 0 and not signed:
        raise ValueError(
            f"graph must have weights >= 0; the smallest is {lowest:g}. With signed=True an edge of negative weight "
            "pulls the weights of a task towards minus those of the other"
        )
    degrees = np.asarray(abs(weights).sum(axis=1)).ravel()
    if sparse.issparse(weights):
        return sparse.csr_array(sparse.diags_array(degrees) - weights)
    return np.diag(degrees) - weights


def complete_graph(n_tasks: int) -> NDArray[np.float64]:
    """(T, T) adjacency with weight 1/T between all tasks: its Laplacian gives the distances to the mean."""
    return (1 - np.eye(n_tasks)) / n_tasks


def n_components(laplacian: Any) -> int:
    """Number of parts of the graph between which there is no edge, and so no sharing."""
    return int(connected_components(sparse.csr_array(laplacian), directed=False)[0])


def _matrix(graph: Any, ids: Sequence[Hashable]) -> Any:
    """(T, T) float64 array or csr_array, rows in the order of ``ids``."""
    T = len(ids)
    if hasattr(graph, "loc"):  # a data frame names its rows
        if set(graph.index) != set(ids) or set(graph.columns) != set(ids):
            raise ValueError(
                f"the index and columns of graph must be the {T} task ids; got index {list(graph.index)[:5]} and "
                f"columns {list(graph.columns)[:5]} (the first five)"
            )
        graph = graph.loc[list(ids), list(ids)].to_numpy()
    if sparse.issparse(graph):
        matrix = sparse.csr_array(graph, dtype=float)
        finite = np.isfinite(matrix.data).all()
    else:
        dense = graph.detach().cpu().numpy() if isinstance(graph, Tensor) else graph
        matrix = np.array(dense, dtype=float)
        finite = np.isfinite(matrix).all()
    if matrix.shape != (T, T):
        raise ValueError(f"graph must have shape ({T}, {T}), one row and column per task; got {matrix.shape}")
    if not finite:
        raise ValueError("graph must hold finite weights; it contains NaN or infinity")
    return matrix


def _edge_weights(matrix: Any) -> Any:
    """Edge weights of an adjacency (zero diagonal) or of a Laplacian (degrees on the diagonal)."""
    diagonal = np.asarray(matrix.diagonal())
    beside = matrix - (sparse.diags_array(diagonal) if sparse.issparse(matrix) else np.diag(diagonal))
    if not diagonal.any():
        return beside
    degrees = np.asarray(abs(beside).sum(axis=1)).ravel()
    if np.allclose(diagonal, degrees, rtol=1e-8, atol=1e-12 * max(1.0, float(degrees.max(initial=0.0)))):
        return -beside
    t = int(np.argmax(abs(diagonal - degrees)))
    raise ValueError(
        "graph must have a zero diagonal (edge weights) or the sums of the absolute weights beside it as diagonal (a "
        f"Laplacian); row {t} has {diagonal[t]:g} on the diagonal and weights that sum to {degrees[t]:g}"
    )


def _argmax(matrix: Any) -> int:
    """Flat position of the largest entry."""
    return int(matrix.toarray().argmax() if sparse.issparse(matrix) else matrix.argmax())
