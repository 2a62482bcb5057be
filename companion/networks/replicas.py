"""Many networks of one shape at once: replicas, each on its own data, trained by full batches and Adam."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap


def train_replicas(
    networks: Sequence[nn.Module],
    X: Tensor,
    y: Tensor,
    steps: int,
    learning_rate: float = 0.01,
    weight_decay: float = 0.0,
) -> Tensor:
    """Train R networks of one architecture, each on its own data, in the time of little more than one.

    Every network minimises the sum over its tasks of the mean squared error, by full-batch Adam. The R losses are
    added, so no network feels another: the result is that of R separate runs.

    Parameters
    ----------
    networks : R modules of the same shapes
        Trained in place; each maps stacked inputs ``(T, n, d)`` to ``(T, n, 1)``.
    X : (R, T, n, d) tensor
    y : (R, T, n) tensor
    steps : int
        Adam steps, at least 1.
    learning_rate, weight_decay : float
        Adam's; the decay is a squared penalty on all parameters.

    Returns
    -------
    (steps, R) tensor
        Training loss of every network before each step.
    """
    if len(networks) != X.shape[0] or X.shape[:3] != y.shape:
        raise ValueError(
            f"expected X (R, T, n, d) and y (R, T, n) for R={len(networks)} networks; "
            f"got {tuple(X.shape)} and {tuple(y.shape)}"
        )
    if steps < 1:
        raise ValueError(f"steps must be at least 1; got {steps}")
    parameters, buffers = stack_module_state(list(networks))
    skeleton = copy.deepcopy(networks[0]).to("meta")

    def loss(parameters: dict, buffers: dict, X: Tensor, y: Tensor) -> Tensor:
        output = functional_call(skeleton, (parameters, buffers), (X,))
        if output.shape != (*y.shape, 1):
            raise ValueError(f"networks must map X to {(*y.shape, 1)}, one output per task; got {tuple(output.shape)}")
        return ((output.squeeze(-1) - y) ** 2).mean(dim=1).sum()

    optimizer = torch.optim.Adam(parameters.values(), lr=learning_rate, weight_decay=weight_decay)
    history = X.new_empty(steps, len(networks))
    for step in range(steps):
        losses = vmap(loss)(parameters, buffers, X, y)
        history[step] = losses.detach()
        optimizer.zero_grad()
        losses.sum().backward()
        optimizer.step()
    with torch.no_grad():
        for r, network in enumerate(networks):
            for name, parameter in network.named_parameters():
                parameter.copy_(parameters[name][r])
    return history
