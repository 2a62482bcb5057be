r"""The hierarchical Gaussian: what the data of all tasks say about the distribution that their weights come from.

.. math::
   y_{ti} = x_{ti}^\top w_t + b_t + \varepsilon_{ti}, \quad
   \varepsilon_{ti} \sim N(0, \sigma^2 / s_{ti}), \quad
   w_t \sim N(m, C), \quad m \sim N(0, \tau^2 I), \quad b_t \text{ flat}

Intercepts, weights and m are integrated out; C, :math:`\sigma^2`, :math:`\tau^2` and the scale s of the prior on C are
learned. That prior is an inverse Wishart distribution with :math:`\nu` degrees of freedom and scale matrix :math:`\nu s
I`; the logarithms of :math:`\sigma^2`, :math:`d \tau^2` and :math:`d s` are logistic. So that units do not matter,
columns and targets are divided by their standard deviations within tasks (:class:`CompressedTasks`), and densities are
taken in the logarithms of the hyperparameters.

With :math:`C = L L^\top` all matrices are written in the coordinates :math:`L^{-1} w`, where C is the identity.
:math:`H_t = L^\top X_t^\top K_t^{-1} X_t L` with :math:`K_t = X_t C X_t^\top + \sigma^2 I` has its eigenvalues between 0
(task t says nothing about this direction) and 1 (it says all), and never is C or a moment matrix inverted.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from companion.solvers.quadratic import Centring, group_sums
from companion.tasks import Tasks

_FLOOR = 1e-12  # noise variance that is taken for granted, in units of the variance of y within tasks


class CompressedTasks(NamedTuple):
    r"""All that the likelihood needs of the data: at most d rows per task, padded with rows of zeros to a block.

    .. math:: \sum_i s_{ti} (\tilde y_{ti} - \tilde x_{ti}^\top w)^2 = \lVert u_t - R_t w \rVert^2 + \text{rest}_t

    Attributes
    ----------
    R : (T, r, d), u : (T, r)
        Centred within tasks (with intercepts), and scaled.
    rest : float
        Sum over the tasks.
    dof : float
        Sum of the weights, less T with intercepts.
    log_weights : float
        Sum of the logarithms of the n_t with intercepts, else 0.
    x_scale : (d,), y_scale : float
        What columns and targets were divided by.
    x_mean : (T, d), y_mean : (T,)
        Weighted means of the tasks, which were subtracted; zero without intercepts.
    n : (T,)
        Sums of the weights.
    """

    R: Tensor
    u: Tensor
    rest: float
    dof: float
    log_weights: float
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
                f"weights count rows: with intercepts they must sum to at least {T}, the number of tasks; "
                f"got {float(n.sum()):g}"
            )
        s = torch.cat([tasks.weights(t) for t in range(T)])
        sizes = torch.from_numpy(tasks.n_samples).to(X.device)
        groups = torch.repeat_interleave(torch.arange(T, device=X.device), sizes) if fit_intercept else None
        centred = Centring(X, y, s, groups, T)
        x_scale = _scale(centred.X, X, s, dof)
        y_scale = float(_scale(centred.y[:, None], y[:, None], s, dof))
        A = centred.root[:, None] * torch.cat([centred.X / x_scale, centred.y[:, None] / y_scale], dim=1)
        blocks = [_triangle(block) for block in A.split(sizes.tolist())]
        d, r = X.shape[1], min(X.shape[1], max(len(block) for block in blocks))
        R, u = X.new_zeros(T, r, d), X.new_zeros(T, r)
        rest = 0.0
        for t, block in enumerate(blocks):
            k = min(len(block), d)
            R[t, :k], u[t, :k] = block[:k, :d], block[:k, d]
            rest += float((block[d:, d] ** 2).sum())
        log_weights = float(n.log().sum()) if fit_intercept else 0.0
        rest += _FLOOR * dof
        return cls(R, u, rest, dof, log_weights, x_scale, y_scale, centred.X_mean, centred.y_mean, n)


class Hyperparameters(NamedTuple):
    r"""What is learned, in scaled units.

    Attributes
    ----------
    L : (d, d)
        Any square factor of the covariance, :math:`C = L L^\top`.
    noise, mean_variance, scale : float
        :math:`\sigma^2`, :math:`\tau^2` and s, > 0.
    """

    L: Tensor
    noise: float
    mean_variance: float
    scale: float


class Evidence:
    r"""Log posterior density of the hyperparameters at one point, its derivatives, and the weights it implies.

    Coordinates around the point are a symmetric matrix S and the steps of the three logarithms; S stands for the
    covariance :math:`L e^S L^\top`. They are multiplied by the roots of the information that complete data would carry,
    so that a step along the gradient resembles a step of EM.

    Parameters
    ----------
    data : CompressedTasks
    at : Hyperparameters
    nu : float
        Degrees of freedom of the prior on C, which counts as much as nu tasks; above d - 1.

    Attributes
    ----------
    log_evidence : float
        :math:`\log p(y \mid C, \sigma^2, \tau^2)` of the scaled data, with density one on every intercept.
    value : float
        The same plus the log prior density.
    """

    def __init__(self, data: CompressedTasks, at: Hyperparameters, nu: float) -> None:
        self.data, self.at, self.nu = data, at, nu
        T, r, d = data.R.shape
        A = (data.R.reshape(T * r, d) @ at.L).reshape(T, r, d)
        K = A @ A.mT
        K.diagonal(dim1=1, dim2=2).add_(at.noise)
        factor = torch.linalg.cholesky(K)
        Yv = torch.linalg.solve_triangular(factor, torch.cat([A, data.u[:, :, None]], dim=2), upper=False)
        self._Y, v = Yv[:, :, :d].contiguous(), Yv[:, :, d]  # H_t = Y_t' Y_t
        self._Pi = at.L.T @ at.L / at.mean_variance  # prior precision of m
        root = torch.linalg.cholesky(self._Pi + self._summed(self._Y))
        self._Phi = torch.cholesky_inverse(root)  # posterior covariance of m
        g = self._times(v)
        self._mu = self._Phi @ g
        self._e = v - self._Y @ self._mu
        self._zeta = (self._e[:, None, :] @ self._Y)[:, 0]  # (T, d) posterior means of w_t - m
        inverse = torch.linalg.inv(at.L)
        self._P = inverse @ inverse.T
        log_det_C = 2 * float(torch.linalg.slogdet(at.L).logabsdet)
        logs = 2 * float(factor.diagonal(dim1=1, dim2=2).log().sum()) + (data.dof - T * r) * math.log(at.noise)
        logs += 2 * float(root.diagonal().log().sum()) + d * math.log(at.mean_variance) - log_det_C
        squares = float((v * v).sum() - g @ self._mu) + data.rest / at.noise
        self.log_evidence = -(squares + logs + data.dof * math.log(2 * math.pi) + data.log_weights) / 2
        self.value = self.log_evidence + self._log_prior(log_det_C)

    # --- sums over the rows of all tasks -----------------------------------------------------------------------------

    def _summed(self, Z: Tensor) -> Tensor:
        """(d, d) sum of ``Y_t' Z_t`` for ``Z (T, r, d)``."""
        d = Z.shape[2]
        return self._Y.reshape(-1, d).T @ Z.reshape(-1, d)

    def _times(self, z: Tensor) -> Tensor:
        """(d,) sum of ``Y_t' z_t`` for ``z (T, r)``."""
        return self._Y.reshape(-1, self._Y.shape[2]).T @ z.reshape(-1)

    def _between(self, M: Tensor) -> Tensor:
        """(T, r, r) products ``Y_t M Y_t'`` with ``M (d, d)``."""
        T, r, d = self._Y.shape
        return (self._Y.reshape(T * r, d) @ M).reshape(T, r, d) @ self._Y.mT

    @cached_property
    def _k(self) -> Tensor:
        return self._Y @ self._Y.mT

    @cached_property
    def _h(self) -> Tensor:
        """``sigma^2 K_t^-1`` in the coordinates of its own factor."""
        return torch.eye(self._Y.shape[1], dtype=self._Y.dtype, device=self._Y.device) - self._k

    @cached_property
    def _p(self) -> Tensor:
        return self._between(self._Phi)

    # --- prior -------------------------------------------------------------------------------------------------------

    def _log_prior(self, log_det_C: float) -> float:
        """Inverse Wishart density times that of invariant volume, plus three logistic densities."""
        d, nu, s = len(self._P), self.nu, self.at.scale
        wishart = nu * d / 2 * math.log(nu * s / 2) - float(torch.mvlgamma(torch.tensor(nu / 2).double(), d))
        wishart -= nu / 2 * (log_det_C + s * float(self._P.trace()))
        return wishart + sum(math.log(x) - 2 * math.log1p(x) for x in self._odds)

    @property
    def _odds(self) -> tuple[float, float, float]:
        d = len(self._P)
        return self.at.noise, d * self.at.mean_variance, d * self.at.scale

    # --- derivatives -------------------------------------------------------------------------------------------------

    @cached_property
    def _second_moments(self) -> Tensor:
        """(d, d) what the sum of the posterior second moments of ``w_t - m`` has beyond T times the identity."""
        return self._summed(self._p @ self._Y - self._Y) + self._zeta.T @ self._zeta

    @cached_property
    def _residual(self) -> float:
        """Posterior mean of all squared residuals, over the noise variance."""
        left = (self._e[:, None, :] @ self._h)[:, 0] * self._e
        return float(self._k.diagonal(dim1=1, dim2=2).sum() + left.sum() + (self._p * self._h).sum()) + (
            self.data.rest / self.at.noise
        )

    @cached_property
    def _mean_square(self) -> float:
        """Posterior mean of ``|m|^2``, over its prior variance."""
        return float(self._mu @ self._Pi @ self._mu + (self._Phi * self._Pi).sum())

    @cached_property
    def gradient(self) -> Tensor:
        """(d * d + 3,) gradient of ``value``."""
        d = len(self._P)
        eye = torch.eye(d, dtype=self._P.dtype, device=self._P.device)
        S = (self._second_moments + self.nu * (self.at.scale * self._P - eye)) / 2
        logs = [
            (self._residual - self.data.dof) / 2,
            (self._mean_square - d) / 2,
            self.nu / 2 * (d - self.at.scale * float(self._P.trace())),
        ]
        logs = [slope + (1 - x) / (1 + x) for slope, x in zip(logs, self._odds, strict=True)]
        return self._packed(S, logs) / self._metric

    @cached_property
    def _metric(self) -> Tensor:
        """(d * d + 3,) roots of the information of complete data."""
        T, d = self._Y.shape[0], len(self._P)
        information = [max(self.data.dof, 1.0), d, self.nu * d]
        S = torch.full_like(self._P, T + self.nu)
        return (self._packed(S, information) / 2).sqrt()

    def _packed(self, S: Tensor, logs: list[float]) -> Tensor:
        return torch.cat([(S + S.T).flatten() / 2, S.new_tensor(logs)])

    def curvature(self, x: Tensor) -> Tensor:
        """(d * d + 3,) minus the second derivatives, times ``x``."""
        d = len(self._P)
        x = x / self._metric
        S, (noise, variance, scale) = x[:-3].reshape(d, d), x[-3:].tolist()
        # D is minus the change of H_t, and all other changes follow from it.
        D = self._between(S) + noise * self._h
        D_e = (D @ self._e[:, :, None])[:, :, 0]
        Pi_mu = self._Pi @ self._mu
        d_mu = self._Phi @ (variance * Pi_mu - self._times(D_e))
        d_Phi = self._Phi @ (variance * self._Pi + self._summed(D @ self._Y)) @ self._Phi
        De = D_e + self._Y @ d_mu  # minus the change of e, up to a rotation
        d_zeta = -(De[:, None, :] @ self._Y)[:, 0]
        Dp = D @ self._p
        d_moments = self._summed((D - Dp - Dp.mT + self._between(d_Phi)) @ self._Y) + 2 * d_zeta.T @ self._zeta
        q = self._between(d_Phi)
        Dp = D @ self._p
        d_moments = self._summed((D - Dp - Dp.mT + q) @ self._Y) + 2 * d_zeta.T @ self._zeta
        W = self.at.scale * self._P
        bend = self.nu * (W @ S - scale * W) - d_moments - self._second_moments @ S
        ke = (self._k @ self._e[:, :, None])[:, :, 0]
        pk = self._p @ self._k
        along = float(Pi_mu @ d_mu)
        d_residual = (D * (self._k + self._p - pk - pk.mT)).sum() - (q * self._h).sum() - 2 * (ke * De).sum()
        d_residual += (D_e * self._e).sum() + (self._second_moments * S).sum()
        logs = [
            float(d_residual) + 2 * along + noise * self.data.rest / self.at.noise,
            variance * self._mean_square - 2 * along - float((d_Phi * self._Pi).sum()),
            self.nu * float(scale * W.trace() - (W * S).sum()),
        ]
        steps = (noise, variance, scale)
        logs = [b / 2 + 2 * x / (1 + x) ** 2 * step for b, x, step in zip(logs, self._odds, steps, strict=True)]
        return self._packed(bend / 2, logs) / self._metric

    def moved(self, x: Tensor) -> Evidence:
        """The point with the coordinates ``x (d * d + 3,)`` around this one."""
        d = len(self._P)
        x = x / self._metric
        L = self.at.L @ torch.matrix_exp(x[:-3].reshape(d, d) / 2)
        noise, variance, scale = x[-3:].exp().tolist()
        at = self.at
        point = Hyperparameters(L, at.noise * noise, at.mean_variance * variance, at.scale * scale)
        return Evidence(self.data, point, self.nu)

    def em_step(self) -> Evidence:
        r"""One round of EM: C from the posterior second moments and its prior, then the variances and the scale.

        .. math:: C \leftarrow \frac{\sum_t E[(w_t - m)(w_t - m)^\top] + \nu s I}{T + \nu}

        The log posterior density cannot fall.
        """
        T, d, nu, at = self._Y.shape[0], len(self._P), self.nu, self.at
        eye = torch.eye(d, dtype=self._P.dtype, device=self._P.device)
        L = at.L @ torch.linalg.cholesky((T * eye + self._second_moments + nu * at.scale * self._P) / (T + nu))
        inverse = torch.linalg.inv(L)
        noise = _best_scale(self.data.dof, self._residual * at.noise, 1.0)
        variance = _best_scale(d, self._mean_square * at.mean_variance, d)
        scale = 1 / _best_scale(nu * d, nu * float((inverse**2).sum()), 1 / d)
        return Evidence(self.data, Hyperparameters(L, noise, variance, scale), nu)

    # --- what follows for the weights --------------------------------------------------------------------------------

    @property
    def mean(self) -> Tensor:
        """(d,) posterior mean of m, in scaled units."""
        return self.at.L @ self._mu

    @property
    def weights(self) -> Tensor:
        """(d, T) posterior means of the weights, in scaled units."""
        return self.at.L @ (self._mu + self._zeta).T

    def covariances(self, widened: bool = True) -> Tensor:
        r"""(T, d, d) posterior covariances of the weights, in scaled units.

        Given the hyperparameters they are :math:`B_t + B_t \Phi^{-1} B_t` with :math:`B_t = I - H_t` in the coordinates
        where C is the identity: what task t leaves open around m, and what all leave open about m.

        C is not known, however. Near its estimate :math:`C^{-1}` is about as uncertain as a Wishart matrix of mean I
        with N degrees of freedom: nu from the prior, and from task t as many as the square of :math:`H_t` says it has
        seen of its directions, :math:`\operatorname{tr} H_t^2 / d`. To first order in 1 / N that adds

        .. math:: \frac1N B_t \bigl( \operatorname{tr}(M_t) I + M_t \bigr) B_t , \qquad
                  M_t = E[(w_t - m)(w_t - m)^\top],

        one part because the posterior mean would be another, one because the posterior covariance would be larger.

        Parameters
        ----------
        widened : bool
            Whether to count the uncertainty of C.
        """
        d = len(self._P)
        H = self._Y.mT @ self._Y
        eye = torch.eye(d, dtype=H.dtype, device=H.device)
        B = eye - H
        inner = B @ self._Phi @ B
        if widened:
            N = self.nu + float((H * H).sum()) / d
            M = B + H @ self._Phi @ H + self._zeta[:, :, None] * self._zeta[:, None, :]
            trace = M.diagonal(dim1=1, dim2=2).sum(1)
            inner = inner + B @ (trace[:, None, None] * eye + M) @ B / N
        return self.at.L @ (B + inner) @ self.at.L.T


