"""GO-MTL beside other models, all tuned alike: what the experiments on latent tasks have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from companion.experiments._relations import (
    BUILD,
    EFFORT,
    Fold,
    certificate,
    choose,
    configured,
    falling,
    split,
    until_worse,
)
from companion.linear import GOMTL, GOMTLClassifier, MeanRegularizedClassifier, TraceNormClassifier
from companion.linear._base import LinearMTL
from companion.linear.go_mtl import separate_weights
from companion.linear.go_mtl_cv import latent_path, mu_scale
from companion.solvers.problem import Problem
from companion.tasks import Tasks

Array = NDArray[np.float64]
GO_MTL = "GO-MTL"
#: Twins of :data:`BUILD` with the logistic loss.
BUILD_CLASSIFIER: dict[str, Callable[..., LinearMTL]] = {
    "single": lambda strength: MeanRegularizedClassifier(strength, 0.0),
    "trace norm": lambda strength: TraceNormClassifier(strength),
    "mean-regularised": lambda strength, ratio: MeanRegularizedClassifier(*split(strength, ratio)),
}
#: What a review of the method reports; facts about its protocols that are not known are named in every record.
REPORTED = {
    "gomtl-synthetic1": {"single": 1.04, "no groups": 0.48, "disjoint groups": 0.42, GO_MTL: 0.35},
    "gomtl-synthetic2": {"single": 1.36, "no groups": 0.79, "disjoint groups": 0.80, GO_MTL: 0.64},
    "gomtl-computer": {"single": 2.70, "no groups": 2.06, "disjoint groups": 2.01, GO_MTL: 1.76},
    "gomtl-school": {"single": 10.67, "no groups": 10.18, "disjoint groups": 10.18, GO_MTL: 10.04},
    "gomtl-mnist": {"single": 14.8, "no groups": 14.4, "disjoint groups": 14.0, GO_MTL: 13.4},
    "gomtl-usps": {"single": 9.0, "no groups": 7.8, "disjoint groups": 7.8, GO_MTL: 7.2},
}


def reported(name: str) -> dict[str, Any]:
    """The line of a data set in the reported table, and where it is from."""
    source = "as reported by a review of the method; the protocol is uncertain and no deviations are given"
    return {"source": source, "error": REPORTED[name]}


class LatentChoice(NamedTuple):
    """Number of latent tasks and mu with the least held-out loss.

    Attributes
    ----------
    n_latent, mu : int and float
    position : (int, int)
        Of the two in their grids.
    loss : (A, M) array
        Held-out loss; infinite where the search had ended.
    """

    n_latent: int
    mu: float
    position: tuple[int, int]
    loss: Array


def choose_latent(
    unit: GOMTL | GOMTLClassifier,
    n_latents: Sequence[int],
    mu_ratios: Sequence[float],
    train: Tasks,
    folds: Sequence[Fold],
    patience: int = 3,
) -> LatentChoice:
    """Search numbers of latent tasks and values of mu along warm-started paths in every fold.

    Parameters
    ----------
    unit : GOMTL or GOMTLClassifier
        With all settings but these two; ``tol`` and ``max_iter`` are those of the search.
    mu_ratios : sequence of float
        Rising, in units of a mu that leaves little of ``train``.
    folds : sequence of Fold
    patience : int
        So many values of mu in a row without a new least loss, and the larger ones are left out.
    """
    _, problem = unit.prepare(train)
    lam = float(unit.lam)
    top = mu_scale(problem, separate_weights(problem, lam), lam)
    mus = [top * ratio for ratio in mu_ratios]
    problems = [unit.prepare(fold.train)[1] for fold in folds]
    starts = [separate_weights(problem, lam) for problem in problems]
    loss = np.stack(
        [
            until_worse(
                [
                    _losses_on_path(unit, fold, problem, alone, K, mus)
                    for fold, problem, alone in zip(folds, problems, starts, strict=True)
                ],
                len(mus),
                patience,
            )
            for K in n_latents
        ]
    )
    a, m = (int(i) for i in np.unravel_index(loss.argmin(), loss.shape))
    return LatentChoice(n_latents[a], mus[m], (a, m), loss)


def _losses_on_path(
    unit: GOMTL | GOMTLClassifier, fold: Fold, problem: Problem, alone: torch.Tensor, K: int, mus: Sequence[float]
) -> Iterator[float]:
    """Losses of the rows held out, one for every mu."""
    held_out = fold.held_out
    for fit in latent_path(problem, alone, K, mus, float(unit.lam), unit.tol, unit.max_iter):
        W = fit.factors.L @ fit.factors.S
        yield held_out.loss(W.cpu().numpy(), problem.original_intercepts(problem.at(W)).cpu().numpy())


def fit_latent(
    train: Tasks,
    folds: Sequence[Fold],
    grid: Mapping[str, Sequence[float]],
    common: Mapping[str, Any],
    config: Mapping[str, Any],
    classify: bool = False,
) -> tuple[GOMTL | GOMTLClassifier, dict[str, float]]:
    """GO-MTL with what the folds choose, fitted to all training rows, and what to record of it.

    Parameters
    ----------
    grid : mapping
        ``n_latent`` and ``mu_ratio``.
    common : mapping
        Settings that a search and a fit share.
    config : mapping
        That of the experiment.
    """
    kind = GOMTLClassifier if classify else GOMTL
    rough = {name: config[f"latent_{name}_in_folds"] for name in ("tol", "max_iter")}
    unit = kind(lam=config["lam"], **rough, **common)
    n_latents = [int(K) for K in grid["n_latent"]]
    choice = choose_latent(unit, n_latents, grid["mu_ratio"], train, folds, config["patience"])
    final = {name: config[f"latent_{name}"] for name in ("tol", "max_iter", "n_init")}
    fitted = unit.set_params(n_latent=choice.n_latent, mu=choice.mu, **final).fit(train)
    history = fitted.history_
    found = {
        "K": choice.n_latent,
        "mu": choice.mu,
        "K: position": choice.position[0],
        "mu: position": choice.position[1],
        "n_active": fitted.n_active_,
        "latent tasks per task": float((np.asarray(fitted.codes_) != 0).sum(0).mean()),
        "certificate": max(fitted.certificate_.values()),
        "largest rise": max(float(np.diff(history).max(initial=0.0)) / abs(history[0]), 0.0),
    }
    return fitted, {name: float(value) for name, value in found.items()}


#: For a small run.
SMOKE_GRID: dict[str, list[float]] = {"n_latent": [1, 2], "mu_ratio": [0.01, 0.1]}
#: Settings of GO-MTL in every configuration. lam is the usual one; only lam mu² matters to the weights.
LATENT = {
    "lam": 0.1,
    "latent_tol": 1e-6,
    "latent_tol_in_folds": 1e-2,
    "latent_max_iter": 1000,
    "latent_max_iter_in_folds": 200,
    "latent_n_init": 5,
}
#: Settings of the other models.
OTHERS = {
    "n_strengths": 12,
    "least": 0.005,
    **EFFORT,
}


def fit_chosen(
    method: str,
    train: Tasks,
    folds: Sequence[Fold],
    grid: Mapping[str, Sequence[float] | None],
    common: Mapping[str, Any],
    config: Mapping[str, Any],
    classify: bool = False,
) -> tuple[LinearMTL, dict[str, float]]:
    """A method with what the folds choose, fitted to all training rows, and what to record of it."""
    if method.startswith(GO_MTL):
        whole = {name: values for name, values in grid.items() if values is not None}
        return fit_latent(train, folds, whole, common, config, classify)
    build = (BUILD_CLASSIFIER if classify else BUILD)[method]
    names = ("tol", "max_iter", "n_init", "n_candidates")
    rough = {**common, **{name: config[f"{name}_in_folds"] for name in names}}
    limits = {name: config[name] for name in ("n_strengths", "least", "patience")}
    choice = choose(build, grid, train, folds, rough, **limits)
    fitted = configured(choice.model, {**common, **{name: config[name] for name in names}}).fit(train)
    return fitted, {**choice.metrics, "certificate": abs(certificate(fitted, train))}


def ridge_grid(first: float, last: float, n: int) -> list[float]:
    """``n`` penalties of squared norms, falling, the first of which leaves next to nothing."""
    return [1e6, *falling(first, last, n - 1)]
