r"""The hierarchical Gaussian: what all tasks together say about the distribution that their weights come from.

.. math::
   y_{ti} = x_{ti}^\top w_t + b_t + \varepsilon_{ti}, \quad
   \varepsilon_{ti} \sim N(0, \sigma^2 / s_{ti}), \quad
   w_t \sim N(m, C), \quad m \sim N(0, \tau^2 I), \quad b_t \text{ flat}

Intercepts, weights and m are integrated out. What remains are the hyperparameters: C, :math:`\sigma^2`, :math:`\tau^2`
and the scale s of the prior on C, an inverse Wishart distribution with :math:`\nu` degrees of freedom and scale matrix
:math:`\nu s I`. The logarithms of :math:`\sigma^2`, :math:`d \tau^2` and :math:`d s` have logistic distributions, which
keep all of them away from zero and infinity. Densities are those of the logarithms (for C, of the volume that linear
maps leave as it is), so that no unit matters.

With :math:`C = L L^\top` matrices are written in the coordinates :math:`L^{-1} w`, where C is the identity. There task
t knows :math:`H_t = L^\top X_t^\top K_t^{-1} X_t L`, with :math:`K_t = X_t C X_t^\top + \sigma^2 I`: a matrix with
eigenvalues between 0 (this direction is left to the other tasks) and 1 (this task says it all).
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from companion.solvers._threads import threads_for
from companion.solvers.compressed_tasks import CompressedTasks
from companion.solvers.trust_region import maximise

__all__ = ["CompressedTasks", "Evidence", "Hyperparameters", "learn_hyperparameters", "start"]


class Hyperparameters(NamedTuple):
    r"""What is learned, in the units of the compressed data.

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


def learn_hyperparameters(data: CompressedTasks, nu: float, tol: float, max_iter: int) -> tuple[Evidence, float, int]:
    """Maximise the log posterior density by Newton's method, which ends where EM would, in fewer passes.

    Parameters
    ----------
    nu : float
        Degrees of freedom of the prior on C: it counts as much as nu tasks. Above d - 1.
    tol : float
        Gain of log density that may be left, as far as the second derivatives tell.

    Returns
    -------
    the best point, the gain that is left there, Newton steps
    """
    T, _, d = data.R.shape
    with threads_for(data.R):
        return maximise(start(data, nu), tol, max_iter, radius=math.sqrt((T + nu) * d / 2))


def start(data: CompressedTasks, nu: float) -> Evidence:
    """Half of the variance of y is noise; m, and the differences between tasks, explain as much as there is."""
    d = data.R.shape[2]
    L = torch.eye(d, dtype=data.R.dtype, device=data.R.device) / math.sqrt(d)
    return Evidence(data, Hyperparameters(L, 0.5, 1 / d, 1 / d), nu)


