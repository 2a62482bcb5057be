"""The obvious training loop, task by task and example by example, and small networks to train with it."""

import torch
from torch import nn


def objective(output, y, mask, losses, weights):
    """Weighted sum over tasks of the mean loss over labelled examples: (scalar, list of T means or NaN)."""
    total, means = 0.0, []
    for t in range(len(y)):
        values = []
        for i in range(len(y[t])):
            known = mask is None or bool(mask[t][i])
            if known and not (y[t].is_floating_point() and bool(torch.isnan(y[t][i]).any())):
                values.append(losses[t](output[t][i : i + 1], y[t][i : i + 1]).mean())
        if values:
            total = total + weights[t] * sum(values) / len(values)
        means.append(float(sum(values).detach()) / len(values) if values else float("nan"))
    return total, means


def train_by_hand(network, epochs, losses, optimizer, steps, weights):
    """Take steps through the batches of ``epochs``, an iterable of lists; return the (steps, T) means."""
    history = []
    for batches in epochs:
        for x, y, mask in batches:
            total, means = objective(network(x), y, mask, losses, weights)
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            history.append(means)
            if len(history) == steps:
                return torch.tensor(history, dtype=torch.float64)
    raise AssertionError("not enough batches")


class Heads(nn.Module):
    """A trunk, dropout, and a head per task, of sizes that may differ: in any form, out a list."""

    def __init__(self, d, sizes, dropout=0.0, seed=0):
        super().__init__()
        rng = torch.Generator().manual_seed(seed)
        self.trunk = nn.Parameter(torch.randn(d, 6, generator=rng) / d**0.5)
        self.heads = nn.ParameterList([torch.randn(6, o, generator=rng) / 6**0.5 for o in sizes])
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        shared = isinstance(x, torch.Tensor) and x.ndim == 2
        parts = [x] * len(self.heads) if shared else x
        return [
            self.dropout(torch.tanh(part @ self.trunk)) @ head for part, head in zip(parts, self.heads, strict=True)
        ]


def same_parameters(a, b, tolerance):
    """Whether two networks hold the same numbers, exactly for a tolerance of zero."""
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=tolerance, atol=tolerance)
