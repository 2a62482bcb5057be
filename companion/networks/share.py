"""Any network in, networks of T tasks that share weights out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from companion.factorized import FactorizedTensor, Independent, Tied
from companion.factorized.ends import uniform
from companion.factorized.ranks import Ranks
from companion.layers import TaskConv1d, TaskConv2d, TaskHeads, TaskLayer, TaskLinear, TaskNorm
from companion.networks.conversion import (
    ELEMENTWISE,
    LINEAR,
    check_convertible,
    convert,
    is_layer,
    is_plain,
    norm_of_tasks,
)
from companion.networks.shared_network import SharedNetwork

Format = type[FactorizedTensor]
Plain = nn.Linear | nn.Conv1d | nn.Conv2d


def share(
    template: nn.Module,
    n_tasks: int,
    by: Format | Mapping[str, Format],
    eps: float = 0.1,
    ranks: Ranks | Mapping[str, Ranks] | None = None,
    *,
    from_models: Sequence[nn.Module] | None = None,
    heads: Sequence[int] | None = None,
    rule: str = "frobenius",
    fold: bool = True,
    balance: bool = True,
    sample_ndim: int | None = None,
    generator: torch.Generator | None = None,
) -> SharedNetwork:
    """Make a network of T tasks from a network of one (DMTRL; Yang & Hospedales 2017).

    The weights of every layer are generated from factors that the tasks share. Biases and normalisation are each
    task's own.

    Parameters
    ----------
    template : nn.Module
        Network of one task: Linear, Conv1d, Conv2d, normalisation, anything without parameters, and modules of any
        kind that hold these.
    n_tasks : int
        T.
    by : format, or dict from layer names to formats
        Of :mod:`companion.factorized`. Names are those of ``template.named_modules()``; layers that a dict does not
        name are independent. ``Tied`` makes one layer for all tasks, its bias included; for a layer that normalises,
        ``Tied`` is the only format beside ``Independent``.
    eps : float, default 0.1
        Relative error that the factorisation of given models may have, where no ranks are given.
    ranks : int, float, tuple or dict, optional
        One value for every layer, or one per layer name: a tuple is taken as it is, an integer caps every rank, and a
        float in (0, 1] is a fraction of the largest. Needed unless ``from_models`` is given.
    from_models : sequence of T modules, optional
        Trained networks like the template, one per task, to begin from. Else weights are drawn with the scale that a
        plain layer has.
    heads : sequence of T int, optional
        Outputs of every task. The last linear layer is then not shared; each task has its own.
    rule : {"frobenius", "pivoted-qr"}
        What eps means; see :func:`companion.tensors.truncate`.
    fold, balance : bool, default True
        Let factors of full rank go into their neighbours; scale the factors of a layer to equal entries.
    sample_ndim : int, optional
        Axes of one sample, needed only where the first layers do not tell (a network that begins with Flatten).
    generator : torch.Generator, optional
        Source of drawn weights.

    Returns
    -------
    SharedNetwork

    Raises
    ------
    ValueError
        A layer that cannot be shared, an unknown layer name, ranks or eps out of range, models that differ from the
        template, a wrong number of heads or models.

    Examples
    --------
    >>> from companion.factorized import Tucker
    >>> network = share(nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1)), 10, by=Tucker, ranks=0.5)
    >>> network(torch.randn(7, 64)).shape
    torch.Size([10, 7, 1])
    """
    check_convertible(template)
    if n_tasks < 1:
        raise ValueError(f"n_tasks must be at least 1; got {n_tasks}")
    names = [name for name, module in template.named_modules() if is_layer(module)]
    head = _head_name(template, n_tasks, heads)
    models = None if from_models is None else _layers_of(template, from_models, n_tasks, head, heads)
    settings = _Settings(n_tasks, eps, rule, fold, balance, generator)
    formats = _formats(by, template, names)
    all_ranks = _per_layer(ranks, names, "ranks", None)
    layers: dict[str, TaskLayer | TaskNorm] = {}

    def make_layer(name: str, module: nn.Module) -> nn.Module:
        if name == head:
            return nn.Identity()
        given = None if models is None else [model[name] for model in models]
        layers[name] = settings.layer(name, module, formats[name], all_ranks[name], given)
        return layers[name]

    body = convert(template, make_layer, n_tasks)
    if sample_ndim is None:
        sample_ndim = _sample_ndim(template)
    own = None if head is None or heads is None else (head, *settings.heads(template, head, heads, models))
    return SharedNetwork(template, body, layers, n_tasks, sample_ndim, own).train(template.training)


class _Settings:
    """Choices that are the same for every layer."""

    def __init__(
        self, n_tasks: int, eps: float, rule: str, fold: bool, balance: bool, generator: torch.Generator | None
    ) -> None:
        self.n_tasks, self.eps, self.rule = n_tasks, eps, rule
        self.fold, self.balance, self.generator = fold, balance, generator

    def layer(
        self, name: str, module: nn.Module, fmt: Format, ranks: Ranks | None, given: list[nn.Module] | None
    ) -> TaskLayer | TaskNorm:
        """A layer of all tasks."""
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
            layer = _make(module, self.weight(name, module, fmt, ranks, given).to(module.weight))
            if layer.bias is not None:
                with torch.no_grad():
                    layer.bias.copy_(self.bias(module, layer.bias, given))
            return layer
        if not issubclass(fmt, Tied | Independent):
            raise ValueError(f"layer {name!r} normalises, so it can be Independent or Tied; got {fmt.__name__}")
        norm = norm_of_tasks(module, self.n_tasks, issubclass(fmt, Tied))
        if given is not None:
            norm.load_(given)
        return norm

    def weight(
        self, name: str, module: Plain, fmt: Format, ranks: Ranks | None, given: list[nn.Module] | None
    ) -> FactorizedTensor:
        """Factors of the weights of one layer."""
        try:
            if given is not None:
                W = torch.stack([to_modes(model.state_dict()["weight"]) for model in given], dim=-1)
                return fmt.from_weights(W, self.eps, ranks, self.rule, self.fold, self.balance)
            shape = (*to_modes(module.weight).shape, self.n_tasks)
            return fmt.random(shape, ranks, None, self.generator, self.fold, self.balance)
        except (ValueError, TypeError) as error:
            raise type(error)(f"layer {name!r}, weights {tuple(module.weight.shape)}: {error}") from error

    def bias(self, module: Plain, bias: Tensor, given: list[nn.Module] | None) -> Tensor:
        """Biases of the given models, or drawn as a plain layer does; the mean where there is one for all tasks."""
        if given is None:
            return uniform(tuple(bias.shape), module.weight[0].numel(), self.generator)
        biases = torch.stack([model.state_dict()["bias"] for model in given])
        return biases if bias.ndim == 2 else biases.mean(dim=0)

    def heads(
        self, template: nn.Module, head: str, sizes: Sequence[int], models: list[dict[str, nn.Module]] | None
    ) -> tuple[TaskHeads, bool]:
        """Heads of all tasks, and whether the rest of the network can run without them."""
        old = template.get_submodule(head)
        assert isinstance(old, nn.Linear)  # _head_name looked for one
        new = TaskHeads(old.in_features, list(sizes), old.bias is not None, self.generator).to(old.weight)
        for t, model in enumerate(models or []):
            new.load_(t, model[head])
        return new, _ends_with(template, old)


def to_modes(weight: Tensor) -> Tensor:
    """torch's (O, I) or (M, C, ...) -> (I, O) or (..., C, M), the order in which factors have the modes."""
    return weight.permute(*range(2, weight.ndim), 1, 0)


