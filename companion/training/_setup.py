"""What surrounds the loop: the accelerator, modes, Ctrl-C, the progress bar."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from accelerate import Accelerator
from accelerate.state import AcceleratorState, is_initialized
from torch import Tensor, nn
from tqdm import tqdm

from companion.training.evaluation import device_of
from companion.training.run import Run


@contextmanager
def one_accelerator(given: Accelerator | None, network: nn.Module) -> Iterator[Accelerator]:
    """The accelerator that was given, or one for this run, which leaves no trace; the network is on its device."""
    fresh = given is None and not is_initialized()
    on_cpu = device_of(network).type == "cpu"
    try:
        accelerator = given
        if accelerator is None:
            # Accelerators of a process have one device, the first one's; a network that is alone stays where it is.
            accelerator = Accelerator(cpu=on_cpu and fresh, device_placement=False)
            accelerator.device_placement = accelerator.num_processes > 1
        _check_accelerator(accelerator, given is not None or fresh)
        if accelerator.device_placement:
            network.to(accelerator.device)
        yield accelerator
    finally:
        if fresh:
            # accelerate keeps device and precision for the process: who makes an accelerator later is free to choose.
            AcceleratorState._reset_state(reset_partial_state=True)


def _check_accelerator(accelerator: Accelerator, chosen: bool) -> None:
    kind = accelerator.distributed_type.value
    if kind != "NO" and not kind.startswith("MULTI_"):
        raise ValueError(f"accelerator must be for one process or data-parallel ones; got {kind}")
    if accelerator.gradient_accumulation_steps != 1:
        found = accelerator.gradient_accumulation_steps
        raise ValueError(f"accelerator must not accumulate gradients, for a batch is a step; got {found} batches")
    if accelerator.mixed_precision not in ("no", "bf16"):
        raise ValueError(
            f"the accelerator's mixed_precision must be 'no' or 'bf16'; got {accelerator.mixed_precision!r}, whose "
            "scaled losses skip steps, so that budgets would not be kept"
        )
    if accelerator.mixed_precision != "no" and not chosen:
        raise ValueError(
            f"this process has an accelerator with mixed_precision={accelerator.mixed_precision!r}, which holds for "
            "all of the process: pass it as accelerator"
        )


@contextmanager
def prepared(network: nn.Module, accelerator: Accelerator) -> Iterator[nn.Module]:
    """The network as the accelerator wants to call it; the network itself gets no marks, and is not kept."""
    shell = _Shell(network)
    model = accelerator.prepare_model(shell, device_placement=False)
    try:
        yield model
    finally:
        accelerator._models = [kept for kept in accelerator._models if kept is not shell and kept is not model]


class _Shell(nn.Module):
    """Has attributes and hooks put on it in place of the network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Any) -> Any:
        return self.network(x)


class HeldInterrupt:
    """Holds back the first Ctrl-C, which could come in the middle of a step; a second one acts at once.

    Attributes
    ----------
    pending : bool
        Whether there was one.
    """

    def __init__(self, active: bool) -> None:
        self.pending = False
        self._previous = signal.getsignal(signal.SIGINT)
        # Only the main thread may set handlers; an interrupt that is ignored stays so.
        self._active = active and threading.current_thread() is threading.main_thread() and callable(self._previous)

    def __enter__(self) -> HeldInterrupt:
        if self._active:
            signal.signal(signal.SIGINT, self._hold)
        return self

    def __exit__(self, *_: object) -> None:
        if self._active:
            signal.signal(signal.SIGINT, self._previous)

    def _hold(self, *_: object) -> None:
        self.pending = True
        signal.signal(signal.SIGINT, self._previous)


class Bar:
    """A progress bar with the loss, renewed now and then: reading a loss waits for its device."""

    def __init__(self, run: Run, steps: int, progress: bool | None) -> None:
        # tqdm shows itself on terminals only if disable is None.
        disable = True if not run.accelerator.is_main_process else None if progress is None else not progress
        self._bar = tqdm(total=steps, initial=run.step, disable=disable, desc="training", unit="step")
        self._step, self._shown, self._task_weights = run.step, time.perf_counter(), run.task_weights

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.update(self._step - self._bar.n)
        self._bar.close()

    def update(self, step: int, losses: Tensor) -> None:
        """Show the number of steps and the weighted sum of the losses (T,), if it is time."""
        self._step = step
        if self._bar.disable or time.perf_counter() < self._shown + 0.2:
            return
        self._shown = time.perf_counter()
        self._bar.set_postfix_str(f"loss {float((self._task_weights * losses).nansum()):.4g}", refresh=False)
        self._bar.update(step - self._bar.n)
