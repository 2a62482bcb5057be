"""Normalisation of T tasks: every task has its own statistics, scale and shift.

What is shared between tasks are weights; the activations that they make differ in mean and spread from task to task.
A layer that normalises is therefore kept per task, unless the template's layer is tied as a whole.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from companion.layers.stacking import expand_tasks, fold_channels, is_shared, unfold_channels


class TaskNorm(nn.Module, ABC):
    """Normalisation of the activations (T, B, ...) of T tasks."""

    n_tasks: int

    @abstractmethod
    def task_state(self) -> dict[str, Tensor]:
        """Parameters and buffers under the names of the plain layer, one per task along the first axis."""

    @abstractmethod
    def add_task(self) -> int:
        """Give one more task what the others have on average."""

    @abstractmethod
    def load_(self, layers: list[nn.Module]) -> None:
        """Take scale, shift and statistics from the layers of trained networks, one per task."""


class _PerTask(TaskNorm):
    """State of T plain layers, each stacked along a first axis."""

    def __init__(self, template: nn.Module, n_tasks: int) -> None:
        super().__init__()
        self.n_tasks = n_tasks
        for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            value = getattr(template, name, None)
            value = None if value is None else torch.stack([value.detach()] * n_tasks)
            if name in ("weight", "bias"):
                self.register_parameter(name, None if value is None else nn.Parameter(value))
            else:
                self.register_buffer(name, value)

    def task_state(self) -> dict[str, Tensor]:
        """Parameters and buffers, (T, ...) each."""
        return {**dict(self.named_parameters()), **dict(self.named_buffers())}

    @torch.no_grad()
    def add_task(self) -> int:
        """Give one more task the mean scale, shift and statistics of the others."""
        for name, value in self.task_state().items():
            mean = value.double().mean(0, keepdim=True).to(value)
            grown = torch.cat([value.detach(), mean])
            setattr(self, name, nn.Parameter(grown) if isinstance(value, nn.Parameter) else grown)
        self.n_tasks += 1
        return self.n_tasks - 1

    @torch.no_grad()
    def load_(self, layers: list[nn.Module]) -> None:
        """Take scale, shift and statistics from the layers of trained networks, one per task."""
        for name, value in self.task_state().items():
            value.copy_(torch.stack([layer.state_dict()[name] for layer in layers]))


class TaskBatchNorm(_PerTask):
    """Batch normalisation with statistics, scale and shift per task.

    Parameters
    ----------
    template : BatchNorm1d or BatchNorm2d
        Number of features C, eps, momentum and options are taken from here.
    n_tasks : int
    """

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(self, template: nn.BatchNorm1d | nn.BatchNorm2d, n_tasks: int) -> None:
        super().__init__(template, n_tasks)
        self.n_features, self.eps, self.momentum = template.num_features, template.eps, template.momentum

    def forward(self, x: Tensor) -> Tensor:
        """(T, B, C) or (T, B, C, ...) -> the same shape."""
        T, C = self.n_tasks, self.n_features
        if x.ndim < 3 or x.shape[0] != T or x.shape[2] != C:
            raise ValueError(f"TaskBatchNorm takes (T, B, C, ...) with T={T} and C={C}; got {tuple(x.shape)}")
        mean, var, weight, bias = (
            value if value is None else value.flatten()
            for value in (self.running_mean, self.running_var, self.weight, self.bias)
        )
        momentum = self._count() if self.training else 0.0
        y = F.batch_norm(fold_channels(x), mean, var, weight, bias, self.training or mean is None, momentum, self.eps)
        return unfold_channels(y, T)

    def _count(self) -> float:
        """Count a batch; the weight that its statistics have in the running ones."""
        if self.num_batches_tracked is None:
            return 0.0
        self.num_batches_tracked += 1
        return 1 / float(self.num_batches_tracked[0]) if self.momentum is None else self.momentum

    def extra_repr(self) -> str:
        return f"n_tasks={self.n_tasks}, n_features={self.n_features}, eps={self.eps}, momentum={self.momentum}"


class TaskAffineNorm(_PerTask):
    """Normalisation within each sample (layer or group norm), with scale and shift per task.

    Parameters
    ----------
    template : LayerNorm or GroupNorm
    n_tasks : int
    """

    weight: Tensor | None
    bias: Tensor | None

    def __init__(self, template: nn.LayerNorm | nn.GroupNorm, n_tasks: int) -> None:
        super().__init__(template, n_tasks)
        self.groups = template.num_groups if isinstance(template, nn.GroupNorm) else None
        self.shape = () if isinstance(template, nn.GroupNorm) else tuple(template.normalized_shape)
        self.eps = template.eps

    def forward(self, x: Tensor) -> Tensor:
        """(T, B, ...) -> the same shape."""
        if self.groups is None:
            y = F.layer_norm(x, self.shape, eps=self.eps)
            spread = (self.n_tasks, *[1] * (x.ndim - 1 - len(self.shape)), *self.shape)  # a scale per entry
        else:
            y = F.group_norm(x.flatten(0, 1), self.groups, eps=self.eps).unflatten(0, x.shape[:2])
            spread = (self.n_tasks, 1, x.shape[2], *[1] * (x.ndim - 3))  # a scale per channel
        if self.weight is not None:
            y = y * self.weight.view(spread)
        return y if self.bias is None else y + self.bias.view(spread)


class TiedNorm(TaskNorm):
    """One normalisation for all tasks: statistics over the samples of all of them together.

    Parameters
    ----------
    norm : module
        The layer itself, on samples (n, ...).
    n_tasks : int
    """

    def __init__(self, norm: nn.Module, n_tasks: int) -> None:
        super().__init__()
        self.norm, self.n_tasks = norm, n_tasks

    @property
    def pools(self) -> bool:
        """Whether its statistics are over the samples of a batch."""
        return isinstance(self.norm, nn.BatchNorm1d | nn.BatchNorm2d)

    def forward(self, x: Tensor) -> Tensor:
        """(T, B, ...) -> the same shape; what is shared stays shared."""
        if is_shared(x):
            return expand_tasks(self.norm(x[0]), x.shape[0])
        return self.norm(x.flatten(0, 1)).unflatten(0, x.shape[:2])

    def task_state(self) -> dict[str, Tensor]:
        """The one state seen T times, without a copy."""
        state = self.norm.state_dict(keep_vars=True)
        return {key: value.expand(self.n_tasks, *value.shape) for key, value in state.items()}

    def add_task(self) -> int:
        """Let one more task use the layer."""
        self.n_tasks += 1
        return self.n_tasks - 1

    @torch.no_grad()
    def load_(self, layers: list[nn.Module]) -> None:
        """Take the means of scale, shift and statistics over the tasks."""
        for name, value in self.norm.state_dict().items():
            value.copy_(torch.stack([layer.state_dict()[name].double() for layer in layers]).mean(0).to(value))
