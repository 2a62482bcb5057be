"""Computer survey: GO-MTL on the profiles that the other models of the book were given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from companion.experiments._frame import Experiment, Unit, UnitResult
from companion.experiments._latent import GO_MTL, LATENT, SMOKE_GRID, fit_latent, reported
from companion.experiments._relations import falling, inner_folds, scores
from companion.experiments.computer_survey import AS_IT_IS, PERMUTED, ComputerSurveyStudy, draw, survey
from companion.metrics import per_task, rmse

GRID: dict[str, list[float]] = {"n_latent": [1, 2, 4, 8], "mu_ratio": falling(1e-5, 1, 11)}
SAME = (
    *("repeats", "protocols", "fixed", "n_respondents", "inner_folds", "fold_seed", "patience", "reduction"),
    "scaling",
)


class GOMTLComputer(Experiment):
    """GO-MTL in the place of a method of the record "computer-survey", with its draws, folds and free intercepts."""

    name = "gomtl-computer"
    title = "GO-MTL, computer survey: draws and folds of the other models, so that results are paired"

    def config(self, smoke: bool) -> dict[str, Any]:
        others = ComputerSurveyStudy().config(smoke)
        return {
            **{name: others[name] for name in SAME},
            **LATENT,
            "grid": SMOKE_GRID if smoke else GRID,
            "intercept": "free for every respondent",
            "others": "record computer-survey",
            "reported": reported(self.name),
        }

    def units(self, config: Mapping[str, Any]) -> list[Unit]:
        drawn = [
            (protocol, condition, repeat)
            for protocol in config["protocols"]
            for condition in (AS_IT_IS, PERMUTED)
            for repeat in range(config["repeats"])
            if condition == AS_IT_IS or protocol == "15/5"
        ]
        keys = ("protocol", "condition", "repeat")
        fixed = [(protocol, AS_IT_IS, 0) for protocol in config["fixed"]]
        return [{**dict(zip(keys, setting, strict=True)), "method": GO_MTL} for setting in (*fixed, *drawn)]

    def run_unit(self, unit: Unit, config: Mapping[str, Any], device: torch.device) -> UnitResult:
        part = draw(unit["protocol"], unit["condition"], unit["repeat"], config["n_respondents"])
        common = {"reduction": config["reduction"], "fit_intercept": True, "device": device}
        folds = inner_folds(part.train, config["inner_folds"], config["fold_seed"])
        fitted, metrics = fit_latent(part.train, folds, config["grid"], common, config)
        _, y, index = part.test.long()
        prediction = scores(fitted, part.test)
        metrics["rmse"] = rmse(y, prediction)
        tasks = {"rmse": np.round(per_task(rmse, y, prediction, index).values, 6).tolist()}
        rounded = {name: round(value, 9) for name, value in metrics.items()}
        return {"metrics": rounded, "per_task": tasks if unit["protocol"] in config["fixed"] else {}}

    def seeds(self, config: Mapping[str, Any]) -> list[int]:
        """How the seeds of the draws end; a number for what is drawn comes before."""
        return list(range(config["repeats"]))

    def data_files(self) -> dict[str, str]:
        return dict(survey().sha256)