def _make(module: Plain, weight: FactorizedTensor) -> TaskLayer:
    if isinstance(module, nn.Linear):
        return TaskLinear(weight, module.bias is not None)
    kind = TaskConv1d if isinstance(module, nn.Conv1d) else TaskConv2d
    return kind(
        weight,
        module.bias is not None,
        module.stride,
        module.padding,
        module.dilation,
        module.groups,
        module.padding_mode,
    )


def _formats(by: Format | Mapping[str, Format], template: nn.Module, names: Sequence[str]) -> dict[str, Format]:
    """Format of every layer; one format for all means the weights, and normalisation only where all is tied."""
    formats = _per_layer(by, names, "by", Independent)
    for name, fmt in formats.items():
        if not (isinstance(fmt, type) and issubclass(fmt, FactorizedTensor)):
            raise TypeError(f"by must be a format of companion.factorized, or a dict from layer names; got {fmt!r}")
        if not isinstance(by, Mapping) and not isinstance(template.get_submodule(name), LINEAR):
            formats[name] = Tied if issubclass(fmt, Tied) else Independent
    return formats


def _per_layer(given: Any, names: Sequence[str], argument: str, default: Any) -> dict[str, Any]:
    """What was given for every layer or for some, by name."""
    if not isinstance(given, Mapping):
        return {name: default if given is None else given for name in names}
    unknown = sorted(set(given) - set(names))
    if unknown:
        raise ValueError(f"{argument} names layers that the template does not have: {unknown}; it has {list(names)}")
    return {name: given.get(name, default) for name in names}


