"""Heads of different sizes: the last layer of heterogeneous tasks, which share nothing there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from companion.factorized.ends import uniform


class TaskHeads(nn.Module):
    """One linear layer per task, each with its own number of outputs.

    Parameters
    ----------
    in_features : int
        I, units of the layer before.
    sizes : sequence of int
        O_t, outputs of every task.
    bias : bool, default True
    generator : torch.Generator, optional
        Source of the first weights, which are those of plain layers.
    """

    def __init__(
        self, in_features: int, sizes: Sequence[int], bias: bool = True, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        if not sizes or not all(isinstance(size, int) and size >= 1 for size in sizes):
            raise ValueError(f"heads must hold a number of outputs >= 1 for every task; got {sizes!r}")
        self.in_features = in_features
        self.weights = nn.ParameterList(uniform((size, in_features), in_features, generator) for size in sizes)
        self.biases = nn.ParameterList(uniform((size,), in_features, generator) for size in sizes) if bias else None

    @property
    def n_tasks(self) -> int:
        """T."""
        return len(self.weights)

    @property
    def sizes(self) -> tuple[int, ...]:
        """O_t of every task."""
        return tuple(weight.shape[0] for weight in self.weights)

    def forward(self, x: Tensor | Sequence[Tensor]) -> list[Tensor]:
        """Outputs of all tasks.

        Parameters
        ----------
        x : (T, B, ..., I) tensor, or list of T tensors (B_t, ..., I)

        Returns
        -------
        list of T tensors (B, ..., O_t)
        """
        if len(x) != self.n_tasks or x[0].shape[-1] != self.in_features:
            raise ValueError(
                f"expected activations of {self.n_tasks} tasks with {self.in_features} units; "
                f"got {len(x)} with {x[0].shape[-1]}"
            )
        return [F.linear(x_t, self.weights[t], self.task_bias(t)) for t, x_t in enumerate(x)]

    def task_bias(self, t: int) -> Tensor | None:
        """(O_t,) bias of task t."""
        return None if self.biases is None else self.biases[t]

    def add_task(self, n_outputs: int, generator: torch.Generator | None = None) -> int:
        """Give one more task a head of its own, drawn anew."""
        new = TaskHeads(self.in_features, [n_outputs], self.biases is not None, generator)
        like = self.weights[0]
        self.weights.append(new.weights[0].detach().to(like))
        if self.biases is not None and new.biases is not None:
            self.biases.append(new.biases[0].detach().to(like))
        return self.n_tasks - 1

    @torch.no_grad()
    def load_(self, t: int, linear: nn.Module) -> None:
        """Take the head of task t from a trained layer."""
        state = linear.state_dict()
        self.weights[t].copy_(state["weight"])
        if self.biases is not None:
            self.biases[t].copy_(state["bias"])

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, sizes={self.sizes}, bias={self.biases is not None}"
