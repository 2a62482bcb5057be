"""A run with all that can go wrong in resuming: dropout, Adam, shuffling, epochs, validation. It can be killed.

As a program: ``python killed_run.py CHECKPOINT WHEN NUMBER`` kills itself in step NUMBER (WHEN is "step"), or when the
checkpoint of that number has been written aside and not moved yet ("move").
"""

import os
import signal
import sys
from pathlib import Path

import torch
from torch import nn

from companion.training import SharedData, TaskLoaders, make_loader, train
from tests.training.oracle import Heads

T, D, N, B, STEPS, EVERY = 3, 5, 29, 4, 41, 3  # eight batches in an epoch, fourteen checkpoints


def data(seed=0):
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(N, D, dtype=torch.float64, generator=generator)
    Y = torch.randn(N, T, dtype=torch.float64, generator=generator)
    return X, Y.masked_fill(torch.rand(N, T, generator=generator) < 0.2, torch.nan)


def batches(kind="shared"):
    X, Y = data()
    if kind == "shared":
        return make_loader(SharedData(X, Y), B, seed=11)
    return TaskLoaders.from_data([(X[first:], Y[first:, t]) for t, first in enumerate((0, 15, 22))], B, seed=11)


def run(checkpoint, seed, kind="shared", steps=STEPS, before_step=lambda step: None):
    """Train with this seed of torch's default generator; return the network and the history.

    ``before_step`` is called with 1, 2, ..., counted from the start of this call, within each step.
    """
    torch.manual_seed(seed)
    network, calls = Heads(D, [1] * T, dropout=0.5, seed=seed).double(), []
    mse = nn.MSELoss(reduction="none")

    def loss(output, y):
        if network.training:
            calls.append(1)
            if len(calls) % T == 1:  # the outputs are lists: one call per task
                before_step(len(calls) // T + 1)
        return mse(output, y)

    history = train(
        network,
        batches(kind),
        loss,
        steps=steps,
        learning_rate=0.02,
        validation=make_loader(SharedData(*data(1)), 13),
        evaluate_every=5,
        checkpoint=checkpoint,
        checkpoint_every=EVERY,
    )
    return network, history


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    path, when, number = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    if when == "move":
        move, moves = os.replace, []

        def replace(source, target):
            moves.append(source)
            if len(moves) == number:
                kill()
            move(source, target)

        os.replace = replace
    run(path, seed=0, before_step=lambda step: kill() if when == "step" and step == number else None)
