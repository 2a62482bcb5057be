r"""When a block norm is worse than the lasso: the probability to find the right features of two tasks that overlap.

Two tasks of n rows each, with independent Gaussian designs, have s relevant features each, of which the share
``overlap`` is common to both. In the rescaled sample size :math:`\theta = n / (s \log(p - (2 - \alpha) s))`, with p
features and overlap :math:`\alpha`, every method turns from failure to success at a threshold of its own, the same for
every p (Negahban and Wainwright, 2011; Jalali et al., 2010).
"""

from __future__ import annotations

import functools
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from companion.experiments._frame import Experiment, Unit, UnitResult
from companion.losses import SquaredLoss
from companion.penalties import L1, BlockSparse, Dirty, NormPenalty
from companion.solvers import Problem, minimise
from companion.tasks import Tasks

Array = NDArray[np.float64]
SPARSITY, NOISE_VARIANCE = 0.1, 0.1
DIRTY, TUNED = "dirty", "dirty, tuned ratio"
TOL, ZERO = 1e-9, 1e-3
MAX_ITER = 100_000
CALIBRATION, MEASUREMENT = 0, 1  # first number of the seed of a draw
#: Rescaled sample size at which theory places the transition, by overlap; the papers have none for l1/l2.
THRESHOLDS: dict[str, Callable[[float], float]] = {
    "l1": lambda overlap: 2.0,
    "l1/linf": lambda overlap: 4 - 3 * overlap,
    DIRTY: lambda overlap: 2 - overlap,
}


class Draw(NamedTuple):
    """Data of two tasks and the truth behind them."""

    tasks: Tasks
    W: Array  # (p, 2), entries -1, 0, +1
    rate: float  # sqrt(log(p - |union of the supports|) / n), to which theory makes penalties proportional


class Found(NamedTuple):
    """Whether a fit found the support, by either rule, and its relative duality gap."""

    signed: bool
    union: bool
    gap: float


def draw_two_tasks(
    p: int,
    overlap: float,
    theta: float,
    rng: np.random.Generator,
    sparsity: float = SPARSITY,
    noise_variance: float = NOISE_VARIANCE,
) -> Draw:
    r"""Two tasks :math:`y_t = X_t w_t + \varepsilon_t` whose supports overlap.

    Parameters
    ----------
    p : int
        Features.
    overlap : float
        Share of a task's relevant features that the other task uses too, 0..1.
    theta : float
        Rescaled sample size, > 0; it decides n, which is rounded up.
    sparsity : float
        Share of the features that are relevant to a task.

    Returns
    -------
    Draw
        Entries of ``X_t (n, p)`` are N(0, 1). Nonzero weights are -1 or +1, with signs independent of each other, also
        in the features that both tasks use.
    """
    s = round(sparsity * p)
    common = round(overlap * s)
    rows = rng.permutation(p)[: 2 * s - common]  # union of the supports: first those of task 0, then of task 1 alone
    scale = math.log(p - len(rows))
    n = math.ceil(theta * s * scale)
    W = np.zeros((p, 2))
    W[rows[:s], 0] = rng.choice([-1.0, 1.0], s)
    W[np.concatenate([rows[:common], rows[s:]]), 1] = rng.choice([-1.0, 1.0], s)
    X = rng.standard_normal((2, n, p))
    noise = math.sqrt(noise_variance) * rng.standard_normal((2, n))
    tasks = Tasks.from_list([(X[t], X[t] @ W[:, t] + noise[t]) for t in range(2)])
    return Draw(tasks, W, math.sqrt(scale / n))


def signed_support(estimate: Array, W: Array) -> bool:
    """Whether every entry of ``estimate (p, 2)`` has the sign of the truth ``W (p, 2)``, zeros included."""
    return bool((np.sign(estimate) == np.sign(W)).all())


def union_support(estimate: Array, W: Array, zero: float) -> bool:
    """Whether the rows in use are the right ones, with the right sign wherever an entry is the largest of its row.

    This is the most that can be asked of a block norm, which selects rows: an l1/linf solution has entries in both
    tasks for a feature that one of them uses. Entries within ``zero`` of the row's maximum attain it.
    """
    rows = (W != 0).any(axis=1)
    size = np.abs(estimate[rows])
    largest = size >= size.max(axis=1, keepdims=True) - zero
    right_rows = ((estimate != 0).any(axis=1) == rows).all()
    return bool(right_rows and (np.sign(estimate) == np.sign(W))[rows][largest].all())


