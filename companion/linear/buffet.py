r"""How many latent tasks? A sampler that does not have to be told (Passos, Rai, Wainer and Daumé III, 2012).

Weights are :math:`w_t = \sum_k z_{kt} a_{kt} l_k` with codes of zeros and ones times numbers, and

.. math:: Z \sim \text{IBP}(\alpha) , \quad a_{kt} \sim N(0, 1) , \quad l_k \sim N(0, \sigma_l^2 I) , \quad
   y_{ti} \sim N(x_{ti}^\top w_t + b_t,\, \sigma^2) .

In the Indian buffet process (Griffiths and Ghahramani, 2011) a task uses a latent task that m others use with
probability m / T, and a Poisson(:math:`\alpha / T`) number of new ones. Their number has no bound; about
:math:`\alpha H_T` of them are expected before any data are seen, with :math:`H_T = 1 + 1/2 + \dots + 1/T`.

One sweep of the Gibbs sampler draws, task by task, which latent tasks it uses and the ones it has to itself; then all
latent tasks; then the variances and :math:`\alpha`. Numbers a are integrated out where the use of a latent task is
decided, and latent tasks where their number is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from companion.penalties.clustered import check_count
from companion.tasks import Tasks

Array = NDArray[np.float64]
Draw = np.random.Generator
# Inverse gamma priors of both variances and gamma prior of alpha: worth two observations each, and one.
_SHAPE = 1.0


class TaskRows(NamedTuple):
    """What the likelihood needs of a task's rows, about their means where there is an intercept."""

    G: Array  # (d, d) X'X
    c: Array  # (d,) X'y
    yy: float
    n: int  # rows, less one for the intercept
    values: Array  # (d,) eigenvalues of G
    Q: Array  # (d, d) eigenvectors
    x_mean: Array
    y_mean: float

    @classmethod
    def of(cls, X: Array, y: Array, fit_intercept: bool) -> TaskRows:
        """Rows ``X (n, d)`` and targets ``y (n,)``."""
        x_mean, y_mean = (X.mean(0), float(y.mean())) if fit_intercept else (np.zeros(X.shape[1]), 0.0)
        X, y = X - x_mean, y - y_mean
        G = X.T @ X
        values, Q = np.linalg.eigh(G)
        return cls(G, X.T @ y, float(y @ y), len(y) - int(fit_intercept), values.clip(min=0), Q, x_mean, y_mean)


@dataclass
class Buffet:
    """State of the sampler.

    Attributes
    ----------
    rows : list of T TaskRows
    L : (d, K) array
        Latent tasks in use.
    S : (K, T) array
        Codes; zero where a latent task is not used.
    noise, size : float
        Variances of the noise and of the entries of L.
    alpha : float
        Concentration of the process.
    """

    rows: list[TaskRows]
    L: Array
    S: Array
    noise: float
    size: float
    alpha: float
    rng: Draw = field(repr=False)

    @classmethod
    def start(cls, rows: list[TaskRows], rng: Draw) -> Buffet:
        """Without latent tasks; the variance of the targets is all noise."""
        d, T = len(rows[0].c), len(rows)
        noise = sum(r.yy for r in rows) / max(sum(r.n for r in rows), 1)
        return cls(rows, np.zeros((d, 0)), np.zeros((0, T)), noise if noise > 0 else 1.0, 1.0, 1.0, rng)

    def sweep(self) -> None:
        """One draw of everything."""
        for t in range(len(self.rows)):
            self.draw_use(t)
            self.draw_own(t)
        self.draw_latent_tasks()
        self.draw_variances()

    def draw_use(self, t: int) -> None:
        """Which latent tasks of others task t uses, and how much of each; the odds have the numbers integrated out."""
        row, others = self.rows[t], (self.S != 0).sum(1) - (self.S[:, t] != 0)
        for k in np.flatnonzero(others > 0).tolist():
            self.S[k, t] = 0.0
            l = self.L[:, k]
            precision = 1 + float(l @ row.G @ l) / self.noise
            pull = float(l @ (row.c - row.G @ (self.L @ self.S[:, t]))) / self.noise
            log_odds = pull**2 / (2 * precision) - math.log(precision) / 2
            log_odds += math.log(others[k] / (len(self.rows) - others[k]))
            if math.log(self.rng.random()) < -np.logaddexp(0.0, -log_odds):
                self.S[k, t] = pull / precision + self.rng.normal() / math.sqrt(precision)

    def draw_own(self, t: int) -> None:
        """The latent tasks that only task t uses: their number and codes by a proposal from the prior.

        What they add to the weights, :math:`u = \\sum_k a_k l_k`, is normal with variance c for given codes. The
        proposal is accepted by the likelihood of c, in which u is integrated out. Then the latent tasks are drawn.
        """
        row = self.rows[t]
        own = ((self.S != 0).sum(1) == 1) & (self.S[:, t] != 0)
        codes = self.S[own, t]
        self.L, self.S = self.L[:, ~own], self.S[~own]
        h = row.Q.T @ (row.c - row.G @ (self.L @ self.S[:, t]))
        proposal = self.rng.normal(size=self.rng.poisson(self.alpha / len(self.rows)))
        gain = self._log_likelihood(row, h, proposal) - self._log_likelihood(row, h, codes)
        if math.log(self.rng.random()) < gain:
            codes = proposal
        if len(codes):
            self._append_own(t, row, h, codes)

    def _log_likelihood(self, row: TaskRows, h: Array, codes: Array) -> float:
        """Of a task whose own latent tasks have these codes, up to a constant; ``h (d,)`` is X'e in eigenvectors."""
        c = self.size * float(codes @ codes)
        spread = 1 + c * row.values / self.noise
        return float((h**2 * c / self.noise**2 / spread - np.log(spread)).sum()) / 2

    def _append_own(self, t: int, row: TaskRows, h: Array, codes: Array) -> None:
        c = self.size * float(codes @ codes)
        precision = 1 / c + row.values / self.noise
        u = row.Q @ (h / self.noise / precision + self.rng.normal(size=len(h)) / np.sqrt(precision))
        prior = math.sqrt(self.size) * self.rng.normal(size=(len(h), len(codes)))
        # Draws from the prior, moved so that they add up to u, are draws given u.
        L = prior + np.outer(u - prior @ codes, codes) / float(codes @ codes)
        S = np.zeros((len(codes), len(self.rows)))
        S[:, t] = codes
        self.L, self.S = np.hstack([self.L, L]), np.vstack([self.S, S])

    def draw_latent_tasks(self) -> None:
        """All latent tasks at once, given the codes: one normal distribution of dimension d K."""
        d, K = self.L.shape
        if K == 0:
            return
        precision, pull = np.eye(d * K) / self.size, np.zeros((K, d))
        for row, s in zip(self.rows, self.S.T, strict=True):
            used = np.flatnonzero(s)
            pull[used] += np.outer(s[used], row.c) / self.noise
            for j in used.tolist():
                for k in used.tolist():
                    precision[j * d : (j + 1) * d, k * d : (k + 1) * d] += s[j] * s[k] / self.noise * row.G
        factor = np.linalg.cholesky(precision)
        centre = np.linalg.solve(factor, pull.ravel())
        self.L = np.linalg.solve(factor.T, centre + self.rng.normal(size=d * K)).reshape(K, d).T

    def draw_variances(self) -> None:
        """Both variances and alpha, from their conjugate distributions."""
        W = self.L @ self.S
        squares = sum(r.yy - 2 * r.c @ w + w @ r.G @ w for r, w in zip(self.rows, W.T, strict=True))
        n, T = sum(r.n for r in self.rows), len(self.rows)
        self.noise = (_SHAPE + squares / 2) / self.rng.gamma(_SHAPE + n / 2)
        self.size = (_SHAPE + float((self.L**2).sum()) / 2) / self.rng.gamma(_SHAPE + self.L.size / 2)
        harmonic = float((1 / np.arange(1, T + 1)).sum())
        self.alpha = self.rng.gamma(_SHAPE + self.L.shape[1]) / (_SHAPE + harmonic)