def _head_name(template: nn.Module, n_tasks: int, heads: Sequence[int] | None) -> str | None:
    if heads is None:
        return None
    if len(heads) != n_tasks:
        raise ValueError(
            f"heads must hold a number of outputs for each of {n_tasks} tasks; got {len(heads)}: {heads!r}"
        )
    found = [name for name, module in template.named_modules() if isinstance(module, nn.Linear)]
    if not found:
        raise ValueError("heads take the place of the last Linear layer; the template has none")
    if found[-1] == "":
        raise ValueError("heads take the place of the last Linear layer; a template of one layer has nothing to share")
    return found[-1]


def _ends_with(template: nn.Module, layer: nn.Module) -> bool:
    """Whether a chain of modules has ``layer`` at its end; code of its own may do anything with its outputs."""
    while type(template) is nn.Sequential and len(template):
        template = template[-1]
    return template is layer


def _layers_of(
    template: nn.Module, models: Sequence[nn.Module], n_tasks: int, head: str | None, heads: Sequence[int] | None
) -> list[dict[str, nn.Module]]:
    """Layers of every model by name, after a check that they are those of the template."""
    if len(models) != n_tasks:
        raise ValueError(f"from_models must hold one model for each of {n_tasks} tasks; got {len(models)}")
    wanted = {name: module for name, module in template.named_modules() if is_layer(module)}
    found = []
    for t, model in enumerate(models):
        layers = {name: module for name, module in model.named_modules() if is_layer(module)}
        if list(layers) != list(wanted):
            raise ValueError(
                f"from_models[{t}] must have the layers {list(wanted)} of the template; got {list(layers)}"
            )
        for name, module in wanted.items():
            size = None if heads is None or name != head else heads[t]
            _check_layer(f"from_models[{t}]: layer {name!r}", module, layers[name], size)
        found.append(layers)
    return found


def _check_layer(where: str, wanted: nn.Module, found: nn.Module, n_outputs: int | None) -> None:
    if type(found) is not type(wanted):
        raise ValueError(f"{where} must be a {type(wanted).__name__}; got {type(found).__name__}")
    for key, value in wanted.state_dict().items():
        other = found.state_dict().get(key)
        shape = value.shape if n_outputs is None else (n_outputs, *value.shape[1:])
        if other is None or tuple(other.shape) != tuple(shape) or other.dtype != value.dtype:
            came = "none" if other is None else f"{tuple(other.shape)}, {other.dtype}"
            hint = "" if n_outputs is not None else ". Tasks whose last layers differ in size take heads="
            raise ValueError(f"{where} must have {key} {tuple(shape)}, {value.dtype}; got {came}{hint}")


def _sample_ndim(template: nn.Module) -> int | None:
    """Axes of one sample, from the first module that tells."""
    tells = {nn.Linear: 1, nn.Conv1d: 2, nn.Conv2d: 3, nn.BatchNorm2d: 3}
    for module in template.modules():
        if type(module) in tells:
            return tells[type(module)]
        name = type(module).__name__
        if isinstance(module, nn.MaxPool1d | nn.AvgPool1d | nn.AdaptiveAvgPool1d | nn.AdaptiveMaxPool1d):
            return 2
        if name.endswith("Pool2d"):
            return 3
        if (is_plain(module) or is_layer(module)) and not isinstance(module, ELEMENTWISE):
            return None  # Flatten, LayerNorm and the like take samples of any kind
    return None
