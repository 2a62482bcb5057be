"""What a solver hands back: weights and the proof of how good they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Result:
    """Solution of a problem over all tasks, with its certificate.

    Attributes
    ----------
    W : (d, T) float64 tensor
    intercept : (T,) float64 tensor
    objective : float
        Data term plus penalty at ``W``.
    dual_gap : float
        Objective minus dual value, absolute; an upper bound on the distance to the optimum. NaN where no gap exists.
    null_objective : float
        Objective of the intercept-only model: the scale of every relative tolerance.
    n_iter : int
        Largest number of iterations that any part of the problem took.
    parts : dict of name -> (d, T) tensor
        Parts that the weights consist of, under the names of the fitted attributes.
    certificate : dict of name -> float
        For models without a duality gap: how far each optimality condition is from being met, relative, so that all
        of them are to be at most ``tol``.
    attributes : dict of name -> object
        Whatever else was fitted and has no row per task, such as labels, under the names of the fitted attributes.
        Tensors go out in the library and type of the data.
    """

    W: Tensor
    intercept: Tensor
    objective: float
    dual_gap: float
    null_objective: float
    n_iter: int
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    certificate: Mapping[str, float] = field(default_factory=dict)
    attributes: Mapping[str, object] = field(default_factory=dict)

    @property
    def relative_gap(self) -> float:
        """Gap over the objective of the intercept-only model (0 when that model is already perfect)."""
        return self.dual_gap / self.null_objective if self.null_objective > 0 else 0.0
