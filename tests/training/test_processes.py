"""Two processes take the steps of one with batches of twice the size."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from companion.training import evaluate, make_loader, train
from tests.training import two_processes
from tests.training.oracle import Heads

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """What two processes found, and their folder."""
    folder = tmp_path_factory.mktemp("two")
    launch = [sys.executable, "-W", "error", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*launch, two_processes.__file__, str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)], folder


@pytest.fixture(scope="module")
def alone():
    return two_processes.plain_runs(8, seed=0)


def close(a, b, tolerance):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("name", ["masked", "adam", "ragged"])
def test_two_processes_equal_one_with_twice_the_batch(together, alone, name):
    network, history = alone[name]
    (first, second), _ = together
    assert first["processes"] == 2
    for results in (first, second):
        close(results[name]["network"], dict(network.state_dict()), 1e-10)
        for part in ("training", "validation", "validation_steps", "validation_loss"):
            close(results[name]["history"][part], getattr(history, part), 1e-10)
    missing = torch.isnan(history.training)
    assert (name == "ragged") != bool(missing[:, 0].any()) and history.training.shape == (two_processes.STEPS, 3)


def test_evaluation_is_divided(together):
    """Over one batch, which the second process does not have, and over ragged ones."""
    network = two_processes.network(0)
    for results in together[0]:
        for found, batches in zip(
            results["losses"], (make_loader(two_processes.masked(), 50), two_processes.ragged(3)), strict=True
        ):
            close(found, evaluate(network, batches, nn.MSELoss(reduction="none")), 1e-12)


def test_two_processes_go_on_with_their_own_random_numbers(together):
    for results in together[0]:
        whole, divided = results["whole"], results["divided"]
        close(divided["network"], whole["network"], 0)
        close(divided["history"]["training"], whole["history"]["training"], 0)
    close(together[0][0]["whole"]["network"], together[0][1]["whole"]["network"], 0)


def test_a_file_of_two_processes_is_refused_by_one(together):
    network = Heads(two_processes.D, [1] * two_processes.T, dropout=0.5).double()
    before = network.trunk.detach().clone()
    with pytest.raises(ValueError, match="another run, with another number of processes: 2 there, 1 here"):
        train(
            network,
            make_loader(two_processes.masked(), 4, seed=6),
            two_processes.MSE,
            steps=9,
            learning_rate=0.02,
            checkpoint=together[1] / "run.pt",
        )
    close(network.trunk.detach(), before, 0)
