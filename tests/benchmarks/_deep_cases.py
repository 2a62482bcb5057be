"""What bench_deep.py measures: networks of T tasks, in every way to train them, and one step of training.

A step is ``zero_grad``, forward, loss, backward and a step of fused Adam. The loss is the mean squared output, summed
over tasks, because it costs next to nothing and says the same to everybody. The learning rate is so small that the
weights hardly move: every step does the same work.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from companion.factorized import LAF, FactorizedTensor, Independent, TensorRing, TensorTrain, Tucker
from companion.networks import SharedNetwork, hard_sharing, share
from companion.training import adam

LEARNING_RATE = 1e-5
SEED = 0

# --- templates --------------------------------------------------------------------------------------------------------


def mlp(*sizes: int) -> nn.Module:
    """Fully connected layers with ReLU between them."""
    layers: list[nn.Module] = []
    for I, O in pairwise(sizes):
        layers += [nn.Linear(I, O), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def lenet(first: int, second: int, hidden: int, outputs: int) -> nn.Module:
    """Network of the MNIST experiments in the DMTRL paper, without padding: 28-24-12-9-4 pixels."""
    return nn.Sequential(
        *(nn.Conv2d(1, first, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(first, second, 4), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(16 * second, hidden), nn.ReLU(), nn.Linear(hidden, outputs)),
    )


# --- training ---------------------------------------------------------------------------------------------------------


def loss(y: Tensor) -> Tensor:
    """Mean square of outputs (B, O) of one task, or the sum of those of T tasks (T, B, O)."""
    return y.square().sum() / y.shape[-2:].numel()


class Training:
    """A network that is trained on one batch by one fused Adam."""

    def __init__(self, network: nn.Module, x: Tensor) -> None:
        self.network, self.x = network.to(x.device), x
        self.optimizer = adam(network.parameters(), LEARNING_RATE)

    @property
    def n_parameters(self) -> int:
        """How many numbers are trained."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    def outputs(self) -> Tensor:
        """(T, B, O) outputs, or (B, O) of a single task."""
        return self.network(self.x)

    def step(self) -> None:
        """One step of training."""
        self.optimizer.zero_grad()
        loss(self.outputs()).backward()
        self.optimizer.step()


class TrainingsInTurn:
    """T networks, each trained by itself: a loss, a backward pass and an optimizer per task."""

    def __init__(self, networks: Sequence[nn.Module], x: Tensor) -> None:
        self.trainings = [Training(network, x_t) for network, x_t in zip(networks, x, strict=True)]

    @property
    def n_parameters(self) -> int:
        """How many numbers are trained."""
        return sum(training.n_parameters for training in self.trainings)

    def outputs(self) -> Tensor:
        """(T, B, O) outputs."""
        return torch.stack([training.outputs() for training in self.trainings])

    def step(self) -> None:
        """One step of training of every task."""
        for training in self.trainings:
            training.step()


class Loop(nn.ModuleList):
    """T networks as one that calls them one after the other."""

    def forward(self, x: Tensor) -> Tensor:
        """(T, B, ...) -> (T, B, O)."""
        return torch.stack([network(x_t) for network, x_t in zip(self, x, strict=True)])


class LoopChannelsLast(Loop):
    """The same, its inputs and kernels with channels last in memory, which convolutions on a CPU prefer."""

    def forward(self, x: Tensor) -> Tensor:
        """(T, B, C, H, W) -> (T, B, O)."""
        return torch.stack([f(x_t.to(memory_format=torch.channels_last)) for f, x_t in zip(self, x, strict=True)])


