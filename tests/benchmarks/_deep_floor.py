"""The least time that a training step can take: arithmetic and traffic counted, rates of the machine measured.

Operations run one after the other, so their times add up; within an operation arithmetic and traffic can overlap, so it
takes the longer of the two. What is counted is what the mathematics asks of torch's operations: every operand is read
from memory once and every result is written once, and nothing is kept from one operation to the next. (Where a network
is so small that caches keep it, a step can be faster than that.) Biases and the loss are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from _deep_cases import LARGE, STL, Case, latent_tasks
from torch import nn

BYTES = 4  # of a number, in float32


class Work(NamedTuple):
    """One operation: arithmetic of matrix products, and numbers that go through memory."""

    flops: float
    read: float
    written: float

    @property
    def bytes(self) -> float:
        """All that goes through memory."""
        return BYTES * (self.read + self.written)


class Rates(NamedTuple):
    """What the machine can do: operations of a large matrix product, bytes read and bytes written, per second."""

    flops: float
    read: float
    written: float


class Layer(NamedTuple):
    """A module of the template as a batch of one task sees it: numbers in, out, and in its weight, and products."""

    inputs: int
    outputs: int
    weights: int  #: 0 for a module without
    products: int  #: multiply-adds


def floor_seconds(work: Sequence[Work], rates: Rates) -> float:
    """The least time of these operations."""
    return sum(max(w.flops / rates.flops, BYTES * (w.read / rates.read + w.written / rates.written)) for w in work)


def floors(cases: Sequence[Case], summaries: Sequence[dict[str, Any]], rates: Rates) -> list[dict[str, Any]]:
    """What a step without sharing and one of LAF ask for, and how long that takes at least.

    Parameters
    ----------
    cases : sequence of Case
        Those whose weights caches keep are passed over.
    summaries : sequence of dict
        What was measured of each.
    rates : Rates

    Returns
    -------
    list of dict
        ``case``, ``method``, ``gflop``, ``gbyte``, ``seconds``, and the ``fraction`` that these are of the seconds
        measured: 1 at the floor.
    """
    found = []
    for case, summary in zip(cases, summaries, strict=True):
        layers = layers_of(case.template(), case.B, case.sample) if case.kind in LARGE else []
        for name, K in {STL: None, **latent_tasks(case.T)}.items():
            if layers and name in summary["ratios"]:
                work = step_work(layers, case.T, K)
                seconds = floor_seconds(work, rates)
                counts = {"gflop": sum(w.flops for w in work) / 1e9, "gbyte": sum(w.bytes for w in work) / 1e9}
                fraction = seconds / (case.T * summary["seconds_per_task"][name])
                found.append({"case": case.name, "method": name, **counts, "seconds": seconds, "fraction": fraction})
    return found


# --- counting ---------------------------------------------------------------------------------------------------------


def layers_of(template: nn.Module, B: int, sample: Sequence[int]) -> list[Layer]:
    """The modules that a batch (B, *sample) goes through; what only changes the view of it is left out."""
    layers = []

    def look(module: nn.Module, args: tuple[torch.Tensor], y: torch.Tensor) -> None:
        if isinstance(module, nn.Flatten):
            return
        weight = getattr(module, "weight", None)
        weights = 0 if weight is None else weight.numel()
        # Every output of a layer is a product with one row of its weight, (O, I) or (M, C, H, W).
        products = 0 if weight is None else y.numel() * weight[0].numel()
        layers.append(Layer(args[0].numel(), y.numel(), weights, products))

    for module in template.modules():
        if not any(True for _ in module.children()):
            module.register_forward_hook(look)
    with torch.no_grad():
        template(torch.zeros(B, *sample))
    return layers


def step_work(layers: Sequence[Layer], T: int, K: int | None = None) -> list[Work]:
    """Operations of one training step of T tasks, with weights of their own or composed from K latent tasks (LAF)."""
    work = []
    for n, layer in enumerate(layers):
        if layer.weights:
            work += _weights_work(layer, T, n == 0)
            work += _adam_work(T * layer.weights) if K is None else _latent_work(layer.weights, T, K)
        else:
            x, y = T * layer.inputs, T * layer.outputs
            work += [Work(0, x, y), Work(0, 2 * y, x)]  # backward: the gradient, and what was kept of the forward pass
    return work


def _weights_work(layer: Layer, T: int, first: bool) -> list[Work]:
    """Forward, the gradient of the weights, and that of the inputs, which the first layer does without."""
    x, y, W, flops = T * layer.inputs, T * layer.outputs, T * layer.weights, 2 * T * layer.products
    return [Work(flops, x + W, y), Work(flops, x + y, W), *([] if first else [Work(flops, y + W, x)])]


def _latent_work(P: int, T: int, K: int) -> list[Work]:
    """Compose T weights of P numbers each from K latent ones, the gradients of latent weights and codes, and Adam."""
    flops = 2 * T * K * P
    compose, latent, codes = Work(flops, K * P, T * P), Work(flops, T * P, K * P), Work(flops, T * P + K * P, K * T)
    return [compose, latent, codes, *_adam_work(K * P + K * T)]


def _adam_work(n: int) -> list[Work]:
    """Reads parameters, gradients and two moments, and writes all but the gradients."""
    return [Work(0, 4 * n, 3 * n)]


# --- measuring --------------------------------------------------------------------------------------------------------


def measure_rates(seconds_of: Callable[[Callable[[], object]], float], device: torch.device, smoke: bool) -> Rates:
    """The best of several runs each, so that the floor is one.

    Parameters
    ----------
    seconds_of : callable
        Runs something and says how long it took.
    device : torch.device
    smoke : bool
        Small sizes, whose rates mean nothing.
    """
    n = (100 if smoke else 2000) * (1 if device.type == "cpu" else 4)
    numbers = 10**5 if smoke else 64 * 10**6 * (1 if device.type == "cpu" else 8)
    A, C, large = torch.randn(n, n, device=device), torch.empty(n, n, device=device), torch.ones(numbers, device=device)
    best = lambda run: min(seconds_of(run) for _ in range(7))
    product = best(lambda: torch.mm(A, A, out=C))
    read, written = best(large.sum), best(lambda: large.fill_(1.0))
    return Rates(2 * n**3 / product, BYTES * numbers / read, BYTES * numbers / written)


def better(one: Rates, other: Rates) -> Rates:
    """The higher of the rates that were measured at two times."""
    return Rates(*map(max, one, other))
