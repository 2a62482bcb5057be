"""Twenty networks that tell two digits apart each: how much sharing is worth, and in a world without anything to share.

In the second world the pixels of every task are shuffled, in an order of its own. Each task alone is as hard as before
for a fully connected network, and no two tasks see a stroke in the same place. The difference between the gains in
both worlds is what the relatedness of the tasks is worth to a method.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from companion.datasets import Digits, load_digits_tasks
from companion.experiments._frame import Experiment, Unit, UnitResult
from companion.factorized import LAF, FactorizedTensor, Independent, TensorTrain
from companion.networks import SharedNetwork, hard_sharing, share
from companion.training import train

PAIRS = tuple(itertools.combinations(range(10), 2))
DIGITS, SHUFFLED = "digits", "shuffled pixels"
DRAWN, APART, ALIKE = "drawn", "from separate networks begun apart", "from separate networks begun alike"
FORMATS: dict[str, type[FactorizedTensor]] = {"Independent": Independent, "LAF": LAF, "TensorTrain": TensorTrain}

#: What is compared. Ranks of a tensor train: directions of the inputs that the tasks share, then the rank of the tasks.
METHODS: dict[str, dict[str, Any]] = {
    "separate": {"by": "Independent"},
    "separate, stopped": {"by": "Independent", "stopped": True},
    "products of their own": {"by": "Independent", "products": 20},
    "hard, first layer": {"n_shared": 1},
    "hard, first two": {"n_shared": 2},
    "TT, 32 directions": {"by": "TensorTrain", "ranks": {"0": (32, 20), "2": (32, 20), "4": (20, 20)}},
    "TT, 16 directions": {"by": "TensorTrain", "ranks": {"0": (16, 20), "2": (32, 20), "4": (20, 20)}},
    **{f"LAF, K = {K}": {"by": "LAF", "ranks": K} for K in (20, 8, 2)},
    **{f"LAF, first layer, K = {K}": {"by": {"0": "LAF"}, "ranks": {"0": K}} for K in (8, 3, 1)},
}
#: What separate networks go on as, once they are trained.
STARTS: dict[str, dict[str, Any]] = {
    "separate": {"by": "Independent"},
    "TT, 10 %": {"by": "TensorTrain", "eps": 0.1},
    "LAF, 10 %": {"by": "LAF", "eps": 0.1},
    "LAF, K = 8": {"by": "LAF", "ranks": 8},
}


@functools.cache
def images() -> Digits:
    """The images of scikit-learn."""
    return load_digits_tasks()


class Apprentices(NamedTuple):
    """Images of T tasks: as many for each to learn from, and those of its two digits to test on."""

    x: Tensor  # (T, n, 64), centred image by image
    y: Tensor  # (T, n), 1 for the first digit of the pair
    tests: list[tuple[Tensor, Tensor]]  # (n_t, 64) and (n_t,) for each task


def draw_apprentices(
    seed: int, shuffled: bool = False, n_tasks: int = 20, n_rows: int = 24, noise: float = 0.5, n_pool: int = 1000
) -> Apprentices:
    """Pairs of digits in a random order, with few noisy images of either digit.

    Parameters
    ----------
    seed : int
        The first tasks are the same for any ``n_tasks``, and the images for either world.
    shuffled : bool
        Whether each task has its pixels in an order of its own.
    n_tasks : int
        T, at most 45.
    n_rows : int
        Images to learn from, half of them of each digit.
    noise : float
        Standard deviation of the noise, where ink is 1.
    n_pool : int
        Images to learn from are drawn from so many; the others are for tests.
    """
    digits = images()
    pixels, rng = digits.X / 16, np.random.default_rng(seed)
    order = rng.permutation(len(pixels))
    pool, rest = order[:n_pool], order[n_pool:]
    learn: list[tuple[Tensor, Tensor]] = []
    tests: list[tuple[Tensor, Tensor]] = []
    for index in rng.permutation(len(PAIRS))[:n_tasks]:
        pair = rng.permutation(PAIRS[index])
        pools = [pool[digits.digit[pool] == digit] for digit in pair]
        rows = np.concatenate([rng.choice(p, n_rows // 2, replace=False) for p in pools])
        others = rest[np.isin(digits.digit[rest], pair)]
        places = rng.permutation(pixels.shape[1])
        for part, chosen in ((learn, rows), (tests, others)):
            x = pixels[chosen] + noise * rng.normal(size=(len(chosen), pixels.shape[1]))
            x -= x.mean(axis=1, keepdims=True)  # so that the amount of ink tells nothing
            x = x[:, places] if shuffled else x
            part.append((torch.tensor(x).float(), torch.tensor(digits.digit[chosen] == pair[0]).float()))
    x, y = (torch.stack(values) for values in zip(*learn, strict=True))
    return Apprentices(x, y, tests)


def digit_network() -> nn.Sequential:
    """Two hidden layers of 32 units, one output."""
    return nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))


class OwnProducts(nn.Module):
    """Weights of T tasks, each K latent layers of its own times a code: products, and nothing shared."""

    def __init__(self, n_tasks: int, K: int, generator: torch.Generator) -> None:
        super().__init__()
        codes = torch.randn(n_tasks, K, generator=generator)
        self.codes = nn.Parameter(codes / codes.norm(dim=1, keepdim=True))
        self.generator = generator

    def forward(self, L: Tensor) -> Tensor:
        """(T, K, I, O) -> (T, I, O)."""
        return torch.einsum("tk,tkio->tio", self.codes, L)

    def right_inverse(self, W: Tensor) -> Tensor:
        """(T, I, O) -> (T, K, I, O) latent layers that make weights of this scale, and as large as the codes."""
        L = torch.randn(*self.codes.shape, *W.shape[1:], generator=self.generator)
        c = float((W.std() / self.codes.detach().square().mean().sqrt()).sqrt())
        with torch.no_grad():
            self.codes.mul_(c)
        return L * float(W.std()) / c


def build(
    choices: Mapping[str, Any], n_tasks: int, generator: torch.Generator, models: list[nn.Module] | None = None
) -> SharedNetwork:
    """The network of a method, drawn or from trained separate networks.

    Parameters
    ----------
    choices : mapping
        A value of :data:`METHODS` or :data:`STARTS`.
    """
    if "n_shared" in choices:
        return hard_sharing(digit_network(), n_tasks, choices["n_shared"], generator=generator)
    by = choices["by"]
    formats = FORMATS[by] if isinstance(by, str) else {layer: FORMATS[name] for layer, name in by.items()}
    settings = {key: choices[key] for key in ("eps", "ranks") if key in choices}
    network = share(digit_network(), n_tasks, formats, from_models=models, generator=generator, **settings)
    if "products" in choices:
        for layer in network.layers.values():
            register_parametrization(layer.weight, "weight", OwnProducts(n_tasks, choices["products"], generator))
    return network


def fit(
    network: nn.Module, data: Apprentices, steps: int = 60, learning_rate: float = 0.01, stopped: bool = False
) -> Tensor:
    """Train with Adam on all images of all tasks in every step.

    Parameters
    ----------
    stopped : bool
        Keep the weights of the step, of every fifth, that is best on the images to test on, which nobody could know.

    Returns
    -------
    (steps,) tensor
        Sum of the training losses before every step.
    """
    tests = [tuple(map(list, zip(*data.tests, strict=True)))] if stopped else None
    logistic = nn.BCEWithLogitsLoss(reduction="none")
    history = train(
        network,
        [(data.x, data.y)],
        logistic,
        steps=steps,
        learning_rate=learning_rate,
        validation=tests,
        evaluate_every=5,
        progress=False,
    )
    return history.training.sum(dim=1)


@torch.no_grad()
def error(network: nn.Module, data: Apprentices) -> float:
    """Errors on the images to test on, in percent, mean over the tasks."""
    outputs = network([x for x, _ in data.tests])
    wrong = [((o[:, 0] > 0) != (y > 0.5)).float().mean() for o, (_, y) in zip(outputs, data.tests, strict=True)]
    return 100 * float(torch.stack(wrong).mean())


def separate_networks(
    data: Apprentices, alike: bool, generator: torch.Generator, steps: int, learning_rate: float = 0.01
) -> list[nn.Module]:
    """T networks trained apart, which began with weights of their own, or all (``alike``) with the same."""
    T = len(data.x)
    network = share(digit_network(), T, Independent, generator=generator)
    if alike:
        network = share(digit_network(), T, Independent, from_models=[network.export(0)] * T, generator=generator)
    fit(network.to(data.x.device), data, steps, learning_rate)
    return [network.export(t) for t in range(T)]


class DMTRLDigits(Experiment):
    """Errors of separate networks, hard sharing, LAF and tensor trains, on digits and on shuffled pixels."""

    name = "dmtrl-digits"
    title = "Twenty pairs of digits, 24 noisy images each: DMTRL, hard sharing and separate networks, in two worlds"
    dtype = "float32"

    def config(self, smoke: bool) -> dict[str, Any]:
        return {
            "draws": 2 if smoke else 30,
            "worlds": [DIGITS, SHUFFLED],
            "n_tasks": 20,
            "n_rows": 24,
            "noise": 0.5,
            "n_pool": 1000,
            "steps": 10 if smoke else 60,
            "learning_rate": 0.01,
            "methods": METHODS,
            "starts": STARTS,
            "network": "64-32-32-1, tanh",
            "budget": "all methods take the same number of steps; those from separate networks half of them before",
        }

    def units(self, config: Mapping[str, Any]) -> list[Unit]:
        contests = [(DRAWN, method) for method in config["methods"]]
        contests += [(begun, method) for begun in (APART, ALIKE) for method in config["starts"]]
        return [
            {"condition": world, "begun": begun, "method": method, "seed": seed}
            for world in config["worlds"]
            for begun, method in contests
            for seed in range(config["draws"])
        ]

    def run_unit(self, unit: Unit, config: Mapping[str, Any], device: torch.device) -> UnitResult:
        """The error (%), mean over the tasks, and how many numbers are trained."""
        names = ("n_tasks", "n_rows", "noise", "n_pool")
        data = draw_apprentices(unit["seed"], unit["condition"] == SHUFFLED, *(config[name] for name in names))
        data = Apprentices(data.x.to(device), data.y.to(device), [(x.to(device), y.to(device)) for x, y in data.tests])
        generator = torch.Generator().manual_seed(unit["seed"])
        steps, rate, models = config["steps"], config["learning_rate"], None
        choices = config["methods" if unit["begun"] == DRAWN else "starts"][unit["method"]]
        if unit["begun"] != DRAWN:
            before, steps = steps // 2, steps - steps // 2
            models = separate_networks(data, unit["begun"] == ALIKE, generator, before, rate)
        network = build(choices, config["n_tasks"], generator, models).to(device)
        fit(network, data, steps, rate, choices.get("stopped", False))
        metrics = {"error": round(error(network, data), 6), "n_parameters": float(network.n_parameters)}
        return {"metrics": metrics, "per_task": {}}

    def seeds(self, config: Mapping[str, Any]) -> list[int]:
        """Of the draws, and of the weights."""
        return list(range(config["draws"]))

    def data_files(self) -> dict[str, str]:
        """The pixels and labels of scikit-learn's digits."""
        return dict(images().sha256)
