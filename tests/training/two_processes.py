"""Runs that two processes share, and that one does with batches of twice the size.

As a program, under torchrun: ``two_processes.py FOLDER`` leaves what each process found in ``FOLDER/RANK.pt``.
"""

import os
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from companion.networks import HardSharing
from companion.training import SharedData, TaskLoaders, evaluate, make_loader, train
from tests.training.oracle import Heads

T, D, H, N = 3, 5, 2, 27  # with batches of four, the second process has none in the last step of an epoch
SIZES = (8, 16, 40)  # ragged tasks, of which two start again within an epoch
STEPS = 11
MSE = nn.MSELoss(reduction="none")


def random(*shape, seed):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def masked():
    """Few labels: some batches of four have none of a task, and one task has them in one half of the batch."""
    mask = torch.rand(N, T, generator=torch.Generator().manual_seed(4)) < torch.tensor([0.15, 0.5, 0.9])
    Y = random(N, T, seed=2)
    Y[::5, 2] = torch.nan
    return SharedData(random(N, D, seed=1), Y, mask)


def ragged(batch_size):
    data = [(random(n, D, seed=n), random(n, seed=n + 1)) for n in SIZES]
    return TaskLoaders.from_data(data, batch_size, seed=3)


def network(seed):
    return HardSharing(D, H, T, generator=torch.Generator().manual_seed(seed)).double()


def plain_runs(batch_size, seed):
    """Name -> (network, history) without anything random in the networks."""
    done = {}
    for name in ("masked", "adam", "ragged"):
        net = network(seed)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9) if name != "adam" else None
        done[name] = (
            net,
            train(
                net,
                ragged(batch_size) if name == "ragged" else make_loader(masked(), batch_size, seed=5),
                MSE,
                steps=STEPS,
                optimizer=optimizer,
                task_weights=[1.0, 0.5, 2.0],
                validation=ragged(3) if name == "ragged" else make_loader(masked(), 6),
                evaluate_every=4,
            ),
        )
    return done


def dropout_run(steps, checkpoint, seed):
    """Every process has random numbers of its own."""
    torch.manual_seed(seed)
    net = Heads(D, [1] * T, dropout=0.5).double()
    return net, train(
        net, make_loader(masked(), 4, seed=6), MSE, steps=steps, checkpoint=checkpoint, learning_rate=0.02
    )


def main(folder):
    rank = int(os.environ["RANK"])
    # The main process decides where the network starts.
    done = plain_runs(4, seed=rank)
    done["whole"] = dropout_run(9, None, seed=10 + rank)
    dropout_run(5, folder / "run.pt", seed=10 + rank)
    done["divided"] = dropout_run(9, folder / "run.pt", seed=20 + rank)
    net = network(0)
    accelerator = Accelerator(cpu=True)
    losses = [
        evaluate(net, batches, MSE, accelerator=accelerator) for batches in (make_loader(masked(), 50), ragged(3))
    ]
    results = {name: {"network": net.state_dict(), "history": history.state()} for name, (net, history) in done.items()}
    torch.save(results | {"losses": losses, "processes": accelerator.num_processes}, folder / f"{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
