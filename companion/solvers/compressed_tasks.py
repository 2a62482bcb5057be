"""What a Gaussian likelihood needs of the data: at most d rows per task, in units in which no unit matters."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from companion.solvers.quadratic import Centring
from companion.tasks import Tasks

_FLOOR = 1e-10  # of the variance of y within tasks: noise that is taken for granted


class CompressedTasks(NamedTuple):
    r"""Rows that have the second moments of the data, padded with zeros to one block; build it with :meth:`of`.

    .. math:: \sum_i s_{ti} (\tilde y_{ti} - \tilde x_{ti}^\top w)^2 = \lVert u_t - R_t w \rVert^2 + \text{rest}_t

    Columns and targets are centred within tasks (with intercepts) and divided by their standard deviation within tasks.
    Where that is zero they are divided by the one over all rows, and where this is zero, too, by their size.

    Attributes
    ----------
    R : (T, r, d), u : (T, r) tensors
        r is at most d.
    rest : float
        Summed over the tasks, with a floor of 1e-10 per degree of freedom that keeps noise variances above zero.
    dof : float
        Degrees of freedom: the sum of the weights, less T with intercepts.
    log_n : float
        Sum over the tasks of log n_t with intercepts, else 0.
    x_scale : (d,) tensor
    y_scale : float
        What columns and targets were divided by.
    x_mean : (T, d), y_mean : (T,) tensors
        Weighted means of the tasks, which were subtracted; zero without intercepts.
    n : (T,) tensor
        Sums of the weights.
    """

    R: Tensor
    u: Tensor
    rest: float
    dof: float
    log_n: float
    x_scale: Tensor
    y_scale: float
    x_mean: Tensor
    y_mean: Tensor
    n: Tensor

    @classmethod
    def of(cls, tasks: Tasks, fit_intercept: bool = True) -> CompressedTasks:
        """From tasks in float64.

        Raises
        ------
        ValueError
            With intercepts, weights that sum to less than one per task.
        """
        tasks = tasks.ragged()
        (X, y), T = tasks.stacked(), tasks.n_tasks
        n = torch.from_numpy(tasks.total_weight).to(X)
        dof = float(n.sum()) - T * fit_intercept
        if dof < 0:
            raise ValueError(
                f"sample_weight counts rows: with intercepts it must sum to at least the number of tasks, {T}; "
                f"got {float(n.sum()):g}"
            )
        s = torch.cat([tasks.weights(t) for t in range(T)])
        sizes = torch.from_numpy(tasks.n_samples).to(X.device)
        groups = torch.repeat_interleave(torch.arange(T, device=X.device), sizes) if fit_intercept else None
        centred = Centring(X, y, s, groups, T)
        x_scale = _scale(centred.X, X, s, dof)
        y_scale = float(_scale(centred.y[:, None], y[:, None], s, dof))
        A = centred.root[:, None] * torch.cat([centred.X / x_scale, centred.y[:, None] / y_scale], dim=1)
        R, u, rest = _compressed([_triangle(block) for block in A.split(sizes.tolist())])
        log_n = float(n.log().sum()) if fit_intercept else 0.0
        rest += _FLOOR * dof
        return cls(R, u, rest, dof, log_n, x_scale, y_scale, centred.X_mean, centred.y_mean, n)


def _triangle(A: Tensor) -> Tensor:
    """Rows of a design with the targets beside it; where there are more than features, as few as do the same."""
    return A if A.shape[0] < A.shape[1] else torch.linalg.qr(A, mode="r").R


def _compressed(blocks: list[Tensor]) -> tuple[Tensor, Tensor, float]:
    """Padded ``R (T, r, d)`` and ``u (T, r)``, and the squares of what lies below the d-th row."""
    T, d = len(blocks), blocks[0].shape[1] - 1
    r = min(d, max(len(block) for block in blocks))
    R, u, rest = blocks[0].new_zeros(T, r, d), blocks[0].new_zeros(T, r), 0.0
    for t, block in enumerate(blocks):
        k = min(len(block), d)
        R[t, :k], u[t, :k] = block[:k, :d], block[:k, d]
        rest += float((block[k:, d] ** 2).sum())
    return R, u, rest


def _scale(centred: Tensor, values: Tensor, s: Tensor, dof: float) -> Tensor:
    """(k,) deviations of ``values (N, k)`` within tasks, or the next best; differences by rounding are none."""
    mean = (s[:, None] * values).sum(0) / s.sum()
    size = ((s[:, None] * values**2).sum(0) / s.sum()).sqrt()
    within = ((s[:, None] * centred**2).sum(0) / max(dof, 1.0)).sqrt()
    overall = ((s[:, None] * (values - mean) ** 2).sum(0) / s.sum()).sqrt()
    noise = 8 * torch.finfo(values.dtype).eps * size
    scale = torch.where(within > noise, within, torch.where(overall > noise, overall, size))
    return torch.where(scale > 0, scale, 1.0)