class Vmap(nn.Module):
    """T networks as one that calls their code once, under :func:`torch.vmap`, with stacked parameters."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        stacked, _ = stack_module_state(list(networks))
        self.names = list(stacked)
        self.stacked = nn.ParameterList(value.detach() for value in stacked.values())
        self._skeleton = (copy.deepcopy(networks[0]).to("meta"),)  # in a tuple: its parameters are not ours

    def forward(self, x: Tensor) -> Tensor:
        """(T, B, ...) -> (T, B, O)."""
        parameters = dict(zip(self.names, self.stacked, strict=True))
        return torch.vmap(lambda state, x_t: functional_call(self._skeleton[0], state, (x_t,)))(parameters, x)


# --- cases and contestants --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Method:
    """A way to train networks of T tasks.

    Attributes
    ----------
    name : str
    train : callable
        From a case and its inputs (T, B, ...) to a training.
    same_as : str or None
        Name of a method whose network computes the same.
    obstacle : callable
        Why it cannot take part here; None where it can.
    """

    name: str
    train: Callable[[Case, Tensor], Training | TrainingsInTurn]
    same_as: str | None = None
    obstacle: Callable[[], str | None] = lambda: None


@dataclass(frozen=True)
class Case:
    """A network, a number of tasks, and the contestants.

    Attributes
    ----------
    name, kind : str
        Cases of one kind have a line to reach in common.
    network : callable
        Makes the network of one task.
    sizes : tuple of int
        Its arguments.
    sample : tuple of int
        Shape of one input.
    T, B : int
        Tasks, and samples of each in a batch.
    methods : tuple of Method
    rounds, steps : int
        Turns of every contestant, and the steps of each that are timed.
    """

    name: str
    kind: str
    network: Callable[..., nn.Module]
    sizes: tuple[int, ...]
    sample: tuple[int, ...]
    T: int
    B: int
    methods: tuple[Method, ...]
    rounds: int
    steps: int

    def template(self) -> nn.Module:
        """Network of one task."""
        return self.network(*self.sizes)

    def inputs(self, device: torch.device) -> Tensor:
        """(T, B, ...) standard normal inputs, other ones for every task."""
        generator = torch.Generator().manual_seed(SEED)
        return torch.randn(self.T, self.B, *self.sample, generator=generator).to(device)

    def share(self, by: type[FactorizedTensor], ranks: float | int | None = None) -> SharedNetwork:
        """The network of T tasks; the same arguments give the same weights."""
        return share(self.template(), self.T, by, ranks=ranks, generator=torch.Generator().manual_seed(SEED))

    def models(self) -> list[nn.Module]:
        """T plain networks with the weights of the batched independent one."""
        network = self.share(Independent)
        return [network.export(t) for t in range(self.T)]


def factorised(
    name: str,
    by: type[FactorizedTensor],
    ranks: float | int | None = None,
    contraction: str = "auto",
    same_as: str | None = None,
) -> Method:
    """A network from :func:`companion.networks.share`."""

    def train(case: Case, x: Tensor) -> Training:
        network = case.share(by, ranks)
        for layer in network.layers.values():
            layer.contraction = contraction
        return Training(network, x)

    return Method(name, train, same_as)


def hard(case: Case, x: Tensor) -> Training:
    """All layers in common but the last."""
    template, generator = case.template(), torch.Generator().manual_seed(SEED)
    n_layers = sum(isinstance(module, nn.Linear | nn.Conv2d) for module in template)
    return Training(hard_sharing(template, case.T, n_layers - 1, generator=generator), x)


def compiled(case: Case, x: Tensor) -> Training:
    """Tucker at half ranks in ``torch.compile``."""
    return Training(torch.compile(case.share(Tucker, 0.5)), x)


def no_compiler() -> str | None:
    """Why torch cannot compile for this processor; None where it can."""
    found = any(shutil.which(name) for name in ("c++", "g++", "clang++", "cl"))
    return None if found else "no C++ compiler on the path"


def loop_channels_last(case: Case, x: Tensor) -> Training:
    """Kernels turned once, before training."""
    return Training(LoopChannelsLast(case.models()).to(memory_format=torch.channels_last), x)


BATCHED = factorised("STL-batched", Independent)
STL = BATCHED.name
LOOPS = (
    Method("loop, an Adam each", lambda case, x: TrainingsInTurn(case.models(), x), STL),
    Method("loop, one Adam", lambda case, x: Training(Loop(case.models()), x), STL),
)
LOOP_CHANNELS_LAST = Method("loop, one Adam, channels last", loop_channels_last, STL)
VMAP = Method("torch.func.vmap", lambda case, x: Training(Vmap(case.models()), x), STL)
HARD = Method("hard sharing, all but the last layer", hard)
LAF_FULL, LAF_HALF = factorised("LAF, K=T", LAF, 1.0), factorised("LAF, K=T/2", LAF, 0.5)
LAF_FIVE = factorised("LAF, K=5", LAF, 5)
TUCKER = {part: factorised(f"Tucker, {part} ranks", Tucker, r) for part, r in (("full", 1.0), ("half", 0.5))}
TUCKER["quarter"] = factorised("Tucker, quarter ranks", Tucker, 0.25)
TRAIN = {part: factorised(f"tensor train, {part} ranks", TensorTrain, r) for part, r in (("full", 1.0), ("half", 0.5))}
TRAIN["quarter"] = factorised("tensor train, quarter ranks", TensorTrain, 0.25)
FORCED = tuple(
    factorised(f"{auto.name}, {way}", by, 0.5, way, same_as=auto.name)
    for auto, by in ((TUCKER["half"], Tucker), (TRAIN["half"], TensorTrain))
    for way in ("composed", "activations")
)
RING = factorised("tensor ring, quarter ranks", TensorRing, 0.25)
COMPILED = Method("Tucker, half ranks, compiled", compiled, TUCKER["half"].name, no_compiler)

SEPARATE = (BATCHED, *LOOPS, VMAP, HARD)
EVERYBODY = (*SEPARATE, LAF_FULL, LAF_HALF, *TUCKER.values(), *TRAIN.values(), *FORCED, RING)
GROWING = (BATCHED, LAF_FIVE, LAF_FULL, TUCKER["half"], TUCKER["quarter"], TRAIN["quarter"])
IN_MEMORY = (BATCHED, LAF_FULL, TUCKER["quarter"], TRAIN["quarter"])


LARGE = ("MLP", "LeNet-heavy", "growth")  # kinds whose weights no cache keeps from step to step


def latent_tasks(T: int) -> dict[str, int]:
    """K of the contestants whose number of latent tasks goes with T."""
    return {LAF_FULL.name: T, LAF_HALF.name: (T + 1) // 2}


def all_cases(smoke: bool) -> list[Case]:
    """The cases in order."""
    big, small = ((20, 28, 28, 5), (9, 8, 8, 3)) if smoke else ((256, 512, 512, 10), (64, 32, 32, 10))
    images, B = ((3, 4, 16, 5), 4) if smoke else ((32, 64, 512, 10), 32)
    methods = (*EVERYBODY, LOOP_CHANNELS_LAST)
    few, many = (5, 14) if smoke else (50, 139)
    cases = [
        Case("MLP", "MLP", mlp, big, big[:1], 4 if smoke else 10, B, (*EVERYBODY, COMPILED), 15, 3),
        Case("LeNet-heavy", "LeNet-heavy", lenet, images, (1, 28, 28), 4 if smoke else 10, B, methods, 15, 1),
        Case(f"small nets, T={few}", "small nets", mlp, small, small[:1], few, B, SEPARATE, 9, 3),
        Case(f"small nets, T={many}", "many small nets", mlp, small, small[:1], many, B, SEPARATE, 9, 3),
    ]
    for T in (5, 6, 7) if smoke else (5, 10, 20, 50):
        cases.append(Case(f"growth, T={T}", "growth", mlp, big, big[:1], T, B, GROWING, 11, 1))
    return cases
