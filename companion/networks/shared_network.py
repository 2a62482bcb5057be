"""A network of T tasks whose layers share weights, in any of the forms that data may come in."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call

from companion.factorized import Tied
from companion.layers import TaskBatchNorm, TaskHeads, TaskLayer, TaskNorm, TiedNorm
from companion.layers.stacking import expand_tasks
from companion.networks.conversion import BATCH_NORM, LayerOfAllTasks, OneTaskForward
from companion.networks.weights_file import load_weights, save_weights
from companion.sharing import Array, sharing_strength, task_similarity


class SharedNetwork(nn.Module):
    """Networks of T tasks in one; :func:`~companion.networks.share` makes it.

    Parameters
    ----------
    template : nn.Module
        Network of one task.
    body : nn.Module
        Its layers turned into layers of all tasks.
    layers : dict
        From the names of layers in the template to layers of all tasks, in the order of the template.
    n_tasks : int
    sample_ndim : int or None
        Axes of one sample; None where inputs do not tell and nobody said.
    heads : (str, TaskHeads, bool), optional
        Name of the layer that heads of different sizes replace, the heads, and whether it is the last of a chain, so
        that the rest of the network can run for all tasks at once.
    """

    def __init__(
        self,
        template: nn.Module,
        body: nn.Module,
        layers: dict[str, TaskLayer | TaskNorm],
        n_tasks: int,
        sample_ndim: int | None,
        heads: tuple[str, TaskHeads, bool] | None = None,
    ) -> None:
        super().__init__()
        self.body = body
        self._layers = layers  # the modules are those in the body, where they are registered
        self._template = (copy.deepcopy(template),)  # in a tuple, so that its weights are not ours
        self._n_tasks, self.sample_ndim = n_tasks, sample_ndim
        self.heads: TaskHeads | None = None
        self._head_name, self._head_is_last = "", True
        if heads is not None:
            self._head_name, self.heads, self._head_is_last = heads

    @property
    def n_tasks(self) -> int:
        """T."""
        return self._n_tasks

    @property
    def layers(self) -> dict[str, TaskLayer]:
        """Layers with factorised weights by their name in the template, in its order."""
        return {name: layer for name, layer in self._layers.items() if isinstance(layer, TaskLayer)}

    @property
    def n_parameters(self) -> int:
        """How many numbers are trained."""
        return sum(parameter.numel() for parameter in self.parameters())

    def forward(self, x: Tensor | Sequence[Tensor]) -> Tensor | list[Tensor]:
        """Outputs of all tasks.

        Parameters
        ----------
        x : tensor or list
            (B, ...) inputs that all tasks share, (T, B, ...) stacked inputs, or a list of T tensors (B_t, ...).

        Returns
        -------
        (T, B, ...) tensor, or a list of T tensors where the input was a list or the heads have sizes of their own
        """
        if isinstance(x, Tensor):
            return self._run(self._stack(x))
        self._check_list(x)
        counts = [len(x_t) for x_t in x]
        if min(counts) == max(counts):
            return list(self._run(torch.stack(list(x))))
        if self._rows_are_independent() and len(x) * max(counts) <= 2 * sum(counts):
            return self._run_padded(x, counts)
        if self.training and any(isinstance(module, TiedNorm) and module.pools for module in self.body.modules()):
            raise ValueError(
                "a tied batch normalisation takes its statistics over all tasks, which in training needs as many rows "
                f"of each; got {counts}"
            )
        return [self._run_one(t, x_t) for t, x_t in enumerate(x)]

    def _run(self, x: Tensor) -> Tensor | list[Tensor]:
        """(T, B, ...) through all layers at once, where the heads allow it."""
        if not self._head_is_last:
            return [self._run_one(t, x_t) for t, x_t in enumerate(x)]
        y = self.body(x)
        return y if self.heads is None else self.heads(y)

    def _run_padded(self, x: Sequence[Tensor], counts: Sequence[int]) -> list[Tensor]:
        """Rows that fill up tasks are computed and thrown away; cheaper than a loop unless there are many."""
        if not self._head_is_last:
            return [self._run_one(t, x_t) for t, x_t in enumerate(x)]
        filled = torch.stack([torch.cat([x_t, x_t.new_zeros(max(counts) - len(x_t), *x_t.shape[1:])]) for x_t in x])
        rows = [y_t[:n] for y_t, n in zip(self.body(filled), counts, strict=True)]
        return rows if self.heads is None else self.heads(rows)

    def _run_one(self, t: int, x: Tensor) -> Tensor:
        """Task t alone, with its composed weights in the template."""
        template = self._template[0]
        template.train(self.training)
        return functional_call(template, self._task_state(t), (x,), strict=False)

    def _rows_are_independent(self) -> bool:
        """Whether no row of a batch sees another: no batch statistics, and no code of which we cannot know."""
        for module in self.body.modules():
            if isinstance(module, OneTaskForward):
                return False
            if isinstance(module, (TaskBatchNorm, *BATCH_NORM)) and (module.training or module.running_mean is None):
                return False
        return True

    def _stack(self, x: Tensor) -> Tensor:
        """(T, B, ...) from shared or stacked inputs."""
        if self.sample_ndim is None:
            raise ValueError(
                "the template does not tell how many axes a sample has, so shared inputs (B, ...) cannot be told from "
                "stacked ones (T, B, ...): say it once, share(..., sample_ndim=3) for images (C, H, W)"
            )
        if x.ndim == self.sample_ndim + 1:
            return expand_tasks(x, self.n_tasks)
        if x.ndim == self.sample_ndim + 2 and x.shape[0] == self.n_tasks:
            return x
        axes = ", ".join(["·"] * self.sample_ndim)
        raise ValueError(
            f"x must be (B, {axes}) shared by all tasks, (T, B, {axes}) stacked with T={self.n_tasks}, or a list of T "
            f"tensors; got {tuple(x.shape)}. If a sample has another number of axes, say so: share(..., sample_ndim=)"
        )

    def _check_list(self, x: Sequence[Tensor]) -> None:
        if len(x) != self.n_tasks:
            raise ValueError(f"a list of inputs must hold one tensor for each of {self.n_tasks} tasks; got {len(x)}")
        shapes = {tuple(x_t.shape[1:]) for x_t in x}
        if len(shapes) > 1:
            raise ValueError(f"samples of all tasks must have one shape; got {sorted(shapes)}")

    def _task_state(self, t: int) -> dict[str, Tensor]:
        """Parameters and buffers of task t under their names in the template."""
        state = dict(self._constants())
        for name, layer in self._layers.items():
            state.update({f"{name}.{key}".lstrip("."): value[t] for key, value in _stacked_state(layer).items()})
        if self.heads is not None:
            bias = self.heads.task_bias(t)
            state[f"{self._head_name}.weight"] = self.heads.weights[t]
            state.update({} if bias is None else {f"{self._head_name}.bias": bias})
        return state

    def _constants(self) -> Iterator[tuple[str, Tensor]]:
        """Buffers of modules that are not layers, the same for every task."""
        for path, wrapper in self.body.named_modules():
            if isinstance(wrapper, OneTaskForward):
                ours = {
                    id(m) for layer in wrapper.modules() if isinstance(layer, LayerOfAllTasks) for m in layer.modules()
                }
                for inner, module in wrapper.module.named_modules(prefix=path):
                    if id(module) not in ours:
                        yield from ((f"{inner}.{key}".lstrip("."), value) for key, value in module._buffers.items())

    @torch.no_grad()
    def export(self, t: int) -> nn.Module:
        """The network of task t as the template is written, in plain torch modules with composed weights.

        Parameters
        ----------
        t : int
            Task, from 0 to T - 1.

        Returns
        -------
        nn.Module
            Knows nothing of this package; its outputs are those of task t.
        """
        if not 0 <= t < self.n_tasks:
            raise ValueError(f"task must be from 0 to {self.n_tasks - 1}; got {t}")
        network = copy.deepcopy(self._template[0])
        if self.heads is not None:
            owner, _, key = self._head_name.rpartition(".")
            size, has_bias = self.heads.sizes[t], self.heads.biases is not None
            new = nn.utils.skip_init(nn.Linear, self.heads.in_features, size, bias=has_bias)
            setattr(network.get_submodule(owner), key, new)
        like = next(self.parameters())
        network.to(device=like.device, dtype=like.dtype)
        state = self._task_state(t)
        for name, value in (*network.named_parameters(), *network.named_buffers()):
            value.copy_(state[name])
        return network.train(self.training)

    def add_task(self, n_outputs: int | None = None) -> int:
        """Give one more task a column in every task factor, a bias, a normalisation and, with heads, a head.

        Optimizers have to be made anew.

        Parameters
        ----------
        n_outputs : int, optional
            Outputs of its head, where tasks have heads of their own.

        Returns
        -------
        int
            Position of the new task.
        """
        if (self.heads is None) != (n_outputs is None):
            wanted = (
                "no n_outputs, for tasks have no heads" if self.heads is None else "n_outputs, the size of its head"
            )
            raise ValueError(f"add_task() needs {wanted}; got {n_outputs}")
        for layer in self._layers.values():
            layer.add_task()
        for module in self.body.modules():
            if isinstance(module, OneTaskForward):
                module.n_tasks += 1
        if self.heads is not None and n_outputs is not None:
            self.heads.add_task(n_outputs)
        self._n_tasks += 1
        return self._n_tasks - 1

    def sharing_strength(self, normalized: bool = True) -> dict[str, float]:
        """Sharing strength of every layer, from its task factor; see :func:`companion.sharing.sharing_strength`."""
        return {name: sharing_strength(layer.weight.task_factor(), normalized) for name, layer in self.layers.items()}

    def task_similarity(self) -> dict[str, Array]:
        """(T, T) cosines between the tasks' weights in every layer, which no choice of factors changes."""
        return {name: task_similarity(layer.weight.compose().flatten(0, -2)) for name, layer in self.layers.items()}

    def save(self, path: str | Path) -> None:
        """Write all weights to a safetensors file, aside first and then moved into place."""
        save_weights(self, path, self._layout())

    def load(self, path: str | Path) -> None:
        """Read weights that :meth:`save` wrote from a network made the same way.

        Raises
        ------
        FileNotFoundError
        ValueError
            The file is cut off or something else, or another network's; nothing has changed then.
        """
        load_weights(self, path, self._layout())

    def _layout(self) -> dict[str, str]:
        layout = {"tasks": str(self.n_tasks), "heads": str(self.heads)}
        return layout | {
            name: f"{type(layer.weight).__name__}({layer.weight.extra_repr()})" for name, layer in self.layers.items()
        }

    def summary(self) -> str:
        """A line per layer: format, shape of its weights, ranks, parameters, and how many separate ones would be."""
        lines = [("layer", "format", "weights (..., T)", "ranks", "parameters", "separate")]
        for name, layer in self.layers.items():
            W = layer.weight
            ranks = "-" if W.n_parameters == 0 or isinstance(W, Tied) else str(W.ranks)
            separate = self.n_tasks * (torch.Size(W.shape[:-1]).numel())
            lines.append((name, type(W).__name__, str(W.shape), ranks, f"{W.n_parameters:,}", f"{separate:,}"))
        if self.heads is not None:
            n = sum(weight.numel() for weight in self.heads.weights)
            lines.append((self._head_name, "heads", f"O_t = {self.heads.sizes}", "-", f"{n:,}", f"{n:,}"))
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines
        )


def _stacked_state(layer: TaskLayer | TaskNorm) -> dict[str, Tensor]:
    """State of a layer of all tasks under the names of the template's, a value per task each."""
    if isinstance(layer, TaskNorm):
        return layer.task_state()
    biases = layer.task_biases()
    return {"weight": layer.task_weights()} | ({} if biases is None else {"bias": biases})
