r"""Penalties that group tasks: a few directions in the space of tasks cost less than all others.

Clustered multi-task learning (Jacob, Bach and Vert, 2008; Zhou, Chen and Ye, 2011) and alternating structure
optimisation (Chen, Tang, Liu and Ye, 2009) learn a matrix together with the weights, and are convex in both. For given
weights the best matrix is known in closed form, and without it each penalty is a function of singular values, the
square of a box norm (McDonald, Pontil and Stamos, 2016):

.. math:: \min_\theta \sum_i \frac{\sigma_i^2}{\theta_i}, \qquad a \le \theta_i \le b, \quad
   \sum_i (\theta_i - a) \le k\,(b - a)

Directions on which W does not lie take no part, so the budget is an upper bound: it may be spent on them.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from numbers import Integral

import numpy as np
import torch
from torch import Tensor

from companion.penalties._base import check_positive
from companion.penalties.trace_norm import scale_singular_values


@dataclass(frozen=True)
class SquaredBoxNorm:
    r"""Square of a spectral box norm: k directions cost ``inside`` per squared length, all others ``outside``.

    .. math:: \Omega(W) = \min_{0 \preceq M \preceq I,\; \operatorname{tr} M = k} \operatorname{tr}(W \Sigma^{-1}
       W^\top) , \qquad \Sigma = \tfrac{1}{\text{outside}} (I - M) + \tfrac{1}{\text{inside}} M

    For a projection M this is ``inside`` :math:`\lVert W M \rVert_F^2` plus ``outside`` :math:`\lVert W (I - M)
    \rVert_F^2`. The least over projections is not convex in W, the least over their convex hull is.

    Clustered multi-task learning has :math:`\Omega(W) = \min_M \rho_1 \eta (1 + \eta) \operatorname{tr} (W (\eta I +
    M)^{-1} W^\top)` with :math:`\eta = \rho_2 / \rho_1`; that is ``inside`` :math:`= \rho_2` and ``outside``
    :math:`= \rho_1 + \rho_2`.

    Parameters
    ----------
    inside, outside : float
        Weights, ``outside >= inside > 0``. Equal weights make a ridge.
    k : int
        Number of directions that may be cheap, >= 0; beyond the rank of W it makes no difference.
    """

    inside: float
    outside: float
    k: int

    def __post_init__(self) -> None:
        _check_order(inside=self.inside, outside=self.outside)
        check_count("k", self.k, least=0)

    def value(self, W: Tensor) -> Tensor:
        """Penalty of ``W (d, T)`` at its best M."""
        s = torch.linalg.svdvals(W)
        return (s**2 / (self._low + self._width * self._shares(s))).sum()

    def prox(self, V: Tensor, step: float) -> Tensor:
        r"""Multiply every singular value of ``V (d, T)`` by :math:`\theta_i / (\theta_i + 2 \text{step})`.

        For given theta that is ridge regression, at the price :math:`\text{step}\, \sigma_i^2 / (\theta_i + 2
        \text{step})`; the best theta are those of :math:`\sigma` with both bounds raised by twice the step.
        """
        shift = 2 * step

        def factors(s: Tensor) -> Tensor:
            theta = self._low + self._width * self._shares(s, shift)
            return theta / (theta + shift)

        return scale_singular_values(V, factors)

    def gradient(self, W: Tensor) -> Tensor:
        r"""(d, T) gradient :math:`2 W \Sigma^{-1}` at the best M, which itself need not be differentiated."""
        return scale_singular_values(W, lambda s: 2 / (self._low + self._width * self._shares(s)))

    def diagonal(self, W: Tensor) -> Tensor:
        """(T,) the most that the penalty curves, which it does in all but k directions."""
        return W.new_full((W.shape[1],), 2 * self.outside)

    def dual_scale(self, C: Tensor) -> float:
        """Every dual point is feasible."""
        return 1.0

    def conjugate(self, C: Tensor) -> Tensor:
        r""":math:`\tfrac14 \max_\theta \sum_i \theta_i \sigma_i^2`: the k largest singular values of C get the most."""
        squares = torch.linalg.svdvals(C) ** 2
        return (self._low * squares.sum() + self._width * squares[: self.k].sum()) / 4

    def scaled(self, factor: float) -> SquaredBoxNorm:
        """The same penalty times ``factor`` > 0."""
        return SquaredBoxNorm(factor * self.inside, factor * self.outside, self.k)

    def projection(self, W: Tensor) -> Tensor:
        """(T, T) the best M for ``W (d, T)``, of trace k, or I for k >= T; on features, hand in the transpose.

        On directions that no task uses M is not determined. What is left of the trace is spread evenly over them.
        """
        T = W.shape[1]
        _, s, Q = torch.linalg.svd(W, full_matrices=False)
        return self._projection(_without_rounding(s, W), Q, torch.eye(T, dtype=W.dtype, device=W.device), T)

    @property
    def _low(self) -> float:
        return 1 / self.outside

    @property
    def _width(self) -> float:
        return (self.outside - self.inside) / self.outside / self.inside

    def _shares(self, s: Tensor, shift: float = 0.0) -> Tensor:
        return box_shares(s, self._low + shift, self._width, self.k)

    def _projection(self, s: Tensor, Q: Tensor, space: Tensor, size: int) -> Tensor:
        """M from singular values (m,), right singular vectors (m, T) and the projection on a space of tasks."""
        used = s > 0
        if self._width <= 1e-12 * self._low:  # a ridge, up to rounding: any M is best
            used = torch.zeros_like(used)
        Q, shares = Q[used], self._shares(s)[used]
        n_unused = size - len(shares)
        rest = (min(self.k, size) - float(shares.sum())) / n_unused if n_unused else 0.0
        return max(rest, 0.0) * (space - Q.T @ Q) + (Q.T * shares) @ Q


@dataclass(frozen=True)
class SquaredClusterNorm:
    r"""Three squared norms of grouped tasks, at the best grouping in a convex set (Jacob, Bach and Vert, 2008).

    With the mean of all tasks, the means of r clusters and M the projection on vectors that are constant in every
    cluster, hard clusters cost

    .. math:: e_M\, T \lVert \bar w \rVert^2 + e_B \sum_c T_c \lVert \bar w_c - \bar w \rVert^2 +
       e_W \sum_c \sum_{t \in c} \lVert w_t - \bar w_c \rVert^2
       = \operatorname{tr} W \bigl( e_M U + e_B (M - U) + e_W (I - M) \bigr) W^\top

    where U averages over all tasks. The relaxation leaves the mean alone. On the deviations from it, a space of T - 1
    dimensions, :math:`M - U` is a projection of rank r - 1, and its convex hull takes its place: a squared box norm
    with r - 1 cheap directions. The covariance of the deviations lies between :math:`1 / e_W` and :math:`1 / e_B` and
    has trace :math:`(T - r) / e_W + (r - 1) / e_B`.

    Parameters
    ----------
    mean, between, within : float
        Weights :math:`e_M, e_B, e_W`, ``within >= between >= mean > 0``.
    n_clusters : int
        r >= 1.
    """

    mean: float
    between: float
    within: float
    n_clusters: int

    def __post_init__(self) -> None:
        _check_order(mean=self.mean, between=self.between, within=self.within)
        check_count("n_clusters", self.n_clusters)

    @property
    def _deviation(self) -> SquaredBoxNorm:
        return SquaredBoxNorm(self.between, self.within, self.n_clusters - 1)

    def value(self, W: Tensor) -> Tensor:
        """Penalty of ``W (d, T)`` at its best covariance."""
        mean = W.mean(1, keepdim=True)
        return self.mean * W.shape[1] * (mean**2).sum() + self._deviation.value(W - mean)

    def prox(self, V: Tensor, step: float) -> Tensor:
        """Shrink the mean of ``V (d, T)``, and the deviations from it by their own prox."""
        mean = V.mean(1, keepdim=True)
        return mean / (1 + 2 * step * self.mean) + self._deviation.prox(V - mean, step)

    def gradient(self, W: Tensor) -> Tensor:
        """(d, T) sum of the gradients of both parts."""
        mean = W.mean(1, keepdim=True)
        return 2 * self.mean * mean + self._deviation.gradient(W - mean)

    def diagonal(self, W: Tensor) -> Tensor:
        """(T,) the most that the penalty curves."""
        return self._deviation.diagonal(W)

    def dual_scale(self, C: Tensor) -> float:
        """Every dual point is feasible."""
        return 1.0

    def conjugate(self, C: Tensor) -> Tensor:
        """Sum of the conjugates of both parts."""
        mean = C.mean(1, keepdim=True)
        return C.shape[1] * (mean**2).sum() / (4 * self.mean) + self._deviation.conjugate(C - mean)

    def scaled(self, factor: float) -> SquaredClusterNorm:
        """The same penalty times ``factor`` > 0."""
        return SquaredClusterNorm(factor * self.mean, factor * self.between, factor * self.within, self.n_clusters)

    def covariance(self, W: Tensor) -> Tensor:
        r"""(T, T) the best covariance of the tasks for ``W (d, T)``, so that the penalty is :math:`\operatorname{tr} W
        \Sigma^{-1} W^\top`. The mean of all tasks has variance :math:`1 / e_M`.
        """
        T, box = W.shape[1], self._deviation
        U = torch.full((T, T), 1 / T, dtype=W.dtype, device=W.device)
        deviations = torch.eye(T, dtype=W.dtype, device=W.device) - U
        _, s, Q = torch.linalg.svd(W - W.mean(1, keepdim=True), full_matrices=False)
        M = box._projection(_without_rounding(s, W), Q, deviations, T - 1)
        return U / self.mean + deviations * box._low + box._width * M


def box_shares(s: Tensor, low: float, width: float, k: int) -> Tensor:
    r"""Shares of a budget: minimise :math:`\sum_i s_i^2 / (\text{low} + \text{width}\, \mu_i)` over mu in [0, 1] with
    sum at most k.

    With a price on the sum, :math:`\text{low} + \text{width}\, \mu_i` is a level times :math:`s_i`, cut to its bounds
    (the price is one over the square of the level). The sum of the shares rises with the level, in straight pieces
    between the 2 m levels at which some share leaves 0 or reaches 1; the right piece gives the level exactly.

    Parameters
    ----------
    s : (m,) tensor
        >= 0, falling. Zeros get no share.
    low, width : float
        low > 0, width >= 0.
    k : int

    Returns
    -------
    (m,) tensor
    """
    budget = k * width
    if budget == 0 or s[0] == 0:
        return torch.zeros_like(s)
    ratios = s.detach().cpu().double().numpy()  # few numbers and many small steps: NumPy is quicker
    ratios = ratios / ratios[0]
    positive = ratios[ratios > 1e-150]  # the squares of others are zero
    start, end = low / positive, (low + width) / positive  # levels at which shares leave 0 and reach 1, rising
    levels = np.sort(np.concatenate([start, end]))
    n_started, n_ended = (np.searchsorted(edge, levels, side="right") for edge in (start, end))
    # Sums from the small end, whose differences keep their digits where the large singular values dwarf the others.
    tails = np.append(positive[::-1].cumsum()[::-1], 0.0)
    slope = tails[n_ended] - tails[n_started]  # of the sum of what exceeds low, in the level
    spent = n_ended * width + levels * slope - low * (n_started - n_ended)
    piece = max(int((spent <= budget).sum()) - 1, 0)
    level = levels[piece]
    if slope[piece] > 0:
        level += (budget - spent[piece]) / slope[piece]
    return torch.from_numpy(((level * ratios - low) / width).clip(0.0, 1.0)).to(s)


def check_count(name: str, count: int, least: int = 1) -> None:
    """Refuse what is no whole number, or one that is too small."""
    if not isinstance(count, Integral) or isinstance(count, bool) or count < least:
        raise ValueError(f"{name} must be an integer >= {least}; got {count!r}")


def _check_order(**weights: float) -> None:
    """Refuse weights that are not finite and above zero, or that fall; they come from the least to the greatest."""
    for name, weight in weights.items():
        check_positive(name, weight)
    names = list(weights)
    for less, more in pairwise(names):
        if weights[less] > weights[more]:
            order = " >= ".join(reversed(names))
            found = f"{less}={weights[less]!r} > {more}={weights[more]!r}"
            raise ValueError(f"weights must satisfy {order}; got {found}")


def _without_rounding(s: Tensor, W: Tensor) -> Tensor:
    """Singular values (m,), with zero for those that are rounding in ``W (d, T)``."""
    noise = max(W.shape) * torch.finfo(W.dtype).eps * torch.linalg.matrix_norm(W)
    return torch.where(s > noise, s, 0.0)
