"""Everything that changes while a network is trained."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from companion.records import to_json
from companion.training import checkpoint, loaders
from companion.training.history import History
from companion.training.stream import Stream

# Settings of an optimizer on which its steps do not depend, up to rounding.
IMPLEMENTATION = ("fused", "foreach", "capturable", "differentiable")


class Run:
    """A network, its optimizer, where it is in the data, what was measured so far, and the best weights.

    Parameters
    ----------
    network : module
    optimizer : torch optimizer
        Of parameters of the network.
    stream : Stream
    task_weights : (T,) tensor or None
        ``None`` stands for ones.
    validated : bool
        Whether the best weights are chosen on validation data.
    accelerator : accelerate.Accelerator
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        stream: Stream,
        task_weights: Tensor | None,
        validated: bool,
        accelerator: Accelerator,
    ) -> None:
        self.network, self.optimizer, self.stream, self.accelerator = network, optimizer, stream, accelerator
        self.task_weights: Tensor | float = 1.0 if task_weights is None else task_weights
        self.history = History()
        self.best: dict[str, Any] | None = None
        key = {
            "number of processes": accelerator.num_processes,
            "device": stream.device.type,
            "mixed precision": accelerator.mixed_precision,
            "optimizer": _describe(optimizer, network),
            "order of the data": loaders.description(stream.batches),
            "weights of the tasks": None if task_weights is None else task_weights.tolist(),
            "use of validation data": validated,
        }
        self._key = {name: to_json(value).strip() for name, value in key.items()}
        self._recent: list[Tensor] = []  # losses that are not in the history yet
        self._clock, self._timed = time.perf_counter(), True  # the time until the last step is in the history

    # --- what was measured -------------------------------------------------------------------------------------------

    @property
    def step(self) -> int:
        """Optimizer steps taken."""
        return self.history.steps + len(self._recent)

    def over_processes(self, sums: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Sums and numbers (T,) of all processes together, without gradient."""
        if self.accelerator.num_processes == 1:
            return sums.detach(), counts
        totals = self.accelerator.reduce(torch.stack([sums.detach(), counts]), "sum")
        return totals[0], totals[1]

    def record(self, losses: Tensor) -> None:
        """Add the losses (T,) of one step."""
        self._recent.append(losses)
        self._timed = False
        if len(self._recent) == 1000:  # many small tensors, perhaps on another device
            self._collect()

    def judge(self, sums: Tensor, counts: Tensor) -> None:
        """Add the sums and numbers (T,) of an evaluation, and keep the weights if they are the best so far."""
        total = float((self.task_weights * sums / counts.clamp(min=1)).sum())
        if self.history.evaluated(self.step, sums / counts, total):
            self.best = {name: _copy(value) for name, value in self.network.state_dict().items()}

    def up_to_date(self) -> History:
        """The history with the last step, and with the time until now unless that is counted already."""
        self._collect()
        if not self._timed:
            now = time.perf_counter()
            self.history.seconds += now - self._clock
            self._clock, self._timed = now, True
        return self.history

    def restore_best(self) -> None:
        """Give the network the best weights, if there are any."""
        if self.best is not None:
            self.network.load_state_dict(self.best)

    def _collect(self) -> None:
        if self._recent:
            recent = torch.stack(self._recent).cpu()  # (steps since then, T)
            self.history.training = torch.cat([self.history.training, recent]) if self.history.steps else recent
            self._recent = []

    # --- the file ----------------------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Write a checkpoint: the main process does, with the random states of all, so all must call this."""
        random = {"now": self.stream.random_state(), "epoch": self.stream.epoch_start}
        content = {
            "key": self._key,
            "network": dict(self.network.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "random": gather_object([random]),
            "history": self.up_to_date().state(),
            "best": self.best,
        }
        if self.accelerator.is_main_process:
            checkpoint.write(path, content)
        self.accelerator.wait_for_everyone()

    def load(self, path: Path, steps: int) -> None:
        """Go on from a checkpoint; nothing is changed if it does not fit."""
        content = checkpoint.read(path)
        checkpoint.check_key(content["key"], self._key, path)
        for part in ("network", "best"):
            if part == "network" or content[part] is not None:
                checkpoint.check_tensors(content[part], self.network.state_dict(), path, "network")
        checkpoint.check_optimizer(content["optimizer"], self.optimizer.state_dict(), path)
        n_processes = self.accelerator.num_processes
        random = {"now": self.stream.random_state(), "epoch": self.stream.epoch_start}
        checkpoint.check_random(content["random"], random, n_processes, path)
        history = checkpoint.read_history(content["history"], steps, path)
        for group, own in zip(content["optimizer"]["param_groups"], self.optimizer.param_groups, strict=True):
            group.update({name: own[name] for name in IMPLEMENTATION if name in own})
        self.network.load_state_dict(content["network"])
        self.optimizer.load_state_dict(content["optimizer"])
        random = content["random"][self.accelerator.process_index]
        self.stream.go_on(random["now"], random["epoch"])
        self.history, self.best = history, content["best"]


def _describe(optimizer: torch.optim.Optimizer, network: nn.Module) -> dict[str, Any]:
    """Class, settings and names of the parameters of an optimizer, in plain values."""
    names = {parameter: name for name, parameter in network.named_parameters()}
    groups = []
    for group in optimizer.param_groups:
        foreign = [tuple(parameter.shape) for parameter in group["params"] if parameter not in names]
        if foreign:
            raise ValueError(f"optimizer must be of parameters of the network; one of shape {foreign[0]} is not")
        left_out = ("params", "param_names", *IMPLEMENTATION)  # names tell parameters; printing them is slow
        settings = {name: repr(value) for name, value in group.items() if name not in left_out}
        groups.append({**settings, "params": [names[parameter] for parameter in group["params"]]})
    return {"class": type(optimizer).__name__, "groups": groups}


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value
