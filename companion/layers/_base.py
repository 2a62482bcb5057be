"""What fully connected and convolutional layers of T tasks have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from companion.factorized import ChainSizes, FactorizedTensor, Tied
from companion.layers.cost import Contraction, Sizes, check_contraction, choose


class TaskLayer(nn.Module, ABC):
    """T layers whose weights are generated from shared factors.

    Attributes
    ----------
    weight : FactorizedTensor
        Weights of all tasks; ``layer.weight.compose()`` shows them.
    bias : (T, O) parameter or None
        Every task's own, whatever the weights share; (O,) where the weights are tied, for that is one layer.
    contraction : {"auto", "composed", "activations"}
        Whether weights are composed or activations go through the factors.
    """

    def __init__(self, weight: FactorizedTensor, bias: bool, contraction: Contraction) -> None:
        super().__init__()
        check_contraction(contraction)
        self.weight = weight
        self.contraction: Contraction = contraction
        self._choices: dict[tuple, ChainSizes | None] = {}
        self.bias: nn.Parameter | None = None
        if bias:
            O, T = weight.shape[-2:]
            shape = (O,) if isinstance(weight, Tied) else (T, O)
            like = next(weight.parameters())
            self.bias = nn.Parameter(torch.zeros(shape, dtype=like.dtype, device=like.device))

    @property
    def n_tasks(self) -> int:
        """T."""
        return self.weight.n_tasks

    def choose(self, sizes: Sizes) -> ChainSizes | None:
        """The chain to send inputs of these sizes through, None to compose the weights; counted once for each."""
        key = (self.contraction, id(self.weight), self.n_tasks, sizes)
        if key not in self._choices:
            self._choices[key] = choose(self.contraction, self.weight, sizes)
        return self._choices[key]

    @abstractmethod
    def task_weights(self) -> Tensor:
        """(T, O, I, ...) weights of every task, laid out as torch's plain layer has them."""

    def task_biases(self) -> Tensor | None:
        """(T, O) biases of every task."""
        if self.bias is None or self.bias.ndim == 2:
            return self.bias
        return self.bias.expand(self.n_tasks, -1)

    def add_task(self, code: Tensor | None = None) -> int:
        """Give one more task a column of the task factor and a bias, the means of the others by default.

        Parameters
        ----------
        code : (K,) tensor, optional
            How the new task combines the latent tasks of this layer.

        Returns
        -------
        int
            Position of the new task.
        """
        position = self.weight.add_task(code)
        if self.bias is not None and self.bias.ndim == 2:
            old = self.bias.detach()
            self.bias = nn.Parameter(torch.cat([old, old.mean(0, keepdim=True)]))
        return position
