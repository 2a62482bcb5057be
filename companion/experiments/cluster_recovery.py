"""Planted clusters of tasks: which methods find them in how much noise, and what a wrong number of them costs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from companion.experiments._frame import Experiment, Unit, UnitResult
from companion.experiments._relations import (
    BUILD,
    LABELS,
    STRENGTH,
    Choice,
    certificate,
    choose,
    configured,
    falling,
    thinned,
    validation,
)
from companion.linear import GraphRegularized
from companion.linear._base import LinearMTL
from companion.tasks import Tasks

Array = NDArray[np.float64]
Labels = NDArray[np.int64]
CLUSTERS, DIRECTIONS, NOTHING = "clusters", "clusters of directions", "no clusters"
SINGLE, TWO_STEPS, KNOWN = "single", "k-means", "known clusters"
SHARES = (0.5, 0.3, 0.2)
SQUARED = falling(1e4, 0.1, 11)
RATIOS = [0.999, 0.3, 0.03, 0.003]  # with the first one, next to nothing is shared
GRIDS: dict[str, dict[str, list[float]]] = {
    SINGLE: {STRENGTH: SQUARED},
    TWO_STEPS: {STRENGTH: SQUARED, "ratio": RATIOS},
    KNOWN: {STRENGTH: SQUARED, "ratio": RATIOS},
    "clustered": {STRENGTH: SQUARED, "ratio": RATIOS},
    "Jacob": {STRENGTH: SQUARED, "ratio": RATIOS, "mean_ratio": [1.0, 0.3]},
    "hard clusters": {STRENGTH: SQUARED, "ratio": RATIOS},
    "disjoint groups": {STRENGTH: falling(100, 0.01, 9)},
}


class Draw(NamedTuple):
    """Tasks to fit and to tune on, and the truth behind them."""

    train: Tasks
    held_out: Tasks
    W: Array  # (d, T)
    labels: Labels  # (T,)


def draw_clusters(
    condition: str,
    n_tasks: int,
    noise: float,
    rng: np.random.Generator,
    n_features: int = 10,
    n_rows: tuple[int, int] = (8, 16),
    spread: float = 0.3,
) -> Draw:
    r"""Tasks :math:`y_t = X_t w_t + \varepsilon_t` whose weights lie in three clusters of unequal sizes, or in none.

    Parameters
    ----------
    condition : str
        "clusters": :math:`w_t = u_c + \text{spread} \cdot v_t`; "clusters of directions": a multiple of :math:`u_c`,
        between 1/2 and 3/2 of it in length and of either sign; "no clusters": :math:`v_t` alone, and labels that say
        nothing.
    n_tasks : int
        Half of them, three and two tenths are in the clusters.
    noise : float
        Standard deviation of the noise. That of the signal is about one.
    n_rows : (int, int)
        Fewest and most rows of a task; it has as many to tune on as to fit.

    Returns
    -------
    Draw
        Entries of ``X_t (n_t, d)`` are N(0, 1), those of u and v are N(0, 1/d).
    """
    sizes = np.round(np.array(SHARES) * n_tasks).astype(int)
    labels = rng.permutation(np.repeat(np.arange(len(SHARES)), sizes))
    centres, own = (rng.normal(size=(n_features, m)) / np.sqrt(n_features) for m in (len(SHARES), n_tasks))
    multiples = rng.uniform(0.5, 1.5, size=n_tasks) * rng.choice([-1.0, 1.0], size=n_tasks)
    W = {
        CLUSTERS: centres[:, labels] + spread * own,
        DIRECTIONS: centres[:, labels] * multiples,
        NOTHING: own,
    }[condition]
    n = rng.integers(n_rows[0], n_rows[1] + 1, size=n_tasks)
    parts = []
    for _ in range(2):
        X = [rng.normal(size=(rows, n_features)) for rows in n.tolist()]
        y = [x @ w + noise * rng.normal(size=len(x)) for x, w in zip(X, W.T, strict=True)]
        parts.append(Tasks.from_list(list(zip(X, y, strict=True))))
    return Draw(parts[0], parts[1], W, labels)


class ClusterRecovery(Experiment):
    """Adjusted Rand index of the clusters that methods find, and the relative error of their weights.

    All weights of the models are chosen by the error on rows that were drawn like the training rows, never by the
    truth. Beside the models: separate ridge regressions, k-means on their weights with a model for those clusters, and
    that model with the true clusters.
    """

    name = "cluster-recovery"
    title = "Planted clusters of tasks: found by which method, over noise, number of tasks and a wrong number of them"

    def config(self, smoke: bool) -> dict[str, Any]:
        noises = [0.25, 0.5, 1.0, 1.5, 2.5]
        full: dict[str, Any] = {
            "draws": 20,
            "settings": [
                {"condition": CLUSTERS, "n_tasks": 30, "k": 3, "noises": noises},
                *({"condition": CLUSTERS, "n_tasks": T, "k": 3, "noises": noises[1:4]} for T in (10, 100)),
                *({"condition": CLUSTERS, "n_tasks": 30, "k": k, "noises": noises[1:3]} for k in (2, 5)),
                {"condition": DIRECTIONS, "n_tasks": 30, "k": 3, "noises": noises[:3]},
                {"condition": NOTHING, "n_tasks": 30, "k": 3, "noises": noises[2:3]},
            ],
            "shares": SHARES,
            "n_features": 10,
            "n_rows": [8, 16],
            "spread": 0.3,
            "grids": GRIDS,
            "patience": 2,
            "n_init": 10,
            "n_init_in_search": 2,
            "n_candidates": 20,
            "n_candidates_in_search": 0,
            "k_means_starts": 10,
            "reduction": "sum",
            "intercept": "none",
            "tol": 1e-6,
            "tol_in_search": 1e-3,
            "max_iter": 20_000,
            "max_iter_in_search": 1000,
            "tuned_by": "squared error on as many rows again, drawn like the training rows",
        }
        if not smoke:
            return full
        few = [{"condition": c, "n_tasks": 10, "k": 3, "noises": [0.25]} for c in (CLUSTERS, DIRECTIONS, NOTHING)]
        return {**full, "draws": 2, "settings": few, "grids": {m: thinned(grid) for m, grid in GRIDS.items()}}

    def units(self, config: Mapping[str, Any]) -> list[Unit]:
        return [
            {**{key: setting[key] for key in ("condition", "n_tasks", "k")}, "noise": noise, "seed": seed}
            for setting in config["settings"]
            for noise in setting["noises"]
            for seed in range(config["draws"])
        ]

    def run_unit(self, unit: Unit, config: Mapping[str, Any], device: torch.device) -> UnitResult:
        """Metrics of every method, as ``"method: metric"``, on one draw."""
        draw = _drawn(unit, config)
        search = Search(draw, unit["k"], config, device)
        metrics: dict[str, float] = {}
        for method, (labels, fitted, choice) in search.results().items():
            found = {"error": float(np.linalg.norm(fitted.coef_.T - draw.W) / np.linalg.norm(draw.W))}
            if labels is not None:
                found["ari"] = float(adjusted_rand_score(draw.labels, labels))
                found["n_found"] = float(len(np.unique(labels)))
            found["certificate"] = certificate(fitted, draw.train)
            found |= {f"{name} at": float(position) for name, position in choice.positions.items()}
            metrics |= {f"{method}: {name}": round(value, 9) for name, value in found.items()}
        return {"metrics": metrics, "per_task": {}}

    def seeds(self, config: Mapping[str, Any]) -> list[int]:
        """How the seeds of the draws end; condition, number of tasks and noise (in 1/1000) come before."""
        return list(range(config["draws"]))


def _drawn(unit: Unit, config: Mapping[str, Any]) -> Draw:
    """The draw of a unit: the same for every k."""
    condition = (CLUSTERS, DIRECTIONS, NOTHING).index(unit["condition"])
    rng = np.random.default_rng([condition, unit["n_tasks"], round(1000 * unit["noise"]), unit["seed"]])
    return draw_clusters(
        unit["condition"],
        unit["n_tasks"],
        unit["noise"],
        rng,
        config["n_features"],
        tuple(config["n_rows"]),
        config["spread"],
    )


class Found(NamedTuple):
    """What a method found in a draw."""

    labels: Labels | None  # (T,)
    fitted: LinearMTL
    choice: Choice


class Search:
    """All methods on one draw, tuned on its rows held out.

    Parameters
    ----------
    draw : Draw
    k : int
        Number of clusters that methods look for.
    config : mapping
        That of the experiment.
    """

    def __init__(self, draw: Draw, k: int, config: Mapping[str, Any], device: torch.device) -> None:
        self.draw, self.k, self.config = draw, k, config
        self.common = {"reduction": config["reduction"], "fit_intercept": False, "device": device}

    def results(self) -> dict[str, Found]:
        """Every method's result, by name."""
        single = self._tuned(SINGLE, BUILD[SINGLE])
        start = KMeans(self.k, n_init=self.config["k_means_starts"], random_state=0)
        labels = start.fit_predict(single.fitted.coef_)
        return {
            SINGLE: single,
            TWO_STEPS: self._tuned(TWO_STEPS, _around(labels))._replace(labels=labels),
            KNOWN: self._tuned(KNOWN, _around(self.draw.labels)),
            **{method: self._find(method) for method in LABELS},
        }

    def _find(self, method: str) -> Found:
        found = self._tuned(method, functools.partial(BUILD[method], n_clusters=self.k))
        return found._replace(labels=np.asarray(getattr(found.fitted, LABELS[method])))

    def _tuned(self, method: str, build: Callable[..., LinearMTL]) -> Found:
        """The model with the least error on the rows held out, fitted."""
        train, config = self.draw.train, self.config
        names = ("tol", "max_iter", "n_init", "n_candidates")
        rough = {**self.common, **{name: config[f"{name}_in_search"] for name in names}}
        tight = {**self.common, **{name: config[name] for name in names}}
        folds = validation(train, self.draw.held_out)
        choice = choose(build, config["grids"][method], train, folds, rough, patience=config["patience"])
        return Found(None, configured(choice.model, tight).fit(train), choice)


def _around(labels: Labels) -> Callable[..., LinearMTL]:
    """A builder for ridge regressions that are pulled towards the mean of their cluster, with these clusters."""
    same = labels[:, None] == labels
    graph = same / same.sum(1)  # the distances of m tasks to their mean are those between them, over m
    np.fill_diagonal(graph, 0.0)

    def build(strength: float, ratio: float) -> LinearMTL:
        return GraphRegularized(ratio * strength, (1 - ratio) * strength, graph)

    return build