class Evidence:
    r"""Log posterior density of the hyperparameters at one point, its derivatives, and the weights it implies.

    Coordinates around the point are a symmetric matrix S, which stands for the covariance :math:`L e^S L^\top`, and the
    steps of three logarithms. They are multiplied by the roots of the information that complete data would carry, so
    that a step along the gradient resembles a step of EM.

    Parameters
    ----------
    data : CompressedTasks
    at : Hyperparameters
    nu : float
        Degrees of freedom of the prior on C.

    Attributes
    ----------
    log_evidence : float
        :math:`\log p(y \mid C, \sigma^2, \tau^2)` of the compressed data, with density one on every intercept.
    value : float
        The same plus the log prior density. NaN where rounding has made a matrix indefinite.
    """

    def __init__(self, data: CompressedTasks, at: Hyperparameters, nu: float) -> None:
        self.data, self.at, self.nu = data, at, nu
        T, r, d = data.R.shape
        A = (data.R.reshape(T * r, d) @ at.L).reshape(T, r, d)
        K = A @ A.mT
        K.diagonal(dim1=1, dim2=2).add_(at.noise)
        factor = _cholesky(K)
        Yv = torch.linalg.solve_triangular(factor, torch.cat([A, data.u[:, :, None]], dim=2), upper=False)
        self._Y, v = Yv[:, :, :d].contiguous(), Yv[:, :, d]  # H_t = Y_t' Y_t
        self._Pi = at.L.T @ at.L / at.mean_variance  # prior precision of m
        root = _cholesky(self._Pi + self._summed(self._Y))
        self._Phi = torch.cholesky_inverse(root)  # posterior covariance of m
        g = self._times(v)
        self._mu = self._Phi @ g
        self._e = v - self._Y @ self._mu
        self._zeta = (self._e[:, None, :] @ self._Y)[:, 0]  # (T, d) posterior means of w_t - m
        inverse = torch.linalg.inv(at.L)
        self._P = inverse @ inverse.T  # (L' L)^-1
        log_det_C = 2 * float(torch.linalg.slogdet(at.L).logabsdet)
        logs = 2 * float(factor.diagonal(dim1=1, dim2=2).log().sum()) + (data.dof - T * r) * math.log(at.noise)
        logs += 2 * float(root.diagonal().log().sum()) + d * math.log(at.mean_variance) - log_det_C
        squares = float((v * v).sum() - g @ self._mu) + data.rest / at.noise
        self.log_evidence = -(squares + logs + data.dof * math.log(2 * math.pi) + data.log_n) / 2
        self.value = self.log_evidence + self._log_prior(log_det_C)

    def moved(self, x: Tensor) -> Evidence:
        """The point with the coordinates ``x (d * d + 3,)`` around this one."""
        S, steps = self._unpacked(x)
        noise, variance, scale = (math.exp(min(max(step, -20.0), 20.0)) for step in steps)
        at = self.at
        point = Hyperparameters(
            at.L @ torch.matrix_exp(S / 2), at.noise * noise, at.mean_variance * variance, at.scale * scale
        )
        return Evidence(self.data, point, self.nu)

    def em_step(self) -> Evidence:
        r"""One round of EM: C from the posterior second moments and its prior, then the variances and the scale.

        .. math:: C \leftarrow \frac{\sum_t E[(w_t - m)(w_t - m)^\top] + \nu s I}{T + \nu}

        The log posterior density cannot fall.
        """
        T, d, nu, at = self._Y.shape[0], len(self._P), self.nu, self.at
        eye = torch.eye(d, dtype=self._P.dtype, device=self._P.device)
        L = at.L @ _cholesky((T * eye + self._second_moments + nu * at.scale * self._P) / (T + nu))
        precision = float((torch.linalg.inv(L) ** 2).sum())  # trace of the inverse of C
        noise = _best_scale(self.data.dof, self._residual * at.noise, 1.0)
        variance = _best_scale(d, self._mean_square * at.mean_variance, d)
        scale = 1 / _best_scale(nu * d, nu * precision, 1 / d)
        return Evidence(self.data, Hyperparameters(L, noise, variance, scale), nu)

    # --- what follows for the weights --------------------------------------------------------------------------------

    @property
    def mean(self) -> Tensor:
        """(d,) posterior mean of m."""
        return self.at.L @ self._mu

    @property
    def weights(self) -> Tensor:
        """(d, T) posterior means of the weights."""
        return self.at.L @ (self._mu + self._zeta).T

    def covariances(self, widened: bool = True) -> Tensor:
        r"""(T, d, d) posterior covariances of the weights.

        Given the hyperparameters, in the coordinates where C is the identity, they are :math:`B_t + B_t \Phi^{-1} B_t`
        with :math:`B_t = I - H_t`: what task t leaves open around m, and what all tasks leave open about m
        (:math:`\Phi` is the posterior precision of m).

        But C is not known. Given the weights, :math:`C^{-1}` has a Wishart distribution of mean I, with a degree of
        freedom for each task and nu from the prior. A task counts only as far as its data determine its weights: N = nu
        + the sum of :math:`\operatorname{tr} H_t^2 / d`. To first order in 1 / N this adds

        .. math:: \tfrac1N B_t \bigl( \operatorname{tr}(M_t) I + M_t \bigr) B_t , \qquad
                  M_t = E[(w_t - m)(w_t - m)^\top],

        one part because the posterior means depend on C, one because the covariances do and are convex in
        :math:`C^{-1}`.

        Parameters
        ----------
        widened : bool
            Whether to count that C is uncertain.
        """
        d = len(self._P)
        H = self._Y.mT @ self._Y
        eye = torch.eye(d, dtype=H.dtype, device=H.device)
        B = eye - H
        inner = B + B @ self._Phi @ B
        if widened:
            N = self.nu + float((H * H).sum()) / d
            M = B + H @ self._Phi @ H + self._zeta[:, :, None] * self._zeta[:, None, :]
            trace = M.diagonal(dim1=1, dim2=2).sum(1)
            inner = inner + B @ (trace[:, None, None] * eye + M) @ B / N
        return self.at.L @ inner @ self.at.L.T

    # --- prior -------------------------------------------------------------------------------------------------------

    def _log_prior(self, log_det_C: float) -> float:
        d, nu, s = len(self._P), self.nu, self.at.scale
        wishart = nu * d / 2 * math.log(nu * s / 2) - float(
            torch.mvlgamma(torch.tensor(nu / 2, dtype=torch.float64), d)
        )
        wishart -= nu / 2 * (log_det_C + s * float(self._P.trace()))
        return wishart + sum(math.log(x) - 2 * math.log1p(x) for x in self._odds)

    @property
    def _odds(self) -> tuple[float, float, float]:
        """The variances as multiples of the medians of their priors: their logarithms are logistic."""
        d = len(self._P)
        return self.at.noise, d * self.at.mean_variance, d * self.at.scale

    # --- first derivatives -------------------------------------------------------------------------------------------

    @cached_property
    def gradient(self) -> Tensor:
        """(d * d + 3,) gradient of ``value``."""
        d = len(self._P)
        eye = torch.eye(d, dtype=self._P.dtype, device=self._P.device)
        S = (self._second_moments + self.nu * (self.at.scale * self._P - eye)) / 2
        slopes = (
            self._residual - self.data.dof,
            self._mean_square - d,
            self.nu * (d - self.at.scale * float(self._P.trace())),
        )
        logs = [slope / 2 + (1 - x) / (1 + x) for slope, x in zip(slopes, self._odds, strict=True)]
        return self._packed(S, logs) / self._metric

    @cached_property
    def _second_moments(self) -> Tensor:
        """(d, d) posterior second moments of ``w_t - m``, summed, less T times the identity."""
        return self._summed(self._p @ self._Y - self._Y) + self._zeta.T @ self._zeta

    @cached_property
    def _residual(self) -> float:
        """Posterior mean of the squared residuals, over the noise variance."""
        left = (self._e[:, None, :] @ self._h)[:, 0] * self._e
        inside = self._k.diagonal(dim1=1, dim2=2).sum() + left.sum() + (self._p * self._h).sum()
        return float(inside) + self.data.rest / self.at.noise

    @cached_property
    def _mean_square(self) -> float:
        """Posterior mean of ``|m|^2``, over its prior variance."""
        return float(self._mu @ self._Pi @ self._mu + (self._Phi * self._Pi).sum())

    # --- second derivatives ------------------------------------------------------------------------------------------

    def curvature(self, x: Tensor) -> Tensor:
        """(d * d + 3,) minus the second derivatives, times ``x``: six products with the rows, no decomposition."""
        S, (noise, variance, scale) = self._unpacked(x)
        # Along x, H_t changes by -Y_t' D_t Y_t and the posterior of m by d_mu and d_Phi; the rest follows.
        D = self._between(S) + noise * self._h
        De = (D @ self._e[:, :, None])[:, :, 0]
        Pi_mu = self._Pi @ self._mu
        d_mu = self._Phi @ (variance * Pi_mu - self._times(De))
        d_Phi = self._Phi @ (variance * self._Pi + self._summed(D @ self._Y)) @ self._Phi
        fall = De + self._Y @ d_mu
        d_zeta = -(fall[:, None, :] @ self._Y)[:, 0]
        q, Dp, W = self._between(d_Phi), D @ self._p, self.at.scale * self._P
        d_moments = self._summed((D - Dp - Dp.mT + q) @ self._Y) + 2 * d_zeta.T @ self._zeta
        bend = self.nu * (W @ S - scale * W) - d_moments - self._second_moments @ S
        pk = self._p @ self._k
        d_residual = (D * (self._k + self._p - pk - pk.mT)).sum() - (q * self._h).sum() + (De * self._e).sum()
        d_residual += (self._second_moments * S).sum() - 2 * ((self._k @ self._e[:, :, None])[:, :, 0] * fall).sum()
        along = 2 * float(Pi_mu @ d_mu)
        bends = (
            float(d_residual) + along + noise * self.data.rest / self.at.noise,
            variance * self._mean_square - along - float((d_Phi * self._Pi).sum()),
            self.nu * float(scale * W.trace() - (W * S).sum()),
        )
        steps = (noise, variance, scale)
        logs = [b / 2 + 2 * x / (1 + x) ** 2 * step for b, x, step in zip(bends, self._odds, steps, strict=True)]
        return self._packed(bend / 2, logs) / self._metric

    # --- coordinates, and products over the rows of all tasks --------------------------------------------------------

    @cached_property
    def _metric(self) -> Tensor:
        """(d * d + 3,) roots of the information of complete data."""
        T, d = self._Y.shape[0], len(self._P)
        information = [max(self.data.dof, 1.0), float(d), self.nu * d]
        return (self._packed(torch.full_like(self._P, T + self.nu), information) / 2).sqrt()

    def _packed(self, S: Tensor, logs: list[float]) -> Tensor:
        return torch.cat([(S + S.T).flatten() / 2, S.new_tensor(logs)])

    def _unpacked(self, x: Tensor) -> tuple[Tensor, list[float]]:
        x = x / self._metric
        return x[:-3].reshape(self._P.shape), x[-3:].tolist()

    def _summed(self, Z: Tensor) -> Tensor:
        """(d, d) sum of ``Y_t' Z_t`` for ``Z (T, r, d)``."""
        return self._Y.reshape(-1, Z.shape[2]).T @ Z.reshape(-1, Z.shape[2])

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
        """``sigma^2 K_t^-1``, between the Cholesky factors of K_t."""
        return torch.eye(self._Y.shape[1], dtype=self._Y.dtype, device=self._Y.device) - self._k

    @cached_property
    def _p(self) -> Tensor:
        return self._between(self._Phi)


def _best_scale(n: float, b: float, c: float) -> float:
    r"""The x > 0 that maximises :math:`-\tfrac n2 \log x - \tfrac{b}{2x} + \log cx - 2 \log(1 + cx)`.

    That is the variance of n numbers whose squares sum to b, if the logarithm of c times it is logistic.
    """
    p = n - 2 - b * c
    root = math.sqrt(p**2 + 4 * (n + 2) * c * b)
    return 2 * b / (p + root) if p > 0 else (root - p) / (2 * (n + 2) * c)


def _cholesky(A: Tensor) -> Tensor:
    """The lower factor; NaN where A is not positive definite."""
    factor, info = torch.linalg.cholesky_ex(A)
    return torch.where((info == 0)[..., None, None], factor, torch.nan)
