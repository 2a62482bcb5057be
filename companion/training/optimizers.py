"""The default optimizer: Adam, in its fastest form."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cache

import torch
from torch import nn


def adam(parameters: Iterable[nn.Parameter], learning_rate: float, weight_decay: float = 0.0) -> torch.optim.Adam:
    """Adam that updates all parameters in one fused kernel, where torch has one for their devices and types.

    The steps are those of ``torch.optim.Adam`` up to rounding. Many small tensors, such as the factors of a network,
    gain the most.

    Parameters
    ----------
    parameters : iterable of parameters
        At least one.
    learning_rate : float
        > 0.
    weight_decay : float, default 0
        >= 0; times half the squared norm of all parameters, added to the objective.

    Returns
    -------
    torch.optim.Adam
    """
    if not (learning_rate > 0 and math.isfinite(learning_rate)):
        raise ValueError(f"learning_rate must be a number > 0; got {learning_rate}")
    if not (weight_decay >= 0 and math.isfinite(weight_decay)):
        raise ValueError(f"weight_decay must be a number >= 0; got {weight_decay}")
    parameters = list(parameters)
    if not parameters:
        raise ValueError("parameters must hold at least one parameter; got none")
    fused = all(_has_fused_kernel(*kind) for kind in {(parameter.device, parameter.dtype) for parameter in parameters})
    return torch.optim.Adam(parameters, lr=learning_rate, weight_decay=weight_decay, fused=fused or None)


@cache
def _has_fused_kernel(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch can do it: it is asked for a step with a parameter that nobody needs."""
    probe = nn.Parameter(torch.zeros(1, device=device, dtype=dtype))
    probe.grad = torch.zeros_like(probe)
    try:
        torch.optim.Adam([probe], fused=True).step()
    except RuntimeError:
        return False
    return True
