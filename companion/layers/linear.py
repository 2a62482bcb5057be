"""Fully connected layers of T tasks whose weights are factors that the tasks share."""

from __future__ import annotations

import torch
from torch import Tensor

from companion.factorized import Chain, FactorizedTensor
from companion.layers._base import TaskLayer
from companion.layers.cost import Contraction, Sizes
from companion.layers.stacking import check_stacked, is_shared


class TaskLinear(TaskLayer):
    r"""T fully connected layers, :math:`y_t = W_t^\top x_t + b_t`.

    Parameters
    ----------
    weight : FactorizedTensor of shape (I, O, T)
        Weights of all tasks; ``layer.weight.compose()`` shows them.
    bias : bool, default True
        Every task has a bias of its own, whatever the weights share. Tied weights are one layer for all tasks, and
        their bias is one too.
    contraction : {"auto", "composed", "activations"}
        Whether weights are composed or activations go through the factors; by default what costs less.
    """

    def __init__(self, weight: FactorizedTensor, bias: bool = True, contraction: Contraction = "auto") -> None:
        if len(weight.shape) != 3:
            raise ValueError(f"the weight of a linear layer must have shape (I, O, T); got {weight.shape}")
        super().__init__(weight, bias, contraction)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs of all tasks.

        Parameters
        ----------
        x : (T, B, ..., I) tensor
            An input that is expanded over the task axis counts as shared: what all tasks do with it is done once.

        Returns
        -------
        (T, B, ..., O) tensor
        """
        I, O, T = self.weight.shape
        check_stacked(x, T, I, -1, (), "TaskLinear")
        inner = x.shape[1:-1]
        x = x[0].reshape(1, -1, I) if is_shared(x) else x.reshape(T, -1, I)  # (T or 1, n, I)
        sizes = Sizes(x.shape[1], x.shape[1], 1, I, O)
        chain = self.choose(sizes)
        if chain is None:
            y = self._multiply(x, self.weight.compose().movedim(-1, 0))
        else:
            y = self._send_through(x, self.weight.chain(chain))
        return y.view(T, *inner, O)

    def _multiply(self, x: Tensor, W: Tensor) -> Tensor:
        """(T or 1, n, I) times (T, I, O), plus the bias."""
        x = x.expand(W.shape[0], -1, -1)
        if self.bias is None:
            return torch.bmm(x, W)
        if self.bias.ndim == 1:
            return torch.bmm(x, W) + self.bias
        return torch.baddbmm(self.bias.unsqueeze(1), x, W)

    def _send_through(self, x: Tensor, chain: Chain) -> Tensor:
        """Activations through left, middle and right; shared maps take all tasks in one product."""
        left, middle, right = chain
        if left is not None:
            x = x @ left
        if middle is None:  # one layer for all tasks
            x = x if self.bias is None else x + self.bias
            return x.expand(self.n_tasks, -1, -1)
        if right is None:
            return self._multiply(x, middle)
        x = torch.bmm(x.expand(self.n_tasks, -1, -1), middle) @ right
        return x if self.bias is None else x + self.bias.unsqueeze(1)

    def task_weights(self) -> Tensor:
        """(T, O, I) weights of every task, laid out as :class:`torch.nn.Linear` has them."""
        return self.weight.compose().permute(2, 1, 0)

    def extra_repr(self) -> str:
        return f"bias={self.bias is not None}, contraction={self.contraction!r}"