#: Penalty of each method, from its strength and the ratio of the dirty model's two weights.
PENALTIES: dict[str, Callable[[float, float], NormPenalty]] = {
    "l1": lambda strength, ratio: L1(strength),
    "l1/l2": lambda strength, ratio: BlockSparse(strength, 2),
    "l1/linf": lambda strength, ratio: BlockSparse(strength, math.inf),
    DIRTY: lambda strength, ratio: Dirty(ratio * strength, strength),
    TUNED: lambda strength, ratio: Dirty(ratio * strength, strength),
}
#: Which of the two rules decides; the other one is recorded beside it.
RULES = {"l1": "signed", "l1/l2": "union", "l1/linf": "union", DIRTY: "signed", TUNED: "signed"}


class Recovery:
    """One draw, prepared for fits with several penalties.

    Parameters
    ----------
    draw : Draw
    tol : float
        Relative duality gap of every fit.
    zero : float
        Entries up to this size count as zero; the true ones have size 1.
    """

    def __init__(self, draw: Draw, tol: float = TOL, zero: float = ZERO) -> None:
        self.draw, self.tol, self.zero = draw, tol, zero
        self.problem = Problem.from_tasks(draw.tasks, SquaredLoss(), reduction="mean", fit_intercept=False)

    def fit(self, method: str, constant: float, ratio: float = 1.0) -> tuple[Array, float]:
        """Weights ``(p, 2)``, zeros set, and relative gap for a penalty of ``constant`` times the rate.

        ``ratio`` is that of the two weights of a dirty model; the constant then belongs to the sparse one.
        """
        penalty = PENALTIES[method](constant * self.draw.rate, ratio)
        solution = minimise(self.problem, penalty, self.tol, MAX_ITER)
        W = solution.point.W.cpu().numpy()
        gap = solution.certificate.gap / self.problem.null_objective
        return np.where(np.abs(W) > self.zero, W, 0.0), gap

    def __call__(self, method: str, constant: float, ratio: float = 1.0) -> Found:
        """Fit, and compare with the truth."""
        W, gap = self.fit(method, constant, ratio)
        return Found(signed_support(W, self.draw.W), union_support(W, self.draw.W, self.zero), gap)


