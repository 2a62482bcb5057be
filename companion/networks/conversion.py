"""From the modules of one network to those of T: every layer with parameters becomes a layer of all tasks.

Chains of modules run with the task axis in front. A module with a forward of its own is run under :func:`torch.vmap`,
so that its code sees the samples of one task, whatever it does with their axes; only the layers inside are handed the
activations of all tasks together.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from companion.layers import TaskAffineNorm, TaskBatchNorm, TaskNorm, TiedNorm
from companion.layers.stacking import expand_tasks, fold_channels, folds_freely, is_shared, unfold_channels

LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d)
BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d)
NORM = (*BATCH_NORM, nn.LayerNorm, nn.GroupNorm)

# These act entry by entry, so it does not matter where the axes are.
ELEMENTWISE = (
    *(nn.CELU, nn.ELU, nn.GELU, nn.Hardshrink, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.Identity, nn.LeakyReLU),
    *(nn.LogSigmoid, nn.Mish, nn.ReLU, nn.ReLU6, nn.SELU, nn.SiLU, nn.Sigmoid, nn.Softplus, nn.Softshrink, nn.Softsign),
    *(nn.Tanh, nn.Tanhshrink, nn.Threshold, nn.Dropout, nn.AlphaDropout),
)
# These act channel by channel.
POOLING = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d),
)


class TaskFree(nn.Module):
    """A module without parameters on the activations of all tasks (T, B, ...); shared activations stay shared."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        """(T, B, ...) -> (T, B, ...)."""
        T, B = x.shape[:2]
        if is_shared(x):
            return expand_tasks(self.module(x[0]), T)
        if isinstance(self.module, ELEMENTWISE):
            return self.module(x)
        if isinstance(self.module, POOLING) and folds_freely(x):
            return unfold_channels(self.module(fold_channels(x)), T)
        return self.module(x.flatten(0, 1)).unflatten(0, (T, B))


class OneTaskForward(nn.Module):
    """A module with a forward of its own, whose code sees the samples of one task (B, ...).

    Parameters
    ----------
    module : nn.Module
        Layers inside are :class:`LayerOfAllTasks`.
    n_tasks : int
    """

    def __init__(self, module: nn.Module, n_tasks: int) -> None:
        super().__init__()
        self.module, self.n_tasks = module, n_tasks

    def forward(self, x: Tensor) -> Tensor:
        """(T, B, ...) -> (T, B, ...)."""
        return torch.vmap(self._one_task, randomness="different")(torch.arange(self.n_tasks, device=x.device), x)

    def _one_task(self, task: Tensor, x: Tensor) -> Tensor:
        for layer in self.module.modules():
            if isinstance(layer, LayerOfAllTasks):
                layer.task = task
        try:
            return self.module(x)
        finally:
            for layer in self.module.modules():
                if isinstance(layer, LayerOfAllTasks):
                    layer.task = None


class LayerOfAllTasks(nn.Module):
    """A layer of T tasks inside code that is written for one: it steps out of :func:`torch.vmap` and back in."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.task: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) of one task in the eyes of the caller, (T, B, ...) in those of the layer."""
        return _StepOut.apply(self.layer, self.task, x)


class _StepOut(torch.autograd.Function):
    """Gives the batching rule of a layer: the layer itself. Its gradients are recorded as those of its operations."""

    @staticmethod
    def forward(layer: nn.Module, task: Tensor, x: Tensor) -> Tensor:
        raise RuntimeError("a layer of all tasks ran outside of OneTaskForward")

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        """Nothing to keep: the batching rule replaces this function."""

    @staticmethod
    def vmap(info: Any, in_dims: tuple, layer: nn.Module, task: Tensor, x: Tensor) -> tuple[Tensor, int]:
        """Run the layer on what all tasks have at this place."""
        axis = in_dims[2]
        y = layer(expand_tasks(x, info.batch_size) if axis is None else x.movedim(axis, 0))
        # Code for one task may well say x.view(len(x), -1), which asks for memory in the order of the axes.
        return expand_tasks(y[0].contiguous(), len(y)) if is_shared(y) else y.contiguous(), 0