def start(data: CompressedTasks, nu: float) -> Evidence:
    """Where the search begins: half of the variance of y is noise, m and the tasks explain as much as there is."""
    d = data.R.shape[2]
    L = torch.eye(d, dtype=data.R.dtype, device=data.R.device) / math.sqrt(d)
    return Evidence(data, Hyperparameters(L, 0.5, 1 / d, 1 / d), nu)


def _best_scale(n: float, b: float, c: float) -> float:
    r"""The x > 0 that maximises :math:`-\tfrac n2 \log x - \tfrac{b}{2x} + \log cx - 2 \log(1 + cx)`.

    A variance of n values with sum of squares b, whose logarithm is logistic around -log c: a root of a square.
    """
    p = n - 2 - b * c
    q = 4 * (n + 2) * c * b
    root = math.sqrt(p * p + q)
    return 2 * b / (p + root) if p > 0 else (root - p) / (2 * (n + 2) * c)


def _triangle(A: Tensor) -> Tensor:
    """The rows of a design with the targets beside it; if there are more than features, as few as do the same."""
    return A if A.shape[0] < A.shape[1] else torch.linalg.qr(A, mode="r").R


def _scale(centred: Tensor, values: Tensor, s: Tensor, dof: float) -> Tensor:
    """(k,) standard deviations within tasks; where these are zero, over all rows; where these are, too, the size or 1.

    Differences of the order of rounding count as none.
    """
    mean = (s[:, None] * values).sum(0) / s.sum()
    size = (s[:, None] * values**2).sum(0).div(s.sum()).sqrt()
    within = ((s[:, None] * centred**2).sum(0) / max(dof, 1.0)).sqrt()
    overall = ((s[:, None] * (values - mean) ** 2).sum(0) / s.sum()).sqrt()
    noise = 8 * torch.finfo(values.dtype).eps * size
    scale = torch.where(within > noise, within, torch.where(overall > noise, overall, size))
    return torch.where(scale > 0, scale, 1.0)
