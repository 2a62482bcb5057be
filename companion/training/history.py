"""What a training run measured, task by task."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor


@dataclass
class History:
    """Losses of every task along a run; S steps, E evaluations, T tasks.

    Attributes
    ----------
    training : (S, T) tensor
        Mean loss of every task over the labelled examples of each batch, before the step that the batch led to; NaN
        where the batch had no labelled example of the task.
    validation : (E, T) tensor
        Mean loss of every task over the validation data; NaN for a task without a labelled example there.
    validation_steps : (E,) int64 tensor
        Steps taken before each evaluation.
    validation_loss : (E,) float64 tensor
        The weighted sum over tasks by which the best weights are chosen.
    seconds : float
        Time of all steps and evaluations, added up over interrupted and resumed runs.
    """

    training: Tensor = field(default_factory=lambda: torch.empty(0, 0))
    validation: Tensor = field(default_factory=lambda: torch.empty(0, 0))
    validation_steps: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    validation_loss: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.float64))
    seconds: float = 0.0

    @property
    def steps(self) -> int:
        """S, the number of optimizer steps."""
        return len(self.training)

    @property
    def best_step(self) -> int | None:
        """Steps taken before the best evaluation, the first of equals; ``None`` without a validation loss."""
        numbers = ~self.validation_loss.isnan()
        if not bool(numbers.any()):
            return None
        return int(self.validation_steps[numbers][self.validation_loss[numbers].argmin()])

    def stalled(self, patience: int | None) -> bool:
        """Whether the last ``patience`` evaluations, at least, brought nothing better; never for ``None``."""
        if patience is None:
            return False
        best = self.best_step
        since = self.validation_steps > (-1 if best is None else best)
        return int(since.sum()) >= patience

    def evaluated(self, step: int, losses: Tensor, total: float) -> bool:
        """Add the losses (T,) of an evaluation after ``step`` steps; return whether it is the best so far."""
        losses = losses.detach().cpu()[None]  # (1, T)
        self.validation = torch.cat([self.validation, losses]) if len(self.validation) else losses
        self.validation_steps = torch.cat([self.validation_steps, torch.tensor([step])])
        self.validation_loss = torch.cat([self.validation_loss, torch.tensor([total], dtype=torch.float64)])
        return self.best_step == step

    def state(self) -> dict[str, Any]:
        """Tensors and numbers, for a file."""
        return {part.name: getattr(self, part.name) for part in fields(self)}

    @classmethod
    def from_state(cls, state: Any) -> History:
        """The inverse of :meth:`state`.

        Raises
        ------
        ValueError
            Other names or types, or lengths that do not fit together.
        """
        names = {part.name for part in fields(cls)}
        if not isinstance(state, dict) or state.keys() != names:
            found = sorted(map(str, state)) if isinstance(state, dict) else type(state).__name__
            raise ValueError(f"a history has {sorted(names)}; found {found}")
        tables, seconds = {name: state[name] for name in names - {"seconds"}}, state["seconds"]
        dimensions = {"training": 2, "validation": 2, "validation_steps": 1, "validation_loss": 1}
        for name, table in tables.items():
            if not isinstance(table, Tensor) or table.ndim != dimensions[name]:
                raise ValueError(f"{name} of a history must be a tensor with {dimensions[name]} dimensions")
        lengths = {len(tables[name]) for name in ("validation", "validation_steps", "validation_loss")}
        if not isinstance(seconds, float) or len(lengths) > 1:
            raise ValueError(f"a history has as many validation losses as steps, and seconds; found {sorted(lengths)}")
        return cls(**state)
