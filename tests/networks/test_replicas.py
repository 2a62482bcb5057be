"""Many networks trained at once."""

import pytest
import torch

from companion.networks import HardSharing, train_replicas

T, D, H, O, N = 3, 5, 2, 4, 7


def network(seed=0, n_outputs=1):
    return HardSharing(D, H, T, n_outputs, generator=torch.Generator().manual_seed(seed)).double()


def separate_run(net, X, y, steps, weight_decay):
    """The obvious loop for one network."""
    optimizer, losses = torch.optim.Adam(net.parameters(), lr=0.05, weight_decay=weight_decay), []
    for _ in range(steps):
        loss = sum(((net(X[t])[t, :, 0] - y[t]) ** 2).mean() for t in range(T))
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


def test_training_together_equals_training_apart():
    rng = torch.Generator().manual_seed(5)
    X = torch.randn(2, T, N, D, dtype=torch.float64, generator=rng)
    y = torch.randn(2, T, N, dtype=torch.float64, generator=rng)
    together = [network(seed) for seed in (0, 1)]
    apart = [network(seed) for seed in (0, 1)]
    history = train_replicas(together, X, y, steps=40, learning_rate=0.05, weight_decay=0.01)
    for r in range(2):
        losses = separate_run(apart[r], X[r], y[r], 40, weight_decay=0.01)
        torch.testing.assert_close(history[:, r], torch.tensor(losses, dtype=torch.float64), rtol=1e-9, atol=1e-12)
        for a, b in zip(together[r].parameters(), apart[r].parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)
    assert (history[-1] < history[0]).all()


def test_bad_input():
    X = torch.zeros(1, T, N, D, dtype=torch.float64)
    with pytest.raises(ValueError, match="for R=2 networks"):
        train_replicas([network(), network()], X, X[..., 0], steps=1)
    with pytest.raises(ValueError, match="steps must be at least 1"):
        train_replicas([network()], X, X[..., 0], steps=0)


def test_outputs_that_would_broadcast_are_refused():
    X = torch.zeros(1, T, 1, D, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"must map X to \(3, 1, 1\), one output per task; got \(3, 1, 4\)"):
        train_replicas([network(n_outputs=O)], X, X[..., 0], steps=1)