@dataclass(frozen=True)
class LatentTaskPosterior:
    """What the sampler saw after its burn-in.

    Attributes
    ----------
    n_latent : (n_kept,) int64 array
        Number of latent tasks in use, sweep by sweep.
    n_shared : (n_kept,) int64 array
        Number of those that two tasks or more use.
    coef : (T, d) array, intercept : (T,) array
        Mean weights and the intercepts that belong to them.
    overlap : (T, T) array
        Mean number of latent tasks that two tasks both use.
    noise_variance, alpha : (n_kept,) arrays
    """

    n_latent: NDArray[np.int64]
    n_shared: NDArray[np.int64]
    coef: Array
    intercept: Array
    overlap: Array
    noise_variance: Array
    alpha: Array


def sample_latent_tasks(
    tasks: Tasks,
    n_sweeps: int = 1000,
    burn_in: int = 500,
    fit_intercept: bool = True,
    random_state: int = 0,
    progress: bool = False,
) -> LatentTaskPosterior:
    """Draw from the posterior of latent tasks whose number is not given.

    Meant for a few dozen tasks and features: a sweep costs a Cholesky factor of order d K. Scale the features, since
    all of them have the same prior.

    Parameters
    ----------
    tasks : Tasks
        Without sample weights.
    n_sweeps, burn_in : int
        Sweeps in all, and how many of them are left out at the start.
    fit_intercept : bool
        Give every task an intercept with a flat prior.
    random_state : int
    progress : bool
        Show a bar.
    """
    check_count("n_sweeps", n_sweeps)
    if not 0 <= burn_in < n_sweeps:
        raise ValueError(f"burn_in must be at least 0 and less than n_sweeps={n_sweeps}; got {burn_in!r}")
    if tasks.is_weighted:
        raise ValueError("sample weights have no place in this likelihood: leave them out")
    numbers = tasks.to(device="cpu", dtype=torch.float64)
    pairs = [tuple(part.numpy() for part in numbers.tensors(t)) for t in range(tasks.n_tasks)]
    rows = [TaskRows.of(X, y, fit_intercept) for X, y in pairs]
    state = Buffet.start(rows, np.random.default_rng(random_state))
    kept: list[tuple[int, int, float, float]] = []
    W, overlap = np.zeros((tasks.n_features, tasks.n_tasks)), np.zeros((tasks.n_tasks, tasks.n_tasks))
    for sweep in tqdm(range(n_sweeps), disable=not progress, unit="sweep"):
        state.sweep()
        if sweep >= burn_in:
            used = (state.S != 0).astype(float)
            kept.append((len(used), int((used.sum(1) > 1).sum()), state.noise, state.alpha))
            W += state.L @ state.S
            overlap += used.T @ used
    n_latent, n_shared, noise, alpha = (np.array(column) for column in zip(*kept, strict=True))
    W /= len(kept)
    intercept = np.array([r.y_mean - r.x_mean @ w for r, w in zip(rows, W.T, strict=True)])
    return LatentTaskPosterior(n_latent, n_shared, W.T.copy(), intercept, overlap / len(kept), noise, alpha)
