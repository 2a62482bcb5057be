r"""The data term that all convex models share, with its intercepts optimised out.

.. math::
   F(W) = \min_b \sum_t \sum_i v_{ti}\, \ell(y_{ti},\, x_{ti}^\top w_t + b_t) + \tfrac{l_2}{2} \lVert W \rVert_F^2

A model adds a penalty :math:`\Omega(W)`; a solver asks for margins, gradients and certificates and knows nothing of
how the rows are stored.
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from companion.losses import LogisticLoss, Loss, SquaredLoss
from companion.penalties._base import NormPenalty, Penalty
from companion.solvers.duality import Certificate
from companion.solvers.rows import PaddedRows, RaggedRows, Rows, SharedRows
from companion.tasks import Tasks

_CHUNK = 1 << 17  # numbers centred at a time: they stay in the cache, and no second copy of the design is made


class Point(NamedTuple):
    """Weights with what follows from them."""

    W: Tensor  # (d, T)
    intercept: Tensor  # (G,), on the prepared data
    margin: Tensor  # one number per row, intercept included
    value: float  # data term, ridge included
    C: Tensor | None = None  # negative gradient there, once somebody needed it


class Problem:
    r"""Loss of all tasks at weights ``W (d, T)``, plus :math:`\tfrac{l_2}{2} \lVert W \rVert_F^2`.

    Build it with :meth:`from_tasks`. Tasks are centred first, which changes nothing but the intercepts and keeps the
    certificates exact for data far from zero. For squared loss that disposes of the intercepts; otherwise they are
    solved for whenever the loss is evaluated.

    Parameters
    ----------
    rows : Rows
        Prepared designs.
    y, v : tensors, one number per row
        Targets and row weights; weight zero marks padding and missing labels.
    loss : Loss
    l2 : float
        Ridge term, >= 0.
    free : bool
        Whether intercepts remain to be solved for.
    """

    def __init__(self, rows: Rows, y: Tensor, v: Tensor, loss: Loss, l2: float = 0.0, free: bool = False) -> None:
        self.rows, self.y, self.v, self.loss, self.l2, self.free = rows, y, v, loss, l2, free
        self.n_features, self.n_tasks = rows.n_features, rows.n_tasks
        self._X_mean: Tensor | None = None
        self._y_mean: Tensor | None = None

    @classmethod
    def from_tasks(
        cls, tasks: Tasks, loss: Loss, reduction: str = "mean", fit_intercept: bool = True, l2: float = 0.0
    ) -> Problem:
        """Prepare float64 tasks: weigh, centre, and lay out as their device and shape ask for.

        Parameters
        ----------
        tasks : Tasks
            In float64, labels -1 and +1 for the logistic loss.
        reduction : {"mean", "sum"}
            Row weights ``s / n_t`` or ``s``.
        """
        if tasks.is_shared:
            return cls._from_shared(tasks, loss, reduction, fit_intercept, l2)
        v = torch.cat([tasks.weights(t) for t in range(tasks.n_tasks)]) if tasks.is_weighted else None
        sizes = torch.from_numpy(tasks.total_weight).to(tasks.device)
        repeats = torch.from_numpy(tasks.n_samples).to(tasks.device)
        scale = torch.repeat_interleave(1 / sizes if reduction == "mean" else torch.ones_like(sizes), repeats)
        v = scale if v is None else v * scale
        X, y = tasks.stacked()
        return cls.ragged(X, tasks.offsets, y, v, loss, fit_intercept, l2)

    @classmethod
    def ragged(
        cls,
        X: Tensor,
        offsets: np.ndarray,
        y: Tensor,
        v: Tensor,
        loss: Loss,
        fit_intercept: bool,
        l2: float = 0.0,
    ) -> Problem:
        """From tasks behind one another: ``X (N, d)``, ``y, v (N,)`` as they came."""
        layout = RaggedRows(X, offsets)
        squared = isinstance(loss, SquaredLoss)
        X_mean, y_mean = X.new_zeros(layout.n_tasks, X.shape[1]), y.new_zeros(layout.n_tasks)
        if fit_intercept:
            X_mean = layout.transpose_times(v).T / layout.sums(v)[:, None]
            X = _centred(X, X_mean, layout.groups)
            if squared:
                y_mean = layout.sums(v * y) / layout.sums(v)
                y = _subtract(y, y_mean[layout.groups])
        rows: Rows = RaggedRows(X, offsets)
        if X.device.type != "cpu":
            rows, y, v = _padded(X, offsets, y, v)
        problem = cls(rows, y, v, loss, l2, free=fit_intercept and not squared)
        problem._X_mean, problem._y_mean = X_mean, y_mean
        return problem

    @classmethod
    def _from_shared(cls, tasks: Tasks, loss: Loss, reduction: str, fit_intercept: bool, l2: float) -> Problem:
        X, Y, observed = tasks.common_inputs()
        squared, complete = isinstance(loss, SquaredLoss), observed is None
        V = Y.new_ones(1, 1).expand_as(Y) if observed is None else observed.to(Y.dtype)
        V = V / V.sum(0) if reduction == "mean" else V
        X_mean, y_mean = X.new_zeros(1, X.shape[1]), Y.new_zeros(Y.shape[1])
        if fit_intercept:
            X_mean = X.mean(0, keepdim=True)
            X = _centred(X, X_mean, None)
            if squared:
                y_mean = (V * Y).sum(0) / V.sum(0)
                Y = torch.where(V > 0, _subtract(Y, y_mean), 0.0)
        # With every label there, centring one X by its mean has removed all intercepts of a squared loss.
        problem = cls(SharedRows(X, Y.shape[1]), Y, V, loss, l2, free=fit_intercept and not (squared and complete))
        problem._X_mean, problem._y_mean = X_mean, y_mean
        return problem

    # --- values ----------------------------------------------------------------------------------------------------

    @property
    def is_quadratic(self) -> bool:
        """Whether the data term is ``1/2 sum v (y - X w)^2``, without intercepts."""
        return isinstance(self.loss, SquaredLoss) and not self.free

    @cached_property
    def has_common_weight(self) -> bool:
        """Whether all rows of all tasks weigh the same."""
        return bool((self.v == self.v.flatten()[0]).all())

    def zero(self) -> Tensor:
        """(d, T) weights of the intercept-only model."""
        return self.y.new_zeros(self.n_features, self.n_tasks)

    def at(self, W: Tensor) -> Point:
        """Intercepts, margins and data term at ``W (d, T)``."""
        return self.with_margins(W, self.rows.times(W) if bool(W.any()) else torch.zeros_like(self.y))

    def with_margins(self, W: Tensor, m: Tensor) -> Point:
        """The same where the margins ``m`` without intercepts are known."""
        b = self.intercepts(m)
        if self.free:
            m = m + self.rows.spread(b)
        value = float(self.loss.value(self.y, m, self.v).sum())
        return Point(W, b, m, value + self.l2 / 2 * float((W * W).sum()))

    def intercepts(self, m: Tensor) -> Tensor:
        """(G,) best intercepts on top of margins ``m``."""
        if not self.free:
            return m.new_zeros(self.rows.n_groups)
        if isinstance(self.loss, LogisticLoss):
            return logistic_intercepts(self.rows, m, self.y, self.v)
        return self.rows.sums(self.v * (self.y - m)) / self.rows.sums(self.v)

    def descent(self, point: Point) -> Tensor:
        """(d, T) negative gradient of F at a point, whose free intercepts are at their best."""
        if point.C is not None:
            return point.C
        theta = -self.loss.grad(self.y, point.margin, self.v)
        return self.rows.transpose_times(theta) - self.l2 * point.W

    def with_descent(self, point: Point) -> Point:
        """The same point with its negative gradient, which costs a pass over the data."""
        return point._replace(C=self.descent(point))

    def gradient(self, W: Tensor) -> Tensor:
        """(d, T) gradient of F at ``W``, from second moments where these are smaller than the data."""
        if self.moments is not None:
            return self.moments.gradient(W)
        return -self.descent(self.at(W))

    @cached_property
    def moments(self) -> Moments | None:
        """Second moments, for a squared loss with more rows than features."""
        shared = isinstance(self.rows, SharedRows)
        n_rows = self.y.shape[0] if shared else self.y.numel() / self.n_tasks
        if not self.is_quadratic or self.n_features > n_rows or (shared and not self.has_common_weight):
            return None
        y = self.v * self.y
        return Moments(self.rows.gram(self.v), self.rows.transpose_times(y), float((y * self.y).sum()), self.l2)

    @cached_property
    def null_objective(self) -> float:
        """Loss of the intercept-only model, the scale of every relative tolerance."""
        return self.at(self.zero()).value

    @cached_property
    def lipschitz(self) -> float:
        """Lipschitz constant of the gradient of F."""
        if self.moments is not None:
            return max(float(torch.linalg.eigvalsh(self.moments.XtX).max()), 0.0) + self.l2
        return self.loss.max_curvature * self.rows.largest_eigenvalue(self.v) + self.l2

    # --- certificates ----------------------------------------------------------------------------------------------

    def certify(self, penalty: Penalty, point: Point) -> Certificate:
        r"""Primal and dual value of :math:`F + \Omega` at a point.

        The dual point is the negative gradient of the loss in the margins, scaled into the dual ball; its entries sum
        to zero within every group of rows that shares a free intercept, because the intercepts are at their best. The
        ridge term counts as d more rows of data.
        """
        C = self.descent(point)
        scale = penalty.dual_scale(C)
        theta = -scale * self.loss.grad(self.y, point.margin, self.v)
        v = torch.where(self.v > 0, self.v, 1.0)  # rows without weight have theta = 0
        dual = float(self.loss.dual_value(self.y, theta, v).sum()) - float(penalty.conjugate(scale * C))
        dual -= scale**2 * self.l2 / 2 * float((point.W**2).sum())
        return Certificate(point.value + float(penalty.value(point.W)), dual)

    def gap(self, penalty: Penalty, W: Tensor) -> float:
        """Duality gap at ``W``, from second moments where there are any: cheap enough to stop on."""
        if self.moments is not None:
            return self.moments.gap(penalty, W)
        return self.certify(penalty, self.at(W)).gap

    def alpha_max(self, penalty: NormPenalty) -> float:
        """Factor on the penalty from which on ``W = 0`` is optimal: its dual norm of the gradient at zero."""
        return penalty.dual_norm(self.descent(self.at(self.zero())))

    def column_norms(self) -> Tensor:
        r"""(d, T) norms of the weighted columns, :math:`\sqrt{\sum_i v_i x_{ij}^2 + l_2}`; (d, 1) if they agree."""
        return (self.rows.squares(self.v) + self.l2).sqrt()

    # --- parts -----------------------------------------------------------------------------------------------------

    def columns(self, index: Tensor) -> Problem:
        """The same problem over the features ``index`` only."""
        part = Problem(self.rows.columns(index), self.y, self.v, self.loss, self.l2, self.free)
        part.null_objective = self.null_objective
        return part

    def restricted(self, point: Point, index: Tensor) -> Point:
        """A point for :meth:`columns`, whose other weights are zero."""
        return point._replace(W=point.W[index], C=None if point.C is None else point.C[index])

    def original_intercepts(self, point: Point) -> Tensor:
        """(T,) intercepts for the data as they came."""
        if self._X_mean is None or self._y_mean is None:
            return point.intercept
        return self._y_mean + point.intercept - (self._X_mean * point.W.T).sum(1)


class Moments(NamedTuple):
    r"""A squared loss as a quadratic form, per task :math:`\tfrac12 w^\top G w - c^\top w + \tfrac12 y^\top y`."""

    XtX: Tensor  # (T, d, d), or (1, d, d) when all tasks share it
    Xty: Tensor  # (d, T)
    yty: float
    l2: float

    def gradient(self, W: Tensor) -> Tensor:
        """(d, T) gradient, ridge included."""
        shared = self.XtX.shape[0] == 1
        GW = self.XtX[0] @ W if shared else torch.bmm(self.XtX, W.T[:, :, None])[:, :, 0].T
        return GW + self.l2 * W - self.Xty

    def gap(self, penalty: Penalty, W: Tensor) -> float:
        r"""Duality gap at ``W``.

        .. math:: \Omega(W) + \Omega^*(sC) - s \langle W, C \rangle + \tfrac{(1-s)^2}{2} \lVert r \rVert^2

        C is the negative gradient, r the residual with the ridge's d rows, s the scale that makes ``s C`` feasible. No
        large numbers cancel: the gap is accurate where primal and dual value agree in all digits.
        """
        C = -self.gradient(W)
        s = penalty.dual_scale(C)
        r2 = self.yty - float((W * (self.Xty + C)).sum())
        gap = penalty.value(W) + penalty.conjugate(s * C) - s * (W * C).sum()
        return float(gap) + (1 - s) ** 2 / 2 * r2


def logistic_intercepts(rows: Rows, m: Tensor, y: Tensor, v: Tensor) -> Tensor:
    """(G,) intercepts that minimise the logistic loss on top of margins ``m``, to machine precision.

    Newton steps inside a bracket that halves whenever a step leaves it. Every group needs both labels.
    """
    loss = LogisticLoss()
    positive, negative = rows.sums(torch.where(y > 0, v, 0.0)), rows.sums(torch.where(y < 0, v, 0.0))
    # Odds of the labels bound the optimal intercept up to the largest margin.
    odds = (positive + negative) / torch.minimum(positive, negative)
    spread = m.abs().max() + 2 * (1 + odds.log())
    low, high, b = -spread, spread, torch.zeros_like(spread)
    for _ in range(100):
        shifted = m + rows.spread(b)
        slope = rows.sums(loss.grad(y, shifted, v))
        bend = rows.sums(loss.curvature(y, shifted, v))
        low, high = torch.where(slope < 0, b, low), torch.where(slope > 0, b, high)
        newton = b - slope / bend.clamp(min=1e-300)
        inside = (newton >= low) & (newton <= high)  # at the solution the step is zero and b an end of the bracket
        proposal = torch.where(slope == 0, b, torch.where(inside, newton, (low + high) / 2))
        moved = (proposal - b).abs()
        b = proposal
        if bool((moved <= 1e-15 * (1 + b.abs())).all()):
            break
    return b


def _centred(X: Tensor, mean: Tensor, groups: Tensor | None) -> Tensor:
    """``X`` less the mean ``(1, d)``, or that of each row's group ``(G, d)``; no second temporary of its size."""
    out = torch.empty_like(X)
    step = max(1, _CHUNK // X.shape[1])
    for a in range(0, X.shape[0], step):
        rows = slice(a, a + step)
        out[rows] = _subtract(X[rows], mean if groups is None else mean[groups[rows]])
    return out


def _subtract(values: Tensor, mean: Tensor) -> Tensor:
    """``values - mean``, exactly zero where the difference is rounding: a constant column must stay without effect."""
    difference = values - mean
    noise = 8 * torch.finfo(values.dtype).eps * mean.abs()
    return torch.where(difference.abs() <= noise, 0.0, difference)


def _padded(X: Tensor, offsets: np.ndarray, y: Tensor, v: Tensor) -> tuple[Rows, Tensor, Tensor]:
    sizes = np.diff(offsets)
    blocks = X.new_zeros(len(sizes), int(sizes.max()), X.shape[1])
    y_blocks, v_blocks = (X.new_zeros(blocks.shape[:2]) for _ in range(2))
    for t, (a, b) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)):
        blocks[t, : b - a], y_blocks[t, : b - a], v_blocks[t, : b - a] = X[a:b], y[a:b], v[a:b]
    return PaddedRows(blocks), y_blocks, v_blocks