class OverlapPhaseTransition(Experiment):
    """How often l1, l1/l2, l1/linf and the dirty model recover the support of two tasks, over n, p and overlap.

    Penalties are a constant times the rate sqrt(log(p - (2 - overlap) s) / n) of the theory. Every method has one
    constant for all settings, the one of a grid that succeeds most often on separate draws at the smallest p. The dirty
    model has its block weight sqrt(2) times its sparse one, as in theory, or a ratio that is chosen with the constant.
    """

    name = "overlap-phase-transition"
    title = "Two tasks that share part of their features: how often their supports are found, by method and overlap"

    def config(self, smoke: bool) -> dict[str, Any]:
        thetas = {"0.3": _grid(1.2, 4.8), "2/3": _grid(0.9, 3.3), "1": _grid(0.6, 3.0)}
        full: dict[str, Any] = {
            "n_features": [128, 256, 512],
            "thetas": thetas,
            "draws": 100,
            "calibration_thetas": {overlap: values[1::2] for overlap, values in thetas.items()},
            "calibration_draws": 20,
            "constants": [1.0, 1.4, 2.0, 2.8, 4.0],
            "ratios": [1.2, 1.4, 1.6, 1.8],
            "theory_ratio": math.sqrt(2),
            "sparsity": SPARSITY,
            "noise_variance": NOISE_VARIANCE,
            "tol": TOL,
            "zero": ZERO,
            "rules": RULES,
            "reduction": "mean",
            "intercept": "none",
        }
        if not smoke:
            return full
        few = {"0.3": [2.1, 4.8], "1": [0.6, 3.0]}
        sizes = {"n_features": [40], "draws": 4, "calibration_draws": 2, "constants": [1.0, 2.0], "ratios": [1.2, 1.6]}
        return {**full, **sizes, "thetas": few, "calibration_thetas": few}

    def units(self, config: Mapping[str, Any]) -> list[Unit]:
        return [
            {"p": p, "overlap": overlap, "theta": theta}
            for p in config["n_features"]
            for overlap, thetas in config["thetas"].items()
            for theta in thetas
        ]

    def run_unit(self, unit: Unit, config: Mapping[str, Any], device: torch.device) -> UnitResult:
        """Share of the draws with success: by the rule of the method, and by both. All methods see the same draws."""
        chosen = _calibrate(json.dumps(config))["chosen"]
        found: dict[str, list[Found]] = {method: [] for method in PENALTIES}
        for k in range(config["draws"]):
            recovery = _recovery(config, MEASUREMENT, unit["p"], unit["overlap"], unit["theta"], k, device)
            for method, results in found.items():
                results.append(recovery(method, **chosen[method]))
        metrics = {"n": float(recovery.draw.tasks.n_samples[0])}
        metrics["largest gap"] = max(result.gap for results in found.values() for result in results)
        for method, results in found.items():
            for rule in ("signed", "union"):
                metrics[f"{method}: {rule}"] = float(np.mean([getattr(result, rule) for result in results]))
            metrics[f"{method}: success"] = metrics[f"{method}: {RULES[method]}"]
        return {"metrics": metrics, "per_task": {}}

    def seeds(self, config: Mapping[str, Any]) -> list[int]:
        """How the seeds of calibration and measurement begin; p, overlap, theta (in 1/1000) and draw follow."""
        return [CALIBRATION, MEASUREMENT]

    def summary(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """What the calibration tried, how often it succeeded, and what was chosen."""
        return _calibrate(json.dumps(config))


def _grid(first: float, last: float, step: float = 0.3) -> list[float]:
    """Rescaled sample sizes from first to last, both included."""
    return [round(first + step * k, 3) for k in range(round((last - first) / step) + 1)]


def _recovery(
    config: Mapping[str, Any], stage: int, p: int, overlap: str, theta: float, draw: int, device: torch.device
) -> Recovery:
    """The draw of that number, whatever was drawn before."""
    share = float(Fraction(overlap))
    rng = np.random.default_rng([stage, p, round(1000 * share), round(1000 * theta), draw])
    found = draw_two_tasks(p, share, theta, rng, config["sparsity"], config["noise_variance"])
    return Recovery(found._replace(tasks=found.tasks.to(device=device)), config["tol"], config["zero"])


@functools.cache
def _calibrate(config_json: str) -> dict[str, Any]:
    """Successes of every candidate on draws that are used for nothing else, and the best candidate of each method.

    The draws have the smallest p, all overlaps and a part of the sample sizes. Of equals the first wins. Takes the
    configuration as text, since this is to be computed once per process.
    """
    config = json.loads(config_json)
    candidates = [{**candidate, "successes": 0} for candidate in _candidates(config)]
    settings = [(overlap, theta) for overlap, thetas in config["calibration_thetas"].items() for theta in thetas]
    for (overlap, theta), k in itertools.product(settings, range(config["calibration_draws"])):
        p = min(config["n_features"])
        recovery = _recovery(config, CALIBRATION, p, overlap, theta, k, torch.device("cpu"))
        for candidate in candidates:
            weights = {name: candidate[name] for name in ("constant", "ratio") if name in candidate}
            candidate["successes"] += getattr(recovery(candidate["method"], **weights), RULES[candidate["method"]])
    chosen = {}
    for method in PENALTIES:
        best = max((c for c in candidates if c["method"] == method), key=lambda c: c["successes"])
        chosen[method] = {name: best[name] for name in ("constant", "ratio") if name in best}
    return {"chosen": chosen, "calibration": candidates, "fits": len(settings) * config["calibration_draws"]}


def _candidates(config: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What is compared: every constant and, for the dirty models, every ratio that they may have."""
    ratios = {DIRTY: [config["theory_ratio"]], TUNED: config["ratios"]}
    for method, constant in itertools.product(PENALTIES, config["constants"]):
        weights = {"method": method, "constant": constant}
        yield from [{**weights, "ratio": ratio} for ratio in ratios[method]] if method in ratios else [weights]