def convert(template: nn.Module, make_layer: Callable[[str, nn.Module], nn.Module], n_tasks: int) -> nn.Module:
    """Turn a network of one task into one of T.

    Parameters
    ----------
    template : nn.Module
        Linear, Conv1d, Conv2d, normalisation, modules without parameters, Sequential, and modules that hold them.
    make_layer : callable
        From name and module to the layer of all tasks.
    n_tasks : int

    Returns
    -------
    nn.Module
        Takes and gives activations (T, B, ...).
    """
    made = {id(module): make_layer(name, module) for name, module in template.named_modules() if is_layer(module)}
    inside = {key: LayerOfAllTasks(layer) for key, layer in made.items()}
    whole: dict[int, nn.Module] = {}

    def turn(module: nn.Module) -> nn.Module:
        if id(module) not in whole:
            if id(module) in made:
                whole[id(module)] = made[id(module)]
            elif type(module) is nn.Sequential:
                chain = whole[id(module)] = nn.Sequential()
                for name, child in module._modules.items():  # named_children leaves repeated ones out
                    chain.add_module(name, turn(child))
            elif is_plain(module):
                whole[id(module)] = TaskFree(copy.deepcopy(module))
            else:
                # deepcopy looks into the memo first: wherever the module refers to a layer, the copy has ours.
                whole[id(module)] = OneTaskForward(copy.deepcopy(module, dict(inside)), n_tasks)
        return whole[id(module)]

    return turn(template)


def check_convertible(template: nn.Module) -> None:
    """Refuse a network with parameters in modules that are not known.

    Raises
    ------
    ValueError
        Names every such module and says what to do.
    """
    unknown = []
    for name, module in template.named_modules():
        own = [key for key, value in module._parameters.items() if value is not None]
        if type(module).__module__.startswith("torch.nn"):  # running statistics of one task; constants are no trouble
            own += [key for key, value in module._buffers.items() if value is not None]
        if own and not is_layer(module):
            unknown.append(f"{name or 'the network itself'} ({type(module).__name__}: {', '.join(own)})")
    if unknown:
        raise ValueError(
            "share() knows Linear, Conv1d, Conv2d, BatchNorm1d, BatchNorm2d, LayerNorm and GroupNorm, and modules that "
            f"hold them; it cannot share the parameters of {'; '.join(unknown)}. Put such a layer in front of the "
            "template, as a feature extractor whose outputs the network takes, or write it with the layers above"
        )
    if not any(isinstance(module, LINEAR) for module in template.modules()):
        raise ValueError(
            f"the template holds no Linear, Conv1d or Conv2d layer to share; got {type(template).__name__}"
        )


def is_layer(module: nn.Module) -> bool:
    """Whether a module is one of those that have a version for T tasks. Subclasses may compute anything."""
    return type(module) in (*LINEAR, *NORM)


def is_plain(module: nn.Module) -> bool:
    """Whether a module is one of torch's, without parameters, that treats every sample by itself."""
    ours = type(module).__module__.startswith("torch.nn.modules") and not isinstance(module, nn.Sequential)
    return ours and not any(True for _ in module.children()) and not any(True for _ in module.parameters())


def norm_of_tasks(module: nn.Module, n_tasks: int, tied: bool) -> TaskNorm:
    """Normalisation of T tasks, each by itself unless the layer is tied."""
    if tied:
        return TiedNorm(copy.deepcopy(module), n_tasks)
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        return TaskBatchNorm(module, n_tasks)
    assert isinstance(module, nn.LayerNorm | nn.GroupNorm)  # is_layer knows no other
    return TaskAffineNorm(module, n_tasks)
